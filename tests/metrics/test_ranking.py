"""Order and ranks against NumPy and SciPy, with ties, infinities, signed zeros and NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from smoothjax.metrics._ranking import order, ranks

RNG = np.random.default_rng(0)
DISTINCT = RNG.standard_normal((9, 7)).astype(np.float32)
TIED = RNG.integers(-3, 4, (9, 7)).astype(np.float32)
EXTREME = np.array([0.5, -np.inf, 3e38, np.inf, -0.0, 1e-30, 0.0, -np.inf, -1.0], np.float32)

jitted_order, jitted_ranks = jax.jit(order), jax.jit(ranks)


def test_order_is_descending():
    np.testing.assert_array_equal(jitted_order(DISTINCT), np.argsort(-DISTINCT.ravel()))
    np.testing.assert_array_equal(jitted_order(jnp.array([3, 1, 2, 7])), [3, 0, 2, 1])
    assert jitted_order(DISTINCT).dtype == jnp.int32


@pytest.mark.parametrize("values", [TIED, EXTREME], ids=["tied", "extreme"])
def test_order_of_ties_is_a_permutation_that_descends(values):
    got = np.asarray(jitted_order(values))
    np.testing.assert_array_equal(np.sort(got), np.arange(values.size))
    np.testing.assert_array_equal(values.ravel()[got], -np.sort(-values.ravel()))


def test_ties_fall_in_a_random_order_that_is_fixed():
    """Neither rows nor columns nor neighbours come first, and the value that is tied is no matter.

    The standard errors are those of sampling without replacement.
    """
    constant = np.asarray(jitted_order(jnp.full((50, 40), 2.0)))
    np.testing.assert_array_equal(constant, jitted_order(jnp.zeros(2000)))
    rows, columns = constant // 40, constant % 40
    error = np.sqrt(1 / 12 / 500 * 0.75)
    for first in (slice(500), slice(500, 1000), slice(1000, 1500)):
        assert abs(rows[first].mean() / 49 - 0.5) < 4 * error
        assert abs(columns[first].mean() / 39 - 0.5) < 4 * error
    steps = np.diff(constant)
    assert np.mean(np.abs(steps) == 1) < 0.01
    assert abs(np.corrcoef(constant[1:], constant[:-1])[0, 1]) < 4 / np.sqrt(2000)


def test_the_order_within_tied_entries_is_random_too():
    values = jnp.repeat(jnp.arange(2.0), 300)
    greatest = np.asarray(jitted_order(values))[:300]
    np.testing.assert_array_equal(np.sort(greatest), np.arange(300, 600))
    assert abs(np.corrcoef(greatest, np.arange(300))[0, 1]) < 4 / np.sqrt(300)


def test_zeros_of_both_signs_are_tied():
    zeros = jnp.zeros(64)
    mixed = jnp.where(jnp.arange(64) % 3 == 0, -zeros, zeros)
    assert np.signbit(mixed).any()
    np.testing.assert_array_equal(jitted_order(mixed), jitted_order(zeros))
    np.testing.assert_array_equal(jitted_ranks(mixed), np.full(64, 32.5))


def test_nan_counts_as_the_greatest():
    values = jnp.array([1.0, jnp.nan, jnp.inf, 3.0, jnp.nan])
    got = np.asarray(jitted_order(values))
    assert set(got[:2]) == {1, 4}
    np.testing.assert_array_equal(got[2:], [2, 3, 0])
    np.testing.assert_array_equal(jitted_ranks(values), [1.0, 4.5, 3.0, 2.0, 4.5])


@pytest.mark.parametrize("values", [DISTINCT, TIED, EXTREME], ids=["distinct", "tied", "extreme"])
def test_ranks_are_those_of_scipy(values):
    np.testing.assert_array_equal(jitted_ranks(values), stats.rankdata(values.ravel()))


def test_ranks_of_integers_and_of_a_constant():
    np.testing.assert_array_equal(jitted_ranks(jnp.array([5, -2, 5, 9])), [2.5, 1.0, 2.5, 4.0])
    np.testing.assert_array_equal(jitted_ranks(jnp.full((3, 2), 7.0)), np.full(6, 3.5))


def test_half_precision_and_double_precision():
    half = jnp.asarray(TIED, jnp.bfloat16)
    np.testing.assert_array_equal(jitted_ranks(half), stats.rankdata(TIED))
    np.testing.assert_array_equal(jitted_order(half), jitted_order(jnp.asarray(TIED)))
    with jax.enable_x64(True):
        double = jnp.asarray(1 + 1e-12 * DISTINCT.astype(float))
        np.testing.assert_array_equal(jitted_ranks(double), stats.rankdata(DISTINCT))
        np.testing.assert_array_equal(jitted_order(double), np.argsort(-DISTINCT.ravel()))


def test_vmap_is_a_loop():
    batch = jnp.stack([jnp.asarray(TIED), jnp.asarray(DISTINCT), jnp.asarray(TIED[::-1])])
    for function in (jitted_order, jitted_ranks):
        alone = jnp.stack([function(values) for values in batch])
        np.testing.assert_array_equal(jax.jit(jax.vmap(function))(batch), alone)
