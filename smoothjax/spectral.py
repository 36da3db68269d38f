"""Maps in the frequency domain: low-pass filters, their best cut-off, and where a map is signal.

Frequencies are radii in cycles per image: bin k of an axis of n elements has the frequency
`min(k, n - k) * longest / n`, in cycles per longest filtered axis, and a radius is the Euclidean
norm over the filtered axes. So a disc of radii is isotropic in the image, whatever its shape.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax.pooling import map_leaves
from smoothjax.reductions import (
    Reduction,
    abs2,
    check_no_estimate,
    mean_and_stderr,
    summary,
    t_test,
    variance_of_mean,
)
from smoothjax.transform import (
    Explainer,
    axes_of,
    check_at_least,
    check_axes,
    check_callable,
    check_integer,
    check_number,
    is_stochastic,
    keyed,
    named,
    wide_dtype,
)

PyTree = Any
Window = Callable[[Any, Any], Any]
Axes = Sequence[int]


def disc(radius: Any, cutoff: Any) -> Any:
    """Returns the gain of the ideal low-pass: True where `radius <= cutoff`, to a part in 1e6.

    Args:
      radius: an array of radii in cycles per image.
      cutoff: a scalar in the same unit.

    Returns:
      An array of bools like `radius`.

    Source: Muzellec et al. 2024, arXiv 2307.09591.

    >>> import numpy as np
    >>> from smoothjax.spectral import disc
    >>> print(disc(np.array([0.0, 5.0, 5.1]), 5.0))
    [ True  True False]
    """
    return radius <= cutoff * (1 + 1e-6)


def butterworth(order: int) -> Window:
    """Returns a window with a soft edge, the gain `1 / sqrt(1 + (radius / cutoff)**(2 * order))`.

    It passes half of the power, 0.71 of the amplitude, at the cut-off. It rings less than the disc,
    which is its limit for high orders; filtering twice is not filtering once.

    Args:
      order: how steep the edge is, 1 or more; 2 is common.

    Returns:
      A function `(radius, cutoff) -> gain` for `lowpass` and `forgrad`.

    Raises:
      TypeError, ValueError: if `order` is no integer, or below 1.

    Source: Butterworth 1930, On the theory of filter amplifiers.

    >>> import numpy as np
    >>> from smoothjax.spectral import butterworth
    >>> print(butterworth(2)(np.array([0.0, 5.0, 10.0]), 5.0).round(2))
    [1.   0.71 0.24]
    """
    order = check_at_least(order, 1, "butterworth: order")

    def window(radius, cutoff):
        gain = 1 / jnp.sqrt(1 + (jnp.asarray(radius) / cutoff) ** (2 * order))
        return jnp.where(radius == 0, 1, gain)  # the mean passes a cut-off of 0, which makes 0 / 0

    return window


def lowpass(
    explain: Explainer, cutoff: Any, *, axes: Axes = (0, 1), window: Window = disc
) -> Explainer:
    """Returns an explainer of the map without its frequencies above `cutoff`.

    `filtered = F^-1(F(explain(...)) * window(radius, cutoff))`, F the discrete Fourier transform.
    It is linear and keeps the mean, so signed maps stay signed, channels stay apart, and filtering
    commutes with averaging: `lowpass(smoothgrad(f), c)` is `smoothgrad(lowpass(f, c))`, cheaper.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first, that
        returns a pytree of maps of real floating-point numbers.
      cutoff: a radius, not a diameter, in cycles per image: bins of the Fourier transform along the
        longest of `axes`. 0 keeps the mean alone; from `sqrt(len(axes)) / 2` times the longest axis
        on, the disc keeps everything. It may be traced, so one compiled program serves them all.
      axes: the one to three axes of each leaf that span the image; the others are left apart.
      window: a function `(radius, cutoff) -> gain` of an array of radii: `disc` or
        `butterworth(order)`.

    Returns:
      An explainer, stochastic if `explain` is, of maps of the same structure, shape and dtype. They
      are filtered in at least float32. NaN and inf spread over the filtered axes.

    Raises:
      TypeError, ValueError: here for a cut-off that is no number, negative or NaN, and for bad
        axes or windows; when called, for maps without those axes, maps that are not real
        floating-point, or an `Estimate`, whose standard error cannot be filtered.

    Cost: that of `explain`, and a Fourier transform and back.

    Source: Muzellec et al. 2024, arXiv 2307.09591.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.spectral import lowpass
    >>> wave = jnp.cos(2 * jnp.pi * 3 * jnp.arange(8.0) / 8)
    >>> explain = jax.jit(lowpass(lambda params, x: params + x, cutoff=2, axes=(0,)))
    >>> print(jnp.abs(explain(1.0, wave)).round(3))
    [1. 1. 1. 1. 1. 1. 1. 1.]
    """
    cutoff = _check_cutoff(cutoff, "lowpass: cutoff")
    axes = _check_axes(axes, "lowpass")
    check_callable(window, "lowpass: window")
    return map_leaves(
        "lowpass", explain, lambda leaf: _filter(leaf, cutoff, axes, window, "lowpass")
    )


def forgrad(
    explain: Explainer,
    cutoff: Any = 15,
    *,
    channel_axis: int | None = -1,
    window: Window = disc,
) -> Explainer:
    """Returns an explainer of FORGrad: `|lowpass(|mean over channels of explain(...)|)|`.

    The absolute value comes before the filter, as in the paper, so that neighbours of opposite sign
    add up instead of cancelling. All axes but the channels are filtered. Of a map that was pooled
    already, an (H, W) for instance, the last axis would be taken for the channels: type
    `channel_axis=None`.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first, that
        returns a pytree of maps of real floating-point numbers.
      cutoff: a radius, not a diameter, in cycles per image, as in `lowpass`. The authors' 15 is for
        maps of 224 x 224; `best_cutoff` finds yours.
      channel_axis: the axis that is averaged and dropped; None for maps without channels.
      window: a function `(radius, cutoff) -> gain`, as in `lowpass`.

    Returns:
      An explainer, stochastic if `explain` is, of maps that are nowhere negative and lack the
      channel axis, of the same dtype.

    Raises:
      TypeError, ValueError: as `lowpass` does.

    Cost: that of `explain`, and a Fourier transform and back.

    Source: Muzellec et al. 2024, arXiv 2307.09591.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.spectral import forgrad
    >>> explain = jax.jit(forgrad(jax.grad(lambda w, x: jnp.sum(w * x), argnums=1), cutoff=0))
    >>> print(explain(jnp.array([[[1.0, 3.0], [-1.0, -5.0]]]), jnp.ones((1, 2, 2))))
    [[2.5 2.5]]
    """
    cutoff = _check_cutoff(cutoff, "forgrad: cutoff")
    if channel_axis is not None:
        channel_axis = check_integer(channel_axis, "forgrad: channel_axis")
    check_callable(window, "forgrad: window")

    def pipeline(leaf):
        leaf = _check_map(leaf, "forgrad")
        pooled = leaf.astype(wide_dtype(leaf.dtype))
        if channel_axis is not None:
            if leaf.ndim < 2 or not -leaf.ndim <= channel_axis < leaf.ndim:
                raise ValueError(
                    f"forgrad: a map of shape {leaf.shape} has no channel axis {channel_axis} "
                    "beside axes to filter. Type channel_axis=None for maps without channels."
                )
            pooled = jnp.mean(pooled, axis=channel_axis)
        axes = _check_axes(range(pooled.ndim), "forgrad")
        filtered = _filter(jnp.abs(pooled), cutoff, axes, window, "forgrad")
        return jnp.abs(filtered).astype(leaf.dtype)

    return map_leaves("forgrad", explain, pipeline)


def power_spectrum(attribution: PyTree, axes: Axes = (0, 1)) -> PyTree:
    """Returns the power of each map in rings of equal frequency; it sums to the mean square.

    Ring r holds the frequencies of radius `r - 1/2 <= radius < r + 1/2`, in cycles per image as in
    `lowpass`; ring 0 is the squared mean alone. Rings beyond half of the longest axis hold what the
    corners of the Fourier transform do, so that no power is lost; a ring can be empty, its power 0.

    Args:
      attribution: a pytree of maps of real floating-point numbers.
      axes: the one to three axes of each leaf that span the image.

    Returns:
      A pytree of arrays of shape (rings, *the other axes), in at least float32. The sum over rings
      is the mean over `axes` of the squared map (Parseval), so its unit is the map's squared.

    Raises:
      TypeError, ValueError: for bad axes, or maps that are not real floating-point.

    Cost: a Fourier transform.

    Source: Muzellec et al. 2024, arXiv 2307.09591, for its use on attributions.

    >>> import jax.numpy as jnp
    >>> from smoothjax.spectral import power_spectrum
    >>> print(power_spectrum(3 + 2 * jnp.cos(2 * jnp.pi * jnp.arange(8.0) / 8), axes=(0,)).round(2))
    [9. 2. 0. 0. 0.]
    """
    axes = _check_axes(axes, "power_spectrum")
    check_no_estimate(attribution, "power_spectrum")

    def of_map(leaf):
        leaf = _check_map(leaf, "power_spectrum")
        positive = _axes_of(leaf.shape, axes, "power_spectrum")
        return _ring_sums(abs2(_transform(leaf, positive)), _sizes(leaf.shape, positive))

    return jax.tree.map(of_map, attribution)


@summary
class SignalAndNoise(NamedTuple):
    """Where in the spectrum a Monte-Carlo mean is signal, and where it is noise.

    `power - noise` estimates the power of the noise-free map without bias; it can be negative.

    Attributes:
      power: the power spectrum of the mean of the draws, as `power_spectrum` gives it.
      noise: the power of that mean's standard error: what the draws' scatter adds to `power`.
      num_samples: the number of draws that were taken.
    """

    power: PyTree
    noise: PyTree
    num_samples: jax.Array


def signal_and_noise(axes: Axes = (0, 1)) -> Reduction:
    """Returns the reduction to a `SignalAndNoise`: power of the mean and of its standard error.

    Both are per ring of frequencies, as in `power_spectrum`. The noise is estimated from the
    spectrum of every draw, for errors of neighbouring pixels are correlated, and pixelwise standard
    errors do not tell at which frequencies. Summed over rings it is the mean squared standard error
    of the pixels. At least two draws.

    Args:
      axes: the one to three axes of each leaf that span the image.

    Returns:
      A `Reduction` to a `SignalAndNoise` of arrays of shape (rings, *the other axes).

    Raises:
      TypeError, ValueError: as `power_spectrum` does.

    Cost: a Fourier transform per draw, and the memory of one and a half maps.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.spectral import signal_and_noise
    >>> explain = sj.smoothgrad(lambda params, x: x, 0.5, reduction=signal_and_noise(axes=(0,)))
    >>> rings = jax.jit(explain)(jax.random.key(0), None, jnp.ones(9))
    >>> rings.power.shape, rings.noise.shape, int(rings.num_samples)
    ((5,), (5,), 50)
    """
    name = "signal_and_noise"
    axes = _check_axes(axes, name)

    def finish(draws, spectra, variances, num_samples):
        def rings(draw, bins):
            return _ring_sums(bins, _sizes(draw.shape, _axes_of(draw.shape, axes, name)))

        return SignalAndNoise(
            jax.tree.map(rings, draws, jax.tree.map(abs2, spectra)),
            jax.tree.map(rings, draws, variances),
            num_samples,
        )

    return _of_spectra(lambda leaf: _spectrum(leaf, axes, name), finish)


def wiener(axes: Axes = (0, 1), *, channel_axis: int | None = None) -> Reduction:
    """Returns the reduction to the mean of the draws, shrunk where in the spectrum it is noise.

    Each ring of frequencies is multiplied by the share of its power that is signal,
    `max(1 - var(mean) / power(mean), 0)`, both estimated from the same draws, over the ring and
    three more on either side. That is a Wiener filter that needs no tuning and fades as draws are
    added. The mean over the map is not shrunk. At least two draws.

    Channels are shrunk one by one, or, with a `channel_axis`, jointly: by a matrix for each ring,
    `1 - noise @ inv(signal + noise)`, with the covariances over channels of the noise and of the
    signal, which is what is positive in `power - noise`. Where noise is more alike in the channels
    of a map than signal is, or less, that tells them apart: for noise on the pixels of photos it
    takes a quarter fewer draws.

    It trades variance for bias: the map is too small and too smooth, all the more where it drowns
    in noise, at high frequencies first, and maps of different keys share that bias, so that they
    agree better than their distance to the limit would tell. Of its gain in squared error a large
    part is the smaller scale alone, which no picture shows (figures in benchmarks/README.md).

    Args:
      axes: the one to three axes of each leaf that span the image.
      channel_axis: the axis of each leaf that is shrunk jointly, such as -1; None for none.

    Returns:
      A `Reduction` to maps like one draw.

    Raises:
      TypeError, ValueError: as `power_spectrum` does, and for a channel axis that is among `axes`,
        or that a map does not have.

    Cost: a Fourier transform per draw, and the memory of one and a half maps. Of `c` joint
    channels, that of `(c + 1) / 2` times as many, and at the end an eigendecomposition and a
    solution of c equations for each ring. NaN in one of them spreads to all. Its second derivatives
    are NaN where two eigenvalues are equal, as in maps of zeros.

    Source: Wiener 1949, Extrapolation, interpolation, and smoothing of stationary time series.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.spectral import wiener
    >>> reduction = wiener(channel_axis=-1)
    >>> explain = jax.jit(sj.smoothgrad(lambda params, x: x, 1.0, reduction=reduction))
    >>> explain(jax.random.key(0), None, jnp.zeros((8, 8, 3))).shape
    (8, 8, 3)
    """
    axes = _check_axes(axes, "wiener")
    if channel_axis is not None:
        channel_axis = check_integer(channel_axis, "wiener: channel_axis")
        if channel_axis in axes:
            raise ValueError(
                f"wiener: channel_axis {channel_axis} is among axes {axes}, which span the image. "
                "Type channel_axis=None for maps without channels."
            )

    def transform(leaf):
        spectrum = _spectrum(leaf, axes, "wiener")
        if channel_axis is None:
            return spectrum
        return _midpoints(jnp.moveaxis(spectrum, _channels_of(leaf.shape, axes, channel_axis), -1))

    def finish(draws, spectra, variances, num_samples):
        del num_samples

        def shrink(draw, spectrum, variance):
            positive = _axes_of(draw.shape, axes, "wiener")
            sizes = _sizes(draw.shape, positive)
            power, noise = (_pooled(_ring_sums(p, sizes)) for p in (abs2(spectrum), variance))
            if channel_axis is None:
                gain = _signal_share(power, noise)[_rings(sizes)]
                shrunk = spectrum * gain.astype(spectrum.dtype)
            else:
                gain = _signal_matrix(_covariances(power), _covariances(noise))[_rings(sizes)]
                shrunk = jnp.sum(gain.astype(spectrum.dtype) * _ends(spectrum)[..., None, :], -1)
                channels = _channels_of(draw.shape, axes, channel_axis)
                shrunk = jnp.moveaxis(shrunk, -1, channels)
            return _inverse(shrunk, sizes, positive).astype(draw.dtype)

        return jax.tree.map(shrink, draws, spectra, variances)

    return _of_spectra(transform, finish)


@summary
class CutoffSearch(NamedTuple):
    """How faithful the maps are at each cut-off, and which cut-off to take.

    Attributes:
      cutoffs: the cut-offs that were tried, shape (cutoffs,).
      mean: the mean faithfulness over the examples at each of them.
      stderr: the standard error of each mean. Neighbours share their examples, so compare two
        cut-offs by the differences of their `scores`, not by these.
      scores: the faithfulness of each example at each cut-off, shape (examples, cutoffs).
      best: the cut-off of the highest mean, the first of equals; NaN if a mean is NaN.
      parsimonious: the smallest cut-off, so the most filtering, whose mean is within one paired
        standard error of the best.
      flat: whether no cut-off can be told from the best: a bool, True where a score is NaN.
    """

    cutoffs: jax.Array
    mean: jax.Array
    stderr: jax.Array
    scores: jax.Array
    best: jax.Array
    parsimonious: jax.Array
    flat: jax.Array


def best_cutoff(
    explain: Explainer,
    faithfulness: Callable[..., Any],
    cutoffs: Any,
    *,
    transform: Callable[[Explainer, Any], Explainer] = forgrad,
) -> Callable[..., CutoffSearch]:
    """Returns a function of data that finds the cut-off of the most faithful maps on average.

    Each attribution is computed once, then filtered and scored at every cut-off. Standard errors of
    differences from the best are paired: taken over the examples' own differences, since examples
    differ from each other far more than cut-offs do. The curve is flat if no cut-off differs from
    the best by a two-sided paired t-test at 5 %, corrected for the number of pairs (Bonferroni), as
    the best was picked after looking. Then a `UserWarning` says so; under `jax.jit`, which cannot
    warn, read the flag.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      faithfulness: a function `faithfulness(params, x, attribution, *rest)` to a scalar, higher for
        better, such as insertion minus deletion; or a stochastic one, whose key is the same for all
        cut-offs of an example.
      cutoffs: two or more radii in cycles per image; `inf` stands for no filter.
      transform: what `transform(explain, cutoff)` to tune, a function that takes a traced cut-off:
        `forgrad`, `lowpass`, or one of yours, like
        `lambda explain, cutoff: lowpass(pool(explain, jnp.sum), cutoff)`.

    Returns:
      A function `search(params, xs, *rest)`, with a key first if `explain` or `faithfulness` is
      stochastic, to a `CutoffSearch`. `xs` and each of `rest` have a leading axis of two or more
      examples, of independent noise: example i uses `fold_in(key, i)`.

    Raises:
      TypeError, ValueError: here for a bad cut-off or an argument that is no function; when called,
        for fewer than two examples, or a faithfulness that is no scalar.

    Cost: for each example one evaluation of `explain` and one of `faithfulness` for every cut-off,
    one after the other, so in the memory of one.

    Source: Muzellec et al. 2024, arXiv 2307.09591, who take the best.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.spectral import best_cutoff, lowpass
    >>> smooth = jnp.cos(2 * jnp.pi * jnp.arange(16.0) / 16)[:, None]
    >>> def faithfulness(params, x, attribution):
    ...     return -jnp.sum((attribution - smooth) ** 2)
    >>> search = best_cutoff(lambda params, x: x, faithfulness, [0, 2, 8], transform=lowpass)
    >>> xs = smooth[None] + jax.random.normal(jax.random.key(0), (20, 16, 1))
    >>> found = jax.jit(search)(None, xs)
    >>> print(found.best, found.parsimonious, found.flat)
    2.0 2.0 False
    """
    check_callable(explain, "best_cutoff")
    check_callable(faithfulness, "best_cutoff: faithfulness")
    check_callable(transform, "best_cutoff: transform")
    radii = _check_cutoffs(cutoffs)
    attribute, judge = keyed(explain), keyed(faithfulness)
    takes_key = is_stochastic(explain) or is_stochastic(faithfulness)

    @named("best_cutoff", explain, takes_key=takes_key)
    def search(key, params, xs, *rest):
        def of_example(example):
            index, x, rest = example
            keys = jax.random.split(jax.random.fold_in(key, index)) if takes_key else (None, None)
            attribution = attribute(keys[0], params, x, *rest)

            def of_cutoff(cutoff):
                filtered = transform(lambda: attribution, cutoff)()
                return _check_score(judge(keys[1], params, x, filtered, *rest))

            return jax.lax.map(of_cutoff, tried)

        tried = jnp.asarray(radii, float)
        indices = jnp.arange(_num_examples((xs, rest)))
        found = _choose(tried, jax.lax.map(of_example, (indices, xs, rest)))
        if not isinstance(found.flat, Tracer) and found.flat:
            warnings.warn(_FLAT.format(best=found.best, num=len(indices)), stacklevel=3)
        return found

    return search


_FLAT = (
    "best_cutoff: the curve is flat within its errors: on {num} examples no cut-off differs from "
    "the best ({best:g}) beyond chance. Give it more examples, or take its `parsimonious`."
)


def _choose(cutoffs, scores):
    num, tried = scores.shape

    def mean_and_error(values):
        return jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1) / np.sqrt(num).item()

    mean, stderr = mean_and_error(scores)
    top = jnp.argmax(mean)
    gap, error = mean_and_error(scores[:, top][:, None] - scores)
    known = jnp.where(jnp.isnan(mean[top]), jnp.nan, cutoffs)
    parsimonious = jnp.min(jnp.where(gap > error, jnp.inf, known))

    # The test is of 0 / 0 for the best itself.
    chance = jnp.where(gap == 0, 1, t_test(gap, error, num))
    flat = ~(jnp.min(chance) * (tried * (tried - 1) / 2) <= 0.05)  # also where a score is NaN
    return CutoffSearch(cutoffs, mean, stderr, scores, known[top], parsimonious, flat)


def _num_examples(batched):
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batched)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            "best_cutoff: xs and what follows it must share a leading axis of two or more "
            f"examples; got arrays of shapes {shapes!s:.200}."
        )
    return sizes.pop()


def _check_score(score):
    if jnp.shape(score) != () or not jnp.issubdtype(jnp.result_type(score), jnp.floating):
        raise TypeError(
            "best_cutoff: faithfulness(params, x, attribution, *rest) must return a floating-point "
            f"scalar for one example; got {score!r:.80}."
        )
    return jnp.asarray(score, wide_dtype(jnp.result_type(score)))


# Dtypes and shapes are no arrays, so they ride along as a static field of the state.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Spectra:
    moments: PyTree
    draws: tuple = dataclasses.field(metadata={"static": True})


def _of_spectra(transform, finish):
    """The reduction to `finish(draw, spectrum, variance, num_samples)`.

    `spectrum` is the mean of `transform` of the leaves of the draws, `variance` that of this mean
    in each of its bins.
    """

    def spectra(draw):
        return jax.tree.map(transform, draw)

    def reduced_by(moments, finalize, second_pass=None):
        def init(draw, num):
            state = moments.init(jax.eval_shape(spectra, draw), num)
            return _Spectra(state, tuple(jax.tree.leaves(draw)))

        def update(state, draws):
            updated = moments.update(state.moments, jax.vmap(spectra)(draws))
            return dataclasses.replace(state, moments=updated)

        return Reduction(init, update, finalize, moments.min_samples, second_pass)

    first = mean_and_stderr()

    def second_pass(final):
        assert first.second_pass is not None
        moments = first.second_pass(final.moments)

        def finalize(state):
            return dataclasses.replace(state, moments=moments.finalize(state.moments))

        return reduced_by(moments, finalize)

    def finalize(state):
        n, mean, m2 = state.moments.count, state.moments.mean, state.moments.m2
        # Not the standard error squared, whose root has no derivative where it is 0.
        variance = jax.tree.map(lambda leaf: variance_of_mean(leaf, n), m2)
        draw = jax.tree.structure(mean).unflatten(state.draws)
        return finish(draw, mean, variance, n)

    return reduced_by(first, finalize, second_pass)


def _signal_share(power, noise):
    """The gain of each ring: 1 - noise / power, not below 0; and 1 for ring 0, the mean itself."""
    has_signal = power > noise
    share = jnp.where(has_signal, 1 - noise / jnp.where(has_signal, power, 1), 0)
    return share.at[0].set(1)


# Of small matrices: in full, it costs nothing, and a GPU's default rounds to 10 bits.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _signal_matrix(power, noise):
    """The gain of each ring, a matrix over channels: `1 - noise @ inv(signal + noise)`."""
    own = jnp.diagonal(power, axis1=-2, axis2=-1)
    scale = jnp.sqrt(jnp.where(own > 0, own, 1))  # so that no channel's unit matters
    row, column = scale[..., None], scale[..., None, :]
    power, noise = power / row / column, noise / row / column
    eye = jnp.broadcast_to(jnp.eye(power.shape[-1], dtype=power.dtype), power.shape)
    # Equal channels have no inverse, neither have those of which all is noise.
    total = _positive_part(power - noise) + noise + 1e-6 * eye * (1 + noise)
    gain = eye - jnp.linalg.solve(total, noise).mT
    return (row * gain / column).at[0].set(eye[0])


@jax.custom_jvp
def _positive_part(matrix):
    """`max(matrix, 0)` in the sense of eigenvalues, of symmetric matrices."""
    values, vectors = jnp.linalg.eigh(matrix)
    return _matmul(vectors * jnp.maximum(values, 0)[..., None, :], vectors.mT)


@_positive_part.defjvp
def _(primals, tangents):
    """Finite also where eigenvalues are equal, unlike that of an eigendecomposition.

    Its own derivative, the second, is not.
    """
    (matrix,), (tangent,) = primals, tangents
    values, vectors = jnp.linalg.eigh(matrix)
    # (max(a, 0) - max(b, 0)) / (a - b), written for all pairs of signs.
    whole = _sums_of_pairs(jnp.abs(values))
    slope = _sums_of_pairs(jnp.maximum(values, 0)) / jnp.where(whole > 0, whole, 1)
    inner = slope * _matmul(vectors.mT, _matmul(tangent, vectors))
    return _positive_part(matrix), _matmul(vectors, _matmul(inner, vectors.mT))


def _sums_of_pairs(x):
    return x[..., None] + x[..., None, :]


def _midpoints(channels):
    """`(a + b) / 2` for each pair of channels, along the last axis; of a with itself, a.

    The variances of these tell the covariances.
    """
    first, second = np.triu_indices(channels.shape[-1])
    return (channels[..., first] + channels[..., second]) / 2


def _pairs(num_midpoints):
    """The index of each pair's midpoint, a symmetric matrix."""
    num = math.isqrt(2 * num_midpoints)
    index = np.zeros((num, num), int)
    index[np.triu_indices(num)] = np.arange(num_midpoints)
    return np.maximum(index, index.T)


