"""Grad-CAM and Grad-CAM++ against their formulas, on models of every library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from rows import slow_but

import smoothjax as sj
from smoothjax.attribution import gradcam, gradcam_plus_plus

METHODS = [gradcam, gradcam_plus_plus]
ACTIVATIONS = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 4, 5)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)), jnp.float32)
each_method = pytest.mark.parametrize("method", METHODS)


def identity(params, x):
    return x


def pooled_linear(params, activations, label):
    """Global average pooling and a linear layer."""
    return (jnp.mean(activations, axis=(0, 1)) @ params)[label]


def curved(params, activations, label):
    return jnp.sum(jnp.tanh(activations @ params)[..., label] ** 2)


@pytest.mark.parametrize("label", [0, 1])
def test_gradcam_after_global_pooling_is_cam(label):
    """CAM is relu of the activations times the class's weights; Grad-CAM is that over 24 places."""
    got = jax.jit(gradcam(identity, pooled_linear))(WEIGHTS, ACTIVATIONS, label)
    cam = np.maximum(np.asarray(ACTIVATIONS) @ np.asarray(WEIGHTS)[:, label], 0)
    assert got.shape == (6, 4, 1)
    np.testing.assert_allclose(got[..., 0], cam / 24, rtol=1e-5, atol=1e-7)


def test_gradcam_averages_the_gradient():
    gradient = np.asarray(jax.grad(curved, argnums=1)(WEIGHTS, ACTIVATIONS, 1))
    total = np.einsum("c,ijc->ij", gradient.mean((0, 1)), ACTIVATIONS)
    assert total.max() > 0
    got = gradcam(identity, curved)(WEIGHTS, ACTIVATIONS, 1)
    np.testing.assert_allclose(got[..., 0], np.maximum(total, 0), rtol=1e-4, atol=1e-6)


def test_gradcam_plus_plus_follows_the_derivatives_of_the_exponential():
    """The paper's weights, from the first, second and third derivatives of exp(S), S linear.

    alpha = Y'' / (2 Y'' + sum(A) Y'''), weight = sum alpha relu(Y'), divided by exp(S).
    """
    activations = np.asarray(ACTIVATIONS, np.float64)
    slope = np.asarray(WEIGHTS, np.float64)[:, 1] / 24
    exponential = np.exp(np.einsum("ijc,c->", activations, slope))
    first, second, third = (exponential * slope**order for order in (1, 2, 3))
    alpha = second / (2 * second + activations.sum((0, 1)) * third)
    weights = 24 * alpha * np.maximum(first, 0) / exponential
    got = gradcam_plus_plus(identity, pooled_linear)(WEIGHTS, ACTIVATIONS, 1)
    np.testing.assert_allclose(got[..., 0], activations @ weights, rtol=1e-4)


def test_gradcam_plus_plus_of_places_with_different_gradients():
    gradient = np.asarray(jax.grad(curved, argnums=1)(WEIGHTS, ACTIVATIONS, 1))
    a = np.asarray(ACTIVATIONS)
    weights = (np.maximum(gradient, 0) / (2 + gradient * a.sum((0, 1)))).sum((0, 1))
    got = gradcam_plus_plus(identity, curved)(WEIGHTS, ACTIVATIONS, 1)
    np.testing.assert_allclose(got[..., 0], np.maximum(a @ weights, 0), rtol=1e-4, atol=1e-6)


def stretched(small, size):
    """An axis of a map, stretched linearly: pixels are intervals, and the ends are held."""
    centres = (np.arange(size) + 0.5) * len(small) / size - 0.5
    return np.interp(centres, np.arange(len(small)), small)


@each_method
@pytest.mark.parametrize("size", [(12, 8), (7, 11), (13, 4), (6, 4)])
def test_upsampling_is_bilinear_and_optional(method, size):
    def features(params, x):
        return ACTIVATIONS + jnp.mean(x)

    x = jnp.asarray(np.random.default_rng(2).uniform(size=(*size, 2)), jnp.float32)
    small = method(features, pooled_linear, upsample=False)(WEIGHTS, x, 1)
    assert small.shape == (6, 4, 1)
    assert np.std(small) > 1e-3
    large = method(features, pooled_linear)(WEIGHTS, x, 1)
    assert large.shape == (*size, 1)
    rows = np.stack([stretched(column, size[0]) for column in small[..., 0].T], axis=1)
    expected = np.stack([stretched(row, size[1]) for row in rows])
    np.testing.assert_allclose(large[..., 0], expected, rtol=1e-4, atol=1e-6)


