"""The zoo's convolutions against XLA's own, with all derivatives, vmap and bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothjax.zoo import convolution as module
from smoothjax.zoo.convolution import convolution, depthwise

cases = pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((8, 8), 3, 1),
        pytest.param((8, 8), 3, 2, marks=pytest.mark.slow),
        ((9, 8), 3, 2),
        pytest.param((8, 8), 5, 1, marks=pytest.mark.slow),
        ((8, 9), 5, 2),
        pytest.param((7, 7), 5, 2, marks=pytest.mark.slow),
        ((2, 1), 5, 2),
    ],
)


def lax_convolution(images, kernel, stride):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1] // kernel.shape[2],
    )


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


either = pytest.mark.parametrize(
    ("convolve", "channels"), [(depthwise, (1, 3)), (convolution, (3, 5))]
)


@cases
@either
def test_equals_lax_with_both_gradients(convolve, channels, size, window, stride):
    images, kernel = draw(0, 2, *size, 3), draw(1, window, window, *channels)
    cotangent = draw(2, 2, *(-(-n // stride) for n in size), channels[1])

    def pull_back(function):
        def both(images, kernel):
            result, vjp = jax.vjp(functools.partial(function, stride=stride), images, kernel)
            return result, vjp(cotangent)

        return jax.jit(both)(images, kernel)

    close(pull_back(convolve), pull_back(lax_convolution))


@cases
def test_forward_mode(size, window, stride):
    """With respect to both arguments, and to either alone."""
    primals = draw(0, 2, *size, 3), draw(1, window, window, 1, 3)
    tangents = draw(3, 2, *size, 3), draw(4, window, window, 1, 3)

    def push_forward(convolve):
        def one(argnum):
            def of_one(argument):
                arguments = [*primals]
                arguments[argnum] = argument
                return convolve(*arguments, stride)

            return jax.jvp(of_one, primals[argnum : argnum + 1], tangents[argnum : argnum + 1])

        both = functools.partial(convolve, stride=stride)
        return jax.jit(lambda: (jax.jvp(both, primals, tangents), one(0), one(1)))()

    close(push_forward(depthwise), push_forward(lax_convolution))


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.slow
def test_vmap_of_gradients_over_images_and_weights(in_axes, stride):
    images, kernels = draw(0, 3, 1, 6, 5, 2), draw(1, 3, 3, 3, 1, 2)
    arguments = [
        a if axis == 0 else a[0] for a, axis in zip((images, kernels), in_axes, strict=True)
    ]

    def gradients(convolve):
        def loss(images, kernel):
            return jnp.sum(jnp.sin(convolve(images, kernel, stride)))

        return jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes))(*arguments)

    close(gradients(depthwise), gradients(lax_convolution))


@pytest.mark.parametrize(
    "differentiate",
    [jax.hessian, lambda f: jax.jacrev(jax.grad(f)), lambda f: jax.jacfwd(jax.jacfwd(f))],
)
@pytest.mark.slow
def test_second_derivatives(differentiate):
    images, kernel = draw(0, 1, 4, 3, 1), draw(1, 3, 3, 1, 1)

    def hessian(convolve):
        def loss(both):
            return jnp.sum(jnp.sin(convolve(both["images"], both["kernel"], 2)))

        return jax.jit(differentiate(loss))({"images": images, "kernel": kernel})

    close(hessian(depthwise), hessian(lax_convolution))


def test_long_sums_keep_float32_precision():
    images, kernel = draw(0, 1, 64, 64, 2), draw(1, 3, 3, 1, 2)
    result, vjp = jax.vjp(functools.partial(depthwise, stride=1), images, kernel)
    cotangent = draw(2, *result.shape)
    padded = np.pad(np.float64(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = [
        [(padded[:, i : i + 64, j : j + 64] * cotangent).sum((0, 1, 2)) for j in range(3)]
        for i in range(3)
    ]
    np.testing.assert_allclose(vjp(cotangent)[1][:, :, 0], expected, rtol=1e-5, atol=2e-4)


@either
@pytest.mark.parametrize(("platform", "ours"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_each_platform_gets_its_own_form(convolve, channels, platform, ours):
    images, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, *channels))
    exported = jax.export.export(
        jax.jit(functools.partial(convolve, stride=1)), platforms=[platform]
    )(images, kernel)
    assert ("stablehlo.convolution" in exported.mlir_module()) is not ours


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_gradients_are_summed_in_float32(stride):
    """Of ones: a sum in bfloat16 would stop growing at 256."""
    images, kernel = jnp.ones((1, 80, 80, 1), jnp.bfloat16), jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    gradients = jax.grad(lambda k: jnp.sum(depthwise(images, k, stride).astype(jnp.float32)))
    got = gradients(kernel)
    assert got.dtype == jnp.bfloat16
    exact = jax.grad(lambda k: jnp.sum(lax_convolution(jnp.float32(images), k, stride)))
    np.testing.assert_array_equal(got, exact(jnp.float32(kernel)).astype(jnp.bfloat16))


@pytest.mark.parametrize("wrt", [0, 1, (0, 1)])
def test_residuals_are_the_arguments_alone(wrt):
    """Storing every shifted copy would take 9 or 25 times the memory."""
    images, kernel = draw(0, 1, 8, 8, 2), draw(1, 3, 3, 1, 2)

    def of(*some):
        arguments = [images, kernel]
        for argnum, value in zip(np.atleast_1d(wrt), some, strict=True):
            arguments[argnum] = value
        return module._shifted_sums(1, *arguments)

    chosen = [(images, kernel)[argnum] for argnum in np.atleast_1d(wrt)]
    _, pull_back = jax.vjp(of, *chosen)
    stored = sum(leaf.size for leaf in jax.tree.leaves(pull_back))
    assert stored < images.size + 2 * kernel.size
