"""What methods share that query a score behind masks, `score(m * x + (1 - m) * baseline)`.

A mask has one value for each position along `axes`, shared by all channels, and so has the map: it
is shaped like x with length 1 along the other axes, (H, W, 1) for a photo of shape (H, W, 3). That
broadcasts to x, and `smoothjax.pool` drops the axis as it does for any method.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._axes import axes_of
from smoothjax._checks import check_scalar, require
from smoothjax._grid import grid_cells
from smoothjax._transform import at_argument, noting_leaf
from smoothjax._trees import (
    check_has_inexact,
    combine,
    is_array,
    is_inexact,
    partition,
    wide_dtype,
    without_numbers,
)
from smoothjax._typing import PyTree, Score
from smoothjax.attribution.gradient import baseline_like


class Map(NamedTuple):
    """The map of one leaf of x.

    Attributes:
      shape: that of the leaf, with 1 along all axes but `axes`.
      axes: the axes that masks span, counted from 0.
      place: the position of the leaf among all leaves of x.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    place: int


class Masked(NamedTuple):
    """A score behind masks, for the arguments of one call.

    Attributes:
      maps: the `Map` of each floating-point leaf of x.
      query: `query(key, masks)`, the score of x behind a list of masks, each shaped like its map.
      restore: `restore(values, dtype)`, a pytree like x of a list of maps, in the wider of the
        leaf's dtype and that of the score.
    """

    maps: list[Map]
    query: Callable[[Any, list[jax.Array]], jax.Array]
    restore: Callable[[list[jax.Array], Any], PyTree]


def masking(
    score: Score, baseline: Any, axes: tuple[int, ...], argnum: Any
) -> Callable[[tuple, dict], Masked]:
    """Returns `masked(args, kwargs)`, which makes a `Masked` of the arguments of a score."""
    at = at_argument(score, argnum)

    def masked(args, kwargs):
        x, score_at = at(args, kwargs)
        check_has_inexact(x)
        shown, others = partition(x, is_inexact)
        shown = jax.tree.map(jnp.asarray, shown)  # NumPy's float64 becomes JAX's float32
        hiding, _ = partition(baseline_like(baseline, x), is_inexact)
        leaves, treedef = jax.tree.flatten(shown)
        maps = [
            _map_of(path, leaf, axes, place)
            for place, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(x))
            if is_inexact(leaf)
        ]

        def query(key, masks):
            mixed = jax.tree.map(_mix, treedef.unflatten(masks), shown, hiding)
            score = score_at(key, combine(mixed, others))
            wide = check_scalar(score)
            return wide.astype(score.dtype) if is_inexact(score) else wide

        def restore(values, dtype):
            with jax.numpy_dtype_promotion("standard"):  # of bfloat16 and float32, say
                own = [jnp.promote_types(jnp.finfo(leaf.dtype).dtype, dtype) for leaf in leaves]
            values = [value.astype(one) for value, one in zip(values, own, strict=True)]
            return combine(treedef.unflatten(values), jax.tree.map(without_numbers, others))

        return Masked(maps, query, restore)

    return masked


def cells_of(maps: list[Map], grid: tuple[int, ...] | None) -> tuple[list[np.ndarray], int]:
    """Returns the number of each position's cell, an array for each map, and of all cells."""
    numbers, total = [], 0
    for one in maps:
        numbers.append(grid_cells(one.shape, one.axes, grid) + total)
        total = int(numbers[-1].max()) + 1
    return numbers, total


def check_segments(segments: Any) -> np.ndarray | None:
    """Returns the numbers of segments as an array, or raises."""
    if segments is None:
        return None
    known = is_array(segments) and not isinstance(segments, Tracer)
    require(
        known and jnp.issubdtype(segments.dtype, jnp.integer),
        "segments must be an array of integers, known when building, since their number is; got "
        f"{segments!r:.80}.",
        TypeError,
    )
    return np.asarray(segments)


def players_of(
    maps: list[Map], grid: tuple[int, ...] | None, segments: np.ndarray | None
) -> tuple[list[np.ndarray], int]:
    """Returns the number of each position's player, a segment or else a cell, and of all."""
    if segments is None:
        return cells_of(maps, grid)
    require(
        len(maps) == 1,
        f"segments are of an x of one floating-point array; got {len(maps)}. Explain one at a "
        "time, by a score of it alone.",
    )
    shape, axes = maps[0].shape, maps[0].axes
    if segments.ndim == len(axes):
        others = [axis for axis in range(len(shape)) if axis not in axes]
        segments = np.expand_dims(segments, others)
    require(
        segments.shape == shape,
        f"segments are shaped like the map of x, {shape}, or lack its other axes; got "
        f"{segments.shape}.",
    )
    labels, numbers = np.unique(segments, return_inverse=True)
    return [numbers.reshape(shape).astype(np.int32)], labels.size


def _map_of(path, leaf, axes, place):
    shape = np.shape(leaf)
    with noting_leaf(path):
        positive = axes_of(shape, axes)
    spanned = tuple(size if axis in positive else 1 for axis, size in enumerate(shape))
    return Map(spanned, positive, place)


def _mix(mask, leaf, hiding):
    wide = wide_dtype(leaf.dtype)
    mask, shown, hiding = (jnp.asarray(a).astype(wide) for a in (mask, leaf, hiding))
    mixed = mask * shown + (1 - mask) * hiding
    # What is infinite times 0 would be NaN.
    mixed = jnp.where(mask == 1, shown, jnp.where(mask == 0, hiding, mixed))
    return mixed.astype(leaf.dtype)
