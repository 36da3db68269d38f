"""Kernel SHAP: Shapley values, by least squares over coalitions of cells."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._axes import IMAGE, Default, check_axes
from smoothjax._checks import require
from smoothjax._grid import check_grid
from smoothjax._loop import accumulate, check_count
from smoothjax._transform import transform
from smoothjax._trees import wide_dtype
from smoothjax._typing import Axes, Explainer, PerAxis, Score
from smoothjax.attribution._masks import check_segments, masking, players_of
from smoothjax.attribution._regression import normal_equations


@transform(takes_key=True)
def kernel_shap(
    score: Score,
    baseline: Any = 0.0,
    *,
    num_samples: int = 2048,
    grid: PerAxis | None = Default(8),
    segments: Any = None,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int | None = None,
) -> Explainer:
    """Returns an explainer of the Shapley value of each cell: its share of what x adds to a score.

    The players are the cells of a grid, or segments. The Shapley value of one is the mean of what
    it adds to the score, over all orders in which players become visible. Values `phi` minimise
    `sum_S w_S (score(S visible) - score(baseline) - sum of phi in S)^2` under the constraint that
    they sum to `score(x) - score(baseline)`, with the kernel `w_S = (M - 1) / (C(M, s) s (M - s))`
    for s of M players.

    Coalitions of one size and of their complements are all evaluated as long as `num_samples`
    allows, from one player on; others are drawn, in pairs of a coalition and its complement. Of
    `2^M - 2` or more the values are exact, whatever the key. So are they, of any number, for a
    score that is linear in the masks.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets the same key for every mask.
      baseline: what hides, in the grammar of `occlusion`.
      num_samples: the most coalitions that are evaluated, at least two for each player.
      grid: how many cells along each axis, as in `sobol`.
      segments: in place of a grid, as in `lime`.
      axes: the axes of x that the grid spans, as in `occlusion`.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Each floating-point
        leaf of a pytree has a grid; the cells of all are players of one game.
      chunk_size: how many masks are evaluated at once, as in `smoothgrad`. (With `rbg` keys
        other masks are drawn at another chunk size, as in `rise`.)

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)`, in the units of the score. All
      positions of a cell have its value, so it is over cells that values sum to `score(x) -
      score(baseline)`. Shaped like x with length 1 along all axes but `axes`; float0 for integer
      leaves. For an error, take independent estimates, `smoothgrad(explain, 0.0, num_samples=8,
      reduction=mean_and_stderr())`, whose x has no noise.

    Raises:
      TypeError, ValueError: as `rise` does, for segments that do not fit, and for fewer coalitions
        than two for each player.

    Cost: `num_samples + 2` evaluations of the score, the memory of `chunk_size` of them, and the
    square of the number of players; its cube to solve for them.

    Source: Lundberg and Lee 2017, arXiv 1705.07874, whose code takes small coalitions first too;
    the constraint is solved for as in Covert and Lee 2021, arXiv 2012.01536.

    >>> def score(params, x):
    ...     return x[0] * x[1] + x[2]
    >>> explain = jax.jit(sj.kernel_shap(score, axes=(0,)))
    >>> explain(jax.random.key(0), None, jnp.array([2.0, 3.0, 1.0])).round()  # 6 is shared
    Array([3., 3., 1.], dtype=float32)
    """
    axes = check_axes(axes)
    masked = masking(score, baseline, axes, argnum)
    grid, segments = check_grid(grid, axes), check_segments(segments)
    num_samples = check_count(num_samples, "num_samples", least=2)
    sums_over = accumulate(normal_equations(), chunk_size)

    def explain(key, *args, **kwargs):
        maps, query, restore = masked(args, kwargs)
        players, num_players = players_of(maps, grid, segments)
        plan = _coalitions(num_players, num_samples) if num_players > 1 else None
        draw_key, inner_key = jax.random.split(key)

        def score_behind(visible):
            return query(inner_key, [visible[player_of] for player_of in players])

        # One loop over both, for half the compiling.
        nobody_and_all = jnp.stack([jnp.zeros(num_players), jnp.ones(num_players)])
        ends = jax.lax.map(score_behind, nobody_and_all)
        dtype, ends = ends.dtype, ends.astype(wide_dtype(ends.dtype))
        gain = ends[1] - ends[0]
        if plan is None:
            return restore([jnp.full(one.shape, gain) for one in maps], dtype)
        num, coalition = plan

        def draw(i):
            visible, weight = coalition(draw_key, i)
            visible, weight = visible.astype(ends.dtype), jnp.asarray(weight, ends.dtype)
            # The values do not change with an offset, but sums of large scores are less exact.
            return visible, weight, score_behind(visible).astype(ends.dtype) - ends[0]

        gram, moment = sums_over(draw, num, args[argnum])
        sides = jnp.stack([moment, jnp.ones_like(moment)], axis=1)
        free, shift = jnp.linalg.solve(gram, sides).T
        # The least squares without the constraint, moved until they sum to the gain.
        values = free + shift * (gain - jnp.sum(free)) / jnp.sum(shift)
        return restore([values[player_of] for player_of in players], dtype)

    return explain


def _coalitions(num_players, num_samples):
    """How many coalitions to evaluate, and `coalition(key, i)`: who is visible, and the weight.

    Weights sum to 1. A coalition and its complement have one weight, and count as one size here.
    """
    sizes = np.arange(1, num_players // 2 + 1)
    both = np.where(2 * sizes == num_players, 1, 2)
    shares = both / (sizes * (num_players - sizes))
    shares /= shares.sum()

    listed, weights, full = [], [], 0
    for size, both_ways, share in zip(sizes.tolist(), both.tolist(), shares, strict=True):
        count = both_ways * math.comb(num_players, size)
        if len(weights) + count > num_samples:
            break
        members = np.array(list(itertools.combinations(range(num_players), size)))
        visible = np.zeros((len(members), num_players), bool)
        np.put_along_axis(visible, members, True, axis=1)
        listed += [visible, ~visible][:both_ways]
        weights += [share / count] * count
        full += 1
    require(
        full,
        f"num_samples must be at least {2 * num_players}, two for each of {num_players} players; "
        f"got {num_samples}. Type more, or a coarser grid.",
    )
    num_listed = len(weights)
    num_drawn = (num_samples - num_listed) // 2 * 2 if full < sizes.size else 0
    left = shares[full:].sum()
    masks, weights = jnp.asarray(np.concatenate(listed)), jnp.asarray(weights, float)

    def drawn(key, i):
        size_key, member_key = jax.random.split(jax.random.fold_in(key, i // 2))
        odds = jnp.asarray(np.log(shares[full:]), jnp.float32)
        size = full + 1 + jax.random.categorical(size_key, odds)
        members = jax.random.permutation(member_key, num_players) < size
        return members ^ (i % 2 == 1), left / num_drawn

    def coalition(key, i):
        place = jnp.minimum(i, num_listed - 1)
        visible, weight = masks[place], weights[place]
        if not num_drawn:
            return visible, weight
        also_visible, also_weight = drawn(key, i - num_listed)
        known = i < num_listed
        return jnp.where(known, visible, also_visible), jnp.where(known, weight, also_weight)

    return num_listed + num_drawn, coalition
