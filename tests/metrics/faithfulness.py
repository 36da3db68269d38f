"""What the tests of faithfulness share: data, scores, and the metrics."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax.metrics import (
    area,
    deletion,
    faithfulness_correlation,
    infidelity,
    information_curve,
    insertion,
    insertion_minus_deletion,
    monotonicity,
    monotonicity_correlation,
    mu_fidelity,
    non_sensitivity,
    road,
    srg,
)

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
SHAPE = (7, 5, 2)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


W, X, ATTRIBUTION = draw(*SHAPE), draw(*SHAPE), draw(*SHAPE)
# What hides: one value for each channel.
BASELINE = np.array([[[0.5, -1.0]]], np.float32)


def linear(params, x):
    return jnp.sum(params * x)


def smooth(params, x):
    return jnp.tanh(jnp.sum(params * x) / 10)


METRICS = {
    "deletion": functools.partial(deletion, num_steps=6),
    "insertion": functools.partial(insertion, num_steps=6),
    "insertion_minus_deletion": functools.partial(insertion_minus_deletion, num_steps=6),
    "mu_fidelity": functools.partial(mu_fidelity, num_samples=6, grid=3),
    "faithfulness_correlation": functools.partial(
        faithfulness_correlation, num_samples=6, subset_size=30
    ),
    "infidelity": functools.partial(infidelity, num_samples=6),
    "information_curve": functools.partial(information_curve, num_steps=6),
    "srg": functools.partial(srg, num_steps=6),
    "road": functools.partial(road, num_steps=6),
    "monotonicity": functools.partial(monotonicity, num_steps=6),
    "monotonicity_correlation": functools.partial(monotonicity_correlation, num_samples=6, grid=3),
    "non_sensitivity": functools.partial(non_sensitivity, num_samples=6, grid=3),
}
RANDOM = (
    "mu_fidelity",
    "faithfulness_correlation",
    "infidelity",
    "road",
    "monotonicity_correlation",
    "non_sensitivity",
)
# One for each way to compute; the others differ in what they hand it.
each_metric = pytest.mark.parametrize(
    "name", ["insertion_minus_deletion", "mu_fidelity", "infidelity", "information_curve", "road"]
)


def judge(name, score=smooth, **settings):
    """A metric of `(key, params, x, attribution, *rest)` to a scalar, whether it draws or not."""
    metric = METRICS[name](score, **settings)
    if name == "information_curve":
        metric = area(metric)
    if sj.is_stochastic(metric):
        return metric
    return lambda key, *args, **kwargs: metric(*args, **kwargs)


@functools.cache  # compiling is what takes the time
def compiled(name):
    return jax.jit(judge(name))


def pixels(shape):
    return [np.s_[i, j] for i in range(shape[0]) for j in range(shape[1])]


def equations(jaxpr, times=1):
    """All equations of a program, each with how often it is evaluated."""
    for equation in jaxpr.eqns:
        yield equation, times
        inside = times * equation.params.get("length", 1)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside)
