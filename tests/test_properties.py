"""Generated cases: each gives the answer of a slow, obvious loop, or, if it is at fault, our error.

20 cases in the ordinary run. `HYPOTHESIS_CASES=10000 pytest tests/test_properties.py`
is the long lane. The transforms run under `jax.disable_jit`, so that no case compiles a program of
its own, with few shapes and a cheap sampler, so that soon no case compiles anything.
"""

import collections
import os
import traceback
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import smoothjax as sj
from smoothjax import reductions

CASES = int(os.environ.get("HYPOTHESIS_CASES", "20"))
LIBRARY = os.path.dirname(sj.__file__)

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64][: 3 + jax.config.jax_enable_x64]
OTHERS = [jnp.int32, jnp.uint8, jnp.bool_]
SHAPES = [(), (0,), (2,), (3,), (2, 3), (1, 3), (2, 0)]


class Case(NamedTuple):
    """One generated call, and whether it must be refused."""

    transform: Any
    args: tuple
    argnum: int
    sigma: Any
    where: Any
    num_samples: Any
    chunk_size: Any
    reduction: Any
    sampler: Any
    key: Any
    at_fault: bool


def array(shape, dtype, seed, special):
    values = np.random.default_rng(seed).normal(size=shape) * 3
    if special is not None and values.size:
        values.flat[0] = special
    with np.errstate(all="ignore"):  # no integer is NaN
        return jnp.asarray(values.astype(np.float32).astype(dtype))


def arrays(dtypes, shapes=SHAPES):
    specials = st.sampled_from([None] * 8 + [0.0, np.nan, np.inf, 1e5])
    return st.builds(
        array, st.sampled_from(shapes), st.sampled_from(dtypes), st.integers(0, 99), specials
    )


leaves = arrays(FLOATS) | arrays(OTHERS) | st.sampled_from([None, 2.5, 7, jnp.tanh])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=5,
)
# With at least one float array at the end, which "1" names.
arguments = st.tuples(trees, arrays(FLOATS))


def prefixes(tree, values):
    """Pytree prefixes of `tree`: a value in place of any subtree."""
    whole = values
    if isinstance(tree, tuple):
        return whole | st.tuples(*(prefixes(child, values) for child in tree))
    if isinstance(tree, dict):
        return whole | st.fixed_dictionaries({k: prefixes(v, values) for k, v in tree.items()})
    return st.none() if tree is None else whole


def spread(prefix, tree):
    """The values of a prefix, one for each leaf."""
    if isinstance(prefix, tuple):
        return [v for p, t in zip(prefix, tree, strict=True) for v in spread(p, t)]
    if isinstance(prefix, dict):
        return [v for k in sorted(prefix) for v in spread(prefix[k], tree[k])]
    return [prefix] * len(jax.tree.leaves(tree))


def is_float_array(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)


class Rule(NamedTuple):
    """A function of the argument, and of a leaf, for the library and for the reference."""

    build: Any
    of_leaf: Any


def _adaptive_level(leaf):
    wide = leaf.astype(np.result_type(leaf.dtype, np.float32))
    room = np.maximum(np.minimum(wide + 2, 2 - wide), 0)
    return room / np.asarray(1.959964, wide.dtype)


def _relative_level(leaf):
    wide = leaf.astype(np.result_type(leaf.dtype, np.float32))
    return wide.dtype.type(0.25) * (wide.max() - wide.min())


RULES = [
    Rule(sj.adaptive((-2.0, 2.0)), _adaptive_level),
    Rule(sj.relative(0.25), _relative_level),
    Rule(lambda argument: jax.tree.map(lambda leaf: 0.4, argument), lambda leaf: 0.4),
    Rule(lambda argument: 0.5, lambda leaf: 0.5),
    Rule(
        lambda argument: jax.tree.map(lambda a: jnp.full(jnp.shape(a)[-1:], 0.6), argument),
        lambda leaf: np.full(leaf.shape[-1:], 0.6, np.float32),
    ),
]
numbers = st.sampled_from([0.0, 0.3, 2, np.float32(0.5), jnp.float32(0.7)])


def steps(key, shape, dtype):
    """Draws that tell keys and positions apart and cost next to nothing."""
    start = (jax.random.key_data(key)[-1] >> 8).astype(dtype) * 2**-23 - 1
    return start + jnp.arange(shape[0], dtype=dtype) * 0.125


