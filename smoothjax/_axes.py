"""What the axes of an image are: the one place that says so.

`axes` are the spatial axes, of which a map keeps every one; `channel_axis` is the one that is
pooled. Their defaults mean an image, (H, W) or (H, W, channels), and nothing else: what looks like
another layout is an error, until the user types one of the two.
"""

from typing import Any

from smoothjax._checks import check_integer, require


class Default(int):
    """A number that nobody typed, and that says so by its type alone."""


class _DefaultAxes(tuple):
    """Axes that nobody typed, likewise."""


IMAGE = _DefaultAxes((0, 1))
LAST = Default(-1)

_FEW = (1, 3, 4)  # how many channels a picture has
_TYPE_AXES = "Type axes=(1, 2), or axes=(0, 1) if the last axis is the channels."


def check_axes(axes: Any) -> tuple[int, ...]:
    """Returns axes, such as (0, 1), as a tuple of different ints, or raises."""
    if axes is IMAGE:
        return IMAGE
    try:
        axes = tuple(axes)
    except TypeError:
        raise TypeError(f"axes must be a tuple like (0, 1); got {axes!r:.80}.") from None
    axes = tuple(check_integer(axis, "each of axes") for axis in axes)
    distinct = axes and len(set(axes)) == len(axes)
    require(distinct, f"axes must be one or more different axes; got {axes}.")
    return axes


def axes_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns `axes` counted from 0, or raises unless an array of that shape has them."""
    positive = tuple(axis % len(shape) for axis in axes if -len(shape) <= axis < len(shape))
    require(
        len(set(positive)) == len(axes),
        f"axes {axes} must be different axes of an array of shape {shape}. Type axes=(0,) for "
        "signals and tabular data, axes=(0, 1) for images. Of an x of both, explain one at a time, "
        "by a score of it alone: lambda params, image: score(params, {**x, 'image': image}).",
    )
    if axes is IMAGE:
        _check_picture(shape)
    return positive


def check_channels_last(shape: tuple[int, ...], remedy: str = _TYPE_AXES) -> None:
    """Raises if three axes look like (channels, H, W); the remedy is what to type."""
    if len(shape) != 3 or shape[-1] in _FEW:
        return
    first, height, width = shape
    require(
        first not in _FEW and not first < height == width,
        f"an array of shape {shape} is taken for (channels, H, W): its first axis has 1, 3 or 4 "
        "entries and its last has not, or it has fewer than the others, which are a square. "
        f"{remedy}",
    )


def check_time_first(shape: tuple[int, ...], remedy: str) -> None:
    """Raises if two axes look like (channels, time); the remedy is what to type."""
    require(
        len(shape) != 2 or shape[0] >= shape[1] or not _is_narrow(*shape),
        f"an array of shape {shape} is taken for (channels, time). {remedy}",
    )


def check_one_image(shape: tuple[int, ...]) -> None:
    """Raises if an array looks like channels first, a batch or a volume."""
    check_channels_last(shape)
    require(
        len(shape) <= 3,
        f"unless axes are typed, an array is one image, (H, W) or (H, W, channels); got {shape}. "
        "Type the spatial ones, axes=(0, 1, 2) for volumes; a batch goes through jax.vmap.",
    )


def check_pooled_axis(shape: tuple[int, ...], channel_axis: Any) -> None:
    """Raises if channels are not where a `channel_axis` that nobody typed would look for them."""
    if channel_axis is LAST:
        check_channels_last(
            shape, "Type channel_axis=0 if it is that, channel_axis=-1 if its channels are last."
        )


def _check_picture(shape):
    check_one_image(shape)
    require(
        len(shape) != 2 or not _is_narrow(*sorted(shape)),
        f"an array of shape {shape} is taken for a signal beside its channels. Type axes=(0,) for "
        "(time, channels), axes=(0, 1) if both axes are spatial.",
    )


def _is_narrow(short, long):
    """Whether a picture of this size would be too narrow to be one."""
    return short <= max(_FEW) < long or 8 * short < long
