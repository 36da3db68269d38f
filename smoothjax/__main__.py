"""`python -m smoothjax [PHOTO ...]`: explain photos, one gallery picture and one JSON file each."""

import argparse
import datetime
import difflib
import io
import json
import math
import os
import pathlib
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import smoothjax as sj
from smoothjax.pooling import map_leaves
from smoothjax.reductions import Estimate, mean_and_stderr, relative_error
from smoothjax.transform import Explainer, keyed

if TYPE_CHECKING:
    from smoothjax.zoo import Network

# Named here too, so that --help works without the zoo.
MODELS = ("efficientnet-lite0", "efficientnet-lite2")
DEFAULT_METHODS = "saliency,smoothgrad,noisegrad,fusiongrad,adaptgrad"
NUM_TOP = 5
DPI = 110
TITLE_WIDTH = 44  # characters that fit above a panel of the gallery
DEFAULT_PHOTO = "chelsea"


class Method(NamedTuple):
    """A method with its settings filled in.

    Attributes:
      explain: an explainer `explain([key,] params, x, label)`.
      settings: what the gallery and the JSON file say about it.
      with_prediction: whether it is an explainer `explain([key,] params, x, label, predicted)` of a
        pair instead, the attribution and the share of draws that predict the class `predicted`.
    """

    explain: Explainer
    settings: dict[str, Any]
    with_prediction: bool = False


class Result(NamedTuple):
    """What a method returns for one photo; None for what it does not have."""

    attribution: jax.Array
    relative_error: jax.Array | None
    kept_share: jax.Array | None


class UserError(Exception):
    """What the user asked for cannot be done; the message is one line that says why."""


def _smoothgrad(net: "Network", num_samples: int) -> Method:
    explain = sj.smoothgrad(
        sj.saliency(net.score),
        sj.relative(0.15),
        num_samples=num_samples,
        reduction=mean_and_stderr(),
    )
    return Method(explain, {"input noise": "0.15 of range", "draws": num_samples})


def _noisegrad(net: "Network", num_samples: int) -> Method:
    explain = sj.noisegrad(
        _with_prediction(net, sj.saliency(net.score)),
        net.sigma_weights,
        num_samples=num_samples,
        reduction=mean_and_stderr(),
    )
    settings = {"weight noise": net.sigma_weights, "draws": num_samples}
    return Method(explain, settings, with_prediction=True)


def _fusiongrad(net: "Network", num_samples: int) -> Method:
    num = max(2, round(math.sqrt(num_samples)))
    # The composition that sj.fusiongrad is, with the prediction between its two halves.
    smoothed = sj.smoothgrad(sj.saliency(net.score), sj.relative(0.075), num_samples=num)
    explain = sj.noisegrad(
        _with_prediction(net, smoothed),
        net.sigma_weights / 2,
        num_samples=num,
        reduction=mean_and_stderr(),
    )
    settings = {
        "weight noise": net.sigma_weights / 2,
        "input noise": "0.075 of range",
        "draws": f"{num} x {num}",
    }
    return Method(explain, settings, with_prediction=True)


def _adaptgrad(net: "Network", num_samples: int) -> Method:
    explain = sj.adaptgrad(
        sj.saliency(net.score),
        net.bounds,
        confidence=0.95,
        num_samples=num_samples,
        reduction=mean_and_stderr(),
    )
    return Method(explain, {"confidence": 0.95, "draws": num_samples})


def _over_inputs(transform):
    """A method of SmoothGrad's noise whose draws become no mean, and so have no standard error."""

    def method(net, num_samples):
        explain = transform(sj.saliency(net.score), sj.relative(0.15), num_samples=num_samples)
        return Method(explain, {"input noise": "0.15 of range", "draws": num_samples})

    return method


def _forgrad(net: "Network", num_samples: int) -> Method:
    smoothed = sj.smoothgrad(sj.saliency(net.score), sj.relative(0.15), num_samples=num_samples)
    settings = {"input noise": "0.15 of range", "draws": num_samples, "cut-off": 15}
    return Method(sj.forgrad(smoothed, cutoff=15), settings)


