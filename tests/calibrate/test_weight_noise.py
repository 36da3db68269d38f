"""Accuracy under weight noise, where it can be worked out: a linear classifier on Gaussian data."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import smoothjax as sj

W = jnp.array([1.0, -2.0, 0.5, 1.5], jnp.float32)


def predict(params, x):
    return jnp.array([0.0, 1.0], x.dtype) * (params @ x)


@pytest.fixture(scope="module")
def data():
    """Two Gaussian classes, and labels of which some are wrong for the classifier."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    xs = rng.normal(size=(400, 4)) + 0.6 * np.outer(2 * labels - 1, W)
    return jnp.asarray(xs, jnp.float32), jnp.asarray(labels)


def analytic_drop(sigma, xs, labels):
    """The noisy logit of x is normal with mean w.x and deviation sigma |w * x|."""
    xs, labels, w = (np.asarray(a, np.float64) for a in (xs, labels, W))
    sign = 2 * labels - 1
    right = stats.norm.cdf(sign * (xs @ w) / (sigma * np.linalg.norm(xs * w, axis=1)))
    clean = np.mean(sign * (xs @ w) > 0)
    return float(1 - (np.mean(right) - 0.5) / (clean - 0.5))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_drop_of_a_linear_classifier(sigma, data, key):
    xs, labels = data
    drop = jax.jit(sj.accuracy_drop(predict, W, xs, labels, sigma, num_samples=400))(key)
    # Given these examples only the draws vary; the stated error covers examples as well.
    assert abs(float(drop.mean) - analytic_drop(sigma, xs, labels)) < 3 * drop.stderr
    assert drop.num_samples == 400


def test_no_noise_costs_nothing(data, key):
    drop = sj.accuracy_drop(predict, W, *data, 0.0)(key)
    np.testing.assert_allclose([drop.mean, drop.stderr], [0.0, 0.0], atol=1e-6)


def test_standard_error_is_the_spread_over_new_data_and_keys():
    """Sixty experiments, each with its own data and its own key."""

    def experiment(seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 60)
        xs = rng.normal(size=(60, 4)) + 0.6 * np.outer(2 * labels - 1, W)
        return jnp.asarray(xs, jnp.float32), jnp.asarray(labels)

    def drop(key, xs, labels):
        return sj.accuracy_drop(predict, W, xs, labels, 0.7, num_samples=6)(key)

    data = jax.tree.map(lambda *a: jnp.stack(a), *map(experiment, range(60)))
    drops = jax.jit(jax.vmap(drop))(jax.random.split(jax.random.key(0), 60), *data)
    spread = np.std(drops.mean, ddof=1)
    stated = np.sqrt(np.mean(np.square(drops.stderr)))
    np.testing.assert_allclose(stated, spread, rtol=0.3)


def test_with_many_draws_the_choice_of_examples_remains_in_the_standard_error(data, key):
    xs, labels = (a[:40] for a in data)
    drop = jax.jit(sj.accuracy_drop(predict, W, xs, labels, 0.7, num_samples=2000))(key)
    sign = 2 * np.asarray(labels) - 1
    margins = np.asarray(xs, np.float64) @ np.asarray(W)
    right = stats.norm.cdf(sign * margins / (0.7 * np.linalg.norm(xs * W[None], axis=1)))
    clean = sign * margins > 0
    kept = (right.mean() - 0.5) / (clean.mean() - 0.5)
    influence = (right - 0.5 - kept * (clean - 0.5)) / (clean.mean() - 0.5)
    over_examples = influence.std(ddof=1) / np.sqrt(40)
    assert over_examples > 3 * 0.5 / np.sqrt(2000)
    np.testing.assert_allclose(drop.stderr, over_examples, rtol=0.1)


def test_at_chance_the_drop_is_nan(data, key):
    xs, _ = data
    clean = jnp.argmax(jax.vmap(predict, (None, 0))(W, xs), -1)
    assert jnp.isnan(sj.accuracy_drop(predict, W, xs, 1 - clean, 0.1)(key).mean)


def test_without_labels_the_clean_predictions_stand_in(data, key):
    xs, _ = data
    clean = jnp.argmax(jax.vmap(predict, (None, 0))(W, xs), -1)
    implied = sj.accuracy_drop(predict, W, xs, None, 0.5)(key)
    given = sj.accuracy_drop(predict, W, xs, clean, 0.5)(key)
    np.testing.assert_array_equal(implied.mean, given.mean)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_changes_nothing(batch_size, data, key):
    want = sj.accuracy_drop(predict, W, *data, 0.5)(key)
    got = sj.accuracy_drop(predict, W, *data, 0.5, batch_size=batch_size)(key)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-5)


