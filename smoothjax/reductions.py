"""How the draws of an explanation become one answer.

A reduction is three functions: `init(draw, num)` makes the state from the shape of one draw and the
number of draws, `update(state, draws)` takes in draws stacked along a leading axis, and
`finalize(state)` gives the answer. Sums accumulate in at least float32. What estimates a draw has
the dtype of a draw; what has its square's unit, or is an error, is in at least float32, since
squares leave the range of float16.

Reverse mode goes through the updates backwards. Where they only add to the state, it needs none of
the states they passed through, and its memory does not grow with the number of draws. Other
reductions say how, with a second pass over the draws (`second_pass`).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from smoothjax._shown import plus_minus
from smoothjax._trees import is_float0, wide_dtype
from smoothjax._typing import PyTree


class Reduction(NamedTuple):
    """How draws become one answer.

    Attributes:
      init: `init(draw, num) -> state`, with `draw` a pytree of `jax.ShapeDtypeStruct`.
      update: `update(state, draws) -> state`, with the draws stacked along a leading axis.
      finalize: `finalize(state) -> answer`.
      min_samples: the least number of draws for which the answer is defined.
      second_pass: for an update that does more than add to its state: `second_pass(state)`, given
        the final state, returns a reduction of the same draws to that state, whose update only
        adds. Derivatives, of any order, are taken of it, with the given state held constant.
      shown: what its repr says.
    """

    init: Callable[[PyTree, int], PyTree]
    update: Callable[[PyTree, PyTree], PyTree]
    finalize: Callable[[PyTree], PyTree]
    min_samples: int = 1
    second_pass: "Callable[[PyTree], Reduction] | None" = None
    shown: str = "Reduction(...)"

    def __repr__(self) -> str:
        """Returns how it was made, where Python would print the addresses of its functions."""
        return self.shown


_SUMMARIES: list[type] = []


def summary(cls: type) -> type:
    """Marks a named tuple as an answer that no other transform may be handed, and exports it."""
    jax.export.register_namedtuple_serialization(cls, serialized_name=f"smoothjax.{cls.__name__}")
    _SUMMARIES.append(cls)
    return cls


@summary
class Estimate(NamedTuple):
    """A Monte-Carlo mean with its standard error.

    Attributes:
      mean: the mean of the draws, like one draw.
      stderr: the standard error of each entry of the mean, in at least float32.
      num_samples: the number of draws that were taken.
    """

    mean: PyTree
    stderr: PyTree
    num_samples: jax.Array

    def _repr_markdown_(self) -> str | None:
        """What a notebook shows of a number."""
        if _is_array(self.mean) and np.ndim(self.mean) == 0:
            return f"{plus_minus(self)} (n = {int(self.num_samples)})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows of a map, where matplotlib is installed."""
        if _is_array(self.mean) and np.ndim(self.mean) in (2, 3):
            return png("mean_and_stderr", self)


def _is_array(tree):
    return jax.tree_util.all_leaves([tree])


def png(name: str, answer: tuple) -> bytes | None:
    """Returns the picture that a function of `smoothjax.plotting` draws, None if it cannot."""
    try:
        from smoothjax import plotting

        return getattr(plotting, name)(answer)._repr_png_()
    except (ImportError, ValueError):
        return None


def relative_error(estimate: Estimate) -> jax.Array:
    """Returns the Monte-Carlo error of a map relative to the map itself, a scalar.

    It is `sqrt(V / max(P - V, 0))` with `V = ||stderr||^2` and `P = ||mean||^2`, norms over the
    whole pytree, and infinite where `P <= V`. Noise inflates the norm of the mean by V on average,
    so the plain ratio would never exceed 1; this one estimates the error relative to the noise-free
    map.

    Args:
      estimate: what an explainer with `reduction=mean_and_stderr()` returns.

    Returns:
      A float32 scalar (float64 for float64 maps), 0 or more.

    >>> import jax.numpy as jnp
    >>> from smoothjax.reductions import Estimate, relative_error
    >>> print(relative_error(Estimate(jnp.array([3.0, 4.0]), jnp.array([0.0, 3.0]), 10)))
    0.75
    """
    if not isinstance(estimate, Estimate):
        raise TypeError(
            f"an Estimate is needed, which knows its error; got a {type(estimate).__name__}. Give "
            "the explainer reduction=smoothjax.reductions.mean_and_stderr()."
        )

    def norm2(tree):
        leaves = [x for x in jax.tree.leaves(tree) if not is_float0(x)]
        return sum(jnp.sum(abs2(x.astype(wide_dtype(x.dtype)))) for x in leaves)

    noise, power = norm2(estimate.stderr), norm2(estimate.mean)
    drowned = power <= noise  # and not where either is NaN, which passes on
    return jnp.where(drowned, jnp.inf, root(noise / jnp.where(drowned, 1, power - noise)))


