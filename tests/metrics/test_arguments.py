"""What metrics are called with: attributions that fit, and errors that say what to type."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax.metrics._arguments import at_attribution, check_attribution, like_input
from smoothjax.reductions import Estimate


def of_all(*args):
    return args


def test_the_attribution_is_taken_from_behind_the_argument_that_it_explains():
    x, attribution, score_at = at_attribution(of_all, 1)(("params", "x", "map", "label"), {})
    assert (x, attribution) == ("x", "map")
    assert score_at(None, "other") == ("params", "other", "label")
    x, attribution, score_at = at_attribution(of_all, 0)(("x", "map"), {})
    assert (x, attribution) == ("x", "map")
    assert score_at(None, "other") == ("other",)


def test_a_missing_attribution_is_an_error_that_says_where_it_belongs():
    with pytest.raises(TypeError, match=r"missing: \(params, x, attribution"):
        at_attribution(of_all, 1)(("params", "x"), {})
    with pytest.raises(TypeError, match="argnum=1"):
        at_attribution(of_all, 1)(("x",), {})


def test_attributions_are_widened_and_otherwise_left_alone():
    wide = {jnp.bfloat16: jnp.float32, jnp.float16: jnp.float32, jnp.int8: jnp.float32}
    for dtype, expected in {**wide, jnp.float32: jnp.float32}.items():
        got = check_attribution(jnp.array([[-1, 3]], dtype))
        assert got.dtype == expected
        np.testing.assert_array_equal(got, [[-1, 3]])
    assert np.isnan(check_attribution(np.array([np.nan, 1.0]))[0])
    with jax.enable_x64(True):
        assert check_attribution(jnp.ones(2)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("attribution", "message"),
    [
        (jnp.array([True]), "bool"),
        (jnp.array([1j], jnp.complex64), "complex64"),
        (np.zeros(3, jax.dtypes.float0), "float0"),
        (jnp.zeros((2, 0)), r"\(2, 0\)"),
        ({"a": jnp.ones(2)}, "got {'a'"),
        ((jnp.ones(2), jnp.ones(2)), r"got \(Array"),
        (None, "got None"),
        (Estimate(jnp.ones(2), jnp.ones(2), jnp.int32(3)), "Judge the mean of an Estimate"),
    ],
)
def test_what_is_no_real_array_is_an_error(attribution, message):
    with pytest.raises(TypeError, match=message):
        check_attribution(attribution)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5, 3), (4, 5, 3)),
        ((4, 5, 1), (4, 5, 1)),
        ((4, 5), (4, 5, 1)),
        ((4,), (4, 1, 1)),
        ((), (1, 1, 1)),
        ((1, 5), (1, 5, 1)),
    ],
)
def test_an_attribution_gets_the_axes_of_x(shape, expected):
    attribution = jnp.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    got = like_input(attribution, jnp.ones((4, 5, 3)))
    assert got.shape == expected
    np.testing.assert_array_equal(got.ravel(), attribution.ravel())


@pytest.mark.parametrize("shape", [(5, 4), (4, 5, 2), (3, 4, 5), (4, 5, 3, 1), (5, 3), (5,)])
def test_an_attribution_that_does_not_fit_x_is_an_error(shape):
    with pytest.raises(ValueError, match=r"\(4, 5, 3\)"):
        like_input(jnp.ones(shape), jnp.ones((4, 5, 3)))


def test_the_error_says_what_to_type_for_channels_first():
    x = jnp.ones((3, 4, 5))
    explain = jax.grad(lambda x: jnp.sum(x**2))
    with pytest.raises(ValueError, match="keepdims=True"):
        like_input(sj.pool(explain, jnp.sum, axis=0)(x), x)
    pooled = sj.pool(explain, functools.partial(jnp.sum, keepdims=True), axis=0)(x)
    assert like_input(pooled, x).shape == (1, 4, 5)


def test_x_is_one_array():
    with pytest.raises(TypeError, match="got a dict"):
        like_input(jnp.ones(3), {"x": jnp.ones(3)})  # pyright: ignore
