"""Pictures of attributions, drawn with matplotlib and without its global state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        f'smoothjax.plotting needs {error.name}: pip install "smoothjax[zoo]"', name=error.name
    ) from error

from smoothjax._axes import check_channels_last
from smoothjax.reductions import Estimate

_MOVE = "Move its channels: jnp.moveaxis(array, 0, -1)."
PERCENTILE = 99  # a few extreme pixels would otherwise leave the rest of a map black


def heatmap(attribution: Any) -> np.ndarray:
    """Returns the magnitude of an attribution as an image of brightnesses.

    The magnitude of a pixel, its absolute value or the L2 norm over its channels, is divided by its
    99th percentile over the map and clipped, so 0 is always black: brightness compares pixels of
    one map, not maps.

    Args:
      attribution: an array of shape (H, W) or (H, W, channels), signed or not.

    Returns:
      A float64 array of shape (H, W) in [0, 1]; NaN where the attribution is.

    Raises:
      TypeError: if the attribution is an `Estimate` or another pytree.
      ValueError: if it has another number of dimensions, or looks like (channels, H, W).

    >>> import numpy as np
    >>> from smoothjax.plotting import heatmap
    >>> print(heatmap(np.array([[0.0, -2.0], [1.0, 2.0]])).round(1))
    [[0.  1. ]
     [0.5 1. ]]
    """
    if isinstance(attribution, (Mapping, tuple)):
        raise TypeError(
            f"heatmap needs one array; got {type(attribution).__name__}. Type estimate.mean for an "
            "Estimate, and pass the leaves of any other pytree one by one."
        )
    values = np.asarray(attribution).astype(np.float64)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"heatmap needs an attribution of shape (H, W) or (H, W, channels); got {values.shape}."
        )
    check_channels_last(values.shape, _MOVE)
    magnitude = np.abs(values) if values.ndim == 2 else np.linalg.norm(values, axis=-1)
    finite = magnitude[np.isfinite(magnitude)]
    if not finite.any():
        return np.clip(magnitude, 0, 1)
    # In a map with very few pixels above zero, the percentile is zero as well.
    scale = np.percentile(finite, PERCENTILE) or finite.max()
    return np.clip(magnitude / scale, 0, 1)


def gallery(
    image: Any,
    maps: Sequence[Any],
    titles: Sequence[str],
    heading: str = "",
    colormap: str = "magma",
) -> Figure:
    """Returns a figure of an image and its attributions, all of the same size.

    Args:
      image: the picture that is explained, an array of shape (H, W, 3) or (H, W, 4) in colours, or
        (H, W) or (H, W, 1) in greys; integers from 0 to 255 or floats from 0 to 1.
      maps: attributions, each drawn as its `heatmap`; NaN is drawn in green.
      titles: one for the image, then one for each map, of one or more lines.
      heading: a line above all.
      colormap: the name of a matplotlib colormap.

    Returns:
      A `matplotlib.figure.Figure`; write it with its `savefig`.

    Raises:
      TypeError: if the maps, or one of them, are an `Estimate` or a dict.
      ValueError: if the titles are not one more than the maps, or as `heatmap` does.

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
    if len(titles) != 1 + len(maps):
        raise ValueError(
            f"gallery needs a title for the image and for each of the {len(maps)} maps; "
            f"got {len(titles)} titles."
        )
    panels = [_in_colours(image), *map(heatmap, maps)]
    num_columns = min((3, 4), key=lambda num: -len(panels) % num)  # the fewest empty places
    num_columns = min(num_columns, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    colors = matplotlib.colormaps[colormap].with_extremes(bad="limegreen")
    figure = Figure(figsize=(2.6 * num_columns, 3.1 * num_rows + 0.4), layout="constrained")
    figure.suptitle(heading)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, panel, title in zip(grid.flat, panels, titles, strict=False):
        # Interpolated before it is coloured, a map has no colours beyond those of its colormap.
        axes.imshow(panel, cmap=colors, vmin=0, vmax=1, interpolation_stage="data")
        axes.set_title(title, fontsize="small")
        axes.set_axis_off()
    return figure


def _in_colours(image):
    """Returns a picture with its colours: `imshow` would draw a grey one like a map."""
    pixels = np.asarray(image)
    check_channels_last(pixels.shape, _MOVE)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, 3, -1) if pixels.shape[2:] == (1,) else pixels


def estimates(table: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Returns a figure of estimates: a panel for each column, in it a line for each row.

    A dot is the mean, the bar through it one standard error to either side. Panels have scales of
    their own.

    Args:
      table: for each row, for each column, an `Estimate` of scalars, as from
        `Evaluation.summary()`. What is not finite is not drawn.

    Returns:
      A `matplotlib.figure.Figure`; write it with its `savefig`.

    >>> from smoothjax.plotting import estimates
    >>> from smoothjax.reductions import Estimate
    >>> table = {"saliency": {"deletion": Estimate(0.3, 0.1, 50)}}
    >>> [axes.get_title() for axes in estimates(table).axes]
    ['deletion']
    """
    rows = list(table)
    columns = list(table[rows[0]])
    num_columns = min(len(columns), 4)
    num_rows = math.ceil(len(columns) / num_columns)
    height = num_rows * (0.3 * len(rows) + 0.9)
    figure = Figure(figsize=(2.6 * num_columns + 1.4, height), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(columns) :]:
        axes.remove()
    for axes, column in zip(grid.flat, columns, strict=False):
        values = np.array([table[row][column] for row in rows], float)
        mean, stderr, _ = np.where(np.isfinite(values), values, np.nan).T
        axes.errorbar(mean, range(len(rows)), xerr=stderr, fmt="o", capsize=3)
        axes.set_title(column, fontsize="small")
        axes.tick_params(labelsize="small")
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
    axes = grid[0, 0]
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row above the others
    return figure
