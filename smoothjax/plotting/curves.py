"""Curves of what is measured: spectra, the cut-off, the accuracy that noise costs, the error."""

import math
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from smoothjax._checks import check_leading_axis, require
from smoothjax.calibrate import SigmaEstimate
from smoothjax.plotting._figure import GREY, LINES, array_of, axes_on
from smoothjax.reductions import Estimate, relative_error
from smoothjax.spectral import CutoffSearch, SignalAndNoise


def power_spectrum(found: Any, *, label: str = "", ax: Any = None) -> Figure:
    """Returns a figure of the power of a map at each frequency, both on logarithmic scales.

    A `SignalAndNoise` has its noise drawn beside it, and what is left without it: where power and
    noise meet, the map is noise. Ring 0, the mean over the map, is left out, and so is what is not
    above 0. Channels are added.

    Args:
      found: what `smoothjax.spectral.power_spectrum(attribution)` returns for one array, of shape
        (rings, *channels); or the `SignalAndNoise` that an explainer with
        `reduction=smoothjax.spectral.signal_and_noise()` returns.
      label: what the curve is called, if several are drawn on the same axes.
      ax: matplotlib axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError: if it is another pytree.

    >>> from smoothjax.plotting import power_spectrum
    >>> figure = power_spectrum(sj.spectral.power_spectrum(jnp.eye(16)))
    >>> figure.axes[0].get_xlabel()
    'frequency (cycles per image)'
    """
    curves = {label: (found, "-")}
    if isinstance(found, SignalAndNoise):
        power, noise = (array_of(part, "power_spectrum") for part in found[:2])
        name = f"{label}: " if label else ""
        curves = {
            f"{name}mean of {int(found.num_samples)} draws": (power, "-"),
            f"{name}its noise": (noise, "--"),
            f"{name}without its noise": (power - noise, ":"),
        }
    ax = axes_on(ax, 4.8, 3.4)
    for name, (power, style) in curves.items():
        power = array_of(power, "power_spectrum")
        power = power.reshape(len(power), -1).sum(1)[1:]
        shown = np.where(power > 0, power, np.nan)
        ax.plot(np.arange(1, 1 + len(power)), shown, style, label=name or None)
    ax.set(xscale="log", xlabel="frequency (cycles per image)", ylabel="power")
    _log_if_drawn(ax)
    if any(curves):
        ax.legend(fontsize="small")
    ax.grid(alpha=0.3)
    return ax.figure


def best_cutoff(found: CutoffSearch, *, ax: Any = None) -> Figure:
    """Returns a figure of the mean faithfulness at each cut-off.

    The bar of a cut-off is the standard error of its difference from the best, which is paired:
    where it reaches the dashed line, the cut-off is within one standard error of the best.

    Args:
      found: what `smoothjax.spectral.best_cutoff` finds.
      ax: matplotlib axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError: if it is no `CutoffSearch`.

    >>> from smoothjax.plotting import best_cutoff
    >>> search = sj.spectral.best_cutoff(
    ...     lambda params, x: x, lambda params, x, map: map.std() - x.mean(), [2, 4, jnp.inf]
    ... )
    >>> found = search(None, jax.random.normal(jax.random.key(0), (4, 16, 16, 1)))
    >>> print([label.get_text() for label in best_cutoff(found).axes[0].get_xticklabels()])
    ['2', '4', 'none']
    """
    if not isinstance(found, CutoffSearch):
        raise TypeError(f"best_cutoff needs a CutoffSearch; got {type(found).__name__}.")
    cutoffs, mean, scores = (
        np.asarray(part, np.float64) for part in (found[0], found[1], found[3])
    )
    best, parsimonious = float(found.best), float(found.parsimonious)
    order = np.argsort(cutoffs, kind="stable")
    cutoffs, mean, scores = cutoffs[order], mean[order], scores[:, order]
    places = np.arange(len(cutoffs))
    ax = axes_on(ax, 4.8, 3.4)
    stderr = None
    if not math.isnan(best):
        (top,) = np.flatnonzero(cutoffs == best)[:1]
        gaps = scores - scores[:, [top]]
        stderr = gaps.std(0, ddof=1) / math.sqrt(len(gaps))
        ax.axhline(mean[top], color=GREY, ls="--", lw=1)
    ax.errorbar(places, mean, yerr=stderr, fmt="o-", capsize=3, color=LINES[0])
    marks = {"best": (best, "*", 14), "parsimonious": (parsimonious, "s", 10)}
    for name, (cutoff, marker, size) in marks.items():
        at = cutoffs == cutoff
        style = {"ls": "", "marker": marker, "ms": size, "mfc": "none", "color": LINES[1]}
        if at.any():
            ax.plot(places[at], mean[at], label=f"{name}: {cutoff:g}", **style)
    if not math.isnan(best):
        ax.legend(fontsize="small")
    ax.set_xticks(places, [f"{cutoff:g}" if cutoff < math.inf else "none" for cutoff in cutoffs])
    ax.set(xlabel="cut-off (cycles per image)", ylabel="faithfulness")
    if found.flat:
        ax.set_title("flat: no cut-off differs from the best beyond chance", fontsize="small")
    ax.grid(alpha=0.3)
    return ax.figure


