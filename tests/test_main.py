import html.parser
import json
import os
import tempfile
import types
import urllib.parse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rows import slow_but

import smoothjax as sj
from smoothjax import __main__ as command
from smoothjax import _features, _gallery, _methods, plotting, zoo
from smoothjax.reductions import mean_and_stderr, relative_error, stack
from smoothjax.zoo.network import _TABLE

SIZE = 32
NAMES = ("cat", "dog", "crane", "crane", "Great Dane", "hen", "owl", "fox", "yak", "bee")


def small_network():
    """A network with the attributes of `zoo.Network`, of 10 classes and 32 x 32 pixels."""
    rng = np.random.default_rng(0)
    params = {
        "hidden": jnp.asarray(rng.normal(size=(SIZE * SIZE * 3, 16)) / 20, jnp.float32),
        "last": jnp.asarray(rng.normal(size=(16, 10)), jnp.float32),
        "readout": jnp.asarray(rng.normal(size=(8 * 8 * 3, 10)), jnp.float32),
    }

    def apply(params, images):
        flat = images.reshape(images.shape[0], -1)
        return jax.nn.relu(flat @ params["hidden"]) @ params["last"]

    def preprocess(pixels):
        image = Image.fromarray(pixels).resize((SIZE, SIZE))
        return jnp.asarray(np.asarray(image), jnp.float32) / 127.5 - 1

    return types.SimpleNamespace(
        name="small",
        params=params,
        apply=apply,
        score=lambda params, x, label: apply(params, x[None])[0][label],
        probability=lambda params, x, label: jax.nn.softmax(apply(params, x[None])[0])[label],
        features=lambda params, x: x.reshape(8, 4, 8, 4, 3).mean((1, 3)),
        head=lambda params, activations, label: (activations.ravel() @ params["readout"])[label],
        preprocess=preprocess,
        unprocess=lambda x: np.asarray((x + 1) * 127.5).astype(np.uint8),
        bounds=(jnp.full(3, -1.0), jnp.full(3, 1.0)),
        class_names=NAMES,
        image_size=SIZE,
        sigma_weights=1.0,
    )


@pytest.fixture
def net(monkeypatch):
    net = small_network()
    monkeypatch.setattr(zoo, "load", lambda name: net)
    return net


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def photo(tmp_path):
    return make_photo(tmp_path / "photo.png")


