"""Compiles every method for TPUs without having one, and times it where there is a TPU or a GPU.

    JAX_PLATFORMS=cpu python -m benchmarks.tpu
    python -m benchmarks.tpu

The first needs `libtpu` (pip install libtpu) and no TPU: it compiles for 1, 4 and 16 devices of a
TPU v5e and v6e, and asks the compiler for memory, FLOPs and bytes. It takes hours on two cores;
started again, it goes on where it was stopped. The second does the same for one and for all of the
TPUs or GPUs that JAX finds, and times every program. They write tpu.json, and tpu-KIND.json.

XLA counts the body of a loop once. So every program makes all its draws at once, in one chunk,
which is no loop, and what it costs is divided by the draws; the cycles that the TPU's compiler
estimates inside of loops are recorded by themselves, and are 0 where there is none.
EfficientNet-Lite0 at 224 pixels, whose draws are divided over the devices, or where a method has no
`sharding=`, an example on each; and a transformer whose weights are divided, which one v5e cannot
hold with their noise.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import smoothjax as sj
from benchmarks import tables
from benchmarks.record import alternate, write_record
from benchmarks.transformer import Transformer, as_function, where
from smoothjax import zoo
from smoothjax._perturb import _SMALL

HERE = pathlib.Path(__file__).parent
LIMIT = 16e9  # bytes, what a v5e has; a v6e has twice as many
SIZES = {"layers": 4, "width": 8192, "heads": 64, "length": 512, "classes": 1000}
ENVIRONMENT = {  # that libtpu asks for where there is no TPU, and that lets two compile at once
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


class Case(NamedTuple):
    """A method, and what one device does at once."""

    build: Callable[..., Any]  # of how many are made at once, and their sharding if divided
    at_once: int = 1  # on each device
    gradients: int = 1  # or forward passes, in each
    divided: str = "examples"  # over the devices; or draws, or weights
    enlarge: bool = False  # until no larger chunk fits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows that match this, such as v5e-4.noisegrad")
    only = parser.parse_args().only
    timed = jax.default_backend() != "cpu"
    kind = jax.devices()[0].device_kind.replace(" ", "-")
    path = HERE / (f"tpu-{kind}.json" if timed else "tpu.json")
    versions = {} if timed else {"libtpu": importlib.metadata.version("libtpu")}
    net = zoo.load("efficientnet-lite0")
    settings = {**versions, "sizes": SIZES, "limit": LIMIT, "blocks": blocks(net.params)}
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    slices = devices_here(kind) if timed else devices_elsewhere()
    for part, devices, method, make in all_rows(net, slices, timed):
        row = f"{part}.{devices}.{method}"
        if re.search(only, row) and devices not in parts.get(part, {}).get(method, {}):
            print(f"{row} ...", flush=True)
            made = make()
            print(made, flush=True)
            parts.setdefault(part, {}).setdefault(method, {})[devices] = made
            write_record(path, {**settings, "parts": parts})
    record = json.loads(path.read_text())
    print(tables.tpu(record), tables.tpu_transformer(record), sep="\n\n")


def devices_here(kind):
    """One device of those that JAX finds, and all of them."""
    return {f"{kind}-{n}": jax.devices()[:n] for n in sorted({1, jax.device_count()})}


def devices_elsewhere():
    """Devices that can be compiled for, and no more."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    def first(number, kind):
        slice = f"{kind}:4x4" if number == 16 else f"{kind}:2x2"  # one of 1x1 is refused
        return topologies.get_topology_desc(slice, "tpu").devices[:number]

    return {f"{kind}-{n}": first(n, kind) for n in (1, 4, 16) for kind in ("v5e", "v6e")}


def all_rows(net, slices, timed):
    """Yields the part, devices and method of each row, and the function that makes it."""
    meshes = {name: Mesh(np.array(devices), ("model",)) for name, devices in slices.items()}
    for name, mesh in meshes.items():
        for method, case in on_lite0(net).items():
            make = functools.partial(measure, case, lite0(net, mesh), timed)
            yield "lite0", name, method, make
    for name, mesh in meshes.items():
        score, network = transformer(mesh)
        for method, case in on_transformer(score).items():
            yield "transformer", name, method, functools.partial(measure, case, network, timed)
    for name, mesh in meshes.items():
        for method, case in on_lite0(net).items():
            if mesh.size == 1 and case.enlarge:
                yield "chunks", name, method, functools.partial(enlarge, case, lite0(net, mesh))


