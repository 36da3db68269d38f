"""Robustness against closed forms and a NumPy loop over the points that the explainer was given."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax.metrics.robustness import (
    average_sensitivity,
    local_lipschitz,
    max_sensitivity,
    relative_input_stability,
    relative_output_stability,
)
from smoothjax.reductions import mean_and_stderr

METRICS = {
    "local_lipschitz": local_lipschitz,
    "max_sensitivity": max_sensitivity,
    "average_sensitivity": average_sensitivity,
}
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 2)), jnp.float32)
RADIUS = 0.25


def scaled(params, x):
    return params * x


def squared(params, x):
    return params * x**2


def constantly(params, x):
    return jnp.full(x.shape, params)


def identity(params, x):
    return x


@functools.cache
def compiled(metric, explain, **settings):
    """Compiled once for all tests, which is most of what they do."""
    return jax.jit(metric(explain, **{"radius": RADIUS, **settings}))


def run(metric, explain, key, params, x, **settings):
    return float(compiled(metric, explain, **settings)(key, params, x))


def recorded(explain):
    """The explainer, and a list to which each x that it is called with is added."""
    seen = []

    def recording(*args):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), args[-1])
        return explain(*args)

    return recording, seen


def recorded_run(metric, explain, key, params, x, **settings):
    """The value of the metric, then the points that it asked for but x itself, in float64."""
    recording, seen = recorded(explain)
    made = metric(recording, **{"radius": RADIUS, "chunk_size": 1, **settings})
    value = float(jax.jit(made)(key, params, x))
    jax.effects_barrier()
    is_x = [np.array_equal(point, x) for point in seen]
    assert sum(is_x) == 1
    return value, np.array([p for p, itself in zip(seen, is_x, strict=True) if not itself], float)


# Against a loop


def test_metrics_are_what_a_loop_finds_over_the_same_points(key):
    def nonlinear(params, x):
        return jnp.sin(params * x) * jnp.sum(x)

    def direct(x):
        return np.sin(3 * x) * x.sum()

    x, all_points = np.asarray(X, float), []
    for metric in METRICS.values():
        value, points = recorded_run(metric, nonlinear, key, 3.0, X, num_samples=5, chunk_size=2)
        assert len(points) == 5
        all_points.append(np.sort(points, axis=0))
        np.testing.assert_array_equal(all_points[-1], all_points[0])
        change = [np.linalg.norm(direct(p) - direct(x)) for p in points]
        length = [np.linalg.norm(p - x) for p in points]
        expected = {
            local_lipschitz: np.max(np.divide(change, length)),
            max_sensitivity: np.max(change) / np.linalg.norm(direct(x)),
            average_sensitivity: np.mean(change) / np.linalg.norm(direct(x)),
        }
        np.testing.assert_allclose(value, expected[metric], rtol=1e-5)


def test_points_are_uniform_in_the_box(key):
    """Their means, variances and extremes, and the correlations of entries and of draws."""
    _, points = recorded_run(max_sensitivity, identity, key, None, X[0], num_samples=2000)
    steps = (points - np.asarray(X[0])).reshape(2000, -1) / RADIUS
    assert np.abs(steps).max() <= 1 + 1e-6
    np.testing.assert_array_less(0.99, steps.max(0))
    np.testing.assert_array_less(steps.min(0), -0.99)
    np.testing.assert_array_less(np.abs(steps.mean(0)), 4 * np.sqrt(1 / 3 / 2000))
    np.testing.assert_array_less(np.abs(steps.var(0) - 1 / 3), 4 * np.sqrt(4 / 45 / 2000))
    correlations = np.corrcoef(steps.T) - np.eye(steps.shape[1])
    np.testing.assert_array_less(np.abs(correlations), 4.5 / np.sqrt(2000))
    assert len(np.unique(steps, axis=0)) == 2000


def test_the_radius_is_one_for_all_or_one_for_each_entry_or_a_function_of_x(key):
    def reach(radius):
        settings = {"num_samples": 300, "radius": radius}
        _, points = recorded_run(max_sensitivity, identity, key, None, X, **settings)
        return np.abs(points - np.asarray(X)).max(0)

    per_channel = np.array([[[0.5, 0.0]]], np.float32)
    got = reach(per_channel)
    assert (0.45 < got[..., 0]).all()
    assert (got <= 0.5 + 1e-6).all()
    assert (got[..., 1] == 0).all()
    span = float(jnp.max(X) - jnp.min(X))
    got = reach(sj.relative(0.1)) / (0.1 * span)
    assert (0.95 < got).all()
    assert (got <= 1 + 1e-5).all()


# Closed forms


def test_the_slope_of_a_linear_map_is_between_its_singular_values(key):
    matrix = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)
    x = jnp.array([1.0, -2.0, 0.5], jnp.float32)
    singular = np.linalg.svd(matrix, compute_uv=False)
    got = run(local_lipschitz, jnp.matmul, key, matrix, x, num_samples=1000, chunk_size=1000)
    assert 0.98 * singular[0] < got <= singular[0] * (1 + 1e-5)
    one = run(local_lipschitz, jnp.matmul, key, matrix, x, num_samples=1)
    assert singular[-1] < one < singular[0]


@pytest.mark.parametrize("factor", [3.0, -0.7, 1e-25])
def test_the_slope_of_a_multiple_is_exact(factor, key):
    np.testing.assert_allclose(run(local_lipschitz, scaled, key, factor, X), abs(factor), rtol=1e-5)


def test_the_slope_of_a_square(key):
    """|x'^2 - x^2| / |x' - x| = |x' + x|, at most 2 |x| + radius."""
    for x in (2.0, -2.0):
        settings = {"num_samples": 500, "chunk_size": 500}
        got = run(local_lipschitz, squared, key, 3.0, jnp.array([x]), **settings)
        assert 3 * (4 + 0.97 * RADIUS) < got <= 3 * (4 + RADIUS) * (1 + 1e-5)


