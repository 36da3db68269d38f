"""Robustness: how much an explanation changes when its input hardly does.

These metrics judge an explainer, which they call on x and on `num_samples` points x' around it,
drawn uniformly from the box of all points that differ from x by at most `radius` in each entry (the
ball of the maximum norm). So they are always stochastic. A stochastic explainer gets one key for x
and for all x': with one each, the metric would measure Monte-Carlo noise.

In d dimensions almost every draw is about `radius sqrt(d / 3)` away from x in Euclidean norm, and
the maximum over draws only bounds that over the box from below, the more loosely the larger d is:
compare explainers at the same radius and number of samples.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax import reductions
from smoothjax._checks import check_function, check_number, require
from smoothjax._loop import monte_carlo
from smoothjax._perturb import additive, check_not_negative, perturbation
from smoothjax._statistics import norm
from smoothjax._transform import argument, at_argument, keyed, stochastic, transform
from smoothjax._trees import check_has_inexact, fit, is_array, is_float0, wide_dtype
from smoothjax._typing import Explainer, Metric
from smoothjax.reductions import Reduction


@transform(takes_key=True)
def local_lipschitz(
    explain: Explainer,
    *,
    radius: Any,
    num_samples: int = 10,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the greatest slope found of an explanation, an estimate from below.

    `max_i ||explain(x_i) - explain(x)|| / ||x_i - x||`, Euclidean norms over all entries, with x_i
    drawn uniformly from the box around x.

    Args:
      explain: a function `explain(params, x, *rest)` that returns a pytree of arrays; or a
        stochastic one, with a key first, which then gets the same key at every point.
      radius: how far a draw may differ from x in each entry, in the units of x: a positive number,
        an array that broadcasts to x, or a function of x that returns one, such as
        `relative(0.05)`, or `relative(0.05, examples)` for tabular data.
      num_samples: the number of draws.
      argnum: the argument that is perturbed, one floating-point array, counted from 0 after the
        key: 1 is x.
      chunk_size: how many draws of an example are evaluated at once: memory and speed only. Since
        examples are mapped, `jax.vmap`, and an explainer has draws of its own, 1 is usually enough.
        For single examples raise it.

    Returns:
      A stochastic function `metric(key, params, x, *rest)` that returns a scalar, 0 or more, in the
      units of the explanation over those of x; lower is better, and 0 is a constant explanation. It
      grows with the scale of the explanation. NaN where no draw can differ from x: where the
      radius is 0 everywhere, as that of `relative` is for a constant x, or less than its dtype
      tells apart.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a missing
        or wrong key, a missing argument or one that is no real floating-point array, or a radius
        that does not fit it; and for an explainer that returns no arrays, or an `Estimate`.

    Cost: `num_samples + 1` evaluations of the explainer, the memory of `chunk_size` of them.

    Source: Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049, who search the same box by Bayesian
    optimization.

    >>> metric = sj.metrics.local_lipschitz(lambda params, x: params * x, radius=0.1)
    >>> print(jax.jit(metric)(jax.random.key(0), 3.0, jnp.ones(4)).round(4))
    3.0
    """

    def slope(explained, moved, step):
        return _per_length(_norm(_difference(moved, explained)), [step])

    return _over_box(
        explain,
        slope,
        _MAXIMUM,
        radius=radius,
        num_samples=num_samples,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@transform(takes_key=True)
def max_sensitivity(
    explain: Explainer,
    *,
    radius: Any,
    num_samples: int = 10,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the greatest change found of an explanation, relative to it.

    `max_i ||explain(x_i) - explain(x)|| / ||explain(x)||`, Euclidean norms over all entries, with
    x_i drawn uniformly from the box around x. The paper's formula has no denominator, its authors'
    experiments do, and without one a smaller explanation would be a better one.

    Args:
      explain: as in `local_lipschitz`.
      radius: as in `local_lipschitz`.
      num_samples: the number of draws.
      argnum: the argument that is perturbed, as in `local_lipschitz`.
      chunk_size: how many draws are evaluated at once, as in `local_lipschitz`.

    Returns:
      A stochastic function `metric(key, params, x, *rest)` that returns a scalar without unit, 0 or
      more; lower is better. The scale of the explanation does not count. Where it is zero at x, 0
      if it is zero at all draws, and infinite if not. NaN for a radius of 0, as `local_lipschitz`.

    Raises:
      TypeError, ValueError: as `local_lipschitz` does.

    Cost: `num_samples + 1` evaluations of the explainer, the memory of `chunk_size` of them.

    Source: Yeh et al. 2019, arXiv 1901.09392.

    >>> explain = lambda params, x: params * x
    >>> metric = sj.metrics.max_sensitivity(explain, radius=0.1, num_samples=1000)
    >>> print(jax.jit(metric)(jax.random.key(0), 3.0, jnp.array([2.0])).round(3))  # 0.1 / 2
    0.05
    """
    return _over_box(
        explain,
        _relative_change,
        _MAXIMUM,
        radius=radius,
        num_samples=num_samples,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@transform(takes_key=True)
def average_sensitivity(
    explain: Explainer,
    *,
    radius: Any,
    num_samples: int = 10,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the mean change of an explanation, relative to it.

    `mean_i ||explain(x_i) - explain(x)|| / ||explain(x)||`, as `max_sensitivity`, but the mean over
    the draws, which does not grow with their number.

    Args:
      explain: as in `local_lipschitz`.
      radius: as in `local_lipschitz`.
      num_samples: the number of draws.
      argnum: the argument that is perturbed, as in `local_lipschitz`.
      chunk_size: how many draws are evaluated at once, as in `local_lipschitz`.

    Returns:
      A stochastic function `metric(key, params, x, *rest)` that returns a scalar without unit, 0 or
      more; lower is better. The scale of the explanation does not count. Where it is zero at x, 0
      if it is zero at all draws, and infinite if not. NaN for a radius of 0, as `local_lipschitz`.

    Raises:
      TypeError, ValueError: as `local_lipschitz` does.

    Cost: `num_samples + 1` evaluations of the explainer, the memory of `chunk_size` of them.

    Source: Bhatt et al. 2020, arXiv 2005.00631.

    >>> explain = lambda params, x: params * x
    >>> metric = sj.metrics.average_sensitivity(explain, radius=0.1, num_samples=9999)
    >>> print(jax.jit(metric)(jax.random.key(0), 3.0, jnp.array([2.0])).round(3))  # 0.1 / 2 / 2
    0.025
    """
    return _over_box(
        explain,
        _relative_change,
        reductions.mean(),
        radius=radius,
        num_samples=num_samples,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@transform(takes_key=True)
def relative_input_stability(
    explain: Explainer,
    *,
    radius: Any,
    num_samples: int = 10,
    epsilon: float = 1e-6,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the greatest relative change of an explanation over that of its input.

    `max_i ||(explain(x_i) - explain(x)) / explain(x)|| / ||(x_i - x) / x||`, with x_i drawn
    uniformly from the box around x. Quotients are of entries, norms Euclidean over all of them.

    Entries near 0 decide it, and a map of some zeros is at about `1 / epsilon`: of such maps,
    `max_sensitivity` says more.

    Args:
      explain: as in `local_lipschitz`.
      radius: as in `local_lipschitz`. The paper leaves out x_i that the network puts into another
        class than x; here the radius has to be small enough for that.
      num_samples: the number of draws.
      epsilon: entries smaller than this share of the largest magnitude, of the explanation and of
        x, have that much in the denominator.
      argnum: the argument that is perturbed, as in `local_lipschitz`.
      chunk_size: how many draws are evaluated at once, as in `local_lipschitz`.

    Returns:
      A stochastic function `metric(key, params, x, *rest)` that returns a scalar without unit, 0 or
      more; lower is better. Neither the scale of the explanation nor that of x counts. Where the
      explanation is zero everywhere at x, 0 if it stays so, and infinite if not. NaN for a radius
      of 0, as `local_lipschitz`.

    Raises:
      TypeError, ValueError: as `local_lipschitz` does.

    Cost: `num_samples + 1` evaluations of the explainer, the memory of `chunk_size` of them.

    Source: Agarwal et al. 2022, arXiv 2203.06877.

    >>> explain = lambda params, x: params * x**2
    >>> metric = sj.metrics.relative_input_stability(explain, radius=1e-3)
    >>> print(jax.jit(metric)(jax.random.key(0), 3.0, jnp.array([2.0])).round(2))
    2.0
    """
    epsilon = check_number(epsilon, "epsilon", above=0)

    def stability(explained, moved, step):
        (map_, x), (moved_map, moved_x) = explained, moved
        change = _norm(_relative_difference(moved_map, map_, epsilon))
        return _per_length(change, _relative_difference(moved_x, x, epsilon))

    return _over_box(
        _beside(explain, lambda key, *args, **kwargs: argument(args, argnum)),
        stability,
        _MAXIMUM,
        radius=radius,
        num_samples=num_samples,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@transform(takes_key=True)
def relative_output_stability(
    explain: Explainer,
    output: Explainer,
    *,
    radius: Any,
    num_samples: int = 10,
    epsilon: float = 1e-6,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the greatest relative change of an explanation over that of the output.

    `max_i ||(explain(x_i) - explain(x)) / explain(x)|| / max(||output(x_i) - output(x)||,
    epsilon)`, as `relative_input_stability`: an explanation may change as much as what it explains.

    Args:
      explain: as in `local_lipschitz`.
      output: a function `output(params, x, *rest)` of the same arguments that returns what the
        network does, an array or a pytree of them; of a classifier, all its logits.
      radius: as in `relative_input_stability`.
      num_samples: the number of draws.
      epsilon: as in `relative_input_stability`, for the explanation; and the least change of the
        output that is divided by, in its units.
      argnum: the argument that is perturbed, as in `local_lipschitz`.
      chunk_size: how many draws are evaluated at once, as in `local_lipschitz`.

    Returns:
      A stochastic function `metric(key, params, x, *rest)` that returns a scalar, 0 or more, in one
      over the units of the output; lower is better. The scale of the explanation does not count.
      Zeros and a radius of 0 are as in `relative_input_stability`.

    Raises:
      TypeError, ValueError: as `local_lipschitz` does.

    Cost: `num_samples + 1` evaluations of the explainer and of the output, the memory of
    `chunk_size` of them.

    Source: Agarwal et al. 2022, arXiv 2203.06877.

    >>> output = lambda params, x: params * x
    >>> metric = sj.metrics.relative_output_stability(lambda p, x: x**2, output, radius=1e-3)
    >>> print(jax.jit(metric)(jax.random.key(0), 4.0, jnp.array([2.0])).round(2))  # 2 / x / 4
    0.25
    """
    check_function(output, "output")
    epsilon = check_number(epsilon, "epsilon", above=0)

    def stability(explained, moved, step):
        (map_, out), (moved_map, moved_out) = explained, moved
        change = _norm(_relative_difference(moved_map, map_, epsilon))
        length = _norm(_difference(moved_out, out)).astype(change.dtype)
        return change / jnp.maximum(length, epsilon)

    return _over_box(
        _beside(explain, keyed(output)),
        stability,
        _MAXIMUM,
        radius=radius,
        num_samples=num_samples,
        argnum=argnum,
        chunk_size=chunk_size,
    )


def _beside(explain, other):
    """The explainer of what `explain` returns, and of what `other(key, *args)` does."""
    explain = keyed(explain)

    def both(key, *args, **kwargs):
        return explain(key, *args, **kwargs), other(key, *args, **kwargs)

    return stochastic(both)


def _over_box(explain, change, reduction, *, radius, num_samples, argnum, chunk_size):
    """The metric that reduces `change(explain(x), explain(x_i), x_i - x)` over draws x_i."""
    at = at_argument(explain, argnum)
    average = monte_carlo(num_samples, reduction, chunk_size)
    if not callable(radius):
        check_not_negative(radius, "radius")
        above = isinstance(radius, Tracer) or np.any(np.asarray(radius) > 0)
        require(above, f"radius must be above 0, in the units of x; got {radius!s:.80}.")

    def metric(key, *args, **kwargs):
        x, explain_at = at(args, kwargs)
        check_has_inexact(x)
        require(
            is_array(x),
            f"x must be one array; got a {type(x).__name__}. Judge the map of one of its arrays, "
            "by an explainer of that array alone: "
            "lambda params, image: explain(params, {**x, 'image': image})['image'].",
            TypeError,
        )
        x = jnp.asarray(x)
        level = fit(radius(x) if callable(radius) else radius, x, "radius")
        noisy = perturbation(additive, level, sampler=_UNIFORM)(x)
        draws_key, inner_key = jax.random.split(key)
        explained = explain_at(inner_key, x)
        reductions.check_no_estimate(explained)
        require(_wide_leaves(explained), "the explainer returned no arrays.", TypeError)

        def draw(key):
            near = noisy(key)
            # What the explainer saw: in half precision x + step is rounded, and NaN stays.
            step = near.astype(level.dtype) - x.astype(level.dtype)
            step = jnp.where(jnp.isfinite(x), step, 0)
            return change(explained, explain_at(inner_key, near), step)

        found = average(draw, draws_key)
        wide = x.astype(level.dtype)
        ends = jnp.stack([wide - level, wide + level]).astype(x.dtype)
        moves = jnp.any(jnp.isfinite(x)[None] & (ends != x[None]))
        return jnp.where(moves, found, jnp.nan)  # for what makes no test would pass it

    return metric


def _per_length(change, step):
    """A change over the length of a step: one that was rounded away says nothing."""
    length = _norm(step).astype(change.dtype)
    return change / jnp.where(length == 0, 1, length)


def _relative_change(explained, moved, step):
    del step
    change, size = _norm(_difference(moved, explained)), _norm(_wide_leaves(explained))
    # Nothing has not changed if it is still nothing.
    size = jnp.where(change == 0, 1, size)
    # Times a power of 2, for the derivative of a quotient, which has the denominator's square.
    factor = jnp.where(size < 2.0**-32, 2.0**64, jnp.where(size > 2.0**32, 2.0**-64, 1))
    return (change * factor) / (size * factor)


def _difference(moved, explained):
    leaves = zip(_wide_leaves(moved), _wide_leaves(explained), strict=True)
    return [after - before for after, before in leaves]


def _relative_difference(moved, explained, epsilon):
    befores = _wide_leaves(explained)
    most = jnp.max(jnp.stack([jnp.max(jnp.abs(before), initial=0) for before in befores]))

    def of_leaf(change, before):
        size = jnp.maximum(jnp.abs(before), epsilon * most.astype(change.real.dtype))
        # Nothing has not changed if it is still nothing.
        return change / jnp.where(change == 0, 1, size).astype(change.dtype)

    return list(map(of_leaf, _difference(moved, explained), befores))


def _wide_leaves(tree):
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if not is_float0(leaf)]
    return [leaf.astype(wide_dtype(leaf.dtype)) for leaf in leaves]


def _norm(leaves):
    """The Euclidean norm over all entries of all leaves."""
    dtype = np.result_type(*(leaf.dtype for leaf in leaves))
    return norm(jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves]))


def _maximum_init(draw, num):
    del num
    return jax.tree.map(lambda d: jnp.zeros(d.shape, d.dtype), draw)


def _maximum_update(state, draws):
    return jax.tree.map(lambda most, d: jnp.maximum(most, jnp.max(d, axis=0)), state, draws)


_UNIFORM = functools.partial(jax.random.uniform, minval=-1, maxval=1)
# Of numbers that are not negative; NaN stays.
_MAXIMUM = Reduction(_maximum_init, _maximum_update, lambda state: state)
