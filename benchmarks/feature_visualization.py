"""What classes and channels look for, with and without noise on the weights, and what that gains.

    python -m benchmarks.feature_visualization --minutes 9

Run it again until it prints its tables: each picture is kept in .cache beside this file. It needs
both EfficientNet-Lites. `--part defaults` compares parameterizations and augmentations, `--part
noise` the plain ascent with two ways of noise on the weights; `--statistics PHOTOS.npz` prints the
colours and the spectrum of photos. Each writes a JSON, the noise a picture too.
"""

import argparse
import functools
import io
import itertools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from PIL import Image

import smoothjax as sj
from benchmarks.record import write_record
from smoothjax import zoo
from smoothjax.feature_visualization import (
    activation_maximization,
    chain,
    fourier,
    jitter,
    maco,
    pixels,
    rotate,
    total_variation,
    zoom,
)

HERE = pathlib.Path(__file__).parent
CLASSES = {
    "flamingo": 130,
    "Egyptian cat": 285,
    "zebra": 340,
    "sports car": 817,
    "strawberry": 949,
    "pizza": 963,
}
CHANNELS = (10, 200, 600, 1100)
SHAKEN = chain(jitter(16), zoom(0.9, 1.1))

# Of each row: parameterization, augmentation, optimizer, penalty.
DEFAULTS = {
    "fourier": (fourier(), SHAKEN, 0.1, None),
    "decay 1, steps of 0.05": (fourier(decay=1.0), SHAKEN, 0.05, None),
    "decay 1, steps of 0.15": (fourier(decay=1.0), SHAKEN, 0.15, None),
    "decay 1, steps of 0.05, no augmentation": (fourier(decay=1.0), None, 0.05, None),
    "pixels": (pixels(), SHAKEN, 0.05, None),
    "maco": (maco(), SHAKEN, 0.1, None),
    "decay 2": (fourier(decay=2.0), SHAKEN, 0.1, None),
    "steps of 0.05": (fourier(), SHAKEN, 0.05, None),
    "no augmentation": (fourier(), None, 0.1, None),
    "rotation": (fourier(), chain(SHAKEN, rotate(10)), 0.1, None),
    "jitter only": (fourier(), jitter(16), 0.1, None),
    "wide zoom": (fourier(), chain(jitter(16), zoom(0.8, 1.6)), 0.1, None),
    "no colours": (fourier(colors=None), SHAKEN, 0.1, None),
    "total variation": (fourier(), SHAKEN, 0.1, total_variation(10)),
    "maco, decay 1.5": (maco(decay=1.5), SHAKEN, 0.1, None),
}


# Most channels behind a ReLU are silent for a grey image, and have no gradient to follow.
AWAKE = (fourier(std=1.0), SHAKEN, 0.1, None)


def drawn_anew(objective, sigma):
    """New weights at each step."""
    return sj.noisegrad(objective, sigma, num_samples=1)


def one_set(objective, sigma):
    """The mean of four networks, the same at all steps, as in the paper."""
    return functools.partial(sj.noisegrad(objective, sigma, num_samples=4), jax.random.key(2**20))


WAYS = {
    "plain": lambda objective, sigma: objective,
    "drawn anew": drawn_anew,
    "four networks": one_set,
}


def kept(name, make, end):
    """The pictures of a name and the seconds of CPU they took, from a file or made in time."""
    file = HERE / ".cache" / "feature_visualization" / f"{name}.npz"
    if not file.exists():
        if time.monotonic() > end:
            raise SystemExit("time is up; run this again")
        images, seconds = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, images=images, seconds=seconds)
        print(f"{name}: {seconds:.0f} s of CPU", flush=True)
    saved = np.load(file)
    return saved["images"], float(saved["seconds"])


def channel_mean(net):
    """The objective of a channel of the last activations: its mean over positions."""
    return lambda params, x, channel: net.features(params, x)[..., channel].mean()


