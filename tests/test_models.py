"""Bring your own model: the README's lines for each library, and a transformer on embeddings.

Also the lines of docs/gradcam.md that split a network in two, for Grad-CAM and for noise at an
inner layer.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from rows import slow_but

import smoothjax as sj

X = jnp.linspace(-1.0, 1.0, 8, dtype=jnp.float32)
PHOTO = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6, 3)), jnp.float32)


def plain():
    def score(params, x, label):
        return jnp.tanh(x @ params["kernel"])[label]

    return score, {"kernel": jnp.linspace(-1.0, 1.0, 24, dtype=jnp.float32).reshape(8, 3)}


def flax_linen():
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Dense(16)(x))
            x = linen.BatchNorm(use_running_average=True)(x)
            return linen.Dense(3)(x)

    model = Network()
    variables = model.init(jax.random.key(0), X[None])

    def score(params, x, label):
        return model.apply({**variables, "params": params}, x[None])[0, label]

    return score, variables["params"]


def flax_nnx():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(8, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
            self.head = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(nnx.relu(self.hidden(x))))

    graph, params, state = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def score(params, x, label):
        return nnx.merge(graph, params, state)(x[None])[0, label]

    return score, params


def equinox():
    model = eqx.nn.MLP(8, 3, 16, 1, dtype=jnp.float32, key=jax.random.key(0))

    def score(model, x, label):
        return model(x)[label]

    return score, model


def convolutional():
    """Channels first inside, as Equinox has them, and channels last outside."""
    conv_key, head_key = jax.random.split(jax.random.key(1))
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 4, 3, stride=2, padding=1, key=conv_key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(lambda a: a.mean((1, 2))),
            eqx.nn.Linear(4, 3, key=head_key),
        ]
    )

    def features(model, x):
        return model[:2](jnp.moveaxis(x, -1, 0))

    def head(model, activations, label):
        return model[2:](activations)[label]

    def score(model, x, label):
        return model(jnp.moveaxis(x, -1, 0))[label]

    return features, head, score, model


def test_a_convolutional_equinox_model_from_end_to_end(key):
    """With the README's line its maps, filters and judgements are those of any photo."""
    features, head, score, model = convolutional()
    explain = sj.smoothgrad(sj.saliency(score), num_samples=4)
    attribution = eqx.filter_jit(explain)(key, model, PHOTO, 1)
    assert attribution.shape == (8, 6, 3)
    pooled = sj.pool(lambda: attribution, jnp.linalg.norm)()
    filtered = sj.forgrad(lambda: attribution, 2)()
    assert pooled.shape == filtered.shape == (8, 6)
    metric = eqx.filter_jit(sj.metrics.insertion_minus_deletion(score, num_steps=3))
    for judged in (attribution, pooled, filtered):
        assert np.isfinite(metric(model, PHOTO, judged, 1))

    # Its activations are channels first, and its photo is not.
    with pytest.raises(ValueError, match=r"\(4, 4, 3\).*taken for \(channels, h, w\)"):
        sj.gradcam(features, head)(model, PHOTO, 1)
    moved = sj.gradcam(
        lambda model, x: jnp.moveaxis(features(model, x), 0, -1),
        lambda model, a, label: head(model, jnp.moveaxis(a, -1, 0), label),
        upsample=False,
    )(model, PHOTO, 1)
    # Where both are, the axis is typed.
    first = sj.gradcam(lambda model, x: model[:2](x), head, channel_axis=0, upsample=False)(
        model, jnp.moveaxis(PHOTO, -1, 0), 1
    )
    weights = np.asarray(model.layers[3].weight)[1] / 12
    cam = np.maximum(np.einsum("c,chw->hw", weights, features(model, PHOTO)), 0)
    assert cam.max() > 0
    np.testing.assert_allclose(moved[..., 0], cam, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first[0], cam, rtol=1e-4, atol=1e-6)


class Keras(NamedTuple):
    """A Keras model, and what the README takes of it."""

    model: Any
    score: Callable[..., jax.Array]
    params: list[jax.Array]
    rest: list[jax.Array]
    where: list[bool]


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # Keras reads and writes these when imported
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras was imported with another backend")

    layers = [
        keras.layers.Dense(16),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("tanh"),
    ]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(3)])
    rng = np.random.default_rng(0)
    for v in model.variables:  # no zeros, which weight noise would spare
        v.assign(rng.uniform(0.2, 0.6, v.shape) * rng.choice([-1, 1], v.shape))
    model.layers[1].moving_variance.assign(rng.uniform(0.5, 1.5, 16))
    params = [v.value for v in model.trainable_variables]
    rest = [v.value for v in model.non_trainable_variables]

    def score(params, x, label):
        with jax.numpy_rank_promotion("allow"):  # Keras adds its biases that way
            return model.stateless_call(params, rest, x[None], training=False)[0][0, label]

    where = ["kernel" in v.path for v in model.trainable_variables]
    return Keras(model, score, params, rest, where)