def test_sensitivities_of_a_multiple(key):
    """Of one entry, |x' - x| / |x| is uniform on [0, radius / |x|]."""
    x = jnp.array([-2.0])
    settings = {"num_samples": 500, "chunk_size": 500}
    most = run(max_sensitivity, scaled, key, 3.0, x, **settings)
    assert 0.97 * RADIUS / 2 < most <= RADIUS / 2 * (1 + 1e-6)
    average = run(average_sensitivity, scaled, key, 3.0, x, **settings)
    assert abs(average - RADIUS / 4) < 4 * RADIUS / 2 * np.sqrt(1 / 12 / 500)


def test_sensitivities_of_many_entries(key):
    """The root mean square of d uniform steps is nearly radius sqrt(1 / 3)."""
    got = run(max_sensitivity, scaled, key, 5.0, jnp.ones(3000))
    np.testing.assert_allclose(got, RADIUS / np.sqrt(3), rtol=0.03)


def test_only_the_slope_grows_with_the_scale(key):
    for metric, factor in (
        (local_lipschitz, 7.0),
        (max_sensitivity, 1.0),
        (average_sensitivity, 1.0),
    ):
        plain = run(metric, squared, key, 1.0, X)
        np.testing.assert_allclose(run(metric, squared, key, -7.0, X), factor * plain, rtol=1e-5)
    plain = run(max_sensitivity, squared, key, 1.0, X)
    for tiny_or_huge in (1e-30, 1e30):
        got = run(max_sensitivity, squared, key, tiny_or_huge, X)
        np.testing.assert_allclose(got, plain, rtol=1e-5)


