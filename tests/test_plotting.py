import io
import pathlib
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smoothjax import plotting
from smoothjax.calibrate import SigmaEstimate
from smoothjax.plotting import (
    accuracy_drop,
    bars,
    beeswarm,
    best_cutoff,
    convergence,
    estimates,
    gallery,
    grid,
    heatmap,
    mean_and_stderr,
    overlay,
    power_spectrum,
    signal,
    text,
    text_html,
)
from smoothjax.reductions import Estimate, relative_error
from smoothjax.spectral import CutoffSearch, SignalAndNoise


def test_heatmap_is_the_magnitude_over_its_99th_percentile():
    values = np.linspace(-1, 1, 200).reshape(10, 20)
    expected = np.minimum(np.abs(values) / np.percentile(np.abs(values), 99), 1)
    np.testing.assert_allclose(heatmap(values), expected)


def test_heatmap_pools_channels_by_their_l2_norm():
    attribution = jnp.zeros((10, 10, 2)).at[0, :].set(jnp.array([3.0, -4.0])).at[1, :, 0].set(2.5)
    expected = np.zeros((10, 10))
    expected[0], expected[1] = 1.0, 0.5
    np.testing.assert_allclose(heatmap(attribution), expected)


def test_heatmap_shows_a_single_pixel():
    attribution = np.zeros((50, 50))
    attribution[3, 4] = -1e-30
    np.testing.assert_array_equal(heatmap(attribution), attribution != 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, jnp.bfloat16, np.float32])
def test_heatmap_takes_any_real_dtype(dtype):
    np.testing.assert_array_equal(heatmap(jnp.eye(4).astype(dtype)), np.eye(4))


def test_heatmap_does_not_overflow():
    assert heatmap(np.full((2, 2, 3), 1e30, np.float32)).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, 0.0), (5.0, 1.0), (-5.0, 1.0), (np.nan, np.nan), (np.inf, 1.0)]
)
def test_constant_maps(value, shown):
    attribution = np.full((6, 6), value)
    np.testing.assert_array_equal(heatmap(attribution), np.full((6, 6), shown))


def test_nan_stays_where_it_is():
    attribution = np.eye(4)
    attribution[1, 2] = np.nan
    np.testing.assert_array_equal(heatmap(attribution), attribution)


@pytest.mark.parametrize("shape", [(), (4,), (1, 4, 4, 3)])
def test_heatmap_refuses_other_dimensions(shape):
    with pytest.raises(ValueError, match="shape \\(H, W\\)"):
        heatmap(np.zeros(shape))


def pixels_of(figure, axes):
    """The drawn pixels of one row through the middle of a panel."""
    file = io.BytesIO()
    figure.savefig(file, format="rgba")
    width, height = (int(side) for side in figure.bbox.size)
    pixels = np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)
    box = axes.get_window_extent()
    return pixels[height - int(box.y0 + box.height / 2), int(box.x0) + 2 : int(box.x1) - 2, :3]


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1)])
@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.int32, 255), (np.float32, 1)])
def test_a_grey_picture_is_drawn_grey(dtype, white, shape):
    greys = np.linspace(0, white, 16).astype(dtype)
    image = np.tile(greys, (16, 1)).reshape(shape)
    figure = gallery(image, [np.eye(16)], ["input", "map"])
    drawn = pixels_of(figure, figure.axes[0])
    np.testing.assert_array_equal(drawn, np.tile(drawn[:, :1], (1, 3)))
    expected = np.round(greys * (255 / white))
    np.testing.assert_allclose(np.unique(drawn[:, 0]), expected, atol=1)
    assert (np.diff(drawn[:, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    "maps",
    [
        Estimate(np.eye(8), np.eye(8), 9),
        {"a": np.eye(8)},
        [Estimate(np.eye(8), np.eye(8), 9)],
        [{"a": np.eye(8)}],
    ],
)
def test_what_is_no_map_says_what_to_type(maps):
    with pytest.raises(TypeError, match=r"got (Estimate|dict)\. Type \[?estimate\.mean"):
        gallery(np.zeros((8, 8)), maps, ["input", "map"])


@pytest.mark.parametrize("num_maps", [0, 1, 5, 9])
def test_gallery_has_one_panel_of_equal_size_for_the_image_and_each_map(num_maps):
    image = np.full((8, 8, 3), 200, np.uint8)
    maps = [np.arange(64.0).reshape(8, 8) + i for i in range(num_maps)]
    titles = ["input", *(f"map {i}\nof {num_maps}" for i in range(num_maps))]
    figure = gallery(image, maps, titles, "a heading")
    figure.canvas.draw()

    assert figure.get_suptitle() == "a heading"
    assert [axes.get_title() for axes in figure.axes] == titles
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), image)
    for axes, attribution in zip(figure.axes[1:], maps, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), heatmap(attribution))
        assert axes.images[0].get_clim() == (0, 1)
    sizes = [axes.get_window_extent().size for axes in figure.axes]
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[0], (num_maps + 1, 2)), rtol=1e-3)
    inside = figure.bbox.padded(1)
    for axes in figure.axes:
        box = axes.title.get_window_extent()
        assert inside.contains(*box.min)
        assert inside.contains(*box.max)


