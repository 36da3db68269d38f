"""What `python -m smoothjax` does: photos explained by several methods, as pictures and as JSON.

From top to bottom: the prediction, one method run, one photo's picture and report, the page of many
photos, files, what the user asked for, and `explain_photos`, which puts them together. What the
`zoo` extra brings is imported where it is used, so that --help works without it.
"""

import argparse
import datetime
import difflib
import html
import io
import json
import math
import os
import pathlib
import sys
import tempfile
import textwrap
import time
import urllib.parse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import smoothjax as sj
from smoothjax._methods import METHODS, Method, Programs, Result

if TYPE_CHECKING:
    from smoothjax.zoo import Network

NUM_TOP = 5
DPI = 110
ALPHA = 0.8  # of --overlay
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{num} photos explained</title>
<style>
body {{ font: 1rem/1.5 sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; }}
h2 {{ margin-top: 3rem; overflow-wrap: anywhere; }}
</style>
<h1>{num} photos explained</h1>
<p>{about}</p>
{sections}</html>
"""
TITLE_WIDTH = 44  # characters that fit above a panel of the gallery
DEFAULT_PHOTO = "chelsea"


class UserError(Exception):
    """What the user asked for cannot be done; the message is one line that says why."""


class Guess(NamedTuple):
    """A class and the probability that the network gives it."""

    label: int
    name: str
    probability: float


def predictor(net: "Network") -> Callable[[jax.Array], list[Guess]]:
    """Returns the function that gives all classes of an input, the likeliest first."""
    probabilities = jax.jit(lambda params, x: jax.nn.softmax(net.apply(params, x[None])[0]))

    def predict(x):
        chances = np.asarray(probabilities(net.params, x))
        order = np.argsort(-chances).tolist()
        return [Guess(i, net.class_names[i], float(chances[i])) for i in order]

    return predict


def class_index(label: str, class_names: tuple[str, ...], option: str = "--label") -> int:
    """Returns the index of a class given, with an option, by its index or its name.

    Raises:
      UserError: if there is no such class, or more than one.
    """
    if label.isdecimal():
        if int(label) < len(class_names):
            return int(label)
        raise UserError(f"{option}: classes are numbered 0 to {len(class_names) - 1}; got {label}")
    names = [name.casefold() for name in class_names]
    wanted = label.strip().casefold()
    found = [index for index, name in enumerate(names) if name == wanted]
    if len(found) > 1:
        raise UserError(f"{option}: {label!r} is the name of several classes; give one of {found}")
    if not found:
        close = ", ".join(close_names(wanted, names))
        raise UserError(f"{option}: no class {label!r}" + (f"; close are {close}" if close else ""))
    return found[0]


def close_names(wanted: str, names: list[str]) -> list[str]:
    """Returns a few names to suggest: those with the same words, then those spelled alike."""
    words = set(wanted.split())
    with_words = [name for name in names if words and words.issubset(name.split())]
    return list(dict.fromkeys([*with_words, *difflib.get_close_matches(wanted, names)]))[:5]


class Run(NamedTuple):
    """What a method returned for one photo, and what it took."""

    method: Method
    result: Result
    compile_seconds: float
    seconds: float


def runner() -> Callable[..., Run]:
    """Returns `run(method, args, answers)`, which compiles each program when it first runs.

    `answers` keeps what programs returned for these arguments, as methods may share that too.
    """
    programs = {}

    def run(method, args, answers):
        program = method.program
        levels = [rule(args[2]) for rule in method.levels]
        if program not in programs:
            programs[program] = timed(jax.jit(program).lower(*args, *levels).compile)
        executable, compile_seconds = programs[program]
        call = program, method.levels
        if call not in answers:
            answers[call] = timed(executable, *args, *levels)
        answer, seconds = answers[call]
        return Run(method, method.result(answer), compile_seconds, seconds)

    return run


def timed(fun: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Returns what a function returns and the seconds that it took."""
    start = time.perf_counter()
    answer = jax.block_until_ready(fun(*args))
    return answer, time.perf_counter() - start


