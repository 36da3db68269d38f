"""Tests of means."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc


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
