"""What is refused: axes, cut-offs, maps and windows, each under its function's name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax.spectral import (
    best_cutoff,
    butterworth,
    forgrad,
    lowpass,
    power_spectrum,
    signal_and_noise,
    wiener,
)

X = jnp.arange(16.0).reshape(4, 4)


def identity(params, x):
    del params
    return x


def draw(reduction, x=X):
    return reduction.init(jax.ShapeDtypeStruct(x.shape, x.dtype), 2)


TAKE_AXES = {
    "lowpass": lambda axes: lowpass(identity, 2, axes=axes),
    "signal_and_noise": lambda axes: signal_and_noise(axes),
    "wiener": lambda axes: wiener(axes),
    "power_spectrum": lambda axes: power_spectrum(X, axes),
}
FILTER_ALONG = {
    "lowpass": lambda axes, x: lowpass(identity, 2, axes=axes)(None, x),
    "power_spectrum": lambda axes, x: power_spectrum(x, axes),
    "signal_and_noise": lambda axes, x: draw(signal_and_noise(axes), x),
    "wiener": lambda axes, x: draw(wiener(axes), x),
}


@pytest.mark.parametrize("name", TAKE_AXES)
@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (0, TypeError, "must be a tuple"),
        ((0, 1.0), TypeError, "each of axes must be a Python int"),
        ((), ValueError, "one or more different axes"),
        ((0, 1, 2, 3), ValueError, r"one to three axes that span the image; got \(0, 1, 2, 3\)"),
        ((1, 1), ValueError, "different"),
    ],
)
def test_wrong_axes_are_an_error_at_build_time(name, axes, error, message):
    with pytest.raises(error, match=rf"(?s){message}.*in {name}$"):
        TAKE_AXES[name](axes)


@pytest.mark.parametrize("name", FILTER_ALONG)
def test_axes_that_a_map_lacks_are_an_error(name):
    for axes in ((0, 2), (0, -2), (-3,)):
        with pytest.raises(ValueError, match=rf"(?s)axes .* of shape \(4, 4\).*in {name}\b"):
            FILTER_ALONG[name](axes, X)


@pytest.mark.parametrize("name", FILTER_ALONG)
def test_maps_that_are_not_real_floating_point_are_an_error(name):
    for x in (jnp.ones((4, 4), int), jnp.ones((4, 4), complex)):
        message = rf"(?s)real floating-point numbers; got one of dtype {x.dtype}.*in {name}\b"
        with pytest.raises(TypeError, match=message):
            FILTER_ALONG[name]((0, 1), x)
        with pytest.raises(TypeError, match=r"(?s)real floating-point.*in forgrad\(identity\)"):
            forgrad(identity, 2)(None, x)


@pytest.mark.parametrize("name", FILTER_ALONG)
def test_empty_maps_are_an_error(name):
    message = rf"(?s)shape \(0, 4\) has no elements along axes \(0, 1\).*in {name}\b"
    with pytest.raises(ValueError, match=message):
        FILTER_ALONG[name]((0, 1), jnp.zeros((0, 4)))


@pytest.mark.parametrize(
    ("cutoff", "error"),
    [
        (-1, ValueError),
        (math.nan, ValueError),
        (np.float32(-0.5), ValueError),
        (jnp.float32(jnp.nan), ValueError),
        (np.array([1.0, 2.0]), ValueError),
        ("15", TypeError),
        (None, TypeError),
        (True, TypeError),
        (jnp.bool_(True), TypeError),
        (1j, TypeError),
        ([15], TypeError),
        (10**400, ValueError),
    ],
)
def test_a_wrong_cutoff_is_an_error_at_build_time(cutoff, error):
    for transform in (lowpass, forgrad):
        with pytest.raises(error, match=rf"(?s)^cutoff must be.*in {transform.__name__}$"):
            transform(identity, cutoff)
    with pytest.raises(error, match=r"(?s)^each of cutoffs must be.*in best_cutoff$"):
        best_cutoff(identity, identity, [1, cutoff])


@pytest.mark.parametrize("cutoff", [True, 1j, np.ones(2, np.float32)])
def test_a_wrong_traced_cutoff_is_an_error(cutoff):
    with pytest.raises((TypeError, ValueError), match="cutoff must be"):
        jax.jit(lambda cutoff: lowpass(identity, cutoff)(None, X))(cutoff)


def test_one_cutoff_is_taken_and_many_are_pointed_to_vmap():
    with pytest.raises(ValueError, match=r"one number; got an array of shape \(2,\).*jax\.vmap"):
        lowpass(identity, jnp.ones(2))


@pytest.mark.parametrize("transform", [lowpass, forgrad])
def test_other_errors_say_what_is_needed(transform):
    name = transform.__name__
    with pytest.raises(TypeError, match=f"{name} takes a function"):
        transform(X, 2)
    with pytest.raises(TypeError, match=f"(?s)window must be a function.*in {name}"):
        transform(identity, 2, window="hard")
    one_gain = transform(identity, 2, window=lambda radius, cutoff: 1.0)
    with pytest.raises(ValueError, match=rf"(?s)a gain for each radius.*got 1\.0.*in {name}\("):
        one_gain(None, X[..., None])


def test_errors_of_butterworth():
    with pytest.raises(ValueError, match=r"(?s)order must be at least 1; got 0.*in butterworth"):
        butterworth(0)
    with pytest.raises(TypeError, match=r"(?s)order must be a Python int.*in butterworth"):
        butterworth(1.5)


def test_channel_axes_that_a_map_lacks_are_an_error():
    without = "channel_axis=None for maps without channels"
    for x, axis in ((X, 2), (X, -3), (X[0], -1), (X[0], 0)):
        message = rf"(?s)no channel axis {axis} beside axes to filter\. .*{without}.*in forgrad"
        with pytest.raises(ValueError, match=message):
            forgrad(identity, 2, channel_axis=axis)(None, x)
    for axis in (0, 1):
        message = rf"(?s)channel_axis {axis} is among axes \(0, 1\).*{without}.*in wiener"
        with pytest.raises(ValueError, match=message):
            wiener(axes=(0, 1), channel_axis=axis)
    for axis in (-1, 2, -3):
        message = rf"(?s)no channel axis {axis} beside .*{without}.*in wiener"
        with pytest.raises(ValueError, match=message):
            draw(wiener(channel_axis=axis))
    with pytest.raises(TypeError, match=r"(?s)channel_axis must be a Python int.*in forgrad"):
        forgrad(identity, 2, channel_axis="c")
    with pytest.raises(TypeError, match=r"(?s)channel_axis must be a Python int.*in wiener"):
        wiener(channel_axis=1.0)


@pytest.mark.parametrize("reduction", [wiener(), signal_and_noise()])
def test_one_draw_is_an_error(reduction):
    with pytest.raises(ValueError, match="at least 2"):
        sj.smoothgrad(identity, 0.1, num_samples=1, reduction=reduction)
