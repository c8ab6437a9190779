"""Figures of a report, drawn by matplotlib."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tb_optax._report.record import LayerRecord
    from tb_optax._report.report import Report

_BINS = 60


def alphas(report: "Report", ax: Any = None) -> Any:
    """Alpha of every layer, in the report's order, by each fit; beside it the alpha of noise of the layer's shape."""
    figure, axes = _figure(ax)
    names = [record.layer for record in report.records]
    for number, fit in enumerate(report.fits):
        values = [float(record.fits[fit].alpha) for record in report.records]
        axes.plot(range(len(names)), values, "o^sD"[number % 4], markersize=3.5, label=fit)
    noise = [record.noise.alpha for record in report.records]
    if np.isfinite(noise).any():
        axes.plot(range(len(names)), noise, "_", color="0.6", markersize=7, zorder=1, label="noise of the layer's shape")
    step = max(1, math.ceil(len(names) / 40))
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)
    axes.set_ylabel("alpha")
    axes.set_title("Exponent of each layer's spectrum", loc="left")
    axes.grid(alpha=0.25)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return figure


def spectrum(record: "LayerRecord", ax: Any = None) -> Any:
    """The eigenvalues' density on logarithmic axes, with the tail that each fit found and the edge of noise."""
    figure, axes = _figure(ax)
    found = density(record.eigenvalues)
    if found is not None:
        edges, heights = found
        axes.stairs(heights, edges, fill=True, color="0.75", label="eigenvalues")
        axes.set(xscale="log", yscale="log", ylim=(heights[heights > 0].min() / 2, heights.max() * 2))
    for number, (fit, law) in enumerate(record.fits.items()):
        if math.isfinite(law.alpha):
            points = tail_line(record.eigenvalues, float(law.alpha), float(law.xmin))
            axes.plot(*points, color=f"C{number}", label=f"{fit}: alpha {law.alpha:.2f}, distance {law.ks_distance:.3f}")
            axes.axvline(law.xmin, color=f"C{number}", linestyle=":", linewidth=1)
    if math.isfinite(record.noise.edge):
        axes.axvline(record.noise.edge, color="0.4", linestyle="--", linewidth=1, label="edge of noise")
    axes.set(xlabel="eigenvalue of WWᵀ", ylabel="density", title=record.layer)
    axes.legend(frameon=False, fontsize=8)
    return figure


def density(eigenvalues: np.ndarray, bins: int = _BINS) -> tuple[np.ndarray, np.ndarray] | None:
    """Edges and heights of a histogram with bins of equal width in the logarithm; None where nothing is above zero."""
    positive = eigenvalues[np.isfinite(eigenvalues) & (eigenvalues > 0)].astype(np.float64)
    if not len(positive):
        return None
    least, greatest = np.log10(positive.min()), np.log10(positive.max())
    edges = np.logspace(least - 1e-6, greatest + 1e-6, bins + 1)
    counts, _ = np.histogram(positive, edges)
    return edges, counts / np.diff(edges) / len(eigenvalues)


def tail_line(eigenvalues: np.ndarray, alpha: float, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the fitted law runs, from the threshold to the largest eigenvalue, as a density of all eigenvalues."""
    share = float((eigenvalues >= threshold).mean())
    values = np.geomspace(threshold, float(eigenvalues[-1]), 32)
    return values, share * (alpha - 1) / threshold * (values / threshold) ** -alpha


def _figure(ax: Any) -> tuple[Any, Any]:
    """The figure of given axes, or a new one."""
    if ax is not None:
        return ax.figure, ax
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained", dpi=120)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
