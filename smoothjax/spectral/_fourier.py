"""The Fourier transform of maps, the radii of its bins, and sums over rings of equal radius.

A spectrum has the transformed axes first, whatever their places in the map, the last of them by
half, since maps are real; and a channel axis last, if one is given. `sizes` are the lengths of the
transformed axes in the map.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._axes import IMAGE, LAST, axes_of, check_axes
from smoothjax._checks import check_integer, check_number, require
from smoothjax._trees import is_array, is_real, wide_dtype


def fourier(leaf: jax.Array, axes: tuple[int, ...], channel_axis: int | None = None) -> jax.Array:
    """Returns the spectrum of a map in at least float32; its bin 0 is the mean."""
    check_sizes(leaf.shape, axes)
    wide = leaf.astype(wide_dtype(leaf.dtype))
    front = jnp.moveaxis(wide, *_places(axes, channel_axis))
    return jnp.fft.rfftn(front, axes=range(len(axes)), norm="forward")


def inverse(
    spectrum: jax.Array,
    sizes: tuple[int, ...],
    axes: tuple[int, ...],
    channel_axis: int | None = None,
) -> jax.Array:
    """Returns the map with a given spectrum, its axes back in their places."""
    front = jnp.fft.irfftn(spectrum, s=sizes, axes=range(len(axes)), norm="forward")
    in_map, in_spectrum = _places(axes, channel_axis)
    return jnp.moveaxis(front, in_spectrum, in_map)


def _places(axes, channel_axis):
    """Where axes are in a map, and where they are in its spectrum."""
    if channel_axis is None:
        return axes, tuple(range(len(axes)))
    return (*axes, channel_axis), (*range(len(axes)), -1)


def scale(spectrum: jax.Array, gain: Any) -> jax.Array:
    """Returns `spectrum * gain`, with a gain for each bin, the same along the other axes."""
    gain = jnp.asarray(gain, spectrum.dtype)
    return spectrum * jnp.expand_dims(gain, range(gain.ndim, spectrum.ndim))


def radii(sizes: tuple[int, ...]) -> np.ndarray:
    """Returns the radius of each bin of a spectrum, in cycles per longest axis."""

    def cycles(n):
        k = np.arange(n)
        return np.minimum(k, n - k) * max(sizes) / n

    *full, last = map(cycles, sizes)
    half = last[: len(last) // 2 + 1]
    return np.sqrt(sum(np.square(np.meshgrid(*full, half, indexing="ij"))))


def rings(sizes: tuple[int, ...]) -> np.ndarray:
    """Returns the ring of each bin of a spectrum: its radius, rounded half up."""
    return np.floor(radii(sizes) + 0.5).astype(np.int32)


def ring_sums(power: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Returns the sums over rings of the whole spectrum, of what each bin of the half one holds."""
    ring = rings(sizes)
    k = np.arange(ring.shape[-1])
    # Each bin stands for itself and its conjugate; the mean and Nyquist are their own.
    count = np.where((k == 0) | (2 * k == sizes[-1]), 1, 2)
    power = scale(power, np.broadcast_to(count, ring.shape))
    flat = power.reshape(ring.size, *power.shape[ring.ndim :])
    return jax.ops.segment_sum(flat, ring.ravel(), int(ring.max()) + 1)


def real_map(leaf: Any) -> jax.Array:
    """Returns a map as an array, or raises unless its numbers are real floating-point ones."""
    leaf = jnp.asarray(leaf)
    require(
        jnp.issubdtype(leaf.dtype, jnp.floating),
        f"maps must be of real floating-point numbers; got one of dtype {leaf.dtype}. Convert it, "
        "map.astype(jnp.float32), or take its jnp.abs if it is complex.",
        TypeError,
    )
    return leaf


def check_image_axes(axes: Any) -> tuple[int, ...]:
    """Returns the axes that span an image as a tuple, or raises."""
    axes = check_axes(axes)
    require(len(axes) <= 3, f"axes must be the one to three axes that span the image; got {axes}.")
    return axes


def check_joint_axes(axes: Any, channel_axis: Any) -> tuple[int, ...] | None:
    """Returns the axes that span an image; None, all others, if only a channel axis was typed."""
    axes = check_image_axes(axes)
    if channel_axis is None or channel_axis is LAST:
        return axes
    check_integer(channel_axis, "channel_axis")
    if axes is IMAGE:
        return None
    require(
        channel_axis not in axes,
        f"channel_axis {channel_axis} is among axes {axes}, which span the image. Type "
        "channel_axis=None for maps without channels.",
    )
    return axes


def axes_beside(
    shape: tuple[int, ...], axes: tuple[int, ...] | None, channel_axis: int | None
) -> tuple[int, ...]:
    """Returns the axes that span a map, of `check_joint_axes`, or raises if it has no such axes."""
    if channel_axis is not None:
        check_channels(shape, channel_axis, axes or ())
        if axes is None:
            channels = channel_axis % len(shape)
            axes = check_image_axes(axis for axis in range(len(shape)) if axis != channels)
            require(
                len(axes) > 1,
                f"a map of shape {shape} has no channel axis {channel_axis} beside an image. Type "
                "channel_axis=None for maps without channels, axes=(0,) too for signals.",
            )
    assert axes is not None
    return axes


def check_sizes(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the lengths of the axes of a map, or raises unless it has elements along them."""
    sizes = tuple(shape[axis] for axis in axes_of(shape, axes))
    require(0 not in sizes, f"a map of shape {shape} has no elements along axes {axes}.")
    return sizes


def check_channels(shape: tuple[int, ...], channel_axis: int, axes: tuple[int, ...] = ()) -> None:
    """Raises unless a map has a channel axis beside others, which are not among `axes`."""
    others = set(range(len(shape))).difference(axes_of(shape, axes))
    require(
        len(shape) > 1 and others & {channel_axis, channel_axis + len(shape)},
        f"a map of shape {shape} has no channel axis {channel_axis} beside "
        f"{f'axes {axes}' if axes else 'axes to filter'}. Type channel_axis=0 for channels "
        "first, channel_axis=None for maps without channels.",
    )


def check_cutoff(cutoff: Any, name: str) -> Any:
    """Returns a cut-off as a float, or as it is if it is traced, or raises."""
    if is_array(cutoff) and cutoff.shape != ():
        raise ValueError(
            f"{name} must be one number; got an array of shape {cutoff.shape}. For many cut-offs "
            "in one program, use jax.lax.map or jax.vmap, or best_cutoff."
        )
    if isinstance(cutoff, Tracer) and is_real(cutoff):
        return cutoff
    return check_number(cutoff, name, least=0)
