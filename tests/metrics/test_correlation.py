"""Correlations of faithfulness against SciPy's."""

import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from faithfulness import ATTRIBUTION, BASELINE, KEY, SHAPE, W, X, draw, equations, linear, smooth
from scipy import stats

from smoothjax.metrics import (
    faithfulness_correlation,
    mu_fidelity,
)
from smoothjax.metrics.correlation import _random_subset


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
