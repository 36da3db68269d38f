"""The similarities of maps against SciPy, NumPy in float64 and scikit-image."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from skimage.metrics import structural_similarity

from smoothjax.metrics.similarity import cosine, pearson, spearman, ssim


def cosine_of(a, b):
    return np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))


def ssim_of(a, b):
    a, b = [(m - m.min()) / (m.max() - m.min()) for m in (a, b)]
    return structural_similarity(
        a,
        b,
        data_range=1.0,
        gaussian_weights=True,
        use_sample_covariance=False,
        channel_axis=-1 if a.ndim == 3 else None,
    )


CORRELATIONS = {
    spearman: lambda a, b: stats.spearmanr(a.ravel(), b.ravel()).statistic,
    pearson: lambda a, b: stats.pearsonr(a.ravel(), b.ravel()).statistic,
    cosine: cosine_of,
}
ORACLES = CORRELATIONS | {ssim: ssim_of}
SIMILARITIES = [pytest.param(f, id=f.__name__) for f in ORACLES]
LINEAR = [pytest.param(f, id=f.__name__) for f in (pearson, cosine)]
compiled = {f: jax.jit(f) for f in ORACLES}


def pair(shape, mixing=0.6, seed=0, dtype=np.float32):
    """Two maps that are somewhat alike, smooth enough for their pictures to be."""
    a, b = np.random.default_rng(seed).standard_normal((2, *shape))
    a, b = [sum(np.roll(m, i, axis=0) for i in range(4)) for m in (a, b)]
    return a.astype(dtype), (mixing * a + (1 - mixing) * b).astype(dtype)


def check(similarity, a, b, atol=2e-6):
    want = ORACLES[similarity](np.asarray(a, float), np.asarray(b, float))
    np.testing.assert_allclose(compiled[similarity](a, b), want, rtol=0, atol=atol)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("mixing", [0.6, 0.1, -0.8])
@pytest.mark.parametrize("shape", [(12, 13), (11, 20, 3)])
def test_agrees_with_the_oracle(similarity, mixing, shape):
    a, b = pair(shape, mixing)
    check(similarity, a, b)
    check(similarity, b, a)


@pytest.mark.parametrize("similarity", [pytest.param(f, id=f.__name__) for f in CORRELATIONS])
@pytest.mark.parametrize("shape", [(40,), (4, 1, 2, 3)])
def test_correlations_take_any_shape(similarity, shape):
    check(similarity, *pair(shape, 0.3, seed=1))


def test_spearman_shares_tied_ranks():
    a, b = np.random.default_rng(0).integers(0, 4, (2, 12, 13))
    check(spearman, a, b)
    # Mid-ranks 1.5, 1.5, 3 against 1, 2, 3.
    assert spearman(np.array([0, 0, 2]), np.array([1, 2, 3])) == pytest.approx(math.sqrt(3) / 2)


def test_spearman_is_of_the_order_only():
    a, b = pair((40,))
    np.testing.assert_allclose(compiled[spearman](np.exp(3 * a), b), compiled[spearman](a, b))
    np.testing.assert_allclose(compiled[spearman](a, np.exp(a)), 1)
    np.testing.assert_allclose(compiled[spearman](a, -(a**3)), -1)
    assert compiled[pearson](a, np.exp(a)) < 0.9


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equal_maps_are_1_whatever_their_scale(similarity):
    a, b = pair((12, 13))
    f = compiled[similarity]
    assert f(a, a) == pytest.approx(1, abs=1e-6)
    for scale in np.float32([1e-30, 1e30]):  # squares of these leave float32
        np.testing.assert_allclose(f(scale * a, b), f(a, b), rtol=1e-5)
        np.testing.assert_allclose(f(a, scale * b), f(a, b), rtol=1e-5)
        np.testing.assert_allclose(f(scale * a, scale * b), f(a, b), rtol=1e-5)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_opposites_are_not_alike(similarity):
    a, _ = pair((12, 13))
    if similarity is ssim:
        assert compiled[ssim](a, -a) < -0.8
    else:
        np.testing.assert_allclose(compiled[similarity](a, -a), -1, rtol=1e-6)


def test_an_offset_counts_for_the_cosine_alone():
    a, b = pair((12, 13))
    for similarity, f in compiled.items():
        shifted = f(a + np.float32(2), b)
        if similarity is cosine:
            check(cosine, a + np.float32(2), b)
            assert abs(shifted - f(a, b)) > 0.1
        else:
            np.testing.assert_allclose(shifted, f(a, b), rtol=2e-4)


def test_an_outlier_greys_the_picture():
    """The scale of a map is its range, so one great entry flattens all others."""
    a, b = pair((12, 13))
    a[0, 0] = 1e3
    assert ssim_of(a.astype(float), b.astype(float)) < 0.1
    check(ssim, a, b)


@pytest.mark.parametrize("similarity", [pytest.param(f, id=f.__name__) for f in CORRELATIONS])
@pytest.mark.parametrize(("shape", "offset"), [((224, 224, 3), 1e3), ((12, 13), 1e5)])
def test_maps_large_or_far_from_zero_in_float32(similarity, shape, offset):
    """Sums and means that float32 rounds, against those in float64."""
    a, b = [m + np.float32(offset) for m in pair(shape, 0.2)]
    check(similarity, a, b)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_a_constant_map_is_like_no_other(similarity, value):
    a, _ = pair((12, 13))
    constant = np.full((12, 13), value, np.float32)
    if similarity is cosine and value != 0:
        check(cosine, a, constant)
        return
    assert compiled[similarity](a, constant) == 0
    assert compiled[similarity](constant, a) == 0
    assert compiled[similarity](constant, constant) == 0


def test_a_constant_whose_mean_is_rounded_is_constant():
    constant = np.full(15, 0.1, np.float32)
    assert compiled[pearson](constant, constant) == 0


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_nan_anywhere_is_passed_on(similarity):
    a, b = pair((12, 13))
    a[3, 4] = np.nan
    for other in (b, np.zeros_like(b), a):
        assert np.isnan(compiled[similarity](a, other))
        assert np.isnan(compiled[similarity](other, a))


@pytest.mark.parametrize("similarity", LINEAR)
def test_an_infinite_entry_is_nan(similarity):
    a, b = pair((12, 13))
    a[0, 0] = np.inf
    assert np.isnan(compiled[similarity](a, b))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_maps_are_compared_in_float32(similarity, dtype):
    a, b = [jnp.asarray(m, dtype) for m in pair((12, 13))]
    assert compiled[similarity](a, b).dtype == jnp.float32
    check(similarity, a, b)
    check(similarity, a, b.astype(jnp.float32))  # and two dtypes with one another


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_double_precision(similarity):
    with jax.enable_x64(True):
        a, b = pair((12, 13), dtype=np.float64)
        got = jax.jit(similarity)(a, b)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, ORACLES[similarity](a, b), rtol=1e-12)
        narrow = jax.ShapeDtypeStruct(a.shape, jnp.float32)
        assert jax.eval_shape(similarity, narrow, narrow).dtype == jnp.float32


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_vmap_is_a_loop(similarity):
    pairs = [pair((12, 13), 0.4, seed=s) for s in range(3)]
    a, b = map(np.stack, zip(*pairs, strict=True))
    want = [ORACLES[similarity](*np.asarray(p, float)) for p in pairs]
    np.testing.assert_allclose(jax.jit(jax.vmap(similarity))(a, b), want, atol=2e-6)


@pytest.mark.parametrize("similarity", LINEAR)
def test_differentiable(similarity):
    a, b = pair((5,))
    slope = jax.jit(jax.grad(similarity))(a, b)
    step = np.float64(1e-6) * np.eye(5)
    of = ORACLES[similarity]
    want = [(of(a + s, b.astype(float)) - of(a - s, b.astype(float))) / 2e-6 for s in step]
    np.testing.assert_allclose(slope, want, atol=1e-4)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_what_cannot_be_compared(similarity):
    a = np.ones((12, 13), np.float32)
    with pytest.raises(ValueError, match=r"one shape; got \(12, 13\) and \(13, 12\)"):
        similarity(a, a.T)
    with pytest.raises(TypeError, match="real numbers"):
        similarity(a, 1j * a)
    with pytest.raises(TypeError, match="real numbers"):
        similarity(a[:0], a[:0])


@pytest.mark.parametrize("shape", [(30,), (10, 30), (30, 10), (3, 30, 30), (2, 12, 12, 3)])
def test_ssim_needs_a_picture(shape):
    with pytest.raises(ValueError, match=r"(?s)maps must be of shape \(H, W\).*in ssim"):
        ssim(np.ones(shape), np.ones(shape))
