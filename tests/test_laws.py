"""Every transform is a row of one table, and every law is asked of every row it applies to."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax import attribution, metrics, reductions

X = jnp.array([0.3, -0.7, 1.1])
BOUNDS = (-2.0, 2.0)


class Transform(NamedTuple):
    """`build(explain, num_samples=, chunk_size=)` at a usual noise level, and the same at zero
    noise.

    `limit` is what zero noise makes of a map: the map itself, its square, or zero.
    """

    build: callable
    silent: callable
    limit: callable
    traces: int = 3


def _fusion(sigma_weights, sigma_inputs):
    def build(explain, num_samples, chunk_size):
        inner = sj.smoothgrad(explain, sigma_inputs, num_samples=3, chunk_size=2)
        return sj.noisegrad(inner, sigma_weights, num_samples=num_samples, chunk_size=chunk_size)

    return build


def _fusiongrad(sigma_weights, sigma_inputs):
    def build(explain, num_samples, chunk_size):
        del chunk_size  # written out as a composition where that matters
        return sj.fusiongrad(
            explain, sigma_weights, sigma_inputs, num_weight_draws=num_samples, num_input_draws=2
        )

    return build


def _same(a):
    return a


def _additive_weights(explain, sigma=0.2, **kwargs):
    return sj.smoothgrad(explain, sigma, argnum=0, **kwargs)


def _toward(explain, sigma=0.2, **kwargs):
    return sj.smoothgrad_toward(explain, explain, sigma, axes=(0,), channel_axis=None, **kwargs)


TRANSFORMS = {
    "smoothgrad": Transform(sj.smoothgrad, functools.partial(sj.smoothgrad, sigma=0.0), _same),
    "noisegrad": Transform(sj.noisegrad, functools.partial(sj.noisegrad, sigma=0.0), _same),
    "additive weights": Transform(
        _additive_weights, functools.partial(_additive_weights, sigma=0.0), _same
    ),
    "noisegrad of smoothgrad": Transform(_fusion(0.1, 0.1), _fusion(0.0, 0.0), _same, traces=9),
    "adaptgrad": Transform(
        functools.partial(sj.adaptgrad, bounds=BOUNDS),
        functools.partial(sj.adaptgrad, bounds=(X, X + 1)),  # x on a bound is not perturbed
        _same,
    ),
    "fusiongrad": Transform(_fusiongrad(0.1, 0.1), _fusiongrad(0.0, 0.0), _same, traces=9),
    "smoothgrad_toward": Transform(_toward, functools.partial(_toward, sigma=0.0), _same, traces=4),
    "vargrad": Transform(
        sj.vargrad, functools.partial(sj.vargrad, sigma=0.0), lambda a: jnp.zeros_like(a)
    ),
    "squaregrad": Transform(
        sj.squaregrad, functools.partial(sj.squaregrad, sigma=0.0), lambda a: a**2
    ),
}

each_transform = pytest.mark.parametrize(
    "transform",
    # The others are these with other arguments, or nested, or have a file of their own.
    slow_but(TRANSFORMS, "smoothgrad", "noisegrad", "adaptgrad", "vargrad", "squaregrad"),
)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


@pytest.fixture
def explain(score):
    return jax.grad(score, argnums=1)


@each_transform
def test_zero_noise_gives_the_limit(transform, explain, key, params):
    silent = transform.silent(explain, num_samples=4, chunk_size=2)
    close(silent(key, params, X), transform.limit(explain(params, X)))


@each_transform
def test_noise_changes_the_map(transform, explain, key, params):
    noisy = transform.build(explain, num_samples=4, chunk_size=2)(key, params, X)
    assert not np.allclose(noisy, transform.limit(explain(params, X)), rtol=1e-3)


@each_transform
def test_jit_equals_eager(transform, explain, key, params):
    noisy = transform.build(explain, num_samples=4, chunk_size=2)
    close(jax.jit(noisy)(key, params, X), noisy(key, params, X))


@each_transform
def test_vmap_equals_a_loop_over_examples(transform, explain, key, params):
    noisy = jax.jit(transform.build(explain, num_samples=4, chunk_size=2))
    xs = jnp.stack([X, 2 * X, X - 0.5])
    batch = jax.vmap(noisy, in_axes=(None, None, 0))(key, params, xs)
    close(batch, jnp.stack([noisy(key, params, x) for x in xs]))


@each_transform
@pytest.mark.slow
def test_vmap_equals_a_loop_over_keys(transform, explain, key, params):
    noisy = jax.jit(transform.build(explain, num_samples=4, chunk_size=2))
    keys = jax.random.split(key, 3)
    batch = jax.vmap(noisy, in_axes=(0, None, None))(keys, params, X)
    close(batch, jnp.stack([noisy(k, params, X) for k in keys]))


@each_transform
@pytest.mark.parametrize("chunk_size", slow_but([3, 100], 3))
def test_any_chunk_size_gives_the_same(transform, chunk_size, explain, key, params):
    one_by_one = transform.build(explain, num_samples=7, chunk_size=1)
    chunked = transform.build(explain, num_samples=7, chunk_size=chunk_size)
    close(chunked(key, params, X), one_by_one(key, params, X))


@each_transform
def test_traces_are_bounded_whatever_the_number_of_samples(transform, explain, key, params):
    def traces(num_samples):
        count = 0

        def counted(params, x):
            nonlocal count
            count += 1
            return explain(params, x)

        noisy = transform.build(counted, num_samples=num_samples, chunk_size=2)
        jax.jit(noisy).lower(key, params, X)
        return count

    assert traces(5) <= transform.traces
    assert traces(5) == traces(501)


@each_transform
@pytest.mark.parametrize("dtype", slow_but([jnp.bfloat16, jnp.float32], jnp.bfloat16))
def test_structure_shape_and_dtype_are_kept(transform, dtype, key):
    params = {"w": jnp.ones((2, 3), dtype)}
    x = {"a": jnp.arange(6, dtype=dtype).reshape(2, 3), "b": (jnp.ones(4, dtype),)}

    def explain(params, x):
        return {"a": params["w"] * x["a"] ** 2, "b": (x["b"][0] ** 2,)}

    if transform is TRANSFORMS["adaptgrad"]:
        bounds = {"a": (-9.0, 9.0), "b": (-9.0, 9.0)}
        transform = transform._replace(build=functools.partial(sj.adaptgrad, bounds=bounds))
    if transform.build is sj.smoothgrad or transform.build in (sj.vargrad, sj.squaregrad):
        transform = transform._replace(build=functools.partial(transform.build, sigma=0.1))
    noisy = transform.build(explain, num_samples=3, chunk_size=2)(key, params, x)
    plain = explain(params, x)
    assert jax.tree.structure(noisy) == jax.tree.structure(plain)
    assert jax.tree.map(jnp.shape, noisy) == jax.tree.map(jnp.shape, plain)
    squares = transform.limit(2.0) != 2.0
    expected = jnp.dtype(jnp.float32 if squares else dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(noisy)} == {expected}


@pytest.mark.parametrize(
    "transform",
    slow_but(TRANSFORMS, "smoothgrad", "vargrad"),
)
def test_differentiable(transform, explain, key, params):
    """To second order, forward and in reverse, against differences; and when checkpointed."""
    noisy = transform.build(explain, num_samples=4, chunk_size=2)

    def total(x):
        return jnp.sum(jnp.sin(noisy(key, params, x)))

    @jax.jit
    def derivatives(x):
        slope = jax.jvp(total, (x,), (direction,))[1]
        return total(x), slope, jax.grad(total)(x)

    @jax.jit
    def more(x):
        return jax.hessian(total)(x), jax.grad(jax.checkpoint(total))(x)

    step = 1e-2
    direction = jnp.array([0.6, -0.8, 0.1])
    (before, _, gradient_before), (after, _, gradient_after) = (
        derivatives(X + s * direction) for s in (-step, step)
    )
    _, slope, gradient = derivatives(X)
    hessian, checkpointed = more(X)
    close(jnp.dot(gradient, direction), (after - before) / (2 * step), rtol=2e-2, atol=2e-3)
    close(slope, jnp.dot(gradient, direction), rtol=1e-4)
    close(checkpointed, gradient)
    bend = (gradient_after - gradient_before) / (2 * step)
    close(hessian @ direction, bend, rtol=2e-2, atol=1e-2)
    close(hessian, hessian.T, rtol=1e-3, atol=1e-4)


@each_transform
@pytest.mark.slow
def test_keyword_arguments_pass_through(transform, key, params):
    def explain(params, x, *, power):
        return params["last"][:3] * x**power

    noisy = transform.build(explain, num_samples=4, chunk_size=2)
    keyword = noisy(key, params, X, power=2)
    fixed = transform.build(functools.partial(explain, power=2), num_samples=4, chunk_size=2)
    close(keyword, fixed(key, params, X))


@each_transform
def test_the_returned_function_is_stochastic_and_named(transform, explain):
    noisy = transform.build(explain, num_samples=4, chunk_size=2)
    assert sj.is_stochastic(noisy)
    assert "score" in noisy.__name__


@pytest.mark.parametrize(
    "smooth", [sj.smoothgrad, sj.noisegrad, _additive_weights], ids=["x", "weights", "additive"]
)
@pytest.mark.parametrize("chunk_size", slow_but([1, 4], 4))
def test_n_draws_are_a_prefix_of_2n(smooth, chunk_size, explain, key, params):
    def draws(num_samples):
        stack = reductions.stack()
        noisy = smooth(explain, num_samples=num_samples, reduction=stack, chunk_size=chunk_size)
        return noisy(key, params, X)

    close(draws(5), draws(10)[:5], rtol=1e-6)


@pytest.mark.parametrize("outer", slow_but([sj.smoothgrad, sj.noisegrad], sj.noisegrad))
@pytest.mark.parametrize("inner", [sj.smoothgrad, sj.noisegrad])
def test_both_nesting_orders_average_all_pairs(outer, inner, explain, key, params):
    """The mean over the outer draws of inner means, written out with explicit keys."""
    nested = outer(inner(explain, num_samples=3), num_samples=4)(key, params, X)
    inner_stack = inner(lambda params, x: (params, x), num_samples=3, reduction=reductions.stack())
    stacked = outer(inner_stack, num_samples=4, reduction=reductions.stack())(key, params, X)
    by_draw = jax.vmap(jax.vmap(explain))(*stacked)
    assert by_draw.shape == (4, 3, 3)
    close(nested, by_draw.mean((0, 1)))


def test_wrapping_something_stochastic_leaves_the_outer_noise_alone(explain, key, params):
    def perturbed(params, x):
        return params

    @sj.stochastic
    def keyed(key, params, x):
        del key
        return params

    stack = reductions.stack()
    plain = sj.noisegrad(perturbed, num_samples=3, reduction=stack)(key, params, X)
    wrapped = sj.noisegrad(keyed, num_samples=3, reduction=stack)(key, params, X)
    close(plain, wrapped, rtol=0)


def test_fusiongrad_is_noisegrad_of_smoothgrad(explain, key, params):
    fused = sj.fusiongrad(explain, 0.1, 0.2, num_weight_draws=4, num_input_draws=3)
    nested = sj.noisegrad(sj.smoothgrad(explain, 0.2, num_samples=3), 0.1, num_samples=4)
    close(fused(key, params, X), nested(key, params, X), rtol=0)


def test_fusiongrad_has_half_of_both_default_levels(explain, key, params):
    inner = sj.smoothgrad(explain, sj.relative(0.075), num_samples=10)
    nested = sj.noisegrad(inner, 0.1, num_samples=10)
    close(sj.fusiongrad(explain)(key, params, X), nested(key, params, X), rtol=0)


def test_fusiongrad_draws_weights_n_times_and_inputs_m_times_each(key, params):
    """Tells n from m: the draws of the weights, and of x, that the explainer sees."""

    def see(params, x):
        return params["last"][0], x[0]

    weights, inputs = sj.noisegrad(
        sj.smoothgrad(see, 0.1, num_samples=7, reduction=reductions.stack()),
        0.1,
        num_samples=3,
        reduction=reductions.stack(),
    )(key, params, X)
    assert np.unique(weights).size == 3
    assert np.unique(inputs).size == 21
    fused = sj.fusiongrad(see, 0.1, 0.1, num_weight_draws=3, num_input_draws=7)
    close(fused(key, params, X), (weights.mean(), inputs.mean()))


@pytest.mark.parametrize(
    ("transform", "reduction"),
    [(sj.vargrad, reductions.variance()), (sj.squaregrad, reductions.mean_square())],
)
def test_vargrad_and_squaregrad_are_smoothgrad_with_a_reduction(
    transform, reduction, explain, key, params
):
    same = sj.smoothgrad(explain, 0.3, num_samples=9, reduction=reduction)
    close(transform(explain, 0.3, num_samples=9)(key, params, X), same(key, params, X), rtol=0)


def test_adaptgrad_is_smoothgrad_with_adaptive_levels(explain, key, params):
    adapted = sj.adaptgrad(explain, BOUNDS, 0.8, num_samples=9)
    same = sj.smoothgrad(explain, sj.adaptive(BOUNDS, 0.8), num_samples=9)
    close(adapted(key, params, X), same(key, params, X), rtol=0)


def test_the_arguments_are_not_changed(explain, key):
    params = {
        "first": {"kernel": np.ones((3, 4), X.dtype), "bias": np.zeros(4, X.dtype)},
        "last": np.ones(4, X.dtype),
    }
    before = jax.tree.map(np.copy, params)
    sj.noisegrad(explain, num_samples=3)(key, params, np.asarray(X))
    close(params, before, rtol=0, atol=0)


def _of_image(params, x):
    return jnp.tanh(jnp.sum(params * x))


IMAGES = np.random.default_rng(0).normal(size=(4, 6, 5, 2)).astype(np.float32)
RANDOM = {
    "smoothgrad": sj.smoothgrad(sj.saliency(_of_image), 0.1, num_samples=2),
    "noisegrad": sj.noisegrad(sj.saliency(_of_image), 0.1, num_samples=2),
    "expected_gradients": sj.expected_gradients(_of_image, IMAGES[1:], num_samples=3),
    "rise": attribution.rise(_of_image, num_samples=5, grid=2),
    "sobol": attribution.sobol(_of_image, num_designs=4, grid=2),
    "hsic": attribution.hsic(_of_image, num_samples=5, grid=2),
    "lime": attribution.lime(_of_image, num_samples=5, grid=2),
    "kernel_shap": attribution.kernel_shap(_of_image, num_samples=24, grid=3),
    "max_sensitivity": metrics.max_sensitivity(sj.saliency(_of_image), radius=0.1, num_samples=2),
    "mu_fidelity": lambda key, params, x: metrics.mu_fidelity(
        _of_image, grid=2, num_samples=6, similarity=metrics.similarity.pearson
    )(key, params, x, IMAGES[1]),
    "infidelity": lambda key, params, x: metrics.infidelity(_of_image, num_samples=3)(
        key, params, x, IMAGES[1]
    ),
    "road": lambda key, params, x: metrics.road(_of_image, num_steps=3)(key, params, x, IMAGES[1]),
    "monotonicity_correlation": lambda key, params, x: metrics.monotonicity_correlation(
        _of_image, grid=2, num_samples=3
    )(key, params, x, IMAGES[1]),
    "distinct_classes": lambda key, params, x: metrics.distinct_classes(key, [0, 1, 2, 0, 1, 2], 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_draws_do_not_depend_on_whether_64_bits_are_enabled(name, key):
    answers = []
    for enabled in (False, True):
        with jax.enable_x64(enabled):
            answers.append(RANDOM[name](key, 0.1 * IMAGES[1], IMAGES[0]))
    plain, enabled = answers
    assert enabled.dtype == plain.dtype
    np.testing.assert_allclose(enabled, plain, rtol=1e-4, atol=1e-6)
    assert np.any(plain)