def mean() -> Reduction:
    """Returns the reduction to the mean of the draws.

    Integer draws average to float32.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.smoothgrad(lambda params, x: x, 1.0, reduction=sj.reductions.mean())
    >>> jax.jit(explain)(jax.random.key(0), None, jnp.zeros((2, 3))).shape
    (2, 3)
    """
    return _MEAN


def mean_square() -> Reduction:
    """Returns the reduction to the mean of the squared draws (SquareGrad), in at least float32.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.smoothgrad(lambda params, x: x, 0.0, reduction=sj.reductions.mean_square())
    >>> print(explain(jax.random.key(0), None, jnp.array([1.0, -3.0])))
    [1. 9.]
    """
    return _MEAN_SQUARE


def variance() -> Reduction:
    """Returns the reduction to the unbiased variance of the draws (VarGrad), in at least float32.

    At least two draws.

    Chunks of draws are merged by their means and squared deviations (Chan et al. 1979), which does
    not cancel in float32 as mean of squares minus square of mean does. The variance of complex
    draws is real: that of their real and imaginary parts, added.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.smoothgrad(lambda params, x: x, 0.5, reduction=sj.reductions.variance())
    >>> explain(jax.random.key(0), None, jnp.ones((2, 3))).shape
    (2, 3)
    """
    return _VARIANCE


def mean_and_stderr() -> Reduction:
    """Returns the reduction to an `Estimate`: mean, standard error of the mean, number of draws.

    At least two draws. Only the outermost transform may return an `Estimate`: a transform that is
    handed one raises a TypeError. In float32, squares of deviations below about 1e-19 underflow,
    and their standard error is 0: multiply the score of such maps by a power of 2.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.smoothgrad(lambda params, x: x, 0.5, reduction=sj.reductions.mean_and_stderr())
    >>> estimate = explain(jax.random.key(0), None, jnp.ones((2, 3)))
    >>> estimate.mean.shape, estimate.stderr.shape, int(estimate.num_samples)
    ((2, 3), (2, 3), 50)
    """
    return _MEAN_AND_STDERR


def stack() -> Reduction:
    """Returns the reduction that keeps every draw, along a new leading axis.

    Its memory grows with the number of draws.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.smoothgrad(lambda params, x: x, 0.5, reduction=sj.reductions.stack())
    >>> explain(jax.random.key(0), None, jnp.ones((2, 3))).shape
    (50, 2, 3)
    """

    def init(draw, num):
        return jnp.int32(0), jax.tree.map(lambda d: jnp.zeros((num, *d.shape), d.dtype), draw)

    def write(buffer, d, start):
        everywhere = jax.typeof(buffer).sharding.spec
        if jax.typeof(d).sharding.spec != everywhere:  # draws over an Explicit mesh
            d = jax.reshard(d, everywhere)
        return jax.lax.dynamic_update_slice_in_dim(buffer, d, start, axis=0)

    def update(state, draws):
        start, buffers = state
        written = jax.tree.map(lambda buffer, d: write(buffer, d, start), buffers, draws)
        return start + _num(draws), written

    return Reduction(init, update, lambda state: state[1], shown="stack()")


def check_no_estimate(draw: PyTree) -> None:
    """Raises if a transform is handed an `Estimate` or the like, which it would not carry on."""

    def is_summary(node):
        return isinstance(node, tuple(_SUMMARIES))

    for node in filter(is_summary, jax.tree.leaves(draw, is_leaf=is_summary)):
        kind = type(node).__name__
        raise TypeError(
            f"the inner function returned {'an' if kind[0] in 'AEIOU' else 'a'} {kind}. The "
            "reduction to it belongs to the outermost transform only: give the inner one "
            "reduction=mean() (the default)."
        )


# Dtypes are no arrays, so they ride along as static fields of the states.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sum:
    count: jax.Array
    total: PyTree
    dtypes: tuple = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Moments:
    count: jax.Array
    total: PyTree
    m2: PyTree  # the sum of squared deviations from the mean
    dtypes: tuple = dataclasses.field(metadata={"static": True})

    @property
    def mean(self):
        return jax.tree.map(lambda total: total / self.count.astype(total.dtype), self.total)


def _averaged(transform, shown):
    """The mean of `transform(draw)`."""

    def init(draw, num):
        del num
        draw = jax.eval_shape(lambda d: jax.tree.map(transform, d), draw)
        total = jax.tree.map(lambda d: jnp.zeros(d.shape, wide_dtype(d.dtype)), draw)
        return _Sum(jnp.int32(0), total, _answer_dtypes(draw))

    def update(state, draws):
        def add(total, d):
            return total + _sum(transform(d.astype(wide_dtype(d.dtype))))

        total = jax.tree.map(add, state.total, draws)
        return dataclasses.replace(state, count=state.count + _num(draws), total=total)

    def finalize(state):
        average = jax.tree.map(lambda t: t / state.count.astype(t.dtype), state.total)
        return _cast(average, state.dtypes)

    return Reduction(init, update, finalize, shown=shown)


