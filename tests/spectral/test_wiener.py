"""Power spectra and the Wiener reduction against transforms that are written out."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but
from scipy import stats

import smoothjax as sj
from smoothjax import reductions
from smoothjax._loop import accumulate
from smoothjax.spectral import lowpass, power_spectrum, signal_and_noise, wiener
from smoothjax.spectral.wiener import _positive_part

SHAPES = [(224, 224), (299, 299), (15, 40), (40, 15), (31, 33), (2, 1), (24,), (15,), (6, 9, 8)]
SMALL = [shape for shape in SHAPES if math.prod(shape) < 2000]

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def identity(params, x):
    del params
    return x


def all_axes(array):
    return tuple(range(np.ndim(array)))


def random_map(shape, seed=0, dtype=np.float32):
    return jnp.asarray(0.7 + np.random.default_rng(seed).standard_normal(shape), dtype)


# Power spectra


@pytest.mark.parametrize("shape", slow_but(SHAPES, (15, 40), (31, 33), (24,), (6, 9, 8)))
def test_parseval(shape):
    x = random_map(shape)
    spectrum = power_spectrum(x, all_axes(x))
    close(spectrum.sum(), np.mean(np.square(x)))
    close(spectrum[0], np.square(x.mean()))


@pytest.mark.parametrize("shape", SMALL)
def test_power_spectrum_agrees_with_a_direct_transform(shape, direct):
    x = random_map(shape)
    close(power_spectrum(x, all_axes(x)), direct.spectrum(x))


def test_a_wave_has_its_power_in_the_ring_of_its_radius(direct):
    for shape, k, ring in [((20, 20), (3, 4), 5), ((15, 40), (3, 0), 8), ((10, 10), (5, 5), 7)]:
        x, _ = direct.wave(shape, k, phase=0.0)
        expected = np.zeros(power_spectrum(x).shape)
        expected[ring] = np.mean(np.square(x))
        close(power_spectrum(x), expected)


def test_a_filtered_map_has_no_power_beyond_the_cutoff():
    x = random_map((15, 40))
    before, after = power_spectrum(x), power_spectrum(lowpass(lambda: x, 6.5 - 1e-3)())
    close(after[:7], before[:7])
    close(after[7:], 0 * before[7:])


# Fixed objects, so that the tests share compiled programs.
WIENER, JOINT_WIENER, SIGNAL_AND_NOISE = wiener(), wiener(channel_axis=-1), signal_and_noise()
SHAPE = (7, 10, 3)

each_reduction = pytest.mark.parametrize(
    "reduction", [WIENER, JOINT_WIENER, SIGNAL_AND_NOISE], ids=["wiener", "joint", "rings"]
)
each_wiener = pytest.mark.parametrize("reduction", [WIENER, JOINT_WIENER], ids=["apart", "joint"])


def noisy(x, sigma, num=12, seed=0):
    """Draws of x with white noise."""
    noise = np.random.default_rng([seed, 1]).standard_normal((num, *x.shape))
    return np.asarray(np.asarray(x) + sigma * noise, np.float32)


@functools.partial(jax.jit, static_argnames="reduction")
def reduced(reduction, draws):
    """What a reduction makes of draws, without the loop."""
    state = reduction.init(jax.ShapeDtypeStruct(draws.shape[1:], draws.dtype), len(draws))
    return reduction.finalize(reduction.update(state, draws))


def in_chunks(reduction, draws, chunk_size):
    """The same in the loop of every explainer."""
    return accumulate(reduction, chunk_size)(lambda i: draws[i], len(draws))


# Signal and noise


def test_signal_and_noise_agree_with_spectra_of_the_draws(direct):
    draws = noisy(random_map(SHAPE), 0.5)
    rings = reduced(SIGNAL_AND_NOISE, draws)
    mean = draws.mean(axis=0)
    for channel in range(3):
        close(rings.power[:, channel], direct.spectrum(mean[..., channel]))
        deviations = [direct.spectrum(d[..., channel] - mean[..., channel]) for d in draws]
        close(rings.noise[:, channel], np.sum(deviations, axis=0) / (12 * 11))
    assert rings.num_samples == 12


def test_noise_sums_to_the_squared_standard_error():
    draws = noisy(random_map(SHAPE), 0.5)
    rings = reduced(SIGNAL_AND_NOISE, draws)
    close(rings.noise.sum(axis=0), np.square(stats.sem(draws)).mean(axis=(0, 1)))
    close(rings.power, power_spectrum(draws.mean(axis=0)))


def test_signal_and_noise_are_unbiased(direct):
    """Against white noise of known power: sigma^2 / n, shared among the bins of a ring."""
    shape, sigma, n, runs = (16, 16), 0.5, 8, 200
    signal, _ = direct.wave(shape, (2, 1))
    draws = noisy(signal, sigma, num=n * runs).reshape(runs, n, *shape)
    rings = jax.vmap(functools.partial(reduced, SIGNAL_AND_NOISE))(draws)
    bins = np.bincount(direct.rings(shape).ravel())
    truths = (
        (rings.noise, sigma**2 / n * bins / 256),
        (rings.power - rings.noise, direct.spectrum(signal)),
    )
    for estimate, truth in truths:
        estimate = np.asarray(estimate)
        error = np.std(estimate, axis=0, ddof=1) / math.sqrt(runs)
        z = (np.mean(estimate, axis=0) - truth) / error
        assert np.all(np.abs(z) < 4)


def test_noise_is_found_at_its_frequencies_not_spread_over_all():
    """Pixelwise standard errors cannot tell this: the noise here is correlated."""
    draws = noisy(random_map((16, 16)), 0.5)
    rings = reduced(SIGNAL_AND_NOISE, lowpass(lambda: draws, 3.2, axes=(1, 2))())
    assert rings.noise[1:4].min() > 1e-4
    assert rings.noise[4:].max() < 1e-10


# The Wiener reduction


def neighbours(rings):
    """Which bins a ring is estimated from: those of radius within three of it; ring 0 alone."""
    near = {r: (abs(rings - r) <= 3) & (rings > 0) for r in range(1, rings.max() + 1)}
    return {0: rings == 0, **near}


def test_wiener_agrees_with_its_formula(direct):
    draws = noisy(random_map(SHAPE), 7.0)
    result = reduced(WIENER, draws)
    rings = direct.rings(SHAPE[:2])
    near = neighbours(rings)
    shares = []
    for channel in range(3):
        mean = draws[..., channel].mean(axis=0, dtype=float)
        power = abs(direct.dft(mean)) ** 2
        noise = sum(abs(direct.dft(d - mean)) ** 2 for d in draws[..., channel]) / (12 * 11)
        share = np.array([max(1 - noise[b].sum() / power[b].sum(), 0) for b in near.values()])
        shares.append(share[1:])
        share[0] = 1
        close(result[..., channel], direct.filter(mean, share[rings]))
    assert np.min(shares) == 0 < np.max(shares) < 1


def test_joint_wiener_agrees_with_its_formula(direct):
    """Channels in the middle, of signals and noises that are alike in different ways."""
    mixing, noise = np.random.default_rng(5).standard_normal((3, 3)), noisy(np.zeros((7, 3, 10)), 1)
    x = np.asarray(random_map((7, 3, 10))) * np.array([3.0, -2.0, 0.5])[:, None]
    draws = np.asarray(x + np.einsum("ij,nyjx->nyix", mixing, noise), np.float32)
    result = reduced(wiener((0, 2), channel_axis=1), draws)
    rings = direct.rings((7, 10))
    near = neighbours(rings)
    spectra = np.stack([[direct.dft(d[:, c]) for c in range(3)] for d in draws])
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
    want = np.stack([direct.dft(w, sign=1).real / 70 for w in want], axis=1)
    close(result, want, rtol=1e-4, atol=1e-4)


def test_the_work_of_wiener_is_in_proportion_to_the_length_of_a_signal():
    """A matrix over the rings of a second of sound, 44,100 samples, has 486 million numbers."""
    explain = sj.smoothgrad(identity, 1.0, num_samples=2, reduction=wiener(axes=(0,)))
    signal = jax.ShapeDtypeStruct((10_000,), jnp.float32)
    program = jax.jit(explain).lower(jax.random.key(0), None, signal).compile()
    assert program.cost_analysis()["flops"] < 1000 * 10_000  # with a matrix 10,000 times


def test_joint_wiener_of_one_channel_is_wiener():
    draws = noisy(random_map((7, 10, 1)), 5.0)
    close(reduced(JOINT_WIENER, draws), reduced(WIENER, draws), rtol=1e-4, atol=1e-4)


def test_joint_wiener_leaves_other_axes_apart():
    draws = random_map((5, 6, 3, 7, 2)) ** 2
    reduction = wiener((0, 2), channel_axis=1)
    apart = [reduced(reduction, draws[..., i]) for i in range(2)]
    close(reduced(reduction, draws), jnp.stack(apart, axis=-1))


@pytest.mark.parametrize(
    ("axes", "channel_axis"), [((0, 2), 1), ((-3, -1), -2), ((2, 0), 1), ((0, -1), 1)]
)
def test_any_layout_of_joint_channels(axes, channel_axis):
    draws = noisy(random_map(SHAPE), 5.0)
    found = reduced(wiener(axes, channel_axis=channel_axis), np.moveaxis(draws, -1, 2))
    close(np.moveaxis(found, 1, -1), reduced(JOINT_WIENER, draws))


def test_joint_wiener_does_not_depend_on_the_units_of_channels():
    draws, units = noisy(random_map(SHAPE), 3.0), np.array([1.0, -0.5, 20.0], np.float32)
    plain, scaled = reduced(JOINT_WIENER, draws), reduced(JOINT_WIENER, draws * units)
    close(np.asarray(scaled) / units, plain, rtol=1e-4, atol=1e-4)


def test_joint_wiener_takes_equal_and_empty_channels():
    def channels(x):
        return np.stack([x, x, 0 * x, -2 * x], axis=-1)

    draws = noisy(random_map((7, 10)), 5.0)
    # To the regularisation, a part in a million, times what the noise exceeds the signal by.
    joint = reduced(JOINT_WIENER, channels(draws))
    close(joint, channels(reduced(WIENER, draws)), atol=1e-3)


def test_joint_wiener_takes_draws_that_are_noise_alone():
    """Far above what is left of it in the mean, and equal in all channels."""
    noise = 1e3 * np.asarray(random_map((7, 10, 1))) * np.array([1, 2, -3], np.float32)
    for seed in range(5):
        signs = np.sign(noisy(np.zeros((7, 10, 1)), 1.0, num=2, seed=seed))
        assert np.isfinite(reduced(JOINT_WIENER, 1e-4 + signs * noise)).all()


def test_joint_wiener_is_not_spoilt_by_a_nearly_dead_channel():
    draws = noisy(random_map(SHAPE), 5.0)
    expected = reduced(JOINT_WIENER, draws[..., :2])
    for dead in (1e-6, 1e-8):
        alive = reduced(JOINT_WIENER, draws * np.array([1, 1, dead], np.float32))[..., :2]
        close(alive, expected, rtol=1e-3, atol=1e-3)


def test_joint_wiener_tells_noise_from_signal_by_their_channels():
    """Noise that all channels share beside a signal in one: the difference of two is exact."""
    truth = np.stack([random_map((12, 12)), np.zeros((12, 12))], axis=-1)
    truth -= truth.mean(axis=(0, 1))
    draws = np.asarray(truth + noisy(np.zeros((12, 12, 1)), 3.0), np.float32)

    def error(reduction):
        result = np.asarray(reduced(reduction, draws))
        return np.mean(np.square(result - result.mean((0, 1)) - truth))

    assert error(JOINT_WIENER) < 0.1 * error(WIENER)


@each_reduction
@pytest.mark.slow
def test_any_chunk_size_gives_the_same(reduction):
    draws = noisy(random_map(SHAPE), 5.0)
    for chunk_size in (1, 5):
        found = jax.jit(functools.partial(in_chunks, reduction, chunk_size=chunk_size))(draws)
        jax.tree.map(close, found, reduced(reduction, draws))


@each_wiener
def test_wiener_is_exact_without_noise_and_keeps_the_mean(reduction):
    x = random_map(SHAPE)
    for exact in (jnp.full_like(x, 1.3), x, 0 * x):
        close(reduced(reduction, noisy(exact, 0.0)), exact)
    draws = noisy(x, 20.0)
    shrunk = np.asarray(reduced(reduction, draws))
    close(shrunk.mean(axis=(0, 1)), draws.mean(axis=(0, 1, 2)), atol=1e-4)


def test_wiener_only_ever_shrinks():
    draws = noisy(random_map(SHAPE), 5.0)
    plain = power_spectrum(draws.mean(axis=0))
    shrunk = power_spectrum(reduced(WIENER, draws))
    assert np.all(shrunk <= plain * (1 + 1e-5))
    assert np.any(shrunk < 0.5 * plain)


def test_wiener_reduces_the_error_of_a_smooth_signal_in_noise(direct):
    truth, _ = direct.wave((24, 24), (2, 1))
    draws = noisy(truth, 2.0, num=8 * 30).reshape(30, 8, 24, 24)

    def errors(maps):
        return np.mean(np.square(np.asarray(maps) - np.asarray(truth)), axis=(1, 2))

    shrunk = jax.vmap(functools.partial(reduced, WIENER))(draws)
    gain = errors(draws.mean(axis=1)) - errors(shrunk)
    # The error of the plain mean is sigma^2 / n = 0.5, nearly all of it in rings without signal.
    assert gain.mean() - 5 * gain.std(ddof=1) / math.sqrt(30) > 0.35


@each_wiener
def test_wiener_is_differentiable_even_without_noise(reduction, key):
    x = random_map((6, 5, 2)).at[:3].set(0.0)
    weights = random_map((6, 5, 2), seed=3)

    @jax.jit
    @jax.grad
    def gradient(x, sigma):
        smoothed = sj.smoothgrad(identity, sigma, num_samples=2, reduction=reduction)
        return jnp.vdot(weights, smoothed(key, None, x))

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
            got, slope = jax.jvp(_positive_part, (matrix,), (jnp.asarray(tangent),))
            close(got, (rotation * np.maximum(values, 0)) @ rotation.T)
            ahead, behind = (_positive_part(matrix + step * tangent) for step in (1e-6, -1e-6))
            close(slope, (ahead - behind) / 2e-6)


def test_wiener_composes_and_keeps_structure_and_dtype(key):
    inner = sj.smoothgrad(identity, 0.1, num_samples=2, chunk_size=1, reduction=WIENER)
    nested = sj.smoothgrad(
        lowpass(inner, 2), 0.1, num_samples=2, chunk_size=1, reduction=wiener(axes=(1, 0))
    )
    x = {"a": random_map((6, 5)), "b": random_map((4, 4), dtype=jnp.bfloat16)}
    result = jax.jit(nested)(key, None, x)
    assert jax.tree.map(jnp.result_type, result) == jax.tree.map(jnp.result_type, x)
    close(result["a"].mean(), x["a"].mean(), atol=0.1)


@pytest.mark.parametrize(
    "reduction",
    slow_but({"wiener": WIENER, "joint": JOINT_WIENER, "rings": SIGNAL_AND_NOISE}, "joint"),
)
@pytest.mark.slow
def test_derivatives_of_the_loop_are_those_of_all_draws_at_once(reduction):
    """The first and the second; the loop goes over the draws a second time."""
    draws = noisy(random_map((6, 5, 2)), 0.5, num=9)
    direction = noisy(draws, 1.0, num=1)[0]

    def loss(reduced, draws):
        leaves = [leaf for leaf in jax.tree.leaves(reduced(draws)) if leaf.shape]
        return sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in leaves)

    def derivatives(reduced):
        gradient = jax.grad(functools.partial(loss, reduced))
        return jax.jit(lambda draws: jax.jvp(gradient, (draws,), (direction,)))(draws)

    in_twos = functools.partial(in_chunks, reduction, chunk_size=2)
    at_once = functools.partial(reduced, reduction)
    for got, want in zip(derivatives(in_twos), derivatives(at_once), strict=True):
        assert np.abs(want).max() > 0.01
        close(got, want, rtol=1e-3, atol=1e-5)


def test_estimates_are_refused(key):
    x = random_map((4, 4))
    estimate = sj.stochastic(lambda key, params, x: reductions.Estimate(x, x, jnp.int32(2)))
    with pytest.raises(TypeError, match="returned an Estimate"):
        sj.noisegrad(estimate, argnum=1, reduction=WIENER)(key, None, x)
    with pytest.raises(TypeError, match=r"(?s)an Estimate.*in power_spectrum$"):
        power_spectrum(estimate(key, None, x))
    inner = sj.smoothgrad(identity, 1.0, num_samples=2, reduction=SIGNAL_AND_NOISE)
    with pytest.raises(TypeError, match="returned a SignalAndNoise"):
        sj.noisegrad(inner, argnum=1)(key, None, x)
