"""Correlation of an attribution with what hiding random subsets of features costs the score.

Judge by a class's probability, such as `net.probability`. A constant attribution says nothing: its
correlations are 0. One with a NaN gives NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax import reductions
from smoothjax._axes import IMAGE, Default, check_axes
from smoothjax._checks import check_function, check_integer, check_number, require
from smoothjax._grid import check_grid, grid_cells
from smoothjax._loop import monte_carlo
from smoothjax._typing import Axes, Metric, PerAxis, Score
from smoothjax.attribution.gradient import baseline_like
from smoothjax.metrics._arguments import stochastic_metric
from smoothjax.metrics._features import features, judging
from smoothjax.metrics.similarity import pearson, spearman


@stochastic_metric
def mu_fidelity(
    score: Score,
    *,
    grid: PerAxis | None = Default(9),
    subset: float = 0.2,
    num_samples: int = 200,
    baseline: Any = 0.0,
    similarity: Callable[..., jax.Array] = spearman,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: how well an attribution ranks what hiding cells of a grid costs the score.

    `correlation over random subsets S of (sum of the attribution in S, score(x) - score(x with S
    replaced))`. A subset is a fixed number of cells, drawn without replacement.

    Args:
      score: as in `deletion_curve`.
      grid: how many cells along each of `axes`, one number or one for each, as equal as whole
        positions allow; a cell holds all channels. None makes every entry of the attribution a
        cell, as tabular data needs it, and is the default along one axis.
      subset: the share of the cells that a subset holds, above 0 and below 1, rounded to a whole
        number of them.
      num_samples: the number of subsets.
      baseline: what replaces, in the grammar of `deletion_curve`.
      similarity: the correlation, a function of two arrays from `smoothjax.metrics.similarity`.
      axes: the spatial axes of x, as in `deletion_curve`, which the grid spans.
      argnum: as in `deletion_curve`.
      chunk_size: how many subsets are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `correlation(key, params, x, attribution, *rest)` that returns a scalar
      from -1 to 1; higher is better. A constant attribution, or a score that does not change, gives
      0. With one key for a batch, `vmap(in_axes=(None, ...))`, subsets are drawn once.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a grid
        finer than x, a subset that holds all cells, and as `deletion_curve` does.

    Cost: `num_samples` evaluations of the score, the memory of `chunk_size` of them.

    Source: Bhatt et al. 2020, arXiv 2005.00631, with the grid, its size, the share and number of
    subsets, and the rank correlation of Xplique, which draws each cell by itself, so that its
    subsets differ in size and a constant attribution correlates with the score.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.arange(36.0).reshape(6, 6), jnp.ones((6, 6))
    >>> metric = jax.jit(sj.metrics.mu_fidelity(score, grid=3))
    >>> print(metric(jax.random.key(0), params, x, params * x).round(3))
    1.0
    """
    subset = check_number(subset, "subset", above=0, below=1)
    axes = check_axes(axes)
    grid = check_grid(grid, axes)
    return _correlation(
        score,
        similarity,
        cells_of=lambda x: None if grid is None else grid_cells(x.shape, axes, grid),
        size_of=lambda num_features: max(1, round(subset * num_features)),
        num_samples=num_samples,
        baseline=baseline,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@stochastic_metric
def faithfulness_correlation(
    score: Score,
    *,
    subset_size: int,
    num_samples: int = 100,
    baseline: Any = 0.0,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the correlation of an attribution with what hiding features costs.

    `Pearson's correlation over random subsets S of (sum of the attribution in S, score(x) - score(x
    with S replaced))`. A subset is `subset_size` features, drawn without replacement.

    Args:
      score: as in `deletion_curve`.
      subset_size: the number of features of a subset, below that of all. Of single pixels take many
        (224 of 224 x 224 are common): a few change little in a photo.
      num_samples: the number of subsets.
      baseline: what replaces, in the grammar of `deletion_curve`.
      axes: the spatial axes of x, as in `deletion_curve`.
      argnum: as in `deletion_curve`.
      chunk_size: how many subsets are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `correlation(key, params, x, attribution, *rest)`, as `mu_fidelity` does.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a subset
        as large as all features, and as `deletion_curve` does.

    Cost: `num_samples` evaluations of the score, the memory of `chunk_size` of them; and in each
    chunk, one after the other, `subset_size` small steps to draw its subsets.

    Source: Bhatt et al. 2020, arXiv 2005.00631. It is sensitivity-n of Ancona et al. 2018, arXiv
    1711.06104, with n = `subset_size`: they take 100 subsets of each of many n up to 80 % of the
    features, and average over images.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.arange(10.0), jnp.ones(10)
    >>> metric = jax.jit(sj.metrics.faithfulness_correlation(score, subset_size=3))
    >>> print(metric(jax.random.key(0), params, x, -params * x).round(3))
    -1.0
    """
    subset_size = check_integer(subset_size, "subset_size", least=1)
    return _correlation(
        score,
        pearson,
        cells_of=lambda x: None,
        size_of=lambda num_features: subset_size,
        num_samples=num_samples,
        baseline=baseline,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


def _correlation(
    score, similarity, *, cells_of, size_of, num_samples, baseline, axes, argnum, chunk_size
):
    """The metric of the correlation of sums and drops over random subsets of features."""
    judged = judging(score, argnum, axes)
    check_function(similarity, "similarity")
    draws = monte_carlo(num_samples, _PAIRS, chunk_size)

    def correlation(key, *args, **kwargs):
        subset_key, score_key = jax.random.split(key)
        x, attribution, query = judged(args, kwargs)
        hiding = baseline_like(baseline, x)
        importance, spread = features(attribution, cells_of(x))
        size = size_of(importance.size)
        require(size < importance.size, f"a subset of {size} is all of {importance.size} features.")

        def draw(key):
            subset = _random_subset(key, importance.size, size)
            # A product, for a NaN to be in every sum, and so that a batch makes one of matrices.
            total = jnp.vdot(subset.astype(importance.dtype), importance, precision=_HIGHEST)
            return total, query(score_key, jnp.where(spread(subset), hiding, x))

        totals, scores = draws(draw, subset_key)
        # score(x) is the same in all drops, and a correlation does not change with it.
        found = similarity(totals.astype(scores.dtype), -scores)
        constant = jnp.max(attribution) == jnp.min(attribution)
        return jnp.where(constant, 0, found)

    return correlation


def _random_subset(key, num, size):
    """A mask of `size` of `num` features, all subsets of that size being equally likely.

    Floyd's algorithm: in step j, up to the last index, a random index up to j joins the subset, or
    j itself does if that one is in already. Sorting random numbers takes 10 to 100 times as long.
    """
    last = num - size + jnp.arange(size, dtype=jnp.int32)
    candidates = jax.random.randint(key, (size,), 0, last + 1, last.dtype)

    def step(j, mask):
        chosen = jnp.where(mask[candidates[j]], last[j], candidates[j])
        return mask.at[chosen].set(True)

    return jax.lax.fori_loop(0, size, step, jnp.zeros(num, bool))


_HIGHEST = jax.lax.Precision.HIGHEST
_PAIRS = reductions.stack()._replace(min_samples=2)  # fewer have no correlation
