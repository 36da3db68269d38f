"""Studies the spectra of attribution maps, and what FORGrad's low-pass filter gains on them.

    python -m benchmarks.spectra --photos ../shared/data/imagenet_sample_224.npz

Three questions of the paper (arXiv 2307.09591), on photos that the network is sure of:

1. Do gradient methods hold more power at high frequencies than prediction-based ones?
2. At which frequencies is a SmoothGrad map signal, and at which is it Monte-Carlo noise?
3. How much does the filter gain, at its best cut-off, as draws are added, under each pooling?

Gradient methods explain the logit, prediction-based ones the probability, as in their papers. The
photos are an .npz with uint8 `images` (n, H, W, 3) and their ImageNet `labels`. Maps are kept under
benchmarks/.cache by method and photo, so that a run that was interrupted goes on: delete them after
a change of a method. Writes a record and a picture beside this file. An hour and a half on two
cores.
"""

import argparse
import functools
import hashlib
import math
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import smoothjax as sj
from benchmarks.record import archived_photos, write_record
from smoothjax import metrics, spectral, zoo
from smoothjax.reductions import Reduction

HERE = pathlib.Path(__file__).parent
LEVEL = sj.relative(0.15)
CUTOFFS = (5, 15, 30, 45, 60, 90, math.inf)
FREQUENCIES = (15, 30, 60)
DRAWS = (16, 64, 256, 1024)
STEPS = 16
POOLINGS = {
    "|mean|": lambda a: jnp.abs(jnp.mean(a, -1)),
    "mean of |.|": lambda a: jnp.mean(jnp.abs(a), -1),
    "L2 norm": lambda a: jnp.linalg.norm(a, axis=-1),
    "max of |.|": lambda a: jnp.max(jnp.abs(a), -1),
}
PREDICTION_BASED = ("occlusion", "rise", "sobol", "hsic")


def methods(net):
    """The explainers whose maps are compared, as functions of (key, params, x, label)."""
    saliency, probability = sj.saliency(net.score), net.probability
    explainers = {
        "saliency": saliency,
        "input x gradient": sj.input_times_gradient(net.score),
        "integrated gradients": sj.integrated_gradients(net.score, num_steps=50),
        "smoothgrad": sj.smoothgrad(saliency, LEVEL, num_samples=50),
        "squaregrad": sj.squaregrad(saliency, LEVEL, num_samples=50),
        "adaptgrad": sj.adaptgrad(saliency, net.bounds, num_samples=50),
        "noisegrad": sj.noisegrad(saliency, net.sigma_weights, num_samples=25),
        "gradcam": sj.gradcam(net.features, net.head),
        "occlusion": sj.occlusion(probability),
        "rise": sj.rise(probability, num_samples=1000),
        "sobol": sj.sobol(probability, num_designs=16),
        "hsic": sj.hsic(probability),
    }
    with_key = {
        name: f if sj.is_stochastic(f) else lambda key, *args, f=f: f(*args)
        for name, f in explainers.items()
    }
    with_key["random"] = lambda key, params, x, label: jax.random.normal(key, x.shape)
    return with_key


def means_at(counts):
    """The reduction to the means of the first `counts[0]`, `counts[1]`, ... draws, stacked."""
    counts = np.asarray(counts, np.int32)

    def init(draw, num):
        del num
        zeros = jnp.zeros(draw.shape, draw.dtype)
        return jnp.int32(0), zeros, jnp.zeros((len(counts), *draw.shape), draw.dtype)

    def update(state, draws):
        count, total, means = state
        count, total = count + len(draws), total + jnp.sum(draws, 0)
        done = (count == counts).reshape(-1, 1, 1, 1)
        return count, total, jnp.where(done, total / count, means)

    return Reduction(init, update, lambda state: state[2])


def stacked_photos(net, path, num):
    """Inputs and labels of the first photos of an archive that the network is sure of."""
    photos = archived_photos(net, path, num)
    return jnp.stack([photo.x for photo in photos]), jnp.array([photo.label for photo in photos])


def cached(name, compute):
    """What `compute()` returns, an array, kept in a file."""
    path = HERE / ".cache" / f"{name}.npy"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, compute())
        partial.rename(path)
        print(f"  {name}", flush=True)
    return np.load(path)


