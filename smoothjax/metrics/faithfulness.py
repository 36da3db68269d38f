"""Faithfulness: whether the score depends on what an attribution says it does.

These metrics judge an attribution by changing x and querying the score, so the score need not be
differentiable. Judge by a class's probability, such as `net.probability`: of logits, which have no
bounds, curves and their areas have none either, and examples with large logits drown the others.

A feature is an entry of the attribution, and stands for all entries of x that it broadcasts to: of
an attribution of shape (H, W), a pixel with all its channels. Signs count: the most important
feature has the greatest value, not the greatest magnitude, and nothing here pools channels or takes
absolute values. A constant attribution says nothing: its correlations are 0, and its features come
in a random order that is always the same. One with a NaN gives NaN.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from smoothjax import reductions, sampling
from smoothjax.attribution.baselines import blur
from smoothjax.attribution.gradient import baseline_like
from smoothjax.attribution.masking import (
    PerAxis,
    check_grid,
    check_per_axis,
    check_probability,
    check_scalar,
)
from smoothjax.metrics.arguments import like_input, named_metric, without_attribution
from smoothjax.metrics.ranking import order
from smoothjax.metrics.similarity import pearson, spearman
from smoothjax.noise import check_noise, is_inexact, levels, relative
from smoothjax.transform import (
    Explainer,
    axes_of,
    check_argnum,
    check_at_least,
    check_axes,
    check_callable,
    is_stochastic,
    keyed,
    name_of,
    named,
    replace,
    wide_dtype,
)

Metric = Callable[..., Any]
Axes = Sequence[int]


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

_HIGHEST = jax.lax.Precision.HIGHEST


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

    >>> import jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import Curve, area
    >>> fraction = jnp.linspace(0.0, 1.0, 5)
    >>> print(area(lambda params, x, attribution: Curve(fraction, fraction))(None, None, None))
    0.5
    """
    check_callable(curve_metric, "area")
    inner = keyed(curve_metric)

    @named("area", curve_metric, takes_key=is_stochastic(curve_metric))
    def metric(key, *args, **kwargs):
        curve = inner(key, *args, **kwargs)
        if not isinstance(curve, Curve):
            raise TypeError(
                f"area takes a metric that returns a Curve, such as deletion_curve(score); "
                f"{name_of(curve_metric)} returned {curve!r:.80}."
            )
        return _area(curve)

    return metric