def spy(fun, calls):
    return lambda *args, **kwargs: calls.append(args) or fun(*args, **kwargs)


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each picture."""
    calls = []
    monkeypatch.setattr(plotting, "gallery", spy(plotting.gallery, calls))
    return calls


def make_photo(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(*args):
    return command.main([*map(str, args), "--no-cache"])


def read(path):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def predicted(net, photo):
    x = net.preprocess(zoo.open_photo(photo))
    logits = net.apply(net.params, x[None])[0]
    return x, int(logits.argmax()), jax.nn.softmax(logits)


def the_error_line(capsys):
    """The one line of all that was printed."""
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("smoothjax: error: ")
    assert captured.out == ""
    return line


def test_explains_the_cat_by_default(net, out, capsys):
    assert run("--methods", "saliency", "--out", out) == 0
    assert files(out) == ["chelsea.json", "chelsea.png"]
    captured = capsys.readouterr()
    assert captured.out.startswith("'chelsea'\n")
    assert "saliency: 100%" in captured.err
    assert read(out / "chelsea.json")["photo"] == "chelsea"


def test_json_says_what_was_done_and_found(net, out, photo, capsys, drawn):
    args = ("--samples", 6, "--seed", 3, "--model", "any", "--out", out)
    assert run(photo, "--methods", "saliency", *args) == 0
    report = read(out / "photo.json")
    assert list(report) == [
        "smoothjax",
        "jax",
        "date",
        "photo",
        "model",
        "seed",
        "samples",
        "prediction",
        "explained",
        "methods",
    ]
    assert report["smoothjax"] == sj.__version__
    assert report["jax"] == jax.__version__
    assert (report["photo"], report["model"]) == (str(photo), "any")
    assert (report["seed"], report["samples"]) == (3, 6)

    _, top, chances = predicted(net, photo)
    order = np.argsort(-np.asarray(chances))[:5].tolist()
    assert [row["label"] for row in report["prediction"]] == order
    assert [row["name"] for row in report["prediction"]] == [NAMES[i] for i in order]
    np.testing.assert_allclose(
        [row["probability"] for row in report["prediction"]], chances[np.array(order)], rtol=1e-5
    )
    assert report["explained"] == {"label": top, "name": NAMES[top]}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == repr(str(photo))
    for line, i in zip(printed[1:6], order, strict=True):
        assert line.split()[0] == f"{chances[i]:.1%}"
        assert line.endswith(f"{NAMES[i]} ({i})")

    assert list(report["methods"]) == ["saliency"]
    assert report["methods"]["saliency"]["settings"] == {}
    (record,) = report["methods"].values()
    assert list(record) == [
        "settings",
        "bias",
        "relative_error",
        "kept_share",
        "compile_seconds",
        "seconds",
    ]
    assert record["relative_error"] is record["kept_share"] is None
    assert record["compile_seconds"] > 0
    assert record["seconds"] >= 0
    assert drawn[0][3] == f"predicted: {NAMES[top]}, {chances[top]:.0%}"


class Bee(NamedTuple):
    """A run of methods that explain a class that is not predicted, and what it is to equal."""

    net: types.SimpleNamespace
    x: jax.Array
    top: int
    drawn: tuple
    records: dict


@pytest.fixture(scope="module")
def bee(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bee")
    photo, net, drawn = make_photo(folder / "photo.png"), small_network(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "load", lambda name: net)
        patch.setattr(plotting, "gallery", spy(plotting.gallery, drawn))
        args = ("--samples", 64, "--seed", 5, "--label", "bee", "--out", folder)
        assert run(photo, "--methods", ",".join(explainers(net, 64)), *args) == 0
    x, top, _ = predicted(net, photo)
    assert NAMES[top] != "bee"
    return Bee(net, x, top, drawn[0], read(folder / "photo-2.json")["methods"])


def explainers(net, num):
    """What the library itself makes of the default methods, at the calibrated levels."""
    gradient = jax.grad(net.score, argnums=1)
    options = {"reduction": mean_and_stderr()}
    half = {"num_weight_draws": num, "num_input_draws": 1}
    return {
        "smoothgrad": sj.smoothgrad(gradient, sj.relative(0.15), num_samples=num, **options),
        "noisegrad": sj.noisegrad(gradient, 1.0, num_samples=num, **options),
        "fusiongrad": sj.fusiongrad(gradient, 0.5, sj.relative(0.075), **half, **options),
        "adaptgrad": sj.adaptgrad(gradient, net.bounds, 0.95, num_samples=num, **options),
        "squaregrad": sj.smoothgrad(
            lambda *args: gradient(*args) ** 2, sj.relative(0.15), num_samples=num, **options
        ),
    }


@pytest.mark.parametrize(
    "name", slow_but(list(explainers(small_network(), 64)), "smoothgrad", "noisegrad", "forgrad")
)
@pytest.mark.slow
def test_maps_and_their_errors_are_those_of_the_library(bee, name):
    explain = jax.jit(explainers(bee.net, 64)[name])
    estimate = explain(jax.random.key(5), bee.net.params, bee.x, NAMES.index("bee"))
    _, maps, titles, _ = bee.drawn
    i = list(bee.records).index(name)
    np.testing.assert_allclose(maps[i], estimate.mean, rtol=1e-4, atol=1e-6)
    error = bee.records[name]["relative_error"]
    np.testing.assert_allclose(error, relative_error(estimate), rtol=1e-4)
    assert titles[1 + i].startswith(f"{name}\n")
    assert f"relative error {error:.2f}" in titles[1 + i]
    for what, value in bee.records[name]["settings"].items():
        assert f"{what} {value}" in titles[1 + i]


@pytest.mark.parametrize(("name", "sigma"), [("noisegrad", 1.0), ("fusiongrad", 0.5)])
def test_kept_share_counts_the_weight_draws_of_the_map(bee, name, sigma):
    draws = sj.noisegrad(lambda params: params, sigma, num_samples=64, reduction=stack())(
        jax.random.key(5), bee.net.params
    )
    logits = jax.vmap(bee.net.apply, (0, None))(draws, bee.x[None])[:, 0]
    kept = np.mean(logits.argmax(-1) == bee.top)  # what is kept is the prediction, not the label
    assert 0 < kept < 1
    assert bee.records[name]["kept_share"] == pytest.approx(kept)


def test_settings_are_those_of_the_library(bee):
    settings = {name: record["settings"] for name, record in bee.records.items()}
    assert settings == {
        "smoothgrad": {"input noise": "0.15 of range", "draws": 64},
        "noisegrad": {"weight noise": 1.0, "draws": 64},
        "fusiongrad": {
            "weight noise": 0.5,
            "input noise": "0.075 of range",
            "draws": 64,
        },
        "adaptgrad": {"confidence": 0.95, "draws": 64},
        "squaregrad": {"input noise": "0.15 of range", "draws": 64},
    }


def test_the_picture_shows_what_the_network_saw_and_both_classes(bee):
    image, maps, titles, heading = bee.drawn
    np.testing.assert_array_equal(image, bee.net.unprocess(bee.x))
    assert titles[0] == "input"
    assert len(maps) == len(titles) - 1 == len(bee.records)
    chances = jax.nn.softmax(bee.net.apply(bee.net.params, bee.x[None])[0])
    assert heading == (
        f"predicted: {NAMES[bee.top]}, {chances[bee.top]:.0%}; explained: bee, {chances[9]:.0%}"
    )


def test_every_method_returns_a_map_and_only_means_have_an_error(net):
    x, label = (
        jax.ShapeDtypeStruct((SIZE, SIZE, 3), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    for name, row in _methods.METHODS.items():
        method = row(_methods.Programs(net, 4))

        def explain(key, x, label, method=method):
            levels = [rule(x) for rule in method.levels]
            return method.result(method.program(key, net.params, x, label, label, *levels))

        result = jax.eval_shape(explain, jax.random.key(0), x, label)
        assert result.attribution.shape in [(SIZE, SIZE), (SIZE, SIZE, 1), (SIZE, SIZE, 3)]
        is_mean = name in explainers(net, 4)
        assert (result.relative_error is not None) == is_mean
        assert (result.kept_share is not None) == (name in {"noisegrad", "fusiongrad"})


@pytest.mark.slow
def test_every_method_runs(net, out, photo, drawn):
    methods = ",".join(_methods.METHODS)
    assert run(photo, "--samples", 4, "--methods", methods, "--out", out) == 0
    assert list(read(out / "photo.json")["methods"]) == list(_methods.METHODS)
    for attribution in drawn[0][1]:
        assert np.isfinite(attribution).all()


def test_maps_of_rise_have_no_offset(net, out, photo, drawn):
    assert run(photo, "--samples", 2, "--methods", "rise", "--out", out) == 0
    assert drawn[0][1][0].min() == 0
    assert drawn[0][1][0].max() > 0


def test_an_infinite_error_is_said_in_words_and_null_in_json(net):
    result = _methods.Result(jnp.zeros((2, 2)), jnp.float32(jnp.inf), jnp.float32(0.5))
    method = _methods.Method(print, {"draws": 2}, bias="blurred")
    title = _gallery.title("m", method, result)
    assert title == "m\ndraws 2\nblurred, error > signal, prediction kept 50%"
    assert _gallery.finite(result.relative_error) is None


def test_a_map_does_not_depend_on_other_photos_and_methods(net, out, photo, tmp_path, drawn):
    other = make_photo(tmp_path / "other.png", seed=1)
    args = ("--samples", 9, "--seed", 1)
    assert run(other, photo, *args, "--methods", "saliency,smoothgrad", "--out", out) == 0
    assert run(photo, *args, "--methods", "smoothgrad", "--out", out / "alone") == 0
    (_, both, _, _), (_, alone, _, _) = drawn[1:]
    np.testing.assert_array_equal(both[1], alone[0])


def test_methods_share_programs_and_what_they_return(net, out, photo, drawn):
    traced = []
    score = net.score
    net.score = lambda *args: traced.append(args) or score(*args)
    shared = "smoothgrad,squaregrad,adaptgrad,forgrad"
    run(photo, "--methods", "smoothgrad", "--out", out / "alone")
    once = len(traced)
    run(photo, "--methods", shared, "--out", out)
    assert len(traced) == 2 * once
    methods = read(out / "photo.json")["methods"]
    seconds = {name: method["seconds"] for name, method in methods.items()}
    assert seconds["smoothgrad"] == seconds["squaregrad"] == seconds["forgrad"]
    maps = dict(zip(methods, drawn[-1][1], strict=True))
    np.testing.assert_allclose(maps["forgrad"], sj.forgrad(lambda m: m)(maps["smoothgrad"]))
    assert methods["forgrad"]["bias"] == "blurred"


def test_each_method_is_compiled_once(net, out, photo, tmp_path, monkeypatch):
    traced = []
    score = net.score
    net.score = lambda *args: traced.append(args) or score(*args)
    run(photo, "--methods", "saliency", "--out", out / "alone")
    once = len(traced)
    run(photo, photo, photo, "--methods", "saliency", "--out", out)
    assert len(traced) == 2 * once
    reports = [read(out / name) for name in files(out) if name.endswith("json")]
    # The seconds of one compilation, which two would hardly share.
    assert len({report["methods"]["saliency"]["compile_seconds"] for report in reports}) == 1


@pytest.mark.parametrize("flags", [[], ["--no-cache"]])
def test_compiled_programs_are_kept_for_the_next_run(net, out, tmp_path, monkeypatch, flags):
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    command.main([*flags, "--out", str(out), str(tmp_path / "missing.png")])
    folder = str(tmp_path / "smoothjax" / "programs")
    assert told == ({} if flags else {"jax_compilation_cache_dir": folder})


def test_photos_of_the_same_name_do_not_overwrite_one_another(net, out, tmp_path):
    names = ["a/cat.png", "b/cat.png", "b/CAT.jpg", "b/cat-2.png", "b/dog.webp"]
    photos = [make_photo(tmp_path / name, seed) for seed, name in enumerate(names)]
    expected = {"cat": 0, "cat-2": 1, "CAT-3": 2, "cat-2-2": 3, "dog": 4}
    assert run(*photos, "--methods", "saliency", "--out", out) == 0
    names = [f"{n}.{end}" for n in expected for end in ("json", "png")]
    assert files(out) == sorted(["index.html", *names])
    for name, i in expected.items():
        assert read(out / f"{name}.json")["photo"] == str(photos[i])


def test_a_run_does_not_overwrite_an_earlier_one(net, out, photo, capsys):
    for maps in ([], ["--save-maps"], []):
        args = [photo, photo, "--methods", "saliency", "--out", out, *maps]
        before = {path: path.read_bytes() for path in out.iterdir()} if out.exists() else {}
        assert run(*args) == 0
        assert before == {path: path.read_bytes() for path in before}
    assert files(out) == sorted(
        ["index.html", "index-2.html", "index-3.html", "photo.json", "photo.png"]
        + [f"photo-{i}.{end}" for i in range(2, 7) for end in ("json", "png")]
        + ["photo-3.npz", "photo-4.npz"]
    )
    assert repr(str(out / "photo-6.png")) in capsys.readouterr().out


def test_a_folder_stands_for_the_photos_in_it(net, out, tmp_path):
    folder = tmp_path / "in"
    for name in ("b.png", "a.JPG", ".hidden.png"):
        make_photo(folder / name)
    (folder / "notes.txt").touch()
    make_photo(folder / "inner.png" / "c.png")  # of a folder in the folder
    single = make_photo(tmp_path / "single.png")
    assert run(folder, single, "--methods", "saliency", "--out", out) == 0
    names = ["a", "b", "single"]
    assert files(out) == sorted(
        [f"{n}.{end}" for n in names for end in ("json", "png")] + ["index.html"]
    )
    assert read(out / "a.json")["photo"] == str(folder / "a.JPG")


def test_formats_in_a_folder_are_refused_by_name(net, out, tmp_path, capsys):
    folder = tmp_path / "in"
    make_photo(folder / "a.png")
    (folder / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 99)
    assert run(folder, "--methods", "saliency", "--out", out) == 2
    assert "HEIC" in capsys.readouterr().err
    assert files(out) == ["a.json", "a.png"]


@pytest.mark.parametrize(
    ("folder", "message"), [("in", "no photo in the folder"), ("out", "is read from too")]
)
def test_folders_that_are_an_error(net, tmp_path, folder, message, capsys):
    (tmp_path / "in").mkdir()
    make_photo(tmp_path / "out" / "a.png")
    assert run(tmp_path / folder, "--out", tmp_path / "out") == 2
    assert message in the_error_line(capsys)
    assert files(tmp_path / "out") == ["a.png"]


class Page(html.parser.HTMLParser):
    """What a page links to, shows, and says."""

    def __init__(self, text):
        super().__init__()
        self.links, self.pictures, self.tags, self.words = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if tag == "a":
            self.links.append(found["href"])
        if tag == "img":
            self.pictures.append((found["src"], found["alt"]))

    def handle_data(self, data):
        self.words += data


def test_the_page_of_many_photos(net, out, tmp_path):
    """Any name is text, and every link a file beside the page."""
    names = ["broken.png", "猫.png", "plain.png", '<b>it\'s "x".png', "a&lt;b #1 %41?.png"]
    photos = [make_photo(tmp_path / "in" / name, seed) for seed, name in enumerate(names)]
    photos[0].write_bytes(b"")  # what cannot be opened is not on it
    assert run(*photos, "--methods", "saliency", "--save-maps", "--out", out) == 2
    text = (out / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert set(page.tags) <= {"html", "meta", "title", "style", "h1", "h2", "p", "a", "img"}
    assert page.tags.count("img") == 4
    linked = {urllib.parse.unquote(link) for link in page.links}
    assert linked == {name for name in files(out) if not name.endswith("html")}
    assert all("/" not in link and ":" not in link for link in page.links)
    for photo, (source, alt) in zip(photos[1:], page.pictures, strict=True):
        assert urllib.parse.unquote(source) == photo.name
        assert alt == f"Maps of {photo}"
        assert str(photo) in page.words
    _, top, chances = predicted(net, photos[1])
    assert f"{NAMES[top]} {chances[top]:.0%}" in page.words


def test_maps_are_saved_as_they_are(net, out, photo, drawn):
    methods = ["saliency", "gradcam"]
    args = ("--methods", ",".join(methods), "--save-maps", "--out", out)
    assert run(photo, *args) == 0
    with np.load(out / "photo.npz") as saved:
        assert list(saved) == methods
        for name, attribution in zip(methods, drawn[0][1], strict=True):
            np.testing.assert_array_equal(saved[name], attribution)
            assert saved[name].dtype == attribution.dtype
    x, top, _ = predicted(net, photo)
    gradient = sj.saliency(net.score)(net.params, x, top)
    np.testing.assert_allclose(drawn[0][1][0], gradient, rtol=1e-4, atol=1e-6)


def test_overlay_and_colormap_reach_the_picture(net, out, photo, monkeypatch):
    seen = []

    def gallery(*args, **kwargs):
        seen.append(kwargs)
        return Figure()

    monkeypatch.setattr(plotting, "gallery", gallery)
    run(photo, "--methods", "saliency", "--out", out)
    run(photo, "--methods", "saliency", "--out", out, "--overlay", "--colormap", "viridis")
    plain, over = seen
    assert plain == {"alpha": None, "colormap": None}
    assert over == {"alpha": 0.8, "colormap": "viridis"}


def test_a_photo_is_never_overwritten(net, tmp_path):
    photo = make_photo(tmp_path / "cat.png")
    before = photo.read_bytes()
    assert run(photo, "--methods", "saliency", "--out", tmp_path) == 0
    assert photo.read_bytes() == before
    assert files(tmp_path) == ["cat-2.json", "cat-2.png", "cat.png"]


@pytest.mark.parametrize("name", ["..png", "$x$ %s {0}.png", "猫.png", "no suffix"])
def test_odd_names_stay_in_the_folder(net, out, tmp_path, name):
    photo = make_photo(tmp_path / "photo.png").rename(tmp_path / name)
    assert run(photo, "--methods", "saliency", "--out", out) == 0
    assert len(files(out)) == 2
    assert files(tmp_path) == sorted([name, "out"])


def test_an_unreadable_photo_does_not_stop_the_others(net, out, photo, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(photo.read_bytes()[:60])
    args = (bad, tmp_path / "missing.png", photo, "--methods", "saliency", "--out", out)
    assert run(*args) == 2
    assert files(out) == ["photo.json", "photo.png"]
    errors = capsys.readouterr().err
    # Before anything that takes long.
    assert [line[:18] for line in errors.splitlines()[:2]] == 2 * ["smoothjax: error: "]
    assert repr(str(bad)) in errors
    assert "saliency: 100%" in errors
    assert "1/1" in errors


def test_without_a_photo_there_is_no_progress_bar(net, out, tmp_path, capsys):
    assert run(tmp_path / "missing.png", "--out", out) == 2
    assert "missing.png" in the_error_line(capsys)
    assert files(out) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--methods", "saliency,smothgrad"],
            "unknown 'smothgrad'; known are saliency, smoothgrad",
        ),
        (["--methods", ""], "unknown ''"),
        (["--colormap", "virids"], "no colormap 'virids'; close are viridis"),
        (["--label", "10"], "0 to 9; got 10"),
        (["--label", "great dan"], "no class 'great dan'; close are great dane"),
        (["--label", "zzzzzz"], "no class 'zzzzzz'\n"),
        (["--label", "dane"], "no class 'dane'; close are great dane, crane\n"),
        (["--label", "DOC"], "no class 'DOC'; close are dog\n"),
        (["--label", " "], "no class ' '\n"),
        (["--label", "-1"], "no class '-1'"),
        (["--label", "Crane"], "several classes; give one of [2, 3]"),
    ],
)
def test_unknown_methods_and_labels(net, out, capsys, args, message):
    assert run(*args, "--out", out) == 2
    assert message in the_error_line(capsys) + "\n"
    assert not out.exists()


def test_an_unknown_model(out, capsys):
    assert run("--model", "lenet", "--out", out) == 2
    assert "'lenet'" in the_error_line(capsys)


def test_the_default_methods():
    args = command.parser().parse_args([])
    assert args.methods == [
        "saliency",
        "smoothgrad",
        "smoothdiff",
        "squaregrad",
        "noisegrad",
        "fusiongrad",
        "adaptgrad",
        "forgrad",
    ]


def test_help_says_what_there_is_and_what_is_ignored(net, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    assert stopped.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"--model MODEL {' or '.join(_TABLE)}; default: efficientnet-lite0" in words
    assert "default: smoothjax-out" in words
    known = words.split("comma-separated, of ")[1].split(";")[0].split(", ")
    assert known == list(_methods.METHODS)
    ignoring = words.split("no effect on ")[1].split(";")[0].split(", ")
    few, many = (_methods.Programs(net, num) for num in (4, 9))
    for name, row in _methods.METHODS.items():
        # What the settings say is tested for those that have draws.
        assert (name in ignoring) == (row(few).settings == row(many).settings)


@pytest.mark.parametrize("args", [["--samples", "1"], ["--samples", "x"], ["--seed", "-1"]])
def test_numbers_out_of_range(net, capsys, args):
    with pytest.raises(SystemExit) as stopped:
        run(*args)
    assert stopped.value.code == 2
    assert f"argument {args[0]}: needs an integer from" in capsys.readouterr().err


@pytest.mark.parametrize("label", ["4", "great DANE"])
def test_another_label_is_explained(net, out, photo, label):
    assert run(photo, "--methods", "saliency", "--label", label, "--out", out) == 0
    assert read(out / "photo.json")["explained"] == {"label": 4, "name": "Great Dane"}


def test_a_folder_that_cannot_be_written(net, photo, capsys):
    assert run(photo, "--out", photo / "out") == 2
    assert str(photo) in the_error_line(capsys)


def test_a_folder_without_room_is_said_before_what_takes_long(net, photo, out, monkeypatch, capsys):
    def fail(**_):
        raise OSError("disk full")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    assert run(photo, "--out", out) == 2
    assert "--out: disk full" in the_error_line(capsys)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_in_the_middle_leaves_no_file(net, out, photo, monkeypatch, capsys, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    args = (photo, "--methods", "saliency", "--out", out)
    if isinstance(error, OSError):
        assert run(*args) == 2
        assert "smoothjax: error: disk full\n" in capsys.readouterr().err
    else:
        with pytest.raises(KeyboardInterrupt):
            run(*args)
    assert files(out) == []


def test_files_can_be_read_by_others(net, out, photo):
    plain = out.parent / "plain"
    plain.touch()
    assert run(photo, "--methods", "saliency", "--out", out) == 0
    assert (out / "photo.png").stat().st_mode == plain.stat().st_mode


def test_missing_extras_say_what_to_install(monkeypatch, out, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    assert run("--out", out) == 2
    assert 'pip install "smoothjax[zoo]"' in the_error_line(capsys)


@pytest.mark.slow
def test_the_real_network_sees_a_cat(out):
    args = ("--samples", 2, "--methods", "smoothgrad,noisegrad", "--out", out)
    assert run(*args) == 0
    report = read(out / "chelsea.json")
    assert report["prediction"][0]["name"] == "Egyptian cat"
    assert report["methods"]["noisegrad"]["kept_share"] in (0, 0.5, 1)
    assert (out / "chelsea.png").stat().st_size < 500_000


@pytest.mark.slow
def test_features_of_classes(net, out, monkeypatch):
    """With the key of the seed, and the logit of each image as it was found."""
    monkeypatch.setattr(_features, "NUM_STEPS", 8)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        assert run("--features", "Great Dane", "5", "--out", out, "--seed", 3) == 0
    assert files(out) == [
        "feature-Great-Dane.json",
        "feature-Great-Dane.png",
        "feature-hen.json",
        "feature-hen.png",
    ]
    report = read(out / "feature-Great-Dane.json")
    assert report["class"] == {"label": 4, "name": "Great Dane"}
    assert (report["seed"], report["steps"], report["weight_noise"]) == (3, 8, 1.0)
    logits = [found["logit"] for found in report["pictures"].values()]
    for ascent, logit in zip(_features.ascents(net).values(), logits, strict=True):
        with jax.numpy_dtype_promotion("standard"):
            image = jax.jit(ascent)(jax.random.key(3), net.params, jnp.int32(4)).image
        np.testing.assert_allclose(net.score(net.params, image, 4), logit, rtol=1e-4)
    assert abs(logits[0] - logits[1]) > 1e-3
    with Image.open(out / "feature-hen.png") as image:
        assert image.size[0] > 300


def test_features_of_no_class(net, out, capsys):
    assert run("--features", "unicorn", "--out", out) == 2
    assert "--features: no class 'unicorn'" in the_error_line(capsys)
    assert not out.exists()


@pytest.mark.slow
def test_photos_before_features_are_explained_too_by_the_same_network(net, photo, out, monkeypatch):
    monkeypatch.setattr(_features, "NUM_STEPS", 1)
    loaded, load = [], zoo.load
    monkeypatch.setattr(zoo, "load", lambda name: loaded.append(name) or load(name))
    with jax.numpy_dtype_promotion("standard"):
        status = run(photo, "--features", "hen", "--out", out, "--methods", "saliency")
    assert status == 0
    assert files(out) == ["feature-hen.json", "feature-hen.png", "photo.json", "photo.png"]
    assert len(loaded) == 1