FAULTS = {
    "sigma": [
        -1.0,
        float("nan"),
        "0.1",
        None,
        True,
        1j,
        jnp.ones(5),
        jnp.float32(-2),
        [0.1] * 9,
        lambda _: "a",
    ],
    "where": [False, 1, "a", sj.by_path(lambda path: False), [True] * 9, np.ones(2, bool)],
    "num_samples": [-1, 0, 2.0, None, True, jnp.int32(3)],
    "chunk_size": [-1, 0, 2.0, True],
    "reduction": [reductions.mean, "mean", None],
    "sampler": [None, lambda key, shape, dtype: jnp.zeros((), dtype)],
    "argnum": [-1, 2, 1.0, True, None],
    "key": [None, 0, np.zeros(2, np.uint32), jax.random.split(jax.random.key(0))],
}


@st.composite
def cases(draw):
    """Calls of which one in four has one fault."""
    argnum = draw(st.sampled_from([0, 1]))
    argument = draw(arguments)
    rule = draw(st.sampled_from(RULES))
    masks = st.sampled_from([None, True, sj.by_path(lambda path: path[-1] in "1a")])
    case = Case(
        transform=draw(st.sampled_from([sj.smoothgrad, sj.noisegrad])),
        args=(argument, 3) if argnum == 0 else (draw(arrays(FLOATS)), argument),
        argnum=argnum,
        sigma=draw(st.just(rule) | numbers | prefixes(argument, numbers)),
        where=draw(
            masks | prefixes(argument, st.booleans()).filter(lambda p: selects(p, argument))
        ),
        num_samples=draw(st.sampled_from([2, 3, 5, np.int64(5)])),
        chunk_size=draw(st.sampled_from([1, 2, 3, 6])),
        reduction=draw(st.sampled_from(list(REFERENCES))),
        sampler=draw(st.sampled_from([steps] * 9 + [jax.random.normal])),
        key=jax.random.key(draw(st.integers(0, 3))),
        at_fault=False,
    )
    fault = draw(st.sampled_from([None] * 24 + [*FAULTS]))
    if fault is not None:
        return case._replace(**{fault: draw(st.sampled_from(FAULTS[fault]))}, at_fault=True)
    levels = resolved(case.sigma, argument)
    chosen = resolved(case.where, argument)
    if any(
        level is RULES[1] and pick is not False and is_float_array(leaf) and leaf.size < 2
        for leaf, level, pick in zip(jax.tree.leaves(argument), levels, chosen, strict=True)
    ):
        return case._replace(at_fault=True)  # no range to be relative to
    if (
        any(case.sigma is rule for rule in RULES[:2]) and case.where is None
    ):  # one range for several leaves
        leaves = filter(is_float_array, jax.tree.leaves(argument))
        return case._replace(at_fault=len(list(leaves)) > 1)
    return case


def selects(mask, argument):
    chosen = zip(spread(mask, argument), jax.tree.leaves(argument), strict=True)
    return any(pick and is_float_array(leaf) for pick, leaf in chosen)


def resolved(value, argument):
    """One value for each leaf of what `sigma` or `where` is given as."""
    if isinstance(value, Rule):
        return [value] * len(jax.tree.leaves(argument))
    return jax.tree.leaves(value(argument)) if callable(value) else spread(value, argument)


def explain(first, second):
    """Every array of the arguments, by position, floats squared: a tree of arrays only."""
    leaves = enumerate(jax.tree.leaves((first, second)))
    return {
        str(i): a * a if is_float_array(a) else a for i, a in leaves if isinstance(a, jax.Array)
    }


