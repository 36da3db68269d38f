"""Measures how SmoothGrad speeds up over devices: strong and weak scaling, over draws and examples.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --cpu-devices 8

The first takes what JAX finds, GPUs or a TPU slice; on several hosts, start it on each with
`--distributed`. The second divides the CPU into devices. They share its cores, so hardly any
speed-up is to be had: what it shows is what the partitioning costs. 5 minutes on two cores.

Strong scaling divides the same work over 1, 2, 4, ... devices: speed-up = t(1) / t(d), the device
count at best. Weak scaling gives each device the same work: efficiency = t(1) / t(d), 1 at best.
Draws are divided by `sharding=`, examples by the sharding of the batch. EfficientNet-Lite0 at 224
pixels. Prints a table, checks that all device counts agree on the maps, and writes
scaling-BACKEND-DEVICES.json beside this file.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import smoothjax as sj
from benchmarks.record import alternate, write_record
from smoothjax import zoo


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu-devices", type=int, help="divide the CPU into so many devices")
    parser.add_argument("--distributed", action="store_true", help="on each of several hosts")
    parser.add_argument("--draws", type=int, default=4, help="evaluated at once on each device")
    parser.add_argument("--chunks", type=int, default=2, help="of draws in a run")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", arguments.cpu_devices)
    if arguments.distributed:
        jax.distributed.initialize()

    most = jax.device_count()
    counts = [2**i for i in range(most.bit_length()) if 2**i <= most]
    net = zoo.load("efficientnet-lite0")
    x, label = net.preprocess(skimage.data.chelsea()), jnp.int32(285)
    result = {
        "model": net.name,
        "devices": counts,
        "draws_per_device": arguments.draws,
        "chunks": arguments.chunks,
        "scaling": {},
    }
    name = f"scaling-{jax.default_backend()}-{most}.json"
    for over, build in {"draws": over_draws, "examples": over_examples}.items():
        for kind in ("strong", "weak"):
            # In units of what one device evaluates at once.
            units = (
                dict.fromkeys(counts, counts[-1])
                if kind == "strong"
                else dict(zip(counts, counts, strict=True))
            )
            runs = {
                devices: build(net, x, label, devices, units[devices], arguments)
                for devices in counts
            }
            result["scaling"][f"{kind}, over {over}"] = measure(kind, over, runs, arguments)
            if jax.process_index() == 0:
                write_record(pathlib.Path(__file__).with_name(name), result)


def over_draws(net, x, label, devices, units, arguments):
    """One example; a chunk has `draws` draws on each device, and a unit is `chunks` of those."""
    mesh = devices_in(devices)
    explain = sj.smoothgrad(
        sj.saliency(net.score),
        num_samples=arguments.draws * arguments.chunks * units,
        chunk_size=arguments.draws * devices,
        sharding=NamedSharding(mesh, P("devices")),
    )
    call = jax.device_put((jax.random.key(0), net.params, x, label), NamedSharding(mesh, P()))
    return functools.partial(jax.jit(explain), *call)


def over_examples(net, x, label, devices, units, arguments):
    """A unit is a batch of `draws` examples, of which each device evaluates a draw at a time."""
    mesh = devices_in(devices)
    num = arguments.draws * units
    explain = sj.smoothgrad(sj.saliency(net.score), num_samples=arguments.chunks, chunk_size=1)
    explain = jax.vmap(explain, in_axes=(None, None, 0, 0))
    everywhere, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P("devices"))
    key, params = jax.device_put((jax.random.key(0), net.params), everywhere)
    batch = jax.device_put((np.stack([x] * num), np.full(num, label)), divided)
    # Gathered, so that each host has every map.
    return functools.partial(jax.jit(explain, out_shardings=everywhere), key, params, *batch)


def devices_in(number):
    return jax.make_mesh(
        (number,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:number]
    )


def measure(kind, over, runs, arguments):
    times = alternate(runs, arguments.repeats)
    seconds = {devices: float(np.median(taken)) for devices, taken in times.items()}
    gain = {devices: seconds[1] / taken for devices, taken in seconds.items()}
    what = "speed-up" if kind == "strong" else "efficiency"
    if jax.process_index() == 0:
        print(f"{kind} scaling over {over}\n{'devices':>10}{'seconds':>12}{what:>12}")
        for devices in runs:
            print(f"{devices:>10}{seconds[devices]:>12.3f}{gain[devices]:>12.2f}", flush=True)
    measured = {"seconds": seconds, what: gain}
    if kind == "strong":  # all device counts compute the same maps, to rounding
        first, *others = (np.asarray(run()) for run in runs.values())
        errors = [np.linalg.norm(each - first) / np.linalg.norm(first) for each in others]
        measured["maps_differ"] = max(map(float, errors), default=0.0)
        if not measured["maps_differ"] < 0.01:
            raise SystemExit(f"the maps differ by {measured['maps_differ']:.1e} of their norm")
    return measured


if __name__ == "__main__":
    main()
