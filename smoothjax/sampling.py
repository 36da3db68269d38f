"""The loop: every average over draws, steps or masks in this package runs here.

`accumulate` evaluates a body at indices 0 to num - 1, a chunk at a time, and reduces what it
returns; its memory does not grow with `num`. `monte_carlo` is its random form: draw i uses the key
`fold_in(key, i)`, whatever the chunk size, so n draws are the first n of 2n. That holds to rounding
for threefry keys, JAX's default. Keys of the `rbg` and `unsafe_rbg` implementations give other
numbers under `vmap` than alone, so with them the draws change with the chunk size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import AxisType, NamedSharding

from smoothjax.reductions import (
    Reduction,
    check_no_estimate,
    mean,
    mean_and_stderr,
    relative_error,
)
from smoothjax.transform import check_at_least, check_number, is_float0

PyTree = Any

# Fewer draws than these estimate their own variance too badly to stop on it.
MIN_DRAWS_TO_STOP = 16


def check_loop(
    name: str,
    num_samples: Any,
    reduction: Any,
    chunk_size: Any,
    tolerance: Any = None,
    sharding: Any = None,
    what: str = "num_samples",
) -> None:
    """Raises unless a loop over `num_samples` indices with these settings can be built."""
    if not isinstance(reduction, Reduction):
        raise TypeError(
            f"{name}: reduction must be a Reduction such as smoothjax.reductions.mean(), with the "
            f"parentheses; got {reduction!r:.80}."
        )
    check_at_least(num_samples, 1, f"{name}: {what}")
    check_at_least(num_samples, reduction.min_samples, f"{name}: {what} for this reduction")
    check_at_least(chunk_size, 1, f"{name}: chunk_size")
    if num_samples >= 2**31:
        raise ValueError(f"{name}: {what} must be below 2**31, as an int32; got {num_samples}.")
    if tolerance is not None:
        _check_tolerance(name, tolerance, reduction)
    if sharding is not None:
        _check_sharding(name, sharding, num_samples, chunk_size)


def accumulate(
    body: Callable[[jax.Array], PyTree],
    name: str,
    num: int,
    reduction: Reduction,
    chunk_size: int,
    tolerance: Any = None,
    sharding: NamedSharding | None = None,
) -> PyTree:
    """Returns the reduction of `body(0), ..., body(num - 1)`.

    `body` is traced at most three times: for its shapes, for the loop over whole chunks, and for
    the remainder; once more if what it returns is divided over Explicit axes of a mesh. In reverse
    mode each index is evaluated again instead of stored.

    Args:
      body: maps an int32 index to a pytree of arrays; differentiable where that is asked for.
      name: the transform, for errors.
      num: how many indices.
      reduction: see `smoothjax.reductions`.
      chunk_size: how many indices are evaluated at once, under `vmap`; a remainder is legal.
      tolerance: if given, stop at the first chunk after which the relative error is below it.
      sharding: if given, how the indices of a chunk are laid out over devices.

    Returns:
      What the reduction's `finalize` returns. Leaves of dtype float0 (the gradient of integers) are
      not reduced but passed through.
    """
    num, chunk_size = int(num), int(chunk_size)  # NumPy's own would be int64 beside int32
    draw = jax.eval_shape(body, jax.ShapeDtypeStruct((), jnp.int32))
    check_no_estimate(draw, name)
    numeric = _without_float0(draw)
    if not jax.tree.leaves(numeric):
        raise TypeError(f"{name}: the function returned no arrays to average, but {draw}.")

    def final_state(reduction, evaluate):
        """The state of a reduction after all draws."""

        def step(size, state, start):
            indices = start + jnp.arange(size, dtype=jnp.int32)
            if size == 1 and sharding is None:
                # A vmap of one would still make the weights a batch of weights.
                draws = jax.tree.map(lambda d: jnp.expand_dims(d, 0), evaluate(indices[0]))
            else:
                draws = jax.vmap(evaluate)(_shard(indices, sharding))
            return reduction.update(state, draws)

        chunk = min(chunk_size, num)
        num_chunks, remainder = divmod(num, chunk)
        # Checkpointed, since what reverse mode stores of each chunk would grow with their number.
        take_chunk = jax.checkpoint(functools.partial(step, chunk))
        take_remainder = jax.checkpoint(functools.partial(step, remainder))
        state, rest = _vary_like(numeric, reduction.init(numeric, num)), jnp.int32(num - remainder)
        state = _laid_out_like(numeric, state, take_chunk)
        if tolerance is None:
            starts = chunk * jnp.arange(num_chunks, dtype=jnp.int32)
            state, _ = jax.lax.scan(lambda s, start: (take_chunk(s, start), None), state, starts)
            return take_remainder(state, rest) if remainder else state

        def unfinished(carry):
            start, state = carry
            return (start < rest) & ~_converged(state, tolerance)

        def proceed(carry):
            start, state = carry
            return start + chunk, take_chunk(state, start)

        _, state = jax.lax.while_loop(unfinished, proceed, (jnp.int32(0), state))
        if not remainder:
            return state
        return jax.lax.cond(
            _converged(state, tolerance),
            lambda state: state,
            lambda state: take_remainder(state, rest),
            state,
        )

    def evaluate(index):
        return _without_float0(body(index))

    if tolerance is not None:
        answer = mean_and_stderr().finalize(final_state(mean_and_stderr(), evaluate))
        answer = answer.mean if reduction == mean() else answer
    elif reduction.second_pass is None:
        answer = reduction.finalize(final_state(reduction, evaluate))
    else:
        answer = reduction.finalize(_in_two_passes(final_state, reduction, evaluate))
    return _with_float0(answer, draw)


def _in_two_passes(final_state, reduction, evaluate):
    """The final state of a reduction, with the derivatives of its second pass.

    They would be right without, but store the state before every chunk.
    """
    # The rule must be handed all arrays that `evaluate` closes over.
    closed, draw = jax.make_jaxpr(evaluate, return_shape=True)(jnp.int32(0))
    jaxpr, treedef = closed.jaxpr, jax.tree.structure(draw)

    def state_of(reduction, arrays):
        evaluate = jaxpr_as_fun(ClosedJaxpr(jaxpr, arrays))
        return final_state(reduction, lambda index: treedef.unflatten(evaluate(index)))

    @jax.custom_jvp
    def first_pass(arrays):
        return state_of(reduction, arrays)

    @first_pass.defjvp
    def _(primals, tangents):
        state = first_pass(*primals)
        second = reduction.second_pass(jax.lax.stop_gradient(state))

        def second_pass(arrays):
            return second.finalize(state_of(second, arrays))

        return state, jax.jvp(second_pass, primals, tangents)[1]

    return first_pass(closed.consts)


def monte_carlo(
    draw: Callable[[jax.Array], PyTree],
    key: jax.Array,
    name: str,
    num_samples: int,
    reduction: Reduction,
    chunk_size: int,
    tolerance: Any = None,
    sharding: NamedSharding | None = None,
) -> PyTree:
    """Returns the reduction of `draw(fold_in(key, i))` for i below `num_samples`."""

    def body(index):
        return draw(jax.random.fold_in(key, index))

    return accumulate(body, name, num_samples, reduction, chunk_size, tolerance, sharding)


def _check_tolerance(name, tolerance, reduction):
    if reduction not in (mean(), mean_and_stderr()):
        raise ValueError(
            f"{name}: tolerance is on the relative error of a mean, so it goes with the reductions "
            "mean() and mean_and_stderr() only."
        )
    if isinstance(tolerance, Tracer):
        return
    if not check_number(tolerance, f"{name}: tolerance") > 0:
        raise ValueError(f"{name}: tolerance must be above 0, like 0.1; got {tolerance}.")


def _check_sharding(name, sharding, num, chunk_size):
    named = isinstance(sharding, NamedSharding) and len(sharding.spec) == 1
    axes = _mesh_axes(sharding) if named else ()
    if not axes or not all(isinstance(axis, str) for axis in axes):
        raise TypeError(
            f"{name}: sharding is that of the axis of draws, a NamedSharding(mesh, P('axis')); got "
            f"{sharding!r:.120}."
        )
    if len(set(_axis_types(sharding))) > 1:
        raise ValueError(f"{name}: the axes of {sharding.spec} must be all Auto or all Explicit.")
    shards = math.prod(sharding.mesh.shape[axis] for axis in axes)
    chunk_size = min(chunk_size, num)
    remainder = num % chunk_size
    if chunk_size % shards or remainder % shards:
        raise ValueError(
            f"{name}: chunks of {chunk_size} draws, with a remainder of {remainder}, do not divide "
            f"over the {shards} devices of {sharding.spec}. Make num_samples and chunk_size "
            f"multiples of {shards}."
        )


def _shard(indices, sharding):
    if sharding is None:
        return indices
    if AxisType.Explicit in _axis_types(sharding):
        return jax.reshard(indices, sharding)
    return jax.lax.with_sharding_constraint(indices, sharding)


def _mesh_axes(sharding):
    """The axes of the mesh over which the one axis of an array is divided."""
    (axes,) = sharding.spec
    return axes if isinstance(axes, tuple) else (axes,)


def _axis_types(sharding):
    types = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    return [types[axis] for axis in _mesh_axes(sharding)]


def _vary_like(draw, state):
    """The state of a loop inside `jax.shard_map`, varying over the mesh axes that the draws do."""
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(draw)))
    if not axes:
        return state
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(axes), to="varying"), state)


def _varying_axes(shape):
    manual = getattr(shape, "manual_axis_type", None)  # JAX before 0.10 calls its axes vma
    return getattr(shape, "vma", None) or frozenset() if manual is None else manual.varying


def _laid_out_like(draw, state, take_chunk):
    """The state of a loop over draws that are sharded over Explicit axes, sharded as they are."""
    shardings = [d.sharding for d in jax.tree.leaves(draw)]
    if all(sharding is None or not any(sharding.spec) for sharding in shardings):
        return state
    after = jax.eval_shape(take_chunk, state, jnp.int32(0))
    return jax.tree.map(lambda x, like: jax.reshard(x, like.sharding), state, after)


def _converged(state, tolerance):
    error = _batch_max(relative_error(mean_and_stderr().finalize(state)))
    return (state.count >= MIN_DRAWS_TO_STOP) & (error < jnp.asarray(tolerance, error.dtype))


@jax.custom_batching.custom_vmap
def _batch_max(error):
    """The error, and under `vmap` the largest of the batch.

    A batch then stops together: a stopping rule for each example would make a batch of the loop's
    counter, and by it of the keys and the weights.
    """
    return error


@_batch_max.def_vmap
def _(axis_size, in_batched, error):
    del axis_size, in_batched
    return _batch_max(jnp.max(error)), False


def _without_float0(tree):
    return jax.tree.map(lambda leaf: None if is_float0(leaf) else leaf, tree)


def _with_float0(answer, draw):
    if not any(map(is_float0, jax.tree.leaves(draw))):
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
