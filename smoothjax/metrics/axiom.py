"""Axioms: equations that an attribution method promises to satisfy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax.attribution.gradient import baseline_like
from smoothjax.attribution.masking import check_scalar
from smoothjax.metrics.arguments import like_input, named_metric, without_attribution
from smoothjax.reductions import check_no_estimate
from smoothjax.transform import (
    Explainer,
    check_argnum,
    check_callable,
    is_float0,
    is_stochastic,
    keyed,
    replace,
)

PyTree = Any


def completeness_error(
    score: Explainer, baseline: Any = 0.0, *, argnum: int = 1
) -> Callable[..., jax.Array]:
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

    >>> import jax.numpy as jnp, smoothjax as sj
    >>> score = lambda params, x: jnp.sum(params * x**2)
    >>> params, x = jnp.ones(3), jnp.arange(3.0)
    >>> attribution = sj.integrated_gradients(score)(params, x)
    >>> print(abs(sj.metrics.completeness_error(score)(params, x, attribution)) < 1e-5)
    True
    """
    name = "completeness_error"
    check_callable(score, name)
    argnum = check_argnum(argnum, name)
    inner = keyed(score)

    @named_metric(name, score, argnum, is_stochastic(score))
    def error(key, *args, **kwargs):
        args, x, attribution = without_attribution(args, argnum, name)
        leaves = _check_like(attribution, x, name)
        start = baseline_like(baseline, x, name)
        there = check_scalar(inner(key, *args, **kwargs), name)
        gain = there - check_scalar(inner(key, *replace(args, argnum, start), **kwargs), name)
        return sum(jnp.sum(leaf).astype(gain.dtype) for leaf in leaves) - gain

    return error


def _check_like(attribution, x, name):
    """The leaves of an attribution of a pytree x that hold numbers, or raises."""
    check_no_estimate(attribution, name)
    want, got = jax.tree.structure(x), jax.tree.structure(attribution)
    if got != want:
        raise ValueError(
            f"{name}: an attribution must be a pytree like x, {want!s:.200}; got {got!s:.200}."
        )
    pairs = zip(jax.tree.leaves(attribution), jax.tree.leaves(x), strict=True)
    return [like_input(part, leaf, name) for part, leaf in pairs if not is_float0(part)]
