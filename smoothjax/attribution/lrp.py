"""Layer-wise relevance propagation: through layers by rules, through all else by what it is.

Relevance R is carried back as c = R / a, its ratio to the activation a. In this form the sums,
pools, reshapes and selections of a network need nothing but their derivative. What is nonlinear has
a rule here; `smoothjax.attribution.lrp_rules` has those of the layers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax._checks import require
from smoothjax._transform import transform
from smoothjax._typing import Explainer, Score
from smoothjax.attribution._layers import ratio, with_layers
from smoothjax.attribution._program import (
    PRODUCTS,
    Constant,
    Equation,
    Program,
    Variable,
    as_one,
    live,
    vjp,
)
from smoothjax.attribution._trace import by_rules, trace
from smoothjax.attribution.lrp_rules import Rule, _check_rule, epsilon

# Each of their outputs is one of the inputs, or a constant.
_SELECTIONS = frozenset(
    "max min reduce_max reduce_min reduce_window_max reduce_window_min cummax cummin select_n sort "
    "top_k gather dynamic_slice".split()
)
# Elementwise functions that are no activations: exp, what is constant in steps or not finite at 0.
_NO_ACTIVATIONS = frozenset(
    "acosh ceil digamma div erf_inv exp exp2 floor lgamma log nextafter pow rem round rsqrt "
    "sign stop_gradient".split()
)
# What an epsilon, a mask, a scale and a change of shape are written with.
_SCALING = frozenset(
    "add broadcast_in_dim convert_element_type div max mul reshape select_n squeeze".split()
)


@transform
def lrp(score: Score, rules: Rule = epsilon(), *, argnum: int = 1) -> Explainer:
    """Returns an explainer of the relevance of x for a score, by layer-wise propagation.

    The score is divided among the numbers that made it, layer by layer back to x. The `rules` say
    how dense layers and convolutions divide it. The rest of a network does as follows.

    - A bias, and a batch norm in inference, belong to the layer next to them; a bias takes a share
      of the relevance.
    - Sums, means and residual connections divide relevance in proportion to their terms, max
      pooling gives it to the maximum.
    - An elementwise function f of x passes it on (the ratio `f(x) / x` of AttnLRP), but for
      f(0), which is a bias; what `jax.lax.stop_gradient` stops inside it counts.
    - A product of two activations gives half to each; a softmax has the derivative of its Taylor
      expansion at x; and what layer norms and RMS norms divide by is a constant.

    Patents are claimed on layer-wise relevance propagation: companies should check that they may
    use it.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar, best a logit; or a
        stochastic one.
      rules: a rule for all layers, from `smoothjax.attribution.lrp_rules`, or one of your own; its
        `by_layer` chooses a rule for each.
      argnum: the argument to explain, counted from 0 after the key: 1 is x.

    Returns:
      An explainer `explain(params, x, *rest)`, stochastic if the score is, whose result is shaped
      like x; float0 for integer leaves. Without biases, it sums to the score where the rules
      conserve relevance.

    Raises:
      TypeError: as `saliency` does, and if `rules` is no function.
      ValueError: when called, if a rule returns relevance of another shape than its input's.
      NotImplementedError: when called, for an operation that none of the above is, which is named.

    Cost: under `jax.jit`, one gradient with the epsilon rule, about five with the others. A
    `jax.lax.scan` is unrolled.

    Source: Bach et al. 2015, doi 10.1371/journal.pone.0130140; for attention, Achtibat et al. 2024,
    arXiv 2402.05602.

    >>> def score(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["last"]
    >>> params = {"hidden": jnp.array([[1.0, -1.0], [1.0, 2.0]]), "last": jnp.array([1.0, 3.0])}
    >>> explain = sj.lrp(score, sj.attribution.lrp_rules.zplus())
    >>> explain(params, jnp.array([1.0, 1.0])), score(params, jnp.array([1.0, 1.0]))
    (Array([1., 4.], dtype=float32), Array(5., dtype=float32))
    """
    _check_rule(rules, "rules")

    def attribute(score_of, leaves):
        whole = trace(score_of, leaves, _opens)
        program, layers = with_layers(_with_softmaxes(whole))
        of_x: dict[Variable, Any] = dict.fromkeys(program.inputs, 0)  # what rules give x itself

        def through(layer, variable, a):
            z = layer(a)

            def pull(cotangents):
                relevance = rules(layer, a, z * cotangents[0])
                require(
                    jnp.shape(relevance) == a.shape,
                    "a rule must return the relevance of the input of the layer, of shape "
                    f"{a.shape}; got {jnp.shape(relevance)}.",
                )
                if not layer.reads_input:
                    return [ratio(relevance, a)]
                of_x[variable] += relevance  # an x of 0 may have some
                return [None]

            return [z], pull

        def rule(equation, *inputs):
            if equation in layers:
                return through(layers[equation], *equation.inputs, *inputs)
            return _passed_on(equation, *inputs)

        (value,), pull_back = vjp(program, leaves, rule)
        ratios = zip(leaves, program.inputs, pull_back([jnp.ones_like(value)]), strict=True)
        return [x * c + of_x[variable] for x, variable, c in ratios]

    return by_rules(score, argnum, attribute)


def _opens(call):
    return call.primitive == "scan" or not (call.is_linear or _is_activation(call))


def _passed_on(equation, *inputs):
    """An equation that is no layer, by what it is."""
    if not any(v.is_inexact for v in equation.outputs):
        return equation(*inputs), None
    if equation.is_linear or equation.primitive == "softmax":
        return jax.vjp(equation, *inputs)
    if equation.primitive == "stop_gradient":
        return equation(*inputs), lambda cotangents: [None]
    if _is_activation(equation):
        return _activation(equation, *inputs)
    if equation.primitive in _SELECTIONS:
        return jax.vjp(equation, *inputs)
    if equation.primitive in PRODUCTS or _deviations(equation):
        return _product(equation, *inputs)
    return equation(*inputs), lambda cotangents: _refuse(equation)


def _activation(equation, x):
    """An elementwise function f: c (f(x) - f(0)) / x, and its derivative where that is 0 / 0."""
    (y,), (y0,) = equation(x), equation(jnp.zeros_like(x))
    _, derivative = jax.vjp(equation, x / 2)  # the mean slope from 0 to x, to second order
    # Where f(0) is 0, nothing cancels.
    is_near = (x == 0) | ((y0 != 0) & (abs(x) < 1e-3))

    def pull(cotangents):
        (c,) = cotangents
        return [jnp.where(is_near, derivative([c])[0], c * (y - y0) / jnp.where(is_near, 1, x))]

    return [y], pull


def _product(equation, *inputs):
    """A product of two activations: half to each; with a deviation, nothing to that."""
    outputs, pull_back = jax.vjp(equation, *inputs)
    deviations = _deviations(equation)
    share = 1 if deviations else 0.5

    def pull(cotangents):
        slopes = zip(equation.inputs, pull_back(cotangents), strict=True)
        return [None if v in deviations else share * slope for v, slope in slopes]

    return outputs, pull


def _refuse(equation):
    raise NotImplementedError(
        f"lrp has no rule for {equation}: its rules are for layers, activations that are finite at "
        "0, sums, maxima, products, softmax, and what layer norms divide by. Type saliency or "
        "integrated_gradients for a score with other operations."
    )


def _is_activation(equation):
    """Whether it is an elementwise function of one input, with a rule."""
    if len(equation.inputs) != 1 or len(equation.outputs) != 1 or not equation.is_elementwise:
        return False
    dtypes = equation.inputs[0].aval.dtype, equation.outputs[0].aval.dtype
    are_real = all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)
    if equation.body is not None and equation.primitive != "elementwise":
        return are_real and all(part.is_linear or _is_activation(part) for part in equation.parts)
    is_reciprocal = equation.primitive == "integer_pow" and equation.params["y"] < 0
    return are_real and not is_reciprocal and equation.primitive not in _NO_ACTIVATIONS


def _deviations(equation: Equation) -> list[Variable]:
    """Of a quotient's divisor, or a product's factors, those that are deviations, but not all."""
    places = {"mul": (0, 1), "div": (1,)}.get(equation.primitive, ())
    factors = [equation.operands[place] for place in places]
    found = [v for v in factors if isinstance(v, Variable) and _is_deviation(v, equation)]
    return found if len(found) < len(equation.inputs) else []


def _is_deviation(factor: Variable, product: Equation) -> bool:
    """Whether it is the root, as of a variance, for several numbers that are divided by it."""
    root, is_inverted = _before(factor)
    if root is None or math.prod(root.outputs[0].shape) >= math.prod(product.outputs[0].shape):
        return False
    exponent = {"sqrt": 0.5, "rsqrt": -0.5}.get(root.primitive)
    if root.primitive == "pow" and isinstance(root.operands[1], Constant):
        exponent = root.operands[1].number
    is_divisor = (product.primitive == "div") != is_inverted
    return exponent is not None and exponent == (0.5 if is_divisor else -0.5)


def _with_softmaxes(program: Program) -> Program:
    """The program in which each softmax is one equation."""
    equations = [_softmax(equation) or equation for equation in program.equations]
    return live(program._replace(equations=equations))


def _softmax(quotient: Equation) -> Equation | None:
    """A softmax as one equation, given its last."""
    if quotient.primitive != "div" or len(quotient.inputs) != 2:
        return None
    (above, _), (below, is_inverted) = map(_before, quotient.inputs)
    if above is None or below is None or below.primitive != "reduce_sum" or is_inverted:
        return None
    is_softmax = above.primitive in ("exp", "exp2") and _before(below.inputs[0])[0] is above
    return as_one("softmax", above.inputs, quotient.outputs) if is_softmax else None


def _before(variable: Variable) -> tuple[Equation | None, bool]:
    """The equation that made a variable, or its inverse, but for scales, masks and shapes."""
    equation, is_inverted = variable.equation, False
    while equation is not None and equation.primitive in _SCALING and len(equation.inputs) == 1:
        is_inverted ^= equation.primitive == "div" and isinstance(equation.operands[0], Constant)
        equation = equation.inputs[0].equation
    return equation, is_inverted
