"""Every public function is named by the errors of a bad call, when built and when called."""

import inspect

import jax.numpy as jnp
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
