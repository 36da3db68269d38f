"""The loop: what it costs, by the compiler's own count, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax._perturb import multiplicative, perturbation

SIZE = 64


@pytest.fixture(scope="module")
def network():
    """Layers wide enough that the loop's own work is small, as it is in real networks."""
    keys = jax.random.split(jax.random.key(0), 9)
    params = [jax.random.normal(k, (SIZE * 4, SIZE * 4)) / (2 * SIZE**0.5) for k in keys[1:]]

    def score(params, x):
        h = jnp.tile(x, (1, 4))
        for w in params:
            h = jnp.tanh(h @ w)
        return jnp.sum(h**2)

    return score, params, jax.random.normal(keys[0], (SIZE, SIZE))


def compiled(explain, *args):
    return jax.jit(explain).lower(*args).compile()


def temporary_bytes(explain, *args):
    return compiled(explain, *args).memory_analysis().temp_size_in_bytes


def flops(explain, *args):
    cost = compiled(explain, *args).cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


@pytest.mark.parametrize(
    "smooth", slow_but([sj.smoothgrad, sj.noisegrad, sj.vargrad], sj.noisegrad, sj.vargrad)
)
def test_memory_does_not_grow_with_the_number_of_samples(smooth, network, key):
    score, params, x = network
    explain = sj.saliency(score)
    few = temporary_bytes(smooth(explain, 0.1, num_samples=20, chunk_size=2), key, params, x)
    many = temporary_bytes(smooth(explain, 0.1, num_samples=2000, chunk_size=2), key, params, x)
    assert many <= few + 8 * 2000  # the indices of the draws


def test_memory_grows_with_the_chunk(network, key):
    score, params, x = network
    explain = sj.saliency(score)
    one = temporary_bytes(sj.smoothgrad(explain, num_samples=64, chunk_size=1), key, params, x)
    all_at_once = temporary_bytes(
        sj.smoothgrad(explain, num_samples=64, chunk_size=64), key, params, x
    )
    assert all_at_once > 8 * one


def _fusion(explain, num_samples, chunk_size):
    inner = sj.smoothgrad(explain, 0.1, num_samples=num_samples, chunk_size=chunk_size)
    variance = sj.reductions.variance()
    return sj.noisegrad(inner, 0.1, num_samples=num_samples, reduction=variance)


DIFFERENTIATED = {
    "smoothgrad": sj.smoothgrad,
    "squaregrad": sj.squaregrad,
    "vargrad": sj.vargrad,
    "mean and stderr": functools.partial(sj.smoothgrad, reduction=sj.reductions.mean_and_stderr()),
    "wiener": functools.partial(sj.smoothgrad, reduction=sj.spectral.wiener()),
    "signal and noise": functools.partial(sj.smoothgrad, reduction=sj.spectral.signal_and_noise()),
    "noisegrad": sj.noisegrad,
    "variance over weights of smoothgrad": _fusion,
}


QUICK = ("vargrad",)  # the others share their code


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in DIFFERENTIATED],
)
def test_reverse_mode_in_constant_memory_and_time_per_draw(name, key):
    params, x = jnp.linspace(-1.0, 1.0, SIZE * SIZE).reshape(SIZE, SIZE), jnp.ones((SIZE, SIZE))
    explain = sj.saliency(lambda params, x: jnp.sum(jnp.tanh(jnp.tanh(x @ params) @ params) ** 2))
    smooth = DIFFERENTIATED[name]

    def gradient(smooth):
        def loss(params, x):
            maps = jax.tree.leaves(smooth(key, params, x))
            return sum(jnp.sum(m**2) for m in maps if m.shape)

        return compiled(jax.grad(loss, argnums=(0, 1)), params, x)

    few, many = (gradient(smooth(explain, num_samples=n, chunk_size=2)) for n in (20, 402))
    grown = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
    assert grown < x.nbytes
    # Forward and back as the plain mean: the second pass of a variance is not one pass more.
    mean = gradient(sj.noisegrad(explain, num_samples=20, chunk_size=2))
    if name not in ("variance over weights of smoothgrad", "wiener", "signal and noise"):
        assert few.cost_analysis()["flops"] < 1.1 * mean.cost_analysis()["flops"]


