"""What a session shows: how a function was made, a number with its error, the names of a module."""

import functools
import inspect
import math
import reprlib
import types
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


class Shown:
    """A function with a readable repr, for `help` and for a session to print."""

    def __init__(self, fun: Callable[..., Any], text: str):
        """Takes a function, and what its repr says."""
        functools.update_wrapper(self, fun)
        self._text = text

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.__wrapped__(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Binds to an instance, as functions do: without this, `help` takes it for no function."""
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        """Returns the text."""
        return self._text


def shown(fun: F) -> F:
    """Returns a function whose repr is its name, for one that is the default of a parameter."""
    return Shown(fun, fun.__name__)  # pyright: ignore[reportReturnType]


def call_text(name: str, args: tuple, kwargs: dict[str, Any]) -> str:
    """Returns the call that made a thing, such as "relative(0.15)"."""
    texts = [*map(_SHORT.repr, args), *(f"{key}={_SHORT.repr(kwargs[key])}" for key in kwargs)]
    return f"{name}({', '.join(texts)})"


class _Short(reprlib.Repr):
    """Short texts, of arrays without their numbers, which would have to be fetched."""

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, (jax.Array, np.ndarray)):
            return f"{x.dtype}{list(x.shape)}"
        if callable(x) and hasattr(x, "__name__") and not isinstance(x, Shown):
            return x.__name__
        return super().repr1(x, level)


_SHORT = _Short()


def plus_minus(estimate: Any) -> str:
    """Returns the mean and its error, of an `Estimate` of numbers, to two digits of the error."""
    mean, stderr = float(estimate.mean), float(estimate.stderr)
    if not (0 < stderr < math.inf and math.isfinite(mean)):
        return f"{mean:.4g} ± {stderr:.2g}"
    decimals = 1 - math.floor(math.log10(stderr))
    if decimals > 6 or abs(mean) > 1e6:
        digits = decimals + math.floor(math.log10(abs(mean) or stderr))
        return f"{mean:.{min(max(0, digits), 16)}e} ± {stderr:.1e}"
    return f"{mean:.{max(0, decimals)}f} ± {stderr:.{max(0, decimals)}f}"


def listed(namespace: dict[str, Any], *others: str) -> Callable[[], list[str]]:
    """Returns the `__dir__` of a module: the functions and classes that it, or its parts, define.

    Args:
      namespace: the module's `globals()`.
      *others: the names of what else is public: modules, constants, what comes from elsewhere.
    """
    home = namespace["__name__"]

    def is_public(name):
        value = namespace[name]
        own = inspect.isroutine(value) or inspect.isclass(value)
        return not name.startswith("_") and own and f"{value.__module__}.".startswith(f"{home}.")

    def names():
        special = [name for name in namespace if name.startswith("__")]
        return sorted({*special, *filter(is_public, namespace), *others})

    return names