def _ends(midpoints):
    return midpoints[..., np.diagonal(_pairs(midpoints.shape[-1]))]


def _covariances(variances):
    """The covariance matrices of channels, of the variances of their midpoints.

    `cov(a, b) = 2 var((a + b) / 2) - (var(a) + var(b)) / 2`.
    """
    sums = _sums_of_pairs(_ends(variances))
    covariances = 2 * variances[..., _pairs(variances.shape[-1])] - sums / 2
    # What float32 leaves of a difference of larger numbers is none.
    return jnp.where(jnp.abs(covariances) > 2e-6 * sums, covariances, 0)


def _pooled(sums):
    """Sums over rings, each but ring 0 taken together with three neighbours on either side.

    Single rings have few bins: pooled, eight draws do better by 5 % (figures in
    benchmarks/README.md).
    """
    ring = np.arange(len(sums) - 1)
    near = (abs(ring[:, None] - ring) <= 3).astype(sums.dtype)
    wide = jnp.tensordot(near, sums[1:], (1, 0), precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([sums[:1], wide])


def _filter(leaf, cutoff, axes, window, name):
    leaf = _check_map(leaf, name)
    axes = _axes_of(leaf.shape, axes, name)
    sizes = _sizes(leaf.shape, axes)
    radius = _radii(sizes)
    dtype = wide_dtype(leaf.dtype)
    if isinstance(cutoff, Tracer):
        radius, cutoff = radius.astype(dtype), cutoff.astype(dtype)
    gain = window(radius, cutoff)
    if jnp.shape(gain) != radius.shape:
        raise ValueError(
            f"{name}: window(radius, cutoff) must return a gain for each radius, an array of shape "
            f"{radius.shape}; got {gain!r:.80}."
        )
    if isinstance(gain, np.ndarray) and np.all(gain == 1):
        return leaf  # exactly, where the transform and back would round
    if isinstance(cutoff, Tracer):  # too late for an error
        gain = jnp.where(cutoff >= 0, jnp.asarray(gain).astype(dtype), jnp.nan)
    spectrum = _transform(leaf, axes)
    gain = jnp.expand_dims(jnp.asarray(gain, spectrum.dtype), range(len(axes), leaf.ndim))
    return _inverse(spectrum * gain, sizes, axes).astype(leaf.dtype)


def _radii(sizes):
    """The radius of each bin of the half spectrum of a real map, in cycles per longest axis."""

    def cycles(n, bins):
        k = np.arange(bins)
        return np.minimum(k, n - k) * max(sizes) / n

    *full, last = sizes
    grid = [*(cycles(n, n) for n in full), cycles(last, last // 2 + 1)]
    return np.sqrt(sum(np.square(np.meshgrid(*grid, indexing="ij"))))


def _rings(sizes):
    """The ring of each bin of the half spectrum: its radius, rounded half up."""
    return np.floor(_radii(sizes) + 0.5).astype(np.int32)


def _ring_sums(power, sizes):
    """Sums what each bin of the half spectrum holds over the rings of the full one."""
    rings = _rings(sizes)
    k = np.arange(rings.shape[-1])
    # Of each pair of conjugate bins the half spectrum has one; the mean and Nyquist have no other.
    count = np.where((k == 0) | (2 * k == sizes[-1]), 1, 2)
    count = np.broadcast_to(count, rings.shape).astype(power.dtype)
    weighted = power * jnp.expand_dims(count, range(rings.ndim, power.ndim))
    flat = weighted.reshape(rings.size, *power.shape[rings.ndim :])
    return jax.ops.segment_sum(flat, rings.ravel(), int(rings.max()) + 1)


def _spectrum(leaf, axes, name):
    return _transform(_check_map(leaf, name), _axes_of(leaf.shape, axes, name))


def _transform(leaf, axes):
    """The half spectrum of a real map in at least float32, axes first; its bin 0 is the mean."""
    leading = range(len(axes))
    leaf = jnp.moveaxis(leaf.astype(wide_dtype(leaf.dtype)), axes, leading)
    return jnp.fft.rfftn(leaf, axes=leading, norm="forward")


def _inverse(spectrum, sizes, axes):
    leading = range(len(axes))
    leaf = jnp.fft.irfftn(spectrum, s=sizes, axes=leading, norm="forward")
    return jnp.moveaxis(leaf, leading, axes)


def _sizes(shape, axes):
    return tuple(shape[axis] for axis in axes)


def _axes_of(shape, axes, name):
    """Returns `axes` counted from 0, or raises unless a map of that shape has elements there."""
    positive = axes_of(shape, axes, name)
    if 0 in _sizes(shape, positive):
        raise ValueError(f"{name}: a map of shape {shape} has no elements along axes {axes}.")
    return positive


def _channels_of(shape, axes, channel_axis):
    """Where the channels of a map are in its spectrum, whose axes come first."""
    positive = _axes_of(shape, axes, "wiener")
    channels = channel_axis % len(shape)
    if channels in positive or not -len(shape) <= channel_axis < len(shape):
        raise ValueError(
            f"wiener: a map of shape {shape} has no channel axis {channel_axis} beside axes "
            f"{axes}. Type channel_axis=None for maps without channels."
        )
    others = [axis for axis in range(len(shape)) if axis not in positive]
    return len(positive) + others.index(channels)


def _check_map(leaf, name):
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"{name} takes maps of real floating-point numbers; got one of dtype {leaf.dtype}. "
            "Convert it, map.astype(jnp.float32), or take its jnp.abs if it is complex."
        )
    return leaf


def _check_axes(axes, name):
    axes = check_axes(axes, name)
    if len(axes) > 3:
        raise ValueError(f"{name} filters one to three axes of a map at once; got axes {axes}.")
    return axes


def _check_cutoff(cutoff, what):
    """Returns a cut-off as a float, or as it is if traced, or raises."""
    if isinstance(cutoff, (np.ndarray, jax.Array)) and cutoff.shape != ():
        raise ValueError(
            f"{what} must be one number; got an array of shape {cutoff.shape}. For many "
            "cut-offs in one program, use jax.lax.map or jax.vmap, or best_cutoff."
        )
    if isinstance(cutoff, Tracer) and jnp.isdtype(cutoff.dtype, ("integral", "real floating")):
        return cutoff
    number = check_number(cutoff, what)
    if not number >= 0:
        raise ValueError(f"{what} must be 0 or more, in cycles per image; got {cutoff}.")
    return number


def _check_cutoffs(cutoffs):
    tried = list(cutoffs) if np.iterable(cutoffs) else []
    if len(tried) < 2:
        raise ValueError(
            "best_cutoff: cutoffs must be two or more numbers, such as [5, 15, 60, math.inf]; got "
            f"{cutoffs!r:.80}."
        )
    return [_check_cutoff(cutoff, "best_cutoff: each of cutoffs") for cutoff in tried]
