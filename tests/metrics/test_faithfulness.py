"""What holds for every metric of faithfulness."""

import inspect

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from faithfulness import (
    ATTRIBUTION,
    KEY,
    METRICS,
    RANDOM,
    W,
    X,
    compiled,
    each_metric,
    equations,
    judge,
    linear,
    smooth,
)

import smoothjax as sj
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
    monotonicity_correlation,
    mu_fidelity,
    non_sensitivity,
    road,
)


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


@each_metric
@pytest.mark.slow
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
@pytest.mark.slow
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

    # Of hardly a change in x, infidelity is 0 only if f(x) and f(x - I) are one draw.
    settings = {"perturbation": lambda key, x: 1e-4 + 0 * x} if name == "infidelity" else {}
    metric = METRICS[name](drawn, **settings)
    metric = jax.jit(area(metric) if name == "information_curve" else metric)
    got, other = (metric(key, W, X, W * X) for key in (KEY, jax.random.key(8)))
    plain = jax.jit(judge(name, **settings))(KEY, W, X, W * X)
    if name == "infidelity":
        assert max(got, plain) < 1e-4
    elif name == "mu_fidelity":  # on which a scale has no influence, but its draws would
        np.testing.assert_allclose(got, plain, atol=1e-5)
    else:
        score_key = jax.random.split(KEY)[1] if name == "road" else KEY
        scale = 1 + jax.random.uniform(score_key, dtype=jnp.float32)
        np.testing.assert_allclose(got, scale * plain, rtol=1e-4)
        assert other != got


def test_a_stochastic_score_does_not_share_its_key_with_the_draws():
    @sj.stochastic
    def drawn(key, params, x):
        return jax.random.uniform(key, dtype=x.dtype) * jnp.sum(x)

    shared = jax.random.uniform(KEY, dtype=jnp.float32) * np.sum(X)
    lost = infidelity(drawn, num_samples=1, perturbation=lambda key, x: x)(KEY, W, X, 0 * X)
    assert abs(np.sqrt(lost) - abs(shared)) > 0.01
    metric = mu_fidelity(
        drawn, grid=2, num_samples=2, baseline=X, similarity=lambda *both: jnp.stack(both)
    )
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
@pytest.mark.slow
def test_of_x_alone_and_with_more_arguments(name):
    expected = compiled(name)(KEY, W, X, ATTRIBUTION)
    alone = jax.jit(judge(name, lambda x: smooth(W, x), argnum=0))
    np.testing.assert_allclose(alone(KEY, X, ATTRIBUTION), expected, rtol=1e-5, atol=1e-6)

    def more(params, x, factor, *, offset):
        return factor * smooth(params, x) + offset

    got = jax.jit(judge(name, more))(KEY, W, X, ATTRIBUTION, 1.0, offset=0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


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
        ("srg", 14),
        ("road", 14),
        ("monotonicity", 7),
        ("monotonicity_correlation", 9 * 6 + 1),
        ("non_sensitivity", 9 * 6 + 1),
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
    size = "num_samples" if name in RANDOM and name != "road" else "num_steps"
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
        (lambda: road(smooth, noise=-1), ValueError, "noise must be at least 0"),
        (
            lambda: monotonicity_correlation(smooth, replacement=0.1),
            TypeError,
            "replacement must be a function",
        ),
        (lambda: non_sensitivity(smooth, num_samples=0), ValueError, "must be at least 1; got 0"),
        (lambda: non_sensitivity(smooth, tolerance=-1), ValueError, "must be at least 0 and below"),
        (
            lambda: non_sensitivity(smooth, grid=2, replacement=lambda key, x: x[:3])(KEY, W, X, X),
            ValueError,
            r"replacement of shape \(3, 5, 2\) does not broadcast",
        ),
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
            r"axes \(0, 1\) must be different axes",
        ),
    ],
)
def test_errors_say_what_to_type(make, error, match):
    with pytest.raises(error, match=match):
        make()