def test_one_chunk_is_not_evaluated_twice_in_reverse_mode(key):
    params, x = jnp.ones((SIZE, SIZE)), jnp.ones((SIZE, SIZE))

    def score(params, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ params) @ params) ** 2)

    def flops(num_samples):
        smooth = functools.partial(
            sj.smoothgrad(score, 0.1, num_samples=num_samples, chunk_size=3), key
        )
        gradient = jax.jit(jax.value_and_grad(smooth, argnums=1)).lower(params, x).compile()
        return gradient.cost_analysis()["flops"]

    assert flops(3) < 0.85 * flops(6)  # of a loop, XLA counts one turn


def test_nothing_traced_outlives_the_trace(key):
    """Such as through a cache, which would keep the weights alive too."""
    explain = sj.vargrad(lambda params, x: jnp.sin(params * x), num_samples=5, chunk_size=2)
    with jax.checking_leaks():
        jax.jit(jax.grad(lambda x, key: jnp.sum(explain(key, x, x)))).lower(jnp.ones(3), key)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_flops_of_the_loop_body_are_those_of_the_explainer_and_its_noise(chunk_size, network, key):
    """The compiler counts a loop's body once; there is no remainder here."""
    score, params, x = network
    explain = sj.saliency(score)

    def one_draw(key, params, x):
        return explain(params, x + 0.1 * jax.random.normal(key, x.shape))

    smooth = sj.smoothgrad(explain, 0.1, num_samples=4 * chunk_size, chunk_size=chunk_size)
    ratio = flops(smooth, key, params, x) / (chunk_size * flops(one_draw, key, params, x))
    assert 0.95 < ratio < 1.02


def test_flops_of_weight_noise(network, key):
    score, params, x = network
    explain = sj.saliency(score)

    def one_draw(key, params, x):
        return explain(perturbation(multiplicative, 0.1)(params)(key), x)

    smooth = sj.noisegrad(explain, 0.1, num_samples=4)
    ratio = flops(smooth, key, params, x) / flops(one_draw, key, params, x)
    assert 0.95 < ratio < 1.02


def test_noise_is_drawn_once_and_not_fused_into_what_uses_it(network, key):
    """The compiled program holds one root for each large leaf: one of Box and Muller's."""
    score, params, x = network
    text = compiled(sj.noisegrad(sj.saliency(score), 0.1), key, params, x).as_text()
    assert text.count(" sqrt(") == len(params)


def test_noise_on_weights_takes_the_memory_of_one_copy(network, key):
    score, params, x = network
    explain = sj.saliency(score)
    more = temporary_bytes(sj.noisegrad(explain, 0.1), key, params, x)
    more -= temporary_bytes(sj.noisegrad(explain, 0.1, where=[True] + [False] * 7), key, params, x)
    assert more < 1.1 * 7 * params[0].nbytes


def test_small_leaves_share_one_loop(key):
    """However many there are, or compiling takes longer than running."""
    params = [jnp.ones(n) for n in range(1, 41)]
    explain = sj.saliency(lambda params, x: sum(jnp.sum(w) for w in params) * x)
    text = compiled(sj.noisegrad(explain, 0.1), key, params, jnp.float32(1)).as_text()
    assert text.count(" sqrt(") <= 2


def test_a_shared_key_leaves_the_weights_unbatched(network, key):
    """Over a batch, weight noise is drawn once a draw, not once an example."""
    score, params, x = network
    smooth = sj.noisegrad(sj.saliency(score), num_samples=4)
    batch = jnp.stack([x] * 5)
    shapes = set()

    def collect(jaxpr):
        for eqn in jaxpr.eqns:
            shapes.update(v.aval.shape for v in eqn.outvars)
            for inner in jax.tree.leaves(
                list(eqn.params.values()),
                is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"),
            ):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    collect(getattr(inner, "jaxpr", inner))

    collect(jax.make_jaxpr(jax.vmap(smooth, in_axes=(None, None, 0)))(key, params, batch).jaxpr)
    weights = params[0].shape
    assert weights in shapes  # the walk reached the loop's body
    assert (5, *weights) not in shapes