def test_keras_is_what_its_layers_are_by_hand(keras):
    """With the statistics that the normalisation has seen."""
    mean, variance = keras.rest
    epsilon = keras.model.layers[1].epsilon

    def by_hand(params, x, label):
        kernel, bias, scale, shift, last_kernel, last_bias = params
        hidden = scale * (x @ kernel + bias - mean) / jnp.sqrt(variance + epsilon) + shift
        return (jnp.tanh(hidden) @ last_kernel + last_bias)[label]

    np.testing.assert_allclose(
        keras.score(keras.params, X, 1), by_hand(keras.params, X, 1), rtol=1e-5
    )
    want = jax.grad(by_hand, argnums=1)(keras.params, X, 1)
    assert np.any(want != 0)
    got = sj.saliency(keras.score)(keras.params, X, 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_keras_smoothgrad(keras, key):
    settings = {"sigma": 0.5, "num_samples": 4}
    stack = sj.reductions.stack()
    gradient = jax.jit(jax.grad(keras.score, argnums=1))
    draws = sj.smoothgrad(lambda params, x, label: x, **settings, reduction=stack)
    maps = [gradient(keras.params, x, 1) for x in draws(key, keras.params, X, 1)]
    assert not np.allclose(maps[0], maps[1], rtol=1e-2)

    got = jax.jit(sj.smoothgrad(sj.saliency(keras.score), **settings))(key, keras.params, X, 1)
    np.testing.assert_allclose(got, np.mean(maps, axis=0), rtol=1e-4, atol=1e-5)


def test_keras_noisegrad(keras, key):
    """`where`, made of paths, spares biases and the normalisation; nothing reaches the model."""
    before = [np.array(v.value) for v in keras.model.variables]
    settings = {"sigma": 0.2, "num_samples": 4, "where": keras.where}
    stack = sj.reductions.stack()
    gradient = jax.jit(jax.grad(keras.score, argnums=1))
    draws = sj.noisegrad(lambda params, x, label: params, **settings, reduction=stack)
    stacked = draws(key, keras.params, X, 1)
    noisy = [np.any(many != one[None]) for many, one in zip(stacked, keras.params, strict=True)]
    assert noisy == keras.where == [True, False, False, False, True, False]
    maps = [gradient([leaf[i] for leaf in stacked], X, 1) for i in range(4)]
    assert not np.allclose(maps[0], maps[1], rtol=1e-2)

    got = jax.jit(sj.noisegrad(sj.saliency(keras.score), **settings))(key, keras.params, X, 1)
    np.testing.assert_allclose(got, np.mean(maps, axis=0), rtol=1e-4, atol=1e-5)
    for v, value in zip(keras.model.variables, before, strict=True):
        np.testing.assert_array_equal(v.value, value)


@pytest.fixture(params=slow_but([plain, flax_linen, flax_nnx, equinox, "keras"], flax_nnx, "keras"))
def model(request):
    if request.param == "keras":
        keras = request.getfixturevalue("keras")
        return keras.score, keras.params
    return request.param()


@pytest.mark.parametrize(
    "smooth",
    slow_but(
        {
            "smoothgrad": sj.smoothgrad,
            "noisegrad": lambda explain: sj.noisegrad(explain, 0.1),
            "fusiongrad": functools.partial(
                sj.fusiongrad, sigma_weights=0.1, num_weight_draws=4, num_input_draws=3
            ),
            "adaptgrad": lambda explain: sj.adaptgrad(explain, (-2.0, 2.0)),
        },
        "noisegrad",
    ),
)
def test_explained(smooth, model, key):
    score, params = model
    explain = smooth(sj.saliency(score))
    jit = eqx.filter_jit if isinstance(params, eqx.Module) else jax.jit
    attribution = jit(explain)(key, params, X, 1)
    assert attribution.shape == X.shape
    plain_map = sj.saliency(score)(params, X, 1)
    assert np.any(plain_map != 0)
    assert not np.allclose(attribution, plain_map, rtol=1e-3)
    cosine = attribution @ plain_map / jnp.linalg.norm(attribution) / jnp.linalg.norm(plain_map)
    assert cosine > 0.7
    batch = jax.vmap(explain, in_axes=(None, None, 0, None))(key, params, jnp.stack([X, -X]), 1)
    np.testing.assert_allclose(batch[0], attribution, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_zero_noise_is_the_plain_gradient(model, key):
    score, params = model
    explain = sj.noisegrad(sj.smoothgrad(sj.saliency(score), 0.0), 0.0, num_samples=2)
    np.testing.assert_allclose(
        explain(key, params, X, 1), sj.saliency(score)(params, X, 1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("build", [plain, flax_linen, flax_nnx, equinox])
def test_by_path_reaches_the_kernels_of_each_library(build):
    _, params = build()
    mask = sj.by_path(lambda path: "kernel" in path or "weight" in path)(params)
    kernels = [
        leaf.ndim == 2
        for leaf in jax.tree.leaves(params)
        if hasattr(leaf, "ndim")  # Equinox keeps its activation functions among the leaves
    ]
    assert sum(jax.tree.leaves(mask)) == sum(kernels) > 0


def attention(params, x):
    q, k, v = (x @ params[name] for name in ("q", "k", "v"))
    weights = jax.nn.softmax(q @ k.T / math.sqrt(k.shape[-1]))
    return x + weights @ v


@pytest.mark.slow
def test_transformer_on_token_embeddings(key):
    """Noise is on the embeddings; the integer tokens and the padding mask pass untouched."""
    width, vocabulary = 8, 11
    keys = iter(jax.random.split(jax.random.key(3), 6))
    params = {
        "embed": jax.random.normal(next(keys), (vocabulary, width)),
        "layers": [
            {name: jax.random.normal(next(keys), (width, width)) / 3 for name in ("q", "k", "v")}
        ],
        "head": jax.random.normal(next(keys), (width, 2)),
    }
    tokens = jnp.array([3, 1, 4, 1, 5])
    seen = []

    def score(params, x, label):
        seen.append((x["tokens"], x["mask"]))
        h = x["embedding"]
        for layer in params["layers"]:
            h = attention(layer, h)
        return jnp.sum(jnp.where(x["mask"][:, None], h @ params["head"], 0.0), axis=0)[label]

    x = {
        "embedding": params["embed"][tokens],
        "tokens": tokens,
        "mask": jnp.array([True, True, True, True, False]),
    }
    explain = sj.smoothgrad(sj.saliency(score), sj.relative(0.1), num_samples=5)
    relevance = explain(key, params, x, 1)
    assert relevance["embedding"].shape == (5, width)
    assert relevance["tokens"].dtype == jax.dtypes.float0
    assert all(seen_tokens is tokens and mask is x["mask"] for seen_tokens, mask in seen)
    np.testing.assert_allclose(
        sj.smoothgrad(sj.saliency(score), 0.0)(key, params, x, 1)["embedding"],
        sj.saliency(score)(params, x, 1)["embedding"],
        rtol=1e-4,
        atol=1e-6,
    )
    fused = jax.jit(sj.fusiongrad(sj.saliency(score), 0.05, 0.1))(key, params, x, 1)
    assert jnp.all(jnp.isfinite(fused["embedding"]))


def split_linen():
    class Network(linen.Module):
        def setup(self):
            self.conv = linen.Conv(4, (3, 3), strides=2)
            self.norm = linen.BatchNorm(use_running_average=True)
            self.classifier = linen.Dense(3)

        def features(self, images):
            return linen.relu(self.norm(self.conv(images)))

        def head(self, activations):
            return self.classifier(activations.mean((1, 2)))

        def __call__(self, images):
            return self.head(self.features(images))

    model = Network()
    variables = model.init(jax.random.key(0), PHOTO[None])

    def features(params, x):
        return model.apply({**variables, "params": params}, x[None], method="features")[0]

    def head(params, activations, label):
        outputs = model.apply({**variables, "params": params}, activations[None], method="head")
        return outputs[0, label]

    def score(params, x, label):
        return model.apply({**variables, "params": params}, x[None])[0, label]

    params = variables["params"]
    return features, head, score, params, params["classifier"]["kernel"]


def split_nnx():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.classifier = nnx.Linear(4, 3, rngs=rngs)

        def features(self, images):
            return nnx.relu(self.norm(self.conv(images)))

        def head(self, activations):
            return self.classifier(activations.mean((1, 2)))

        def __call__(self, images):
            return self.head(self.features(images))

    graph, params, state = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def features(params, x):
        return nnx.merge(graph, params, state).features(x[None])[0]

    def head(params, activations, label):
        return nnx.merge(graph, params, state).head(activations[None])[0, label]

    def score(params, x, label):
        return nnx.merge(graph, params, state)(x[None])[0, label]

    return features, head, score, params, params["classifier"]["kernel"][...]


@pytest.mark.parametrize("split", [split_linen, split_nnx])
@pytest.mark.slow
def test_a_network_in_two(split, key):
    """After global average pooling, a linear layer's weights say what Grad-CAM is."""
    features, head, score, params, kernel = split()
    label, places = 1, 4 * 3
    activations = features(params, PHOTO)
    assert activations.shape == (4, 3, 4)
    np.testing.assert_allclose(
        head(params, activations, label), score(params, PHOTO, label), rtol=1e-5
    )

    cam = np.maximum(np.asarray(activations) @ np.asarray(kernel)[:, label], 0) / places
    assert cam.max() > 0
    got = jax.jit(sj.gradcam(features, head, upsample=False))(params, PHOTO, label)
    np.testing.assert_allclose(got[..., 0], cam, rtol=1e-4, atol=1e-6)

    # The head is linear, so that its gradient does not notice noise on the activations.
    explain = jax.jit(sj.smoothgrad(sj.saliency(head), num_samples=3))
    inner = explain(key, params, activations, label)
    np.testing.assert_allclose(
        inner, np.broadcast_to(kernel[:, label] / places, (4, 3, 4)), rtol=1e-4
    )
    noisy = jax.jit(sj.noisegrad(sj.gradcam(features, head), 0.01, num_samples=4))
    assert noisy(key, params, PHOTO, label).shape == (8, 6, 1)
