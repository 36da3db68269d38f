"""Baselines against SciPy's filters and NumPy's means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from smoothjax.attribution import occlusion
from smoothjax.attribution.baselines import blur, channel_mean

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "sigma", "axes"),
    [
        ((13, 9, 2), 1.5, (0, 1)),
        ((13, 9, 2), 20, (0, 1)),  # the mirror images of mirror images
        ((2, 13, 9), 2.0, (-1, -2)),
        ((16, 3), np.float32(0.7), (0,)),
        ((1, 8), 1.0, (0, 1)),
        ((5, 4), 0.1, (0, 1)),  # reaches no neighbour
        ((5, 6, 4), 1.0, (2, 0, 1)),
    ],
)
def test_blur_is_scipys_gaussian_filter(shape, sigma, axes):
    x = draw(*shape)
    expected = ndimage.gaussian_filter(x.astype(float), float(sigma), axes=axes)
    got = jax.jit(blur(sigma, axes))(jnp.asarray(x))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_blur_keeps_the_mean_and_constants():
    x = draw(6, 7)
    np.testing.assert_allclose(np.mean(blur(2.0)(jnp.asarray(x))), x.mean(), atol=1e-6)
    np.testing.assert_allclose(blur(2.0)(jnp.full((6, 7), 3.0)), np.full((6, 7), 3.0), rtol=1e-6)


@pytest.mark.parametrize("axes", [(0, 1), (-1,), (2, 0)])
def test_channel_mean_is_numpys(axes):
    x = draw(6, 7, 3)
    expected = x.astype(float).mean(axes, keepdims=True)
    np.testing.assert_allclose(channel_mean(axes)(jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize("baseline", [blur(1.0), channel_mean()], ids=["blur", "channel_mean"])
def test_dtypes_and_pytrees(baseline):
    x = draw(6, 7)
    half = jnp.asarray(x, jnp.bfloat16)
    hidden = baseline({"half": half, "whole": x, "count": jnp.arange(3)})
    assert hidden["half"].dtype == hidden["whole"].dtype == jnp.float32
    assert hidden["count"] == 0
    np.testing.assert_array_equal(hidden["half"], baseline(half.astype(jnp.float32)))
    np.testing.assert_array_equal(hidden["whole"], baseline(jnp.asarray(x)))
    with jax.enable_x64(True):
        double = baseline(jnp.asarray(x, float))
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, hidden["whole"], atol=1e-6)


@pytest.mark.parametrize("baseline", [blur(1.0), channel_mean()], ids=["blur", "channel_mean"])
def test_a_masking_method_hides_behind_them(baseline):
    """Occlusion of single positions of a linear score is what each one differs by, weighted."""
    w, x = draw(6, 7, 2), draw(6, 7, 2)
    explain = jax.jit(occlusion(lambda w, x: jnp.sum(w * x), 1, 1, baseline))
    expected = np.sum(w * (x - baseline(jnp.asarray(x))), axis=-1)
    np.testing.assert_allclose(explain(w, x)[..., 0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: blur(0), ValueError, "sigma must be above 0 and below inf; got 0"),
        (lambda: blur(-1.0), ValueError, "above 0"),
        (lambda: blur(np.inf), ValueError, "below inf; got inf"),
        (lambda: blur(np.nan), ValueError, "nan"),
        (lambda: blur(True), TypeError, "must be a number.*True"),
        (lambda: blur("10"), TypeError, "must be a number"),
        (lambda: jax.jit(blur)(1.0), TypeError, "must be a number; got .*Trace"),
        (lambda: blur(1.0, 0), TypeError, "axes must be a tuple"),
        (lambda: blur(1.0, (0, 0)), ValueError, "different axes"),
        (
            lambda: blur(1.0)(jnp.ones(3)),
            ValueError,
            r"(?s)axes \(0, 1\).*shape \(3,\).*Type.*in blur",
        ),
        (lambda: blur(1.0, (0, -2))(jnp.ones((3, 3))), ValueError, "different axes of"),
        (lambda: channel_mean(()), ValueError, "one or more"),
        (lambda: channel_mean()(jnp.ones(3)), ValueError, "(?s)axes.*in channel_mean"),
    ],
)
def test_errors_say_what_to_type(make, error, match):
    with pytest.raises(error, match=match):
        make()
