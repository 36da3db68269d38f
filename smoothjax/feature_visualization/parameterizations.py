"""How an image is written: by its pixels, its Fourier coefficients, or their phases alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._axes import IMAGE, axes_of
from smoothjax._checks import check_number, require
from smoothjax._transform import noted
from smoothjax._typing import Axes, PyTree
from smoothjax.spectral import _fourier

# The columns times the deviations of ImageNet's colours along them, after the logistic function is
# undone, over the greatest; benchmarks/feature_visualization.py --statistics finds them.
PHOTO_COLORS = ((0.57, -0.20, 0.06), (0.57, -0.01, -0.12), (0.59, 0.20, 0.06))

Shape = tuple[int, ...]


class Parameterization(NamedTuple):
    """How an image is written: two functions, of which the optimizer sees the first one's result.

    Attributes:
      init: `init(key, shape)` returns the coefficients to begin with, a pytree of real arrays.
      image: `image(coefficients, shape)` returns the image of that shape, of unbounded numbers.
      shown: what its repr says.
    """

    init: Callable[[jax.Array, Shape], PyTree]
    image: Callable[[PyTree, Shape], jax.Array]
    shown: str = "Parameterization(...)"

    def __repr__(self) -> str:
        """Returns how it was made, where Python would print the addresses of its functions."""
        return self.shown


@noted
def pixels(std: float = 0.01, colors: Any = None) -> Parameterization:
    """Returns the parameterization of an image by its own numbers.

    `image = coefficients @ colors'`, for inputs of any shape. For a network of photos the images
    are mostly high frequencies, which it reacts to and people do not recognise.

    Args:
      std: the standard deviation of the normal numbers that it begins with.
      colors: a matrix of shape (channels, channels) by which the last axis is multiplied, such as
        `PHOTO_COLORS`; None for none.

    Returns:
      The `Parameterization`.

    Raises:
      TypeError, ValueError: for a bad setting; when used, for colors that do not fit the shape.

    Source: Erhan et al. 2009, "Visualizing Higher-Layer Features of a Deep Network".

    >>> pixels = sj.feature_visualization.pixels()
    >>> pixels.image(pixels.init(jax.random.key(0), (5,)), (5,)).shape
    (5,)
    """
    std = check_number(std, "std", least=0)
    colors = _check_colors(colors)

    def init(key, shape):
        _check_channels(colors, shape)
        return std * jax.random.normal(key, shape)

    def image(coefficients, shape):
        del shape
        return _in_colors(coefficients, colors)

    return Parameterization(init, image)


@noted
def fourier(
    decay: float = 1.5, std: float = 0.01, colors: Any = PHOTO_COLORS, axes: Axes = IMAGE
) -> Parameterization:
    """Returns the parameterization of an image by its Fourier coefficients, divided by frequency.

    `image = inverse(gain * coefficients) @ colors'` with `gain ~ max(frequency, 1) ** -decay`, in
    cycles per longest axis. A step of one size for all coefficients then changes low frequencies
    most, as they are the strongest in photos. The gain is scaled so that coefficients of normal
    numbers make an image of as great a deviation.

    Args:
      decay: the power of the frequency. The paper's is 1; 1.5 was the better of two for one
        network and one seed. 0 takes all alike, and differs from `pixels` for optimizers such as
        Adam only.
      std: the standard deviation of the normal numbers that it begins with.
      colors: a matrix of shape (channels, channels) by which the last axis is multiplied: its
        columns are the independent colours. None for images that have no colours.
      axes: the axes that span the image; (0,) for a signal.

    Returns:
      The `Parameterization`; its coefficients have the real and the imaginary part along the last
      axis.

    Raises:
      TypeError, ValueError: for a bad setting; when used, for colors or axes that do not fit the
        shape.

    Source: Olah et al. 2017, "Feature Visualization", Distill, doi 10.23915/distill.00007.

    >>> fourier = sj.feature_visualization.fourier(std=1.0, colors=None)
    >>> image = fourier.image(fourier.init(jax.random.key(0), (64, 64)), (64, 64))
    >>> print(f"{jnp.std(image):.0f}")
    1
    """
    decay = check_number(decay, "decay")
    std = check_number(std, "std", least=0)
    colors = _check_colors(colors)
    axes = _fourier.check_image_axes(axes)

    def init(key, shape):
        _check_channels(colors, shape, axes)
        return std * jax.random.normal(key, (*_spectrum_shape(shape, axes), 2))

    def image(coefficients, shape):
        gain = _gain(shape, axes, decay)
        spectrum = jax.lax.complex(coefficients[..., 0], coefficients[..., 1])
        return _in_colors(_inverse(spectrum, gain, shape, axes), colors)

    return Parameterization(init, image)


@noted
def maco(
    decay: float = 1.0, std: float = 1.0, colors: Any = PHOTO_COLORS, axes: Axes = IMAGE
) -> Parameterization:
    """Returns the parameterization of an image by its phases alone (MaCo).

    `image = inverse(gain * exp(i * phases)) @ colors'`, with the gain of `fourier`: the spectrum
    stays that of photos, about a power of the frequency, and no step makes the image stronger. The
    paper takes the mean spectrum of ImageNet's photos, and this the power law; its mean is 0.

    Args:
      decay: as in `fourier`; photos have about 1.3.
      std: the standard deviation of the image before `colors`, which stays, up to a few percent.
      colors: as in `fourier`.
      axes: as in `fourier`.

    Returns:
      The `Parameterization`. Phases are angles, so it wants steps that are larger than `fourier`'s.

    Raises:
      TypeError, ValueError: as `fourier` does.

    Source: Fel et al. 2023, arXiv 2306.06805.

    >>> maco = sj.feature_visualization.maco(std=0.5, colors=None)
    >>> image = maco.image(maco.init(jax.random.key(0), (64, 64)), (64, 64))
    >>> print(f"{jnp.std(image):.1f}")
    0.5
    """
    decay = check_number(decay, "decay")
    std = check_number(std, "std", above=0)
    colors = _check_colors(colors)
    axes = _fourier.check_image_axes(axes)

    def init(key, shape):
        _check_channels(colors, shape, axes)
        return jax.random.uniform(key, _spectrum_shape(shape, axes), maxval=2 * np.pi)

    def image(phases, shape):
        gain = _gain(shape, axes, decay)
        gain.flat[0] = 0  # what the mean is has no phase
        gain = gain * np.sqrt(2) * std  # the root mean square of a normal complex number
        spectrum = jax.lax.complex(jnp.cos(phases), jnp.sin(phases))
        return _in_colors(_inverse(spectrum, gain, shape, axes), colors)

    return Parameterization(init, image)


def _gain(shape: Shape, axes: tuple[int, ...], decay: float) -> np.ndarray:
    """The factor of each bin, with which unit normal coefficients make an image of deviation 1."""
    sizes = _fourier.check_sizes(shape, axes)
    gain = np.maximum(_fourier.radii(sizes), 1) ** -decay
    # Of each bin and its conjugate, the half spectrum keeps one; along its edges it keeps both.
    edge = np.isin(np.arange(gain.shape[-1]), [0, sizes[-1] / 2])
    variance = np.sum(gain**2 * np.where(edge, 1, 4))
    return gain / np.sqrt(variance)


def _spectrum_shape(shape, axes):
    *others, last = _fourier.check_sizes(shape, axes)
    places = axes_of(shape, axes)
    rest = [size for axis, size in enumerate(shape) if axis not in places]
    return (*others, last // 2 + 1, *rest)


def _inverse(spectrum, gain, shape, axes):
    sizes, places = _fourier.check_sizes(shape, axes), axes_of(shape, axes)
    return _fourier.inverse(_fourier.scale(spectrum, gain), sizes, places)


def _in_colors(image, colors):
    return image if colors is None else image @ jnp.asarray(colors.T, image.dtype)


def _check_colors(colors):
    if colors is None:
        return None
    matrix = np.asarray(colors, float)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    require(square, f"colors must be a square matrix; got shape {matrix.shape}.")
    return matrix


def _check_channels(colors, shape, axes=()):
    if colors is None:
        return
    num = len(colors)
    has_channels = shape[-1:] == (num,) and len(shape) - 1 not in axes_of(shape, axes)
    require(
        has_channels,
        f"colors of shape {colors.shape} need an image with {num} channels as its last axis; got "
        f"shape {shape}. For an image without such colours, type colors=None.",
    )
