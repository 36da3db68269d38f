"""Every transform, jitted, lowers for cpu, cuda and tpu, and survives serialisation."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax import reductions

X = jnp.linspace(-1.0, 1.0, 48).reshape(4, 4, 3)
PARAMS = {"kernel": jnp.linspace(-0.5, 1.0, 48).reshape(4, 4, 3)}
EXPLAIN = sj.saliency(lambda params, x: jnp.sum(jnp.tanh(params["kernel"] * x)))

TRANSFORMS = {
    "smoothgrad": sj.smoothgrad,
    "noisegrad": sj.noisegrad,
    "fusiongrad": sj.fusiongrad,
    "adaptgrad": functools.partial(sj.adaptgrad, bounds=(-2.0, 2.0)),
    "vargrad": sj.vargrad,
    "squaregrad": sj.squaregrad,
    "tolerance": functools.partial(sj.smoothgrad, tolerance=0.1),
    "mean and stderr": functools.partial(sj.smoothgrad, reduction=reductions.mean_and_stderr()),
    "expected gradients": lambda _: sj.expected_gradients(
        lambda params, x: jnp.sum(params["kernel"] * x), jnp.stack([X, -X])
    ),
    "integrated gradients": lambda _: sj.smoothgrad(
        sj.integrated_gradients(lambda params, x: jnp.sum(params["kernel"] * x))
    ),
    "pool": lambda explain: sj.pool(sj.smoothgrad(explain), jnp.sum),
    "lowpass": lambda explain: sj.lowpass(sj.smoothgrad(explain), 1.0),
    "forgrad": lambda explain: sj.forgrad(sj.smoothgrad(explain), 1.0),
    "signal and noise": functools.partial(sj.smoothgrad, reduction=sj.spectral.signal_and_noise()),
    "wiener": functools.partial(sj.smoothgrad, reduction=sj.spectral.wiener((0,), channel_axis=-1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_export(transform, key):
    explain = jax.jit(transform(EXPLAIN))
    # Raw key data at the border: a typed key is no argument that StableHLO can name.
    run = jax.jit(lambda data, params, x: explain(jax.random.wrap_key_data(data), params, x))
    data = jax.random.key_data(key)
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(data, PARAMS, X)
    loaded = jax.export.deserialize(exported.serialize())
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        loaded.call(data, PARAMS, X),
        explain(key, PARAMS, X),
    )
