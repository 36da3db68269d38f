"""Accuracy under weight noise, where it can be worked out: a linear classifier on Gaussian data."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import smoothjax as sj
from smoothjax.calibrate.weight_noise import _jackknife

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
    drop = jax.jit(sj.accuracy_drop(predict, num_samples=400))(key, W, xs, labels, sigma)
    # Given these examples only the draws vary; the stated error covers examples as well.
    assert abs(float(drop.mean) - analytic_drop(sigma, xs, labels)) < 3 * drop.stderr
    assert drop.num_samples == 400


def test_no_noise_costs_nothing(data, key):
    drop = sj.accuracy_drop(predict)(key, W, *data, 0.0)
    np.testing.assert_allclose([drop.mean, drop.stderr], [0.0, 0.0], atol=1e-6)


def test_standard_error_is_the_spread_over_new_data_and_keys():
    """Sixty experiments, each with its own data and its own key."""

    def experiment(seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 60)
        xs = rng.normal(size=(60, 4)) + 0.6 * np.outer(2 * labels - 1, W)
        return jnp.asarray(xs, jnp.float32), jnp.asarray(labels)

    def drop(key, xs, labels):
        return sj.accuracy_drop(predict, num_samples=6)(key, W, xs, labels, 0.7)

    data = jax.tree.map(lambda *a: jnp.stack(a), *map(experiment, range(60)))
    drops = jax.jit(jax.vmap(drop))(jax.random.split(jax.random.key(0), 60), *data)
    spread = np.std(drops.mean, ddof=1)
    stated = np.sqrt(np.mean(np.square(drops.stderr)))
    np.testing.assert_allclose(stated, spread, rtol=0.3)


def test_with_many_draws_the_choice_of_examples_remains_in_the_standard_error(data, key):
    xs, labels = (a[:40] for a in data)
    drop = jax.jit(sj.accuracy_drop(predict, num_samples=2000))(key, W, xs, labels, 0.7)
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
    assert jnp.isnan(sj.accuracy_drop(predict)(key, W, xs, 1 - clean, 0.1).mean)


def test_without_labels_the_clean_predictions_stand_in(data, key):
    xs, _ = data
    clean = jnp.argmax(jax.vmap(predict, (None, 0))(W, xs), -1)
    implied = sj.accuracy_drop(predict)(key, W, xs, None, 0.5)
    given = sj.accuracy_drop(predict)(key, W, xs, clean, 0.5)
    np.testing.assert_array_equal(implied.mean, given.mean)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.slow
def test_the_batch_size_changes_nothing(batch_size, data, key):
    want = sj.accuracy_drop(predict)(key, W, *data, 0.5)
    got = sj.accuracy_drop(predict, batch_size=batch_size)(key, W, *data, 0.5)
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
    drop = sj.accuracy_drop(scaled, **options)(key, params, xs, labels, 0.5)
    np.testing.assert_allclose(drop.mean, 1 - (np.mean(right) - 0.5) / (clean - 0.5), rtol=1e-5)


@pytest.mark.parametrize("target", [0.05, 0.3])
def test_the_search_recovers_the_analytic_level(target, data, key):
    xs, labels = data
    truth = optimize.brentq(lambda s: analytic_drop(s, xs, labels) - target, 1e-3, 10)
    find = sj.sigma_for_accuracy_drop(
        predict, target=target, num_samples=400, interval=(1e-3, 10.0), batch_size=400
    )
    found = find(key, W, xs, labels)
    assert abs(float(found.sigma) - truth) < 3 * found.stderr
    assert found.stderr < 0.5 * truth
    np.testing.assert_allclose(found.drop.mean, target, atol=0.01)
    slope = (analytic_drop(truth * 1.01, xs, labels) - analytic_drop(truth / 1.01, xs, labels)) / (
        truth * (1.01 - 1 / 1.01)
    )
    np.testing.assert_allclose(found.stderr, float(found.drop.stderr) / slope, rtol=0.3)


@pytest.mark.parametrize("interval", [(1e-4, 1e-3), (5.0, 10.0)])
def test_a_target_outside_the_interval_gives_nan(interval, data, key):
    found = sj.sigma_for_accuracy_drop(predict, interval=interval)(key, W, *data)
    assert np.isnan(found.sigma)


def sign_agrees(outputs, targets):
    return jnp.mean((outputs > 0) == (targets > 0))


def r2(outputs, targets):
    return 1 - jnp.mean((outputs - targets) ** 2) / jnp.var(targets)


def test_one_logit_has_no_accuracy_and_is_calibrated_by_its_sign():
    """Of normal x and equal weights, sigma of the noise flips the sign of a share that is known."""
    w, xs = jnp.ones(3), jax.random.normal(jax.random.key(1), (200, 3))

    def logit(p, x):
        return (x @ p)[None]

    with pytest.raises(ValueError, match=r"two or more classes; got shape \(1,\).*give a quality"):
        sj.sigma_for_accuracy_drop(logit)(jax.random.key(0), w, xs)
    found = jax.jit(
        sj.sigma_for_accuracy_drop(logit, quality=sign_agrees, chance=0.5, num_samples=100)
    )(jax.random.key(0), w, xs)
    # The angle's cosine is uniform: 0.05 = 2 E[Phi(-sqrt(3) u / sigma)].
    truth = 0.05 / 2 * np.sqrt(3) / stats.norm.pdf(0)
    assert abs(truth - 0.1085) < 1e-3
    assert abs(found.sigma - truth) < 3 * found.stderr
    assert found.stderr < 0.3 * truth


def test_a_regression_is_calibrated_by_r2(data, key):
    """With unit noise on each weight, the mean square error is sigma^2 sum_i w_i^2 mean(x_i^2)."""
    xs, _ = data
    targets = xs @ W
    lost = jnp.sum(W**2 * jnp.mean(xs**2, axis=0)) / jnp.var(targets)
    drop = jax.jit(sj.accuracy_drop(jnp.vdot, quality=r2, num_samples=300))
    got = drop(key, W, xs, targets, 0.3)
    assert abs(got.mean - 0.09 * lost) < 3 * got.stderr
    np.testing.assert_allclose(drop(key, W, xs, None, 0.3).mean, got.mean, rtol=1e-3)
    find = jax.jit(sj.sigma_for_accuracy_drop(jnp.vdot, quality=r2, num_samples=100))
    found = find(key, W, xs, targets)
    assert abs(found.sigma - np.sqrt(0.05 / lost)) < 3 * found.stderr


def test_a_quality_that_is_accuracy_gives_the_same(data, key):
    """The jackknife of a mean is exact, up to which examples make a group."""

    def accuracy(outputs, labels):
        return jnp.mean(jnp.argmax(outputs, axis=-1) == labels)

    options = {"num_samples": 20}
    want = jax.jit(sj.accuracy_drop(predict, **options))(key, W, *data, 0.7)
    options |= {"quality": accuracy, "chance": 0.5}
    got = jax.jit(sj.accuracy_drop(predict, **options))(key, W, *data, 0.7)
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-5)
    np.testing.assert_allclose(got.stderr, want.stderr, rtol=3 / np.sqrt(2 * 19))


@pytest.mark.parametrize("num", [20, 30, 37, 50])
def test_the_jackknife_of_a_mean_has_the_error_of_all_examples(num):
    """Whether or not 20 groups of equal size hold all of them: the variance is var(x) / n."""

    @jax.jit
    @jax.vmap
    def variance(xs):
        values, whole = _jackknife(lambda outputs, targets: jnp.mean(outputs), xs, xs)
        return jnp.sum((values - whole) ** 2) / (values.size * (values.size - 1))

    xs = jax.random.normal(jax.random.key(num), (3000, num))
    np.testing.assert_allclose(jnp.mean(variance(xs)), 1 / num, rtol=0.03)


def test_a_column_of_outputs_beside_a_row_of_targets_is_refused(data, key):
    xs, _ = data
    targets = xs @ W

    def column(p, x):
        return jnp.vdot(p, x)[None]

    drop = sj.accuracy_drop(column, quality=r2, num_samples=2)
    with pytest.raises(ValueError, match="Return a scalar for each example"):
        drop(key, W, xs, targets, 0.3)
    with pytest.raises(ValueError, match="Return a scalar for each example"):
        sj.accuracy_drop(jnp.vdot, quality=r2)(key, W, xs, targets[:, None], 0.3)
    assert jnp.isfinite(drop(key, W, xs, targets[:, None], 0.3).mean)


def test_a_segmentation_is_calibrated_by_its_intersection_over_union(key):
    xs = jax.random.normal(jax.random.key(2), (23, 6, 6, 4))

    def segment(params, x):
        return {"mask": x @ params}

    def iou(outputs, targets):
        a, b = outputs["mask"] > 0, targets["mask"]
        return jnp.sum(a & b) / jnp.sum(a | b)

    targets = {"mask": np.asarray(xs @ W > 0)}
    drop = jax.jit(sj.accuracy_drop(segment, quality=iou))
    mild, strong = (drop(key, W, xs, targets, sigma) for sigma in (0.1, 1.0))
    assert 0 < mild.mean < strong.mean < 1
    assert mild.stderr < mild.mean


def test_what_is_no_quality_is_refused(key):
    for quality, error, message in [
        (0.5, TypeError, "quality must be a function"),
        (lambda outputs, targets: outputs, TypeError, r"real scalar.*got shape \(2, 2\)"),
        (lambda outputs, targets: jnp.bool_(True), TypeError, "real scalar.*dtype bool"),
    ]:
        with pytest.raises(error, match=message):
            sj.accuracy_drop(predict, quality=quality)(key, W, XS, None, 0.1)
    with pytest.raises(ValueError, match="there are 2 targets for 3 examples"):
        sj.accuracy_drop(predict, quality=r2)(key, W, XS, jnp.ones((2, 2)), 0.1)
    with pytest.raises(TypeError, match="chance must be a number"):
        sj.accuracy_drop(predict, quality=r2, chance="0")
    with pytest.raises(ValueError, match=r"got a pytree.*give a quality"):
        sj.accuracy_drop(lambda p, x: {"a": x})(key, W, XS, None, 0.1)


def test_names_and_signatures():
    drop, find = sj.accuracy_drop(predict), sj.sigma_for_accuracy_drop(predict)
    assert drop.__name__ == "accuracy_drop(predict)"
    assert str(inspect.signature(drop)) == "(key, /, params, xs, targets, sigma)"
    assert str(inspect.signature(find)) == "(key, /, params, xs, targets=None)"
    assert sj.is_stochastic(drop)
    assert sj.is_stochastic(find)


BAD_SETTINGS = [
    (sj.accuracy_drop, {"predict": None}, TypeError, "takes a function"),
    (sj.accuracy_drop, {"num_samples": 1}, ValueError, "at least 2"),
    (sj.accuracy_drop, {"batch_size": 0}, ValueError, "batch_size"),
    (sj.accuracy_drop, {"where": 1}, TypeError, "`where` holds bools"),
    (sj.sigma_for_accuracy_drop, {"target": 5}, ValueError, "target must be above 0 and below 1"),
    (sj.sigma_for_accuracy_drop, {"interval": (0, 1)}, ValueError, "0 < low < h"),
    (sj.sigma_for_accuracy_drop, {"num_steps": 0}, ValueError, "num_steps"),
    (sj.sigma_for_accuracy_drop, {"where": 1}, TypeError, "`where` holds bools"),
]


@pytest.mark.parametrize(("function", "settings", "error", "message"), BAD_SETTINGS)
def test_bad_settings_are_refused_when_building(function, settings, error, message):
    with pytest.raises(error, match=f"(?s){message}.*in {function.__name__}"):
        function(**{"predict": predict, **settings})


XS = jnp.ones((3, 4), W.dtype)
BAD_DATA = [
    ((W, XS, None, -0.1), ValueError, "sigma must not be negative"),
    ((W, XS[:1], None, 0.1), ValueError, "at least 2"),
    ((W, 3.0, None, 0.1), TypeError, "leading axis"),
    ((W, XS, [1, 2], 0.1), ValueError, r"targets.*\(3,\)"),
    ((W, XS, jnp.ones(3), 0.1), ValueError, "targets must be int"),
    (
        (W, XS, [0, 1, 5], 0.1),
        ValueError,
        "labels from 0 to 1, since predict returns 2 logits; got 0 to 5",
    ),
]


@pytest.mark.parametrize(("args", "error", "message"), BAD_DATA)
def test_bad_data_are_refused(args, error, message, key):
    with pytest.raises(error, match=rf"(?s){message}.*in accuracy_drop\(predict\)"):
        sj.accuracy_drop(predict)(key, *args)
    if args[-1] > 0:
        with pytest.raises(error, match=rf"(?s){message}.*in sigma_for_accuracy_drop\(predict\)"):
            sj.sigma_for_accuracy_drop(predict)(key, *args[:-1])


def test_what_predict_returns_is_checked(key):
    message = r"logits of shape \(num_classes,\) for one example, of two or more.*got shape \(\)"
    with pytest.raises(ValueError, match=message):
        sj.accuracy_drop(lambda p, x: p @ x)(key, W, XS, None, 0.1)
    with pytest.raises(TypeError, match="takes a PRNG key"):
        sj.accuracy_drop(predict)(W, XS, None, 0.1)


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.slow
def test_a_traced_label_that_there_is_not_gives_nan(label, data, key):
    xs, labels = data
    labels = labels.at[3].set(label)
    drop = jax.jit(sj.accuracy_drop(predict, num_samples=2))(key, W, xs, labels, 0.1)
    assert np.isnan(drop.mean)
    assert np.isnan(drop.stderr)
    find = jax.jit(sj.sigma_for_accuracy_drop(predict, num_samples=2, num_steps=2))
    assert np.isnan(find(key, W, xs, labels).sigma)


def test_logits_that_are_missing_are_right_for_no_class(key):
    """Of NaN, the greatest is the first."""

    def broken(params, x):
        return jnp.where(params["is_clean"] == 1, predict(params["w"], x), jnp.nan)

    xs = jax.random.normal(key, (8, 4))
    drop = sj.accuracy_drop(broken, num_samples=2)
    found = drop(key, {"w": W, "is_clean": jnp.ones(())}, xs, None, 0.1)
    np.testing.assert_allclose(found.mean, 2, rtol=1e-6)  # from 1 to 0, with chance at 1/2
    assert np.isnan(drop(key, {"w": W, "is_clean": jnp.zeros(())}, xs, None, 0.1).mean)
