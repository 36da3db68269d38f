"""Measures of complexity against closed forms, a slow double sum, SciPy, NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from smoothjax.metrics.complexity import entropy, expected_frequency, gini, histogram_entropy

MAP = np.random.default_rng(0).standard_normal((6, 5, 3)).astype(np.float32)
METRICS = {"gini": jax.jit(gini), "entropy": jax.jit(entropy)}
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def double_sum(attribution):
    """Half the mean absolute difference between two entries, over the mean entry."""
    a = np.abs(np.ravel(attribution)).astype(float)
    return np.mean([[abs(p - q) for p in a] for q in a]) / (2 * a.mean())


def test_gini_is_the_mean_difference():
    for attribution in (
        MAP,
        MAP**3,
        np.round(MAP),
        np.linspace(-1, 2, MAP.size).reshape(MAP.shape),
    ):
        got = METRICS["gini"](attribution.astype(np.float32))
        np.testing.assert_allclose(got, double_sum(attribution), rtol=1e-5)


def test_entropy_is_that_of_scipy():
    for attribution in (
        MAP,
        MAP**3,
        np.round(MAP),
        np.linspace(-1, 2, MAP.size).reshape(MAP.shape),
    ):
        got = METRICS["entropy"](attribution.astype(np.float32))
        np.testing.assert_allclose(got, stats.entropy(np.abs(attribution).ravel()), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_equal_weight_on_some_of_n_entries(n):
    """Of weight on k of n entries the Gini index is 1 - k / n, the entropy log k."""
    for k in {1, (n + 1) // 2, n}:
        some = np.where(np.arange(n) < k, -2.5, 0.0).astype(np.float32)
        np.testing.assert_allclose(METRICS["gini"](some), 1 - k / n, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(METRICS["entropy"](some), np.log(k), rtol=1e-6, atol=1e-6)


def test_by_hand():
    np.testing.assert_allclose(METRICS["gini"](jnp.array([3.0, -1.0])), 0.25, rtol=1e-6)
    expected = 0.75 * np.log(4 / 3) + 0.25 * np.log(4)
    np.testing.assert_allclose(METRICS["entropy"](jnp.array([3.0, -1.0])), expected, rtol=1e-6)


def test_a_constant_map_says_nothing_and_a_zero_map_neither():
    for value in (0.0, 0.1, -7.0, 3e38, 1e-36):
        constant = jnp.full((41, 17), value)
        assert METRICS["gini"](constant) == 0
        np.testing.assert_allclose(METRICS["entropy"](constant), np.log(41 * 17), rtol=1e-6)


@each_metric
def test_neither_scale_nor_sign_nor_order_counts(metric):
    plain = metric(jnp.asarray(MAP))
    signs = jnp.where(jnp.asarray(MAP) > 0.3, -1.0, 1.0)
    for other in (1e-34 * MAP, 1e37 * MAP, -3 * MAP, signs * MAP, MAP[::-1, ::-1]):
        np.testing.assert_allclose(metric(jnp.asarray(other)), plain, rtol=1e-6)


@pytest.mark.parametrize("power", [0.001, 1, 6])
def test_float32_is_exact_enough_for_a_photo(power):
    """From almost equal entries to very unequal ones, 224 x 224 x 3 of them."""
    a = (np.abs(np.random.default_rng(1).standard_normal((224, 224, 3))) ** power).astype(
        np.float32
    )
    wide = np.sort(a.ravel().astype(float))
    n = wide.size
    expected = np.sum((2 * np.arange(1, n + 1) - n - 1) * wide) / (n * wide.sum())
    np.testing.assert_allclose(METRICS["gini"](a), expected, rtol=2e-6)
    np.testing.assert_allclose(METRICS["entropy"](a), stats.entropy(wide), rtol=1e-6)


@each_metric
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_give_nan(metric, value):
    broken = MAP.copy()
    broken[2, 3, 1] = value
    assert np.isnan(metric(broken))


@each_metric
def test_precisions_and_integers(metric):
    half = jnp.asarray(MAP, jnp.bfloat16)
    assert metric(half).dtype == jnp.float32
    np.testing.assert_array_equal(metric(half), metric(half.astype(jnp.float32)))
    whole = jnp.array([[3, -1], [0, 9]])
    np.testing.assert_array_equal(metric(whole), metric(whole.astype(jnp.float32)))
    with jax.enable_x64(True):
        double = metric(jnp.asarray(MAP, jnp.float64))
        assert double.dtype == jnp.float64
        expected = {"gini": double_sum, "entropy": lambda a: stats.entropy(np.abs(a).ravel())}
        name = "gini" if metric is METRICS["gini"] else "entropy"
        np.testing.assert_allclose(double, expected[name](MAP.astype(float)), rtol=1e-12)


@each_metric
def test_vmap_is_a_loop(metric):
    batch = jnp.stack([jnp.asarray(MAP), jnp.zeros_like(MAP), jnp.asarray(MAP) ** 3])
    expected = [metric(attribution) for attribution in batch]
    np.testing.assert_allclose(jax.vmap(metric)(batch), expected, rtol=1e-6)


@each_metric
def test_what_is_no_array_is_an_error(metric):
    with pytest.raises(TypeError, match="bool"):
        metric(MAP > 0)
    with pytest.raises(TypeError, match=r"jnp.asarray\(values\) of a list"):
        metric([1.0, 2.0])


# Of Gaussian maps of three channels, pooled.


def chi_gini():
    """Of the norm of three Gaussians, whose distribution is Maxwell's."""
    missed, _ = integrate.quad(lambda t: stats.maxwell.sf(t) ** 2, 0, np.inf)
    return 1 - missed / stats.maxwell.mean()


