"""The kinds of functions that this package takes and returns, each with what it means."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

PyTree = Any
Axes = Sequence[int]
PerAxis = int | Sequence[int]
Rule = Callable[[PyTree], PyTree]
Sampler = Callable[..., jax.Array]


class Score(Protocol):
    """What is explained: `score(params, x, *rest)`, a real scalar for one example.

    A stochastic score takes a typed PRNG key before its other arguments.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the score."""
        ...


class Explainer(Protocol):
    """An explanation of one example: `explain(params, x, *rest)`, usually shaped like x.

    A stochastic explainer takes a typed PRNG key before its other arguments.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns an attribution, a pytree of arrays."""
        ...


class Metric(Protocol):
    """A judgement of one example: `metric(params, x, attribution, *rest)`, a scalar.

    A metric that judges an explainer takes no attribution. A stochastic one takes a key first.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the judgement."""
        ...
