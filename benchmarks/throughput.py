"""Measures what a smoothed map costs: above its gradients, and against PyTorch's libraries.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --parts peers

The first runs every part but the last, the second the last: 8 and 9 minutes on two cores. All
is on EfficientNet-Lite0 at 224 pixels, on whatever device JAX finds.

- smoothgrad: 64 draws against 64 bare gradients, one program each, both at their best batch size.
- noisegrad: a draw for one image against perturbing the weights alone plus the gradient alone.
- batch: a draw of weights that eight images share against the bare gradients of eight.
- samplers: perturbing 25 million weights, by where the random numbers come from.
- ordinary: SmoothGrad of 16 draws on a small network and a ResNet-18 in plain Flax, and the
  gradient with respect to the weights through it, against a `vmap` over draws written by hand.
- tolerance: a loop that checks its error after every chunk, and never stops, against one of a fixed
  number of draws.
- compile: how long programs take to compile.
- peers: SmoothGrad, SmoothDiff, NoiseGrad and AdaptGrad against Captum's NoiseTunnel and against
  the loops of the papers' authors, in PyTorch with the same network and weights, with the memory
  that each takes. The `bench` extra holds what this needs.

What is compared runs in turn, round after round, and a ratio is the median of the rounds' ratios.
Each part is written to throughput.json beside this file when it is done, with its date and the load
of the machine before it.
"""

import argparse
import contextlib
import datetime
import functools
import json
import operator
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
from flax import linen

import smoothjax as sj
from benchmarks.record import alternate, bundled_photos, median_ratio, write_record
from smoothjax import zoo
from smoothjax._perturb import multiplicative, perturbation
from smoothjax.noise import box_muller

HERE = pathlib.Path(__file__).parent
LEVEL = sj.relative(0.15)
BATCH = 8


class Setup(NamedTuple):
    """What every part is measured on."""

    net: zoo.Network
    x: jax.Array
    label: jax.Array
    draws: int
    repeats: int

    @property
    def gradient(self) -> Any:
        """The explainer that is smoothed, a function of (params, x, label)."""
        return sj.saliency(self.net.score)

    def noisy_images(self, *shape: int) -> jax.Array:
        """The inputs that bare gradients are taken at, like those of SmoothGrad."""
        eps = jax.random.normal(jax.random.key(1), (*shape, *self.x.shape))
        return self.x + LEVEL(self.x) * eps


KEY = jax.random.key(0)
SAMPLERS = {"": box_muller, ", jax.random.normal": jax.random.normal}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS)[:-1])
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--draws", type=int, default=64, help="SmoothGrad's draws")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "throughput.json")
    arguments = parser.parse_args()

    net = zoo.load("efficientnet-lite0")
    x, label = net.preprocess(skimage.data.chelsea()), jnp.int32(285)
    setup = Setup(net, x, label, arguments.draws, arguments.repeats)
    parts = {}
    if arguments.out.exists():
        parts = json.loads(arguments.out.read_text())["parts"]
    for name in arguments.parts:
        started = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": jax.devices()[0].device_kind,
            "load_before": round(os.getloadavg()[0], 2),
        }
        print(f"{name} (load {started['load_before']})", flush=True)
        parts[name] = {**started, **PARTS[name](setup)}
        write_record(arguments.out, {"model": net.name, "parts": parts})


def compare(what, times, others, target):
    ratio = median_ratio(times, others)
    print(f"  {what}: {ratio:.3f}, to be at most {target}", flush=True)
    return {"ratio": ratio, "target": target}


def milliseconds(times, num=1):
    """The median times of runs that do something `num` times."""
    medians = {name: 1e3 * float(np.median(taken)) / num for name, taken in times.items()}
    for name, median in medians.items():
        print(f"  {name}: {median:.1f} ms", flush=True)
    return medians


def bare_gradients(setup):
    """A program of gradients alone: a function of (params, batches of images, label).

    It scans over the batches, (number, batch, H, W, 3), in one program, and returns the mean.
    """

    def run(params, batches, label):
        def step(total, images):
            maps = jax.vmap(setup.gradient, in_axes=(None, 0, None))(params, images, label)
            return total + jnp.tensordot(jnp.ones(len(images)), maps, 1), None

        total, _ = jax.lax.scan(step, jnp.zeros(batches.shape[2:]), batches)
        return total / (batches.shape[0] * batches.shape[1])

    return run


