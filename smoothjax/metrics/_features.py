"""What metrics of faithfulness share: the features of an attribution, hidden or in their order.

A feature is an entry of the attribution, and stands for all entries of x that it broadcasts to: of
an attribution of shape (H, W), a pixel with all its channels. Signs count: the most important
feature has the greatest value, not the greatest magnitude, and nothing here pools channels or takes
absolute values.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax import reductions
from smoothjax._axes import check_axes
from smoothjax._checks import check_scalar, require
from smoothjax._loop import accumulate
from smoothjax._trees import is_inexact
from smoothjax._typing import Score
from smoothjax.attribution.baselines import blur
from smoothjax.metrics._arguments import at_attribution, like_input
from smoothjax.metrics._ranking import order

Query = Callable[[Any, jax.Array], jax.Array]


def judging(
    score: Score, argnum: Any, axes: Any
) -> Callable[[tuple, dict], tuple[jax.Array, jax.Array, Query]]:
    """Returns `judged(args, kwargs) -> x, attribution, query`, for the arguments of one call.

    The attribution has as many axes as x, and `query(key, changed)` is the score of a changed x.
    """
    at = at_attribution(score, argnum)
    axes = check_axes(axes)

    def judged(args, kwargs):
        x, attribution, score_at = at(args, kwargs)
        attribution = like_input(attribution, x, axes)
        require(
            is_inexact(x),
            f"x is changed, so it must be a floating-point array; got {x!r:.80}. Convert it, "
            "x.astype(jnp.float32), or choose another argument with argnum.",
            TypeError,
        )

        def query(key, changed):
            return check_scalar(score_at(key, changed))

        return jnp.asarray(x), attribution, query

    return judged


def features(
    attribution: jax.Array, cells: np.ndarray | None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Returns the importance of each feature, and what spreads an array of features over x.

    `cells` holds the number of each position's cell, and None makes each entry a feature.
    """
    if cells is None:
        return attribution.ravel(), lambda values: values.reshape(attribution.shape)
    shape = np.broadcast_shapes(attribution.shape, cells.shape)
    entries, numbers = jnp.broadcast_to(attribution, shape), np.broadcast_to(cells, shape)
    importance = jax.ops.segment_sum(entries.ravel(), numbers.ravel(), cells.max().item() + 1)
    return importance, lambda values: values[cells]


def rank_of(importance: jax.Array) -> jax.Array:
    """Returns the rank of each feature, 0 for the most important one, as a flat array."""
    descending = order(importance)
    places = jnp.arange(descending.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[descending].set(places, unique_indices=True)


def along_paths(chunk_size: int) -> Callable[..., Any]:
    """Returns `along(observe, rank, counts, paths)`: what is seen as ever more features change.

    What `observe(changed)` returns is stacked, one path after the other: `counts` says how many
    features have changed in each step, and `paths` are pairs of what features change from and to.
    """
    all_of = accumulate(reductions.stack(), chunk_size)

    def along(observe, rank, counts, paths):
        before, after = (jnp.stack(ends) for ends in zip(*paths, strict=True))
        counts = jnp.asarray(counts, rank.dtype)

        def step(i):
            path, k = i // len(counts), i % len(counts)
            return observe(jnp.where(rank < counts[k], after[path], before[path]))

        return all_of(step, len(paths) * len(counts))

    return along


def blurred_unless(baseline: Any, axes: Any) -> Any:
    """Returns the baseline, or for None the blur that suits photos of about 224 pixels."""
    return blur(10.0, axes) if baseline is None else baseline