class Explanation(NamedTuple):
    """What was found about one photo."""

    photo: str  # as the user named it
    image: np.ndarray  # as the network saw it, uint8
    prediction: list[Guess]  # the likeliest classes, in order
    explained: Guess  # the class that the maps explain
    runs: dict[str, Run]  # by the names of the methods


def picture(explanation: Explanation, args: argparse.Namespace) -> bytes:
    """Returns the gallery of one photo as a PNG file; a class that was asked for is named."""
    from smoothjax import plotting

    runs, top, explained = explanation.runs, explanation.prediction[0], explanation.explained
    heading = f"predicted: {top.name}, {top.probability:.0%}"
    if args.label is not None:
        heading += f"; explained: {explained.name}, {explained.probability:.0%}"
    maps = [run.result.attribution for run in runs.values()]
    titles = [title(name, run.method, run.result) for name, run in runs.items()]
    figure = plotting.gallery(
        explanation.image,
        maps,
        ["input", *titles],
        heading,
        alpha=ALPHA if args.overlay else None,
        colormap=args.colormap,
    )
    return png(figure, few_colors=not args.overlay)


def raw_maps(explanation: Explanation) -> bytes:
    """Returns the attributions of one photo, by their methods, as an NPZ file."""
    maps = {name: np.asarray(run.result.attribution) for name, run in explanation.runs.items()}
    file = io.BytesIO()
    np.savez(file, **maps)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def title(name: str, method: Method, result: Result) -> str:
    """Returns the lines above a map: its method, its settings, and what was measured."""
    # With spaces that do not break, lines end between settings.
    facts = [f"{what} {value}".replace(" ", "\xa0") for what, value in method.settings.items()]
    settings_lines = textwrap.fill(", ".join(facts), TITLE_WIDTH, break_on_hyphens=False).replace(
        "\xa0", " "
    )
    findings = [method.bias] if method.bias else []
    if result.relative_error is not None:
        error = float(result.relative_error)
        findings.append(f"relative error {error:.2f}" if error < math.inf else "error > signal")
    if result.kept_share is not None:
        findings.append(f"prediction kept {float(result.kept_share):.0%}")
    return "\n".join(filter(None, [name, settings_lines, ", ".join(findings)]))


def png(figure: Any, few_colors: bool = True) -> bytes:
    """Returns a figure as a PNG file, of 256 colours: noisy maps make one of all colours large.

    Those of greys mixed with a colormap are more than 256, and too few of them show.
    """
    from PIL import Image

    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    if not few_colors:
        return drawn.getvalue()
    with Image.open(drawn) as image:
        # This quantizer keeps the few pixels of the photo apart from the many of the maps.
        palette = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    palette.save(file, "png", optimize=True)
    return file.getvalue()


def report(explanation: Explanation, args: argparse.Namespace) -> bytes:
    """Returns what was asked and found as a JSON file."""
    explained = explanation.explained
    found = {
        "smoothjax": sj.__version__,
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "photo": explanation.photo,
        "model": args.model,
        "seed": args.seed,
        "samples": args.samples,
        "prediction": [guess._asdict() for guess in explanation.prediction],
        "explained": {"label": explained.label, "name": explained.name},
        "methods": {name: record(run) for name, run in explanation.runs.items()},
    }
    return (json.dumps(found, indent=2, allow_nan=False) + "\n").encode()


def record(run: Run) -> dict[str, Any]:
    """Returns what the JSON file says about one map."""
    return {
        "settings": run.method.settings,
        "bias": run.method.bias or None,
        "relative_error": finite(run.result.relative_error),
        "kept_share": finite(run.result.kept_share),
        "compile_seconds": round(run.compile_seconds, 3),
        "seconds": round(run.seconds, 3),
    }


def finite(number: jax.Array | None) -> float | None:
    """Returns a number that JSON can hold: None for infinity, NaN and None."""
    return float(number) if number is not None and math.isfinite(number) else None


