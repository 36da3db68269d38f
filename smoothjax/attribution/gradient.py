"""Gradient methods: functions of the gradient of a score with respect to its input.

A score `score(params, x, *rest)` returns a scalar for one example, usually a logit. It may be
stochastic, such as `noisegrad(score)`: then so is the explainer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax import reductions
from smoothjax._checks import check_differentiable, check_leading_axis, require
from smoothjax._loop import accumulate, check_count, monte_carlo
from smoothjax._shown import shown
from smoothjax._transform import at_argument, transform
from smoothjax._trees import (
    check_has_inexact,
    combine,
    fit,
    is_inexact,
    partition,
    resolve,
    wide_dtype,
    without_numbers,
)
from smoothjax._typing import Explainer, PyTree, Score
from smoothjax.reductions import Reduction

Quadrature = Callable[[int], tuple[Any, Any]]


@transform
def saliency(score: Score, *, argnum: int = 1) -> Explainer:
    """Returns an explainer of the gradient of a score with respect to an argument, by default x.

    It is `jax.grad(score, argnums=1)`, signed, that counts arguments after the key if the score is
    stochastic and lets integer leaves be.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one.
      argnum: the argument to differentiate, counted from 0 after the key: 1 is x.

    Returns:
      An explainer `explain(params, x, *rest)`, stochastic if the score is, whose result is shaped
      like x; float0 for integer leaves.

    Raises:
      TypeError: if the score is no function or returns no real scalar; when called, if the argument
        is missing or has no floating-point leaf.

    Cost: one gradient.

    Source: Simonyan et al. 2014, arXiv 1312.6034.

    >>> explain = sj.saliency(lambda params, x: jnp.sum(params * x**2))
    >>> explain(jnp.ones(3), jnp.arange(3.0))
    Array([0., 2., 4.], dtype=float32)
    """
    at = at_argument(score, argnum)

    def explain(key, *args, **kwargs):
        x, score_at = at(args, kwargs)
        return _gradient(score_at)(key, x)

    return explain


@transform
def input_times_gradient(score: Score, *, argnum: int = 1) -> Explainer:
    """Returns an explainer of `x * gradient`, elementwise.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one.
      argnum: the argument to explain, counted from 0 after the key: 1 is x.

    Returns:
      An explainer `explain(params, x, *rest)`, stochastic if the score is, whose result is shaped
      like x; float0 for integer leaves.

    Raises:
      TypeError: as `saliency` does.

    Cost: one gradient.

    Source: Shrikumar et al. 2016, arXiv 1605.01713.

    >>> explain = sj.input_times_gradient(lambda params, x: jnp.sum(params * x**2))
    >>> explain(jnp.ones(3), jnp.arange(3.0))
    Array([0., 2., 8.], dtype=float32)
    """
    at = at_argument(score, argnum)

    def explain(key, *args, **kwargs):
        x, score_at = at(args, kwargs)
        return _leafwise(lambda x, g: x * g, x, _gradient(score_at)(key, x))

    return explain


@shown
def gauss_legendre(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes and weights of Gauss-Legendre quadrature on [0, 1], in float64.

    Args:
      num_steps: the number of nodes; a polynomial of degree `2 num_steps - 1` is integrated
        exactly.

    Returns:
      A pair of arrays (nodes, weights) of shape (num_steps,); the weights sum to 1.

    >>> nodes, weights = sj.attribution.gauss_legendre(3)
    >>> print((nodes**5 * weights).sum().round(12))  # 1 / 6
    0.166666666667
    """
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)
    return (nodes + 1) / 2, weights / 2


@transform
def integrated_gradients(
    score: Score,
    baseline: Any = 0.0,
    num_steps: int = 50,
    *,
    argnum: int = 1,
    quadrature: Quadrature = gauss_legendre,
    chunk_size: int | None = None,
) -> Explainer:
    """Returns an explainer of the gradient integrated along the line from a baseline to x.

    `(x - b) * integral_0^1 grad score(b + t (x - b)) dt`. Its sum is `score(x) - score(b)` up to
    the error of the quadrature, which `smoothjax.metrics.completeness_error` gives.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets the same key at every step, so that the path is one of one function.
      baseline: b, a number or array that broadcasts to each leaf of x, a pytree prefix of those, or
        a function of x that returns one, in the units of x: 0 is grey for a normalised photo. Build
        the explainer inside the jitted function to pass a large one as an argument.
      num_steps: the number of gradients.
      argnum: the argument to explain, counted from 0 after the key: 1 is x.
      quadrature: a function from `num_steps` to (nodes, weights) on [0, 1].
      chunk_size: how many gradients are evaluated at once, as in `smoothgrad`; memory only.

    Returns:
      An explainer `explain(params, x, *rest)`, stochastic if the score is, whose result is shaped
      like x; float0 for integer leaves.

    Raises:
      TypeError, ValueError: for bad settings, and as `saliency` does.

    Cost: `num_steps` gradients, the memory of `chunk_size` of them.

    Source: Sundararajan et al. 2017, arXiv 1703.01365.

    >>> explain = jax.jit(sj.integrated_gradients(lambda params, x: jnp.sum(params * x**3)))
    >>> explain(jnp.ones(3), jnp.arange(3.0)).round(3)
    Array([0., 1., 8.], dtype=float32)
    """
    at = at_argument(score, argnum)
    num_steps = check_count(num_steps, "num_steps")
    mean_over = accumulate(reductions.mean(), chunk_size)
    nodes, weights = quadrature(num_steps)
    fits = np.shape(nodes) == np.shape(weights) == (num_steps,)
    require(fits, f"quadrature must return nodes and weights of shape ({num_steps},).")

    def explain(key, *args, **kwargs):
        x, score_at = at(args, kwargs)
        start, gradient = baseline_like(baseline, x), _gradient(score_at)

        def step(i):
            # The loop takes a mean; the quadrature is a weighted sum.
            weight = num_steps * jnp.asarray(weights)[i]
            slope = gradient(key, _between(start, x, jnp.asarray(nodes)[i]))
            return _leafwise(lambda g: g * weight.astype(g.dtype), slope)

        slope = mean_over(step, num_steps, x)
        return _leafwise(lambda x, b, g: (x - b) * g, x, start, slope)

    return explain


