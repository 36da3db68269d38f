"""SmoothDiff against closed forms, against its steps by hand, and against SmoothGrad's limit."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax
from jax.scipy.stats import norm
from rows import slow_but

import smoothjax as sj
from smoothjax._perturb import additive, perturbation
from smoothjax.attribution._piecewise import Piecewise
from smoothjax.attribution._plan import plan
from smoothjax.attribution._trace import trace
from smoothjax.attribution.smoothdiff import _over_pairs
from smoothjax.zoo.convolution import convolution, depthwise

SIGMA = 0.3
RNG = np.random.default_rng(0)


def numbers(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.normal(size=shape), jnp.float32)


X, W, V = numbers(6), numbers(6, 8), numbers(8)
MEAN = X @ W
STD = SIGMA * jnp.sqrt(jnp.sum(W**2, 0))


def below(threshold):
    """P(z < threshold) of what enters the nonlinearity."""
    return norm.cdf((threshold - MEAN) / STD)


# Functions of one number, and the mean of their derivative for z ~ N(MEAN, STD^2).
FUNCTIONS = {
    "relu": (jax.nn.relu, 1 - below(0)),
    "relu of a half": (lambda z: jax.nn.relu(z / 2), (1 - below(0)) / 2),
    "maximum": (lambda z: jnp.maximum(z, 0.3), 1 - below(0.3)),
    "maximum of an array": (lambda z: jnp.maximum(z, jnp.zeros_like(z)), 1 - below(0)),
    "minimum": (lambda z: jnp.minimum(0.3, z), below(0.3)),
    "where": (lambda z: jnp.where(z > 0, z, 0.0), 1 - below(0)),
    "where, turned": (lambda z: jnp.where(0.5 >= z, 0.5, z), 1 - below(0.5)),
    "product": (lambda z: z * (z > 0).astype(z.dtype), 1 - below(0)),
    "product with an integer": (lambda z: z * (z > 0).astype(int).astype(z.dtype), 1 - below(0)),
    "relu6": (lambda z: jax.nn.relu6(4 * z) / 4, below(1.5) - below(0)),
    "clip": (lambda z: jnp.clip(z, -1, 0.5), below(0.5) - below(-1)),
    "clamp": (lambda z: lax.clamp(0.0, z, jnp.inf), 1 - below(0)),
    "least number": (lambda z: jnp.maximum(z, jnp.finfo(z.dtype).min), jnp.ones(8)),
    "leaky": (lambda z: jax.nn.leaky_relu(z, 0.2), 1 - 0.8 * below(0)),
    "learned slopes": (lambda z: jnp.where(z >= 0, z, V * z), 1 - below(0) + V * below(0)),
    "abs": (jnp.abs, 1 - 2 * below(0)),
    "abs of a sum": (lambda z: jnp.abs(z) + z, 2 - 2 * below(0)),
    "three kinks": (
        lambda z: jax.nn.relu(jnp.abs(z) - 0.5),
        (1 - below(0.5)) - below(-0.5),
    ),
    "hard sigmoid": (jax.nn.hard_sigmoid, (below(3) - below(-3)) / 6),
    "hard tanh": (jax.nn.hard_tanh, below(1) - below(-1)),
    "line": (lambda z: 3 * z - 1, jnp.full(8, 3.0)),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_layer_is_exact_with_two_draws(function, key):
    function, slope = FUNCTIONS[function]
    explain = sj.smoothdiff(lambda params, x: function(x @ params) @ V, SIGMA, num_samples=2)
    np.testing.assert_allclose(explain(key, W, X), W @ (slope * V), atol=1e-5)


def test_hard_swish_against_draws(key):
    explain = sj.smoothdiff(lambda params, x: jax.nn.hard_swish(3 * x @ params) @ V, SIGMA)
    eps = np.random.default_rng(0).normal(size=(20000, 8))
    z = 3 * (np.asarray(MEAN) + np.asarray(STD) * eps)
    draws = 3 * np.where(abs(z) < 3, (2 * z + 3) / 6, z > 0)
    error = 3 * np.sqrt(np.asarray(W) ** 2 @ (np.asarray(V) ** 2 * draws.var(0) / 20000))
    assert np.all(abs(explain(key, W, X) - W @ (draws.mean(0) * np.asarray(V))) < error)


@pytest.mark.parametrize(
    "function",
    [
        Piecewise([0.0], [(0.0,), (0.0, 1.0)]),
        Piecewise([0.0, 6.0], [(0.0,), (0.0, 1.0), (6.0,)]),
        Piecewise([-1.0, 2.0], [(1.0, -2.0), (3.0,), (0.0, 0.5, 0.25)]),
        Piecewise([-3e38, 3e38], [(-3e38,), (0.0, 1.0), (3e38,)]),  # squares of kinks are infinite
    ],
)
def test_moments_against_quadrature(function):
    means, variances = [-3.0, 0.1, 1.0, 9.0, 2.5], [1.0, 4.0, 0.01, 9.0, 0.0]
    t = np.linspace(-9, 9, 200_001)
    weights = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi) * (t[1] - t[0])
    polynomials = [np.polynomial.Polynomial(piece) for piece in function.pieces]
    got = np.transpose(function.moments(jnp.array(means), jnp.array(variances)))
    for m, v, found in zip(means, variances, got, strict=True):
        z = m + np.sqrt(v) * t
        piece = np.searchsorted(function.kinks, z)
        f, slope = (
            np.choose(piece, [p(z) for p in ps])
            for ps in (polynomials, [p.deriv() for p in polynomials])
        )
        average = weights @ f
        want = [weights @ slope, average, weights @ (f - average) ** 2]
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3)


def test_a_linear_score_gives_its_weights(key):
    explain = sj.smoothdiff(lambda params, x: jnp.mean(x.reshape(2, 3), 0) @ params - 1)
    np.testing.assert_allclose(explain(key, V[:3], X), np.tile(V[:3], 2) / 2, rtol=1e-6)


def test_no_noise_gives_the_gradient(key):
    def score(params, x):
        return jax.nn.relu(jax.nn.relu6(x @ params + 0.1) @ params.T) @ X

    gradient = sj.saliency(score)(W, X)
    explain = jax.jit(sj.smoothdiff(score, 0.0))
    np.testing.assert_allclose(explain(key, W, X), gradient, rtol=1e-5)


W1, W2, W3 = numbers(3, 4), numbers(4, 5), numbers(7, 5)
ROWS = numbers(7, 3)


def two_layers(params, x):
    """The channels are the last axis, and there are seven positions."""
    return jnp.sum(W3 * jax.nn.relu(jax.nn.relu(x @ W1) @ W2 - 0.2))


def test_two_layers_by_hand(key):
    w1, w2, w3, rows = map(np.asarray, (W1, W2, W3, ROWS))

    def moments(mean, variance):
        s = np.sqrt(variance)
        p, density = np.asarray(norm.cdf(mean / s)), np.asarray(norm.pdf(mean / s))
        average = mean * p + s * density
        return p, average, (mean**2 + variance) * p + mean * s * density - average**2

    first, mean, variance = moments(rows @ w1, SIGMA**2 * np.ones((7, 3)) @ w1**2)
    mean, variance = mean @ w2 - 0.2, variance @ w2**2

    noisy = perturbation(additive, SIGMA)(ROWS)
    noise_key = jax.random.split(key)[0]
    draws = np.stack([noisy(jax.random.fold_in(noise_key, i)) for i in range(3)])
    hidden = [np.maximum(x @ w1, 0) @ w2 - 0.2 for x in (draws, 2 * rows - draws)]
    a, d = (hidden[0] + hidden[1]) / 2, (hidden[0] - hidden[1]) / 2
    sampled_mean, sampled_variance = a.mean((0, 1)), (d**2).mean((0, 1)) + a.var(0, ddof=1).mean(0)
    root_noise = np.sqrt((d**2).mean(1)).var(0, ddof=1) / 3
    mean_noise = a.mean(1).var(0, ddof=1) / 3

    shift = sampled_mean - mean.mean(0)
    mean = mean + shift**3 / (shift**2 + mean_noise)
    gap, noise = a.mean(0) - mean, a.var(0, ddof=1).mean(0) / 3
    share = np.maximum(1 - noise / (gap**2).mean(0), 0)
    assert share.max() > 0.1
    mean = mean + share * gap
    scale, overall = (
        sampled_variance / variance.mean(0),
        sampled_variance.sum() / variance.mean(0).sum(),
    )
    signal = sampled_variance / (sampled_variance + 4 * root_noise)
    second, *_ = moments(mean, variance * (overall + signal * (scale - overall)))

    want = ((w3 * second) @ w2.T * first) @ w1.T
    explain = jax.jit(sj.smoothdiff(two_layers, SIGMA, num_samples=6))
    np.testing.assert_allclose(explain(key, None, ROWS), want, rtol=2e-4, atol=2e-5)


def test_one_pair_does_not_show_the_noise_of_means():
    a, channels = jnp.ones((3, 2)), jnp.ones((3, 1, 2))
    for num_pairs, noise in ((1, jnp.inf), (2, 0)):
        found = _over_pairs(a, channels[:2], channels, (0,), num_pairs)
        np.testing.assert_array_equal(found.means_noise, jnp.full((1, 2), noise))


MAXIMA = {
    "maximum": lambda x: jnp.maximum(x[0], x[1]),
    "minimum": lambda x: -jnp.minimum(-x[0], -x[1]),
    "max": lambda x: jnp.max(x[:2]),
    "pool": lambda x: linen.max_pool(x[None, :2, None], (2,), (2,))[0, 0, 0],
    "padded pool": lambda x: linen.max_pool(x[None, :2, None], (3,), (1,), "SAME")[0, 0, 0],
    "dilated pool": lambda x: lax.reduce_window(
        x[:2], -jnp.inf, lax.max, (2,), (1,), "VALID", base_dilation=(2,), window_dilation=(2,)
    )[0],
    "tree": lambda x: jnp.maximum(jnp.max(x[:2]), x[2] - 99),
}


@pytest.mark.parametrize("maximum", MAXIMA)
def test_the_maximum_of_two_numbers(maximum, key):
    """The share of the draws in which each is the greatest, within three standard errors."""
    x = jnp.array([0.2, -0.1, 0.4])
    explain = jax.jit(sj.smoothdiff(lambda p, x: MAXIMA[maximum](x), SIGMA, num_samples=400))
    share = norm.cdf(0.3 / (SIGMA * np.sqrt(2)))
    found = explain(key, None, x)
    assert abs(found[0] - share) < 3 * np.sqrt(share * (1 - share) / 400)
    np.testing.assert_allclose(found, [found[0], 1 - found[0], 0], atol=1e-6)


def pool(x):
    return linen.max_pool(x[None, :, None], (2,), (2,))[0, :, 0]


FALLING = {
    "abs": jnp.abs,
    "leaky": lambda z: jax.nn.leaky_relu(z, -0.1),
    "jump": lambda z: jnp.where(z > 0, z - 1, z),
    "learned slopes": lambda z: jnp.where(z >= 0, z, jnp.abs(V) * z),
    "square": jax.nn.hard_swish,
}
RISING = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky": jax.nn.leaky_relu,
    "jump": lambda z: jnp.where(z > 0, z + 1, z),
}


@pytest.mark.parametrize("function", slow_but(list(RISING), "relu6"))
def test_maxima_of_rising_functions_are_functions_of_maxima(function, key):
    f = RISING[function]

    def explained(g):
        def score(params, x):
            return jnp.abs(g(x @ W - 1) @ W[:2] - 0.2) @ V

        return jax.jit(sj.smoothdiff(score, SIGMA, num_samples=6))(key, None, X)

    want = explained(lambda z: f(pool(pool(z))))
    for g in (lambda z: pool(pool(f(z))), lambda z: pool(f(pool(z)))):
        np.testing.assert_allclose(explained(g), want, rtol=1e-3, atol=1e-4)


def kinds(fun):
    """The names of the rules of a function's program, in order."""
    known = plan(trace(lambda x: jnp.sum(fun(x @ W)), [X], lambda call: not call.is_linear))
    return [type(known.rules[e]).__name__ for e in known.program.equations if e in known.rules]