def smoothgrad_cost(setup):
    few = min(setup.draws, 32)  # what chunk sizes are tuned on
    sizes = (2, 4, 8, 16) if jax.default_backend() == "cpu" else (4, 8, 16, 32)
    sizes = [size for size in sizes if size <= few]
    call = (setup.net.params, setup.x, setup.label)

    def bare(batch):
        run, shape = bare_gradients(setup), (-1, batch, *setup.x.shape)
        return lambda params, images, label: run(params, images.reshape(shape), label)

    def smoothgrad(chunk_size, num=setup.draws, sampler=box_muller):
        return sj.smoothgrad(
            setup.gradient, LEVEL, num_samples=num, chunk_size=chunk_size, sampler=sampler
        )

    images = setup.noisy_images(setup.draws)
    batches = sj.tune_chunk_size(bare, call[0], images[:few], call[2], candidates=sizes, repeats=2)
    chunks = sj.tune_chunk_size(
        functools.partial(smoothgrad, num=few), KEY, *call, candidates=sizes, repeats=2
    )
    print(f"{few} bare gradients:\n{batches}\nSmoothGrad of {few} draws:\n{chunks}", flush=True)

    runs = {"bare": functools.partial(jax.jit(bare(batches.best)), call[0], images, call[2])}
    for name, sampler in SAMPLERS.items():
        program = jax.jit(smoothgrad(chunks.best, sampler=sampler))
        runs[f"smoothgrad{name}"] = functools.partial(program, KEY, *call)
    times = alternate(runs, setup.repeats)
    return {
        "draws": setup.draws,
        "bare_batch": batches.best,
        "chunk_size": chunks.best,
        "tuning": {
            "draws": few,
            "bare": [row._asdict() for row in batches.table],
            "smoothgrad": [row._asdict() for row in chunks.table],
        },
        "milliseconds_per_draw": milliseconds(times, setup.draws),
        "over_bare": {
            f"smoothgrad{name}": compare(
                f"smoothgrad{name} / bare", times[f"smoothgrad{name}"], [times["bare"]], 1.05
            )
            for name in SAMPLERS
        },
    }


def perturbed(params, sigma, num, sampler):
    """A program that perturbs weights `num` times, one copy after the other, and no more."""

    def run(key, params):
        noisy = perturbation(multiplicative, sigma, sampler=sampler)(params)

        def step(previous, index):
            del previous
            return noisy(jax.random.fold_in(key, index)), None

        return jax.lax.scan(step, params, jnp.arange(num))[0]

    program = jax.jit(run)
    return lambda key=KEY: program(key, params)


def noisegrad(setup, num, sampler=box_muller):
    return sj.noisegrad(setup.gradient, setup.net.sigma_weights, num_samples=num, sampler=sampler)


def noisegrad_cost(setup, num=16):
    params = setup.net.params
    images = setup.noisy_images(num, 1)
    bare = jax.jit(bare_gradients(setup))
    runs = {"gradient": lambda: bare(params, images, setup.label)}
    for name, sampler in SAMPLERS.items():
        program = jax.jit(noisegrad(setup, num, sampler))
        runs[f"perturb{name}"] = perturbed(params, setup.net.sigma_weights, num, sampler)
        runs[f"noisegrad{name}"] = functools.partial(program, KEY, params, setup.x, setup.label)
    times = alternate(runs, setup.repeats)
    return {
        "draws": num,
        "milliseconds_per_draw": milliseconds(times, num),
        "over_parts": {
            f"noisegrad{name}": compare(
                f"noisegrad{name} / (perturb{name} + gradient)",
                times[f"noisegrad{name}"],
                [times[f"perturb{name}"], times["gradient"]],
                1.1,
            )
            for name in SAMPLERS
        },
    }


