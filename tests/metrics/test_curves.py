"""Deletion and insertion against obvious loops in NumPy."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from faithfulness import (
    ATTRIBUTION,
    BASELINE,
    KEY,
    RNG,
    SHAPE,
    W,
    X,
    compiled,
    draw,
    linear,
    pixels,
    smooth,
)

import smoothjax as sj
from smoothjax import spectral
from smoothjax.attribution.baselines import blur, channel_mean
from smoothjax.metrics import (
    Curve,
    area,
    deletion,
    deletion_curve,
    information_curve,
    insertion,
    insertion_curve,
    insertion_minus_deletion,
    monotonicity,
    srg,
)
from smoothjax.metrics._ranking import order


def switched(start, end, features, importance, num_steps):
    """Written out: x as the most important features go from `start` to `end`, step by step."""
    shape = np.broadcast_shapes(start.shape, end.shape)
    start, end = np.broadcast_to(start, shape), np.broadcast_to(end, shape)
    most_important_first = np.argsort(-np.asarray(importance, float))
    images = []
    for k in range(num_steps + 1):
        image = start.copy()
        for feature in most_important_first[: k * len(features) // num_steps]:
            image[features[feature]] = end[features[feature]]
        images.append(image)
    return images


def entries(shape):
    return [np.unravel_index(i, shape) for i in range(int(np.prod(shape)))]


def patches(shape, rows, columns):
    return [
        np.s_[i : i + rows, j : j + columns]
        for i in range(0, shape[0], rows)
        for j in range(0, shape[1], columns)
    ]


# x, the attribution, settings, the features, and which part of the attribution is each one's.
LAYOUTS = {
    "entries": (X, ATTRIBUTION, {}, entries(SHAPE), entries(SHAPE)),
    "pixels": (X, ATTRIBUTION[..., 0], {}, pixels(SHAPE), pixels(SHAPE)),
    "pixels with an axis": (X, ATTRIBUTION[..., :1], {}, pixels(SHAPE), pixels(SHAPE)),
    "pixels as patches": (X, ATTRIBUTION, {"patch": 1}, pixels(SHAPE), pixels(SHAPE)),
    "patches": (X, ATTRIBUTION, {"patch": (3, 2)}, patches(SHAPE, 3, 2), patches(SHAPE, 3, 2)),
    "square patches of pixels": (
        X,
        ATTRIBUTION[..., 1],
        {"patch": 4},
        patches(SHAPE, 4, 4),
        patches(SHAPE, 4, 4),
    ),
    "other axes": (
        X,
        ATTRIBUTION,
        {"patch": (2, 3), "axes": (-2, 0)},
        patches(SHAPE, 3, 2),
        patches(SHAPE, 3, 2),
    ),
    "columns": (
        X,
        ATTRIBUTION[:1, :, :1],
        {"axes": (1,)},
        [np.s_[:, j] for j in range(5)],
        [np.s_[:, j] for j in range(5)],
    ),
    "table": (X[:, 0, 0], ATTRIBUTION[:, 0, 0], {}, entries((7,)), entries((7,))),
    "signal in patches": (
        X[:, 0],
        ATTRIBUTION[:, 0, 0],
        {"patch": 3, "axes": (0,)},
        [np.s_[0:3], np.s_[3:6], np.s_[6:7]],
        [np.s_[0:3], np.s_[3:6], np.s_[6:7]],
    ),
    "no channels": (X[..., 0], ATTRIBUTION[..., 0], {}, entries((7, 5)), entries((7, 5))),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_curves_are_those_of_a_loop(layout):
    x, attribution, settings, features, parts = layout
    importance = [attribution[part].sum() for part in parts]
    params = W[tuple(0 if i >= x.ndim else np.s_[:] for i in range(3))]
    if x.ndim == 2 and x.shape[1] == 2:
        params = W[:, 0]
    baseline = np.float32(0.25)
    settings = {"num_steps": 4, "baseline": baseline, **settings}
    makes = deletion_curve, insertion_curve
    curves = jax.jit(lambda *args: [make(smooth, **settings)(*args) for make in makes])
    ends = (x, baseline), (baseline, x)
    for got, (start, end) in zip(curves(params, x, attribution), ends, strict=True):
        images = switched(start, end, features, importance, 4)
        expected = [float(smooth(params, image)) for image in images]
        counts = [k * len(features) // 4 for k in range(5)]
        np.testing.assert_allclose(got.fraction, np.divide(counts, len(features)), rtol=1e-6)
        np.testing.assert_allclose(got.value, expected, atol=1e-6)


def test_a_deletion_curve_of_the_contributions_is_their_cumulative_sum():
    parts = np.sort((W * (X - BASELINE)).astype(float).ravel())[::-1]
    total = np.sum(W * X, dtype=float)
    curve = deletion_curve(linear, num_steps=70, baseline=BASELINE)(W, X, W * (X - BASELINE))
    np.testing.assert_allclose(curve.value, total - np.append(0, np.cumsum(parts)), atol=1e-4)


def test_deletion_and_insertion_of_a_linear_score_mirror_each_other():
    """What is gone from one is in the other, so they sum to the scores of x and the baseline."""
    deleted = deletion_curve(linear, baseline=BASELINE)(W, X, ATTRIBUTION)
    inserted = insertion_curve(linear, baseline=BASELINE)(W, X, ATTRIBUTION)
    both = np.sum(W * (X + BASELINE), dtype=float)
    np.testing.assert_allclose(deleted.value + inserted.value, np.full(17, both), atol=1e-4)
    areas = [
        metric(linear, baseline=BASELINE)(W, X, ATTRIBUTION) for metric in (deletion, insertion)
    ]
    np.testing.assert_allclose(sum(areas), both, atol=1e-4)
    np.testing.assert_allclose(areas[0], np.trapezoid(deleted.value, deleted.fraction), atol=1e-5)


def test_the_contributions_score_best_and_their_negation_worst():
    contributions = W * X
    ranked = [contributions, ATTRIBUTION, -contributions]
    deleted = jax.jit(deletion(smooth))
    inserted = jax.jit(insertion(smooth, baseline=0.0))
    low, middle, high = (float(deleted(W, X, a)) for a in ranked)
    assert low < middle - 0.05 < high - 0.1
    high, middle, low = (float(inserted(W, X, a)) for a in ranked)
    assert low < middle - 0.05 < high - 0.1


def test_a_one_hot_score_is_lost_and_found_at_once():
    def score(params, x):
        return x[2, 3, 0]

    one_hot = np.zeros(SHAPE, np.float32)
    one_hot[2, 3, 0] = 1
    x = np.ones(SHAPE, np.float32)
    step = np.append(0, np.ones(10))
    np.testing.assert_array_equal(
        insertion_curve(score, num_steps=10, baseline=0.0)(None, x, one_hot).value, step
    )
    np.testing.assert_array_equal(
        deletion_curve(score, num_steps=10)(None, x, one_hot).value, 1 - step
    )
    last = insertion_curve(score, num_steps=10, baseline=0.0)(None, x, -one_hot).value
    np.testing.assert_array_equal(last, np.append(np.zeros(10), 1))


def test_baselines_by_default_and_by_function():
    @jax.jit
    def ends(*args):
        zero = deletion_curve(linear, num_steps=1)(*args)
        mean = deletion_curve(linear, num_steps=1, baseline=channel_mean())(*args)
        return zero.value, mean.value, insertion_curve(linear, num_steps=1)(*args).value

    zero, mean, blurred = ends(W, X, ATTRIBUTION)
    total = np.sum(W * X)
    np.testing.assert_allclose(zero, [total, 0], rtol=1e-4)
    np.testing.assert_allclose(mean, [total, np.sum(W * X.mean((0, 1)))], rtol=1e-4)
    expected = np.sum(W * np.asarray(blur(10.0)(jnp.asarray(X))))
    np.testing.assert_allclose(blurred, [expected, total], rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 16, 16), (1, 2)), ((40,), (0,))],
)
def test_the_default_baseline_is_blurred_along_the_axes_that_are_given(shape, axes):
    x, w = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    blurred = np.sum(w * np.asarray(blur(10.0, axes)(jnp.asarray(x))))
    settings = {"num_steps": 1, "axes": axes}
    curve = insertion_curve(linear, **settings)(w, x, w).value
    np.testing.assert_allclose(curve, [blurred, np.sum(w * x)], rtol=1e-3, atol=1e-4)
    inserted = insertion(linear, **settings)(w, x, w)
    np.testing.assert_allclose(inserted, curve.mean(), rtol=1e-5)
    difference = insertion_minus_deletion(linear, **settings)(w, x, w)
    np.testing.assert_allclose(difference, inserted - np.sum(w * x) / 2, rtol=1e-4, atol=1e-4)


def test_information_of_a_signal_needs_its_axes():
    x = jnp.sin(jnp.arange(40.0))
    settings = {"information": lambda signal: jnp.sum(jnp.abs(jnp.diff(signal)))}
    with pytest.raises(ValueError, match=r"Type axes=\(0,\) for signals"):
        information_curve(linear, **settings)(x, x, x)
    own = information_curve(linear, axes=(0,), **settings)(x, x, x)
    np.testing.assert_allclose(own.value[-1], np.sum(np.square(x)), rtol=1e-4)


def test_more_steps_than_features_repeat_some():
    attribution, x, w = np.float32([[3, 1, 2], [1, 1, 1], [1, 4, 2]])
    curve = deletion_curve(linear, num_steps=7)(w, x, attribution)
    np.testing.assert_allclose(curve.fraction * 3, [0, 0, 0, 1, 1, 2, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(curve.value, [7, 7, 7, 6, 6, 4, 4, 0], rtol=1e-6)


def test_a_constant_attribution_takes_the_fixed_random_order():
    constant = jnp.zeros(SHAPE)
    shuffled = np.zeros(70)
    shuffled[order(constant)] = -np.arange(70)
    metric = jax.jit(deletion_curve(smooth))
    np.testing.assert_array_equal(
        metric(W, X, constant).value, metric(W, X, shuffled.reshape(SHAPE)).value
    )
    by_index = -np.arange(70.0).reshape(SHAPE)
    assert np.abs(metric(W, X, constant).value - metric(W, X, by_index).value).max() > 0.01


@pytest.mark.parametrize("make", [deletion_curve, insertion_curve, information_curve])
def test_curves_depend_on_the_order_alone(make):
    metric = jax.jit(make(smooth, num_steps=6))
    expected = metric(W, X, ATTRIBUTION).value
    for transform in (lambda a: 1e-3 * a, lambda a: a**3 + 5, np.exp):
        np.testing.assert_array_equal(metric(W, X, transform(ATTRIBUTION)).value, expected)
    assert np.abs(metric(W, X, -ATTRIBUTION).value - expected).max() > 0.01


def test_the_difference_is_that_of_the_two_areas():
    args = KEY, W, X, ATTRIBUTION
    inserted, deleted = compiled("insertion")(*args), compiled("deletion")(*args)
    assert abs(inserted - deleted) > 0.01
    got = compiled("insertion_minus_deletion")(*args)
    np.testing.assert_allclose(got, inserted - deleted, atol=1e-6)

    settings = {"num_steps": 5, "patch": 2, "chunk_size": 5}
    mean = channel_mean()

    @jax.jit
    def both(*args):
        inserted = insertion(smooth, baseline=BASELINE, **settings)(*args)
        deleted = deletion(smooth, baseline=mean, **settings)(*args)
        baselines = {"insertion_baseline": BASELINE, "deletion_baseline": mean}
        metric = insertion_minus_deletion(smooth, **baselines, **settings)
        return inserted - deleted, metric(*args)

    np.testing.assert_allclose(*both(W, X, ATTRIBUTION), atol=1e-6)


def test_best_cutoff_takes_the_difference():
    """Of an attribution that is the contributions and a wave, it filters the wave."""
    rows = np.cos(2 * np.pi * np.arange(16) / 16)
    contributions = (1 + np.add.outer(rows, rows)).astype(np.float32)
    wave = 9 * (-1.0) ** np.add.outer(np.arange(16), np.arange(16)).astype(np.float32)
    faithfulness = insertion_minus_deletion(smooth, insertion_baseline=0.0)
    search = spectral.best_cutoff(
        lambda params, x: params * x + wave,
        faithfulness,
        [2.0, 20.0],
        transform=spectral.lowpass,
    )
    xs = np.stack([1 + 0.01 * draw(16, 16) for _ in range(3)])
    found = jax.jit(search)(contributions, xs)
    assert found.best == 2
    assert np.all(found.scores[:, 0] > found.scores[:, 1] + 0.1)


# Both orders of deletion


def test_the_gain_of_a_linear_score_by_hand():
    """Least first, 10 9 7 4 0 are left of 1 2 3 4; most first, 10 6 3 1 0."""
    w, x = np.float32([3, 1, 4, 2]), np.ones(4, np.float32)
    least_first = (5 + 9 + 7 + 4 + 0) / 4
    most_first = (5 + 6 + 3 + 1 + 0) / 4
    for num_steps in (4, 8):
        metric = srg(linear, num_steps=num_steps, axes=(0,))
        np.testing.assert_allclose(metric(w, x, w), least_first - most_first, rtol=1e-6)
        np.testing.assert_allclose(metric(w, x, -w), most_first - least_first, rtol=1e-6)
    # Replaced by 2, the score rises.
    metric = srg(linear, num_steps=4, baseline=2.0, axes=(0,))
    np.testing.assert_allclose(metric(w, x, w), most_first - least_first, rtol=1e-6)


def test_the_gain_is_the_area_between_the_deletion_curves_of_both_orders():
    settings = {"num_steps": 7, "baseline": BASELINE}
    opposite = -ATTRIBUTION  # no two features are of one value

    @jax.jit
    def both(*args):
        least_first = deletion(smooth, **settings)(W, X, opposite)
        return srg(smooth, **settings)(*args), least_first - deletion(smooth, **settings)(*args)

    got, want = both(W, X, ATTRIBUTION)
    assert abs(want) > 0.01
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_constant_score_or_baseline_gains_nothing():
    assert srg(lambda w, x: jnp.float32(3.0))(W, X, ATTRIBUTION) == 0
    np.testing.assert_allclose(srg(smooth, baseline=X)(W, X, ATTRIBUTION), 0, atol=1e-6)


# Monotonicity


def test_monotonicity_by_hand():
    """Restored in the order 1, 4, 0, 2, 3, the score goes 0, 2, 1, 1, 4, 3: up, down, level."""
    w = np.float32([0, 2, 3, -1, -1])
    x = np.ones(5, np.float32)
    attribution = np.float32([3, 1, 4, 5, 2])

    def value(score=linear, importance=attribution, **settings):
        metric = monotonicity(score, axes=(0,), **{"num_steps": 5, **settings})
        return metric(w, x, importance)

    np.testing.assert_allclose(value(), 3 / 5)
    np.testing.assert_allclose(value(num_steps=20), 3 / 5)  # the others restore nothing
    np.testing.assert_allclose(value(lambda w, x: -linear(w, x)), 3 / 5)  # down, up, level
    np.testing.assert_allclose(value(importance=w + np.float32(1e-3) * attribution), 3 / 5)
    np.testing.assert_allclose(value(lambda w, x: linear(abs(w), x)), 1)
    np.testing.assert_allclose(value(lambda w, x: -linear(w * w, x)), 1 / 5)
    np.testing.assert_allclose(value(baseline=2.0), 3 / 5)
    assert np.isnan(value(lambda w, x: linear(w, x) * np.nan))
    assert value(lambda w, x: 0.0) == 1


# Areas


def test_area_is_the_trapezoidal_rule_and_keeps_marks():
    fraction, value = np.sort(RNG.random(9, np.float32)), draw(9)

    def made(params, x, attribution):
        return Curve(jnp.asarray(fraction), jnp.asarray(value))

    got = area(made)(None, None, None)
    np.testing.assert_allclose(got, np.trapezoid(value, fraction), rtol=1e-5)
    assert not sj.is_stochastic(area(made))
    assert area(made).__name__ == "area(made)"

    @sj.stochastic
    def noisy(key, params, x, attribution):
        return Curve(jnp.array([0.0, 1.0]), jax.random.normal(key, (2,)))

    assert sj.is_stochastic(area(noisy))
    expected = jax.random.normal(KEY, (2,)).mean()
    np.testing.assert_allclose(area(noisy)(KEY, None, None, None), expected, rtol=1e-6)