def draws_of(case):
    """One draw after another, one leaf after another, in NumPy, as lists by position."""
    argument = case.args[case.argnum]
    flat = [np.asarray(a) if isinstance(a, jax.Array) else a for a in jax.tree.leaves(argument)]
    floats = [is_float_array(leaf) for leaf in jax.tree.leaves(argument)]
    largest = max(leaf.size for leaf, is_float in zip(flat, floats, strict=True) if is_float)
    levels, chosen = resolved(case.sigma, argument), resolved(case.where, argument)
    stacked = collections.defaultdict(list)
    for i in range(case.num_samples):
        noise_key, _ = jax.random.split(jax.random.fold_in(case.key, i))
        noisy = []
        for position, leaf in enumerate(flat):
            if floats[position] and chosen[position] is not False:
                leaf_key = jax.random.fold_in(noise_key, position)
                wide = np.result_type(leaf.dtype, np.float32)
                eps = np.asarray(case.sampler(leaf_key, (max(largest, 1),), wide))
                level = levels[position]
                level = level.of_leaf(leaf) if isinstance(level, Rule) else level
                noise = np.asarray(level, wide) * eps[: leaf.size].reshape(leaf.shape)
                if case.transform is sj.noisegrad:
                    leaf = (leaf.astype(wide) * (1 + noise)).astype(leaf.dtype)
                else:
                    leaf = (leaf.astype(wide) + noise).astype(leaf.dtype)
            noisy.append(leaf)
        args = list(case.args)
        args[case.argnum] = noisy
        for name, a in enumerate(jax.tree.leaves(args)):
            if isinstance(a, (np.ndarray, np.generic, jax.Array)):
                a = np.asarray(a)
                is_float = jnp.issubdtype(a.dtype, jnp.floating)
                stacked[str(name)].append(a * a if is_float else a)
    return {name: np.stack(draws) for name, draws in stacked.items()}


def wide(draws):
    return draws.astype(np.float64)


def answers(draws):
    """The dtype of what estimates a draw."""
    return draws.dtype if jnp.issubdtype(draws.dtype, jnp.inexact) else np.dtype(np.float32)


def at_least_float32(draws):
    return np.result_type(answers(draws), np.float32)


REFERENCES = {
    reductions.mean(): lambda d: wide(d).mean(0).astype(answers(d)),
    reductions.mean_square(): lambda d: (wide(d) ** 2).mean(0).astype(at_least_float32(d)),
    reductions.variance(): lambda d: wide(d).var(0, ddof=1).astype(at_least_float32(d)),
    reductions.mean_and_stderr(): lambda d: (
        wide(d).mean(0).astype(answers(d)),
        (wide(d).std(0, ddof=1) / np.sqrt(len(d))).astype(at_least_float32(d)),
    ),
    reductions.stack(): lambda d: d,
}
SQUARES = (reductions.mean_square(), reductions.variance())


def check_close(got, want, draws, original, reduction):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if not jnp.issubdtype(want.dtype, jnp.inexact):
        np.testing.assert_array_equal(got, want)
        return
    # Rounded to the dtype of the answer, and computed in float32 from numbers of this size.
    numbers = wide(np.append(draws, original))
    largest = np.max(np.abs(numbers[np.isfinite(numbers)]), initial=0)
    rtol = max(float(ml_dtypes.finfo(want.dtype).eps), 3e-6)
    got, want = wide(got), wide(want)
    if reduction in SQUARES:
        got, want = np.sqrt(got), np.sqrt(want)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=2e-6 * largest)


def run(case):
    """What the library makes of a case: its answer, or None for one of its errors."""
    options = {
        "sigma": case.sigma.build if isinstance(case.sigma, Rule) else case.sigma,
        **{name: getattr(case, name) for name in
           ("argnum", "where", "num_samples", "chunk_size", "reduction", "sampler")},
    }  # fmt: skip
    try:
        with jax.disable_jit():
            return case.transform(explain, **options)(case.key, *case.args)
    except (TypeError, ValueError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if not raised_in.startswith(LIBRARY) or "in " not in error.__notes__[-1]:
            raise
        return None


def test_the_reference_answer_or_our_error():
    reached = collections.Counter()

    @settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases())
    def check(case):
        got = run(case)
        assert (got is None) == case.at_fault
        reached["refused" if case.at_fault else "compared"] += 1
        if got is None:
            return
        if case.reduction == reductions.mean_and_stderr():
            assert int(got.num_samples) == case.num_samples
            got = {name: (got.mean[name], got.stderr[name]) for name in got.mean}
        with np.errstate(all="ignore"):
            draws, original = draws_of(case), explain(*case.args)
            want = {name: REFERENCES[case.reduction](d) for name, d in draws.items()}
        assert got.keys() == want.keys()
        for name in want:
            pairs = zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True)
            for actual, expected in pairs:
                check_close(
                    np.asarray(actual), expected, draws[name], original[name], case.reduction
                )

    check()
    print(dict(reached))
    # A test that generates nothing but errors would pass too.
    assert reached["compared"] > 0.6 * CASES
    assert reached["refused"] > 0.1 * CASES
