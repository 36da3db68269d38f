"""The filters, spectra and searches of smoothjax.spectral, against transforms written out here."""

import functools
import itertools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import smoothjax as sj
from smoothjax import reductions, spectral
from smoothjax.spectral import (
    best_cutoff,
    butterworth,
    disc,
    forgrad,
    lowpass,
    power_spectrum,
    signal_and_noise,
    wiener,
)

SHAPES = [(224, 224), (299, 299), (15, 40), (40, 15), (31, 33), (2, 1), (24,), (15,), (6, 9, 8)]
SMALL = [shape for shape in SHAPES if math.prod(shape) < 2000]


def close(actual, expected, rtol=1e-5, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=atol
        ),
        actual,
        expected,
    )


def all_axes(array):
    return tuple(range(np.ndim(array)))


def identity(params, x):
    del params
    return x


@functools.partial(jax.jit, static_argnames=("axes", "window"))
def _filtered(attribution, cutoff, axes, window):
    return lowpass(lambda: attribution, cutoff, axes=axes, window=window)()


def filtered(attribution, cutoff, axes=None, window=disc):
    """The map, filtered by a compiled program that serves every cut-off."""
    return _filtered(attribution, cutoff, axes or all_axes(attribution), window)


def random_map(shape, seed=0, dtype=np.float32):
    return jnp.asarray(0.7 + np.random.default_rng(seed).standard_normal(shape), dtype)


def direct_radii(shape):
    """Radii of all bins, from signed frequencies, one bin at a time."""
    radii = np.empty(shape)
    for index in np.ndindex(shape):
        signed = [k if 2 * k <= n else k - n for k, n in zip(index, shape, strict=True)]
        cycles = [f * max(shape) / n for f, n in zip(signed, shape, strict=True)]
        radii[index] = math.sqrt(sum(c * c for c in cycles))
    return radii


def direct_dft(x, sign=-1):
    """The transform along all axes, as products with its matrices."""
    x = np.asarray(x, complex)
    for axis, n in enumerate(x.shape):
        matrix = np.exp(sign * 2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def direct_filter(x, gain):
    return direct_dft(direct_dft(x) * gain, sign=1).real / x.size


def direct_spectrum(x):
    power = np.abs(direct_dft(x) / x.size) ** 2
    rings = np.floor(direct_radii(x.shape) + 0.5).astype(int)
    return np.array([power[rings == r].sum() for r in range(rings.max() + 1)])


def wave(shape, k, phase=0.4):
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    turns = sum(f * g / n for f, g, n in zip(k, grids, shape, strict=True))
    cycles = [f * max(shape) / n for f, n in zip(k, shape, strict=True)]
    return jnp.asarray(np.cos(2 * np.pi * turns + phase), np.float32), math.hypot(*cycles)


# The low-pass


@pytest.mark.parametrize("shape", SMALL)
def test_lowpass_agrees_with_a_direct_transform(shape):
    x = random_map(shape)
    radii = direct_radii(shape)
    for cutoff in (0.0, 1.0, 2.5, 5.0, 10.0):
        close(filtered(x, cutoff), direct_filter(x, radii <= cutoff + 1e-9))


@pytest.mark.parametrize("shape", [(15, 40), (9, 9)])
def test_butterworth_agrees_with_a_direct_transform(shape):
    x = random_map(shape)
    for order, cutoff in ((1, 4.0), (3, 2.0)):
        gain = 1 / np.sqrt(1 + (direct_radii(shape) / cutoff) ** (2 * order))
        window = butterworth(order)
        close(filtered(x, cutoff, window=window), direct_filter(x, gain))
        concrete = lowpass(lambda x: x, cutoff, window=window)
        close(concrete(x), direct_filter(x, gain))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pure_wave_passes_up_to_the_cutoff_and_vanishes_beyond(shape):
    quarter = tuple(n // 4 for n in shape)
    highest = tuple(-(n // 2) for n in shape)
    first = (1, *(0 for _ in shape[1:]))
    for k in (quarter, highest, first):
        x, radius = wave(shape, k)
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


def test_the_disc_keeps_its_edge_to_a_part_in_a_million():
    x, radius = wave((10, 10), (3, 4))
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


@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (-2, -1), (2, 0), (1,), (-1,), (2, 1, 0)])
def test_any_layout_of_axes(axes):
    x = random_map((6, 5, 7))
    positive = sorted(axis % 3 for axis in axes)
    others = [axis for axis in range(3) if axis not in positive]
    front = np.transpose(x, others + positive)
    shape = front.shape[len(others) :]
    rows = front.reshape(-1, *shape)
    expected = [direct_filter(row, direct_radii(shape) <= 2.5) for row in rows]
    restored = np.transpose(np.reshape(expected, front.shape), np.argsort(others + positive))
    close(filtered(x, 2.5, axes), restored)

    spectra = np.stack([direct_spectrum(row) for row in rows], axis=-1)
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


def test_float64_stays_and_is_exact_and_float32_stays_beside_it():
    def result_dtype(transform, x, cutoff, **options):
        return jax.eval_shape(lambda x: transform(lambda: x, cutoff, **options)(), x).dtype

    with jax.enable_x64(True):
        x = np.asarray(random_map((15, 40)), np.float64)
        expected = direct_filter(x, direct_radii((15, 40)) <= 6)
        for cutoff in (6, jnp.float64(6)):
            for result in (jax.jit(lowpass(lambda x: x, cutoff))(x), filtered(x, cutoff)):
                assert result.dtype == jnp.float64
                close(result, expected, rtol=0, atol=1e-13)
        single = jnp.asarray(x, jnp.float32)
        soft = butterworth(2)
        for cutoff in (6.0, jnp.float64(6)):
            assert result_dtype(lowpass, single, cutoff) == jnp.float32
            assert result_dtype(lowpass, single, cutoff, window=soft) == jnp.float32
            assert result_dtype(forgrad, x, cutoff) == jnp.float64
        assert jax.eval_shape(filtered, single, 6.0).dtype == jnp.float32
        assert jax.eval_shape(power_spectrum, x).dtype == jnp.float64
        search = best_cutoff(identity, lambda p, x, a: jnp.sum(a), [1, 2], transform=lowpass)
        found = jax.eval_shape(search, None, jnp.ones((3, 4, 4), jnp.float32))
        assert (found.scores.dtype, found.mean.dtype) == (jnp.float32, jnp.float32)


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


def test_forgrad_is_its_formula():
    x = random_map((12, 15, 3)) - 0.7
    for axis in (-1, 2, 0):
        pooled = np.abs(np.mean(x, axis=axis))
        gain = direct_radii(pooled.shape) <= 3
        close(forgrad(lambda: x, 3, channel_axis=axis)(), np.abs(direct_filter(pooled, gain)))
    pooled = np.abs(x[..., 0])
    soft = lowpass(lambda: pooled, 3, window=butterworth(2))()
    close(forgrad(lambda: x[..., 0], 3, channel_axis=None, window=butterworth(2))(), np.abs(soft))


def test_forgrad_is_nowhere_negative_even_where_the_disc_rings():
    spike = jnp.zeros((16, 16, 1)).at[8, 8].set(-1.0)
    ringing = filtered(jnp.abs(spike[..., 0]), 3.0)
    assert ringing.min() < -1e-3
    close(forgrad(lambda: spike, 3)(), np.abs(ringing))


def test_the_default_cutoff_of_forgrad_is_a_radius_of_15():
    inside, _ = wave((64, 64), (9, 12))
    beyond, _ = wave((64, 64), (0, 16))
    x = (10 + inside + beyond)[..., None]
    close(forgrad(lambda: x)(), 10 + inside, atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 3), (5, 6, 7, 2)])
