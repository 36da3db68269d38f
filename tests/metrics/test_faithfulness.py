"""Faithfulness against obvious loops in NumPy, linear scores, and SciPy's correlations."""

import functools
import inspect
import io
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import smoothjax as sj
from smoothjax import spectral
from smoothjax.attribution.baselines import blur, channel_mean
from smoothjax.metrics import (
    Curve,
    area,
    deletion,
    deletion_curve,
    faithfulness_correlation,
    gaussian_perturbation,
    infidelity,
    information_curve,
    insertion,
    insertion_curve,
    insertion_minus_deletion,
    mu_fidelity,
    residual_bits,
)
from smoothjax.metrics._ranking import order
from smoothjax.metrics.correlation import _random_subset

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
SHAPE = (7, 5, 2)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


W, X, ATTRIBUTION = draw(*SHAPE), draw(*SHAPE), draw(*SHAPE)
# What hides: one value for each channel.
BASELINE = np.array([[[0.5, -1.0]]], np.float32)


def linear(params, x):
    return jnp.sum(params * x)


def smooth(params, x):
    return jnp.tanh(jnp.sum(params * x) / 10)


METRICS = {
    "deletion": functools.partial(deletion, num_steps=6),
    "insertion": functools.partial(insertion, num_steps=6),
    "insertion_minus_deletion": functools.partial(insertion_minus_deletion, num_steps=6),
    "mu_fidelity": functools.partial(mu_fidelity, num_samples=6, grid=3),
    "faithfulness_correlation": functools.partial(
        faithfulness_correlation, num_samples=6, subset_size=30
    ),
    "infidelity": functools.partial(infidelity, num_samples=6),
    "information_curve": functools.partial(information_curve, num_steps=6),
}
RANDOM = ("mu_fidelity", "faithfulness_correlation", "infidelity")
# One for each way to compute; the others differ in what they hand it.
each_metric = pytest.mark.parametrize(
    "name", ["insertion_minus_deletion", "mu_fidelity", "infidelity", "information_curve"]
)


def judge(name, score=smooth, **settings):
    """A metric of `(key, params, x, attribution, *rest)` to a scalar, whether it draws or not."""
    metric = METRICS[name](score, **settings)
    if name == "information_curve":
        metric = area(metric)
    if sj.is_stochastic(metric):
        return metric
    return lambda key, *args, **kwargs: metric(*args, **kwargs)


@functools.cache  # compiling is what takes the time
def compiled(name):
    return jax.jit(judge(name))


def test_only_what_draws_takes_a_key():
    taking = [name for name, metric in METRICS.items() if sj.is_stochastic(metric(smooth))]
    assert tuple(taking) == RANDOM
    for name, metric in METRICS.items():
        assert metric(smooth).__name__ == f"{name}(smooth)"
        assert sj.is_stochastic(metric(sj.noisegrad(smooth)))


def test_signatures_have_the_attribution():
    def more(params, x, /, label=0, *, scale=1):
        return smooth(params, x)

    def any_number(*args):
        return smooth(*args)

    for metric in METRICS.values():
        key = "key, /, " if sj.is_stochastic(metric(smooth)) else ""
        assert str(inspect.signature(metric(smooth))) == f"({key}params, x, attribution)"
    assert str(inspect.signature(deletion(smooth, argnum=0))) == "(params, attribution, x)"
    expected = "(params, x, attribution, /, label=0, *, scale=1)"
    assert str(inspect.signature(deletion(more))) == expected
    assert str(inspect.signature(infidelity(any_number))) == "(key, /, *args)"
    assert str(inspect.signature(deletion(lambda attribution, x: 0))) == (
        "(attribution, x, attribution_)"
    )


# Curves


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


def pixels(shape):
    return [np.s_[i, j] for i in range(shape[0]) for j in range(shape[1])]


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
    [((3, 16, 16), (1, 2)), ((40, 3), (0,)), ((40,), (0,)), ((16, 16, 3), (0, 1))],
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


# Correlations


def bits_of(totals):
    """The subsets behind sums of the attribution 1, 2, 4, ..."""
    return (np.asarray(totals).astype(int)[:, None] >> np.arange(12)) % 2 == 1


