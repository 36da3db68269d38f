"""Convolutions that are fast on CPUs too.

On a CPU, XLA runs a depthwise convolution ten to fifty times slower than the same sum written as
shifted multiply-adds. Autodiff would transpose each shift into a padded array of its own; so the
derivative is written with a padded array for each shift, which transposes into shifts. Gradients
are fast, then, forward mode is slower, and every transform applies.

Over all channels it is a product of the shifted images with the kernel. With XLA's convolution in
its first layer, the whole gradient of EfficientNet-Lite0 takes a fifth longer.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from smoothjax._trees import wide_dtype


def depthwise(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves every channel with a kernel of its own, under TensorFlow's SAME padding.

    Args:
      images: (batch, H, W, channels).
      kernel: (rows, columns, 1, channels).
      stride: step in pixels along both axes.

    Returns:
      An array of shape (batch, ceil(H / stride), ceil(W / stride), channels).

    Raises:
      Nothing of its own; JAX reports shapes and dtypes that do not fit.
    """
    return _by_platform(_shifted_sums, images, kernel, stride)


def convolution(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves images over all their channels, under TensorFlow's SAME padding.

    Args:
      images: (batch, H, W, channels).
      kernel: (rows, columns, channels, outputs).
      stride: step in pixels along both axes.

    Returns:
      An array of shape (batch, ceil(H / stride), ceil(W / stride), outputs).

    Raises:
      Nothing of its own; JAX reports shapes and dtypes that do not fit.
    """
    return _by_platform(_product, images, kernel, stride)


def _by_platform(on_cpu, images, kernel, stride):
    return lax.platform_dependent(
        images,
        kernel,
        cpu=functools.partial(on_cpu, stride),
        default=functools.partial(_convolution, stride),
    )


def _convolution(stride: int, images: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1] // kernel.shape[2],
    )


def _product(stride: int, images: jax.Array, kernel: jax.Array) -> jax.Array:
    patches = _shifts(_pad(stride, images, kernel), kernel, stride)
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shifted_sums(stride: int, images: jax.Array, kernel: jax.Array) -> jax.Array:
    return _correlate(_pad(stride, images, kernel), kernel, stride)


@functools.partial(_shifted_sums.defjvp, symbolic_zeros=True)
def _(stride, primals, tangents):
    images, kernel = primals
    d_images, d_kernel = tangents
    terms = []
    if not isinstance(d_images, SymbolicZero):
        terms.append(_of_images(stride, kernel, d_images))
    if not isinstance(d_kernel, SymbolicZero):
        terms.append(_of_kernel(stride, images, d_kernel))
    return _shifted_sums(stride, images, kernel), functools.reduce(jnp.add, terms)


def _of_images(stride, kernel, images):
    """The sums as a linear function of the images: each pixel is spread over all that it enters.

    The transpose spreads the cotangent by the stride and correlates it with the flipped kernel.
    """
    rows, columns = kernel.shape[:2]
    zero = jnp.zeros((), images.dtype)

    def moved(weights, i, j):
        padding = ((0, 0, 0), (rows - 1 - i, i, 0), (columns - 1 - j, j, 0), (0, 0, 0))
        return lax.pad(images * weights, zero, padding)

    entries = [(i, j) for i in range(rows) for j in range(columns)]
    moves = [moved(w, i, j) for w, (i, j) in zip(_weights(kernel), entries, strict=True)]
    (above, _), (left, _) = _margins(stride, images, kernel)
    top, first = rows - 1 - above, columns - 1 - left
    spread = functools.reduce(jnp.add, moves)
    return spread[:, top : top + images.shape[1] : stride, first : first + images.shape[2] : stride]


# Checkpointed, since reverse mode would store every shift.
@functools.partial(jax.checkpoint, static_argnums=0, prevent_cse=False)
def _of_kernel(stride, images, kernel):
    """The sums as a linear function of the kernel.

    The transpose sums, for every entry of the kernel, the cotangent times the pixels that it met.
    """

    def weighted(pixels, weights):
        # In two steps, so that the transpose sums along rows first: one long sum loses a digit.
        columns = jnp.broadcast_to(weights, (*pixels.shape[:2], 1, pixels.shape[-1]))
        return pixels * jnp.broadcast_to(columns, pixels.shape).astype(pixels.dtype)

    shifts = _shifts(_pad(stride, images, kernel), kernel, stride)
    wide = _weights(kernel.astype(wide_dtype(kernel.dtype)))
    return functools.reduce(jnp.add, map(weighted, shifts, wide))


def _correlate(padded, kernel, stride):
    shifts = _shifts(padded, kernel, stride)
    return functools.reduce(jnp.add, map(jnp.multiply, shifts, _weights(kernel)))


def _weights(kernel):
    """The entries of the kernel, row by row, each of shape (1, 1, 1, channels)."""
    return jnp.unstack(kernel.reshape(-1, 1, 1, 1, kernel.shape[-1]))


def _shifts(padded, kernel, stride):
    """The pixels that each entry of the kernel meets, row by row of the kernel."""
    rows, columns = kernel.shape[:2]
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    return [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(rows)
        for j in range(columns)
    ]


def _pad(stride, images, kernel):
    return jnp.pad(images, ((0, 0), *_margins(stride, images, kernel), (0, 0)))


def _margins(stride, images, kernel):
    size, window = images.shape[1:3], kernel.shape[:2]
    return lax.padtype_to_pads(size, window, (stride, stride), "SAME")
