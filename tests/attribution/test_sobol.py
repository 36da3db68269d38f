"""Sobol indices against theory: Ishigami's function, linear scores, interactions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothjax.attribution import sobol
from smoothjax.attribution.sobol import _designs

SHAPE = (13, 9, 2)
W = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
# What hides: one value for each channel.
BASELINE = jnp.array([[[0.5, -1.0]]], jnp.float32)
PARTS = np.sum(np.asarray(W * (X - BASELINE), np.float64), axis=-1)


def linear(params, x):
    return jnp.sum(params * x)


def ishigami(params, x):
    return jnp.sin(x[0]) + 7 * jnp.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * jnp.sin(x[0])


def test_sobol_of_ishigami(key):
    """The analytic total-order indices: to 1e-3 of 32,768 rows, as a test of Xplique's asks."""
    first = 0.5 * (1 + 0.1 * np.pi**4 / 5) ** 2
    second = 7**2 / 8
    both = 0.1**2 * np.pi**8 * 8 / 225
    truth = np.array([first + both, second, both]) / (first + second + both)
    x = jnp.full(3, jnp.pi)

    def errors(num_designs, num_keys):
        explain = sobol(ishigami, -jnp.pi, num_designs=num_designs, axes=(0,), chunk_size=5000)
        keys = jax.random.split(key, num_keys)
        return np.asarray(jax.jit(jax.vmap(explain, (0, None, None)))(keys, None, x)) - truth

    assert np.abs(errors(32768, 3)).max() < 1e-3
    # Random rows are off by 0.05 here.
    few = errors(1024, 8)
    assert np.abs(few).max() < 0.01
    assert few.std(axis=0).min() > 0  # the key decides


def test_sobol_of_a_linear_score_is_the_share_of_each_cell(key):
    """13 rows make cells of 7 and 6, 9 columns of 3."""
    rows, columns = np.arange(13) * 2 // 13, np.arange(9) // 3
    power = np.array(
        [[PARTS[rows == i][:, columns == j].sum() ** 2 for j in range(3)] for i in range(2)]
    )
    expected = (power / power.sum())[rows][:, columns]
    explain = sobol(linear, BASELINE, num_designs=4000, grid=(2, 3), chunk_size=1000)
    got = jax.jit(explain)(key, W, X)
    assert got.shape == (13, 9, 1)
    np.testing.assert_allclose(got[..., 0], expected, atol=0.02)


def test_sobol_of_an_interaction_counts_it_for_both_and_ignored_cells_not_at_all(key):
    def product(params, x):
        return (x[0] - 0.5) * (x[1] - 0.5)

    explain = sobol(product, num_designs=4000, grid=None, axes=(0,), chunk_size=1000)
    got = jax.jit(explain)(key, None, jnp.ones(3))
    np.testing.assert_allclose(got[:2], [1.0, 1.0], atol=0.1)
    assert got[2] == 0


@pytest.mark.parametrize("num", [64, 50])
def test_designs_of_sobol_are_even_in_each_cell_and_shifted_by_the_key(num, key):
    keys = jax.random.split(key, 200)
    designs = np.asarray(jax.vmap(lambda key: _designs(key, num, 40))(keys))
    assert designs.shape == (200, 2, num, 40)
    assert designs.min() >= 0
    assert designs.max() < 1
    # In each of 64 intervals is at most one value: one, if there are as many values.
    intervals = np.sort(np.floor(designs * 64).astype(int), axis=2)
    assert np.diff(intervals, axis=2).min() == 1
    # Over the keys each place is uniform, and those of a cell in A and in B are independent.
    places = designs[:, :, 3, :]
    error = 1 / np.sqrt(places[:, 0].size)
    np.testing.assert_allclose(places.mean((0, 2)), 0.5, atol=4 * error / np.sqrt(12))
    np.testing.assert_allclose(places.std((0, 2)), 12**-0.5, atol=4 * error)
    assert abs(np.corrcoef(places[:, 0].ravel(), places[:, 1].ravel())[0, 1]) < 4 * error
    # In a quarter of the square that a cell has in A and in B is about a quarter of the points.
    upper = (designs[0] > 0.5).all(0).mean(0)
    assert np.abs(upper - 0.25).max() < 0.13


def test_sobol_of_more_cells_than_it_has_points_for_is_an_error(key):
    with pytest.raises(ValueError, match="10600 cells at most; x has 10601"):
        sobol(linear, axes=(0,))(key, 1.0, jnp.ones(10_601))


def test_sobol_of_a_constant_score_has_a_gradient():
    def total(weight):
        return jnp.sum(sobol(lambda w, x: w * jnp.sum(x), axes=(0,), grid=None, num_designs=4)(
            jax.random.key(0), weight, jnp.ones(3)
        ))  # fmt: skip

    assert jnp.isfinite(jax.grad(total)(0.0))
