"""What is drawn: noise levels, selections of leaves, and noise on the leaves of any pytree.

A noise level `sigma` and a selection `where` follow one grammar: a value for everything, a pytree
prefix of values, or one function of the whole argument that returns either.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import erfinv
from numpy.polynomial import Chebyshev, Polynomial

from smoothjax.transform import check_callable, wide_dtype

PyTree = Any
Rule = Callable[[PyTree], PyTree]


def relative(level: Any) -> Rule:
    """Returns the noise-level rule of SmoothGrad: `level` times each leaf's range (max - min).

    Args:
      level: a fraction of the range, such as 0.15; may be traced.

    Returns:
      A function from an argument to a pytree of levels in the argument's units, for `sigma`.

    Raises:
      ValueError: if `level` is a negative number; when called, for a leaf of one element, which has
        no range.

    Source: Smilkov et al. 2017, arXiv 1706.03825.

    >>> import jax.numpy as jnp, smoothjax as sj
    >>> print(sj.relative(0.15)(jnp.array([-1.0, 0.0, 3.0])))
    0.6
    """
    _check_not_negative(level, "relative: level")

    def rule(argument):
        def of_leaf(path, leaf):
            if not is_inexact(leaf):
                return 0.0
            leaf = jnp.asarray(leaf)
            if leaf.size < 2:
                raise ValueError(
                    f"relative noise is a fraction of max - min, and {_where_is(path)} of shape "
                    f"{leaf.shape} has none. Give sigma in the argument's own units."
                )
            wide = leaf.astype(wide_dtype(leaf.dtype))
            return jnp.asarray(level, wide.dtype) * (jnp.max(wide) - jnp.min(wide))

        return jax.tree_util.tree_map_with_path(of_leaf, argument)

    return rule


def adaptive(bounds: tuple[Any, Any], confidence: Any = 0.95) -> Rule:
    """Returns the noise-level rule of AdaptGrad: per element, from its distance to the bounds.

    `sigma_i = min(|x_i - lo|, |x_i - hi|) / (sqrt(2) erfinv(confidence))`, so that a draw leaves
    `[lo, hi]` with probability at most `1 - confidence`. An element on or outside a bound gets 0.

    Args:
      bounds: a pair (lo, hi) of numbers or arrays that broadcast to each leaf, per channel for
        example, in the argument's own units: the domain of its values.
      confidence: above 0 and below 1; may be traced.

    Returns:
      A function from an argument to a pytree of levels in the argument's units, for `sigma`.

    Raises:
      ValueError: if the bounds are no pair with lo < hi everywhere, if the confidence is not inside
        (0, 1), or, when called, if the bounds do not broadcast to a leaf.

    Source: Zhou et al. 2025, arXiv 2410.07711.

    >>> import jax.numpy as jnp, smoothjax as sj
    >>> print(sj.adaptive((0.0, 1.0), 0.5)(jnp.array([0.0, 0.25, 0.5, 2.0])).round(2))
    [0.   0.37 0.74 0.  ]
    """
    try:
        lo, hi = bounds
        real = _is_real(lo) and _is_real(hi)
    except (TypeError, ValueError):
        real = False
    if not real:
        raise ValueError(
            "adaptive: bounds must be a pair (lo, hi) of real numbers or arrays; got "
            f"{bounds!r:.80}."
        )
    try:
        np.broadcast_shapes(np.shape(lo), np.shape(hi))
    except ValueError:
        raise ValueError(
            f"adaptive: bounds of shapes {np.shape(lo)} and {np.shape(hi)} do not fit each other."
        ) from None
    if _is_concrete(lo) and _is_concrete(hi) and not np.all(np.asarray(lo) < np.asarray(hi)):
        raise ValueError(f"adaptive: bounds must have lo < hi everywhere; got {lo} and {hi}.")
    if not _is_real(confidence) or np.shape(confidence) != ():
        raise TypeError(f"adaptive: confidence must be a number like 0.95; got {confidence!r:.80}.")
    # In float32, as it is used: a confidence that rounds to 1 would leave no noise.
    if _is_concrete(confidence) and not 0 < np.float32(confidence) < 1:
        raise ValueError(
            f"adaptive: confidence must be inside (0, 1), like 0.95; got {confidence}."
        )

    def rule(argument):
        def of_leaf(path, leaf):
            if not is_inexact(leaf):
                return 0.0
            leaf = jnp.asarray(leaf)
            x = leaf.astype(wide_dtype(leaf.dtype))
            low = fit(lo, x, "adaptive: the lower bound", path)
            high = fit(hi, x, "adaptive: the upper bound", path)
            room = jnp.maximum(jnp.minimum(x - low, high - x), 0)
            return room / (math.sqrt(2) * erfinv(jnp.asarray(confidence, x.dtype)))

        return jax.tree_util.tree_map_with_path(of_leaf, argument)

    return rule


def by_path(predicate: Callable[[str], bool]) -> Rule:
    """Returns a selection for `where`: the leaves whose path satisfies `predicate`.

    Args:
      predicate: a function from a path such as "layer/kernel" to True (perturb) or False. The path
        of a leaf is `jax.tree_util.keystr(path, simple=True, separator="/")`. In the state of a
        Flax NNX model paths end in "/value": look for "kernel" in them.

    Returns:
      A function from an argument to a pytree of bools.

    Raises:
      TypeError: if `predicate` is not callable.

    >>> import smoothjax as sj
    >>> sj.by_path(lambda path: path.endswith("kernel"))({"layer": {"kernel": 1.0, "bias": 2.0}})
    {'layer': {'bias': False, 'kernel': True}}
    """
    check_callable(predicate, "by_path")

    def select(argument):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: bool(predicate(_path_string(path))), argument
        )

    return select


def additive(leaf: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `leaf + noise`: SmoothGrad's noise."""
    return leaf + noise


