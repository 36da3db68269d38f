"""Axioms: equations that an attribution method promises to satisfy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._checks import check_scalar, require
from smoothjax._trees import is_float0
from smoothjax._typing import Metric, Score
from smoothjax.attribution.gradient import baseline_like
from smoothjax.metrics._arguments import at_attribution, check_attribution, metric
from smoothjax.reductions import check_no_estimate


@metric
def completeness_error(score: Score, baseline: Any = 0.0, *, argnum: int = 1) -> Metric:
    """Returns a metric: how far an attribution's sum is from what the score gained on the baseline.

    `sum(attribution) - (score(x) - score(baseline))`, signed; 0 is best. Integrated gradients reach
    it as `num_steps` grows. Smoothed or filtered ones do not, by construction.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one.
      baseline: as in `integrated_gradients`.
      argnum: the argument that is explained, counted from 0 after the key: 1 is x.

    Returns:
      A function `error(params, x, attribution, *rest)` that returns a scalar, with a key first if
      the score is stochastic. The attribution follows the argument that it explains.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a missing
        argument, an attribution or a baseline that does not fit x, an `Estimate`, or a score that
        is no real scalar.

    Cost: two evaluations of the score.

    Source: Sundararajan et al. 2017, arXiv 1703.01365.

    >>> score = lambda params, x: jnp.sum(params * x**2)
    >>> params, x = jnp.ones(3), jnp.arange(3.0)
    >>> attribution = sj.integrated_gradients(score)(params, x)
    >>> print(abs(sj.metrics.completeness_error(score)(params, x, attribution)) < 1e-5)
    True
    """
    at = at_attribution(score, argnum)

    def error(key, *args, **kwargs):
        x, attribution, score_at = at(args, kwargs)
        leaves = _leaves_like(attribution, x)
        start = baseline_like(baseline, x)
        gain = check_scalar(score_at(key, x)) - check_scalar(score_at(key, start))
        return sum(jnp.sum(leaf).astype(gain.dtype) for leaf in leaves) - gain

    return error


def _leaves_like(attribution, x):
    """The leaves of an attribution of a pytree x that hold numbers, or raises."""
    check_no_estimate(attribution)
    pairs = []
    jax.tree.map(lambda leaf, part: pairs.append((leaf, part)), x, attribution)
    return [_like(part, np.shape(leaf)) for leaf, part in pairs if not is_float0(part)]


def _like(part, shape):
    part = check_attribution(part)
    fits = part.shape in (shape, shape[:-1], (*shape[:-1], 1))
    require(
        fits, f"an attribution is shaped like x, {shape}, or lacks its last axis; got {part.shape}."
    )
    return part
