"""Figures 18 and 19 of the paper: gradient norms of the layers within the first epochs or evaluations."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from examples.paper.report.figures import method_color, panels
from examples.paper.results import Row

_BINS = 12
_MOST_ITERATIONS = 4


class Norms(NamedTuple):
    """Gradient norms at iterations that are counted from the start of the training."""

    iterations: Int[np.ndarray, " points"]
    norms: Float[np.ndarray, "points layers"]
    """NaN where one was none."""
    steps: int
    """Of an interval."""


class Extremes(NamedTuple):
    """Over the layers, at each iteration."""

    least: Float[np.ndarray, " points"]
    mean: Float[np.ndarray, " points"]
    largest: Float[np.ndarray, " points"]


def told(rows: Sequence[Row]) -> bool:
    """Whether all these runs have gradient norms within intervals; older ones do not."""
    return all("gradient_norms_within" in row["history"] for row in rows)


def norms_within(row: Row, layers: Sequence[str]) -> Norms:
    """Those of these layers, in all the intervals that they were logged in."""
    within = row["history"]["gradient_norms_within"]
    norms = np.array([within["norms"][layer] for layer in layers], float)  # layers, intervals, points; NaN for null
    intervals, points = norms.shape[1:]
    iterations = within["steps"] * np.arange(intervals)[:, None] + within["every"] * np.arange(points)
    return Norms(iterations.ravel(), norms.reshape(len(layers), -1).T, within["steps"])


def extremes(norms: Float[np.ndarray, "points layers"]) -> Extremes:
    """Over the layers that have a norm; NaN where none has."""
    present = np.ma.masked_invalid(norms)
    return Extremes(*(of(axis=1).filled(np.nan) for of in (present.min, present.mean, present.max)))


def in_first_interval(norms: Norms, most: int = _MOST_ITERATIONS) -> dict[int, Float[np.ndarray, " layers"]]:
    """The layers' norms at so many iterations of the first interval at most, which are spread evenly over it."""
    points = int((norms.iterations < norms.steps).sum())
    chosen = np.unique(np.linspace(0, points - 1, min(most, points)).round().astype(int))
    return {int(norms.iterations[index]): norms.norms[index] for index in chosen}


def norms_figure(title: str, runs: Mapping[str, Row], layers: Sequence[str], interval: str, path: Path) -> None:
    """The largest, least and mean norm over the layers, over the iterations; a column for each method."""
    size = (0.9 + 3.9 * len(runs), 3.6)
    with panels(path, title, size, 1, len(runs), "y", sharex=True, sharey=True) as (_, row):
        for axes, (label, run) in zip(row[0], runs.items(), strict=True):
            _draw_extremes(axes, norms_within(run, layers), method_color(label))
            axes.set(xlabel=f"iteration; dotted: a new {interval}", yscale="log")
            axes.set_title(label, fontsize=10)
        low, high = row[0, 0].get_ylim()
        row[0, 0].set_ylim(low, high * (high / low) ** 0.08)  # room for the legends
        row[0, 0].set_ylabel("gradient norm over the balanced layers")


def _draw_extremes(axes: Axes, norms: Norms, color: str) -> None:
    least, mean, largest = extremes(norms.norms)
    for start in range(norms.steps, int(norms.iterations[-1]) + 1, norms.steps):
        axes.axvline(start, color="black", alpha=0.18, linewidth=0.7, linestyle=":")
    axes.fill_between(norms.iterations, least, largest, color=color, alpha=0.18, linewidth=0)
    styles = {"largest": (largest, "--"), "mean": (mean, "-"), "least": (least, "-.")}
    for name, (values, style) in styles.items():
        axes.plot(norms.iterations, values, color=color, linestyle=style, linewidth=2 if name == "mean" else 1.2, label=name)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")


def histograms_figure(title: str, runs: Mapping[str, Row], layers: Sequence[str], path: Path) -> None:
    """How the layers' norms are distributed at iterations of the first interval; a row for each method, the same bins."""
    found = {label: in_first_interval(norms_within(run, layers)) for label, run in runs.items()}
    iterations = list(next(iter(found.values())))
    size = (1.0 + 2.5 * len(iterations), 1.2 + 1.9 * len(found))
    bins = shared_bins([norms for of in found.values() for norms in of.values()])
    with panels(path, title, size, len(found), len(iterations), "y", sharex=True, sharey=True) as (_, grid):
        for row, (label, of) in zip(grid, found.items(), strict=True):
            for axes, norms in zip(row, of.values(), strict=True):
                axes.hist(norms[np.isfinite(norms)], bins=bins, color=method_color(label), alpha=0.7, edgecolor="white")
                _in_decades(axes, bins)
            row[0].set_ylabel(f"{textwrap.fill(label, 24)}\nlayers")
        for top, bottom, iteration in zip(grid[0], grid[-1], iterations, strict=True):
            top.set_title(f"iteration {iteration}", fontsize=9)
            bottom.set_xlabel("gradient norm")


def _in_decades(axes: Axes, bins: np.ndarray) -> None:
    """A logarithmic axis with a few ticks, however few decades it has."""
    axes.set_xscale("log")
    span = bins[-1] / bins[0]
    few = (1.0, 2.0, 5.0) if span < 10 else (1.0, 3.0) if span < 300 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=few, numticks=7))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def shared_bins(norms: Sequence[Float[np.ndarray, " layers"]]) -> Float[np.ndarray, " edges"]:
    """Edges, equally far apart in the logarithm, that hold all norms above zero; some edges where there are none."""
    values = np.concatenate(norms)
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return np.geomspace(0.1, 10, _BINS + 1)
    return np.geomspace(values.min() / 1.001, values.max() * 1.001, _BINS + 1)