@pytest.mark.parametrize("function", FALLING)
def test_maxima_of_falling_functions_stay(function):
    assert kinds(lambda z: pool(FALLING[function](z))) == ["Piecewise", "Maximum"]


def test_maxima_stay_where_the_function_is_used_besides():
    def pool_and_sum(z):
        z = jax.nn.relu(z)
        return pool(z) + jnp.sum(z)

    assert kinds(lambda z: pool(jax.nn.relu(z))) == ["Maximum", "Piecewise"]
    assert kinds(pool_and_sum) == ["Piecewise", "Maximum"]


def test_variances_are_known_after_a_maximum_but_not_after_one_more_layer():
    def exact(score):
        known = plan(trace(lambda z: jnp.sum(score(z)), [X], lambda call: not call.is_linear))
        return [isinstance(known.rules[e], Piecewise) for e in known.exact].count(True)

    assert exact(lambda z: jax.nn.relu(pool(z) - 1)) == 1
    assert exact(lambda z: jax.nn.relu(z @ W)) == 1
    assert exact(lambda z: jax.nn.relu(pool(z) @ W[:3])) == 0


def cosine(a, b):
    return float(jnp.vdot(a, b) / jnp.sqrt(jnp.vdot(a, a) * jnp.vdot(b, b)))


def layer(x, w, dimensions=("NHWC", "HWIO", "NHWC")):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dimensions)


