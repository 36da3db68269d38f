"""Measures how many draws a map needs, and what brings it closer to its limit for the same draws.

    python -m benchmarks.convergence --photos ../shared/data/imagenet_sample_224.npz --minutes 9

Eight photos, EfficientNet-Lite0, noise on the inputs (0.15 of their range) and on the weights (the
calibrated level). The limit of a map is the mean of 4096 draws (1024 of weights) of other keys; as
that has an error of its own, V, known from the draws' scatter, the squared relative error of a map
m is (|m - limit|^2 - V) / (|limit|^2 - V). Since that rewards maps that are merely smaller, there
is the cosine to the limit, too, in which no scale counts, with |limit|^2 corrected in the same way.
Agreement is that of two maps of different keys.

In all it takes an hour on two cores. It stops after `--minutes`, keeps what it has under
benchmarks/.cache, and goes on from there when it is started again; it says so. Without `--photos`,
an .npz with uint8 `images` (n, H, W, 3) and their ImageNet `labels`, it takes photos that come with
scikit-image. At the end it prints the tables, and writes convergence.json and convergence.png
beside this file.

Besides averaging, and the library's `wiener`, channel by channel and jointly, it tries:

- pairs: antithetic pairs, so that each noise is also drawn with the other sign;
- single rings: `wiener` without its neighbours' part in the estimate of a ring;
- windows: a gain for each ring of each of many overlapping windows, so that it adapts to the place;
- weighted: draws weighted by the inverse of their power.

`plain, scaled` is averaging times the best factor, which knows the limit: what a smaller scale
alone does to the squared error. A map of zeros has 1.
"""

import argparse
import functools
import json
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import smoothjax as sj
from benchmarks.record import alternate, archived_photos, bundled_photos, write_record
from smoothjax import reductions, spectral, zoo
from smoothjax.metrics.similarity import cosine, spearman, ssim
from smoothjax.spectral._fourier import fourier, inverse, ring_sums, rings
from smoothjax.spectral.wiener import _signal_share

HERE = pathlib.Path(__file__).parent
LEVEL = sj.relative(0.15)
DRAWS = (8, 16, 32, 64, 128, 256)
REPLICATES = 4
BLOCK = 64  # draws of one run
REFERENCE = {"input": 4096, "weights": 1024}
SIMILARITIES = {
    "cosine": jax.jit(cosine),
    "ssim": jax.jit(ssim),
    "rank correlation": jax.jit(spearman),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=pathlib.Path)
    parser.add_argument("--number", type=int, default=8, help="of photos")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    parser.add_argument("--reference", type=int, help="draws of a limit")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "convergence.json")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes

    net = zoo.load("efficientnet-lite0")
    if arguments.photos is None:
        photos, source = bundled_photos(net, arguments.number), "bundled"
    else:
        photos = archived_photos(net, arguments.photos, arguments.number)
        source = arguments.photos.stem
    cache = HERE / ".cache" / "convergence"
    cache.mkdir(parents=True, exist_ok=True)
    result = {"model": net.name, "source": source, "photos": [p.name for p in photos], "kinds": {}}
    for kind in REFERENCE:
        num = arguments.reference or REFERENCE[kind]
        programs, found = Programs(net, kind), []
        for photo in photos:
            file = cache / f"{source}-{photo.name}-{kind}-{num}"
            answer = measure_photo(programs, photo, num, file, deadline)
            if answer is None:
                print("out of time; start it again to go on from here")
                return
            found.append(answer)
        result["kinds"][kind] = summary(found, programs, photos[0], num)
    show(result)
    plot(result, arguments.out.with_suffix(".png"))
    write_record(arguments.out, result)