def test_forgrad_filters_every_axis_but_the_channels(shape):
    x = random_map(shape)
    pooled = np.abs(np.mean(x, axis=-1))
    close(forgrad(lambda: x, 2)(), np.abs(filtered(pooled, 2.0)))


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


@pytest.mark.parametrize(
    "reduction",
    [wiener(), wiener(channel_axis=2), signal_and_noise()],
    ids=["wiener", "joint", "rings"],
)
def test_gradients_of_reductions_are_those_of_the_stack(reduction, key):
    """Which keeps all draws, where the loop goes over them a second time."""
    w, x = random_map((6, 5, 2)), random_map((6, 5, 2), 1)
    explain = sj.saliency(lambda params, x: jnp.sum(jnp.tanh(params * x) * x))
    smooth = functools.partial(sj.smoothgrad, explain, 0.3, num_samples=9, chunk_size=2)

    def of_loop(w, x):
        return smooth(reduction=reduction)(key, w, x)

    def of_stack(w, x):
        draws = smooth(reduction=reductions.stack())(key, w, x)
        state = reduction.init(jax.ShapeDtypeStruct(x.shape, x.dtype), len(draws))
        return reduction.finalize(reduction.update(state, draws))

    def loss(reduced, w, x):
        leaves = [leaf for leaf in jax.tree.leaves(reduced(w, x)) if leaf.shape]
        return sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in leaves)

    got, want = (
        jax.jit(jax.grad(functools.partial(loss, reduced), (0, 1)))(w, x)
        for reduced in (of_loop, of_stack)
    )
    jax.tree.map(functools.partial(close, rtol=1e-4), got, want)


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
    tree = {"a": random_map((6, 5)), "b": (random_map((4, 4, 2)),)}
    expected = jax.tree.map(lambda leaf: filtered(leaf, 1.0, (0, 1)), tree)
    close(lowpass(lambda: tree, 1)(), expected)
    close(power_spectrum(tree)["b"][0], power_spectrum(tree["b"][0]))