def batch_cost(setup, num=8):
    params = setup.net.params
    images = setup.noisy_images(num, BATCH)
    labels = jnp.full(BATCH, setup.label)
    bare = jax.jit(bare_gradients(setup))
    runs = {"gradient": lambda: bare(params, images, setup.label)}
    for name, sampler in SAMPLERS.items():
        shared = jax.vmap(noisegrad(setup, num, sampler), in_axes=(None, None, 0, 0))
        runs[f"noisegrad{name}"] = functools.partial(
            jax.jit(shared), KEY, params, images[0], labels
        )
    times = alternate(runs, setup.repeats)
    return {
        "draws": num,
        "images": BATCH,
        "milliseconds_per_image_and_draw": milliseconds(times, num * BATCH),
        "over_bare": {
            f"noisegrad{name}": compare(
                f"noisegrad{name} / gradient",
                times[f"noisegrad{name}"],
                [times["gradient"]],
                1.25,
            )
            for name in SAMPLERS
        },
    }


def samplers_cost(setup, num=4, size=25_000_000):
    def bits(key, shape, dtype):
        return jax.random.bits(key, shape, jnp.uint32).astype(dtype)

    def constant(key, shape, dtype):
        return jnp.full(shape, jax.random.key_data(key)[0].astype(dtype))

    samplers = {
        "jax.random.normal": (jax.random.normal, "threefry2x32"),
        "jax.random.normal, rbg keys": (jax.random.normal, "rbg"),
        "box_muller": (box_muller, "threefry2x32"),
        "random bits alone": (bits, "threefry2x32"),
        "no random numbers": (constant, "threefry2x32"),
    }
    runs = {
        name: functools.partial(
            perturbed(jnp.ones(size), 0.02, num, sampler), jax.random.key(0, impl=impl)
        )
        for name, (sampler, impl) in samplers.items()
    }
    times = alternate(runs, setup.repeats)
    return {
        "weights": size,
        "milliseconds": milliseconds(times, num),
        "over_normal": {
            "box_muller": compare(
                "box_muller / jax.random.normal",
                times["box_muller"],
                [times["jax.random.normal"]],
                0.5,
            )
        },
    }


class SmallNet(linen.Module):
    """Three convolutions and a classifier of ten classes."""

    @linen.compact
    def __call__(self, x):
        """Returns logits."""
        for features in (16, 32, 32):
            x = linen.relu(linen.Conv(features, (3, 3), strides=2)(x))
        return linen.Dense(10)(jnp.mean(x, (-3, -2)))


class ResNet18(linen.Module):
    """He et al. 2016, without batch norms, whose statistics are constants here."""

    @linen.compact
    def __call__(self, x):
        """Returns logits."""
        x = linen.relu(linen.Conv(64, (7, 7), strides=2)(x))
        x = linen.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, features in enumerate((64, 128, 256, 512)):
            for block in range(2):
                stride = 2 if stage and not block else 1
                inner = linen.relu(linen.Conv(features, (3, 3), strides=stride)(x))
                inner = linen.Conv(features, (3, 3))(inner)
                if stride == 2:
                    x = linen.Conv(features, (1, 1), strides=2)(x)
                x = linen.relu(x + inner)
        return linen.Dense(10)(jnp.mean(x, (-3, -2)))


def ordinary_cost(setup, num=16, size=64):
    x = jax.image.resize(setup.x, (size, size, 3), "linear")
    result = {"draws": num, "pixels": size, "networks": {}}
    for model in (SmallNet(), ResNet18()):
        params = model.init(jax.random.key(1), x)
        gradient = jax.grad(lambda p, x, model=model: model.apply(p, x)[3], argnums=1)

        def by_hand(key, params, x, gradient=gradient):
            noisy = x + LEVEL(x) * jax.random.normal(key, (num, *x.shape))
            return jnp.mean(jax.vmap(gradient, (None, 0))(params, noisy), 0)

        def through(explain):
            return jax.grad(lambda weights, key, x: jnp.sum(explain(key, weights, x) ** 2))

        smoothed = sj.smoothgrad(gradient, LEVEL, num_samples=num)
        name = type(model).__name__
        print(name, flush=True)
        rows = result["networks"][name] = {}
        for what, programs, arguments, target in (
            ("map", {"hand": by_hand, "smoothgrad": smoothed}, (KEY, params, x), 1.05),
            (
                "gradient through it",
                {"hand": through(by_hand), "smoothgrad": through(smoothed)},
                (params, KEY, x),
                1.3,
            ),
        ):
            compiled = {n: jax.jit(f).lower(*arguments).compile() for n, f in programs.items()}
            runs = {n: functools.partial(f, *arguments) for n, f in compiled.items()}
            times = alternate(runs, setup.repeats)
            rows[what] = {
                "milliseconds": milliseconds(times),
                "megabytes": {
                    n: f.memory_analysis().temp_size_in_bytes / 1e6 for n, f in compiled.items()
                },
                "over_hand": compare(what, times["smoothgrad"], [times["hand"]], target),
            }
    return result