def pairs(totals, drops):
    """A "correlation" that returns what is correlated."""
    return jnp.stack([totals, drops])


POWERS = (2.0 ** np.arange(12)).reshape(3, 4)


def test_mu_fidelity_correlates_sums_with_drops():
    """Each cell of 2 x 3 pixels is known from its power of two."""
    rng = np.random.default_rng(5)
    params, x = (rng.normal(size=(6, 12, 2)).astype(np.float32) for _ in "wx")
    attribution = np.zeros((6, 12, 2), np.float32)
    attribution[1::2, 2::3, 0] = POWERS - 5
    attribution[::2, ::3, 1] = 5
    settings = {"grid": (3, 4), "num_samples": 50, "baseline": BASELINE}
    metric = mu_fidelity(smooth, **settings, similarity=pairs)
    totals, drops = np.asarray(jax.jit(metric)(KEY, params, x, attribution))
    subsets = bits_of(totals)
    np.testing.assert_array_equal(subsets.sum(1), np.full(50, 2))  # 0.2 of 12
    assert len(np.unique(totals)) > 30  # of 66 subsets, 50 draws
    expected = []
    for subset in subsets:
        hidden = np.repeat(np.repeat(subset.reshape(3, 4, 1), 2, 0), 3, 1)
        expected.append(-float(smooth(params, np.where(hidden, BASELINE, x))))
    np.testing.assert_allclose(drops, expected, atol=1e-6)
    got = jax.jit(mu_fidelity(smooth, **settings))(KEY, params, x, attribution)
    np.testing.assert_allclose(got, stats.spearmanr(totals, drops).statistic, atol=1e-5)


def test_a_grid_need_not_divide_x():
    """7 rows make cells of 4 and 3, and 5 columns cells of 2, 2 and 1."""
    metric = mu_fidelity(linear, grid=(2, 3), subset=0.5, num_samples=20, similarity=pairs)
    totals, drops = np.asarray(jax.jit(metric)(KEY, W, X, W * X))
    rows, columns = np.arange(7) * 2 // 7, np.arange(5) * 3 // 5
    cells = np.array(
        [[(W * X)[rows == i][:, columns == j].sum() for j in range(3)] for i in (0, 1)]
    )
    possible = [cells.ravel()[list(three)].sum() for three in itertools.combinations(range(6), 3)]
    distances = np.abs(totals[:, None] - np.array(possible))
    assert distances.min(1).max() < 1e-5
    assert len(np.unique(distances.argmin(1))) > 8  # of 20 subsets, 20 draws
    np.testing.assert_allclose(drops + np.sum(W * X), totals, atol=1e-4)


def test_faithfulness_correlation_correlates_sums_with_drops():
    params, x = draw(3, 4, 2), draw(3, 4, 2)
    settings = {"num_samples": 40, "baseline": BASELINE, "axes": (0, 1)}
    metric = jax.jit(faithfulness_correlation(smooth, subset_size=5, **settings))
    # It has the same draws, and returns them.
    probe = mu_fidelity(smooth, grid=None, subset=5 / 12, similarity=pairs, **settings)
    totals, drops = np.asarray(jax.jit(probe)(KEY, params, x, POWERS))
    subsets = bits_of(totals)
    np.testing.assert_array_equal(subsets.sum(1), np.full(40, 5))
    expected = [
        -float(smooth(params, np.where(subset.reshape(3, 4, 1), BASELINE, x))) for subset in subsets
    ]
    np.testing.assert_allclose(drops, expected, atol=1e-6)
    got = metric(KEY, params, x, POWERS)
    np.testing.assert_allclose(got, stats.pearsonr(totals, drops).statistic, atol=1e-5)


def bent(params, x):
    """A score of x that is linear, or bent, at any scale and offset, all in one program."""
    w, bend, scale, offset = params
    straight = jnp.sum(w * x)
    return offset + scale * jnp.where(bend, 10 * jnp.tanh(straight / 10), straight)


