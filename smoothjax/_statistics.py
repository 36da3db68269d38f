"""Norms, ratios, and tests of means."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc

from smoothjax._trees import wide_dtype
from smoothjax.reductions import abs2, root


def norm(array: Any, axis: int | None = None) -> jax.Array:
    """Returns the Euclidean norm, of tiny and huge numbers too, with derivative 0 where it is 0.

    Args:
      array: real or complex numbers.
      axis: along which it is taken; by default, over all entries.

    Returns:
      A real array in at least float32, without that axis.

    >>> from smoothjax._statistics import norm
    >>> print(norm(jnp.array([3e-30, 4e-30])))
    5e-30
    """
    array = jnp.asarray(array)
    array = array.astype(wide_dtype(array.dtype))
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(array)), axis, keepdims=True, initial=0)
    # In units of the largest, whose derivatives cancel: squares of tiny gradients underflow. Not of
    # more than this, since XLA may multiply with the inverse.
    most = jnp.finfo(array.dtype).max ** 0.75
    unit = jnp.where(largest > 0, jnp.minimum(largest, most), 1)
    scaled = array / unit.astype(array.dtype)
    return jnp.squeeze(unit, axis) * root(jnp.sum(abs2(scaled), axis))


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a / b, and 0 where b is not above 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def t_test(mean: Any, stderr: Any, num_samples: int) -> jax.Array:
    """Returns the two-sided p-value of Student's t-test that a mean of samples is 0.

    Args:
      mean: of the samples, a number or array.
      stderr: its standard error, above 0.
      num_samples: the number of samples.

    Returns:
      An array like mean, from 0 to 1.

    >>> from smoothjax._statistics import t_test
    >>> print(t_test(1.0, 0.25, num_samples=4).round(3))
    0.028
    """
    freedom = jnp.asarray(num_samples - 1, jnp.result_type(mean))
    ratio = freedom / (freedom + (mean / stderr) ** 2)
    return betainc(freedom / 2, jnp.full_like(freedom, 0.5), ratio)
