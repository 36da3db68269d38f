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
_NEEDED = (
    "examples must be a tuple (xs, *rest) of arrays of JAX or NumPy with a leading axis, (xs,) for "
    "xs alone, or an iterable of one tuple (x, *rest) for each example"
)
_UNBATCHED = "((x.numpy(), int(y)) for xs, ys in loader for x, y in zip(xs, ys))"
_HINT = f"Type tensor.numpy(), frame.to_numpy(), and for a loader of batches {_UNBATCHED}."


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
    if isinstance(examples, tuple):
        return _of_stacked(examples, dict(annotations), batch_size)
    is_loader = type(examples).__module__.partition(".")[0] == "torch"
    if is_loader or hasattr(examples, "shape") or not isinstance(examples, Iterable):
        raise TypeError(f"{_NEEDED}; got a {_kind(examples)}. {_HINT}")
    return _of_single(_with_annotations(examples, annotations), batch_size)


def num_examples(examples: Any) -> int | None:
    """Returns how many examples there are, None if that is not known before they are read."""
    if isinstance(examples, tuple):
        examples = jax.tree.leaves(examples)[0]
    return len(examples) if hasattr(examples, "__len__") else None


def _of_stacked(examples, annotations, batch_size):
    of_tuples = examples and type(examples[0]) is tuple
    require(
        not of_tuples,
        f"{_NEEDED}; got a tuple that starts with a tuple. If that is one example, type "
        "list(examples); an x of several arrays is a list or a dict, ([images, tables], labels).",
        TypeError,
    )
    for values in examples[1:]:
        of_numbers = isinstance(values, list) and values and isinstance(values[0], _NUMBERS)
        require(not of_numbers, f"{_NEEDED}; got a list of numbers: type np.array(...).", TypeError)
    for name, values in annotations.items():
        is_list = isinstance(values, (list, tuple))
        require(not is_list, f"annotation {name!r} must be stacked: type np.stack(...).", TypeError)
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
            is_list = isinstance(pair[0], list)
            require(
                not is_list,
                f"{_NEEDED}; example {i} is a list. Type [tuple(one) for one in examples], or for "
                f"a loader of batches {_UNBATCHED}.",
                TypeError,
            )
            is_example = isinstance(pair[0], tuple) and pair[0]
            require(is_example, f"{_NEEDED}; example {i} is {pair[0]!r:.80}. {_HINT}", TypeError)
            _check_leaves(pair)
            shapes = _shapes(pair)
            expected = expected or shapes
            alike = shapes == expected
            require(alike, f"example {i} has {shapes[1]}, the first {expected[1]}: pad them.")
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
        named = {"examples": example, **dict(zip(annotations, values, strict=True))}
        ended = [name for name, value in named.items() if value is end]
        require(not ended, f"there are {i} of {ended}, and more of other examples or annotations.")
        yield named.pop("examples"), named


def _check_leaves(tree):
    for leaf in jax.tree.leaves(tree):
        if not (is_array(leaf) or isinstance(leaf, _NUMBERS)):
            raise TypeError(f"{_NEEDED}; got a {_kind(leaf)}. {_HINT}")
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSUMm":
            raise TypeError(f"{_NEEDED}, of numbers; got dtype {leaf.dtype}.")


def _kind(value):
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def _shapes(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in leaves]


def _stack(*leaves):
    return (jnp if isinstance(leaves[0], jax.Array) else np).stack(leaves)