KERNELS = [numbers(3, 3, 3, 8, scale=0.27), *(numbers(3, 3, 8, 8, scale=0.17) for _ in range(2))]
HEAD = numbers(8)
IMAGE = numbers(8, 8, 3)


def cnn(params, x):
    x = x[None]
    for kernel in params:
        x = jax.nn.relu6(layer(x, kernel) + 0.1)
    return jnp.mean(x, (0, 1, 2)) @ HEAD


def cnn_with_channels_first(params, x):
    x = x[None].transpose(0, 3, 1, 2)
    for kernel in params:
        x = jax.nn.relu6(layer(x, kernel, ("NCHW", "HWIO", "NCHW")) + 0.1)
    return jnp.mean(x, (0, 2, 3)) @ HEAD


def cnn_with_max_pooling(params, x):
    x = x[None]
    for kernel in params:
        x = linen.max_pool(jax.nn.relu(layer(x, kernel) + 0.1), (2, 2), (2, 2))
    return jnp.mean(x, (0, 1, 2)) @ HEAD


def mlp(params, x):
    for weight in params[:-1]:
        x = jax.nn.relu(x @ weight)
    return x @ params[-1]


LAYERS = [numbers(6, 32, scale=0.6), *(numbers(32, 32, scale=0.25) for _ in range(2)), numbers(32)]


