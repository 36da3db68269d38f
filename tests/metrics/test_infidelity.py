"""Infidelity against its expectation for linear and quadratic scores."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from faithfulness import ATTRIBUTION, KEY, SHAPE, W, X, draw, linear, smooth
from scipy import stats

import smoothjax as sj
from smoothjax.metrics import (
    gaussian_perturbation,
    infidelity,
)


def test_the_gradient_of_a_linear_score_has_no_infidelity():
    judge = jax.jit(infidelity(linear, num_samples=20))
    assert judge(KEY, W, X, W) < 1e-9
    assert judge(KEY, W, X, 2 * W) > 1


def test_infidelity_of_a_quadratic_score_is_its_expectation():
    """Of x'Ax/2 + b'x, whose smoothed gradient is Ax + b: (2 |A|^2 + tr(A)^2) sigma^4 / 4.

    An attribution that is off by d adds sigma^2 |d|^2: the odd moments of a Gaussian are 0.
    """
    rng = np.random.default_rng(1)
    a = rng.normal(size=(4, 4))
    a, b, x, d = (a + a.T).astype(np.float32), draw(4), draw(4), np.float32([0.5, 0, -1, 0])

    def quadratic(params, x):
        return x @ a @ x / 2 + b @ x

    sigma, draws = 0.5, 40_000
    least = (2 * np.sum(a**2) + np.trace(a) ** 2) * sigma**4 / 4
    perturbation = gaussian_perturbation(sigma)
    settings = {"num_samples": draws, "chunk_size": draws, "perturbation": perturbation}
    judge = jax.jit(infidelity(quadratic, **settings))
    noise = np.random.default_rng(2).normal(scale=sigma, size=(draws, 4))
    for off in (0 * d, d):
        errors = noise @ off + np.einsum("ni,ij,nj->n", noise, a, noise) / 2
        stderr = np.std(errors**2) / np.sqrt(draws)
        expected = least + sigma**2 * np.sum(off**2)
        assert stderr < 0.03 * expected
        assert abs(float(judge(KEY, None, x, a @ x + b + off)) - expected) < 4 * stderr


def test_infidelity_of_one_change_is_the_error_of_completeness():
    """The change to a baseline of zero is x itself, drawn or not."""
    attribution = 0.1 * W * ATTRIBUTION
    error = np.sum(X * attribution) - (smooth(W, X) - smooth(W, 0 * X))
    judge = infidelity(smooth, num_samples=3, perturbation=lambda key, x: x)
    np.testing.assert_allclose(judge(KEY, W, X, attribution), error**2, rtol=1e-4)
    pooled = infidelity(smooth, num_samples=3, perturbation=lambda key, x: x)
    error = np.sum(X * W[..., :1]) - (smooth(W, X) - smooth(W, 0 * X))
    np.testing.assert_allclose(pooled(KEY, W, X, W[..., 0]), error**2, rtol=1e-4)


def test_infidelity_draws_each_change_with_a_key_of_its_own():
    def change(key, x):
        return jnp.full(x.shape, jax.random.normal(key))

    judge = jax.jit(infidelity(lambda params, x: 0.0, num_samples=2000, perturbation=change))
    got = judge(KEY, None, jnp.zeros(1), jnp.ones(1))
    assert abs(got - 1) < 4 * np.sqrt(2 / 2000)


def test_infidelity_counts_a_change_as_it_is_rounded():
    """In bfloat16 x moves by steps of 1 / 128, and the linear score follows them exactly."""
    x, w = jnp.linspace(1, 1.9, 8, dtype=jnp.bfloat16), jnp.linspace(-1, 1, 8, dtype=jnp.float32)

    def score(params, x):
        return jnp.sum(params * x.astype(jnp.float32))

    judge = infidelity(score, num_samples=20, perturbation=gaussian_perturbation(0.01))
    assert judge(KEY, w, x, w) < 1e-9


def test_gaussian_perturbation_is_noise_of_the_level_it_is_given():
    x = jnp.linspace(-1.0, 3.0, 10_000).reshape(100, 100)
    for sigma, level in [(0.5, 0.5), (sj.relative(0.2), 0.8), (jnp.full((1, 100), 2.0), 2.0)]:
        drawn = np.asarray(gaussian_perturbation(sigma)(KEY, x)) / level
        assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.01
    default = np.asarray(gaussian_perturbation()(KEY, x))
    np.testing.assert_allclose(default, drawn * 0.15 * 4, rtol=1e-5)
    assert gaussian_perturbation(0.1)(KEY, x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_infidelity_by_default_says_nothing_of_a_constant_x():
    judge = jax.jit(infidelity(linear, num_samples=3))
    ones = jnp.ones(SHAPE, jnp.float32)
    assert np.isnan(judge(KEY, W, ones, W))
    assert not np.isnan(judge(KEY, W, ones.at[0, 0, 0].set(0), W))
    half = gaussian_perturbation(jnp.array([[[1.0, 0.0]]]))(KEY, jnp.asarray(X))
    assert np.all(half[..., 1] == 0)
    assert not np.any(np.isnan(half))


def test_changes_that_the_dtype_of_x_cannot_hold_judge_nothing():
    x = jnp.full(SHAPE, 200, jnp.bfloat16)  # whose neighbours are 199 and 201

    def score(params, x):
        return jnp.sum(params * x.astype(jnp.float32))

    for sigma, known in ((0.1, False), (3.0, True)):
        judge = infidelity(score, num_samples=2, perturbation=gaussian_perturbation(sigma))
        assert np.isfinite(judge(KEY, W, x, W)) == known
