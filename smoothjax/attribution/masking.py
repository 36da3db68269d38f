"""Masking methods: what a score is when parts of its input are hidden.

They only query the score, `score(m * x + (1 - m) * baseline)` for masks `m`, so it need not be
differentiable. A mask has one value for each position along `axes`, shared by all channels, and so
has the map: it is shaped like x with length 1 along the other axes, (H, W, 1) for a photo of shape
(H, W, 3). That broadcasts to x, and `smoothjax.pool` drops the axis as it does for any method.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from smoothjax import reductions, sampling
from smoothjax.attribution.gradient import baseline_like
from smoothjax.noise import check_has_inexact, is_inexact
from smoothjax.reductions import Reduction
from smoothjax.transform import (
    Explainer,
    argument,
    axes_of,
    check_argnum,
    check_at_least,
    check_axes,
    check_callable,
    check_number,
    is_stochastic,
    keyed,
    named,
    replace,
    wide_dtype,
)

PyTree = Any
PerAxis = int | Sequence[int]


def occlusion(
    score: Explainer,
    patch: PerAxis = 32,
    stride: PerAxis = 16,
    baseline: Any = 0.0,
    *,
    axes: Sequence[int] = (0, 1),
    argnum: int = 1,
    chunk_size: int = 10,
) -> Explainer:
    """Returns an explainer of how much the score drops when a patch slides over the input.

    The attribution of a position is the mean of `score(x) - score(x with the patch hidden)` over
    all patches that cover it. Patches start every `stride` positions, and the last ends where the
    axis does, so that every position is covered.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets the same key for every patch.
      patch: the length of a patch in positions, one for all axes or one for each. The default suits
        photos of about 224 pixels; 1 hides every feature of tabular data by itself.
      stride: the step from patch to patch in positions, at most the length of a patch.
      baseline: what hides: a number or array that broadcasts to each leaf of x, a pytree prefix of
        those, or a function of x that returns one, in the units of x: 0 is grey for a normalised
        photo.
      axes: the axes of x that patches span: (0, 1) for (H, W, channels), (0,) for signals and
        tabular data.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Of a pytree, one
        floating-point leaf after the other is covered with patches.
      chunk_size: how many patches are evaluated at once; memory only.

    Returns:
      An explainer `explain(params, x, *rest)`, stochastic if the score is, in the units of the
      score; shaped like x with length 1 along all axes but `axes`; float0 for integer leaves.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for an axis
        that x lacks, a patch longer than its axis, a baseline that does not fit, an argument that
        is missing or has no floating-point leaf, or a score that is no real scalar.

    Cost: one evaluation of the score, and one for each patch: about `size / stride` along each
    axis. The memory of `chunk_size` of them.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.attribution.occlusion(lambda w, x: jnp.sum(w * x), 2, 1, axes=(0,))
    >>> jax.jit(explain)(jnp.array([1.0, 0.0, 4.0]), jnp.ones(3))  # two patches: drops of 1 and 4
    Array([1. , 2.5, 4. ], dtype=float32)
    """
    name = "occlusion"
    masking = _masking(name, score, baseline, axes, argnum)
    patch = check_per_axis(patch, axes, f"{name}: patch")
    stride = check_per_axis(stride, axes, f"{name}: stride")
    if any(step > length for step, length in zip(stride, patch, strict=True)):
        raise ValueError(
            f"{name}: with a stride above the patch, no patch would cover some positions; got "
            f"stride {stride} and patch {patch}."
        )
    sampling.check_loop(name, 1, reductions.mean(), chunk_size)

    @named(name, score, takes_key=is_stochastic(score))
    def explain(key, *args, **kwargs):
        maps, query, restore = masking(args, kwargs)
        starts = [_patch_starts(one, patch, stride, name) for one in maps]
        counts = [math.prod(map(len, along)) for along in starts]
        firsts = [sum(counts[:place]) for place in range(len(counts))]
        visible = [jnp.ones(one.shape) for one in maps]
        jax.eval_shape(query, key, visible)  # an error in the score comes before anything runs
        whole = query(key, visible)

        def occlude(i):
            hidden = [
                _patch(one, along, patch, i - first, count)
                for one, along, first, count in zip(maps, starts, firsts, counts, strict=True)
            ]
            drop = whole - query(key, [1 - mask for mask in hidden])
            # Not a product: a NaN behind one patch would be everywhere.
            return [jnp.where(mask == 1, drop, 0) for mask in hidden]

        means = sampling.accumulate(
            occlude, name=name, num=sum(counts), reduction=reductions.mean(), chunk_size=chunk_size
        )
        # From means over all patches to means over those that cover a position.
        shares = [
            _cover(one, along, patch) / sum(counts) for one, along in zip(maps, starts, strict=True)
        ]
        return restore([m / jnp.asarray(s, m.dtype) for m, s in zip(means, shares, strict=True)])

    return explain


def rise(
    score: Explainer,
    baseline: Any = 0.0,
    *,
    num_samples: int = 4000,
    grid: PerAxis | None = 7,
    probability: float = 0.5,
    axes: Sequence[int] = (0, 1),
    argnum: int = 1,
    reduction: Reduction = reductions.mean(),
    chunk_size: int = 10,
    tolerance: Any = None,
    sharding: NamedSharding | None = None,
) -> Explainer:
    """Returns an explainer of the mean score over random masks, given that a position is visible.

    `mean_i score(m_i * x + (1 - m_i) * baseline) * m_i / probability`. A mask is a coarse grid of
    cells that are each 1 with the given probability and 0 otherwise, stretched bilinearly to one
    cell more than the input has, and cropped at a random place.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets a key of its own for every mask. The paper explains the class's probability.
      baseline: what hides, in the grammar of `occlusion`.
      num_samples: the number of masks.
      grid: how many cells along each axis, one number for all axes or one for each; None makes
        every position a cell of its own, which is what tabular data needs.
      probability: that a cell is visible, above 0 and below 1.
      axes: the axes of x that a mask spans, as in `occlusion`.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Each floating-point
        leaf of a pytree has masks of its own, all at once.
      reduction: what becomes of the draws, from `smoothjax.reductions`.
      chunk_size: how many masks are evaluated at once; memory only. (With `rbg` keys other masks
        are drawn at another chunk size, as in every transform.)
      tolerance: if given, draw no more masks once the relative error of the map is below it, as in
        `smoothgrad`. The map counts with its offset, about the mean score behind masks.
      sharding: if given, how the masks of a chunk are spread over devices, as in `smoothgrad`.

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)`, in the units of the score (not of
      its change: a constant score gives a constant map); shaped like x with length 1 along all
      axes but `axes`; float0 for integer leaves.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for more
        cells than positions along an axis, and as `occlusion` does.

    Cost: `num_samples` evaluations of the score, the memory of `chunk_size` of them.

    Source: Petsiuk et al. 2018, arXiv 1806.07421: 7 cells along each axis, probability 0.5.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.attribution.rise(lambda w, x: jnp.sum(w * x), axes=(0,), grid=None)
    >>> explain = jax.jit(explain)  # for a linear score: (w x + sum of w x) / 2
    >>> explain(jax.random.key(0), jnp.array([0.0, 0.0, 4.0]), jnp.ones(3)).round()
    Array([2., 2., 4.], dtype=float32)
    """
    name = "rise"
    masking = _masking(name, score, baseline, axes, argnum)
    grid = check_grid(grid, axes, name)
    probability = check_probability(probability, f"{name}: probability")
    sampling.check_loop(name, num_samples, reduction, chunk_size, tolerance, sharding)

    @named(name, score, takes_key=True)
    def explain(key, *args, **kwargs):
        maps, query, restore = masking(args, kwargs)
        grids = [_grid_of(one, grid, name) for one in maps]

        def draw(draw_key):
            mask_key, inner_key = jax.random.split(draw_key)
            masks = [
                _random_mask(jax.random.fold_in(mask_key, one.place), one, cells, probability)
                for one, cells in zip(maps, grids, strict=True)
            ]
            value = query(inner_key, masks)
            return restore([value / probability * mask.astype(value.dtype) for mask in masks])

        return sampling.monte_carlo(
            draw,
            key,
            name=name,
            num_samples=num_samples,
            reduction=reduction,
            chunk_size=chunk_size,
            tolerance=tolerance,
            sharding=sharding,
        )

    return explain


def sobol(
    score: Explainer,
    baseline: Any = 0.0,
    *,
    num_designs: int = 32,
    grid: PerAxis | None = 8,
    axes: Sequence[int] = (0, 1),
    argnum: int = 1,
    chunk_size: int = 10,
) -> Explainer:
    """Returns an explainer of each cell's total-order Sobol index: its share of the variance.

    Masks have one value for each cell of a grid, uniform on [0, 1] and independent. The total-order
    index of cell i is the part of the score's variance that it causes, alone or with others, by
    Jansen's estimator: `mean_j (score(A_j) - score(A_j with cell i from B_j))^2 / (2 variance)`.
    Rows are quasi-random: a cell's values in A and B are the points of a lattice in the unit
    square, shifted and jittered at random, in an order of the cell's own.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets the same key for every mask.
      baseline: what hides, in the grammar of `occlusion`.
      num_designs: the number of rows of A and of B, 2 or more. The index of a cell is a ratio of
        two estimates: of a few rows it has no useful mean.
      grid: how many cells along each axis, as in `rise`. Cells are as equal as whole positions
        allow, and all positions of a cell get its index.
      axes: the axes of x that the grid spans, as in `occlusion`.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Each floating-point
        leaf of a pytree has a grid, and indices are shares of their common variance.
      chunk_size: how many masks are evaluated at once; memory only.

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)` of indices without unit: 0 for a cell
      that changes nothing, 1 for a cell that is part of all variance; up to the error of the
      estimate they sum to 1 or more. Shaped like x with length 1 along all axes but `axes`; float0
      for integer leaves.

    Raises:
      TypeError, ValueError: as `rise` does.

    Cost: `num_designs * (cells + 2)` evaluations of the score, by default 2,112; the memory of
    `chunk_size` of them, a number for each, and the designs, 4 `num_designs` numbers for each cell.

    Source: Fel et al. 2021, arXiv 2111.04138, with the grid and number of designs of the authors'
    library Xplique. They take Sobol' sequences, of which 32 points in 128 dimensions gain little:
    root-mean-square errors of an index with lattices, Latin hypercubes and scrambled Sobol'
    sequences were 0.022, 0.025 and 0.028 on five random networks, and 0.017, 0.021 and 0.019 on a
    logit of EfficientNet-Lite0 (10 runs on one photo of 96 pixels). On its probability they were
    0.048, 0.055 and 0.044, so there, and in three dimensions, Sobol' sequences are better.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.attribution.sobol(
    ...     lambda w, x: jnp.sum(w * x), axes=(0,), grid=None, num_designs=1000
    ... )
    >>> explain = jax.jit(explain)  # for a linear score: the shares of w^2
    >>> explain(jax.random.key(0), jnp.array([0.0, 1.0, 2.0]), jnp.ones(3)).round(1)
    Array([0. , 0.2, 0.8], dtype=float32)
    """
    name = "sobol"
    masking = _masking(name, score, baseline, axes, argnum)
    grid = check_grid(grid, axes, name)
    check_at_least(num_designs, 2, f"{name}: num_designs")
    sampling.check_loop(name, num_designs, reductions.stack(), chunk_size, what="num_designs")

    @named(name, score, takes_key=True)
    def explain(key, *args, **kwargs):
        maps, query, restore = masking(args, kwargs)
        cells, num_cells = _cells(maps, grid, name)
        design_key, inner_key = jax.random.split(key)
        first, second = _designs(design_key, num_designs, num_cells)

        def evaluate(i):
            row, cell = i // (num_cells + 2), i % (num_cells + 2)
            # Beyond the cells come the plain rows: of A first, then of B.
            swap = jnp.arange(num_cells, dtype=jnp.int32) == cell
            from_second = swap | (cell == num_cells + 1)
            design = jnp.where(from_second, second[row], first[row])
            return query(inner_key, [design[cell_of] for cell_of in cells])

        scores = sampling.accumulate(
            evaluate,
            name=name,
            num=num_designs * (num_cells + 2),
            reduction=reductions.stack(),
            chunk_size=chunk_size,
        ).reshape(num_designs, num_cells + 2)
        swapped, plain = scores[:, :num_cells], scores[:, num_cells:]
        variance = jnp.var(plain, ddof=1)
        change = jnp.mean((plain[:, :1] - swapped) ** 2, axis=0) / 2
        # Nothing changes where nothing varies, and there the gradient must not see 0 / 0.
        indices = change / jnp.where(change == 0, 1, variance)
        return restore([indices[cell_of] for cell_of in cells])

    return explain


def hsic(
    score: Explainer,
    baseline: Any = 0.0,
    *,
    num_samples: int = 500,
    grid: PerAxis | None = 8,
    axes: Sequence[int] = (0, 1),
    argnum: int = 1,
    chunk_size: int = 10,
) -> Explainer:
    """Returns an explainer of how much the score depends on whether a cell is hidden, by HSIC.

    Each cell of a grid is visible or hidden with equal probability, independently. Its attribution
    is the Hilbert-Schmidt independence criterion between that and the score, with the kernels
    `1[m = m']` and `exp(-(y - y')^2 / (2 width^2))`, the width being the median distance between
    scores that differ. The estimator is the unbiased one: zero on average for a cell that the score
    does not depend on, so it can be negative.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar; or a stochastic one, which
        then gets the same key for every mask.
      baseline: what hides, in the grammar of `occlusion`.
      num_samples: the number of masks, at least 4.
      grid: how many cells along each axis, as in `sobol`.
      axes: the axes of x that the grid spans, as in `occlusion`.
      argnum: the argument to explain, counted from 0 after the key: 1 is x. Each floating-point
        leaf of a pytree has a grid.
      chunk_size: how many masks are evaluated at once; memory only. (With `rbg` keys other masks
        are drawn at another chunk size, as in `rise`.)

    Returns:
      A stochastic explainer `explain(key, params, x, *rest)` of numbers without unit that do not
      change with the scale or offset of the score: 0 for independence, more for dependence. Shaped
      like x with length 1 along all axes but `axes`; float0 for integer leaves.

    Raises:
      TypeError, ValueError: as `rise` does.

    Cost: `num_samples` evaluations of the score, the memory of `chunk_size` of them, and of a few
    arrays of `num_samples**2` numbers: 1 MB each for 500 masks, 400 MB for 10,000.

    Source: Novello et al. 2022, arXiv 2206.06219, with the grid and number of masks of the authors'
    library Xplique; the unbiased estimator is that of Song et al. 2012, JMLR 13. It needs masks
    that are independent of one another: the paper's, Latin hypercubes rounded to 0 and 1, hide each
    cell in exactly half of them. Xplique's width is the median score, which an offset of the score
    would change, and its estimator is biased.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> explain = sj.attribution.hsic(lambda w, x: jnp.sum(w * x), axes=(0,), grid=None)
    >>> attribution = jax.jit(explain)(jax.random.key(0), jnp.array([0.0, 0.0, 4.0]), jnp.ones(3))
    >>> print(jnp.abs(attribution).round(1))
    [0.  0.  0.1]
    """
    name = "hsic"
    masking = _masking(name, score, baseline, axes, argnum)
    grid = check_grid(grid, axes, name)
    sampling.check_loop(name, num_samples, reductions.stack(), chunk_size)
    check_at_least(num_samples, 4, f"{name}: num_samples")

    @named(name, score, takes_key=True)
    def explain(key, *args, **kwargs):
        maps, query, restore = masking(args, kwargs)
        cells, num_cells = _cells(maps, grid, name)
        design_key, inner_key = jax.random.split(key)

        def evaluate(i):
            half = jnp.float32(0.5)
            visible = jax.random.bernoulli(jax.random.fold_in(design_key, i), half, (num_cells,))
            return visible, query(inner_key, [visible[cell_of] for cell_of in cells])

        visible, scores = sampling.accumulate(
            evaluate,
            name=name,
            num=num_samples,
            reduction=reductions.stack(),
            chunk_size=chunk_size,
        )
        dependence = _hsic(visible, scores)
        return restore([dependence[cell_of] for cell_of in cells])

    return explain


class _Map(NamedTuple):
    """The map of one leaf of x.

    Attributes:
      shape: that of the leaf, with 1 along all axes but `axes`.
      axes: the axes that masks span, counted from 0.
      place: the position of the leaf among all leaves of x.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    place: int