def accuracy_drop(
    levels: Any, drops: Estimate, *, found: SigmaEstimate | None = None, ax: Any = None
) -> Figure:
    """Returns a figure of the share of accuracy that each noise level destroys.

    The band is one standard error to either side.

    Args:
      levels: the noise levels, an array of shape (levels,), drawn on a logarithmic scale.
      drops: an `Estimate` of arrays of that shape: `jax.lax.map(at, levels)` with
        `at = lambda sigma: drop(key, params, xs, targets, sigma)` of `smoothjax.accuracy_drop`.
      found: what `smoothjax.sigma_for_accuracy_drop` found, to mark that level.
      ax: matplotlib axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      TypeError, ValueError: unless drops are an `Estimate` of an array with a number for each
        level, and levels are above 0.

    >>> from smoothjax.plotting import accuracy_drop
    >>> from smoothjax.reductions import Estimate
    >>> figure = accuracy_drop([0.01, 0.1], Estimate(np.array([0.02, 0.5]), np.full(2, 0.01), 25))
    >>> figure.axes[0].get_xscale()
    'log'
    """
    if not isinstance(drops, Estimate):
        raise TypeError(f"accuracy_drop needs drops as an Estimate; got {type(drops).__name__}.")
    levels = array_of(levels, "accuracy_drop")
    mean, stderr = (array_of(part, "accuracy_drop") for part in drops[:2])
    require(
        levels.ndim == 1 and mean.shape == stderr.shape == levels.shape and (levels > 0).all(),
        "accuracy_drop needs levels above 0, of shape (levels,), and drops of that shape; got "
        f"{levels.shape} and {mean.shape}.",
    )
    order = np.argsort(levels)
    levels, mean, stderr = levels[order], mean[order], stderr[order]
    ax = axes_on(ax, 4.8, 3.4)
    ax.fill_between(levels, mean - stderr, mean + stderr, color=LINES[0], alpha=0.25, lw=0)
    ax.plot(levels, mean, "o-", ms=4, color=LINES[0])
    if found is not None:
        sigma, error, drop = float(found.sigma), float(found.stderr), found.drop
        ax.errorbar(
            sigma,
            float(drop.mean),
            xerr=error,
            yerr=float(drop.stderr),
            fmt="D",
            capsize=3,
            color=LINES[1],
            label=f"{sigma:.2g} ± {error:.1g} costs {float(drop.mean):.0%}",
        )
        ax.legend(fontsize="small")
    ax.set(xscale="log", xlabel="noise level", ylabel="share of the accuracy lost")
    _plain(ax.xaxis)
    ax.grid(alpha=0.3)
    return ax.figure


def convergence(draws: Any, *, label: str = "", ax: Any = None) -> Figure:
    """Returns a figure of the relative error of a map against the number of draws.

    The error is `smoothjax.reductions.relative_error` of the first draws, not drawn where there is
    more noise than signal, or none. The dotted line falls with the square root of the draws, to
    where the last ends.

    Args:
      draws: two or more draws of a map, as `smoothjax.reductions.stack()` keeps them: a pytree of
        arrays with a leading axis of draws.
      label: what the curve is called, if several are drawn on the same axes.
      ax: matplotlib axes to draw on; by default, those of a new figure.

    Returns:
      The figure of the axes; write it with its `savefig`.

    Raises:
      ValueError: for fewer than two draws.

    >>> from smoothjax.plotting import convergence
    >>> draws = 1 + jax.random.normal(jax.random.key(0), (100, 8, 8))
    >>> convergence(draws).axes[0].get_ylabel()
    'relative error'
    """
    num = check_leading_axis(draws, "draws", least=2)
    leaves = [np.asarray(leaf).reshape(num, -1) for leaf in jax.tree.leaves(draws)]
    counts = np.unique(np.geomspace(2, num, 16).round().astype(int))
    errors, mean, m2 = [], 0.0, 0.0
    for n, rows in enumerate(zip(*leaves, strict=True), start=1):
        draw = np.concatenate(rows).astype(np.float64)
        gap = draw - mean
        mean = mean + gap / n
        m2 = m2 + gap * (draw - mean)  # the sum of squared deviations (Welford 1962)
        if n in counts:
            stderr = np.sqrt(m2 / (n * (n - 1)))
            errors.append(float(relative_error(Estimate(mean, stderr, np.asarray(n)))))
    errors = np.where(np.isfinite(errors) & (np.array(errors) > 0), errors, np.nan)
    ax = axes_on(ax, 4.8, 3.4)
    (line,) = ax.plot(counts, errors, "o-", ms=4, label=label or None)
    ax.plot(counts, errors[-1] * np.sqrt(num / counts), ":", lw=1, color=line.get_color())
    ax.set(xscale="log", xlabel="draws", ylabel="relative error")
    _plain(ax.xaxis)
    if _log_if_drawn(ax):
        _plain(ax.yaxis)
    if label:
        ax.legend(fontsize="small")
    ax.grid(alpha=0.3)
    return ax.figure


def _log_if_drawn(ax):
    """Makes the scale of heights logarithmic, which matplotlib refuses where there are none."""
    drawn = any(np.isfinite(line.get_ydata()).any() for line in ax.lines)
    if drawn:
        ax.set_yscale("log")
    return drawn


def _plain(axis):
    """Plain numbers along a logarithmic axis, 1, 2 and 5 of each decade."""
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