def test_odd_maps_are_drawn_without_warnings(tmp_path):
    maps = [np.full((8, 8), v) for v in (0.0, 1.0, np.nan, np.inf)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gallery(np.zeros((8, 8)), maps, ["title"] * 5).savefig(tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size > 0


def test_gallery_needs_a_title_for_each_panel():
    with pytest.raises(ValueError, match="got 1 titles"):
        gallery(np.zeros((8, 8)), [np.eye(8)], ["input"])


@pytest.mark.parametrize("num_columns", [1, 4, 6])
def test_estimates_are_dots_and_bars_in_a_panel_for_each_column(num_columns):
    columns = [f"parameter_randomization_{i}" for i in range(num_columns)]
    rows = ["integrated gradients of a long name", "b", "c"]
    rng = np.random.default_rng(0)
    means, stderrs = rng.normal(size=(2, 3, num_columns)) ** 2
    means[2, 0], stderrs[1, 0] = np.nan, np.nan
    table = {
        row: {c: Estimate(means[i, j], stderrs[i, j], 9) for j, c in enumerate(columns)}
        for i, row in enumerate(rows)
    }
    figure = estimates(table)
    figure.savefig(io.BytesIO())  # lays it out
    assert [axes.get_title() for axes in figure.axes] == columns
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == rows
    for j, axes in enumerate(figure.axes):
        dots, _, (bars,) = axes.containers[0].lines
        np.testing.assert_array_equal(dots.get_xdata(), means[:, j])
        drawn = ~np.isnan(means[:, j] + stderrs[:, j])
        half = np.array([[-1.0, 1.0]]) * stderrs[drawn, j][:, None]
        ends = [segment[:, 0] for segment in bars.get_segments() if len(segment)]
        np.testing.assert_allclose(ends, means[drawn, j][:, None] + half)
        heights = [axes.transData.transform((0, row))[1] for row in range(3)]
        assert heights == sorted(heights, reverse=True)  # the first row is the uppermost
        box = axes.title.get_window_extent()
        assert figure.bbox.padded(1).contains(*box.min)
        assert figure.bbox.padded(1).contains(*box.max)
    for label in figure.axes[0].get_yticklabels():
        assert figure.bbox.padded(1).contains(*label.get_window_extent().min)


def test_estimates_that_are_not_finite_are_left_out():
    table = {
        "a": {"m": Estimate(np.inf, np.nan, 3)},
        "b": {"m": Estimate(2.0, np.inf, 3)},
        "c": {"m": Estimate(np.nan, np.nan, 0)},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = estimates(table)
        figure.savefig(io.BytesIO())
    low, high = figure.axes[0].get_xlim()
    assert np.isfinite([low, high]).all()
    assert high - low < 10


PIECES = ["un", "##able", "<b>", "$", "&", "##$"]
NUMBERS = [1.0, -1.0, 0.0, np.nan, 0.5, -0.25]


def boxes(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_text_is_red_above_zero_blue_below_and_green_where_there_is_none():
    figure = text(PIECES, NUMBERS)
    figure.savefig(io.BytesIO())
    colors = np.array([box.get_facecolor()[:3] for box in boxes(figure)])
    assert to_hex(colors[3]) == "#32cd32"
    red, _, blue = colors.T
    assert (np.sign((red - blue)[[0, 1, 4, 5]]) == [1, -1, 1, -1]).all()
    assert colors[2].min() > 0.95  # white
    assert colors[4].min() > colors[0].min()  # paler


def test_parts_of_a_word_stand_side_by_side_and_words_apart():
    first, second, third, *_ = boxes(text(PIECES, NUMBERS))
    assert first.get_x() + first.get_width() == pytest.approx(second.get_x())
    assert second.get_x() + second.get_width() < third.get_x() - 0.5


def test_long_text_is_broken_between_words_and_stays_inside():
    figure = text(["word", "##s"] * 40 + ["x" * 80], np.ones(81))
    figure.canvas.draw()
    found = boxes(figure)
    tops = [box.get_y() for box in found]
    assert len(set(tops)) > 3
    assert all(one == other for one, other in zip(tops[0:80:2], tops[1:80:2], strict=True))
    for box in found:
        assert figure.bbox.padded(1).contains(*box.get_window_extent().min)
        assert figure.bbox.padded(1).contains(*box.get_window_extent().max)


def test_html_is_escaped_and_shows_the_same_colours():
    markup = text_html(['<script>alert("&")</script>', "##x", "y"], [1.0, 0.5, -1.0])._repr_html_()
    assert "&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;" in markup
    assert markup.count("<") == 6  # spans alone
    assert "</span><span" in markup  # a word
    assert "</span> <span" in markup  # and the next
    for box in boxes(text(["a", "##x", "y"], [1.0, 0.5, -1.0])):
        assert f"background:{to_hex(box.get_facecolor())}" in markup
    assert 'title="0.5"' in markup


def test_bars_are_in_order_with_their_errors():
    values = Estimate(jnp.array([0.1, -0.5, 0.3]), jnp.array([0.05, 0.1, 0.02]), 9)
    axes = bars(["a", "b", "c"], values).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    drawn, errors = axes.containers[1], axes.containers[0]
    np.testing.assert_allclose([bar.get_width() for bar in drawn], [-0.5, 0.3, 0.1])
    ends = [segment[:, 0] for segment in errors.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[-0.6, -0.4], [0.28, 0.32], [0.05, 0.15]])
    top, *_, bottom = (axes.transData.transform((0, row))[1] for row in range(3))
    assert top > bottom


def test_a_swarm_has_a_dot_for_each_example_and_none_on_another():
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(60, 3))
    xs[:, 2] = rng.integers(0, 2, 60)
    xs[4, 0] = np.nan
    maps = np.nan_to_num(xs) * np.array([0.1, 1.0, -0.5])
    figure = beeswarm(["a", "b", "c"], maps, xs)
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    for row, (feature, dots) in enumerate(zip([1, 2, 0], axes.collections, strict=True)):
        places = np.asarray(dots.get_offsets())
        np.testing.assert_array_equal(places[:, 0], maps[:, feature])
        assert np.abs(places[:, 1] - row).max() <= 0.4 + 1e-9
        assert len(np.unique(places, axis=0)) == 60
        shade = np.ma.getdata(dots.get_array())
        np.testing.assert_array_equal(np.isnan(shade), np.isnan(xs[:, feature]))
        known = ~np.isnan(shade)
        assert (np.diff(shade[known][np.argsort(xs[known, feature])]) >= 0).all()


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3)])
def test_a_signal_is_a_line_for_each_channel_coloured_at_each_time(shape):
    rng = np.random.default_rng(0)
    x, attribution = rng.normal(size=(2, *shape))
    figure = signal(x, attribution)
    figure.savefig(io.BytesIO())
    lines = figure.axes[0].collections
    assert len(lines) == (1 if len(shape) == 1 else shape[1])
    for channel, line in enumerate(lines):
        segments = np.array(line.get_segments())
        np.testing.assert_array_equal(segments[:, 1, 0], np.arange(20))
        height = segments[:, 1, 1] - x.reshape(20, -1)[:, channel]
        np.testing.assert_allclose(height, height[0], atol=1e-9)
        np.testing.assert_array_equal(line.get_array(), attribution.reshape(20, -1)[:, channel])
        assert line.norm.vmin == -line.norm.vmax  # 0 is in the middle