def _masking(name, score, baseline, axes, argnum):
    """Checks what all methods take, and returns what they do to the arguments of one call.

    That is a triple: the `_Map` of each floating-point leaf of x, in a list; `query(key, masks)`,
    the score of x behind a list of masks, each shaped like its map; and `restore(values)`, which
    makes a pytree like x of a list of maps.
    """
    check_callable(score, name)
    axes = check_axes(axes, name)
    argnum = check_argnum(argnum, name)
    inner = keyed(score)

    def masking(args, kwargs):
        x = argument(args, argnum, name)
        check_has_inexact(x, name)
        leaves, treedef = jax.tree.flatten(x)
        leaves = [jnp.asarray(leaf) if is_inexact(leaf) else leaf for leaf in leaves]
        hiding = jax.tree.leaves(baseline_like(baseline, x, name))
        maps = [_map_of(leaf, i, axes, name) for i, leaf in enumerate(leaves) if is_inexact(leaf)]

        def query(key, masks):
            mixed = list(leaves)
            for one, mask in zip(maps, masks, strict=True):
                mixed[one.place] = _mix(mask, leaves[one.place], hiding[one.place])
            value = inner(key, *replace(args, argnum, treedef.unflatten(mixed)), **kwargs)
            return check_scalar(value, name)

        def restore(values):
            tree = [np.zeros(np.shape(leaf), jax.dtypes.float0) for leaf in leaves]
            for one, value in zip(maps, values, strict=True):
                tree[one.place] = value.astype(jnp.finfo(leaves[one.place].dtype).dtype)
            return treedef.unflatten(tree)

        return maps, query, restore

    return masking