def test_more_samples_find_more_and_the_first_are_the_same(key):
    few, more, many = (
        run(local_lipschitz, squared, key, 1.0, X, num_samples=n) for n in (1, 10, 100)
    )
    assert few <= more <= many
    assert few < many
    assert run(average_sensitivity, squared, key, 1.0, X) < run(
        max_sensitivity, squared, key, 1.0, X
    )


@pytest.mark.parametrize("metric", [local_lipschitz, average_sensitivity])
@pytest.mark.slow
def test_the_chunk_size_is_of_no_consequence(metric, key):
    got = [run(metric, squared, key, 1.0, X, chunk_size=size) for size in (4, 10)]
    np.testing.assert_allclose(got, run(metric, squared, key, 1.0, X), rtol=1e-6)


@each_metric
def test_a_key_gives_one_value_and_another_key_another(metric, key):
    value = run(metric, squared, key, 1.0, X)
    assert value == run(metric, squared, key, 1.0, X)
    assert value != run(metric, squared, jax.random.key(8), 1.0, X)


# Special values


@each_metric
def test_what_does_not_change_scores_0(metric, key):
    for constant in (4.0, 0.0):
        assert run(metric, constantly, key, constant, X) == 0


@each_metric
@pytest.mark.slow
def test_a_radius_that_is_zero_everywhere_is_no_test(metric, key):
    rule = sj.relative(0.1)
    assert np.isnan(run(metric, scaled, key, 3.0, jnp.ones(4), radius=rule))
    assert not np.isnan(run(metric, scaled, key, 3.0, jnp.ones(4).at[0].set(2), radius=rule))
    traced = jax.jit(lambda radius: metric(scaled, radius=radius)(key, 3.0, X))
    assert np.isnan(traced(0.0))
    assert not np.isnan(traced(0.1))


def test_an_explanation_that_is_zero_at_x_alone_changes_infinitely(key):
    def elsewhere(params, x):
        return x - X

    assert run(max_sensitivity, elsewhere, key, None, X) == np.inf
    assert run(average_sensitivity, elsewhere, key, None, X) == np.inf
    np.testing.assert_allclose(run(local_lipschitz, elsewhere, key, None, X), 1, rtol=1e-6)


@pytest.mark.parametrize("metric", [local_lipschitz, average_sensitivity])
def test_nan_at_x_or_at_one_draw_gives_nan(metric, key):
    x = jnp.array([1.0])
    _, points = recorded_run(metric, identity, key, None, x)
    greatest = np.sort(points.ravel())[-2:].mean()

    def broken(params, x):
        return jnp.where((params - x) * jnp.sign(params) > 0, x, jnp.nan)

    assert np.isnan(run(metric, scaled, key, np.nan, X))
    assert np.isnan(run(metric, broken, key, greatest, x))
    assert not np.isnan(run(metric, broken, key, 5.0, x))


# Explainers of all kinds


def test_norms_are_over_the_whole_pytree(key):
    def several(params, x):
        return {"a": 2 * x, "b": (x[0], -jnp.ones(3)), "c": np.zeros(2, jax.dtypes.float0)}

    x = jnp.array([3.0])
    np.testing.assert_allclose(run(local_lipschitz, several, key, None, x), np.sqrt(5), rtol=1e-5)
    ratio = run(max_sensitivity, several, key, None, x) / run(max_sensitivity, scaled, key, 1.0, x)
    np.testing.assert_allclose(ratio, 3 * np.sqrt(5) / np.sqrt(36 + 9 + 3), rtol=1e-5)


def test_complex_and_integer_explanations(key):
    x = jnp.array([3.0])

    def turned(params, x):
        return jax.lax.complex(x, 2 * x), jnp.round(0 * x).astype(jnp.int32)

    np.testing.assert_allclose(run(local_lipschitz, turned, key, None, x), np.sqrt(5), rtol=1e-5)


