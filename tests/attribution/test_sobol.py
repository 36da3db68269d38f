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
    """The analytic total-order indices, and the error falls with the number of designs."""
    first = 0.5 * (1 + 0.1 * np.pi**4 / 5) ** 2
    second = 7**2 / 8
    both = 0.1**2 * np.pi**8 * 8 / 225
    truth = np.array([first + both, second, both]) / (first + second + both)
    x = jnp.full(3, jnp.pi)

    def errors(num_designs):
        explain = sobol(
            ishigami, -jnp.pi, num_designs=num_designs, grid=None, axes=(0,), chunk_size=5000
        )
        keys = jax.random.split(key, 8)
        return np.asarray(jax.jit(jax.vmap(explain, (0, None, None)))(keys, None, x)) - truth

    few, many = errors(128), errors(4096)
    assert np.sqrt(np.mean(few**2)) < 0.1
    assert np.sqrt(np.mean(many**2)) < 0.02
    np.testing.assert_array_less(np.abs(many.mean(0)), 0.01)


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


def test_sobol_of_one_cell_is_nearer_than_latin_hypercubes_come(key):
    """Independent orders in A and B would be off by 0.1, and a lattice is by 0.01."""
    options = {"num_designs": 100, "grid": None, "axes": (0,), "chunk_size": 400}
    explain = sobol(lambda params, x: jnp.sin(7 * x[0]), **options)
    keys = jax.random.split(key, 30)
    got = np.asarray(jax.jit(jax.vmap(explain, (0, None, None)))(keys, None, jnp.ones(2)))
    assert np.sqrt(np.mean((got[:, 0] - 1) ** 2)) < 0.02
    np.testing.assert_array_equal(got[:, 1], np.zeros(30))


@pytest.mark.parametrize(("num", "side"), [(50, 8), (32, 7), (7, 3)])
def test_designs_of_sobol_are_a_lattice_for_each_cell(num, side, key):
    designs = np.asarray(_designs(key, num, 40))
    assert designs.shape == (2, num, 40)
    intervals = np.floor(designs * num).astype(int)
    # Each interval has one value, in A and in B.
    everywhere = np.broadcast_to(np.arange(num)[:, None], (2, num, 40))
    np.testing.assert_array_equal(np.sort(intervals, axis=1), everywhere)
    # In every square of a little more than sqrt(num) x sqrt(num) intervals is a point of A and B.
    for cell in range(40):
        taken = np.zeros((num, num))
        taken[intervals[0, :, cell], intervals[1, :, cell]] = 1
        ahead = np.pad(taken, (0, side - 1), mode="wrap")
        squares = np.lib.stride_tricks.sliding_window_view(ahead, (side, side)).sum((2, 3))
        assert squares.min() == 1
        assert squares.max() == 2
    # It is shifted by another number for each cell: of 40, so many are expected to differ.
    partners = intervals[1][intervals[0] == 0]
    assert np.unique(partners).size > num * (1 - np.exp(-40 / num)) - np.sqrt(num)
    # Inside its interval a value is uniform, and does not know which interval that is.
    places = designs * num % 1
    error = 1 / np.sqrt(places.size)
    np.testing.assert_allclose(places.mean(), 0.5, atol=5 * error / np.sqrt(12))
    np.testing.assert_allclose(places.std(), 12**-0.5, atol=5 * error)
    assert np.abs(np.corrcoef(places.ravel(), intervals.ravel())[0, 1]) < 5 * error
    assert places.std(axis=1).min() > 0.05
    # The cells have orders of their own.
    correlation = np.corrcoef(np.concatenate(designs, axis=1).T)
    between = correlation[:40, :40] - np.eye(40), correlation[:40, 40:] * (1 - np.eye(40))
    assert np.abs(between).max() < 5.5 / np.sqrt(num)
    assert np.abs(np.mean(between)) < 5 * error


def test_sobol_of_a_constant_score_has_a_gradient():
    def total(weight):
        return jnp.sum(sobol(lambda w, x: w * jnp.sum(x), axes=(0,), grid=None, num_designs=4)(
            jax.random.key(0), weight, jnp.ones(3)
        ))  # fmt: skip

    assert jnp.isfinite(jax.grad(total)(0.0))