class Programs:
    """What is run for one kind of noise, compiled once."""

    def __init__(self, net, kind):
        """Builds them; the noise of `pairs` is drawn with both signs."""
        self.net, self.kind = net, kind
        self.limit = jax.jit(self.smoothed(BLOCK, reductions.mean_and_stderr()))
        self.draws = jax.jit(self.smoothed(BLOCK, reductions.stack()))
        self.pairs = jax.jit(self.smoothed(BLOCK, reductions.stack(), pairs=True))

    def smoothed(self, num, reduction, pairs=False):
        """SmoothGrad or NoiseGrad, of `num` draws or of `num` antithetic pairs."""
        explain = sj.saliency(self.net.score)
        if self.kind == "input":
            smooth, sigma, chunk_size = sj.smoothgrad, LEVEL, 8
        else:
            smooth, sigma, chunk_size = sj.noisegrad, self.net.sigma_weights, 1
        if not pairs:
            return smooth(
                explain, sigma, num_samples=num, reduction=reduction, chunk_size=chunk_size
            )

        def negative(key, shape, dtype):
            return -jax.random.normal(key, shape, dtype)

        plus, minus = (
            smooth(explain, sigma, num_samples=1, sampler=sampler)
            for sampler in (jax.random.normal, negative)
        )

        @sj.stochastic
        def pair(key, *args):
            return (plus(key, *args) + minus(key, *args)) / 2

        # The outer loop adds no noise: it gives each pair a key, and reduces the pairs.
        return sj.smoothgrad(
            pair, 0.0, num_samples=num, reduction=reduction, chunk_size=max(chunk_size // 2, 1)
        )

    def call(self, program, seed, photo):
        """Runs one on a photo, with a key that belongs to the seed."""
        key = jax.random.fold_in(jax.random.key(0), seed)
        return jax.device_get(program(key, self.net.params, photo.x, jnp.int32(photo.label)))


def measure_photo(programs, photo, num, file, deadline):
    """The errors and agreements on one photo; None if there is no time left."""
    if file.with_suffix(".json").exists():
        return json.loads(file.with_suffix(".json").read_text())
    mean, variance, done = np.zeros(photo.x.shape), np.zeros(photo.x.shape), 0
    if file.with_suffix(".npz").exists():
        saved = np.load(file.with_suffix(".npz"))
        mean, variance, done = saved["mean"], saved["variance"], int(saved["done"])
    started = time.monotonic()
    for block in range(done // BLOCK, num // BLOCK):
        if time.monotonic() > deadline:
            return None
        estimate = programs.call(programs.limit, 1_000_000 + block, photo)
        mean = (block * mean + estimate.mean) / (block + 1)
        # Of the mean of the blocks, each with an independent error.
        squares = block**2 * variance + np.square(estimate.stderr, dtype=float)
        variance = squares / (block + 1) ** 2
        if block % 8 == 7 or time.monotonic() > deadline:
            np.savez(
                file.with_suffix(".npz"), mean=mean, variance=variance, done=(block + 1) * BLOCK
            )
            spent = time.monotonic() - started
            print(f"{file.name}: {(block + 1) * BLOCK} draws, {spent:.0f} s", flush=True)
    if time.monotonic() > deadline:
        return None

    most = max(DRAWS)
    stacks = {
        "draws": [programs.call(programs.draws, i, photo) for i in range(most // BLOCK)],
        # Half as many pairs are as many gradients.
        "pairs": [programs.call(programs.pairs, i, photo) for i in range(most // BLOCK // 2)],
    }
    stacks = {name: jnp.asarray(np.concatenate(blocks)) for name, blocks in stacks.items()}
    own_error = float(variance.sum())
    power = float(np.square(mean).sum()) - own_error
    answer = {"limit_error": own_error / power, "errors": {}, "cosines": {}, "agreement": {}}
    for method, (stack, reduce) in METHODS.items():
        errors, cosines, agreement = {}, {}, {}
        answer["errors"][method], answer["cosines"][method] = errors, cosines
        answer["agreement"][method] = agreement
        for n in DRAWS:
            taken = n if stack == "draws" else n // 2
            starts = range(0, len(stacks[stack]) - taken + 1, taken)[:REPLICATES]
            maps = [reduce(stacks[stack][start : start + taken]) for start in starts]
            distances = [np.square(np.asarray(m, float) - mean).sum() for m in maps]
            errors[n] = float((np.mean(distances) - own_error) / power)
            lengths = [np.linalg.norm(np.asarray(m, float)) * math.sqrt(power) for m in maps]
            products = [np.vdot(np.asarray(m, float), mean) for m in maps]
            cosines[n] = float(np.mean(np.divide(products, lengths)))
            pairs = list(zip(maps[::2], maps[1::2], strict=False))
            if pairs:
                agreement[n] = {
                    name: float(np.mean([alike(*pair) for pair in pairs]))
                    for name, alike in SIMILARITIES.items()
                }
    text = json.dumps(answer)
    file.with_suffix(".json").write_text(text)
    print(f"{file.name}: done in {time.monotonic() - started:.0f} s", flush=True)
    return json.loads(text)  # as the next run reads it: its keys are text


def averaged(draws):
    return jnp.mean(draws, axis=0)


def reduced(reduction):
    """What a reduction of the library makes of a stack of draws."""

    @jax.jit
    def reduce(draws):
        state = reduction.init(jax.ShapeDtypeStruct(draws.shape[1:], draws.dtype), len(draws))
        return reduction.finalize(reduction.update(state, draws))

    return reduce


@jax.jit
def weighted(draws):
    weights = 1 / jnp.sum(draws**2, axis=(1, 2, 3))
    return jnp.einsum("n,nxyc->xyc", weights / jnp.sum(weights), draws)


def spectrum_and_scatter(maps):
    """The mean spectrum of maps (n, H, W, C), and the deviations of each, scaled.

    Their squares sum to the variance of the mean.
    """
    spectra = jax.vmap(lambda one: fourier(one, (0, 1)))(maps)
    mean = jnp.mean(spectra, axis=0)
    return mean, (spectra - mean[None]) / jnp.sqrt(len(maps) * (len(maps) - 1.0))


@jax.jit
def single_rings(draws):
    sizes = draws.shape[1:3]
    mean, scatter = spectrum_and_scatter(draws)
    power = ring_sums(jnp.abs(mean) ** 2, sizes)
    noise = ring_sums(jnp.sum(jnp.abs(scatter) ** 2, 0), sizes)
    gain = _signal_share(power, noise)[rings(sizes)]
    return inverse(mean * gain, sizes, (0, 1))


@functools.partial(jax.jit, static_argnums=1)
def in_windows(draws, size=56):
    """Shrinks in overlapping windows, whose weights sum to one, each by rings of its own."""
    half = size // 2
    height, width, _ = draws.shape[1:]
    taper = jnp.sqrt(jnp.hanning(size + 1)[:-1])
    taper = (taper[:, None] * taper[None])[..., None]
    margins = ((0, 0), (half, half), (half, half), (0, 0))
    padded = jnp.pad(draws, margins, mode="reflect")
    corners = jnp.stack(
        jnp.meshgrid(jnp.arange(0, height + 1, half), jnp.arange(0, width + 1, half)), -1
    ).reshape(-1, 2)

    def add(answer, corner):
        window = jax.lax.dynamic_slice(
            padded, (0, *corner, 0), (len(draws), size, size, draws.shape[-1])
        )
        mean, scatter = spectrum_and_scatter(window * taper[None])
        power = ring_sums(jnp.abs(mean) ** 2, (size, size))
        noise = ring_sums(jnp.sum(jnp.abs(scatter) ** 2, 0), (size, size))
        share = jnp.maximum(1 - noise / power, 0)[rings((size, size))]
        shrunk = inverse(mean * share, (size, size), (0, 1)) * taper
        before = jax.lax.dynamic_slice(answer, (*corner, 0), shrunk.shape)
        return jax.lax.dynamic_update_slice(answer, before + shrunk, (*corner, 0)), None

    answer, _ = jax.lax.scan(add, jnp.zeros(padded.shape[1:]), corners)
    return answer[half : half + height, half : half + width]


METHODS = {
    "plain": ("draws", averaged),
    "wiener": ("draws", reduced(spectral.wiener())),
    "pairs": ("pairs", averaged),
    "joint": ("draws", reduced(spectral.wiener(channel_axis=-1))),
    "pairs, joint": ("pairs", reduced(spectral.wiener(channel_axis=-1))),
    "single rings": ("draws", single_rings),
    "windows": ("draws", in_windows),
    "weighted": ("draws", weighted),
}


def summary(found, programs, photo, num):
    """Means over photos, draws to an error of a half, and the time of a draw."""

    def means(what):
        return {
            method: {n: float(np.mean([one[what][method][str(n)] for one in found])) for n in DRAWS}
            for method in METHODS
        }

    errors = means("errors")
    agreement = {
        method: {
            n: {
                name: float(np.mean([one["agreement"][method][str(n)][name] for one in found]))
                for name in SIMILARITIES
            }
            for n in DRAWS
            if str(n) in found[0]["agreement"][method]
        }
        for method in METHODS
    }
    # That of the mean times its best factor, which needs to know the limit.
    errors["plain, scaled"] = {
        n: float(np.mean([1 - 1 / (1 + one["errors"]["plain"][str(n)]) for one in found]))
        for n in DRAWS
    }
    ratios = {
        method: [one["errors"][method]["64"] / one["errors"]["plain"]["64"] for one in found]
        for method in ("wiener", "joint")
    }
    return {
        "draws_of_the_limit": num,
        "squared_errors_of_the_limits": [one["limit_error"] for one in found],
        "squared_error": errors,
        "cosine_to_the_limit": means("cosines"),
        "agreement": agreement,
        "draws_to_half": {method: draws_to(0.5, curve) for method, curve in errors.items()},
        "over_plain_at_64": {
            method: {
                "ratio": errors[method][64] / errors["plain"][64],
                "photos": each,
                "target": 0.45,
            }
            for method, each in ratios.items()
        },
        "milliseconds_per_draw": draw_times(programs, photo),
        "photos": [{key: one[key] for key in ("errors", "cosines")} for one in found],
    }


def draws_to(error, curve):
    """The draws at which a curve falls to an error, along straight lines in logarithms.

    Beyond the most draws it falls as their inverse.
    """
    n, errors = np.log(list(curve)), np.log(np.maximum(list(curve.values()), 1e-9))
    target = np.log(error)
    if errors[-1] > target:
        return float(np.exp(n[-1] + errors[-1] - target))
    return float(np.exp(np.interp(-target, -errors, n)))


def draw_times(programs, photo, num=32):
    """What a draw costs in the library, its reduction included."""
    key, params, label = jax.random.key(0), programs.net.params, jnp.int32(photo.label)
    builds = {
        "plain": programs.smoothed(num, reductions.mean()),
        "wiener": programs.smoothed(num, spectral.wiener()),
        "joint": programs.smoothed(num, spectral.wiener(channel_axis=-1)),
        "pairs": programs.smoothed(num // 2, reductions.mean(), pairs=True),
    }
    runs = {
        name: functools.partial(jax.jit(explain), key, params, photo.x, label)
        for name, explain in builds.items()
    }
    times = alternate(runs, 7)
    return {name: 1e3 * float(np.median(taken)) / num for name, taken in times.items()}


def show(result):
    for kind, found in result["kinds"].items():
        limit = np.mean(found["squared_errors_of_the_limits"])
        print(f"\nnoise on {kind}: squared relative error (that of the limit: {limit:.3f})")
        print(f"{'':16}" + "".join(f"{n:>8}" for n in DRAWS) + "  to 0.5")
        for method, errors in found["squared_error"].items():
            row = "".join(f"{errors[n]:>8.3f}" for n in DRAWS)
            print(f"{method:16}{row}{found['draws_to_half'][method]:>8.0f}")
        for method, over in found["over_plain_at_64"].items():
            print(f"{method} / plain at 64: {over['ratio']:.3f}, to be at most {over['target']}")
        print("ms a draw:", {k: round(v, 1) for k, v in found["milliseconds_per_draw"].items()})
        print("cosine to the limit")
        for method, cosines in found["cosine_to_the_limit"].items():
            print(f"{method:16}" + "".join(f"{cosines[n]:>8.3f}" for n in DRAWS))
        print("agreement of two maps at 64 draws:")
        for method, agreement in found["agreement"].items():
            alike = ", ".join(f"{name} {value:.2f}" for name, value in agreement[64].items())
            print(f"  {method:16}{alike}")


def plot(result, path):
    shown = ("plain", "pairs", "plain, scaled", "wiener", "joint")
    rows = len(result["kinds"])
    figure, axes = plt.subplots(rows, 3, figsize=(12, 3.4 * rows), squeeze=False)
    for row, (kind, found) in zip(axes, result["kinds"].items(), strict=True):
        times = found["milliseconds_per_draw"]
        for index, method in enumerate(shown):
            style = {"marker": "o", "color": f"C{index}"}
            curve = found["squared_error"][method]
            row[0].plot(list(curve), list(curve.values()), label=method, **style)
            if method in times:
                seconds = [n * times[method] / 1e3 for n in curve]
                row[1].plot(seconds, list(curve.values()), label=method, **style)
            cosines = found["cosine_to_the_limit"].get(method, {})  # a factor changes none
            row[2].plot(list(cosines), list(cosines.values()), **style)
        row[0].set(xlabel="draws", ylabel=f"noise on {kind}\nsquared relative error")
        row[1].set(xlabel="seconds", ylabel="squared relative error")
        row[2].set(xlabel="draws", ylabel="cosine to the limit", ylim=(0, 1))
        for axis in row[:2]:
            axis.set(xscale="log", yscale="log")
            axis.axhline(1, color="grey", linewidth=0.8, linestyle=":")  # a map of zeros
            axis.xaxis.set_minor_formatter(plt.NullFormatter())
        row[2].set(xscale="log")
        row[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
