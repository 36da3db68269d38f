import io
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from smoothjax.plotting import estimates, gallery, heatmap
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
