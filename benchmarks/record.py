"""What benchmarks share: photos, timing, and a record with machine, versions and date."""

import datetime
import functools
import json
import os
import pathlib
import platform
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import skimage.data

import smoothjax as sj


def write_record(path, result):
    """Writes a result, and where and when it was measured, as JSON."""
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "versions": {
            "smoothjax": sj.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        **result,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {path}")


def _processor():
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def seconds(run):
    """The time of one call, until what it returns is there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def alternate(runs, repeats, pause=0.0):
    """The times of each run, called in turn, so that other work on the machine weighs on all.

    `pause` is in seconds, before each: the threads of another framework spin on when it is done.
    """
    for run in runs.values():
        seconds(run)  # compiles, and waits, so that no timed run overlaps it
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(pause)
            times[name].append(seconds(run))
    return times


def fastest(functions, arguments, repeats, pause=0.0):
    """The key of the function that runs fastest, a run of it, and the least seconds of each."""
    runs = {
        key: functools.partial(jax.jit(fun).lower(*arguments).compile(), *arguments)
        for key, fun in functions.items()
    }
    least = {key: min(times) for key, times in alternate(runs, repeats, pause).items()}
    best = min(least, key=least.__getitem__)
    return best, runs[best], least


def median_ratio(times, others):
    """The median over the rounds of time to other time, or to the sum of several other times."""
    return statistics.median(time / sum(round) for time, *round in zip(times, *others, strict=True))


def sentence_pairs():
    """A hundred pairs of sentences that mean about the same, in other words."""
    lines = pathlib.Path(__file__).with_name("sentences.tsv").read_text(encoding="utf-8")
    return [tuple(line.split("\t")) for line in lines.splitlines()]


class Photo(NamedTuple):
    """A photo's name, the network's input, and the class that is explained: the likeliest."""

    name: str
    x: jax.Array
    label: int
    probability: float


def bundled_photos(net, number):
    """The first of eight photos that come with scikit-image."""
    names = ("chelsea", "astronaut", "camera", "coffee")
    names += ("hubble_deep_field", "retina", "rocket", "stereo_motorcycle")
    photos = {name: getattr(skimage.data, name)() for name in names[:number]}
    return [
        _photo(net, name, photo[0] if isinstance(photo, tuple) else photo)
        for name, photo in photos.items()
    ]


def archived_photos(net, path, number):
    """The first photos of an archive that the network is right about, and sure of.

    The archive is an .npz with uint8 `images` (n, H, W, 3) and their ImageNet `labels`.
    """
    data, chosen = np.load(path), []
    for index, (image, label) in enumerate(zip(data["images"], data["labels"], strict=True)):
        photo = _photo(net, f"{index}", image)
        if photo.label == label and photo.probability > 0.5:
            chosen.append(photo)
        if len(chosen) == number:
            return chosen
    raise SystemExit(f"{path} has only {len(chosen)} photos to use, not {number}")


def _photo(net, name, image):
    x = net.preprocess(image)
    probabilities = jax.nn.softmax(jax.jit(net.apply)(net.params, x[None])[0])
    label = int(jnp.argmax(probabilities))
    return Photo(name, x, label, float(probabilities[label]))