class Network(NamedTuple):
    """The shapes of the arguments of a score, and how they are laid out over a mesh."""

    mesh: Mesh
    params: Any
    x: jax.ShapeDtypeStruct


def lite0(net, mesh):
    everywhere = NamedSharding(mesh, P())
    params = jax.tree.map(lambda w: shaped(w.shape, w.dtype, everywhere), net.params)
    return Network(mesh, params, shaped((224, 224, 3), jnp.float32, everywhere))


def transformer(mesh):
    """The score, and its network, whose weights are divided over the devices."""
    with jax.set_mesh(mesh):
        score, params = as_function(nnx.eval_shape(lambda: Transformer(**SIZES, rngs=nnx.Rngs(0))))
    params = jax.tree.map(
        lambda w: shaped(w.shape, w.dtype, NamedSharding(mesh, w.sharding.spec)), params
    )
    x = shaped((SIZES["length"], SIZES["width"]), jnp.float32, NamedSharding(mesh, P()))
    return score, Network(mesh, params, x)


def on_lite0(net):
    """The methods on EfficientNet-Lite0."""
    score, saliency = net.score, sj.saliency(net.score)
    eight = {"num_samples": 8, "chunk_size": 8}
    smoothgrad, smoothdiff = sj.smoothgrad(saliency, **eight), sj.smoothdiff(score)

    def over_draws(transform, *settings, at_once=8, gradients=1, enlarge=False):
        def build(num, sharding):
            return transform(*settings, num_samples=num, chunk_size=num, sharding=sharding)

        return Case(build, at_once, gradients, "draws", enlarge)

    def each(explain, gradients=1):
        return Case(lambda num: explain, 1, gradients)

    def steps(num):
        return sj.integrated_gradients(score, num_steps=num, chunk_size=num)

    return {
        "saliency": each(saliency),
        "saliency of 8": Case(functools.partial(bare, saliency), 8),
        "smoothgrad": over_draws(sj.smoothgrad, saliency, enlarge=True),
        "noisegrad": over_draws(sj.noisegrad, saliency, 0.01, at_once=1, enlarge=True),
        "fusiongrad": over_draws(sj.noisegrad, smoothgrad, 0.01, at_once=1, gradients=8),
        "integrated_gradients": Case(steps, 8, enlarge=True),
        "rise": over_draws(sj.rise, score, enlarge=True),
        "occlusion": each(sj.occlusion(score, 56, 56, chunk_size=16), 16),
        "lrp": each(sj.lrp(score)),
        "smoothdiff": each(smoothdiff, 8),
        "adaptgrad": over_draws(sj.adaptgrad, saliency, net.bounds),
        "vargrad": over_draws(sj.vargrad, saliency),
        "forgrad": each(sj.forgrad(smoothgrad), 8),
        "smoothgrad_toward": each(sj.smoothgrad_toward(saliency, smoothdiff, **eight), 8),
        "guided_backprop": each(sj.guided_backprop(score)),
        "gradcam": each(sj.gradcam(net.features, net.head)),
    }


def on_transformer(score):
    """The bare gradients, and the same under noise on inputs and on all but the embeddings."""
    saliency = sj.saliency(score)

    def build(num):
        smooth = sj.smoothgrad(saliency, num_samples=num, chunk_size=num)
        return sj.noisegrad(smooth, 0.01, num_samples=1, where=where)

    return {
        "saliency of 4": Case(functools.partial(bare, saliency), 4, 1, "weights"),
        "noisegrad(smoothgrad(saliency))": Case(build, 4, 1, "weights"),
    }


def bare(saliency, num):
    """The mean of gradients at inputs that differ: SmoothGrad without its noise."""

    def explain(params, x, label):
        scales = jnp.linspace(0.5, 1.0, num)
        return jnp.mean(jax.vmap(lambda scale: saliency(params, scale * x, label))(scales), 0)

    return explain