def test_the_noise_is_that_of_noisegrad(data, key):
    """Same key, level, mask and sampler: the weights judged are those that NoiseGrad explains."""
    params = {"w": W, "scale": jnp.array([1.0], W.dtype)}
    options = {
        "num_samples": 5,
        "where": {"w": True, "scale": False},
        "sampler": jax.random.laplace,
    }
    xs, labels = data

    def scaled(params, x):
        return predict(params["w"], x) * params["scale"]

    stack = sj.reductions.stack()
    drawn = sj.noisegrad(lambda params: params, 0.5, **options, reduction=stack)(key, params)
    right = [
        np.mean(jnp.argmax(jax.vmap(predict, (None, 0))(w, xs), -1) == labels) for w in drawn["w"]
    ]
    clean = np.mean(jnp.argmax(jax.vmap(predict, (None, 0))(W, xs), -1) == labels)
    drop = sj.accuracy_drop(scaled, params, xs, labels, 0.5, **options)(key)
    np.testing.assert_allclose(drop.mean, 1 - (np.mean(right) - 0.5) / (clean - 0.5), rtol=1e-5)


@pytest.mark.parametrize("target", [0.05, 0.3])
def test_the_search_recovers_the_analytic_level(target, data, key):
    xs, labels = data
    truth = optimize.brentq(lambda s: analytic_drop(s, xs, labels) - target, 1e-3, 10)
    find = sj.sigma_for_accuracy_drop(
        predict,
        W,
        xs,
        labels,
        target=target,
        num_samples=400,
        interval=(1e-3, 10.0),
        batch_size=400,
    )
    found = find(key)
    assert abs(float(found.sigma) - truth) < 3 * found.stderr
    assert found.stderr < 0.5 * truth
    np.testing.assert_allclose(found.drop.mean, target, atol=0.01)
    slope = (analytic_drop(truth * 1.01, xs, labels) - analytic_drop(truth / 1.01, xs, labels)) / (
        truth * (1.01 - 1 / 1.01)
    )
    np.testing.assert_allclose(found.stderr, float(found.drop.stderr) / slope, rtol=0.3)


@pytest.mark.parametrize("interval", [(1e-4, 1e-3), (5.0, 10.0)])
def test_a_target_outside_the_interval_gives_nan(interval, data, key):
    found = sj.sigma_for_accuracy_drop(predict, W, *data, interval=interval)(key)
    assert np.isnan(found.sigma)


def test_names_and_signatures():
    drop = sj.accuracy_drop(predict, W, jnp.ones((3, 4)), None, 0.1)
    assert drop.__name__ == "accuracy_drop(predict)"
    assert str(inspect.signature(drop)) == "(key, /)"
    assert sj.is_stochastic(drop)


XS = jnp.ones((3, 4), W.dtype)
BAD = [
    (lambda: sj.accuracy_drop(None, W, XS, None, 0.1), TypeError, "takes a function"),
    (
        lambda: sj.accuracy_drop(predict, W, XS, None, -0.1),
        ValueError,
        "sigma must not be negative",
    ),
    (lambda: sj.accuracy_drop(predict, W, XS[:1], None, 0.1), ValueError, "at least 2"),
    (lambda: sj.accuracy_drop(predict, W, 3.0, None, 0.1), ValueError, "leading axis"),
    (lambda: sj.accuracy_drop(predict, W, XS, [1, 2], 0.1), ValueError, r"labels.*\(3,\)"),
    (lambda: sj.accuracy_drop(predict, W, XS, jnp.ones(3), 0.1), ValueError, "labels must be int"),
    (lambda: sj.accuracy_drop(predict, W, XS, None, 0.1, num_samples=1), ValueError, "at least 2"),
    (lambda: sj.accuracy_drop(predict, W, XS, None, 0.1, batch_size=0), ValueError, "batch_size"),
    (lambda: sj.accuracy_drop(predict, W, XS, None, 0.1)(0), TypeError, "takes a PRNG key"),
    (
        lambda: sj.accuracy_drop(lambda p, x: p @ x, W, XS, None, 0.1)(jax.random.key(0)),
        ValueError,
        r"must return logits of shape \(num_classes,\) for one example; got shape \(\)",
    ),
    (
        lambda: sj.accuracy_drop(predict, W, XS, [0, 1, 5], 0.1)(jax.random.key(0)),
        ValueError,
        "labels must be from 0 to 1, since predict returns 2 logits; got 0 to 5",
    ),
    (
        lambda: sj.sigma_for_accuracy_drop(predict, W, XS, target=5),
        ValueError,
        "target must be insi",
    ),
    (
        lambda: sj.sigma_for_accuracy_drop(predict, W, XS, interval=(0, 1)),
        ValueError,
        "0 < low < h",
    ),
    (lambda: sj.sigma_for_accuracy_drop(predict, W, XS, num_steps=0), ValueError, "num_steps"),
    (lambda: sj.sigma_for_accuracy_drop(predict, W, XS, where=1), TypeError, "`where` holds bools"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
