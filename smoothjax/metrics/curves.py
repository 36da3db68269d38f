"""Curves: the score as the features of x are deleted or inserted, by importance.

Judge by a class's probability, such as `net.probability`: of logits, which have no bounds, curves
and their areas have none either, and examples with large logits drown the others. A constant
attribution says nothing, and its features come in a random order that is always the same. One with
a NaN gives NaN.
"""

from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from smoothjax._axes import IMAGE, check_axes
from smoothjax._checks import check_per_axis
from smoothjax._grid import patch_cells
from smoothjax._loop import check_count
from smoothjax._transform import keyed, name_of, transform
from smoothjax._typing import Axes, Metric, PerAxis, Score
from smoothjax.attribution.gradient import baseline_like
from smoothjax.metrics._arguments import metric
from smoothjax.metrics._features import along_paths, blurred_unless, features, judging, rank_of


class Curve(NamedTuple):
    """What a score is along a path, from 0 to 1.

    Attributes:
      fraction: how far along, from 0 to 1, shape (steps + 1,).
      value: the score there, shape (steps + 1,).
    """

    fraction: jax.Array
    value: jax.Array


# So that a program that returns a Curve can be exported.
jax.export.register_namedtuple_serialization(Curve, serialized_name="smoothjax.Curve")


@transform
def area(curve_metric: Metric) -> Metric:
    """Returns a metric: the area under the curve that another metric returns.

    `sum_i (f_(i+1) - f_i) (v_i + v_(i+1)) / 2`, by the trapezoidal rule.

    Args:
      curve_metric: a metric that returns a `Curve`, such as `deletion_curve(score)`.

    Returns:
      A metric of the same arguments, stochastic if `curve_metric` is, that returns a scalar in the
      units of the score: its mean over the fractions. Which direction is better is that metric's.

    Raises:
      TypeError: if `curve_metric` is no function or, when called, returns no `Curve`.

    Cost: that of the curve.

    >>> fraction = jnp.linspace(0.0, 1.0, 5)
    >>> straight = lambda params, x, attribution: sj.metrics.Curve(fraction, fraction)
    >>> print(sj.metrics.area(straight)(None, None, None))
    0.5
    """
    inner = keyed(curve_metric)

    def under(key, *args, **kwargs):
        curve = inner(key, *args, **kwargs)
        if not isinstance(curve, Curve):
            raise TypeError(
                f"area takes a metric that returns a Curve, such as deletion_curve(score); "
                f"{name_of(curve_metric)} returned {curve!r:.80}."
            )
        return _area(curve)

    return under