def tolerance_cost(setup, chunk_size=8):
    def run(tolerance):
        smoothed = sj.smoothgrad(
            setup.gradient,
            LEVEL,
            num_samples=setup.draws,
            chunk_size=chunk_size,
            tolerance=tolerance,
        )
        return functools.partial(jax.jit(smoothed), KEY, setup.net.params, setup.x, setup.label)

    # No map is that good: every check is made, and none stops the loop.
    times = alternate({"fixed": run(None), "tolerance": run(1e-6)}, setup.repeats)
    return {
        "draws": setup.draws,
        "chunk_size": chunk_size,
        "milliseconds_per_draw": milliseconds(times, setup.draws),
        "over_fixed": {
            "tolerance": compare("tolerance / fixed", times["tolerance"], [times["fixed"]], 1.03)
        },
    }


def compile_cost(setup):
    example = (setup.net.params, setup.x, setup.label)
    batch = (setup.net.params, jnp.stack([setup.x] * BATCH), jnp.full(BATCH, setup.label))
    sigma = setup.net.sigma_weights
    programs = {
        "saliency": (setup.gradient, example),
        "smoothgrad": (sj.smoothgrad(setup.gradient, LEVEL), (KEY, *example)),
        "noisegrad": (noisegrad(setup, 25), (KEY, *example)),
        "fusiongrad": (sj.fusiongrad(setup.gradient, sigma / 2), (KEY, *example)),
        f"noisegrad of {BATCH} images": (
            jax.vmap(noisegrad(setup, 25), in_axes=(None, None, 0, 0)),
            (KEY, *batch),
        ),
    }
    taken = {}
    for name, (program, call) in programs.items():
        start = time.perf_counter()
        jax.jit(program).lower(*call).compile()
        taken[name] = time.perf_counter() - start
        print(f"  {name}: {taken[name]:.1f} s", flush=True)
    return {"seconds": taken}


