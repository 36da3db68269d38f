"""Programs of scores: ordinary rules give JAX's gradient, and rules reach where they must."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from networks import IMAGE, lstm, vision_transformer
from rows import slow_but

import smoothjax as sj
from smoothjax.attribution._program import evaluate, vjp
from smoothjax.attribution._trace import trace

W = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)) / 2, jnp.float32)
V = jnp.asarray(np.random.default_rng(1).normal(size=6), jnp.float32)
X = jnp.asarray(np.random.default_rng(2).normal(size=6), jnp.float32)


def never(call):
    return False


def always(call):
    return True


def gradient(score, opens=never, rule=jax.vjp):
    """The gradient with respect to x, by the program of the score."""

    def explain(params, x, *rest):
        program = trace(lambda x: score(params, x, *rest), [x], opens)
        (value,), pull_back = vjp(program, [x], rule)
        return pull_back([jnp.ones_like(value)])[0]

    return explain


def primitives(score, opens=never, x=X):
    return [equation.primitive for equation in trace(score, [x], opens).equations]


def mean_pool(x, window):
    return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / window[0]


def flax_linen():
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Conv(4, (3, 3))(x))
            x = linen.BatchNorm(use_running_average=True)(linen.max_pool(x, (2, 2), (2, 2)))
            x = mean_pool(linen.relu6(linen.GroupNorm(2)(x)), (1, 2, 2, 1))
            return linen.Dense(3)(x.reshape(1, -1))

    model = Network()
    variables = model.init(jax.random.key(0), IMAGE[None])
    return lambda params, x: model.apply(params, x[None])[0, 1], variables, IMAGE


def flax_nnx():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(6, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
            self.head = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(nnx.silu(self.hidden(x))))

    graph, params = nnx.split(Network(nnx.Rngs(0)))
    return lambda params, x: nnx.merge(graph, params)(x[None])[0, 1], params, X


def equinox():
    model = eqx.nn.MLP(6, 3, 16, 2, dtype=jnp.float32, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    return lambda params, x: eqx.combine(params, static)(x)[1], params, X


def keras():
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras was imported with another backend")
    layers = [
        keras.layers.Conv2D(4, 3),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.LayerNormalization(),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    rest = [v.value for v in model.non_trainable_variables]

    def score(params, x):
        with jax.numpy_rank_promotion("allow"):  # Keras adds its biases that way
            return model.stateless_call(params, rest, x[None], training=False)[0][0, 1]

    return score, [v.value for v in model.trainable_variables], IMAGE


@pytest.fixture(autouse=True, scope="module")
def _keras_on_jax(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        yield


MODELS = [vision_transformer, lstm, flax_linen, flax_nnx, equinox, keras]


@pytest.fixture(
    params=slow_but({m.__name__: m for m in MODELS}, "flax_linen"),
    scope="module",
)
def model(request):
    return request.param()


def test_ordinary_rules_are_the_gradient(model):
    score, params, x = model
    want = jax.jit(jax.grad(score, argnums=1))(params, x)
    assert np.any(want != 0)
    got = jax.jit(gradient(score))(params, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6 * float(abs(want).max()))
    np.testing.assert_allclose(gradient(score)(params, x), want, rtol=1e-3, atol=1e-5)


def test_opened_calls_have_the_same_gradient(model):
    score, params, x = model
    want = jax.jit(jax.grad(score, argnums=1))(params, x)
    got = jax.jit(gradient(score, always))(params, x)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * float(abs(want).max()))


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * float(abs(want).max()))


def test_batches(model):
    score, params, x = model
    xs = jnp.stack([x, -x])
    want = jax.jit(jax.vmap(jax.grad(score, argnums=1), (None, 0)))(params, xs)
    close(jax.jit(jax.vmap(gradient(score), (None, 0)))(params, xs), want)


@pytest.mark.slow
def test_noisy_weights(model, key):
    score, params, x = model
    want = jax.jit(sj.noisegrad(jax.grad(score, argnums=1), 0.1, num_samples=3))
    got = jax.jit(sj.noisegrad(gradient(score), 0.1, num_samples=3))
    close(got(key, params, x), want(key, params, x))


def test_filtered():
    score, params, x = flax_linen()
    got = jax.jit(sj.lowpass(gradient(score), 2))(params, x)
    close(got, sj.lowpass(jax.grad(score, argnums=1), 2)(params, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_the_zoo_to_the_bit(name):
    """Its convolutions have custom derivatives, and a form for each platform."""
    zoo = pytest.importorskip("smoothjax.zoo")
    net = zoo.load(name)
    x = jax.random.normal(jax.random.key(0), (96, 96, 3))
    want = jax.jit(jax.grad(net.score, argnums=1))(net.params, x, 3)
    got = jax.jit(gradient(net.score))(net.params, x, 3)
    np.testing.assert_array_equal(got, want)
    opened = jax.jit(gradient(net.score, always))(net.params, x, 3)
    close(opened, want)


@jax.custom_vjp
def reversed_gradient(x):
    return jnp.sin(x)


reversed_gradient.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (-7.0 * g,))


@jax.custom_jvp
def straight(x):
    return jnp.round(x)


straight.defjvps(lambda t, y, x: 3.0 * t)

PROGRAMS = {
    "the input itself": lambda x: x[2],
    "a constant": lambda x: jnp.sum(W),
    "twice the same": lambda x: jnp.sum(x * x + x),
    "custom vjp": lambda x: jnp.sum(reversed_gradient(W @ x)),
    "custom jvp": lambda x: jnp.sum(straight(W @ x) * V),
    "checkpoint": lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(W @ x))(x) * V),
    "jit in jit": lambda x: jax.jit(lambda x: jax.jit(jnp.tanh)(x) @ V)(W @ x),
    "scan": lambda x: jnp.sum(lax.scan(lambda c, w: (jnp.tanh(w @ c), c), x, W[None])[1]),
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(W @ c), x) @ V,
    "cond on x": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x) @ V,
    "cond known": lambda x: lax.cond(True, jnp.sin, jnp.cos, x) @ V,
    "switch": lambda x: lax.switch(jnp.argmax(x), [jnp.sin, jnp.cos, jnp.tanh], x) @ V,
    "while without x": lambda x: x @ V * lax.while_loop(lambda c: c < 9, lambda c: 2 * c, 1.0),
    "while for its integer": lambda x: x[lax.while_loop(lambda c: x[c] > 9, lambda c: c + 1, 0)],
    "stopped": lambda x: x @ V + lax.stop_gradient(jnp.sin(x)) @ x,
    "rounded": lambda x: jnp.round(x) @ V + x @ V,
    "sorted": lambda x: jnp.sort(x) @ V + jnp.max(x) + jnp.take(x, jnp.argsort(x))[0],
    "top k": lambda x: lax.top_k(x, 3)[0][2],
    "outputs unused": lambda x: jnp.linalg.qr(W + x[:, None])[1][0, 0],
    "comparison": lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0) @ V,
    "complex": lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2),
    "solve": lambda x: jnp.linalg.solve(W + jnp.eye(6), x) @ V,
    "activations": lambda x: sum(
        jnp.sum(f(W @ x))
        for f in (jax.nn.gelu, jax.nn.silu, jax.nn.softplus, jax.nn.elu, jax.nn.hard_swish)
    ),
    "attention": lambda x: jnp.sum(jax.nn.softmax(jnp.outer(x, x) * W) @ V),
    "var": lambda x: jnp.var(x * V),
    "inputs in a body": lambda x: jax.checkpoint(lambda x, y: (y, x, 2.0 * x))(x, 3.0 * x)[0] @ V,
    "by platform": lambda x: (
        lax.platform_dependent(x, cpu=jnp.sin, default=lambda x: jnp.sin(x)) @ V
    ),
}
each_program = pytest.mark.parametrize(
    "score",
    slow_but(PROGRAMS, "custom jvp", "var", "inputs in a body", "by platform", "outputs unused"),
)


@each_program
def test_programs(score):
    explain = gradient(lambda params, x: score(x))
    want = jax.grad(score)(X)
    np.testing.assert_allclose(explain(None, X), want, rtol=1e-5, atol=1e-6)
    xs = jnp.stack([X, -X])
    with jax.checking_leaks():
        batch = jax.jit(jax.vmap(explain, (None, 0)))(None, xs)
    want = jax.jit(jax.vmap(jax.grad(score)))(xs)
    np.testing.assert_allclose(batch, want, rtol=1e-5, atol=1e-6)


def test_more_than_jax_differentiates():
    """A custom batching rule has no gradient in JAX; what it means has."""

    @custom_vmap
    def double(x):
        return 2 * x

    double.def_vmap(lambda size, batched, x: (2 * x, batched[0]))
    np.testing.assert_allclose(gradient(lambda params, x: double(x) @ V)(None, X), 2 * V)


def test_differentiates_twice():
    def score(params, x):
        return jnp.sum(jnp.tanh(params @ x) * V)

    got = jax.jacobian(gradient(score))(W, X)
    np.testing.assert_allclose(got, jax.jacobian(jax.grad(score, 1))(W, X), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes(dtype):
    def score(params, x):
        return jnp.sum(jax.nn.silu(params @ x.astype(jnp.float32)) * V)

    got = gradient(score)(W, X.astype(dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, jax.grad(score, 1)(W, X.astype(dtype)))


def test_effects_happen_once(capfd):
    def score(params, x):
        jax.debug.print("x is {}", x[0])
        return x @ V

    jax.block_until_ready(gradient(score)(None, jnp.ones(6, jnp.float32)))
    jax.effects_barrier()
    assert capfd.readouterr().out == "x is 1.0\n"


def test_an_error_says_where_it_was():
    def score(params, x):
        return jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), jnp.float32), x)

    with pytest.raises(ValueError, match="callback") as raised:
        gradient(score)(None, X)
    assert re.search(r"in pure_callback \(.*test_trace.py:\d+", "".join(raised.value.__notes__))


def test_an_equation_knows_the_names_around_it():
    @jax.jit
    def layer(x):
        with jax.named_scope("hidden"):
            return W @ x

    def score(x):
        with jax.named_scope("network"):
            return V @ jnp.tanh(layer(x))

    product, *_, head = trace(score, [X], never).equations
    assert product.scope == "network/hidden"
    assert head.scope == "network"


LINEAR = {
    "reshape": lambda x: x.reshape(2, 3),
    "broadcast": lambda x: jnp.broadcast_to(x, (2, 6)),
    "transpose": lambda x: x[None].T,
    "slice": lambda x: x[1::2],
    "gather": lambda x: jnp.take(x, jnp.array([3, 0, 3])),
    "dynamic slice": lambda x: lax.dynamic_slice(x, (2,), (2,)),
    "update": lambda x: jnp.zeros(9).at[2:8].set(x),
    "scatter-add": lambda x: jnp.zeros(3).at[jnp.array([0, 1, 1, 2, 2, 0])].add(x),
    "pad": lambda x: jnp.pad(x, 1, constant_values=3.0),
    "concatenate": lambda x: jnp.concatenate([x, V, -x]),
    "sum": lambda x: jnp.sum(x.reshape(2, 3), 0),
    "mean": lambda x: jnp.mean(x),
    "cumsum": jnp.cumsum,
    "flip": jnp.flip,
    "affine": lambda x: (3 - 2 * x + V) / 4 - x * V,
    "masked": lambda x: jnp.where(V > 0, x, 1.0),
    "dense": lambda x: W @ x + V,
    "einsum": lambda x: jnp.einsum("ij,j,k->ik", W, x, V),
    "conv": lambda x: jnp.convolve(x, V[:3], mode="same"),
    "mean pool": lambda x: mean_pool(x, (2,)),
    "split": lambda x: jnp.split(x, 2)[1],
    "unstack": lambda x: jnp.unstack(x)[2],
    "residual": lambda x: x + W @ x,
    "cast": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
    "batch norm": lambda x: (x - V) * lax.rsqrt(V**2 + 1e-3) * V + V,
    "by platform": lambda x: lax.platform_dependent(
        x, cpu=lambda x: 2 * x, default=lambda x: x + x
    ),
    "checkpoint": jax.checkpoint(lambda x: W @ x),
}


@pytest.mark.parametrize("fun", LINEAR.values(), ids=LINEAR)
def test_linear_equations(fun):
    program = trace(lambda x: jnp.sum(fun(x).astype(jnp.float32)), [X], never)
    assert program.equations
    assert all(equation.is_linear for equation in program.equations)


NONLINEAR = {
    "tanh": jnp.tanh,
    "square": lambda x: x * x,
    "two factors": lambda x: x[:3] * x[3:],
    "reciprocal": lambda x: 1.0 / x,
    "indices": lambda x: jnp.take(V, jnp.argmax(x)) + x,
    "mask": lambda x: jnp.where(jnp.flip(x) > 0, x, 0.0),
    "to integers": lambda x: x.astype(jnp.int32).astype(jnp.float32),
    "max": lambda x: jnp.maximum(x, 0.0),
    "covariance": lambda x: jnp.outer(x, x),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(W @ x)),
}


@pytest.mark.parametrize("fun", NONLINEAR.values(), ids=NONLINEAR)
def test_nonlinear_equations(fun):
    program = trace(lambda x: jnp.sum(fun(x)), [X], never)
    assert not all(equation.is_linear for equation in program.equations)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "where": lambda x: jnp.where(x > 0, x, 0.0),
    "leaky": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu by hand": lambda x: 0.5 * x * (1 + jnp.tanh(0.8 * (x + 0.04 * x**3))),
    "silu": jax.nn.silu,
    "silu by hand": lambda x: x / (1 + jnp.exp(-x)),
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "hard swish": jax.nn.hard_swish,
    "abs by hand": lambda x: jnp.maximum(x, -x),
    "straight": straight,
}


@pytest.mark.parametrize("fun", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_is_one_elementwise_equation(fun):
    """Between two layers, whose biases are no part of it."""
    program = trace(lambda x: V @ fun(W @ x + V), [X], never)
    assert [equation.primitive for equation in program.equations[:2]] == ["dot_general", "add"]
    (activation,) = (equation for equation in program.equations if not equation.is_linear)
    assert activation.is_elementwise
    assert activation.inputs == program.equations[1].outputs
    (out,) = evaluate(program, [X])
    np.testing.assert_allclose(out, V @ fun(W @ X + V), rtol=1e-5)


def test_residual_connections_are_no_activations():
    """Else a ReLU next to one would not be found."""
    assert primitives(lambda x: jnp.sum(x + jnp.tanh(x))) == ["tanh", "add", "reduce_sum"]
    assert primitives(lambda x: jnp.sum(x * 2 + x / 3)) == ["mul", "div", "add", "reduce_sum"]
    assert primitives(lambda x: jnp.sum(x * jnp.tanh(x))) == ["elementwise", "reduce_sum"]


def test_what_does_not_depend_on_x_is_computed_at_once():
    def score(x):
        return jnp.sum(x @ jnp.tanh(W @ W.T)) + jnp.linalg.norm(V)

    assert primitives(score) == ["dot_general", "reduce_sum", "add"]


def test_what_is_not_used_is_left_out():
    def score(x):
        _ = lax.while_loop(lambda c: c[0] < 9, lambda c: 2 * c, x), jnp.exp(x)
        return x @ V

    assert primitives(score) == ["dot_general"]


def test_calls_are_opened_where_asked():
    def score(x):
        return jax.checkpoint(jnp.tanh)(jax.nn.relu(x)) @ V

    calls = ["custom_jvp_call", "remat2", "dot_general"]
    assert primitives(score) == calls
    assert primitives(score, always) == ["max", "tanh", "dot_general"]
    assert primitives(score, has_tanh) == ["custom_jvp_call", "tanh", "dot_general"]


def test_rules_replace_derivatives():
    """Through a call that is opened, twice in a row, and in no other place."""

    def score(params, x):
        return jnp.tanh(params @ jnp.tanh(jax.checkpoint(jnp.tanh)(x))) @ jnp.sin(V * x)

    def rule(equation, *inputs):
        if equation.primitive != "tanh":
            return jax.vjp(equation, *inputs)
        return equation(*inputs), lambda cotangents: [10 * cotangents[0]]

    @jax.custom_vjp
    def tanh(x):
        return jnp.tanh(x)

    tanh.defvjp(lambda x: (jnp.tanh(x), None), lambda _, g: (10 * g,))
    want = jax.grad(lambda x: tanh(W @ tanh(tanh(x))) @ jnp.sin(V * x))(X)
    np.testing.assert_allclose(gradient(score, always, rule)(W, X), want, rtol=1e-5)


def test_a_rule_may_stop_and_may_pass_on_other_values():
    def score(x):
        return jnp.tanh(x) @ V + x @ V

    def rule(equation, *inputs):
        if equation.primitive == "tanh":
            return equation(*inputs), lambda cotangents: [None]
        return jax.vjp(equation, *inputs)

    np.testing.assert_allclose(gradient(lambda _, x: score(x), never, rule)(None, X), V)

    def interval(equation, *pairs):  # of increasing functions
        low, high = (equation(*ends)[0] for ends in zip(*pairs, strict=True))
        return [(low, high)], None

    program = trace(lambda x: jnp.sum(jnp.tanh(2 * x) + x), [X], never)
    (low, high) = vjp(program, [(X - 1, X + 1)], interval)[0][0]
    np.testing.assert_allclose(low, jnp.sum(jnp.tanh(2 * X - 2) + X - 1), rtol=1e-5)
    np.testing.assert_allclose(high, jnp.sum(jnp.tanh(2 * X + 2) + X + 1), rtol=1e-5)


def has_tanh(call):
    return any(part.primitive == "tanh" for part in call.parts)


LOOPS = {
    "while": lambda x: lax.while_loop(lambda c: c[0] < 1, lambda c: jnp.tanh(c) + 1, x) @ V,
    "cond": lambda x: lax.cond(x[0] > 0, jnp.tanh, jnp.cos, x) @ V,
    "while in a scan": lambda x: (
        lax.scan(lambda c, _: (LOOPS["while"](c) * c, None), x, None, 2)[0] @ V
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_rules_do_not_reach_into_other_loops(name):
    message = rf"{name[:5].strip()} \(.*test_trace.py:\d+.*type jax.lax.scan.*jnp.where"
    with pytest.raises(NotImplementedError, match=message):
        trace(LOOPS[name], [X], has_tanh)
    assert trace(LOOPS[name], [X], never).equations


SCANS = {
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(W @ c) * i, x) @ V,
    "map": lambda x: lax.map(jnp.tanh, x) @ V,
    "of constants at first": lambda x: (
        lax.scan(lambda c, v: (v, jnp.tanh(c) * v), jnp.float32(1.0), x)[1] @ V
    ),
    "of keys": lambda x: jnp.sum(
        lax.scan(
            lambda c, key: (jnp.tanh(c) * jax.random.normal(key), jax.random.bits(key)),
            x,
            jax.random.split(jax.random.key(0), 3),
        )[0]
    ),
    "backwards": lambda x: jnp.sum(
        lax.scan(lambda c, w: (jnp.tanh(w @ c), c[:2]), x, jnp.stack([W, -W]), reverse=True)[1]
        * jnp.array([[1.0, 2.0], [3.0, 4.0]])
    ),
}


@pytest.mark.parametrize("score", slow_but(SCANS, "backwards", "fori_loop"))
def test_a_scan_is_unrolled(score):
    assert "scan" in primitives(score)
    assert "scan" not in primitives(score, has_tanh)
    got = gradient(lambda _, x: score(x), has_tanh)(None, X)
    np.testing.assert_allclose(got, jax.grad(score)(X), rtol=1e-5, atol=1e-6)


def test_the_branch_of_the_platform_is_taken():
    def score(x):
        return lax.platform_dependent(x, cpu=jnp.sin, tpu=jnp.cos, default=jnp.tanh) @ V

    branch = {"cpu": "sin", "tpu": "cos"}.get(jax.default_backend(), "tanh")
    assert primitives(score, always) == [branch, "dot_general"]
    assert primitives(score) == ["cond", "dot_general"]


EXPLICIT = pytest.param(AxisType.Explicit, id="explicit")


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, EXPLICIT])
def test_sharding(axis_type, key):
    """Draws over devices; a batch over devices; and inside a shard_map."""
    if jax.device_count() < 8:
        pytest.skip("needs eight (forced CPU) devices")
    if axis_type is AxisType.Explicit and jax.__version_info__ < (0, 10):
        pytest.skip("JAX before 0.10 cannot divide draws over an Explicit axis")
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, P("d"))

    def score(params, x):
        top = lax.top_k(jnp.tanh(params @ x) * V, 3)[0][0]
        return jnp.sum(jax.nn.silu(x) * V) + top

    explain, plain = gradient(score, always), jax.grad(score, argnums=1)
    settings = {"num_samples": 8, "chunk_size": 8}
    xs = jnp.linspace(-1.0, 1.0, 48, dtype=jnp.float32).reshape(8, 6)
    want = jax.vmap(plain, (None, 0))(W, xs)
    smooth = sj.smoothgrad(plain, 0.3, **settings)(key, W, X)
    with jax.set_mesh(mesh):
        got = jax.jit(sj.smoothgrad(explain, 0.3, sharding=sharding, **settings))(key, W, X)
        close(np.asarray(got), smooth)
        batch = jax.vmap(explain, (None, 0))
        close(np.asarray(jax.jit(batch)(W, jax.device_put(xs, sharding))), want)
        per_device = jax.shard_map(batch, in_specs=(P(), P("d")), out_specs=P("d"))
        close(np.asarray(jax.jit(per_device)(W, jax.device_put(xs, sharding))), want)
