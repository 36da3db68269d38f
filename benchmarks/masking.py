"""Measures what masking costs: forward passes per second inside each method and without it.

    python -m benchmarks.masking

The network is EfficientNet-Lite0 at 224 pixels. The bare network is one compiled program too: it
scans over batches of as many different images as a method has masks, and sums the logits. The bare
network at its best batch size and a method at its best chunk size run in turn, so that other work
on the machine weighs on both, and the result is the median over pairs of runs of the ratio of their
speeds. Nine minutes on two cores. Writes the result beside this file, with machine, versions and
date.
"""

import argparse
import pathlib
import statistics

import jax
import jax.numpy as jnp
import skimage.data

from benchmarks.record import alternate, fastest, write_record
from smoothjax import zoo
from smoothjax.attribution import hsic, occlusion, rise, sobol

PATCHES = 8  # along each axis of the image
GRID = (2, 7)  # of sobol: with the two plain rows, a design has 16 masks


def methods(score, num, chunk_size):
    """Each method with its number of forward passes, a multiple of 16 and one for occlusion."""
    patch = 224 // PATCHES
    return {
        "occlusion": (occlusion(score, patch, patch, chunk_size=chunk_size), PATCHES**2 + 1),
        "rise": (rise(score, num_samples=num, chunk_size=chunk_size), num),
        "sobol": (sobol(score, num_designs=num // 16, grid=GRID, chunk_size=chunk_size), num),
        "hsic": (hsic(score, num_samples=num, chunk_size=chunk_size), num),
    }


def bare(net, batch_size):
    """The network alone, on different images, a batch at a time: one program, nothing elided."""

    def run(params, images, label):
        batches = images.reshape(-1, batch_size, *images.shape[1:])

        def step(total, batch):
            return total + jnp.sum(net.apply(params, batch)[:, label]), None

        return jax.lax.scan(step, jnp.float32(0), batches)[0]

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=256, help="a multiple of 16")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4, 16], help="divide masks")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    num, chunks = arguments.masks, arguments.chunks

    net = zoo.load("efficientnet-lite0")
    x = net.preprocess(skimage.data.chelsea())
    key, label = jax.random.key(0), jnp.int32(285)
    images = x[None] * jnp.linspace(0.5, 1.0, num)[:, None, None, None]

    batch, bare_run, least = fastest(
        {size: bare(net, size) for size in chunks}, (net.params, images, label), 4
    )
    result = {
        "model": net.name,
        "masks": num,
        "repeats": arguments.repeats,
        "bare": {"best_batch": batch, "passes_per_second": speeds(num, least)},
        "methods": {},
    }
    print(f"{'':12}{'passes':>8}{'chunk':>8}{'passes/s':>10}{'bare/s':>10}{'ratio':>8}   quartiles")
    for name in methods(net.score, num, 1):
        passes = methods(net.score, num, 1)[name][1]
        call = (net.params, x, label) if name == "occlusion" else (key, net.params, x, label)
        chunk, run, least = fastest(
            {size: methods(net.score, num, size)[name][0] for size in chunks}, call, 4
        )
        times = alternate({"bare": bare_run, name: run}, arguments.repeats)
        rounds = zip(times["bare"], times[name], strict=True)
        ratios = [bare_time * passes / (num * time) for bare_time, time in rounds]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        speed = passes / statistics.median(times[name])
        bare_speed = num / statistics.median(times["bare"])
        text = f"{name:12}{passes:8}{chunk:8}{speed:10.1f}{bare_speed:10.1f}{ratio:8.3f}"
        print(f"{text}   {low:.2f} to {high:.2f}", flush=True)
        result["methods"][name] = {
            "ratio": round(ratio, 4),
            "quartiles": [round(low, 4), round(high, 4)],
            "passes": passes,
            "best_chunk": chunk,
            "seconds": [round(time, 4) for time in times[name]],
            "bare_seconds": [round(time, 4) for time in times["bare"]],
            "passes_per_second": speeds(passes, least),
        }
    print(f"(the bare network in batches of {batch})")
    write_record(pathlib.Path(__file__).with_name("masking.json"), result)


def speeds(passes, least):
    return {str(size): round(passes / time, 2) for size, time in least.items()}


if __name__ == "__main__":
    main()