def _map_of(leaf, place, axes, name):
    shape = np.shape(leaf)
    positive = axes_of(shape, axes, name)
    spanned = tuple(size if axis in positive else 1 for axis, size in enumerate(shape))
    return _Map(spanned, positive, place)


def _mix(mask, leaf, hiding):
    wide = wide_dtype(leaf.dtype)
    mask, shown, hiding = (jnp.asarray(a).astype(wide) for a in (mask, leaf, hiding))
    mixed = mask * shown + (1 - mask) * hiding
    # What is infinite times 0 would be NaN.
    mixed = jnp.where(mask == 1, shown, jnp.where(mask == 0, hiding, mixed))
    return mixed.astype(leaf.dtype)


def _patch_starts(one, patch, stride, name):
    """Where patches start along each axis."""

    def along(size, length, step):
        if length > size:
            raise ValueError(
                f"{name}: a patch of {patch} positions along axes {one.axes} does not fit into x, "
                f"whose map has shape {one.shape}."
            )
        count = 1 + math.ceil((size - length) / step)
        return np.minimum(step * np.arange(count), size - length)

    sizes = [one.shape[axis] for axis in one.axes]
    return [along(*settings) for settings in zip(sizes, patch, stride, strict=True)]


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


def _random_mask(key, one, grid, probability):
    """A mask of RISE."""
    cells_key, shift_key = jax.random.split(key)
    coarse = list(one.shape)
    for axis, cells in zip(one.axes, grid, strict=True):
        coarse[axis] = cells
    visible = jax.random.bernoulli(cells_key, jnp.float32(probability), coarse)
    mask = visible.astype(jnp.float32)
    shift_keys = jax.random.split(shift_key, len(one.axes))
    for axis, cells, key in zip(one.axes, grid, shift_keys, strict=True):
        mask = _stretch(key, mask, axis, one.shape[axis], cells)
    return mask


