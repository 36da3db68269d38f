"""HSIC: how much a score depends on whether a cell is hidden."""

from typing import Any

import jax
import jax.numpy as jnp

from smoothjax import reductions
from smoothjax._axes import IMAGE, Default, check_axes
from smoothjax._grid import check_grid
from smoothjax._loop import accumulate, check_count
from smoothjax._transform import transform
from smoothjax._trees import wide_dtype
from smoothjax._typing import Axes, Explainer, PerAxis, Score
from smoothjax.attribution._masks import cells_of, masking


@transform(takes_key=True)
def hsic(
    score: Score,
    baseline: Any = 0.0,
    *,
    num_samples: int = 500,
    grid: PerAxis | None = Default(8),
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int | None = None,
) -> Explainer:
    """Returns an explainer of how much the score depends on whether a cell is hidden, by HSIC.

    Each cell of a grid is visible or hidden with equal probability, independently. Its attribution
    is the Hilbert-Schmidt independence criterion between that and the score, with the kernels
    `1[m = m']` and `exp(-(y - y')^2 / (2 width^2))`, the width being the median distance between
    scores that differ. The estimator is the unbiased one: zero on average for a cell that the score
    does not depend on, so it can be negative.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets the same key for every mask.
      baseline: what hides, in the grammar of `occlusion`.
      num_samples: the number of masks, at least 4.
      grid: how many cells along each axis, as in `sobol`.
      axes: the axes of x that the grid spans, as in `occlusion`.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Each floating-point
        leaf of a pytree has a grid.
      chunk_size: how many masks are evaluated at once, as in `smoothgrad`. (With `rbg` keys
        other masks are drawn at another chunk size, as in `rise`.)

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)` of numbers without unit that do not
      change with the scale or offset of the score: 0 for independence, more for dependence. Shaped
      like x with length 1 along all axes but `axes`; float0 for integer leaves.

    Raises:
      TypeError, ValueError: as `rise` does.

    Cost: `num_samples` evaluations of the score, the memory of `chunk_size` of them, and of a few
    arrays of `num_samples**2` numbers: 1 MB each for 500 masks, 400 MB for 10,000.

    Source: Novello et al. 2022, arXiv 2206.06219, with the grid and number of masks of the authors'
    library Xplique; the unbiased estimator is that of Song et al. 2012, JMLR 13. It needs masks
    that are independent of one another: the paper's, Latin hypercubes rounded to 0 and 1, hide each
    cell in exactly half of them. Xplique's width is the median score, which an offset of the score
    would change, and its estimator is biased.

    >>> explain = sj.hsic(lambda w, x: jnp.sum(w * x), axes=(0,), grid=None)
    >>> attribution = jax.jit(explain)(jax.random.key(0), jnp.array([0.0, 0.0, 4.0]), jnp.ones(3))
    >>> print(jnp.abs(attribution).round(1))
    [0.  0.  0.1]
    """
    axes = check_axes(axes)
    masked = masking(score, baseline, axes, argnum)
    grid = check_grid(grid, axes)
    num_samples = check_count(num_samples, "num_samples", least=4)
    all_of = accumulate(reductions.stack(), chunk_size)

    def explain(key, *args, **kwargs):
        maps, query, restore = masked(args, kwargs)
        cells, num_cells = cells_of(maps, grid)
        design_key, inner_key = jax.random.split(key)

        def evaluate(i):
            half = jnp.float32(0.5)
            visible = jax.random.bernoulli(jax.random.fold_in(design_key, i), half, (num_cells,))
            return visible, query(inner_key, [visible[cell_of] for cell_of in cells])

        visible, scores = all_of(evaluate, num_samples, args[argnum])
        dependence = _hsic(visible, scores.astype(wide_dtype(scores.dtype)))
        return restore([dependence[cell_of] for cell_of in cells], scores.dtype)

    return explain


def _median_of_positive(distances):
    """The median of those that are not 0; 1 if there are none."""
    positive = distances > 0
    count = jnp.sum(positive)
    ordered = jnp.sort(jnp.where(positive, distances, jnp.inf), axis=None)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return jnp.where(count == 0, 1, median)


def _hsic(visible, scores):
    """The unbiased HSIC of each column of `visible`, (num, cells), with the scores, (num,)."""
    num = len(scores)
    distances = jnp.abs(scores[:, None] - scores[None])
    kernel = jnp.exp(-((distances / _median_of_positive(distances)) ** 2) / 2)

    off_diagonal = 1 - jnp.eye(num, dtype=kernel.dtype)
    kernel = kernel * off_diagonal
    rows = jnp.sum(kernel, axis=0) / (num - 2)
    overall = jnp.sum(rows) / (num - 1)
    centred = (kernel - rows[:, None] - rows[None] + overall) * off_diagonal
    # 1[m = m'] is (1 + s s') / 2 with signs s, and what is centred cancels the constant.
    signs = jnp.where(visible, 1, -1).astype(kernel.dtype)
    products = jnp.matmul(centred, signs, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(signs * products, axis=0) / (2 * num * (num - 3))