@pytest.mark.parametrize("metric", [local_lipschitz, max_sensitivity])
def test_a_stochastic_explainer_gets_one_key_for_all_points(metric, key):
    """x plus noise moves as x does if the noise is the same, and its slope is then 1."""
    noisy = sj.smoothgrad(lambda params, x: params * x, 100.0, num_samples=2)
    assert sj.is_stochastic(noisy)
    if metric is local_lipschitz:
        np.testing.assert_allclose(run(metric, noisy, key, 1.0, X), 1.0, rtol=1e-3)
    else:
        # The step, relative to what is mostly noise of 100 / sqrt(2) in each entry.
        expected = RADIUS / np.sqrt(3) / (100 / np.sqrt(2))
        np.testing.assert_allclose(run(metric, noisy, key, 1.0, X), expected, rtol=0.5)


def test_the_key_of_a_stochastic_explainer_is_random_and_not_that_of_the_draws(key):
    @sj.stochastic
    def random_factor(key, params, x):
        return jax.random.normal(key) * x

    keys = jax.random.split(key, 400)
    metric = local_lipschitz(random_factor, radius=RADIUS, num_samples=2)
    factors = np.asarray(jax.jit(jax.vmap(metric, (0, None, None)))(keys, None, jnp.array([1.0])))
    # A half-normal distribution: mean sqrt(2 / pi), mean square 1.
    assert abs(factors.mean() - np.sqrt(2 / np.pi)) < 4 * np.sqrt((1 - 2 / np.pi) / 400)
    assert abs((factors**2).mean() - 1) < 4 * np.sqrt(2 / 400)
    sensitivity = max_sensitivity(random_factor, radius=RADIUS, num_samples=2)
    changes = jax.jit(jax.vmap(sensitivity, (0, None, None)))(keys, None, jnp.array([1.0]))
    assert abs(np.corrcoef(factors, changes)[0, 1]) < 4 / np.sqrt(400)


def test_a_metric_within_a_metric_draws_other_points(key):
    """x, a step from it by the outer metric, and a step from each by the inner one."""
    recording, seen = recorded(identity)
    inner = max_sensitivity(recording, radius=RADIUS, num_samples=1)
    jax.jit(max_sensitivity(inner, radius=RADIUS, num_samples=1))(key, None, X)
    jax.effects_barrier()
    assert len(seen) == len(np.unique(seen, axis=0)) == 4


def test_another_argument_keywords_and_labels(key):
    def explain(x, label, *, power):
        return x**power * label

    metric = max_sensitivity(explain, radius=RADIUS, argnum=0)
    got = jax.jit(functools.partial(metric, power=2))(key, X, 3.0)
    np.testing.assert_allclose(got, run(max_sensitivity, squared, key, 3.0, X), rtol=1e-6)


def test_names_marks_and_signatures():
    for name, metric in METRICS.items():
        made = metric(scaled, radius=RADIUS)
        assert made.__name__ == f"{name}(scaled)"
        assert sj.is_stochastic(made)
        assert list(inspect.signature(made).parameters) == ["key", "params", "x"]


# Dtypes, batches, memory


def test_in_half_precision_the_step_is_what_the_explainer_saw(key):
    """Steps are rounded to multiples of 1/128, against which the slope of x is still exactly 1."""
    x = jnp.ones(7, jnp.bfloat16)
    metric = jax.jit(local_lipschitz(scaled, radius=0.02))
    assert metric(key, jnp.bfloat16(1), x) == 1
    assert metric(key, jnp.bfloat16(1), x).dtype == jnp.float32
    got = run(average_sensitivity, scaled, key, jnp.bfloat16(1), jnp.ones(3000, jnp.bfloat16))
    np.testing.assert_allclose(got, RADIUS / np.sqrt(3), rtol=0.03)


