"""The same map on one device and on eight: draws over a mesh, a batch over a mesh, and both."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rows import slow_but

import smoothjax as sj
from smoothjax import reductions

X = jnp.linspace(-1.0, 1.0, 12).reshape(2, 6)
PARAMS = {"kernel": jnp.linspace(-0.5, 1.0, 48).reshape(6, 8), "head": jnp.linspace(1.0, -1.0, 8)}


def score(params, x):
    return jnp.sum(jnp.tanh(x @ params["kernel"]) @ params["head"])


EXPLAIN = sj.saliency(score)


def mesh(num_devices, axis_type, names=("draws",), shape=None):
    axis_types = axis_type if isinstance(axis_type, tuple) else (axis_type,) * len(names)
    return jax.make_mesh(
        shape or (num_devices,),
        names,
        axis_types=axis_types,
        devices=jax.devices()[:num_devices],
    )


def over_draws(devices):
    axis_type = dict(zip(devices.axis_names, devices.axis_types, strict=True))["draws"]
    if axis_type is AxisType.Explicit and jax.__version_info__ < (0, 10):
        pytest.skip("JAX before 0.10 cannot divide draws over an Explicit axis")
    return NamedSharding(devices, P("draws"))


@pytest.fixture(autouse=True, scope="module")
def _eight_devices():
    if jax.device_count() < 8:
        pytest.skip("needs eight (forced CPU) devices")


TRANSFORMS = {
    "smoothgrad": functools.partial(sj.smoothgrad, sigma=0.3),
    "noisegrad": functools.partial(sj.noisegrad, sigma=0.3),
    "fusion": lambda explain, **loop: sj.noisegrad(
        sj.smoothgrad(explain, 0.2, num_samples=3, chunk_size=2), 0.3, **loop
    ),
    "vargrad": functools.partial(sj.vargrad, sigma=0.3),
    "mean and stderr": functools.partial(
        sj.smoothgrad, sigma=0.3, reduction=reductions.mean_and_stderr()
    ),
    "stack": functools.partial(sj.smoothgrad, sigma=0.3, reduction=reductions.stack()),
    "tolerance": functools.partial(sj.smoothgrad, sigma=0.3, tolerance=0.2),
}
each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
each_type = pytest.mark.parametrize("axis_type", slow_but([AUTO, EXPLICIT], EXPLICIT))


def close(got, want, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, want)


@each_type
@pytest.mark.parametrize("transform", slow_but(TRANSFORMS, "smoothgrad", "noisegrad"))
def test_draws_over_a_mesh(transform, axis_type, key):
    check_draws_over_a_mesh(8, transform, axis_type, key)


@pytest.mark.slow
@each_type
@pytest.mark.parametrize("num_devices", [1, 2])
def test_draws_over_a_smaller_mesh(num_devices, axis_type, key):
    check_draws_over_a_mesh(num_devices, TRANSFORMS["fusion"], axis_type, key)


def check_draws_over_a_mesh(num_devices, transform, axis_type, key):
    loop = {"num_samples": 24, "chunk_size": 16}  # and a remainder of 8
    want = jax.jit(transform(EXPLAIN, **loop))(key, PARAMS, X)
    devices = mesh(num_devices, axis_type)
    sharded = transform(EXPLAIN, **loop, sharding=over_draws(devices))
    with jax.set_mesh(devices):
        close(jax.jit(sharded)(key, PARAMS, X), want)


@pytest.mark.parametrize(
    "axis_type",
    slow_but([AUTO, EXPLICIT, (EXPLICIT, AUTO), (AUTO, EXPLICIT)], (EXPLICIT, AUTO)),
)
@pytest.mark.slow
def test_a_mesh_of_two_axes_for_the_batch_and_the_draws(axis_type, key):
    devices = mesh(8, axis_type, ("batch", "draws"), (2, 4))
    xs = jnp.stack([X, 2 * X, X - 1, -X])
    loop = {"num_samples": 8, "chunk_size": 4}
    want = jax.vmap(sj.smoothgrad(EXPLAIN, 0.3, **loop), in_axes=(None, None, 0))(key, PARAMS, xs)
    sharded = sj.smoothgrad(EXPLAIN, 0.3, **loop, sharding=over_draws(devices))
    with jax.set_mesh(devices):
        placed = jax.device_put(xs, NamedSharding(devices, P("batch")))
        got = jax.jit(jax.vmap(sharded, in_axes=(None, None, 0)))(key, PARAMS, placed)
    close(got, want)


OF_DIVIDED = {
    "mean": {},
    "variance": {"reduction": reductions.variance()},
    "stack": {"reduction": reductions.stack()},
    "tolerance": {"tolerance": 0.2},
}


@pytest.mark.slow
@each_type
@pytest.mark.parametrize("options", OF_DIVIDED.values(), ids=OF_DIVIDED)
def test_an_input_divided_along_its_own_axis(options, axis_type, key):
    """As the plain explainer takes it; the map of each draw is divided like it."""
    devices = mesh(8, axis_type, ("pixels",))
    explain = sj.saliency(lambda params, x: jnp.sum(jnp.tanh(params * x)))
    smooth = sj.smoothgrad(explain, 0.3, num_samples=20, chunk_size=8, **options)
    x, w = jnp.linspace(-1.0, 1.0, 48).reshape(8, 6), jnp.linspace(2.0, -1.0, 48).reshape(8, 6)
    want = jax.jit(smooth)(key, w, x)
    with jax.set_mesh(devices):
        along = NamedSharding(devices, P("pixels"))
        close(jax.jit(smooth)(key, jax.device_put(w, along), jax.device_put(x, along)), want)


@pytest.mark.slow
def test_a_batch_over_a_mesh_by_in_shardings(key):
    devices = mesh(8, AxisType.Auto, ("batch",))
    xs = jnp.stack([X * i for i in range(8)])
    explain = jax.vmap(sj.fusiongrad(EXPLAIN, 0.1, 0.1), in_axes=(None, None, 0))
    everywhere, split = NamedSharding(devices, P()), NamedSharding(devices, P("batch"))
    run = jax.jit(explain, in_shardings=(everywhere, everywhere, split), out_shardings=split)
    got = run(key, PARAMS, xs)
    assert got.sharding.is_equivalent_to(split, got.ndim)
    close(got, explain(key, PARAMS, xs))


@each_type
def test_the_work_is_divided(axis_type, key):
    """By the compiler's count of what one device computes."""

    def heavy(params, x):
        w = jnp.tile(params["kernel"], (20, 20))
        h = jnp.tile(x, (40, 20))
        for _ in range(4):
            h = jnp.tanh(h @ w @ w.T)
        return jnp.sum(h)

    def flops(num_devices):
        devices = mesh(num_devices, axis_type)
        sharding = over_draws(devices)
        explain = sj.smoothgrad(
            sj.saliency(heavy), 0.3, num_samples=16, chunk_size=16, sharding=sharding
        )
        with jax.set_mesh(devices):
            return jax.jit(explain).lower(key, PARAMS, X).compile().cost_analysis()["flops"]

    np.testing.assert_allclose(flops(8), flops(1) / 8, rtol=0.05)


