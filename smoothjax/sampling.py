"""The loop: every average over draws, steps or masks in this package runs here.

`accumulate` evaluates a body at indices 0 to num - 1, a chunk at a time, and reduces what it
returns; its memory does not grow with `num`. `monte_carlo` is its random form: draw i uses the key
`fold_in(key, i)`, whatever the chunk size, so n draws are the first n of 2n. That holds to rounding
for threefry keys, JAX's default. Keys of the `rbg` and `unsafe_rbg` implementations give other
numbers under `vmap` than alone, so with them the draws change with the chunk size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax.reductions import Reduction, check_no_estimate
from smoothjax.transform import check_at_least

PyTree = Any


def check_loop(name: str, num: Any, reduction: Any, chunk_size: Any, what: str = "num_samples"):
    """Raises unless a loop of `num` indices with these settings can be built."""
    if not isinstance(reduction, Reduction):
        raise TypeError(
            f"{name}: reduction must be a Reduction such as smoothjax.reductions.mean(), with the "
            f"parentheses; got {reduction!r:.80}."
        )
    check_at_least(num, 1, f"{name}: {what}")
    check_at_least(num, reduction.min_samples, f"{name}: {what} for this reduction")
    check_at_least(chunk_size, 1, f"{name}: chunk_size")


def accumulate(
    body: Callable[[jax.Array], PyTree], num: int, reduction: Reduction, chunk_size: int, name: str
) -> PyTree:
    """Returns the reduction of `body(0), ..., body(num - 1)`.

    `body` is traced at most three times: for its shapes, for the loop over whole chunks, and for
    the remainder. In reverse mode each index is evaluated again instead of stored.

    Args:
      body: maps an int32 index to a pytree of arrays; differentiable where that is asked for.
      num: how many indices.
      reduction: see `smoothjax.reductions`.
      chunk_size: how many indices are evaluated at once, under `vmap`; a remainder is legal.
      name: the transform, for errors.

    Returns:
      What the reduction's `finalize` returns. Leaves of dtype float0 (the gradient of integers) are
      not reduced but passed through.
    """
    draw = jax.eval_shape(body, jax.ShapeDtypeStruct((), jnp.int32))
    check_no_estimate(draw, name)
    numeric = _without_float0(draw)
    if not jax.tree.leaves(numeric):
        raise TypeError(f"{name}: the function returned no arrays to average, but {draw}.")

    # Checkpointed, since what reverse mode stores of each draw would grow with their number.
    @jax.checkpoint
    def evaluate(index):
        return _without_float0(body(index))

    def step(state, indices):
        if indices.shape == (1,):  # a vmap of one would still make weights a batch of weights
            draws = jax.tree.map(lambda d: jnp.expand_dims(d, 0), evaluate(indices[0]))
        else:
            draws = jax.vmap(evaluate)(indices)
        return reduction.update(state, draws), None

    chunk_size = min(chunk_size, num)
    whole = num - num % chunk_size
    state = reduction.init(numeric, num)
    chunks = jnp.arange(whole, dtype=jnp.int32).reshape(-1, chunk_size)
    state, _ = jax.lax.scan(step, state, chunks)
    if whole < num:
        state, _ = step(state, jnp.arange(whole, num, dtype=jnp.int32))
    return _with_float0(reduction.finalize(state), draw)


def monte_carlo(
    draw: Callable[[jax.Array], PyTree],
    key: jax.Array,
    num_samples: int,
    reduction: Reduction,
    chunk_size: int,
    name: str,
) -> PyTree:
    """Returns the reduction of `draw(fold_in(key, i))` for i below `num_samples`."""

    def body(index):
        return draw(jax.random.fold_in(key, index))

    return accumulate(body, num_samples, reduction, chunk_size, name)


def _is_float0(leaf):
    return getattr(leaf, "dtype", None) == jax.dtypes.float0


def _without_float0(tree):
    return jax.tree.map(lambda leaf: None if _is_float0(leaf) else leaf, tree)


def _with_float0(answer, draw):
    if not any(map(_is_float0, jax.tree.leaves(draw))):
        return answer
    structure = jax.tree.structure(_without_float0(draw))

    def is_draw(tree):
        return jax.tree.structure(tree) == structure

    def restore(shape, leaf):
        return np.zeros(shape.shape, shape.dtype) if leaf is None else leaf

    return jax.tree.map(
        lambda tree: jax.tree.map(restore, draw, tree) if is_draw(tree) else tree,
        answer,
        is_leaf=is_draw,
    )
