"""The loop: every average over draws, steps or masks in this package runs here.

`accumulate` evaluates a body at indices 0 to num - 1, a chunk at a time, and reduces what it
returns; its memory does not grow with `num`. `monte_carlo` is its random form: draw i uses the key
`fold_in(key, i)`, whatever the chunk size, so n draws are the first n of 2n. That holds to rounding
for threefry keys, JAX's default. Keys of the `rbg` and `unsafe_rbg` implementations give other
numbers under `vmap` than alone, so with them the draws change with the chunk size.

Both check their settings when a closure is made, and are handed arrays when it is called.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import NamedSharding

from smoothjax._checks import check_integer, check_number, require
from smoothjax._devices import check_divides, check_sharding, laid_out_like, shard, vary_like
from smoothjax._eager import once_compiled
from smoothjax._trees import is_array, is_float0, without_numbers
from smoothjax._typing import PyTree
from smoothjax.reductions import (
    Reduction,
    check_no_estimate,
    mean,
    mean_and_stderr,
    relative_error,
)

# Fewer draws than these estimate their own variance too badly to stop on it.
MIN_DRAWS_TO_STOP = 16

# The default chunk: 10 evaluations of an x of as many numbers as a photo, and more for a smaller x,
# in proportion, for the same memory; but at most 50.
_CHUNK, _LARGEST_CHUNK, _PHOTO = 10, 50, 224 * 224 * 3

Body = Callable[[jax.Array], PyTree]


def monte_carlo(
    num_samples: int,
    reduction: Reduction,
    chunk_size: int | None,
    tolerance: Any = None,
    sharding: NamedSharding | None = None,
) -> Callable[..., PyTree]:
    """Returns `average(draw, key, x)`: the mean, say, of `draw(fold_in(key, i))`, i < num_samples.

    Its settings are those of `smoothgrad`, and x is what each draw is about as large as.
    """
    fixed = _CHUNK if chunk_size is None else chunk_size
    if tolerance is not None or sharding is not None:
        chunk_size = fixed  # which it is to stop after, or to divide
    run = accumulate(reduction, chunk_size, tolerance, sharding)
    name = "num_samples" if reduction.min_samples == 1 else "num_samples for this reduction"
    num = check_count(num_samples, name, reduction.min_samples)
    if sharding is not None:
        check_divides(sharding, num, fixed)

    def average(draw, key, x=None):
        return run(lambda i: draw(jax.random.fold_in(key, i)), num, x)

    return average


def accumulate(
    reduction: Reduction,
    chunk_size: int | None,
    tolerance: Any = None,
    sharding: NamedSharding | None = None,
) -> Callable[..., PyTree]:
    """Returns `run(body, num, x)`: the reduction of `body(0), ..., body(num - 1)`.

    `body` maps an int32 index to a pytree of arrays, whose leaves of dtype float0 (the gradient of
    integers) are not reduced but passed through. It is traced at most three times: for its shapes,
    for the loop over whole chunks, and for the remainder; once more if what it returns is divided
    over Explicit axes of a mesh. In reverse mode each index is evaluated again instead of stored.

    Args:
      reduction: see `smoothjax.reductions`.
      chunk_size: how many indices are evaluated at once, under `vmap`; a remainder is legal. None:
        10, or up to 50 for an x, what each evaluation is about as large as, that is smaller than a
        photo.
      tolerance: if given, stop at the first chunk after which the relative error is below it.
      sharding: if given, how the indices of a chunk are laid out over devices.
    """
    require(
        isinstance(reduction, Reduction),
        f"reduction must be one like mean(), with the parentheses; got {reduction!r:.80}.",
        TypeError,
    )
    if chunk_size is not None:
        chunk_size = check_integer(chunk_size, "chunk_size", least=1)
    if tolerance is not None:
        _check_tolerance(tolerance, reduction)
    if sharding is not None:
        check_sharding(sharding)
    programs = {}

    def run(body, num, x=None):
        return once_compiled(lambda: loop(body, num, x), programs)

    def loop(body, num, x):
        num = check_count(num, "the number of evaluations", reduction.min_samples)
        draw = jax.eval_shape(body, jax.ShapeDtypeStruct((), jnp.int32))
        check_no_estimate(draw)
        numeric = _without_float0(draw)
        if not jax.tree.leaves(numeric):
            raise TypeError(f"the function returned no arrays to average, but {draw}.")

        chunk = _default_chunk(num, x) if chunk_size is None else min(chunk_size, num)

        def evaluate(index):
            return _without_float0(body(index))

        def final_state(reduction, evaluate):
            take = functools.partial(_take, reduction, evaluate, sharding)
            state = vary_like(numeric, reduction.init(numeric, num))
            return _over_chunks(take, state, numeric, num, chunk, tolerance)

        if tolerance is not None:
            answer = mean_and_stderr().finalize(final_state(mean_and_stderr(), evaluate))
            answer = answer.mean if reduction == mean() else answer
        elif reduction.second_pass is None:
            answer = reduction.finalize(final_state(reduction, evaluate))
        else:
            answer = reduction.finalize(_in_two_passes(final_state, reduction, evaluate))
        return _with_float0(answer, draw)

    return run


def _default_chunk(num: int, x: PyTree) -> int:
    """The chunk of a number of evaluations, with no remainder where that costs less than half."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(x) if is_array(leaf))
    most = min(num, max(_CHUNK, min(_LARGEST_CHUNK, _CHUNK * _PHOTO // max(size, 1))))
    divisors = [chunk for chunk in range(-(-most // 2), most + 1) if num % chunk == 0]
    return max(divisors, default=most)


def check_count(num: Any, name: str, least: int = 1) -> int:
    """Returns a number of evaluations as an int that an int32 index can count, or raises."""
    num = check_integer(num, name, least=least)
    require(num < 2**31, f"{name} must be below 2**31, as an int32; got {num}.")
    return num


def _take(reduction, evaluate, sharding, size, state, start):
    """The state after `size` more draws, from index `start` on."""
    indices = start + jnp.arange(size, dtype=jnp.int32)
    if size == 1 and sharding is None:
        # A vmap of one would still make the weights a batch of weights.
        draws = jax.tree.map(lambda d: jnp.expand_dims(d, 0), evaluate(indices[0]))
    else:
        draws = jax.vmap(evaluate)(shard(indices, sharding))
    return reduction.update(state, draws)


def _over_chunks(take, state, draw, num, chunk, tolerance):
    """The state after all draws, or after the first chunk that meets the tolerance."""
    if chunk == num and tolerance is None:
        # Convolutions are slower in loops on CPUs, and reverse mode has no other chunk to spare.
        return take(num, state, jnp.int32(0))
    num_chunks, remainder = divmod(num, chunk)
    # Checkpointed, since what reverse mode stores of each chunk would grow with their number.
    take_chunk = jax.checkpoint(functools.partial(take, chunk))
    take_remainder = jax.checkpoint(functools.partial(take, remainder))
    state, rest = laid_out_like(draw, state, take_chunk), jnp.int32(num - remainder)
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


def _in_two_passes(final_state, reduction, evaluate):
    """The final state of a reduction, with the derivatives of its second pass.

    They would be right without, but store the state before every chunk.
    """
    # The rule must be handed all arrays that `evaluate` closes over, and hold none itself.
    closed, draw = jax.make_jaxpr(evaluate, return_shape=True)(jnp.int32(0))
    arrays, treedef = closed.consts, jax.tree.structure(draw)

    def of_arrays(arrays, index):
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, arrays))(index)

    program = jaxpr_as_fun(jax.make_jaxpr(of_arrays)(arrays, jnp.int32(0)))

    def state_of(reduction, arrays):
        return final_state(reduction, lambda index: treedef.unflatten(program(*arrays, index)))

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

    return first_pass(arrays)


def _check_tolerance(tolerance, reduction):
    is_mean = reduction in (mean(), mean_and_stderr())
    require(is_mean, "tolerance goes with the reductions mean() and mean_and_stderr() only.")
    if not isinstance(tolerance, Tracer):
        check_number(tolerance, "tolerance", above=0)


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
        return without_numbers(shape) if leaf is None else leaf

    return jax.tree.map(
        lambda tree: jax.tree.map(restore, draw, tree) if is_draw(tree) else tree,
        answer,
        is_leaf=is_draw,
    )
