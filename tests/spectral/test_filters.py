"""Low-pass filters and FORGrad against transforms that are written out."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax import reductions
from smoothjax.spectral import (
    SignalAndNoise,
    butterworth,
    disc,
    forgrad,
    lowpass,
    power_spectrum,
)

SHAPES = [(224, 224), (299, 299), (15, 40), (40, 15), (31, 33), (2, 1), (24,), (15,), (6, 9, 8)]
SMALL = [shape for shape in SHAPES if math.prod(shape) < 2000]

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def identity(params, x):
    del params
    return x


def all_axes(array):
    return tuple(range(np.ndim(array)))


@functools.partial(jax.jit, static_argnames=("axes", "window"))
def _filtered(attribution, cutoff, axes, window):
    return lowpass(lambda: attribution, cutoff, axes=axes, window=window)()


def filtered(attribution, cutoff, axes=None, window=disc):
    """The map, filtered by a compiled program that serves every cut-off."""
    return _filtered(attribution, cutoff, axes or all_axes(attribution), window)


def random_map(shape, seed=0, dtype=np.float32):
    return jnp.asarray(0.7 + np.random.default_rng(seed).standard_normal(shape), dtype)


# The low-pass


@pytest.mark.parametrize("shape", SMALL)
def test_lowpass_agrees_with_a_direct_transform(shape, direct):
    x = random_map(shape)
    radii = direct.radii(shape)
    for cutoff in (0.0, 1.0, 2.5, 5.0, 10.0):
        close(filtered(x, cutoff), direct.filter(x, radii <= cutoff + 1e-9))


@pytest.mark.parametrize("shape", [(15, 40), (9, 9)])
def test_butterworth_agrees_with_a_direct_transform(shape, direct):
    x = random_map(shape)
    for order, cutoff in ((1, 4.0), (3, 2.0)):
        gain = 1 / np.sqrt(1 + (direct.radii(shape) / cutoff) ** (2 * order))
        window = butterworth(order)
        close(filtered(x, cutoff, window=window), direct.filter(x, gain))
        concrete = lowpass(lambda x: x, cutoff, window=window)
        close(concrete(x), direct.filter(x, gain))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pure_wave_passes_up_to_the_cutoff_and_vanishes_beyond(shape, direct):
    quarter = tuple(n // 4 for n in shape)
    highest = tuple(-(n // 2) for n in shape)
    first = (1, *(0 for _ in shape[1:]))
    for k in (quarter, highest, first):
        x, radius = direct.wave(shape, k)
        close(filtered(x, radius), x, atol=2e-5)
        if radius:
            close(filtered(x, radius * (1 - 1e-4)), 0 * x, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_lowpass_is_idempotent_and_keeps_the_mean_alone_at_zero(shape):
    x = random_map(shape)
    once = filtered(x, max(shape) / 5)
    close(filtered(once, max(shape) / 5), once)
    close(once.mean(), x.mean())
    close(filtered(x, 0.0), jnp.full(shape, x.mean()))
    close(filtered(x, 0.0, window=butterworth(2)), jnp.full(shape, x.mean()))


def test_the_disc_keeps_its_edge_to_a_part_in_a_million(direct):
    x, radius = direct.wave((10, 10), (3, 4))
    assert radius == 5
    close(filtered(x, 5.0), x)
    close(filtered(x, 5.0 * (1 - 5e-7)), x)
    close(filtered(x, 5.0 * (1 - 5e-6)), 0 * x)
    close(lowpass(lambda: x, 5)(), x)
    close(lowpass(lambda: x, 4.9999)(), 0 * x)


def test_lowpass_is_linear_and_signed():
    x, y = random_map((7, 8)), random_map((7, 8), seed=1)
    close(filtered(2 * x - 3 * y, 2.0), 2 * filtered(x, 2.0) - 3 * filtered(y, 2.0))
    assert filtered(x - 0.7, 2.0).min() < 0


@pytest.mark.parametrize("shape", [(15, 40), (6, 9, 8), (7,)])
def test_a_cutoff_that_keeps_everything_returns_the_map(shape):
    x = random_map(shape)
    corner = math.sqrt(len(shape)) * max(shape) / 2
    for cutoff in (corner, np.float32(corner), jnp.float32(corner), math.inf, 10**6):
        keep = lowpass(lambda x: x, cutoff, axes=all_axes(x))
        np.testing.assert_array_equal(keep(x), x)
        np.testing.assert_array_equal(jax.jit(keep)(x), x)
        close(filtered(x, cutoff), x)


@pytest.mark.parametrize(
    "axes",
    slow_but([(0, 1), (1, 0), (-2, -1), (2, 0), (1,), (-1,), (2, 1, 0)], (-2, -1), (2, 0), (1,)),
)
def test_any_layout_of_axes(axes, direct):
    x = random_map((6, 5, 7))
    positive = sorted(axis % 3 for axis in axes)
    others = [axis for axis in range(3) if axis not in positive]
    front = np.transpose(x, others + positive)
    shape = front.shape[len(others) :]
    rows = front.reshape(-1, *shape)
    expected = [direct.filter(row, direct.radii(shape) <= 2.5) for row in rows]
    restored = np.transpose(np.reshape(expected, front.shape), np.argsort(others + positive))
    close(filtered(x, 2.5, axes), restored)

    spectra = np.stack([direct.spectrum(row) for row in rows], axis=-1)
    close(power_spectrum(x, axes).reshape(spectra.shape), spectra)


def test_one_program_serves_all_cutoffs_and_windows_see_the_traced_one():
    x = random_map((9, 8))
    traces = []

    @jax.jit
    def program(cutoff, x):
        traces.append(cutoff)
        return lowpass(lambda: x, cutoff)()

    for cutoff in (0.0, 1.0, 3.3, 100.0):
        close(program(cutoff, x), lowpass(lambda: x, cutoff)())
    assert len(traces) == 1
    close(jax.jit(program)(3, x), lowpass(lambda: x, 3)())
    cutoffs = jnp.array([0.0, 2.0, 9.0])
    mapped = jax.vmap(program, in_axes=(0, None))(cutoffs, x)
    close(mapped, jnp.stack([lowpass(lambda: x, c)() for c in cutoffs]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_maps_are_filtered_in_float32_and_cast_back(dtype):
    narrow = random_map((7, 10, 3), dtype=dtype)
    wide = narrow.astype(jnp.float32)
    for transform in (lowpass, forgrad):
        run = jax.jit(transform(lambda x: x, 3))
        assert run(narrow).dtype == dtype
        np.testing.assert_array_equal(run(narrow), run(wide).astype(dtype))
    assert jax.eval_shape(power_spectrum, narrow).dtype == jnp.float32


def test_float64_stays_and_is_exact_and_float32_stays_beside_it(direct):
    def result_dtype(transform, x, cutoff, **options):
        return jax.eval_shape(lambda x: transform(lambda: x, cutoff, **options)(), x).dtype

    with jax.enable_x64(True):
        x = np.asarray(random_map((15, 40)), np.float64)
        expected = direct.filter(x, direct.radii((15, 40)) <= 6)
        for cutoff in (6, jnp.float64(6)):
            for result in (jax.jit(lowpass(lambda x: x, cutoff))(x), filtered(x, cutoff)):
                assert result.dtype == jnp.float64
                close(result, expected, rtol=0, atol=1e-13)
        single = jnp.asarray(x, jnp.float32)
        soft = butterworth(2)
        for cutoff in (6.0, jnp.float64(6)):
            assert result_dtype(lowpass, single, cutoff) == jnp.float32
            assert result_dtype(lowpass, single, cutoff, window=soft) == jnp.float32
            assert result_dtype(forgrad, x, cutoff, channel_axis=None) == jnp.float64
        assert jax.eval_shape(filtered, single, 6.0).dtype == jnp.float32
        assert jax.eval_shape(power_spectrum, x).dtype == jnp.float64


def test_gradients_pass_through():
    x = random_map((6, 5))
    weights = random_map((6, 5), seed=2)

    def loss(x, cutoff):
        return jnp.sum(weights * lowpass(lambda: x, cutoff)())

    # The filter is symmetric, so its gradient is the filtered weights.
    gradient, _ = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, 2.0)
    close(gradient, filtered(weights, 2.0))

    def soft(cutoff):
        return jnp.sum(weights * lowpass(lambda: x, cutoff, window=butterworth(2))())

    slope = jax.jit(jax.grad(soft))(2.0)
    close(slope, (soft(2.01) - soft(1.99)) / 0.02, rtol=2e-2)
    sharp = jax.grad(lambda x: jnp.sum(forgrad(lambda: x, 1)()))(random_map((6, 5, 3)))
    assert np.isfinite(sharp).all()
    assert np.any(sharp != 0)


def test_nan_and_inf_are_passed_on():
    for bad in (jnp.nan, jnp.inf):
        x = random_map((6, 5)).at[2, 3].set(bad)
        assert not np.isfinite(filtered(x, 2.0)).any()
        assert not np.isfinite(power_spectrum(x)).any()


# FORGrad


def test_forgrad_is_its_formula(direct):
    x = random_map((12, 15, 3)) - 0.7
    for axis in (-1, 2, 0):
        pooled = np.abs(np.mean(x, axis=axis))
        gain = direct.radii(pooled.shape) <= 3
        close(forgrad(lambda: x, 3, channel_axis=axis)(), np.abs(direct.filter(pooled, gain)))
    pooled = np.abs(x[..., 0])
    soft = lowpass(lambda: pooled, 3, window=butterworth(2))()
    close(forgrad(lambda: x[..., 0], 3, channel_axis=None, window=butterworth(2))(), np.abs(soft))


def test_forgrad_is_nowhere_negative_even_where_the_disc_rings():
    spike = jnp.zeros((16, 16, 1)).at[8, 8].set(-1.0)
    ringing = filtered(jnp.abs(spike[..., 0]), 3.0)
    assert ringing.min() < -1e-3
    close(forgrad(lambda: spike, 3)(), np.abs(ringing))


def test_the_default_cutoff_of_forgrad_is_a_radius_of_15(direct):
    inside, _ = direct.wave((64, 64), (9, 12))
    beyond, _ = direct.wave((64, 64), (0, 16))
    x = (10 + inside + beyond)[..., None]
    close(forgrad(lambda: x)(), 10 + inside, atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 3), (5, 6, 7, 2)])
def test_forgrad_filters_every_axis_but_the_channels(shape):
    x = random_map(shape)
    pooled = np.abs(np.mean(x, axis=-1))
    close(forgrad(lambda: x, 2, channel_axis=-1)(), np.abs(filtered(pooled, 2.0)))


# As transforms


@pytest.mark.parametrize("transform", [lowpass, forgrad])
def test_an_explainer_stays_deterministic_or_stochastic(transform, key):
    noisy = sj.smoothgrad(identity, 0.1, num_samples=1)
    assert not sj.is_stochastic(transform(identity, 2))
    assert sj.is_stochastic(transform(noisy, 2))
    assert transform(noisy, 2).__name__ == f"{transform.__name__}(smoothgrad(identity))"
    x = random_map((6, 5, 3))
    once = jax.jit(transform(noisy, 2))(key, None, x)
    close(once, transform(lambda: noisy(key, None, x), 2)())
    with pytest.raises(TypeError, match="PRNG key"):
        transform(noisy, 2)(None, x)


def test_lowpass_commutes_with_smoothing(key, params, score):
    def explain(params, x):
        return jax.vmap(jax.grad(score, argnums=1), in_axes=(None, 0))(params, x)

    x = random_map((8, 3), dtype=float)
    for smooth in (sj.smoothgrad, sj.noisegrad):
        smooth = functools.partial(smooth, sigma=0.3, num_samples=2)
        inside = jax.jit(smooth(lowpass(explain, 2, axes=(0,))))(key, params, x)
        outside = jax.jit(lowpass(smooth(explain), 2, axes=(0,)))(key, params, x)
        close(inside, outside)


def test_vmap_equals_a_loop_and_keywords_pass_through(key):
    def explain(params, x, *, scale):
        return scale * params * x

    xs = random_map((3, 6, 5, 2))
    for transform in (lowpass, forgrad):
        smoothed = jax.jit(transform(sj.smoothgrad(explain, 0.1, num_samples=1), 1))
        one = functools.partial(smoothed, scale=2.0)
        batch = jax.vmap(one, in_axes=(None, None, 0))(key, 3.0, xs)
        close(batch, jnp.stack([one(key, 3.0, x) for x in xs]))


def test_pytrees_are_filtered_leaf_by_leaf():
    tree = {"a": random_map((6, 5)), "b": (random_map((5, 4, 2)),)}
    found = lowpass(lambda: tree, 1)()
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    close(found["a"], filtered(tree["a"], 1.0))
    close(found["b"][0], filtered(tree["b"][0], 1.0, (0, 1)))


@pytest.mark.parametrize("transform", [lowpass, forgrad])
def test_estimates_are_refused(transform, key):
    x = random_map((4, 4, 3))
    estimate = sj.stochastic(lambda key, params, x: reductions.Estimate(x, x, jnp.int32(2)))
    name = transform.__name__
    with pytest.raises(TypeError, match=rf"(?s)returned an Estimate.*in {name}\("):
        transform(estimate, 2)(key, None, x)
    rings = sj.stochastic(lambda key, params, x: SignalAndNoise(x, x, jnp.int32(2)))
    with pytest.raises(TypeError, match=rf"(?s)returned a SignalAndNoise.*in {name}\("):
        transform(rings, 2)(key, None, x)


@pytest.mark.parametrize("window", [disc, butterworth(2)])
@pytest.mark.parametrize("cutoff", [np.nan, -1.0])
def test_a_traced_cutoff_that_is_none_makes_nan(window, cutoff):
    x = random_map((4, 4, 3))
    run = jax.jit(lambda cutoff: lowpass(lambda: x, cutoff, window=window)())
    assert np.all(np.isnan(run(cutoff)))
    assert np.all(np.isfinite(run(1.0)))


@pytest.mark.parametrize("shape", [(7,), (4, 5, 3)])
def test_forgrad_of_maps_without_channels(shape):
    x = random_map(shape)
    found = forgrad(lambda: x, 2, channel_axis=None)()
    close(found, np.abs(filtered(jnp.abs(x), 2.0)))


def test_nothing_of_the_module_changes_its_arguments():
    x = np.asarray(random_map((6, 5, 2)))
    before = x.copy()
    lowpass(lambda: x, 1)()
    forgrad(lambda: x, 1)()
    power_spectrum(x)
    np.testing.assert_array_equal(x, before)
