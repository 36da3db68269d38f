"""How many draws to evaluate at once: measured on the device at hand."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from smoothjax._checks import check_integer, check_number, require
from smoothjax._progress import with_bar
from smoothjax._transform import noted
from smoothjax._trees import combine, is_array, partition


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


@noted
def tune_chunk_size(
    build: Callable[[int], Callable[..., Any]],
    *args: Any,
    candidates: Sequence[int] = (1, 2, 4, 8, 16, 32),
    memory_limit: float = math.inf,
    repeats: int = 3,
    progress: bool = True,
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
      progress: whether to show bars. They need tqdm; if that is not installed, none is shown.

    Returns:
      A `ChunkTuning`; print it to see the table.

    Raises:
      TypeError, ValueError: for bad settings, or if no candidate fits into the memory.

    Cost: compiling each candidate, and `repeats + 1` calls of each.

    >>> explain = jax.grad(lambda params, x: jnp.sum(params * x**2), argnums=1)
    >>> def build(chunk_size):
    ...     return sj.smoothgrad(explain, 0.1, num_samples=8, chunk_size=chunk_size)
    >>> arguments = jax.random.key(0), jnp.ones(3), jnp.ones(3)
    >>> tuning = sj.tune_chunk_size(build, *arguments, candidates=(1, 8), memory_limit=10**6)
    >>> fastest = jax.jit(build(tuning.best))
    >>> [row.chunk_size for row in tuning.table]
    [1, 8]
    """
    sizes = [check_integer(size, "each of candidates", least=1) for size in candidates]
    sizes = list(dict.fromkeys(sizes))
    memory_limit = check_number(memory_limit, "memory_limit", above=0)
    repeats = check_integer(repeats, "repeats", least=1)
    arrays, others = partition(args, is_array)  # a model may hold functions

    needed, programs = {}, {}
    for size in with_bar(sizes, "compile", "size", show=progress):
        program = _compiled(build(size), arrays, others)
        needed[size] = _bytes(program)
        too_large = needed[size] > memory_limit  # not where it is not known
        if not too_large and math.isfinite(_seconds(program, arrays)):
            programs[size] = program
    require(programs, f"no candidate fits into {memory_limit} bytes; they need {needed}.")

    seconds = {size: [] for size in programs}
    for _ in with_bar(range(repeats), "time", "round", show=progress):
        for size, program in programs.items():
            seconds[size].append(_seconds(program, arrays))
    table = tuple(
        ChunkCost(size, statistics.median(seconds.get(size, [math.inf])), needed[size])
        for size in sizes
    )
    return ChunkTuning(min(table, key=lambda row: row.seconds).chunk_size, table)


def _compiled(function, arrays, others):
    return jax.jit(lambda arrays: function(*combine(arrays, others))).lower(arrays).compile()


def _bytes(program):
    analysis = program.memory_analysis()
    if analysis is None:
        return math.nan
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _seconds(program, arrays):
    """The time of one call; infinite if the device has too little memory for it."""
    start = time.perf_counter()
    try:
        jax.block_until_ready(program(arrays))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    return time.perf_counter() - start
