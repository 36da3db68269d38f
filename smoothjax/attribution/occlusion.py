"""Occlusion: how much a score drops when a patch slides over the input."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax import reductions
from smoothjax._axes import IMAGE, Default, check_axes
from smoothjax._checks import check_per_axis, require
from smoothjax._loop import accumulate
from smoothjax._transform import transform
from smoothjax._trees import wide_dtype
from smoothjax._typing import Axes, Explainer, PerAxis, Score
from smoothjax.attribution._masks import masking


@transform
def occlusion(
    score: Score,
    patch: PerAxis = Default(32),
    stride: PerAxis | None = None,
    baseline: Any = 0.0,
    *,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int | None = None,
) -> Explainer:
    """Returns an explainer of how much the score drops when a patch slides over the input.

    The attribution of a position is the mean of `score(x) - score(x with the patch hidden)` over
    all patches that cover it. Patches start every `stride` positions, and the last ends where the
    axis does, so that every position is covered.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets the same key for every patch.
      patch: the length of a patch in positions, one for all axes or one for each. The default is 32
        along axes of 224 positions and more, a seventh of a shorter axis, and 1 if `axes` names a
        single axis, which may be that of a table: for long signals type a number.
      stride: the step from patch to patch in positions, at most the length of a patch; by default
        half of it.
      baseline: what hides: a number or array that broadcasts to each leaf of x, a pytree prefix of
        those, or a function of x that returns one, in the units of x: 0 is grey for a normalised
        photo.
      axes: the axes of x that patches span: (0, 1) for (H, W, channels), (0,) for signals and
        tabular data.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Of a pytree, one
        floating-point leaf after the other is covered with patches.
      chunk_size: how many patches are evaluated at once, as in `smoothgrad`; memory only.

    Returns:
      An explainer `explain(params, x, *rest)`, stochastic if the score is, in the units of the
      score; shaped like x with length 1 along all axes but `axes`; float0 for integer leaves.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for an axis
        that x lacks, a patch longer than its axis or over all of x, a baseline that does not fit,
        an argument that is missing or has no floating-point leaf, or a score that is no real
        scalar.

    Cost: one evaluation of the score, and one for each patch: about `size / stride` along each
    axis. The memory of `chunk_size` of them.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901.

    >>> explain = sj.occlusion(lambda w, x: jnp.sum(w * x), 2, 1, axes=(0,))
    >>> jax.jit(explain)(jnp.array([1.0, 0.0, 4.0]), jnp.ones(3))  # two patches: drops of 1 and 4
    Array([1. , 2.5, 4. ], dtype=float32)
    """
    axes = check_axes(axes)
    masked = masking(score, baseline, axes, argnum)
    patches_of = _patches(patch, stride, axes)
    mean_over = accumulate(reductions.mean(), chunk_size)

    def explain(key, *args, **kwargs):
        maps, query, restore = masked(args, kwargs)
        patches, starts = zip(*map(patches_of, maps), strict=True)
        counts = [math.prod(map(len, along)) for along in starts]
        firsts = [sum(counts[:place]) for place in range(len(counts))]
        sizes = [length for length in maps[0].shape if length > 1]
        require(
            sum(counts) > 1 or not sizes,
            f"a patch of {tuple(patches[0])} positions covers all of x, whose map, of shape "
            f"{maps[0].shape}, would be constant. Type a smaller one, such as "
            f"{max(1, min(sizes, default=1) // 7)}.",
        )
        visible = [jnp.ones(one.shape) for one in maps]
        jax.eval_shape(query, key, visible)  # an error in the score comes before anything runs
        whole = query(key, visible)
        wide = wide_dtype(whole.dtype)

        def occlude(i):
            hidden = [
                _patch(one, along, patch, i - first, count)
                for one, along, patch, first, count in zip(
                    maps, starts, patches, firsts, counts, strict=True
                )
            ]
            drop = whole.astype(wide) - query(key, [1 - mask for mask in hidden]).astype(wide)
            # Not a product: a NaN behind one patch would be everywhere.
            return [jnp.where(mask == 1, drop, 0) for mask in hidden]

        means = mean_over(occlude, sum(counts), args[argnum])
        # From means over all patches to means over those that cover a position.
        covers = map(_cover, maps, starts, patches)
        shares = [jnp.asarray(cover / sum(counts), wide) for cover in covers]
        return restore([m / s for m, s in zip(means, shares, strict=True)], whole.dtype)

    return explain


def _patches(patch, stride, axes):
    """Returns a function of a map to the lengths of its patches and where they start, by axis."""
    stride = None if stride is None else check_per_axis(stride, axes, "stride")
    longest = check_per_axis(patch, axes, "patch")

    def checked(lengths):
        steps = [max(1, length // 2) for length in lengths] if stride is None else stride
        require(
            all(step <= length for step, length in zip(steps, lengths, strict=True)),
            "with a stride above the patch, no patch would cover some positions; got stride "
            f"{stride} and patch {lengths}.",
        )
        return lengths, steps

    if not isinstance(patch, Default):
        checked(longest)

    def patches_of(one):
        sizes = [one.shape[axis] for axis in one.axes]
        lengths = longest
        if isinstance(patch, Default):
            shortened = (min(patch, max(1, size // 7)) for size in sizes)
            lengths = (1,) if len(axes) == 1 else tuple(shortened)
        lengths, steps = checked(lengths)

        def along(size, length, step):
            require(
                length <= size,
                f"a patch of {lengths} positions along axes {one.axes} does not fit into x, whose "
                f"map has shape {one.shape}.",
            )
            count = 1 + math.ceil((size - length) / step)
            return np.minimum(step * np.arange(count), size - length)

        return lengths, [along(*of_axis) for of_axis in zip(sizes, lengths, steps, strict=True)]

    return patches_of


def _patch(one, starts, patch, i, count):
    """The mask that is 1 inside patch i and 0 outside; nowhere 1 if i is not one of `count`."""
    inside = jnp.broadcast_to((0 <= i) & (i < count), one.shape)
    indices = jnp.unravel_index(i, tuple(map(len, starts)))
    for axis, along, length, index in zip(one.axes, starts, patch, indices, strict=True):
        start = jnp.asarray(along, jnp.int32)[index]
        past = jax.lax.broadcasted_iota(jnp.int32, one.shape, axis) - start
        inside &= (0 <= past) & (past < length)
    return inside.astype(jnp.float32)


def _cover(one, starts, patch):
    """How many patches cover each position."""
    cover = np.ones(one.shape)
    for axis, along, length in zip(one.axes, starts, patch, strict=True):
        past = np.arange(one.shape[axis])[:, None] - along
        count = np.sum((0 <= past) & (past < length), axis=1)
        cover *= np.expand_dims(count, [other for other in range(cover.ndim) if other != axis])
    return cover
