"""Layouts: what is no image is an error where the defaults mean one, and what to type is right."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax import metrics, plotting, spectral

KEY = jax.random.key(0)
FIRST = (3, 32, 32)


def linear(params, x):
    return jnp.sum(params * x)


def stripes(params, x):
    """How strong stripes along the last axis are."""
    del params
    return jnp.mean(x[..., ::2] - x[..., 1::2]) / 2


def of(make, *args):
    """A call of an explainer or a metric of x, with a key where one is taken."""
    return lambda x: make(KEY, 1.0, x, *args) if sj.is_stochastic(make) else make(1.0, x, *args)


def judge(metric):
    return lambda x: of(metric, x)(x)


def mean_of_draws(reduction):
    return of(sj.smoothgrad(lambda p, x: x, 0.1, num_samples=2, reduction=reduction))


# What takes axes, as a function of the settings to a function of x.
WITH_AXES = {
    "lowpass": lambda **s: of(sj.lowpass(sj.saliency(linear), 3, **s)),
    "power_spectrum": lambda **s: lambda x: spectral.power_spectrum(x, **s),
    "wiener": lambda **s: mean_of_draws(spectral.wiener(**s)),
    "signal_and_noise": lambda **s: mean_of_draws(spectral.signal_and_noise(**s)),
    "blur": lambda **s: sj.attribution.blur(2.0, **s),
    "channel_mean": lambda **s: sj.attribution.channel_mean(**s),
    "occlusion": lambda **s: of(sj.occlusion(linear, 2, **s)),
    "rise": lambda **s: of(sj.rise(linear, num_samples=3, grid=3, **s)),
    "sobol": lambda **s: of(sj.sobol(linear, num_designs=2, grid=3, **s)),
    "hsic": lambda **s: of(sj.hsic(linear, num_samples=4, grid=3, **s)),
    "lime": lambda **s: of(sj.lime(linear, num_samples=4, grid=3, **s)),
    "kernel_shap": lambda **s: of(sj.kernel_shap(linear, num_samples=18, grid=3, **s)),
    "expected_frequency": lambda **s: lambda x: metrics.expected_frequency(x, **s),
    "deletion": lambda **s: judge(metrics.deletion(linear, **s)),
    "srg": lambda **s: judge(metrics.srg(linear, **s)),
    "road": lambda **s: judge(metrics.road(linear, **s)),
    "monotonicity": lambda **s: judge(metrics.monotonicity(linear, **s)),
    "monotonicity_correlation": lambda **s: judge(
        metrics.monotonicity_correlation(linear, grid=3, num_samples=2, **s)
    ),
    "non_sensitivity": lambda **s: judge(
        metrics.non_sensitivity(linear, grid=3, num_samples=2, **s)
    ),
    "insertion": lambda **s: judge(metrics.insertion(linear, **s)),
    "insertion_minus_deletion": lambda **s: judge(metrics.insertion_minus_deletion(linear, **s)),
    "mu_fidelity": lambda **s: judge(metrics.mu_fidelity(linear, grid=3, num_samples=3, **s)),
    "faithfulness_correlation": lambda **s: judge(
        metrics.faithfulness_correlation(linear, subset_size=2, num_samples=3, **s)
    ),
    "infidelity": lambda **s: judge(metrics.infidelity(linear, num_samples=3, **s)),
    "information_curve": lambda **s: judge(metrics.information_curve(linear, num_steps=2, **s)),
}
# What takes a channel axis.
WITH_CHANNELS = {
    "pool": lambda **s: of(sj.pool(sj.saliency(linear), jnp.sum, **s)),
    "forgrad": lambda **s: of(sj.forgrad(sj.saliency(linear), 2, **s)),
    "gradcam": lambda **s: of(sj.gradcam(lambda p, x: x, linear, **s)),
    "gradcam_plus_plus": lambda **s: of(sj.gradcam_plus_plus(lambda p, x: x, linear, **s)),
}
# What takes neither.
WITHOUT = {
    "heatmap": plotting.heatmap,
    "gallery": lambda x: plotting.gallery(x, [], ["input"]),
    "mosaic": lambda x: metrics.mosaic(x[None], (1, 1)),
    "ssim": lambda x: metrics.ssim(x, x),
}


def run_abstractly(call, shape):
    """As the layout is known from shapes, nothing need be computed."""
    return jax.eval_shape(call, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("name", WITH_AXES)
def test_channels_first_is_an_error_until_the_axes_are_typed(name):
    make = WITH_AXES[name]
    for shape in [FIRST, (1, 9, 9), (4, 9, 12), (2, 9, 9), (13, 64, 64)]:
        with pytest.raises(ValueError, match=r"\(channels, H, W\).*Type axes=\(1, 2\)"):
            run_abstractly(make(), shape)
    run_abstractly(make(axes=(1, 2)), FIRST)
    run_abstractly(make(axes=(0, 1)), (3, 9, 9))  # nine channels of a picture of three rows
    for shape in [(9, 9, 3), (9, 9, 1), (9, 9, 4), (9, 9), (9, 9, 12), (3, 9, 3)]:
        run_abstractly(make(), shape)


JOINT = {
    "wiener": lambda **s: mean_of_draws(spectral.wiener(**s)),
    "smoothgrad_toward": lambda **s: of(
        sj.smoothgrad_toward(lambda p, x: x, lambda p, x: x, 0.1, num_samples=2, **s)
    ),
}


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize(
    ("axes", "channel_axis", "shape"),
    [
        ((1, 2), 0, (3, 8, 9)),
        pytest.param((0, 1, 2), -1, (4, 5, 6, 2), marks=pytest.mark.slow),
        pytest.param((0, 2), 1, (8, 3, 9), marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_channel_axis_typed_alone_leaves_the_other_axes(name, axes, channel_axis, shape):
    x = jax.random.normal(KEY, shape)
    want = JOINT[name](axes=axes, channel_axis=channel_axis)(x)
    np.testing.assert_array_equal(JOINT[name](channel_axis=channel_axis)(x), want)


def test_smoothgrad_toward_asks_for_a_channel_axis():
    with pytest.raises(ValueError, match=r"\(channels, H, W\).*Type channel_axis=0"):
        run_abstractly(JOINT["smoothgrad_toward"](), FIRST)
    with pytest.raises(ValueError, match=r"no channel axis -1 beside.*Type channel_axis=0"):
        run_abstractly(JOINT["smoothgrad_toward"](axes=(1, 2)), FIRST)


@pytest.mark.parametrize("name", WITH_CHANNELS)
def test_channels_first_is_an_error_until_the_channel_axis_is_typed(name):
    make = WITH_CHANNELS[name]
    with pytest.raises(ValueError, match=r"\(channels, H, W\).*Type channel_axis=0"):
        run_abstractly(make(), FIRST)
    run_abstractly(make(channel_axis=0), FIRST)
    run_abstractly(make(channel_axis=-1), FIRST)
    for shape in [(9, 9, 3), (9, 9, 1), (9, 9, 12)]:
        run_abstractly(make(), shape)


@pytest.mark.parametrize("name", WITHOUT)
def test_channels_first_is_an_error_that_says_how_to_move_them(name):
    for shape in [FIRST, (13, 16, 16)]:
        with pytest.raises(ValueError, match=r"\(channels, H, W\).*jnp\.moveaxis|channels last"):
            WITHOUT[name](np.zeros(shape))
    WITHOUT[name](np.zeros((32, 32, 3)))


FILTERS = ["lowpass", "power_spectrum", "wiener", "signal_and_noise", "blur"]


MASKING = ["occlusion", "rise", "sobol", "hsic", "lime", "kernel_shap"]


@pytest.mark.parametrize("name", [*FILTERS, "expected_frequency", *MASKING])
@pytest.mark.parametrize("shape", [(100, 3), (100, 1), (3, 100), (900, 2), (1000, 12), (77, 768)])
def test_a_signal_is_not_taken_for_a_picture(name, shape):
    with pytest.raises(ValueError, match=r"signal beside its channels. Type axes=\(0,\)"):
        run_abstractly(WITH_AXES[name](), shape)
    run_abstractly(WITH_AXES[name](axes=(0,)), shape)


@pytest.mark.parametrize("name", FILTERS)
def test_a_batch_or_a_volume_is_not_taken_for_a_picture(name):
    with pytest.raises(ValueError, match=r"axes=\(0, 1, 2\) for volumes; a batch.*jax.vmap"):
        run_abstractly(WITH_AXES[name](), (8, 9, 9, 3))
    run_abstractly(WITH_AXES[name](axes=(0, 1, 2)), (8, 9, 9, 3))


@pytest.mark.parametrize("name", ["deletion", "infidelity", "information_curve"])
def test_a_batch_is_not_judged_as_a_picture(name):
    with pytest.raises(ValueError, match=r"one image.*a batch goes through jax.vmap"):
        run_abstractly(WITH_AXES[name](), (4, 9, 9, 3))


@pytest.mark.parametrize("activations", [(8, 64), (2, 128)])
@pytest.mark.parametrize("x", [(12, 256), (3, 256)])
def test_gradcam_of_a_signal_with_channels_first_is_asked_for(x, activations):
    def explain(**settings):
        return sj.gradcam(lambda p, x: jnp.ones(activations), linear, **settings)

    with pytest.raises(ValueError, match=r"\(channels, time\). Type channel_axis=0"):
        run_abstractly(of(explain()), x)
    assert run_abstractly(of(explain(channel_axis=0)), x).shape == (1, 256)
    assert run_abstractly(of(sj.gradcam(lambda p, x: x[::4], linear)), x[::-1]).shape == (256, 1)


def test_gradcam_of_a_batch_is_refused_and_of_a_volume_asked_for():
    def explain(**settings):
        return sj.gradcam(lambda p, x: x[:, ::2, ::2], linear, **settings)

    with pytest.raises(ValueError, match=r"Type channel_axis=-1 for volumes; a batch.*jax.vmap"):
        run_abstractly(of(explain()), (4, 8, 8, 3))
    assert run_abstractly(of(explain(channel_axis=-1)), (4, 8, 8, 3)).shape == (4, 8, 8, 1)


LEAVES = {
    "lowpass": lambda g: of(sj.lowpass(g, 3)),
    "pool": lambda g: of(sj.pool(g, jnp.sum)),
    "wiener": lambda g: of(sj.smoothgrad(g, 0.1, num_samples=2, reduction=spectral.wiener())),
    "power_spectrum": lambda g: spectral.power_spectrum,
    "blur": lambda g: sj.attribution.blur(1.0),
    "occlusion": lambda g: of(sj.occlusion(lambda p, x: linear(p, x["b"]), 2)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_the_leaf_of_another_layout_is_named(name):
    x = {"a": jnp.ones((9, 9, 3)), "b": jnp.ones(FIRST)}
    with pytest.raises(ValueError, match=r"\(channels, H, W\)") as caught:
        jax.eval_shape(LEAVES[name](lambda p, x: x), x)
    assert "in the leaf 'b'" in caught.value.__notes__


def test_the_bits_of_channels_first_are_those_of_the_picture():
    x, attribution = jax.random.uniform(KEY, (9, 8, 3)), jnp.arange(72.0).reshape(9, 8)

    def curve(x, **settings):
        metric = metrics.information_curve(lambda p, x: jnp.sum(x), num_steps=3, **settings)
        return metric(None, x, attribution).value

    got = curve(jnp.moveaxis(x, -1, 0), axes=(1, 2))
    np.testing.assert_allclose(got, curve(x), rtol=1e-4)
    with pytest.raises(ValueError, match="give a function of yours"):
        metrics.information_curve(linear, axes=(0,))


def test_the_default_cutoff_of_forgrad_is_one_of_large_maps():
    with pytest.raises(ValueError, match=r"shape \(28, 28\).*Type a smaller one, such as 2\."):
        run_abstractly(of(sj.forgrad(sj.saliency(linear))), (28, 28, 3))
    run_abstractly(of(sj.forgrad(sj.saliency(linear), 15)), (28, 28, 3))
    run_abstractly(of(sj.forgrad(sj.saliency(linear))), (32, 32, 3))


def test_a_signal_is_drawn_along_its_time():
    with pytest.raises(ValueError, match=r"\(channels, time\). Type x.T"):
        plotting.signal(np.ones((12, 256)), np.ones((12, 256)))


@pytest.mark.parametrize("shape", [(100, 3), (32, 32), (30,), (8, 9, 9, 3)])
def test_forgrad_drops_the_channels_of_a_picture_and_no_other_axis_unasked(shape):
    with pytest.raises(ValueError, match=r"Type channel_axis=None if it was pooled"):
        run_abstractly(WITH_CHANNELS["forgrad"](), shape)
    if len(shape) > 1:
        run_abstractly(WITH_CHANNELS["forgrad"](channel_axis=-1), shape)
    run_abstractly(WITH_CHANNELS["forgrad"](channel_axis=None), shape[:3])


@pytest.mark.slow
@jax.disable_jit()
def test_channels_first_from_end_to_end_is_channels_last_moved():
    """What the errors say to type gives the maps and the judgements of the same data moved."""
    first, w = jax.random.uniform(KEY, (2, 3, 12, 16))
    last, w_last = jnp.moveaxis(first, 0, -1), jnp.moveaxis(w, 0, -1)

    def score(w, x):
        return jnp.tanh(jnp.sum(w * x**2) / 50)

    saliency = sj.saliency(score)

    def check(got, want):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)

    pooled = sj.pool(saliency, jnp.sum, channel_axis=0)(w, first)
    want = sj.pool(saliency, jnp.sum)(w_last, last)
    check(pooled, want)
    check(sj.forgrad(saliency, 3, channel_axis=0)(w, first), sj.forgrad(saliency, 3)(w_last, last))
    filtered = sj.lowpass(saliency, 3, axes=(1, 2))(w, first)
    check(jnp.moveaxis(filtered, 0, -1), sj.lowpass(saliency, 3)(w_last, last))
    hidden = sj.occlusion(score, 4, axes=(1, 2))(w, first)
    check(hidden[0], sj.occlusion(score, 4)(w_last, last)[..., 0])
    settings = {"num_samples": 20, "grid": 4}
    check(
        sj.hsic(score, axes=(1, 2), **settings)(KEY, w, first)[0],
        sj.hsic(score, **settings)(KEY, w_last, last)[..., 0],
    )
    for metric in [metrics.insertion, metrics.deletion]:
        some = functools.partial(metric, score, num_steps=6)
        check(some(axes=(1, 2))(w, first, pooled), some()(w_last, last, want))
    fidelity = functools.partial(metrics.mu_fidelity, score, grid=3, num_samples=10)
    check(fidelity(axes=(1, 2))(KEY, w, first, pooled), fidelity()(KEY, w_last, last, want))


def test_the_blurred_start_of_an_insertion_hides():
    """Blurred over channels and height, stripes along the width would all be left."""
    x = jnp.tile(jnp.array([1.0, -1.0] * 16), (3, 32, 1))
    curve = metrics.insertion_curve(stripes, axes=(1, 2))(None, x, x)
    assert abs(curve.value[0]) < 0.01
    with pytest.raises(ValueError, match=r"Type axes=\(1, 2\)"):
        metrics.insertion_curve(stripes)(None, x, x)


def test_a_map_that_lacks_the_width_is_refused():
    x = jnp.ones(FIRST)
    lacks = sj.pool(sj.saliency(linear), jnp.linalg.norm, channel_axis=-1)(x, x)
    assert lacks.shape == (3, 32)
    with pytest.raises(ValueError, match=r"keeps its axes \(1, 2\).*got \(3, 32\)"):
        metrics.deletion(linear, axes=(1, 2))(x, x, lacks)
    with pytest.raises(ValueError, match=r"Type axes=\(1, 2\)"):
        metrics.deletion(linear)(x, x, lacks)


def test_the_defaults_print_as_what_they_are():
    assert str(inspect.signature(sj.lowpass).parameters["axes"]).endswith(" = (0, 1)")
    assert str(inspect.signature(sj.pool).parameters["channel_axis"]) == "channel_axis: int = -1"
    assert str(inspect.signature(sj.sobol).parameters["grid"]).endswith(" = 8")


TABLE = {
    "occlusion": sj.occlusion(linear, axes=(0,)),
    "rise": sj.rise(linear, axes=(0,), num_samples=20),
    "sobol": sj.sobol(linear, axes=(0,), num_designs=4),
    "hsic": sj.hsic(linear, axes=(0,), num_samples=50),
    "lime": sj.lime(linear, axes=(0,), num_samples=100),
    "kernel_shap": sj.kernel_shap(linear, axes=(0,), num_samples=60),
}


@pytest.mark.parametrize("name", slow_but(list(TABLE), "sobol", "kernel_shap"))
def test_features_of_a_table_share_no_cell_unasked(name):
    got = of(TABLE[name])(jnp.arange(1.0, 31.0))
    assert got.shape == (30,)
    assert np.unique(np.asarray(got)).size == 30


def test_a_grid_that_is_typed_is_shared():
    explain = sj.sobol(linear, axes=(0,), num_designs=4, grid=8)
    assert np.unique(np.asarray(of(explain)(jnp.arange(1.0, 31.0)))).size <= 8
    explain = metrics.mu_fidelity(linear, axes=(0,), num_samples=4)
    x = jnp.arange(5.0)  # fewer features than the nine cells of a picture
    assert explain(KEY, 1.0, x, x) > 0.99


def test_the_default_patch_fits_the_input():
    """An object of 4 x 4 in a picture of 32 x 32, which one patch of 32 would cover."""
    x = jnp.zeros((32, 32, 3)).at[4:8, 20:24].set(1.0)
    got = sj.occlusion(lambda p, x: jnp.sum(x[4:8, 20:24]))(None, x)[..., 0]
    assert got[4:8, 20:24].min() > 2 * got.mean()
    assert got[16:, :16].max() == 0


@pytest.mark.parametrize(("size", "patch", "stride"), [(224, 32, 16), (300, 32, 16), (28, 4, 2)])
def test_the_default_patch_of_photos_stays(size, patch, stride):
    default = sj.occlusion(lambda p, x: jnp.sum(x), axes=(-2, -1))
    typed = sj.occlusion(lambda p, x: jnp.sum(x), (patch, 1), (stride, 1), axes=(-2, -1))
    programs = [str(jax.make_jaxpr(one)(None, jnp.ones((size, 8)))) for one in (default, typed)]
    assert programs[0] == programs[1]
