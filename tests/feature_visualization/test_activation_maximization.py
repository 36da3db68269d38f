"""The ascent, where its path can be worked out: objectives that are linear or quadratic."""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smoothjax as sj
from smoothjax.feature_visualization import (
    Parameterization,
    activation_maximization,
    fourier,
    jitter,
    l2,
    maco,
    pixels,
)

W = jnp.array([1.0, -2.0, 0.5, 3.0])
ZERO = pixels(std=0.0)


@pytest.fixture
def as_users_have_it():
    """Some optimizers of optax mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def linear(w, x):
    return w @ x


def ascent(objective=linear, optimizer=None, **settings):
    defaults = {"shape": (4,), "bounds": None, "parameterization": ZERO, "augment": None}
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return activation_maximization(objective, optimizer, **(defaults | settings))


def test_each_step_of_plain_ascent_is_the_closed_form(key):
    maximize = jax.jit(ascent(lambda w, x: w @ x - x @ x / 2, num_steps=7))
    image, history = maximize(key, W)
    left = 0.9 ** np.arange(8)
    np.testing.assert_allclose(image, W * (1 - left[7]), rtol=1e-5)
    np.testing.assert_allclose(history, (W @ W) * (1 - left[:7] ** 2) / 2, rtol=1e-5, atol=1e-6)


def test_under_a_penalty_on_its_square_the_maximiser_is_the_weight(key):
    maximize = jax.jit(ascent(penalty=l2(2.0), num_steps=200))
    image, history = maximize(key, W)  # w = 2 weight x / n
    np.testing.assert_allclose(image, W, rtol=1e-4)
    np.testing.assert_allclose(history[-1], W @ W, rtol=1e-4)  # without the penalty


def test_on_a_sphere_the_maximiser_of_a_linear_objective_is_its_direction(key):
    sphere = Parameterization(
        init=lambda key, shape: {"z": jax.random.normal(key, shape)},
        image=lambda z, shape: 3 * z["z"] / jnp.linalg.norm(z["z"]),
    )
    maximize = jax.jit(ascent(parameterization=sphere, num_steps=300))
    image, history = maximize(key, W)
    np.testing.assert_allclose(image, 3 * W / jnp.linalg.norm(W), atol=1e-3)
    np.testing.assert_allclose(history[-1], 3 * jnp.linalg.norm(W), rtol=1e-5)


def test_inside_bounds_it_is_a_corner(key):
    lo, hi = np.array([-1.0, -2.0, 0.0, 5.0]), 6.0
    image, _ = jax.jit(ascent(bounds=(lo, hi), num_steps=300))(key, W)
    assert np.all((lo <= image) & (image <= hi))
    np.testing.assert_allclose(image, [6, -2, 6, 6], atol=0.3)
    start, _ = jax.jit(ascent(bounds=(lo, hi), num_steps=1, optimizer=optax.sgd(0.0)))(key, W)
    np.testing.assert_allclose(start, (lo + hi) / 2)


@pytest.mark.usefixtures("as_users_have_it")
def test_no_noise_is_plain_ascent(key):
    settings = {"parameterization": fourier(colors=None, axes=(0,)), "optimizer": optax.adam(0.1)}
    quiet = sj.noisegrad(linear, 0.0, num_samples=3)
    want, want_history = jax.jit(ascent(**settings, num_steps=20))(key, W)
    got, history = jax.jit(ascent(quiet, **settings, num_steps=20))(key, W)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history, want_history, rtol=1e-4, atol=1e-5)


def test_noise_is_drawn_anew_at_each_step_from_the_weights_given():
    """T steps end at r sum_t w (1 + s e_t): a frozen draw has T times, a walk of the weights a
    third of T times as much variance."""
    rate, num, sigma = 0.1, 12, 0.5
    maximize = ascent(sj.noisegrad(linear, sigma, num_samples=1), num_steps=num)
    keys = jax.random.split(jax.random.key(3), 4000)
    images = np.asarray(jax.jit(jax.vmap(maximize, (0, None)))(keys, W).image)
    error = np.abs(W) * rate * sigma * np.sqrt(num / 4000)
    np.testing.assert_array_less(np.abs(images.mean(0) - rate * num * W), 4 * error)
    np.testing.assert_allclose(images.var(0), (rate * sigma * W) ** 2 * num, rtol=0.1)


def test_a_frozen_key_is_one_set_of_networks(key):
    noisy = functools.partial(sj.noisegrad(linear, 0.5, num_samples=3), jax.random.key(5))
    maximize = jax.jit(ascent(noisy, num_steps=6))
    drawn = sj.noisegrad(lambda w: w, 0.5, num_samples=3)(jax.random.key(5), W)
    np.testing.assert_allclose(maximize(key, W).image, 0.6 * drawn, rtol=1e-5)
    np.testing.assert_array_equal(maximize(key, W).image, maximize(jax.random.key(9), W).image)


@pytest.mark.parametrize("chunk_size", [2, 5])
@pytest.mark.slow
def test_the_chunk_size_of_the_noise_changes_nothing(chunk_size, key):
    def found(chunk_size):
        noisy = sj.noisegrad(lambda w, x: jnp.tanh(w @ x), num_samples=5, chunk_size=chunk_size)
        return jax.jit(ascent(noisy, parameterization=pixels(0.5), num_steps=10))(key, W)

    got, want = found(chunk_size), found(1)
    np.testing.assert_allclose(got.image, want.image, rtol=1e-5)
    np.testing.assert_allclose(got.history, want.history, rtol=1e-5)


def test_a_step_shows_a_new_key_to_the_objective_and_another_to_the_augmentation(key):
    @sj.stochastic
    def objective(key, w, x):
        return x[0] + 10 * jax.random.uniform(key)

    def augment(key, x):
        return x + jax.random.uniform(key)

    _, history = ascent(objective, augment=augment, optimizer=optax.sgd(0.0), num_steps=50)(key, W)
    assert len(np.unique(history)) == 50
    # With one key for both, their numbers would be 1 to 1, and history / 11 uniform.
    _, both = ascent(objective, augment=augment, optimizer=optax.sgd(0.0), num_steps=50)(
        jax.random.key(8), W
    )
    _, alone = ascent(objective, optimizer=optax.sgd(0.0), num_steps=50)(jax.random.key(8), W)
    shown = both - alone
    assert np.all((0 < shown) & (shown < 1))
    assert abs(np.corrcoef(shown, alone)[0, 1]) < 0.5


def test_the_penalty_is_of_the_image_before_it_is_augmented(key):
    maximize = ascent(
        lambda w, x: 0.0 * jnp.sum(x), augment=lambda key, x: 0 * x, penalty=lambda x: -(W @ x)
    )
    np.testing.assert_allclose(maximize(key, W).image, 25.6 * W, rtol=1e-4)


def test_fewer_steps_are_the_first_ones(key):
    def history(num_steps):
        noisy = sj.noisegrad(linear, num_samples=1)
        return ascent(noisy, augment=jitter(1, axes=(0,)), num_steps=num_steps)(key, W).history

    np.testing.assert_allclose(history(5), history(10)[:5], rtol=1e-5)


def test_any_object_with_init_and_update_is_an_optimizer(key):
    mine = types.SimpleNamespace(
        init=lambda z: (), update=lambda g, state, z: (jax.tree.map(lambda a: -0.1 * a, g), state)
    )
    objective = lambda w, x: jnp.tanh(w @ x)  # noqa: E731
    want, got = (ascent(objective, optimizer=o)(key, W).image for o in (optax.sgd(0.1), mine))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.usefixtures("as_users_have_it")
def test_a_schedule_counts_the_steps(key):
    rates = optax.piecewise_constant_schedule(0.1, {3: 0.0})
    image, _ = ascent(optimizer=optax.sgd(rates), num_steps=9)(key, W)
    np.testing.assert_allclose(image, 0.3 * W, rtol=1e-5)


def test_a_batch_is_what_vmap_makes(key):
    def class_mean(w, x, label, *, scale):
        return scale * x[label] * w[label] - x @ x

    maximize = ascent(class_mean, parameterization=pixels(), num_steps=20)
    labels = jnp.arange(3)
    of_label = functools.partial(maximize, scale=2.0)
    batch = jax.jit(jax.vmap(of_label, (None, None, 0)))(key, W, labels)
    assert batch.image.shape == (3, 4)
    assert batch.history.shape == (3, 20)
    for i, label in enumerate(labels):
        want = of_label(key, W, label)
        np.testing.assert_allclose(batch.image[i], want.image, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 300])
def test_the_objective_is_traced_once(num_steps, key):
    traces = []
    ascent(lambda w, x: traces.append(0) or w @ x, num_steps=num_steps)(key, W)
    assert len(traces) == 1


def network(params, x):
    return jnp.sum(jnp.tanh(x.ravel() @ params) ** 2)


def compiled(num_steps, **settings):
    settings = {"shape": (32, 32, 3), "parameterization": fourier()} | settings
    maximize = ascent(network, optax.adam(0.1), num_steps=num_steps, **settings)
    params = jax.ShapeDtypeStruct((3072, 2048), jnp.float32)
    return jax.jit(maximize).lower(jax.random.key(0), params).compile()


@pytest.mark.usefixtures("as_users_have_it")
def test_memory_does_not_grow_with_steps():
    few, many = (compiled(n).memory_analysis() for n in (4, 400))
    assert many.temp_size_in_bytes <= few.temp_size_in_bytes + 4 * 400
    assert many.output_size_in_bytes == few.output_size_in_bytes + 4 * 396


@pytest.mark.usefixtures("as_users_have_it")
def test_a_step_costs_a_gradient():
    """XLA counts the body of a loop once, and one more image after it."""
    params = jax.ShapeDtypeStruct((3072, 2048), jnp.float32)
    x = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    gradient = jax.jit(jax.grad(network, argnums=1)).lower(params, x).compile()
    assert compiled(9).cost_analysis()["flops"] < 1.1 * gradient.cost_analysis()["flops"]


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("parameterization", [fourier(), maco(), pixels()])
def test_a_picture_is_found(parameterization, key):
    """A pattern of low frequency that fits into the bounds, beside what is shifted."""
    rows, columns = np.meshgrid(*2 * [np.arange(32) / 16 * np.pi], indexing="ij")
    wave = jnp.asarray(np.stack([np.sin(rows + columns)] * 3, -1), jnp.float32)

    def likeness(params, x):
        return jnp.vdot(params, x) / jnp.linalg.norm(params) / jnp.linalg.norm(x - jnp.mean(x))

    maximize = activation_maximization(
        likeness,
        optax.adam(0.1),
        shape=(32, 32, 3),
        bounds=(np.zeros(3), np.ones(3)),
        parameterization=parameterization,
        augment=jitter(1),
    )
    image, history = jax.jit(maximize)(key, wave)
    assert jnp.all((image >= 0) & (image <= 1))
    assert history[0] < 0.2
    assert history[-10:].mean() > 0.45


def test_the_parameters_stay_as_they_are(key):
    params = {"w": np.arange(4.0, dtype=jnp.result_type(float))}
    ascent(lambda params, x: params["w"] @ x)(key, params)
    np.testing.assert_array_equal(params["w"], np.arange(4.0))


def test_name_and_signature():
    maximize = ascent()
    assert maximize.__name__ == "activation_maximization(linear)"
    assert str(inspect.signature(maximize)) == "(key, /, params, *rest, **kwargs)"
    assert sj.is_stochastic(maximize)


BAD_SETTINGS = [
    ({"objective": 3}, TypeError, "takes a function"),
    ({"optimizer": 3}, TypeError, r"optimizer must be one of optax.*adam\(0.1\)"),
    ({"optimizer": optax.adam}, TypeError, "optimizer must be one of optax"),
    ({"shape": 4}, TypeError, "shape must be a tuple"),
    ({"shape": ()}, TypeError, "shape must be a tuple"),
    ({"shape": (4, 0)}, ValueError, "each of shape must be at least 1"),
    ({"shape": (4.0,)}, TypeError, "each of shape must be a Python int"),
    ({"bounds": 3}, TypeError, "bounds must be a pair"),
    ({"bounds": (1, 0)}, ValueError, "lo < hi everywhere"),
    ({"bounds": (np.zeros(3), np.ones(3))}, ValueError, r"do not broadcast to shape=\(4,\)"),
    ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
    ({"parameterization": fourier}, TypeError, "with the parentheses"),
    ({"augment": 3}, TypeError, "augment must be a function"),
    ({"penalty": 3}, TypeError, "penalty must be a function"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_SETTINGS)
def test_bad_settings_are_refused_when_building(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        ascent(**settings)
    assert caught.value.__notes__ == ["in activation_maximization"]


def test_bad_calls_say_what_to_type(key):
    with pytest.raises(TypeError, match="takes a PRNG key as its first"):
        ascent()(W)
    with pytest.raises(TypeError, match=r"must be a real scalar.*shape \(4,\)"):
        ascent(lambda w, x: w * x)(key, W)
    with pytest.raises(TypeError, match=r"smoothjax\.stochastic"):
        ascent(lambda key, w, x: w @ x)(key, W)
    with pytest.raises(ValueError, match="type colors=None"):
        ascent(parameterization=fourier(axes=(0,)))(key, W)
    with pytest.raises(ValueError, match=r"Type axes=\(0,\) for signals"):
        ascent(augment=jitter(1))(key, W)
    wrong = Parameterization(lambda key, shape: jnp.zeros(3), lambda z, shape: z)
    with pytest.raises(ValueError, match=r"made an image of shape \(3,\) for shape=\(4,\)"):
        ascent(parameterization=wrong)(key, W)


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize(("settings", "most"), [({"augment": None}, 1.1), ({}, 1.3)])
def test_the_price_on_a_real_network(settings, most):
    from smoothjax import zoo

    net = zoo.load("efficientnet-lite0")
    maximize = activation_maximization(
        net.score, optax.adam(0.1), shape=(224, 224, 3), bounds=net.bounds, **settings
    )
    ascent = jax.jit(maximize).lower(jax.random.key(0), net.params, 285).compile()
    x = jax.ShapeDtypeStruct((224, 224, 3), jnp.float32)
    gradient = jax.jit(jax.grad(net.score, argnums=1)).lower(net.params, x, 285).compile()
    ratio = ascent.cost_analysis()["flops"] / gradient.cost_analysis()["flops"]
    assert ratio < most
