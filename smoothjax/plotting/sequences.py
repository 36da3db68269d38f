"""Pictures of sequences: the tokens of a text, and signals over time."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from smoothjax._axes import check_time_first
from smoothjax.plotting import _figure
from smoothjax.plotting._figure import (
    LUMA,
    SIGNED,
    SIGNED_LINES,
    array_of,
    axes_on,
    colors_of,
    full_scale,
)

_COLUMNS = 64  # characters in a line of text
_CHARACTER, _LINE = 0.602, 1.6  # width and height over the size of matplotlib's monospaced font
_INCHES = 11 / 72  # that size


class Html(NamedTuple):
    """Markup that a notebook shows.

    Attributes:
      markup: the HTML.
    """

    markup: str

    def _repr_html_(self) -> str:
        return self.markup


def text(pieces: Sequence[str], attribution: Any, *, ax: Any = None) -> Figure:
    """Returns a figure of a sentence, its tokens coloured by what an attribution says of them.

    Red is above 0 and blue below; the 99th percentile of the magnitudes, and what is above it, has
    the full colour. Parts of a word, which begin with "##", stand side by side, each in a colour of
    its own.

    Args:
      pieces: the tokens, such as `zoo.Tokens` holds.
      attribution: a number for each, an array of shape (tokens,); NaN is drawn in green.
      ax: matplotlib axes to draw on; by default, those of a new figure.

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
        ax = _figure.Figure(figsize=(_INCHES * width, _INCHES * height)).add_axes((0, 0, 1, 1))
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
    values = array_of(attribution, "text")
    if values.shape != (len(pieces),):
        raise ValueError(
            f"text needs a number for each of {len(pieces)} tokens; got shape {values.shape}. Sum "
            "over the embeddings, attribution.sum(-1), and leave padding out, [: len(pieces)]."
        )
    colors = colors_of(SIGNED)((values / full_scale(np.abs(values)) + 1) / 2)
    tokens = []
    for piece, value, color in zip(pieces, values, colors, strict=True):
        is_dark = color[:3] @ np.array(LUMA) < 0.5
        begins = not tokens or not piece.startswith("##")
        shown = piece if begins else piece[2:]
        tokens.append(_Token(shown, begins, value, to_hex(color), "white" if is_dark else "black"))
    return tokens


def _words(tokens):
    """Where each word begins and ends among the tokens."""
    starts = [place for place, token in enumerate(tokens) if token.begins]
    return zip(starts, [*starts[1:], len(tokens)], strict=True)


def signal(x: Any, attribution: Any, *, ax: Any = None) -> Figure:
    """Returns a figure of a signal, a line for each channel, coloured by its attribution.

    Red is above 0 and blue below, as in `text`; grey is 0. Channels are drawn below each other.

    Args:
      x: the signal, an array of shape (time,) or (time, channels).
      attribution: one for each number of x, shaped like it; or one for each time, (time,) or
        (time, 1). NaN is drawn in green.
      ax: matplotlib axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError, ValueError: unless they are arrays of these shapes.

    >>> from smoothjax.plotting import signal
    >>> x = np.sin(np.arange(40.0))
    >>> len(signal(np.stack([x, -x], 1), x).axes[0].collections)
    2
    """
    x, values = array_of(x, "signal"), array_of(attribution, "signal")
    shapes = x.shape, values.shape
    x, values = (array[:, None] if array.ndim == 1 else array for array in (x, values))
    if x.ndim != 2 or len(x) < 2 or values.shape not in (x.shape, (len(x), 1)):
        raise ValueError(
            "signal needs x of shape (time,) or (time, channels), of two or more times, and an "
            f"attribution like it or of shape (time,); got {shapes[0]} and {shapes[1]}."
        )
    check_time_first(x.shape, "Type x.T and attribution.T.")
    num = x.shape[1]
    ax = axes_on(ax, 6.4, 0.8 + 1.2 * num)
    limit = full_scale(np.abs(values))
    norm, colors = Normalize(-limit, limit), colors_of(SIGNED_LINES)
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
