"""Noise on the leaves of any pytree: which leaves, how much, and how it is drawn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._checks import check_function, require
from smoothjax._devices import apart
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

# How many numbers are drawn with one key at most, and with how many keys at once.
_MAX_BLOCK = 1024
_BLOCKS_AT_ONCE = 256

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
    sampler: Sampler = jax.random.normal,
) -> Callable[[PyTree], Callable[[jax.Array], PyTree]]:
    """Returns `perturb(x) -> noisy`, and `noisy(key)` is x with `combine(leaf, sigma * eps)`.

    The leaf at position i among all leaves draws with `fold_in(key, i)`, so that selecting other
    leaves moves no leaf's noise. Noise is drawn and combined in at least float32, then cast back.
    `sigma`, `where` and `sampler` are those of `smoothgrad`.
    """
    check_noise(sigma, where)
    check_function(sampler, "sampler")

    def perturb(argument):
        leaves, treedef = jax.tree.flatten(argument)
        levels = levels_of(argument, sigma, where)
        chosen = {i: jnp.asarray(leaves[i]) for i in levels}
        # Of the largest leaf, selected or not, so that no leaf's noise depends on the selection.
        block = max(1, min(_MAX_BLOCK, max(leaf.size for leaf in leaves if is_inexact(leaf))))

        def of_leaf(i, eps):
            leaf = chosen[i]
            noise = levels[i] * eps.reshape(leaf.shape)
            return combine(leaf.astype(eps.dtype), noise).astype(leaf.dtype)

        def noisy(key):
            drawn, rounds = _draw(key, chosen, block, sampler)
            found = apart(lambda eps: {i: of_leaf(i, eps[i]) for i in eps}, drawn, rounds)
            return treedef.unflatten([found.get(i, leaf) for i, leaf in enumerate(leaves)])

        return noisy

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


def _draw(key, leaves, block, sampler):
    """Returns the draws for each leaf, by its position and flat, and how often a loop ran."""
    drawn, rounds = {}, jnp.int32(0)
    for dtype in sorted({wide_dtype(leaf.dtype) for leaf in leaves.values()}, key=str):
        sizes = {i: x.size for i, x in leaves.items() if wide_dtype(x.dtype) == dtype}
        some, more = _draw_dtype(key, sizes, block, dtype, sampler)
        drawn, rounds = drawn | some, rounds + more
    return drawn, rounds


def _draw_dtype(key, sizes, block, dtype, sampler):
    """One loop over blocks draws for all leaves of a dtype.

    XLA would compile a sampler for every leaf (measured for the 149 leaves of EfficientNet-Lite0:
    30 s instead of 4 s), and fuse it into whatever uses the noise, such as a convolution, which
    then draws the same numbers many times over.
    """
    blocks = [-(-size // block) for size in sizes.values()]
    positions = np.repeat(np.fromiter(sizes, np.uint32), blocks)
    numbers = np.concatenate([np.arange(n, dtype=np.uint32) for n in blocks])
    # At least two rounds, if there is more than one block: XLA makes no loop of one.
    num = len(positions)
    rounds = max(min(max(-(-num // _BLOCKS_AT_ONCE), 2), num), 1)
    at_once = -(-num // rounds)
    # The last block is drawn again where the rounds do not share the blocks evenly.
    rows = np.minimum(np.arange(rounds * at_once), num - 1).reshape(rounds, at_once)

    def draw_one(position, number):
        block_key = jax.random.fold_in(jax.random.fold_in(key, position), number)
        return _draw_block(block_key, block, dtype, sampler)

    # Over integers: under vmap, JAX's checker of keys takes a scan over keys for a reuse.
    def draw_round(done, row):
        return done + 1, jax.vmap(draw_one)(*row)

    done, drawn = jax.lax.scan(draw_round, jnp.int32(0), (positions[rows], numbers[rows]))
    drawn = jnp.split(drawn.reshape(-1, block)[:num], np.cumsum(blocks)[:-1])
    flat = {i: eps.ravel()[:size] for (i, size), eps in zip(sizes.items(), drawn, strict=True)}
    return flat, done


def _draw_block(key, block, dtype, sampler):
    eps = sampler(key, (block,), dtype)
    require(
        is_array(eps) and is_real(eps) and eps.shape == (block,),
        "sampler(key, shape, dtype) must return an array of real numbers of the shape that it is "
        f"asked for, ({block},); got {eps!r:.80}.",
        TypeError,
    )
    return eps.astype(dtype)
