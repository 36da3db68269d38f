"""What a transform is: a function that takes a function and returns a function.

An explainer is any function `explain(params, x, *rest)`; a stochastic one takes a typed PRNG key
before its other arguments and carries a mark that says so. This module holds the mark, the checks
of keys and argument numbers, and the decorators that give what a transform returns its honest name
and signature, and its errors a note of where they came from.
"""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp

from smoothjax._checks import check_integer, require
from smoothjax._shown import Shown, call_text
from smoothjax._trees import leaf_name
from smoothjax._typing import Explainer, PyTree

F = TypeVar("F", bound=Callable[..., Any])
Signature = inspect.Signature | None

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

    >>> @sj.stochastic
    ... def dithered(key, params, x):
    ...     return params * x + jax.random.uniform(key, x.shape)
    >>> sj.is_stochastic(jax.jit(dithered))
    True
    """
    _check_callable(fun, "stochastic")

    @functools.wraps(fun)
    def marked(key, /, *args, **kwargs):
        return fun(key, *args, **kwargs)

    if isinstance(fun, functools.partial):  # which otherwise says itself whether it takes a key
        del marked.__wrapped__
    setattr(marked, _MARK, True)
    return marked


def is_stochastic(fun: Any) -> bool:
    """Returns whether `fun` is marked as taking a PRNG key first.

    The mark is looked for behind wrappers (`__wrapped__`), and behind a `functools.partial` only if
    that binds no positional argument: `partial(fun, key)` is the way to freeze a key, and what it
    returns takes none.

    Args:
      fun: any function.

    Returns:
      True or False.

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
    # What a transform made takes no key for sure.
    signature = None if hasattr(fun, _MARK) else _signature(fun)

    def without_key(key, *args, **kwargs):
        if signature is not None:
            _check_no_key_missing(fun, signature, args, kwargs)
        return fun(*args, **kwargs)

    return without_key


