"""What metrics are called with: attributions that fit, and errors that say what to type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax._axes import IMAGE
from smoothjax.metrics._arguments import at_attribution, check_attribution, like_input
from smoothjax.reductions import Estimate

KEY = jax.random.key(0)


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
    ("shape", "of", "axes", "expected"),
    [
        ((7, 5, 3), (7, 5, 3), IMAGE, (7, 5, 3)),
        ((7, 5, 1), (7, 5, 3), IMAGE, (7, 5, 1)),
        ((7, 5), (7, 5, 3), IMAGE, (7, 5, 1)),
        ((7,), (7,), IMAGE, (7,)),
        ((7, 3), (7, 3), IMAGE, (7, 3)),
        ((7,), (7, 3), (0,), (7, 1)),
        ((7, 1), (7, 3), (0,), (7, 1)),
        ((7, 5), (3, 7, 5), (1, 2), (1, 7, 5)),
        ((7, 5), (3, 7, 5), (-2, -1), (1, 7, 5)),
        ((1, 7, 5), (3, 7, 5), (1, 2), (1, 7, 5)),
        ((3, 7, 5), (3, 7, 5), (0, 1), (3, 7, 5)),
        ((7, 6, 5), (7, 6, 5, 3), (0, 1, 2), (7, 6, 5, 1)),
    ],
)
def test_an_attribution_gets_the_axes_of_x(shape, of, axes, expected):
    attribution = jnp.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    got = like_input(attribution, jnp.ones(of), axes)
    assert got.shape == expected
    np.testing.assert_array_equal(got.ravel(), attribution.ravel())


@pytest.mark.parametrize(
    ("shape", "of", "axes"),
    [
        *[(s, (4, 5, 3), IMAGE) for s in [(5, 4), (4, 5, 2), (4, 5, 3, 1), (4, 3), (5,), ()]],
        ((4,), (4, 5, 3), IMAGE),  # pooled twice
        ((4, 1, 1), (4, 5, 3), IMAGE),
        ((4, 1, 3), (4, 5, 3), IMAGE),
        ((4, 3), (4, 5, 3), IMAGE),  # pooled over the width
        ((8,), (8, 9), IMAGE),  # of a grey picture
        ((3, 4), (3, 4, 5), (1, 2)),
        ((4,), (3, 4, 5), (1, 2)),
        ((1,), (7,), (0,)),
        ((3,), (7, 3), (0,)),
    ],
)
def test_an_attribution_that_lacks_a_spatial_axis_is_an_error(shape, of, axes):
    with pytest.raises(ValueError, match=r"keeps its axes \("):
        like_input(jnp.ones(shape), jnp.ones(of), axes)


def test_x_is_one_array():
    with pytest.raises(TypeError, match=r"(?s)got a dict.*\{\*\*x, 'image': image\}"):
        like_input(jnp.ones(3), {"x": jnp.ones(3)}, IMAGE)  # pyright: ignore


def test_a_map_pooled_twice_is_refused_by_whatever_takes_maps():
    """Forgrad's maps have no channels any more: the best method was the last of a ranking."""

    def score(params, x):
        return jnp.sum(params * x**2)

    deletion = sj.metrics.deletion(score)

    def filter_rows(explain, cutoff):
        return sj.lowpass(explain, cutoff, axes=(0,))

    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    pooled = sj.pool(sj.forgrad(sj.saliency(score), 2), jnp.linalg.norm)
    assert pooled(1.0, x[0]).shape == (6,)
    with pytest.raises(ValueError, match=r"\(6,\).*pooled twice"):
        deletion(1.0, x[0], pooled(1.0, x[0]))
    with pytest.raises(ValueError, match="pooled twice"):
        sj.evaluate(
            {"forgrad": pooled}, params=1.0, examples=(x,), key=KEY, metrics={"d": deletion}
        )
    with pytest.raises(ValueError, match="pooled twice"):
        sj.spectral.best_cutoff(pooled, deletion, [1, 2], transform=filter_rows)(1.0, x)
    with pytest.raises(ValueError, match="channel_axis=None if it was pooled already"):
        sj.spectral.best_cutoff(sj.pool(sj.saliency(score), jnp.sum), deletion, [1, 2])(1.0, x)


def test_a_map_along_the_one_spatial_axis_of_three_is_judged():
    """Of (time, sensors, channels), where a metric says that time alone is spatial."""

    def score(params, x):
        return jnp.sum(params * x**2)

    def explain(params, x):
        return jnp.sum(x**2, axis=(1, 2))

    xs = jax.random.normal(jax.random.key(0), (2, 20, 5, 3))
    deletion = sj.metrics.deletion(score, baseline=0.0, axes=(0,))
    judged = sj.evaluate(
        {"e": explain}, params=1.0, examples=(xs,), key=KEY, metrics={"d": deletion}
    )
    want = jax.vmap(lambda x: deletion(1.0, x, explain(1.0, x)))(xs)
    np.testing.assert_allclose(judged.scores["e"]["d"], want, rtol=1e-6)

    def filter_time(explain, cutoff):
        return sj.lowpass(explain, cutoff, axes=(0,))

    search = sj.spectral.best_cutoff(explain, deletion, [2, jnp.inf], transform=filter_time)
    np.testing.assert_allclose(jax.jit(search)(1.0, xs).scores[:, 1], want, rtol=1e-4)
