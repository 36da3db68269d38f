"""Stopping on the error of the map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax.reductions import mean, mean_and_stderr, relative_error

DIMENSIONS = 40
X = jnp.linspace(0.5, 1.5, DIMENSIONS)


def draws_needed(sigma, tolerance):
    """The map is X plus noise of variance sigma^2 / n in each dimension."""
    return DIMENSIONS * sigma**2 / (tolerance**2 * float(X @ X))


def smooth(sigma, tolerance, num_samples=5000, **options):
    options = {"chunk_size": 1, "reduction": mean_and_stderr(), **options}
    return sj.smoothgrad(
        lambda x: x, sigma, argnum=0, num_samples=num_samples, tolerance=tolerance, **options
    )


@pytest.mark.parametrize(("sigma", "tolerance"), [(2.0, 0.2), (4.0, 0.2), (1.0, 0.05)])
def test_stops_where_theory_says(sigma, tolerance):
    needed = draws_needed(sigma, tolerance)
    keys = jax.random.split(jax.random.key(0), 8)
    run = jax.jit(smooth(sigma, tolerance))
    taken = np.array([run(key, X).num_samples for key in keys])
    assert np.all((taken > needed / 1.5) & (taken < needed * 1.5))


@pytest.mark.parametrize("chunk_size", slow_but([1, 7, 16, 100], 7))
def test_stops_at_the_first_chunk_below_the_tolerance(chunk_size, key):
    estimate = smooth(3.0, 0.3, chunk_size=chunk_size)(key, X)
    n = int(estimate.num_samples)
    assert n % chunk_size == 0
    assert relative_error(estimate) < 0.3
    before = n - chunk_size
    if before >= 16:
        fixed = smooth(3.0, None, num_samples=before, chunk_size=chunk_size)(key, X)
        assert relative_error(fixed) >= 0.3
    same = smooth(3.0, None, num_samples=n, chunk_size=chunk_size)(key, X)
    np.testing.assert_allclose(estimate.mean, same.mean, rtol=1e-5)
    np.testing.assert_allclose(estimate.stderr, same.stderr, rtol=1e-4)


def test_draws_at_least_sixteen(key):
    assert smooth(1e-6, 0.5)(key, X).num_samples == 16
    assert smooth(0.0, 0.5)(key, X).num_samples == 16


@pytest.mark.parametrize("num_samples", [20, 23])
@pytest.mark.slow
def test_never_more_than_num_samples(num_samples, key):
    """Also with a remainder, which is drawn only if still needed."""
    estimate = smooth(3.0, 1e-6, num_samples=num_samples, chunk_size=10)(key, X)
    assert estimate.num_samples == num_samples
    fixed = smooth(3.0, None, num_samples=num_samples, chunk_size=10)(key, X)
    np.testing.assert_allclose(estimate.mean, fixed.mean, rtol=1e-5)


def test_the_remainder_is_left_out_when_not_needed(key):
    assert smooth(1e-6, 0.5, num_samples=23, chunk_size=20)(key, X).num_samples == 20


def test_nan_never_converges(key):
    assert smooth(1.0, 0.5, num_samples=40)(key, X.at[0].set(jnp.nan)).num_samples == 40


def test_with_mean_it_returns_the_mean(key):
    estimate = smooth(3.0, 0.3)(key, X)
    np.testing.assert_array_equal(smooth(3.0, 0.3, reduction=mean())(key, X), estimate.mean)


def test_tolerance_may_be_traced(key):
    assert smooth(3.0, jnp.float32(0.2))(key, X).num_samples > 16
    taken = jax.jit(lambda tolerance: smooth(3.0, tolerance)(key, X).num_samples)
    assert taken(0.5) < taken(0.2) == smooth(3.0, 0.2)(key, X).num_samples


def test_a_batch_stops_together_with_its_worst(key):
    xs = jnp.stack([X, X / 2, 3 * X])  # the same noise, so X / 2 needs the most draws
    batch = jax.vmap(smooth(3.0, 0.5), in_axes=(None, 0))(key, xs)
    worst = smooth(3.0, 0.5)(key, X / 2)
    np.testing.assert_array_equal(batch.num_samples, np.full(3, worst.num_samples))
    np.testing.assert_allclose(batch.mean[1], worst.mean, rtol=1e-5)
    nested = jax.vmap(jax.vmap(smooth(3.0, 0.5), in_axes=(None, 0)), in_axes=(None, 0))(
        key, xs.reshape(3, 1, -1)
    )
    np.testing.assert_array_equal(nested.num_samples, np.full((3, 1), worst.num_samples))


def test_a_batch_leaves_weights_and_counter_unbatched(key):
    """Seen in the program: no array of the loop is a batch of counters, keys or weights."""
    params = jnp.ones((17, DIMENSIONS))
    explain = sj.noisegrad(
        sj.saliency(lambda params, x: jnp.sum(jnp.tanh(params @ x))), tolerance=0.1, num_samples=64
    )
    batch = jax.vmap(explain, in_axes=(None, None, 0))
    text = str(jax.make_jaxpr(batch)(key, params, jnp.stack([X] * 5)))
    width = "f64" if jax.config.jax_enable_x64 else "f32"
    assert f"{width}[17,40]" in text
    assert "while" in text
    for batched in (f"{width}[5,17,40]", "key<fry>[5]", "i32[5]", "u32[5]"):
        assert batched not in text


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_traced_at_most_three_times(chunk_size, key):
    count = 0

    def counted(x):
        nonlocal count
        count += 1
        return x

    explain = sj.smoothgrad(
        counted, 1.0, argnum=0, num_samples=101, tolerance=0.1, chunk_size=chunk_size
    )
    jax.jit(explain).lower(key, X)
    assert count <= 3


BAD = [
    ({"tolerance": 0.0}, ValueError, "tolerance must be above 0; got 0.0"),
    ({"tolerance": -1}, ValueError, "tolerance must be above 0"),
    ({"tolerance": float("nan")}, ValueError, "tolerance must be above 0.*nan"),
    ({"tolerance": "small"}, TypeError, "tolerance must be a number; got 'small'"),
    ({"tolerance": True}, TypeError, "tolerance must be a number; got True"),
    (
        {"tolerance": 0.1, "reduction": sj.reductions.variance()},
        ValueError,
        r"goes with the reductions mean\(\) and mean_and_stderr\(\) only",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
@pytest.mark.parametrize("transform", [sj.smoothgrad, sj.noisegrad])
def test_errors(transform, options, error, message):
    with pytest.raises(error, match=message):
        transform(jnp.sin, **options)