def _stretch(key, mask, axis, size, cells):
    """Enlarges an axis of `cells` to `cells + 1` times their size, and crops it to `size`."""
    if cells == size:  # every position is a cell
        return mask
    cell_size = math.ceil(size / cells)
    shift = jax.random.randint(key, (), 0, cell_size, jnp.int32)
    places = jnp.arange(size, dtype=mask.dtype) + shift.astype(mask.dtype) + 0.5
    centres = jnp.clip(places * (cells / ((cells + 1) * cell_size)) - 0.5, 0, cells - 1)
    distances = jnp.abs(centres[:, None] - jnp.arange(cells, dtype=mask.dtype)[None])
    weights = jnp.maximum(1 - distances, 0)
    stretched = jnp.tensordot(weights, mask, (1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(stretched, 0, axis)


def _cells(maps, grid, name):
    """The number of each position's cell, an array for each map, and how many cells there are."""
    all_numbers, total = [], 0
    for one in maps:
        number = np.zeros(one.shape, np.int32)
        grid_of_map = _grid_of(one, grid, name)
        for axis, cells in zip(one.axes, grid_of_map, strict=True):
            size = one.shape[axis]
            along = (np.arange(size) * cells // size).astype(np.int32)  # the product is large
            others = [other for other in range(len(one.shape)) if other != axis]
            number = number * cells + np.expand_dims(along, others)
        all_numbers.append(number + total)
        total += math.prod(grid_of_map)
    return all_numbers, total


def _designs(key, num, cells):
    """The designs A and B, (2, num, cells): for each cell a shuffled lattice in the unit square."""
    order_key, shift_key, place_key = jax.random.split(key, 3)
    order = jnp.argsort(jax.random.uniform(order_key, (num, cells), jnp.float32), axis=0)
    lattice = jnp.asarray(np.arange(num) * _near_golden(num) % num, jnp.int32)
    # Shifted at random, so that on average A and B of a cell are independent.
    shift = jax.random.randint(shift_key, (1, cells), 0, num, jnp.int32)
    intervals = jnp.stack([order.astype(jnp.int32), (lattice[order] + shift) % num])
    place = jax.random.uniform(place_key, intervals.shape, jnp.float32)
    return (intervals.astype(place.dtype) + place) / num


def _near_golden(num):
    """The generator of a lattice: the number prime to `num` that is nearest to its golden ratio."""
    generators = [one for one in range(1, num + 1) if math.gcd(one, num) == 1]
    return min(generators, key=lambda one: abs(one - num * (math.sqrt(5) - 1) / 2))


def _hsic(visible, scores):
    """The unbiased HSIC of each column of `visible`, (num, cells), with the scores, (num,)."""
    num = len(scores)
    distances = jnp.abs(scores[:, None] - scores[None])
    width = jnp.nanmedian(jnp.where(distances > 0, distances, jnp.nan))
    # Without two scores that differ there is no width, and the distances are all 0.
    kernel = jnp.exp(-((distances / jnp.where(jnp.isnan(width), 1, width)) ** 2) / 2)

    off_diagonal = 1 - jnp.eye(num, dtype=kernel.dtype)
    kernel = kernel * off_diagonal
    rows = jnp.sum(kernel, axis=0) / (num - 2)
    overall = jnp.sum(rows) / (num - 1)
    centred = (kernel - rows[:, None] - rows[None] + overall) * off_diagonal
    # 1[m = m'] is (1 + s s') / 2 with signs s, and what is centred cancels the constant.
    signs = jnp.where(visible, 1, -1).astype(kernel.dtype)
    products = jnp.matmul(centred, signs, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(signs * products, axis=0) / (2 * num * (num - 3))


def check_per_axis(values: PerAxis, axes: Sequence[int], what: str) -> tuple[int, ...]:
    """Returns a positive integer for each axis, or raises."""
    num_axes = len(tuple(axes))
    values = tuple(values) if isinstance(values, Sequence) else (values,) * num_axes
    if len(values) != num_axes:
        raise ValueError(
            f"{what} must be one number or one for each of axes {tuple(axes)}; got {values}."
        )
    return tuple(check_at_least(value, 1, what) for value in values)


def check_grid(grid: PerAxis | None, axes: Sequence[int], name: str) -> tuple[int, ...] | None:
    """Returns the number of cells along each axis, or None, or raises."""
    return None if grid is None else check_per_axis(grid, axes, f"{name}: grid")


def _grid_of(one, grid, name):
    """How many cells a map has along each axis."""
    sizes = tuple(one.shape[axis] for axis in one.axes)
    if grid is None:
        return sizes
    if any(cells > size for cells, size in zip(grid, sizes, strict=True)):
        raise ValueError(
            f"{name}: a grid of {grid} cells along axes {one.axes} is finer than x, whose map has "
            f"shape {one.shape}. Type grid=None to make every position a cell."
        )
    return grid


def check_probability(value: Any, what: str) -> float:
    """Returns a number above 0 and below 1 as a float, or raises."""
    number = check_number(value, what)
    if not 0 < number < 1:
        raise ValueError(f"{what} must be inside (0, 1); got {value}.")
    return number


def check_scalar(value: Any, name: str) -> jax.Array:
    """Returns a score in at least float32, or raises."""
    value = jnp.asarray(value)
    if value.shape != () or jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} explains a score that is a real scalar for one example; got an array of shape "
            f"{value.shape} and dtype {value.dtype}. Pick one output, such as a class's logit."
        )
    return value.astype(wide_dtype(value.dtype))
