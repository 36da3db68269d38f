"""A network that one device need not hold: its weights, and their noise, divided over eight."""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import smoothjax as sj
from benchmarks.transformer import Transformer, as_function, where

WIDTH, LENGTH = 256, 16


@pytest.fixture(scope="module")
def divided():
    """The mesh, the score, and its divided parameters."""
    if jax.device_count() < 8:
        pytest.skip("needs eight (forced CPU) devices")
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        model = Transformer(2, WIDTH, heads=8, length=LENGTH, classes=8, rngs=nnx.Rngs(0))
    return mesh, *as_function(model)


def test_weights_and_their_noise_stay_where_they_live(divided, key):
    """The map of one device, an eighth of its temporaries; activations cross, and no weights."""
    mesh, score, params = divided
    smooth = sj.smoothgrad(sj.saliency(score), 0.1, num_samples=2)
    explain = jax.jit(sj.noisegrad(smooth, 0.1, num_samples=2, where=where))
    x = jax.random.normal(jax.random.key(1), (LENGTH, WIDTH))
    arguments = key, params, jax.device_put(x, NamedSharding(mesh, P())), 3
    whole = jax.device_put(arguments, jax.devices()[0])

    programs = [explain.lower(*a).compile() for a in (whole, arguments)]
    whole_bytes, part_bytes = (p.memory_analysis().temp_size_in_bytes for p in programs)
    parts = [w.addressable_data(0).nbytes for w in jax.tree.leaves(params)]
    assert sum(parts) < 1.1 / 8 * sum(w.nbytes for w in jax.tree.leaves(params))
    assert part_bytes < 1.3 * whole_bytes / 8 + max(parts)

    moved = re.findall(
        r"= (.*?) (all-[a-z]+|collective-permute)(?:-start)?\(", programs[1].as_text()
    )
    assert {collective for _, collective in moved} == {"all-reduce"}
    assert all(re.match(rf"\(?f32\[2,{LENGTH},{WIDTH}\]", shape) for shape, _ in moved), moved

    got, want = explain(*arguments), explain(*whole)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())
    plain = jax.jit(sj.saliency(score))(*whole[1:])
    assert np.linalg.norm(want - plain) > 0.05 * np.linalg.norm(plain)


def test_embeddings_are_spared(divided, key):
    _, _, params = divided
    noisy = jax.jit(sj.noisegrad(lambda params: params, 0.1, num_samples=1, where=where))
    pairs = zip(jax.tree.leaves(noisy(key, params)), jax.tree.leaves(params), strict=True)
    unchanged = [bool((got == was).all()) for got, was in pairs]
    kept = [unchanged[i] for i, path in enumerate(paths(params)) if "embedding" in path]
    drawn = [unchanged[i] for i, path in enumerate(paths(params)) if "kernel" in path]
    assert kept == [True]
    assert not any(drawn)
    assert len(drawn) == 13


def paths(params):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
