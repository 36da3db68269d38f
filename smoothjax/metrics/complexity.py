"""Complexity: how simple an attribution is, whether or not it is right.

`gini` and `entropy` judge on how few entries it puts its weight, by the shares `p_i = |a_i| / sum_j
|a_j|`: signs and scale do not count, and every entry counts by itself, so `smoothjax.pool` decides
whether that is a pixel or one of its channels. An attribution that is zero everywhere has equal
shares. `histogram_entropy` judges how different its values are, `expected_frequency` how fine its
patterns. NaN gives NaN, and so does infinity.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from smoothjax._axes import IMAGE
from smoothjax._checks import check_integer
from smoothjax._shown import shown
from smoothjax._statistics import ratio
from smoothjax._transform import noted
from smoothjax._typing import Axes
from smoothjax.metrics._arguments import check_attribution, summable
from smoothjax.reductions import abs2
from smoothjax.spectral._fourier import (
    check_image_axes,
    check_sizes,
    fourier,
    radii,
    ring_sums,
    scale,
)


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


@shown
@noted
def histogram_entropy(attribution: Any, num_bins: int = 100) -> jax.Array:
    """Returns the entropy of the histogram of an attribution's values.

    `- sum_b p_b log(p_b)`, in nats, with p_b the share of entries in bin b of equal bins from the
    least to the greatest value. It is low for a map that is flat but for a few entries, and high
    for noise.

    Args:
      attribution: an array of real numbers, of any shape.
      num_bins: the number of bins.

    Returns:
      A scalar from 0 (all entries in one bin, as those of a constant map) to `log(num_bins)`; lower
      is simpler. Neither scale nor offset count, signs do.

    Raises:
      TypeError, ValueError: if the attribution is no array of real numbers, or for a bad number.

    Source: Hedström et al. 2024, arXiv 2405.02383, for attributions: the complexity of `emprt`.

    >>> print(jnp.exp(sj.metrics.histogram_entropy(jnp.array([2.0, 0.0, 2.0, 0.0]))).round(5))
    2.0
    """
    num_bins = check_integer(num_bins, "num_bins", least=1)
    a = check_attribution(attribution).ravel()
    # Halves, whose difference does not overflow.
    least, most = jnp.min(a) / 2, jnp.max(a) / 2
    place = jnp.where(most > least, (a / 2 - least) / jnp.where(most > least, most - least, 1), 0)
    bins = jnp.minimum((place * num_bins).astype(jnp.int32), num_bins - 1)
    p = jnp.bincount(bins, length=num_bins).astype(a.dtype) / a.size
    return jnp.where(jnp.isfinite(most - least), jnp.sum(entr(p)), jnp.nan)


@noted
def expected_frequency(attribution: Any, axes: Axes = IMAGE) -> jax.Array:
    """Returns the mean frequency of an attribution, each weighted with its power.

    `sum_k |k| P_k / sum_k P_k` over the Fourier transform along `axes`, with radii |k| in cycles
    per image, as in `smoothjax.spectral.lowpass`, and the power P_k, summed over the other axes.
    The mean of the map counts, with frequency 0, so an offset lowers it.

    Args:
      attribution: an array of real numbers.
      axes: the one to three axes that span the image.

    Returns:
      A scalar, from 0 for a constant to the greatest radius, which is about 0.71 of the longest
      axis for a square; lower is smoother. White noise is at the mean radius, about 0.38 of the
      axis. Neither scale nor sign count. A map of zeros is at 0.

    Raises:
      TypeError, ValueError: if the attribution is no array of real numbers, or for bad axes.

    Cost: a Fourier transform.

    Source: Mehrpanah et al. 2025, "On the Complexity-Faithfulness Trade-off of Gradient-Based
    Explanations", ICCV. `smoothjax.spectral.power_spectrum` is the power in rings.

    >>> wave = jnp.cos(2 * jnp.pi * 3 * jnp.arange(16.0) / 16)
    >>> print(sj.metrics.expected_frequency(wave, axes=(0,)).round())
    3.0
    """
    axes = check_image_axes(axes)
    a = check_attribution(attribution)
    sizes = check_sizes(a.shape, axes)
    # In units of the largest, since squares of tiny gradients underflow; of no more than that,
    # since XLA may multiply with the inverse.
    largest = jnp.minimum(jnp.max(jnp.abs(a)), jnp.finfo(a.dtype).max ** 0.75)
    power = abs2(fourier(a / jnp.where(largest == 0, 1, largest), axes))
    weighted, total = (
        jnp.sum(ring_sums(scale(power, gain), sizes)) for gain in (radii(sizes), 1.0)
    )
    return jnp.where(jnp.isnan(total), jnp.nan, ratio(weighted, total))


def _shares(attribution):
    scaled = summable(jnp.abs(check_attribution(attribution)).ravel())
    return scaled / jnp.sum(scaled)