@pytest.mark.parametrize(
    ("score", "params", "x", "least"),
    [
        pytest.param(cnn, KERNELS, IMAGE, 0.97, id="cnn", marks=pytest.mark.slow),
        pytest.param(
            cnn_with_max_pooling, KERNELS, IMAGE, 0.9, id="max pooling", marks=pytest.mark.slow
        ),
        pytest.param(mlp, LAYERS, X, 0.97, id="mlp"),
    ],
)
def test_nearer_to_the_limit_than_as_many_draws(score, params, x, least, key):
    """For each of four keys, than they are on the mean: one may be lucky."""
    keys = jax.random.split(key, 5)
    sigma = sj.relative(0.2)
    draws = functools.partial(sj.smoothgrad, sj.saliency(score), sigma)
    limit = jax.jit(draws(num_samples=1500, chunk_size=100))(keys[4], params, x)
    plain, ours = (
        [cosine(m, limit) for m in jax.jit(jax.vmap(explain, (0, None, None)))(keys[:4], params, x)]
        for explain in (draws(num_samples=8), sj.smoothdiff(score, sigma))
    )
    assert min(ours) > max(least, np.mean(plain))


def test_channels_may_be_first(key):
    maps = [
        jax.jit(sj.smoothdiff(score, 0.5))(key, KERNELS, IMAGE)
        for score in (cnn, cnn_with_channels_first)
    ]
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-6)


