"""Axioms: what the error of completeness is of, and what it refuses.

Its values are tested beside the methods that reach it, in tests/attribution/test_gradient.py.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax.metrics import completeness_error
from smoothjax.reductions import mean_and_stderr

W, X = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.5, 2.0, -1.0])


def linear(params, x):
    return jnp.sum(params * x)


def test_it_is_the_sum_less_the_gain_over_a_pytree():
    """Leaves of integers have no attribution."""

    def score(params, x):
        return jnp.sum(params * x["a"]) * x["n"].astype(X.dtype) + jnp.sum(x["b"][0] ** 2)

    x = {"a": X, "b": (jnp.ones((2, 2)),), "n": jnp.int32(3)}
    attribution = sj.integrated_gradients(score)(W, x)
    np.testing.assert_allclose(completeness_error(score)(W, x, attribution), 0, atol=1e-5)
    attribution["b"] = (jnp.array([[1.0], [4.0]]),)  # pooled over an axis
    np.testing.assert_allclose(completeness_error(score)(W, x, attribution), 1, atol=1e-5)


def test_of_x_alone_with_a_label_behind():
    score = lambda x, label: x[label] ** 2  # noqa: E731
    metric = completeness_error(score, argnum=0)
    np.testing.assert_allclose(metric(X, jnp.array([7.0, 1.0, 1.0]), 1), 9 - 4)


def test_a_pooled_attribution_is_complete_too():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    metric = completeness_error(linear)
    np.testing.assert_allclose(metric(2.0, x, jnp.sum(2 * x, axis=-1)), 0, atol=1e-4)


def test_half_precision_is_summed_in_single():
    x = jnp.ones(1000, jnp.bfloat16)
    error = completeness_error(lambda params, x: x[0])(None, x, x)
    assert error.dtype == jnp.float32
    assert error == 999


def test_the_signature_has_the_attribution():
    metric = completeness_error(linear)
    assert list(inspect.signature(metric).parameters) == ["params", "x", "attribution"]
    noisy = completeness_error(sj.noisegrad(linear, 0.1))
    assert list(inspect.signature(noisy).parameters) == ["key", "params", "x", "attribution"]
    assert metric.__name__ == "completeness_error(linear)"


def estimate():
    explain = sj.smoothgrad(sj.saliency(linear), 0.1, reduction=mean_and_stderr())
    return explain(jax.random.key(0), W, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: completeness_error(linear)(W, X), TypeError, r"missing: \(params, x, attribution"),
        (lambda: completeness_error(linear)(W, X, estimate()), TypeError, "Estimate"),
        (lambda: completeness_error(linear)(W, X, jnp.ones(4)), ValueError, r"\(3,\).*got \(4,\)"),
        (lambda: completeness_error(linear)(W, X, (X, X)), TypeError, "must be one array"),
        (
            lambda: completeness_error(linear)(W, X, jnp.array([1j, 0, 0], jnp.complex64)),
            TypeError,
            "complex64",
        ),
        (lambda: completeness_error(lambda w, x: w * x)(W, X, X), TypeError, "real scalar"),
    ],
)
def test_errors_say_what_is_needed(call, error, message):
    with pytest.raises(error, match=message):
        call()