def test_estimates_are_refused(key):
    x = random_map((4, 4, 3))
    estimate = sj.stochastic(lambda key, params, x: reductions.Estimate(x, x, jnp.int32(2)))
    for transform in (lowpass, forgrad):
        with pytest.raises(TypeError, match=rf"{transform.__name__} was handed an Estimate"):
            transform(estimate, 2)(key, None, x)
    with pytest.raises(TypeError, match="power_spectrum was handed an Estimate"):
        power_spectrum(estimate(key, None, x))
    with pytest.raises(TypeError, match="Estimate"):
        sj.noisegrad(estimate, argnum=1, reduction=wiener())(key, None, x)
    inner = sj.smoothgrad(identity, 1.0, num_samples=2, reduction=signal_and_noise())
    for outer in (sj.noisegrad(inner, argnum=1), lowpass(inner, 2), forgrad(inner, 2)):
        with pytest.raises(TypeError, match="was handed a SignalAndNoise"):
            outer(key, None, x)


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
    with pytest.raises(ValueError, match="Type channel_axis=None for maps without channels"):
        forgrad(lambda: x, 2, channel_axis=-1 if shape == (7,) else 3)()
    assert forgrad(lambda: x, 2, channel_axis=None)().shape == shape


# Errors


@pytest.mark.parametrize(
    ("cutoff", "error"),
    [
        (-1, ValueError),
        (math.nan, ValueError),
        (np.float32(-0.5), ValueError),
        (jnp.float32(jnp.nan), ValueError),
        (np.array([1.0, 2.0]), ValueError),
        ("15", TypeError),
        (None, TypeError),
        (True, TypeError),
        (jnp.bool_(True), TypeError),
        (1j, TypeError),
        ([15], TypeError),
        (10**400, ValueError),
    ],
)
def test_a_wrong_cutoff_is_an_error_at_build_time(cutoff, error):
    for transform in (lowpass, forgrad):
        with pytest.raises(error, match=rf"{transform.__name__}: cutoff must be"):
            transform(identity, cutoff)
    with pytest.raises(error, match="best_cutoff: each of cutoffs must be"):
        best_cutoff(identity, identity, [1, cutoff])


@pytest.mark.parametrize("cutoff", [True, 1j, np.ones(2, np.float32)])
def test_a_wrong_traced_cutoff_is_an_error(cutoff):
    with pytest.raises((TypeError, ValueError), match="cutoff must be"):
        filtered(random_map((4, 4)), cutoff)


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (0, TypeError, "must be a tuple"),
        ((0, 1.0), TypeError, "each of axes must be a Python int"),
        ((), ValueError, "one or more different axes"),
        ((0, 1, 2, 3), ValueError, "one to three axes"),
        ((1, 1), ValueError, "different"),
    ],
)
def test_wrong_axes_are_an_error_at_build_time(axes, error, message):
    for build in (functools.partial(lowpass, identity, 2), signal_and_noise, wiener):
        with pytest.raises(error, match=message):
            build(axes=axes)
    with pytest.raises(error, match=message):
        power_spectrum(random_map((4, 4)), axes)


@pytest.mark.parametrize("axes", [(0, 2), (0, -2), (-3,)])
def test_axes_that_a_map_lacks_are_an_error(axes, key):
    x = random_map((4, 4))
    with pytest.raises(ValueError, match=r"lowpass: axes .* of shape \(4, 4\)"):
        lowpass(identity, 2, axes=axes)(None, x)
    with pytest.raises(ValueError, match="power_spectrum: axes"):
        power_spectrum(x, axes)
    for reduction, name in ((wiener(axes), "wiener"), (signal_and_noise(axes), "signal_and_noise")):
        with pytest.raises(ValueError, match=f"{name}: axes"):
            sj.smoothgrad(identity, 0.1, reduction=reduction)(key, None, x)


def test_other_errors_say_what_is_needed(key):
    x = random_map((4, 4))
    for wrong in (jnp.ones((4, 4), int), jnp.ones((4, 4), complex)):
        with pytest.raises(TypeError, match="real floating-point"):
            lowpass(identity, 2)(None, wrong)
    with pytest.raises(ValueError, match="no elements"):
        lowpass(identity, 2)(None, jnp.zeros((0, 4)))
    with pytest.raises(TypeError, match="takes a function"):
        lowpass(x, 2)
    with pytest.raises(TypeError, match="window takes a function"):
        lowpass(identity, 2, window="hard")
    with pytest.raises(ValueError, match="a gain for each radius"):
        lowpass(identity, 2, window=lambda radius, cutoff: 1.0)(None, x)
    with pytest.raises(ValueError, match="order must be at least 1"):
        butterworth(0)
    with pytest.raises(TypeError, match="order must be a Python int"):
        butterworth(1.5)
    with pytest.raises(ValueError, match="channel_axis"):
        forgrad(identity, 2, channel_axis=2)(None, x)
    with pytest.raises(TypeError, match="channel_axis must be a Python int"):
        forgrad(identity, 2, channel_axis="c")
    with pytest.raises(ValueError, match="at least 2"):
        sj.smoothgrad(identity, 0.1, num_samples=1, reduction=wiener())
    for channel_axis in (0, 1):
        with pytest.raises(ValueError, match=f"channel_axis {channel_axis} is among axes"):
            wiener(channel_axis=channel_axis)
    for channel_axis in (-1, 2, -3):
        with pytest.raises(ValueError, match=rf"has no channel axis {channel_axis} beside axes"):
            sj.smoothgrad(identity, 0.1, reduction=wiener(channel_axis=channel_axis))(key, None, x)
    with pytest.raises(TypeError, match="wiener: channel_axis must be a Python int"):
        wiener(channel_axis=1.0)


