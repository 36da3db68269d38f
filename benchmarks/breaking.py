"""Where a network breaks: the accuracy that weight noise costs, on all weights and layer by layer.

    python -m benchmarks.breaking --photos ../shared/data/imagenet_sample_224.npz --minutes 9

Run it again until it prints its tables: what is measured is kept in .cache beside this file. Three
questions: how the drop grows with the level, with and without noise on normalisation layers; which
layers take the drop, each perturbed by itself at one level; and what is lost when each layer gets
a level of its own, so that all layers change the logits alike. Writes a JSON and a picture.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import smoothjax as sj
from benchmarks.record import write_record
from smoothjax import zoo

HERE = pathlib.Path(__file__).parent
LEVELS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
LAYER_LEVEL = 0.1  # of one layer at a time
SMALL = 0.01  # at which a layer's effect on the logits is about linear in its level
TARGET = 0.05


def is_norm(path):
    """Whether a leaf is of a normalisation layer."""
    return "norm" in path


def layer(path):
    """The layer of a leaf: its block, or what is outside the blocks."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "blocks" else parts[0].removesuffix("_norm")


def levels(params, level_of):
    """A pytree of levels, by path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.float32(
            level_of(jax.tree_util.keystr(path, simple=True, separator="/"))
        ),
        params,
    )


class Measure:
    """Drops and logit changes under pytrees of levels, by name, in one compiled program each."""

    def __init__(self, net, xs, labels, samples, file, end):
        """Takes what is the same for all."""

        def predict(params, x):
            return net.apply(params, x[None])[0]

        def logits(params, xs):
            return jax.lax.map(lambda x: predict(params, x), xs, batch_size=5)

        @jax.jit
        def change(key, params, xs, sigma):
            """The root mean square change of the logits, in units of their deviation."""
            clean = logits(params, xs)
            noisy = sj.noisegrad(
                lambda p: jnp.mean((logits(p, xs) - clean) ** 2), sigma, num_samples=samples
            )
            return jnp.sqrt(noisy(key, params)) / jnp.std(clean)

        self.drop_of = jax.jit(sj.accuracy_drop(predict, num_samples=samples, batch_size=5))
        self.change_of = change
        self.params, self.xs, self.labels = net.params, xs, labels
        self.file, self.end = file, end
        self.known = json.loads(file.read_text()) if file.exists() else {}

    def drop(self, name, sigma):
        """The drop and its standard error."""

        def make():
            found = self.drop_of(jax.random.key(0), self.params, self.xs, self.labels, sigma)
            return [float(found.mean), float(found.stderr)]

        return self._kept(name, make)

    def change(self, name, sigma):
        """The change of the logits."""
        key = jax.random.key(0)
        return self._kept(name, lambda: float(self.change_of(key, self.params, self.xs, sigma)))

    def _kept(self, name, make):
        if name not in self.known:
            if time.monotonic() > self.end:
                raise SystemExit("time is up; run this again")
            self.known[name] = make()
            print(name, np.round(self.known[name], 3), flush=True)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.known))
        return self.known[name]


def curves(measure):
    """The drop at each level, of noise on all weights, on all but norms, and on norms alone."""
    groups = {
        "all weights": lambda path: True,
        "without normalisation": lambda path: not is_norm(path),
        "normalisation only": is_norm,
    }
    return {
        name: [
            measure.drop(
                f"{name} {level}", levels(measure.params, lambda p, on=on, s=level: s * on(p))
            )
            for level in LEVELS
        ]
        for name, on in groups.items()
    }


def by_layer(measure):
    """Of each layer by itself: its weights, its drop at one level, and its effect on the logits."""
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(measure.params):
        name = layer(jax.tree_util.keystr(path, simple=True, separator="/"))
        sizes[name] = sizes.get(name, 0) + leaf.size

    def only(name, level):
        return levels(measure.params, lambda path: level * (layer(path) == name))

    rows = []
    for name in sorted(sizes, key=_order):
        drop, stderr = measure.drop(f"{name} {LAYER_LEVEL}", only(name, LAYER_LEVEL))
        change = measure.change(f"{name} change", only(name, SMALL)) / SMALL
        row = {"layer": name, "weights": sizes[name], "drop": drop, "stderr": stderr}
        rows.append(row | {"change": change})
    total = sum(row["drop"] for row in rows)
    return [row | {"share": row["drop"] / total} for row in rows]


def _order(name):
    """From the input to the output."""
    first, _, number = name.partition("/")
    return ["stem", "blocks", "head", "classifier"].index(first), int(number or 0)


def equalised(measure, rows):
    """The levels with which all layers change the logits alike, at the target's drop, by bisection.

    One factor of all levels is searched; of equal levels likewise, for comparison.
    """
    change = {row["layer"]: row["change"] for row in rows}
    mean = np.exp(np.mean(np.log(list(change.values()))))
    rules = {
        "equal levels": lambda path: 1.0,
        "equal effects": lambda path: mean / change[layer(path)],
    }
    found = {}
    for name, rule in rules.items():
        relative = levels(measure.params, rule)
        least, most = 0.002, 0.2
        for _ in range(6):
            factor = np.sqrt(least * most)
            drop, stderr = measure.drop(
                f"{name} {factor:.6f}",
                jax.tree.map(lambda r, f=factor: r * jnp.float32(f), relative),
            )
            least, most = (factor, most) if drop < TARGET else (least, factor)
        found[name] = {"factor": float(factor), "drop": drop, "stderr": stderr}
        found[name]["levels"] = {row["layer"]: float(factor * rule(row["layer"])) for row in rows}
    return found


def draw(found, rows, path):
    """The curves with their error bands, and the layers with their error bars."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    for name, drops in found.items():
        mean, stderr = 100 * np.array(drops).T
        left.plot(LEVELS, mean, marker="o", markersize=3, label=name)
        left.fill_between(LEVELS, mean - stderr, mean + stderr, alpha=0.25)
    left.set(xscale="log", xlabel="weight noise", ylabel="accuracy lost, %")
    left.legend(fontsize="small")
    names = [row["layer"] for row in rows]
    drops, errors = (100 * np.array([row[what] for row in rows]) for what in ("drop", "stderr"))
    right.bar(range(len(rows)), drops, yerr=errors, capsize=2)
    right.set_xticks(range(len(rows)), names, rotation=90, fontsize="small")
    right.set(ylabel=f"lost with {LAYER_LEVEL} on one layer, %")
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--number", type=int, default=125, help="of photos")
    parser.add_argument("--samples", type=int, default=10, help="draws of the weights")
    parser.add_argument("--minutes", type=float, default=9)
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(HERE / ".cache" / "programs"))
    net = zoo.load(arguments.model)
    data = np.load(arguments.photos)
    chosen = np.random.default_rng(0).permutation(len(data["images"]))[: arguments.number]
    xs = jnp.stack([net.preprocess(data["images"][i]) for i in chosen])
    labels = jnp.asarray(data["labels"][chosen])
    name = f"{net.name}-{arguments.number}-{arguments.samples}.json"
    end = time.monotonic() + 60 * arguments.minutes
    measure = Measure(net, xs, labels, arguments.samples, HERE / ".cache" / "breaking" / name, end)
    rows = by_layer(measure)
    found = curves(measure)
    rules = equalised(measure, rows)
    for row in rows:
        print("| {layer} | {weights} | {drop:.3f} +- {stderr:.3f} | {change:.2f} |".format(**row))
    draw(found, rows, HERE / "breaking.png")
    settings = {
        "model": net.name,
        "photos": len(xs),
        "draws": arguments.samples,
        "levels": LEVELS,
        "layer_level": LAYER_LEVEL,
    }
    results = {"curves": found, "layers": rows, "rules": rules}
    write_record(HERE / "breaking.json", {**settings, **results})


if __name__ == "__main__":
    main()
