"""The layers of a program: products with weights, each with what is affine around it.

Other linear equations, such as sums of two activations and means, are left as they are.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from smoothjax.attribution._program import PRODUCTS, Constant, Equation, Program, as_one, live

_WEIGHTED = PRODUCTS - {"mul"}
_RESHAPING = frozenset(["broadcast_in_dim", "reshape", "squeeze", "transpose"])


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a score: a product with weights, and what is affine around it, as one function.

    `layer(a)` is z, the output for the input a: `z_j = sum_i a_i w_ij + b_j`. A batch norm in
    inference, a bias, and a normalisation of the input are in w and b of the layer next to them.

    Attributes:
      primitive: "dot_general" for dense layers, "conv_general_dilated" for convolutions; or "mul",
        for one that is written as a sum of products.
      name: the names of `jax.named_scope` where it was written, as of Flax linen's layers.
      source: the line that wrote it.
      output_shape: the shape of z.
      depth: how many layers the score computes before it.
      height: how many layers it computes after it.
      reads_input: whether a is an array of the explained argument itself.
    """

    primitive: str
    name: str
    source: str
    output_shape: tuple[int, ...]
    depth: int
    height: int
    reads_input: bool
    _equation: Equation = dataclasses.field(repr=False)

    def __call__(self, a: jax.Array) -> jax.Array:
        """Returns z, for the input a."""
        return self._equation(a)[0]

    def contributions(
        self, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, jax.Array, Callable[[jax.Array, jax.Array], jax.Array]]:
        """Returns sums of positive and negative contributions to each output, and their division.

        For the positive and the negative part of a, `c_ij = a_i w_ij` are contributions, without
        the bias; `divide(r, s)` returns `sum_j (max(c_ij, 0) r_j + min(c_ij, 0) s_j)`. In general,
        with the positive and the negative weights `w = u + v`, those of one sign are
        `positive_i u_ij + negative_i v_ij`, and those of the other
        `negative_i u_ij + positive_i v_ij`.

        Args:
          positive: such as `max(a, 0)`.
          negative: such as `min(a, 0)`.

        Returns:
          The sums over i for each j, p and n, and the function `divide`.
        """
        (p, n), pull_back = jax.vjp(self._signed, positive, negative)

        def divide(r, s):
            up, down = pull_back((r, s))
            return positive * up + negative * down

        return p, n, divide

    def _signed(self, positive, negative):
        assert self._equation.body is not None
        (sums,) = _signed(self._equation.body, [(positive, negative)])
        return sums


def with_layers(program: Program) -> tuple[Program, dict[Equation, Layer]]:
    """Returns a program in which each layer is one equation, and the layers by their equations."""
    consumers = collections.defaultdict(list)
    for equation in program.equations:
        for variable in equation.inputs:
            consumers[variable].append(equation)

    weighted = [equation for equation in program.equations if _is_weighted(equation)]
    ends, followers = [], set()
    for equation in weighted:
        end = equation
        while len(consumers[end.outputs[0]]) == 1 and _is_affine(*consumers[end.outputs[0]]):
            (end,) = consumers[end.outputs[0]]
            followers.add(end)
        ends.append(end)

    layers, replaced = {}, {}
    for depth, (equation, end) in enumerate(zip(weighted, ends, strict=True)):
        (start,) = equation.inputs
        while (before := start.equation) and before not in followers and _is_affine(before):
            (start,) = before.inputs
        whole = replaced[end] = as_one("layer", [start], end.outputs)
        layers[whole] = Layer(
            primitive=next(_primitives(equation)),
            name=equation.scope,
            source=equation.source,
            output_shape=whole.outputs[0].shape,
            depth=depth,
            height=len(weighted) - 1 - depth,
            reads_input=start in program.inputs,
            _equation=whole,
        )
    equations = [replaced.get(equation, equation) for equation in program.equations]
    return live(program._replace(equations=equations)), layers


def _is_weighted(equation):
    if not equation.is_linear or len(equation.inputs) != 1 or len(equation.outputs) != 1:
        return False
    if equation.body is None:
        # With one number for all weights, it is a way to write a sum.
        is_sum = any(isinstance(o, Constant) and o.number is not None for o in equation.operands)
        return equation.primitive in _WEIGHTED and not is_sum
    # A call that was left whole, such as a convolution with a derivative of its own.
    return not equation.is_elementwise and bool(set(_primitives(equation)) & PRODUCTS)


def _is_affine(equation):
    """Whether a layer may take it in: its outputs are those of the layer, each scaled and moved."""
    if not equation.is_linear or len(equation.inputs) != 1 or _is_weighted(equation):
        return False
    return equation.is_elementwise or equation.primitive in _RESHAPING


def _primitives(equation) -> Iterator[str]:
    """The primitives in an equation, those of layers first."""
    names = [name for part in equation.parts if part is not equation for name in _primitives(part)]
    yield from sorted(names or [equation.primitive], key=lambda name: name not in _WEIGHTED)


def _signed(program: Program, pairs: list) -> list:
    """The sums of contributions of either sign to the outputs of linear equations, from inputs'."""
    values = dict(zip(program.inputs, pairs, strict=True))

    def pair(operand):
        if not isinstance(operand, Constant):
            return values[operand]
        value = operand.value
        if jnp.issubdtype(jnp.result_type(value), jnp.inexact):
            value = jnp.zeros_like(value)  # a bias, which is no contribution
        return value, value

    for equation in program.equations:
        operands = [pair(operand) for operand in equation.operands]
        positive, negative = zip(*operands, strict=True)
        if equation.body is not None:
            given = dict(zip(equation.operands, operands, strict=True))
            results = _signed(equation.body, [given[v] for v in equation.body.inputs])
        elif equation.primitive in PRODUCTS or equation.primitive == "div":
            results = [_weighted(equation, operands)]
        else:
            if equation.primitive in ("sub", "neg"):  # the last operand changes sides
                swapped = negative[-1], positive[-1]
                positive, negative = ((*positive[:-1], swapped[0]), (*negative[:-1], swapped[1]))
            results = zip(equation.apply(*positive), equation.apply(*negative), strict=True)
        values.update(zip(equation.outputs, results, strict=True))
    return [pair(output) for output in program.outputs]


def _weighted(equation, operands):
    """The same for a product with weights, or a quotient."""
    place = [isinstance(operand, Constant) for operand in equation.operands].index(True)
    weights = jnp.asarray(equation.operands[place].value)
    p, n = operands[1 - place]

    def apply(weights, x):
        return equation.apply(*((weights, x) if place == 0 else (x, weights)))[0]

    if equation.primitive in ("mul", "div"):  # one weight for each number, which has one sign
        return tuple(apply(weights, jnp.where(weights < 0, *x)) for x in ((n, p), (p, n)))
    u, v = parts(weights)
    return apply(u, p) + apply(v, n), apply(u, n) + apply(v, p)


def parts(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the positive and the negative part of an array."""
    return jnp.maximum(a, 0), jnp.minimum(a, 0)


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient of two arrays, 0 where the denominator is."""
    return jnp.where(denominator == 0, 0, numerator / jnp.where(denominator == 0, 1, denominator))