# Power spectra


@pytest.mark.parametrize("shape", SHAPES)
def test_parseval(shape):
    x = random_map(shape)
    spectrum = power_spectrum(x, all_axes(x))
    close(spectrum.sum(), np.mean(np.square(x)))
    close(spectrum[0], np.square(x.mean()))


@pytest.mark.parametrize("shape", SMALL)
def test_power_spectrum_agrees_with_a_direct_transform(shape):
    x = random_map(shape)
    close(power_spectrum(x, all_axes(x)), direct_spectrum(x))


def test_a_wave_has_its_power_in_the_ring_of_its_radius():
    for shape, k, ring in [((20, 20), (3, 4), 5), ((15, 40), (3, 0), 8), ((10, 10), (5, 5), 7)]:
        x, _ = wave(shape, k, phase=0.0)
        expected = np.zeros(power_spectrum(x).shape)
        expected[ring] = np.mean(np.square(x))
        close(power_spectrum(x), expected)


def test_a_filtered_map_has_no_power_beyond_the_cutoff():
    x = random_map((15, 40))
    before, after = power_spectrum(x), power_spectrum(filtered(x, 6.5 - 1e-3))
    close(after[:7], before[:7])
    close(after[7:], 0 * before[7:])


# Signal and noise


# Fixed objects, so that the tests share compiled programs.
STACK, WIENER, SIGNAL_AND_NOISE = reductions.stack(), wiener(), signal_and_noise()
JOINT_WIENER = wiener(channel_axis=-1)


@functools.partial(jax.jit, static_argnames=("reduction", "num_samples", "chunk_size", "explain"))
def draws_of(reduction, key, x, sigma=0.5, num_samples=12, chunk_size=12, explain=identity):
    options = {"num_samples": num_samples, "chunk_size": chunk_size, "reduction": reduction}
    return sj.smoothgrad(explain, sigma, **options)(key, None, x)


def test_signal_and_noise_agree_with_spectra_of_the_draws(key):
    x = random_map((7, 10, 2))
    rings = draws_of(SIGNAL_AND_NOISE, key, x)
    draws = np.asarray(draws_of(STACK, key, x), float)
    mean = draws.mean(axis=0)
    for channel in range(2):
        close(rings.power[:, channel], direct_spectrum(mean[..., channel]))
        deviations = [direct_spectrum(d[..., channel] - mean[..., channel]) for d in draws]
        close(rings.noise[:, channel], np.sum(deviations, axis=0) / (12 * 11))
    assert rings.num_samples == 12


def test_noise_sums_to_the_squared_standard_error(key):
    x = random_map((7, 10, 2))
    draws = draws_of(STACK, key, x)
    rings = draws_of(SIGNAL_AND_NOISE, key, x)
    close(rings.noise.sum(axis=0), np.square(stats.sem(draws)).mean(axis=(0, 1)))
    close(rings.power, power_spectrum(draws.mean(axis=0)))


def test_signal_and_noise_are_unbiased(key):
    """Against white noise of known power: sigma^2 / n, shared among the bins of a ring."""
    shape, sigma, n, runs = (16, 16), 0.5, 8, 200
    signal, _ = wave(shape, (2, 1))
    keys = jax.random.split(key, runs)
    rings = jax.vmap(lambda k: draws_of(SIGNAL_AND_NOISE, k, signal, sigma, n))(keys)
    bins = np.bincount(np.floor(direct_radii(shape) + 0.5).astype(int).ravel())
    truths = (
        (rings.noise, sigma**2 / n * bins / 256),
        (rings.power - rings.noise, direct_spectrum(signal)),
    )
    for estimate, truth in truths:
        estimate = np.asarray(estimate)
        error = np.std(estimate, axis=0, ddof=1) / math.sqrt(runs)
        z = (np.mean(estimate, axis=0) - truth) / error
        assert np.all(np.abs(z) < 4)


def test_noise_is_found_at_its_frequencies_not_spread_over_all(key):
    """Pixelwise standard errors cannot tell this: the noise here is correlated."""
    rings = draws_of(SIGNAL_AND_NOISE, key, random_map((16, 16)), explain=lowpass(identity, 3.2))
    assert rings.noise[1:4].min() > 1e-4
    assert rings.noise[4:].max() < 1e-10


# The Wiener reduction


def direct_rings(shape):
    """Which bins a ring is estimated from: those of radius within three of it; ring 0 alone."""
    rings = np.floor(direct_radii(shape) + 0.5).astype(int)
    near = {r: (abs(rings - r) <= 3) & (rings > 0) for r in range(1, rings.max() + 1)}
    return rings, {0: rings == 0, **near}