def test_gradcam_plus_plus_where_a_denominator_could_vanish():
    """The gradient is -1 and the activations sum to 2: 0 / 0, were it not for the relu."""
    explain = gradcam_plus_plus(
        lambda params, x: jax.nn.relu(x), lambda params, a: jnp.sum(params * a), upsample=False
    )
    activations = jnp.array([[[2.0, 1.0]], [[0.0, 1.0]]])
    got = explain(jnp.array([[[-1.0, 1.0]]]), activations)
    # The second channel alone: two places of weight 1 / (2 + 2).
    np.testing.assert_allclose(got[..., 0], [[0.5], [0.5]], rtol=1e-6)


@pytest.mark.parametrize("length", [4, 9])
def test_signals_and_keyword_arguments(length):
    """The formulas over an axis of 4 places, whose gradients are one number a channel."""

    def features(params, x):
        return ACTIVATIONS[0] + jnp.mean(x)

    def head(params, activations, *, label):
        return (jnp.mean(activations, axis=0) @ params)[label]

    x = jnp.linspace(-1.0, 1.0, 3 * length, dtype=jnp.float32).reshape(length, 3)  # of mean 0
    a, slope = np.asarray(ACTIVATIONS[0]), np.asarray(WEIGHTS)[:, 1] / 4
    got = gradcam(features, head)(WEIGHTS, x, label=1)
    assert got.shape == (length, 1)
    small = np.maximum(a @ slope, 0)
    np.testing.assert_allclose(got[:, 0], stretched(small, length), rtol=1e-4, atol=1e-6)

    positive = np.maximum(slope, 0)
    small = a @ (4 * positive / (2 + positive * a.sum(0)))
    got = gradcam_plus_plus(features, head)(WEIGHTS, x, label=1)
    assert got.shape == (length, 1)
    np.testing.assert_allclose(got[:, 0], stretched(small, length), rtol=1e-4, atol=1e-6)


@each_method
def test_half_precision_is_summed_in_single_precision(method):
    """And rounded once: the gradient has numbers of few bits, and so is exact."""

    def head(params, activations):
        return jnp.sum(activations @ jnp.asarray([0.5, 1.0, 1.5, 2.0, 3.0], activations.dtype))

    activations = ACTIVATIONS.astype(jnp.bfloat16)
    got = method(identity, head)(None, activations)
    assert got.dtype == jnp.bfloat16
    exact = method(identity, head)(None, activations.astype(jnp.float32))
    assert exact.max() > 1
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


@each_method
def test_the_map_is_nowhere_negative(method):
    negative = method(identity, lambda params, a: -jnp.sum(a))(None, ACTIVATIONS)
    np.testing.assert_array_equal(negative, np.zeros((6, 4, 1)))


def flax_linen():
    class Network(linen.Module):
        def setup(self):
            self.conv = linen.Conv(4, (3, 3), strides=2)
            self.classifier = linen.Dense(3)

        def features(self, images):
            return linen.relu(self.conv(images))

        def head(self, activations):
            return self.classifier(activations.mean((1, 2)))

        def __call__(self, images):
            return self.head(self.features(images))

    model = Network()
    params = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3), jnp.float32))

    def features(params, x):
        return model.apply(params, x[None], method="features")[0]

    def head(params, activations, label):
        return model.apply(params, activations[None], method="head")[0, label]

    def score(params, x, label):
        return model.apply(params, x[None])[0, label]

    return params, features, head, score


def flax_nnx():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
            self.classifier = nnx.Linear(4, 3, rngs=rngs)

        def features(self, images):
            return nnx.relu(self.conv(images))

        def head(self, activations):
            return self.classifier(activations.mean((1, 2)))

        def __call__(self, images):
            return self.head(self.features(images))

    graph, params = nnx.split(Network(nnx.Rngs(0)))

    def features(params, x):
        return nnx.merge(graph, params).features(x[None])[0]

    def head(params, activations, label):
        return nnx.merge(graph, params).head(activations[None])[0, label]

    def score(params, x, label):
        return nnx.merge(graph, params)(x[None])[0, label]

    return params, features, head, score