def maps_of(net, explain, name, xs, labels):
    """The maps of all photos, photo i explained with the key i."""
    explain = jax.jit(explain)

    def one(i):
        return explain(jax.random.key(i), net.params, xs[i], labels[i])

    name = name.replace(" ", "-")
    return np.stack(
        [
            cached(f"{net.name}-{name}-{digest(xs[i])}", functools.partial(one, i))
            for i in range(len(xs))
        ]
    )


def digest(array):
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:12]


def mean_and_error(values):
    return np.mean(values, 0), np.std(values, 0, ddof=1) / math.sqrt(len(values))


def shares_above(maps):
    """The share of each map's power, without its mean, above each frequency."""
    power = np.array(jax.jit(jax.vmap(spectral.power_spectrum))(maps))
    rings = np.arange(power.shape[1])
    varying = power[:, 1:].sum(1)
    shares = [power[:, rings > frequency].sum(1) / varying for frequency in FREQUENCIES]
    return power / varying[:, None], np.stack(shares, 1)


def make_search(net):
    """FORGrad's search over cut-offs for maps that are pooled already."""
    judge = metrics.insertion_minus_deletion(net.probability, num_steps=STEPS)
    search = spectral.best_cutoff(
        lambda params, x, label, attribution: attribution,
        lambda params, x, filtered, label, attribution: judge(params, x, filtered, label),
        CUTOFFS,
        transform=functools.partial(spectral.forgrad, channel_axis=None),
    )
    return jax.jit(search)


def gains(name, search, params, xs, labels, maps):
    """The faithfulness without a filter, at each cut-off, and what the best one gains.

    The best cut-off of the same photos would gain even from chance. So the gain on each photo is
    that of the cut-off that is best on the others.
    """
    scores = cached(
        f"{name}-{digest(maps)}-scores", lambda: np.asarray(search(params, xs, labels, maps).scores)
    )
    mean, stderr = mean_and_error(scores)
    best = int(np.argmax(mean))
    best_on_others = np.argmax(scores.sum(0)[None] - scores, 1)
    picked = np.take_along_axis(scores, best_on_others[:, None], 1)[:, 0]
    gain, gain_error = mean_and_error(picked - scores[:, -1])
    return {
        "plain": [float(mean[-1]), float(stderr[-1])],
        "best_cutoff": CUTOFFS[best] if math.isfinite(CUTOFFS[best]) else "none",
        "best": [float(mean[best]), float(stderr[best])],
        "gain": [float(gain), float(gain_error)],
        "curve": [[float(m), float(e)] for m, e in zip(mean, stderr, strict=True)],
    }


def compare_methods(net, num, path):
    """Question 1, and the faithfulness of each method with and without the filter."""
    xs, labels = stacked_photos(net, path, num)
    search = make_search(net)
    curves, rows = {}, {}
    for name, explain in methods(net).items():
        maps = maps_of(net, explain, name, xs, labels)
        pooled = np.array(jax.vmap(POOLINGS["|mean|"])(maps))
        spectra, shares = shares_above(pooled)
        curves[name] = np.mean(spectra, 0)
        mean, error = mean_and_error(shares)
        found = gains(
            f"{net.name}-{name.replace(' ', '-')}", search, net.params, xs, labels, pooled
        )
        rows[name] = {
            "share_above": {
                str(f): [float(m), float(e)]
                for f, m, e in zip(FREQUENCIES, mean, error, strict=True)
            },
            "insertion_minus_deletion": found,
        }
        text = "  ".join(f"{m:.3f} +- {e:.3f}" for m, e in zip(mean, error, strict=True))
        print(f"{net.name} {name:22s} power above {FREQUENCIES}: {text};", end=" ")
        print(describe(found), flush=True)
    return curves, {"photos": len(xs), "methods": rows}


def describe(found):
    plain, best, gain = (found[key] for key in ("plain", "best", "gain"))
    return (
        f"F {plain[0]:.3f} +- {plain[1]:.3f}, {best[0]:.3f} +- {best[1]:.3f} at "
        f"{found['best_cutoff']}, gain {gain[0]:.3f} +- {gain[1]:.3f}"
    )


