"""Kernel SHAP against Shapley values by enumeration, the kernel by its formula, linear scores."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax.attribution import kernel_shap
from smoothjax.attribution.kernel_shap import _coalitions

RNG = np.random.default_rng(0)
SHAPE = (13, 9, 2)
W = RNG.normal(size=SHAPE).astype(np.float32)
X = RNG.normal(size=SHAPE).astype(np.float32)
# What hides: one value for each channel.
BASELINE = np.array([[[0.5, -1.0]]], np.float32)
HIDDEN, OUT = RNG.normal(size=(8, 5)).astype(np.float32), RNG.normal(size=5).astype(np.float32)


def linear(params, x):
    return jnp.sum(params * x)


def network(params, x):
    return jnp.tanh(x @ HIDDEN[: x.shape[0]]) @ OUT


def shapley(score, x, baseline):
    """The mean of what a player adds, over all orders."""
    values = np.zeros(len(x))
    orders = list(itertools.permutations(range(len(x))))
    known = {}
    for order in orders:
        now = np.array(baseline, float)
        for player in order:
            before = known.setdefault(tuple(now), float(score(now)))
            now[player] = x[player]
            values[player] += known.setdefault(tuple(now), float(score(now))) - before
    return values / len(orders)


def kernel(num, size):
    return (num - 1) / (math.comb(num, size) * size * (num - size))


def direct(x):
    return np.tanh(x @ HIDDEN[: len(x)].astype(float)) @ OUT


@pytest.mark.parametrize("num", [2, 3, 4, 5])
def test_values_of_all_coalitions_are_shapley_values(num, key):
    x, baseline = X[:num, 0, 0], W[0, :num, 0]
    want = shapley(direct, x, baseline)
    assert np.std(want) > 0.05
    explain = jax.jit(kernel_shap(network, baseline, num_samples=2**num - 2 or 2, axes=(0,)))
    for one in (key, jax.random.key(8)):
        np.testing.assert_allclose(explain(one, None, x), want, atol=2e-5)


@pytest.mark.parametrize("num_samples", [12, 20, 43, 70])
def test_a_linear_score_is_exact_of_any_number(num_samples, key):
    """13 rows make cells of 7 and 6, 9 columns of 3; 62 coalitions are all."""
    rows, columns = np.arange(13) * 2 // 13, np.arange(9) // 3
    parts = np.sum(W * (X - BASELINE), axis=-1, dtype=float)
    sums = np.array([[parts[rows == i][:, columns == j].sum() for j in range(3)] for i in (0, 1)])
    explain = kernel_shap(linear, BASELINE, num_samples=num_samples, grid=(2, 3))
    got = jax.jit(explain)(key, W, X)
    assert got.shape == (13, 9, 1)
    np.testing.assert_allclose(got[..., 0], sums[rows][:, columns], atol=2e-4)


def test_an_offset_changes_nothing_and_values_sum_to_the_gain(key):
    x = X[:8, 0, 0]
    explain = jax.jit(kernel_shap(lambda p, x: network(p, x) + p, num_samples=60, axes=(0,)))
    got = explain(key, 0.0, x)
    np.testing.assert_allclose(np.sum(got), direct(x) - direct(0 * x), atol=1e-5)
    np.testing.assert_allclose(explain(key, 1000.0, x), got, atol=1e-4)


def test_estimates_are_near_the_values_and_nearer_of_more(key):
    x = X[:8, 0, 0]
    want = shapley(direct, x[:6], 0 * x[:6])

    def errors(num_samples):
        explain = kernel_shap(network, num_samples=num_samples, axes=(0,))
        got = jax.jit(jax.vmap(explain, (0, None, None)))(jax.random.split(key, 200), None, x[:6])
        return np.asarray(got) - want

    few, more = errors(14), errors(40)
    assert 0 < np.square(more).sum(1).mean() < np.square(few).sum(1).mean() / 2
    stderr = more.std(axis=0, ddof=1) / np.sqrt(200)
    np.testing.assert_array_less(np.abs(more.mean(0)), 4.5 * stderr + 0.01 * np.abs(want).max())


@pytest.mark.parametrize(("num", "num_samples"), [(4, 14), (5, 14), (6, 20), (6, 45), (7, 33)])
def test_coalitions_have_the_weight_of_the_kernel_on_average(num, num_samples, key):
    count, coalition = _coalitions(num, num_samples)
    assert num_samples - 1 <= count <= num_samples
    keys = jax.random.split(key, 3000)
    draws = jax.vmap(jax.vmap(coalition, (None, 0)), (0, None))
    visible, weights = jax.jit(draws)(keys, jnp.arange(count))
    names = np.asarray(visible) @ (1 << np.arange(num))
    if count < 2**num - 2:  # the last are drawn, in pairs
        np.testing.assert_array_equal(names[:, -2] + names[:, -1], np.full(3000, 2**num - 1))
    weights = np.broadcast_to(weights, names.shape)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    got = np.bincount(names.ravel(), weights.ravel(), 2**num) / len(keys)
    sizes = np.array([bin(name).count("1") for name in range(2**num)])
    assert got[0] == got[-1] == 0
    want = np.array([kernel(num, size) for size in sizes[1:-1].tolist()])
    want /= want.sum()
    # The number of a coalition's draws is about Poisson's.
    tolerance = 5 * np.sqrt(want * weights[0, -1] / len(keys)) + 1e-6
    np.testing.assert_array_less(np.abs(got[1:-1] - want), tolerance)


def test_draws_differ_by_the_key_and_from_each_other(key):
    count, coalition = _coalitions(12, 200)
    both = [
        np.asarray(jax.vmap(coalition, (None, 0))(one, jnp.arange(24 + 132, count))[0])
        for one in (key, jax.random.key(8))
    ]
    assert np.mean(both[0] == both[1]) < 0.7
    assert len(np.unique(both[0], axis=0)) > 38  # of 44


def test_a_player_that_adds_nothing_has_nothing_and_equal_ones_have_equal_shares(key):
    def score(params, x):
        return x[0] * x[1] * x[2]

    got = jax.jit(kernel_shap(score, num_samples=14, axes=(0,)))(
        key, None, jnp.array([1, 2, 3, 4.0])
    )
    np.testing.assert_allclose(got, [2, 2, 2, 0], atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1)])
def test_segments_are_players(shape, key):
    """Whatever they are called."""
    w, x = W[:6, :8], X[:6, :8]
    rows, columns = np.arange(6) // 3, np.arange(8) // 4
    names = np.array([[7, -2], [30, 4]])[rows][:, columns].reshape(shape)
    settings = {"num_samples": 14}

    def score(params, x):
        return jnp.tanh(jnp.sum(params * x) / 5)

    @jax.jit
    def both(w, x):
        cells = kernel_shap(score, grid=2, **settings)
        segments = kernel_shap(score, segments=names, **settings)
        return cells(key, w, x), segments(key, w, x)

    cells, segments = both(w, x)
    assert np.unique(np.asarray(cells).round(4)).size == 4
    np.testing.assert_allclose(segments, cells, atol=1e-5)


def test_segments_of_channels_first(key):
    x = jnp.moveaxis(X, -1, 0)
    names = (np.arange(13)[:, None] + np.arange(9)) % 3
    explain = kernel_shap(lambda p, x: jnp.sum(x), segments=names, axes=(1, 2))
    got = jax.jit(explain)(key, None, x)
    sums = [X[names == i].sum() for i in range(3)]
    np.testing.assert_allclose(got, np.array(sums)[names][None], rtol=1e-4, atol=1e-4)


def test_one_player_has_it_all(key):
    got = kernel_shap(linear, grid=1)(key, W, X)
    np.testing.assert_allclose(got, np.full((13, 9, 1), np.sum(W * X)), rtol=1e-4)


def test_an_error_from_independent_estimates(key):
    reduction = sj.reductions.mean_and_stderr()
    x = X[:8, 0, 0]
    explain = kernel_shap(network, num_samples=40, axes=(0,))
    estimate = jax.jit(sj.smoothgrad(explain, 0.0, num_samples=8, reduction=reduction))(
        key, None, x
    )
    assert np.all(estimate.stderr > 0)
    exact = jax.jit(kernel_shap(network, axes=(0,)))(key, None, x)
    assert np.mean(np.abs(estimate.mean - exact) < 3 * estimate.stderr + 0.02) >= 7 / 8


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: kernel_shap(linear, num_samples=1), ValueError, "num_samples must be at least 2"),
        (lambda: kernel_shap(linear, segments=[0, 1]), TypeError, "an array of integers"),
        (lambda: kernel_shap(linear, segments=np.ones(2)), TypeError, "an array of integers"),
        (
            lambda: jax.jit(lambda s: kernel_shap(linear, segments=s)(KEY, W, X))(np.ones(3, int)),
            TypeError,
            "known when building",
        ),
        (
            lambda: kernel_shap(linear, num_samples=127)(KEY, W, X),
            ValueError,
            "must be at least 128, two for each of 64 players; got 127",
        ),
        (
            lambda: kernel_shap(linear, segments=np.zeros((13, 8), int))(KEY, W, X),
            ValueError,
            r"shaped like the map of x, \(13, 9, 1\).*got \(13, 8, 1\)",
        ),
        (
            lambda: kernel_shap(lambda x: 0.0, argnum=0, segments=np.zeros(3, int), axes=(0,))(
                KEY, {"a": X[0, 0], "b": X[0, 0]}
            ),
            ValueError,
            "one floating-point array; got 2",
        ),
    ],
)
def test_errors_say_what_to_type(make, error, match):
    with pytest.raises(error, match=match):
        make()


KEY = jax.random.key(0)