def multiplicative(leaf: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `leaf * (1 + noise)`: NoiseGrad's noise."""
    return leaf * (1 + noise)


def box_muller(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Returns independent standard normal numbers, on a CPU faster than `jax.random.normal` does.

    A choice for `sampler`, worth it where there are many weights and little to compute with each:
    `x_i = sqrt(-2 log u_i) sin(pi v_i)`, u uniform on (0, 1] and v on [-1/2, 1/2), of the two words
    of the threefry hash of key and i. Of 31 and 32 bits, they resolve the normal distribution finer
    and further (to 6.6) than the 23 bits of `jax.random.normal` in float32. What is won: no loop
    inside the hash, both of its words used, no branches of an inverse error function.

    Args:
      key: a typed PRNG key. Of an implementation other than threefry its first two words count.
      shape: the shape of the numbers, at most 2**32 in all.
      dtype: the dtype of the numbers, which are computed in float32.

    Returns:
      An array of that shape and dtype. Its first n numbers do not depend on how many there are.

    Cost: a hash, a logarithm, a root and a sine for each number, all elementwise, so that XLA makes
    one loop of them.

    Source: Box and Muller 1958, A note on the generation of random normal deviates; Salmon et al.
    2011, Parallel random numbers: as easy as 1, 2, 3.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.noise import box_muller
    >>> score = lambda params, x: jnp.sum(params * x**2)
    >>> explain = sj.smoothgrad(jax.grad(score, argnums=1), 0.01, sampler=box_muller)
    >>> jax.jit(explain)(jax.random.key(0), jnp.ones(2), jnp.array([1.0, 2.0])).round(1)
    Array([2., 4.], dtype=float32)
    """
    index = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    first, second = _threefry2x32(jax.random.key_data(key), index)
    u = ((first >> 1).astype(jnp.float32) + 0.5) * 2**-31
    v = jax.lax.bitcast_convert_type(second, jnp.int32).astype(jnp.float32) * 2**-32
    return (jnp.sqrt(-2 * _log(u)) * _sin(jnp.pi * v)).astype(dtype)


def _threefry2x32(key, index):
    """The two words that threefry makes of a key and (0, index), as `jax.random.split` does."""
    k = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = k[0], index + k[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << rotation) | (y >> (32 - rotation)))
        x = x + k[(group + 1) % 3]
        y = y + k[(group + 2) % 3] + (group + 1)
    return x, y


# jnp.log minds zero, infinity and NaN, and jnp.sin large angles, which costs several times as much.
_LOG1P_SERIES = (
    Chebyshev.interpolate(lambda f: np.log1p(f) / f, 7, (-1 / 3, 1 / 3))
    .convert(kind=Polynomial)
    .coef.tolist()
)
_TWO_THIRDS = np.float32(2 / 3).view(np.int32)


def _log(u):
    """The logarithm of normal positive float32, to 2e-7 of it: u = 2**e m with 2/3 <= m < 4/3."""
    bits = jax.lax.bitcast_convert_type(u, jnp.int32) - _TWO_THIRDS
    m = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) + _TWO_THIRDS, jnp.float32)
    f = m - 1
    log1p = 0.0
    for coefficient in reversed(_LOG1P_SERIES):
        log1p = coefficient + f * log1p
    return (bits >> 23).astype(jnp.float32) * math.log(2) + f * log1p


def _sin(t):
    """The sine of -pi/2 to pi/2 by its series, to 6e-8."""
    sine = 1.0
    for n in (10, 8, 6, 4, 2):
        sine = 1 - t * t * sine / (n * (n + 1))
    return t * sine


def check_has_inexact(argument: PyTree, name: str) -> None:
    """Raises if an argument has no floating-point array to perturb or to differentiate."""
    leaves = jax.tree.leaves(argument)
    if not any(map(is_inexact, leaves)):
        got = ", ".join(sorted(set(map(_kind, leaves)))) or "no leaves at all"
        raise TypeError(
            f"{name} needs floating-point arrays, but the argument holds {got}. Convert it, "
            "x.astype(jnp.float32), or choose another argument with argnum."
        )


def check_noise(name: str, sigma: Any, where: Any, sampler: Any) -> None:
    """Raises for settings of the noise that are wrong whatever the argument will be."""
    if isinstance(sigma, str) or sigma is None:
        raise TypeError(
            f"{name}: sigma must be a number, array, pytree or function; got {sigma!r}."
        )
    if not _is_function(sigma):
        for level in jax.tree.leaves(sigma):
            _check_not_negative(level, f"{name}: sigma")
    if where is not None and not _is_function(where):
        for selected in jax.tree.leaves(where):
            _check_bool(selected, name)
    check_callable(sampler, f"{name}: sampler")


def levels(name: str, argument: PyTree, sigma: Any, where: Any) -> list[jax.Array | None]:
    """Returns the noise level of each leaf of `argument`, None for a leaf to leave untouched.

    Each level broadcasts to its leaf, in the dtype of its noise.
    """
    check_has_inexact(argument, name)
    paths_leaves, treedef = jax.tree_util.tree_flatten_with_path(argument)
    selected = resolve(True if where is None else where, argument, f"{name}: where")
    for chosen in selected:
        _check_bool(chosen, name)
    selected = [c and is_inexact(leaf) for (_, leaf), c in zip(paths_leaves, selected, strict=True)]
    if not any(selected):
        raise ValueError(
            f"{name}: `where` selects no floating-point leaf of "
            f"{[_path_string(path) for path, _ in paths_leaves]!s:.200}."
        )
    # A rule sees 0 for what is left out, which might not fit it.
    seen = [leaf if c else 0 for (_, leaf), c in zip(paths_leaves, selected, strict=True)]
    sigmas = resolve(sigma, treedef.unflatten(seen), f"{name}: sigma")
    if _is_function(sigma):  # whose values nobody has seen yet
        for level in sigmas:
            _check_not_negative(level, f"{name}: sigma")

    def of_leaf(path, leaf, chosen, level):
        if not chosen:
            return None
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"{name}: {_where_is(path)} is complex, and only real leaves are perturbed. Split "
                "it into real and imaginary parts, or leave it out with `where`."
            )
        return fit(level, jnp.asarray(leaf), f"{name}: sigma", path)

    return [
        of_leaf(path, leaf, chosen, level)
        for (path, leaf), chosen, level in zip(paths_leaves, selected, sigmas, strict=True)
    ]


def perturb(
    key: jax.Array,
    argument: PyTree,
    sigmas: list[jax.Array | None],
    sampler: Callable[..., jax.Array],
    combine: Callable[[jax.Array, jax.Array], jax.Array],
) -> PyTree:
    """Returns `argument` with `combine(leaf, sigma * eps)` for each leaf that has a level.

    The leaf at position i among all leaves draws with `fold_in(key, i)`, so that selecting other
    leaves moves no leaf's noise. Noise is drawn and combined in at least float32, then cast back.
    """
    leaves, treedef = jax.tree.flatten(argument)
    levels = {i: sigma for i, sigma in enumerate(sigmas) if sigma is not None}
    chosen = {i: jnp.asarray(leaves[i]) for i in levels}
    # Of the largest leaf, selected or not, so that no leaf's noise depends on the selection.
    block = min(_MAX_BLOCK, max(leaf.size for leaf in leaves if is_inexact(leaf)))
    drawn, loops = {}, 0
    for dtype in sorted({wide_dtype(leaf.dtype) for leaf in chosen.values()}, key=str):
        sizes = {i: leaf.size for i, leaf in chosen.items() if wide_dtype(leaf.dtype) == dtype}
        rounds, some = _draw(key, sizes, block, dtype, sampler)
        drawn, loops = drawn | some, loops + rounds

    def noisy(sign, drawn):
        def one(leaf, sigma, eps):
            noise = sign * sigma * eps.reshape(leaf.shape)
            return combine(leaf.astype(eps.dtype), noise).astype(leaf.dtype)

        return {i: one(leaf, levels[i], drawn[i]) for i, leaf in chosen.items()}

    def in_a_branch(drawn):
        # The other branch is never taken; of the same formula, it has the same type and sharding.
        plus, minus = (functools.partial(noisy, sign) for sign in (1, -1))
        return jax.lax.cond(loops > 0, plus, minus, drawn)

    # On a CPU, XLA would fuse this into all loops over the pixels that a weight meets, and do it
    # anew for each: a fifth of the time of NoiseGrad on EfficientNet-Lite0. It fuses nothing into
    # or out of a branch; a barrier, which one would write, it drops before it fuses.
    found = jax.lax.platform_dependent(drawn, cpu=in_a_branch, default=functools.partial(noisy, 1))
    return treedef.unflatten([found.get(i, leaf) for i, leaf in enumerate(leaves)])


# How many numbers are drawn with one key at most, and with how many keys at once.
_MAX_BLOCK = 1024
_BLOCKS_AT_ONCE = 256


def _draw(key, sizes, block, dtype, sampler):
    """Returns how often a loop ran, and for each position of `sizes` that many draws.

    One loop over blocks draws for all leaves. XLA would compile a sampler for every leaf (measured
    for the 149 leaves of EfficientNet-Lite0: 30 s instead of 4 s), and fuse it into whatever uses
    the noise, such as a convolution, which then draws the same numbers many times over.
    """
    block = max(block, 1)
    blocks = [-(-size // block) for size in sizes.values()]
    positions = np.repeat(np.fromiter(sizes, np.uint32), blocks)
    numbers = np.concatenate([np.arange(n, dtype=np.uint32) for n in blocks])
    fold_in = jax.random.fold_in
    keys = jax.vmap(lambda i, number: fold_in(fold_in(key, i), number))(positions, numbers)

    def draw(key):
        eps = sampler(key, (block,), dtype)
        if not (_is_array(eps) and _is_real(eps)):
            raise TypeError(
                f"sampler(key, shape, dtype) must return an array of real numbers; got {eps!r:.80}."
            )
        if eps.shape != (block,):
            raise ValueError(
                f"sampler(key, shape, dtype) must return an array of the shape ({block},) that it "
                f"is asked for; got {eps.shape}."
            )
        return eps.astype(dtype)

    # At least two rounds, if there is more than one block: XLA makes no loop of one.
    num = len(keys)
    rounds = max(min(max(-(-num // _BLOCKS_AT_ONCE), 2), num), 1)
    at_once = -(-num // rounds)
    # The last block is drawn again where the rounds do not share the blocks evenly.
    rows = keys[np.minimum(np.arange(rounds * at_once), num - 1).reshape(rounds, at_once)]
    loops, drawn = jax.lax.scan(lambda i, row: (i + 1, jax.vmap(draw)(row)), 0, rows)
    drawn = jnp.split(drawn.reshape(-1, block)[:num], np.cumsum(blocks)[:-1])
    return loops, {
        i: eps.ravel()[:size] for (i, size), eps in zip(sizes.items(), drawn, strict=True)
    }


def _is_function(rule):
    # A module can be callable, and is still a pytree of values.
    return callable(rule) and jax.tree_util.all_leaves([rule])


def resolve(rule: Any, argument: PyTree, what: str) -> list[Any]:
    """Returns the values of a rule, one for each leaf of the argument."""
    values = rule(argument) if _is_function(rule) else rule
    flat = []
    try:
        jax.tree.map(
            lambda v, tree: flat.extend([v] * len(jax.tree.leaves(tree))), values, argument
        )
    except ValueError as error:
        raise ValueError(
            f"{what} must be one value or a pytree prefix of the argument, whose structure is "
            f"{jax.tree.structure(argument)!s:.200}; {error}"
        ) from None
    return flat


def fit(value: Any, leaf: jax.Array, what: str, path: tuple = ()) -> jax.Array:
    """Returns `value` in a leaf's wide dtype and with as many axes, to broadcast to it."""
    if not _is_real(value):
        raise TypeError(f"{what} must be a real number or array; got {value!r:.80}.")
    try:
        shape = np.broadcast_shapes(np.shape(value), leaf.shape)
    except ValueError:
        shape = None
    if shape != leaf.shape:
        raise ValueError(
            f"{what} of shape {np.shape(value)} does not broadcast to {_where_is(path)} of shape "
            f"{leaf.shape}."
        )
    axes = (1,) * (len(leaf.shape) - np.ndim(value)) + np.shape(value)
    return jnp.asarray(value, wide_dtype(leaf.dtype)).reshape(axes)


def _is_array(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def is_inexact(leaf: Any) -> bool:
    """Returns whether a leaf is an array of floating-point or complex numbers."""
    return _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_concrete(value):
    return not isinstance(value, Tracer)


def _kind(leaf):
    return (
        f"an array of dtype {leaf.dtype}" if _is_array(leaf) else f"a Python {type(leaf).__name__}"
    )


def _path_string(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _where_is(path):
    return f"the leaf {_path_string(path)!r}" if path else "the argument"


def _check_bool(value, name):
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"{name}: `where` holds bools, True to perturb a whole leaf; got {value!r:.80}. To "
            "spare some elements of a leaf, pass an array with zeros as sigma."
        )


def _is_real(value):
    """Whether a value is a real number, or a NumPy or JAX array of those; bools are none."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or _is_array(value)):
        return False
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    dtype = jnp.result_type(value) if _is_array(value) else np.dtype(float)
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _check_not_negative(value, what):
    if not _is_real(value):
        raise TypeError(f"{what} must be a real number or array; got {value!r:.80}.")
    if _is_concrete(value) and np.any(np.asarray(value) < 0):
        raise ValueError(f"{what} must not be negative; got {value!s:.80}.")
