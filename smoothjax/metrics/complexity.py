"""Complexity: how few entries an attribution puts its weight on, whether or not they are right.

Both metrics judge the shares `p_i = |a_i| / sum_j |a_j|`: signs and scale do not count, and every
entry counts by itself, so `smoothjax.pool` decides whether that is a pixel or one of its channels.
An attribution that is zero everywhere has equal shares. NaN gives NaN, and so does infinity.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from smoothjax._transform import noted
from smoothjax.metrics._arguments import check_attribution, summable


@noted
def gini(attribution: Any) -> jax.Array:
    """Returns the Gini index of an attribution's magnitudes: its sparseness.

    `sum_k (2 k - n - 1) / n * p_(k)`, with the shares `p_(1) <= ... <= p_(n)` of the sum of
    magnitudes. It is half the mean difference between two magnitudes, relative to their mean.

    Args:
      attribution: an array of real numbers, of any shape.

    Returns:
      A scalar from 0 (all magnitudes equal) to `1 - 1 / n` (all weight on one of n entries); higher
      is sparser.

    Raises:
      TypeError: if the attribution is no array of real numbers.

    Cost: one sort.

    Source: Hurley and Rickard 2009, arXiv 0811.4706; for attributions, Chalasani et al. 2020, arXiv
    1810.06583.

    >>> print(sj.metrics.gini(jnp.array([0.0, 0.0, -3.0, 0.0])))
    0.75
    """
    p = jnp.sort(_shares(attribution))
    n = p.size
    weights = (2 * jnp.arange(1, n + 1, dtype=p.dtype) - n - 1) / n
    # The weights sum to 0, so the least share can go: equal shares then give 0, without rounding.
    return jnp.sum(weights * (p - p[0]))


@noted
def entropy(attribution: Any) -> jax.Array:
    """Returns the entropy of an attribution's shares: its complexity.

    `- sum_i p_i log(p_i)`, in nats. Its exponential is a number of entries: that of a map with
    equal weight on some and none on others.

    Args:
      attribution: an array of real numbers, of any shape.

    Returns:
      A scalar from 0 (all weight on one entry) to `log(n)` (all of n magnitudes equal); lower is
      simpler.

    Raises:
      TypeError: if the attribution is no array of real numbers.

    Source: Bhatt et al. 2020, arXiv 2005.00631.

    >>> print(jnp.exp(sj.metrics.entropy(jnp.array([2.0, 0.0, -2.0, 0.0]))).round(5))
    2.0
    """
    p = _shares(attribution)
    # 0 and 1 have none, and at 1 the derivative is finite.
    return jnp.sum(entr(jnp.where(p == 0, 1, p)))


def _shares(attribution):
    scaled = summable(jnp.abs(check_attribution(attribution)).ravel())
    return scaled / jnp.sum(scaled)
