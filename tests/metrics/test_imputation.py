"""ROAD's imputation against a dense solver and closed forms, and its curves against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax.metrics import road, srg
from smoothjax.metrics._imputation import linear_imputation

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)


def solved(x, hidden):
    """Written out for (H, W): one equation for each hidden pixel."""
    places = np.argwhere(hidden)
    number = {tuple(place): i for i, place in enumerate(places)}
    matrix, sides = np.zeros((len(places),) * 2), np.zeros(len(places))
    for i, (row, column) in enumerate(places):
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                weight = {0: 0, 1: 1 / 6, 2: 1 / 12}[abs(down) + abs(right)]
                there = (row + down, column + right)
                if weight and 0 <= there[0] < x.shape[0] and 0 <= there[1] < x.shape[1]:
                    matrix[i, i] += weight
                    if there in number:
                        matrix[i, number[there]] -= weight
                    else:
                        sides[i] += weight * x[there]
    filled = np.array(x, float)
    filled[hidden] = np.linalg.solve(matrix, sides)
    return filled


def imputed(x, hidden, axes=(0, 1), noise=0.0):
    run = jax.jit(lambda x, hidden: linear_imputation(KEY, x, axes, noise)(hidden))
    return np.asarray(run(jnp.asarray(x), jnp.asarray(hidden)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_imputed_is_what_the_equations_say(share):
    x = RNG.normal(size=(9, 7, 3)).astype(np.float32)
    hidden = RNG.random((9, 7)) < share
    want = np.stack([solved(x[..., c], hidden) for c in range(3)], axis=-1)
    assert np.abs(want - x).max() > 0.5
    np.testing.assert_allclose(imputed(x, hidden[..., None]), want, atol=1e-3)
    first = imputed(np.moveaxis(x, -1, 0), hidden, axes=(1, 2))
    np.testing.assert_allclose(np.moveaxis(first, 0, -1), want, atol=1e-3)


def test_entries_can_be_hidden_channel_by_channel():
    x = RNG.normal(size=(6, 6, 2)).astype(np.float32)
    hidden = RNG.random((6, 6, 2)) < 0.4
    want = np.stack([solved(x[..., c], hidden[..., c]) for c in range(2)], axis=-1)
    np.testing.assert_allclose(imputed(x, hidden), want, atol=1e-3)


def test_a_linear_ramp_is_restored():
    """Where the border is known: whatever is hidden, and in one dimension too."""
    ramp = (2 + 0.5 * np.arange(12)[:, None] - 0.25 * np.arange(10)).astype(np.float32)
    hidden = np.zeros((12, 10), bool)
    hidden[1:-1, 1:-1] = True
    np.testing.assert_allclose(imputed(ramp, hidden), ramp, atol=2e-3)
    hidden &= RNG.random((12, 10)) < 0.5
    np.testing.assert_allclose(imputed(ramp, hidden), ramp, atol=2e-3)
    line = np.arange(20, dtype=np.float32)
    hidden = (0 < line) & (line < 19)
    np.testing.assert_allclose(imputed(line, hidden, axes=(0,)), line, atol=5e-3)


def test_what_is_seen_stays_and_what_is_not_is_forgotten():
    x = RNG.normal(size=(8, 8)).astype(np.float32)
    hidden = RNG.random((8, 8)) < 0.3
    got = imputed(x, hidden, noise=0.1)
    np.testing.assert_array_equal(got[~hidden], x[~hidden])
    other = imputed(np.where(hidden, x.mean(where=hidden), x), hidden, noise=0.1)
    np.testing.assert_allclose(got, other, atol=1e-4)


def test_where_all_is_hidden_each_channel_has_its_mean():
    x = RNG.normal(size=(8, 9, 3)).astype(np.float32)
    want = np.broadcast_to(x.mean((0, 1)), x.shape)
    np.testing.assert_allclose(imputed(x, True), want, atol=1e-6)
    np.testing.assert_array_equal(imputed(x, False), x)


def test_noise_has_its_deviation_and_is_where_something_was_hidden():
    x = np.ones((60, 50), np.float32)
    hidden = RNG.random(x.shape) < 0.9
    noise = (imputed(x, hidden, noise=0.25) - 1)[hidden]
    assert abs(noise.mean()) < 4 * 0.25 / np.sqrt(noise.size)
    np.testing.assert_allclose(noise.std(), 0.25, rtol=4 / np.sqrt(2 * noise.size))


def test_of_a_batch_each_is_solved():
    xs = RNG.normal(size=(3, 6, 5)).astype(np.float32)
    hidden = RNG.random((3, 6, 5)) < np.array([0.05, 0.5, 0.9])[:, None, None]
    got = jax.jit(jax.vmap(lambda x, h: linear_imputation(KEY, x, (0, 1), 0.0)(h)))(xs, hidden)
    want = [solved(x, h) for x, h in zip(xs, hidden, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_half_precision_is_imputed_in_single_precision():
    x = jnp.asarray(RNG.normal(size=(6, 5)), jnp.bfloat16)
    hidden = RNG.random((6, 5)) < 0.5
    got = linear_imputation(KEY, x, (0, 1), 0.0)(jnp.asarray(hidden))
    assert got.dtype == jnp.bfloat16
    want = solved(np.asarray(x, float), hidden)
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=0.01, atol=2e-3)


def test_road_is_the_area_between_the_curves_of_both_orders():
    x, w = RNG.normal(size=(2, 6, 5)).astype(np.float32)
    importance = RNG.permutation(30).reshape(6, 5).astype(np.float32)

    def score(params, x):
        return jnp.tanh(jnp.sum(params * x) / 5)

    def area(order):
        """Over five steps of six pixels, the last of which hides all."""
        scores = []
        for k in range(6):
            hidden = np.isin(importance, order[: 6 * k])
            filled = np.full((6, 5), x.mean()) if k == 5 else solved(x, hidden)
            scores.append(float(score(w, filled)))
        return np.trapezoid(scores, dx=1 / 5)

    want = area(np.arange(30)) - area(np.arange(30)[::-1])
    assert abs(want) > 0.05
    metric = jax.jit(road(score, num_steps=5, noise=0.0))
    np.testing.assert_allclose(metric(KEY, w, x, importance), want, atol=1e-3)
    np.testing.assert_allclose(metric(KEY, w, x, -importance), -want, atol=1e-3)


def test_a_constant_picture_is_imputed_by_itself():
    metric = road(lambda params, x: jnp.sum(params * x), noise=0.0)
    w, x = RNG.normal(size=(6, 5)).astype(np.float32), np.ones((6, 5), np.float32)
    np.testing.assert_allclose(metric(KEY, w, x, w), 0, atol=1e-5)
    noisy = road(lambda params, x: jnp.sum(params * x), noise=0.5)
    assert abs(noisy(KEY, w, x, w)) > 1e-3


def test_a_stochastic_score_does_not_share_its_key_with_the_noise():
    @sj.stochastic
    def weighted(key, params, x):
        return jnp.sum(jax.random.normal(key, x.shape) * x)

    x = jnp.zeros((6, 5))
    eps = jax.random.normal(jax.random.split(KEY)[1], x.shape)
    # If the weights were the noise, what is hidden would add its square.
    shared = srg(lambda params, x: jnp.sum(x), baseline=eps**2)(None, x, -(eps**2))
    assert shared > 1
    got = jax.jit(road(weighted, noise=1.0))(KEY, None, x, -(eps**2))
    assert abs(got - shared) > 0.5