@transform(takes_key=True)
def expected_gradients(
    score: Score,
    baselines: PyTree,
    *,
    num_samples: int = 50,
    argnum: int = 1,
    reduction: Reduction = reductions.mean(),
    chunk_size: int | None = None,
) -> Explainer:
    """Returns an explainer of integrated gradients averaged over baselines drawn from data.

    `mean_i (x - b_i) * grad score(b_i + t_i (x - b_i))`, with `b_i` drawn from the baselines and
    `t_i` uniform on [0, 1). Also known as gradient SHAP, which adds noise to x: wrap it in
    `smoothgrad`.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one.
      baselines: examples like x, stacked along a leading axis. Build the explainer inside the
        jitted function to pass large ones as an argument.
      num_samples: the number of draws.
      argnum: the argument to explain, counted from 0 after the key: 1 is x.
      reduction: what becomes of the draws, from `smoothjax.reductions`.
      chunk_size: how many draws are evaluated at once, as in `smoothgrad`; memory only.

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)`, whose result is shaped like x.

    Raises:
      TypeError, ValueError: for bad settings or baselines that are not shaped like x, and as
        `saliency` does.

    Cost: `num_samples` gradients, the memory of `chunk_size` of them.

    Source: Erion et al. 2021, arXiv 1906.10670.

    >>> data = jnp.zeros((10, 3))
    >>> explain = jax.jit(sj.expected_gradients(lambda params, x: jnp.sum(params * x), data))
    >>> explain(jax.random.key(0), jnp.ones(3), jnp.arange(3.0))
    Array([0., 1., 2.], dtype=float32)
    """
    at = at_argument(score, argnum)
    average = monte_carlo(num_samples, reduction, chunk_size)
    check_has_inexact(baselines, "baselines hold")
    num_baselines = check_leading_axis(baselines, "baselines")
    one = jax.tree.map(lambda leaf: np.shape(leaf)[1:], baselines)

    def explain(key, *args, **kwargs):
        x, score_at = at(args, kwargs)
        gradient = _gradient(score_at)
        want = jax.tree.map(np.shape, x)
        require(one == want, f"each baseline must be shaped like x, {want}; got {one}.")

        def draw(key):
            baseline_key, time_key, inner_key = jax.random.split(key, 3)
            i = jax.random.randint(baseline_key, (), 0, num_baselines, jnp.int32)
            start = jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], baselines)
            t = jax.random.uniform(time_key, dtype=jnp.float32)
            slope = gradient(inner_key, _between(start, x, t))
            return _leafwise(lambda x, b, g: (x - b) * g, x, start, slope)

        return average(draw, key, x)

    return explain


def baseline_like(baseline: Any, x: PyTree) -> PyTree:
    """Returns the baseline as a pytree like x, with the leaves of x where those are not inexact."""
    paths_leaves, treedef = jax.tree_util.tree_flatten_with_path(x)
    values = resolve(baseline, x, "baseline")

    def of_leaf(path, leaf, value):
        if not is_inexact(leaf):
            return leaf
        leaf = jnp.asarray(leaf)
        fitting = fit(value, leaf, "baseline", path)
        return jnp.broadcast_to(fitting, leaf.shape).astype(leaf.dtype)

    return treedef.unflatten(
        [of_leaf(path, leaf, v) for (path, leaf), v in zip(paths_leaves, values, strict=True)]
    )


def _gradient(score_at):
    """The gradient of `score_at(key, x)` with respect to the floating-point leaves of x."""

    def gradient(key, x):
        check_has_inexact(x)
        inexact, others = partition(x, is_inexact)

        def score_of(inexact):
            score = score_at(key, combine(inexact, others))
            check_differentiable(score)
            return score

        slopes = jax.grad(score_of)(inexact)
        return combine(slopes, jax.tree.map(without_numbers, others))

    return gradient


def _between(start, x, t):
    return _leafwise(lambda b, x: b + t.astype(x.dtype) * (x - b), start, x)


def _leafwise(fun, *trees):
    """`fun` of each leaf in at least float32, typed like the last tree, which non-floats return."""

    def of_leaf(*leaves):
        if not is_inexact(leaves[-1]):
            return leaves[-1]
        arrays = list(map(jnp.asarray, leaves))
        dtype = arrays[-1].dtype
        return fun(*(a.astype(wide_dtype(dtype)) for a in arrays)).astype(dtype)

    return jax.tree.map(of_leaf, *trees)
