import io
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smoothjax.plotting import (
    bars,
    beeswarm,
    estimates,
    gallery,
    heatmap,
    signal,
    text,
    text_html,
)
from smoothjax.reductions import Estimate


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


def test_axes_of_ones_own():
    xs = np.random.default_rng(0).normal(size=(9, 2))
    for draw in (
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
        assert right.patches or right.collections


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
