"""Every public function is named by the errors of a bad call, when built and when called."""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj

ROOMS = {
    "smoothjax": sj,
    "attribution": sj.attribution,
    "calibrate": sj.calibrate,
    "feature_visualization": sj.feature_visualization,
    "lrp_rules": sj.attribution.lrp_rules,
    "metrics": sj.metrics,
    "noise": sj.noise,
    "spectral": sj.spectral,
}

# Functions that take no setting or argument which could be wrong in a way that they see.
SILENT = {
    "area",
    "box_muller",
    "disc",
    "gauss_legendre",
    "is_stochastic",
    "residual_bits",
    "spearman",
    "zplus",
}
# Modules that are also what imports their helpers.
MODULES = (sj.attribution.lrp_rules, sj.noise)


def public_functions():
    found = {}
    for room in ROOMS.values():
        for name, value in vars(room).items():
            is_public = inspect.isroutine(value) and not name.startswith("_")
            if is_public and (room not in MODULES or value.__module__ == room.__name__):
                found[name] = value
    return found


FUNCTIONS = public_functions()


def wrong(parameter):
    """A value that no argument may have, whatever it is."""
    return {"key": 0}.get(parameter.name, object())


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - SILENT))
def test_a_bad_call_names_the_function(name):
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters.values()
    required = {
        p.name: wrong(p)
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    settings = required or {next(iter(parameters)).name: object()}
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        function(**settings)


def test_a_bad_argument_names_what_was_built(key):
    smoothed = sj.noisegrad(sj.smoothgrad(jnp.sin, argnum=0), argnum=0)
    with pytest.raises(TypeError) as caught:
        smoothed(key, 3)
    assert caught.value.__notes__ == ["in noisegrad(smoothgrad(sin))"]


def best(params, x):
    """No derivative is one of this."""
    return jnp.argmax(params * x)


KEY, X, IMAGE, ROW = jax.random.key(0), jnp.ones(3), jnp.ones((8, 8, 3)), jnp.ones((1, 3))
JUDGED = {"params": 1.0, "key": KEY, "progress": False, "explainers": {"x": lambda p, x: x}}


def judge(xs, metric=lambda params, x, attribution: jnp.sum(attribution)):
    return sj.evaluate(examples=(xs,), metrics={"sum": metric}, **JUDGED)


def ascend(objective):
    optimizer = types.SimpleNamespace(init=lambda z: z, update=lambda g, state, z: (g, state))
    maximize = sj.feature_visualization.activation_maximization
    return maximize(objective, optimizer, shape=(4, 4, 3), bounds=None, augment=None)(KEY, 1.0)


CAUSES = {
    "argmax, saliency": (lambda: sj.saliency(best)(1.0, X), "must have a derivative; got one of.*"),
    "argmax, gradcam": (lambda: sj.gradcam(lambda p, x: x, best)(1.0, IMAGE), "must have a deriv"),
    "argmax, ascent": (lambda: ascend(best), "must have a derivative"),
    "dict, class_score": (
        lambda: sj.class_score(lambda p, x: {"logits": x})(1.0, X, 0),
        "got a dict. Pick the logits",
    ),
    "tuple, class_score": (
        lambda: sj.class_score(lambda p, x: (x, "state"))(1.0, X, 0),
        "got a tuple. Pick the logits",
    ),
    "one logit, class_score": (
        lambda: sj.class_score(lambda p, x: x[:1])(1.0, X, 1),
        "from 0 to 0; got 1. There is one output: for the other of two classes explain minus it",
    ),
    "how that pools all, pool": (
        lambda: sj.pool(lambda x: x, lambda a, axis: jnp.sum(a))(ROW),
        r"how\(array, axis=-1\) must remove that axis.*\(1, 3\) it made \(\), not \(1,\)",
    ),
    "how of no axis, pool": (
        lambda: sj.pool(lambda x: x, lambda a, axis: abs(a))(np.arange(3)),
        r"it made \(3,\), not \(\)",
    ),
    "axis 5, pool": (
        lambda: sj.pool(lambda x: x, jnp.sum, channel_axis=5)(ROW),
        r"shape \(1, 3\) has no channel axis 5",
    ),
    "one-hot, distinct_classes": (
        lambda: sj.metrics.distinct_classes(KEY, np.eye(4), 2),
        r"labels must be of shape \(n,\)",
    ),
    "text": (lambda: sj.saliency(best)(1.0, "text"), r"holds \['str'\]"),
    "series": (
        lambda: sj.saliency(best)(1.0, types.SimpleNamespace(dtype=np.dtype(float))),
        r"holds \['SimpleNamespace'\].*of a data frame x.to_numpy\(\)",
    ),
    "lists of examples": (
        lambda: sj.expected_gradients(best, [[0.0], [1.0]]),
        "baselines hold",
    ),
    "lists, accuracy": (
        lambda: sj.accuracy_drop(lambda p, x: x)(KEY, X, [[1.0], [2.0]], None, 0.1),
        r"xs must be arrays.*of a data frame, its to_numpy\(\)",
    ),
    "words, evaluate": (lambda: judge(np.array(["a", "b"])), "of numbers; got dtype <U1"),
    "objects, evaluate": (lambda: judge(np.array([1, None], object)), "of numbers; got dtype obj"),
    "curve, evaluate": (
        lambda: judge(ROW, sj.metrics.deletion_curve(lambda p, x: jnp.sum(x), axes=(0,))),
        r"one real number, as the area\(metric\) of a curve",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_named(name):
    call, message = CAUSES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