def test_wiener_agrees_with_its_formula(key):
    x = random_map((7, 10, 2))
    draws = np.asarray(draws_of(STACK, key, x, 20.0), float)
    result = draws_of(WIENER, key, x, 20.0)
    rings, near = direct_rings((7, 10))
    for channel in range(2):
        mean = draws[..., channel].mean(axis=0)
        power = abs(direct_dft(mean)) ** 2
        noise = sum(abs(direct_dft(d - mean)) ** 2 for d in draws[..., channel]) / (12 * 11)
        share = np.array([max(1 - noise[b].sum() / power[b].sum(), 0) for b in near.values()])
        assert share.min() == 0 < share[1:].max() < 1
        share[0] = 1
        close(result[..., channel], direct_filter(mean, share[rings]))


def test_joint_wiener_agrees_with_its_formula(key):
    """Channels in the middle, of signals and noises that are alike in different ways."""
    mixing = np.random.default_rng(5).standard_normal((3, 3)).astype("f4")
    noise_to_draw = sj.stochastic(
        lambda key, params, x: (
            x + jnp.einsum("ij,yjx->yix", mixing, jax.random.normal(key, x.shape, x.dtype))
        )
    )
    x = random_map((7, 3, 10)) * jnp.array([3.0, -2.0, 0.5], "f4")[None, :, None]
    reduction = wiener((0, 2), channel_axis=1)
    draws = np.asarray(draws_of(STACK, key, x, 0.0, explain=noise_to_draw), float)
    result = draws_of(reduction, key, x, 0.0, explain=noise_to_draw)
    rings, near = direct_rings((7, 10))
    spectra = np.stack([[direct_dft(d[:, c]) for c in range(3)] for d in draws])
    mean = spectra.mean(axis=0)
    gaps = (spectra - mean) / math.sqrt(12 * 11)
    want, clipped = mean.copy(), 0
    for ring, bins in near.items():
        power = np.einsum("ib,jb->ij", mean[:, bins], mean[:, bins].conj()).real
        noise = np.einsum("nib,njb->ij", gaps[..., bins], gaps[..., bins].conj()).real
        unit = np.sqrt(np.diag(power))  # what is positive depends on the channels' units
        values, vectors = np.linalg.eigh((power - noise) / np.outer(unit, unit))
        clipped += np.sum(values < 0)
        signal = (vectors * values.clip(0)) @ vectors.T * np.outer(unit, unit)
        gain = np.eye(3) - noise @ np.linalg.inv(signal + noise)
        if ring:
            want[:, rings == ring] = gain @ mean[:, rings == ring]
    assert 0 < clipped < 3 * len(near) / 2
    want = np.stack([direct_dft(w, sign=1).real / 70 for w in want], axis=1)
    close(result, want, rtol=1e-4, atol=1e-4)


def test_joint_wiener_of_one_channel_is_wiener(key):
    x = random_map((7, 10, 1))
    close(draws_of(JOINT_WIENER, key, x, 5.0), draws_of(WIENER, key, x, 5.0), rtol=1e-4, atol=1e-4)


def test_joint_wiener_leaves_other_axes_apart():
    draws = random_map((5, 6, 3, 7, 2)) ** 2

    @functools.partial(jax.jit, static_argnames=("reduction",))
    def reduce(reduction, draws):
        state = reduction.init(jax.ShapeDtypeStruct(draws.shape[1:], draws.dtype), len(draws))
        return reduction.finalize(reduction.update(state, draws))

    reduction = wiener((0, 2), channel_axis=1)
    apart = [reduce(reduction, draws[..., i]) for i in range(2)]
    close(reduce(reduction, draws), jnp.stack(apart, axis=-1))


def test_joint_wiener_does_not_depend_on_the_units_of_channels(key):
    x, units = random_map((7, 10, 3)), jnp.array([1.0, -0.5, 20.0], "f4")[None, None]
    plain = draws_of(JOINT_WIENER, key, x, 3.0)
    scaled = draws_of(JOINT_WIENER, key, x, 3.0, explain=lambda params, x: x * units)
    close(scaled / units, plain, rtol=1e-4, atol=1e-4)


def test_joint_wiener_takes_equal_and_empty_channels(key):
    def explain(params, x):
        return jnp.stack([x, x, 0 * x, -2 * x], axis=-1)

    x = random_map((7, 10))
    joint = draws_of(JOINT_WIENER, key, x, 5.0, explain=explain)
    # To the regularisation, a part in a million, times what the noise exceeds the signal by.
    close(joint, explain(None, draws_of(WIENER, key, x, 5.0)), atol=1e-3)


def test_joint_wiener_takes_draws_that_are_noise_alone(key):
    """Far above what is left of it in the mean, and equal in all channels."""

    def explain(params, x):
        signs = jnp.where(x[..., :1] > 0, 1.0, -1.0).astype(x.dtype)
        return (
            1e-4 + 1e3 * signs * random_map((8, 8, 1)) * jnp.array([1, 2, -3], x.dtype)[None, None]
        )

    x = jnp.zeros((8, 8, 3), "f4")
    for i in range(5):
        assert np.isfinite(
            draws_of(JOINT_WIENER, jax.random.fold_in(key, i), x, num_samples=2, explain=explain)
        ).all()