@pytest.mark.parametrize("metric", [local_lipschitz, average_sensitivity])
@pytest.mark.slow
def test_double_precision(metric, key):
    """Whichever of x and the explanation has it."""
    with jax.enable_x64(True):
        x = np.asarray(X, float)
        explain = lambda params, x: (3 * x).astype(np.float32)  # noqa: E731
        singly = jax.jit(metric(explain, radius=RADIUS))(key, None, x)
        assert singly.dtype == np.float32
        doubly = jax.jit(metric(scaled, radius=RADIUS))(key, np.float64(3), x)
        assert doubly.dtype == np.float64
        np.testing.assert_allclose(singly, doubly, rtol=1e-5)
        if metric is local_lipschitz:
            np.testing.assert_allclose(doubly, 3, rtol=1e-12)


@pytest.mark.parametrize("metric", [local_lipschitz, average_sensitivity])
@pytest.mark.slow
def test_vmap_is_a_loop_and_may_share_the_draws(metric, key):
    batch = jnp.stack([X, -2 * X, X + 1])
    keys = jax.random.split(key, 3)
    alone = compiled(metric, squared)
    own = jax.jit(jax.vmap(alone, (0, None, 0)))(keys, 1.0, batch)
    expected = [alone(k, 1.0, x) for k, x in zip(keys, batch, strict=True)]
    np.testing.assert_allclose(own, expected, rtol=1e-5)
    shared = jax.jit(jax.vmap(alone, (None, None, 0)))
    np.testing.assert_allclose(
        shared(key, 1.0, batch), [alone(key, 1.0, x) for x in batch], rtol=1e-5
    )
    # One set of random bits, not one for each example.
    text = str(jax.make_jaxpr(shared)(key, 1.0, batch))
    draws = [line for line in text.splitlines() if "random_bits" in line]
    assert draws
    assert all("key<fry>[3" not in line and "u32[3," not in line for line in draws)


@each_metric
def test_one_draw_is_evaluated_at_once_by_default(metric, key):
    """More would be times the examples of a batch, and times the draws of an explainer."""

    def program(**settings):
        return str(jax.make_jaxpr(metric(squared, radius=RADIUS, **settings))(key, 1.0, X))

    assert program() == program(chunk_size=1) != program(chunk_size=10)


def test_memory_does_not_grow_with_the_number_of_samples(key):
    """But by the index at which each chunk starts: less than a number for each draw."""

    def memory(num_samples):
        made = compiled(max_sensitivity, squared, num_samples=num_samples, chunk_size=10)
        analysis = made.lower(key, 1.0, X).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert memory(1000) - memory(20) <= 4 * (1000 - 20) / 10


# Errors


