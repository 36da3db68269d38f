"""Noise levels, selections of leaves, and samplers.

A noise level `sigma` and a selection `where` follow one grammar: a value for everything, a pytree
prefix of values, or a function of the argument, or of a part of it, that returns either.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import erfinv

from smoothjax._box_muller import box_muller as box_muller
from smoothjax._checks import check_function, check_leading_axis, check_ordered, require
from smoothjax._perturb import by_range, check_not_negative
from smoothjax._shown import listed, shown
from smoothjax._transform import noted
from smoothjax._trees import (
    fit,
    is_inexact,
    is_real,
    leaf_name,
    path_string,
    resolve,
    wide_dtype,
)
from smoothjax._typing import Rule


@shown
@noted
def span(values: jax.Array, axis: Any = None) -> jax.Array:
    """Returns max - min of the finite values: missing values (NaN) and infinite ones do not count.

    Args:
      values: an array of real numbers.
      axis: the axis along which it is taken; None means all of them.

    Returns:
      An array without that axis, 0 where fewer than two values are finite.

    >>> print(sj.noise.span(jnp.array([[1.0, 40.0], [jnp.nan, 50.0], [4.0, jnp.inf]]), axis=0))
    [ 3. 10.]
    """
    finite = jnp.isfinite(values)
    most = jnp.max(jnp.where(finite, values, -jnp.inf), axis)
    least = jnp.min(jnp.where(finite, values, jnp.inf), axis)
    return jnp.where(jnp.any(finite, axis), most - least, 0)


@noted
def relative(level: Any, examples: Any = None, *, spread: Callable[..., Any] = span) -> Rule:
    """Returns the noise-level rule of SmoothGrad: `level` times the range (max - min).

    The range is that of each leaf, as photos need it, whose entries have one unit. Tabular data,
    whose features have units of their own, need `examples`: the range is then that of each feature.
    Without them every feature gets the noise of the one with the greatest numbers, which no check
    can see.
    Missing values (NaN) and infinite ones do not count; a code for them, such as -999, does.

    Args:
      level: a fraction of the range, such as 0.15; may be traced.
      examples: the argument for many examples, such as the training data: structured like it, and
        stacked along a leading axis of each leaf.
      spread: what is taken for the range, a function `spread(values, axis)`, such as `jnp.nanstd`.

    Returns:
      A function from an argument to a pytree of levels in the argument's units, for `sigma`.

    Raises:
      TypeError, ValueError: if `level` is a negative number, or if the examples are no arrays or
        have no finite spread; when called, for a leaf of one element, which has no range, or for
        one that is not shaped like an example.

    Source: Smilkov et al. 2017, arXiv 1706.03825.

    >>> print(sj.relative(0.15)(jnp.array([-1.0, 0.0, 3.0])))
    0.6
    >>> metres_and_kilos = jnp.array([[1.5, 50.0], [2.0, 90.0], [1.75, jnp.nan]])
    >>> print(sj.relative(0.1, metres_and_kilos)(jnp.array([1.75, 60.0])))
    [0.05 4.  ]
    """
    check_not_negative(level, "level")
    check_function(spread, "spread")

    def of_range(path, x, _):
        require(
            x.size > 1,
            f"relative noise is a fraction of max - min, and {leaf_name(path)} of shape {x.shape} "
            "has none. Give sigma in the argument's own units, or `examples`.",
        )
        return jnp.asarray(level, x.dtype) * spread(x, None)

    def of_feature(path, x, spreads):
        require(
            spreads.shape == x.shape,
            f"each of the examples has shape {spreads.shape}, and {leaf_name(path)} has {x.shape}. "
            "They are stacked along a leading axis.",
        )
        return jnp.asarray(level, x.dtype) * spreads.astype(x.dtype)

    if examples is None:
        return by_range(_rule(of_range))
    check_leading_axis(examples, "examples", least=2)
    spreads = jax.tree.map(lambda leaf: _spreads(leaf, spread), examples)
    return _rule(of_feature, spreads, "examples")


@noted
def adaptive(bounds: Any, confidence: Any = 0.95) -> Rule:
    """Returns the noise-level rule of AdaptGrad: per element, from its distance to the bounds.

    `sigma_i = min(|x_i - lo|, |x_i - hi|) / (sqrt(2) erfinv(confidence))`, so that a draw leaves
    `[lo, hi]` with probability at most `1 - confidence`. An element on or outside a bound gets 0,
    and so does a missing value (NaN).

    Args:
      bounds: a pair (lo, hi) of numbers or arrays that broadcast to each leaf, per channel for
        example, in the argument's own units: the domain of its values. Or a pytree prefix of pairs,
        such as `{"image": (0.0, 1.0), "table": (lows, highs)}`; a tuple of two numbers or arrays is
        always a pair.
      confidence: above 0 and below 1; may be traced.

    Returns:
      A function from an argument to a pytree of levels in the argument's units, for `sigma`.

    Raises:
      ValueError: if the bounds are no pairs with lo < hi everywhere, if the confidence is not
        inside (0, 1), or, when called, if the bounds do not broadcast to a leaf.

    Source: Zhou et al. 2025, arXiv 2410.07711.

    >>> print(sj.adaptive((0.0, 1.0), 0.5)(jnp.array([0.0, 0.25, 0.5, 2.0])).round(2))
    [0.   0.37 0.74 0.  ]
    """
    pairs = _pairs_of(bounds)
    _check_confidence(confidence)

    def of_leaf(path, x, pair):
        low = fit(pair.lo, x, "the lower bound", path)
        high = fit(pair.hi, x, "the upper bound", path)
        room = jnp.maximum(jnp.minimum(x - low, high - x), 0)
        room = jnp.where(jnp.isnan(x), 0, room)
        return room / (math.sqrt(2) * erfinv(jnp.asarray(confidence, x.dtype)))

    rule = _rule(of_leaf, pairs, "bounds, pairs (lo, hi) of numbers or arrays,")
    return by_range(rule) if isinstance(pairs, _Pair) else rule


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


def _rule(of_leaf, given: Any = 0.0, name: str = "sigma"):
    """The rule with the level `of_leaf(path, x, value)`, x a floating-point leaf in its wide dtype.

    The values are those of `given`, a pytree prefix of the argument.
    """

    def level(path, leaf, value):
        if not is_inexact(leaf):
            return 0.0
        return of_leaf(path, jnp.asarray(leaf).astype(wide_dtype(leaf.dtype)), value)

    def rule(argument):
        values = jax.tree.structure(argument).unflatten(resolve(given, argument, name))
        return jax.tree_util.tree_map_with_path(level, argument, values)

    return rule


def _spreads(values, spread):
    """The spread of each feature of examples, shaped like one example."""
    values = jnp.asarray(values)
    values = values.astype(wide_dtype(values.dtype))
    found = spread(values, 0)
    known = is_real(found) and not isinstance(found, Tracer)
    require(
        not known or np.all(np.isfinite(found)),
        f"spread(examples, 0) must be finite; got {found!s:.80}. Where values are missing, type "
        "spread=jnp.nanstd.",
    )
    check_not_negative(found, "spread(examples, 0)")
    return jnp.broadcast_to(found, values.shape[1:])


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Bounds, as a leaf."""

    lo: Any
    hi: Any


