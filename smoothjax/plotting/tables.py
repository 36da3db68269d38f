"""Pictures of tables: scores of explainers, and attributions of named features."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from smoothjax.plotting._figure import LINES, array_of, axes_on, figure_of
from smoothjax.reductions import Estimate


def estimates(table: Mapping[str, Mapping[str, Estimate]], *, figure: Any = None) -> Figure:
    """Returns a figure of estimates: a panel for each column, in it a line for each row.

    A dot is the mean, the bar through it one standard error to either side. Panels have scales of
    their own.

    Args:
      table: for each row, for each column, an `Estimate` of scalars, as from
        `Evaluation.summary()`. What is not finite is not drawn.
      figure: a matplotlib figure or subfigure to draw into; by default, a new one.

    Returns:
      The figure; write it with its `savefig`.

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
    figure = figure_of(figure, 2.6 * num_columns + 1.4, height)
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(columns) :]:
        axes.remove()
    for axes, column in zip(grid.flat, columns, strict=False):
        values = np.array([table[row][column] for row in rows], float)
        mean, stderr, _ = np.where(np.isfinite(values), values, np.nan).T
        axes.errorbar(mean, range(len(rows)), xerr=stderr, fmt="o", capsize=3, color=LINES[0])
        axes.set_title(column, fontsize="small")
        axes.tick_params(labelsize="small")
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
    axes = grid[0, 0]
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row above the others
    return figure


def bars(names: Sequence[str], values: Any, *, ax: Any = None) -> Figure:
    """Returns a figure of a bar for each feature, that of the greatest magnitude at the top.

    Args:
      names: of the features.
      values: a number for each, an array of shape (features,); or an `Estimate` of such, whose
        standard errors are drawn.
      ax: matplotlib axes to draw on; by default, those of a new figure.

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
    values = array_of(values, "bars")
    _check_names(names, values.shape)
    order = np.argsort(-np.abs(values), kind="stable")
    ax = _rows([names[i] for i in order], ax)
    ax.barh(
        range(len(order)),
        values[order],
        xerr=None if stderr is None else stderr[order],
        color=LINES[0],
        capsize=2,
        error_kw={"lw": 1},
    )
    ax.axvline(0, color="black", lw=0.8)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    return ax.figure


def beeswarm(names: Sequence[str], attributions: Any, xs: Any, *, ax: Any = None) -> Figure:
    """Returns a figure of all attributions of many examples: a row of dots for each feature.

    A dot is an example: how far right, its attribution; its colour, the value of the feature, from
    the 5th to the 95th percentile, and grey where that is missing. Features are in the order of
    their mean magnitudes.

    Args:
      names: of the features.
      attributions: an array of shape (examples, features).
      xs: the examples, of the same shape.
      ax: matplotlib axes to draw on; by default, those of a new figure.

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
    values, xs = array_of(attributions, "beeswarm"), array_of(xs, "beeswarm")
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


def _check_names(names, shape):
    if shape != (len(names),):
        raise ValueError(f"there are {len(names)} names for features of shape {shape}.")


def _rows(names, ax):
    """Axes with a row for each name, the first at the top."""
    ax = axes_on(ax, 6.4, 0.22 * len(names) + 0.8)
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
