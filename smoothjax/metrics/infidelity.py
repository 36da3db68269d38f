"""Infidelity: the error of an attribution as a linear model of what changes of x cost."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax import reductions
from smoothjax._axes import IMAGE
from smoothjax._checks import check_function, require
from smoothjax._loop import monte_carlo
from smoothjax._perturb import check_noise, levels_of
from smoothjax._transform import noted
from smoothjax._trees import wide_dtype
from smoothjax._typing import Axes, Metric, Score
from smoothjax.metrics._arguments import stochastic_metric
from smoothjax.metrics._features import judging
from smoothjax.noise import relative


@noted
def gaussian_perturbation(sigma: Any = relative(0.15)) -> Callable[..., jax.Array]:
    """Returns a perturbation for `infidelity`: independent Gaussian numbers.

    Args:
      sigma: their standard deviation, in the grammar of `smoothgrad`: a number or array that
        broadcasts to x, or a function of x such as `relative(0.15)`, or `relative(0.15, examples)`
        for tabular data; in the units of x.

    Returns:
      A function `perturbation(key, x)` that returns an array shaped like x, in at least float32:
      NaN where sigma is 0 everywhere, as `relative` is for a constant x, for no change judges
      nothing.

    Raises:
      TypeError, ValueError: here for a sigma that is no number or negative; when called, for one
        that does not fit x.

    >>> drawn = sj.metrics.gaussian_perturbation(0.5)(jax.random.key(0), jnp.zeros(100_000))
    >>> print(drawn.std().round(2))
    0.5
    """
    check_noise(sigma)

    def perturbation(key, x):
        level = levels_of(x, sigma)[0]
        level = jnp.where(jnp.any(level != 0), level, jnp.nan)
        eps = jax.random.normal(key, x.shape, wide_dtype(x.dtype))
        # Without the barrier XLA draws the same numbers again for each example of a batch.
        return level * jax.lax.optimization_barrier(eps)

    return perturbation


_GAUSSIAN = gaussian_perturbation()


@stochastic_metric
def infidelity(
    score: Score,
    *,
    num_samples: int = 100,
    perturbation: Callable[..., jax.Array] = _GAUSSIAN,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the error of an attribution as a linear model of what changes cost.

    `mean_i (sum(I_i attribution) - (score(x) - score(x - I_i)))^2` over random changes I of x, in
    the dtype of x. An attribution of fewer axes than x says the same of each channel.

    It is an error in the units of the score, so the scale of an attribution counts: gradients have
    the right one, squares and maps that were scaled for display have not. Captum can first rescale
    each attribution to what fits best; that forgives a wrong scale, and here the paper's definition
    is kept.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar, best a probability; or a
        stochastic one, which then gets the same key for every query.
      num_samples: the number of changes.
      perturbation: a function `perturbation(key, x)` that returns a random change, shaped like x:
        `x - I` is evaluated. For the default, Gaussian numbers of 0.15 times the range of x,
        SmoothGrad of the same level is the attribution of the least error. Tabular data need
        `gaussian_perturbation(relative(0.15, examples))`, as in `smoothgrad`.
      axes: the spatial axes of x, as in `deletion_curve`.
      argnum: as in `deletion_curve`.
      chunk_size: how many changes are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `error(key, params, x, attribution, *rest)` that returns a scalar, 0 or
      more, in the squared units of the score; lower is better. NaN if no change moves x, as by
      default where x is constant, or where changes are below the rounding of its dtype.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a change
        that is not shaped like x, the default one of an x of one entry, and as `deletion_curve`
        does.

    Cost: `num_samples + 1` evaluations of the score, the memory of `chunk_size` of them.

    Source: Yeh et al. 2019, arXiv 1901.09392.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.arange(3.0)
    >>> print(jax.jit(sj.metrics.infidelity(score))(jax.random.key(0), params, x, params).round(6))
    0.0
    """
    judged = judging(score, argnum, axes)
    check_function(perturbation, "perturbation")
    average = monte_carlo(num_samples, reductions.mean(), chunk_size)

    def error(key, *args, **kwargs):
        change_key, score_key = jax.random.split(key)
        x, attribution, query = judged(args, kwargs)
        require(
            perturbation is not _GAUSSIAN or x.size > 1,
            "the default perturbation is noise relative to max - min of x, and one of shape "
            f"{x.shape} has none. Type perturbation=gaussian_perturbation(0.1), in the units of x.",
        )
        wide = wide_dtype(x.dtype)
        whole = query(score_key, x)

        def squared_error(key):
            change = jnp.asarray(perturbation(key, x))
            alike = change.shape == x.shape
            require(alike, f"perturbation must be shaped like x, {x.shape}; got {change.shape}.")
            changed = (x.astype(wide) - change.astype(wide)).astype(x.dtype)
            change = x.astype(wide) - changed.astype(wide)  # as rounded to the dtype of x
            change = jnp.where(jnp.isfinite(x), change, 0)  # what is missing stays so
            predicted = jnp.sum(change * attribution.astype(wide))
            loss = whole - query(score_key, changed)
            moves = jnp.any(change != 0).astype(loss.dtype)
            return (predicted.astype(loss.dtype) - loss) ** 2, moves

        found, moves = average(squared_error, change_key)
        return jnp.where(moves > 0, found, jnp.nan)  # for what makes no test would pass it

    return error
