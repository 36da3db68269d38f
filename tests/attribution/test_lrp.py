"""Relevance against values by hand, gradient times input, networks folded by hand, and sums."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax
from networks import lstm, vision_transformer

import smoothjax as sj
from smoothjax.attribution import lrp_rules as rules


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


W1, W2, W3 = normal(0, 6, 8), normal(1, 8, 8), normal(2, 8)
X = normal(3, 6)
IMAGE = normal(4, 8, 8, 3)
SMALL = rules.epsilon(1e-9)


def mlp(params, x):
    return jax.nn.relu(jax.nn.relu(x @ W1) @ W2) @ W3


def cnn(params, x):
    """Without biases: convolutions, max and mean pooling, a residual connection, a slice."""
    x = jax.nn.relu(convolve(x, normal(5, 3, 3, 3, 4)))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")
    x = x + jax.nn.relu(convolve(x, normal(6, 3, 3, 4, 4)))
    x = lax.reduce_window(x, 0.0, lax.add, (2, 2, 1), (2, 2, 1), "VALID") / 4
    return (jax.nn.relu(x.reshape(-1) @ normal(7, 16, 5)) @ normal(8, 5, 3))[1]


def convolve(x, kernel, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )[0]


def relevance(score, rule=SMALL, x=X):
    """Of a score of x alone."""
    return sj.lrp(score, rule, argnum=0)(x)


def close(got, want, rtol=1e-4):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * float(np.max(np.abs(want))))


# Two layers: the hidden units are 3 - 2 = 1 and 1 + 4 = 5, the output is 2 * 1 - 1 * 5 = -3.
A, FIRST, LAST = jnp.array([1.0, 2.0]), jnp.array([[3.0, 1.0], [-1.0, 2.0]]), jnp.array([2.0, -1.0])

BY_HAND = {
    # 2 and -5 to the units, which pass on 3 and -2 of 1, and 1 and 4 of 5.
    "epsilon": (SMALL, [2 * 3 - 5 / 5, 2 * -2 - 5 * 4 / 5]),
    # -3 / -4 of that to the units, in parts of 1 + 1 and of 5 + 1.
    "epsilon of 1": (rules.epsilon(1.0), [1.5 * 3 / 2 - 3.75 / 6, 1.5 * -2 / 2 - 3.75 * 4 / 6]),
    # All to the first unit, and there all to the first input.
    "z-plus": (rules.zplus(), [-3.0, 0.0]),
    # 2 * -3 to the first unit and -1 * -3 to the second, which has no negative contributions.
    "alpha-beta": (rules.alpha_beta(2.0, 1.0), [2 * -6 + 2 * 3 / 5, -1 * -6 + 2 * 3 * 4 / 5]),
    # The output is negative: shares of 2 and 2 * -5 in -8. The units are positive: the first has
    # 2 * 3 and -2 in 4.
    "gamma": (rules.gamma(1.0), [0.75 * 6 / 4 - 3.75 / 5, 0.75 * -2 / 4 - 3.75 * 4 / 5]),
    # The first layer from 0 and 3: 3 * 1 + 1 * 1 of the first unit, 1 + 2 * 2 of the second.
    "box": (
        rules.by_layer(lambda layer: rules.box(0.0, 3.0) if layer.reads_input else SMALL),
        [2 * 3 / 4 - 5 * 1 / 5, 2 * 1 / 4 - 5 * 4 / 5],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_two_layers_by_hand(name):
    rule, want = BY_HAND[name]
    got = relevance(lambda x: jax.nn.relu(x @ FIRST) @ LAST, rule, A)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("name", BY_HAND)
def test_dtypes(name):
    x, first, last = (a.astype(jnp.bfloat16) for a in (A, FIRST, LAST))
    explain = sj.lrp(lambda x: jax.nn.relu(x @ first) @ last, BY_HAND[name][0], argnum=0)
    assert jax.eval_shape(explain, x).dtype == jnp.bfloat16


BIASED = {  # 10 is the relevance of 3 - 2 + 4 = 5, or -10 of 3 - 2 - 6 = -5
    "epsilon": (SMALL, 4, [10 * 3 / 5, 10 * -2 / 5]),
    "z-plus": (rules.zplus(), 4, [10 * 3 / 7, 0.0]),
    "alpha-beta": (rules.alpha_beta(), 4, [20 * 3 / 7, -10.0]),
    "alpha-beta, negative": (rules.alpha_beta(), -6, [-20.0, 10 * 2 / 8]),
    "gamma": (rules.gamma(1.0), 4, [10 * 6 / 12, 10 * -2 / 12]),
    "gamma, negative": (rules.gamma(1.0), -6, [-10 * 3 / -13, -10 * -4 / -13]),
    "box": (rules.box(0.0, 3.0), 4, [10 * 3 / 4, 10 * 1 / 4]),
}


@pytest.mark.parametrize("name", BIASED)
def test_a_bias_takes_its_share(name):
    """The box rule has none for it."""
    rule, bias, want = BIASED[name]
    got = relevance(lambda x: 2 * (x @ FIRST[:, 0] + bias), rule, A)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def by_hand(rule, layers, x):
    """Relevance of a chain of dense layers w, ReLUs between, in NumPy; rule(contributions, R)."""
    activations, layers = [np.asarray(x, np.float64)], [np.asarray(w, np.float64) for w in layers]
    for w in layers[:-1]:
        activations.append(np.maximum(activations[-1] @ w, 0))
    result = activations[-1] @ layers[-1]
    for w, a in zip(layers[::-1], activations[::-1], strict=True):
        result = rule(a[:, None] * w, result)
    return result


def shares(c, total):
    return np.divide(c, total, out=np.zeros_like(c), where=total != 0)


def of_sign(sign, c):
    part = np.where(sign * c > 0, c, 0)
    return shares(part, part.sum(0))


NUMPY = {
    "epsilon": (rules.epsilon(0.1), lambda c, r: c @ (r / (c.sum(0) + 0.1 * np.sign(c.sum(0))))),
    "z-plus": (rules.zplus(), lambda c, r: of_sign(1, c) @ r),
    "alpha-beta": (
        rules.alpha_beta(3.0, 2.0),
        lambda c, r: 3 * of_sign(1, c) @ r - 2 * of_sign(-1, c) @ r,
    ),
    "gamma": (
        rules.gamma(0.3),
        lambda c, r: shares(g := c + 0.3 * np.where(c * np.sign(c.sum(0)) > 0, c, 0), g.sum(0)) @ r,
    ),
}


@pytest.mark.parametrize("name", NUMPY)
def test_three_layers_in_numpy(name):
    """With inputs, weights and outputs of both signs."""
    rule, of_contributions = NUMPY[name]
    got = relevance(lambda x: mlp(None, x), rule)
    close(got, by_hand(of_contributions, [W1, W2, W3[:, None]], X))


CONSERVING = {
    "epsilon": SMALL,
    "box, z-plus, gamma, epsilon": rules.by_layer(
        lambda layer: (
            rules.box(-9.0, 9.0)
            if layer.reads_input
            else rules.zplus()
            if layer.depth == 1
            else rules.gamma()
            if layer.height
            else SMALL
        )
    ),
}


@pytest.mark.parametrize("name", CONSERVING)
def test_relevance_is_conserved(name):
    """Through all that a network without biases is made of; epsilon to 0 is x * gradient."""
    got = jax.jit(sj.lrp(cnn, CONSERVING[name]))(None, IMAGE)
    score, gradient = jax.jit(jax.value_and_grad(cnn, argnums=1))(None, IMAGE)
    assert abs(score) > 1
    np.testing.assert_allclose(jnp.sum(got), score, rtol=1e-4)
    if name == "epsilon":
        close(got, IMAGE * gradient)
    else:
        assert not np.allclose(got, IMAGE * gradient, rtol=0.1)


def test_alpha_beta_conserves():
    """Where an output has contributions of both signs."""

    def score(x):
        return jnp.sum(jax.nn.relu(x @ W1) - 2 * x @ W1)

    contributions = X[:, None] * W1
    assert np.all(np.any(contributions > 0, 0) & np.any(contributions < 0, 0))
    got = relevance(score, rules.alpha_beta())
    np.testing.assert_allclose(jnp.sum(got), score(X), rtol=1e-4)


def test_the_box_rule_conserves_with_biases():
    """And gives an input of 0 relevance, too; bounds may be arrays."""
    low, high = -np.arange(1.0, 7.0, dtype=np.float32), 3 * jnp.ones(6)
    boxed = rules.by_layer(lambda layer: rules.box(low, high) if layer.reads_input else SMALL)

    def score(x):
        return jax.nn.relu(x @ W1 + 0.5) @ W3

    got = relevance(score, boxed, jnp.zeros(6))
    np.testing.assert_allclose(jnp.sum(got), score(jnp.zeros(6)), rtol=1e-4)
    assert np.all(got != 0)


SCALE, SHIFT, MEAN = normal(10, 8), normal(11, 8), normal(12, 8)
FACTOR = SCALE * lax.rsqrt(SCALE**2 + 1e-3)
FOLDED = {
    "batch norm": (
        lambda x: (x @ W1 + 1 - MEAN) * lax.rsqrt(SCALE**2 + 1e-3) * SCALE + SHIFT,
        (W1 * FACTOR[None], (1 - MEAN) * FACTOR + SHIFT),
    ),
    "batch norm, divided": (
        lambda x: (x @ W1 - MEAN) / jnp.sqrt(SCALE**2 + 1e-3) * SCALE + SHIFT,
        (W1 * FACTOR[None], SHIFT - MEAN * FACTOR),
    ),
    "scale and shift before": (
        lambda x: (x * SCALE[:6] - SHIFT[:6]) @ W1,
        (SCALE[:6, None] * W1, -SHIFT[:6] @ W1),
    ),
    "negated": (lambda x: 3 - x @ W1, (-W1, 3.0)),
    "reshaped": (
        lambda x: (x.reshape(2, 3)[None] * 2).reshape(6) @ W1.astype(jnp.float32),
        (2 * W1, 0.0),
    ),
    "in a checkpoint": (jax.checkpoint(lambda x: (x @ W1) * SCALE), (W1 * SCALE[None], 0.0)),
}


@pytest.mark.parametrize("rule", [rules.alpha_beta(2.0, 1.0), rules.gamma(0.5), rules.box(-9, 9)])
@pytest.mark.parametrize("name", FOLDED)
def test_what_is_affine_is_folded(name, rule):
    """Biases and scales of both signs; the bounds of the box rule are those of x."""
    layer, (kernel, bias) = FOLDED[name]
    rule = rules.by_layer(lambda layer, rule=rule: SMALL if layer.depth else rule)
    got = relevance(lambda x: jax.nn.relu(layer(x)) @ W3, rule)
    close(got, relevance(lambda x: jax.nn.relu(x @ kernel + bias) @ W3, rule), 1e-3)


def test_a_batch_norm_after_a_relu_belongs_to_the_next_layer():
    def score(x):
        return jax.nn.relu(((jax.nn.relu(x @ W1)) - MEAN) * FACTOR @ W2 + SHIFT) @ W3

    kernel, bias = FACTOR[:, None] * W2, SHIFT - MEAN * FACTOR @ W2
    rule = rules.alpha_beta(2.0, 1.0)
    want = relevance(lambda x: jax.nn.relu(jax.nn.relu(x @ W1) @ kernel + bias) @ W3, rule)
    close(relevance(score, rule), want)


def test_what_follows_a_layer_that_is_read_twice_is_none_of_it():
    h = X @ W1
    given = W3 * (FACTOR * h + jax.nn.relu(h))  # the relevance of the layer
    p = jnp.maximum(X[:, None] * W1, 0)

    def score(x):
        h = x @ W1
        return (FACTOR * h + jax.nn.relu(h)) @ W3

    got = relevance(score, rules.by_layer(lambda layer: SMALL if layer.depth else rules.zplus()))
    close(got, p @ (given / p.sum(0)))


def test_convolutions_of_any_kind():
    """Depthwise, as shifts with a derivative of their own, for this platform; and as a matrix."""
    zoo = pytest.importorskip("smoothjax.zoo.convolution")
    kernel, wide, image = normal(13, 3, 3, 1, 3), normal(14, 3, 3, 3, 4), IMAGE[:4, :4]

    def score(depthwise, convolution):
        def score(x):
            return jnp.sum(jax.nn.relu(convolution(jax.nn.relu(depthwise(x)))) * image[..., :1])

        return jax.jit(sj.lrp(score, rules.alpha_beta(2.0, 1.0), argnum=0))(image)

    matrix = jax.jacobian(lambda x: convolve(x, wide))(image).reshape(4 * 4 * 4, -1).T
    want = score(lambda x: convolve(x, kernel, 3), lambda x: (x.ravel() @ matrix).reshape(4, 4, 4))
    close(score(lambda x: convolve(x, kernel, 3), lambda x: convolve(x, wide)), want)
    by_zoo = score(
        lambda x: zoo.depthwise(x[None], kernel, 1)[0],
        lambda x: zoo.convolution(x[None], wide, 1)[0],
    )
    close(by_zoo, want)


def test_pooling_and_residual_connections():
    """The maximum takes all; terms of a sum and of a mean take their parts."""
    x = jnp.array([1.0, 4.0, 2.0, 3.0])

    def maxima(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID") @ jnp.array([2.0, 5.0])

    np.testing.assert_allclose(relevance(maxima, rules.zplus(), x), [0, 8, 0, 15])
    np.testing.assert_allclose(relevance(lambda x: 10 * jnp.mean(x), SMALL, x), 2.5 * x)
    np.testing.assert_allclose(relevance(lambda x: 2 * jnp.max(x), SMALL, x), [0, 8, 0, 0])
    got = relevance(lambda x: jnp.sum(jax.nn.relu(x - 2) + x), SMALL, x)
    np.testing.assert_allclose(got, [1, 4 + 4, 2, 3 + 3], rtol=1e-5)  # -2 is the bias's
    got = relevance(lambda x: jnp.sum(jnp.where(jnp.flip(x) > 2, x, 9.0)), SMALL, x)
    np.testing.assert_allclose(got, [1, 0, 2, 0])


ACTIVATIONS = {
    "relu6": jax.nn.relu6,
    "leaky": jax.nn.leaky_relu,
    "elu in a checkpoint": jax.checkpoint(jax.nn.elu),
    "gelu": jax.nn.gelu,
    "silu by hand": lambda x: x / (1 + jnp.exp(-x)),
    "square": lambda x: x**2,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_pass_relevance_on(name):
    """All of it, but for their value at 0; and smoothly where x is 0."""
    fun = ACTIVATIONS[name]
    x = jnp.array([-2.0, -0.3, 0.7, 9.0])
    got = relevance(lambda x: A[1] * jnp.sum(fun(x)), SMALL, x)
    np.testing.assert_allclose(got, A[1] * (fun(x) - fun(jnp.zeros(4))), rtol=1e-4, atol=1e-6)

    # The ratio, from a layer that sums to almost or just 0.
    x = jnp.array([[1.0, -1.0]]) + jnp.array([[0.0], [1e-6], [2e-3], [-0.4]])
    got = relevance(lambda x: jnp.sum(fun(jnp.sum(x, 1))), SMALL, x)[:, 0]
    total = jnp.sum(x, 1)
    mean_slopes = jax.vmap(jax.grad(fun))(total / 2)
    want = jnp.where(abs(total) < 1e-3, mean_slopes, (fun(total) - fun(jnp.zeros(4))) / total)
    want *= x[:, 0]
    np.testing.assert_allclose(got, want, rtol=3e-3, atol=1e-6)


TOKENS = normal(20, 5, 6)
Q, K, VALUES = normal(21, 6, 4), normal(22, 6, 4), normal(23, 6, 4)
OUT = normal(24, 4)


def test_half_to_each_factor():
    """And so all, together; a gate has one half, and passes on its value but for that at 0."""
    got = relevance(lambda x: jnp.sum(x[:3] * x[3:]))
    want = X * jnp.concatenate([X[3:], X[:3]]) / 2
    np.testing.assert_allclose(got, want, rtol=1e-5)
    gated = relevance(lambda x: jnp.sum(x[:3] * jax.nn.tanh(x[3:])))
    np.testing.assert_allclose(gated[:3], X[:3] * jnp.tanh(X[3:]) / 2, rtol=1e-4)
    np.testing.assert_allclose(gated[3:], gated[:3], rtol=1e-4)


def softmax_by_hand(z):
    e = jnp.exp(z - jnp.max(z, -1, keepdims=True))
    return e / jnp.sum(e, -1, keepdims=True)


@pytest.mark.parametrize("softmax", [jax.nn.softmax, softmax_by_hand])
def test_softmax_by_its_rule(softmax):
    """R_i = z_i (R_i - s_i sum R): Achtibat et al., equation 13."""
    weights = jnp.arange(1.0, 7.0)
    got = relevance(lambda z: jnp.sum(weights * softmax(z)))
    s = jax.nn.softmax(X)
    out = weights * s
    np.testing.assert_allclose(got, X * (out - s * jnp.sum(out)), rtol=1e-4)


def mean(x):
    return jnp.mean(x, -1, keepdims=True)


def keras_norm(x):
    inverse = lax.rsqrt(mean((x - mean(x)) ** 2) + 1e-3) * SCALE[None, :6]
    return x * inverse + (SHIFT[None, :6] - mean(x) * inverse)


def root_mean_square(x):
    return jnp.sqrt(mean(x**2))


# Each with what it is if what it divides by is a constant.
NORMS = {
    "layer norm": (
        lambda x: (x - mean(x)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-6),
        lambda x, fixed: (x - mean(x)) / jnp.std(fixed, -1, keepdims=True),
    ),
    "inverted": (
        lambda x: (x - mean(x)) * (1 / jnp.std(x, -1, keepdims=True)),
        lambda x, fixed: (x - mean(x)) / jnp.std(fixed, -1, keepdims=True),
    ),
    "RMS": (
        lambda x: x * lax.rsqrt(mean(x**2) + 1e-6),
        lambda x, fixed: x / root_mean_square(fixed),
    ),
    "power": (lambda x: x * mean(x**2) ** -0.5, lambda x, fixed: x / root_mean_square(fixed)),
    "L2": (
        lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6),
        lambda x, fixed: x / jnp.linalg.norm(fixed, axis=-1, keepdims=True),
    ),
    "Keras": (
        keras_norm,
        lambda x, fixed: SCALE[None, :6] * (x - mean(x)) / jnp.std(fixed, -1, keepdims=True),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_no_relevance_through_a_deviation(name):
    norm, linear = NORMS[name]
    weights = normal(25, 5, 6)
    got = relevance(lambda x: jnp.sum(weights * norm(x)), SMALL, TOKENS)
    fixed = jax.grad(lambda x: jnp.sum(weights * linear(x, TOKENS)))(TOKENS)
    plain = jax.grad(lambda x: jnp.sum(weights * norm(x)))(TOKENS)
    close(got, TOKENS * fixed, 3e-3)
    assert not np.allclose(got, TOKENS * plain, rtol=1e-2, atol=1e-2)


def test_what_is_no_deviation():
    """A norm alone, and one that multiplies, which is a factor as any."""
    got = relevance(lambda x: jnp.linalg.norm(x))
    np.testing.assert_allclose(got, X**2 / jnp.linalg.norm(X), rtol=1e-4)
    got = relevance(lambda x: jnp.sum(x * jnp.linalg.norm(x)))
    norm = jnp.linalg.norm(X)
    np.testing.assert_allclose(got, X * norm / 2 + X**2 / norm * jnp.sum(X) / 2, rtol=1e-4)


def test_attention_by_hand():
    """The ratios of AttnLRP, step by step."""

    def score(x):
        weights = jax.nn.softmax((x @ Q) @ (x @ K).T / 2.0)
        return jnp.sum(weights @ (x @ VALUES) @ OUT)

    q, k, v = TOKENS @ Q, TOKENS @ K, TOKENS @ VALUES
    s = jax.nn.softmax(q @ k.T / 2)
    c = jnp.broadcast_to(OUT, (5, 4))
    c_s, c_v = c @ v.T / 2, s.T @ c / 2  # half to each
    c_z = s * (c_s - jnp.sum(s * c_s, 1, keepdims=True)) / 2  # the softmax; then the scale
    c_q, c_k = c_z @ k / 2, c_z.T @ q / 2
    want = TOKENS * (c_q @ Q.T + c_k @ K.T + c_v @ VALUES.T)
    close(relevance(score, SMALL, TOKENS), want)


def test_what_a_rule_is_told_of_its_layer():
    @jax.named_scope("network")
    def score(x):
        with jax.named_scope("stem"):
            x = jax.nn.relu((2 * convolve(x, normal(14, 3, 3, 3, 4)) - 1).reshape(4, -1))
        return normal(15, 4) @ (x @ normal(16, 64))

    seen = []

    def rule(layer, a, relevance):
        seen.append((layer, a.shape))
        assert relevance.shape == layer.output_shape == layer(a).shape
        return SMALL(layer, a, relevance)

    relevance(score, rule, IMAGE)
    layers, inputs = zip(*seen, strict=True)
    assert inputs == ((4,), (4, 64), (8, 8, 3))
    assert [layer.depth for layer in layers] == [2, 1, 0]
    assert [layer.height for layer in layers] == [0, 1, 2]
    assert [layer.reads_input for layer in layers] == [False, False, True]
    assert [layer.name for layer in layers] == ["network", "network", "network/stem"]
    assert [layer.primitive for layer in layers] == ["dot_general"] * 2 + ["conv_general_dilated"]
    assert layers[2].output_shape == (4, 64)
    assert "test_lrp.py" in layers[0].source


def test_a_rule_of_ones_own():
    """The flat rule of the first layer."""

    def flat(layer, a, relevance):
        return jnp.broadcast_to(jnp.sum(relevance) / a.size, a.shape)

    rule = rules.by_layer(lambda layer: SMALL if layer.depth else flat)
    got = relevance(lambda x: mlp(None, x), rule)
    np.testing.assert_allclose(got, jnp.full(6, mlp(None, X) / 6), rtol=1e-4)


def mlp_of(params, x):
    return jax.nn.relu(jax.nn.relu(x @ params[0]) @ params[1]) @ params[2]


def test_stochastic_scores(key):
    params, settings = [W1, W2, W3], {"sigma": 0.1, "num_samples": 2}
    explain = sj.lrp(sj.noisegrad(mlp_of, **settings), rules.zplus())
    assert sj.is_stochastic(explain)
    assert explain.__name__ == "lrp(noisegrad(mlp_of))"
    smooth = sj.noisegrad(sj.lrp(mlp_of, rules.zplus()), **settings)
    close(explain(key, params, X), smooth(key, params, X))


def test_pytrees():
    """Other leaves than floating-point ones are left alone, and x has what two layers give it."""

    def score(x):
        scale = x["count"].astype(jnp.float32)
        return jnp.sum(x["a"] * scale) + jax.nn.relu(x["b"] @ W1) @ W3 + x["b"] @ W2[:6, 0]

    boxed = rules.by_layer(lambda layer: rules.box(-3.0, 3.0) if layer.reads_input else SMALL)
    x = {"a": X, "b": X, "count": jnp.array(2)}
    got = relevance(score, boxed, x)
    np.testing.assert_allclose(got["a"], 2 * X, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(got["a"] + got["b"]), score(x), rtol=1e-4)
    assert got["count"].dtype == jax.dtypes.float0


def test_what_is_no_layer():
    """Sums written as products lose nothing to z-plus; constants and stopped paths have none."""
    np.testing.assert_allclose(relevance(lambda x: x @ jnp.ones(6), rules.zplus()), X, rtol=1e-5)
    np.testing.assert_array_equal(relevance(lambda x: jnp.sum(W1)), jnp.zeros(6))
    close(relevance(lambda x: lax.scan(lambda total, y: (total + y, None), 0.0, x)[0]), X)
    close(relevance(lambda x: lax.scan(lambda y, _: (abs(y), None), x, None, 2)[0] @ X), abs(X) * X)

    def stopped(x):
        jax.debug.callback(lambda x: None, x)
        return x @ W1[:, 0] + jax.checkpoint(lax.stop_gradient)(x) @ X

    close(relevance(stopped), X * W1[:, 0])


UNSUPPORTED = {
    "exp": lambda x: jnp.sum(jnp.exp(x)),
    "exp in a checkpoint": lambda x: jnp.sum(jax.checkpoint(jnp.exp)(x)),
    "exp of a softmax": lambda x: jnp.sum((e := jnp.exp(x)) / jnp.sum(e) + e),
    "log": lambda x: jax.nn.log_softmax(x)[0],
    "div": lambda x: x[0] / x[1],
    "div of a constant": lambda x: jnp.sum(1 / x),
    "div by the inverse of a sum": lambda x: jnp.sum(jnp.exp(x) / (1 / jnp.sum(jnp.exp(x)))),
    "integer_pow": lambda x: jnp.sum(x**-2),
    "reduce_prod": lambda x: jnp.prod(x),
    "cumprod": lambda x: jnp.cumprod(x)[3],
    "abs of complex numbers": lambda x: jnp.abs(jnp.fft.fft(x))[1],
    "pow": lambda x: jnp.sum(2.0**x),
    "round": lambda x: jnp.sum(jnp.round(x)),
    "sign": lambda x: jnp.sum(jnp.sign(x)),
    "rsqrt": lambda x: jnp.sum(lax.rsqrt(x)),
    "rem": lambda x: jnp.sum(x % 2.0),
    "atan2": lambda x: jnp.arctan2(x[0], x[1]),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x)[3],
    "qr": lambda x: jnp.linalg.qr(jnp.outer(x, x) + jnp.eye(6))[1][0, 0],
    "while": lambda x: jnp.sum(lax.while_loop(lambda c: c[0] < 9, lambda c: c * c + 9, x)),
    "cond": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)[0],
    "real of complex numbers": lambda x: jnp.real(jnp.sum(lax.complex(x, x) ** 2)),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_operation_is_named(name):
    """Never a map, and the line that wrote it."""
    with pytest.raises(NotImplementedError, match=rf"{name.split()[0]}.* \(.*test_lrp.py:\d+"):
        jax.eval_shape(sj.lrp(UNSUPPORTED[name], argnum=0), X)


BAD = [
    (lambda: sj.lrp(mlp, 3), TypeError, "(?s)rules must be a function; got 3.*in lrp"),
    (
        lambda: sj.lrp(mlp, rules.epsilon),
        TypeError,
        "rules must be .*with the parentheses; got epsilon",
    ),
    (
        lambda: sj.lrp(mlp, rules.by_layer(lambda layer: rules.zplus))(None, X),
        TypeError,
        "what choose returns must be .*with the parentheses; got zplus",
    ),
    (lambda: sj.lrp(lambda p, x: x)(None, X), TypeError, r"real scalar.*float32\[6\]"),
    (lambda: rules.epsilon(0.0), ValueError, "(?s)epsilon must be above 0; got 0.*in epsilon"),
    (lambda: rules.gamma(-1), ValueError, "gamma must be above 0; got -1"),
    (lambda: rules.alpha_beta(2, 2), ValueError, "alpha - beta must be 1; got 2.0 and 2.0"),
    (lambda: rules.alpha_beta(0, -1), ValueError, "beta must be at least 0; got -1"),
    (
        lambda: rules.box(1.0, np.zeros(2)),
        ValueError,
        "bounds must have low < high everywhere; got 1.0",
    ),
    (lambda: rules.by_layer(3), TypeError, "choose must be a function; got 3"),
    (
        lambda: sj.lrp(mlp, rules.box(0, 1))(None, X),
        ValueError,
        r"(?s)bounds are those of x.*test_lrp.py.*layer.reads_input.*in box\n",
    ),
    (
        lambda: sj.lrp(mlp, lambda layer, a, r: r)(None, X),
        ValueError,
        r"rule must return the relevance of the input of the layer, of shape \(8,\); got \(\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def linen_network():
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(4, (3, 3))(x)))
            x = linen.max_pool(x, (2, 2), (2, 2))
            x = linen.relu(linen.LayerNorm()(linen.Conv(4, (3, 3))(x)))
            return linen.Dense(3, name="head")(x.reshape(1, -1))

    model = Network()
    params = model.init(jax.random.key(0), IMAGE[None])
    return lambda params, x: model.apply(params, x[None])[0, 1], params, IMAGE


@pytest.mark.slow
@pytest.mark.parametrize("library", [vision_transformer, linen_network, lstm])
def test_models(library, key):
    """Under jit, vmap and weight noise: finite, no zeros, and the same."""
    score, params, x = library()
    explain = sj.lrp(score, rules.by_layer(lambda layer: SMALL if layer.height else rules.gamma()))
    one = jax.jit(explain)(params, x)
    assert one.shape == x.shape
    assert np.all(np.isfinite(one))
    assert np.mean(one != 0) > 0.9
    batch = jax.jit(jax.vmap(explain, (None, 0)))(params, jnp.stack([x, -x]))
    close(batch[0], one, 2e-3)
    noisy = jax.jit(sj.noisegrad(explain, 0.0, num_samples=2))(key, params, x)
    close(noisy, one, 2e-3)
    assert np.any(jax.jit(sj.noisegrad(explain, 0.1, num_samples=2))(key, params, x) != noisy)


@pytest.mark.slow
def test_the_zoo(monkeypatch):
    """Epsilon to 0: x * gradient, with the ratio of ReLU6; z-plus: as with XLA's convolutions."""
    zoo = pytest.importorskip("smoothjax.zoo")
    net = zoo.load("efficientnet-lite0")
    x = jax.random.normal(jax.random.key(0), (64, 64, 3))
    small = jax.jit(sj.lrp(net.score))(net.params, x, 3)
    positive = jax.jit(sj.lrp(net.score, rules.zplus()))(net.params, x, 3)
    assert np.any(positive != 0)

    @jax.custom_vjp
    def relu6(x):
        return jnp.clip(x, 0, 6)

    relu6.defvjp(lambda x: (relu6(x), x), lambda x, g: (g * jnp.clip(x, 0, 6) / x,))
    with monkeypatch.context() as patch:
        patch.setattr(jax.nn, "relu6", relu6)
        want = x * jax.jit(jax.grad(net.score, argnums=1))(net.params, x, 3)
    close(small, want, 1e-3)

    convolution = sys.modules["smoothjax.zoo.convolution"]
    monkeypatch.setattr(
        convolution, "_by_platform", lambda _, *args: convolution._convolution(args[2], *args[:2])
    )
    close(positive, jax.jit(sj.lrp(net.score, rules.zplus()))(net.params, x, 3), 1e-3)
