"""Guided backpropagation and the deconvolution network: other derivatives of the ReLU.

A ReLU is recognised by what it computes: `jax.nn.relu`, `jax.nn.relu6` (whose upper bound keeps its
derivative), `jnp.maximum(x, 0)`, a clip from 0, `jnp.where(x > 0, x, 0)` or `x * (x > 0)`. Other
activations keep their derivatives: leaky ReLUs, and all functions of one number that have a ReLU in
them, such as `jax.nn.celu`. So does `max(variance, 0)` before a square root, which is a guard.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._checks import require
from smoothjax._transform import transform
from smoothjax._typing import Explainer, Score
from smoothjax.attribution._program import Constant, Equation, Operand, Variable, vjp
from smoothjax.attribution._trace import by_rules, trace


@transform
def guided_backprop(score: Score, *, argnum: int = 1) -> Explainer:
    """Returns an explainer of the gradient that passes back through ReLUs only where positive.

    The derivative g of what follows a ReLU of x becomes `max(g, 0)` where x > 0, and 0 elsewhere. A
    ReLU is `jax.nn.relu` or `relu6`, `jnp.maximum(x, 0)`, a clip from 0, `jnp.where(x > 0, x, 0)`
    or `x * (x > 0)`; written otherwise, beside one of these, it keeps its derivative. The map shows
    edges of the input more than what the class depends on (Nie et al. 2018, arXiv 1805.07039).

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one.
      argnum: the argument to explain, counted from 0 after the key: 1 is x.

    Returns:
      An explainer `explain(params, x, *rest)`, stochastic if the score is, whose result is shaped
      like x; float0 for integer leaves.

    Raises:
      TypeError: as `saliency` does.
      ValueError: when called, if the score has no ReLU that depends on x.
      NotImplementedError: when called, if a loop, such as `jax.lax.scan`, has a ReLU in it.

    Cost: one gradient.

    Source: Springenberg et al. 2015, arXiv 1412.6806.

    >>> explain = sj.guided_backprop(lambda params, x: jnp.sum(params * jax.nn.relu(x)))
    >>> explain(jnp.array([2.0, -2.0, 2.0]), jnp.array([1.0, 1.0, -1.0]))
    Array([2., 0., 0.], dtype=float32)
    """
    return _of_relus(score, argnum, lambda x, g: jnp.where(x > 0, jnp.maximum(g, 0), 0))


@transform
def deconvnet(score: Score, *, argnum: int = 1) -> Explainer:
    """Returns an explainer of the gradient whose negative part is dropped at each ReLU.

    The derivative g of what follows a ReLU becomes `max(g, 0)`, whatever went into the ReLU; max
    pooling passes it to the places of the maxima, as the gradient does.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one.
      argnum: the argument to explain, counted from 0 after the key: 1 is x.

    Returns:
      An explainer `explain(params, x, *rest)`, stochastic if the score is, whose result is shaped
      like x; float0 for integer leaves.

    Raises:
      TypeError, ValueError, NotImplementedError: as `guided_backprop` does.

    Cost: one gradient.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901.

    >>> explain = sj.deconvnet(lambda params, x: jnp.sum(params * jax.nn.relu(x)))
    >>> explain(jnp.array([2.0, -2.0, 2.0]), jnp.array([1.0, 1.0, -1.0]))
    Array([2., 0., 2.], dtype=float32)
    """
    return _of_relus(score, argnum, lambda x, g: jnp.maximum(g, 0))


def _of_relus(score, argnum, backward):
    """The explainer of the gradient with `backward(x, g)` for the derivative at ReLUs of x."""

    def attribute(score_of, leaves):
        program = trace(score_of, leaves, opens=lambda call: bool(_relus(call.parts)))
        relus = _relus(program.equations)
        require(
            relus,
            "no ReLU of the score depends on x, so that the map would be the plain gradient: type "
            "saliency for that. A ReLU is jax.nn.relu, jnp.maximum(x, 0), a clip from 0, or "
            "jnp.where(x > 0, x, 0).",
        )

        def rule(equation, *inputs):
            if equation not in relus:
                return jax.vjp(equation, *inputs)
            x = inputs[equation.inputs.index(relus[equation])]

            def pull(cotangents):
                (g,) = cotangents
                if equation.primitive == "clamp":
                    g = jnp.where(x < equation.operands[2].value, g, 0)
                return [backward(x, g) if v is relus[equation] else None for v in equation.inputs]

            return equation(*inputs), pull

        (value,), pull_back = vjp(program, leaves, rule)
        return pull_back([jnp.ones_like(value)])

    return by_rules(score, argnum, attribute)


def _relus(equations: Sequence[Equation]) -> dict[Equation, Variable]:
    """The equations that are ReLUs, each with its x."""
    guards = {_guard(root) for root in equations if root.primitive in ("sqrt", "rsqrt", "pow")}
    ours = [equation for equation in equations if equation not in guards]
    return {equation: x for equation in ours if (x := _rectified(equation)) is not None}


def _guard(root: Equation) -> Equation | None:
    """The equation whose result, broadcast and with an epsilon added, a square root is taken of."""
    earlier = root.inputs[0].equation
    while earlier is not None and earlier.primitive in ("add", "broadcast_in_dim", "reshape"):
        earlier = earlier.inputs[0].equation
    return earlier


def _rectified(equation: Equation) -> Variable | None:
    """The x of which an equation computes max(x, 0), or None."""
    last = equation.parts[-1] if equation.primitive == "elementwise" else equation
    operands = last.operands
    if last.primitive == "max":
        pairs = [operands, operands[::-1]]
    elif last.primitive == "clamp" and not isinstance(operands[2], Variable):
        pairs = [operands[1::-1]]
    elif last.primitive == "mul":
        zero = Constant(0)
        pairs = [(x, zero) for x, mask in (operands, operands[::-1]) if _is_sign(mask, x, "g")]
    elif last.primitive == "select_n" and len(operands) == 3:
        mask, if_false, if_true = operands
        pairs = [(if_true, if_false)] if _is_sign(mask, if_true, "g") else []
        pairs += [(if_false, if_true)] if _is_sign(mask, if_false, "l") else []
    else:
        return None
    for x, zero in pairs:
        if isinstance(x, Variable) and x.is_inexact and _is_zero(zero):
            return x
    return None


def _is_sign(mask: Operand, x: Operand, side: str) -> bool:
    """Whether a mask says where x is greater ("g") or less ("l") than 0, or equal."""
    equation = mask.equation if isinstance(mask, Variable) else None
    if equation is not None and equation.primitive == "convert_element_type":
        return _is_sign(equation.operands[0], x, side)
    if equation is None or equation.primitive not in ("gt", "ge", "lt", "le"):
        return False
    left, right = equation.operands
    if right is x:
        left, right, side = right, left, {"g": "l", "l": "g"}[side]
    return left is x and _is_zero(right) and equation.primitive.startswith(side)


def _is_zero(operand: Operand) -> bool:
    if isinstance(operand, Variable):
        return False
    known = operand.number if isinstance(operand.value, Tracer | None) else operand.value
    return known is not None and not np.any(known)
