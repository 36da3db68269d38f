"""Baselines: functions of x that return what hides it, in the units of x.

Wherever a `baseline` is asked for, it is a number, an array, or a function of x that returns one.
Each of these two makes such a function.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._axes import IMAGE, axes_of, check_axes
from smoothjax._checks import check_number
from smoothjax._transform import map_noted, noted
from smoothjax._trees import is_inexact, wide_dtype
from smoothjax._typing import Axes, PyTree


@noted
def blur(sigma: float, axes: Axes = IMAGE) -> Callable[[PyTree], PyTree]:
    """Returns a baseline: a function of x that blurs it with a Gaussian.

    `blurred_i = sum_k w_k x_(i + k)` along each of `axes`, with `w_k ~ exp(-k^2 / (2 sigma^2))` for
    `|k| <= 4 sigma`, which sum to 1. Beyond its edges x goes on as its mirror image, `c b a | a b
    c`, so that edges stay as bright as they are.

    Args:
      sigma: the standard deviation of the Gaussian in positions, above 0.
      axes: the axes of x that are blurred: (0, 1) for (H, W, channels), (0,) for signals.

    Returns:
      A function of x that returns a pytree of blurred leaves, in at least float32; 0 for leaves
      that are not floating-point arrays.

    Raises:
      TypeError, ValueError: here for a sigma that is no number above 0, and for bad axes; when
        called, for an axis that x lacks.

    Cost: two Fourier transforms along each axis, whatever sigma is.

    >>> print(sj.attribution.blur(1.0, axes=(0,))(jnp.array([0.0, 0.0, 100.0, 0.0, 0.0])).round())
    [ 6. 24. 40. 24.  6.]
    """
    sigma = check_number(sigma, "sigma", above=0, below=math.inf)
    axes = check_axes(axes)
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()

    def along(leaf, axis):
        size = leaf.shape[axis]
        # Followed by its mirror image, x is periodic, and the Gaussian a factor for each frequency.
        gain = np.cos(np.pi / size * np.outer(np.arange(size + 1), offsets)) @ weights
        others = [other for other in range(leaf.ndim) if other != axis]
        period = jnp.concatenate([leaf, jnp.flip(leaf, axis)], axis)
        spectrum = jnp.fft.rfft(period, axis=axis)
        spectrum *= jnp.asarray(np.expand_dims(gain, others), spectrum.dtype)
        blurred = jnp.fft.irfft(spectrum, n=2 * size, axis=axis)
        return jax.lax.slice_in_dim(blurred, 0, size, axis=axis)

    def blurred(leaf):
        for axis in axes_of(leaf.shape, axes):
            leaf = along(leaf, axis)
        return leaf

    return _of_leaves(blurred)


@noted
def channel_mean(axes: Axes = IMAGE) -> Callable[[PyTree], PyTree]:
    """Returns a baseline: a function of x that gives each channel its mean over `axes`.

    Args:
      axes: the axes of x to average over: (0, 1) for (H, W, channels), (0,) for signals.

    Returns:
      A function of x that returns a pytree of means, of length 1 along `axes`, in at least float32;
      0 for leaves that are not floating-point arrays.

    Raises:
      TypeError, ValueError: here for bad axes; when called, for an axis that x lacks.

    >>> print(sj.attribution.channel_mean(axes=(0,))(jnp.array([[1.0, 5.0], [3.0, 9.0]])))
    [[2. 7.]]
    """
    axes = check_axes(axes)

    def mean(leaf):
        return jnp.mean(leaf, axes_of(leaf.shape, axes), keepdims=True)

    return _of_leaves(mean)


def _of_leaves(fun):
    def of_leaf(leaf):
        if not is_inexact(leaf):
            return 0.0
        return fun(jnp.asarray(leaf, wide_dtype(leaf.dtype)))

    return lambda x: map_noted(of_leaf, x)
