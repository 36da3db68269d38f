"""Pictures of attributions, drawn with matplotlib and without its global state."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

try:
    import matplotlib
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize, to_hex
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D
except ImportError as error:
    raise ImportError(
        f'smoothjax.plotting needs {error.name}: pip install "smoothjax[zoo]"', name=error.name
    ) from error

from smoothjax._axes import check_channels_last, check_time_first
from smoothjax.reductions import Estimate

_MOVE = "Move its channels: jnp.moveaxis(array, 0, -1)."
PERCENTILE = 99  # a few extreme pixels would otherwise leave the rest of a map black
SIGNED = "RdBu_r"  # red above 0, blue below, which the colour-blind tell apart
SIGNED_LINES = "coolwarm"  # likewise, grey at 0, where white would be no line
MISSING = "limegreen"  # what is NaN, in no colormap here
_COLUMNS = 64  # characters in a line of text
_CHARACTER, _LINE = 0.602, 1.6  # width and height over the size of matplotlib's monospaced font
_INCHES = 11 / 72  # that size


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
    return np.clip(magnitude / _scale(magnitude), 0, 1)


def _scale(magnitude):
    """What has the full colour, the 99th percentile of the magnitudes; 1 where all are 0."""
    finite = magnitude[np.isfinite(magnitude)]
    if not finite.any():
        return 1.0
    # In a map with very few pixels above zero, the percentile is zero as well.
    return np.percentile(finite, PERCENTILE) or finite.max()


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
      ValueError: if the image is none of these, or the titles are not one more than the maps, or as
        `heatmap` does.

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
    colors = matplotlib.colormaps[colormap].with_extremes(bad=MISSING)
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


class Html(NamedTuple):
    """Markup that a notebook shows.

    Attributes:
      markup: the HTML.
    """

    markup: str

    def _repr_html_(self) -> str:
        return self.markup


def text(pieces: Sequence[str], attribution: Any, ax: Any = None) -> Figure:
    """Returns a figure of a sentence, its tokens coloured by what an attribution says of them.

    Red is above 0 and blue below; the 99th percentile of the magnitudes, and what is above it, has
    the full colour. Parts of a word, which begin with "##", stand side by side, each in a colour of
    its own.

    Args:
      pieces: the tokens, such as `zoo.Tokens` holds.
      attribution: a number for each, an array of shape (tokens,); NaN is drawn in green.
      ax: matplotlib's axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError, ValueError: unless the attribution is an array with a number for each token.

    >>> import io
    >>> from smoothjax.plotting import text
    >>> figure = text(["the", "kit", "##ten", "nap", "##s"], [0.1, 0.5, 0.4, -0.3, -0.1])
    >>> figure.savefig(io.BytesIO())
    """
    tokens = _tokens(pieces, attribution)
    places, line, column = [], 0, 0
    for start, end in _words(tokens):
        length = sum(len(token.piece) for token in tokens[start:end])
        if column and column + length > _COLUMNS:
            line, column = line + 1, 0
        for token in tokens[start:end]:
            places.append((line, column))
            column += len(token.piece)
        column += 1
    ends = [column + len(token.piece) for token, (_, column) in zip(tokens, places, strict=True)]
    width, height = _CHARACTER * max([*ends, _COLUMNS // 3]), _LINE * (line + 1)
    if ax is None:
        ax = Figure(figsize=(_INCHES * width, _INCHES * height)).add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", anchor="NW")
    ax.set_axis_off()
    font = FontProperties(family="monospace")
    for token, (line, column) in zip(tokens, places, strict=True):
        left, top, length = _CHARACTER * column, _LINE * line, _CHARACTER * len(token.piece)
        ax.add_patch(
            Rectangle((left, top + 0.1), length, _LINE - 0.2, color=token.background, lw=0)
        )
        # As an outline, it is as large as its place in axes of any size. "$" is no formula.
        letters = TextPath((0, 0), token.piece.replace("$", r"\$"), size=1, prop=font)
        placed = Affine2D().scale(1, -1).translate(left, top + 0.72 * _LINE)
        ax.add_patch(PathPatch(placed.transform_path(letters), color=token.foreground, lw=0))
    return ax.figure


def text_html(pieces: Sequence[str], attribution: Any) -> Html:
    """Returns what `text` draws as HTML, which a notebook shows as the last line of a cell.

    Args:
      pieces: as in `text`.
      attribution: as in `text`; the pointer shows the number of a token.

    Returns:
      An `Html`, in which all that pieces hold is text and no markup.

    Raises:
      TypeError, ValueError: as `text` does.

    >>> from smoothjax.plotting import text_html
    >>> print(text_html(["<b>"], [0.0]).markup)
    <span style="background:#f7f6f6;color:black" title="0">&lt;b&gt;</span>
    """
    tokens = _tokens(pieces, attribution)
    spans = [
        f'<span style="background:{token.background};color:{token.foreground}" '
        f'title="{token.value:.3g}">{html.escape(token.piece)}</span>'
        for token in tokens
    ]
    return Html(" ".join("".join(spans[start:end]) for start, end in _words(tokens)))


class _Token(NamedTuple):
    piece: str
    begins: bool
    value: float
    background: str
    foreground: str


def _tokens(pieces, attribution):
    values = _array(attribution, "text")
    if values.shape != (len(pieces),):
        raise ValueError(
            f"text needs a number for each of {len(pieces)} tokens; got shape {values.shape}. Sum "
            "over the embeddings, attribution.sum(-1), and leave padding out, [: len(pieces)]."
        )
    colors = _signed_colors()((values / _scale(np.abs(values)) + 1) / 2)
    tokens = []
    for piece, value, color in zip(pieces, values, colors, strict=True):
        is_dark = color[:3] @ [0.299, 0.587, 0.114] < 0.5
        begins = not tokens or not piece.startswith("##")
        shown = piece if begins else piece[2:]
        tokens.append(_Token(shown, begins, value, to_hex(color), "white" if is_dark else "black"))
    return tokens


def _words(tokens):
    """Where each word begins and ends among the tokens."""
    starts = [place for place, token in enumerate(tokens) if token.begins]
    return zip(starts, [*starts[1:], len(tokens)], strict=True)


def bars(names: Sequence[str], values: Any, ax: Any = None) -> Figure:
    """Returns a figure of a bar for each feature, that of the greatest magnitude at the top.

    Args:
      names: of the features.
      values: a number for each, an array of shape (features,); or an `Estimate` of such, whose
        standard errors are drawn.
      ax: matplotlib's axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError, ValueError: unless the values are an array with a number for each name.

    >>> from smoothjax.plotting import bars
    >>> figure = bars(["age", "height"], [0.1, -0.5])
    >>> print([label.get_text() for label in figure.axes[0].get_yticklabels()])
    ['height', 'age']
    """
    stderr = None
    if isinstance(values, Estimate):
        values, stderr = values.mean, np.asarray(values.stderr, np.float64)
    values = _array(values, "bars")
    _check_names(names, values.shape)
    order = np.argsort(-np.abs(values), kind="stable")
    ax = _rows([names[i] for i in order], ax)
    ax.barh(
        range(len(order)),
        values[order],
        xerr=None if stderr is None else stderr[order],
        capsize=2,
        error_kw={"lw": 1},
    )
    ax.axvline(0, color="black", lw=0.8)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    return ax.figure


def beeswarm(names: Sequence[str], attributions: Any, xs: Any, ax: Any = None) -> Figure:
    """Returns a figure of all attributions of many examples: a row of dots for each feature.

    A dot is an example: how far right, its attribution; its colour, the value of the feature, from
    the 5th to the 95th percentile, and grey where that is missing. Features are in the order of
    their mean magnitudes.

    Args:
      names: of the features.
      attributions: an array of shape (examples, features).
      xs: the examples, of the same shape.
      ax: matplotlib's axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError, ValueError: unless these are two arrays of that shape.

    Source: Lundberg et al. 2020, doi 10.1038/s42256-019-0138-9.

    >>> from smoothjax.plotting import beeswarm
    >>> xs = np.random.default_rng(0).normal(size=(50, 2))
    >>> figure = beeswarm(["age", "height"], xs * np.array([1.0, 3.0]), xs)
    >>> print([label.get_text() for label in figure.axes[0].get_yticklabels()])
    ['height', 'age']
    """
    values, xs = _array(attributions, "beeswarm"), _array(xs, "beeswarm")
    if values.ndim != 2 or values.shape != xs.shape:
        raise ValueError(
            "beeswarm needs attributions and examples of shape (examples, features); got "
            f"{values.shape} and {xs.shape}."
        )
    _check_names(names, values.shape[1:])
    order = np.argsort(-np.nansum(np.abs(values), 0), kind="stable")
    ax = _rows([names[i] for i in order], ax)
    ax.axvline(0, color="black", lw=0.8)
    low, high = np.nanpercentile(np.where(np.isnan(xs).all(0), 0, xs), [5, 95], axis=0)
    shades = np.clip((xs - low) / np.where(high > low, high - low, 1), 0, 1)
    colors = matplotlib.colormaps["viridis"].with_extremes(bad="grey")
    width = np.ptp([0, *values[np.isfinite(values)]]) / 100 or 1
    dots = None
    for row, feature in enumerate(order):
        heights = row + _heaps(np.round(values[:, feature] / width))
        dots = ax.scatter(
            values[:, feature],
            heights,
            c=shades[:, feature],
            cmap=colors,
            vmin=0,
            vmax=1,
            s=8,
            lw=0,
            plotnonfinite=True,
        )
    bar = ax.figure.colorbar(dots, ax=ax, ticks=[0, 1], aspect=40)
    bar.ax.set_yticklabels(["low", "high"])
    bar.set_label("value of the feature")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    return ax.figure


def signal(x: Any, attribution: Any, ax: Any = None) -> Figure:
    """Returns a figure of a signal, a line for each channel, coloured by its attribution.

    Red is above 0 and blue below, as in `text`; grey is 0. Channels are drawn below each other.

    Args:
      x: the signal, an array of shape (time,) or (time, channels).
      attribution: one for each number of x, shaped like it; or one for each time, (time,) or
        (time, 1). NaN is drawn in green.
      ax: matplotlib's axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError, ValueError: unless they are arrays of these shapes.

    >>> from smoothjax.plotting import signal
    >>> x = np.sin(np.arange(40.0))
    >>> len(signal(np.stack([x, -x], 1), x).axes[0].collections)
    2
    """
    x, values = _array(x, "signal"), _array(attribution, "signal")
    shapes = x.shape, values.shape
    x, values = (array[:, None] if array.ndim == 1 else array for array in (x, values))
    if x.ndim != 2 or len(x) < 2 or values.shape not in (x.shape, (len(x), 1)):
        raise ValueError(
            "signal needs x of shape (time,) or (time, channels), of two or more times, and an "
            f"attribution like it or of shape (time,); got {shapes[0]} and {shapes[1]}."
        )
    check_time_first(x.shape, "Type x.T and attribution.T.")
    num = x.shape[1]
    if ax is None:
        ax = Figure(figsize=(6.4, 0.8 + 1.2 * num), layout="constrained").subplots()
    limit = _scale(np.abs(values))
    norm, colors = Normalize(-limit, limit), _signed_colors(SIGNED_LINES)
    step = 1.1 * (np.nanmax(x) - np.nanmin(x)) or 1.0
    offsets = -step * np.arange(num)
    lines = None
    for channel, offset in enumerate(offsets):
        height = x[:, channel] + offset
        # From the middle of a step to the middle of the next, so that each number has its colour.
        points = np.stack([np.arange(len(x)), height], 1)
        middles = (points[1:] + points[:-1]) / 2
        before, after = np.vstack([points[:1], middles]), np.vstack([middles, points[-1:]])
        lines = LineCollection(
            list(np.stack([before, points, after], 1)), cmap=colors, norm=norm, lw=2
        )
        lines.set_array(values[:, min(channel, values.shape[1] - 1)])
        ax.add_collection(lines)
    ax.autoscale_view()
    ax.set_yticks(offsets, [f"channel {i}" for i in range(num)] if num > 1 else [""])
    ax.figure.colorbar(lines, ax=ax, aspect=40, label="attribution")
    return ax.figure


def _signed_colors(name=SIGNED):
    return matplotlib.colormaps[name].with_extremes(bad=MISSING)


def _array(values, name):
    """An array in float64, or raises."""
    if isinstance(values, (Mapping, tuple)) and not all(map(np.isscalar, values)):
        raise TypeError(
            f"{name} needs an array; got {type(values).__name__}. Type estimate.mean for an "
            "Estimate."
        )
    return np.asarray(values).astype(np.float64)


def _check_names(names, shape):
    if shape != (len(names),):
        raise ValueError(f"there are {len(names)} names for features of shape {shape}.")


def _rows(names, ax):
    """Axes with a row for each name, the first at the top."""
    if ax is None:
        ax = Figure(figsize=(6.4, 0.22 * len(names) + 0.8), layout="constrained").subplots()
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    return ax


def _heaps(bins):
    """Heights from -0.4 to 0.4 that spread the dots of each bin evenly about 0."""
    heights = np.zeros(len(bins))
    for one in np.unique(bins):
        inside = np.flatnonzero(bins == one)
        heights[inside] = np.arange(len(inside)) - (len(inside) - 1) / 2
    return heights * min(0.1, 0.4 / (np.abs(heights).max() or 1))