def measure(case, network, timed):
    """What the compiler says of a program, or why it refuses, and how long the program takes."""
    try:
        compiled, arguments = compile(case, network, case.at_once)
    except jax.errors.JaxRuntimeError as error:
        return {"refused": str(error).splitlines()[0][:300]}
    text, cost = compiled.as_text(), compiled.cost_analysis()
    divided = [w for w in jax.tree.leaves(network.params) if any(w.sharding.spec)]
    cycles, in_loops = estimated_cycles(text)
    row = {
        "draws": case.at_once * case.gradients,  # on a device
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        **memory(compiled),
        "cycles": cycles,
        "cycles_in_loops": in_loops,
        "convolutions_of_xla": text.count("feature_group_count="),
        "branches": text.count(" conditional("),
        "gathered": largest(text, "all-gather|all-to-all|collective-permute"),
        "reduced": largest(text, "all-reduce|reduce-scatter"),
        "smallest_divided_weight": min((math.prod(w.shape) * 4 for w in divided), default=None),
    }
    if timed:
        run = functools.partial(compiled, *jax.tree.map(filled, arguments))
        row["seconds"] = statistics.median(alternate({"": run}, repeats=10)[""])
    return row


def enlarge(case, network):
    """The largest power of two that can be made at once in 16 GB."""

    @functools.cache
    def needed(number):
        try:
            return sum(memory(compile(case, network, number)[0]).values())
        except jax.errors.JaxRuntimeError:
            return math.inf

    few = 4 * case.at_once
    number = 2 ** int(math.log2(few * LIMIT / needed(few)))  # if memory is in proportion
    while needed(number) > LIMIT:
        number //= 2
    while needed(2 * number) <= LIMIT:
        number *= 2
    return {"at_once": number}


def compile(case, network, at_once):
    """The program that makes so many at once on each device, and the shapes of its arguments."""
    mesh = network.mesh
    everywhere, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P("model"))
    if case.divided == "draws":
        explain = case.build(at_once * mesh.size, divided)
    else:
        explain = case.build(at_once)
    if not sj.is_stochastic(explain):
        explain = functools.partial(without_key, explain)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = [
        shaped(key.shape, key.dtype, everywhere),
        network.params,
        network.x,
        shaped((), jnp.int32, everywhere),
    ]
    if case.divided == "examples":
        explain = jax.vmap(explain, in_axes=(None, None, 0, 0))
        arguments[2:] = [shaped((mesh.size, *a.shape), a.dtype, divided) for a in arguments[2:]]
    return jax.jit(explain).lower(*arguments).compile(), arguments


def without_key(explain, key, *args):
    del key
    return explain(*args)


def shaped(shape, dtype, sharding):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def filled(argument):
    """An array for a shape: the numbers do not matter to the time."""
    if jnp.issubdtype(argument.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.key(0), argument.sharding)
    full = functools.partial(jnp.full, argument.shape, 0.01, argument.dtype)
    return jax.jit(full, out_shardings=argument.sharding)()


def memory(compiled):
    """Bytes on one device."""
    found = compiled.memory_analysis()
    return {
        "temporaries": found.temp_size_in_bytes,
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
    }


def largest(text, collectives):
    """The bytes of the largest array that one of the collectives returns."""
    returned = re.findall(rf"= (.*?) (?:{collectives})(?:-start)?\(", text)
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", " ".join(returned))
    sizes = [
        BYTES[dtype] * math.prod(map(int, shape.split(",") if shape else ()))
        for dtype, shape in arrays
    ]
    return max(sizes, default=0)


def estimated_cycles(text):
    """The cycles that the TPU's compiler estimates, outside loops and of one trip of each."""
    bodies, cycles, computation = set(re.findall(r"body=(%[\w.-]+)", text)), [0, 0], ""
    for line in text.splitlines():
        if line[:1] in ("%", "E"):  # its name, or ENTRY
            computation = line.split()[0]
        cycles[computation in bodies] += sum(
            map(int, re.findall(r'"estimated_cycles":"(\d+)"', line))
        )
    return cycles


def blocks(params):
    """The loop over the noise of small leaves: its trips, and the numbers of one."""
    sizes = [w.size for w in jax.tree.leaves(params)]
    small = [size for size in sizes if size <= _SMALL]
    return {
        "leaves": len(sizes),
        "weights": sum(sizes),
        "trips": len(small),
        "numbers_of_a_trip": max(small),
        "small_weights": sum(small),
    }


if __name__ == "__main__":
    main()