def _rise(net: "Network", num_samples: int) -> Method:
    # A mask tells less than a gradient, and the map has the mean probability for an offset.
    explain = sj.rise(net.probability, num_samples=20 * num_samples)
    above_least = map_leaves("above_least", explain, lambda leaf: leaf - jnp.min(leaf))
    return Method(above_least, {"masks": 20 * num_samples, "score": "probability"})


METHODS: dict[str, Callable[[Any, int], Method]] = {
    "saliency": lambda net, _: Method(sj.saliency(net.score), {}),
    "smoothgrad": _smoothgrad,
    "noisegrad": _noisegrad,
    "fusiongrad": _fusiongrad,
    "adaptgrad": _adaptgrad,
    "integrated_gradients": lambda net, num_samples: Method(
        sj.integrated_gradients(net.score, num_steps=num_samples),
        {"baseline": "mean colour", "steps": num_samples},
    ),
    "input_times_gradient": lambda net, _: Method(sj.input_times_gradient(net.score), {}),
    "vargrad": _over_inputs(sj.vargrad),
    "squaregrad": _over_inputs(sj.squaregrad),
    "forgrad": _forgrad,
    "gradcam": lambda net, _: Method(sj.gradcam(net.features, net.head), {}),
    "gradcam_plus_plus": lambda net, _: Method(sj.gradcam_plus_plus(net.features, net.head), {}),
    "occlusion": lambda net, _: Method(sj.occlusion(net.score), {"patch": 32, "stride": 16}),
    "rise": _rise,
    "sobol": lambda net, _: Method(sj.sobol(net.score), {"cells": "8 x 8", "designs": 32}),
    "hsic": lambda net, _: Method(sj.hsic(net.score), {"cells": "8 x 8", "masks": 500}),
}
IGNORE_SAMPLES = (
    "saliency",
    "input_times_gradient",
    "gradcam",
    "gradcam_plus_plus",
    "occlusion",
    "sobol",
    "hsic",
)


def _with_prediction(net: "Network", explain: Explainer) -> Explainer:
    """The pair of an attribution and whether the network predicts the class `predicted`, 1 or 0.

    Averaged together, they share the draws of the weights, and one set of noise for all weights,
    which is what takes longest to compile.
    """
    explain = keyed(explain)

    @sj.stochastic
    def pair(key, params, x, label, predicted):
        logits = net.apply(params, jnp.expand_dims(x, 0))[0]
        kept = jax.lax.argmax(logits, 0, jnp.int32) == predicted
        return explain(key, params, x, label), kept.astype(jnp.float32)

    return pair


def run(method: Method) -> Callable[..., Result]:
    """Returns the function `(key, params, x, label, predicted)` that explains and measures."""
    explain = keyed(method.explain)

    def result(key, params, x, label, predicted):
        if not method.with_prediction:
            answer = explain(key, params, x, label)
            if not isinstance(answer, Estimate):
                return Result(answer, None, None)
            return Result(answer.mean, relative_error(answer), None)
        estimate = explain(key, params, x, label, predicted)
        (attribution, kept), (stderr, _) = estimate.mean, estimate.stderr
        error = relative_error(Estimate(attribution, stderr, estimate.num_samples))
        return Result(attribution, error, kept)

    return result


def class_index(label: str, class_names: tuple[str, ...]) -> int:
    """Returns the index of a class given by its index or its name.

    Raises:
      UserError: if there is no such class, or more than one.
    """
    if label.isdecimal():
        if int(label) < len(class_names):
            return int(label)
        raise UserError(f"--label: classes are numbered 0 to {len(class_names) - 1}; got {label}")
    names = [name.casefold() for name in class_names]
    wanted = label.strip().casefold()
    found = [index for index, name in enumerate(names) if name == wanted]
    if len(found) > 1:
        raise UserError(f"--label: {label!r} is the name of several classes; give one of {found}")
    if not found:
        close = ", ".join(close_names(wanted, names))
        raise UserError(f"--label: no class {label!r}" + (f"; close are {close}" if close else ""))
    return found[0]


def close_names(wanted: str, names: list[str]) -> list[str]:
    """Returns a few names to suggest: those with the same words, then those spelled alike."""
    words = set(wanted.split())
    with_words = [name for name in names if words and words.issubset(name.split())]
    return list(dict.fromkeys([*with_words, *difflib.get_close_matches(wanted, names)]))[:5]


