"""What single features do to a score: linear scores, whose effects are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import smoothjax as sj
from smoothjax.metrics import monotonicity_correlation, non_sensitivity
from smoothjax.metrics.effects import _uniform, _with_effects

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
W, X, MAP = RNG.normal(size=(3, 6, 4, 2)).astype(np.float32)


def linear(params, x):
    return jnp.sum(params * x)


def plus_one(key, x):
    del key
    return x + 1


def effects(score, params, x, attribution, **settings):
    options = {"grid": None, "num_samples": 1, "replacement": plus_one, "axes": (0, 1)}
    judged = _with_effects(score, **{**options, **settings}, argnum=1, chunk_size=1)
    return jax.jit(lambda key, *args: judged(key, args, {}))(KEY, params, x, attribution)


def test_the_effect_of_a_step_is_the_magnitude_of_the_weight():
    magnitudes, found = effects(linear, W, X, MAP)
    np.testing.assert_array_equal(magnitudes, np.abs(MAP).ravel())
    np.testing.assert_allclose(found, np.abs(W).ravel(), atol=1e-5)


@pytest.mark.parametrize("of", [np.s_[..., 0], np.s_[..., :1], np.s_[...]])
def test_cells_step_as_a_whole(of):
    magnitudes, found = effects(linear, W, X, MAP[of], grid=(3, 2))
    shape = (3, 2, 2, 2)
    want = np.abs(MAP[of]).reshape(*shape, -1).sum((1, 3, 4)).ravel()
    np.testing.assert_allclose(magnitudes, want, rtol=1e-5)
    want = np.abs(W.reshape(*shape, 2).sum((1, 3, 4))).ravel()
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_effects_are_root_mean_squares_over_independent_draws():
    def moved(key, x):
        return x + jnp.sqrt(3.0) * jax.random.uniform(key, x.shape, minval=-1, maxval=1)

    w, x, attribution = W[:, 0, 0], X[:, 0, 0], MAP[:, 0, 0]
    settings = {"num_samples": 500, "replacement": moved, "axes": (0,)}
    _, found = effects(linear, w, x, attribution, **settings)
    # Squares of a uniform number of variance 1 have a variance of 4 / 5.
    tolerance = 4.5 * np.sqrt(0.8 / 500) / 2
    np.testing.assert_allclose(found / np.abs(w), np.ones(6), atol=tolerance)
    assert np.std(found / np.abs(w)) > tolerance / 20


def test_by_default_features_take_values_in_the_range_of_x():
    drawn = np.asarray(_uniform(KEY, jnp.linspace(-1.0, 3.0, 5000)))
    assert -1 <= drawn.min() < -0.98
    assert 2.98 < drawn.max() <= 3
    assert abs(drawn.mean() - 1) < 4.5 * 4 / np.sqrt(12 * 5000)


def test_monotonicity_correlation_is_that_of_ranks_of_magnitudes():
    settings = {"grid": None, "replacement": plus_one, "num_samples": 2}
    metric = jax.jit(monotonicity_correlation(linear, **settings))
    want = stats.spearmanr(np.abs(MAP).ravel(), np.abs(W).ravel()).statistic
    assert 0.01 < abs(want) < 0.9
    np.testing.assert_allclose(metric(KEY, W, X, MAP), want, atol=1e-5)
    np.testing.assert_allclose(metric(KEY, W, X, -(np.abs(W) ** 3)), 1, atol=1e-5)
    np.testing.assert_allclose(metric(KEY, W, X, 1 / (1 + np.abs(W))), -1, atol=1e-5)
    assert metric(KEY, W, X, np.ones_like(W)) == 0
    assert np.isnan(metric(KEY, W, X, MAP * np.nan))


def test_non_sensitivity_counts_both_kinds_of_mistakes():
    """Of five features the score sees 0, 1 and 2, and the attribution names 0, 3 and 4."""
    w = np.float32([1, -2, 1e-3, 0, 0])
    attribution = np.float32([-1, 0, 1e-7, 1, 0.5])
    x = np.float32([1, 2, 3, 4, 5])

    def count(attribution, score=linear, **settings):
        metric = non_sensitivity(score, axes=(0,), **settings)
        return float(jax.jit(metric)(KEY, w, x, attribution))

    assert count(attribution) == 4
    assert count(-1e-20 * attribution) == 4
    assert count(attribution, tolerance=1e-8) == 3
    assert count(attribution, tolerance=0.1) == 3  # where feature 2 counts for neither
    assert count(w) == count(1 / w.clip(1e-3, None) * (w != 0)) == 0
    assert count(np.zeros(5, np.float32)) == 3
    assert count(attribution, lambda w, x: 0.0) == 3
    assert count(np.zeros(5, np.float32), lambda w, x: 0.0) == 0
    assert np.isnan(count(attribution, lambda w, x: jnp.nan * linear(w, x)))
    assert np.isnan(count(attribution * np.nan))


@pytest.mark.parametrize("make", [monotonicity_correlation, non_sensitivity])
@pytest.mark.slow
def test_chunks_and_vmap_and_precision_change_nothing(make):
    xs, maps = jnp.stack([X, X[::-1], 2 * X]), jnp.stack([MAP, W, MAP * (MAP > 0)])
    settings = {"grid": (3, 2), "num_samples": 3}
    mapped = jax.vmap(make(linear, chunk_size=4, **settings), (None, None, 0, 0))
    one = jax.jit(make(linear, **settings))
    want = [one(KEY, W, x, a) for x, a in zip(xs, maps, strict=True)]
    np.testing.assert_allclose(jax.jit(mapped)(KEY, W, xs, maps), want, atol=1e-5)
    half = make(lambda w, x: linear(w, x.astype(w.dtype)), **settings)
    assert half(KEY, W, jnp.asarray(X, jnp.bfloat16), MAP).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = W.astype(float), X.astype(float), MAP
        assert jax.eval_shape(make(linear, **settings), KEY, *wide).dtype == jnp.float64


def test_the_score_has_one_key_that_is_not_that_of_the_draws():
    """A factor of all scores changes no rank, and a shift no change."""

    @sj.stochastic
    def drawn(key, params, x):
        factor, shift = jax.random.uniform(key, (2,))
        return (1 + factor) * linear(params, x) + 100 * shift

    settings = {"grid": (3, 2), "num_samples": 3}
    got = jax.jit(monotonicity_correlation(drawn, **settings))(KEY, W, X, MAP)
    want = jax.jit(monotonicity_correlation(linear, **settings))(KEY, W, X, MAP)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_draws_depend_on_the_key():
    metric = jax.jit(monotonicity_correlation(linear, grid=None, num_samples=2))
    values = {float(metric(key, W, X**3, MAP)) for key in jax.random.split(KEY, 4)}
    assert len(values) > 1
