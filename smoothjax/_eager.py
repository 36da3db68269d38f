"""Eager calls that compile once.

JAX keeps what it compiled for a function object, and the body of a loop over draws is a new one at
each call. So outside of `jax.jit` each call would compile its loop anew, and keep the program.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

_DEBUGGING = ("jax_disable_jit", "jax_debug_nans", "jax_debug_key_reuse")
_DEVICE = "jax_default_device"


def once_compiled(fun: Callable[[], Any], programs: dict[Any, Any]) -> Any:
    """Returns `fun()`; of an eager call by a program of `programs`, where it is kept for the next.

    The function is traced at each call, so that it may close over what changes, and its program is
    known by its text. Under JAX's debugging flags it runs as it would without this.
    """
    if any(getattr(jax.config, flag) for flag in _DEBUGGING) or _is_traced():
        return fun()
    closed, shape = jax.make_jaxpr(fun, return_shape=True)()
    arrays = closed.consts
    # The text of a program does not tell one callback from another.
    if any(isinstance(a, Tracer) for a in arrays) or "callback" in str(closed.jaxpr):
        return fun()

    def of_arrays(arrays):
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, arrays))()

    lowered = jax.jit(of_arrays).lower(arrays)
    text = hashlib.sha256(lowered.as_text().encode()).digest()
    places = (getattr(array, "sharding", None) for array in arrays)
    name = text, getattr(jax.config, _DEVICE), *places
    if name not in programs:
        programs[name] = lowered.compile()
    return jax.tree.structure(shape).unflatten(programs[name](arrays))


def _is_traced() -> bool:
    """Whether an operation on constants would be traced."""
    return isinstance(jnp.zeros(()), Tracer)