def test_joint_wiener_is_not_spoilt_by_a_nearly_dead_channel(key):
    def explain(params, x):
        return x * jnp.array([1, 1, 1e-8], x.dtype)[None, None]

    def pair(params, x):
        return x[..., :2]

    x = random_map((12, 12, 3))
    alive = draws_of(JOINT_WIENER, key, x, 3.0, explain=explain)[..., :2]
    close(alive, draws_of(JOINT_WIENER, key, x, 3.0, explain=pair), rtol=1e-3, atol=1e-3)


def test_joint_wiener_tells_noise_from_signal_by_their_channels(key):
    """Noise that all channels share beside a signal in one: the difference of two is exact."""
    truth = jnp.stack([random_map((12, 12)), jnp.zeros((12, 12), "f4")], axis=-1)
    truth -= truth.mean(axis=(0, 1), keepdims=True)

    @sj.stochastic
    def explain(key, params, x):
        return x + 3 * jax.random.normal(key, (12, 12, 1), x.dtype)

    def error(reduction):
        result = draws_of(reduction, key, truth, 0.0, explain=explain)
        return jnp.mean(jnp.square(result - result.mean((0, 1), keepdims=True) - truth))

    assert error(JOINT_WIENER) < 0.1 * error(WIENER)


@pytest.mark.parametrize("reduction", [WIENER, JOINT_WIENER, SIGNAL_AND_NOISE])
def test_any_chunk_size_gives_the_same(reduction, key):
    x = random_map((7, 10, 2))
    expected = draws_of(reduction, key, x, 5.0)
    for chunk_size in (1, 5):
        close(draws_of(reduction, key, x, 5.0, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("reduction", [WIENER, JOINT_WIENER])
def test_wiener_is_exact_without_noise_and_keeps_the_mean(reduction, key):
    x = random_map((7, 10, 2))
    for exact in (jnp.full_like(x, 1.3), x, 0 * x):
        close(draws_of(reduction, key, exact, 0.0), exact)
    plain, shrunk = draws_of(STACK, key, x, 20.0).mean(axis=0), draws_of(reduction, key, x, 20.0)
    close(shrunk.mean(axis=(0, 1)), plain.mean(axis=(0, 1)), atol=1e-4)


def test_wiener_only_ever_shrinks(key):
    x = random_map((7, 10, 2))
    plain = power_spectrum(draws_of(STACK, key, x, 5.0).mean(axis=0))
    shrunk = power_spectrum(draws_of(WIENER, key, x, 5.0))
    assert np.all(shrunk <= plain * (1 + 1e-5))
    assert np.any(shrunk < 0.5 * plain)


def test_wiener_reduces_the_error_of_a_smooth_signal_in_noise(key):
    truth, _ = wave((24, 24), (2, 1))
    keys = jax.random.split(key, 30)

    def errors(reduction):
        maps = jax.vmap(lambda k: draws_of(reduction, k, truth, 2.0, 8))(keys)
        return np.mean(np.square(maps - truth[None]), axis=(1, 2))

    gain = errors(reductions.mean()) - errors(wiener())
    # The error of the plain mean is sigma^2 / n = 0.5, nearly all of it in rings without signal.
    assert gain.mean() - 5 * gain.std(ddof=1) / math.sqrt(30) > 0.35


@pytest.mark.parametrize("reduction", [WIENER, JOINT_WIENER])
def test_wiener_is_differentiable_even_without_noise(reduction, key):
    x = random_map((6, 5, 2)).at[:3].set(0.0)
    weights = random_map((6, 5, 2), seed=3)
    gradient = jax.jit(jax.grad(lambda x, s: jnp.vdot(weights, draws_of(reduction, key, x, s, 2))))
    close(gradient(x, 0.0), weights)
    assert np.isfinite(gradient(0 * x, 0.0)).all()
    assert np.isfinite(gradient(x, 0.5)).all()


def test_the_positive_part_has_its_derivative():
    """Against differences, of matrices with eigenvalues of both signs, and equal ones."""
    random = np.random.default_rng(0).standard_normal((2, 4, 4))
    rotation, tangent = np.linalg.qr(random[0])[0], random[1] + random[1].T
    with jax.enable_x64():
        for values in ([3.0, 1.0, -0.5, -2.0], [1.0, 1.0, -1.0, -1.0], [2.0, 2.0, 2.0, 2.0]):
            matrix = jnp.asarray((rotation * np.array(values)) @ rotation.T)
            part = spectral._positive_part
            got, slope = jax.jvp(part, (matrix,), (jnp.asarray(tangent),))
            close(got, (rotation * np.maximum(values, 0)) @ rotation.T)
            close(slope, (part(matrix + 1e-6 * tangent) - part(matrix - 1e-6 * tangent)) / 2e-6)


def test_wiener_composes_and_keeps_structure_and_dtype(key):
    noisy = sj.smoothgrad(identity, 0.1, num_samples=2, chunk_size=1, reduction=WIENER)
    nested = sj.smoothgrad(
        lowpass(noisy, 2), 0.1, num_samples=2, chunk_size=1, reduction=wiener(axes=(1, 0))
    )
    x = {"a": random_map((6, 5)), "b": random_map((4, 4), dtype=jnp.bfloat16)}
    result = jax.jit(nested)(key, None, x)
    assert jax.tree.map(jnp.result_type, result) == jax.tree.map(jnp.result_type, x)
    close(result["a"].mean(), x["a"].mean(), atol=0.1)


# The best cut-off


CUTOFFS = (0, 1, 2.5, math.inf)


def faithfulness(params, x, attribution, label):
    return params * jnp.vdot(attribution, x[..., 0]) / jnp.sum(attribution**2) + label


def explain_squares(params, x, label):
    return params * x**2 + label


@pytest.fixture
def batch():
    return random_map((6, 7, 8, 2)), jnp.arange(6, dtype=jnp.float32)


def test_best_cutoff_scores_every_example_at_every_cutoff(batch):
    search = best_cutoff(explain_squares, faithfulness, CUTOFFS)
    found = jax.jit(search)(2.0, *batch)
    assert not sj.is_stochastic(search)
    assert search.__name__ == "best_cutoff(explain_squares)"

    @jax.jit
    def score(x, label, cutoff):
        attribution = forgrad(explain_squares, cutoff)(2.0, x, label)
        return faithfulness(2.0, x, attribution, label)

    scores = np.array([[score(x, y, c) for c in CUTOFFS] for x, y in zip(*batch, strict=True)])
    close(found.scores, scores, rtol=1e-4)
    close(found.mean, scores.mean(axis=0), rtol=1e-4)
    close(found.stderr, stats.sem(scores, axis=0), rtol=1e-4)
    close(found.cutoffs, np.array(CUTOFFS))
    assert found.best == CUTOFFS[np.argmax(scores.mean(axis=0))]


def test_best_cutoff_tunes_any_transform(batch):
    xs = batch[0]

    def peak(params, x, attribution):
        return jnp.max(attribution) - jnp.min(attribution)

    def mine(explain, cutoff):
        return lowpass(sj.pool(explain, jnp.sum), cutoff, window=butterworth(1))

    found = jax.jit(best_cutoff(identity, peak, CUTOFFS, transform=mine))(None, xs)
    x = xs[3].sum(axis=-1)
    soft = [lowpass(lambda: x, c, window=butterworth(1))() for c in CUTOFFS]
    close(found.scores[3], [np.ptp(s) for s in soft], atol=1e-4)


def test_best_cutoff_passes_keys_on(key, batch):
    xs, labels = batch
    noisy = sj.smoothgrad(explain_squares, 0.2, num_samples=1)

    @sj.stochastic
    def judged(key, params, x, attribution, label):
        return jnp.vdot(attribution, jax.random.normal(key, attribution.shape, np.float32)) + label

    search = best_cutoff(noisy, judged, CUTOFFS)
    assert sj.is_stochastic(search)
    found = jax.jit(search)(key, 2.0, xs, labels)

    @jax.jit
    def score(i, cutoff):
        explain_key, judge_key = jax.random.split(jax.random.fold_in(key, i))
        attribution = forgrad(noisy, cutoff)(explain_key, 2.0, xs[i], labels[i])
        return judged(judge_key, 2.0, xs[i], attribution, labels[i])

    for i in (0, 4):
        close(found.scores[i], [score(i, c) for c in CUTOFFS], rtol=1e-4, atol=1e-4)
    # A stochastic faithfulness alone makes the search stochastic too.
    alone = best_cutoff(explain_squares, judged, CUTOFFS)
    assert sj.is_stochastic(alone)
    assert jax.eval_shape(alone, key, 2.0, xs, labels).scores.shape == (6, 4)


def test_best_cutoff_computes_each_attribution_once(batch):
    seen, traced = [], []

    def explain(params, x):
        traced.append(x)
        jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0, 0])
        return x

    search = jax.jit(best_cutoff(explain, lambda p, x, a: a[0, 0], CUTOFFS))
    search(None, batch[0])
    search(None, batch[0] + 1)
    jax.effects_barrier()
    assert len(seen) == 2 * len(batch[0])
    assert len(traced) == 1


