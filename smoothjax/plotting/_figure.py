"""What all pictures share: figures that show themselves, axes, colours, scales, and arrays."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.colors import Colormap, to_rgb

SIGNED = "RdBu_r"  # red above 0, blue below, which the colour-blind tell apart
SIGNED_OVER = "bwr"  # likewise, of light ends, for what lies over a picture
SIGNED_LINES = "coolwarm"  # likewise, grey at 0, where white would be no line
MISSING = "limegreen"  # what is NaN, in no colormap here
# Of Okabe and Ito, whom the colour-blind read: blue, vermilion, green, orange, purple, sky.
LINES = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
GREY = "#767676"
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows, without pyplot or an inline mode."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def axes_on(ax: Any, width: float, height: float) -> Any:
    """Returns the user's axes, or those of a new figure of that many inches."""
    if ax is None:
        ax = Figure(figsize=(width, height), layout="constrained").subplots()
        ax.set_prop_cycle(color=LINES)
    return ax


def figure_of(figure: Any, width: float, height: float) -> Any:
    """Returns the user's figure or subfigure, or a new one of that many inches."""
    if figure is None:
        figure = Figure(figsize=(width, height), layout="constrained")
    return figure


def colors_of(name: str) -> Colormap:
    """Returns a colormap with a colour for what is missing."""
    return matplotlib.colormaps[name].with_extremes(bad=to_rgb(MISSING))


def array_of(values: Any, name: str) -> np.ndarray:
    """Returns an array in float64, or raises."""
    numbers = isinstance(values, tuple) and all(map(np.isscalar, values))
    if isinstance(values, (Mapping, tuple)) and not numbers:
        raise TypeError(
            f"{name} needs an array; got {type(values).__name__}. Type estimate.mean for an "
            "Estimate."
        )
    return np.asarray(values).astype(np.float64)


def full_scale(magnitudes: np.ndarray, percentile: float = 99) -> float:
    """Returns what has the full colour: a percentile of the magnitudes; 1 where all are 0.

    A few extreme pixels would otherwise leave the rest of a map black.
    """
    finite = magnitudes[np.isfinite(magnitudes)]
    if not finite.any():
        return 1.0
    # In a map with very few pixels above zero, the percentile is zero as well.
    return float(np.percentile(finite, percentile) or finite.max())
