"""Figures of eigenvalue spectra: of a few layers at the end, and of one weight within the first interval and after."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from examples.paper.report.figures import GREY, method_color, rows_by_label, table_of_panels
from examples.paper.results import Row

# Far below the threshold of the tail, or the largest eigenvalue of all, are eigenvalues that are zero but for rounding.
_SMALLEST_DRAWN = 1e-3


def spectra_figure(title: str, runs: pd.DataFrame, layers: Sequence[str], path: Path) -> None:
    """Densities of the eigenvalues of a few layers, with the power law that the median fit finds; a row for each run."""
    rows = {label: row["spectra"] for label, row in rows_by_label(runs).items()}
    options = dict(sharex="col", sharey="col", xlabel="eigenvalue", ylabel="density")
    with table_of_panels(path, title, rows, {layer: layer for layer in layers}, (2.9, 2.5), **options) as (_, grid):
        for layer in layers:
            column = [(axes, spectra[layer]) for axes, spectra, name in grid if name == layer]
            thresholds = [spectrum["threshold"] for _, spectrum in column if np.isfinite(spectrum["threshold"])]
            smallest = _SMALLEST_DRAWN * min(thresholds, default=0.0)
            heights = np.concatenate([_draw_density(axes, spectrum, smallest, GREY) for axes, spectrum in column])
            largest = 10 ** max(spectrum["log10_edges"][1] for _, spectrum in column)
            column[0][0].set(xlim=(None, 2 * largest), ylim=(heights.min() / 3, 3 * heights.max()))
            for axes, spectrum in column:
                _draw_law(axes, spectrum)


def _draw_law(axes: Axes, spectrum: Mapping[str, Any]) -> None:
    alpha, threshold = spectrum["alpha"], spectrum["threshold"]
    counts, edges, _ = density_of(spectrum)
    if np.isfinite(alpha) and threshold < edges[-1]:
        places = np.geomspace(threshold, edges[-1])
        law = tail_share(counts, edges, threshold) * (alpha - 1) / threshold * (places / threshold) ** -alpha
        axes.plot(places, law, color="#D55E00", linewidth=1.8, linestyle="--")
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
        axes.text(0.95, 0.9, f"alpha {alpha:.2f}", transform=axes.transAxes, fontsize=9, ha="right")


def logged_weight(rows: Iterable[Row]) -> str | None:
    """The weight that all these runs have spectra of within the first interval; None where there is no such one."""
    within = [row["history"].get("spectra_within") for row in rows]  # older runs have none
    layers = {each["layer"] if each and each["spectra"] else None for each in within}
    return layers.pop() if len(layers) == 1 else None


def moments(row: Row) -> dict[int, Mapping[str, Any]]:
    """The weight's spectra within the first interval and at its end, one between, and the last, by iteration."""
    within = row["history"]["spectra_within"]
    spectra = {spectrum["iteration"]: spectrum for spectrum in within["spectra"]}
    late = [iteration for iteration in spectra if iteration > within["steps"]]
    left_out = {*late} - {*late[(len(late) - 1) // 2 :][:1], *late[-1:]}
    return {iteration: spectrum for iteration, spectrum in spectra.items() if iteration not in left_out}


def when(iteration: int, steps: int, interval: str) -> str:
    """An iteration in words."""
    within = "initial" if iteration == 0 else f"iteration {iteration}"
    return within if iteration < steps else f"after {interval} {iteration // steps}"


def weight_figure(title: str, runs: pd.DataFrame, interval: str, path: Path) -> None:
    """Figure 20: a row for each run, a column for each moment; a triangle marks the largest eigenvalue."""
    within = runs.row.iloc[0]["history"]["spectra_within"]
    rows = {label: (method_color(label), moments(row)) for label, row in rows_by_label(runs).items()}
    iterations = sorted({iteration for _, spectra in rows.values() for iteration in spectra})
    columns = {when(iteration, within["steps"], interval): iteration for iteration in iterations}
    largest = max(10 ** spectrum["log10_edges"][1] for _, spectra in rows.values() for spectrum in spectra.values())
    title, heights = f"{title}: {within['layer']}; triangle: the largest eigenvalue", []
    options = dict(sharex=True, sharey=True, xlabel="eigenvalue", ylabel="density")
    with table_of_panels(path, title, rows, columns, (1.85, 1.9), **options) as (_, grid):
        for axes, (color, spectra), iteration in grid:
            if iteration in spectra:
                heights.append(_draw_density(axes, spectra[iteration], _SMALLEST_DRAWN * largest, color))
                _, edges, density = density_of(spectra[iteration])
                axes.plot(edges[-1], 3 * density[-1], marker="v", markersize=5, color="black")
                axes.text(0.97, 0.9, f"{edges[-1]:.2g}", transform=axes.transAxes, fontsize=8, ha="right")
        drawn = np.concatenate(heights)
        grid[0][0].set(xlim=(_SMALLEST_DRAWN * largest, 3 * largest), ylim=(drawn.min() / 3, 10 * drawn.max()))


def _draw_density(axes: Axes, spectrum: Mapping[str, Any], smallest: float, color: str) -> np.ndarray:
    """The heights that are drawn: of bins with eigenvalues above `smallest`."""
    counts, edges, density = density_of(spectrum)
    drawn = (counts > 0) & (edges[1:] > smallest)
    first = int(np.argmax(drawn))
    axes.set(xscale="log", yscale="log")
    shown = np.where(drawn, density, np.nan)[first:]
    # From far below what will be in view.
    axes.stairs(shown, edges[first:], baseline=1e-30, fill=True, color=color, alpha=0.6)
    axes.minorticks_off()
    return density[drawn]


def density_of(spectrum: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, edges and density (per eigenvalue, not per its logarithm) of a histogram whose bins are equal in log10."""
    counts = np.array(spectrum["counts"])
    low, high = spectrum["log10_edges"]
    edges = np.logspace(low, high, len(counts) + 1)
    return counts, edges, counts / max(counts.sum(), 1) / np.diff(edges)


def tail_share(counts: np.ndarray, edges: np.ndarray, threshold: float) -> float:
    """The share of eigenvalues from the threshold on; of the bin that holds it, the part above it."""
    above = np.clip((np.log(edges[1:]) - np.log(threshold)) / np.diff(np.log(edges)), 0, 1)
    return float((counts * above).sum() / max(counts.sum(), 1))