CORRELATIONS = {
    "mu_fidelity": mu_fidelity(bent, grid=3, num_samples=30, baseline=BASELINE),
    "faithfulness_correlation": faithfulness_correlation(
        bent, subset_size=9, num_samples=30, baseline=BASELINE
    ),
}
CORRELATIONS = {name: jax.jit(metric) for name, metric in CORRELATIONS.items()}
each_correlation = pytest.mark.parametrize("metric", CORRELATIONS.values(), ids=CORRELATIONS)


@each_correlation
def test_the_contributions_to_a_linear_score_correlate_exactly(metric):
    contributions, params = W * (X - BASELINE), (W, False, 1.0, 0.0)
    np.testing.assert_allclose(metric(KEY, params, X, contributions), 1, atol=1e-5)
    np.testing.assert_allclose(metric(KEY, params, X, -contributions), -1, atol=1e-5)
    assert abs(metric(KEY, params, X, ATTRIBUTION)) < 0.9


@each_correlation
def test_an_attribution_or_a_score_that_says_nothing_has_no_correlation(metric):
    params = (W, True, 1.0, 0.0)
    assert metric(KEY, params, X, np.full(SHAPE, 0.1, np.float32)) == 0
    assert metric(KEY, params, X, np.full(SHAPE, -7.3, np.float32)) == 0
    assert metric(KEY, (W, True, 0.0, 0.3), X, ATTRIBUTION) == 0
    assert metric(KEY, params, X, ATTRIBUTION) != 0


@each_correlation
def test_correlations_do_not_depend_on_scale_and_offset(metric):
    """Of the score, and of the attribution where all features are of one size."""
    plain = metric(KEY, (W, True, 1.0, 0.0), X, ATTRIBUTION)
    moved = metric(KEY, (W, True, 3.0, 50.0), X, ATTRIBUTION)
    np.testing.assert_allclose(moved, plain, atol=1e-4)
    negative = metric(KEY, (W, True, -3.0, 0.0), X, ATTRIBUTION)
    np.testing.assert_allclose(negative, -plain, atol=1e-4)
    scaled = metric(KEY, (W, True, 1.0, 0.0), X, 7 * ATTRIBUTION)
    np.testing.assert_allclose(scaled, plain, atol=1e-4)
    if metric is CORRELATIONS["faithfulness_correlation"]:
        shifted = metric(KEY, (W, True, 1.0, 0.0), X, ATTRIBUTION - 2)
        np.testing.assert_allclose(shifted, plain, atol=1e-4)


@pytest.mark.parametrize(("num", "size"), [(5, 2), (5, 1), (5, 4), (4, 3)])
def test_all_subsets_of_a_size_are_equally_likely(num, size):
    draws = 4000
    keys = jax.random.split(KEY, draws)
    masks = np.asarray(jax.jit(jax.vmap(lambda key: _random_subset(key, num, size)))(keys))
    np.testing.assert_array_equal(masks.sum(1), np.full(draws, size))
    counts = np.unique(masks @ (1 << np.arange(num)), return_counts=True)[1]
    assert len(counts) == len(list(itertools.combinations(range(num), size)))
    assert stats.chisquare(counts).pvalue > 0.01


def test_with_one_key_subsets_are_drawn_once_for_a_batch():
    """No random number, and no mask, has the batch's axis."""
    metric = faithfulness_correlation(smooth, subset_size=9, num_samples=8, chunk_size=4)
    batch = jnp.stack([X] * 33)
    mapped = jax.make_jaxpr(jax.vmap(metric, (None, None, 0, 0)))(KEY, W, batch, batch)
    shapes = [
        equation.outvars[0].aval.shape
        for equation, _ in equations(mapped.jaxpr)
        if equation.primitive.name in ("random_bits", "scatter")
        and equation.outvars[0].aval.dtype in (np.uint32, bool)
    ]
    assert (4, 70) in shapes
    assert len(shapes) > 1
    assert not any(33 in shape for shape in shapes)


# Infidelity


def test_the_gradient_of_a_linear_score_has_no_infidelity():
    judge = jax.jit(infidelity(linear, num_samples=20))
    assert judge(KEY, W, X, W) < 1e-9
    assert judge(KEY, W, X, 2 * W) > 1


