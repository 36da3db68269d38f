"""What a transform is: a function that takes an explainer and returns an explainer.

An explainer is any function `explain(params, x, *rest)`; a stochastic one takes a typed PRNG key
before its other arguments and carries a mark that says so. This module holds the mark, the checks
of keys and argument numbers, and the honest names and signatures that returned functions get.
"""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

PyTree = Any
Explainer = Callable[..., PyTree]

_MARK = "__smoothjax_stochastic__"


def stochastic(fun: Explainer) -> Explainer:
    """Returns `fun`, wrapped and marked as a function whose first argument is a PRNG key.

    Transforms pass a key on to functions that are marked and none to those that are not. `fun`
    itself is not changed. `jax.jit`, `jax.vmap`, `jax.grad` and `jax.checkpoint` keep the mark.

    Args:
      fun: a function `fun(key, *args)`, `key` a typed PRNG key as from `jax.random.key`.

    Returns:
      A function of the same arguments and values that carries the mark.

    Raises:
      TypeError: if `fun` is not callable.

    >>> import jax, smoothjax as sj
    >>> @sj.stochastic
    ... def dithered(key, params, x):
    ...     return params * x + jax.random.uniform(key, x.shape)
    >>> sj.is_stochastic(jax.jit(dithered))
    True
    """
    check_callable(fun, "stochastic")

    @functools.wraps(fun)
    def marked(key, /, *args, **kwargs):
        return fun(key, *args, **kwargs)

    setattr(marked, _MARK, True)
    return marked


def is_stochastic(fun: Explainer) -> bool:
    """Returns whether `fun` is marked as taking a PRNG key first.

    The mark is looked for behind wrappers (`__wrapped__`), and behind a `functools.partial` only if
    that binds no positional argument: `partial(fun, key)` is the way to freeze a key, and what it
    returns takes none.

    Args:
      fun: any function.

    Returns:
      True or False.

    >>> import functools, jax, smoothjax as sj
    >>> noisy = sj.smoothgrad(jax.grad(lambda w, x: w * x, argnums=1), 0.1)
    >>> sj.is_stochastic(noisy), sj.is_stochastic(functools.partial(noisy, jax.random.key(0)))
    (True, False)
    """
    while True:
        if isinstance(fun, functools.partial):
            if fun.args:
                return False
            fun = fun.func
        elif isinstance(getattr(fun, "__wrapped__", None), functools.partial):
            fun = fun.__wrapped__  # it may have been given the mark of what it freezes
        elif getattr(fun, _MARK, False) is True:
            return True
        elif hasattr(fun, "__wrapped__"):
            fun = fun.__wrapped__
        else:
            return False


def keyed(fun: Explainer) -> Explainer:
    """Returns `fun` as a function of `(key, *args)`, which drops the key unless `fun` is marked."""
    if is_stochastic(fun):
        return fun
    signature = _signature(fun)

    def without_key(key, *args, **kwargs):
        if signature is not None:
            _check_no_key_missing(fun, signature, args, kwargs)
        return fun(*args, **kwargs)

    return without_key


def named(
    name: str, fun: Explainer, takes_key: bool, signature: inspect.Signature | None = None
) -> Callable[[Explainer], Explainer]:
    """Returns a decorator for what `name` makes of `fun`: its name, doc, signature and mark.

    The decorated function is written for `(key, *args, **kwargs)`. If `takes_key`, the key is
    checked, and the function marked; if not, it is called with None. Its signature is the one
    given, or that of `fun`, with a key first where it takes one.
    """
    full_name = f"{name}({name_of(fun)})"

    def decorate(body):
        if takes_key:

            def explain(*args, **kwargs):
                _check_key(args, full_name)
                return body(*args, **kwargs)

        else:

            def explain(*args, **kwargs):
                return body(None, *args, **kwargs)

        explain.__name__ = explain.__qualname__ = full_name
        explain.__module__ = body.__module__
        doc = inspect.getdoc(fun)
        explain.__doc__ = f"{full_name}, made by smoothjax.{name}." + (f"\n\n{doc}" if doc else "")
        honest = signature or signature_with_key(fun, takes_key)
        if honest is not None:
            explain.__signature__ = honest  # pyright: ignore[reportFunctionMemberAccess]
        setattr(explain, _MARK, takes_key)
        return explain

    return decorate


def name_of(fun: Callable) -> str:
    """Returns a readable name of any callable, behind partials too."""
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", type(fun).__name__)


def check_callable(fun: Any, name: str) -> None:
    """Raises a TypeError if `fun`, which `name` is to transform, is not a function."""
    if not callable(fun):
        raise TypeError(f"{name} takes a function and returns a function; got {fun!r:.80}.")


def check_argnum(argnum: Any, name: str) -> int:
    """Returns `argnum` as an int, or raises."""
    number = check_integer(argnum, f"{name}: argnum")
    if number < 0:
        raise ValueError(
            f"{name}: argnum counts the arguments after the key, from 0; got {argnum}. "
            "Type argnum=0 for the params, argnum=1 for x."
        )
    return number