def index(
    explained: list[tuple[Explanation, list[pathlib.Path]]], args: argparse.Namespace
) -> bytes:
    """Returns an HTML page of the pictures of many photos, which lie beside it."""
    sections = []
    for explanation, files in explained:
        links = {file.suffix: urllib.parse.quote(os.fsencode(file.name)) for file in files}
        guesses = [f"{guess.name} {guess.probability:.0%}" for guess in explanation.prediction]
        others = [f'<a href="{link}">{suffix[1:].upper()}</a>' for suffix, link in links.items()]
        sections.append(
            f"<h2>{html.escape(explanation.photo)}</h2>\n"
            f"<p>{html.escape(', '.join(guesses))}</p>\n"
            f'<a href="{links[".png"]}"><img src="{links[".png"]}" loading="lazy" '
            f'alt="Maps of {html.escape(explanation.photo)}"></a>\n'
            f"<p>{' '.join(others)}</p>\n"
        )
    about = f"{args.model}, {args.samples} draws, seed {args.seed}, smoothjax {sj.__version__}"
    page = PAGE.format(num=len(explained), about=html.escape(about), sections="".join(sections))
    return page.encode(errors="replace")


def output_files(
    photo: str, folder: pathlib.Path, suffixes: Iterable[str], taken: set[str]
) -> list[pathlib.Path]:
    """Returns the files to write about a photo, and adds them to `taken`.

    They have its name, with the first number that leaves all of them free.
    """

    def files(name):
        return [folder / f"{name}{suffix}" for suffix in suffixes]

    stem = name = pathlib.Path(photo).stem
    number = 1
    while taken.intersection(map(identity, files(name))):
        number += 1
        name = f"{stem}-{number}"
    taken.update(map(identity, files(name)))
    return files(name)


def taken_files(photos: Iterable[str], folder: pathlib.Path) -> set[str]:
    """Returns what is not written to: the photos, and what an earlier run left in the folder."""
    return set(map(identity, [*photos, *folder.iterdir()]))


def identity(path: str | pathlib.Path) -> str:
    """Returns what two paths share if they can be one file: A.png and a.png are on some systems."""
    return os.path.realpath(path).casefold()


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file as a whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".smoothjax-") as folder:
        unfinished = pathlib.Path(folder) / path.name
        unfinished.write_bytes(content)
        os.replace(unfinished, path)


def load(model: str) -> "Network":
    """Loads a network, and sees that nothing is missing that is needed later.

    Raises:
      UserError: if there is no such network, or something is not installed.
    """
    try:
        import platformdirs  # noqa: F401
        import skimage.data  # noqa: F401
        import tqdm  # noqa: F401

        from smoothjax import plotting, zoo  # noqa: F401

        return zoo.load(model)
    except ImportError as error:
        hint = "" if "pip install" in str(error) else '; pip install "smoothjax[zoo]"'
        raise UserError(f"{error}{hint}") from error
    except ValueError as error:
        raise UserError(f"--model: {error}") from error


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was given another."""
    import platformdirs

    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = platformdirs.user_cache_path("smoothjax") / "programs"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def make_folder(folder: pathlib.Path) -> None:
    """Makes the folder of the output, and sees that files can be written there.

    Raises:
      UserError: if they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--out: {error}") from error


def named_photos(paths: list[str], out: pathlib.Path) -> list[str]:
    """Returns the photos that were named, and for a folder all that are in it.

    Raises:
      UserError: if there is none in a folder, or it is that of the output, whose pictures would be
        photos the next time.
    """
    from smoothjax.zoo.photos import photos_in

    photos = []
    for path in paths:
        if not os.path.isdir(path):
            photos.append(path)
            continue
        if identity(path) == identity(out):
            raise UserError(f"--out: {str(out)!r} is read from too; name another folder")
        found = photos_in(path)
        if not found:
            raise UserError(f"there is no photo in the folder {path!r}")
        photos.extend(found)
    return photos


