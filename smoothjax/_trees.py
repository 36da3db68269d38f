"""Pytrees: their leaves divided and put together, and values that broadcast to them.

A noise level, a selection and a baseline follow one grammar: a value for everything, a pytree
prefix of values, or a function of the part of the argument that it stands for, which returns
either. A function is callable *and* a leaf: a module can be callable, and is a pytree of values.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._typing import PyTree


def partition(tree: PyTree, predicate: Callable[[Any], bool]) -> tuple[PyTree, PyTree]:
    """Returns the leaves that satisfy `predicate` and the others, each with None for the rest."""
    chosen = jax.tree.map(lambda leaf: leaf if predicate(leaf) else None, tree)
    others = jax.tree.map(lambda leaf: None if predicate(leaf) else leaf, tree)
    return chosen, others


def combine(chosen: PyTree, others: PyTree) -> PyTree:
    """Returns the tree of which `partition` made two."""

    def either(one, other):
        return other if one is None else one

    return jax.tree.map(either, chosen, others, is_leaf=lambda leaf: leaf is None)


def is_array(leaf: Any) -> bool:
    """Returns whether a leaf is an array of JAX or NumPy."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def is_inexact(leaf: Any) -> bool:
    """Returns whether a leaf is an array of floating-point or complex numbers."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_float0(leaf: Any) -> bool:
    """Returns whether a leaf is the derivative of integers, which holds no numbers."""
    return getattr(leaf, "dtype", None) == jax.dtypes.float0


def is_real(value: Any) -> bool:
    """Returns whether a value is a real number, or an array of those; bools are not."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or is_array(value)):
        return False
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    dtype = jnp.result_type(value) if is_array(value) else np.dtype(float)
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def is_function(rule: Any) -> bool:
    """Returns whether a value is a function, and not a module that can be called."""
    return callable(rule) and jax.tree_util.all_leaves([rule])


def wide_dtype(dtype: Any) -> Any:
    """Returns the dtype in which `dtype` is computed with: at least float32."""
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return jnp.dtype(dtype)


def without_numbers(leaf: Any) -> np.ndarray:
    """Returns the derivative of a leaf that has none: zeros of dtype float0."""
    return np.zeros(np.shape(leaf), jax.dtypes.float0)


def path_string(path: tuple) -> str:
    """Returns the path of a leaf, such as "layer/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_name(path: tuple) -> str:
    """Returns how an error speaks of a leaf."""
    return f"the leaf {path_string(path)!r}" if path else "the argument"


def check_has_inexact(tree: PyTree, what: str = "the argument holds") -> None:
    """Raises if an argument has no floating-point array to perturb or to differentiate."""
    leaves = jax.tree.leaves(tree)
    if not any(map(is_inexact, leaves)):
        kinds = sorted({str(x.dtype) if is_array(x) else type(x).__name__ for x in leaves})
        raise TypeError(
            f"floating-point arrays are needed, but {what} {kinds}. Convert it, "
            "x.astype(jnp.float32), of a list or tensor jnp.asarray(x, float), of a data frame "
            "x.to_numpy(), or choose another argument with argnum."
        )


def resolve(rule: Any, tree: PyTree, name: str) -> list[Any]:
    """Returns the values of a rule, one for each leaf of the tree."""
    if is_function(rule):
        return resolve(rule(tree), tree, name)
    parts = []
    try:
        jax.tree.map(lambda value, part: parts.append((value, part)), rule, tree)
    except ValueError as error:
        raise ValueError(
            f"{name} must be one value or a pytree prefix of the argument. Lists and tuples are "
            f"pytrees: for an array of values type jnp.asarray([...]). {error}"
        ) from None
    flat = []
    for value, part in parts:
        same = [value] * len(jax.tree.leaves(part))
        flat.extend(resolve(value, part, name) if is_function(value) else same)
    return flat


def fit(value: Any, leaf: jax.Array, name: str, path: tuple = ()) -> jax.Array:
    """Returns `value` in a leaf's wide dtype and with as many axes, to broadcast to it."""
    if not is_real(value):
        raise TypeError(f"{name} must be a real number or array; got {value!r:.80}.")
    try:
        shape = np.broadcast_shapes(np.shape(value), leaf.shape)
    except ValueError:
        shape = None
    if shape != leaf.shape:
        what = f"{leaf_name(path)} of shape {leaf.shape}"
        raise ValueError(f"{name} of shape {np.shape(value)} does not broadcast to {what}.")
    axes = (1,) * (len(leaf.shape) - np.ndim(value)) + np.shape(value)
    return jnp.asarray(value, wide_dtype(leaf.dtype)).reshape(axes)