class noting:
    """A context whose errors get a note of where they came from."""

    def __init__(self, name: str):
        """Takes the name of a function."""
        self.name = name

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Adds the note to an error."""
        if isinstance(error, Exception):
            error.add_note(f"in {self.name}")


def noting_leaf(path: tuple) -> Any:
    """Returns a context whose errors get a note of which leaf of a pytree they are about."""
    return noting(leaf_name(path)) if path else contextlib.nullcontext()


def map_noted(fun: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """Returns `jax.tree.map(fun, tree)`; errors name the leaf."""

    def of_leaf(path, leaf):
        with noting_leaf(path):
            return fun(leaf)

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def noted(fun: F) -> F:
    """Returns `fun` with a note on what it raises, and on what a function that it returns does.

    What it makes has the call that made it as its repr, a function or a tuple with a field `shown`.
    """
    name = fun.__name__

    @functools.wraps(fun)
    def call(*args, **kwargs):
        with noting(name):
            made = fun(*args, **kwargs)
        if isinstance(getattr(made, "shown", None), str):
            return made._replace(shown=call_text(name, args, kwargs))
        if not isinstance(made, (types.FunctionType, Shown)):
            return made

        @functools.wraps(made)
        def call_made(*args, **kwargs):
            with noting(name):
                return made(*args, **kwargs)

        return Shown(call_made, call_text(name, args, kwargs))

    return call  # pyright: ignore[reportReturnType]


@overload
def transform(factory: F) -> F: ...


@overload
def transform(
    *,
    takes_key: bool | Callable[[dict[str, Any]], bool] | None = None,
    of: int = 0,
    signature: Callable[[Callable, bool, dict[str, Any]], Signature] | None = None,
) -> Callable[[F], F]: ...


def transform(factory: Any = None, *, takes_key=None, of=0, signature=None) -> Any:
    """Returns a decorator of transforms, for what all of them do.

    The transform, `factory(explain, **settings)`, returns a function of `(key, *args, **kwargs)`.
    What the user gets is that function with a name such as "smoothgrad(score)", a doc, a signature
    and the mark. It checks its key; without one, the function is handed None as the key. Errors get
    a note: "in smoothgrad" when built, "in smoothgrad(score)" when called.

    Args:
      factory: the transform.
      takes_key: whether what it returns takes a key, or a function of the settings by name that
        tells; None: if what it transforms does.
      of: which of the factory's arguments is transformed.
      signature: makes the signature of the returned function from the transformed function, whether
        there is a key, and the settings by name. By default it is that of the transformed function,
        or of the returned one where that names its arguments.
    """
    if factory is None:
        return functools.partial(transform, takes_key=takes_key, of=of, signature=signature)
    name = factory.__name__
    parameters = inspect.signature(factory)

    @functools.wraps(factory)
    def build(*args, **kwargs):
        with noting(name):
            bound = parameters.bind(*args, **kwargs)
            bound.apply_defaults()
            settings = bound.arguments
            fun = list(settings.values())[of]
            _check_callable(fun, name)
            body = factory(*args, **kwargs)
        with_key = takes_key(settings) if callable(takes_key) else takes_key
        with_key = is_stochastic(fun) if with_key is None else bool(with_key)
        if signature is not None:
            honest = signature(fun, with_key, settings)
        elif list(inspect.signature(body).parameters) == ["key", "args", "kwargs"]:
            honest = signature_with_key(fun, with_key)
        else:
            honest = _own_signature(body, with_key)
        return _dress(body, name, fun, with_key, honest)

    return build


def _dress(body, name, fun, takes_key, signature):
    """`body` under its name, with a doc, a signature, the mark, a checked key and noted errors."""
    full_name = f"{name}({name_of(fun)})"

    def explain(*args, **kwargs):
        with noting(full_name):
            if takes_key:
                _check_key(args, full_name)
                return body(*args, **kwargs)
            return body(None, *args, **kwargs)

    explain.__name__ = explain.__qualname__ = full_name
    explain.__module__ = body.__module__
    doc = inspect.getdoc(fun)
    explain.__doc__ = f"{full_name}, made by smoothjax.{name}." + (f"\n\n{doc}" if doc else "")
    if signature is not None:
        explain.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    setattr(explain, _MARK, takes_key)
    return explain


def at_argument(
    fun: Explainer, argnum: Any
) -> Callable[[tuple, dict], tuple[PyTree, Callable[[Any, PyTree], PyTree]]]:
    """Returns `at(args, kwargs) -> x, fun_at`: the argument, and `fun` as a function of (key, x).

    Raises:
      TypeError, ValueError: here if argnum is no index; when called, if there is no such argument.
    """
    argnum = check_argnum(argnum)
    inner, takes_key = keyed(fun), is_stochastic(fun)

    def at(args, kwargs):
        x = argument(args, argnum)

        def fun_at(key, x):
            if takes_key:
                # Of many x the key may be the same one: JAX's checker of keys learns it is meant.
                key = jax.random.clone(key)
            return inner(key, *args[:argnum], x, *args[argnum + 1 :], **kwargs)

        return x, fun_at

    return at


def argument(args: tuple, argnum: int) -> PyTree:
    """Returns `args[argnum]`, or raises an error that says how arguments are counted."""
    require(
        argnum < len(args),
        f"argnum={argnum}, counted from 0 after the key, is missing: got {len(args)} positional "
        "argument(s). For a function of x alone type argnum=0; keywords are left alone.",
        TypeError,
    )
    return args[argnum]


def check_argnum(argnum: Any) -> int:
    """Returns `argnum` as an int, or raises."""
    return check_integer(argnum, "argnum", least=0)


def name_of(fun: Callable) -> str:
    """Returns a readable name of any callable, behind partials too."""
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", type(fun).__name__)


def signature_with_key(fun: Callable, takes_key: bool) -> Signature:
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


def _own_signature(body, takes_key):
    """The signature of a function that is written for (key, ...)."""
    signature = inspect.signature(body)
    key, *others = signature.parameters.values()
    key = key.replace(kind=inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[key, *others] if takes_key else others)


def _signature(fun):
    try:
        return inspect.signature(fun)
    except (TypeError, ValueError):  # some builtins and C functions have none
        return None


def _check_callable(fun, name):
    require(callable(fun), f"{name} takes a function; got {fun!r:.80}.", TypeError)


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
    key: Any = args[0] if args else None
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        got = "nothing" if not args else f"a {type(key).__name__}"
        got = got if dtype is None else f"an array of dtype {dtype}"
        hint = ", or wrap a raw one: jax.random.wrap_key_data(key)" if dtype == jnp.uint32 else ""
        raise TypeError(
            f"{name} takes a PRNG key as its first positional argument, like jax.random.key(0)"
            f"{hint}; got {got}."
        )
    one = key.shape == ()
    require(one, f"{name} takes one PRNG key; for {key.shape} of them, type jax.vmap over it.")
