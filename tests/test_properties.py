"""Generated cases: each gives the answer of a slow, obvious loop, or one of our errors.

A few dozen cases in the ordinary run; `HYPOTHESIS_CASES=10000 pytest tests/test_properties.py`
for more. The transforms run under `jax.disable_jit`, so that no case compiles a program.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import smoothjax as sj
from smoothjax import reductions

CASES = int(os.environ.get("HYPOTHESIS_CASES", "60"))

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]
OTHERS = [jnp.int32, jnp.uint8, jnp.bool_]
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


def array(shape, dtype):
    values = np.random.default_rng(0).normal(size=shape) * 3
    return jnp.asarray(values, jnp.float32).astype(dtype)


arrays = st.builds(array, shapes, st.sampled_from(FLOATS + OTHERS))
leaves = arrays | st.sampled_from([None, 2.5, 7, jnp.tanh])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=5,
)
floats = st.builds(
    array, st.lists(st.integers(2, 3), min_size=1, max_size=3).map(tuple), st.sampled_from(FLOATS)
)

GOOD = {
    "argument": st.tuples(trees, floats),
    "sigma": st.sampled_from([0.0, 0.3, 2, np.float32(0.5), float("nan"), sj.adaptive((-2.0, 2.0))])
    | st.just(lambda argument: jax.tree.map(lambda leaf: 0.4, argument)),
    "where": st.sampled_from([None, True, sj.by_path(lambda path: path[-1] in "1a")]),
    "num_samples": st.integers(2, 5) | st.just(np.int64(3)),
    "chunk_size": st.integers(1, 6),
    "reduction": st.sampled_from(
        [
            reductions.mean(),
            reductions.mean_square(),
            reductions.variance(),
            reductions.mean_and_stderr(),
            reductions.stack(),
        ]
    ),
}
BAD = {
    "argument": trees,  # often without a float
    "sigma": st.sampled_from([-1.0, "0.1", None, True, sj.relative(0.2)]) | arrays,  # some may fit
    "where": st.sampled_from([False, 1, "a", sj.by_path(lambda path: False)]),
    "num_samples": st.sampled_from([-1, 0, 1, 2.0, None, True]),
    "chunk_size": st.sampled_from([-1, 0, 2.0, None, True]),
    "reduction": st.sampled_from([reductions.mean, "mean", None]),
}


@st.composite
def cases(draw):
    """Settings of which at most one is bad, and mostly none."""
    fault = draw(st.sampled_from([None] * 12 + list(BAD)))
    return {name: draw(BAD[name] if name == fault else GOOD[name]) for name in GOOD}


def is_float_array(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)


def explain(argument):
    """Every array of the argument, by position: a tree of arrays only."""
    return {str(i): a for i, a in enumerate(jax.tree.leaves(argument)) if isinstance(a, jax.Array)}


def noisy_arguments(key, argument, sigma, where, num, multiply):
    """One draw after another, one leaf after another, in NumPy, with the noise of `stack()`."""
    unit = [0.0 if is_float_array(leaf) else None for leaf in jax.tree.leaves(argument)]
    for i in range(num):
        noise_key, _ = jax.random.split(jax.random.fold_in(key, i))
        ones = [None if u is None else jnp.ones(leaf.shape, jnp.float32)
                for u, leaf in zip(unit, jax.tree.leaves(argument), strict=True)]  # fmt: skip
        zeros = [jnp.zeros(leaf.shape, jnp.float32) if is_float_array(leaf) else leaf
                 for leaf in jax.tree.leaves(argument)]  # fmt: skip
        eps = sj.noise.perturb(noise_key, zeros, ones, jax.random.normal, lambda leaf, e: e)
        chosen = mask_of(where, argument)
        levels = levels_of(sigma, argument)
        leaves = [
            perturbed(leaf, e, level, multiply) if is_float_array(leaf) and pick else leaf
            for leaf, e, level, pick in zip(
                jax.tree.leaves(argument), eps, levels, chosen, strict=True
            )
        ]
        yield jax.tree.structure(argument).unflatten(leaves)


def perturbed(leaf, eps, level, multiply):
    wide = np.asarray(leaf, np.float32)
    noise = np.asarray(level, np.float32) * np.asarray(eps)
    return jnp.asarray(wide * (1 + noise) if multiply else wide + noise).astype(leaf.dtype)


def mask_of(where, argument):
    count = len(jax.tree.leaves(argument))
    if where is None or isinstance(where, bool):
        return [where is not False] * count
    return jax.tree.leaves(where(argument))


def levels_of(sigma, argument):
    if callable(sigma):
        return jax.tree.leaves(sigma(argument))
    return [sigma] * len(jax.tree.leaves(argument))


REFERENCES = {
    id(reductions.mean()): lambda d: d.mean(0),
    id(reductions.mean_square()): lambda d: (d**2).mean(0),
    id(reductions.variance()): lambda d: d.var(0, ddof=1),
}


def reference(reduction, draws):
    stacked = {
        name: np.stack([np.asarray(draw[name].astype(jnp.float32)) for draw in draws])
        for name in draws[0]
    }
    if reduction == reductions.mean_and_stderr():
        n = len(draws)
        return {k: (d.mean(0), d.std(0, ddof=1) / np.sqrt(n)) for k, d in stacked.items()}
    fun = REFERENCES.get(id(reduction), lambda d: d)
    return {name: fun(d) for name, d in stacked.items()}


@settings(
    max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(case=cases(), multiply=st.booleans(), seed=st.integers(0, 3))
def test_the_reference_answer_or_our_error(case, multiply, seed):
    argument, num, reduction = case["argument"], case["num_samples"], case["reduction"]
    key = jax.random.key(seed)
    transform = sj.noisegrad if multiply else sj.smoothgrad
    with jax.disable_jit():
        try:
            settings = {name: value for name, value in case.items() if name != "argument"}
            noisy = transform(explain, argnum=0, **settings)
            got = noisy(key, argument)
        except (TypeError, ValueError) as error:
            if not str(error).startswith(("smoothgrad", "noisegrad", "relative", "adaptive")):
                raise
            return
        noise = (case["sigma"], case["where"], num, multiply)
        draws = [explain(noisy) for noisy in noisy_arguments(key, argument, *noise)]
    want = reference(reduction, draws)
    if reduction == reductions.mean_and_stderr():
        got = {name: (got.mean[name], got.stderr[name]) for name in got.mean}
    assert got.keys() == want.keys()
    coarse = {jnp.dtype(jnp.bfloat16): 2e-2, jnp.dtype(jnp.float16): 3e-3}
    for name, expected in want.items():
        original = explain(argument)[name]
        rtol = coarse.get(original.dtype, 2e-4)
        jax.tree.map(
            lambda a, b, rtol=rtol: np.testing.assert_allclose(
                np.asarray(a, np.float32), b, rtol=rtol, atol=rtol
            ),
            got[name],
            expected,
        )
