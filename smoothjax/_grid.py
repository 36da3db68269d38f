"""Grids: which cell each position of an array is in, for masks and for metrics that hide cells."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from smoothjax._axes import Default, axes_of
from smoothjax._checks import check_per_axis, require


def check_grid(grid: Any, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the number of cells along each axis, or None for a cell for each position.

    Along one axis features share no cell unless somebody typed so: it may be that of a table.
    """
    if grid is None or (isinstance(grid, Default) and len(axes) == 1):
        return None
    return check_per_axis(grid, axes, "grid")


def cells_per_axis(
    shape: tuple[int, ...], axes: tuple[int, ...], grid: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Returns how many cells an array has along each of `axes`, or raises."""
    sizes = tuple(shape[axis] for axis in axes_of(shape, axes))
    grid = sizes if grid is None else grid
    require(
        all(cells <= size for cells, size in zip(grid, sizes, strict=True)),
        f"a grid of {grid} cells along axes {axes} is finer than x, of shape {shape}. Type "
        "grid=None to make every position a cell.",
    )
    return grid


def grid_cells(
    shape: tuple[int, ...], axes: tuple[int, ...], grid: tuple[int, ...] | None
) -> np.ndarray:
    """Returns the number of each position's cell, of length 1 along all axes but `axes`."""
    grid, axes = cells_per_axis(shape, axes, grid), axes_of(shape, axes)
    along = (
        np.arange(shape[axis]) * cells // shape[axis]
        for axis, cells in zip(axes, grid, strict=True)
    )
    return _number(along, axes, len(shape))


def patch_cells(
    shape: tuple[int, ...], axes: tuple[int, ...], patch: tuple[int, ...]
) -> np.ndarray:
    """Returns the number of each position's patch, as `grid_cells`; the last may be shorter."""
    axes = axes_of(shape, axes)
    along = (np.arange(shape[axis]) // step for axis, step in zip(axes, patch, strict=True))
    return _number(along, axes, len(shape))


def _number(along: Iterable[np.ndarray], axes, ndim):
    """The numbers of cells, the last axis fastest, from those along each axis."""
    number = np.zeros((1,) * ndim, int)
    for axis, of_axis in zip(axes, along, strict=True):
        others = [other for other in range(ndim) if other != axis]
        number = number * (of_axis[-1] + 1) + np.expand_dims(of_axis, others)
    return number.astype(np.int32)
