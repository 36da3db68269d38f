"""Effects of single features: what the score does as one of them takes random values.

The effect of a feature is `sqrt(mean_j (score(x with it from x_j) - score(x))^2)` over random x_j.
Its squared mean is the expected loss of Nguyen and Martínez 2020, arXiv 2007.07584. Magnitudes of
an attribution are compared with effects, for an effect has no sign.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax import reductions
from smoothjax._axes import IMAGE, Default, check_axes
from smoothjax._checks import check_function, check_number
from smoothjax._grid import check_grid, grid_cells
from smoothjax._loop import accumulate, check_count
from smoothjax._shown import shown
from smoothjax._statistics import norm
from smoothjax._trees import fit
from smoothjax._typing import Axes, Metric, PerAxis, Score
from smoothjax.metrics._arguments import stochastic_metric
from smoothjax.metrics._features import features, judging
from smoothjax.metrics.similarity import spearman

Replacement = Callable[[jax.Array, jax.Array], Any]


@shown
def _uniform(key, x):
    """Numbers from the least to the greatest of x."""
    return jax.random.uniform(key, x.shape, x.dtype, jnp.min(x), jnp.max(x))


@stochastic_metric
def monotonicity_correlation(
    score: Score,
    *,
    grid: PerAxis | None = Default(9),
    num_samples: int = 10,
    replacement: Replacement = _uniform,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the rank correlation of an attribution's magnitudes with features' effects.

    `Spearman's correlation over features of (the sum of |attribution| in it, its effect)`, the
    effect being the root mean square change of the score as the feature takes random values.
    `monotonicity` is what others call by this name.

    Args:
      score: as in `deletion_curve`.
      grid: how many cells along each of `axes`, as in `mu_fidelity`; a cell is a feature, and takes
        random values as a whole. None makes every entry of the attribution a feature.
      num_samples: how many random values each feature takes.
      replacement: a function `replacement(key, x)` that returns the random values, an array that
        broadcasts to x. The default is uniform from the least to the greatest of x; for tabular
        data, draw one of your rows: `lambda key, x: rows[jax.random.randint(key, (), 0,
        len(rows))]`. A draw serves all features.
      axes: the spatial axes of x, as in `deletion_curve`, which the grid spans.
      argnum: as in `deletion_curve`.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `correlation(key, params, x, attribution, *rest)` that returns a scalar
      from -1 to 1; higher is better. A constant attribution gives 0.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a grid
        finer than x, a replacement that does not fit x, and as `deletion_curve` does.

    Cost: `num_samples` evaluations of the score for each feature, by default 810, and one; the
    memory of `chunk_size` of them.

    Source: Nguyen and Martínez 2020, arXiv 2007.07584. They divide effects by the score, which
    changes no rank.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, -4.0, 2.0]), jnp.array([0.0, 0.5, 1.0])
    >>> metric = jax.jit(sj.metrics.monotonicity_correlation(score, axes=(0,), num_samples=100))
    >>> print(metric(jax.random.key(0), params, x, params).round(3))
    1.0
    """
    judged = _with_effects(score, grid, num_samples, replacement, axes, argnum, chunk_size)

    def correlation(key, *args, **kwargs):
        magnitudes, effects = judged(key, args, kwargs)
        return spearman(magnitudes, effects)

    return correlation


@stochastic_metric
def non_sensitivity(
    score: Score,
    *,
    grid: PerAxis | None = Default(9),
    num_samples: int = 10,
    replacement: Replacement = _uniform,
    tolerance: float = 1e-5,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: for how many features an attribution is wrong about whether they count.

    The number of features of which either the attribution is 0 or the effect on the score, and not
    both: the symmetric difference of the two sets.

    Args:
      score: as in `deletion_curve`.
      grid: as in `monotonicity_correlation`, and so are the other settings.
      num_samples: how many random values each feature takes.
      replacement: a function `replacement(key, x)` that returns the random values.
      tolerance: what is up to this share of the largest, of magnitudes and of effects, is 0.
      axes: the spatial axes of x, which the grid spans.
      argnum: as in `deletion_curve`.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `count(key, params, x, attribution, *rest)` that returns a scalar from 0
      to the number of features; lower is better.

    Raises:
      TypeError, ValueError: as `monotonicity_correlation` does.

    Cost: as `monotonicity_correlation`.

    Source: Nguyen and Martínez 2020, arXiv 2007.07584.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, -4.0, 0.0]), jnp.array([0.0, 0.5, 1.0])
    >>> metric = jax.jit(sj.metrics.non_sensitivity(score, axes=(0,)))
    >>> print(metric(jax.random.key(0), params, x, jnp.array([0.0, 1.0, 1.0])))
    2.0
    """
    tolerance = check_number(tolerance, "tolerance", least=0, below=1)
    judged = _with_effects(score, grid, num_samples, replacement, axes, argnum, chunk_size)

    def vanishing(values):
        return values <= tolerance * jnp.max(values)

    def count(key, *args, **kwargs):
        magnitudes, effects = judged(key, args, kwargs)
        wrong = jnp.sum(vanishing(magnitudes) != vanishing(effects), dtype=effects.dtype)
        missing = jnp.isnan(jnp.sum(magnitudes) + jnp.sum(effects))
        return jnp.where(missing, jnp.nan, wrong)

    return count


def _with_effects(score, grid, num_samples, replacement, axes, argnum, chunk_size):
    """Returns `judged(key, args, kwargs) -> magnitudes, effects`, of all features."""
    axes = check_axes(axes)
    judging_at = judging(score, argnum, axes)
    grid = check_grid(grid, axes)
    num_samples = check_count(num_samples, "num_samples")
    check_function(replacement, "replacement")
    all_of = accumulate(reductions.stack(), chunk_size)

    def judged(key, args, kwargs):
        draw_key, score_key = jax.random.split(key)
        x, attribution, query = judging_at(args, kwargs)
        cells = None if grid is None else grid_cells(x.shape, axes, grid)
        magnitudes, spread = features(jnp.abs(attribution), cells)
        numbers = spread(jnp.arange(magnitudes.size, dtype=jnp.int32))
        whole = query(score_key, x)

        def change(i):
            feature, draw = i // num_samples, i % num_samples
            values = fit(replacement(jax.random.fold_in(draw_key, draw), x), x, "replacement")
            changed = jnp.where(numbers == feature, values.astype(x.dtype), x)
            return query(score_key, changed) - whole

        changes = all_of(change, magnitudes.size * num_samples).reshape(-1, num_samples)
        effects = norm(changes, axis=1) / num_samples**0.5
        return magnitudes.astype(effects.dtype), effects

    return judged
