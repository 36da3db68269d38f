"""How many draws to evaluate at once: measured on the device at hand."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from smoothjax.transform import check_at_least, check_callable, check_number


class ChunkCost(NamedTuple):
    """What a function costs at one chunk size.

    Attributes:
      chunk_size: the chunk size.
      seconds: the median time of a call; infinite if there was too little memory for it.
      bytes: what the compiler set aside for intermediate values and the result; NaN where the
        device's compiler does not tell.
    """

    chunk_size: int
    seconds: float
    bytes: float


class ChunkTuning(NamedTuple):
    """The fastest chunk size, and what each cost.

    Attributes:
      best: the chunk size of the least `seconds`, the first of equals.
      table: a `ChunkCost` for every candidate, in the order of the candidates.
    """

    best: int
    table: tuple[ChunkCost, ...]

    def __str__(self) -> str:
        """Returns the table as text, a line for each candidate."""
        lines = [f"{'chunk_size':>10}{'seconds':>12}{'MB':>10}"]
        for chunk_size, seconds, size in self.table:
            taken = "too large" if math.isinf(seconds) else f"{seconds:.4g}"
            best = "  best" if chunk_size == self.best else ""
            lines.append(f"{chunk_size:>10}{taken:>12}{size / 1e6:>10.1f}{best}")
        return "\n".join(lines)


def tune_chunk_size(
    build: Callable[[int], Callable[..., Any]],
    *args: Any,
    candidates: Sequence[int] = (1, 2, 4, 8, 16, 32),
    memory_limit: float = math.inf,
    repeats: int = 3,
) -> ChunkTuning:
    """Returns the chunk size with which a function runs fastest on the device at hand.

    Each candidate is compiled once, ahead of time, called once to warm up, and then timed in turn
    with the others, so that other work on the machine weighs on all alike.

    Args:
      build: a function from a chunk size to the function to run, such as
        `lambda chunk_size: smoothgrad(explain, chunk_size=chunk_size)`.
      *args: what to call that function with: arrays of the sizes and on the devices that you mean
        to use it with.
      candidates: the chunk sizes to try.
      memory_limit: skip a candidate that needs more bytes than this for intermediate values and the
        result, which `args` are not among. A candidate that the device runs out of memory with is
        skipped likewise.
      repeats: how often each candidate is timed.

    Returns:
      A `ChunkTuning`; print it to see the table.

    Raises:
      TypeError, ValueError: for bad settings, or if no candidate fits into the memory.

    Cost: compiling each candidate, and `repeats + 1` calls of each.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.tuning import tune_chunk_size
    >>> explain = jax.grad(lambda params, x: jnp.sum(params * x**2), argnums=1)
    >>> def build(chunk_size):
    ...     return sj.smoothgrad(explain, 0.1, num_samples=8, chunk_size=chunk_size)
    >>> arguments = jax.random.key(0), jnp.ones(3), jnp.ones(3)
    >>> tuning = tune_chunk_size(build, *arguments, candidates=(1, 8), memory_limit=10**6)
    >>> fastest = jax.jit(build(tuning.best))
    >>> [row.chunk_size for row in tuning.table]
    [1, 8]
    """
    check_callable(build, "tune_chunk_size: build")
    sizes = [check_at_least(c, 1, "tune_chunk_size: each of candidates") for c in candidates]
    if not sizes or len(set(sizes)) < len(sizes):
        raise ValueError(
            f"tune_chunk_size: candidates must be one or more different sizes; got {candidates!r}."
        )
    if not check_number(memory_limit, "tune_chunk_size: memory_limit") > 0:
        raise ValueError(f"tune_chunk_size: memory_limit must be above 0; got {memory_limit}.")
    check_at_least(repeats, 1, "tune_chunk_size: repeats")

    needed, programs = {}, {}
    for size in sizes:
        function = build(size)
        check_callable(function, "tune_chunk_size: what build returns")
        program = jax.jit(function).lower(*args).compile()
        needed[size] = _bytes(program)
        too_large = needed[size] > memory_limit
        if not too_large and math.isfinite(_seconds(program, args)):
            programs[size] = program
    if not programs:
        raise ValueError(
            f"tune_chunk_size: no candidate of {sizes} fits into the memory; they need {needed} "
            f"bytes, and memory_limit is {memory_limit}. Give it smaller ones."
        )

    seconds = {size: [] for size in programs}
    for _ in range(repeats):
        for size, program in programs.items():
            seconds[size].append(_seconds(program, args))
    table = tuple(
        ChunkCost(size, statistics.median(seconds.get(size, [math.inf])), needed[size])
        for size in sizes
    )
    return ChunkTuning(min(table, key=lambda row: row.seconds).chunk_size, table)


def _bytes(program):
    analysis = program.memory_analysis()
    if analysis is None:
        return math.nan
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _seconds(program, args):
    """The time of one call; infinite if the device has too little memory for it."""
    start = time.perf_counter()
    try:
        jax.block_until_ready(program(*args))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    return time.perf_counter() - start