@pytest.mark.parametrize(
    "transform",
    slow_but({n: TRANSFORMS[n] for n in ("smoothgrad", "noisegrad", "fusion")}, "noisegrad"),
)
def test_inside_shard_map(transform, key):
    """Each device explains its part of a batch, with the key and weights of all."""
    devices = mesh(8, AxisType.Auto, ("batch",))
    xs = jnp.stack([X * i for i in range(8)])
    explain = jax.vmap(transform(EXPLAIN, num_samples=5, chunk_size=2), in_axes=(None, None, 0))
    mapped = jax.shard_map(
        explain, mesh=devices, in_specs=(P(), P(), P("batch")), out_specs=P("batch")
    )
    close(jax.jit(mapped)(key, PARAMS, xs), explain(key, PARAMS, xs))


LAYOUTS = {
    "fully sharded": [P("model", None)] * 3 + [P()],
    "tensor parallel": [P(None, "model"), P("model", None), P(None, "model"), P("model")],
    "a middle axis and two at once": [
        P(None, "model"), P("draws", "model"), P(("draws", "model"), None), P(("draws", "model"))
    ],
}  # fmt: skip
WEIGHTS = [jnp.linspace(-1.0, 1.0, 2**18).reshape(512, 512)] * 3 + [jnp.linspace(1.0, 2.0, 512)]
COLLECTIVES = "all-gather|all-to-all|collective-permute|all-reduce"


