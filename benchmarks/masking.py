"""Measures what masking costs: forward passes per second inside each method and without it.

    python benchmarks/masking.py

The network is EfficientNet-Lite0 at 224 pixels. The bare network is jitted at each batch size, the
methods at each chunk size, and both at their best. Runs of bare network and method alternate, and
the result is the median over pairs of the ratio of their speeds, so that other work on the machine
weighs on both. Writes the result beside this file, with machine, versions and date.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import skimage.data
from record import write_record

from smoothjax import zoo
from smoothjax.attribution import hsic, occlusion, rise, sobol


def methods(score, num, chunk_size):
    """Each method with its number of forward passes, which is near `num`."""
    grid = 5
    designs = max(1, num // (grid**2 + 2))
    patches = 4  # along each axis
    return {
        "occlusion": (
            occlusion(score, 224 // patches, 224 // patches, chunk_size=chunk_size),
            patches**2 + 1,
        ),
        "rise": (rise(score, num_samples=num, chunk_size=chunk_size), num),
        "sobol": (
            sobol(score, num_designs=designs, grid=grid, chunk_size=chunk_size),
            designs * (grid**2 + 2),
        ),
        "hsic": (hsic(score, num_samples=num, chunk_size=chunk_size), num),
    }


def bare(net, num, batch_size):
    """The network alone, on `num` images, a batch at a time."""
    forward = jax.jit(lambda params, images: net.apply(params, images)[:, 0])

    def run(params, images):
        for _ in range(num // batch_size):
            forward(params, images).block_until_ready()

    return run


def seconds(run, *arguments):
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


def best(runs, arguments, count, repeats):
    """The key of the run with the most passes per second, and all medians."""
    speeds = {}
    for key, run in runs.items():
        run(*arguments(key))
        taken = [seconds(run, *arguments(key)) for _ in range(repeats)]
        speeds[key] = count(key) / statistics.median(taken)
    return max(speeds, key=speeds.get), speeds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=32, help="forward passes of a run")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    num = arguments.masks

    net = zoo.load("efficientnet-lite0")
    x = net.preprocess(skimage.data.chelsea())
    key, label = jax.random.key(0), jnp.int32(285)

    images = {size: jnp.stack([x] * size) for size in arguments.chunks}
    plain = {size: bare(net, num, size) for size in arguments.chunks}
    batch, speeds = best(
        plain,
        lambda size: (net.params, images[size]),
        lambda size: num // size * size,
        arguments.repeats,
    )
    print("bare:", {size: round(speed, 1) for size, speed in speeds.items()}, flush=True)

    result = {
        "model": net.name,
        "passes": num,
        "repeats": arguments.repeats,
        "bare_passes_per_second": {str(size): speed for size, speed in speeds.items()},
        "bare_best_batch": batch,
        "methods": {},
    }
    for name in methods(net.score, num, 1):
        runs = {
            size: (jax.jit(methods(net.score, num, size)[name][0])) for size in arguments.chunks
        }
        passes = methods(net.score, num, 1)[name][1]
        call = (net.params, x, label) if name == "occlusion" else (key, net.params, x, label)
        chunk, speeds = best(runs, lambda _, call=call: call, lambda _, n=passes: n, 2)
        ratios = []
        for _ in range(arguments.repeats):
            bare_seconds = seconds(plain[batch], net.params, images[batch]) / (num // batch * batch)
            ratios.append(bare_seconds / (seconds(runs[chunk], *call) / passes))
        ratio = statistics.median(ratios)
        print(f"{name}: {ratio:.2f} of the bare network's speed, chunks of {chunk}", flush=True)
        result["methods"][name] = {
            "ratio": ratio,
            "ratios": ratios,
            "best_chunk": chunk,
            "passes": passes,
            "passes_per_second": {str(size): speed for size, speed in speeds.items()},
        }
    write_record(pathlib.Path(__file__).with_name("masking.json"), result)


if __name__ == "__main__":
    main()
