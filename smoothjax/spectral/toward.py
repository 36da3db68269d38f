"""SmoothGrad that starts from a guess of its limit, and leaves it as far as the draws tell."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax import reductions
from smoothjax._axes import IMAGE, LAST, axes_of, check_pooled_axis
from smoothjax._checks import check_function, require
from smoothjax._statistics import ratio
from smoothjax._transform import keyed, stochastic, transform
from smoothjax._trees import is_float0
from smoothjax._typing import Axes, Explainer
from smoothjax.noise import relative
from smoothjax.pooling import map_leaves
from smoothjax.reductions import Estimate, Reduction, check_no_estimate, root
from smoothjax.smoothing import smoothgrad
from smoothjax.spectral._fourier import (
    axes_beside,
    check_joint_axes,
    check_sizes,
    fourier,
    inverse,
    real_map,
    ring_sums,
    rings,
)
from smoothjax.spectral.wiener import covariances, ends, matmul, midpoints, pooled

# The width of the neighbourhood of a ring, in the logarithm of its number.
_WIDTH = 0.5
# Added to the noise, in units of each channel, for equal channels have no inverse.
_RIDGE = 3e-6
# The squares of the fit grow by this, so that a guess that looks like noise is told from it.
_DAMPING = 1.001
# tau is at least this share of the signal, whatever the guess explains, so that W tends to 1.
_LEAST_SHARE = 0.01
# And as many standard errors of a power, so that some draws are left where all looks like noise.
_STANDARD_ERRORS = 4


@transform(takes_key=True)
def smoothgrad_toward(
    explain: Explainer,
    guess: Explainer,
    sigma: Any = relative(0.15),
    *,
    axes: Axes = IMAGE,
    channel_axis: int | None = LAST,
    reduction: Reduction = reductions.mean(),
    **options: Any,
) -> Explainer:
    """Returns an explainer of SmoothGrad's mean of draws, shrunk towards a guess of its limit.

    `smoothed(key, params, x, *rest) = b D + W (S - b D)`, with `S` the mean of `explain` over noisy
    inputs, as in `smoothgrad`, and `D` the map of `guess`, computed once; `b` is the scale that
    brings it nearest to `S`. `W` is a matrix over channels for each ring of frequencies,
    `A inv(A + N)`: `N` is the noise of `S`, which its draws show, and `A` the covariance of what
    `b D` lacks. `W` tends to 1 as draws are added, so the limit is that of `smoothgrad` whatever
    the guess; a good guess is near it after few draws, and a bad one does little harm. The mean
    over the map is that of `S`.

    `A` is taken for `rho C + tau N`, with `C` the covariance of `b D`: what is wrong with the guess
    has its spectrum, or that of the noise. Of zeros, it is `S` times a number.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first, that
        returns a pytree of maps of real floating-point numbers.
      guess: a function of the same arguments, stochastic or not, that returns maps of the same
        shapes: `smoothdiff(score)` for networks of ReLUs, where it is worth most, and elsewhere
        the clean gradient, `saliency(score)`. Give it the same `sigma`, if it takes one.
      sigma: the level of the noise, as in `smoothgrad`.
      axes: the one to three axes of each leaf that span the image: by default the first two, or all
        but the channel axis, if that is typed.
      channel_axis: the axis of each leaf that is shrunk jointly, by default the last of
        (H, W, channels). Type 0 for channels first, None for maps without channels.
      reduction: `mean()`, or `mean_and_stderr()` for an `Estimate`. The square of its `stderr`
        estimates the squared error to SmoothGrad's limit, what the guess does to it included. Its
        mean over a channel is Stein's unbiased estimate, or the scatter over keys if that is more;
        over pixels it is spread like the squared standard error of `S`. Below 16 draws it is rough.
      **options: the other keyword arguments of `smoothgrad`, but `tolerance`; at least two samples.

    Returns:
      A stochastic explainer `smoothed(key, params, x, *rest)`, whose result is structured, shaped
      and typed like that of `explain`.

    Raises:
      TypeError, ValueError: as `smoothgrad` does; for bad axes, or another reduction; when called,
        for a guess of other shapes, or maps that lack one of the axes or are not real
        floating-point.

    Cost: that of `smoothgrad` and of one guess, a Fourier transform per draw, and the memory of
    two maps and one and a half for each of the joint channels, which take a solution of as many
    equations for each ring at the end.

    Source: Stein 1981, "Estimation of the mean of a multivariate normal distribution", for the
    error. The filter is ours.

    >>> def score(params, x):
    ...     return jnp.sum(jax.nn.relu(jnp.tensordot(params, x, 3)))
    >>> explain = sj.smoothgrad_toward(sj.saliency(score), sj.smoothdiff(score), num_samples=8)
    >>> params, x = jnp.ones((4, 8, 8, 3)), jnp.linspace(-1, 1, 192).reshape(8, 8, 3)
    >>> jax.jit(explain)(jax.random.key(0), params, x).shape
    (8, 8, 3)
    """
    check_function(guess, "guess")
    layout_of = _layout(axes, channel_axis)
    with_stderr = reduction == reductions.mean_and_stderr()
    require(
        with_stderr or reduction == reductions.mean(),
        "reduction must be mean() or mean_and_stderr() of smoothjax.reductions.",
    )
    require(
        "tolerance" not in options,
        "tolerance stops on the error of plain averages; give it to smoothgrad.",
    )

    def moments(leaf):
        leaf = real_map(leaf)
        layout = layout_of(leaf.shape)
        return _MapAndMidpoints(leaf, midpoints(fourier(layout.front(leaf), layout.first)))

    draws_of = smoothgrad(
        stochastic(map_leaves(explain, moments)),
        sigma,
        reduction=reductions.mean_and_stderr(),
        **options,
    )
    guess_of = keyed(guess)

    def toward(key, *args, **kwargs):
        draws_key, guess_key = jax.random.split(key)
        draws = draws_of(draws_key, *args, **kwargs)
        start = guess_of(guess_key, *args, **kwargs)
        check_no_estimate(start)
        _check_alike(start, draws.mean)

        def combine(start, mean, error):
            if is_float0(start):
                return start, start
            layout = layout_of(start.shape)
            average, start = (layout.front(m).astype(error.map.dtype) for m in (mean.map, start))
            answer, risk = _combined(
                _scale(start, average, layout.first) * start,
                mean.midpoints,
                error.midpoints**2,
                draws.num_samples,
                start.shape[: len(layout.axes)],
            )
            answer = layout.back(answer).astype(mean.map.dtype)
            if not with_stderr:
                return answer, None
            spread = layout.front(error.map)
            plain = jnp.mean(spread**2, layout.first, keepdims=True)
            return answer, layout.back(spread * root(ratio(risk, plain)))

        leaves, treedef = jax.tree.flatten(start)
        columns = (treedef.flatten_up_to(moments) for moments in (draws.mean, draws.stderr))
        found = [combine(*leaf) for leaf in zip(leaves, *columns, strict=True)]
        answer, stderr = (treedef.unflatten(part) for part in zip(*found, strict=True))
        return Estimate(answer, stderr, draws.num_samples) if with_stderr else answer

    return toward


class _MapAndMidpoints(NamedTuple):
    """A map, and the midpoints of the spectra of its channels, whose variances tell covariances."""

    map: jax.Array
    midpoints: jax.Array


class _Layout(NamedTuple):
    """Where the axes of an image are in its maps."""

    axes: tuple[int, ...]
    channel_axis: int | None

    @property
    def first(self):
        return tuple(range(len(self.axes)))

    def front(self, leaf):
        """The map with the axes of the image first, and its channels last."""
        check_sizes(leaf.shape, self.axes)
        if self.channel_axis is None:
            return jnp.moveaxis(leaf[..., None], axes_of(leaf.shape, self.axes), self.first)
        return jnp.moveaxis(leaf, (*self.axes, self.channel_axis), (*self.first, -1))

    def back(self, front):
        """The map that `front` was given."""
        if self.channel_axis is not None:
            return jnp.moveaxis(front, (*self.first, -1), (*self.axes, self.channel_axis))
        leaf = front[..., 0]
        return jnp.moveaxis(leaf, self.first, self.axes)


def _check_alike(guess, draws):
    """Raises unless a guess has the structure and the shapes of the draws."""

    def shapes(tree):
        return jax.tree.map(jnp.shape, tree)

    maps = jax.tree.map(
        lambda m: getattr(m, "map", m), draws, is_leaf=lambda m: type(m) is _MapAndMidpoints
    )
    require(
        shapes(guess) == shapes(maps),
        f"guess must return maps like those of explain, of shapes {shapes(maps)}; got "
        f"{shapes(guess)}.",
    )


def _layout(axes, channel_axis):
    """The layout of maps, as a function of their shape."""
    typed = check_joint_axes(axes, channel_axis)

    def of(shape):
        if axes is IMAGE:
            check_pooled_axis(shape, channel_axis)  # the word to type is channel_axis
        return _Layout(axes_beside(shape, typed, channel_axis), channel_axis)

    return of


def _scale(guess, average, axes):
    """The factor that brings the guess nearest to the average, their means over the map aside."""
    varying = guess - jnp.mean(guess, axes, keepdims=True)

    def inner(a, b):
        return jnp.sum(a * b, (*axes, -1), keepdims=True)

    return ratio(inner(varying, average), inner(varying, varying))


def _combined(guess, mean, variance, num_samples, sizes):
    """`D + W (S - D)`, and an estimate of its mean squared error in each channel.

    Args:
      guess: D, brought to its scale, with the axes of the image first and channels last.
      mean: the midpoints of channels of the spectrum of S, the mean of the draws.
      variance: the variance of `mean`.
      num_samples: the number of draws.
      sizes: the lengths of the axes of the image.
    """
    axes = tuple(range(len(sizes)))
    spectrum = fourier(guess, axes)
    gap = ends(mean) - spectrum
    noise = covariances(ring_sums(variance, sizes))
    power, prior = (ring_sums(_products(s), sizes) for s in (gap, spectrum))
    gain = _gain(power, noise, prior, num_samples, sizes)
    moved = jnp.sum(gain[rings(sizes)].astype(gap.dtype) * gap[..., None, :], -1)
    # Stein's unbiased estimate of the squared error, and the part of it that is noise.
    rest = _eye(gain) - gain
    risk = _sandwich(rest, power) - noise + 2 * matmul(gain, noise)
    risk, scatter = (jnp.sum(ends(m), 0) for m in (risk, _sandwich(gain, noise)))
    error = jnp.expand_dims(jnp.maximum(risk, scatter), axes)
    return guess + inverse(moved, sizes, axes), error


class _Products(NamedTuple):
    """The inner products of the least-squares fit `signal = rho guess + tau identity`.

    `rho` and `tau` solve its normal equations:

        guess_guess    rho + guess_identity    tau = signal_guess
        guess_identity rho + identity_identity tau = signal_identity
    """

    guess_guess: jax.Array
    guess_identity: jax.Array
    identity_identity: jax.Array
    signal_guess: jax.Array
    signal_identity: jax.Array


def _gain(power, noise, prior, num_samples, sizes):
    """The gain of each ring, a matrix over channels: `W = A inv(A + N)`, `A = rho C + tau N`.

    `power - noise` is A but for chance. In units of the noise, so multiplied by `inv(N)`, the model
    is `signal = rho guess + tau identity`. It is fitted by least squares, with each ring weighted
    by its bins: tau over the whole spectrum, then rho, given tau, over rings near by.
    """
    num_channels = power.shape[-1]
    bins = ring_sums(jnp.ones((*sizes[:-1], sizes[-1] // 2 + 1), power.dtype), sizes)
    bins = jnp.expand_dims(bins, range(1, power.ndim - 2))
    power, noise, prior, pooled_bins = map(pooled, (power, noise, prior, bins))
    unit = ends(power) + ends(noise)
    unit = jnp.sqrt(jnp.where(unit > 0, unit, 1))  # so that no channel's unit matters
    power, noise, prior = (m / unit[..., None] / unit[..., None, :] for m in (power, noise, prior))
    identity, n = _eye(power), num_samples.astype(power.dtype)
    # A few draws of a few bins tell variances better than covariances.
    degrees = pooled_bins * (n - 1)
    known = degrees / (degrees + num_channels)
    noise = jnp.where(identity == 1, noise, known[..., None, None] * noise)
    ridged = noise + _RIDGE * identity
    signal, guess = (jnp.linalg.solve(ridged, m) for m in (power - noise, prior))
    # rho is in units of the largest guess, so that its square is a number of float32.
    largest = jnp.max(jnp.abs(guess), (0, -2, -1), keepdims=True)
    guess, prior = ratio(guess, largest), ratio(prior, largest)

    weight = bins.at[0].set(0)  # one bin has no spectrum

    def inner(a, b):
        return weight * jnp.sum(a * b.mT, (-2, -1))

    products = _Products(
        guess_guess=inner(guess, guess),
        guess_identity=inner(guess, identity),
        identity_identity=inner(identity, identity),
        signal_guess=inner(signal, guess),
        signal_identity=inner(signal, identity),
    )
    tau = _tau(_Products(*(jnp.sum(p, 0, keepdims=True) for p in products)), n)
    # The first of the normal equations, for a known tau.
    rest = products.signal_guess - tau * products.guess_identity
    rho = jnp.maximum(_nearby(rest, products.guess_guess), 0)
    lacking = rho[..., None, None] * prior + tau[..., None, None] * noise
    gain = identity - jnp.linalg.solve(lacking + ridged, noise).mT
    gain = unit[..., None] * gain / unit[..., None, :]
    return gain.at[0].set(identity[0])


def _tau(products, num_samples):
    """The tau that solves the normal equations, by Cramer's rule, with neither unknown negative."""
    gg, gi, ii, sg, si = products
    gg, ii = _DAMPING * gg, _DAMPING * ii
    determinant = gg * ii - gi**2
    rho, tau = ratio(sg * ii - si * gi, determinant), ratio(gg * si - gi * sg, determinant)
    without_guess = ratio(si, ii)
    tau = jnp.where(rho > 0, tau, without_guess)
    # Of a bin, power has a relative variance of 2, and noise of n - 1 degrees 2 / (n - 1).
    stderr = jnp.sqrt(ratio(2 * num_samples / (num_samples - 1), ii))
    return jnp.maximum(jnp.maximum(tau, _LEAST_SHARE * without_guess), _STANDARD_ERRORS * stderr)


