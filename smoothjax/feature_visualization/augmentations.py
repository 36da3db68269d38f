"""What happens to the image before the network sees it: functions of a key and an image.

What leaves the image on one side enters on the other, as the images of `fourier` are periodic.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from smoothjax._axes import IMAGE, axes_of, check_axes
from smoothjax._checks import check_function, check_integer, check_number, require
from smoothjax._transform import noted
from smoothjax._typing import Axes

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


@noted
def chain(*augmentations: Augmentation) -> Augmentation:
    """Returns an augmentation that does several, the first one first, each with a key of its own.

    Args:
      *augmentations: functions `augment(key, image)`.

    Returns:
      Such a function; of none, the identity.

    Raises:
      TypeError: for what is no function.

    >>> augment = sj.feature_visualization.chain(
    ...     sj.feature_visualization.jitter(4), sj.feature_visualization.zoom(0.9, 1.1)
    ... )
    >>> augment(jax.random.key(0), jnp.zeros((32, 32, 3))).shape
    (32, 32, 3)
    """
    for augmentation in augmentations:
        check_function(augmentation, "an augmentation")

    def augment(key, image):
        keys = jax.random.split(key, max(len(augmentations), 1))
        for one, augmentation in zip(keys, augmentations, strict=False):
            image = augmentation(one, image)
        return image

    return augment


@noted
def jitter(size: int, axes: Axes = IMAGE) -> Augmentation:
    """Returns an augmentation that moves an image by up to `size` elements along each axis.

    Args:
      size: the most elements, in either direction.
      axes: the axes that span the image; (0,) for a signal.

    Returns:
      A function `augment(key, image)`.

    Raises:
      TypeError, ValueError: for a bad setting; when called, for an image without such axes.

    Source: Mordvintsev et al. 2015, "Inceptionism: Going Deeper into Neural Networks".

    >>> print(sj.feature_visualization.jitter(1, axes=(0,))(jax.random.key(3), jnp.arange(4)))
    [1 2 3 0]
    """
    size = check_integer(size, "size", least=0)
    axes = check_axes(axes)

    def augment(key, image):
        places = axes_of(image.shape, axes)
        shifts = jax.random.randint(key, (len(places),), -size, size + 1)
        return jnp.roll(image, tuple(shifts), places)

    return augment


@noted
def zoom(least: float, most: float, axes: Axes = IMAGE) -> Augmentation:
    """Returns an augmentation that enlarges an image about its middle, by bilinear interpolation.

    Args:
      least: the least factor, above 0.
      most: the greatest factor. It is drawn evenly between the two.
      axes: the axes that span the image; (0,) for a signal.

    Returns:
      A function `augment(key, image)`, whose result has the shape of the image.

    Raises:
      TypeError, ValueError: for a bad setting; when called, for an image without such axes.

    Cost: a product with a square matrix along each axis.

    >>> print(sj.feature_visualization.zoom(2, 2, axes=(0,))(jax.random.key(0), jnp.arange(4.0)))
    [0.75 1.25 1.75 2.25]
    """
    least = check_number(least, "least", above=0)
    most = check_number(most, "most", least=least)
    axes = check_axes(axes)

    def augment(key, image):
        factor = jax.random.uniform(key, (), image.dtype, least, most)
        for axis in axes_of(image.shape, axes):
            num = image.shape[axis]
            middle = (num - 1) / 2
            places = (jnp.arange(num, dtype=image.dtype) - middle) / factor + middle
            distances = (places[:, None] - jnp.arange(num, dtype=image.dtype)[None]) % num
            weights = jnp.maximum(1 - jnp.minimum(distances, num - distances), 0)
            image = jnp.moveaxis(jnp.tensordot(weights, image, (1, axis)), 0, axis)
        return image

    return augment


@noted
def rotate(degrees: float) -> Augmentation:
    """Returns an augmentation that turns an image about its middle.

    It is three shears (of its rows, its columns, its rows), each a shift of every line by phases of
    its Fourier coefficients, so that no frequency is damped.

    Args:
      degrees: the greatest angle, in either direction, below 90. It is drawn evenly.

    Returns:
      A function `augment(key, image)` of images of shape (H, W) or (H, W, channels).

    Raises:
      TypeError, ValueError: for a bad setting; when called, for what is no image.

    Cost: six Fourier transforms of all lines.

    Source: Paeth 1986, "A Fast Algorithm for General Raster Rotation", for the shears.

    >>> image = jnp.zeros((9, 9)).at[4, 4].set(1.0)
    >>> turned = sj.feature_visualization.rotate(10)(jax.random.key(0), image)
    >>> print(f"{turned[4, 4]:.2f}")
    1.00
    """
    degrees = check_number(degrees, "degrees", least=0, below=90)

    def augment(key, image):
        require(len(image.shape) >= 2, f"rotate needs an image; got shape {image.shape}.")
        axes_of(image.shape, IMAGE)
        limit = jnp.pi / 180 * degrees
        angle = jax.random.uniform(key, (), image.dtype, -limit, limit)
        for axis, slope in (1, -jnp.tan(angle / 2)), (0, jnp.sin(angle)), (1, -jnp.tan(angle / 2)):
            image = _sheared(image, axis, slope)
        return image

    return augment


def _sheared(image, axis, slope):
    """The image with each of its lines along an axis shifted by `slope` times its place."""
    num, lines = image.shape[axis], image.shape[1 - axis]
    shifts = slope * (jnp.arange(lines, dtype=image.dtype) - (lines - 1) / 2)
    cycles = jnp.arange(num // 2 + 1, dtype=image.dtype) / num
    angles = 2 * jnp.pi * jnp.expand_dims(cycles, 1 - axis) * jnp.expand_dims(shifts, axis)
    phases = jax.lax.complex(jnp.cos(angles), -jnp.sin(angles))
    phases = jnp.expand_dims(phases, range(2, image.ndim))
    return jnp.fft.irfft(jnp.fft.rfft(image, axis=axis) * phases, num, axis)