class Worker:
    """A process of workers.py, which runs one thing whenever it is told to."""

    def __init__(self, name, data):
        """Starts it, and waits until it has called what it runs once."""
        command = [sys.executable, HERE / "workers.py", name, data]
        # What JAX reserves of a GPU at its start says nothing of what it needs.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.name, self.started = name, self.answer()
        print(f"  {name}: {self.started}", flush=True)

    def answer(self):
        """Reads what it tells."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker {self.name} ended; its error is above")
        return json.loads(line)

    def run(self):
        """Has it call what it runs, and returns the time and the memory."""
        time.sleep(0.3)  # until the threads of the worker before have gone to sleep
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()


# Ours, theirs, and what our share of their time is to be at most.
PAIRS = {
    "SmoothGrad": ("ours-smoothgrad", "pytorch-captum", 0.7),
    "NoiseGrad of 8 images": ("ours-noisegrad", "pytorch-noisegrad", 0.6),
    "AdaptGrad": ("ours-adaptgrad", "pytorch-adaptgrad", None),
}
OTHERS = ("ours-wiener", "ours-smoothdiff", "pytorch-captum_all_at_once")


def peers(setup):
    photos = bundled_photos(setup.net, BATCH)
    names = [name for *sides, _ in PAIRS.values() for name in sides]
    answers = {name: [] for name in (*names, *OTHERS)}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        data = pathlib.Path(folder) / "data.npz"
        np.savez(
            data,
            x=setup.x,
            label=setup.label,
            xs=np.stack([photo.x for photo in photos]),
            labels=np.array([photo.label for photo in photos]),
            draws=setup.draws,
            sigma=LEVEL(setup.x),
            sigma_weights=setup.net.sigma_weights,
            bounds=np.stack(setup.net.bounds),
        )

        def start(name):
            worker = Worker(name, data)
            stack.callback(worker.close)
            return worker

        gradients = {}
        for name in ("ours-gradient", "pytorch-gradient"):
            worker = start(name)
            gradients[name] = np.load(data.with_name(f"{name}.npy"))
            worker.close()
        ours, theirs = gradients.values()
        difference = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
        print(f"  the two gradients differ by {difference:.1e} of their norm", flush=True)
        if not difference < 1e-3:
            raise SystemExit("these are not the same networks")

        workers = [start(name) for name in answers]
        for _ in range(setup.repeats):
            for worker in workers:
                answers[worker.name].append(worker.run())
    times = {name: [answer["seconds"] for answer in given] for name, given in answers.items()}
    result = {
        "gradients_differ": difference,
        "workers": {
            worker.name: {
                **worker.started,
                **answers[worker.name][-1],
                "seconds": float(np.median(times[worker.name])),
            }
            for worker in workers
        },
        "methods": {},
    }
    for method, (ours, theirs, target) in PAIRS.items():
        compared = compare(f"{method}: time / {theirs}", times[ours], [times[theirs]], target)
        for what in ("call_megabytes", "peak_megabytes"):
            compared[what] = answers[ours][-1][what] / answers[theirs][-1][what]
            print(f"    {what}: {compared[what]:.2f}", flush=True)
        result["methods"][method] = compared
    result["to_half"] = time_to_half(times["ours-wiener"], times["pytorch-captum"])
    result["to_cosine"] = time_to_cosine(setup, times["ours-smoothdiff"], times["pytorch-captum"])
    memory = (answers[n][-1]["call_megabytes"] for n in ("ours-smoothdiff", "pytorch-captum"))
    result["to_cosine"]["call_megabytes"] = operator.truediv(*memory)
    return result


def time_to_half(ours, theirs):
    """Time to a squared relative error of 0.5 over Captum's, of the times of as many draws.

    The draws that each needs are those that convergence.py found.
    """
    record = HERE / "convergence.json"
    if not record.exists():
        print("  run convergence.py first for the time to a squared error of 0.5", flush=True)
        return None
    needed = json.loads(record.read_text())["kinds"]["input"]["draws_to_half"]
    ours = [time * needed["joint"] for time in ours]
    theirs = [time * needed["plain"] for time in theirs]
    return compare("time to a squared error of 0.5 / Captum's", ours, [theirs], 0.25)


def time_to_cosine(setup, ours, theirs, least=0.9):
    """The time of SmoothDiff over that of as many draws of Captum as have a cosine of 0.9.

    Of n draws the cosine to the limit is (1 + v / n)^(-1/2); smoothdiff.json has that of 256, and
    SmoothDiff's, which must be as large.
    """
    found = json.loads((HERE / "smoothdiff.json").read_text())["methods"]
    draws = 256 * (found["smoothgrad, 256 draws"]["mean"] ** -2 - 1) / (least**-2 - 1)
    if found["smoothdiff, 8 draws"]["mean"] < least:
        raise SystemExit(f"SmoothDiff has no cosine of {least}")
    theirs = [time * draws / setup.draws for time in theirs]
    what = f"time to a cosine of {least} / Captum's {draws:.0f} draws"
    return {"draws": draws, **compare(what, ours, [theirs], 1 / 30)}


PARTS = {
    "smoothgrad": smoothgrad_cost,
    "noisegrad": noisegrad_cost,
    "batch": batch_cost,
    "samplers": samplers_cost,
    "ordinary": ordinary_cost,
    "tolerance": tolerance_cost,
    "compile": compile_cost,
    "peers": peers,
}

if __name__ == "__main__":
    main()
