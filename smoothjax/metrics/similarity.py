"""How alike two attributions are: four functions of two arrays of one shape that return a scalar.

Each is 1 for equal maps and does not depend on the scale of either, so that a network of other
weights, whose gradients may be a thousand times larger, can be compared. They take maps as they
are, signed and per channel: for maps without signs, compare `abs(a)` with `abs(b)`. A map that says
nothing, constant or for `cosine` zero, is like no other, not even itself: 0. NaN gives NaN.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._axes import check_channels_last
from smoothjax._checks import require
from smoothjax._shown import shown
from smoothjax._transform import noted
from smoothjax.metrics._arguments import check_attribution
from smoothjax.metrics._ranking import ranks


@shown
@noted
def spearman(a: Any, b: Any) -> jax.Array:
    """Returns Spearman's rank correlation of two maps: Pearson's of their ranks.

    Tied entries share the mean of their ranks.

    Args:
      a: an array of real numbers.
      b: another of its shape.

    Returns:
      A scalar from -1 to 1, 1 for the same order; 0 if either map is constant, NaN if either has a
      NaN.

    Raises:
      TypeError, ValueError: if the maps are no real arrays of one shape.

    Cost: a sort of each map.

    >>> print(sj.metrics.spearman(jnp.array([1.0, 2.0, 9.0]), jnp.array([0, 3, 4])))
    1.0
    """
    a, b = _check_pair(a, b)
    undefined = jnp.any(jnp.isnan(a)) | jnp.any(jnp.isnan(b))
    return jnp.where(undefined, jnp.nan, pearson(ranks(a), ranks(b))).astype(a.dtype)


@noted
def pearson(a: Any, b: Any) -> jax.Array:
    """Returns Pearson's correlation of two maps: the cosine of the maps less their means.

    Args:
      a: an array of real numbers.
      b: another of its shape.

    Returns:
      A scalar from -1 to 1, 1 where b is a positive multiple of a plus a constant; 0 if either map
      is constant, NaN if either has a NaN.

    Raises:
      TypeError, ValueError: if the maps are no real arrays of one shape.

    >>> print(sj.metrics.pearson(jnp.array([1.0, 2.0, 3.0]), jnp.array([-1, -3, -5])))
    -1.0
    """
    a, b = _check_pair(a, b)
    # Centred twice, since the mean of many numbers far from 0 is itself inexact in float32.
    return cosine(_centred(_centred(a)), _centred(_centred(b)))


@noted
def cosine(a: Any, b: Any) -> jax.Array:
    """Returns the cosine of the angle between two maps: `sum(a b) / (|a| |b|)`.

    Args:
      a: an array of real numbers.
      b: another of its shape.

    Returns:
      A scalar from -1 to 1, 1 where b is a positive multiple of a; 0 if either map is zero, NaN if
      either has a NaN.

    Raises:
      TypeError, ValueError: if the maps are no real arrays of one shape.

    >>> print(sj.metrics.cosine(jnp.array([1.0, 0.0]), jnp.array([3.0, 4.0])).round(6))
    0.6
    """
    a, b = _check_pair(a, b)
    a, b = _scaled(a), _scaled(b)
    squares = jnp.sum(a * a) * jnp.sum(b * b)
    nothing = squares == 0
    found = jnp.sum(a * b) / jnp.sqrt(jnp.where(nothing, 1, squares))
    return jnp.where(nothing, 0, jnp.clip(found, -1, 1))


@shown
@noted
def ssim(a: Any, b: Any) -> jax.Array:
    """Returns the structural similarity of two maps, taken as pictures.

    The mean, over all places of a Gaussian window of 11 x 11 (sigma 1.5) inside the map, of

        (2 m_a m_b + c_1) (2 cov_ab + c_2) / ((m_a^2 + m_b^2 + c_1) (var_a + var_b + c_2))

    with the means, variances and covariance under the window, c_1 = 0.01^2 and c_2 = 0.03^2. Each
    map is first scaled to [0, 1] by its own least and greatest value, since the formula is one for
    brightnesses: of signed maps, the product of two negative factors would call opposites alike.
    So neither scale nor offset of a map counts, but a few great entries grey the rest, and grey is
    like grey: gradients of two classes, whose ranks are uncorrelated, measured 0.55 to 0.8.

    Args:
      a: an array of shape (H, W), or (H, W, channels), whose channels are scaled together, compared
        each with its like, and averaged; H and W at least 11.
      b: another of its shape.

    Returns:
      A scalar from -1 to 1, 1 for the same picture; 0 if either map is constant, NaN if either has
      a NaN.

    Raises:
      TypeError, ValueError: if the maps are no real arrays of one shape, or not of the shapes
        above.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity".

    >>> picture = jnp.outer(jnp.sin(jnp.arange(20.0)), jnp.arange(30.0))
    >>> print(sj.metrics.ssim(picture, 5 * picture).round(5))
    1.0
    """
    a, b = _check_pair(a, b)
    require(
        a.ndim in (2, 3) and min(a.shape[:2]) >= _WINDOW.size,
        f"maps must be of shape (H, W) or (H, W, channels), H and W at least {_WINDOW.size}; got "
        f"{a.shape}. Move the channels last, or take another similarity, such as spearman, which "
        "fits any shape.",
    )
    check_channels_last(a.shape, "Move the channels last, or take spearman, which fits any shape.")
    (a, span_a), (b, span_b) = _picture(a), _picture(b)
    mean_a, mean_b, aa, bb, ab = _blur(jnp.stack([a, b, a * a, b * b, a * b]))
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    # The minimum passes NaN on, whichever map has it.
    return jnp.where(jnp.minimum(span_a, span_b) == 0, 0, jnp.mean(luminance * structure))


_WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_WINDOW /= _WINDOW.sum()


def _blur(maps):
    """Stacked maps, averaged under the window at all places where it is inside."""
    for axis in (1, 2):
        places = maps.shape[axis] - _WINDOW.size + 1
        weighted = (
            float(weight) * jax.lax.slice_in_dim(maps, i, i + places, axis=axis)
            for i, weight in enumerate(_WINDOW)
        )
        maps = functools.reduce(operator.add, weighted)
    return maps


def _picture(a):
    """A map scaled to [0, 1], and a span, 0 if it is constant."""
    a = _scaled(a)
    span = jnp.max(a) - jnp.min(a)
    return (a - jnp.min(a)) / jnp.where(span == 0, 1, span), span


def _centred(a):
    # Clipped, so that a constant becomes exactly 0 although its mean is rounded.
    return a - jnp.clip(jnp.mean(a), jnp.min(a), jnp.max(a))


def _scaled(a):
    """A map divided by its greatest magnitude, or zero: of tiny gradients, squares underflow."""
    # Without derivatives, which cancel, and of tiny gradients overflow.
    greatest = jnp.max(jnp.abs(jax.lax.stop_gradient(a)))
    return a / jnp.where(greatest == 0, 1, greatest)


def _check_pair(a, b):
    a, b = check_attribution(a), check_attribution(b)
    require(a.shape == b.shape, f"maps must be of one shape; got {a.shape} and {b.shape}.")
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)
