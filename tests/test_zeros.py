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
}


@pytest.mark.parametrize("name", SOFTENED)
def test_a_map_of_zeros_has_the_derivative_0(name):
    with jax.debug_nans(True):
        gradient = jax.jit(jax.grad(SOFTENED[name]))(ZEROS)
    np.testing.assert_array_equal(gradient, np.zeros(4))


@pytest.mark.parametrize("name", SOFTENED)
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
    want = jax.grad(lambda p: jnp.sum(how(p, axis=-1)))(p)
    np.testing.assert_array_equal(got[0], want[0])
    assert np.all(got[2] != 0)


@pytest.mark.parametrize("how", [jnp.sum, jnp.mean, jnp.max])
def test_what_is_differentiable_at_zero_keeps_its_derivative(how):
    want = jax.grad(lambda p: jnp.sum(how(p, axis=-1)))(DEAD)
    np.testing.assert_allclose(penalty(how)(DEAD, jnp.ones_like(DEAD)), want, rtol=1e-6)


def test_pooling_changes_no_value_and_no_other_derivative():
    x = jnp.ones(DEAD.shape)
    for how in (*NORMS, jnp.sum, jnp.max, jnp.argmax, lambda a, axis: jnp.std(a, axis) / a.max()):
        got = sj.pool(sj.saliency(linear), how)(DEAD, x)
        np.testing.assert_array_equal(got, how(DEAD, axis=-1))

    def weighted(w):  # what `how` closes over
        return jnp.sum(sj.pool(sj.saliency(linear), lambda a, axis: jnp.sum(a * w, axis))(DEAD, x))

    np.testing.assert_allclose(jax.grad(weighted)(2.0), jnp.sum(DEAD), rtol=1e-5)
    tangent = jax.jvp(lambda p: sj.pool(sj.saliency(linear), jnp.linalg.norm)(p, x), (DEAD,), (x,))
    assert np.all(np.isfinite(tangent[1]))
