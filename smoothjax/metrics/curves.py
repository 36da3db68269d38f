"""Curves: the score as the features of x are deleted or inserted, by importance, and their areas.

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
from smoothjax._checks import check_number, check_per_axis
from smoothjax._grid import patch_cells
from smoothjax._loop import check_count
from smoothjax._transform import keyed, name_of, transform
from smoothjax._typing import Axes, Metric, PerAxis, Score
from smoothjax.attribution.gradient import baseline_like
from smoothjax.metrics._arguments import metric, stochastic_metric
from smoothjax.metrics._features import along_paths, blurred_unless, features, judging, rank_of
from smoothjax.metrics._imputation import linear_imputation


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

    return _along(
        score,
        paths,
        _difference,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@metric
def srg(
    score: Score,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = 0.0,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the symmetric relevance gain, by which the order of deletion matters.

    The area under the curve of the score as the least important features give way to a baseline,
    less that as the most important ones do. Both curves have one baseline and the same ends, so a
    random attribution is at 0 on average, and what the baseline does to the score by itself cancels
    in part. It is `insertion_minus_deletion` with one baseline for both: what is left when the
    least important features are gone is what insertion restores first.

    Args:
      score: as in `deletion_curve`, and so are all settings.
      num_steps: the number of steps of each curve.
      patch: the length of a patch; None for single features.
      baseline: what replaces the features.
      axes: the spatial axes of x.
      argnum: the argument that is explained.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A metric `gain(params, x, attribution, *rest)`, with a key first if the score is stochastic,
      that returns a scalar, from -1 to 1 for a probability; higher is better. The negative of an
      attribution has the negative gain, if `num_steps` divides the number of features.

    Raises:
      TypeError, ValueError: as `deletion_curve` does.

    Cost: `2 (num_steps + 1)` evaluations of the score, the memory of `chunk_size` of them.

    Source: Blücher et al. 2024, arXiv 2401.06654.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> metric = sj.metrics.srg(score, num_steps=3)
    >>> print(metric(params, x, params * x).round(3))  # of 7 6 4 0, less that of 7 3 1 0
    2.0
    """

    def paths(x, like):
        hiding = like(baseline)
        return [(hiding, x), (x, hiding)]

    return _along(
        score,
        paths,
        _difference,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@stochastic_metric
def road(
    score: Score,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    noise: float = 0.01,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: ROAD, the gain of `srg` with what is hidden imputed from its neighbours.

    Each hidden entry becomes the weighted mean of its neighbours along `axes`, hidden ones among
    them, which is a system of linear equations, and Gaussian noise is added. In two dimensions an
    entry has eight neighbours, and those across a corner count half. So a mask leaves no edges that
    would tell the network which features were hidden.

    Args:
      score: as in `deletion_curve`, and so are the other settings.
      num_steps: the number of steps of each curve.
      patch: the length of a patch; None for single features.
      noise: the standard deviation of the noise, in the units of x. One draw serves all queries.
      axes: the spatial axes of x, along which entries are neighbours.
      argnum: the argument that is explained.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `gain(key, params, x, attribution, *rest)` that returns a scalar, from -1
      to 1 for a probability; higher is better. A random attribution is at 0 on average.

    Raises:
      TypeError, ValueError: here for bad settings; when called, as `deletion_curve` does.

    Cost: `2 (num_steps + 1)` evaluations of the score, the memory of `chunk_size` of them, and
    before each up to 400 steps of conjugate gradients, of about 30 operations for each entry of x:
    below 50 where hidden pixels are scattered, 200 to 400 for a hole of 200 pixels across. Under
    `jax.vmap` all examples take as many as the slowest.

    Source: Rong et al. 2022, arXiv 2202.00449, with the weights and the noise of the authors' code.
    They report the accuracy as 10 to 90 % of the pixels are hidden, most important first and least
    important first; this is the difference of the two, of the score of one example, by areas. With
    everything hidden, nothing is known, and each channel has its mean.

    >>> score = lambda params, x: x[12]
    >>> x = jnp.sin(jnp.arange(16.0) / 2)
    >>> metric = jax.jit(sj.metrics.road(score, axes=(0,)))
    >>> one_hot = jnp.zeros(16).at[12].set(-1.0)  # the score falls least if x[12] is hidden first
    >>> print(metric(jax.random.key(0), None, x, one_hot) > 0)
    True
    """
    noise = check_number(noise, "noise", least=0)
    axes = check_axes(axes)

    def imputing(key, x):
        noise_key, score_key = jax.random.split(key)
        return score_key, linear_imputation(noise_key, x, axes, noise)

    return _along(
        score,
        lambda x, like: [(_HIDDEN, _SHOWN), (_SHOWN, _HIDDEN)],
        _difference,
        imputing,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


@metric
def monotonicity(
    score: Score,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = 0.0,
    axes: Axes = IMAGE,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: how often the score does not fall as ever more important features return.

    The share of steps in which the score stays or rises as features are restored onto a baseline,
    the least important one first: the steps of `deletion_curve`, backwards. The paper's test is
    passed where all do, so at 1. `monotonicity_correlation` is what others call by this name.

    Args:
      score: as in `deletion_curve`, and so are all settings.
      num_steps: the number of steps. With more steps than features, only those that restore one
        count; as many as features is the paper's test.
      patch: the length of a patch; None for single features.
      baseline: what features are restored onto.
      axes: the spatial axes of x.
      argnum: the argument that is explained.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A metric `share(params, x, attribution, *rest)`, with a key first if the score is stochastic,
      that returns a scalar from 0 to 1; higher is better. A score that does not change is at 1.

    Raises:
      TypeError, ValueError: as `deletion_curve` does.

    Cost: as `deletion_curve`.

    Source: Arya et al. 2019, arXiv 1909.03012, for its use in AIX360; Luss et al. 2021, arXiv
    1905.12698.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, -2.0, 3.0]), jnp.ones(4)
    >>> metric = sj.metrics.monotonicity(score, num_steps=4)
    >>> print(metric(params, x, params * x))  # from 0 to -2 -1 2 6
    0.75
    """

    def share(curve):
        restores = jnp.diff(curve.fraction) > 0
        holds = jnp.diff(curve.value) <= 0  # backwards, the score rises
        found = jnp.mean(holds, where=restores, dtype=curve.value.dtype)
        return jnp.where(jnp.any(jnp.isnan(curve.value)), jnp.nan, found)

    return _along(
        score,
        lambda x, like: [(x, like(baseline))],
        share,
        num_steps=num_steps,
        patch=patch,
        axes=axes,
        argnum=argnum,
        chunk_size=chunk_size,
    )


def _as_is(key, x):
    """What a path holds is x, changed."""
    del x
    return key, lambda changed: changed


def _along(score, paths, finish, seeing=_as_is, *, num_steps, patch, axes, argnum, chunk_size):
    """The metric `finish(*curves)` of the curves along paths.

    `paths(x, like)` returns pairs of what features change from and to; `like(baseline)` makes an
    array like x. `seeing(key, x)` returns the key of the score, and `see(changed)`, what of a path
    is handed to it.
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
        score_key, see = seeing(key, x)
        scores = along(lambda changed: query(score_key, see(changed)), rank, counts, ends)
        scores = jnp.where(jnp.any(jnp.isnan(attribution)), jnp.nan, scores)
        fraction = jnp.asarray(counts / importance.size, scores.dtype)
        return finish(*(Curve(fraction, value) for value in scores.reshape(len(ends), -1)))

    return of_example


def _area(curve):
    return jnp.trapezoid(curve.value, curve.fraction)


def _difference(inserted, deleted):
    return _area(inserted) - _area(deleted)


_HIDDEN, _SHOWN = np.array(True), np.array(False)