def test_a_pooled_map_colours_all_channels_of_a_signal():
    x, attribution = np.ones((9, 2)), np.arange(9.0)
    for line in signal(x, attribution).axes[0].collections:
        np.testing.assert_array_equal(line.get_array(), attribution)


def test_a_signed_map_sums_over_channels_and_keeps_its_sign():
    attribution = np.zeros((5, 4, 2))
    attribution[0, 0], attribution[1, 1], attribution[2, 2] = [3.0, -4.0], [1.0, 3.0], np.nan
    shown = heatmap(attribution, signed=True, percentile=100)
    expected = np.zeros((5, 4))
    expected[0, 0], expected[1, 1], expected[2, 2] = -0.25, 1, np.nan
    np.testing.assert_array_equal(shown, expected)


def test_the_percentile_has_the_full_colour():
    values = np.arange(101.0).reshape(1, 101)
    np.testing.assert_allclose(heatmap(values, percentile=50)[0], np.minimum(values[0] / 50, 1))
    np.testing.assert_allclose(heatmap(values, percentile=100)[0], values[0] / 100)
    half = gallery(np.zeros((1, 101)), [values], ["", ""], percentile=50)
    np.testing.assert_array_equal(shown_in(half.axes[1]), heatmap(values, percentile=50))


def shown_in(ax):
    return ax.images[0].get_array().data


