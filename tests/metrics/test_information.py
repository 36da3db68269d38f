"""Information curves against obvious loops in NumPy."""

import functools
import io
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from faithfulness import ATTRIBUTION, RNG, SHAPE, W, X, draw, pixels, smooth
from rows import slow_but
from scipy import stats

from smoothjax.attribution.baselines import blur
from smoothjax.metrics import (
    information_curve,
    residual_bits,
)


def test_residual_bits_are_those_of_a_loop():
    image = 255 * RNG.random((6, 5, 2))
    bits = 0.0
    for i, j, c in itertools.product(range(1, 6), range(1, 5), range(2)):
        predicted = (image[i - 1, j, c] + image[i, j - 1, c]) / 2
        bits += np.log2(1 + abs(image[i, j, c] - predicted))
    np.testing.assert_allclose(residual_bits(jnp.asarray(image, jnp.float32)), bits, rtol=1e-5)
    np.testing.assert_allclose(
        residual_bits(jnp.asarray(image[..., 0], jnp.float32))
        + residual_bits(jnp.asarray(image[..., 1], jnp.float32)),
        bits,
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", slow_but(["WEBP", "PNG"], "PNG"))
@pytest.mark.parametrize("shuffled", [True, False])
def test_residual_bits_order_images_as_files_do(kind, shuffled):
    """Of a photo whose pixels are restored onto its blurred self, at random or in a disc."""
    data = pytest.importorskip("skimage.data")
    pillow = pytest.importorskip("PIL.Image")
    photo = data.chelsea()[40:264, 100:324]
    blurred = np.asarray(blur(10.0)(jnp.asarray(photo, jnp.float32)))
    place = np.add.outer((np.arange(224) - 100.0) ** 2, (np.arange(224) - 120.0) ** 2)
    if shuffled:
        place = RNG.permutation(place.ravel()).reshape(place.shape)
    ours, sizes = [], []
    for share in (np.arange(13) / 12) ** 2:
        restored = np.where((place <= np.quantile(place, share))[..., None], photo, blurred)
        file = io.BytesIO()
        pillow.fromarray(np.uint8(np.round(restored))).save(file, kind, lossless=True)
        sizes.append(file.tell())
        ours.append(float(residual_bits(jnp.asarray(restored, jnp.float32))))
    assert stats.spearmanr(ours, sizes).statistic > 0.98
    ours, sizes = ((np.array(v) - v[0]) / (v[-1] - v[0]) for v in (ours, sizes))
    assert np.abs(ours - sizes).max() < 0.15


def information_by_loop(score, information, x, blurred, attribution, num_steps):
    """Written out: the greatest score of no more information, and lines between."""
    features = pixels(x.shape)
    by_importance = np.argsort(-attribution.ravel())
    points = []
    for k in range(num_steps + 1):
        image = blurred.copy()
        for feature in by_importance[: k * k * len(features) // num_steps**2]:
            image[features[feature]] = x[features[feature]]
        scaled = 255 * (image - x.min()) / (x.max() - x.min())
        points.append((float(information(scaled)), float(score(image))))
    first, last = points[0][0], points[-1][0]
    levels = [(bits - first) / (last - first) for bits, _ in points]
    known = sorted(set(levels))
    best = [
        max(value for level, (_, value) in zip(levels, points, strict=True) if level <= one)
        for one in known
    ]
    return levels, np.interp(np.linspace(0, 1, 101), known, best)


def weighted(image):
    return jnp.sum(SIGNS * image)


# So that x has more of it than its blurred self, but not all pixels add to it.
SIGNS = draw(*SHAPE) + X / 3


@pytest.mark.parametrize("information", [residual_bits, weighted])
@pytest.mark.parametrize("extremes_first", [True, False])
def test_information_curve_is_that_of_a_loop(information, extremes_first):
    blurred = np.asarray(blur(10.0)(jnp.asarray(X)))
    params = SIGNS if extremes_first else W
    attribution = (params * (X - blurred)).sum(-1)
    metric = jax.jit(information_curve(smooth, num_steps=12, information=information))
    got = metric(params, X, attribution)
    score = functools.partial(smooth, params)
    levels, expected = information_by_loop(score, information, X, blurred, attribution, 12)
    np.testing.assert_allclose(got.fraction, np.linspace(0, 1, 101), atol=1e-6)
    np.testing.assert_allclose(got.value, expected, atol=2e-5)
    assert len(set(levels)) > 3
    if information is weighted:  # it exceeds that of x, or falls as pixels are restored
        assert max(levels) > 1.1 if extremes_first else levels != sorted(levels)


def test_an_accuracy_information_curve_jumps_where_the_class_is_recognised():
    """The score is 1 once the four pixels that tell are there; their rank decides when."""
    x = np.array(RNG.random((8, 8)), np.float32)

    def accuracy(params, image):
        return (jnp.abs(image[2:4, 2:4] - x[2:4, 2:4]).max() < 1e-6).astype(float)

    told = np.zeros((8, 8), np.float32)
    told[2:4, 2:4] = 1
    judge = jax.jit(information_curve(accuracy, num_steps=8))
    early, late = judge(None, x, told).value, judge(None, x, -told).value
    assert early[0] == late[0] == 0
    assert early[-1] == late[-1] == 1
    assert np.all(np.diff(early) >= 0)
    assert np.mean(early) > 0.8
    assert np.mean(late) < 0.2


def test_an_image_of_no_information_has_no_curve():
    judge = jax.jit(information_curve(smooth))
    assert np.all(np.isnan(judge(W, jnp.ones(SHAPE, jnp.float32), ATTRIBUTION).value))
    falling = information_curve(smooth, information=lambda image: -residual_bits(image))
    assert np.all(np.isnan(falling(W, X, ATTRIBUTION).value))
    assert not np.any(np.isnan(judge(W, X, ATTRIBUTION).value))


def test_information_does_not_depend_on_the_units_of_x():
    """Of x with another mean and range, for a score that undoes it."""
    judge = information_curve(smooth)
    expected = judge(W, X, ATTRIBUTION).value
    moved = information_curve(lambda params, x: smooth(params, (x - 3) / 20))
    np.testing.assert_allclose(moved(W, 20 * X + 3, ATTRIBUTION).value, expected, atol=1e-4)
