"""Guided backpropagation and deconvolution against ReLUs with hand-written derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax
from rows import slow_but

import smoothjax as sj

METHODS = [sj.guided_backprop, sj.deconvnet]
each_method = pytest.mark.parametrize("method", METHODS)

W1 = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32)
W2 = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)), jnp.float32)
W3 = jnp.asarray(np.random.default_rng(2).normal(size=8), jnp.float32)
PARAMS = [W1, W2, W3]
SCALES = jnp.linspace(0.5, 1.0, 3, dtype=jnp.float32)[:, None, None]
X = jnp.asarray(np.random.default_rng(3).normal(size=6), jnp.float32)
IMAGE = jnp.asarray(np.random.default_rng(4).normal(size=(8, 8, 3)), jnp.float32)


def relu_with(method):
    """A ReLU with the derivative that the method wants."""

    @jax.custom_vjp
    def relu(x):
        return jnp.maximum(x, 0)

    def guided(x, g):
        return (jnp.where((g > 0) & (x > 0), g, 0),)

    def deconvolved(x, g):
        return (jnp.where(g > 0, g, 0),)

    relu.defvjp(lambda x: (relu(x), x), guided if method is sj.guided_backprop else deconvolved)
    return relu


@jax.custom_jvp
def with_a_derivative_of_its_own(x):
    return jnp.maximum(x, 0)


with_a_derivative_of_its_own.defjvps(lambda t, y, x: 7 * t)


def network(relu):
    """Three layers, and a ReLU next to a residual connection."""

    def score(params, x):
        w1, w2, w3 = params
        h = relu(x @ w1)
        h = h + relu(h @ w2 - 0.3)
        return relu(h - 0.5) @ w3

    return score


def check(got, score, params, x):
    """The map is the hand-written one, and neither zero nor the gradient."""
    want = jax.grad(score, argnums=1)(params, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * float(abs(want).max()))
    assert np.any(want != 0)


RELUS = {
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, turned": lambda x: jnp.maximum(0.0, x),
    "maximum of an array": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "maximum of NumPy's": lambda x: jnp.maximum(x, np.zeros(8, np.float32)),
    "clip": lambda x: jnp.clip(x, 0),
    "clamp": lambda x: lax.clamp(0.0, x, jnp.inf),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where at least": lambda x: jnp.where(x >= 0, x, jnp.zeros(8)),
    "where, turned": lambda x: jnp.where(x < 0, 0, x),
    "where, turned twice": lambda x: jnp.where(0 >= x, 0, x),
    "select": lambda x: lax.select(x > 0, x, jnp.zeros_like(x)),
    "product": lambda x: x * (x > 0).astype(x.dtype),
    "relu in jit": jax.jit(jax.nn.relu),
    "relu in checkpoint": jax.checkpoint(jax.nn.relu),
    "a derivative of its own": with_a_derivative_of_its_own,
    "vmapped": jax.vmap(lambda x: jnp.where(x > 0, x, 0.0)),
}


@each_method
@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_a_relu_however_it_is_written(relu, method):
    explain = method(network(relu))
    check(explain(PARAMS, X), network(relu_with(method)), PARAMS, X)
    np.testing.assert_allclose(jax.jit(explain)(PARAMS, X), explain(PARAMS, X), rtol=1e-5)
    assert not np.allclose(explain(PARAMS, X), jax.grad(network(relu), 1)(PARAMS, X), rtol=1e-2)


def test_the_two_differ():
    maps = [method(network(jax.nn.relu))(PARAMS, X) for method in METHODS]
    assert not np.allclose(*maps, rtol=1e-2)


BOUNDED = {
    "relu6": lambda x: jax.nn.relu6(3 * x) / 3,
    "clip": lambda x: jnp.clip(x, 0, 2),
    "clamp": lambda x: lax.clamp(0.0, x, 2.0),
    "minimum": lambda x: jnp.minimum(jnp.maximum(x, 0), 2),
}


@each_method
@pytest.mark.parametrize("relu6", BOUNDED.values(), ids=BOUNDED)
def test_an_upper_bound_keeps_its_derivative(relu6, method):
    assert jnp.max(X @ W1) > 2
    relu = relu_with(method)
    by_hand = network(lambda x: jnp.minimum(relu(x), 2))
    check(method(network(relu6))(PARAMS, X), by_hand, PARAMS, X)


OTHERS = {
    "leaky": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "softplus": jax.nn.softplus,
    "hard swish": jax.nn.hard_swish,
    "gelu": jax.nn.gelu,
    "abs": jnp.abs,
    "maximum of another number": lambda x: jnp.maximum(x, -1.0),
    "maximum of another array": lambda x: jnp.maximum(x, jnp.linspace(-1.0, 0.0, 8)),
    "maximum of two": lambda x: jnp.maximum(x, 0.5 * jnp.flip(x)),
    "where another is positive": lambda x: jnp.where(jnp.flip(x) > 0, x, 0.0),
    "where it is negative": lambda x: jnp.where(x < 0, x, 0.0),
    "minimum": lambda x: jnp.minimum(x, 0.0),
    "times a weight": lambda x: jnp.where(x > 0, W3 * x, 0.0),
}


@each_method
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_activations_keep_their_derivatives(other, method):
    def score(relu):
        return lambda params, x: other(relu(x @ params[0]) @ params[1]) @ params[2]

    check(method(score(jax.nn.relu))(PARAMS, X), score(relu_with(method)), PARAMS, X)
    with pytest.raises(ValueError, match=rf"(?s)no ReLU.*saliency.*in {method.__name__}"):
        method(network(other))(PARAMS, X)


def convolutional(relu):
    """Convolutions, max pooling, normalisations (one guards its variance by a maximum)."""

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.max_pool(relu(linen.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
            x = relu(linen.BatchNorm(use_running_average=True)(linen.Conv(4, (3, 3))(x)))
            x = relu(linen.LayerNorm()(linen.Dense(6)(x)))
            return linen.Dense(3)(x.mean((1, 2)))

    return Network()


def of_linen(relu):
    model = convolutional(relu)
    params = model.init(jax.random.key(0), IMAGE[None])
    return lambda params, x: model.apply(params, x[None])[0, 1], params, IMAGE


def of_equinox(relu):
    model = eqx.nn.MLP(6, 3, 8, 2, relu, dtype=jnp.float32, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    return lambda params, x: eqx.combine(params, static)(x)[1], params, X


@each_method
@pytest.mark.parametrize("library", slow_but([of_linen, of_equinox], of_equinox))
def test_models(library, method):
    score, params, x = library(jax.nn.relu)
    check(jax.jit(method(score))(params, x), library(relu_with(method))[0], params, x)


@pytest.mark.slow
@each_method
def test_the_zoo(method, monkeypatch):
    zoo = pytest.importorskip("smoothjax.zoo")
    net = zoo.load("efficientnet-lite0")
    x = jax.random.normal(jax.random.key(0), (64, 64, 3))
    got = jax.jit(method(net.score))(net.params, x, 3)
    relu = relu_with(method)
    monkeypatch.setattr(jax.nn, "relu6", lambda x: jnp.minimum(relu(x), 6))
    want = jax.jit(jax.grad(net.score, argnums=1))(net.params, x, 3)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * float(abs(want).max()))


@each_method
@pytest.mark.slow
def test_transforms(method, key):
    """In batches, with noise on x and on the weights, of a stochastic score."""
    score = network(jax.nn.relu)
    explain, by_hand = method(score), jax.grad(network(relu_with(method)), argnums=1)

    xs = jnp.stack([X, -X])
    batch = jax.vmap(explain, (None, 0))(PARAMS, xs)
    np.testing.assert_allclose(batch, jax.vmap(by_hand, (None, 0))(PARAMS, xs), rtol=1e-4)
    for smooth in (sj.smoothgrad, sj.noisegrad):
        got = jax.jit(smooth(explain, 0.3, num_samples=4))(key, PARAMS, X)
        want = jax.jit(smooth(by_hand, 0.3, num_samples=4))(key, PARAMS, X)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    stochastic = method(sj.noisegrad(score, 0.1, num_samples=3))
    assert sj.is_stochastic(stochastic)
    assert not sj.is_stochastic(explain)
    assert explain.__name__ == f"{method.__name__}(score)"
    outside = sj.noisegrad(explain, 0.1, num_samples=3)(key, PARAMS, X)
    np.testing.assert_allclose(stochastic(key, PARAMS, X), outside, rtol=1e-4, atol=1e-5)


@each_method
def test_pytrees(method):
    def score(x, label):
        return (jax.nn.relu(x["a"] @ W1) @ W2)[label] * x["count"].astype(jnp.float32)

    x = {"a": X, "count": jnp.array(2)}
    got = method(score, argnum=0)(x, 1)
    want = jax.grad(lambda a: 2 * (relu_with(method)(a @ W1) @ W2)[1])(X)
    np.testing.assert_allclose(got["a"], want, rtol=1e-5)
    assert got["count"].dtype == jax.dtypes.float0


def of_a_while(c, _):
    return lax.while_loop(lambda c: c[0] < 9, lambda c: jax.nn.relu(c) + 1, c), None


BAD = [
    (lambda f: f(3), TypeError, "takes a function.*got 3"),
    (lambda f: f(jax.nn.relu, argnum=0.5), TypeError, "argnum must be a Python int"),
    (lambda f: f(lambda p, x: jax.nn.relu(x))(None, X), TypeError, r"real scalar.*float32\[6\]"),
    (lambda f: f(lambda p, x: jnp.argmax(x))(None, X), TypeError, r"real scalar.*int32\[\]"),
    (lambda f: f(lambda p, x: (x[0], x[1]))(None, X), TypeError, "real scalar"),
    (lambda f: f(lambda p, x: x @ W1 @ W3)(None, X), ValueError, "no ReLU.*depends on x"),
    (
        lambda f: f(lambda p, x: x @ W1 @ jax.nn.relu(p))(W3, X),
        ValueError,
        "no ReLU of the score depends on x",
    ),
    (
        lambda f: f(
            lambda p, x: jnp.sum(
                lax.while_loop(lambda c: c[0] < 9, lambda c: jax.nn.relu(c) + 1, x)
            )
        )(None, X),
        NotImplementedError,
        r"while \(.*test_guided_backprop.py:\d+.*type jax.lax.scan",
    ),
    (
        lambda f: f(lambda p, x: jnp.sum(jax.nn.relu(lax.scan(of_a_while, x, None, 2)[0])))(
            None, X
        ),
        NotImplementedError,
        r"while \(.*test_guided_backprop.py:\d+.*type jax.lax.scan",
    ),
    (
        lambda f: f(lambda p, x: jnp.sum(lax.cond(x[0] > 0, jax.nn.relu, jnp.sin, x)))(None, X),
        NotImplementedError,
        r"cond \(.*jnp.where instead of cond",
    ),
    (lambda f: f(lambda p, x: jnp.sum(x))(None, jnp.arange(3)), TypeError, "floating-point"),
]


@each_method
@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors(call, error, message, method):
    with pytest.raises(error, match=message):
        call(method)


@each_method
def test_a_scan_is_unrolled(method):
    """Forwards and backwards, with what it carries and stacks; in a checkpoint, and nested."""

    def score(relu):
        def step(h, w):
            h = relu(h @ w + 0.1)
            return h, (h[:2], lax.scan(lambda c, _: (relu(c @ w - 0.1), None), h, None, 2)[0])

        def score(params, x):
            for reverse in (False, True):
                scan = jax.checkpoint(
                    lambda h, r=reverse: lax.scan(step, h, W2[None] * SCALES, reverse=r)
                )
                h, (first, rest) = scan(x @ params[0])
            return jnp.sum(first * SCALES[..., 0]) + jnp.sum(rest[1]) + h @ params[2]

        return score

    check(method(score(jax.nn.relu))(PARAMS, X), score(relu_with(method)), PARAMS, X)


@each_method
def test_a_loop_without_a_relu_keeps_its_derivative(method):
    def score(relu):
        def score(params, x):
            h = lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ params[1]), relu(x @ params[0]))
            return relu(h) @ params[2]

        return score

    check(method(score(jax.nn.relu))(PARAMS, X), score(relu_with(method)), PARAMS, X)
