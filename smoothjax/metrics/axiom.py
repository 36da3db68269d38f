"""Axioms: equations that an attribution method promises to satisfy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax.attribution.gradient import baseline_like
from smoothjax.transform import (
    Explainer,
    argument,
    check_argnum,
    check_callable,
    is_float0,
    is_stochastic,
    keyed,
    named,
    replace,
    wide_dtype,
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
      TypeError, ValueError: for bad settings, a missing argument, or a baseline that does not fit.

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

    @named(name, score, takes_key=is_stochastic(score))
    def error(key, *args, **kwargs):
        x = argument(args, argnum, name)
        attribution = argument(args, argnum + 1, name)
        args = (*args[: argnum + 1], *args[argnum + 2 :])
        start = baseline_like(baseline, x, name)
        gain = inner(key, *args, **kwargs) - inner(key, *replace(args, argnum, start), **kwargs)
        gain = gain.astype(wide_dtype(gain.dtype))
        leaves = [jnp.asarray(a) for a in jax.tree.leaves(attribution) if not is_float0(a)]
        total = sum(jnp.sum(a.astype(wide_dtype(a.dtype))).astype(gain.dtype) for a in leaves)
        return total - gain

    return error
