"""HSIC against its definition, and where its value is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax.attribution import hsic
from smoothjax.attribution.hsic import _hsic


def linear(params, x):
    return jnp.sum(params * x)


def test_hsic_is_its_definition():
    """Over all different masks a, b, c, d: E[k l] + E[k] E[l] - 2 E_a[E_b[k] E_c[l]]."""
    rng = np.random.default_rng(0)
    num = 7
    visible = rng.integers(0, 2, (num, 2)).astype(bool)
    scores = rng.normal(size=num) + visible[:, 0]
    distances = np.abs(scores[:, None] - scores)
    output = np.exp(-((distances / np.median(distances[distances > 0])) ** 2) / 2)
    for cell in range(2):
        inputs = (visible[:, cell][:, None] == visible[:, cell]).astype(float)
        terms = [
            inputs[a, b] * (output[a, b] + output[c, d] - 2 * output[a, c])
            for a, b, c, d in itertools.permutations(range(num), 4)
        ]
        got = _hsic(jnp.asarray(visible), jnp.asarray(scores, jnp.float32))[cell]
        np.testing.assert_allclose(got, np.mean(terms), rtol=1e-4, atol=1e-6)


def test_hsic_of_a_score_of_one_cell(key):
    """The scores 0 and 1 are 1 apart, so the width is 1 and HSIC (1 - exp(-1/2)) / 4."""
    explain = hsic(lambda w, x: x[1], num_samples=2000, grid=None, axes=(0,), chunk_size=500)
    got = np.asarray(jax.jit(explain)(key, None, jnp.ones(3)))
    np.testing.assert_allclose(got[1], (1 - np.exp(-0.5)) / 4, rtol=0.01)
    # Given the scores, the two others are sums of random signs: their variance is known.
    half = (1 - np.exp(-0.5)) / 2
    error = np.sqrt(2 * 2000**2 * half**2) / (2 * 2000 * 1997)
    np.testing.assert_array_less(np.abs(got[[0, 2]]), 5 * error)


def test_hsic_is_zero_on_average_for_an_ignored_cell(key):
    """Already for few masks, where the biased estimator would be 0.01 to 0.02 too high."""
    explain = hsic(lambda w, x: x @ w, num_samples=20, grid=None, axes=(0,), chunk_size=20)
    keys = jax.random.split(key, 2000)
    w = jnp.array([1.0, 0.3, 0.0])
    drawn = jax.jit(jax.vmap(explain, (0, None, None)))(keys, w, jnp.ones(3))[:, 2]
    assert np.abs(drawn.mean()) < 5 * drawn.std() / np.sqrt(2000)
    assert drawn.std() / np.sqrt(2000) < 5e-4


def test_hsic_does_not_depend_on_scale_and_offset_of_the_score(key):
    x, w = jnp.ones(5), jnp.arange(5.0)
    options = {"num_samples": 20, "grid": None, "axes": (0,)}
    plain = jax.jit(hsic(linear, **options))(key, w, x)
    moved = jax.jit(hsic(lambda w, x: 100 - 8 * linear(w, x), **options))(key, w, x)
    np.testing.assert_allclose(plain, moved, rtol=1e-3, atol=1e-5)
    assert plain.max() > 0.01