@pytest.mark.parametrize(
    ("pooled", "want", "deviation"),
    [
        (lambda maps: maps.sum(-1), np.sqrt(2) - 1, 0.4),
        (lambda maps: (maps**2).sum(-1), 4 / (3 * np.pi), 0.5),
        (lambda maps: np.linalg.norm(maps, axis=-1), chi_gini(), 0.25),
    ],
    ids=["sum", "square", "norm"],
)
def test_gini_of_pooled_noise(pooled, want, deviation):
    """The same noise, pooled in three ways: how is all that a Gini index tells of it."""
    maps = np.random.default_rng(2).standard_normal((150, 150, 3))
    got = METRICS["gini"](pooled(maps).astype(np.float32))
    assert abs(got - want) < 4 * deviation / 150


# Histograms


@pytest.mark.parametrize("num_bins", [1, 7, 100])
def test_histogram_entropy_is_that_of_a_histogram(num_bins):
    run = jax.jit(lambda a: histogram_entropy(a, num_bins))
    for attribution in (MAP, MAP**3, np.round(MAP), np.abs(MAP)):
        counts, _ = np.histogram(attribution, num_bins)
        np.testing.assert_allclose(run(attribution), stats.entropy(counts), atol=2e-3)


def test_histogram_entropy_of_equal_shares_and_of_one_value():
    run = jax.jit(histogram_entropy)
    np.testing.assert_allclose(run(jnp.arange(500.0)), np.log(100), rtol=1e-5)
    np.testing.assert_allclose(run(jnp.array([1.0, -1.0, 1.0, 1.0])), stats.entropy([1, 3]))
    for value in (0.0, -7.0, 3e38):
        assert run(jnp.full(5, value)) == 0


def test_neither_scale_nor_offset_counts_in_a_histogram():
    run = jax.jit(histogram_entropy)
    whole = jnp.round(100 * MAP)
    for other in (8 * whole, whole + 256, -whole, 2.0**-100 * whole, 2.0**118 * whole):
        np.testing.assert_allclose(run(other), run(whole), atol=0.02)
    assert abs(run(whole**3) - run(whole)) > 0.5


@pytest.mark.parametrize("metric", [histogram_entropy, expected_frequency])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_give_nan_elsewhere_too(metric, value):
    broken = MAP.copy()
    broken[2, 3, 1] = value
    assert np.isnan(jax.jit(metric)(broken))


def test_bad_bins():
    with pytest.raises(ValueError, match=r"(?s)num_bins must be at least 1; got 0.*in histogram"):
        histogram_entropy(MAP, 0)
    with pytest.raises(TypeError, match="one array of real numbers"):
        histogram_entropy(MAP > 0)


# Frequencies


def frequencies(shape):
    """The radius of each bin of a whole spectrum, in cycles per longest axis."""
    along = [np.fft.fftfreq(n) * max(shape) for n in shape]
    return np.sqrt(sum(np.square(np.meshgrid(*along, indexing="ij"))))


@pytest.mark.parametrize(
    ("shape", "axes"), [((9, 12, 2), (0, 1)), ((2, 7, 7), (1, 2)), ((15,), (0,))]
)
def test_expected_frequency_is_that_of_a_whole_spectrum(shape, axes):
    attribution = np.random.default_rng(3).standard_normal(shape).astype(np.float32) + 0.3
    power = np.abs(np.fft.fftn(attribution.astype(float), axes=axes)) ** 2
    others = tuple(axis for axis in range(len(shape)) if axis not in axes)
    power = power.sum(others)
    want = np.sum(frequencies(power.shape) * power) / power.sum()
    run = jax.jit(lambda a: expected_frequency(a, axes))
    for scale in (1, -1e-30, 1e37):
        np.testing.assert_allclose(run(np.float32(scale) * attribution), want, rtol=1e-5)


@pytest.mark.parametrize("cycles", [(0, 1), (3, 4), (8, 0), (8, 8)])
def test_expected_frequency_of_one_wave(cycles):
    rows, columns = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    wave = np.cos(2 * np.pi * (cycles[0] * rows + cycles[1] * columns) / 16)
    run = jax.jit(expected_frequency)
    np.testing.assert_allclose(run(wave.astype(np.float32)), np.hypot(*cycles), rtol=1e-5)
    # The mean has half of the power then, or a third for a wave that is 1 and -1 alone.
    share = np.mean(wave**2) / (1 + np.mean(wave**2))
    half = run((1 + wave).astype(np.float32))
    np.testing.assert_allclose(half, share * np.hypot(*cycles), rtol=1e-5)


def test_expected_frequency_of_white_noise_is_the_mean_radius():
    noise = np.random.default_rng(4).standard_normal((64, 64, 3)).astype(np.float32)
    radii = frequencies((64, 64))
    # Power is exponential in each of half of the bins, of three channels.
    stderr = radii.std() / np.sqrt(64 * 64 * 3 / 2)
    assert abs(expected_frequency(noise) - radii.mean()) < 4 * stderr
    np.testing.assert_allclose(radii.mean() / 64, 0.38, atol=0.005)


def test_a_constant_map_has_no_frequency():
    assert expected_frequency(jnp.zeros((5, 6))) == 0
    np.testing.assert_allclose(expected_frequency(jnp.full((5, 6), 7.0)), 0, atol=1e-5)
