"""Power spectra of maps and of their noise, and the mean that is shrunk where it is noise."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from smoothjax._axes import IMAGE
from smoothjax._transform import map_noted, noted, noting
from smoothjax._typing import Axes, PyTree
from smoothjax.reductions import (
    Reduction,
    abs2,
    check_no_estimate,
    mean_and_stderr,
    summary,
    variance_of_mean,
)
from smoothjax.spectral._fourier import (
    axes_beside,
    check_image_axes,
    check_joint_axes,
    check_sizes,
    fourier,
    inverse,
    real_map,
    ring_sums,
    rings,
    scale,
)


@noted
def power_spectrum(attribution: PyTree, axes: Axes = IMAGE) -> PyTree:
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

    >>> wave = 3 + 2 * jnp.cos(2 * jnp.pi * jnp.arange(8.0) / 8)
    >>> print(sj.spectral.power_spectrum(wave, axes=(0,)).round(2))
    [9. 2. 0. 0. 0.]
    """
    axes = check_image_axes(axes)
    check_no_estimate(attribution)

    def of_map(leaf):
        leaf = real_map(leaf)
        return ring_sums(abs2(fourier(leaf, axes)), check_sizes(leaf.shape, axes))

    return map_noted(of_map, attribution)


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


@noted
def signal_and_noise(axes: Axes = IMAGE) -> Reduction:
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
      TypeError, ValueError: here for bad axes; when maps are drawn, for those that lack them or are
        not real floating-point.

    Cost: a Fourier transform per draw, and the memory of one and a half maps.

    >>> rings = sj.spectral.signal_and_noise(axes=(0,))
    >>> explain = sj.smoothgrad(lambda params, x: x, 0.5, reduction=rings)
    >>> found = jax.jit(explain)(jax.random.key(0), None, jnp.ones(9))
    >>> found.power.shape, found.noise.shape, int(found.num_samples)
    ((5,), (5,), 50)
    """
    axes = check_image_axes(axes)

    def spectrum(leaf):
        with noting("signal_and_noise"):
            return fourier(real_map(leaf), axes)

    def finish(draws, spectra, variances, num_samples):
        def over_rings(draw, power):
            return ring_sums(power, check_sizes(draw.shape, axes))

        power = jax.tree.map(over_rings, draws, jax.tree.map(abs2, spectra))
        return SignalAndNoise(power, jax.tree.map(over_rings, draws, variances), num_samples)

    return _of_spectra(spectrum, finish)


@noted
def wiener(axes: Axes = IMAGE, *, channel_axis: int | None = None) -> Reduction:
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
    agree better than their distance to the limit would tell. A large part of its gain in squared
    error is the smaller scale alone, which no picture shows (figures in benchmarks/README.md).

    Args:
      axes: the one to three axes of each leaf that span the image: by default the first two, or all
        but the channel axis, if that is typed.
      channel_axis: the axis of each leaf that is shrunk jointly, such as -1; None leaves channels
        apart.

    Returns:
      A `Reduction` to maps like one draw.

    Raises:
      TypeError, ValueError: here for bad axes, or a channel axis that is among them; when maps are
        drawn, for those that lack one of these axes or are not real floating-point.

    Cost: a Fourier transform per draw, and the memory of one and a half maps. `c` joint channels
    take `c` times that memory, and at the end an eigendecomposition and a solution of c equations
    for each ring. NaN in one of them spreads to all. The second derivatives of joint channels are
    NaN where two eigenvalues are equal, as in maps of zeros.

    Source: Wiener 1949, Extrapolation, interpolation, and smoothing of stationary time series.

    >>> reduction = sj.spectral.wiener(channel_axis=-1)
    >>> explain = jax.jit(sj.smoothgrad(lambda params, x: x, 1.0, reduction=reduction))
    >>> explain(jax.random.key(0), None, jnp.zeros((8, 8, 3))).shape
    (8, 8, 3)
    """
    typed = check_joint_axes(axes, channel_axis)

    def spectrum(leaf):
        with noting("wiener"):
            leaf = real_map(leaf)
            axes = axes_beside(leaf.shape, typed, channel_axis)
            transformed = fourier(leaf, axes, channel_axis)
            return transformed if channel_axis is None else midpoints(transformed)

    def shrink(draw, spectrum, variance):
        axes = axes_beside(draw.shape, typed, channel_axis)
        sizes = check_sizes(draw.shape, axes)
        power, noise = (pooled(ring_sums(p, sizes)) for p in (abs2(spectrum), variance))
        if channel_axis is None:
            gain = _signal_share(power, noise)[rings(sizes)]
            shrunk = inverse(scale(spectrum, gain), sizes, axes)
        else:
            gain = _signal_matrix(covariances(power), covariances(noise))[rings(sizes)]
            channels = jnp.sum(gain.astype(spectrum.dtype) * ends(spectrum)[..., None, :], -1)
            shrunk = inverse(channels, sizes, axes, channel_axis)
        return shrunk.astype(draw.dtype)

    def finish(draws, spectra, variances, num_samples):
        del num_samples
        return jax.tree.map(shrink, draws, spectra, variances)

    return _of_spectra(spectrum, finish)


