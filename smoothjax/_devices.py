"""What depends on devices: draws divided over them, states laid out like draws, XLA on CPUs."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

from smoothjax._checks import require
from smoothjax._typing import PyTree


def check_sharding(sharding: Any) -> None:
    """Raises unless `sharding` can divide the axis of draws."""
    named = isinstance(sharding, NamedSharding) and len(sharding.spec) == 1
    axes = _mesh_axes(sharding) if named else ()
    require(
        axes and all(isinstance(axis, str) for axis in axes),
        f"sharding must be a NamedSharding(mesh, P('axis')) of the draws; got {sharding!r:.120}.",
        TypeError,
    )
    alike = len(set(_axis_types(sharding))) == 1
    require(alike, f"the axes of {sharding.spec} must be all Auto or all Explicit.")


def check_divides(sharding: NamedSharding, num: int, chunk_size: int) -> None:
    """Raises unless chunks of draws, and what remains, divide evenly over the devices."""
    shards = math.prod(sharding.mesh.shape[axis] for axis in _mesh_axes(sharding))
    require(
        num % shards == 0 and min(num, chunk_size) % shards == 0,
        f"{num} draws in chunks of {chunk_size} do not divide over the {shards} devices of "
        f"{sharding.spec}. Make num_samples and chunk_size multiples of {shards}.",
    )


def shard(indices: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Returns the indices of draws, divided over devices."""
    if sharding is None:
        return indices
    if AxisType.Explicit in _axis_types(sharding):
        return jax.reshard(indices, sharding)
    return jax.lax.with_sharding_constraint(indices, sharding)


def vary_like(draw: PyTree, state: PyTree) -> PyTree:
    """Returns a loop's state inside `jax.shard_map`, varying over mesh axes as the draws do."""
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(draw)))

    def vary(x):
        missing = tuple(axes - _varying_axes(jax.typeof(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, state)


def laid_out_like(draw: PyTree, state: PyTree, take_chunk: Callable[..., PyTree]) -> PyTree:
    """Returns a loop's state, sharded as draws that are sharded over Explicit axes leave it."""
    shardings = [d.sharding for d in jax.tree.leaves(draw)]
    if all(sharding is None or not any(sharding.spec) for sharding in shardings):
        return state
    after = jax.eval_shape(take_chunk, state, jnp.int32(0))
    return jax.tree.map(lambda x, like: jax.reshard(x, like.sharding), state, after)


def laid_out_as(leaves: PyTree, draw: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """Returns `draw`, whose arrays are laid out over Explicit axes of a mesh as `leaves` are.

    Over Auto axes XLA sees to that itself.
    """
    shardings = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding, leaves)
    divided = [sharding for sharding in jax.tree.leaves(shardings) if any(sharding.spec)]
    return jax.sharding.auto_axes(draw, out_sharding=shardings) if divided else draw


def shard_index(leaf: jax.Array) -> jax.Array | None:
    """Returns the number of the device among those over which a leaf varies in `jax.shard_map`."""
    axes = sorted(_varying_axes(jax.typeof(leaf)))
    return jax.lax.axis_index(tuple(axes)) if axes else None


def apart(fun: Callable[[PyTree], PyTree], arrays: PyTree) -> PyTree:
    """Returns `fun(arrays)`, which XLA does not fuse into what uses it on a CPU.

    It would fuse noise on a weight into all loops over the pixels that the weight meets, and
    compute it anew for each: a fifth of the time of NoiseGrad on EfficientNet-Lite0. It fuses
    nothing into or out of a branch; a barrier, which one would write, it drops before it fuses.

    Args:
      fun: a function that returns arrays of the structure, shapes and dtypes of its argument.
      arrays: its argument.
    """

    def count():  # to 2, which XLA does not find out, and which nothing batches
        return jax.lax.scan(lambda n, _: (n + 1, None), jnp.int32(0), length=2)[0]

    def unchanged(arrays):  # of the type of what `fun` returns
        return jax.tree.map(_typed_like, jax.eval_shape(fun, arrays), arrays)

    always = jax.lax.platform_dependent(cpu=count, default=lambda: jnp.int32(2)) > 0
    return jax.lax.cond(always, fun, unchanged, arrays)


def _typed_like(like, x):
    """An array that varies over manual axes, and is divided over Explicit ones, as another is."""
    if like.sharding is not None and AxisType.Explicit in like.sharding.mesh.axis_types:
        x = jax.reshard(x, like.sharding)
    return vary_like(like, x)


def _mesh_axes(sharding):
    """The axes of the mesh over which the one axis of an array is divided."""
    (axes,) = sharding.spec
    return axes if isinstance(axes, tuple) else (axes,)


def _axis_types(sharding):
    types = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    return [types[axis] for axis in _mesh_axes(sharding)]


def _varying_axes(shape):
    manual = getattr(shape, "manual_axis_type", None)  # JAX before 0.10 calls its axes vma
    return getattr(shape, "vma", None) or frozenset() if manual is None else manual.varying
