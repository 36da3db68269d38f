"""What augmentations do to images whose place, size and angle can be measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothjax.feature_visualization import chain, jitter, rotate, zoom

KEYS = jax.random.split(jax.random.key(0), 200)


def spot(row, column, width=2.0, shape=(41, 41)):
    rows, columns = np.indices(shape)
    return jnp.asarray(
        np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 2 / width**2), jnp.float32
    )


def many(augment, image):
    return np.asarray(jax.jit(jax.vmap(augment, (0, None)))(KEYS, image))


def moments(image):
    """The centre of a spot and its deviation along rows."""
    rows, columns = np.indices(image.shape)
    mass = image.sum()
    row, column = (rows * image).sum() / mass, (columns * image).sum() / mass
    return row, column, np.sqrt(((rows - row) ** 2 * image).sum() / mass)


def test_jitter_moves_by_every_shift_and_no_more():
    image = jnp.arange(42.0).reshape(6, 7)
    moved = many(jitter(2), image)
    shifts = [np.argwhere(one == 0)[0] for one in moved]
    for one, (down, right) in zip(moved, shifts, strict=True):
        np.testing.assert_array_equal(one, np.roll(image, (down, right), (0, 1)))
    assert {int((d + 2) % 6) for d, _ in shifts} == set(range(5))
    assert {int((r + 2) % 7) for _, r in shifts} == set(range(5))


def test_zoom_enlarges_about_the_middle():
    image = jnp.stack([spot(20, 20), spot(14, 20)], axis=-1)
    found = many(zoom(0.7, 1.5), image)
    sizes = []
    for one in found:
        row, column, deviation = moments(one[..., 0])
        np.testing.assert_allclose((row, column), 20, atol=1e-2)
        sizes.append(deviation / 2)
        np.testing.assert_allclose(moments(one[..., 1])[0], 20 - 6 * sizes[-1], atol=0.3)
    assert 0.7 < min(sizes) < 0.8
    assert 1.4 < max(sizes) < 1.6


def test_zoom_is_interpolation():
    signal = jnp.asarray(np.random.default_rng(0).normal(size=12), jnp.float32)
    found = zoom(1.3, 1.3, axes=(0,))(jax.random.key(0), signal)
    places = (np.arange(12) - 5.5) / 1.3 + 5.5
    np.testing.assert_allclose(found, np.interp(places, np.arange(12), signal), rtol=1e-4)
    small = zoom(0.5, 0.5, axes=(0,))(jax.random.key(0), signal)
    places = (np.arange(12) - 5.5) / 0.5 + 5.5
    np.testing.assert_allclose(
        small, np.interp(places, np.arange(12), signal, period=12), atol=1e-4
    )
    np.testing.assert_allclose(zoom(1, 1)(KEYS[0], spot(3, 5)), spot(3, 5), atol=1e-6)


def test_rotate_turns_about_the_middle():
    turned = many(rotate(30), spot(20, 30))
    angles = []
    for one in turned:
        row, column, deviation = moments(one)
        np.testing.assert_allclose(np.hypot(row - 20, column - 20), 10, rtol=1e-2)
        np.testing.assert_allclose(deviation, 2, rtol=0.02)
        angles.append(np.degrees(np.arctan2(row - 20, column - 20)))
    assert -31 < min(angles) < -25
    assert 25 < max(angles) < 31


def test_rotate_damps_nothing():
    image = jax.random.normal(jax.random.key(1), (15, 15, 3))  # odd: without a Nyquist frequency
    turned = rotate(20)(KEYS[0], image)
    np.testing.assert_allclose(jnp.sum(turned**2), jnp.sum(image**2), rtol=1e-4)
    assert jnp.max(jnp.abs(turned - image)) > 0.1


def test_a_chain_is_in_order_with_keys_of_their_own():
    def add(key, image):
        return image + jax.random.uniform(key)

    def double(key, image):
        return 2 * image

    zero = jnp.zeros(())
    one, first = chain(add)(KEYS[0], zero), chain(add, double)(KEYS[0], zero)
    last = chain(double, add)(KEYS[0], zero)
    assert 0 < last < 1  # one number, not doubled
    assert len({float(n) for n in (2 * one, 2 * last, first)}) > 1
    assert chain(add, add)(KEYS[0], zero) != first  # twice the same number
    np.testing.assert_array_equal(chain()(KEYS[0], jnp.ones(3)), jnp.ones(3))


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="an augmentation must be a function"):
        chain(3)
    with pytest.raises(ValueError, match=r"most must be at least 1\.1"):
        zoom(1.1, 0.9)
    with pytest.raises(ValueError, match="below 90"):
        rotate(90)
    with pytest.raises(ValueError, match=r"taken for \(channels, H, W\)") as caught:
        rotate(5)(KEYS[0], jnp.zeros((3, 8, 8)))
    assert "in rotate" in caught.value.__notes__
    with pytest.raises(ValueError, match="rotate needs an image"):
        rotate(5)(KEYS[0], jnp.zeros(8))
