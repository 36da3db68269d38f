"""Spectra and deviations of images, against NumPy's transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothjax.feature_visualization import PHOTO_COLORS, fourier, maco, pixels


def images(parameterization, shape, num=200):
    def one(key):
        return parameterization.image(parameterization.init(key, shape), shape)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num)))


@pytest.mark.parametrize(("shape", "axes"), [((16, 16), (0, 1)), ((9, 14), (0, 1)), ((33,), (0,))])
@pytest.mark.parametrize("make", [fourier, maco])
def test_the_deviation_is_what_it_says(shape, axes, make):
    found = images(make(std=2.0, colors=None, axes=axes), shape, num=400)
    np.testing.assert_allclose(np.sqrt(np.mean(found**2)), 2.0, rtol=0.1)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_the_spectrum_falls_by_the_power_of_the_frequency(decay):
    found = images(fourier(decay, std=1.0, colors=None), (32, 32))
    power = np.mean(np.abs(np.fft.fft2(found)) ** 2, axis=0)
    amplitude = np.sqrt([power[4, 4], power[8, 8], power[12, 12]])
    np.testing.assert_allclose(amplitude / amplitude[0], np.array([1, 2, 3.0]) ** -decay, rtol=0.15)


def test_frequencies_are_of_the_longest_axis():
    found = images(fourier(2.0, std=1.0, colors=None), (16, 32))
    power = np.mean(np.abs(np.fft.fft2(found)) ** 2, axis=0)
    np.testing.assert_allclose(power[3, 2] / power[1, 6], 1, rtol=0.3)  # both at sqrt(40)


def test_maco_keeps_its_spectrum_whatever_its_phases():
    parameterization, shape = maco(colors=None), (16, 16, 3)
    one, other = images(parameterization, shape, num=2)
    spectra = [np.abs(np.fft.fft2(image, axes=(0, 1)))[:, 1:8] for image in (one, other)]
    np.testing.assert_allclose(*spectra, rtol=1e-3)
    np.testing.assert_allclose(spectra[0][3, 3] / spectra[0][6, 5], np.sqrt(72 / 25), rtol=1e-3)
    np.testing.assert_allclose(one.mean((0, 1)), 0, atol=1e-6)
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("make", [fourier, maco, pixels])
def test_colours_mix_the_channels_of_what_has_none(make):
    key, shape = jax.random.key(1), (8, 8, 3)
    plain, coloured = make(colors=None), make(colors=PHOTO_COLORS)
    coefficients = plain.init(key, shape)
    np.testing.assert_array_equal(coefficients, coloured.init(key, shape))
    want = np.asarray(plain.image(coefficients, shape)) @ np.asarray(PHOTO_COLORS, np.float32).T
    np.testing.assert_allclose(coloured.image(coefficients, shape), want, atol=1e-5)


def test_a_step_of_adam_changes_low_frequencies_most():
    """The derivative by a coefficient is as its gain: that of frequency 2 is 4 times that of 8."""
    parameterization, shape = fourier(decay=1.0, colors=None), (32, 32)

    def energy(coefficients):
        return jnp.vdot(parameterization.image(coefficients, shape), target)

    rows = np.arange(32) / 32 * 2 * np.pi
    target = jnp.asarray(np.cos(2 * rows)[None] + np.cos(8 * rows)[None] + 0 * rows[:, None])
    slope = jax.grad(energy)(parameterization.init(jax.random.key(0), shape))
    np.testing.assert_allclose(slope[0, 2, 0] / slope[0, 8, 0], 4, rtol=1e-4)


def test_pixels_are_what_they_are():
    z = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(pixels().image(z, (2, 3)), z)
    found = images(pixels(std=0.5), (50, 3))
    np.testing.assert_allclose(found.std(), 0.5, rtol=0.03)


def test_what_does_not_fit_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="square matrix"):
        fourier(colors=np.ones((3, 2)))
    with pytest.raises(ValueError, match="above 0"):
        maco(std=0)
    for parameterization in (fourier(), maco(), pixels(colors=PHOTO_COLORS)):
        with pytest.raises(ValueError, match="3 channels as its last axis"):
            parameterization.init(key, (8, 8))
    with pytest.raises(ValueError, match=r"taken for \(channels, H, W\)"):
        fourier(colors=None).init(key, (3, 8, 8))
    with pytest.raises(ValueError, match="3 channels as its last axis"):
        fourier(axes=(0, 1)).init(key, (8, 3))
