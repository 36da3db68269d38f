"""Noise levels, selections of leaves, and samplers.

A noise level `sigma` and a selection `where` follow one grammar: a value for everything, a pytree
prefix of values, or a function of the argument, or of a part of it, that returns either.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import erfinv

from smoothjax._box_muller import box_muller as box_muller
from smoothjax._checks import check_function, require
from smoothjax._perturb import check_not_negative
from smoothjax._transform import noted
from smoothjax._trees import fit, is_inexact, is_real, leaf_name, path_string, wide_dtype
from smoothjax._typing import Rule


@noted
def relative(level: Any) -> Rule:
    """Returns the noise-level rule of SmoothGrad: `level` times each leaf's range (max - min).

    Args:
      level: a fraction of the range, such as 0.15; may be traced.

    Returns:
      A function from an argument to a pytree of levels in the argument's units, for `sigma`.

    Raises:
      ValueError: if `level` is a negative number; when called, for a leaf of one element, which has
        no range.

    Source: Smilkov et al. 2017, arXiv 1706.03825.

    >>> print(sj.relative(0.15)(jnp.array([-1.0, 0.0, 3.0])))
    0.6
    """
    check_not_negative(level, "level")

    def of_leaf(path, x):
        require(
            x.size > 1,
            f"relative noise is a fraction of max - min, and {leaf_name(path)} of shape {x.shape} "
            "has none. Give sigma in the argument's own units.",
        )
        return jnp.asarray(level, x.dtype) * (jnp.max(x) - jnp.min(x))

    return _rule(of_leaf)


@noted
def adaptive(bounds: tuple[Any, Any], confidence: Any = 0.95) -> Rule:
    """Returns the noise-level rule of AdaptGrad: per element, from its distance to the bounds.

    `sigma_i = min(|x_i - lo|, |x_i - hi|) / (sqrt(2) erfinv(confidence))`, so that a draw leaves
    `[lo, hi]` with probability at most `1 - confidence`. An element on or outside a bound gets 0.

    Args:
      bounds: a pair (lo, hi) of numbers or arrays that broadcast to each leaf, per channel for
        example, in the argument's own units: the domain of its values.
      confidence: above 0 and below 1; may be traced.

    Returns:
      A function from an argument to a pytree of levels in the argument's units, for `sigma`.

    Raises:
      ValueError: if the bounds are no pair with lo < hi everywhere, if the confidence is not inside
        (0, 1), or, when called, if the bounds do not broadcast to a leaf.

    Source: Zhou et al. 2025, arXiv 2410.07711.

    >>> print(sj.adaptive((0.0, 1.0), 0.5)(jnp.array([0.0, 0.25, 0.5, 2.0])).round(2))
    [0.   0.37 0.74 0.  ]
    """
    lo, hi = _check_bounds(bounds)
    _check_confidence(confidence)

    def of_leaf(path, x):
        low = fit(lo, x, "the lower bound", path)
        high = fit(hi, x, "the upper bound", path)
        room = jnp.maximum(jnp.minimum(x - low, high - x), 0)
        return room / (math.sqrt(2) * erfinv(jnp.asarray(confidence, x.dtype)))

    return _rule(of_leaf)


@noted
def by_path(predicate: Callable[[str], bool]) -> Rule:
    """Returns a selection for `where`: the leaves whose path satisfies `predicate`.

    Args:
      predicate: a function from a path such as "layer/kernel" to True (perturb) or False. The path
        of a leaf is `jax.tree_util.keystr(path, simple=True, separator="/")`. In the state of a
        Flax NNX model paths end in "/value": look for "kernel" in them.

    Returns:
      A function from an argument to a pytree of bools.

    Raises:
      TypeError: if `predicate` is not callable.

    >>> sj.by_path(lambda path: path.endswith("kernel"))({"layer": {"kernel": 1.0, "bias": 2.0}})
    {'layer': {'bias': False, 'kernel': True}}
    """
    check_function(predicate, "predicate")

    def select(argument):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: bool(predicate(path_string(path))), argument
        )

    return select


def _rule(of_leaf):
    """The rule with the level `of_leaf(path, x)`, x a floating-point leaf in its wide dtype."""

    def level(path, leaf):
        if not is_inexact(leaf):
            return 0.0
        return of_leaf(path, jnp.asarray(leaf).astype(wide_dtype(leaf.dtype)))

    return lambda argument: jax.tree_util.tree_map_with_path(level, argument)


def _check_bounds(bounds):
    try:
        lo, hi = bounds
        is_pair = is_real(lo) and is_real(hi)
        np.broadcast_shapes(np.shape(lo), np.shape(hi))
    except (TypeError, ValueError):
        is_pair = False
    if not is_pair:
        raise ValueError(
            "bounds must be a pair (lo, hi) of real numbers or arrays that broadcast to each "
            f"other; got {bounds!r:.80}."
        )
    known = not isinstance(lo, Tracer) and not isinstance(hi, Tracer)
    if known and not np.all(np.asarray(lo) < np.asarray(hi)):
        raise ValueError(f"bounds must have lo < hi everywhere; got {lo} and {hi}.")
    return lo, hi


def _check_confidence(confidence):
    if not is_real(confidence) or np.shape(confidence) != ():
        raise TypeError(f"confidence must be a number like 0.95; got {confidence!r:.80}.")
    # In float32, as it is used: a confidence that rounds to 1 would leave no noise.
    if not isinstance(confidence, Tracer) and not 0 < np.float32(confidence) < 1:
        raise ValueError(f"confidence must be inside (0, 1), like 0.95; got {confidence}.")
