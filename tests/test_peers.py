"""The table of docs/coming-from.md: our line for each peer against the peer's definition.

Each definition is written out over the same draws of noise, in NumPy.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax._perturb import perturbation

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


# What each library averages, by the name that its row of the table begins with.
PEERS = {
    "Captum": lambda key: np.abs(gradients(key, 1.0, 5)).mean(0),
    "PAIR": lambda key: (gradients(key, 0.15 * RANGE, 25) ** 2).mean(0),
    "Xplique": lambda key: gradients(key, 0.2, 50).mean(0).mean(-1),
    "zennit": lambda key: gradients(key, 0.1 * RANGE, 20).mean(0),
    "AdaptGrad's": lambda key: gradients(key, 0.2 * RANGE, 50).mean(0),
    "tf-keras-vis": lambda key: np.abs(gradients(key, 0.2 * RANGE, 7)).mean(0).max(-1),
    "OpenXAI": lambda key: gradients(key, 0.1, 100).mean(0),
}


def our_line(peer):
    """The explainer that the docs' line for a peer builds."""
    table = (pathlib.Path(__file__).parents[1] / "docs" / "coming-from.md").read_text()
    (code,) = re.findall(rf"^\| {peer}[^|]*\| `([^`]+)`", table, flags=re.MULTILINE)
    return eval(code, {"sj": sj, "jnp": jnp, "g": g, "lo": -1.0, "hi": 2.0, "n": 7})


@pytest.mark.parametrize("peer", slow_but(list(PEERS), "Captum", "PAIR", "tf-keras-vis"))
def test_the_our_line_is_their_definition(peer, key):
    got = our_line(peer)(key, PARAMS, X)
    np.testing.assert_allclose(got, PEERS[peer](key), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_our_line_for_fusiongrad_is_noisegrads(key):
    """Ten draws of the weights, ten of the input for each, 0.2 on weights and 0.4 on inputs."""
    ours = our_line("NoiseGrad's")(key, PARAMS, X)
    maps = []
    for i in range(10):
        noise_key, inner_key = jax.random.split(jax.random.fold_in(key, i))
        zeros = jax.tree.map(jnp.zeros_like, PARAMS)
        eta = perturbation(lambda w, eps: 1 + 0.2 * eps, 1.0)(zeros)(noise_key)
        noisy = jax.tree.map(jnp.multiply, PARAMS, eta)
        for eps in noise(inner_key, 10, 1, (PARAMS, X)):
            maps.append(g(noisy, X + 0.4 * eps))
    assert len(maps) == 100
    np.testing.assert_allclose(ours, np.mean(maps, axis=0), rtol=1e-4, atol=1e-5)
