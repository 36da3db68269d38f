"""Functions of one number that are polynomials between kinks, and what they make of noise.

ReLU, ReLU6, leaky ReLUs, clips, absolute values and hard swish are such functions. Of a normal
number, their mean, their variance and the mean of their derivative are closed forms.
"""

import bisect
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._trees import wide_dtype
from smoothjax.attribution._program import Constant, Operand, Program
from smoothjax.reductions import root

# Coefficients of 1, z, z^2, ...: numbers, or arrays that broadcast to z.
Polynomial = tuple[Any, ...]

_FARTHEST = 40.0  # standard deviations: the normal density is 0 in float64


class Unknown(Exception):
    """Raised with the equation that makes no polynomials between kinks at known numbers."""


class Piecewise(NamedTuple):
    """A function of z.

    Attributes:
      kinks: numbers, ascending.
      pieces: a polynomial below the first kink, one between each two, and one above the last.
    """

    kinks: Sequence[float]
    pieces: Sequence[Polynomial]

    def __call__(self, z: jax.Array) -> jax.Array:
        """Returns f(z)."""
        first, *others = (_value(piece, z) for piece in self.pieces)
        for kink, value in zip(self.kinks, others, strict=True):
            first = jnp.where(z < kink, first, value)
        return jnp.broadcast_to(first, z.shape)

    @property
    def is_nondecreasing(self) -> bool:
        """Whether it is lines, the same for every number, that rise or stay and do not fall."""
        if not all(len(p) <= 2 and all(map(_is_number, p)) for p in self.pieces):
            return False
        jumps = zip(self.kinks, itertools.pairwise(self.pieces), strict=True)
        return all(p[1] >= 0 for p in self.pieces if len(p) == 2) and all(
            _value(low, kink) <= _value(high, kink) for kink, (low, high) in jumps
        )

    def moments(self, mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, ...]:
        """Returns E[f'(z)], E[f(z)] and Var[f(z)] of normal z, of the dtypes of its moments."""
        wide = wide_dtype(mean.dtype)
        m = mean.astype(wide)
        s = root(variance.astype(wide))
        divisor = jnp.maximum(s, jnp.finfo(wide).tiny)  # without noise, kinks are infinitely far
        kinks = [jnp.clip((kink - m) / divisor, -_FARTHEST, _FARTHEST) for kink in self.kinks]
        ends = [None, *((t, _cdf(t), _density(t)) for t in kinks), None]

        def expect(polynomials):
            """The mean of polynomials of t = (z - m) / s, each on its interval."""
            pieces = zip(polynomials, itertools.pairwise(ends), strict=True)
            return sum(_partial(p, low, high) for p, (low, high) in pieces)

        pieces = [tuple(_cast(c, wide) for c in piece) for piece in self.pieces]
        slopes = [tuple(j * c for j, c in enumerate(piece))[1:] for piece in pieces]
        standard = [_shifted(piece, m, s) for piece in pieces]
        average = expect(standard)
        squares = [_times(p, p) for p in (_plus(p, (-average,)) for p in standard)]
        slope = expect([_shifted(p, m, s) for p in slopes])
        moments = slope, average, jnp.maximum(expect(squares), 0)
        dtypes = mean.dtype, mean.dtype, variance.dtype
        return tuple(
            jnp.broadcast_to(a, m.shape).astype(d) for a, d in zip(moments, dtypes, strict=True)
        )


def piecewise(program: Program) -> Piecewise:
    """Returns the function that an elementwise program of one variable computes, or raises."""
    functions: dict[Operand, Piecewise] = {program.inputs[0]: Piecewise((), ((0.0, 1.0),))}
    for equation in program.equations:
        rule = _RULES.get(equation.primitive)
        if rule is None or not _is_of_numbers(equation):
            raise Unknown(equation)
        operands = [functions.get(operand) or _constant(operand) for operand in equation.operands]
        try:
            functions[equation.outputs[0]] = rule(*operands)
        except _NotKnown:
            raise Unknown(equation) from None
    return functions[program.outputs[0]]


class _NotKnown(Exception):
    pass


def _is_of_numbers(equation):
    """Whether it is what its rule says: integers are cut off, and have bits in place of truth."""
    output, *inputs = (v.aval.dtype for v in [*equation.outputs, *equation.inputs])
    if jnp.issubdtype(output, jnp.bool_):
        return equation.primitive != "convert_element_type"  # which is x != 0
    return jnp.issubdtype(output, jnp.inexact) or all(
        jnp.issubdtype(dtype, jnp.bool_) for dtype in inputs
    )


def _constant(operand: Operand) -> Piecewise:
    if not isinstance(operand, Constant):
        raise _NotKnown
    value = operand.number if isinstance(operand.value, Tracer | None) else operand.value
    is_uniform = isinstance(value, np.ndarray | np.generic | float | int | jax.Array)
    if is_uniform and np.size(value) and np.all(np.ravel(value)[0] == np.asarray(value)):
        return Piecewise((), ((float(np.ravel(value)[0]),),))
    return Piecewise((), ((operand.value,),))


def _apart(*functions: Piecewise) -> tuple[list[float], list[Sequence[Polynomial]]]:
    """The kinks of all functions, and the pieces of each between them."""
    kinks = sorted({kink for function in functions for kink in function.kinks})
    insides = map(_inside, _intervals(kinks))
    return kinks, [[f.pieces[bisect.bisect(f.kinks, z)] for f in functions] for z in insides]