def channels(fun):
    """The axes of channels of what a function of an image makes."""
    known = plan(
        trace(lambda x: jnp.sum(jnp.abs(fun(x))), [IMAGE], lambda call: not call.is_linear)
    )
    (equation,) = known.rules
    return known.channels[equation.inputs[0]]


CHANNELS = {
    "none": (lambda x: x, ()),
    "dense": (lambda x: x @ W1, (2,)),
    "transposed": (lambda x: (x @ W1).transpose(2, 0, 1), (0,)),
    "from the left": (lambda x: W1.T @ x.reshape(-1, 3).T, (0,)),
    "heads": (lambda x: jnp.einsum("hwc,cij->ijhw", x, W1.reshape(3, 2, 2)), (0, 1)),
    "merged heads": (
        lambda x: jnp.einsum("hwc,cij->hwij", x, W1.reshape(3, 2, 2)).reshape(64, 4),
        (1,),
    ),
    "split": (lambda x: (x @ W1).reshape(64, 2, 2), (1, 2)),
    "flattened": (lambda x: (x @ W1).ravel(), ()),
    "of a vector": (lambda x: x @ W1[:, 0], ()),
    "convolution": (lambda x: layer(x[None], KERNELS[0])[0], (2,)),
    "means": (lambda x: jnp.mean(x @ W1, (0, 1)), (0,)),
    "batch norm": (lambda x: (x @ W1 - 0.1) * V[:4] + x @ W1, (2,)),
    "depthwise": (lambda x: depthwise((x @ W1)[None], numbers(3, 3, 1, 4), 2), (3,)),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_the_outputs_of_the_last_layer(name):
    fun, axes = CHANNELS[name]
    with jax.numpy_rank_promotion("allow"):
        assert channels(fun) == axes


def test_convolutions_of_the_zoo_are_convolutions(key):
    """With the derivatives that they have of their own, which are faster."""
    kernels = [numbers(3, 3, 3, 8, scale=0.3), numbers(5, 5, 1, 8, scale=0.3)]

    def score(params, x, convolve, depthwise):
        x = jax.nn.relu6(convolve(x[None], params[0], 2))
        x = jax.nn.relu6(depthwise(x, params[1], 2))
        return jnp.sum(jax.nn.relu(x @ KERNELS[1][0, 0] - 0.1))

    def ordinary(images, kernel, stride):
        return lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=images.shape[-1] // kernel.shape[2],
        )

    ours, theirs = (
        jax.jit(sj.smoothdiff(functools.partial(score, convolve=c, depthwise=d), 0.5))(
            key, kernels, IMAGE
        )
        for c, d in [(convolution, depthwise), (ordinary, ordinary)]
    )
    # The first layer, several equations here, is calibrated, and theirs is exact.
    assert cosine(ours, theirs) > 0.999