IMAGE = np.array([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 1]]])
GREYS = np.array([[0.299, 0.587], [0.114, 1.0]])
LIME = np.array([50, 205, 50]) / 255


@pytest.mark.parametrize("white", [1.0, 255])
def test_pixels_of_an_overlay(white):
    """By hand: the colormap is grey, so that a magnitude is its colour, 0.5 is 128 / 255."""
    image = IMAGE if white == 1 else (IMAGE * 255).astype(np.uint8)
    attribution = np.array([[0.0, -1.0], [2.0, np.nan]])
    drawn = shown_in(
        overlay(image, attribution, alpha=0.6, percentile=100, colormap="gray").axes[0]
    )
    half = 128 / 255
    np.testing.assert_allclose(drawn[0, 0], 0.299)
    np.testing.assert_allclose(drawn[0, 1], 0.7 * 0.587 + 0.3 * half)
    np.testing.assert_allclose(drawn[1, 0], 0.4 * 0.114 + 0.6)
    np.testing.assert_allclose(drawn[1, 1], 0.4 + 0.6 * LIME)


def test_pixels_of_a_signed_overlay():
    drawn = shown_in(
        overlay(IMAGE, [[0.0, -2.0], [2.0, 2.0]], alpha=1, signed=True, percentile=100).axes[0]
    )
    np.testing.assert_allclose(drawn[0, 0], 0.299)  # nothing over the image
    np.testing.assert_allclose(drawn[0, 1], [0, 0, 1])
    np.testing.assert_allclose(drawn[1], [[1, 0, 0], [1, 0, 0]])


