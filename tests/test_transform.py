"""The stochastic mark, keys, argument numbers, names and signatures."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import smoothjax as sj

X = jnp.arange(3.0)


def score(params, x, label=0):
    """The score of the tests."""
    return jnp.sum(params * x) + 0.0 * label


EXPLAIN = jax.grad(score, argnums=1)
NOISY = sj.smoothgrad(EXPLAIN, 0.1, num_samples=2)


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.vmap,
        jax.grad,
        jax.checkpoint,
        eqx.filter_jit,
        eqx.filter_vmap,
        functools.partial,
        functools.partial(functools.partial, label=1),
        lambda fun: jax.jit(functools.partial(fun, label=1)),
        sj.saliency,
        functools.partial(sj.pool, how=jnp.sum),
    ],
)
def test_wrappers_keep_the_mark(wrap):
    assert sj.is_stochastic(wrap(NOISY))
    assert not sj.is_stochastic(wrap(EXPLAIN))


def test_a_partial_that_binds_the_key_is_not_stochastic(key):
    frozen = functools.partial(NOISY, key)
    assert not sj.is_stochastic(frozen)
    assert not sj.is_stochastic(jax.jit(frozen))
    averaged = sj.noisegrad(frozen, 0.0, num_samples=2)(key, jnp.ones(3), X)
    assert jnp.allclose(averaged, NOISY(key, jnp.ones(3), X))


def test_a_partial_that_was_given_the_mark_is_not_stochastic(key):
    frozen = functools.update_wrapper(functools.partial(NOISY, key), NOISY)
    assert not sj.is_stochastic(frozen)
    assert not sj.is_stochastic(jax.jit(frozen))


def test_stochastic_wraps_and_does_not_mutate():
    def fun(key, params, x):
        return x

    marked = sj.stochastic(fun)
    assert sj.is_stochastic(marked)
    assert not sj.is_stochastic(fun)
    assert marked.__name__ == "fun"


def test_names_docs_and_signatures_are_honest():
    nested = sj.noisegrad(sj.smoothgrad(EXPLAIN))
    assert nested.__name__ == "noisegrad(smoothgrad(score))"
    assert "noisegrad(smoothgrad(score))" in nested.__doc__
    assert "The score of the tests." in sj.saliency(score).__doc__
    assert str(inspect.signature(nested)) == "(key, /, params, x, label=0)"
    assert str(inspect.signature(sj.saliency(score))) == "(params, x, label=0)"
    assert str(inspect.signature(sj.pool(NOISY, jnp.sum))) == "(key, /, params, x, label=0)"
    names = [
        sj.fusiongrad,
        sj.vargrad,
        sj.squaregrad,
        functools.partial(sj.adaptgrad, bounds=(0, 1)),
    ]
    assert [make(EXPLAIN).__name__ for make in names] == [
        "fusiongrad(score)",
        "vargrad(score)",
        "squaregrad(score)",
        "adaptgrad(score)",
    ]


def test_a_parameter_named_key_does_not_clash():
    explain = sj.smoothgrad(lambda key, x: key * x, 0.1)
    assert str(inspect.signature(explain)) == "(key_, /, key, x)"


def test_callables_without_a_signature_work(key):
    class Explain:
        __signature__ = "none"

        def __call__(self, x):
            return x

    noisy = sj.smoothgrad(Explain(), 0.0, argnum=0, num_samples=1)
    assert jnp.array_equal(noisy(key, X), X)
    assert noisy.__name__ == "smoothgrad(Explain)"


def test_explainers_of_x_alone(key):
    noisy = sj.smoothgrad(jnp.sin, 0.0, argnum=0, num_samples=2)
    assert jnp.allclose(noisy(key, X), jnp.sin(X))


BAD_KEYS = [
    (
        (),
        TypeError,
        r"smoothgrad\(score\) takes a PRNG key .*like jax.random.key\(0\); got nothing",
    ),
    (
        (jnp.ones(3, jnp.float32), X),
        TypeError,
        "takes a PRNG key.*dtype float32",
    ),
    (({"w": 1.0}, X), TypeError, "takes a PRNG key.*got a dict"),
    ((0, jnp.ones(3), X), TypeError, "takes a PRNG key.*got a int"),
    (
        (jax.random.PRNGKey(0), jnp.ones(3), X),
        TypeError,
        "a raw one: jax.random.wrap_key_data.*uint32",
    ),
    (
        (jax.random.split(jax.random.key(0), 4), jnp.ones(3), X),
        ValueError,
        r"one PRNG key; for \(4,\).*jax.vmap",
    ),
]


@pytest.mark.parametrize(("args", "error", "message"), BAD_KEYS)
def test_a_missing_or_wrong_key_is_refused(args, error, message):
    with pytest.raises(error, match=message):
        NOISY(*args)


def test_raw_keys_may_be_wrapped():
    key = jax.random.wrap_key_data(jax.random.PRNGKey(0))
    assert NOISY(key, jnp.ones(3), X).shape == (3,)


def test_a_missing_argument_is_explained(key):
    with pytest.raises(
        TypeError,
        match=r"argnum=1, counted from 0 after the key, is missing.*argnum=0",
    ):
        sj.smoothgrad(jnp.sin)(key, X)
    with pytest.raises(TypeError, match=r"argnum=1.* is missing.*keywords are left alone"):
        NOISY(key, jnp.ones(3), x=X)
    with pytest.raises(TypeError, match=r"(?s)argnum=1.* is missing.*in saliency\(score\)"):
        sj.saliency(score)(jnp.ones(3))


def test_an_unmarked_stochastic_function_is_explained(key):
    def noisy(key, params, x):
        return params * x

    with pytest.raises(TypeError, match=r"misses one argument.*smoothjax.stochastic\(noisy\)"):
        sj.smoothgrad(noisy, 0.1)(key, jnp.ones(3), X)


def test_other_wrong_calls_say_what_python_says(key):
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        sj.smoothgrad(lambda params, x: x, 0.1)(key, jnp.ones(3), X, colour=1)


BAD_BUILDS = [
    (lambda: sj.smoothgrad(3), TypeError, "smoothgrad takes a function.*got 3"),
    (lambda: sj.saliency(None), TypeError, "saliency takes a function.*got None"),
    (lambda: sj.stochastic("f"), TypeError, "stochastic takes a function"),
    (lambda: sj.pool(jnp.sin, "sum"), TypeError, "(?s)how must be a function.*in pool"),
    (
        lambda: sj.pool(jnp.sin, jnp.sum, 1.0),
        TypeError,
        "(?s)channel_axis must be a Python int.*in pool",
    ),
    (lambda: sj.smoothgrad(jnp.sin, argnum=-1), ValueError, "argnum must be at least 0; got -1"),
    (lambda: sj.smoothgrad(jnp.sin, argnum=1.0), TypeError, "argnum must be a Python int"),
    (lambda: sj.noisegrad(jnp.sin, argnum="x"), TypeError, "argnum must be a Python int.*'x'"),
    (lambda: sj.saliency(jnp.sin, argnum=True), TypeError, "argnum must be a Python int"),
    (lambda: sj.fusiongrad(3), TypeError, "fusiongrad takes a function.*got 3"),
    (
        lambda: sj.fusiongrad(jnp.sin, num_weight_draws=0),
        ValueError,
        "(?s)num_weight_draws.*in fusiongrad",
    ),
    (
        lambda: sj.fusiongrad(jnp.sin, num_input_draws=0),
        ValueError,
        "(?s)num_input_draws.*in fusiongrad",
    ),
    (lambda: sj.vargrad(jnp.sin, reduction=None), TypeError, "reduction"),
]


@pytest.mark.parametrize(("build", "error", "message"), BAD_BUILDS)
def test_bad_settings_are_refused_when_building(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_pool_acts_on_each_leaf_and_keeps_what_it_is_told(key):
    def explain(params, x):
        return {"a": x, "b": 2 * x}

    x = jnp.array([[3.0, -4.0], [-1.0, 0.0]])
    signed = sj.pool(explain, jnp.sum)(None, x)
    l2 = sj.pool(explain, jnp.linalg.norm)(None, x)
    absolute = sj.pool(explain, functools.partial(jnp.linalg.norm, ord=1), channel_axis=0)(None, x)
    assert jnp.array_equal(signed["a"], jnp.array([-1.0, -1.0]))
    assert jnp.array_equal(l2["b"], jnp.array([10.0, 2.0]))
    assert jnp.array_equal(absolute["a"], jnp.array([4.0, 4.0]))


def test_the_core_needs_jax_and_numpy_only():
    """In a fresh interpreter: importing smoothjax imports no optional package."""
    import subprocess
    import sys

    code = (
        "import sys, smoothjax; "
        "print([m for m in ('flax', 'PIL', 'matplotlib', 'skimage', 'tqdm', 'equinox', 'optax', "
        "'scipy.stats', 'torch', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_mark_on_a_partial_counts(key):
    """Of a function whose key comes after what is bound, if somebody says so."""
    drawn = sj.stochastic(
        functools.partial(lambda scale, key, x: scale * jax.random.normal(key), 2.0)
    )
    assert sj.is_stochastic(drawn)
    assert sj.is_stochastic(jax.jit(drawn))
    assert not sj.is_stochastic(functools.partial(drawn, key))
    assert drawn(key, None) == 2 * jax.random.normal(key)
