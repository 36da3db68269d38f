"""Gini index and entropy against closed forms, a slow double sum, SciPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from smoothjax.metrics.complexity import entropy, gini

MAP = np.random.default_rng(0).standard_normal((6, 5, 3)).astype(np.float32)
METRICS = {"gini": jax.jit(gini), "entropy": jax.jit(entropy)}
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def double_sum(attribution):
    """Half the mean absolute difference between two entries, over the mean entry."""
    a = np.abs(np.ravel(attribution)).astype(float)
    return np.mean([[abs(p - q) for p in a] for q in a]) / (2 * a.mean())


def test_gini_is_the_mean_difference():
    for attribution in (
        MAP,
        MAP**3,
        np.round(MAP),
        np.linspace(-1, 2, MAP.size).reshape(MAP.shape),
    ):
        got = METRICS["gini"](attribution.astype(np.float32))
        np.testing.assert_allclose(got, double_sum(attribution), rtol=1e-5)


def test_entropy_is_that_of_scipy():
    for attribution in (
        MAP,
        MAP**3,
        np.round(MAP),
        np.linspace(-1, 2, MAP.size).reshape(MAP.shape),
    ):
        got = METRICS["entropy"](attribution.astype(np.float32))
        np.testing.assert_allclose(got, stats.entropy(np.abs(attribution).ravel()), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_equal_weight_on_some_of_n_entries(n):
    """Of weight on k of n entries the Gini index is 1 - k / n, the entropy log k."""
    for k in {1, (n + 1) // 2, n}:
        some = np.where(np.arange(n) < k, -2.5, 0.0).astype(np.float32)
        np.testing.assert_allclose(METRICS["gini"](some), 1 - k / n, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(METRICS["entropy"](some), np.log(k), rtol=1e-6, atol=1e-6)


def test_by_hand():
    np.testing.assert_allclose(METRICS["gini"](jnp.array([3.0, -1.0])), 0.25, rtol=1e-6)
    expected = 0.75 * np.log(4 / 3) + 0.25 * np.log(4)
    np.testing.assert_allclose(METRICS["entropy"](jnp.array([3.0, -1.0])), expected, rtol=1e-6)


def test_a_constant_map_says_nothing_and_a_zero_map_neither():
    for value in (0.0, 0.1, -7.0, 3e38, 1e-36):
        constant = jnp.full((41, 17), value)
        assert METRICS["gini"](constant) == 0
        np.testing.assert_allclose(METRICS["entropy"](constant), np.log(41 * 17), rtol=1e-6)


@each_metric
def test_neither_scale_nor_sign_nor_order_counts(metric):
    plain = metric(jnp.asarray(MAP))
    signs = jnp.where(jnp.asarray(MAP) > 0.3, -1.0, 1.0)
    for other in (1e-34 * MAP, 1e37 * MAP, -3 * MAP, signs * MAP, MAP[::-1, ::-1]):
        np.testing.assert_allclose(metric(jnp.asarray(other)), plain, rtol=1e-6)


@pytest.mark.parametrize("power", [0.001, 1, 6])
def test_float32_is_exact_enough_for_a_photo(power):
    """From almost equal entries to very unequal ones, 224 x 224 x 3 of them."""
    a = (np.abs(np.random.default_rng(1).standard_normal((224, 224, 3))) ** power).astype(
        np.float32
    )
    wide = np.sort(a.ravel().astype(float))
    n = wide.size
    expected = np.sum((2 * np.arange(1, n + 1) - n - 1) * wide) / (n * wide.sum())
    np.testing.assert_allclose(METRICS["gini"](a), expected, rtol=2e-6)
    np.testing.assert_allclose(METRICS["entropy"](a), stats.entropy(wide), rtol=1e-6)


@each_metric
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_give_nan(metric, value):
    broken = MAP.copy()
    broken[2, 3, 1] = value
    assert np.isnan(metric(broken))


@each_metric
def test_precisions_and_integers(metric):
    half = jnp.asarray(MAP, jnp.bfloat16)
    assert metric(half).dtype == jnp.float32
    np.testing.assert_array_equal(metric(half), metric(half.astype(jnp.float32)))
    whole = jnp.array([[3, -1], [0, 9]])
    np.testing.assert_array_equal(metric(whole), metric(whole.astype(jnp.float32)))
    with jax.enable_x64(True):
        double = metric(jnp.asarray(MAP, jnp.float64))
        assert double.dtype == jnp.float64
        expected = {"gini": double_sum, "entropy": lambda a: stats.entropy(np.abs(a).ravel())}
        name = "gini" if metric is METRICS["gini"] else "entropy"
        np.testing.assert_allclose(double, expected[name](MAP.astype(float)), rtol=1e-12)


@each_metric
def test_vmap_is_a_loop(metric):
    batch = jnp.stack([jnp.asarray(MAP), jnp.zeros_like(MAP), jnp.asarray(MAP) ** 3])
    expected = [metric(attribution) for attribution in batch]
    np.testing.assert_allclose(jax.vmap(metric)(batch), expected, rtol=1e-6)


@each_metric
def test_what_is_no_array_is_an_error(metric):
    with pytest.raises(TypeError, match="bool"):
        metric(MAP > 0)
    with pytest.raises(TypeError, match=r"jnp.asarray\(values\) of a list"):
        metric([1.0, 2.0])