def moved_between_devices(program):
    """The shapes of what the collectives of a compiled program return."""
    found = re.findall(rf"\[([\d,]*)\]\S* (?:{COLLECTIVES})(?:-start)?\(", program.as_text())
    return [tuple(int(n) for n in shape.split(",") if n) for shape in found]


def divided(weights, layout, axis_type):
    devices = mesh(
        8, axis_type, ("draws", "model"), (1, 8) if "draws" not in str(layout) else (2, 4)
    )
    placed = [
        jax.device_put(w, NamedSharding(devices, spec))
        for w, spec in zip(weights, layout, strict=True)
    ]
    return devices, placed


@each_type
@pytest.mark.parametrize("layout", slow_but(LAYOUTS, "fully sharded", "tensor parallel"))
def test_noise_is_drawn_where_the_weight_lives(layout, axis_type, key):
    """No communication, an eighth of the memory, and the numbers of one device."""
    noisy = jax.jit(sj.noisegrad(lambda params: params, 0.3, num_samples=2))
    whole = noisy.lower(key, WEIGHTS).compile()
    devices, placed = divided(WEIGHTS, layout, axis_type)
    with jax.set_mesh(devices):
        program = noisy.lower(key, placed).compile()
        got = program(key, placed)
    assert not moved_between_devices(program)
    whole_bytes, part_bytes = (p.memory_analysis().temp_size_in_bytes for p in (whole, program))
    assert part_bytes < 1.3 * whole_bytes / 8 + WEIGHTS[0].nbytes / 8
    assert all(
        g.sharding.is_equivalent_to(w.sharding, w.ndim) for g, w in zip(got, placed, strict=True)
    )
    close(got, whole(key, WEIGHTS))


@pytest.mark.parametrize(
    "layout",
    slow_but({n: LAYOUTS[n] for n in ("fully sharded", "tensor parallel")}, "tensor parallel"),
)
@pytest.mark.slow
def test_a_network_with_divided_weights(layout, key):
    """As XLA runs it on Auto axes: only activations cross between devices."""

    def score(params, x):
        for w in params[:3]:
            x = jnp.tanh(x @ w)
        return x @ params[3]

    explain = jax.jit(sj.noisegrad(sj.smoothgrad(sj.saliency(score), 0.1, num_samples=2), 0.3,
                                   num_samples=2))  # fmt: skip
    x = jnp.linspace(-0.1, 0.1, 512)
    devices, placed = divided(WEIGHTS, layout, AUTO)
    program = explain.lower(key, placed, jax.device_put(x, NamedSharding(devices, P()))).compile()
    moved = moved_between_devices(program)
    assert max(math.prod(shape) for shape in moved) < 2**13
    close(explain(key, placed, x), explain(key, WEIGHTS, x), rtol=1e-4)


@pytest.mark.parametrize("shape", slow_but([(513, 130), (9, 77, 101), (5, 4099)], (9, 77, 101)))
def test_sizes_that_do_not_divide(shape, key):
    """Divided inside a program, where XLA pads them."""
    devices = mesh(8, AUTO, ("model",))
    spec = P("model") if shape[0] > 8 else P(None, "model")
    sharding = NamedSharding(devices, spec)
    see = sj.noisegrad(lambda params: params, 0.3, num_samples=2)

    def inside(key, params):
        return see(key, jax.lax.with_sharding_constraint(params, sharding))

    params = jnp.linspace(1.0, 2.0, math.prod(shape)).reshape(shape)
    close(np.asarray(jax.jit(inside)(key, params)), jax.jit(see)(key, params))
    total = jax.jit(lambda key, params: jnp.sum(inside(key, params)))
    assert set(moved_between_devices(total.lower(key, params).compile())) == {()}


