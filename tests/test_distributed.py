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

import smoothjax as sj

PROGRAM = textwrap.dedent(
    """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address, process, out = sys.argv[1:]
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    import smoothjax as sj
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    assert jax.process_count() == 2 and jax.device_count() == 4
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
    place = lambda a: jax.make_array_from_callback(a.shape, everywhere, lambda index: a[index])
    params, x = np.linspace(-1, 1, 12, dtype="f4").reshape(4, 3), np.arange(4, dtype="f4")
    key = jax.jit(lambda: jax.random.key(7), out_shardings=everywhere)()
    estimate = run(key, place(params), place(x))
    mean, stderr = (a.addressable_data(0) for a in estimate[:2])
    np.savez(out, mean=mean, stderr=stderr)
    """
)


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PATH": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, program, address, str(process), tmp_path / f"{process}.npz"],
            cwd=pathlib.Path(__file__).parents[1],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]

    explain = sj.noisegrad(
        sj.smoothgrad(sj.saliency(lambda w, x: jnp.sum(jnp.tanh(x @ w))), 0.2, num_samples=3),
        0.3,
        num_samples=16,
        reduction=sj.reductions.mean_and_stderr(),
    )
    params = np.linspace(-1, 1, 12, dtype="f4").reshape(4, 3)
    want = explain(jax.random.key(7), params, np.arange(4, dtype="f4"))
    for process in (0, 1):
        got = np.load(tmp_path / f"{process}.npz")
        np.testing.assert_allclose(got["mean"], want.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["stderr"], want.stderr, rtol=1e-4, atol=1e-6)
