"""Low-pass filters of maps: FORGrad, and the windows that it and `lowpass` multiply spectra by."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._axes import IMAGE, LAST, Default, check_pooled_axis
from smoothjax._checks import check_function, check_integer, require
from smoothjax._shown import shown
from smoothjax._transform import noted, transform
from smoothjax._trees import wide_dtype
from smoothjax._typing import Axes, Explainer
from smoothjax.pooling import map_leaves
from smoothjax.spectral._fourier import (
    check_channels,
    check_cutoff,
    check_image_axes,
    check_sizes,
    fourier,
    inverse,
    radii,
    real_map,
    scale,
)

Window = Callable[[Any, Any], Any]


@shown
def disc(radius: Any, cutoff: Any) -> Any:
    """Returns the gain of the ideal low-pass: True where `radius <= cutoff`, to a part in 1e6.

    Args:
      radius: an array of radii in cycles per image.
      cutoff: a scalar in the same unit.

    Returns:
      An array of bools like `radius`.

    Source: Muzellec et al. 2024, arXiv 2307.09591.

    >>> print(sj.spectral.disc(np.array([0.0, 5.0, 5.1]), 5.0))
    [ True  True False]
    """
    return radius <= cutoff * (1 + 1e-6)


@noted
def butterworth(order: int) -> Window:
    """Returns a window with a soft edge, the gain `1 / sqrt(1 + (radius / cutoff)**(2 * order))`.

    It passes half of the power, 0.71 of the amplitude, at the cut-off. It rings less than the disc,
    which is its limit for high orders; filtering twice is not filtering once.

    Args:
      order: how steep the edge is, 1 or more; 2 is common.

    Returns:
      A function `(radius, cutoff) -> gain` for `lowpass` and `forgrad`.

    Raises:
      TypeError, ValueError: if `order` is no integer, or below 1.

    Source: Butterworth 1930, On the theory of filter amplifiers.

    >>> print(sj.spectral.butterworth(2)(np.array([0.0, 5.0, 10.0]), 5.0).round(2))
    [1.   0.71 0.24]
    """
    order = check_integer(order, "order", least=1)

    def window(radius, cutoff):
        gain = 1 / jnp.sqrt(1 + (jnp.asarray(radius) / cutoff) ** (2 * order))
        return jnp.where(radius == 0, 1, gain)  # the mean passes a cut-off of 0, which makes 0 / 0

    return window


@transform
def lowpass(
    explain: Explainer, cutoff: Any, *, axes: Axes = IMAGE, window: Window = disc
) -> Explainer:
    """Returns an explainer of the map without its frequencies above `cutoff`.

    `filtered = F^-1(F(explain(...)) * window(radius, cutoff))`, F the discrete Fourier transform.
    It is linear and keeps the mean, so signed maps stay signed, channels stay apart, and filtering
    commutes with averaging: `lowpass(smoothgrad(f), c)` is `smoothgrad(lowpass(f, c))`, cheaper.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first, that
        returns a pytree of maps of real floating-point numbers.
      cutoff: a radius, not a diameter, in cycles per image: bins of the Fourier transform along the
        longest of `axes`. 0 keeps the mean alone; from `sqrt(len(axes)) / 2` times the longest axis
        on, the disc keeps everything. It may be traced, so one compiled program serves them all;
        a traced one that is negative or NaN makes NaN.
      axes: the one to three axes of each leaf that span the image; the others are left apart. Type
        (0,) for signals (time, channels), (1, 2) for channels first.
      window: a function `(radius, cutoff) -> gain` of an array of radii: `disc` or
        `butterworth(order)`.

    Returns:
      An explainer, stochastic if `explain` is, of maps of the same structure, shape and dtype. They
      are filtered in at least float32. NaN and inf spread over the filtered axes.

    Raises:
      TypeError, ValueError: here for a cut-off that is no number, negative or NaN, and for bad
        axes or windows; when called, for maps without those axes, maps that are not real
        floating-point, or an `Estimate`, whose standard error cannot be filtered.

    Cost: that of `explain`, and a Fourier transform and back.

    Source: Muzellec et al. 2024, arXiv 2307.09591.

    >>> wave = jnp.cos(2 * jnp.pi * 3 * jnp.arange(8.0) / 8)
    >>> explain = jax.jit(sj.lowpass(lambda params, x: params + x, cutoff=2, axes=(0,)))
    >>> print(jnp.abs(explain(1.0, wave)).round(3))
    [1. 1. 1. 1. 1. 1. 1. 1.]
    """
    cutoff = check_cutoff(cutoff, "cutoff")
    axes = check_image_axes(axes)
    check_function(window, "window")
    return map_leaves(explain, lambda leaf: _filter(real_map(leaf), cutoff, axes, window))


@shown
@transform
def forgrad(
    explain: Explainer,
    cutoff: Any = Default(15),
    *,
    channel_axis: int | None = LAST,
    window: Window = disc,
) -> Explainer:
    """Returns an explainer of FORGrad: `|lowpass(|mean over channels of explain(...)|)|`.

    The absolute value comes before the filter, as in the paper, so that neighbours of opposite sign
    add up instead of cancelling. All axes but the channels are filtered.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first, that
        returns a pytree of maps of real floating-point numbers.
      cutoff: a radius, not a diameter, in cycles per image, as in `lowpass`. The authors' 15 is for
        maps of 224 x 224, and must be typed for those of less than 31, of which it leaves nearly
        all; `best_cutoff` finds yours.
      channel_axis: the axis that is averaged and dropped, by default the last of (H, W, channels).
        Type None for maps that were pooled already, 0 for channels first, and -1 for signals (time,
        channels) and volumes.
      window: a function `(radius, cutoff) -> gain`, as in `lowpass`.

    Returns:
      An explainer, stochastic if `explain` is, of maps that are nowhere negative and lack the
      channel axis, of the same dtype.

    Raises:
      TypeError, ValueError: as `lowpass` does, and when called for maps that have no such channel
        axis, or no other.

    Cost: that of `explain`, and a Fourier transform and back.

    Source: Muzellec et al. 2024, arXiv 2307.09591.

    >>> saliency = sj.saliency(lambda params, x: jnp.sum(params * x))
    >>> explain = jax.jit(sj.forgrad(saliency, cutoff=0))
    >>> print(explain(jnp.array([[[1.0, 3.0]], [[-1.0, -5.0]]]), jnp.ones((2, 1, 2))))
    [[2.5]
     [2.5]]
    """
    is_default, cutoff = isinstance(cutoff, Default), check_cutoff(cutoff, "cutoff")
    if channel_axis is not None:
        check_integer(channel_axis, "channel_axis")
    check_function(window, "window")

    def filtered(leaf):
        pooled = leaf = real_map(leaf)
        check_pooled_axis(leaf.shape, channel_axis)
        require(
            channel_axis is not LAST or leaf.ndim == 3,
            f"a map of shape {leaf.shape} is no (H, W, channels). Type channel_axis=None if it was "
            "pooled already, channel_axis=-1 for (time, channels) and volumes.",
        )
        if channel_axis is not None:
            check_channels(leaf.shape, channel_axis)
            pooled = jnp.mean(leaf, channel_axis, dtype=wide_dtype(leaf.dtype))
        axes = check_image_axes(range(pooled.ndim))
        longest = max(pooled.shape)
        if is_default:
            require(
                longest > 2 * cutoff,
                f"the default cutoff, {cutoff} cycles, is for maps of 224 x 224, and one of shape "
                f"{pooled.shape} has few frequencies above it. Type a smaller one, such as "
                f"{max(1, round(cutoff * longest / 224))}.",
            )
        return jnp.abs(_filter(jnp.abs(pooled), cutoff, axes, window)).astype(leaf.dtype)

    return map_leaves(explain, filtered)


def _filter(leaf, cutoff, axes, window):
    """`F^-1(F(leaf) * window(radius, cutoff))`, along the axes."""
    sizes = check_sizes(leaf.shape, axes)
    gain = _gain(window, radii(sizes), cutoff, wide_dtype(leaf.dtype))
    if isinstance(gain, np.ndarray) and np.all(gain == 1):
        return leaf  # exactly, where the transform and back would round
    return inverse(scale(fourier(leaf, axes), gain), sizes, axes).astype(leaf.dtype)


def _gain(window, radius, cutoff, dtype):
    """The gain of each bin; NaN for a wrong cut-off that was traced, too late for an error."""
    traced = isinstance(cutoff, Tracer)
    if traced:
        radius, cutoff = radius.astype(dtype), cutoff.astype(dtype)
    gain = window(radius, cutoff)
    require(
        jnp.shape(gain) == radius.shape,
        "window(radius, cutoff) must return a gain for each radius, an array of shape "
        f"{radius.shape}; got {gain!r:.80}.",
    )
    return jnp.where(cutoff >= 0, jnp.asarray(gain).astype(dtype), jnp.nan) if traced else gain
