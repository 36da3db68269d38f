"""The README's table for those who come from another library: our line against their definition.

Each definition is written out over the same draws of noise, in NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj

X = jnp.linspace(-1.0, 2.0, 24).reshape(2, 4, 3)
PARAMS = {"w": jnp.linspace(0.5, -1.5, 24).reshape(2, 4, 3), "b": jnp.array(0.3)}
RANGE = 3.0


def score(params, x):
    return jnp.sum(jnp.sin(params["w"] * x) + params["b"] * x**2)


g = sj.saliency(score)


def noise(key, num_samples, argnum, args):
    """The standard normal draws behind a transform, from the identity explainer."""
    draws = sj.smoothgrad(
        lambda *args: args[argnum],
        1.0,
        argnum=argnum,
        num_samples=num_samples,
        reduction=sj.reductions.stack(),
    )(key, *args)
    return jax.tree.map(lambda drawn, clean: drawn - clean[None], draws, args[argnum])


def gradients(key, sigma, num_samples):
    eps = noise(key, num_samples, 1, (PARAMS, X))
    return np.stack([g(PARAMS, X + sigma * e) for e in eps])


# Each row: our line, as the README prints it, and the definition.
PEERS = {
    "Captum": (
        lambda: sj.smoothgrad(lambda *a: jnp.abs(g(*a)), 1.0, num_samples=5),
        lambda key: np.abs(gradients(key, 1.0, 5)).mean(0),
    ),
    "PAIR": (
        lambda: sj.squaregrad(g, sj.relative(0.15), num_samples=25),
        lambda key: (gradients(key, 0.15 * RANGE, 25) ** 2).mean(0),
    ),
    "Xplique": (
        lambda: sj.pool(sj.smoothgrad(g, 0.2, num_samples=50), jnp.mean),
        lambda key: gradients(key, 0.2, 50).mean(0).mean(-1),
    ),
    "zennit": (
        lambda: sj.smoothgrad(g, sj.relative(0.1), num_samples=20),
        lambda key: gradients(key, 0.1 * RANGE, 20).mean(0),
    ),
    "AdaptGrad": (
        lambda: sj.smoothgrad(g, 0.2 * (2.0 - -1.0), num_samples=50),
        lambda key: gradients(key, 0.2 * RANGE, 50).mean(0),
    ),
    "tf-keras-vis": (
        lambda: sj.pool(
            sj.smoothgrad(lambda *a: jnp.abs(g(*a)), sj.relative(0.2), num_samples=7), jnp.max
        ),
        lambda key: np.abs(gradients(key, 0.2 * RANGE, 7)).mean(0).max(-1),
    ),
    "OpenXAI": (
        lambda: sj.smoothgrad(g, 0.1, num_samples=100),
        lambda key: gradients(key, 0.1, 100).mean(0),
    ),
}


@pytest.mark.parametrize(("ours", "theirs"), PEERS.values(), ids=PEERS)
def test_our_line_is_their_definition(ours, theirs, key):
    np.testing.assert_allclose(ours()(key, PARAMS, X), theirs(key), rtol=1e-4, atol=1e-5)


def test_our_line_for_fusiongrad_is_noisegrads(key):
    """Ten draws of the weights, ten of the input for each, 0.2 on weights and 0.4 on inputs."""
    ours = sj.fusiongrad(g, 0.2, 0.4, num_weight_draws=10, num_input_draws=10)(key, PARAMS, X)
    maps = []
    for i in range(10):
        noise_key, inner_key = jax.random.split(jax.random.fold_in(key, i))
        sigmas = sj.noise.levels("test", PARAMS, 1.0, None)
        zeros = jax.tree.map(jnp.zeros_like, PARAMS)
        eta = sj.noise.perturb(
            noise_key, zeros, sigmas, jax.random.normal, lambda w, eps: 1 + 0.2 * eps
        )
        noisy = jax.tree.map(jnp.multiply, PARAMS, eta)
        for eps in noise(inner_key, 10, 1, (PARAMS, X)):
            maps.append(g(noisy, X + 0.4 * eps))
    assert len(maps) == 100
    np.testing.assert_allclose(ours, np.mean(maps, axis=0), rtol=1e-4, atol=1e-5)