def check_colormap(name: str | None) -> None:
    """Raises a UserError if there is no such colormap."""
    import matplotlib

    if name is not None and name not in matplotlib.colormaps:
        close = close_names(name, list(matplotlib.colormaps))
        hint = f"; close are {', '.join(close)}" if close else ""
        raise UserError(f"--colormap: no colormap {name!r}{hint}")


def open_photos(photos: list[str], net: "Network") -> list[tuple[str, jax.Array]]:
    """Returns the photos that can be opened, the cat if none is named, as inputs of the network."""
    import skimage.data

    from smoothjax import zoo

    if not photos:
        return [(DEFAULT_PHOTO, net.preprocess(skimage.data.chelsea()))]
    inputs = []
    for photo in photos:
        try:
            inputs.append((photo, net.preprocess(zoo.open_photo(photo))))
        except zoo.PhotoError as error:
            print(f"smoothjax: error: {error}", file=sys.stderr)
    return inputs


def explain_photos(args: argparse.Namespace, net: "Network | None" = None) -> bool:
    """Explains each photo, by a network that may be loaded already, and returns whether all were.

    Raises:
      UserError: if none of it can be done.
    """
    # What cannot be done is said before what takes long.
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        raise UserError(f"--methods: unknown {unknown[0]!r}; known are {', '.join(METHODS)}")
    net = load(args.model) if net is None else net
    check_colormap(args.colormap)
    if args.cache:
        keep_compiled()
    label = None if args.label is None else class_index(args.label, net.class_names)
    photos = named_photos(args.photos, args.out)
    make_folder(args.out)
    inputs = open_photos(photos, net)
    programs = Programs(net, args.samples)
    methods = {name: METHODS[name](programs) for name in args.methods}
    explain = photo_explainer(net, methods, label, jax.random.key(args.seed))

    all_done = len(inputs) >= len(photos)
    taken = taken_files(photos, args.out)
    done, (page,) = [], output_files("index", args.out, [".html"], taken)
    with progress_bar(len(inputs) * len(methods)) as bar:
        for photo, x in inputs:
            explanation = explain(photo, x, bar)
            contents = {
                ".png": picture(explanation, args),
                ".json": report(explanation, args),
            }
            if args.save_maps:
                contents[".npz"] = raw_maps(explanation)
            files = output_files(photo, args.out, contents, taken)
            try:
                for file, content in zip(files, contents.values(), strict=True):
                    write(file, content)
                done.append((explanation, files))
                if len(done) > 1:  # after each, so that what stops a long run leaves a page
                    write(page, index(done, args))
            except OSError as error:
                bar.write(f"smoothjax: error: {error}", file=sys.stderr)
                all_done = False
                continue
            bar.write(f"  wrote {', '.join(repr(str(file)) for file in files)}")
        if len(done) > 1:
            bar.write(f"all of them are in {str(page)!r}")
    return all_done


def progress_bar(total: int, unit: str = "map") -> Any:
    """Returns a progress bar, which does not show where there is nothing to do."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, disable=total == 0)


def photo_explainer(
    net: "Network", methods: dict[str, Method], label: int | None, key: jax.Array
) -> Callable[[str, jax.Array, Any], Explanation]:
    """Returns the function that explains one photo, given its name, its input and a progress bar.

    The label is that of the class to explain; None stands for each photo's likeliest.
    """
    predict, run = predictor(net), runner()

    def explain(photo, x, bar):
        guesses = predict(x)
        top, prediction = guesses[0], guesses[:NUM_TOP]
        explained = top if label is None else next(g for g in guesses if g.label == label)
        bar.write(repr(photo))
        for guess in prediction:
            bar.write(f"  {guess.probability:6.1%}  {guess.name} ({guess.label})")
        # The same key for all, so that a map does not depend on what else is asked for.
        args = key, net.params, x, jnp.int32(explained.label), jnp.int32(top.label)
        runs, answers = {}, {}
        for name, method in methods.items():
            bar.set_description(name)
            runs[name] = run(method, args, answers)
            bar.update()
        return Explanation(photo, net.unprocess(x), prediction, explained, runs)

    return explain