@functools.cache
def revealing_search(cutoffs):
    """A search in which x is the scores of an example, by cut-off."""

    def reveal(explain, cutoff):
        return lambda: jnp.sum(jnp.where(np.asarray(cutoffs, cutoff.dtype) == cutoff, explain(), 0))

    return jax.jit(best_cutoff(identity, lambda p, x, a: a, cutoffs, transform=reveal))


def search_of(scores, cutoffs):
    """What the search makes of given scores."""
    found = revealing_search(tuple(cutoffs))(None, jnp.asarray(scores, jnp.float32))
    return jax.tree.map(np.asarray, found)


def test_parsimonious_uses_paired_standard_errors():
    # Examples differ by far more than cut-offs do, so unpaired errors would call all of them equal.
    base = np.linspace(-10, 10, 21)[:, None]
    jitter = 0.01 * np.random.default_rng(0).standard_normal((21, 4))
    scores = base + np.array([0.0, 0.9, 1.0, 0.95]) + jitter
    found = search_of(scores, [9, 5, 7, 3])
    assert (found.best, found.parsimonious, found.flat) == (7, 7, False)
    assert np.all(found.stderr > 1)
    # Shifted up, the cut-off of 5 is within its error, and filters more than the best.
    scores[:, 1] = scores[:, 2] + np.resize([0.01, -0.012], 21)
    found = search_of(scores, [9, 5, 7, 3])
    assert (found.best, found.parsimonious) == (7, 5)
    scores[:, 1] -= 0.003  # now 1.4 standard errors below
    assert search_of(scores, [9, 5, 7, 3]).parsimonious == 7