def test_white_shows_through_an_image():
    image = np.concatenate([IMAGE, np.array([[[1.0], [0.5]], [[0.0], [1.0]]])], -1)
    drawn = shown_in(overlay(image, np.zeros((2, 2))).axes[0])
    np.testing.assert_allclose(drawn[..., 0], [[0.299, 0.587 / 2 + 0.5], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("alpha", "shape", "message"),
    [(0, (2, 2), "alpha must be"), (1.5, (2, 2), "alpha must be"), (0.5, (4, 4), "does not lie")],
)
def test_what_is_no_overlay(alpha, shape, message):
    with pytest.raises(ValueError, match=message):
        overlay(IMAGE, np.ones(shape), alpha=alpha)


def test_a_gallery_over_the_image_is_its_overlays():
    maps = [np.eye(2), 1 - np.eye(2)]
    figure = gallery(IMAGE, maps, ["input", "a", "b"], alpha=0.7)
    np.testing.assert_array_equal(shown_in(figure.axes[0]), IMAGE)
    for ax, attribution in zip(figure.axes[1:], maps, strict=True):
        expected = shown_in(overlay(IMAGE, attribution, alpha=0.7).axes[0])
        np.testing.assert_array_equal(shown_in(ax), expected)


def test_signed_colours_are_white_at_zero_red_above_and_blue_below():
    figure = gallery(np.zeros((2, 2)), [[[0.0, -1.0], [1.0, np.nan]]], ["", ""], signed=True)
    drawn = figure.axes[1].images[0]
    zero, below, above, missing = drawn.to_rgba(drawn.get_array())[..., :3].reshape(4, 3)
    assert zero.min() > 0.96
    assert below[2] - below[0] > 0.25
    assert above[0] - above[2] > 0.25
    np.testing.assert_allclose(missing, LIME)
    assert drawn.get_clim() == (-1, 1)


def bar_of(figure):
    return figure.axes[-1].get_ylim()


@pytest.mark.parametrize("signed", [False, True])
def test_a_common_scale(signed):
    small, large = np.linspace(-1, 1, 100).reshape(10, 10), np.full((10, 10), 4.0)
    figure = gallery(
        np.zeros((10, 10)), [small, large], ["", "", ""], signed=signed, common_scale=True
    )
    figure.savefig(io.BytesIO())
    np.testing.assert_allclose(shown_in(figure.axes[1]), (small if signed else abs(small)) / 4)
    np.testing.assert_array_equal(shown_in(figure.axes[2]), 1)
    assert bar_of(figure) == (-4 if signed else 0, 4)
    both = np.abs(np.stack([small, large / 8]))
    figure = gallery(np.zeros((10, 10)), [small, large / 8], ["", "", ""], common_scale=True)
    assert bar_of(figure)[1] == pytest.approx(np.percentile(both, 99))


@pytest.mark.parametrize("settings", [{}, {"common_scale": True}, {"alpha": 0.5}])
def test_a_grid_has_a_row_for_each_image_and_a_column_for_each_method(settings):
    rng = np.random.default_rng(0)
    images = [np.full((6, 8, 3), 0.1), np.full((6, 8), 200, np.uint8), np.zeros((6, 8, 1))]
    maps = {"a": rng.normal(size=(3, 6, 8)), "b": list(rng.normal(size=(3, 6, 8, 2)))}
    figure = grid(images, maps, **settings)
    figure.savefig(io.BytesIO())
    panels = np.array(figure.axes[:9]).reshape(3, 3)
    assert [ax.get_title() for ax in panels[0]] == ["input", "a", "b"]
    for row, image in enumerate(images):
        assert shown_in(panels[row, 0]).flat[0] == image.flat[0]
        for ax, column in zip(panels[row, 1:], maps.values(), strict=True):
            expected = heatmap(column[row])
            if "alpha" in settings:
                expected = shown_in(overlay(image, column[row], alpha=0.5).axes[0])
            if "common_scale" in settings:
                pixels = [np.abs(maps["a"]), np.linalg.norm(maps["b"], axis=-1)]
                limit = np.percentile(pixels, 99)
                magnitude = pixels[0 if column is maps["a"] else 1][row]
                expected = np.minimum(magnitude / limit, 1)
            np.testing.assert_allclose(shown_in(ax), expected)
    sizes = [ax.get_window_extent().size for ax in panels.flat]
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[0], (9, 2)), rtol=1e-3)


def test_what_is_no_grid():
    with pytest.raises(TypeError, match="by its name"):
        grid(np.zeros((2, 4, 4)), [np.zeros((2, 4, 4))])
    with pytest.raises(ValueError, match=r"2 maps of 'a'.*got list of 1"):
        grid(np.zeros((2, 4, 4)), {"a": [np.zeros((4, 4))]})
    with pytest.raises(ValueError, match="got Estimate"):
        grid(np.zeros((3, 4, 4)), {"a": Estimate(np.zeros((3, 4, 4)), np.zeros((3, 4, 4)), 9)})


