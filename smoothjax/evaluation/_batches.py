"""The examples of an evaluation and what is annotated of them, in batches of one shape."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._checks import check_leading_axis, require
from smoothjax._trees import is_array
from smoothjax._typing import PyTree

_NUMBERS = (bool, int, float, complex)


class Batch(NamedTuple):
    """Some examples, stacked; the last one of all is repeated where there are too few.

    Attributes:
      start: the number of the first of them.
      size: how many there are.
      example: a tuple (xs, *rest).
      annotations: a dict of arrays by name.
    """

    start: int
    size: int
    example: PyTree
    annotations: PyTree


def batches(examples: Any, annotations: Mapping[str, Any], batch_size: int) -> Iterator[Batch]:
    """Yields all examples, or raises an error that says what they must be."""
    require(
        type(examples).__module__.partition(".")[0] != "torch",
        f"examples must be arrays of NumPy or JAX; got a {_kind(examples)}. Type x.numpy() for a "
        "tensor; take a loader of batches apart: "
        "((x.numpy(), int(y)) for xs, ys in loader for x, y in zip(xs, ys)).",
        TypeError,
    )
    if isinstance(examples, tuple):
        return _of_stacked(examples, dict(annotations), batch_size)
    if hasattr(examples, "shape") or not isinstance(examples, Iterable):
        raise TypeError(
            "examples must be a tuple (xs, *rest) of arrays, or an iterable of one tuple "
            f"(x, *rest) for each example; got a {_kind(examples)}. For xs alone type (xs,); of a "
            "frame, (frame.to_numpy(),)."
        )
    return _of_single(_with_annotations(examples, annotations), batch_size)


def num_examples(examples: Any) -> int | None:
    """Returns how many examples there are, None if that is not known before they are read."""
    if isinstance(examples, tuple):
        examples = jax.tree.leaves(examples)[0]
    return len(examples) if hasattr(examples, "__len__") else None


def _of_stacked(examples, annotations, batch_size):
    require(
        not examples or type(examples[0]) is not tuple,
        "a tuple of examples is read as (xs, *rest), arrays with a leading axis of examples, and "
        "its first element is a tuple. For one tuple (x, *rest) for each example type "
        "list(examples).",
        TypeError,
    )
    for name, values in annotations.items():
        require(
            not isinstance(values, (list, tuple)),
            f"beside stacked examples, the annotation {name!r} must be stacked too; got a "
            f"{_kind(values)}: type np.stack(...).",
            TypeError,
        )
    both = examples, annotations
    _check_leaves(both)
    num = check_leading_axis(both, "examples = (xs, *rest), and annotations,")
    batch_size = min(batch_size, num)
    for start in range(0, num, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), num - 1)
        batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], both)
        yield Batch(start, min(batch_size, num - start), *batch)


def _of_single(pairs, batch_size):
    start, expected = 0, None
    while chunk := list(itertools.islice(pairs, batch_size)):
        for i, pair in enumerate(chunk, start):
            _check_example(pair[0], i)
            _check_leaves(pair)
            shapes = _shapes(pair)
            expected = expected or shapes
            require(
                shapes == expected,
                "examples must be alike, to be judged by one program; the first has "
                f"{expected[1]}, example {i} has {shapes[1]}.",
            )
        if start == 0:
            batch_size = len(chunk)
        padded = chunk + chunk[-1:] * (batch_size - len(chunk))
        yield Batch(start, len(chunk), *jax.tree.map(_stack, *padded))
        start += len(chunk)
    require(start > 0, "there are no examples.")


def _with_annotations(examples, annotations):
    """Pairs of an example and a dict of what is annotated of it."""
    columns = [iter(examples), *map(iter, annotations.values())]
    end = object()
    for i, (example, *values) in enumerate(itertools.zip_longest(*columns, fillvalue=end)):
        lengths = [value is end for value in (example, *values)]
        require(
            not any(lengths),
            f"annotations must be as many as the examples: there are {i} of "
            f"{[n for n, ended in zip(('examples', *annotations), lengths, strict=True) if ended]}"
            ", and more of others.",
        )
        yield example, dict(zip(annotations, values, strict=True))


def _check_example(example, i):
    require(
        isinstance(example, tuple) and example,
        f"each of examples must be a tuple (x, *rest), for x alone (x,); example {i} is "
        f"{example!r:.80}. A loader of batches is taken apart: "
        "((x.numpy(), int(y)) for xs, ys in loader for x, y in zip(xs, ys)).",
        TypeError,
    )


def _check_leaves(tree):
    for leaf in jax.tree.leaves(tree):
        require(
            is_array(leaf) or isinstance(leaf, _NUMBERS),
            "examples and annotations hold numbers and arrays of JAX or NumPy; got a "
            f"{_kind(leaf)}. Convert it: tensor.numpy(), or frame.to_numpy().",
            TypeError,
        )


def _kind(value):
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def _shapes(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in leaves]


def _stack(*leaves):
    return (jnp if isinstance(leaves[0], jax.Array) else np).stack(leaves)
