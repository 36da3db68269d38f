"""Gradient methods against what calculus says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax.attribution import gauss_legendre
from smoothjax.metrics import completeness_error

X = jnp.array([0.3, -0.7, 1.1])


def cubic(params, x):
    return jnp.sum(params * x**3)


W = jnp.array([1.0, -2.0, 0.5])


def test_saliency_is_the_gradient():
    np.testing.assert_allclose(sj.saliency(cubic)(W, X), 3 * W * X**2, rtol=1e-6)
    np.testing.assert_allclose(sj.saliency(cubic, argnum=0)(W, X), X**3, rtol=1e-6)


def test_input_times_gradient():
    np.testing.assert_allclose(sj.input_times_gradient(cubic)(W, X), 3 * W * X**3, rtol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, 0.5, jnp.array([1.0, 0.0, -1.0]), lambda x: 2 * x])
def test_integrated_gradients_of_a_separable_function(baseline):
    """Each feature gets its own difference, exactly: Gauss-Legendre with 2 nodes is of degree 3."""
    explain = sj.integrated_gradients(cubic, baseline, num_steps=2)
    start = baseline(X) if callable(baseline) else jnp.broadcast_to(baseline, X.shape)
    np.testing.assert_allclose(explain(W, X), W * (X**3 - start**3), rtol=1e-5, atol=1e-6)


def test_integrated_gradients_of_a_product_splits_it_evenly():
    """For x0 x1 from 0, the integral of t x1 is half of the product for either."""
    explain = sj.integrated_gradients(lambda params, x: params * x[0] * x[1])
    np.testing.assert_allclose(explain(2.0, jnp.array([3.0, 5.0])), [15.0, 15.0], rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 50])
def test_integrated_gradients_do_not_depend_on_the_chunk(chunk_size, score, params):
    want = sj.integrated_gradients(score, num_steps=7, chunk_size=7)(params, X)
    got = sj.integrated_gradients(score, num_steps=7, chunk_size=chunk_size)(params, X)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_completeness_error_is_that_of_the_quadrature(score, params):
    metric = completeness_error(score, 0.5)

    def error(num_steps, **options):
        explain = sj.integrated_gradients(score, 0.5, num_steps, **options)
        return abs(metric(params, X, explain(params, X)))

    def left_riemann(n):
        return np.arange(n) / n, np.full(n, 1 / n)

    assert error(10) < 1e-5
    assert error(10, quadrature=left_riemann) > 1e-3
    assert error(100, quadrature=left_riemann) < error(10, quadrature=left_riemann) / 5


def test_completeness_error_is_signed():
    metric = completeness_error(cubic)
    attribution = W * X**3
    np.testing.assert_allclose(metric(W, X, attribution), 0.0, atol=1e-6)
    np.testing.assert_allclose(metric(W, X, attribution + 1.0), 3.0, rtol=1e-5)


def test_completeness_error_passes_the_rest():
    def labelled(params, x, label):
        return cubic(params, x) * label

    attribution = sj.integrated_gradients(labelled)(W, X, 2.0)
    error = completeness_error(labelled)(W, X, attribution, 2.0)
    np.testing.assert_allclose(error, 0.0, atol=1e-5)


def test_gauss_legendre_integrates_polynomials():
    nodes, weights = gauss_legendre(4)
    for degree in range(8):
        np.testing.assert_allclose(np.sum(weights * nodes**degree), 1 / (degree + 1), rtol=1e-12)
    assert abs(np.sum(weights * nodes**8) - 1 / 9) > 1e-6


def test_integrated_gradients_of_a_stochastic_score_follow_one_function(key, score, params):
    """The same weights along the whole path, so completeness holds for each key."""
    noisy = sj.noisegrad(score, 0.3, num_samples=2)
    attribution = sj.integrated_gradients(noisy)(key, params, X)
    metric = completeness_error(noisy)
    assert sj.is_stochastic(metric)
    np.testing.assert_allclose(metric(key, params, X, attribution), 0.0, atol=1e-5)
    other = metric(jax.random.key(8), params, X, attribution)
    assert abs(other) > 1e-3


def test_expected_gradients_of_a_linear_score_are_exact_differences_from_the_mean(key):
    data = jnp.array([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [4.0, 3.0, 1.0]])
    explain = sj.expected_gradients(
        lambda w, x: w @ x,
        data,
        num_samples=4000,
        reduction=sj.reductions.mean_and_stderr(),
        chunk_size=500,
    )
    got = jax.jit(explain)(key, W, X)
    truth = W * (X - data.mean(0))
    np.testing.assert_array_less(np.abs(got.mean - truth), 5 * got.stderr + 1e-6)


def test_expected_gradients_from_one_baseline_are_integrated_gradients(key, score, params):
    explain = sj.expected_gradients(
        score,
        jnp.full((1, 3), 0.5),
        num_samples=4000,
        reduction=sj.reductions.mean_and_stderr(),
        chunk_size=500,
    )
    got = jax.jit(explain)(key, params, X)
    truth = sj.integrated_gradients(score, 0.5)(params, X)
    np.testing.assert_array_less(np.abs(got.mean - truth), 5 * got.stderr)


def test_expected_gradients_draw_place_and_baseline_independently(key):
    """For a cubic score: the mean of the integrated gradients from each baseline."""
    data = jnp.array([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [4.0, 3.0, 1.0]])
    explain = sj.expected_gradients(
        cubic,
        data,
        num_samples=4000,
        reduction=sj.reductions.mean_and_stderr(),
        chunk_size=500,
    )
    got = jax.jit(explain)(key, W, X)
    truth = jnp.mean(jnp.stack([sj.integrated_gradients(cubic, b)(W, X) for b in data]), axis=0)
    np.testing.assert_array_less(np.abs(got.mean - truth), 5 * got.stderr)


def test_expected_gradients_of_a_stochastic_score_draw_new_keys(key):
    @sj.stochastic
    def noisy(key, w, x):
        return jax.random.uniform(key) * (w @ x)

    draws = sj.expected_gradients(
        noisy, jnp.zeros((1, 3)), num_samples=20, reduction=sj.reductions.stack()
    )(key, W, X)
    assert np.unique(draws[:, 0]).size == 20


def test_functions_and_numbers_among_the_leaves_get_float0():
    def score(params, x):
        return jnp.sum(x["activation"](x["image"])) * x["scale"]

    x = {"image": X, "activation": jnp.tanh, "scale": 2.0}
    for method in (sj.saliency, sj.input_times_gradient, sj.integrated_gradients):
        got = method(score)(None, x)
        assert got["image"].shape == (3,)
        assert got["activation"].dtype == got["scale"].dtype == jax.dtypes.float0


def test_double_precision_numpy_inputs_need_no_warning():
    x = np.asarray(X, np.float64)
    attribution = sj.integrated_gradients(cubic)(W, x)
    assert attribution.dtype == X.dtype
    np.testing.assert_allclose(completeness_error(cubic)(W, x, attribution), 0.0, atol=1e-5)


def test_large_baselines_may_be_arguments(key):
    data = jnp.zeros((4, 3))

    @jax.jit
    def explain(key, params, x, data):
        return sj.expected_gradients(cubic, data, num_samples=3)(key, params, x)

    assert explain(key, W, X, data).shape == (3,)


def test_bounds_of_the_baseline_draws(key):
    """Every baseline is drawn, at every place of the path."""
    data = jnp.array([[0.0], [10.0], [20.0]])
    points = sj.expected_gradients(
        lambda p, x: jnp.sum(x**2 / 2),
        data,
        num_samples=300,
        reduction=sj.reductions.stack(),
        chunk_size=300,
    )(key, None, jnp.array([20.0]))
    # a draw is (20 - b) * (b + t (20 - b)): zero for b = 20, and b (20 - b) .. 20 (20 - b) else
    assert np.isclose(np.mean(points == 0), 1 / 3, atol=0.1)
    assert 0 < points[points > 0].min() < 30
    assert points.max() > 350


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "method",
    [
        sj.saliency,
        sj.input_times_gradient,
        sj.integrated_gradients,
        lambda score: sj.expected_gradients(score, jnp.zeros((2, 3))),
    ],
)
def test_half_precision_keeps_its_dtype(method, dtype, key):
    explain = method(lambda params, x: jnp.sum(params * x))
    args = (jnp.ones(3, dtype), jnp.arange(3, dtype=dtype))
    got = explain(key, *args) if sj.is_stochastic(explain) else explain(*args)
    assert got.dtype == dtype


METHODS = [
    sj.saliency,
    sj.input_times_gradient,
    sj.integrated_gradients,
    lambda score: sj.expected_gradients(
        score, {"embedding": jnp.zeros((2, 3)), "tokens": jnp.zeros((2, 3), int)}
    ),
]


@pytest.mark.parametrize("method", METHODS)
def test_integer_leaves_get_float0(method, key):
    explain = method(lambda params, x: jnp.sum(params * x["embedding"] ** 2))
    x = {"embedding": X, "tokens": jnp.arange(3)}
    got = explain(key, W, x) if sj.is_stochastic(explain) else explain(W, x)
    assert got["tokens"].dtype == jax.dtypes.float0
    assert got["embedding"].shape == (3,)


@pytest.mark.parametrize(
    "smooth", slow_but([sj.smoothgrad, sj.noisegrad, sj.fusiongrad, sj.vargrad], sj.noisegrad)
)
@pytest.mark.parametrize("method", [*METHODS[:3], lambda s: sj.expected_gradients(s, X[None] - 1)])
def test_every_method_goes_through_every_transform(smooth, method, key):
    assert jnp.all(jnp.isfinite(jax.jit(smooth(method(cubic)))(key, W, X)))


BAD = [
    (
        lambda: sj.saliency(cubic)(W, jnp.arange(3, dtype=jnp.int32)),
        TypeError,
        r"(?s)floating-point arrays are needed.*int32.*in saliency\(cubic\)",
    ),
    (lambda: sj.saliency(lambda w, x: w * x)(W, X), TypeError, "scalar"),
    (
        lambda: sj.integrated_gradients(cubic, num_steps=0),
        ValueError,
        "num_steps must be at least 1",
    ),
    (
        lambda: sj.integrated_gradients(cubic, num_steps=2.0),
        TypeError,
        "num_steps must be a Python",
    ),
    (
        lambda: sj.integrated_gradients(cubic, chunk_size=0),
        ValueError,
        "chunk_size must be at least",
    ),
    (
        lambda: sj.integrated_gradients(cubic, quadrature=lambda n: ([0.5], [1.0])),
        ValueError,
        r"must return nodes and weights of shape \(50,\)",
    ),
    (lambda: sj.integrated_gradients(cubic, jnp.ones(2))(W, X), ValueError, "baseline of shape"),
    (lambda: sj.integrated_gradients(cubic, {"a": 0.0})(W, X), ValueError, "baseline must be one"),
    (lambda: sj.expected_gradients(cubic, jnp.ones(())), ValueError, "leading axis"),
    (lambda: sj.expected_gradients(cubic, jnp.ones((0, 3))), ValueError, "at least 1"),
    (lambda: sj.expected_gradients(cubic, jnp.ones((2, 3), int)), TypeError, "baselines hold"),
    (
        lambda: sj.expected_gradients(cubic, jnp.ones((2, 4)))(jax.random.key(0), W, X),
        ValueError,
        r"must be shaped like x, \(3,\); got \(4,\)",
    ),
    (lambda: sj.expected_gradients(cubic, X[None])(W, X), TypeError, "takes a PRNG key"),
    (lambda: completeness_error(cubic)(W, X), TypeError, "the attribution is missing"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("method", [sj.saliency, sj.input_times_gradient, sj.integrated_gradients])
def test_a_batch_where_one_example_belongs_is_our_error(method):
    with pytest.raises(TypeError, match=r"(?s)real scalar for one example.*\(8, 3\).*jax.vmap"):
        method(lambda p, x: p * x)(jnp.ones((8, 3)), jnp.ones((8, 3)))
    with pytest.raises(TypeError, match="got a tuple"):
        method(lambda p, x: (jnp.sum(x), x))(jnp.ones(3), jnp.ones(3))
