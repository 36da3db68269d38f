"""Eager calls: a second one compiles nothing, and what a score closes over may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax import metrics
from smoothjax._loop import accumulate

X = jnp.linspace(-1.0, 1.0, 6)
IMAGE = jnp.linspace(-1.0, 1.0, 108).reshape(6, 6, 3)
W = jnp.linspace(0.5, 2.0, 6)


def score(params, x):
    return jnp.tanh(jnp.vdot(params, x))


def of_image(params, x):
    return params[0] * jnp.sum(jax.nn.relu(x))


@pytest.fixture
def compiled():
    """How many programs were compiled: a list, which each of them makes longer by one."""
    durations = []

    def listener(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield durations
    jax.monitoring.unregister_event_duration_listener(listener)


GRADIENT = sj.saliency(score)
DELETION = metrics.deletion(score)
FEW = {"num_samples": 4}
EXPLAINERS = {
    "smoothgrad": (sj.smoothgrad(GRADIENT, 0.1, **FEW), X),
    "in chunks": (sj.smoothgrad(GRADIENT, 0.1, num_samples=5, chunk_size=2), X),
    "fusiongrad": (sj.fusiongrad(GRADIENT, 0.1, 0.1, num_weight_draws=2, num_input_draws=2), X),
    "vargrad": (sj.vargrad(GRADIENT, 0.1, **FEW), X),
    "smoothdiff": (sj.smoothdiff(of_image, 0.1, **FEW), IMAGE),
    "tolerance": (sj.smoothgrad(GRADIENT, 0.1, num_samples=40, tolerance=0.5), X),
    "forgrad": (sj.forgrad(sj.smoothgrad(sj.saliency(of_image), 0.1, **FEW), 2), IMAGE),
    "integrated gradients": (sj.integrated_gradients(score, num_steps=3), X),
    "occlusion": (sj.occlusion(score, 1, 1, axes=(0,)), X),
    "rise": (sj.rise(score, num_samples=4, grid=None, axes=(0,)), X),
    "deletion": (lambda p, x: DELETION(p, x, x), X),
    "max_sensitivity": (metrics.max_sensitivity(GRADIENT, radius=0.1, num_samples=2), X),
}


@pytest.mark.parametrize(
    "name", slow_but(list(EXPLAINERS), "smoothgrad", "fusiongrad", "deletion", "tolerance")
)
def test_the_second_call_compiles_nothing(name, compiled):
    explain, x = EXPLAINERS[name]
    takes_key = sj.is_stochastic(explain)

    def call(seed):
        keys = [jax.random.key(seed)] if takes_key else []
        return explain(*keys, W + seed, x * (1 + seed))

    call(0)
    before = len(compiled)
    assert before > 0
    got = call(1)
    assert len(compiled) == before
    keys = [jax.random.key(1)] if takes_key else []
    want = jax.jit(explain)(*keys, W + 1, x * 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def test_what_a_score_closes_over_may_change(key):
    """Numbers, arrays, and what the score does with them, all seen by the next call."""
    model = {"scale": jnp.float32(2.0), "power": 1, "function": jnp.sin}

    def of_model(params, x):
        return model["scale"] * jnp.sum(params * model["function"](x)) ** model["power"]

    explain = sj.smoothgrad(sj.saliency(of_model), 0.0, num_samples=2)
    plain = sj.saliency(of_model)
    for change in ({}, {"scale": jnp.float32(3.0)}, {"scale": 4.0}, {"power": 2},
                   {"function": jnp.cos}):  # fmt: skip
        model |= change
        np.testing.assert_allclose(explain(key, W, X), plain(W, X), rtol=1e-5, atol=1e-6)


def test_callbacks_are_those_of_the_call():
    """Their programs have one text, whatever the function of Python."""
    run = accumulate(sj.reductions.mean(), None)

    def mean_of(function):
        def body(i):
            shape = jax.ShapeDtypeStruct((), jnp.float32)

            def of(i):
                return np.float32(function(np.asarray(i)))

            return jax.pure_callback(of, shape, i, vmap_method="sequential")

        return float(run(body, 3))

    assert mean_of(lambda i: i) == 1
    assert mean_of(lambda i: 10 * i) == 10


@pytest.mark.slow
def test_inside_other_transformations(key):
    explain = sj.smoothgrad(GRADIENT, 0.1, **FEW)
    want = jax.jit(explain)(key, W, X)
    close = np.testing.assert_allclose
    close(jax.jit(lambda: explain(key, W, X))(), want, rtol=1e-5)  # of constants
    close(jax.vmap(explain, (None, None, 0))(key, W, X[None])[0], want, rtol=1e-5)
    close(jax.vmap(lambda c: c * explain(key, W, X))(jnp.ones(2))[1], want, rtol=1e-5)
    slope = jax.grad(lambda c: jnp.sum(explain(key, c * W, X)))(1.0)
    ahead, behind = (jnp.sum(explain(key, c * W, X)) for c in (1.01, 0.99))
    close(slope, (ahead - behind) / 0.02, rtol=1e-2)
    with jax.disable_jit():
        close(explain(key, W, X), want, rtol=1e-5)


def test_arrays_may_move_to_another_device(key):
    devices = jax.devices()[:2]
    explain = sj.smoothgrad(GRADIENT, 0.1, **FEW)
    maps = [explain(*jax.device_put((key, W, X), device)) for device in devices]
    assert [m.device for m in maps] == devices
    np.testing.assert_allclose(*maps, rtol=1e-6)