def test_infidelity_of_a_quadratic_score_is_its_expectation():
    """Of x'Ax/2 + b'x, whose smoothed gradient is Ax + b: (2 |A|^2 + tr(A)^2) sigma^4 / 4.

    An attribution that is off by d adds sigma^2 |d|^2: the odd moments of a Gaussian are 0.
    """
    rng = np.random.default_rng(1)
    a = rng.normal(size=(4, 4))
    a, b, x, d = (a + a.T).astype(np.float32), draw(4), draw(4), np.float32([0.5, 0, -1, 0])

    def quadratic(params, x):
        return x @ a @ x / 2 + b @ x

    sigma, draws = 0.5, 40_000
    least = (2 * np.sum(a**2) + np.trace(a) ** 2) * sigma**4 / 4
    perturbation = gaussian_perturbation(sigma)
    settings = {"num_samples": draws, "chunk_size": draws, "perturbation": perturbation}
    judge = jax.jit(infidelity(quadratic, **settings))
    noise = np.random.default_rng(2).normal(scale=sigma, size=(draws, 4))
    for off in (0 * d, d):
        errors = noise @ off + np.einsum("ni,ij,nj->n", noise, a, noise) / 2
        stderr = np.std(errors**2) / np.sqrt(draws)
        expected = least + sigma**2 * np.sum(off**2)
        assert stderr < 0.03 * expected
        assert abs(float(judge(KEY, None, x, a @ x + b + off)) - expected) < 4 * stderr


def test_infidelity_of_one_change_is_the_error_of_completeness():
    """The change to a baseline of zero is x itself, drawn or not."""
    attribution = 0.1 * W * ATTRIBUTION
    error = np.sum(X * attribution) - (smooth(W, X) - smooth(W, 0 * X))
    judge = infidelity(smooth, num_samples=3, perturbation=lambda key, x: x)
    np.testing.assert_allclose(judge(KEY, W, X, attribution), error**2, rtol=1e-4)
    pooled = infidelity(smooth, num_samples=3, perturbation=lambda key, x: x)
    error = np.sum(X * W[..., :1]) - (smooth(W, X) - smooth(W, 0 * X))
    np.testing.assert_allclose(pooled(KEY, W, X, W[..., 0]), error**2, rtol=1e-4)


def test_infidelity_draws_each_change_with_a_key_of_its_own():
    def change(key, x):
        return jnp.full(x.shape, jax.random.normal(key))

    judge = jax.jit(infidelity(lambda params, x: 0.0, num_samples=2000, perturbation=change))
    got = judge(KEY, None, jnp.zeros(1), jnp.ones(1))
    assert abs(got - 1) < 4 * np.sqrt(2 / 2000)


def test_infidelity_counts_a_change_as_it_is_rounded():
    """In bfloat16 x moves by steps of 1 / 128, and the linear score follows them exactly."""
    x, w = jnp.linspace(1, 1.9, 8, dtype=jnp.bfloat16), jnp.linspace(-1, 1, 8, dtype=jnp.float32)

    def score(params, x):
        return jnp.sum(params * x.astype(jnp.float32))

    judge = infidelity(score, num_samples=20, perturbation=gaussian_perturbation(0.01))
    assert judge(KEY, w, x, w) < 1e-9


