"""Localization: whether an attribution points at the object that it should explain.

Metrics compare an attribution with a mask, True on the object. The mask is shaped like the
attribution, or lacks its last axes, or has length 1 along some: one of (H, W) fits maps of (H, W),
(H, W, 1) and (H, W, channels), whose channels then count as so many pixels. The papers judge maps
of one value per pixel: pool the channels first, with `smoothjax.pool`, to do as they do. NaN in an
attribution gives NaN.

Where there are no masks, a mosaic of images of different classes has one cell that shows the class
that is explained. The network must take images of that size.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._axes import check_channels_last
from smoothjax._checks import check_index, check_per_axis, require
from smoothjax._perturb import check_not_negative
from smoothjax._transform import noted
from smoothjax.metrics._arguments import broadcasts, check_attribution, pad_axes, summable
from smoothjax.metrics._ranking import order, ranks


@noted
def pointing_game(attribution: Any, mask: Any, *, tolerance: float = 0.0) -> jax.Array:
    """Returns whether an attribution is greatest on the object: 1 for a hit, 0 for a miss.

    Args:
      attribution: an array of real numbers. If several entries are greatest, as in a constant map,
        one of them is taken at random, always the same.
      mask: bools, or numbers 0 and 1, True on the object; see the module.
      tolerance: how far from the object the greatest entry may be, inclusive, in positions, along
        the axes of the mask that have more than one. The paper allows 15 pixels, of photos of about
        500.

    Returns:
      A scalar, 1.0 or 0.0, to be averaged over examples; higher is better. 0 for an empty mask.

    Raises:
      TypeError, ValueError: for an attribution that is no array of real numbers, a mask that does
        not fit it or has other values than 0 and 1 (NaN is returned if that mask is traced), or a
        negative tolerance.

    Cost: one sort.

    Source: Zhang et al. 2016, arXiv 1608.00507.

    >>> attribution, mask = jnp.array([0.1, 0.7, 0.2]), jnp.array([True, False, False])
    >>> print(sj.metrics.pointing_game(attribution, mask))
    0.0
    >>> print(sj.metrics.pointing_game(attribution, mask, tolerance=1))
    1.0
    """
    check_not_negative(tolerance, "tolerance")
    attribution, inside = _compared(attribution, mask)
    greatest = jnp.unravel_index(order(attribution)[0], attribution.shape)
    squared = jnp.zeros(inside.shape, attribution.dtype)
    for axis, (place, length) in enumerate(zip(greatest, inside.shape, strict=True)):
        if length > 1:
            position = jax.lax.broadcasted_iota(place.dtype, inside.shape, axis)
            squared += (position - place).astype(squared.dtype) ** 2
    near = jnp.sqrt(squared) <= jnp.asarray(tolerance, squared.dtype)
    return _unless_nan(attribution, jnp.any(inside & near))


@noted
def relevance_mass_accuracy(attribution: Any, mask: Any) -> jax.Array:
    """Returns the share of an attribution's positive sum that is on the object.

    `sum_(i in mask) max(a_i, 0) / sum_i max(a_i, 0)`. The paper pools maps so that they are nowhere
    negative; of others, negative relevance counts as none. For the share of magnitudes, which its
    authors' code takes, pass `abs(attribution)`.

    Args:
      attribution: an array of real numbers.
      mask: bools, or numbers 0 and 1, True on the object; see the module.

    Returns:
      A scalar from 0 to 1; higher is better. An attribution without positive entries scores as a
      constant one does, the share of the area that the object covers. 0 for an empty mask.

    Raises:
      TypeError, ValueError: as `pointing_game` does.

    Source: Arras et al. 2022, arXiv 2003.07258.

    >>> print(sj.metrics.relevance_mass_accuracy(jnp.array([3.0, 1.0, -9.0]), jnp.array([1, 0, 0])))
    0.75
    """
    attribution, inside = _compared(attribution, mask)
    return _positive_share(attribution, inside)


@noted
def relevance_rank_accuracy(attribution: Any, mask: Any) -> jax.Array:
    """Returns the share of the K greatest entries that are on the object, K being its size.

    `|{the K greatest entries} and mask| / K`, with `K = |mask|`. It is precision and recall at
    once.

    Args:
      attribution: an array of real numbers, ranked with their signs; ties fall at random, always
        the same.
      mask: bools, or numbers 0 and 1, True on the object; see the module.

    Returns:
      A scalar from 0 to 1; higher is better. About the share of the area that the object covers for
      a constant or random attribution; NaN for an empty mask.

    Raises:
      TypeError, ValueError: as `pointing_game` does.

    Cost: one sort.

    Source: Arras et al. 2022, arXiv 2003.07258.

    >>> attribution, mask = jnp.array([3.0, 1.0, 2.0, 0.0]), jnp.array([1, 1, 0, 0])
    >>> print(sj.metrics.relevance_rank_accuracy(attribution, mask))
    0.5
    """
    attribution, inside = _compared(attribution, mask)
    inside = jnp.broadcast_to(inside, attribution.shape).ravel()
    size = jnp.sum(inside)
    hits = jnp.sum(inside[order(attribution)] & (jnp.arange(inside.size) < size))
    return _unless_nan(attribution, hits / size)


@noted
def roc_auc(attribution: Any, mask: Any) -> jax.Array:
    """Returns the area under the ROC curve of an attribution taken as a detector of the object.

    The probability that a random entry on the object is greater than a random one off it, with ties
    as half: `1/2 + (mean rank on the object - mean rank off it) / n`, n the number of entries.

    Args:
      attribution: an array of real numbers, ranked with their signs; tied entries share the mean of
        their ranks.
      mask: bools, or numbers 0 and 1, True on the object; see the module.

    Returns:
      A scalar from 0 to 1; higher is better, 1/2 is chance and what a constant attribution scores.
      NaN if the mask is empty or full.

    Raises:
      TypeError, ValueError: as `pointing_game` does.

    Cost: one sort.

    Source: for attributions, Fawcett 2006, "An introduction to ROC analysis".

    >>> print(sj.metrics.roc_auc(jnp.array([3.0, 1.0, 2.0, 0.0]), jnp.array([1, 1, 0, 0])))
    0.75
    """
    attribution, inside = _compared(attribution, mask)
    inside = jnp.broadcast_to(inside, attribution.shape).ravel()
    n = inside.size
    # From -1/2 to 1/2 around the middle rank: sums of plain ranks would not be exact in float32.
    centred = ((ranks(attribution) - (n + 1) / 2) / n).astype(attribution.dtype)
    on, off = jnp.mean(centred, where=inside), jnp.mean(centred, where=~inside)
    return _unless_nan(attribution, 0.5 + on - off)


@noted
def grid_pointing_game(attribution: Any, grid: tuple[int, int], cell: Any) -> jax.Array:
    """Returns the share of the positive attribution of a mosaic that is inside one of its cells.

    `sum_(i in cell) max(a_i, 0) / sum_i max(a_i, 0)`, for an attribution of the class in the cell:
    the `relevance_mass_accuracy` of the cell's mask. The paper sums a map over its channels first.

    Args:
      attribution: of a mosaic, an array of real numbers of shape (rows * H, columns * W, ...): rows
        and columns divide the first two axes. What looks like channels first is an error.
      grid: (rows, columns) of the mosaic, or one number for both; the paper has 3 by 3
        images, each with its class.
      cell: the number of the cell whose class is explained, from 0, row by row as in `mosaic`; may
        be traced.

    Returns:
      A scalar from 0 to 1; higher is better. An attribution without positive entries scores as a
      constant one does, 1 / (rows * columns).

    Raises:
      TypeError, ValueError: for an attribution that is no array of real numbers or does not divide
        into the grid, or a cell out of it (NaN is returned if that is traced).

    Source: Boehle et al. 2021, arXiv 2104.00032.

    >>> attribution = jnp.array([[1.0, 2.0], [-4.0, 1.0]])  # four cells of one pixel
    >>> print(sj.metrics.grid_pointing_game(attribution, (2, 2), cell=1))
    0.5
    """
    array = check_attribution(attribution)
    inside = cell_mask(array.shape, grid, cell)
    share = _positive_share(array, pad_axes(inside, array.ndim))
    return jnp.where(jnp.any(inside), share, jnp.nan)


@noted
def mosaic(images: Any, grid: tuple[int, int]) -> jax.Array:
    """Returns one image that shows several of the same size, row by row.

    Args:
      images: an array of shape (rows * columns, H, W, ...).
      grid: (rows, columns), or one number for both.

    Returns:
      An array of shape (rows * H, columns * W, ...).

    Raises:
      TypeError, ValueError: if the grid is not of positive ints, or not for so many images.

    >>> print(sj.metrics.mosaic(jnp.arange(6).reshape(6, 1, 1), (2, 3)))
    [[0 1 2]
     [3 4 5]]
    """
    rows, columns = check_per_axis(grid, (0, 1), "grid")
    images, num = jnp.asarray(images), rows * columns
    check_channels_last(images.shape[1:], "Move its channels: jnp.moveaxis(images, 1, -1).")
    fits = images.ndim >= 3 and len(images) == num
    require(fits, f"a grid of {grid} takes images ({num}, H, W, ...); got shape {images.shape}.")
    _, height, width, *rest = images.shape
    cells = images.reshape(rows, columns, height, width, *rest)
    return jnp.swapaxes(cells, 1, 2).reshape(rows * height, columns * width, *rest)


@noted
def cell_mask(shape: Sequence[int], grid: tuple[int, int], cell: Any) -> jax.Array:
    """Returns the mask of one cell of a mosaic, for the metrics that compare with a mask.

    Args:
      shape: of the mosaic or an attribution of it, (rows * H, columns * W, ...).
      grid: (rows, columns) of the mosaic.
      cell: the number of the cell, from 0, row by row as in `mosaic`; may be traced.

    Returns:
      Bools of shape (rows * H, columns * W), True inside the cell; nowhere if a traced cell is out
      of the grid.

    Raises:
      TypeError, ValueError: if the shape looks like channels first, or does not divide into the
        grid, or the cell is out of it.

    >>> print(sj.metrics.cell_mask((2, 4, 3), (1, 2), 1).astype(int))
    [[0 0 1 1]
     [0 0 1 1]]
    """
    rows, columns = check_per_axis(grid, (0, 1), "grid")
    check_channels_last(tuple(shape), "Move its channels: jnp.moveaxis(attribution, 0, -1).")
    height, width, *_ = shape
    divides = height % rows == 0 and width % columns == 0
    require(divides, f"{height} x {width} positions do not divide into {rows} x {columns} cells.")
    cell = check_index(cell, rows * columns, "cell")
    row = jnp.arange(height, dtype=jnp.int32) // (height // rows)
    column = jnp.arange(width, dtype=jnp.int32) // (width // columns)
    return row[:, None] * columns + column[None, :] == cell


@noted
def distinct_classes(key: jax.Array, labels: Any, num: int) -> jax.Array:
    """Returns the indices of random examples of different classes, for a mosaic of them.

    Classes are drawn first, all with equal probability and none twice, then one example of each.

    Args:
      key: a PRNG key.
      labels: the class of each example, an array of ints of shape (n,), known when tracing, since
        their classes are counted.
      num: how many examples to draw, at most the number of classes.

    Returns:
      An int32 array of shape (num,).

    Raises:
      ValueError: if the labels are of fewer classes, or not one for each example.

    >>> images, labels = jnp.zeros((50, 8, 8, 3)), jnp.arange(50) // 5
    >>> indices = sj.metrics.distinct_classes(jax.random.key(0), labels, 4)
    >>> sj.metrics.mosaic(images[indices], (2, 2)).shape, len(set(labels[indices].tolist()))
    ((16, 16, 3), 4)
    """
    one_each = np.ndim(labels) == 1
    require(one_each, f"labels must be of shape (n,), one for each; got {np.shape(labels)}.")
    classes, class_of = np.unique(labels, return_inverse=True)
    require(num <= len(classes), f"there are {len(classes)} different classes, not {num}.")
    class_key, example_key = jax.random.split(key)
    chosen = jax.random.choice(class_key, len(classes), (num,), replace=False)
    lot = jax.random.uniform(example_key, class_of.shape, jnp.float32)
    drawn = jnp.where(class_of[None, :] == chosen[:, None], lot[None, :], -1.0)
    return jnp.argmax(drawn, axis=1).astype(jnp.int32)


def _compared(attribution, mask):
    """The attribution, and the mask as bools that broadcast to it."""
    array = check_attribution(attribution)
    mask = jnp.asarray(mask)
    ndim = max(array.ndim, mask.ndim)
    array, inside = pad_axes(array, ndim), pad_axes(mask, ndim)
    require(
        broadcasts(inside, array.shape),
        f"a mask of shape {mask.shape} is not like the attribution, {jnp.shape(attribution)}, nor "
        "lacks its last axes. Type mask[None] where its channels come first.",
    )
    if mask.dtype == bool:
        return array, inside
    binary = jnp.all((inside == 0) | (inside == 1))
    known = not isinstance(binary, Tracer)
    require(not known or binary, "a mask holds bools, or 0 and 1: type mask == label, or mask > 0.")
    return jnp.where(binary, array, jnp.nan), inside == 1


def _positive_share(attribution, inside):
    positive = summable(jnp.maximum(attribution, 0))
    return jnp.sum(positive, where=inside) / jnp.sum(positive)


def _unless_nan(attribution, value):
    undefined = jnp.any(jnp.isnan(attribution))
    return jnp.where(undefined, jnp.nan, value.astype(attribution.dtype))
