"""A score as the list of its equations that depend on x, to be run forwards and back by rules.

`vjp(program, leaves, rule)` chains rules as JAX chains derivatives. A rule stands in the place of
`jax.vjp(equation, *inputs)`, and with `jax.vjp` as the rule it is the gradient that JAX computes.
A rule may as well pass on other values than arrays, such as means with variances.

`smoothjax.attribution._trace` makes programs. Every equation in them is one of these:
- linear in its inputs (affine, to be exact), so that its own derivative serves every rule;
- an elementwise function of one input, however it is written: a GELU is one equation;
- another primitive, such as the product of two inputs, a maximum over an axis, or a loop;
- a call that was left whole, with its custom derivative, and with its equations as `body`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.interpreters import ad

# Linear, with coefficients that are nowhere negative.
ROUTING = frozenset(
    "add add_any broadcast_in_dim concatenate convert_element_type copy copy_p cumsum device_put "
    "dynamic_slice dynamic_update_slice gather mesh_cast name optimization_barrier pad pcast psum "
    "pvary reduce_precision reduce_sum reduce_window_sum reshape reshard rev scatter scatter-add "
    "select_n sharding_constraint slice split squeeze transpose unstack".split()
)
# Linear in each of two operands, and so in one of them if the other is constant.
PRODUCTS = frozenset(["mul", "dot_general", "conv_general_dilated"])
_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 "
    "floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg "
    "nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square "
    "stop_gradient sub tan tanh xor".split()
)


@dataclasses.dataclass(eq=False)
class Constant:
    """An operand that does not depend on x.

    Attributes:
      value: the array; None in a loop, which is looked into but not run.
      number: what it holds everywhere, if the program says so, else None.
    """

    value: Any
    number: Any = None

    def __post_init__(self) -> None:
        """A number that is known now is one that the program says."""
        if self.number is None and self.value is not None and not isinstance(self.value, Tracer):
            self.number = self.value if np.shape(self.value) == () else None


@dataclasses.dataclass(eq=False)
class Variable:
    """An operand that depends on x: one of the inputs, or what an equation makes."""

    aval: Any
    equation: "Equation | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its value."""
        return self.aval.shape

    @property
    def is_inexact(self) -> bool:
        """Whether its value can have a derivative."""
        return jnp.issubdtype(self.aval.dtype, jnp.inexact)


Operand = Constant | Variable


class Program(NamedTuple):
    """Equations in an order that computes the outputs from the inputs."""

    equations: Sequence["Equation"]
    inputs: Sequence[Variable]
    outputs: Sequence[Operand]


@dataclasses.dataclass(eq=False)
class Equation:
    """A primitive, or several as one, as a function of those operands that depend on x.

    Attributes:
      primitive: its name, as a jaxpr prints it; "elementwise" for several as one.
      operands: all that it takes.
      apply: the function from the values of all operands to the list of outputs.
      source: the line of the user that wrote it.
      params: the primitive's parameters.
      outputs: the variables it makes.
      body: for a call, and for several as one, what is inside, as a program of the same inputs.
      has_effects: whether it prints, for instance.
      scope: the names of `jax.named_scope` there, as of the layers of Flax, Equinox and Keras.
    """

    primitive: str
    operands: Sequence[Operand]
    apply: Callable[..., Sequence[Any]]
    source: str
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: Sequence[Variable] = ()
    body: Program | None = None
    has_effects: bool = False
    scope: str = ""

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        """Returns the outputs for the values of the inputs."""
        values = dict(zip(self.inputs, inputs, strict=True))
        return self.apply(
            *(values[o] if isinstance(o, Variable) else o.value for o in self.operands)
        )

    def __str__(self) -> str:
        """Says what it is and where it was written."""
        return f"{self.primitive} ({self.source})"

    @property
    def inputs(self) -> Sequence[Variable]:
        """The operands that depend on x, each once."""
        return list(dict.fromkeys(o for o in self.operands if isinstance(o, Variable)))

    @property
    def parts(self) -> Sequence["Equation"]:
        """The equations of its body; it alone, if it has none."""
        return [self] if self.body is None else self.body.equations

    @property
    def is_linear(self) -> bool:
        """Whether the outputs are affine functions of the inputs taken together."""
        depends = [isinstance(o, Variable) for o in self.operands]
        if not all(v.is_inexact for v in [*self.inputs, *self.outputs]):
            return False
        if self.body is not None:
            return all(part.is_linear for part in self.parts)
        if self.primitive in PRODUCTS:
            return sum(depends) == 1
        if self.primitive == "div":
            return not depends[1]
        return self.primitive in ROUTING or self.primitive in ("neg", "sub")

    @property
    def is_elementwise(self) -> bool:
        """Whether each number of the outputs is a function of the inputs' numbers at its place."""
        if len({v.shape for v in [*self.inputs, *self.outputs]}) > 1:
            return False
        if self.body is not None:
            return all(part.is_elementwise for part in self.parts)
        return self.primitive in _ELEMENTWISE