def climb(net, objective, targets, seed, num_steps, row=DEFAULTS["fourier"]):
    """The images of many classes or channels, with one key for all, and their seconds of CPU."""
    parameterization, augment, rate, penalty = row
    maximize = activation_maximization(
        objective,
        optax.adam(rate),
        shape=(net.image_size, net.image_size, 3),
        bounds=net.bounds,
        num_steps=num_steps,
        parameterization=parameterization,
        augment=augment,
        penalty=penalty,
    )
    arguments = jax.random.key(seed), net.params, jnp.asarray(targets)
    program = jax.jit(jax.vmap(maximize, (None, None, 0))).lower(*arguments).compile()
    start = time.process_time()
    images = np.asarray(program(*arguments).image)
    return images, time.process_time() - start


def judge(net, objective, other=None):
    """A function of pictures and what they are of, that says what networks make of them.

    Of classes there is also what another network makes of them.
    """

    @jax.jit
    def of_networks(key, images, targets):
        # Eight networks that no picture was made with.
        held_out = sj.noisegrad(objective, net.sigma_weights, num_samples=8)

        def one(image, target):
            found = {
                "objective": objective(net.params, image, target),
                "of held-out networks": held_out(key, net.params, image, target),
                "total variation": total_variation(1.0)(image),
            }
            if other is None:
                return found
            resized = jax.image.resize(image, [other.image_size] * 2 + [3], "bilinear")
            logits = other.apply(other.params, resized[None])[0]
            return found | {
                "of the other network": logits[target],
                "probability of the other network": jax.nn.softmax(logits)[target],
                "recognised by the other network": jnp.float32(jnp.argmax(logits) == target),
            }

        return jax.lax.map(lambda pair: one(*pair), (images, targets))

    def judged(images, targets):
        found = of_networks(jax.random.key(2**21), jnp.asarray(images), jnp.asarray(targets))
        return {name: np.asarray(values, float) for name, values in found.items()}

    return judged


def agreement(images):
    """How pictures of each two seeds correlate, pixel by pixel: (pairs, targets)."""
    flat = images.reshape(*images.shape[:2], -1)
    flat = flat - flat.mean(axis=-1, keepdims=True)
    flat = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
    pairs = itertools.combinations(range(len(flat)), 2)
    return np.array([np.sum(flat[a] * flat[b], axis=-1) for a, b in pairs])


def mean_and_error(by_seed):
    """The mean over seeds and its standard error, of means over what is sought."""
    means = np.mean(by_seed, axis=1)
    error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
    return {"mean": float(means.mean()), "stderr": error}


def compare_defaults(net, other, seeds, steps, end):
    """What another network makes of plain ascents that differ in few settings.

    The record is written after each row, so that it holds those that there was time for.
    """
    targets = np.array(list(CLASSES.values()))
    judged, table = judge(net, net.score, other), {}
    for name, row in DEFAULTS.items():
        found = []
        for seed in range(seeds):
            make = functools.partial(climb, net, net.score, targets, seed, steps, row)
            found.append(judged(kept(f"{name}-{steps}-{seed}", make, end)[0], targets))
        table[name] = {what: mean_and_error([f[what] for f in found]) for what in found[0]}
        print(name, {what: round(v["mean"], 2) for what, v in table[name].items()}, flush=True)
        settings = {"steps": steps, "seeds": seeds, "classes": CLASSES}
        write_record(HERE / "feature_visualization-defaults.json", {**settings, "rows": table})


