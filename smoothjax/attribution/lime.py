"""LIME: the slopes of a linear model of the score, fitted to masks that hide little."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax._axes import IMAGE, Default, check_axes
from smoothjax._checks import check_number
from smoothjax._grid import check_grid
from smoothjax._loop import accumulate, check_count
from smoothjax._transform import transform
from smoothjax._trees import wide_dtype
from smoothjax._typing import Axes, Explainer, PerAxis, Score
from smoothjax.attribution._masks import check_segments, masking, players_of
from smoothjax.attribution._regression import normal_equations


@transform(takes_key=True)
def lime(
    score: Score,
    baseline: Any = 0.0,
    *,
    num_samples: int = 1000,
    grid: PerAxis | None = Default(8),
    segments: Any = None,
    width: float = 0.25,
    alpha: float = 1.0,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int | None = None,
) -> Explainer:
    """Returns an explainer of the slopes of a linear model of the score behind masks.

    Each cell of a grid, or each segment, is visible or hidden with equal probability. The slopes
    `beta` minimise `sum_i w_i (score_i - beta_0 - beta m_i)^2 + alpha ||beta||^2` over masks m_i of
    0 and 1, with `w_i = exp(-d_i^2 / (2 width^2))` and the cosine distance `d_i = 1 - sqrt(share of
    cells that are visible)` of a mask from x.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets the same key for every mask.
      baseline: what hides, in the grammar of `occlusion`.
      num_samples: the number of masks, best many times that of cells.
      grid: how many cells along each axis, as in `sobol`.
      segments: in place of a grid, an array of integers that says for each position which segment
        it is in, such as superpixels: of shape (H, W) for an x of shape (H, W, channels). It is
        known when building, so each image with segments of its own needs an explainer of its own.
      width: of the kernel of weights, above 0.
      alpha: how much slopes are shrunk, 0 or more; with 0 and no more masks than cells the result
        has no meaning, since no one solution exists.
      axes: the axes of x that the grid spans, as in `occlusion`.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Each floating-point
        leaf of a pytree has a grid; all are in one model.
      chunk_size: how many masks are evaluated at once, as in `smoothgrad`. (With `rbg` keys
        other masks are drawn at another chunk size, as in `rise`.)

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)`, in the units of the score: what a
      cell adds to it. All positions of a cell have its slope. Shaped like x with length 1 along all
      axes but `axes`; float0 for integer leaves.

    Raises:
      TypeError, ValueError: as `rise` does, and for segments that do not fit.

    Cost: `num_samples + 1` evaluations of the score, the memory of `chunk_size` of them, and the
    square of the number of cells; its cube to solve for them.

    Source: Ribeiro et al. 2016, arXiv 1602.04938, with the number of masks, width and alpha of the
    authors' code for images, which then selects a few features; here all are kept.

    >>> explain = sj.lime(lambda w, x: jnp.sum(w * x), axes=(0,), alpha=0.0)
    >>> explain = jax.jit(explain)  # for a linear score: w x
    >>> explain(jax.random.key(0), jnp.array([0.0, 1.0, 4.0]), jnp.ones(3)).round()
    Array([0., 1., 4.], dtype=float32)
    """
    axes = check_axes(axes)
    masked = masking(score, baseline, axes, argnum)
    grid, segments = check_grid(grid, axes), check_segments(segments)
    num_samples = check_count(num_samples, "num_samples", least=2)
    width = check_number(width, "width", above=0, below=math.inf)
    alpha = check_number(alpha, "alpha", least=0)
    sums_over = accumulate(normal_equations(), chunk_size)

    def explain(key, *args, **kwargs):
        maps, query, restore = masked(args, kwargs)
        players, num_players = players_of(maps, grid, segments)
        mask_key, inner_key = jax.random.split(key)

        def score_behind(visible):
            return query(inner_key, [visible[player_of] for player_of in players])

        whole = score_behind(jnp.ones(num_players))
        wide = wide_dtype(whole.dtype)

        def draw(i):
            half = jnp.float32(0.5)
            visible = jax.random.bernoulli(jax.random.fold_in(mask_key, i), half, (num_players,))
            mask = visible.astype(wide)
            distance = 1 - jnp.sqrt(jnp.mean(mask))
            weight = jnp.exp(-((distance / width) ** 2) / 2)
            # The intercept takes up what all scores share.
            gain = score_behind(mask).astype(wide) - whole.astype(wide)
            return jnp.concatenate([jnp.ones(1, wide), mask]), weight, gain

        gram, moment = sums_over(draw, num_samples, args[argnum])
        penalty = jnp.full(num_players + 1, alpha, wide).at[0].set(0)
        slopes = jnp.linalg.solve(gram + jnp.diag(penalty), moment)[1:]
        return restore([slopes[player_of] for player_of in players], whole.dtype)

    return explain
