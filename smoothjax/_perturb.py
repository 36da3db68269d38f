"""Noise on the leaves of any pytree: which leaves, how much, and how it is drawn."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._box_muller import box_muller
from smoothjax._checks import check_function, require
from smoothjax._devices import apart, laid_out_as, shard_index
from smoothjax._trees import (
    check_has_inexact,
    fit,
    is_array,
    is_function,
    is_inexact,
    is_real,
    leaf_name,
    path_string,
    resolve,
    wide_dtype,
)
from smoothjax._typing import PyTree, Rule, Sampler

# Leaves up to this size share one loop, since XLA would compile a sampler for every leaf.
_SMALL = 2048

_BY_RANGE = "__smoothjax_by_range__"


def additive(leaf: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `leaf + noise`: SmoothGrad's noise."""
    return leaf + noise


def multiplicative(leaf: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `leaf * (1 + noise)`: NoiseGrad's noise."""
    return leaf * (1 + noise)


def perturbation(
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    sigma: Any,
    where: Any = None,
    sampler: Sampler = box_muller,
    *,
    of_shards: bool = False,
) -> Callable[[PyTree], Callable[[jax.Array], PyTree]]:
    """Returns `perturb(x) -> noisy`, and `noisy(key)` is x with `combine(leaf, sigma * eps)`.

    The leaf at position i among all leaves draws with `fold_in(key, i)`, so that selecting other
    leaves moves no leaf's noise. Noise is drawn and combined in at least float32, then cast back.
    `sigma`, `where` and `sampler` are those of `smoothgrad`. Inside `jax.shard_map`, `of_shards`
    takes leaves that vary over devices for parts of one array, whose noise must differ.
    """
    check_noise(sigma, where)
    check_function(sampler, "sampler")

    def perturb(argument):
        leaves, treedef = jax.tree.flatten(argument)
        levels = levels_of(argument, sigma, where)
        chosen = {i: jnp.asarray(leaves[i]) for i in levels}
        # Of all leaves, so that no leaf's noise depends on the selection, whatever the sampler.
        small = max((x.size for x in leaves if is_inexact(x) and x.size <= _SMALL), default=0)

        def noisy(key):
            def perturbed(chosen):
                eps = _draw(key, chosen, small, sampler, of_shards)
                return {i: of_leaf(leaf, levels[i] * eps[i]) for i, leaf in chosen.items()}

            found = apart(perturbed, chosen)
            return treedef.unflatten([found.get(i, leaf) for i, leaf in enumerate(leaves)])

        return noisy

    def of_leaf(leaf, noise):
        return combine(leaf.astype(noise.dtype), noise).astype(leaf.dtype)

    return perturb


def levels_of(argument: PyTree, sigma: Any, where: Any = None) -> dict[int, jax.Array]:
    """Returns the noise level of each selected leaf, by its position among all leaves.

    Each level broadcasts to its leaf, in the dtype of its noise.
    """
    check_has_inexact(argument)
    paths_leaves, treedef = jax.tree_util.tree_flatten_with_path(argument)
    paths, leaves = zip(*paths_leaves, strict=True)
    selected = resolve(True if where is None else where, argument, "where")
    for chosen in selected:
        _check_bool(chosen)
    places = [i for i, leaf in enumerate(leaves) if selected[i] and is_inexact(leaf)]
    require(
        places,
        f"`where` selects no floating-point leaf of {list(map(path_string, paths))!s:.200}.",
    )
    # A rule sees 0 for what is left out, which might not fit it.
    seen = [leaf if i in places else 0 for i, leaf in enumerate(leaves)]
    sigmas = resolve(sigma, treedef.unflatten(seen), "sigma")
    if where is None:
        jax.tree.map(_check_one_range, sigma, argument)
    levels = {}
    for i in places:
        require(
            not jnp.issubdtype(leaves[i].dtype, jnp.complexfloating),
            f"{leaf_name(paths[i])} is complex, and only real leaves are perturbed. Split it into "
            "real and imaginary parts, or leave it out with `where`.",
            TypeError,
        )
        check_not_negative(sigmas[i], "sigma")
        levels[i] = fit(sigmas[i], jnp.asarray(leaves[i]), "sigma", paths[i])
    return levels


def by_range(rule: Rule) -> Rule:
    """Returns a rule, marked as one that takes the level of a leaf from that leaf's values."""
    setattr(rule, _BY_RANGE, True)
    return rule


def _check_one_range(level, part):
    """Raises if a level by range is that of several leaves, of which one may be a float mask."""
    if not getattr(level, _BY_RANGE, False):
        return
    leaves = jax.tree_util.tree_leaves_with_path(part)
    found = [path_string(path) for path, leaf in leaves if is_inexact(leaf)]
    require(
        len(found) <= 1,
        "a level by range for an argument of several leaves needs `where`, or a level for each of "
        f"{found!s:.200}; where=True perturbs them all.",
    )


def check_not_negative(value: Any, name: str) -> None:
    """Raises unless a value is a real number or array, nowhere below 0 or NaN if it is known."""
    require(is_real(value), f"{name} must be a real number or array; got {value!r:.80}.", TypeError)
    known = not isinstance(value, Tracer)
    right = not known or np.all(np.asarray(value) >= 0)
    require(right, f"{name} must not be negative, or NaN; got {value!s:.80}.")


def check_noise(sigma: Any, where: Any = None) -> None:
    """Raises for levels and selections that are wrong whatever the argument will be."""
    wrong = isinstance(sigma, str) or sigma is None
    require(
        not wrong, f"sigma must be a number, array, pytree or function; got {sigma!r}.", TypeError
    )
    for level in jax.tree.leaves(sigma):
        if not is_function(level):
            check_not_negative(level, "sigma")
    for selected in jax.tree.leaves(where):
        if not is_function(selected):
            _check_bool(selected)


def _check_bool(value):
    require(
        isinstance(value, (bool, np.bool_)),
        f"`where` holds bools, True to perturb a whole leaf; got {value!r:.80}. To spare some "
        "elements of a leaf, pass an array with zeros as sigma.",
        TypeError,
    )


def _draw(key, leaves, small, sampler, of_shards):
    """Returns the draws for each leaf, by its position: `sampler(its key, its shape, its dtype)`.

    The numbers of a large leaf are drawn in its shape, each from its position, so that XLA makes
    them where the leaf lives. Small leaves take theirs from flat blocks, which are drawn together:
    XLA would compile the sampler for each of them, of 149 leaves in EfficientNet-Lite0 105.
    """
    shards = {i: shard_index(leaf) if of_shards else None for i, leaf in leaves.items()}
    in_blocks, alone = {}, []
    for i, leaf in leaves.items():
        in_a_block = shards[i] is None and leaf.size <= small
        (in_blocks.setdefault(wide_dtype(leaf.dtype), []) if in_a_block else alone).append(i)

    def draw(key):
        drawn = {}
        for dtype, group in in_blocks.items():

            def draw_block(position, dtype=dtype):
                return _ask(sampler, jax.random.fold_in(key, position), (small,), dtype)

            # At least two rounds: XLA makes no loop of one, and rounds what it fuses otherwise.
            rounds = np.resize(np.array(group, np.uint32), max(len(group), 2))
            # Over integers: under vmap, JAX's checker of keys takes a loop over keys for a reuse.
            blocks = jax.lax.platform_dependent(
                rounds,
                cpu=functools.partial(jax.lax.map, draw_block),
                default=jax.vmap(draw_block),  # a block is too little for a GPU or TPU
            )
            for place, i in enumerate(group):
                drawn[i] = blocks[place, : leaves[i].size].reshape(leaves[i].shape)
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        keys = fold(key, np.array(alone, np.uint32)) if alone else []
        for i, leaf_key in zip(alone, keys, strict=True):
            shard = shards[i]
            if shard is not None:
                leaf_key = jax.random.fold_in(leaf_key, shard)
            drawn[i] = _ask(sampler, leaf_key, leaves[i].shape, wide_dtype(leaves[i].dtype))
        return drawn

    return laid_out_as(leaves, draw)(key)


def _ask(sampler, key, shape, dtype):
    eps = sampler(key, shape, dtype)
    require(
        is_array(eps) and is_real(eps) and eps.shape == shape,
        "sampler(key, shape, dtype) must return an array of real numbers of the shape that it is "
        f"asked for, {shape}; got {eps!r:.80}.",
        TypeError,
    )
    return eps.astype(dtype)
