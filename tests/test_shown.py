"""What a session shows: signatures, reprs, the names in a module, and answers in a notebook."""

import ast
import importlib
import inspect
import pathlib
import pydoc
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax import reductions
from smoothjax._shown import Shown
from smoothjax.reductions import Estimate

PACKAGES = (
    "smoothjax",
    "smoothjax.attribution",
    "smoothjax.calibrate",
    "smoothjax.evaluation",
    "smoothjax.feature_visualization",
    "smoothjax.metrics",
    "smoothjax.plotting",
    "smoothjax.spectral",
    "smoothjax.zoo",
)
MODULES = ("smoothjax.noise", "smoothjax.reductions", "smoothjax.attribution.lrp_rules")


@pytest.mark.parametrize("room", PACKAGES + MODULES)
def test_no_signature_shows_an_address(room):
    room = importlib.import_module(room)
    functions = [value for name in dir(room) if inspect.isroutine(value := getattr(room, name))]
    assert functions
    for function in functions:
        assert " at 0x" not in str(inspect.signature(function)), function


def test_help_shows_the_defaults_and_what_there_is_to_read():
    text = pydoc.render_doc(sj.smoothgrad, renderer=pydoc.plaintext)
    assert "sigma: Any = relative(0.15)" in text
    assert "= box_muller" in text
    assert "= mean()" in text
    text = pydoc.render_doc(sj.noise.box_muller, renderer=pydoc.plaintext)
    assert "box_muller(" in text
    assert "Box and Muller 1958" in text


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda: sj.relative(0.15), "relative(0.15)"),
        (lambda: sj.relative(0.1, jnp.ones((9, 3))), "relative(0.1, float32[9, 3])"),
        (
            lambda: sj.relative(0.1, np.eye(3), spread=np.std),
            "relative(0.1, float64[3, 3], spread=std)",
        ),
        (lambda: sj.adaptive((0.0, 1.0), confidence=0.9), "adaptive((0.0, 1.0), confidence=0.9)"),
        (lambda: sj.by_path(str.isupper), "by_path(isupper)"),
        (lambda: reductions.mean(), "mean()"),
        (lambda: reductions.mean_square(), "mean_square()"),
        (lambda: reductions.variance(), "variance()"),
        (lambda: reductions.mean_and_stderr(), "mean_and_stderr()"),
        (lambda: reductions.stack(), "stack()"),
        (lambda: sj.spectral.wiener(channel_axis=-1), "wiener(channel_axis=-1)"),
        (lambda: sj.spectral.signal_and_noise((0,)), "signal_and_noise((0,))"),
        (lambda: reductions.Reduction(len, len, len), "Reduction(...)"),
        (lambda: sj.noise.box_muller, "box_muller"),
        (lambda: sj.attribution.lrp_rules.gamma(0.5), "gamma(0.5)"),
        (lambda: sj.feature_visualization.fourier(), "fourier()"),
        (
            lambda: sj.feature_visualization.chain(sj.feature_visualization.jitter(4)),
            "chain(jitter(4))",
        ),
    ],
)
def test_what_is_made_says_how(made, shown):
    assert repr(made()) == shown


def test_what_is_shown_is_a_function_still():
    rule = sj.relative(0.5)
    assert isinstance(rule, Shown)
    assert callable(rule)
    assert rule.__name__ == "rule"
    assert jax.tree.leaves(rule) == [rule]
    assert float(jax.jit(rule)(jnp.array([0.0, 4.0]))) == 2
    assert reductions.mean() == reductions.mean()
    assert reductions.mean() != reductions.mean_square()

    class Model:
        noise = Shown(lambda self, x: (self, x), "noise")

    model = Model()
    assert model.noise(3) == (model, 3)


def re_exports(package):
    """The names that a package imports as themselves."""
    tree = ast.parse(pathlib.Path(package.__file__).read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imported for alias in node.names if alias.name == alias.asname}
    return names | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@pytest.mark.parametrize("name", PACKAGES)
def test_completion_shows_what_a_package_re_exports(name):
    package = importlib.import_module(name)
    shown = {name for name in dir(package) if not name.startswith("__")}
    assert shown == {name for name in re_exports(package) if not name.startswith("__")}


@pytest.mark.parametrize("name", MODULES)
def test_completion_shows_no_helper(name):
    module = importlib.import_module(name)
    shown = {name for name in dir(module) if not name.startswith("__")}
    assert not shown & {
        "jax",
        "jnp",
        "np",
        "Any",
        "Callable",
        "noted",
        "shown",
        "listed",
        "require",
    }
    assert all(hasattr(module, name) for name in shown)
    documented = set(vars(module)) & {"relative", "adaptive", "by_path", "span", "box_muller"}
    assert documented <= shown


CODE = """
import sys
import numpy as np
import smoothjax as sj
from smoothjax.reductions import Estimate
assert {"plotting", "zoo"} <= set(dir(sj))
assert not {"matplotlib", "flax"} & set(sys.modules)
sys.modules["matplotlib"] = None
assert not hasattr(sj, "plotting")
try:
    sj.plotting
except AttributeError as error:
    assert 'pip install "smoothjax[zoo]"' in str(error), error
try:
    from smoothjax import plotting
except ImportError as error:
    assert 'pip install "smoothjax[zoo]"' in str(error), error
else:
    raise AssertionError
estimate = Estimate(np.eye(8), np.eye(8), 9)
assert estimate._repr_png_() is None
del sys.modules["matplotlib"]
assert estimate._repr_png_() is not None
assert "matplotlib.pyplot" not in sys.modules
assert sj.plotting.heatmap(np.eye(2)).sum() == 2
print("done")
"""


def test_plotting_comes_on_first_use_and_without_it_all_else_works():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert result.stdout == "done\n", result.stderr


def test_there_is_no_other_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'smothgrad'"):
        sj.smothgrad  # noqa: B018


def test_an_estimate_shows_a_number_or_a_map():
    number = Estimate(jnp.float32(0.12345), jnp.float32(0.011), jnp.int32(50))
    assert number._repr_markdown_() == "0.123 ± 0.011 (n = 50)"
    assert number._repr_png_() is None
    for mean in (jnp.eye(8), np.ones((8, 8, 3))):
        estimate = Estimate(mean, mean / 9, 50)
        assert estimate._repr_png_().startswith(b"\x89PNG")
        assert estimate._repr_markdown_() is None
    for other in (np.ones(8), {"a": np.eye(8)}, np.ones((3, 8, 8)), np.ones((2, 8, 8, 3))):
        estimate = Estimate(other, other, 50)
        assert estimate._repr_png_() is None
        assert estimate._repr_markdown_() is None


def test_a_search_shows_its_curve():
    scores = np.array([[1.0, 2.0], [2.0, 2.5], [0.5, 3.0]])
    found = sj.spectral.CutoffSearch(
        np.array([1.0, 2.0]), scores.mean(0), scores.std(0), scores, 2.0, 1.0, False
    )
    assert found._repr_png_().startswith(b"\x89PNG")
    of_many = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), found)
    assert of_many._repr_png_() is None