@metric
def deletion_curve(
    score: Score,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = 0.0,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the score as the most important features give way to a baseline.

    `value_k = score(x with its n_k most important features replaced)`, with `n_k = floor(k n /
    num_steps)` of n features: from the score of x to that of the baseline. Features of one value
    come in a random order that is always the same.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar, best a probability; or a
        stochastic one, which then gets the same key for every query.
      num_steps: the number of steps. With more steps than features some repeat.
      patch: the length of a patch in positions along each of `axes`, one number or one for each, to
        switch whole patches, all channels at once; those at the far edges may be smaller. A patch
        is as important as the sum of what the attribution says of it. None switches every entry of
        the attribution by itself.
      baseline: what replaces: a number or array that broadcasts to x, or a function of x that
        returns one, such as `blur` and `channel_mean` make, in the units of x: 0 is grey for a
        normalised photo.
      axes: the spatial axes of x, which patches span and the attribution keeps: it is shaped like
        x, or has length 1 along the others, or lacks them. (0,) for signals (time, channels), (1,
        2) for channels first.
      argnum: the argument that is explained, one floating-point array, counted from 0 after the
        key: 1 is x.
      chunk_size: how many queries of an example are evaluated at once: memory and speed only. Since
        examples are mapped, `jax.vmap`, 1 is usually enough, and on a CPU the fastest (measured on
        32 images of 28 x 28: three times as fast as 17). For single examples raise it.

    Returns:
      A metric `curve(params, x, attribution, *rest)`, with a key first if the score is stochastic,
      that returns a `Curve`. The attribution follows the argument that it explains. A curve that
      falls early is better.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a missing
        argument, an attribution or a baseline that does not fit x, an x that is no floating-point
        array or lacks an axis, or a score that is no real scalar.

    Cost: `num_steps + 1` evaluations of the score, the memory of `chunk_size` of them; a sort of
    the attribution.

    Source: Petsiuk et al. 2018, arXiv 1806.07421, with a step for each row of 224 pixels.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> print(sj.metrics.deletion_curve(score, num_steps=3)(params, x, params * x).value)
    [7. 3. 1. 0.]
    """
    return _along(
        score,
        lambda x, like: [(x, like(baseline))],
        lambda curve: curve,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@metric
def insertion_curve(
    score: Score,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = None,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the score as the most important features are restored onto a baseline.

    `value_k = score(baseline with the n_k most important features of x)`, with `n_k = floor(k n /
    num_steps)` of n features: from the score of the baseline to that of x. Features of one value
    come in a random order that is always the same.

    Args:
      score: as in `deletion_curve`.
      num_steps: the number of steps.
      patch: as in `deletion_curve`.
      baseline: what x is restored onto, in the grammar of `deletion_curve`; by default x blurred by
        `blur(10, axes)`, for photos of about 224 pixels. The blur of the source, of 11 x 11 pixels,
        leaves EfficientNet-Lite0 29 % of its probability on photos that it is sure of; this one
        leaves it 1 %.
      axes: the spatial axes of x, as in `deletion_curve`, which the default baseline blurs.
      argnum: as in `deletion_curve`.
      chunk_size: as in `deletion_curve`.

    Returns:
      A metric `curve(params, x, attribution, *rest)`, with a key first if the score is stochastic,
      that returns a `Curve`. A curve that rises early is better.

    Raises:
      TypeError, ValueError: as `deletion_curve` does.

    Cost: as `deletion_curve`.

    Source: Petsiuk et al. 2018, arXiv 1806.07421.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> curve = sj.metrics.insertion_curve(score, num_steps=3, baseline=0.0)
    >>> print(curve(params, x, params * x).value)
    [0. 4. 6. 7.]
    """
    return _along(
        score,
        lambda x, like: [(like(blurred_unless(baseline, axes)), x)],
        lambda curve: curve,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@metric
def deletion(
    score: Score,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = 0.0,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the area under the deletion curve, `area(deletion_curve(score, ...))`.

    Args:
      score: as in `deletion_curve`, and so are all settings.
      num_steps: the number of steps.
      patch: the length of a patch; None for single features.
      baseline: what replaces the features.
      axes: the spatial axes of x.
      argnum: the argument that is explained.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A metric `deletion(params, x, attribution, *rest)`, with a key first if the score is
      stochastic, that returns a scalar: the mean score along the curve, so from 0 to 1 for a
      probability. Lower is better.

    Raises:
      TypeError, ValueError: as `deletion_curve` does.

    Cost: as `deletion_curve`.

    Source: Petsiuk et al. 2018, arXiv 1806.07421.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> print(sj.metrics.deletion(score, num_steps=3)(params, x, params * x).round(3))  # of 7 3 1 0
    2.5
    """
    return _along(
        score,
        lambda x, like: [(x, like(baseline))],
        _area,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@metric
def insertion(
    score: Score,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = None,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the area under the insertion curve, `area(insertion_curve(score, ...))`.

    Args:
      score: as in `insertion_curve`, and so are all settings.
      num_steps: the number of steps.
      patch: the length of a patch; None for single features.
      baseline: what x is restored onto; by default x blurred by `blur(10, axes)`.
      axes: the spatial axes of x, as in `deletion_curve`, which the default baseline blurs.
      argnum: the argument that is explained.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A metric `insertion(params, x, attribution, *rest)`, with a key first if the score is
      stochastic, that returns a scalar: the mean score along the curve, so from 0 to 1 for a
      probability. Higher is better.

    Raises:
      TypeError, ValueError: as `deletion_curve` does.

    Cost: as `deletion_curve`.

    Source: Petsiuk et al. 2018, arXiv 1806.07421.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> metric = sj.metrics.insertion(score, num_steps=3, baseline=0.0)
    >>> print(metric(params, x, params * x).round(3))  # of 0 4 6 7
    4.5
    """
    return _along(
        score,
        lambda x, like: [(like(blurred_unless(baseline, axes)), x)],
        _area,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@metric
def insertion_minus_deletion(
    score: Score,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    insertion_baseline: Any = None,
    deletion_baseline: Any = 0.0,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: FORGrad's F, the insertion score less the deletion score.

    `insertion(score, ...) - deletion(score, ...)`, both in one loop, so that the score is compiled
    once. It is made for `smoothjax.spectral.best_cutoff(explain, faithfulness, cutoffs)`.

    Args:
      score: as in `deletion_curve`, and so are the other settings.
      num_steps: the number of steps of each curve.
      patch: the length of a patch; None for single features.
      insertion_baseline: what x is restored onto; by default x blurred by `blur(10, axes)`, as in
        `insertion_curve`.
      deletion_baseline: what replaces features of x.
      axes: the spatial axes of x, as in `deletion_curve`, which the default baseline blurs.
      argnum: the argument that is explained.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A metric `difference(params, x, attribution, *rest)`, with a key first if the score is
      stochastic, that returns a scalar, from -1 to 1 for a probability; higher is better. A random
      attribution is not at 0, since the two baselines differ.

    Raises:
      TypeError, ValueError: as `deletion_curve` does.

    Cost: `2 (num_steps + 1)` evaluations of the score, the memory of `chunk_size` of them.

    Source: Muzellec et al. 2024, arXiv 2307.09591, who insert into a blurred image and delete to
    zero.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> metric = sj.metrics.insertion_minus_deletion(score, num_steps=3, insertion_baseline=0.0)
    >>> print(metric(params, x, params * x).round(3))  # 4.5 - 2.5
    2.0
    """

    def paths(x, like):
        return [(like(blurred_unless(insertion_baseline, axes)), x), (x, like(deletion_baseline))]

    def difference(inserted, deleted):
        return _area(inserted) - _area(deleted)

    return _along(
        score,
        paths,
        difference,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


def _along(score, paths, finish, *, num_steps, patch, axes, argnum, chunk_size):
    """The metric `finish(*curves)` of the curves along paths.

    `paths(x, like)` returns pairs of what features change from and to; `like(baseline)` makes an
    array like x.
    """
    axes = check_axes(axes)
    judged = judging(score, argnum, axes)
    patch = None if patch is None else check_per_axis(patch, axes, "patch")
    num_steps = check_count(num_steps, "num_steps")
    along = along_paths(chunk_size)

    def of_example(key, *args, **kwargs):
        x, attribution, query = judged(args, kwargs)
        cells = None if patch is None else patch_cells(x.shape, axes, patch)
        importance, spread = features(attribution, cells)
        counts = np.arange(num_steps + 1) * importance.size // num_steps
        ends = paths(x, lambda baseline: baseline_like(baseline, x))
        rank = spread(rank_of(importance))
        scores = along(lambda changed: query(key, changed), rank, counts, ends)
        scores = jnp.where(jnp.any(jnp.isnan(attribution)), jnp.nan, scores)
        fraction = jnp.asarray(counts / importance.size, scores.dtype)
        return finish(*(Curve(fraction, value) for value in scores.reshape(len(ends), -1)))

    return of_example


def _area(curve):
    return jnp.trapezoid(curve.value, curve.fraction)
