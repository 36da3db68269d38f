"""What a metric is called with: `metric(params, x, attribution, *rest)`, checked once for all."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._axes import IMAGE, axes_of, check_one_image
from smoothjax._checks import require
from smoothjax._transform import argument, at_argument, signature_with_key, transform
from smoothjax._trees import is_real, wide_dtype
from smoothjax._typing import PyTree, Score

F = TypeVar("F", bound=Callable[..., Any])

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def metric(factory: F) -> F:
    """Returns `factory(score, ...)` as a transform to a judge of attributions."""
    return transform(signature=_with_attribution)(factory)


def stochastic_metric(factory: F) -> F:
    """Returns `factory(score, ...)` as a transform to a judge of attributions that takes a key."""
    return transform(takes_key=True, signature=_with_attribution)(factory)


def at_attribution(
    score: Score, argnum: Any
) -> Callable[[tuple, dict], tuple[PyTree, PyTree, Callable[[Any, PyTree], Any]]]:
    """Returns `at(args, kwargs) -> x, attribution, score_at`, the score a function of (key, x).

    The attribution follows the argument that it explains.
    """
    at = at_argument(score, argnum)

    def judged(args, kwargs):
        argument(args, argnum)
        has_attribution = argnum + 1 < len(args)
        require(
            has_attribution,
            "the attribution is missing: (params, x, attribution, *rest).",
            TypeError,
        )
        x, score_at = at((*args[: argnum + 1], *args[argnum + 2 :]), kwargs)
        return x, args[argnum + 1], score_at

    return judged


def check_attribution(attribution: Any) -> jax.Array:
    """Returns an attribution as a real array in at least float32, or raises."""
    require(
        is_real(attribution) and np.size(attribution),
        f"an attribution must be one array of real numbers; got {attribution!r:.80}. Judge the "
        "mean of an Estimate, each array of a pytree, and jnp.asarray(values) of a list.",
        TypeError,
    )
    array = jnp.asarray(attribution)
    return array.astype(wide_dtype(array.dtype))


def like_input(attribution: Any, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns an attribution of x with as many axes as x, or raises.

    Along `axes` it has the lengths of x; along the others too, or 1, or it lacks them. Each of its
    entries is then one feature, which stands for all entries of x that it broadcasts to: of (H, W)
    or (H, W, 1), the channels of a pixel; of (H, W, channels), one entry.
    """
    require(
        jax.tree_util.all_leaves([x]),
        f"x must be one array; got a {type(x).__name__}. Judge the map of one of its arrays, by a "
        "score of that array alone: lambda params, image: score(params, {**x, 'image': image}).",
        TypeError,
    )
    array, shape = check_attribution(attribution), jnp.shape(x)
    if axes is IMAGE:
        check_one_image(shape)
    if array.shape == shape:
        return array
    spatial = axes_of(shape, axes)
    if array.ndim == len(axes):
        array = jnp.expand_dims(array, [axis for axis in range(len(shape)) if axis not in spatial])
    require(
        broadcasts(array, shape) and all(array.shape[axis] == shape[axis] for axis in spatial),
        f"an attribution of x, {shape}, keeps its axes {axes}, and has the others too, or length 1 "
        f"along them, or lacks them; got {jnp.shape(attribution)}. Was it pooled twice, or are "
        "other axes spatial? Type axes=(0,) for signals, axes=(1, 2) for channels first.",
    )
    return array


def summable(values: jax.Array) -> jax.Array:
    """Returns values that are not negative times a power of 2, ones where all are 0.

    Their sum does not overflow, and tiny ones have one that is not 0. Not over the largest of them:
    XLA may multiply with its inverse, and that of 3e38 is 0 on a CPU.
    """
    largest = jnp.max(values)
    factor = jnp.where(largest > 1, 2.0**-64, 2.0**64).astype(values.dtype)
    return jnp.where(largest == 0, 1, values) * factor


def pad_axes(array: jax.Array, ndim: int) -> jax.Array:
    """Returns an array with trailing axes of length 1, so that it has `ndim` or more axes."""
    return array.reshape(array.shape + (1,) * (ndim - array.ndim))


def broadcasts(array: jax.Array, shape: tuple[int, ...]) -> bool:
    """Returns whether an array has the axes of `shape`, each of that length or of length 1."""
    return array.ndim == len(shape) and all(
        have in (1, want) for have, want in zip(array.shape, shape, strict=True)
    )


def _with_attribution(score, takes_key, settings):
    """The signature of a score with an attribution behind the argument that is explained."""
    signature = signature_with_key(score, takes_key)
    if signature is None:
        return None
    place = settings["argnum"] + 1 + takes_key
    parameters = list(signature.parameters.values())
    before, after = parameters[:place], parameters[place:]
    # After *args, which takes the attribution as well, there is nothing to add.
    if len(before) < place or not all(one.kind in _POSITIONAL for one in before):
        return signature
    added = "attribution"
    while added in signature.parameters:
        added += "_"
    return signature.replace(parameters=[*before, before[-1].replace(name=added), *after])