def _moments_init(draw, num):
    del num
    total = jax.tree.map(lambda d: jnp.zeros(d.shape, wide_dtype(d.dtype)), draw)
    spread = jax.tree.map(lambda t: jnp.zeros(t.shape, _real(t.dtype)), total)
    return _Moments(jnp.int32(0), total, spread, _answer_dtypes(draw))


def _moments_update(state, draws):
    n, m = state.count, _num(draws)

    def merge(total, spread, d):
        d = d.astype(total.dtype)
        chunk_total = _sum(d)
        chunk_mean = chunk_total / m
        chunk_spread = _sum(abs2(d - chunk_mean[None]))
        mean = total / jnp.maximum(n, 1).astype(total.dtype)
        share = m / (n + m).astype(spread.dtype)  # of the chunk, among all draws so far
        between = abs2(chunk_mean - mean) * n.astype(spread.dtype) * share
        return total + chunk_total, spread + chunk_spread + between

    return _moments_of(n + m, merge, state, state.total, state.m2, draws)


def _moments_around(final):
    """The second pass: sums of deviations from the mean that the first one found.

    `sum |d - mean|^2 = sum |d - c|^2 - |sum (d - c)|^2 / n` for any constant c.
    """
    n, center = final.count, final.mean

    def update(state, draws):
        def add(total, spread, c, d):
            gap = d.astype(c.dtype) - c[None]
            return total + _sum(gap), spread + _sum(abs2(gap))

        return _moments_of(n, add, state, state.total, state.m2, center, draws)

    def finalize(state):
        def shift(total, spread, c):
            correction = abs2(_vanishing(total)) / n.astype(spread.dtype)
            return total + n.astype(c.dtype) * c, spread - correction

        return _moments_of(n, shift, state, state.total, state.m2, center)

    return Reduction(_moments_init, update, finalize)


@jax.custom_jvp
def _vanishing(x):
    """Returns 0, the value of x, with the derivatives of x: a gradient need not compute it then."""
    return jnp.zeros_like(x)


_vanishing.defjvp(lambda primals, tangents: (_vanishing(*primals), tangents[0]))


def _moments_of(count, totals_and_spreads, state, *trees):
    pairs = jax.tree.map(totals_and_spreads, *trees)
    treedef = jax.tree.structure(state.total)
    total, m2 = jax.tree.transpose(treedef, jax.tree.structure((0, 0)), pairs)
    return dataclasses.replace(state, count=count, total=total, m2=m2)


def _moments_to_variance(state):
    return jax.tree.map(lambda m2: m2 / (state.count - 1).astype(m2.dtype), state.m2)


def _moments_to_estimate(state):
    n = state.count
    variance = jax.tree.map(lambda m2: variance_of_mean(m2, n), state.m2)
    return Estimate(_cast(state.mean, state.dtypes), jax.tree.map(root, variance), n)


def variance_of_mean(m2: jax.Array, num: jax.Array) -> jax.Array:
    """Returns the variance of a mean of `num` draws, of the sum of their squared deviations."""
    num = num.astype(m2.dtype)
    return m2 / (num * (num - 1))


def _sum(draws):
    """`jnp.sum(draws, axis=0)` as a product, 15 to 50 times as fast on XLA's CPU backend."""
    ones = jnp.ones(len(draws), draws.dtype)
    return jnp.tensordot(ones, draws, (0, 0), precision=jax.lax.Precision.HIGHEST)


def _num(draws):
    return jax.tree.leaves(draws)[0].shape[0]


def _real(dtype):
    return jnp.finfo(dtype).dtype


def abs2(x: jax.Array) -> jax.Array:
    """Returns the squared magnitude, real also for complex numbers."""
    return jnp.real(x * jnp.conj(x))


def root(x: jax.Array) -> jax.Array:
    """Returns the square root, whose derivative is 0 where it is 0."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def _answer_dtypes(draw):
    def answer(d):
        return d.dtype if jnp.issubdtype(d.dtype, jnp.inexact) else jnp.dtype(jnp.float32)

    return tuple(answer(d) for d in jax.tree.leaves(draw))


def _cast(tree, dtypes):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([x.astype(d) for x, d in zip(leaves, dtypes, strict=True)])


# Made once, so that two of a kind are equal.
_MEAN = _averaged(lambda draws: draws, "mean()")
# Cast here, so that the answer has the wide dtype too.
_MEAN_SQUARE = _averaged(lambda draws: abs2(draws.astype(wide_dtype(draws.dtype))), "mean_square()")
_VARIANCE, _MEAN_AND_STDERR = (
    Reduction(_moments_init, _moments_update, finalize, 2, _moments_around, shown)
    for finalize, shown in (
        (_moments_to_variance, "variance()"),
        (_moments_to_estimate, "mean_and_stderr()"),
    )
)


def __dir__() -> list[str]:
    """Returns the public names, beside which this module has what others build on."""
    return [
        "Estimate",
        "Reduction",
        "mean",
        "mean_and_stderr",
        "mean_square",
        "relative_error",
        "stack",
        "variance",
    ]