@each_method
@pytest.mark.parametrize("library", slow_but([flax_linen, flax_nnx], flax_nnx))
@pytest.mark.slow
def test_flax_networks_under_smoothing(library, method, key):
    params, features, head, score = library()
    x = jax.random.normal(jax.random.key(3), (8, 8, 3), jnp.float32)
    label = 1
    np.testing.assert_allclose(
        head(params, features(params, x), label), score(params, x, label), rtol=1e-5
    )
    explain = method(features, head)
    plain = jax.jit(explain)(params, x, label)
    assert plain.shape == (8, 8, 1)
    assert plain.max() > 0
    xs = jnp.stack([x, -x])
    batch = jax.jit(jax.vmap(explain, (None, 0, None)))(params, xs, label)
    np.testing.assert_allclose(batch[0], plain, rtol=1e-4, atol=1e-6)
    for smoothed in (sj.noisegrad(explain, 0.1), sj.smoothgrad(explain, 0.1, num_samples=10)):
        got = jax.jit(smoothed)(key, params, x, label)
        assert got.shape == plain.shape
        assert not np.allclose(got, plain, rtol=1e-3)
        np.testing.assert_allclose(got, plain, atol=0.5 * float(plain.max()))


def test_noise_at_an_inner_layer(key):
    """SmoothGrad of the head, as a function of the activations that `features` makes."""
    params, features, head, _ = flax_linen()
    x = jax.random.normal(jax.random.key(3), (8, 8, 3), jnp.float32)
    explain = sj.smoothgrad(sj.saliency(head), 0.1, num_samples=3)
    got = jax.jit(explain)(key, params, features(params, x), 1)
    # The head is linear, so its gradient does not notice the noise.
    kernel = params["params"]["classifier"]["kernel"][:, 1]
    np.testing.assert_allclose(got, jnp.broadcast_to(kernel / 16, (4, 4, 4)), rtol=1e-5)


def test_names_and_signature():
    explain = gradcam(identity, pooled_linear)
    assert explain.__name__ == "gradcam(pooled_linear)"
    assert not sj.is_stochastic(explain)
    assert sj.is_stochastic(sj.noisegrad(explain))


BAD = [
    (
        lambda: gradcam(3, pooled_linear),
        TypeError,
        "(?s)features must be a function; got 3.*in gradcam",
    ),
    (lambda: gradcam_plus_plus(identity, None), TypeError, "gradcam_plus_plus takes a function"),
    (
        lambda: gradcam(identity, sj.noisegrad(pooled_linear)),
        TypeError,
        r"but noisegrad\(pooled_linear\) does.*noisegrad\(gradcam\(features, head\)\)",
    ),
    (
        lambda: gradcam(identity, lambda p, a: a[0])(None, jnp.ones(3)),
        ValueError,
        r"activations \(h, w, channels\) of one example; got shape \(3,\)",
    ),
    (
        lambda: gradcam(identity, lambda p, a: jnp.sum(a))(None, jnp.ones((3, 3), jnp.int32)),
        ValueError,
        "real floating-point activations.*dtype int32",
    ),
    (
        lambda: gradcam(lambda p, x: {"layer": x}, pooled_linear)(None, ACTIVATIONS),
        ValueError,
        "activations.*got {'layer'",
    ),
    (
        lambda: gradcam(identity, identity)(None, ACTIVATIONS),
        TypeError,
        "(?s)score must be a real scalar.*in gradcam",
    ),
    (
        lambda: gradcam(identity, lambda key, p, a: jnp.sum(a))(None, ACTIVATIONS),
        TypeError,
        "smoothjax.stochastic",
    ),
    (
        lambda: gradcam(lambda p, x: ACTIVATIONS, pooled_linear)(WEIGHTS, jnp.ones(7), 0),
        ValueError,
        r"activations of shape \(6, 4, 5\).*got shape \(7,\)\. Type upsample=False",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_the_zoo_splits_its_networks():
    import skimage.data

    from smoothjax import zoo

    net = zoo.load("efficientnet-lite0")
    x = net.preprocess(skimage.data.chelsea())[80:144, 80:144]

    @jax.jit
    def both(params, x):
        activations = net.features(params, x)
        return activations, net.head(params, activations, 285), net.score(params, x, 285)

    activations, split, whole = both(net.params, x)
    assert activations.shape == (2, 2, 1280)
    assert activations.min() >= 0
    np.testing.assert_allclose(split, whole, rtol=1e-4)
    # The README's noise at an inner layer, which the gradient of a linear head does not notice.
    key, label = jax.random.key(0), 285
    explain = jax.jit(sj.smoothgrad(sj.saliency(net.head)))
    inner = explain(key, net.params, net.features(net.params, x), label)
    kernel = net.params["classifier"]["kernel"][:, label]
    np.testing.assert_allclose(inner, jnp.broadcast_to(kernel / 4, (2, 2, 1280)), rtol=1e-4)
    with pytest.raises(ValueError, match="from 0 to 999"):
        net.head(net.params, activations, 1000)
    with pytest.raises(ValueError, match=r"net\.features needs one x of shape"):
        net.features(net.params, x[None])