@pytest.mark.slow
def test_transforms(key):
    explain = sj.smoothdiff(cnn, 0.5, num_samples=4)
    jitted = jax.jit(explain)
    one, two = jitted(key, KERNELS, IMAGE), jitted(jax.random.key(8), KERNELS, IMAGE)
    assert sj.is_stochastic(explain)
    assert explain.__name__ == "smoothdiff(cnn)"
    np.testing.assert_array_equal(one, jitted(key, KERNELS, IMAGE))
    assert not np.array_equal(one, two)
    batch = jax.jit(jax.vmap(explain, (None, None, 0)))(key, KERNELS, jnp.stack([IMAGE, -IMAGE]))
    np.testing.assert_allclose(batch[0], one, rtol=1e-3, atol=1e-5)
    noisy = jax.jit(sj.noisegrad(sj.lowpass(explain, 3), 1e-6, num_samples=2))
    smooth = sj.lowpass(lambda x: one, 3)(IMAGE)
    assert cosine(noisy(key, KERNELS, IMAGE), smooth) > 0.99


@pytest.mark.parametrize("unit", [2.0**-27, 2.0**37], ids=["1e-8", "1e11"])
def test_units_do_not_matter(unit, key):
    """Those of x and of what follows, for a score that is as homogeneous as its layers."""

    def score(params, x):
        x = jax.nn.relu(layer(x[None], params[0]))
        return jnp.mean(linen.max_pool(jax.nn.relu(layer(x, params[1])), (2, 2), (2, 2)))

    explain = jax.jit(sj.smoothdiff(score, num_samples=4))
    want = explain(key, KERNELS[:2], IMAGE)
    rescaled = explain(key, [KERNELS[0] / unit, KERNELS[1]], IMAGE * unit)
    np.testing.assert_allclose(rescaled * unit, want, rtol=1e-5)
    np.testing.assert_allclose(explain(key, KERNELS[:2], IMAGE * unit), want, rtol=1e-5)


def test_memory_does_not_grow_with_the_draws(key):
    def memory(num_samples):
        explain = jax.jit(sj.smoothdiff(cnn, 0.5, num_samples=num_samples))
        return explain.lower(key, KERNELS, IMAGE).compile().memory_analysis().temp_size_in_bytes

    assert memory(400) <= memory(4) + 4 * 200  # the indices of the pairs


def test_pytrees(key):
    """Noise where it is asked for, independent parts exactly, integers passed."""
    x = {"a": X, "b": X[:3], "count": jnp.arange(2)}

    def score(params, x):
        return jax.nn.relu(x["a"] @ W + x["b"] @ W[:3] + x["count"][1].astype(jnp.float32)) @ V

    explain = sj.smoothdiff(score, {"a": SIGMA, "b": 0.1 * SIGMA, "count": 0.0}, num_samples=2)
    variance = STD**2 + (0.1 * SIGMA) ** 2 * jnp.sum(W[:3] ** 2, 0)
    slope = V * norm.cdf((MEAN + X[:3] @ W[:3] + 1) / jnp.sqrt(variance))
    found = explain(key, None, x)
    np.testing.assert_allclose(found["a"], W @ slope, atol=1e-5)
    np.testing.assert_allclose(found["b"], W[:3] @ slope, atol=1e-5)
    assert found["count"].dtype == jax.dtypes.float0

    where = sj.by_path(lambda path: path == "a")
    found = sj.smoothdiff(score, SIGMA, where=where, num_samples=2)(key, None, x)
    slope = V * norm.cdf((MEAN + X[:3] @ W[:3] + 1) / STD)
    np.testing.assert_allclose(found["b"], W[:3] @ slope, atol=1e-5)