def output_files(photo: str, folder: pathlib.Path, taken: set[str]) -> list[pathlib.Path]:
    """Returns the PNG and the JSON file to write about a photo, and adds them to `taken`."""

    def files(name):
        return [folder / f"{name}.png", folder / f"{name}.json"]

    stem = name = pathlib.Path(photo).stem
    number = 1
    while taken.intersection(map(identity, files(name))):
        number += 1
        name = f"{stem}-{number}"
    taken.update(map(identity, files(name)))
    return files(name)


def identity(path: str | pathlib.Path) -> str:
    """Returns what two paths share if they can be one file: A.png and a.png are on some systems."""
    return os.path.realpath(path).casefold()


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file as a whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".smoothjax-") as folder:
        unfinished = pathlib.Path(folder) / path.name
        unfinished.write_bytes(content)
        os.replace(unfinished, path)


def title(name: str, settings: dict[str, Any], result: Result) -> str:
    """Returns the lines above a map: its method, its settings, and what was measured."""
    # With spaces that do not break, lines end between settings.
    facts = [f"{what} {value}".replace(" ", "\xa0") for what, value in settings.items()]
    settings_lines = textwrap.fill(", ".join(facts), TITLE_WIDTH).replace("\xa0", " ")
    measured = []
    if result.relative_error is not None:
        error = float(result.relative_error)
        measured.append(f"relative error {error:.2f}" if error < math.inf else "error > signal")
    if result.kept_share is not None:
        measured.append(f"prediction kept {float(result.kept_share):.0%}")
    return "\n".join(filter(None, [name, settings_lines, ", ".join(measured)]))


def png(figure: Any) -> bytes:
    """Returns a figure as a PNG file of 256 colours: noisy maps make one of all colours large."""
    from PIL import Image

    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        # This quantizer keeps the few pixels of the photo apart from the many of the maps.
        palette = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    palette.save(file, "png", optimize=True)
    return file.getvalue()


def finite(number: jax.Array | None) -> float | None:
    """Returns a number that JSON can hold: None for infinity, NaN and None."""
    return float(number) if number is not None and math.isfinite(number) else None