Rule = Callable[..., tuple[Sequence[Any], Callable[[Sequence[Any]], Sequence[Any]] | None]]


def vjp(program: Program, leaves: Sequence[Any], rule: Rule = jax.vjp) -> tuple[list, Callable]:
    """Returns the outputs of a program and the function that carries cotangents back.

    Args:
      program: the equations.
      leaves: the values of its inputs.
      rule: a function `rule(equation, *inputs)` that returns the list of the equation's outputs and
        the function from the list of their cotangents to the list of those of the inputs, where
        None is zero. It is called only if there is a cotangent, and may be None if there is none.

    Returns:
      The list of outputs, and the function from the list of their cotangents to that of the leaves.
    """
    values, pulls = dict(zip(program.inputs, leaves, strict=True)), []
    for equation in program.equations:
        with _noting(equation):
            outputs, pull = rule(equation, *(values[v] for v in equation.inputs))
        values.update(zip(equation.outputs, outputs, strict=True))
        pulls.append(pull)

    def pull_back(cotangents):
        found = {}
        _accumulate(found, program.outputs, cotangents)
        for equation, pull in zip(reversed(program.equations), reversed(pulls), strict=True):
            if not found.keys().isdisjoint(equation.outputs):
                given = [found.pop(v) if v in found else _zero(v) for v in equation.outputs]
                with _noting(equation):
                    _accumulate(found, equation.inputs, pull(given))
        return [found.get(v, _zero(v)) for v in program.inputs]

    return [values[o] if isinstance(o, Variable) else o.value for o in program.outputs], pull_back


def evaluate(program: Program, leaves: Sequence[Any]) -> list[Any]:
    """Returns the outputs of a program."""
    return vjp(program, leaves, lambda equation, *inputs: (equation(*inputs), None))[0]


def live(program: Program) -> Program:
    """Returns a program without the equations that its outputs do not need."""
    needed, kept = set(program.outputs), []
    for equation in reversed(program.equations):
        if equation.has_effects or not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
            kept.append(equation)
    return program._replace(equations=kept[::-1])


def as_one(primitive: str, inputs: Sequence[Variable], outputs: Sequence[Variable]) -> Equation:
    """Returns one equation in the place of all those that lead from some variables to others."""
    body = Program(between(inputs, outputs), inputs, outputs)

    def apply(*values):
        return evaluate(body, values)

    last = body.equations[-1]
    return Equation(
        primitive, inputs, apply, last.source, outputs=outputs, body=body, scope=last.scope
    )


def between(inputs: Sequence[Variable], outputs: Sequence[Variable]) -> list[Equation]:
    """Returns the equations that compute some variables from others, in order."""
    done, order = set(inputs), {}

    def visit(variable):
        if variable not in done:
            done.add(variable)
            for earlier in variable.equation.inputs:
                visit(earlier)
            order[variable.equation] = None

    for output in outputs:
        visit(output)
    return list(order)


def _accumulate(found, operands, cotangents):
    for operand, cotangent in zip(operands, cotangents, strict=True):
        if isinstance(operand, Variable) and operand.is_inexact and cotangent is not None:
            found[operand] = found[operand] + cotangent if operand in found else cotangent


def _zero(variable):
    return ad.instantiate_zeros(ad.Zero(variable.aval.to_tangent_aval()))


@contextlib.contextmanager
def _noting(equation):
    try:
        yield
    except Exception as error:
        error.add_note(f"in {equation}")
        raise