def _by_piece(combine: Callable[..., Polynomial]) -> Callable[..., Piecewise]:
    def rule(*functions):
        kinks, pieces = _apart(*functions)
        return Piecewise(kinks, [combine(*polynomials) for polynomials in pieces])

    return rule


def _is_above(f: Piecewise, g: Piecewise) -> Piecewise:
    """1 where f > g, and 0 elsewhere."""
    difference = _RULES["sub"](f, g)
    roots = set(difference.kinks)
    for (low, high), piece in zip(_intervals(difference.kinks), difference.pieces, strict=True):
        if len(piece) > 2 or not all(map(_is_number, piece)):
            raise _NotKnown
        if len(piece) == 2 and piece[1] and low < (root := -piece[0] / piece[1]) < high:
            roots.add(root)
    kinks, pieces = _apart(difference, Piecewise(sorted(roots), [()] * (len(roots) + 1)))
    insides = map(_inside, _intervals(kinks))
    values = [_value(piece, z) for z, (piece, _) in zip(insides, pieces, strict=True)]
    return Piecewise(kinks, [(float(value > 0),) for value in values])


def _choose(which: Piecewise, if_0: Piecewise, if_1: Piecewise) -> Piecewise:
    kinks, pieces = _apart(which, if_0, if_1)
    if not all(_is_number(w) for (w, *_), _, _ in pieces):
        raise _NotKnown
    return Piecewise(kinks, [one if w else zero for (w, *_), zero, one in pieces])


def _clamp(low, f, high):
    return _RULES["min"](_RULES["max"](low, f), high)


def _quotient(f, g):
    if len(g) > 1:
        raise _NotKnown
    return tuple(c / g[0] for c in f)


def _minus(f):
    return tuple(-c for c in f)


def _plus(f, g):
    if len(f) < len(g):
        f, g = g, f
    return (*(a + b for a, b in zip(f, g, strict=False)), *f[len(g) :])


def _times(f, g):
    answer = (0.0,) * (len(f) + len(g) - 1)
    for j, a in enumerate(f):
        if not (_is_number(a) and a == 0):
            answer = _plus(answer, (0.0,) * j + tuple(a * b for b in g))
    return answer


_same = _by_piece(lambda f: f)
_not = _by_piece(lambda f: _plus((1.0,), _minus(f)))
_RULES: dict[str, Callable[..., Piecewise]] = {
    **dict.fromkeys(["convert_element_type", "copy", "copy_p", "name", "reduce_precision"], _same),
    **dict.fromkeys(["add", "add_any"], _by_piece(_plus)),
    "sub": _by_piece(lambda f, g: _plus(f, _minus(g))),
    "neg": _by_piece(_minus),
    "mul": _by_piece(_times),
    "div": _by_piece(_quotient),
    "gt": _is_above,
    "lt": lambda f, g: _is_above(g, f),
    "le": lambda f, g: _not(_is_above(f, g)),
    "ge": lambda f, g: _not(_is_above(g, f)),
    "not": _not,
    "and": _by_piece(_times),
    "max": lambda f, g: _choose(_is_above(f, g), g, f),
    "min": lambda f, g: _choose(_is_above(f, g), f, g),
    "abs": lambda f: _RULES["max"](f, _RULES["neg"](f)),
    "clamp": _clamp,
    "select_n": _choose,
}


def _intervals(kinks):
    return list(itertools.pairwise([-np.inf, *kinks, np.inf]))


def _inside(interval):
    """A number in an interval."""
    low, high = interval
    if np.isinf(low):
        return 0.0 if np.isinf(high) else high - max(1.0, abs(high))
    return low + max(1.0, abs(low)) if np.isinf(high) else (low + high) / 2


def _value(polynomial, z):
    return sum(c * z**j for j, c in enumerate(polynomial))


def _is_number(coefficient):
    return isinstance(coefficient, float | int)


def _cast(coefficient, dtype):
    return coefficient if _is_number(coefficient) else jnp.asarray(coefficient, dtype)


def _shifted(polynomial, m, s):
    """The coefficients of p(m + s t) as a polynomial of t."""
    *lower, last = polynomial or (0.0,)
    return functools.reduce(lambda p, c: _plus(_times(p, (m, s)), (c,)), lower[::-1], (last,))


def _partial(polynomial, low, high):
    """The mean of a polynomial of a standard normal t, on an interval and 0 elsewhere.

    E[t^n] = (n - 1) E[t^(n-2)] + low^(n-1) density(low) - high^(n-1) density(high) there.
    """
    moments = []
    for n in range(len(polynomial)):
        if n == 0:
            moment = (1.0 if high is None else high[1]) - (0.0 if low is None else low[1])
        else:
            moment = (n - 1) * moments[n - 2] if n > 1 else 0.0
            moment = moment + (0.0 if low is None else low[0] ** (n - 1) * low[2])
            moment = moment - (0.0 if high is None else high[0] ** (n - 1) * high[2])
        moments.append(moment)
    terms = zip(polynomial, moments, strict=True)
    # A bound that is never reached may be as large as its dtype allows, and its square infinite.
    return sum(
        jnp.where(moment == 0, 0, c) * moment
        for c, moment in terms
        if not (_is_number(c) and c == 0)
    )


def _cdf(t):
    return 0.5 * (1 + jax.lax.erf(t * np.sqrt(0.5).astype(t.dtype)))


def _density(t):
    return jnp.exp(-0.5 * t * t) * np.sqrt(0.5 / np.pi).astype(t.dtype)