def test_a_mask_without_noise_may_be_infinite(key):
    def score(params, x):
        return jnp.abs(jnp.max(jax.nn.relu(x["a"] @ W + x["b"]) @ W.T + x["mask"]) - 3)

    x = {"a": X, "b": jnp.ones(8), "mask": jnp.array([0, -jnp.inf, 0, 0, 0, -jnp.inf])}
    where = sj.by_path(lambda path: path == "a")
    found = sj.smoothdiff(score, SIGMA, where=where, num_samples=4)(key, None, x)
    finite = x | {"mask": jnp.maximum(x["mask"], -99)}
    want = sj.smoothdiff(score, SIGMA, where=where, num_samples=4)(key, None, finite)
    assert np.any(found["a"])
    jax.tree.map(np.testing.assert_array_equal, found, want)


@pytest.mark.parametrize("dtype", slow_but([jnp.bfloat16, jnp.float16], jnp.float16))
def test_half_precision(dtype, key):
    half = jax.tree.map(lambda a: a.astype(dtype), (KERNELS[:2], IMAGE))

    def score(params, x):
        x = jax.nn.relu(layer(x[None], params[0]))
        return jnp.mean(jax.nn.relu6(layer(x, params[1])))

    explain = jax.jit(sj.smoothdiff(score, 0.5, num_samples=4))
    found = explain(key, *half)
    assert found.dtype == dtype
    assert cosine(found.astype(jnp.float32), explain(key, KERNELS, IMAGE)) > 0.98


@pytest.mark.parametrize("scale", slow_but([255, 1e-4], 255))
def test_squares_leave_the_range_of_float16(scale, key):
    def score(params, x):
        hidden = jax.nn.relu(x @ params)
        return jnp.mean(jnp.max(hidden.reshape(4, 2), axis=1))

    x, params = scale * jnp.linspace(-1, 1, 6), W
    explain = jax.jit(sj.smoothdiff(score, sj.relative(0.3), num_samples=4))
    found = explain(key, params.astype(jnp.float16), x.astype(jnp.float16))
    assert cosine(found.astype(jnp.float32), explain(key, params, x)) > 0.999


def test_a_scan_is_unrolled(key):
    def step(x, w):
        return jax.nn.relu(x @ w), None

    def scanned(params, x):
        return jnp.sum(lax.scan(step, x, params)[0])

    def looped(params, x):
        return jnp.sum(step(step(x, params[0])[0], params[1])[0])

    params = numbers(2, 6, 6)
    maps = [sj.smoothdiff(score, SIGMA)(key, params, X) for score in (scanned, looped)]
    np.testing.assert_allclose(*maps, rtol=1e-5)


def test_a_scan_may_be_linear(key):
    def score(params, x):
        return lax.scan(lambda total, row: (total + row, None), 0.0, x)[0]

    np.testing.assert_array_equal(sj.smoothdiff(score, SIGMA)(key, None, X), jnp.ones(6))


def test_a_stochastic_score(key):
    explain = sj.smoothdiff(sj.noisegrad(lambda p, x: jnp.sum(x * p), 0.1, num_samples=1), SIGMA)
    assert cosine(explain(key, X, X), X) > 0.9