@pytest.mark.parametrize(
    "smooth",
    slow_but(
        {"noisegrad": sj.noisegrad, "additive": functools.partial(sj.smoothgrad, argnum=0)},
        "noisegrad",
    ),
)
@pytest.mark.parametrize("width", [4, 512], ids=["small", "large"])
@pytest.mark.slow
def test_parts_of_the_weights_inside_shard_map_have_noise_of_their_own(smooth, width, key):
    """And what all devices share, such as a bias, stays what they share."""
    devices = mesh(8, AUTO, ("model",))
    varying = {}

    def look(params, x):
        varying.update({name: "model" in str(jax.typeof(w)) for name, w in params.items()})
        return params

    see = smooth(look, 1.0, num_samples=2, reduction=reductions.stack())
    params = {"kernel": jnp.ones((64, width)), "bias": jnp.ones(width)}
    specs = {"kernel": P("model"), "bias": P()}
    mapped = jax.shard_map(
        lambda key, params: see(key, params, 0.0),
        mesh=devices,
        in_specs=(P(), specs),
        out_specs=P(None, "model"),  # of each device, for the bias too
    )
    drawn = jax.jit(mapped)(key, params)
    eps = np.asarray(drawn["kernel"]) - 1
    assert np.unique(eps).size > 0.98 * eps.size
    parts = eps.reshape(2, 8, 8 * width)
    assert np.abs(np.corrcoef(parts.reshape(16, -1)) - np.eye(16)).max() < 5.5 / (8 * width) ** 0.5
    assert varying == {"kernel": True, "bias": False}
    close(drawn["bias"], jnp.tile(see(key, params, 0.0)["bias"], (1, 8)))


@pytest.mark.slow
def test_inside_shard_map_with_a_key_for_each_device(key):
    """Draws divided by hand: independent keys, then a mean over the devices."""
    devices = mesh(8, AxisType.Auto)
    explain = sj.smoothgrad(EXPLAIN, 0.3, num_samples=5, reduction=reductions.mean_and_stderr())

    def part(keys, params, x):
        estimate = explain(keys[0], params, x)
        return jax.lax.pmean(estimate.mean, "draws")

    keys = jax.random.split(key, 8)
    mapped = jax.shard_map(part, mesh=devices, in_specs=(P("draws"), P(), P()), out_specs=P())
    want = jnp.mean(jnp.stack([explain(k, PARAMS, X).mean for k in keys]), axis=0)
    close(jax.jit(mapped)(keys, PARAMS, X), want)


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ({"num_samples": 16, "chunk_size": 4}, "16 draws in chunks of 4 .*multiples of 8"),
        ({"num_samples": 20, "chunk_size": 8}, "20 draws.*multiples of 8"),
        ({"num_samples": 4, "chunk_size": 8}, "4 draws in chunks"),
    ],
)
def test_uneven_chunks_are_refused_when_building(loop, message):
    sharding = NamedSharding(mesh(8, AxisType.Auto), P("draws"))
    with pytest.raises(ValueError, match=message):
        sj.smoothgrad(EXPLAIN, 0.1, **loop, sharding=sharding)


ALONG_NONE = [NamedSharding(mesh(1, AxisType.Auto), P(a)) for a in (None, P.UNCONSTRAINED)]


@pytest.mark.parametrize("sharding", ["draws", P("draws"), jax.devices()[0], *ALONG_NONE])
def test_something_else_than_a_named_sharding_is_refused(sharding):
    with pytest.raises(TypeError, match="sharding must be a NamedSharding"):
        sj.smoothgrad(EXPLAIN, 0.1, sharding=sharding)


def test_a_sharding_of_more_axes_is_refused():
    devices = mesh(8, AxisType.Auto, ("batch", "draws"), (2, 4))
    with pytest.raises(TypeError, match=r"NamedSharding.*of the draws"):
        sj.smoothgrad(EXPLAIN, 0.1, sharding=NamedSharding(devices, P("draws", "batch")))
    mixed = NamedSharding(mesh(8, (AUTO, EXPLICIT), ("a", "b"), (2, 4)), P(("a", "b")))
    with pytest.raises(ValueError, match="all Auto or all Explicit"):
        sj.smoothgrad(EXPLAIN, 0.1, num_samples=8, chunk_size=8, sharding=mixed)