def _is_pair(node):
    if not isinstance(node, (tuple, list)) or len(node) != 2 or not all(map(is_real, node)):
        return False
    try:
        np.broadcast_shapes(*map(np.shape, node))
    except ValueError:
        return False
    return True


def _pairs_of(bounds):
    """A `_Pair`, or a pytree of them."""
    try:
        pairs = jax.tree.map(_pair_of, bounds, is_leaf=_is_pair)
        return pairs if jax.tree.leaves(pairs) else _pair_of(bounds)
    except TypeError:
        raise ValueError(
            "bounds must be a pair (lo, hi) of real numbers or arrays that broadcast to each "
            "other, or a pytree prefix of pairs; of lists, type (jnp.asarray(lo), "
            f"jnp.asarray(hi)). Got {bounds!r:.80}."
        ) from None


def _pair_of(pair):
    if not _is_pair(pair):
        raise TypeError
    lo, hi = pair
    check_ordered(lo, hi, "bounds")
    return _Pair(lo, hi)


def _check_confidence(confidence):
    if not is_real(confidence) or np.shape(confidence) != ():
        raise TypeError(f"confidence must be a number like 0.95; got {confidence!r:.80}.")
    # In float32, as it is used: a confidence that rounds to 1 would leave no noise.
    if not isinstance(confidence, Tracer) and not 0 < np.float32(confidence) < 1:
        raise ValueError(f"confidence must be inside (0, 1), like 0.95; got {confidence}.")


__dir__ = listed(globals(), "box_muller")
