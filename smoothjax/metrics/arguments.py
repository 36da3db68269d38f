"""What a metric is called with: `metric(params, x, attribution, *rest)`, checked once for all."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax.transform import (
    Explainer,
    argument,
    check_argnum,
    named,
    signature_with_key,
    wide_dtype,
)

PyTree = Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def named_metric(
    name: str, score: Explainer, argnum: int, takes_key: bool
) -> Callable[[Explainer], Explainer]:
    """Returns a decorator as `named`, for a function of a score's arguments and an attribution."""
    signature = signature_with_key(score, takes_key)
    if signature is not None:
        place = check_argnum(argnum, name) + 1 + takes_key
        parameters = list(signature.parameters.values())
        before, after = parameters[:place], parameters[place:]
        # After *args, which takes the attribution as well, there is nothing to add.
        if len(before) == place and all(one.kind in _POSITIONAL for one in before):
            added = "attribution"
            while added in signature.parameters:
                added += "_"
            parameters = [*before, before[-1].replace(name=added), *after]
            signature = signature.replace(parameters=parameters)
    return named(name, score, takes_key, signature)


def without_attribution(args: tuple, argnum: int, name: str) -> tuple[tuple, PyTree, PyTree]:
    """Returns the arguments without the attribution, then x and the attribution that follows it."""
    x = argument(args, argnum, name)
    if argnum + 1 >= len(args):
        raise TypeError(
            f"{name} judges an attribution, which follows the argument that it explains: "
            f"metric(params, x, attribution, *rest), with a key first if the metric takes one. Got "
            f"{len(args)} positional argument(s) after the key."
        )
    return (*args[: argnum + 1], *args[argnum + 2 :]), x, args[argnum + 1]


def check_attribution(attribution: Any, name: str) -> jax.Array:
    """Returns an attribution as a real array in at least float32, or raises."""
    if not jax.tree_util.all_leaves([attribution]):
        raise TypeError(
            f"{name} judges an attribution that is one array; got a {type(attribution).__name__}. "
            "Of several arrays, judge each by itself; of an Estimate, its mean."
        )
    array = jnp.asarray(attribution)
    real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    if not real or array.size == 0:
        raise TypeError(
            f"{name} judges an attribution that is one array of real numbers; got one of dtype "
            f"{array.dtype} and shape {array.shape}."
        )
    return array.astype(wide_dtype(array.dtype))


def like_input(attribution: Any, x: jax.Array, name: str) -> jax.Array:
    """Returns an attribution of x with as many axes as x, trailing ones of length 1, or raises.

    Each of its entries is then one feature, which stands for all entries of x that it broadcasts
    to: of (H, W) or (H, W, 1), the channels of a pixel; of (H, W, channels), one entry.
    """
    if not jax.tree_util.all_leaves([x]):
        raise TypeError(f"{name} takes an x that is one array; got a {type(x).__name__}.")
    array = check_attribution(attribution, name)
    padded = pad_axes(array, jnp.ndim(x))
    if not broadcasts(padded, jnp.shape(x)):
        raise ValueError(
            f"{name}: an attribution must be shaped like x, {jnp.shape(x)}, or lack its last axes, "
            f"or have length 1 along some; got {array.shape}. For channels first, keep the axis: "
            "pool(explain, partial(jnp.sum, keepdims=True), axis=0)."
        )
    return padded


def pad_axes(array: jax.Array, ndim: int) -> jax.Array:
    """Returns an array with trailing axes of length 1, so that it has `ndim` or more axes."""
    return array.reshape(array.shape + (1,) * (ndim - array.ndim))


def broadcasts(array: jax.Array, shape: tuple[int, ...]) -> bool:
    """Returns whether an array has the axes of `shape`, each of that length or of length 1."""
    return array.ndim == len(shape) and all(
        have in (1, want) for have, want in zip(array.shape, shape, strict=True)
    )
