"""RISE: the mean score over random masks, given that a position is visible."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from smoothjax import reductions
from smoothjax._axes import IMAGE, Default, check_axes
from smoothjax._checks import check_number
from smoothjax._grid import cells_per_axis, check_grid
from smoothjax._loop import monte_carlo
from smoothjax._transform import transform
from smoothjax._trees import wide_dtype
from smoothjax._typing import Axes, Explainer, PerAxis, Score
from smoothjax.attribution._masks import masking
from smoothjax.reductions import Reduction


@transform(takes_key=True)
def rise(
    score: Score,
    baseline: Any = 0.0,
    *,
    num_samples: int = 4000,
    grid: PerAxis | None = Default(7),
    probability: float = 0.5,
    axes: Axes = IMAGE,
    argnum: int = 1,
    reduction: Reduction = reductions.mean(),
    chunk_size: int | None = None,
    tolerance: Any = None,
    sharding: NamedSharding | None = None,
) -> Explainer:
    """Returns an explainer of the mean score over random masks, given that a position is visible.

    `mean_i score(m_i * x + (1 - m_i) * baseline) * m_i / probability`. A mask is a coarse grid of
    cells that are each 1 with the given probability and 0 otherwise, stretched bilinearly to one
    cell more than the input has, constant at its borders (the authors' code mirrors it there), and
    cropped at a random place.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets a key of its own for every mask. The paper explains the class's probability.
      baseline: what hides, in the grammar of `occlusion`.
      num_samples: the number of masks.
      grid: how many cells along each axis, one number for all axes or one for each; None makes
        every position a cell of its own, as tabular data needs it, and is the default along one
        axis: for long signals type a number.
      probability: that a cell is visible, above 0 and below 1.
      axes: the axes of x that a mask spans, as in `occlusion`.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Each floating-point
        leaf of a pytree has masks of its own, all at once.
      reduction: what becomes of the draws, from `smoothjax.reductions`.
      chunk_size: how many masks are evaluated at once, as in `smoothgrad`. (With `rbg` keys
        other masks are drawn at another chunk size, as in every transform.)
      tolerance: if given, draw no more masks once the relative error of the map is below it, as in
        `smoothgrad`. The map counts with its offset, about the mean score behind masks.
      sharding: if given, how the masks of a chunk are spread over devices, as in `smoothgrad`.

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)`, in the units of the score (not of
      its change: a constant score gives a constant map); shaped like x with length 1 along all
      axes but `axes`; float0 for integer leaves.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for more
        cells than positions along an axis, and as `occlusion` does.

    Cost: `num_samples` evaluations of the score, the memory of `chunk_size` of them.

    Source: Petsiuk et al. 2018, arXiv 1806.07421: 7 cells along each axis, probability 0.5.

    >>> explain = sj.rise(lambda w, x: jnp.sum(w * x), axes=(0,), grid=None)
    >>> explain = jax.jit(explain)  # for a linear score: (w x + sum of w x) / 2
    >>> explain(jax.random.key(0), jnp.array([0.0, 0.0, 4.0]), jnp.ones(3)).round()
    Array([2., 2., 4.], dtype=float32)
    """
    axes = check_axes(axes)
    masked = masking(score, baseline, axes, argnum)
    grid = check_grid(grid, axes)
    probability = check_number(probability, "probability", above=0, below=1)
    average = monte_carlo(num_samples, reduction, chunk_size, tolerance, sharding)

    def explain(key, *args, **kwargs):
        maps, query, restore = masked(args, kwargs)
        grids = [cells_per_axis(one.shape, one.axes, grid) for one in maps]

        def draw(key):
            mask_key, inner_key = jax.random.split(key)
            masks = [
                _random_mask(jax.random.fold_in(mask_key, one.place), one, cells, probability)
                for one, cells in zip(maps, grids, strict=True)
            ]
            score = query(inner_key, masks)
            value = score.astype(wide_dtype(score.dtype)) / probability
            return restore([value * mask.astype(value.dtype) for mask in masks], score.dtype)

        return average(draw, key, args[argnum])

    return explain


def _random_mask(key, one, grid, probability):
    """A mask of RISE."""
    cells_key, shift_key = jax.random.split(key)
    coarse = list(one.shape)
    for axis, cells in zip(one.axes, grid, strict=True):
        coarse[axis] = cells
    visible = jax.random.bernoulli(cells_key, jnp.float32(probability), coarse)
    mask = visible.astype(jnp.float32)
    shift_keys = jax.random.split(shift_key, len(one.axes))
    for axis, cells, key in zip(one.axes, grid, shift_keys, strict=True):
        mask = _stretch(key, mask, axis, one.shape[axis], cells)
    return mask


def _stretch(key, mask, axis, size, cells):
    """Enlarges an axis of `cells` to `cells + 1` times their size, and crops it to `size`."""
    if cells == size:  # every position is a cell
        return mask
    cell_size = math.ceil(size / cells)
    shift = jax.random.randint(key, (), 0, cell_size, jnp.int32)
    places = jnp.arange(size, dtype=mask.dtype) + shift.astype(mask.dtype) + 0.5
    centres = jnp.clip(places * (cells / ((cells + 1) * cell_size)) - 0.5, 0, cells - 1)
    distances = jnp.abs(centres[:, None] - jnp.arange(cells, dtype=mask.dtype)[None])
    weights = jnp.maximum(1 - distances, 0)
    stretched = jnp.tensordot(weights, mask, (1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(stretched, 0, axis)