def test_a_map_and_its_error_have_one_scale():
    mean = np.array([[[3.0, -4.0], [0, 0]]] * 2)
    stderr = np.array([[[0.0, 1.0], [10.0, 0]]] * 2)
    figure = mean_and_stderr(Estimate(mean, stderr, 7), percentile=100)
    figure.savefig(io.BytesIO())
    np.testing.assert_allclose(shown_in(figure.axes[0]), [[0.5, 0]] * 2)
    np.testing.assert_allclose(shown_in(figure.axes[1]), [[0.1, 1]] * 2)
    assert bar_of(figure) == (0, 10)
    titles = [ax.get_title() for ax in figure.axes[:2]]
    assert titles == ["mean of 7 draws", "standard error\nerror > signal"]
    signed = mean_and_stderr(Estimate(-mean[..., 0], stderr[..., 0] / 20, 7), signed=True)
    np.testing.assert_allclose(shown_in(signed.axes[0]), [[-1, 0]] * 2)
    assert signed.axes[1].get_title() == "standard error\nrelative error 0.17"


def test_what_has_no_error_to_draw():
    with pytest.raises(TypeError, match="mean_and_stderr"):
        mean_and_stderr(np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"pool\(explain, jnp\.sum\)"):
        mean_and_stderr(Estimate(np.ones((4, 4, 2)), np.ones((4, 4, 2)), 9), signed=True)
    with pytest.raises(TypeError, match="got dict"):
        mean_and_stderr(Estimate({"a": np.ones((4, 4))}, {"a": np.zeros((4, 4))}, 9))


def test_spectra_are_added_over_channels_and_begin_at_ring_one():
    power = np.array([[9.0, 9.0], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    figure = power_spectrum(power)
    power_spectrum(10 * power, label="tenfold", ax=figure.axes[0])
    figure.savefig(io.BytesIO())
    one, ten = figure.axes[0].lines
    np.testing.assert_array_equal(one.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(one.get_ydata(), [3, np.nan, 7])
    np.testing.assert_array_equal(ten.get_ydata(), [30, np.nan, 70])
    assert one.get_color() != ten.get_color()
    assert [words.get_text() for words in figure.axes[0].get_legend().get_texts()] == ["tenfold"]


def test_the_spectrum_of_a_constant_is_empty():
    power_spectrum(np.array([4.0, 0, 0])).savefig(io.BytesIO())


def test_signal_is_drawn_against_noise():
    found = SignalAndNoise(np.array([9.0, 5.0, 3.0]), np.array([9.0, 1.0, 4.0]), 50)
    figure = power_spectrum(found)
    figure.savefig(io.BytesIO())
    drawn = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    np.testing.assert_equal(
        drawn,
        {"mean of 50 draws": [5, 3], "its noise": [1, 4], "without its noise": [4, np.nan]},
    )


SCORES = np.array([[1.0, 2.0, 5.0], [2.0, 2.5, 5.0], [0.5, 3.0, 9.0]])


def search(cutoffs, scores, best, parsimonious, flat=False):
    mean = scores.mean(0)
    return CutoffSearch(np.array(cutoffs), mean, 0 * mean, scores, best, parsimonious, flat)


def test_the_curve_of_cutoffs_has_paired_errors():
    """The best is the second that was tried, the third place in order."""
    figure = best_cutoff(search([3.0, np.inf, 0.5], SCORES, np.inf, 0.5))
    figure.savefig(io.BytesIO())
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "3", "none"]
    line, _, (errors,) = ax.containers[0].lines
    order = SCORES[:, [2, 0, 1]]
    np.testing.assert_allclose(line.get_ydata(), order.mean(0))
    gaps = order - order[:, [2]]
    half = gaps.std(0, ddof=1) / np.sqrt(3)
    ends = np.array([segment[:, 1] for segment in errors.get_segments()])
    np.testing.assert_allclose(ends, order.mean(0)[:, None] + half[:, None] * [[-1, 1]])
    marks = {line.get_label(): line.get_xdata().tolist() for line in ax.lines[-2:]}
    assert marks == {"best: inf": [2], "parsimonious: 0.5": [0]}
    assert ax.lines[0].get_ydata() == [2.5, 2.5]  # the dashed line is at the best


def test_a_flat_curve_says_so_and_nan_marks_none():
    assert "flat" in best_cutoff(search([1.0, 2, 3], SCORES, 3.0, 1.0, True)).axes[0].get_title()
    nan = best_cutoff(search([1.0, 2, 3], SCORES * np.nan, np.nan, np.nan, True))
    nan.savefig(io.BytesIO())
    assert nan.axes[0].get_legend() is None


def test_the_drop_has_a_band_of_one_error():
    drops = Estimate(jnp.array([0.5, 0.0, 0.1]), jnp.array([0.2, 0.01, 0.05]), 25)
    found = SigmaEstimate(jnp.float32(0.125), jnp.float32(0.02), Estimate(0.05, 0.01, 25))
    figure = accuracy_drop(jnp.array([0.5, 0.01, 0.125]), drops, found=found)
    figure.savefig(io.BytesIO())
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0, 0.1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.01, 0.125, 0.5], rtol=1e-6)
    corners = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(corners[np.isclose(corners[:, 0], 0.5), 1].max(), 0.7, rtol=1e-6)
    np.testing.assert_allclose(corners[np.isclose(corners[:, 0], 0.5), 1].min(), 0.3, rtol=1e-6)
    (words,) = ax.get_legend().get_texts()
    assert words.get_text() == "0.12 ± 0.02 costs 5%"