def _nearby(numerator, denominator):
    """For each ring, the ratio of sums over rings of about the same number, up to a factor.

    They are taken on a grid of logarithms, and between its points by lines, for rings can be many.
    """
    number = np.log(np.arange(len(numerator)) + 1)
    grid = np.arange(0, number[-1] + _WIDTH, _WIDTH / 2)
    near = np.exp(-(((grid[:, None] - number) / _WIDTH) ** 2) / 2)

    def total(sums):
        weights = jnp.asarray(near, sums.dtype)
        return jnp.tensordot(weights, sums, (1, 0), precision=jax.lax.Precision.HIGHEST)

    on_grid = ratio(total(numerator), total(denominator))
    place = number / (_WIDTH / 2)
    below = place.astype(int)
    above = jnp.asarray(place - below, on_grid.dtype)
    above = jnp.expand_dims(above, range(1, on_grid.ndim))
    return on_grid[below] * (1 - above) + on_grid[below + 1] * above


def _eye(matrices):
    return jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)


def _products(spectrum):
    """Of each bin, the real parts of the products of all pairs of channels."""
    return jnp.real(spectrum[..., :, None] * jnp.conj(spectrum[..., None, :]))


def _sandwich(gain, matrix):
    return matmul(matmul(gain, matrix), gain.mT)
