"""Pictures of attributions, drawn with matplotlib and without its global state."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        f'smoothjax.plotting needs {error.name}: pip install "smoothjax[zoo]"', name=error.name
    ) from error

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
      ValueError: if the attribution has another number of dimensions.

    >>> import numpy as np
    >>> from smoothjax.plotting import heatmap
    >>> print(heatmap(np.array([[0.0, -2.0], [1.0, 2.0]])).round(1))
    [[0.  1. ]
     [0.5 1. ]]
    """
    values = np.asarray(attribution).astype(np.float64)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"heatmap needs an attribution of shape (H, W) or (H, W, channels); got {values.shape}."
        )
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
      image: the picture that is explained, in the shapes and ranges of matplotlib's `imshow`.
      maps: attributions, each drawn as its `heatmap`; NaN is drawn in green.
      titles: one for the image, then one for each map, of one or more lines.
      heading: a line above all.
      colormap: the name of a matplotlib colormap.

    Returns:
      A `matplotlib.figure.Figure`; write it with its `savefig`.

    Raises:
      ValueError: if the titles are not one more than the maps, or as `heatmap` does.

    >>> import numpy as np
    >>> from smoothjax.plotting import gallery
    >>> len(gallery(np.zeros((8, 8, 3)), [np.eye(8)], ["input", "identity"]).axes)
    2
    """
    if len(titles) != 1 + len(maps):
        raise ValueError(
            f"gallery needs a title for the image and for each of the {len(maps)} maps; "
            f"got {len(titles)} titles."
        )
    panels = [image, *map(heatmap, maps)]
    num_columns = min(len(panels), 3 if len(panels) <= 6 else 4)
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