def test_convergence_is_the_relative_error_of_the_first_draws():
    rng = np.random.default_rng(0)
    draws = {"a": 1 + rng.normal(size=(50, 30)), "b": 2 + rng.normal(size=(50, 2, 4))}
    figure = convergence(draws)
    figure.savefig(io.BytesIO())
    line, guide = figure.axes[0].lines
    counts = line.get_xdata()
    assert counts[0] == 2
    assert counts[-1] == 50
    whole = np.concatenate([draws["a"], draws["b"].reshape(50, -1)], 1)
    for n, error in zip(counts, line.get_ydata(), strict=True):
        first = whole[:n]
        stderr = first.std(0, ddof=1) / np.sqrt(n)
        want = relative_error(Estimate(first.mean(0), stderr, n))
        np.testing.assert_allclose(error, want if np.isfinite(want) else np.nan, rtol=1e-4)
    np.testing.assert_allclose(guide.get_ydata()[0], line.get_ydata()[-1] * 5)


def test_convergence_of_noise_alone_and_of_none():
    signs = np.tile([[1.0], [-1.0]], (5, 4))
    noise = convergence(signs, label="noise").axes[0]
    assert np.isnan(noise.lines[0].get_ydata()[0])  # of 2 draws the mean is 0
    noise.figure.savefig(io.BytesIO())
    with pytest.raises(ValueError, match="at least 2"):
        convergence(np.ones((1, 3)))
    exact = convergence(np.ones((4, 3)))
    exact.savefig(io.BytesIO())
    assert np.isnan(exact.axes[0].lines[0].get_ydata()).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: best_cutoff(np.zeros(3)),
        lambda: accuracy_drop([0.1], [0.1]),
        lambda: power_spectrum({"a": np.zeros(3)}),
    ],
)
def test_curves_of_something_else(draw):
    with pytest.raises(TypeError, match="needs"):
        draw()


@pytest.mark.parametrize("levels", [[0.0, 0.1], [0.1], [[0.1, 0.2]]])
def test_levels_that_do_not_fit(levels):
    with pytest.raises(ValueError, match="levels above 0"):
        accuracy_drop(levels, Estimate(np.zeros(2), np.zeros(2), 9))


def test_a_figure_shows_itself():
    shown = [
        gallery(np.zeros((8, 8)), [np.eye(8)], ["a", "b"]),
        bars(["a"], [1.0]),
        text(["a"], [1.0]),
        convergence(np.ones((3, 2)) + np.eye(3, 2)),
    ]
    for figure in shown:
        assert figure._repr_png_().startswith(b"\x89PNG\r\n")
        assert repr(figure).startswith("<Figure size")


def test_no_picture_touches_the_global_state():
    folder = pathlib.Path(plotting.__file__).parent
    assert not any("import pyplot" in file.read_text() for file in folder.glob("*.py"))
    assert not any("rcParams" in file.read_text() for file in folder.glob("*.py"))