def locate_signal(net, xs, labels):
    """Question 2: the power of the noise-free map and of the mean's error, ring by ring."""
    saliency = sj.saliency(net.score)
    kinds = {
        "SmoothGrad": sj.smoothgrad(
            saliency, LEVEL, num_samples=64, reduction=spectral.signal_and_noise()
        ),
        "NoiseGrad": sj.noisegrad(
            saliency, net.sigma_weights, num_samples=64, reduction=spectral.signal_and_noise()
        ),
    }
    rings = {}
    for name, explain in kinds.items():

        def stacked(*args, explain=explain):
            found = explain(*args)
            return jnp.stack([found.power, found.noise])

        parts = maps_of(net, stacked, f"rings-{name}", xs, labels).sum(-1)
        power, noise = np.moveaxis(parts, 1, 0)
        rings[name] = {
            "signal": np.mean(power - noise, 0),
            "signal_error": mean_and_error(power - noise)[1],
            "noise": np.mean(noise, 0),
        }
    return rings


def study_draws(net, xs, labels):
    """Question 3."""
    explain = sj.smoothgrad(
        sj.saliency(net.score),
        LEVEL,
        num_samples=max(DRAWS),
        reduction=means_at(DRAWS),
        chunk_size=min(DRAWS),
    )
    maps = maps_of(net, explain, "draws", xs, labels)
    search = make_search(net)
    rows = []
    for place, draws in enumerate(DRAWS):
        for pooling, pool in POOLINGS.items():
            pooled = np.array(jax.vmap(pool)(maps[:, place]))
            found = gains(f"{net.name}-draws", search, net.params, xs, labels, pooled)
            rows.append({"draws": draws, "pooling": pooling, **found})
            print(f"{draws:5d} draws, {pooling:12s}: {describe(found)}", flush=True)
    return {"photos": len(xs), "rows": rows}


def draw_picture(curves, rings, rows, path):
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for name, curve in curves.items():
        if name == "random":
            style = {"color": "grey", "linestyle": ":"}
        else:
            style = {"linestyle": "--" if name in PREDICTION_BASED else "-"}
        # Half of the photo's side on: rings beyond it are only in part inside the spectrum.
        axes[0].loglog(np.arange(1, 113), curve[1:113], label=name, linewidth=1.2, **style)
    axes[0].set_title("Share of power per ring (dashed: prediction-based)")
    axes[0].legend(fontsize=7, ncols=2)
    for colour, (name, found) in zip(("C0", "C1"), rings.items(), strict=True):
        frequency = np.arange(1, 113)
        signal = np.where(found["signal"] > 0, found["signal"], np.nan)
        axes[1].loglog(frequency, signal[1:113], color=colour, label=f"{name}: signal")
        noise = found["noise"][1:113]
        axes[1].loglog(frequency, noise, color=colour, linestyle=":", label=f"{name}: noise")
    axes[1].set_title("Signal and Monte-Carlo noise of 64 draws")
    axes[1].legend(fontsize=7)
    for pooling in POOLINGS:
        found = [row for row in rows if row["pooling"] == pooling]
        gain, error = zip(*(row["gain"] for row in found), strict=True)
        axes[2].errorbar([row["draws"] for row in found], gain, error, label=pooling, capsize=2)
    axes[2].set_xscale("log")
    axes[2].axhline(0, color="grey", linewidth=0.8)
    axes[2].set_title("What the filter's best cut-off gains in faithfulness")
    axes[2].set_xlabel("draws")
    axes[2].legend(fontsize=7)
    for axis in axes[:2]:
        axis.set_xlabel("cycles per image")
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--num", type=int, default=24, help="photos for the first network")
    parser.add_argument("--num-second", type=int, default=8, help="photos for the second")
    parser.add_argument("--num-draws", type=int, default=24, help="photos for the study of draws")
    arguments = parser.parse_args()

    net = zoo.load("efficientnet-lite0")
    xs, labels = stacked_photos(net, arguments.photos, arguments.num)
    curves, compared = compare_methods(net, arguments.num, arguments.photos)
    second = zoo.load("efficientnet-lite2")
    _, compared_second = compare_methods(second, arguments.num_second, arguments.photos)
    rings = locate_signal(net, xs, labels)
    num = arguments.num_draws
    draws = study_draws(net, xs[:num], labels[:num])
    draw_picture(curves, rings, draws["rows"], HERE / "spectra.png")
    write_record(
        HERE / "spectra.json",
        {
            "steps": STEPS,
            "cutoffs": [str(cutoff) for cutoff in CUTOFFS],
            "methods": {net.name: compared, second.name: compared_second},
            "signal_to_noise_at_64_draws": {
                name: {
                    str(f): float(found["signal"][f] / found["noise"][f])
                    for f in (2, 5, 10, 20, 40, 80)
                }
                for name, found in rings.items()
            },
            "draws": draws,
        },
    )


if __name__ == "__main__":
    main()