def check_integer(value: Any, what: str) -> int:
    """Returns a Python or NumPy integer as an int; anything else, bools included, is an error."""
    try:
        if isinstance(value, (bool, jax.Array)):  # an array may be traced another time
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{what} must be a Python int, known when building; got {value!r:.80}."
        ) from None


def check_at_least(value: Any, least: int, what: str) -> int:
    """Returns `value` as an int that is at least `least`, or raises."""
    number = check_integer(value, what)
    if number < least:
        raise ValueError(f"{what} must be at least {least}; got {number}.")
    return number


def check_number(value: Any, what: str) -> float:
    """Returns a real number that is known, or an array of one, as a float, or raises."""
    is_array = isinstance(value, (np.ndarray, np.generic, jax.Array))
    is_known = is_array and not isinstance(value, Tracer)
    if is_known and value.shape == () and jnp.issubdtype(value.dtype, np.number):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number; got {value!r:.80}.")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{what} must be a number that a float can hold.") from None


def check_axes(axes: Any, name: str) -> tuple[int, ...]:
    """Returns axes, such as (0, 1), as a tuple of different ints, or raises."""
    try:
        axes = tuple(axes)
    except TypeError:
        raise TypeError(f"{name}: axes must be a tuple like (0, 1); got {axes!r:.80}.") from None
    axes = tuple(check_integer(axis, f"{name}: each of axes") for axis in axes)
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"{name}: axes must be one or more different axes; got {axes}.")
    return axes


def axes_of(shape: tuple[int, ...], axes: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Returns `axes` counted from 0, or raises unless an array of that shape has them."""
    positive = tuple(axis % len(shape) for axis in axes if -len(shape) <= axis < len(shape))
    if len(set(positive)) < len(axes):
        raise ValueError(
            f"{name}: axes {axes} must be different axes of an array of shape {shape}. Type "
            "axes=(0,) for signals and tabular data, axes=(0, 1) for images."
        )
    return positive


def argument(args: tuple, argnum: int, name: str) -> PyTree:
    """Returns `args[argnum]`, or raises an error that says how arguments are counted."""
    if argnum >= len(args):
        raise TypeError(
            f"{name} acts on argument {argnum} (argnum={argnum}, counted from 0 after the key), "
            f"but got {len(args)} positional argument(s) after the key. For a function of x alone "
            "type argnum=0; an argument that is passed by keyword is left alone."
        )
    return args[argnum]


def is_float0(leaf: Any) -> bool:
    """Returns whether a leaf is the derivative of integers, which holds no numbers."""
    return getattr(leaf, "dtype", None) == jax.dtypes.float0


def wide_dtype(dtype: Any) -> Any:
    """Returns the dtype in which `dtype` is computed with: at least float32."""
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return jnp.dtype(dtype)


def replace(args: tuple, argnum: int, value: PyTree) -> tuple:
    """Returns `args` with the argument `argnum` replaced by `value`."""
    return (*args[:argnum], value, *args[argnum + 1 :])


def _signature(fun: Callable) -> inspect.Signature | None:
    try:
        return inspect.signature(fun)
    except (TypeError, ValueError):  # some builtins and C functions have none
        return None


def signature_with_key(fun: Callable, takes_key: bool) -> inspect.Signature | None:
    """Returns the signature of a function, with a key first if it takes one; None if not known."""
    signature = _signature(fun)
    if signature is None:
        return None
    signature = signature.replace(return_annotation=inspect.Signature.empty)
    if not takes_key or is_stochastic(fun):
        return signature
    name = "key"
    while name in signature.parameters:
        name += "_"
    key = inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[key, *signature.parameters.values()])


def _check_no_key_missing(fun, signature, args, kwargs):
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        try:
            signature.bind(None, *args, **kwargs)
        except TypeError:
            return  # not one argument short: the call itself says best what is wrong
        raise TypeError(
            f"{name_of(fun)}{signature} misses one argument, having got {len(args)} positional "
            f"one(s). If its first argument is a PRNG key, mark it: "
            f"smoothjax.stochastic({name_of(fun)})."
        ) from error


def _check_key(args, name):
    example = f"{name}(jax.random.key(0), ...)"
    if not args:
        raise TypeError(f"{name} needs a PRNG key as its first positional argument: {example}.")
    key = args[0]
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(
                f"{name} takes one PRNG key, got an array of keys of shape {key.shape}. Map over "
                f"them: jax.vmap(explain, in_axes=(0, None, ...)), or pass one key."
            )
    elif dtype == jnp.uint32 and key.shape[-1:] in ((2,), (4,)):
        raise TypeError(
            f"{name} takes a typed PRNG key, got a raw uint32 array of shape {key.shape}. Make "
            "keys with jax.random.key(seed), or wrap it: jax.random.wrap_key_data(key)."
        )
    else:
        got = f"an array of dtype {dtype}" if dtype is not None else f"a {type(key).__name__}"
        raise TypeError(
            f"{name} takes a PRNG key as its first positional argument, got {got}: {example}."
        )
