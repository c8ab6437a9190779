"""Figure 20 of the paper: the spectrum of one weight within the first interval and after."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from examples.paper.report.figures import method_color, panels
from examples.paper.report.layer_figures import density_of
from examples.paper.results import Row

_SMALLEST_DRAWN = 1e-3
"""Of the largest eigenvalue of all: what is far below is zero but for rounding."""


class Moments(NamedTuple):
    """A weight's spectra after so many iterations, counted from the start of the training."""

    layer: str
    spectra: dict[int, Mapping[str, Any]]
    steps: int
    """Of an interval."""


def tells_spectra(rows: Sequence[Row]) -> bool:
    """Whether all these runs have spectra within the first interval, and of one weight; older ones have none."""
    within = [row["history"].get("spectra_within") for row in rows]
    return all(each is not None and each["spectra"] for each in within) and len({each["layer"] for each in within}) == 1


def moments(row: Row) -> Moments:
    """Those within the first interval and at its end, one between, and the last."""
    within = row["history"]["spectra_within"]
    spectra = {spectrum["iteration"]: spectrum for spectrum in within["spectra"]}
    early = [iteration for iteration in spectra if iteration <= within["steps"]]
    late = [iteration for iteration in spectra if iteration > within["steps"]]
    chosen = [*early, *dict.fromkeys([late[(len(late) - 1) // 2], late[-1]] if late else [])]
    return Moments(within["layer"], {iteration: spectra[iteration] for iteration in chosen}, within["steps"])


def when(iteration: int, steps: int, interval: str) -> str:
    """An iteration in words."""
    if iteration < steps:
        return "initial" if iteration == 0 else f"iteration {iteration}"
    return f"after {interval} {iteration // steps}"


def weight_figure(title: str, runs: Mapping[str, Row], interval: str, path: Path) -> None:
    """A row for each method, a column for each moment; the axes are the same, a triangle marks the largest eigenvalue."""
    found = {label: moments(run) for label, run in runs.items()}
    columns = sorted({iteration for each in found.values() for iteration in each.spectra})
    size = (0.9 + 1.85 * len(columns), 0.9 + 1.9 * len(found))
    steps = next(iter(found.values())).steps
    largest = max(10 ** spectrum["log10_edges"][1] for each in found.values() for spectrum in each.spectra.values())
    heights: list[np.ndarray] = []
    with panels(path, title, size, len(found), len(columns), sharex=True, sharey=True) as (figure, grid):
        for row, (label, each) in zip(grid, found.items(), strict=True):
            for axes, iteration in zip(row, columns, strict=True):
                if iteration in each.spectra:
                    heights.append(_draw(axes, each.spectra[iteration], _SMALLEST_DRAWN * largest, method_color(label)))
            row[0].set_ylabel(f"{textwrap.fill(label, 24)}\ndensity")
        for axes, iteration in zip(grid[0], columns, strict=True):
            axes.set_title(when(iteration, steps, interval), fontsize=9)
        drawn = np.concatenate(heights)
        grid[0, 0].set(xlim=(_SMALLEST_DRAWN * largest, 3 * largest), ylim=(drawn.min() / 3, 10 * drawn.max()))
        figure.supxlabel("eigenvalue; triangle: the largest", fontsize=10)


def _draw(axes: Axes, spectrum: Mapping[str, Any], smallest: float, color: str) -> Float[np.ndarray, " bins"]:
    """The heights that are drawn."""
    counts, edges, density = density_of(spectrum)
    shown = (counts > 0) & (edges[1:] > smallest)
    axes.set(xscale="log", yscale="log")
    # From far below what will be in view.
    axes.stairs(np.where(shown, density, np.nan), edges, baseline=1e-30, fill=True, color=color, alpha=0.6)
    largest = edges[-1]
    axes.plot(largest, 3 * density[-1], marker="v", markersize=5, color="black")
    axes.text(0.97, 0.9, f"{largest:.2g}", transform=axes.transAxes, fontsize=8, ha="right")
    axes.minorticks_off()
    return density[shown]