def test_gaussian_perturbation_is_noise_of_the_level_it_is_given():
    x = jnp.linspace(-1.0, 3.0, 10_000).reshape(100, 100)
    for sigma, level in [(0.5, 0.5), (sj.relative(0.2), 0.8), (jnp.full((1, 100), 2.0), 2.0)]:
        drawn = np.asarray(gaussian_perturbation(sigma)(KEY, x)) / level
        assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.01
    default = np.asarray(gaussian_perturbation()(KEY, x))
    np.testing.assert_allclose(default, drawn * 0.15 * 4, rtol=1e-5)
    assert gaussian_perturbation(0.1)(KEY, x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_infidelity_by_default_says_nothing_of_a_constant_x():
    judge = jax.jit(infidelity(linear, num_samples=3))
    ones = jnp.ones(SHAPE, jnp.float32)
    assert np.isnan(judge(KEY, W, ones, W))
    assert not np.isnan(judge(KEY, W, ones.at[0, 0, 0].set(0), W))
    half = gaussian_perturbation(jnp.array([[[1.0, 0.0]]]))(KEY, jnp.asarray(X))
    assert np.all(half[..., 1] == 0)
    assert not np.any(np.isnan(half))


# Information


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


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
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


# All of them


@each_metric
def test_jit_and_chunks_and_vmap_change_nothing(name):
    xs = jnp.stack([X, X[::-1], 2 * X])
    attributions = jnp.stack([ATTRIBUTION, -ATTRIBUTION, W * X])
    mapped = jax.jit(jax.vmap(judge(name, chunk_size=4), (None, None, 0, 0)))
    together = mapped(KEY, W, xs, attributions)
    alone = [compiled(name)(KEY, W, x, a) for x, a in zip(xs, attributions, strict=True)]
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert len(set(np.asarray(alone).round(3))) == 3


@each_metric
def test_a_nan_is_passed_on(name):
    attribution = ATTRIBUTION.copy()
    attribution[1, 2, 0] = np.nan
    assert np.isnan(compiled(name)(KEY, W, X, attribution))
    assert not np.isnan(compiled(name)(KEY, W, X, ATTRIBUTION))
    assert np.isnan(compiled(name)(KEY, W * np.nan, X, ATTRIBUTION))


@each_metric
def test_a_metric_depends_on_the_attribution_and_on_the_key(name):
    values = [compiled(name)(KEY, W, X, a) for a in (ATTRIBUTION, -ATTRIBUTION, W * X)]
    assert len(set(np.asarray(values).round(3))) == 3
    again, other = (compiled(name)(key, W, X, ATTRIBUTION) for key in (KEY, jax.random.key(8)))
    assert again == values[0]
    assert (other != values[0]) == (name in RANDOM)


@each_metric
def test_half_precision(name):
    """Of bfloat16 inputs, metrics are those of their float32 values, within what x rounds."""

    def score(params, x):
        return smooth(params, x.astype(params.dtype))

    half = jnp.asarray(X, jnp.bfloat16), jnp.asarray(ATTRIBUTION, jnp.bfloat16)
    got = jax.jit(judge(name, score))(KEY, W, *half)
    expected = compiled(name)(KEY, W, *(np.asarray(a, np.float32) for a in half))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0.02, atol=0.03)
    returned = judge(name, lambda params, x: smooth(params, x).astype(jnp.bfloat16))
    assert jax.eval_shape(returned, KEY, W, X, ATTRIBUTION).dtype == jnp.float32


@each_metric
def test_double_precision(name):
    with jax.enable_x64(True):
        wide = [np.asarray(a, float) for a in (W, X, ATTRIBUTION)]
        assert jax.eval_shape(judge(name), KEY, *wide).dtype == jnp.float64
        mixed = jax.eval_shape(judge(name), KEY, W, X, wide[2])
        assert mixed.shape == ()


def test_double_precision_is_that():
    with jax.enable_x64(True):
        w, x, attribution = (np.asarray(a, float) for a in (W, X, ATTRIBUTION))
        assert infidelity(linear)(KEY, w, x, w) < 1e-24
        total = np.sum(w * x)
        curve = deletion_curve(linear, num_steps=2)(w, x, attribution)
        np.testing.assert_allclose(curve.value[0], total, rtol=1e-14)


@each_metric
def test_a_stochastic_score_gets_one_key_for_all_queries(name):
    """The score is one drawn multiple of another, so the metric is that of this multiple."""

    @sj.stochastic
    def drawn(key, params, x):
        return (1 + jax.random.uniform(key, dtype=x.dtype)) * smooth(params, x)

    # With no change in x, infidelity is 0 only if f(x) and f(x - I) are one draw.
    settings = {"perturbation": lambda key, x: 0 * x} if name == "infidelity" else {}
    metric = METRICS[name](drawn, **settings)
    metric = jax.jit(area(metric) if name == "information_curve" else metric)
    got, other = (metric(key, W, X, W * X) for key in (KEY, jax.random.key(8)))
    plain = jax.jit(judge(name, **settings))(KEY, W, X, W * X)
    if name == "infidelity":
        assert got == plain == 0
    elif name == "mu_fidelity":  # on which a scale has no influence, but its draws would
        np.testing.assert_allclose(got, plain, atol=1e-5)
    else:
        scale = 1 + jax.random.uniform(KEY, dtype=jnp.float32)
        np.testing.assert_allclose(got, scale * plain, rtol=1e-4)
        assert other != got


