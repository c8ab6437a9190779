"""Figures of single runs, layer by layer: alpha, learning rate and gradient norms over the intervals, final spectra."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from examples.paper.report.figures import layer_colors, name_layers, panels
from examples.paper.results import Row

# Of the threshold of the tail, what is drawn: far below it are the eigenvalues that are zero but for rounding.
_SMALLEST_DRAWN = 1e-3


def training_figure(title: str, runs: Mapping[str, Row], layers: Sequence[str], interval: str, path: Path) -> None:
    """Alpha above and learning rate below, of every balanced layer over the intervals; a column for each method."""
    parts = {
        "PL_Alpha_Hill": lambda history: {layer: numbers(history["alpha"][layer]) for layer in layers},
        "learning rate": lambda history: {layer: rates(history, layer) for layer in layers},
    }
    _over_intervals(title, runs, parts, layers, interval, path)


def gradient_figure(title: str, runs: Mapping[str, Row], layers: Sequence[str], interval: str, path: Path) -> None:
    """The norm of the loss gradient, of every balanced layer over the intervals; a column for each method."""
    norms = lambda history: {layer: numbers(history["gradient_norm"][layer]) for layer in layers}
    _over_intervals(title, runs, {f"gradient norm, mean of the {interval}": norms}, layers, interval, path, logarithmic=True)


def _over_intervals(
    title: str,
    runs: Mapping[str, Row],
    parts: Mapping[str, Any],
    layers: Sequence[str],
    interval: str,
    path: Path,
    logarithmic: bool = False,
) -> None:
    size = (1.9 + 3.2 * len(runs), 1.0 + 2.7 * len(parts))
    colors = layer_colors(len(layers))
    with panels(path, title, size, len(parts), len(runs), sharex=True, sharey="row") as (figure, grid):
        for row, (quantity, read) in zip(grid, parts.items(), strict=True):
            for axes, run in zip(row, runs.values(), strict=True):
                lines = read(run["history"])
                for index, layer in enumerate(layers):
                    numbered = range(1, len(lines[layer]) + 1)
                    marker = "o" if len(numbered) == 1 else None
                    axes.plot(numbered, lines[layer], color=colors(index), linewidth=1.2, marker=marker)
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                if logarithmic:
                    axes.set_yscale("log")
            row[0].set_ylabel(quantity)
        for top, bottom, label in zip(grid[0], grid[-1], runs, strict=True):
            top.set_title(label, fontsize=10)
            bottom.set_xlabel(interval)
        name_layers(figure, list(grid.flat), layers)


def spectra_figure(title: str, runs: Mapping[str, Row], layers: Sequence[str], path: Path) -> None:
    """Densities of the eigenvalues of a few layers, with the power law that the median fit finds; a row for each run."""
    size = (1.0 + 2.9 * len(layers), 0.7 + 2.5 * len(runs))
    with panels(path, title, size, len(runs), len(layers), sharex="col", sharey="col") as (_, grid):
        for column, layer in zip(grid.T, layers, strict=True):
            spectra = [run["spectra"][layer] for run in runs.values()]
            largest = 10 ** max(spectrum["log10_edges"][1] for spectrum in spectra)
            thresholds = [spectrum["threshold"] for spectrum in spectra if np.isfinite(spectrum["threshold"])]
            smallest = _SMALLEST_DRAWN * min(thresholds, default=0.0)
            drawn = [_draw_spectrum(axes, spectrum, smallest) for axes, spectrum in zip(column, spectra, strict=True)]
            heights = np.concatenate(drawn)
            column[0].set(xlim=(None, 2 * largest), ylim=(heights.min() / 3, 3 * heights.max()))
            column[0].set_title(layer, fontsize=9)
            column[-1].set_xlabel("eigenvalue")
        for axes, label in zip(grid[:, 0], runs, strict=True):
            axes.set_ylabel(f"{textwrap.fill(label, 24)}\ndensity")


def _draw_spectrum(axes: Axes, spectrum: Mapping[str, Any], smallest: float) -> np.ndarray:
    """The heights that are drawn."""
    counts, edges, density = density_of(spectrum)
    drawn = (counts > 0) & (edges[:-1] > smallest)
    first = int(np.argmax(drawn))
    axes.set(xscale="log", yscale="log")
    # From far below what will be in view.
    axes.stairs(
        np.where(drawn, density, np.nan)[first:], edges[first:], baseline=1e-30, fill=True, color="#8c8c8c", alpha=0.6
    )
    alpha, threshold = spectrum["alpha"], spectrum["threshold"]
    if np.isfinite(alpha) and threshold < edges[-1]:
        places = np.geomspace(threshold, edges[-1])
        law = tail_share(counts, edges, threshold) * (alpha - 1) / threshold * (places / threshold) ** -alpha
        axes.plot(places, law, color="#D55E00", linewidth=1.8, linestyle="--")
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
        axes.text(0.95, 0.9, f"alpha {alpha:.2f}", transform=axes.transAxes, fontsize=9, ha="right")
    axes.minorticks_off()
    return density[drawn]


def density_of(spectrum: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, edges and density (per eigenvalue, not per its logarithm) of a histogram whose bins are equal in log10."""
    counts = np.array(spectrum["counts"])
    low, high = spectrum["log10_edges"]
    edges = 10 ** np.linspace(low, high, len(counts) + 1)
    return counts, edges, counts / max(counts.sum(), 1) / np.diff(edges)


def tail_share(counts: np.ndarray, edges: np.ndarray, threshold: float) -> float:
    """The share of eigenvalues from the threshold on; of the bin that holds it, the part above it."""
    above = np.clip((np.log(edges[1:]) - np.log(threshold)) / np.diff(np.log(edges)), 0, 1)
    return float((counts * above).sum() / max(counts.sum(), 1))


def rates(history: Mapping[str, Any], layer: str) -> Float[np.ndarray, " intervals"]:
    """A layer's learning rates: the schedule's at the start of each interval, by the scale that was in force at its end."""
    return np.array(history["learning_rate"]) * numbers(history["scale"][layer])


def numbers(values: Sequence[float | None]) -> Float[np.ndarray, " n"]:
    """With NaN for null."""
    return np.array(values, float)
