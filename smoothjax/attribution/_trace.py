"""From a function to its program: a jaxpr without calls, constants and other ways to write things.

What does not depend on x is computed at once. Calls are opened where something in them needs a
rule; a condition whose answer is known is its branch; each elementwise function is one equation.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core, source_info_util

from smoothjax._transform import at_argument
from smoothjax._trees import check_has_inexact, combine, is_inexact, partition, without_numbers
from smoothjax._typing import Explainer, Score
from smoothjax.attribution._program import (
    Constant,
    Equation,
    Program,
    Variable,
    as_one,
    between,
    live,
)

# Calls that mean what is in them (JAX has no gradient of custom_vmap); others have a derivative.
_TRANSPARENT = frozenset(["jit", "closed_call", "core_call", "custom_vmap_call"])
_CALLS = _TRANSPARENT | {"remat2", "custom_jvp_call", "custom_vjp_call"}
# What makes an array of one number out of it.
_REPEATING = frozenset(["broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"])


def trace(fun: Callable, leaves: Sequence[Any], opens: Callable[[Equation], bool]) -> Program:
    """Returns the program of a score, `fun(*leaves)`.

    Args:
      fun: a function of arrays that returns a real scalar.
      leaves: the arrays that its equations are to depend on.
      opens: whether a call, given as an equation with a body, is to be replaced by its body: one
        with a custom derivative, a checkpointed one, a branch, or a loop. Calls of `jax.jit` always
        are.

    Returns:
      The program, without the equations that its outputs do not need.

    Raises:
      TypeError: if the function returns anything but a real scalar.
      NotImplementedError: if a `while_loop`, or a `cond` on an unknown value, holds what `opens`
        asks for; a `scan` is unrolled.
    """
    closed = jax.make_jaxpr(fun)(*leaves)
    if [aval.shape for aval in closed.out_avals] != [()] or not jnp.issubdtype(
        closed.out_avals[0].dtype, jnp.floating
    ):
        raise TypeError(
            "the score must be a real scalar for one example; got "
            f"{', '.join(map(str, closed.out_avals))}. Pick one output, such as a class's logit."
        )
    inputs = [Variable(v.aval) for v in closed.jaxpr.invars]
    return _flatten(closed, inputs, opens)


def _flatten(closed, operands, opens, is_run=True, caller=None):
    """The program of a jaxpr of those operands."""
    jaxpr = getattr(closed, "jaxpr", closed)
    variables = [*jaxpr.constvars, *jaxpr.invars]
    constants = [Constant(value) for value in getattr(closed, "consts", ())]
    environment = dict(zip(variables, [*constants, *operands], strict=True))
    equations = []

    def read(atom):
        return Constant(atom.val) if isinstance(atom, core.Literal) else environment[atom]

    for eqn in jaxpr.eqns:
        equation = _equation(eqn, [read(atom) for atom in eqn.invars], caller)
        is_transparent = equation.primitive in _TRANSPARENT
        body, inputs = _body(eqn, equation.operands)
        if body is not None and (equation.inputs or is_transparent):
            equation.body = _flatten(body, inputs, opens, is_run, equation)
        elif equation.inputs and (parts := _parts_for_rules(eqn, equation, opens)):
            if is_run:
                equation.body = _unrolled(eqn, equation, opens)
            else:
                equations += parts

        if equation.body is not None and (is_transparent or opens(equation)):
            equations += equation.body.equations
            outputs = equation.body.outputs
        elif equation.inputs:
            equations.append(equation)
            outputs = equation.outputs
        else:
            outputs = _constants(equation, is_run)
        environment.update(zip(eqn.outvars, outputs, strict=True))

    inputs = list(dict.fromkeys(o for o in operands if isinstance(o, Variable)))
    program = Program(_fuse(equations), inputs, [read(atom) for atom in jaxpr.outvars])
    return live(program) if is_run else program  # which lists the parts of its loops, unconnected


def _equation(eqn, operands, caller):
    def apply(*values):
        bound = eqn.primitive.get_bind_params(eqn.params)
        functions, params = bound if isinstance(bound, tuple) else ((), bound)  # JAX 0.9, later
        # As in JAX's own eval_jaxpr: jnp.var, for one, makes NaNs that it does not use.
        with eqn.ctx.manager, jax.debug_nans(False):
            outputs = eqn.primitive.bind(*functions, *values, **params)
        return outputs if eqn.primitive.multiple_results else [outputs]

    source, scope = source_info_util.summarize(eqn.source_info), str(eqn.source_info.name_stack)
    if caller is not None:
        source, scope = source or caller.source, "/".join(filter(None, [caller.scope, scope]))
    effects = bool(eqn.effects)
    equation = Equation(
        eqn.primitive.name, operands, apply, source, eqn.params, has_effects=effects, scope=scope
    )
    equation.outputs = [Variable(v.aval, equation) for v in eqn.outvars]
    return equation


def _body(eqn, operands):
    """The jaxpr of a call, or of the branch that a condition is known to take; its operands."""
    if eqn.primitive.name in _CALLS:
        return next(_jaxprs(eqn)), operands
    if eqn.primitive.name == "cond" and getattr(operands[0], "number", None) is not None:
        return eqn.params["branches"][int(operands[0].number)], operands[1:]
    return None, operands


def _jaxprs(eqn) -> Iterator[Any]:
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (core.Jaxpr, core.ClosedJaxpr)):
                yield item


def _constants(equation, is_run):
    """The outputs of an equation that does not depend on x."""
    values = equation() if is_run else [None] * len(equation.outputs)
    number = equation.operands[0].number if equation.primitive in _REPEATING else None
    if equation.primitive == "platform_index":  # of the default device, which is to run the branch
        with jax.ensure_compile_time_eval():
            (number,) = equation()
    return [Constant(value, number) for value in values]


def _parts_for_rules(eqn, equation, opens):
    """The equations of those parts of a loop that need rules, as if all in it depended on x."""
    parts = []
    for body in _jaxprs(eqn) if any(v.is_inexact for v in equation.outputs) else ():
        jaxpr = getattr(body, "jaxpr", body)
        variables = [Variable(v.aval) for v in [*jaxpr.constvars, *jaxpr.invars]]
        program = _flatten(jaxpr, variables, opens, is_run=False)
        if opens(dataclasses.replace(equation, operands=variables, body=program)):
            parts += program.equations
    return parts


def _unrolled(eqn, equation, opens):
    """The steps of a scan, one after another."""
    if equation.primitive != "scan":
        raise NotImplementedError(
            f"{equation} holds operations that need rules of their own, which do not reach into "
            "it: type jax.lax.scan, or a Python loop, instead of while_loop, and jnp.where "
            "instead of cond."
        )
    step, length, equations = eqn.params["jaxpr"], eqn.params["length"], []
    # The last operands and outputs, with an axis more than the step's, have a part for each step.
    num_xs = sum(a.aval.ndim > v.ndim for a, v in zip(eqn.invars, step.in_avals, strict=True))
    num_ys = sum(a.aval.ndim > v.ndim for a, v in zip(eqn.outvars, step.out_avals, strict=True))
    num_carry = len(step.out_avals) - num_ys
    first_x = len(step.in_avals) - num_xs
    operands, num_consts = list(equation.operands), first_x - num_carry
    consts, carry, xs = operands[:num_consts], operands[num_consts:first_x], operands[first_x:]

    def derived(primitive, fun, operands, aval):
        made = Equation(primitive, operands, lambda *values: [fun(*values)], equation.source)
        if not made.inputs:
            return Constant(made()[0])
        made.outputs = [Variable(aval, made)]
        equations.append(made)
        return made.outputs[0]

    ys = {}
    for i in range(length)[:: -1 if eqn.params["reverse"] else 1]:
        take = functools.partial(jax.lax.index_in_dim, index=i, keepdims=False)
        parts = [
            derived("slice", take, [x], aval)
            for x, aval in zip(xs, step.in_avals[first_x:], strict=True)
        ]
        program = _flatten(step, [*consts, *carry, *parts], opens, caller=equation)
        equations += program.equations
        carry, ys[i] = program.outputs[:num_carry], program.outputs[num_carry:]
    stack = functools.partial(derived, "concatenate", lambda *values: jnp.stack(values))
    columns = zip(*(ys[i] for i in range(length)), strict=True)
    avals = [v.aval for v in eqn.outvars[num_carry:]]
    outputs = [*carry, *(stack(column, aval) for column, aval in zip(columns, avals, strict=True))]
    return Program(equations, equation.inputs, outputs)


def _fuse(equations):
    """Writes each elementwise function of one variable, in which paths from it meet, as one.

    As in a tree of dominators, `above` holds the nearest variable that another is a function of.
    """
    above, fused = {}, []

    def chain(variable):
        while variable is not None:
            yield variable
            variable = above.get(variable)

    for equation in equations:
        source = None
        if equation.is_elementwise and equation.inputs:
            first, *others = [list(chain(v)) for v in equation.inputs]
            source = next((v for v in first if all(v in other for other in others)), None)
        above.update((output, source) for output in equation.outputs)
        if source is not None and len(equation.inputs) > 1 and not _is_sum(equation, source):
            equation = as_one("elementwise", [source], equation.outputs)
        fused.append(equation)
    return fused


def _is_sum(equation, source):
    """Whether it is x + f(x), a residual connection, or linear."""
    paths = [between([source], [v]) for v in equation.inputs]
    return equation.is_linear and any(all(step.is_linear for step in path) for path in paths)


def by_rules(
    score: Score, argnum: int, attribute: Callable[[Callable, list], Sequence[Any]]
) -> Explainer:
    """Returns the function `(key, *args)` of `attribute(score_of, leaves)`.

    `leaves` are the floating-point leaves of argument `argnum`, of which `score_of` is a function.
    """
    at = at_argument(score, argnum)

    def explain(key, *args, **kwargs):
        x, score_at = at(args, kwargs)
        check_has_inexact(x)
        inexact, others = partition(x, is_inexact)
        leaves, treedef = jax.tree.flatten(inexact)

        def score_of(*values):
            return score_at(key, combine(treedef.unflatten(values), others))

        attributions = attribute(score_of, [jnp.asarray(leaf) for leaf in leaves])
        return combine(treedef.unflatten(attributions), jax.tree.map(without_numbers, others))

    return explain
