"""The checks of settings: what was got, what is needed, what to type.

They name the parameter; the function that it belongs to is named by `_transform.noted`.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._trees import is_array, wide_dtype


def require(condition: Any, message: str, error: type[Exception] = ValueError) -> None:
    """Raises an error with this message unless the condition holds."""
    if not condition:
        raise error(message)


def check_function(fun: Any, name: str) -> None:
    """Raises if a setting called `name` is not a function."""
    require(callable(fun), f"{name} must be a function; got {fun!r:.80}.", TypeError)


def check_integer(value: Any, name: str, least: int | None = None) -> int:
    """Returns a Python or NumPy integer as an int that is at least `least`, or raises."""
    try:
        if isinstance(value, (bool, jax.Array)):  # an array may be traced another time
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a Python int, known when building; got {value!r:.80}."
        ) from None
    require(least is None or number >= least, f"{name} must be at least {least}; got {number}.")
    return number


def check_number(
    value: Any,
    name: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> float:
    """Returns a known real number as a float inside the given bounds, or raises."""
    is_array = isinstance(value, (np.ndarray, np.generic, jax.Array))
    is_known = is_array and not isinstance(value, Tracer)
    if is_known and value.shape == () and jnp.issubdtype(value.dtype, np.number):
        value = value.item()
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    require(is_real, f"{name} must be a number; got {value!r:.80}.", TypeError)
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can hold.") from None
    bounds = {"above": above, "at least": least, "below": below}
    wanted = " and ".join(f"{how} {bound}" for how, bound in bounds.items() if bound is not None)
    inside = (above is None or number > above) and (least is None or number >= least)
    inside = inside and (below is None or number < below)
    require(inside, f"{name} must be {wanted}; got {value}.")
    return number


def check_ordered(low: Any, high: Any, name: str) -> None:
    """Raises unless bounds have low < high everywhere, as far as is known."""
    known = not isinstance(low, Tracer) and not isinstance(high, Tracer)
    require(
        not known or np.all(np.asarray(low) < np.asarray(high)),
        f"{name} must have low < high everywhere; got {low!s:.80} and {high!s:.80}.",
    )


def check_index(value: Any, num: int, name: str) -> jax.Array:
    """Returns the number of one of `num` things, which may be traced, as an int32, or raises."""
    index = jnp.asarray(value)
    is_index = index.shape == () and jnp.issubdtype(index.dtype, jnp.integer)
    inside = isinstance(index, Tracer) or (is_index and 0 <= index < num)
    require(is_index and inside, f"{name} must be an int from 0 to {num - 1}; got {value!r:.80}.")
    return index.astype(jnp.int32)


def check_per_axis(values: Any, axes: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Returns a positive integer for each axis, of one for all or one for each, or raises."""
    values = tuple(values) if isinstance(values, (tuple, list)) else (values,) * len(axes)
    fits = len(values) == len(axes)
    require(fits, f"{name} must be one number or one for each of axes {axes}; got {values}.")
    return tuple(check_integer(value, name, least=1) for value in values)


def check_leading_axis(tree: Any, name: str, least: int = 1) -> int:
    """Returns how many examples are stacked along the leading axis of each leaf, or raises."""
    for leaf in jax.tree.leaves(tree):
        require(
            is_array(leaf),
            f"{name} must be arrays, stacked along a leading axis; got a {type(leaf).__name__}. Of "
            "a list, give jnp.asarray(values); of a data frame, its to_numpy().",
            TypeError,
        )
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    require(
        len(sizes) == 1 and min(sizes) >= least,
        f"{name} must be stacked along a leading axis of one length, at least {least}; got "
        f"leaves of shapes {shapes!s:.200}.",
    )
    return sizes.pop()


def check_scalar(value: Any) -> jax.Array:
    """Returns a score in at least float32, or raises unless it is a real scalar."""
    require(
        jax.tree_util.all_leaves([value]),
        f"the score must be a real scalar; got a {type(value).__name__}. Pick one of its entries.",
        TypeError,
    )
    value = jnp.asarray(value)
    require(
        value.shape == () and not jnp.issubdtype(value.dtype, jnp.complexfloating),
        "the score must be a real scalar for one example; got an array of shape "
        f"{value.shape} and dtype {value.dtype}. Pick one output, such as a class's logit; for a "
        "batch of examples, jax.vmap what the score is given to.",
        TypeError,
    )
    return value.astype(wide_dtype(value.dtype))


def check_differentiable(value: Any) -> jax.Array:
    """Returns a score in at least float32, or raises unless it can have a derivative."""
    wide = check_scalar(value)
    require(
        jnp.issubdtype(jnp.result_type(value), jnp.floating),
        f"the score must have a derivative; got one of dtype {jnp.result_type(value)}, as that of "
        "an argmax or of a comparison. Pick a class's logit.",
        TypeError,
    )
    return wide
