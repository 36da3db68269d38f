"""Pictures of the attributions of images: alone, over the photo, side by side, with their error."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from smoothjax._axes import check_channels_last
from smoothjax._checks import require
from smoothjax.plotting._figure import (
    LUMA,
    SIGNED,
    SIGNED_OVER,
    axes_on,
    colors_of,
    figure_of,
    full_scale,
)
from smoothjax.reductions import Estimate, relative_error

_BAR = 0.8  # inches for the bar that says what colours are
_MOVE = "Move its channels: jnp.moveaxis(array, 0, -1)."


def heatmap(attribution: Any, *, signed: bool = False, percentile: float = 99) -> np.ndarray:
    """Returns an attribution as an image of brightnesses, or, signed, of numbers from -1 to 1.

    The magnitude of a pixel is its absolute value, or the L2 norm over its channels. It is divided
    by the 99th percentile over the map and clipped, so 0 is always black: brightness compares
    pixels of one map, not maps. A signed map keeps its sign and sums over channels.

    Args:
      attribution: an array of shape (H, W) or (H, W, channels), signed or not.
      signed: whether to keep the sign.
      percentile: which percentile of the magnitudes has the full brightness, above 0; 100 is the
        greatest.

    Returns:
      A float64 array of shape (H, W) in [0, 1], or [-1, 1] if signed; NaN where the attribution is.

    Raises:
      TypeError: if the attribution is an `Estimate` or another pytree.
      ValueError: if it has another number of dimensions, or looks like (channels, H, W).

    >>> import numpy as np
    >>> from smoothjax.plotting import heatmap
    >>> print(heatmap(np.array([[0.0, -2.0], [1.0, 2.0]])).round(1))
    [[0.  1. ]
     [0.5 1. ]]
    >>> print(heatmap(np.array([[0.0, -2.0], [1.0, 2.0]]), signed=True).round(1))
    [[ 0.  -1. ]
     [ 0.5  1. ]]
    """
    values = _values(attribution, signed)
    return _clipped(values, full_scale(np.abs(values), percentile))


def overlay(
    image: Any,
    attribution: Any,
    *,
    alpha: float = 0.8,
    signed: bool = False,
    percentile: float = 99,
    colormap: str | None = None,
    ax: Any = None,
) -> Figure:
    """Returns a figure of an attribution over its image, which is drawn in greys.

    A pixel is the more opaque the greater its magnitude, so the image shows where nothing is
    attributed: `(1 - alpha |h|) grey + alpha |h| color(h)`, with h the `heatmap`.

    Args:
      image: the picture that is explained, an array of shape (H, W, 3) or (H, W, 4) in colours, or
        (H, W) or (H, W, 1) in greys; integers from 0 to 255 or floats from 0 to 1.
      attribution: a map of the same height and width; NaN is drawn in green.
      alpha: the opacity of what has the full colour, above 0 and at most 1.
      signed: whether to keep the sign, as in `heatmap`; red is then above 0, blue below.
      percentile: what has the full colour, as in `heatmap`.
      colormap: the name of a matplotlib colormap; "magma" by default, signed "bwr".
      ax: matplotlib axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError, ValueError: as `gallery` does.

    >>> from smoothjax.plotting import overlay
    >>> figure = overlay(np.full((8, 8, 3), 0.5), np.eye(8))
    """
    ax = axes_on(ax, 3, 3)
    _draw(ax, attribution, _in_colors(image), alpha, signed, percentile, colormap)
    return ax.figure


def gallery(
    image: Any,
    maps: Sequence[Any],
    titles: Sequence[str],
    heading: str = "",
    *,
    alpha: float | None = None,
    signed: bool = False,
    percentile: float = 99,
    colormap: str | None = None,
    common_scale: bool = False,
    figure: Any = None,
) -> Figure:
    """Returns a figure of an image and its attributions, all of the same size.

    Args:
      image: the picture that is explained, as in `overlay`.
      maps: attributions, each drawn as its `heatmap`; NaN is drawn in green.
      titles: one for the image, then one for each map, of one or more lines.
      heading: a line above all.
      alpha: if given, maps are drawn over the image, with this opacity, as in `overlay`.
      signed: whether to keep the sign, as in `heatmap`; red is then above 0, blue below.
      percentile: what has the full colour, as in `heatmap`.
      colormap: the name of a matplotlib colormap; "magma" by default, signed "RdBu_r", or "bwr"
        over the image.
      common_scale: whether a colour is the same number in all maps, which a bar then tells; the
        percentile is that of all. Otherwise each map has a scale of its own.
      figure: a matplotlib figure or subfigure to draw into; by default, a new one.

    Returns:
      The figure; write it with its `savefig`.

    Raises:
      TypeError: if the maps, or one of them, are an `Estimate` or a dict.
      ValueError: if the image is none of these, or the titles are not one more than the maps, or
        maps to draw over the image have another size, or as `heatmap` does.

    >>> import numpy as np
    >>> from smoothjax.plotting import gallery
    >>> len(gallery(np.zeros((8, 8, 3)), [np.eye(8)], ["input", "identity"]).axes)
    2
    """
    if isinstance(maps, (Mapping, Estimate)):
        raise TypeError(
            f"gallery needs a list of maps; got {type(maps).__name__}. Type [estimate.mean] for an "
            'Estimate; for a dict of maps type list(maps.values()), and ["input", *maps] as titles.'
        )
    require(
        len(titles) == 1 + len(maps),
        f"gallery needs a title for the image and for each of the {len(maps)} maps; "
        f"got {len(titles)} titles.",
    )
    image = _in_colors(image)
    limit = _common_limit(maps, signed, percentile) if common_scale else None
    num_panels = 1 + len(maps)
    num_columns = min((3, 4), key=lambda num: -num_panels % num)  # the fewest empty places
    num_columns = min(num_columns, num_panels)
    num_rows = math.ceil(num_panels / num_columns)
    side = 2.6 * image.shape[0] / image.shape[1]
    lines = [1 + title.count("\n") for title in titles]
    above = [max(lines[row * num_columns :][:num_columns]) for row in range(num_rows)]
    height = 0.4 * bool(heading) + sum(side + 0.14 * num + 0.15 for num in above)
    figure = figure_of(figure, 2.6 * num_columns + _BAR * common_scale, height)
    if heading:
        figure.suptitle(heading)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for ax in panels[num_panels:]:
        ax.remove()
    panels = panels[:num_panels]
    panels[0].imshow(image)
    panels[0].set_axis_off()
    for ax, attribution in zip(panels[1:], maps, strict=True):
        under = None if alpha is None else image
        _draw(ax, attribution, under, alpha, signed, percentile, colormap, limit)
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(title, fontsize="small")
    if limit is not None:
        _add_bar(figure, panels, limit, signed, colormap, over=alpha is not None)
    return figure


def grid(
    images: Sequence[Any],
    maps: Mapping[str, Sequence[Any]],
    *,
    alpha: float | None = None,
    signed: bool = False,
    percentile: float = 99,
    colormap: str | None = None,
    common_scale: bool = False,
    figure: Any = None,
) -> Figure:
    """Returns a figure of images and their attributions: a row for each, a column for a method.

    Args:
      images: pictures, as in `overlay`, a list or stacked.
      maps: for each method, by its name, a map for each image, a list or stacked.
      alpha: if given, maps are drawn over their images, as in `gallery`.
      signed: whether to keep the sign, as in `gallery`.
      percentile: what has the full colour, as in `heatmap`.
      colormap: the name of a matplotlib colormap; "magma" by default, signed "RdBu_r", or "bwr"
        over the image.
      common_scale: whether a colour is the same number in all maps, as in `gallery`.
      figure: a matplotlib figure or subfigure to draw into; by default, a new one.

    Returns:
      The figure; write it with its `savefig`.

    Raises:
      TypeError, ValueError: if there are not as many maps of a method as images, or as `gallery`
        does.

    >>> from smoothjax.plotting import grid
    >>> figure = grid(np.zeros((2, 8, 8, 3)), {"a": np.ones((2, 8, 8)), "b": np.ones((2, 8, 8))})
    >>> len(figure.axes)
    6
    """
    if not isinstance(maps, Mapping):
        raise TypeError(
            f"grid needs the maps of each method by its name, such as {{'saliency': maps}}; got "
            f"{type(maps).__name__}."
        )
    columns = dict(maps)
    for name, column in columns.items():
        require(
            not isinstance(column, (Mapping, Estimate)) and len(column) == len(images),
            f"grid needs a list of {len(images)} maps of {name!r}, one for each image; got "
            f"{type(column).__name__} of {len(column)}.",
        )
    every = [attribution for column in columns.values() for attribution in column]
    limit = _common_limit(every, signed, percentile) if common_scale else None
    num_columns = 1 + len(columns)
    width = 1.6 * num_columns + _BAR * common_scale
    figure = figure_of(figure, width, 1.6 * len(images) + 0.3)
    panels = figure.subplots(len(images), num_columns, squeeze=False)
    for row, image in enumerate(map(_in_colors, images)):
        panels[row, 0].imshow(image)
        panels[row, 0].set_axis_off()
        under = None if alpha is None else image
        for ax, column in zip(panels[row, 1:], columns.values(), strict=True):
            _draw(ax, column[row], under, alpha, signed, percentile, colormap, limit)
    for ax, title in zip(panels[0], ["input", *columns], strict=True):
        ax.set_title(title, fontsize="small")
    if limit is not None:
        _add_bar(figure, panels, limit, signed, colormap, over=alpha is not None)
    return figure


def mean_and_stderr(
    estimate: Estimate,
    *,
    signed: bool = False,
    percentile: float = 99,
    colormap: str | None = None,
    figure: Any = None,
) -> Figure:
    """Returns a figure of a map and its standard error beside each other, on one scale.

    Where the error is as bright as the map, the map is noise. Over channels both are L2 norms: that
    of standard errors is the error of the channels together.

    Args:
      estimate: an `Estimate` of a map, as `smoothjax.reductions.mean_and_stderr()` makes it.
      signed: whether to keep the sign of the mean, for a map without channels.
      percentile: what has the full colour: which percentile of the magnitudes of both.
      colormap: the name of a matplotlib colormap; "magma" by default, signed "RdBu_r".
      figure: a matplotlib figure or subfigure to draw into; by default, a new one.

    Returns:
      The figure; write it with its `savefig`.

    Raises:
      TypeError: if it is no `Estimate` of an array.
      ValueError: if it has channels and is signed, for the error of a sum over channels does not
        follow from theirs; or as `heatmap` does.

    >>> from smoothjax.plotting import mean_and_stderr
    >>> from smoothjax.reductions import Estimate
    >>> figure = mean_and_stderr(Estimate(np.eye(8), 0.1 * np.ones((8, 8)), 50))
    >>> figure.axes[0].get_title()
    'mean of 50 draws'
    """
    error = float(relative_error(estimate))
    channels = np.shape(estimate.mean)[2:]
    require(
        not signed or channels in ((), (1,)),
        "the standard error of a signed map with channels is not known: explain "
        "smoothjax.pool(explain, jnp.sum) instead.",
    )
    limit = _common_limit(estimate[:2], signed, percentile)
    figure = figure_of(figure, 5.2 + _BAR, 3.1)
    panels = figure.subplots(1, 2)
    for ax, attribution in zip(panels, estimate[:2], strict=True):
        _draw(ax, attribution, None, None, signed, percentile, colormap, limit)
    shown = f"relative error {error:.2f}" if error < math.inf else "error > signal"
    panels[0].set_title(f"mean of {int(estimate.num_samples)} draws", fontsize="small")
    panels[1].set_title(f"standard error\n{shown}", fontsize="small")
    _add_bar(figure, panels, limit, signed, colormap)
    return figure


def _values(attribution, signed):
    """The magnitude of each pixel, or its signed sum over channels."""
    if isinstance(attribution, (Mapping, tuple)):
        raise TypeError(
            f"heatmap needs one array; got {type(attribution).__name__}. Type estimate.mean for an "
            "Estimate, and pass the leaves of any other pytree one by one."
        )
    values = np.asarray(attribution).astype(np.float64)
    require(
        values.ndim in (2, 3),
        f"heatmap needs an attribution of shape (H, W) or (H, W, channels); got {values.shape}.",
    )
    check_channels_last(values.shape, _MOVE)
    if signed:
        return values if values.ndim == 2 else values.sum(-1)
    return np.abs(values) if values.ndim == 2 else np.linalg.norm(values, axis=-1)


def _clipped(values, limit):
    return np.clip(values / limit, -1, 1)


def _common_limit(maps, signed, percentile):
    """What has the full colour in all of several maps."""
    values = [_values(attribution, signed).ravel() for attribution in maps]
    return full_scale(np.abs(np.concatenate([np.zeros(0), *values])), percentile)


def _draw(ax, attribution, image, alpha, signed, percentile, colormap, limit=None):
    """Draws a map, over the image if there is one."""
    values = _values(attribution, signed)
    heat = _clipped(values, limit or full_scale(np.abs(values), percentile))
    colors, least = _colors(colormap, signed, alpha), -1 if signed else 0
    if image is None:
        # Interpolated before it is coloured, a map has no colours beyond those of its colormap.
        ax.imshow(heat, cmap=colors, vmin=least, vmax=1, interpolation_stage="data")
    else:
        require(0 < alpha <= 1, f"alpha must be above 0 and at most 1; got {alpha}.")
        require(
            heat.shape == image.shape[:2],
            f"a map of shape {heat.shape} does not lie over an image of {image.shape[:2]}. Give "
            "the image that was explained, as the network saw it.",
        )
        opacity = alpha * np.nan_to_num(np.abs(heat), nan=1)[..., None]
        color = colors((heat - least) / (1 - least))[..., :3]
        ax.imshow((1 - opacity) * _in_greys(image)[..., None] + opacity * color)
    ax.set_axis_off()


def _add_bar(figure, panels, limit, signed, colormap, over=False):
    """Draws what the colours of panels stand for, beside them."""
    scale = Normalize(-limit if signed else 0, limit)
    bar = figure.colorbar(
        ScalarMappable(scale, _colors(colormap, signed, over)),
        ax=panels,
        fraction=0.12 / (figure.bbox.width / figure.dpi),
        pad=0.01,
        aspect=40,
        label="attribution" if signed else "magnitude",
        extend="both" if signed else "max",
    )
    bar.ax.tick_params(labelsize="small")


def _colors(name, signed, over):
    """The colormap of that name, or the default; dark ends would be lost over an image."""
    signed_name = SIGNED_OVER if over else SIGNED
    return colors_of(name or (signed_name if signed else "magma"))


def _in_colors(image):
    """Returns a picture with its colours: `imshow` would draw a grey one like a map."""
    pixels = np.asarray(image)
    check_channels_last(pixels.shape, _MOVE)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ValueError(
            "the image must be one picture, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got shape "
            f"{np.shape(image)}. Of a batch type image[0]; of other channels, image[..., :3]."
        )
    if pixels.dtype == bool:
        pixels = pixels.astype(float)
    most = 255 if np.issubdtype(pixels.dtype, np.integer) else 1
    if not np.all((pixels >= -1e-3) & (pixels <= most + 1e-3)):  # what is only rounded is
        raise ValueError(
            "the image must be of integers from 0 to 255 or floats from 0 to 1; got "
            f"{pixels.dtype} from {pixels.min()} to {pixels.max()}. Type net.unprocess(x) of a "
            "preprocessed photo, x.astype(np.uint8) of floats up to 255."
        )
    return np.repeat(pixels, 3, -1) if pixels.shape[2:] == (1,) else pixels


def _in_greys(pixels):
    """Returns the brightness of a picture in colours, from 0 to 1; white shows through."""
    most = 1 if np.issubdtype(pixels.dtype, np.inexact) else 255
    pixels = np.clip(pixels.astype(np.float64) / most, 0, 1)
    opacity = pixels[..., 3] if pixels.shape[2] == 4 else 1
    return opacity * (pixels[..., :3] @ np.array(LUMA)) + (1 - opacity)
