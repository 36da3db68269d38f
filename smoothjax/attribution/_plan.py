"""What is known of a program before noise goes through it: its nonlinearities and its channels.

A channel is an output feature of the last dense or convolution layer, followed through what moves
numbers, with its position along other axes. A variable without a known axis of channels, such as
what was flattened, is one channel.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax.attribution._piecewise import Piecewise, Unknown, piecewise
from smoothjax.attribution._program import (
    Constant,
    Equation,
    Program,
    Variable,
    as_one,
    between,
    live,
)

# Linear maps that may take a number to several places, or several numbers to one.
_MIXING = frozenset(
    "broadcast_in_dim conv_general_dilated cumsum dot_general gather psum reduce_sum "
    "reduce_window_sum scatter scatter-add".split()
)
# Of one input, each of whose numbers they move or leave out.
_MOVING = frozenset("broadcast_in_dim copy reshape rev slice squeeze transpose".split())
# Functions without kinks, and what a softmax begins with.
_SMOOTH = frozenset(
    "acos acosh asin asinh atan atan2 atanh conv_general_dilated cos cosh digamma div dot_general "
    "erf erf_inv erfc exp exp2 expm1 integer_pow lgamma log log1p logistic mul pow rsqrt sin sinh "
    "sqrt square stop_gradient tan tanh".split()
)


class Maximum(NamedTuple):
    """The choice of the greatest of several numbers.

    Attributes:
      options: `options(fill, *inputs)` returns what is chosen from, along a leading axis, with
        `fill` for what is outside of an input.
      sign: 1 for the greatest, -1 for the least.
    """

    options: Callable[..., jax.Array]
    sign: int

    def chosen(self, *inputs: jax.Array) -> jax.Array:
        """Returns 1 for the option that is the first of the greatest, and 0 for the others."""
        options = self.sign * self.options(-self.sign * jnp.inf, *inputs)
        return jax.nn.one_hot(
            jnp.argmax(options, axis=0), len(options), dtype=options.dtype, axis=0
        )


class Plan(NamedTuple):
    """A program whose equations are linear maps, functions of one number, and maxima.

    Attributes:
      program: the program.
      rules: what its nonlinear equations are.
      channels: the axes of the channels of each variable.
      exact: the nonlinear equations whose inputs have the variances that linear maps give them, or
        are outputs of maxima, which are calibrated.
    """

    program: Program
    rules: dict[Equation, Piecewise | Maximum]
    channels: dict[Variable, tuple[int, ...]]
    exact: frozenset[Equation]

    def positions(self, variable: Variable) -> tuple[int, ...]:
        """Returns the axes of a variable that are not of channels."""
        axes = range(len(variable.shape))
        return tuple(axis for axis in axes if axis not in self.channels[variable])


def plan(program: Program) -> Plan:
    """Returns the plan of a program, or raises an error that names what has no rule."""
    equations, rules = [], {}
    for equation in program.equations:
        if not equation.is_linear:
            rule = _maximum(equation)
            if rule is None:
                equation, rule = _function(equation)
            rules[equation] = rule
        equations.append(equation)
    program = _maxima_first(live(program._replace(equations=equations)), rules)
    channels = dict.fromkeys(program.inputs, ())
    _channels(program, channels)
    certain = {v: (_INDEPENDENT, frozenset([v])) for v in program.inputs}
    _certainty(program, certain, rules)
    exact = [e for e in rules if e.inputs[0] in certain and certain[e.inputs[0]][0] != _UNSURE]
    return Plan(program, rules, channels, frozenset(exact))


def _maxima_first(program, rules):
    """Writes max(f(z)) as f(max(z)) for f that nowhere falls: z is nearer to normal than f(z)."""
    uses = collections.Counter(v for e in program.equations for v in e.inputs)
    makers = {v: e for e in program.equations for v in e.outputs}
    equations = []
    for equation in program.equations:
        equations.append(equation)
        if isinstance(rules.get(equation), Maximum):
            path = [equation]
            while (before := _before(path[0], makers, uses)) and before.primitive in _MOVING:
                path.insert(0, before)
            f = rules.get(before)
            if before is not None and isinstance(f, Piecewise) and f.is_nondecreasing:
                equations = [e for e in equations if e not in (before, *path)]
                value = before.inputs[0]
                for step in path:
                    step_on_z = dataclasses.replace(step, operands=[value])
                    aval = step.outputs[0].aval.update(dtype=value.aval.dtype)
                    step_on_z.outputs = [value := Variable(aval, step_on_z)]
                    equations.append(step_on_z)
                output = equation.outputs[0]
                function = Equation(
                    before.primitive,
                    [value],
                    lambda z, f=f, output=output: [f(z).astype(output.aval.dtype)],
                    before.source,
                    outputs=[output],
                )
                rules |= {step_on_z: rules.pop(equation), function: rules.pop(before)}
                makers[output] = function
                equations.append(function)
    return program._replace(equations=equations)


def _before(equation, makers, uses):
    """What makes the only input of an equation for it alone, if anything does."""
    first, *others = equation.inputs
    return makers.get(first) if uses[first] == 1 and not others else None


def _function(equation):
    """A function of one number, from as far above as it is known, as one equation with its rule."""
    if not equation.is_elementwise or len(equation.inputs) > 1:
        raise _no_rule(equation)
    for root in reversed(_roots(equation.inputs[0])):
        parts = between([root], equation.outputs)
        try:
            rule = piecewise(Program(parts, [root], equation.outputs))
        except Unknown as unknown:
            (culprit,) = unknown.args
        else:
            return as_one(equation.primitive, [root], equation.outputs), rule
    raise _no_rule(culprit)


def _roots(variable):
    """A variable, and those above it from which functions of one number lead to it."""
    roots, above = [variable], variable
    while (before := above.equation) is not None and before.is_elementwise:
        if len(before.inputs) > 1 or not before.inputs[0].is_inexact:
            break
        above = before.inputs[0]
        if not before.is_linear:
            roots.append(above)
    return roots


def _no_rule(equation):
    plain = "smoothgrad(saliency(score))"
    networks = "smoothdiff is for networks of ReLUs"
    guess = "to guess for smoothgrad_toward, saliency(score)"
    if equation.primitive in _SMOOTH:
        return NotImplementedError(
            f"{networks}: {equation} is neither linear in x, nor a function of one number with "
            "kinks at known numbers and lines between them, such as ReLU, nor a maximum. "
            f"Type {plain}, which converges fast for smooth networks; {guess}."
        )
    return NotImplementedError(f"{networks}: {equation} has no rule. Type {plain}; {guess}.")


def _maximum(equation):
    """The rule of a maximum of several numbers that depend on x; None for other equations."""
    params, (output, *_) = equation.params, equation.outputs
    shape, sign = output.shape, 1 if "max" in equation.primitive else -1
    if not all(v.is_inexact for v in [*equation.inputs, *equation.outputs]):
        return None
    if equation.primitive in ("max", "min") and len(equation.inputs) == 2:
        return Maximum(lambda fill, a, b: jnp.stack([a, b]), sign)
    if equation.primitive in ("reduce_max", "reduce_min"):
        axes = params["axes"]

        def of_axes(fill, z):
            return jnp.moveaxis(z, axes, range(len(axes))).reshape(-1, *shape)

        return Maximum(of_axes, sign)
    if equation.primitive in ("reduce_window_max", "reduce_window_min"):
        window, stride = params["window_dimensions"], params["window_strides"]
        inner = params["window_dilation"]
        outer = [
            (*p, d - 1) for p, d in zip(params["padding"], params["base_dilation"], strict=True)
        ]

        def of_windows(fill, z):
            z = jax.lax.pad(z, jnp.asarray(fill, z.dtype), outer)
            starts = [
                [i * d for i, d in zip(offset, inner, strict=True)] for offset in np.ndindex(window)
            ]
            ends = [
                [i + (n - 1) * s + 1 for i, n, s in zip(start, shape, stride, strict=True)]
                for start in starts
            ]
            slices = zip(starts, ends, strict=True)
            return jnp.stack([jax.lax.slice(z, start, end, stride) for start, end in slices])

        return Maximum(of_windows, sign)
    return None


def _channels(program, found):
    """Adds the axes of channels of what equations make to those that are known."""
    for equation in program.equations:
        if equation.body is not None:
            _channels(equation.body, found)
            axes = [found.get(o, ()) for o in equation.body.outputs]
        else:
            known = [found[v] for v in equation.inputs if found[v]]
            axes = [_moved(equation, v.shape, *known[:1] or [()]) for v in equation.outputs]
        found.update(zip(equation.outputs, axes, strict=True))


def _moved(equation, shape, axes):
    """The axes of channels of an output, from those of the input."""
    params, before = equation.params, equation.inputs[0].shape
    match equation.primitive:
        case "conv_general_dilated":
            return (params["dimension_numbers"].out_spec[1],)
        case "dot_general":
            ((ours, _), (batch, _)), (lhs, _) = params["dimension_numbers"], equation.operands
            num_free = len(shape) - (len(before) - len(ours))
            first = len(batch) if isinstance(lhs, Constant) else len(shape) - num_free
            return (*range(len(batch)), *range(first, first + num_free))
        case "transpose":
            return tuple(params["permutation"].index(axis) for axis in axes)
        case "broadcast_in_dim":
            return tuple(params["broadcast_dimensions"][axis] for axis in axes)
        case "reshape":
            return _regrouped(before, shape, axes)
        case "squeeze":
            removed = params["dimensions"]
        case "reduce_sum" | "reduce_max" | "reduce_min":
            removed = params["axes"]
        case _:
            return axes if len(before) == len(shape) else ()
    left = [axis for axis in range(len(before)) if axis not in removed]
    return tuple(left.index(axis) for axis in axes if axis in left)


def _regrouped(before, after, axes):
    """The axes of channels after a reshape: those of groups that were of channels altogether."""
    below, above = (np.cumprod(shape, dtype=int).tolist() for shape in (before, after))
    ends, found = sorted({1, *below} & {1, *above}), []
    for low, high in itertools.pairwise(ends):
        if all(i in axes for i, end in enumerate(below) if low < end <= high):
            found += [i for i, end in enumerate(above) if low < end <= high]
    return tuple(found)


# Whether the numbers of a variable are independent, have their right variances at least, or not.
_INDEPENDENT, _CORRELATED, _UNSURE = range(3)


def _certainty(program, found, rules):
    """Adds how sure the variances of variables are, and the inputs that they depend on."""
    for equation in program.equations:
        states, sources = zip(*(found[v] for v in equation.inputs), strict=True)
        if equation.body is not None and equation.is_linear:
            _certainty(equation.body, found, rules)
            made = [found.get(o, (_INDEPENDENT, frozenset())) for o in equation.body.outputs]
        else:
            union, state = frozenset().union(*sources), max(states)
            is_twice = sum(isinstance(o, Variable) for o in equation.operands) > len(sources)
            if isinstance(rules.get(equation), Maximum):
                state = _CORRELATED
            elif not equation.is_linear or is_twice or len(union) < sum(map(len, sources)):
                state = _UNSURE
            elif _mixes(equation):
                state = _CORRELATED if state == _INDEPENDENT else _UNSURE
            made = [(state, union)] * len(equation.outputs)
        found.update(zip(equation.outputs, made, strict=True))


def _mixes(equation):
    """Whether a number of an input may go to several places, or several numbers to one."""
    is_same_size = equation.outputs[0].aval.size == equation.inputs[0].aval.size
    return equation.primitive in _MIXING and not (
        equation.primitive == "broadcast_in_dim" and is_same_size
    )
