"""Measures how near SmoothGrad's limit the maps of SmoothDiff and of averages are.

    python -m benchmarks.smoothdiff --photos ../shared/data/imagenet_sample_224.npz
    python -m benchmarks.smoothdiff --photos ../shared/data/imagenet_sample_224.npz \
        --network efficientnet-lite2 --out benchmarks/smoothdiff-lite2.json

Photos that are drawn from an archive with a seed, without the six on which the method was chosen;
EfficientNet-Lite0 unless another is named, its likeliest class, noise of 15 % of the range. Two
limits of each photo, means of 2048 draws of keys of their own, are computed once and kept under
`--limits`: two hours on two cores, which go on from where they were stopped. The cosine of a map m
to the limit is <m, (A + B) / 2> / (|m| sqrt(<A, B>)), of the limits A and B, whose own noise is not
in <A, B>. Times are best taken on an idle machine, with `--only times` after `--only maps`.
"""

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import smoothjax as sj
from benchmarks.record import alternate, median_ratio, write_record
from smoothjax import zoo

HERE = pathlib.Path(__file__).parent
SEEN = (16, 35, 55, 72, 100, 124)
BLOCK = 64  # draws of one run


def averaged(score, **settings):
    return sj.smoothgrad(sj.saliency(score), **settings)


def toward(score, num_samples):
    guess = sj.smoothdiff(score, num_samples=min(max(num_samples, 8), 64))
    return sj.smoothgrad_toward(sj.saliency(score), guess, num_samples=num_samples)


def filtered(score, **settings):
    return averaged(score, reduction=sj.spectral.wiener(channel_axis=-1), **settings)


METHODS = {
    f"{name}, {n} draws": (make, {"num_samples": n})
    for name, make, numbers in (
        ("smoothdiff", sj.smoothdiff, (4, 8, 16, 64)),
        ("smoothgrad", averaged, (8, 64, 256)),
        ("wiener", filtered, (4, 8, 16, 64, 256)),
        ("smoothgrad_toward smoothdiff", toward, (4, 8, 16, 64, 256)),
    )
    for n in numbers
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--number", type=int, default=8, help="of photos")
    parser.add_argument("--seed", type=int, default=2016, help="of the choice of photos")
    parser.add_argument("--reference", type=int, default=2048, help="draws of each of two limits")
    parser.add_argument("--network", default="efficientnet-lite0", help="of the zoo")
    parser.add_argument("--limits", type=pathlib.Path, help="default: .cache/smoothdiff-NETWORK")
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    parser.add_argument("--only", choices=("limits", "maps", "times"), help="compute no more")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "smoothdiff.json")
    arguments = parser.parse_args()

    net = zoo.load(arguments.network)
    kept = arguments.limits or HERE / ".cache" / f"smoothdiff-{net.name}"
    photos = drawn_photos(net, arguments.photos, arguments.seed, arguments.number)
    programs = {n: jax.jit(make(net.score, **draws)) for n, (make, draws) in METHODS.items()}
    if arguments.only == "times":
        rows = json.loads(arguments.out.read_text())["methods"]
    else:
        limits = {
            name: [
                limit(net, photo, arguments.reference, kept / f"{name}-{key}", key)
                for key in range(2)
            ]
            for name, photo in photos.items()
        }
        if arguments.only == "limits":
            return
        rows = {n: judged(n, program, net, photos, limits) for n, program in programs.items()}
    if arguments.only != "maps":
        measure_times(rows, programs, net, next(iter(photos.values())), arguments.rounds)
    settings = {
        "network": net.name,
        "photos": list(photos),
        "seed": arguments.seed,
        "reference": arguments.reference,
    }
    write_record(arguments.out, {**settings, "methods": rows})
    if arguments.only != "maps":
        plot(rows, net.name, arguments.out.with_suffix(".png"))


def measure_times(rows, programs, net, photo, rounds):
    """Writes into the rows how many gradients take as long."""
    timed = {"saliency": jax.jit(lambda key, *args: sj.saliency(net.score)(*args)), **programs}
    arguments = jax.random.key(0), net.params, *photo
    times = alternate({n: functools.partial(run, *arguments) for n, run in timed.items()}, rounds)
    for name, row in rows.items():
        row["gradients"] = median_ratio(times[name], [times["saliency"]])
        print(f"{name}: in the time of {row['gradients']:.1f} gradients", flush=True)


def plot(rows, network, file):
    """Draws the mean cosine of each method against its time."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(name.split(",")[0] for name in rows):
        own = [row for name, row in rows.items() if name.startswith(f"{method},")]
        axes.plot([r["gradients"] for r in own], [r["mean"] for r in own], "o-", label=method)
    axes.set_xscale("log")
    axes.set_xlabel("time, in gradients")
    axes.set_ylabel("cosine to SmoothGrad's limit")
    axes.set_title(f"{network}, {len(rows[method + ', 64 draws']['cosines'])} photos")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


def judged(name, program, net, photos, limits):
    """The cosines to the limits of maps of two keys for each photo."""
    cosines = [
        [
            cosine(np.asarray(program(jax.random.key(key), net.params, *photo), float), limits[i])
            for key in range(2)
        ]
        for i, photo in photos.items()
    ]
    row = {"cosines": cosines, "mean": float(np.mean(cosines)), "least": float(np.min(cosines))}
    print(f"{name}: mean {row['mean']:.3f}, least {row['least']:.3f}", flush=True)
    return row


def cosine(attribution, limits):
    """The cosine to the limit of which two estimates are given."""
    a, b = limits
    length = np.sqrt(np.sum(attribution**2) * np.sum(a * b))
    return float(np.sum(attribution * (a + b) / 2) / length)


def drawn_photos(net, path, seed, number):
    """The inputs and likeliest classes of photos of an archive, by their index."""
    images = np.load(path)["images"]
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = [int(i) for i in order if i not in SEEN][:number]
    inputs = {i: net.preprocess(images[i]) for i in chosen}
    apply = jax.jit(net.apply)
    return {i: (x, int(jnp.argmax(apply(net.params, x[None])[0]))) for i, x in inputs.items()}


def limit(net, photo, num, file, key):
    """The mean of `num` draws, from the file that keeps it, or as far as it got."""
    total, done = np.zeros(photo[0].shape), 0
    if file.with_suffix(".npz").exists():
        saved = np.load(file.with_suffix(".npz"))
        total, done = saved["total"], int(saved["done"])
    file.parent.mkdir(parents=True, exist_ok=True)
    for block in range(done // BLOCK, num // BLOCK):
        run_key = jax.random.fold_in(jax.random.key(1000 + key), block)
        total += BLOCK * np.asarray(_block(net)(run_key, net.params, *photo), float)
        done = (block + 1) * BLOCK
        np.savez(file.with_suffix(".npz"), total=total, done=done)
    print(f"{file.name}: the limit of {done} draws", flush=True)
    return total / done


_programs = {}


def _block(net):
    if net.name not in _programs:
        explain = sj.smoothgrad(sj.saliency(net.score), num_samples=BLOCK, chunk_size=8)
        _programs[net.name] = jax.jit(explain)
    return _programs[net.name]


if __name__ == "__main__":
    main()