def compare_noise(net, other, seeds, steps, end):
    """What noise on the weights costs and gains, of classes and then of channels."""
    classes, channels = np.array(list(CLASSES.values())), np.array(CHANNELS)
    kinds = {
        "classes": (net.score, classes, judge(net, net.score, other), DEFAULTS["fourier"]),
        "channels": (channel_mean(net), channels, judge(net, channel_mean(net)), AWAKE),
    }
    pictures, table = {}, {}
    for kind, (objective, targets, judged, row) in kinds.items():
        found = {}
        for way, wrap in WAYS.items():
            sought = wrap(objective, net.sigma_weights)
            runs = [
                kept(
                    f"{kind}-{way}-{steps}-{seed}",
                    functools.partial(climb, net, sought, targets, seed, steps, row),
                    end,
                )
                for seed in range(seeds)
            ]
            images = np.stack([images for images, _ in runs])
            pictures[kind, way] = images[0]
            judgements = [judged(one, targets) for one in images]
            found[way] = {what: [one[what] for one in judgements] for what in judgements[0]}
            found[way]["seconds of CPU"] = [[spent / len(targets)] for _, spent in runs]
            means = {what: mean_and_error(values) for what, values in found[way].items()}
            if seeds > 1:
                means["agreement"] = {"mean": float(agreement(images).mean())}
            means["minus plain"] = {
                what: mean_and_error(np.subtract(values, found["plain"][what]))
                for what, values in found[way].items()
            }
            table.setdefault(kind, {})[way] = means
            print(kind, way, {w: round(v["mean"], 2) for w, v in means.items() if "mean" in v})
        draw(net, pictures, HERE / "feature_visualization.png")
        settings = {
            "steps": steps,
            "seeds": seeds,
            "sigma": net.sigma_weights,
            "classes": CLASSES,
            "channels": CHANNELS,
        }
        write_record(HERE / "feature_visualization.json", {**settings, "found": table})


def draw(net, pictures, path):
    """A row for each way, a column for each class and channel, as a PNG of 256 colours."""
    titles = {"classes": list(CLASSES), "channels": [f"channel {c}" for c in CHANNELS]}
    kinds = dict.fromkeys(kind for kind, _ in pictures)
    columns = [(kind, i, title) for kind in kinds for i, title in enumerate(titles[kind])]
    size = 1.25 * len(columns) + 0.3, 1.25 * len(WAYS) + 0.3
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(WAYS), len(columns))
    for row, way in zip(grid, WAYS, strict=True):
        row[0].set_ylabel(way, fontsize="x-small")
        for axes, (kind, i, _) in zip(row, columns, strict=True):
            axes.imshow(net.unprocess(pictures[kind, way][i]))
            axes.set(xticks=[], yticks=[])
    for axes, (_, _, title) in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize="x-small")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT)
    palette.save(path, "png", optimize=True)


def statistics(path):
    """The colours of photos, after the logistic function is undone, and their spectra's power."""
    photos = np.clip(np.load(path)["images"] / 255.0, 0.02, 0.98)
    images = np.log(photos / (1 - photos))
    variances, columns = np.linalg.eigh(np.cov(images.reshape(-1, 3).T))
    colors = (columns * np.sqrt(variances / variances[-1]))[:, ::-1]
    print("colours, each column up to its sign:", np.round(colors, 2).tolist())
    centred = images - images.mean((1, 2), keepdims=True)
    spectrum = np.abs(np.fft.rfft2(centred, axes=(1, 2))).mean((0, 3))
    size = images.shape[1]
    rows, columns = np.minimum(np.arange(size), size - np.arange(size)), np.arange(size // 2 + 1)
    radii = np.hypot(rows[:, None], columns[None])
    middle = (radii > 2) & (radii < 80)
    slope = np.polyfit(np.log(radii[middle]), np.log(spectrum[middle]), 1)[0]
    print(f"the mean amplitude falls by the power {-slope:.2f} of the frequency")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["defaults", "noise"], default="noise")
    parser.add_argument("--statistics", type=pathlib.Path, metavar="PHOTOS.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=9)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    if arguments.statistics:
        return statistics(arguments.statistics)
    jax.config.update("jax_compilation_cache_dir", str(HERE / ".cache" / "programs"))
    net, other = map(zoo.load, ("efficientnet-lite0", "efficientnet-lite2"))
    part = {"defaults": compare_defaults, "noise": compare_noise}[arguments.part]
    part(net, other, arguments.seeds, arguments.steps, end)


if __name__ == "__main__":
    main()
