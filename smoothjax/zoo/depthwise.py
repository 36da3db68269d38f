"""Depthwise convolution, fast on CPUs too.

On a CPU, XLA runs a depthwise convolution ten to fifty times slower than the same sum written as
shifted multiply-adds. Those have a reverse-mode rule of their own, since autodiff would turn every
shift into one more padded array. Reverse mode, vmap and forward over reverse mode (`jax.hessian`)
apply; forward mode alone (`jax.jvp`) does not.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


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
    return lax.platform_dependent(
        images,
        kernel,
        cpu=functools.partial(_shifted_sums, stride),
        default=functools.partial(_convolution, stride),
    )


def _convolution(stride: int, images: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shifted_sums(stride: int, images: jax.Array, kernel: jax.Array) -> jax.Array:
    return _correlate(_pad(stride, images, kernel), kernel, stride)


def _forward(stride, images, kernel):
    return _correlate(_pad(stride, images, kernel), kernel, stride), (images, kernel)


def _backward(stride, residuals, cotangent):
    images, kernel = residuals
    return (
        _images_cotangent(stride, images, kernel, cotangent),
        _kernel_cotangent(stride, images, kernel, cotangent),
    )


_shifted_sums.defvjp(_forward, _backward)


def _images_cotangent(stride, images, kernel, cotangent):
    """Correlates the cotangent, spread out by the stride, with the flipped kernel."""

    def padding(axis):
        before = kernel.shape[axis] - 1 - _margins(stride, images, kernel)[axis][0]
        spread = (cotangent.shape[1 + axis] - 1) * stride + 1
        return before, images.shape[1 + axis] + kernel.shape[axis] - 1 - before - spread, stride - 1

    zero = jnp.zeros((), cotangent.dtype)
    spread = lax.pad(cotangent, zero, ((0, 0, 0), padding(0), padding(1), (0, 0, 0)))
    return _correlate(spread, kernel[::-1, ::-1], 1)


def _kernel_cotangent(stride, images, kernel, cotangent):
    """Sums, for every entry of the kernel, the cotangent times the pixels that it met."""
    shifts = _shifts(_pad(stride, images, kernel), kernel, stride)
    # Along rows first: one long float32 sum would lose a digit.
    sums = [jnp.sum(jnp.sum(pixels * cotangent, 2), (0, 1)) for pixels in shifts]
    return jnp.stack(sums).reshape(kernel.shape)


def _correlate(padded, kernel, stride):
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    return functools.reduce(jnp.add, map(jnp.multiply, _shifts(padded, kernel, stride), weights))


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