def test_a_stochastic_score_does_not_share_its_key_with_the_draws():
    @sj.stochastic
    def drawn(key, params, x):
        return jax.random.uniform(key, dtype=x.dtype) * jnp.sum(x)

    shared = jax.random.uniform(KEY, dtype=jnp.float32) * np.sum(X)
    lost = infidelity(drawn, num_samples=1, perturbation=lambda key, x: x)(KEY, W, X, 0 * X)
    assert abs(np.sqrt(lost) - abs(shared)) > 0.01
    metric = mu_fidelity(drawn, grid=2, num_samples=2, baseline=X, similarity=pairs)
    _, drops = metric(KEY, W, X, ATTRIBUTION)
    assert abs(drops[0] + shared) > 0.01
    assert drops[0] == drops[1]


def test_a_curve_can_be_exported():
    exported = jax.export.export(jax.jit(deletion_curve(linear, num_steps=2)))(W, X, W)
    again = jax.export.deserialize(exported.serialize())
    assert isinstance(jax.tree.unflatten(again.out_tree, [0, 0]), Curve)


def test_curves_of_a_stochastic_score_are_of_one_draw():
    @sj.stochastic
    def noise(key, params, x):
        return jax.random.normal(key)

    for make in (deletion_curve, insertion_curve, information_curve):
        value = make(noise, num_steps=3)(KEY, W, X, ATTRIBUTION).value
        np.testing.assert_allclose(value, np.full(len(value), jax.random.normal(KEY)), rtol=1e-6)


@each_metric
def test_of_x_alone_and_with_more_arguments(name):
    expected = compiled(name)(KEY, W, X, ATTRIBUTION)
    alone = jax.jit(judge(name, lambda x: smooth(W, x), argnum=0))
    np.testing.assert_allclose(alone(KEY, X, ATTRIBUTION), expected, rtol=1e-5, atol=1e-6)

    def more(params, x, factor, *, offset):
        return factor * smooth(params, x) + offset

    got = jax.jit(judge(name, more))(KEY, W, X, ATTRIBUTION, 1.0, offset=0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def equations(jaxpr, times=1):
    """All equations of a program, each with how often it is evaluated."""
    for equation in jaxpr.eqns:
        yield equation, times
        inside = times * equation.params.get("length", 1)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside)


def program(name, *args, **settings):
    return jax.make_jaxpr(judge(name, **settings))(KEY, W, X, ATTRIBUTION).jaxpr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deletion", 7),
        ("insertion", 7),
        ("insertion_minus_deletion", 14),
        ("mu_fidelity", 6),
        ("faithfulness_correlation", 6),
        ("infidelity", 7),
        ("information_curve", 7),
    ],
)
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_how_often_the_score_is_evaluated(name, expected, chunk_size):
    """Its hyperbolic tangent is the only one in the program."""
    evaluations = sum(
        times * equation.outvars[0].aval.size
        for equation, times in equations(program(name, chunk_size=chunk_size))
        if equation.primitive.name == "tanh"
    )
    assert evaluations == expected