def test_figures_of_ones_own():
    table = {"a": {"m": Estimate(1.0, 0.1, 9)}}
    for draw in (
        lambda figure: gallery(np.zeros((8, 8)), [np.eye(8)], ["", ""], figure=figure),
        lambda figure: grid(np.zeros((1, 8, 8)), {"a": [np.eye(8)]}, figure=figure),
        lambda figure: mean_and_stderr(Estimate(np.eye(8), np.eye(8), 9), figure=figure),
        lambda figure: gallery(
            np.zeros((8, 8)), [np.eye(8)], ["", ""], common_scale=True, figure=figure
        ),
        lambda figure: estimates(table, figure=figure),
    ):
        whole = Figure(layout="constrained")
        left, right = whole.subfigures(1, 2)
        assert draw(right) is right
        whole.savefig(io.BytesIO())
        assert not left.axes
        assert right.axes


def test_axes_of_ones_own():
    xs = np.random.default_rng(0).normal(size=(9, 2))
    for draw in (
        lambda ax: overlay(np.zeros((8, 8)), np.eye(8), ax=ax),
        lambda ax: power_spectrum(np.ones(5), ax=ax),
        lambda ax: best_cutoff(search([1.0, 2, 3], SCORES, 3.0, 1.0), ax=ax),
        lambda ax: accuracy_drop([0.1, 0.2], Estimate(np.zeros(2), np.ones(2), 9), ax=ax),
        lambda ax: convergence(np.eye(4) + 1, ax=ax),
        lambda ax: text(PIECES, NUMBERS, ax=ax),
        lambda ax: bars(["a", "b"], xs[0], ax=ax),
        lambda ax: beeswarm(["a", "b"], xs, xs, ax=ax),
        lambda ax: signal(xs, xs, ax=ax),
    ):
        figure = Figure(layout="constrained")
        left, right = figure.subplots(1, 2)
        assert draw(right) is figure
        figure.savefig(io.BytesIO())
        assert not left.has_data()
        assert right.has_data() or right.patches


@pytest.mark.parametrize(
    "draw",
    [
        lambda: text(PIECES, np.zeros((6, 3))),
        lambda: text_html(PIECES, np.zeros(5)),
        lambda: bars(["a"], np.zeros(2)),
        lambda: beeswarm(["a", "b"], np.zeros((3, 2)), np.zeros((4, 2))),
        lambda: beeswarm(["a"], np.zeros((3, 2)), np.zeros((3, 2))),
        lambda: signal(np.zeros((5, 2)), np.zeros((4, 2))),
        lambda: signal(np.zeros((5, 2, 1)), np.zeros((5, 2, 1))),
    ],
)
def test_pictures_of_what_does_not_fit(draw):
    with pytest.raises(ValueError, match=r"needs|there are 1 names"):
        draw()


@pytest.mark.parametrize(
    "draw", [lambda value: text(["a"], value), lambda value: signal(np.zeros(5), value)]
)
def test_pictures_of_an_estimate_say_what_to_type(draw):
    with pytest.raises(TypeError, match=r"estimate\.mean"):
        draw(Estimate(np.zeros(1), np.zeros(1), 9))


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_pictures_of_constants_come_without_warnings(value):
    constant = np.full((6, 2), value)
    for figure in (
        text(["a", "b"], constant[0]),
        bars(["a", "b"], constant[0]),
        beeswarm(["a", "b"], np.zeros((6, 2)), constant),
        signal(np.ones((6, 2)), constant),
    ):
        figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((8, 8, 3), 1.5), r"net\.unprocess\(x\)"),
        (np.full((8, 8, 3), -0.1, np.float32), r"got float32 from -0\.1"),
        (np.full((8, 8), 4000, np.uint16), "uint16 from 4000 to 4000"),
        (np.zeros((8, 8, 2)), r"one picture.*got shape \(8, 8, 2\)"),
        (np.zeros((1, 8, 8, 3)), r"Of a batch type image\[0\]"),
        (np.zeros(8), "one picture"),
    ],
)
def test_what_is_no_picture_is_an_error(image, message):
    with pytest.raises(ValueError, match=message):
        gallery(image, [], ["input"])


def test_a_mask_is_drawn_in_black_and_white():
    figure = gallery(np.eye(4, dtype=bool), [], ["mask"])
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.dtype == float
    np.testing.assert_array_equal(drawn[..., 0], np.eye(4))


def test_a_picture_has_no_missing_values():
    with pytest.raises(ValueError, match="floats from 0 to 1"):
        gallery(np.full((4, 4), np.nan), [], ["input"])