UNSUPPORTED = {
    "softmax": (lambda x: jax.nn.softmax(x @ W)[0], "exp|stop_gradient"),
    "log softmax": (lambda x: jax.nn.log_softmax(x @ W)[0], "exp|stop_gradient"),
    "layer norm": (lambda x: (x - jnp.mean(x)) / jnp.std(x) @ X, "square|mul|integer_pow"),
    "gelu": (lambda x: jax.nn.gelu(x) @ X, "tanh|integer_pow"),
    "exact gelu": (lambda x: jax.nn.gelu(x, approximate=False) @ X, "erfc"),
    "tanh": (lambda x: jnp.tanh(x) @ X, "tanh"),
    "sigmoid": (lambda x: jax.nn.sigmoid(x) @ X, "logistic"),
    "silu": (lambda x: jax.nn.silu(x) @ X, "logistic"),
    "elu": (lambda x: jax.nn.elu(x) @ X, "expm1"),
    "softplus": (lambda x: jax.nn.softplus(x) @ X, "ne"),
    "square": (lambda x: jnp.sum(x**2), "square|integer_pow|mul"),
    "product": (lambda x: (x @ W) @ (W.T @ x), "dot_general"),
    "gate": (lambda x: jnp.sum(jax.nn.relu(x) * jnp.flip(x)), "mul"),
    "learned threshold": (lambda x: jnp.maximum(x @ W, V) @ V, "max"),
    "selected by another": (lambda x: jnp.where(jnp.flip(x) > 0, x, 0) @ X, "select_n"),
    "whole numbers": (lambda x: (3 * x).astype(int).astype(x.dtype) @ X, "convert_element_type"),
    "is not zero": (lambda x: jnp.sum(x * x.astype(bool).astype(x.dtype)), "convert_element_type"),
    "bits": (lambda x: (~(x > 0).astype(int)).astype(x.dtype) @ X, "not"),
    "while": (lambda x: lax.while_loop(lambda c: c[0] < 9, lambda c: abs(c) + 1, x) @ X, "while"),
    "cond": (lambda x: lax.cond(x[0] > 0, jax.nn.relu, jnp.negative, x) @ X, "cond"),
    "linear cond": (lambda x: lax.cond(x[0] > 0, jnp.flip, jnp.negative, x) @ X, "cond|gt"),
    "fft": (lambda x: jnp.fft.fft(x).real @ X, "fft"),
    "solve": (
        lambda x: jax.scipy.linalg.solve_triangular(jnp.eye(6) + jnp.tril(jnp.ones((6, 6))), x)[0],
        "triangular_solve",
    ),
    "sort": (lambda x: jnp.sort(x) @ X, "sort"),
    "product over an axis": (lambda x: jnp.prod(x), "reduce_prod|mul"),
    "cumulative maximum": (lambda x: lax.cummax(x) @ X, "cummax"),
    "callback": (
        lambda x: jnp.sum(jax.pure_callback(np.sin, jax.typeof(x), x)),
        "pure_callback",
    ),
}


SMOOTH = [
    *("softmax", "log softmax", "layer norm", "gelu", "exact gelu", "tanh", "sigmoid", "silu"),
    *("elu", "square", "product", "gate"),
]


@pytest.mark.parametrize("program", UNSUPPORTED)
def test_what_has_no_rule_is_named(program, key):
    score, primitive = UNSUPPORTED[program]
    with pytest.raises(NotImplementedError) as caught:
        sj.smoothdiff(lambda params, x: score(x), SIGMA)(key, None, X)
    message = "\n".join([str(caught.value), *caught.value.__notes__])
    assert re.match(
        rf"(smoothdiff is for networks of ReLUs: )?({primitive}) \(.*test_smoothdiff.py:\d+",
        message,
    ), message
    assert ("smooth networks" in message) == (program in SMOOTH), message
    assert "smoothgrad(saliency(score))" in message or "jnp.where instead of cond" in message
    assert "in smoothdiff(" in message
    assert "to guess for smoothgrad_toward" in message or "instead of cond" in message


BAD = [
    (lambda: sj.smoothdiff(3), TypeError, "takes a function.*got 3"),
    (lambda: sj.smoothdiff(cnn, num_samples=3), ValueError, "num_samples must be even.*got 3"),
    (lambda: sj.smoothdiff(cnn, num_samples=0), ValueError, "num_samples must be at least 2"),
    (lambda: sj.smoothdiff(cnn, -0.1), ValueError, "sigma must not be negative"),
    (lambda: sj.smoothdiff(cnn)(3, KERNELS, IMAGE), TypeError, "PRNG key"),
    (
        lambda: sj.smoothdiff(cnn)(jax.random.key(0), KERNELS, np.arange(3)),
        TypeError,
        "floating-point",
    ),
    (
        lambda: sj.smoothdiff(lambda p, x: x, 0.1)(jax.random.key(0), None, X),
        TypeError,
        "must be a real scalar",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