@each_metric
def test_the_program_does_not_grow_with_the_number_of_queries(name):
    size = "num_samples" if name in RANDOM else "num_steps"
    few, many = (len(list(equations(program(name, **{size: num})))) for num in (6, 60))
    assert few == many


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: area(3), TypeError, "area takes a function"),
        (lambda: area(smooth)(W, X), TypeError, r"deletion_curve\(score\); smooth returned"),
        (lambda: deletion("score"), TypeError, "takes a function"),
        (lambda: deletion(smooth, num_steps=0), ValueError, "num_steps must be at least 1; got 0"),
        (lambda: insertion(smooth, chunk_size=0), ValueError, "chunk_size must be at least 1"),
        (lambda: deletion(smooth, patch=0), ValueError, "patch must be at least 1; got 0"),
        (lambda: deletion(smooth, patch=(2, 2, 2)), ValueError, "patch must be one number"),
        (lambda: deletion(smooth, axes=3), TypeError, "axes must be a tuple"),
        (lambda: deletion(smooth, argnum=-1), ValueError, "argnum must be at least 0"),
        (lambda: information_curve(smooth, information=8), TypeError, "must be a function"),
        (lambda: information_curve(smooth, num_steps=True), TypeError, "num_steps must be"),
        (
            lambda: mu_fidelity(smooth, subset=1.0),
            ValueError,
            "subset must be above 0 and below 1; got 1.0",
        ),
        (lambda: mu_fidelity(smooth, subset="few"), TypeError, "must be a number; got 'few'"),
        (lambda: mu_fidelity(smooth, grid=0), ValueError, "grid must be at least 1"),
        (lambda: mu_fidelity(smooth, num_samples=1), ValueError, "must be at least 2; got 1"),
        (lambda: mu_fidelity(smooth, similarity=2), TypeError, "must be a function"),
        (lambda: faithfulness_correlation(smooth, subset_size=0), ValueError, "at least 1; got 0"),
        (lambda: infidelity(smooth, perturbation=0.1), TypeError, "must be a function"),
        (lambda: infidelity(smooth, num_samples=0), ValueError, "at least 1"),
        (lambda: gaussian_perturbation(-1.0), ValueError, "must not be negative"),
        (lambda: gaussian_perturbation(None), TypeError, "sigma must be a number"),
        (
            lambda: deletion(smooth)(W),
            TypeError,
            r"(?s)argnum=1.* is missing.*in deletion\(smooth\)",
        ),
        (lambda: deletion(smooth)(W, X), TypeError, "the attribution is missing"),
        (
            lambda: deletion(smooth)(W, X, W[:5]),
            ValueError,
            r"of x, \(7, 5, 2\), keeps its axes \(0, 1\)",
        ),
        (lambda: deletion(smooth)(W, {"x": X}, X), TypeError, "one array; got a dict"),
        (lambda: deletion(smooth)(W, jnp.arange(3), X[:3, 0, 0]), TypeError, "floating-point"),
        (lambda: deletion(smooth, patch=2)(1.0, X[0, 0], X[0, 0]), ValueError, r"axes \(0, 1\)"),
        (lambda: deletion(smooth, baseline=X[:5])(W, X, X), ValueError, "baseline of shape"),
        (lambda: insertion(smooth)(1.0, X[0, 0], X[0, 0]), ValueError, r"Type axes=\(0,\)"),
        (lambda: deletion(lambda w, x: x)(W, X, X), TypeError, "real scalar"),
        (lambda: mu_fidelity(smooth)(KEY, W, X, X), ValueError, r"grid of \(9, 9\) .* finer"),
        (lambda: mu_fidelity(smooth)(W, X, X), TypeError, "PRNG key"),
        (
            lambda: faithfulness_correlation(smooth, subset_size=70)(KEY, W, X, X),
            ValueError,
            "subset of 70 is all of 70",
        ),
        (
            lambda: infidelity(smooth, perturbation=lambda key, x: 1.0)(KEY, W, X, X),
            ValueError,
            r"shaped like x, \(7, 5, 2\); got \(\)",
        ),
        (
            lambda: infidelity(smooth)(KEY, 1.0, X[0, 0, :1], X[0, 0, :1]),
            ValueError,
            r"(?s)Type perturbation=gaussian_perturbation\(0.1\).*in infidelity",
        ),
        (
            lambda: information_curve(smooth, information=lambda image: image)(W, X, X),
            ValueError,
            "must return a scalar",
        ),
        (
            lambda: information_curve(smooth, baseline=0.0)(1.0, X[0, 0], X[0, 0]),
            ValueError,
            "of an image of shape",
        ),
    ],
)
def test_errors_say_what_to_type(make, error, match):
    with pytest.raises(error, match=match):
        make()