def deletion_curve(
    score: Explainer,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = 0.0,
    axes: Axes = (0, 1),
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
      axes: the axes of x that patches span; without patches they do not count.
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

    >>> import jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import deletion_curve
    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> print(deletion_curve(score, num_steps=3)(params, x, params * x).value)
    [7. 3. 1. 0.]
    """
    settings = (num_steps, patch, axes, argnum, chunk_size)
    return _along(
        "deletion_curve",
        score,
        lambda x, like: [(x, like(baseline))],
        lambda curve: curve,
        *settings,
    )


def insertion_curve(
    score: Explainer,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = None,
    axes: Axes = (0, 1),
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
      axes: the axes of x that patches span, and the default baseline blurs.
      argnum: as in `deletion_curve`.
      chunk_size: as in `deletion_curve`.

    Returns:
      A metric `curve(params, x, attribution, *rest)`, with a key first if the score is stochastic,
      that returns a `Curve`. A curve that rises early is better.

    Raises:
      TypeError, ValueError: as `deletion_curve` does.

    Cost: as `deletion_curve`.

    Source: Petsiuk et al. 2018, arXiv 1806.07421.

    >>> import jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import insertion_curve
    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> curve = insertion_curve(score, num_steps=3, baseline=0.0)
    >>> print(curve(params, x, params * x).value)
    [0. 4. 6. 7.]
    """
    settings = (num_steps, patch, axes, argnum, chunk_size)
    return _along(
        "insertion_curve",
        score,
        lambda x, like: [(like(_blurred(baseline, axes)), x)],
        lambda curve: curve,
        *settings,
    )


def deletion(
    score: Explainer,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = 0.0,
    axes: Axes = (0, 1),
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the area under the deletion curve, `area(deletion_curve(score, ...))`.

    Args:
      score: as in `deletion_curve`, and so are all settings.
      num_steps: the number of steps.
      patch: the length of a patch; None for single features.
      baseline: what replaces the features.
      axes: the axes of x that patches span.
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

    >>> import jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import deletion
    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> print(deletion(score, num_steps=3)(params, x, params * x).round(3))  # of 7 3 1 0
    2.5
    """
    settings = (num_steps, patch, axes, argnum, chunk_size)
    return _along("deletion", score, lambda x, like: [(x, like(baseline))], _area, *settings)


def insertion(
    score: Explainer,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    baseline: Any = None,
    axes: Axes = (0, 1),
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the area under the insertion curve, `area(insertion_curve(score, ...))`.

    Args:
      score: as in `insertion_curve`, and so are all settings.
      num_steps: the number of steps.
      patch: the length of a patch; None for single features.
      baseline: what x is restored onto; by default x blurred by `blur(10, axes)`.
      axes: the axes of x that patches span, and the default baseline blurs.
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

    >>> import jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import insertion
    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> metric = insertion(score, num_steps=3, baseline=0.0)
    >>> print(metric(params, x, params * x).round(3))  # of 0 4 6 7
    4.5
    """
    settings = (num_steps, patch, axes, argnum, chunk_size)
    return _along(
        "insertion", score, lambda x, like: [(like(_blurred(baseline, axes)), x)], _area, *settings
    )


def insertion_minus_deletion(
    score: Explainer,
    *,
    num_steps: int = 16,
    patch: PerAxis | None = None,
    insertion_baseline: Any = None,
    deletion_baseline: Any = 0.0,
    axes: Axes = (0, 1),
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
      axes: the axes of x that patches span, and the default baseline blurs.
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

    >>> import jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import insertion_minus_deletion
    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.ones(3)
    >>> metric = insertion_minus_deletion(score, num_steps=3, insertion_baseline=0.0)
    >>> print(metric(params, x, params * x).round(3))  # 4.5 - 2.5
    2.0
    """
    settings = (num_steps, patch, axes, argnum, chunk_size)

    def paths(x, like):
        return [(like(_blurred(insertion_baseline, axes)), x), (x, like(deletion_baseline))]

    def difference(inserted, deleted):
        return _area(inserted) - _area(deleted)

    return _along("insertion_minus_deletion", score, paths, difference, *settings)


def mu_fidelity(
    score: Explainer,
    *,
    grid: PerAxis | None = 9,
    subset: float = 0.2,
    num_samples: int = 200,
    baseline: Any = 0.0,
    similarity: Callable[..., jax.Array] = spearman,
    axes: Axes = (0, 1),
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: how well an attribution ranks what hiding cells of a grid costs the score.

    `correlation over random subsets S of (sum of the attribution in S, score(x) - score(x with S
    replaced))`. A subset is a fixed number of cells, drawn without replacement.

    Args:
      score: as in `deletion_curve`.
      grid: how many cells along each of `axes`, one number or one for each, as equal as whole
        positions allow; a cell holds all channels. None makes every entry of the attribution a
        cell, which is what tabular data needs.
      subset: the share of the cells that a subset holds, above 0 and below 1, rounded to a whole
        number of them.
      num_samples: the number of subsets.
      baseline: what replaces, in the grammar of `deletion_curve`.
      similarity: the correlation, a function of two arrays from `smoothjax.metrics.similarity`.
      axes: the axes of x that the grid spans.
      argnum: as in `deletion_curve`.
      chunk_size: how many subsets are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `correlation(key, params, x, attribution, *rest)` that returns a scalar
      from -1 to 1; higher is better. A constant attribution, or a score that does not change, gives
      0. With one key for a batch, `vmap(in_axes=(None, ...))`, subsets are drawn once.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a grid
        finer than x, a subset that holds all cells, and as `deletion_curve` does.

    Cost: `num_samples` evaluations of the score, the memory of `chunk_size` of them.

    Source: Bhatt et al. 2020, arXiv 2005.00631, with the grid, its size, the share and number of
    subsets, and the rank correlation of Xplique, which draws each cell by itself, so that its
    subsets differ in size and a constant attribution correlates with the score.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import mu_fidelity
    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.arange(36.0).reshape(6, 6), jnp.ones((6, 6))
    >>> metric = jax.jit(mu_fidelity(score, grid=3))
    >>> print(metric(jax.random.key(0), params, x, params * x).round(3))
    1.0
    """
    name = "mu_fidelity"
    subset = check_probability(subset, f"{name}: subset")
    axes = check_axes(axes, name)
    grid = check_grid(grid, axes, name)

    def size_of(num_features):
        return max(1, round(subset * num_features))

    def cells_of(x):
        return None if grid is None else _grid_cells(x.shape, axes, grid, name)

    settings = (num_samples, baseline, argnum, chunk_size)
    return _correlation(name, score, similarity, cells_of, size_of, *settings)


def faithfulness_correlation(
    score: Explainer,
    *,
    subset_size: int,
    num_samples: int = 100,
    baseline: Any = 0.0,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the correlation of an attribution with what hiding features costs.

    `Pearson's correlation over random subsets S of (sum of the attribution in S, score(x) - score(x
    with S replaced))`. A subset is `subset_size` features, drawn without replacement.

    Args:
      score: as in `deletion_curve`.
      subset_size: the number of features of a subset, below that of all. Of single pixels take many
        (224 of 224 x 224 are common): a few change little in a photo.
      num_samples: the number of subsets.
      baseline: what replaces, in the grammar of `deletion_curve`.
      argnum: as in `deletion_curve`.
      chunk_size: how many subsets are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `correlation(key, params, x, attribution, *rest)`, as `mu_fidelity` does.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a subset
        as large as all features, and as `deletion_curve` does.

    Cost: `num_samples` evaluations of the score, the memory of `chunk_size` of them; and in each
    chunk, one after the other, `subset_size` small steps to draw its subsets.

    Source: Bhatt et al. 2020, arXiv 2005.00631.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import faithfulness_correlation
    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.arange(10.0), jnp.ones(10)
    >>> metric = jax.jit(faithfulness_correlation(score, subset_size=3))
    >>> print(metric(jax.random.key(0), params, x, -params * x).round(3))
    -1.0
    """
    name = "faithfulness_correlation"
    subset_size = check_at_least(subset_size, 1, f"{name}: subset_size")
    settings = (num_samples, baseline, argnum, chunk_size)
    return _correlation(name, score, pearson, lambda x: None, lambda num: subset_size, *settings)


def gaussian_perturbation(sigma: Any = relative(0.15)) -> Callable[..., jax.Array]:
    """Returns a perturbation for `infidelity`: independent Gaussian numbers.

    Args:
      sigma: their standard deviation, in the grammar of `smoothgrad`: a number or array that
        broadcasts to x, or a function of x such as `relative(0.15)`; in the units of x.

    Returns:
      A function `perturbation(key, x)` that returns an array shaped like x, in at least float32:
      NaN where sigma is 0 everywhere, as `relative` is for a constant x, for no change judges
      nothing.

    Raises:
      TypeError, ValueError: here for a sigma that is no number or negative; when called, for one
        that does not fit x.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import gaussian_perturbation
    >>> drawn = gaussian_perturbation(0.5)(jax.random.key(0), jnp.zeros(100_000))
    >>> print(drawn.std().round(2))
    0.5
    """
    name = "gaussian_perturbation"
    check_noise(name, sigma, None, jax.random.normal)

    def perturbation(key, x):
        level: Any = levels(name, x, sigma, None)[0]
        level = jnp.where(jnp.any(level != 0), level, jnp.nan)
        eps = jax.random.normal(key, x.shape, wide_dtype(x.dtype))
        # Without the barrier XLA draws the same numbers again for each example of a batch.
        return level * jax.lax.optimization_barrier(eps)

    return perturbation


_GAUSSIAN = gaussian_perturbation()


def infidelity(
    score: Explainer,
    *,
    num_samples: int = 100,
    perturbation: Callable[..., jax.Array] = _GAUSSIAN,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the error of an attribution as a linear model of what changes cost.

    `mean_i (sum(I_i attribution) - (score(x) - score(x - I_i)))^2` over random changes I of x, in
    the dtype of x. An attribution of fewer axes than x says the same of each channel.

    It is an error in the units of the score, so the scale of an attribution counts: gradients have
    the right one, squares and maps that were scaled for display have not. Captum can first rescale
    each attribution to what fits best; that forgives a wrong scale, and here the paper's definition
    is kept.

    Args:
      score: a function `score(params, x, *rest)` that returns a scalar, best a probability; or a
        stochastic one, which then gets the same key for every query.
      num_samples: the number of changes.
      perturbation: a function `perturbation(key, x)` that returns a random change, shaped like x:
        `x - I` is evaluated. For the default, Gaussian numbers of 0.15 times the range of x,
        SmoothGrad of the same level is the attribution of the least error.
      argnum: as in `deletion_curve`.
      chunk_size: how many changes are evaluated at once, as in `deletion_curve`.

    Returns:
      A stochastic metric `error(key, params, x, attribution, *rest)` that returns a scalar, 0 or
      more, in the squared units of the score; lower is better. NaN by default if x is constant,
      since the noise is then 0.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a change
        that is not shaped like x, the default one of an x of one entry, and as `deletion_curve`
        does.

    Cost: `num_samples + 1` evaluations of the score, the memory of `chunk_size` of them.

    Source: Yeh et al. 2019, arXiv 1901.09392.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import infidelity
    >>> score = lambda params, x: jnp.sum(params * x)
    >>> params, x = jnp.array([1.0, 4.0, 2.0]), jnp.arange(3.0)
    >>> print(jax.jit(infidelity(score))(jax.random.key(0), params, x, params).round(6))
    0.0
    """
    name = "infidelity"
    judging = _judging(name, score, argnum)
    check_callable(perturbation, f"{name}: perturbation")
    sampling.check_loop(name, num_samples, reductions.mean(), chunk_size)

    @named_metric(name, score, argnum, takes_key=True)
    def error(key, *args, **kwargs):
        change_key, score_key = jax.random.split(key)
        x, attribution, query = judging(score_key, args, kwargs)
        if perturbation is _GAUSSIAN and x.size < 2:
            raise ValueError(
                f"{name}: the default perturbation is noise relative to max - min of x, and one of "
                f"shape {x.shape} has none. Type perturbation=gaussian_perturbation(0.1), in the "
                "units of x."
            )
        wide = wide_dtype(x.dtype)

        def squared_error(draw_key):
            change = jnp.asarray(perturbation(draw_key, x))
            if change.shape != x.shape:
                raise ValueError(
                    f"{name}: perturbation(key, x) must return an array shaped like x, {x.shape}; "
                    f"got one of shape {change.shape}."
                )
            changed = (x.astype(wide) - change.astype(wide)).astype(x.dtype)
            change = x.astype(wide) - changed.astype(wide)  # as rounded to the dtype of x
            predicted = jnp.sum(change * attribution.astype(wide))
            loss = whole - query(changed)
            return (predicted.astype(loss.dtype) - loss) ** 2

        whole = query(x)
        return sampling.monte_carlo(
            squared_error,
            change_key,
            name=name,
            num_samples=num_samples,
            reduction=reductions.mean(),
            chunk_size=chunk_size,
        )

    return error


def residual_bits(image: jax.Array) -> jax.Array:
    """Returns an estimate of the bits that it takes to write down an image.

    `sum log2(1 + |v_ij - (v_(i-1)j + v_i(j-1)) / 2|)`: the lengths of what is left of each value
    when the mean of the ones above and to the left is taken off, as PNG's filters do. On photos
    whose pixels are restored onto a blurred image, its rank correlation with the size of a lossless
    WebP file was 0.97 to 1, and 0.99 on average, as that of PNG with WebP.

    Args:
      image: an array of shape (H, W) or (H, W, channels), from 0 to 255.

    Returns:
      A scalar, 0 or more.

    Raises:
      ValueError: for an array of fewer than two axes.

    >>> import jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import residual_bits
    >>> print(residual_bits(jnp.full((8, 8), 99.0)), residual_bits(jnp.diag(jnp.array([0.0, 7.0]))))
    0.0 3.0
    """
    if image.ndim < 2:
        raise ValueError(
            "residual_bits takes an image of shape (H, W) or (H, W, channels); got shape "
            f"{image.shape}. For other data, give a function of yours as `information`."
        )
    predicted = (image[:-1, 1:] + image[1:, :-1]) / 2
    return jnp.sum(jnp.log2(1 + jnp.abs(image[1:, 1:] - predicted)))


def information_curve(
    score: Explainer,
    *,
    information: Callable[[jax.Array], jax.Array] = residual_bits,
    num_steps: int = 16,
    baseline: Any = None,
    argnum: int = 1,
    chunk_size: int = 1,
) -> Metric:
    """Returns a metric: the score as a function of the information in an image, by importance.

    The most important features of an image are restored onto its blurred self, `(k / num_steps)^2`
    of them in step k, and each image's information is put on a scale from 0 for the blurred one to
    1 for the original. The curve at a level is the greatest score of the images of no more
    information, linear in between. With a class's probability as the score it is the softmax
    information curve (SIC); with a score that is 1 where the class is predicted and 0 elsewhere,
    `lambda params, x, label: (jnp.argmax(logits(params, x)) == label).astype(float)`, it is the
    accuracy information curve (AIC). `area(information_curve(score))` is a scalar.

    Args:
      score: as in `deletion_curve`.
      information: a function of an image, an array like x that is scaled from the range of x to 0
        to 255, not rounded, that returns a scalar, in any unit. Another blurred image may leave
        that range. The default is for (H, W) and (H, W, channels).
      num_steps: the number of steps.
      baseline: what x is restored onto, in the grammar of `deletion_curve`; by default x blurred by
        `blur(10)`, for photos of about 224 pixels. For other axes than the first two give your own:
        `blur(10, axes=(0,))` for signals, `blur(10, axes=(1, 2))` for channels first.
      argnum: as in `deletion_curve`.
      chunk_size: how many queries are evaluated at once, as in `deletion_curve`.

    Returns:
      A metric `curve(params, x, attribution, *rest)`, with a key first if the score is stochastic,
      that returns a `Curve` at 101 equal levels of information, the same for all x, so that curves
      of many can be averaged. A curve that rises early is better. NaN if x has no more information
      than its blurred self.

    Raises:
      TypeError, ValueError: as `deletion_curve` does, and for an information that is no scalar.

    Cost: `num_steps + 1` evaluations of the score and of `information`, the memory of `chunk_size`
    of them; a sort of the attribution.

    Source: Kapishnikov et al. 2019, arXiv 1906.02825. Their code estimates information by the size
    of a WebP file, scales the score too, from that of the blurred image to that of x, and leaves
    out images where that cannot be done; here the score stays what it is.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.metrics.faithfulness import area, information_curve
    >>> x = jax.random.normal(jax.random.key(0), (32, 32))
    >>> score = lambda params, x: jnp.mean(x[:8] ** 2)  # it depends on the upper quarter
    >>> metric = jax.jit(area(information_curve(score)))
    >>> upper = jnp.where(jnp.arange(32)[:, None] < 8, 1.0, 0.0)
    >>> print(metric(None, x, upper) > 2 * metric(None, x, -upper))
    True
    """
    name = "information_curve"
    judging = _judging(name, score, argnum)
    check_callable(information, f"{name}: information")
    sampling.check_loop(name, num_steps, reductions.stack(), chunk_size, what="num_steps")

    @named_metric(name, score, argnum, is_stochastic(score))
    def curve(key, *args, **kwargs):
        x, attribution, query = judging(key, args, kwargs)
        if baseline is None and x.ndim < 2:
            raise ValueError(
                f"{name}: by default x is restored onto itself blurred along its first two axes; "
                f"got shape {x.shape}. For signals type baseline=blur(10, axes=(0,))."
            )
        least, most = jnp.min(x), jnp.max(x)

        def observe(image):
            shown, low, high = (a.astype(wide_dtype(x.dtype)) for a in (image, least, most))
            bits = jnp.asarray(information(255 * (shown - low) / (high - low)))
            if bits.shape != ():
                raise ValueError(
                    f"{name}: information must return a scalar; got shape {bits.shape}."
                )
            return query(image), bits.astype(wide_dtype(bits.dtype))

        rank = _rank(attribution).reshape(attribution.shape)
        counts = np.arange(num_steps + 1) ** 2 * attribution.size // num_steps**2
        path = (baseline_like(_blurred(baseline, (0, 1)), x, name), x)
        scores, bits = _switch(name, observe, rank, counts, [path], chunk_size)
        level = ((bits - bits[0]) / (bits[-1] - bits[0])).astype(scores.dtype)
        no_more = level[None, :] <= level[:, None]
        best = jnp.max(jnp.where(no_more, scores[None, :], -jnp.inf), axis=1)
        by_level = jnp.argsort(level)
        fraction = jnp.linspace(0, 1, _LEVELS + 1, dtype=scores.dtype)
        value = jnp.interp(fraction, level[by_level], best[by_level])
        known = (bits[-1] > bits[0]) & ~jnp.any(jnp.isnan(attribution))
        return Curve(fraction, jnp.where(known, value, jnp.nan))

    return curve


_LEVELS = 100


def _judging(name, score, argnum):
    """Checks a score, and returns what metrics need of the arguments of one call.

    That is a triple: x; its attribution, with as many axes; and `query(changed)`, the score of a
    changed x.
    """
    check_callable(score, name)
    argnum = check_argnum(argnum, name)
    inner = keyed(score)

    def judging(key, args, kwargs):
        args, x, attribution = without_attribution(args, argnum, name)
        attribution = like_input(attribution, x, name)
        if not is_inexact(x):
            raise TypeError(
                f"{name} changes x, which must be a floating-point array; got {x!r:.80}. Convert "
                "it, x.astype(jnp.float32), or choose another argument with argnum."
            )

        def query(changed):
            return check_scalar(inner(key, *replace(args, argnum, changed), **kwargs), name)

        return jnp.asarray(x), attribution, query

    return judging


def _along(name, score, paths, finish, num_steps, patch, axes, argnum, chunk_size):
    """The metric `finish(*curves)` of the curves along paths.

    `paths(x, like)` returns pairs of what features change from and to; `like(baseline)` makes an
    array like x.
    """
    judging = _judging(name, score, argnum)
    axes = check_axes(axes, name)
    patch = None if patch is None else check_per_axis(patch, axes, f"{name}: patch")
    sampling.check_loop(name, num_steps, reductions.stack(), chunk_size, what="num_steps")

    @named_metric(name, score, argnum, is_stochastic(score))
    def metric(key, *args, **kwargs):
        x, attribution, query = judging(key, args, kwargs)
        cells = None if patch is None else _patch_cells(x.shape, axes, patch, name)
        importance, spread = _features(attribution, cells)
        counts = np.arange(num_steps + 1) * importance.size // num_steps
        ends = paths(x, lambda baseline: baseline_like(baseline, x, name))
        scores = _switch(name, query, spread(_rank(importance)), counts, ends, chunk_size)
        scores = jnp.where(jnp.any(jnp.isnan(attribution)), jnp.nan, scores)
        fraction = jnp.asarray(counts / importance.size, scores.dtype)
        return finish(*(Curve(fraction, value) for value in scores.reshape(len(ends), -1)))

    return metric


def _blurred(baseline, axes):
    return blur(10.0, axes) if baseline is None else baseline


def _switch(name, observe, rank, counts, paths, chunk_size):
    """What is observed of x as ever more features change, one path after the other, stacked.

    Args:
      name: the metric, for errors.
      observe: a function of the changed x.
      rank: the rank of each feature, 0 for the most important one, to broadcast to x.
      counts: how many features have changed in each step.
      paths: pairs of what features change from and to.
      chunk_size: how many are observed at once.
    """
    before, after = (jnp.stack(ends) for ends in zip(*paths, strict=True))
    counts = jnp.asarray(counts, rank.dtype)

    def step(i):
        path, k = i // len(counts), i % len(counts)
        return observe(jnp.where(rank < counts[k], after[path], before[path]))

    return sampling.accumulate(
        step,
        name=name,
        num=len(paths) * len(counts),
        reduction=reductions.stack(),
        chunk_size=chunk_size,
    )


def _correlation(
    name, score, similarity, cells_of, size_of, num_samples, baseline, argnum, chunk_size
):
    """The metric of the correlation of sums and drops over random subsets of features."""
    judging = _judging(name, score, argnum)
    check_callable(similarity, f"{name}: similarity")
    sampling.check_loop(name, num_samples, reductions.stack(), chunk_size)
    check_at_least(num_samples, 2, f"{name}: num_samples")

    @named_metric(name, score, argnum, takes_key=True)
    def correlation(key, *args, **kwargs):
        subset_key, score_key = jax.random.split(key)
        x, attribution, query = judging(score_key, args, kwargs)
        hiding = baseline_like(baseline, x, name)
        importance, spread = _features(attribution, cells_of(x))
        size = size_of(importance.size)
        if size >= importance.size:
            raise ValueError(
                f"{name}: a subset of {size} features must leave some of all {importance.size}."
            )

        def draw(draw_key):
            subset = _random_subset(draw_key, importance.size, size)
            # A product, for a NaN to be in every sum, and so that a batch makes one of matrices.
            total = jnp.vdot(subset.astype(importance.dtype), importance, precision=_HIGHEST)
            return total, query(jnp.where(spread(subset), hiding, x))

        totals, scores = sampling.monte_carlo(
            draw,
            subset_key,
            name=name,
            num_samples=num_samples,
            reduction=reductions.stack(),
            chunk_size=chunk_size,
        )
        # score(x) is the same in all drops, and a correlation does not change with it.
        found = similarity(totals.astype(scores.dtype), -scores)
        constant = jnp.max(attribution) == jnp.min(attribution)
        return jnp.where(constant, 0, found)

    return correlation


def _features(attribution, cells):
    """The importance of each feature, and a function that spreads an array of features over x.

    `cells` holds the number of each position's cell, and None makes each entry a feature.
    """
    if cells is None:
        return attribution.ravel(), lambda values: values.reshape(attribution.shape)
    shape = np.broadcast_shapes(attribution.shape, cells.shape)
    entries, numbers = jnp.broadcast_to(attribution, shape), np.broadcast_to(cells, shape)
    importance = jax.ops.segment_sum(entries.ravel(), numbers.ravel(), cells.max().item() + 1)
    return importance, lambda values: values[cells]


def _patch_cells(shape, axes, patch, name):
    positive = axes_of(shape, axes, name)
    along = {
        axis: np.arange(shape[axis]) // length for axis, length in zip(positive, patch, strict=True)
    }
    return _cells(along, len(shape))


def _grid_cells(shape, axes, grid, name):
    positive = axes_of(shape, axes, name)
    sizes = tuple(shape[axis] for axis in positive)
    if any(cells > size for cells, size in zip(grid, sizes, strict=True)):
        raise ValueError(
            f"{name}: a grid of {grid} cells along axes {axes} is finer than x, of shape {shape}. "
            "Type grid=None to make every entry of the attribution a cell."
        )
    along = {
        axis: np.arange(size) * cells // size
        for axis, size, cells in zip(positive, sizes, grid, strict=True)
    }
    return _cells(along, len(shape))


def _cells(along, ndim):
    """The number of each position's cell, of its numbers along each axis; of length 1 elsewhere."""
    numbers = [along.get(axis, np.zeros(1, int)) for axis in range(ndim)]
    counts = [number[-1] + 1 for number in numbers]
    return np.ravel_multi_index(np.ix_(*numbers), counts).astype(np.int32)


def _rank(importance):
    """The rank of each feature, 0 for the most important one, as a flat array."""
    descending = order(importance)
    places = jnp.arange(descending.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[descending].set(places, unique_indices=True)


def _random_subset(key, num, size):
    """A mask of `size` of `num` features, all subsets of that size being equally likely.

    Floyd's algorithm: in step j, up to the last index, a random index up to j joins the subset, or
    j itself does if that one is in already. Sorting random numbers takes 10 to 100 times as long.
    """
    last = num - size + jnp.arange(size, dtype=jnp.int32)
    candidates = jax.random.randint(key, (size,), 0, last + 1, last.dtype)

    def step(j, mask):
        chosen = jnp.where(mask[candidates[j]], last[j], candidates[j])
        return mask.at[chosen].set(True)

    return jax.lax.fori_loop(0, size, step, jnp.zeros(num, bool))


def _area(curve):
    return jnp.trapezoid(curve.value, curve.fraction)