def pooled(sums):
    """Sums over rings, each but ring 0 taken together with three neighbours on either side.

    Single rings have few bins: pooled, eight draws do better by 5 % (figures in
    benchmarks/README.md).
    """
    others = sums[1:]
    near = jnp.pad(others, [(3, 3), *[(0, 0)] * (sums.ndim - 1)])
    wide = sum(near[shift : shift + len(others)] for shift in range(7))
    return jnp.concatenate([sums[:1], wide])


def _signal_share(power, noise):
    """The gain of each ring: `max(1 - noise / power, 0)`; and 1 for ring 0, the mean itself."""
    has_signal = power > noise
    share = jnp.where(has_signal, 1 - noise / jnp.where(has_signal, power, 1), 0)
    return share.at[0].set(1)


def _signal_matrix(power, noise):
    """The gain of each ring, a matrix over channels: `1 - noise @ inv(signal + noise)`."""
    own = ends(power)
    unit = jnp.sqrt(jnp.where(own > 0, own, 1))  # so that no channel's unit matters
    row, column = unit[..., None], unit[..., None, :]
    power, noise = power / row / column, noise / row / column
    signal = _positive_part(power - noise)
    eye = jnp.broadcast_to(jnp.eye(power.shape[-1], dtype=power.dtype), power.shape)
    # Equal channels have no inverse, neither have those of which all is noise.
    total = signal + noise + 1e-6 * eye * (1 + noise)
    gain = eye - jnp.linalg.solve(total, noise).mT
    return (row * gain / column).at[0].set(eye[0])


# A GPU's default rounds to 10 bits; for matrices this small, all of them cost nothing.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def _positive_part(matrix):
    """`max(matrix, 0)` in the sense of eigenvalues, of symmetric matrices."""
    values, vectors = jnp.linalg.eigh(matrix)
    return matmul(vectors * jnp.maximum(values, 0)[..., None, :], vectors.mT)


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
    inner = slope * matmul(vectors.mT, matmul(tangent, vectors))
    return _positive_part(matrix), matmul(vectors, matmul(inner, vectors.mT))


def _sums_of_pairs(x):
    return x[..., None] + x[..., None, :]


def midpoints(channels):
    """`(a + b) / 2` for each pair of channels, whose variances tell their covariances.

    A whole matrix, though a triangle holds all of it: the indices of one would hide the formula.
    """
    return _sums_of_pairs(channels) / 2


def ends(midpoints):
    """Returns the channels, of `midpoints`."""
    return jnp.diagonal(midpoints, axis1=-2, axis2=-1)


def covariances(variances):
    """`cov(a, b) = 2 var((a + b) / 2) - (var(a) + var(b)) / 2`, of the variances of midpoints."""
    sums = _sums_of_pairs(ends(variances))
    covariances = 2 * variances - sums / 2
    # Less than this is what float32 leaves of the difference of larger numbers.
    return jnp.where(jnp.abs(covariances) > 2e-6 * sums, covariances, 0)


# Dtypes and shapes are no arrays, so they ride along as a static field of the state.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Spectra:
    moments: PyTree
    draws: tuple = dataclasses.field(metadata={"static": True})


def _of_spectra(spectrum, finish):
    """The reduction to `finish(draws, spectra, variances, num_samples)`.

    Its arguments are the shapes of a draw, the mean of `spectrum(leaf)` over the draws, and the
    variance of that mean in each bin.
    """

    def spectra(draw):
        return map_noted(spectrum, draw)

    def lifted(moments, finalize):
        def init(draw, num):
            state = moments.init(jax.eval_shape(spectra, draw), num)
            return _Spectra(state, tuple(jax.tree.leaves(draw)))

        def update(state, draws):
            updated = moments.update(state.moments, jax.vmap(spectra)(draws))
            return dataclasses.replace(state, moments=updated)

        return Reduction(init, update, finalize, moments.min_samples)

    def finalize(state):
        n, mean, m2 = state.moments.count, state.moments.mean, state.moments.m2
        # Not the standard error squared, whose root has no derivative where it is 0.
        variance = jax.tree.map(lambda leaf: variance_of_mean(leaf, n), m2)
        draws = jax.tree.structure(mean).unflatten(state.draws)
        return finish(draws, mean, variance, n)

    first = mean_and_stderr()

    def second_pass(final):
        assert first.second_pass is not None
        second = first.second_pass(final.moments)
        return lifted(second, lambda s: dataclasses.replace(s, moments=second.finalize(s.moments)))

    return lifted(first, finalize)._replace(second_pass=second_pass)
