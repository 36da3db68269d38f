"""Two processes that JAX's own runtime joins over loopback give the map of one."""

import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import smoothjax as sj
from benchmarks.transformer import Transformer, as_function, where

ROOT = pathlib.Path(__file__).parents[1]
JOINED = textwrap.dedent(
    """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address, process, out = sys.argv[1:]
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    import smoothjax as sj
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    assert jax.process_count() == 2
    place = lambda a: jax.make_array_from_callback(a.shape, everywhere, lambda index: a[index])
    """
)
DRAWS = textwrap.dedent(
    """
    # JAX before 0.10 cannot divide draws over an Explicit axis, the default.
    axis_types = None if jax.__version_info__ >= (0, 10) else (AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("draws",), axis_types)
    jax.set_mesh(mesh)
    sharding = NamedSharding(mesh, P("draws"))
    everywhere = NamedSharding(mesh, P())
    score = lambda params, x: jnp.sum(jnp.tanh(x @ params))
    explain = sj.noisegrad(
        sj.smoothgrad(sj.saliency(score), 0.2, num_samples=3), 0.3,
        num_samples=16, chunk_size=8, sharding=sharding,
        reduction=sj.reductions.mean_and_stderr(),
    )
    run = jax.jit(explain, in_shardings=everywhere, out_shardings=everywhere)
    params, x = np.linspace(-1, 1, 12, dtype="f4").reshape(4, 3), np.arange(4, dtype="f4")
    key = jax.jit(lambda: jax.random.key(7), out_shardings=everywhere)()
    estimate = run(key, place(params), place(x))
    mean, stderr = (a.addressable_data(0) for a in estimate[:2])
    np.savez(out, mean=mean, stderr=stderr)
    """
)


WEIGHTS = textwrap.dedent(
    """
    from benchmarks.transformer import Transformer, as_function, where
    from flax import nnx

    mesh = jax.make_mesh((jax.device_count(),), ("model",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        score, params = as_function(Transformer(2, 64, 8, 4, 3, rngs=nnx.Rngs(0)))
    assert all(
        w.addressable_data(0).size * jax.device_count() == w.size
        for w in jax.tree.leaves(params) if any(w.sharding.spec)
    )
    smooth = sj.smoothgrad(sj.saliency(score), 0.1, num_samples=2)
    explain = sj.noisegrad(smooth, 0.1, num_samples=2, where=where)
    run = jax.jit(explain, out_shardings=everywhere)
    key = jax.jit(lambda: jax.random.key(7), out_shardings=everywhere)()
    x = np.linspace(-1, 1, 4 * 64, dtype="f4").reshape(4, 64)
    np.savez(out, mean=run(key, params, place(x), place(np.int32(1))).addressable_data(0))
    """
)


def in_two_processes(program, folder):
    """What each of two processes of two devices saves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    file = folder / "program.py"
    file.write_text(JOINED + program)
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PATH": "",
        "PYTHONPATH": str(ROOT),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, file, address, str(process), folder / f"{process}.npz"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    return [np.load(folder / f"{process}.npz") for process in (0, 1)]


@pytest.mark.slow
def test_draws_over_two_processes(tmp_path):
    explain = sj.noisegrad(
        sj.smoothgrad(sj.saliency(lambda w, x: jnp.sum(jnp.tanh(x @ w))), 0.2, num_samples=3),
        0.3,
        num_samples=16,
        reduction=sj.reductions.mean_and_stderr(),
    )
    params = np.linspace(-1, 1, 12, dtype="f4").reshape(4, 3)
    want = explain(jax.random.key(7), params, np.arange(4, dtype="f4"))
    for got in in_two_processes(DRAWS, tmp_path):
        np.testing.assert_allclose(got["mean"], want.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["stderr"], want.stderr, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_weights_over_two_processes(tmp_path):
    """A transformer of which each process has half."""
    with jax.set_mesh(jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))):
        score, params = as_function(Transformer(2, 64, 8, 4, 3, rngs=nnx.Rngs(0)))
    smooth = sj.smoothgrad(sj.saliency(score), 0.1, num_samples=2)
    explain = sj.noisegrad(smooth, 0.1, num_samples=2, where=where)
    x = np.linspace(-1, 1, 4 * 64, dtype="f4").reshape(4, 64)
    want = jax.jit(explain)(jax.random.key(7), params, x, 1)
    for got in in_two_processes(WEIGHTS, tmp_path):
        np.testing.assert_allclose(got["mean"], want, rtol=1e-4, atol=1e-5)
