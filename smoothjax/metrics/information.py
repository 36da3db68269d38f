"""Information curves: the score as a function of the information in an image, by importance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._axes import IMAGE, axes_of, check_axes
from smoothjax._checks import check_function, require
from smoothjax._loop import check_count
from smoothjax._shown import shown
from smoothjax._transform import noted
from smoothjax._trees import wide_dtype
from smoothjax._typing import Axes, Metric, Score
from smoothjax.attribution.gradient import baseline_like
from smoothjax.metrics._arguments import metric
from smoothjax.metrics._features import along_paths, blurred_unless, judging, rank_of
from smoothjax.metrics.curves import Curve

_LEVELS = 100


@shown
@noted
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

    >>> bits = sj.metrics.residual_bits
    >>> print(bits(jnp.full((8, 8), 99.0)), bits(jnp.diag(jnp.array([0.0, 7.0]))))
    0.0 3.0
    """
    require(
        image.ndim >= 2,
        f"the bits are those of an image of shape (H, W) or (H, W, channels); got {image.shape}. "
        "For other data, give a function of yours as `information`.",
    )
    predicted = (image[:-1, 1:] + image[1:, :-1]) / 2
    return jnp.sum(jnp.log2(1 + jnp.abs(image[1:, 1:] - predicted)))


@metric
def information_curve(
    score: Score,
    *,
    information: Callable[[jax.Array], jax.Array] = residual_bits,
    num_steps: int = 16,
    baseline: Any = None,
    axes: Axes = IMAGE,
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
      information: a function of an image, an array like x with `axes` moved first, that is scaled
        from the range of x to 0 to 255, not rounded, that returns a scalar, in any unit. Another
        blurred image may leave that range. The default is for two axes, (H, W) and (H, W,
        channels).
      num_steps: the number of steps.
      baseline: what x is restored onto, in the grammar of `deletion_curve`; by default x blurred by
        `blur(10, axes)`, for photos of about 224 pixels.
      axes: the spatial axes of x, as in `deletion_curve`, which the default baseline blurs.
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

    >>> x = jax.random.normal(jax.random.key(0), (32, 32))
    >>> score = lambda params, x: jnp.mean(x[:8] ** 2)  # it depends on the upper quarter
    >>> metric = jax.jit(sj.metrics.area(sj.metrics.information_curve(score)))
    >>> upper = jnp.where(jnp.arange(32)[:, None] < 8, 1.0, jnp.zeros((32, 32)))
    >>> print(metric(None, x, upper) > 2 * metric(None, x, -upper))
    True
    """
    judged, axes = judging(score, argnum, axes), check_axes(axes)
    check_function(information, "information")
    require(
        information is not residual_bits or len(axes) == 2,
        f"residual_bits are those of an image, and axes are {axes}. For other data, give a "
        "function of yours as `information`.",
    )
    num_steps = check_count(num_steps, "num_steps")
    along = along_paths(chunk_size)

    def curve(key, *args, **kwargs):
        x, attribution, query = judged(args, kwargs)
        bits_of = _information_of(information, x, axes)
        rank = rank_of(attribution).reshape(attribution.shape)
        counts = np.arange(num_steps + 1) ** 2 * attribution.size // num_steps**2
        path = (baseline_like(blurred_unless(baseline, axes), x), x)
        scores, bits = along(
            lambda image: (query(key, image), bits_of(image)), rank, counts, [path]
        )
        found = _best_by_level(scores, (bits - bits[0]) / (bits[-1] - bits[0]))
        known = (bits[-1] > bits[0]) & ~jnp.any(jnp.isnan(attribution))
        return found._replace(value=jnp.where(known, found.value, jnp.nan))

    return curve


def _information_of(information, x, axes):
    """The function of an image to its information, on the scale of x from 0 to 255."""
    least, most = jnp.min(x), jnp.max(x)
    axes = axes_of(x.shape, axes)

    def bits_of(image):
        image = jnp.moveaxis(image, axes, range(len(axes)))
        shown, low, high = (a.astype(wide_dtype(x.dtype)) for a in (image, least, most))
        bits = jnp.asarray(information(255 * (shown - low) / (high - low)))
        require(bits.shape == (), f"information must return a scalar; got shape {bits.shape}.")
        return bits.astype(wide_dtype(bits.dtype))

    return bits_of


def _best_by_level(scores, level):
    """The greatest score of the images of no more information, at equal levels of it."""
    level = level.astype(scores.dtype)
    no_more = level[None, :] <= level[:, None]
    best = jnp.max(jnp.where(no_more, scores[None, :], -jnp.inf), axis=1)
    by_level = jnp.argsort(level)
    fraction = jnp.linspace(0, 1, _LEVELS + 1, dtype=scores.dtype)
    return Curve(fraction, jnp.interp(fraction, level[by_level], best[by_level]))