def test_flat_is_a_corrected_paired_t_test():
    rng = np.random.default_rng(1)
    base = 5 * rng.standard_normal((24, 1))
    for height, seed in itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), range(3)):
        noise = np.random.default_rng(seed).standard_normal((24, 5))
        scores = base + noise + height * np.array([0, 0, 1, 0, 0])
        scores = np.asarray(scores, np.float32).astype(float)
        top = np.argmax(scores.mean(axis=0))
        others = [i for i in range(5) if i != top]
        chance = [stats.ttest_rel(scores[:, top], scores[:, i]).pvalue for i in others]
        assert abs(min(chance) * 10 - 0.05) > 1e-3, "too close to call in float32"
        assert search_of(scores, range(5)).flat == (min(chance) * 10 > 0.05)


def test_a_constant_curve_is_flat_and_a_constant_gap_is_not():
    base = np.arange(6.0)[:, None]
    same = search_of(base + np.zeros(3), [4, 1, 2])
    assert (bool(same.flat), same.best, same.parsimonious) == (True, 4, 1)
    apart = search_of(base + np.array([0, 1, 0]), [4, 1, 2])
    assert (bool(apart.flat), apart.best, apart.parsimonious) == (False, 1, 1)


def test_nan_scores_are_passed_on():
    found = search_of(np.arange(6.0)[:, None] + np.array([0, np.nan, 1]), [4, 1, 2])
    assert np.isnan(found.best)
    assert np.isnan(found.parsimonious)
    assert np.isnan(found.mean[1])
    assert found.flat  # nothing is known


def test_a_flat_curve_warns_when_it_can(batch):
    def unfiltered(explain, cutoff):
        return lambda: cutoff.astype(np.float32) * explain()[0, 0, 0]

    flat = best_cutoff(identity, lambda p, x, a: x[0, 0, 0], CUTOFFS, transform=unfiltered)
    with pytest.warns(UserWarning, match="flat within its errors: on 6 examples") as caught:
        assert flat(None, batch[0]).flat
    assert caught[0].filename == __file__
    steep = best_cutoff(identity, lambda p, x, a: a, [0, 9], transform=unfiltered)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jax.jit(flat)(None, batch[0]).flat
        assert not steep(None, 3 + abs(batch[0])).flat


def test_errors_of_best_cutoff(batch):
    xs, labels = batch
    for cutoffs in ([3], 3, [[1, 2]], []):
        with pytest.raises(ValueError, match="two or more numbers"):
            best_cutoff(identity, faithfulness, cutoffs)
    with pytest.raises(TypeError, match="faithfulness takes a function"):
        best_cutoff(identity, 3, CUTOFFS)
    with pytest.raises(TypeError, match="transform takes a function"):
        best_cutoff(identity, faithfulness, CUTOFFS, transform=3)
    search = best_cutoff(explain_squares, faithfulness, CUTOFFS)
    for wrong in (labels[:3], 3.0):
        with pytest.raises(ValueError, match="share a leading axis"):
            search(2.0, xs, wrong)
    with pytest.raises(ValueError, match="two or more examples"):
        search(2.0, xs[:1], labels[:1])
    with pytest.raises(TypeError, match="floating-point scalar"):
        best_cutoff(identity, lambda p, x, a: a, CUTOFFS)(None, xs)


def test_the_search_finds_where_the_signal_ends(key):
    """Waves up to 3 cycles in white noise: faithfulness is minus the squared error."""
    signal = sum(wave((24, 24), k)[0] for k in ((1, 0), (0, 2), (2, 2), (3, 0)))[..., None]
    noisy = sj.smoothgrad(identity, 3.0, num_samples=2)

    def closeness(params, x, attribution):
        return -jnp.mean((attribution - signal) ** 2)

    search = jax.jit(best_cutoff(noisy, closeness, [0, 1, 2, 3, 5, 9, 17], transform=lowpass))
    found = search(key, None, jnp.broadcast_to(signal, (12, *signal.shape)))
    assert (found.best, found.parsimonious) == (3, 3)
    assert not found.flat


def test_nothing_of_the_module_changes_its_arguments():
    x = np.asarray(random_map((6, 5, 2)))
    before = x.copy()
    lowpass(lambda: x, 1)()
    forgrad(lambda: x, 1)()
    spectral.power_spectrum(x)
    np.testing.assert_array_equal(x, before)
