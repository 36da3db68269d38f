"""Derivatives where a map is zero, or draws agree: finite, for penalties on explanations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax import metrics, reductions

KEY = jax.random.key(0)
ZEROS, SOME, ONES = jnp.zeros(4), jnp.array([1.0, 2.0, 0.0, 4.0]), jnp.ones(4)
MASK = jnp.array([True, False, True, False])


def linear(p, x):
    return jnp.sum(p * x)


def square(p, x):
    return jnp.sum(p * x**2)


def judged(metric, score):
    return lambda p: metric(sj.saliency(score), radius=0.1)(KEY, p, ONES)


def estimate(p):
    reduction = reductions.mean_and_stderr()
    return sj.smoothgrad(sj.saliency(linear), 0.1, num_samples=3, reduction=reduction)(KEY, p, ONES)


def relative_error(p):
    return reductions.relative_error(estimate(p))


SOFTENED = {
    "gini": metrics.gini,
    "entropy": metrics.entropy,
    "cosine": lambda a: metrics.cosine(a, SOME),
    "cosine with zero": lambda a: metrics.cosine(SOME, a),
    "pearson": lambda a: metrics.pearson(a, SOME),
    "spearman": lambda a: metrics.spearman(a, SOME),
    "mass": lambda a: metrics.relevance_mass_accuracy(a, MASK),
    "max_sensitivity": judged(metrics.max_sensitivity, linear),
    "max_sensitivity of what moves": judged(metrics.max_sensitivity, square),
    "average_sensitivity of what moves": judged(metrics.average_sensitivity, square),
    "average_sensitivity": judged(metrics.average_sensitivity, linear),
    "local_lipschitz": judged(metrics.local_lipschitz, linear),
    "stderr": lambda p: jnp.sum(estimate(p).stderr),
    "relative_error": relative_error,
    "mu_fidelity": lambda a: metrics.mu_fidelity(linear, grid=None, axes=(0,), num_samples=5)(
        KEY, SOME, ONES, a
    ),
    "infidelity": lambda a: metrics.infidelity(linear)(KEY, ZEROS, SOME, a),
    "sobol": lambda p: sj.sobol(linear, axes=(0,), grid=None, num_designs=3)(KEY, p, ONES).sum(),
    "hsic": lambda p: sj.hsic(linear, axes=(0,), grid=None, num_samples=5)(KEY, p, ONES).sum(),
    "lime": lambda p: jnp.sum(sj.lime(linear, axes=(0,), num_samples=9)(KEY, p, ONES) ** 2),
    "kernel_shap": lambda p: jnp.sum(sj.kernel_shap(linear, axes=(0,))(KEY, p, ONES) ** 2),
    "expected_frequency": lambda a: metrics.expected_frequency(a, axes=(0,)),
    "relative_input_stability": judged(metrics.relative_input_stability, linear),
    "relative_input_stability of what moves": judged(metrics.relative_input_stability, square),
    "road": lambda p: metrics.road(linear, num_steps=2, axes=(0,))(KEY, p, ONES, ONES) ** 2,
}


@pytest.mark.parametrize(
    "name",
    [n if i % 2 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(SOFTENED)],
)
def test_a_map_of_zeros_has_the_derivative_0(name):
    with jax.debug_nans(True):
        gradient = jax.jit(jax.grad(SOFTENED[name]))(ZEROS)
    np.testing.assert_array_equal(gradient, np.zeros(4))


@pytest.mark.parametrize("name", SOFTENED)
@pytest.mark.slow
def test_a_map_with_some_zeros_has_finite_derivatives(name):
    gradient = jax.jit(jax.grad(SOFTENED[name]))(SOME)
    assert np.all(np.isfinite(gradient))


def test_derivatives_elsewhere_are_those_of_the_formulas():
    a, b = jnp.array([1.0, -2.0, 3.0, 4.0]), jnp.array([2.0, 1.0, -1.0, 5.0])

    def entropy(a):
        p = jnp.abs(a) / jnp.sum(jnp.abs(a))
        return -jnp.sum(p * jnp.log(p))

    def cosine(a):
        return a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)

    def gini(a):
        p = jnp.sort(jnp.abs(a)) / jnp.sum(jnp.abs(a))
        return jnp.sum((2 * jnp.arange(1.0, 5.0) - 5) / 4 * p)

    pairs = [
        (metrics.entropy, entropy),
        (lambda a: metrics.cosine(a, b), cosine),
        (metrics.gini, gini),
    ]
    for got, want in pairs:
        np.testing.assert_allclose(jax.grad(got)(a), jax.grad(want)(a), rtol=2e-5, atol=1e-6)


def penalty(how, **options):
    explain = sj.pool(sj.saliency(linear), how, **options)
    return jax.grad(lambda p, x: jnp.sum(explain(p, x)))


DEAD = jax.random.normal(KEY, (3, 4, 3)).at[1, 1].set(0.0).at[0, 0, 0].set(0.0)
NORMS = [
    jnp.linalg.norm,
    functools.partial(jnp.linalg.norm, ord=1),
    functools.partial(jnp.linalg.norm, ord=3),
    lambda a, axis: jnp.sqrt(jnp.sum(a**2, axis)),
    lambda a, axis: jnp.sum(jnp.abs(a), axis),
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("how", NORMS)
def test_a_norm_of_a_dead_pixel_has_the_derivative_0(how, dtype):
    if dtype == jnp.float16 and how is NORMS[2]:
        pytest.skip("its cube underflows")
    p, x = DEAD.astype(dtype), jnp.ones(DEAD.shape, dtype)
    with jax.debug_nans(True):
        got = np.asarray(penalty(how)(p, x))
    np.testing.assert_array_equal(got[1, 1], np.zeros(3))
    want = jax.grad(lambda p: jnp.sum(how(p, axis=-1)))(p.astype(jnp.float32))
    rtol = 1e-6 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(got[0].astype(float), want[0], rtol=rtol)
    assert np.all(got[2] != 0)


@pytest.mark.parametrize("how", [jnp.sum, jnp.mean, jnp.max])
def test_what_is_differentiable_at_zero_keeps_its_derivative(how):
    want = jax.grad(lambda p: jnp.sum(how(p, axis=-1)))(DEAD)
    np.testing.assert_allclose(penalty(how)(DEAD, jnp.ones_like(DEAD)), want, rtol=1e-6)


def test_pooling_changes_no_value_and_no_other_derivative():
    x = jnp.ones(DEAD.shape)
    for how in (*NORMS, jnp.sum, jnp.max, jnp.argmax, lambda a, axis: jnp.std(a, axis) / a.max()):
        got = sj.pool(sj.saliency(linear), how)(DEAD, x)
        np.testing.assert_allclose(got, how(DEAD, axis=-1), rtol=1e-6)

    def weighted(w):  # what `how` closes over
        return jnp.sum(sj.pool(sj.saliency(linear), lambda a, axis: jnp.sum(a * w, axis))(DEAD, x))

    np.testing.assert_allclose(jax.grad(weighted)(2.0), jnp.sum(DEAD), rtol=1e-5)
    tangent = jax.jvp(lambda p: sj.pool(sj.saliency(linear), jnp.linalg.norm)(p, x), (DEAD,), (x,))
    assert np.all(np.isfinite(tangent[1]))


def test_derivatives_of_what_is_not_used_are_not_taken():
    explain = sj.pool(lambda p, x: x, NORMS[3])
    with jax.debug_nans(True):  # not compiled
        _, tangent = jax.jvp(lambda x: explain(None, x), (jnp.zeros((2, 3)),), (jnp.ones((2, 3)),))
    np.testing.assert_array_equal(tangent, np.zeros(2))


WAVE = jnp.sin(jnp.arange(11.0))
SPREAD = jnp.cos(jnp.arange(44.0)).reshape(11, 4)


@pytest.mark.parametrize("scale", [1e-25, 1e-36, 1e25])
@pytest.mark.slow
def test_scale_free_metrics_have_the_derivatives_of_any_scale(scale):
    a, b = jnp.array([1.0, 2.0, -1.0, 5.0]), jnp.array([2.0, -1.0, 3.0, 4.0])
    kinds = [
        lambda a: metrics.cosine(a, scale * b),
        lambda a: metrics.pearson(a, scale * b),
        SOFTENED["max_sensitivity of what moves"],
        SOFTENED["average_sensitivity of what moves"],
        lambda a: metrics.ssim(jnp.outer(SPREAD @ a, WAVE), jnp.outer(WAVE, WAVE)),
    ]
    for kind in kinds:
        gradient = jax.jit(jax.grad(kind))
        np.testing.assert_allclose(gradient(scale * a) * scale, gradient(a), rtol=1e-4, atol=1e-6)


def test_local_lipschitz_has_derivatives_at_any_scale():
    gradient = jax.jit(jax.grad(judged(metrics.local_lipschitz, square)))
    for scale in (1e-25, 1e25):
        np.testing.assert_allclose(gradient(scale * SOME), gradient(SOME), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e25, 1e38])
def test_the_norm_of_tiny_and_huge_channels(scale):
    x = scale * jnp.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    explain = sj.pool(lambda p, x: x, jnp.linalg.norm)
    got, gradient = jax.value_and_grad(lambda x: jnp.sum(explain(None, x)))(x)
    np.testing.assert_allclose(got, 3 * scale, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[1 / 3, 2 / 3, 2 / 3], [0, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("how", NORMS[:4:3])
@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_half_precision_is_pooled_in_float32(how, scale):
    x = jnp.full((2, 4), scale, jnp.float16)
    explain = sj.pool(lambda p, x: x, how)
    got, gradient = jax.value_and_grad(lambda x: jnp.sum(explain(None, x)[0]))(x)
    assert got.dtype == gradient.dtype == jnp.float16
    np.testing.assert_allclose(got, 2 * scale, rtol=1e-3)
    np.testing.assert_allclose(gradient, [[0.5] * 4, [0] * 4], rtol=1e-3)


def test_the_norm_of_complex_and_of_infinite_channels():
    explain = sj.pool(lambda p, x: x, jnp.linalg.norm)
    np.testing.assert_allclose(explain(None, jnp.array([[3j, -4.0]])), [5], rtol=1e-6)
    np.testing.assert_allclose(explain(None, jnp.array([[3, -4]])), [5], rtol=1e-6)
    odd = jnp.array([[jnp.inf, 1.0], [-jnp.inf, 1.0], [jnp.nan, 1.0]])
    np.testing.assert_array_equal(explain(None, odd), [np.inf, np.inf, np.nan])