@each_metric
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0}, "above 0"),
        ({"radius": -0.1}, "must not be negative"),
        ({"radius": np.nan}, "must not be negative, or NaN"),
        ({"radius": np.array([0.1, -0.1])}, "must not be negative"),
        ({"radius": "0.1"}, "radius must be a real number"),
        ({"radius": None}, "radius must be a real number"),
        ({"radius": 0.1, "num_samples": 0}, "num_samples must be at least 1"),
        ({"radius": 0.1, "chunk_size": 0}, "chunk_size must be at least 1"),
        ({"radius": 0.1, "argnum": -1}, "argnum"),
    ],
)
def test_bad_settings_are_errors_when_building(metric, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        metric(scaled, **settings)


@each_metric
def test_what_is_no_function_is_an_error(metric):
    with pytest.raises(TypeError, match="takes a function"):
        metric(3.0, radius=0.1)


def test_bad_arguments_are_errors(key):
    metric = max_sensitivity
    made = metric(scaled, radius=0.1)
    with pytest.raises(TypeError, match="PRNG key"):
        made(1.0, X)
    with pytest.raises(TypeError, match="argnum=0"):
        made(key, X)
    with pytest.raises(TypeError, match="int32"):
        made(key, 1.0, jnp.arange(3, dtype=jnp.int32))
    with pytest.raises(TypeError, match="complex"):
        made(key, 1.0, jnp.array([1j], jnp.complex64))
    with pytest.raises(TypeError, match="got a dict"):
        made(key, 1.0, {"x": X})
    with pytest.raises(ValueError, match="radius of shape"):
        metric(scaled, radius=np.ones(3))(key, 1.0, X)
    with pytest.raises(TypeError, match="Estimate"):
        metric(sj.smoothgrad(scaled, reduction=mean_and_stderr()), radius=0.1)(key, 1.0, X)
    with pytest.raises(TypeError, match="no arrays"):
        metric(lambda params, x: None, radius=0.1)(key, 1.0, X)


def test_a_missing_value_has_no_step():
    x = jnp.array([1.0, jnp.nan, 2.0])

    def explain(params, x):
        return params * jnp.nan_to_num(x)

    for metric in (local_lipschitz, max_sensitivity):
        found = metric(explain, radius=0.1)(jax.random.key(0), 3.0, x)
        assert np.isfinite(found)
    slope = local_lipschitz(explain, radius=0.1)(jax.random.key(0), 3.0, x)
    np.testing.assert_allclose(slope, 3, rtol=1e-4)


@each_metric
def test_steps_that_the_dtype_of_x_cannot_hold_make_no_test(metric):
    x = jnp.full(4, 200, jnp.bfloat16)  # whose neighbours are 199 and 201
    assert np.isnan(metric(identity, radius=0.1, num_samples=2)(jax.random.key(0), None, x))
    assert metric(identity, radius=3.0, num_samples=2)(jax.random.key(0), None, x) > 0


# Noise for a map: each point has its own, and channels are pooled.


def noise_of(x):
    key = jax.random.fold_in(jax.random.key(1), jax.lax.bitcast_convert_type(x[0], jnp.uint32))
    return jax.random.normal(key, (100, 100, 3))


@pytest.mark.parametrize(
    ("how", "want"),
    [
        (lambda maps: jnp.sum(maps, -1), np.sqrt(2)),
        (lambda maps: jnp.sum(maps**2, -1), np.sqrt(12 / 15)),
        (lambda maps: jnp.linalg.norm(maps, axis=-1), np.sqrt(2 * (3 - 8 / np.pi) / 3)),
    ],
    ids=["sum", "square", "norm"],
)
def test_the_sensitivity_of_maps_that_are_noise_is_that_of_their_pooling(how, want, key):
    """`sqrt(2 variance / mean square)` of a pixel, to one part in a hundred of 10,000."""
    metric = average_sensitivity(lambda params, x: how(noise_of(x)), radius=0.1, num_samples=4)
    np.testing.assert_allclose(jax.jit(metric)(key, None, X[0, 0]), want, rtol=0.03)


# Relative stability


def outputs(params, x):
    return {"logits": jnp.tanh(params * x), "more": jnp.sum(x**2)}


def test_relative_stabilities_are_what_a_loop_finds_over_the_same_points(key):
    def explain(params, x):
        return jnp.sin(params * x) + 1.5

    def quotients(after, before):
        return np.linalg.norm((after - before) / before)

    x = X + jnp.sign(X)
    settings = {"num_samples": 5, "radius": 0.1}
    ris, points = recorded_run(relative_input_stability, explain, key, 3.0, x, **settings)
    ros_of = functools.partial(relative_output_stability, output=outputs)
    ros, same_points = recorded_run(ros_of, explain, key, 3.0, x, **settings)
    np.testing.assert_array_equal(points, same_points)
    x = np.asarray(x, float)
    changes = [quotients(np.sin(3 * p) + 1.5, np.sin(3 * x) + 1.5) for p in points]
    lengths = [quotients(p, x) for p in points]
    np.testing.assert_allclose(ris, np.max(np.divide(changes, lengths)), rtol=1e-3)
    moves = [
        np.hypot(np.linalg.norm(np.tanh(3 * p) - np.tanh(3 * x)), np.sum(p**2) - np.sum(x**2))
        for p in points
    ]
    np.testing.assert_allclose(ros, np.max(np.divide(changes, moves)), rtol=1e-3)


@pytest.mark.parametrize("power", [1, 2, -3])
def test_relative_input_stability_of_a_power_is_its_exponent(power, key):
    """As small steps go; neither the scale of the map nor that of x counts."""
    for scale in (1.0, 1e-3):
        got = run(
            relative_input_stability,
            lambda params, x: params * x**power,
            key,
            1e-6,
            scale * jnp.array([2.0]),
            radius=1e-4 * scale,
        )
        np.testing.assert_allclose(got, abs(power), rtol=0.01)


def test_relative_output_stability_of_a_multiple(key):
    """`|step / x| / |3 step|`, and the output's unit is one over that of the metric."""
    for factor in (3.0, -6.0):
        metric = relative_output_stability(
            lambda params, x: 7 * x, lambda params, x: params * x, radius=0.1
        )
        got = jax.jit(metric)(key, factor, jnp.array([2.0]))
        np.testing.assert_allclose(got, 1 / 2 / abs(factor), rtol=1e-4)


def test_an_output_that_stays_counts_as_changed_by_epsilon(key):
    metric = relative_output_stability(scaled, constantly, radius=0.1, epsilon=0.5)
    got = jax.jit(metric)(key, 3.0, jnp.array([2.0]))
    _, points = recorded_run(max_sensitivity, scaled, key, 3.0, jnp.array([2.0]), radius=0.1)
    np.testing.assert_allclose(got, np.abs(points - 2).max() / 2 / 0.5, rtol=1e-4)


def test_zeros_of_a_map_have_epsilon_of_its_largest_entry(key):
    def zero_at_first(params, x):
        return jnp.stack([x[0] - 2, 4.0 + 0 * x[0]])

    x = jnp.array([2.0])
    for epsilon in (0.01, 0.1):
        metric = relative_input_stability(zero_at_first, radius=0.1, epsilon=epsilon)
        np.testing.assert_allclose(jax.jit(metric)(key, None, x), 1 / (4 * epsilon) * 2, rtol=1e-4)


def test_relative_stability_of_nothing_and_of_what_does_not_change(key):
    def elsewhere(params, x):
        return x - X

    both = (
        relative_input_stability,
        functools.partial(relative_output_stability, output=outputs),
    )
    for metric in both:
        made = functools.partial(metric, radius=0.1)
        assert jax.jit(made(constantly))(key, 0.0, X) == 0
        assert jax.jit(made(constantly))(key, 4.0, X) == 0
        assert jax.jit(made(elsewhere))(key, 1.0, X) == np.inf
        assert np.isnan(jax.jit(made(scaled))(key, np.nan, X))
        assert np.isnan(jax.jit(metric(scaled, radius=sj.relative(0.1)))(key, 1.0, jnp.ones(3)))


def test_relative_stability_gives_one_key_to_all_points(key):
    def noise(key, params, x):
        return jax.random.normal(key, x.shape, x.dtype)

    explain = sj.stochastic(noise)
    assert jax.jit(relative_input_stability(explain, radius=0.1))(key, None, X) == 0
    metric = relative_output_stability(explain, explain, radius=0.1)
    assert jax.jit(metric)(key, None, X) == 0


def test_bad_settings_of_relative_stability():
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        relative_input_stability(scaled, radius=0.1, epsilon=0)
    with pytest.raises(TypeError, match="output must be a function"):
        relative_output_stability(scaled, 3, radius=0.1)
    with pytest.raises(ValueError, match="radius must be above 0"):
        relative_output_stability(scaled, scaled, radius=0)
    metric = relative_input_stability(scaled, radius=0.1)
    assert sj.is_stochastic(metric)
    assert metric.__name__ == "relative_input_stability(scaled)"
    assert str(inspect.signature(metric)) == "(key, /, params, x)"
