"""Closed forms: what the average over noise must be where it can be worked out by hand.

Tolerances are five standard errors of the estimate itself, with a fixed key.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import smoothjax as sj
from smoothjax import reductions
from smoothjax.reductions import mean_and_stderr

A = jnp.array([[2.0, 0.5, -1.0], [0.5, 1.0, 0.3], [-1.0, 0.3, -3.0]])
B = jnp.array([1.0, -2.0, 0.5])
X = jnp.array([0.3, -0.7, 1.1])


def quadratic(params, x):
    a, b = params
    return x @ a @ x / 2 + b @ x


def within(estimate, truth, errors=5.0):
    deviation = np.abs(np.asarray(estimate.mean) - np.asarray(truth))
    assert np.all(np.asarray(estimate.stderr) > 0)
    np.testing.assert_array_less(deviation, errors * np.asarray(estimate.stderr))


def test_smoothgrad_of_a_quadratic_is_its_gradient(key):
    smooth = sj.smoothgrad(
        sj.saliency(quadratic), 0.5, num_samples=4000, reduction=mean_and_stderr(), chunk_size=500
    )
    within(jax.jit(smooth)(key, (A, B), X), A @ X + B)


def test_stderr_of_a_quadratic(key):
    smooth = sj.smoothgrad(
        sj.saliency(quadratic), 0.5, num_samples=4000, reduction=mean_and_stderr(), chunk_size=500
    )
    estimate = jax.jit(smooth)(key, (A, B), X)
    truth = 0.5 * jnp.sqrt(jnp.diag(A @ A.T) / 4000)
    np.testing.assert_allclose(estimate.stderr, truth, rtol=5 / np.sqrt(2 * 4000))
    assert estimate.num_samples == 4000


def test_vargrad_of_a_quadratic_is_the_squared_rows_of_its_hessian(key):
    sigma, n = 0.5, 4000
    smooth = sj.vargrad(sj.saliency(quadratic), sigma, num_samples=n, chunk_size=500)
    truth = sigma**2 * jnp.diag(A @ A.T)
    # the variance of Gaussian draws has the relative standard error sqrt(2 / (n - 1))
    np.testing.assert_allclose(smooth(key, (A, B), X), truth, rtol=5 * np.sqrt(2 / (n - 1)))


def test_squaregrad_of_a_quadratic_is_variance_plus_squared_mean(key):
    sigma, n = 0.5, 4000
    smooth = sj.squaregrad(sj.saliency(quadratic), sigma, num_samples=n, chunk_size=500)
    mean, variance = A @ X + B, sigma**2 * jnp.diag(A @ A.T)
    stderr = np.sqrt((2 * variance**2 + 4 * variance * mean**2) / n)
    deviation = np.abs(smooth(key, (A, B), X) - (variance + mean**2))
    np.testing.assert_array_less(deviation, 5 * stderr)


def test_smoothgrad_of_a_relu_is_the_normal_distribution_function(key):
    sigma, x = 0.7, jnp.array([-1.0, -0.2, 0.1, 0.9])
    smooth = sj.smoothgrad(
        sj.saliency(lambda x: jnp.sum(jax.nn.relu(x)), argnum=0),
        sigma,
        num_samples=4000,
        argnum=0,
        reduction=mean_and_stderr(),
        chunk_size=500,
    )
    within(smooth(key, x), stats.norm.cdf(x / sigma))


def test_smoothgrad_of_sine_is_a_damped_cosine(key):
    sigma, x = 0.8, jnp.array([-1.0, 0.1, 0.9])
    smooth = sj.smoothgrad(
        sj.saliency(lambda x: jnp.sum(jnp.sin(x)), argnum=0),
        sigma,
        num_samples=4000,
        argnum=0,
        reduction=mean_and_stderr(),
        chunk_size=500,
    )
    within(smooth(key, x), jnp.cos(x) * jnp.exp(-(sigma**2) / 2))


def test_noisegrad_of_a_linear_model_has_the_weights_as_mean_and_their_squares_as_variance(key):
    w, sigma, n = jnp.array([1.0, -2.0, 0.5]), 0.3, 4000
    explain = sj.saliency(lambda w, x: w @ x)
    smooth = sj.noisegrad(
        explain, sigma, num_samples=n, reduction=mean_and_stderr(), chunk_size=500
    )
    estimate = smooth(key, w, X)
    within(estimate, w)
    spread = sj.noisegrad(
        explain, sigma, num_samples=n, reduction=reductions.variance(), chunk_size=500
    )(key, w, X)
    np.testing.assert_allclose(spread, sigma**2 * w**2, rtol=5 * np.sqrt(2 / (n - 1)))


def test_additive_weight_noise_has_the_same_variance_for_every_weight(key):
    w, sigma, n = jnp.array([1.0, -2.0, 0.0]), 0.3, 4000
    spread = sj.smoothgrad(
        sj.saliency(lambda w, x: w @ x),
        sigma,
        argnum=0,
        num_samples=n,
        reduction=reductions.variance(),
        chunk_size=500,
    )(key, w, X)
    np.testing.assert_allclose(spread, sigma**2 * np.ones(3), rtol=5 * np.sqrt(2 / (n - 1)))


def test_fusiongrad_of_a_bilinear_form_has_the_product_of_means(key):
    """The gradient of sum(w x^2) is 2 w x; weights and inputs draw independently."""
    w = jnp.array([1.0, -2.0, 0.5])
    fused = sj.fusiongrad(
        sj.saliency(lambda w, x: jnp.sum(w * x**2)),
        0.3,
        0.4,
        num_weight_draws=2000,
        num_input_draws=5,
        reduction=mean_and_stderr(),
    )
    estimate = jax.jit(fused)(key, w, X)
    within(estimate, 2 * w * X)
    # Var(mean over m of 2 w(1+s e) (x + t d_j)) = 4 w^2 (s^2 x^2 + (1 + s^2) t^2 / m)
    variance = 4 * w**2 * (0.3**2 * X**2 + (1 + 0.3**2) * 0.4**2 / 5)
    np.testing.assert_allclose(estimate.stderr, np.sqrt(variance / 2000), rtol=0.12)


def test_adaptgrad_draws_leave_the_bounds_no_more_often_than_allowed(key):
    lo, hi = jnp.array([-2.0, 0.0, -1.0]), jnp.array([2.5, 1.0, 1.0])
    x = jnp.stack([lo, hi, lo + 0.1, (lo + hi) / 2, hi - 0.3, hi + 1.0, lo - 0.5])
    n, confidence = 20_000, 0.9
    draws = sj.adaptgrad(
        lambda x: x,
        (lo, hi),
        confidence,
        argnum=0,
        num_samples=n,
        reduction=reductions.stack(),
        chunk_size=n,
    )(key, x)
    outside = np.mean(np.asarray((draws < lo[None, None]) | (draws > hi[None, None])), axis=0)
    allowed = 1 - confidence
    inside_rows = slice(2, 5)
    assert np.all(outside[inside_rows] < allowed + 5 * np.sqrt(allowed * confidence / n))
    # tight in the middle, where both sides may be left
    np.testing.assert_allclose(outside[3], allowed, atol=5 * np.sqrt(allowed * confidence / n))
    for row in (0, 1, 5, 6):  # on the bounds, and outside them
        np.testing.assert_array_equal(draws[:, row], np.broadcast_to(x[row], draws[:, row].shape))


def test_stochastic_scores_can_be_differentiated(key):
    """The gradient of the NoiseGrad-smoothed score is the NoiseGrad-smoothed gradient."""

    def score(w, x):
        return jnp.tanh(w @ x)

    w = jnp.array([1.0, -2.0, 0.5])
    of_mean = sj.saliency(sj.noisegrad(score, 0.3, num_samples=7))
    mean_of = sj.noisegrad(sj.saliency(score), 0.3, num_samples=7)
    assert sj.is_stochastic(of_mean)
    np.testing.assert_allclose(of_mean(key, w, X), mean_of(key, w, X), rtol=1e-5)


def test_stochastic_explainers_of_users_compose(key):
    @sj.stochastic
    def dropped(key, params, x):
        return params * x * jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)

    smooth = sj.smoothgrad(
        dropped, 0.1, num_samples=4000, reduction=mean_and_stderr(), chunk_size=500
    )
    within(jax.jit(smooth)(key, B, X), B * X / 2)


@pytest.mark.parametrize("sampler", [jax.random.rademacher, jax.random.laplace])
def test_another_sampler(sampler, key):
    draws = sj.smoothgrad(
        lambda x: x, 0.5, argnum=0, num_samples=50, sampler=sampler, reduction=reductions.stack()
    )(key, jnp.zeros(4))
    if sampler is jax.random.rademacher:
        np.testing.assert_array_equal(np.unique(draws), [-0.5, 0.5])
    else:
        assert np.unique(draws).size == 200
