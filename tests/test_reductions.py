"""Reductions against NumPy on the stacked draws, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from rows import slow_but

import smoothjax as sj
from smoothjax import reductions
from smoothjax._loop import accumulate
from smoothjax.reductions import Estimate, relative_error

NUM = 11


def reduce(reduction, draws, chunk_size):
    """The reduction of the rows of `draws`, served by an explainer that looks its draw up."""
    return accumulate(reduction, chunk_size)(
        lambda i: jax.tree.map(lambda d: jnp.asarray(d)[i], draws), NUM
    )


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(3, 2, (NUM, 2, 3)).astype("f4"), "b": rng.normal(size=NUM).astype("f4")}


REFERENCES = {
    "mean": (reductions.mean, lambda d: d.mean(0)),
    "mean_square": (reductions.mean_square, lambda d: (d**2).mean(0)),
    "variance": (reductions.variance, lambda d: d.var(0, ddof=1)),
    "stack": (reductions.stack, lambda d: d),
}


@pytest.mark.parametrize(("build", "reference"), REFERENCES.values(), ids=REFERENCES)
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 11, 50])
def test_equals_numpy(build, reference, chunk_size, draws):
    got = reduce(build(), draws, chunk_size)
    for name, d in draws.items():
        np.testing.assert_allclose(got[name], reference(d.astype("f8")), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4, 11])
def test_mean_and_stderr_equals_numpy(chunk_size, draws):
    got = reduce(reductions.mean_and_stderr(), draws, chunk_size)
    assert isinstance(got, Estimate)
    assert got.num_samples == NUM
    assert got.num_samples.dtype == jnp.int32
    for name, d in draws.items():
        d = d.astype("f8")
        np.testing.assert_allclose(got.mean[name], d.mean(0), rtol=2e-6)
        np.testing.assert_allclose(got.stderr[name], d.std(0, ddof=1) / np.sqrt(NUM), rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 3, 11])
def test_variance_does_not_cancel(chunk_size):
    """Mean of squares minus square of mean would be off by 1e4 here, and could be negative."""
    draws = 3e5 + np.random.default_rng(1).normal(size=(NUM, 2000))
    draws = draws.astype("f4")
    got = reduce(reductions.variance(), draws, chunk_size)
    error = abs(got / draws.astype("f8").var(0, ddof=1) - 1)
    # float32 knows a mean of 3e5 to 1/64 of the deviation, so single columns are off by percents.
    assert np.median(error) < 0.01
    assert error.max() < 0.15


@pytest.mark.parametrize("chunk_size", slow_but([1, 4, 11], 4))
def test_derivatives_are_those_of_the_formulas(chunk_size):
    """To second order, forward over reverse and reverse over reverse."""
    table = jnp.asarray(np.random.default_rng(4).normal(3, 2, (NUM, 2)))
    weights = jnp.arange(1.0, 7.0).reshape(3, 2)

    def of_the_formulas(draws):
        return jnp.stack(
            [jnp.var(draws, 0, ddof=1), draws.mean(0), draws.std(0, ddof=1) / NUM**0.5]
        )

    def of_the_reductions(draws):
        estimate = reduce(reductions.mean_and_stderr(), draws, chunk_size)
        variance = reduce(reductions.variance(), draws, chunk_size)
        return jnp.stack([variance, estimate.mean, estimate.stderr])

    def derivatives(of):
        def total(draws):
            return jnp.sum(weights * jnp.sin(of(draws)))

        gradient = jax.grad(total)
        return jax.jit(lambda t: (gradient(t), jax.jacfwd(gradient)(t), jax.jacrev(gradient)(t)))

    for got, want in zip(
        derivatives(of_the_reductions)(table), derivatives(of_the_formulas)(table), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-5)


def test_the_second_pass_arrives_at_the_same_state(draws):
    variance = reductions.variance()

    def final(reduction):
        state = reduction.init(jax.eval_shape(lambda: {k: d[0] for k, d in draws.items()}), NUM)
        state = reduction.update(state, {k: jnp.asarray(d[:4]) for k, d in draws.items()})
        return reduction.update(state, {k: jnp.asarray(d[4:]) for k, d in draws.items()})

    state = final(variance)
    second = variance.second_pass(state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        second.finalize(final(second)),
        state,
    )


@pytest.mark.slow
def test_gradient_inside_shard_map():
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    xs = jnp.linspace(-1.0, 1.0, 3 * jax.device_count()).reshape(-1, 3)
    smooth = sj.vargrad(lambda params, x: jnp.sin(params * x), 0.3, num_samples=5, chunk_size=2)

    def gradients(key, xs):
        return jax.vmap(jax.grad(lambda x: jnp.sum(smooth(key, 2.0, x))))(xs)

    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch"))
    key = jax.random.key(0)
    np.testing.assert_allclose(jax.jit(mapped)(key, xs), gradients(key, xs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4, 11])
def test_complex_draws_equal_numpy(chunk_size):
    rng = np.random.default_rng(5)
    draws = (rng.normal(3, 2, (NUM, 4)) + 1j * rng.normal(-1, 1, (NUM, 4))).astype("c8")
    for build, reference in REFERENCES.values():
        want = (
            reference(draws) if build is not reductions.mean_square else (abs(draws) ** 2).mean(0)
        )
        got = reduce(build(), draws, chunk_size)
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5)
    estimate = reduce(reductions.mean_and_stderr(), draws, chunk_size)
    assert (estimate.mean.dtype, estimate.stderr.dtype) == (jnp.complex64, jnp.float32)
    np.testing.assert_allclose(estimate.mean, draws.mean(0), rtol=1e-5)
    np.testing.assert_allclose(estimate.stderr, draws.std(0, ddof=1) / NUM**0.5, rtol=1e-5)
    error = np.linalg.norm(estimate.stderr)
    signal = np.linalg.norm(estimate.mean)
    want = error / np.sqrt(signal**2 - error**2)
    np.testing.assert_allclose(relative_error(estimate), want, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_accumulates_in_float32(dtype):
    """A running sum of ones in bfloat16 would stop at 256, in float16 at 2048."""
    explain = sj.smoothgrad(lambda x: jnp.ones_like(x), 1.0, argnum=0, num_samples=5000)
    got = explain(jax.random.key(0), jnp.zeros(2, dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, [1, 1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["mean", "mean_square", "variance"])
def test_half_precision_sums_of_a_chunk(name, dtype):
    draws = np.random.default_rng(2).normal(3, 1, (NUM, 40)).astype("f4")
    rounded = np.asarray(jnp.asarray(draws).astype(dtype).astype(jnp.float32), np.float64)
    build, of_numpy = REFERENCES[name]
    got = reduce(build(), jnp.asarray(draws).astype(dtype), NUM)
    if name != "mean":
        np.testing.assert_allclose(got, of_numpy(rounded), rtol=1e-5)
        return
    want = jnp.asarray(of_numpy(rounded), jnp.float32).astype(dtype)
    # Rounded once, to the nearest; a sum in half precision is off by more than that.
    assert np.mean(np.asarray(got == want)) > 0.9


@pytest.mark.parametrize("chunk_size", [1, 4, 11])
def test_double_precision_is_kept(chunk_size):
    draws = np.random.default_rng(3).normal(3, 1, (NUM, 5))
    with jax.enable_x64(True):
        estimate = reduce(reductions.mean_and_stderr(), draws, chunk_size)
        np.testing.assert_allclose(estimate.mean, draws.mean(0), rtol=1e-14)
        stderr = draws.std(0, ddof=1) / np.sqrt(NUM)
        np.testing.assert_allclose(estimate.stderr, stderr, rtol=1e-13)
        for build, of_numpy in REFERENCES.values():
            got = reduce(build(), draws, chunk_size)
            np.testing.assert_allclose(got, of_numpy(draws), rtol=1e-13)


def test_squares_of_half_precision_maps_are_float32():
    """That of 1e-4 is below the range of float16, that of 300 above it."""
    numbers = np.random.default_rng(4).normal(size=(NUM, 2)) * [1e-4, 500]
    draws = jnp.asarray(numbers, jnp.float16)
    numbers = np.asarray(draws, float)
    square = reduce(reductions.mean_square(), draws, 1)
    variance = reduce(reductions.variance(), draws, 1)
    assert (square.dtype, variance.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(square, (numbers**2).mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, numbers.var(0, ddof=1), rtol=1e-5)


def test_stderr_of_half_precision_maps_is_float32():
    explain = sj.smoothgrad(
        lambda x: x, 1.0, argnum=0, num_samples=5, reduction=reductions.mean_and_stderr()
    )
    got = explain(jax.random.key(0), jnp.zeros(2, jnp.bfloat16))
    assert (got.mean.dtype, got.stderr.dtype) == (jnp.bfloat16, jnp.float32)


def test_integers_and_bools_average_to_float32():
    got = reduce(reductions.mean(), {"i": np.arange(NUM), "b": np.arange(NUM) < 3}, 4)
    assert (got["i"].dtype, got["b"].dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose([got["i"], got["b"]], [5.0, 3 / 11])


def test_stack_keeps_dtypes():
    draws = {"i": np.arange(NUM, dtype=np.int16), "b": np.arange(NUM) < 3}
    got = reduce(reductions.stack(), draws, 4)
    assert (got["i"].dtype, got["b"].dtype) == (jnp.int16, jnp.bool_)


@pytest.mark.parametrize("name", ["mean", "mean_square", "variance"])
def test_nan_and_inf_pass_on(name):
    draws = np.zeros((NUM, 3), "f4")
    draws[4, 0], draws[5, 1] = np.nan, np.inf
    got = reduce(REFERENCES[name][0](), draws, 3)
    assert list(np.isfinite(got)) == [False, False, True]


@pytest.mark.parametrize("chunk_size", [1, 4, 11])
def test_the_mean_of_an_estimate_is_the_mean(chunk_size):
    """Also where it is infinite."""
    draws = np.random.default_rng(6).normal(size=(NUM, 5)).astype("f4")
    draws[5, 1], draws[2, 2], draws[3, 3], draws[4, 4] = np.inf, -np.inf, np.nan, np.inf
    want = reduce(reductions.mean(), draws, chunk_size)
    assert list(want[1:4]) == [np.inf, -np.inf, pytest.approx(np.nan, nan_ok=True)]
    estimate = reduce(reductions.mean_and_stderr(), draws, chunk_size)
    # Two programs, whose sums XLA may order in two ways: on JAX 0.9 they differ in a last bit.
    np.testing.assert_allclose(estimate.mean, want, rtol=3e-7)
    assert list(np.isnan(estimate.stderr)) == [False, True, True, True, True]


def test_float0_passes_through():
    """The gradient with respect to integers."""
    x = {"embedding": jnp.ones(3), "tokens": jnp.arange(3)}
    explain = sj.saliency(lambda params, x: jnp.sum(x["embedding"] ** 2) * params)
    for reduction in (reductions.mean(), reductions.variance()):
        got = sj.smoothgrad(explain, 0.1, reduction=reduction)(jax.random.key(0), 1.0, x)
        assert got["tokens"].dtype == jax.dtypes.float0
        assert got["tokens"].shape == (3,)
    reduction = reductions.mean_and_stderr()
    got = sj.smoothgrad(explain, 0.1, reduction=reduction)(jax.random.key(0), 1.0, x)
    assert got.mean["tokens"].dtype == got.stderr["tokens"].dtype == jax.dtypes.float0
    assert got.stderr["embedding"].dtype == x["embedding"].dtype
    assert jnp.isfinite(relative_error(got))
    pooled = sj.pool(explain, jnp.sum)(1.0, x)
    assert pooled["embedding"].shape == ()
    assert pooled["tokens"].dtype == jax.dtypes.float0


def test_relative_error_by_hand():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    noise = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([[2.0]])}
    # P = 25, V = 8
    np.testing.assert_allclose(relative_error(Estimate(tree, noise, 9)), np.sqrt(8 / 17), rtol=1e-6)


@pytest.mark.parametrize("noise", [5.0, 6.0])
def test_relative_error_is_infinite_where_noise_covers_the_map(noise):
    assert relative_error(Estimate(jnp.array([3.0, 4.0]), jnp.array([noise, 0.0]), 9)) == jnp.inf


def test_relative_error_of_nan_is_nan():
    assert jnp.isnan(relative_error(Estimate(jnp.array([jnp.nan, 4.0]), jnp.ones(2), 9)))


def test_relative_error_estimates_the_distance_to_the_limit():
    """On draws of known mean, over many keys, its median is the true error."""
    truth = jnp.linspace(-1.0, 1.0, 200)
    explain = sj.smoothgrad(
        lambda x: x, 4.0, argnum=0, num_samples=16, reduction=reductions.mean_and_stderr()
    )
    estimates = jax.vmap(explain, in_axes=(0, None))(jax.random.split(jax.random.key(0), 64), truth)
    errors = jax.vmap(relative_error)(estimates)
    true_error = 4.0 / np.sqrt(16) * np.sqrt(200) / jnp.linalg.norm(truth)
    np.testing.assert_allclose(np.median(errors), true_error, rtol=0.05)


BAD = [
    (
        lambda: sj.vargrad(jnp.sin, num_samples=1),
        "num_samples for this reduction must be at least 2",
    ),
    (
        lambda: sj.smoothgrad(jnp.sin, num_samples=1, reduction=reductions.mean_and_stderr()),
        "num_samples for this reduction must be at least 2; got 1",
    ),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_too_few_samples_are_refused_when_building(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("reduction", [reductions.mean, "mean", None])
def test_a_reduction_that_is_none_is_refused_when_building(reduction):
    with pytest.raises(TypeError, match=r"must be one like mean\(\), with the paren"):
        sj.smoothgrad(jnp.sin, reduction=reduction)


def test_an_estimate_is_refused_by_the_next_transform():
    inner = sj.smoothgrad(lambda p, x: x, 0.1, reduction=reductions.mean_and_stderr())
    for outer in (sj.noisegrad(inner), sj.pool(inner, jnp.sum)):
        with pytest.raises(TypeError, match=r"(?s)returned an Estimate.*outermost"):
            outer(jax.random.key(0), jnp.ones(3), jnp.ones(3))


@pytest.mark.parametrize("estimate", [jnp.ones(3), {"mean": jnp.ones(3)}, None, 0.5])
def test_the_relative_error_of_what_is_no_estimate_names_the_cause(estimate):
    with pytest.raises(TypeError, match=r"an Estimate is needed.*got a .*mean_and_stderr\(\)"):
        reductions.relative_error(estimate)