BAD_LOOPS = [
    ({"num_samples": 0}, ValueError, "num_samples must be at least 1; got 0"),
    ({"num_samples": -5}, ValueError, "num_samples must be at least 1; got -5"),
    ({"num_samples": 2**31}, ValueError, r"num_samples must be below 2\*\*31"),
    ({"num_samples": 2.0}, TypeError, "num_samples must be a Python int.*got 2.0"),
    ({"num_samples": True}, TypeError, "num_samples must be a Python int.*got True"),
    ({"num_samples": None}, TypeError, "num_samples must be a Python int"),
    ({"num_samples": jnp.int32(3)}, TypeError, "num_samples must be a Python int"),
    ({"chunk_size": jnp.int32(3)}, TypeError, "chunk_size must be a Python int"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1; got 0"),
    ({"chunk_size": 1.5}, TypeError, "chunk_size must be a Python int"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_LOOPS)
@pytest.mark.parametrize("smooth", [sj.smoothgrad, sj.noisegrad])
def test_bad_loops_are_refused_when_building(smooth, options, error, message):
    with pytest.raises(error, match=message):
        smooth(jnp.sin, **options)


def test_a_traced_number_of_samples_is_refused():
    with pytest.raises(TypeError, match="num_samples must be a Python int"):
        jax.jit(lambda n: sj.smoothgrad(jnp.sin, num_samples=n) and n)(3)


def test_numpy_integers_are_integers(key):
    smooth = sj.smoothgrad(lambda x: x, 0.1, argnum=np.int64(0), num_samples=np.int32(3))
    assert smooth(key, jnp.ones(3)).shape == (3,)


def test_an_explainer_without_arrays_is_refused(key):
    with pytest.raises(TypeError, match=r"(?s)the function returned no arrays.*in smoothgrad"):
        sj.smoothgrad(lambda x: None, 0.1, argnum=0)(key, jnp.ones(3))


def chunk_sizes(num_samples, shape, **options):
    """The sizes of the chunks in which draws of x are evaluated."""
    seen = []

    @jax.custom_batching.custom_vmap
    def explain(params, x):
        seen.append(1)
        return x

    @explain.def_vmap
    def _(axis_size, in_batched, params, x):
        seen.append(axis_size)
        return x, True

    smooth = sj.smoothgrad(explain, 0.1, num_samples=num_samples, **options)
    jax.eval_shape(smooth, jax.random.key(0), None, jax.ShapeDtypeStruct(shape, jnp.float32))
    return set(seen) - {1}


@pytest.mark.parametrize(
    ("num_samples", "shape", "chunks"),
    [
        (50, (224, 224, 3), {10}),
        (64, (224, 224, 3), {8}),  # without a remainder, which would be compiled by itself
        (53, (224, 224, 3), {10, 3}),  # a divisor of less than half would cost more
        (7, (224, 224, 3), {7}),
        (50, (512, 512, 3), {10}),
        (50, (160, 160, 3), {10}),  # at most 19
        (50, (32, 32, 3), {50}),
        (400, (32, 32, 3), {50}),
        (50, (4,), {50}),
    ],
)
def test_the_default_chunk_is_larger_for_small_inputs_and_leaves_no_remainder(
    num_samples, shape, chunks
):
    assert chunk_sizes(num_samples, shape) == chunks


def test_with_a_tolerance_the_default_chunk_is_ten_so_that_it_can_stop(network):
    assert chunk_sizes(50, (4,), tolerance=0.1) == {10}


@pytest.mark.parametrize(("chunk_size", "loops"), [(6, False), (3, True)])
def test_one_chunk_needs_no_loop(key, chunk_size, loops):
    explain = sj.integrated_gradients(jnp.vdot, num_steps=6, chunk_size=chunk_size)
    assert ("scan" in str(jax.make_jaxpr(explain)(jnp.ones(3), jnp.ones(3)))) == loops


def test_reverse_mode_through_one_chunk_evaluates_no_draw_twice(network, key):
    score, params, x = network

    def flops_at(chunk_size):
        smooth = sj.smoothgrad(sj.saliency(score), 0.1, num_samples=4, chunk_size=chunk_size)
        return flops(jax.grad(lambda p: jnp.sum(smooth(key, p, x) ** 2)), params)

    plain = flops(
        jax.grad(
            lambda p: jnp.sum(jax.vmap(lambda x: sj.saliency(score)(p, x))(jnp.stack([x] * 4)) ** 2)
        ),
        params,
    )
    assert flops_at(4) < 1.1 * plain