def explain_photos(args: argparse.Namespace) -> bool:
    """Explains each photo, and returns whether all of them could be.

    Raises:
      UserError: if none of it can be done.
    """
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        raise UserError(f"--methods: unknown {unknown[0]!r}; known are {', '.join(METHODS)}")
    try:
        # Not imported above, so that --help works without them.
        import skimage.data
        from tqdm import tqdm

        from smoothjax import plotting, zoo

        net = zoo.load(args.model)
    except ImportError as error:
        hint = "" if "pip install" in str(error) else '; pip install "smoothjax[zoo]"'
        raise UserError(f"{error}{hint}") from error
    except ValueError as error:
        raise UserError(f"--model: {error}") from error
    explained = None if args.label is None else class_index(args.label, net.class_names)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()  # fails now if it would fail later
    except OSError as error:
        raise UserError(f"--out: {error}") from error

    methods = {name: METHODS[name](net, args.samples) for name in args.methods}
    probabilities = jax.jit(lambda params, x: jax.nn.softmax(net.apply(params, x[None])[0]))
    # One key for all, so that a map does not depend on what else is asked for.
    key = jax.random.key(args.seed)
    # All are opened first: what cannot be done is said before what takes long.
    inputs = [] if args.photos else [(DEFAULT_PHOTO, net.preprocess(skimage.data.chelsea()))]
    for photo in args.photos:
        try:
            inputs.append((photo, net.preprocess(zoo.open_photo(photo))))
        except zoo.PhotoError as error:
            print(f"smoothjax: error: {error}", file=sys.stderr)
    all_done = len(inputs) >= len(args.photos)
    taken = set(map(identity, args.photos))  # no photo is ever overwritten
    compiled = {}
    with tqdm(total=len(inputs) * len(methods), unit="map", disable=not inputs) as bar:
        for photo, x in inputs:
            chances = np.asarray(probabilities(net.params, x))
            top = np.argsort(-chances)[:NUM_TOP].tolist()
            label = top[0] if explained is None else explained
            prediction = [
                {"label": i, "name": net.class_names[i], "probability": float(chances[i])}
                for i in top
            ]
            bar.write(repr(photo))
            for row in prediction:
                bar.write("  {probability:6.1%}  {name} ({label})".format(**row))

            results, records = {}, {}
            for name, method in methods.items():
                bar.set_description(name)
                arguments = (key, net.params, x, jnp.int32(label), jnp.int32(top[0]))
                if name not in compiled:
                    compiled[name] = timed(jax.jit(run(method)).lower(*arguments).compile)
                program, compile_seconds = compiled[name]
                result, seconds = timed(program, *arguments)
                results[name] = result
                records[name] = {
                    "settings": method.settings,
                    "relative_error": finite(result.relative_error),
                    "kept_share": finite(result.kept_share),
                    "compile_seconds": round(compile_seconds, 3),
                    "seconds": round(seconds, 3),
                }
                bar.update()

            heading = f"predicted: {prediction[0]['name']}, {prediction[0]['probability']:.0%}"
            if explained is not None:
                heading += f"; explained: {net.class_names[label]}, {chances[label]:.0%}"
            titles = [title(name, methods[name].settings, results[name]) for name in methods]
            maps = [result.attribution for result in results.values()]
            figure = plotting.gallery(net.unprocess(x), maps, ["input", *titles], heading)
            picture = png(figure)
            report = {
                "smoothjax": sj.__version__,
                "jax": jax.__version__,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "photo": photo,
                "model": args.model,
                "seed": args.seed,
                "samples": args.samples,
                "prediction": prediction,
                "explained": {"label": label, "name": net.class_names[label]},
                "methods": records,
            }
            text = json.dumps(report, indent=2, allow_nan=False) + "\n"
            png_file, json_file = output_files(photo, args.out, taken)
            try:
                write(png_file, picture)
                write(json_file, text.encode())
            except OSError as error:
                bar.write(f"smoothjax: error: {error}", file=sys.stderr)
                all_done = False
                continue
            bar.write(f"  wrote {str(png_file)!r} and {str(json_file)!r}")
    return all_done


def timed(fun: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Returns what a function returns and the seconds that it took."""
    start = time.perf_counter()
    answer = jax.block_until_ready(fun(*args))
    return answer, time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 0, or 2 if anything asked for is missing."""
    parser = argparse.ArgumentParser(prog="python -m smoothjax", description=__doc__)
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="default: scikit-image's cat")
    parser.add_argument(
        "--model", default=MODELS[0], help=f"{' or '.join(MODELS)}; default: %(default)s"
    )
    parser.add_argument(
        "--methods",
        default=DEFAULT_METHODS,
        type=lambda names: [name.strip() for name in names.split(",")],
        help=f"comma-separated, of {', '.join(METHODS)}; default: %(default)s",
    )
    parser.add_argument("--label", help="name or index of the class to explain; default: the top-1")
    parser.add_argument(
        "--samples",
        default=50,
        type=integer(2),
        help="draws or steps per map; rise takes 20 masks for each, fusiongrad about the square "
        f"root of weight and of input draws; no effect on {', '.join(IGNORE_SAMPLES)}; "
        "default: %(default)s",
    )
    parser.add_argument("--seed", default=0, type=integer(0), help="default: %(default)s")
    parser.add_argument(
        "--out",
        default="smoothjax-out",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of the pictures and the JSON files; default: %(default)s",
    )
    args = parser.parse_args(argv)
    try:
        return 0 if explain_photos(args) else 2
    except UserError as error:
        print(f"smoothjax: error: {error}", file=sys.stderr)
        return 2


def integer(least: int) -> Callable[[str], int]:
    """Returns a parser of integers that fit into 32 bits and are at least `least`."""

    def parse(text):
        if text.isdecimal() and least <= int(text) < 2**31:
            return int(text)
        raise argparse.ArgumentTypeError(f"needs an integer from {least} on; got {text!r}")

    return parse


if __name__ == "__main__":
    raise SystemExit(main())
