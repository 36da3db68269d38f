"""SmoothDiff: the limit of SmoothGrad from a few passes, by means of local derivatives.

The gradient is a product of the derivatives of all layers. SmoothGrad averages the product over
noisy inputs; here each derivative is averaged by itself, and the product is taken once. Linear maps
keep theirs, and that of a ReLU is the probability that its input is positive. For that, means and
variances go through the program, as if all numbers in it were normal and independent of each other,
and at each nonlinearity they are brought to what a few antithetic pairs of noisy inputs show.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smoothjax import reductions
from smoothjax._checks import check_integer, require
from smoothjax._loop import accumulate
from smoothjax._perturb import additive, levels_of, perturbation
from smoothjax._statistics import ratio
from smoothjax._transform import at_argument, transform
from smoothjax._trees import combine, is_inexact, partition, wide_dtype, without_numbers
from smoothjax._typing import Explainer, Score
from smoothjax.attribution._plan import Maximum, Plan, plan
from smoothjax.attribution._program import PRODUCTS, Equation, Variable, evaluate, live, vjp
from smoothjax.attribution._trace import trace
from smoothjax.noise import relative
from smoothjax.reductions import root


class _Moments(NamedTuple):
    """The mean and the variance of each number of an array, the variance in at least float32."""

    mean: jax.Array
    variance: jax.Array


class _Sampled(NamedTuple):
    """What pairs show of each channel: its mean and variance, and the noise of both.

    And the mean of each number, with its noise for each channel. All but the means are squares of
    the channel's unit, so that no number leaves float32 by units.
    """

    mean: jax.Array
    variance: jax.Array
    mean_noise: jax.Array
    variance_noise: jax.Array
    means: jax.Array
    means_noise: jax.Array


@transform(takes_key=True)
def smoothdiff(
    score: Score,
    sigma: Any = relative(0.15),
    *,
    num_samples: int = 8,
    argnum: int = 1,
    where: Any = None,
) -> Explainer:
    """Returns an explainer of about the map that SmoothGrad has after hundreds of draws.

    It is the product of the mean derivatives of all layers under noise on x, in place of the mean
    of their product. That is exact for nonlinearities behind one linear map, and elsewhere close:
    on EfficientNet-Lite0 it has a cosine of 0.9 to SmoothGrad's limit, which SmoothGrad itself has
    after 400 draws; but more draws do not bring it all the way. `smoothgrad_toward` starts there
    and goes on. Two keys give nearly the same map. It is not more faithful than SmoothGrad.

    The score is made of linear maps (dense, convolutions, means, batch norms in inference,
    additions), of functions of one number that are lines between known kinks (ReLU, ReLU6, leaky
    ReLU, clip, abs, hard swish), and of maxima (max pooling). Means and variances are sampled for
    each channel: for each output feature of the last dense or convolution layer, over positions,
    which are the other axes. Custom derivatives of what is not linear do not count.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar, usually a logit; or a
        stochastic one, which gets one key for all draws.
      sigma: the level of the noise, as in `smoothgrad`.
      num_samples: the number of noisy inputs, in pairs `x + e` and `x - e`. 4 are few.
      argnum: the argument to explain, counted from 0 after the key: 1 is x.
      where: which leaves get noise, as in `smoothgrad`. All are explained.

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)`, whose result is shaped and typed like
      x; float0 for integer leaves.

    Raises:
      TypeError, ValueError: as `smoothgrad` and `saliency` do, and for an odd `num_samples`.
      NotImplementedError: when called, for a score with anything else in it: softmax, layer norm,
        GELU, tanh, products of two values that depend on x, loops. It names the line.

    Cost: `num_samples` evaluations of the score, two for means and variances, and one backward
    pass, with three times the memory of a gradient, whatever `num_samples`.

    Source: Hill et al. 2025, "Smoothed Differentiation Efficiently Mitigates Shattered Gradients in
    Explanations", NeurIPS, for products of mean derivatives. Propagated moments are ours.

    >>> explain = jax.jit(sj.smoothdiff(lambda params, x: jnp.sum(params * jax.nn.relu(x)), 1.0))
    >>> attribution = explain(jax.random.key(0), jnp.full(3, 2.0), jnp.array([-1.0, 0.0, 1.0]))
    >>> print(np.round(attribution, 2))
    [0.32 1.   1.68]
    """
    at = at_argument(score, argnum)
    perturb = perturbation(additive, sigma, where)
    num_samples = check_integer(num_samples, "num_samples", least=2)
    require(num_samples % 2 == 0, f"num_samples must be even, for pairs; got {num_samples}.")
    num_pairs = num_samples // 2

    def explain(key, *args, **kwargs):
        x, score_at = at(args, kwargs)
        noise_key, inner_key = jax.random.split(key)
        noisy, levels = perturb(x), levels_of(x, sigma, where)
        inexact, others = partition(x, is_inexact)
        leaves, treedef = jax.tree.flatten(inexact)
        leaves = list(map(jnp.asarray, leaves))

        def score_of(*values):
            return score_at(inner_key, combine(treedef.unflatten(values), others))

        def noisy_leaves(i):
            return list(
                filter(is_inexact, jax.tree.leaves(noisy(jax.random.fold_in(noise_key, i))))
            )

        known = plan(trace(score_of, leaves, opens=_opens))
        sampled, shares = _sample(known, leaves, noisy_leaves, num_pairs)
        places = [i for i, leaf in enumerate(jax.tree.leaves(x)) if is_inexact(leaf)]
        inputs = [
            _Moments(
                leaf,
                jnp.full(leaf.shape, levels[i] ** 2 if i in levels else 0, wide_dtype(leaf.dtype)),
            )
            for i, leaf in zip(places, leaves, strict=True)
        ]
        attributions = _propagate(known, inputs, sampled, shares)
        return combine(treedef.unflatten(attributions), jax.tree.map(without_numbers, others))

    return explain


def _opens(call):
    return not call.is_linear or call.primitive == "scan"


def _sample(
    known: Plan, leaves: Sequence[jax.Array], noisy: Callable[..., Sequence[Any]], num_pairs: int
) -> tuple[dict[Variable, _Sampled], dict[Equation, jax.Array]]:
    """What pairs show of inputs of functions and outputs of maxima, and what the maxima chose.

    Functions whose inputs' variances are known are left out: there the closed forms are exact.
    """
    maxima = {e: rule for e, rule in known.rules.items() if isinstance(rule, Maximum)}
    functions = [e for e in known.rules if e not in maxima and e not in known.exact]
    variables = dict.fromkeys([*(e.outputs[0] for e in maxima), *(e.inputs[0] for e in functions)])
    outputs = dict.fromkeys([*variables, *(v for e in maxima for v in e.inputs)])
    program = live(known.program._replace(outputs=list(outputs)))
    if not variables:
        return {}, {}

    @jax.vmap
    def observe(leaves):
        found = dict(zip(program.outputs, evaluate(program, leaves), strict=True))
        chosen = {e: rule.chosen(*(found[v] for v in e.inputs)) for e, rule in maxima.items()}
        return [found[v] for v in variables], list(chosen.values())

    def draw(i):
        pairs = zip(noisy(i), leaves, strict=True)
        values, chosen = observe([jnp.stack([plus, _mirrored(plus, x)]) for plus, x in pairs])
        seen = [_of_pair(z, known.positions(v)) for v, z in zip(variables, values, strict=True)]
        return seen, [jnp.mean(c, axis=0) for c in chosen]

    seen, shares = accumulate(reductions.mean(), chunk_size=1)(draw, num_pairs)
    sampled = {
        v: _over_pairs(a, means, squares, known.positions(v), num_pairs)
        for v, (a, means, squares) in zip(variables, seen, strict=True)
    }
    return sampled, dict(zip(maxima, shares, strict=True))


def _mirrored(plus, x):
    """The value x - e, from x + e. What has no noise stays as it is, were it infinite."""
    wide = wide_dtype(x.dtype)
    return jnp.where(plus == x, x, (2 * x.astype(wide) - plus.astype(wide)).astype(x.dtype))


def _of_pair(z, positions):
    """Of z(x + e) = a + d and z(x - e) = a - d: a, its mean and d's root mean square, and squares.

    The squares are those of the two, and the mean of a^2.
    """
    z = z.astype(wide_dtype(z.dtype))
    a, d = (z[0] + z[1]) / 2, (z[0] - z[1]) / 2
    mean, square, square_of_a = (jnp.mean(m, positions, keepdims=True) for m in (a, d * d, a * a))
    return a, jnp.stack([mean, root(square)]), jnp.stack([mean**2, square, square_of_a])


def _over_pairs(a, means, squares, positions, num_pairs):
    """The mean of a, and the mean of d^2 with the variance of a over the pairs."""
    others = max(num_pairs - 1, 1)
    mean_noise, root_noise = jnp.maximum(squares[:2] - means**2, 0) / others
    variance_of_a = (squares[2] - jnp.mean(a**2, positions, keepdims=True)) * num_pairs / others
    variance_of_a = jnp.maximum(variance_of_a, 0)
    variance = squares[1] + variance_of_a
    # One pair does not show its noise.
    noise_of_a = variance_of_a / num_pairs if num_pairs > 1 else jnp.full_like(variance, jnp.inf)
    # The error of r^2 is 2 r times that of r, so both as squares, over r^2, are:
    return _Sampled(means[0], variance, mean_noise, 4 * root_noise, a, noise_of_a)


def _propagate(
    known: Plan,
    inputs: Sequence[_Moments],
    sampled: dict[Variable, _Sampled],
    shares: dict[Equation, jax.Array],
) -> Sequence[jax.Array]:
    """The gradient with mean derivatives in the place of derivatives."""

    def calibrate(variable, z):
        if variable not in sampled:
            return z
        return _calibrated(z, sampled[variable], known.positions(variable))

    def rule(equation, *inputs):
        kind = known.rules.get(equation)
        if kind is None:
            return _through_linear(equation, inputs)
        if isinstance(kind, Maximum):
            z, pull = _through_maximum(kind, shares[equation], inputs)
            return [calibrate(equation.outputs[0], z)], pull
        z = inputs[0] if equation in known.exact else calibrate(equation.inputs[0], inputs[0])
        slope, mean, variance = kind.moments(*z)
        return [_Moments(mean, variance)], lambda cotangents: [cotangents[0] * slope]

    (value,), pull_back = vjp(known.program, inputs, rule)
    return pull_back([jnp.ones_like(jax.tree.leaves(value)[0])])


def _calibrated(z, sampled, positions):
    """Shifts the means of each channel, and scales the variances, to what was sampled.

    What is noisy, having few positions, shrinks to no shift and the scale of all channels. Then the
    mean of each number moves towards what was sampled of it, as far as that is no noise.
    """
    mean, variance = z.mean.astype(sampled.mean.dtype), z.variance
    shift = sampled.mean - jnp.mean(mean, positions, keepdims=True)
    before = jnp.mean(variance, positions, keepdims=True)
    scale = ratio(sampled.variance, before)
    overall = ratio(jnp.sum(sampled.variance), jnp.sum(before))
    shift = shift * _share_of_signal(shift**2, sampled.mean_noise)
    scale = overall + (scale - overall) * _share_of_signal(sampled.variance, sampled.variance_noise)
    mean = mean + shift
    gap = sampled.means - mean
    power = jnp.mean(gap**2, positions, keepdims=True)
    share = ratio(jnp.maximum(power - sampled.means_noise, 0), power)
    return _Moments((mean + share * gap).astype(z.mean.dtype), variance * scale)


def _share_of_signal(square, noise):
    """The share of a square that is not noise."""
    return ratio(square, square + noise)


def _through_linear(equation, inputs):
    """A linear map: mean' = W mean + b and variance' = (W * W) variance."""
    means, pull = jax.vjp(equation, *(z.mean for z in inputs))
    variances: Sequence[Any] = _of_variances(lambda *v: _squared(equation, *v), inputs)
    return [_Moments(*z) for z in zip(means, variances, strict=True)], pull


def _of_variances(linear, inputs) -> Any:
    """A linear map of variances, which is taken in the dtypes of the means.

    In units of the greatest, where squares of float16 would overflow or underflow.
    """
    if all(z.mean.dtype == z.variance.dtype for z in inputs):
        return linear(*(z.variance for z in inputs))
    greatest = [jnp.max(jax.lax.stop_gradient(z.variance), initial=0) for z in inputs]
    unit = jnp.max(jnp.stack(greatest))
    unit = jnp.where(unit > 0, unit, 1)
    scaled = linear(*((z.variance / unit).astype(z.mean.dtype) for z in inputs))
    return jax.tree.map(lambda v: v.astype(unit.dtype) * unit, scaled)


def _squared(equation, *variances) -> Any:
    """What the map of squared coefficients makes of variances."""
    if equation.body is not None:
        return vjp(equation.body, variances, lambda e, *v: (_squared(e, *v), None))[0]
    if equation.primitive in ("add", "add_any", "sub", "neg"):
        return [sum(variances)]
    if equation.primitive in PRODUCTS or equation.primitive == "div":
        (v,) = variances
        operands = (v if isinstance(o, Variable) else o.value**2 for o in equation.operands)
        return equation.apply(*operands)
    # Its coefficients are 0 and 1; the derivative leaves its constants out.
    return jax.jvp(equation, list(map(jnp.zeros_like, variances)), list(variances))[1]


def _through_maximum(maximum, share, inputs):
    """A maximum: that of each draw, with the share of the draws in which it is the greatest."""

    def options(*inputs):
        return maximum.options(0, *inputs)

    means, pull = jax.vjp(options, *(z.mean for z in inputs))
    share = share.astype(means.dtype)
    means = jnp.where(share > 0, means, 0)  # what is never chosen may be infinite
    mean = jnp.sum(share * means, axis=0)
    variances = _of_variances(options, inputs)
    squares = variances + (means - mean[None]).astype(variances.dtype) ** 2
    moments = _Moments(mean, jnp.sum(share.astype(variances.dtype) * squares, axis=0))
    return moments, lambda cotangents: pull(share * cotangents[0][None])
