"""Figures 11 and 12 of the paper: how the final alphas of the balanced layers are distributed, over layers and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy import stats

from examples.paper.report.alphas import Pooled
from examples.paper.report.figures import method_color, panels

_POINTS = 200
_HEIGHT = 0.4
"""Of half a violin where it is widest; a row is 1."""


class Center(NamedTuple):
    median: float
    mean: float


def center(alphas: Float[np.ndarray, " n"]) -> Center:
    return Center(float(np.median(alphas)), float(np.mean(alphas)))


def outline(alphas: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]] | None:
    """A kernel estimate of the density between the extremes; None where they are no distribution, being all alike."""
    if len(alphas) < 2 or np.ptp(alphas) < 1e-6:
        return None
    places = np.linspace(alphas.min(), alphas.max(), _POINTS)
    return places, stats.gaussian_kde(alphas)(places)


def alpha_distributions(title: str, groups: Mapping[str, Mapping[str, Pooled]], path: Path) -> None:
    """A violin for each method of each group, one below the other; all are of one area, and share the axis of alpha.

    Args:
      title: of the figure.
      groups: by what is written above its violins, which may be nothing.
      path: where to write.
    """
    rows = sum(len(methods) for methods in groups.values())
    gap = 0.9 if any(groups) else 0.0
    height = 1.45 + 0.52 * rows + 0.3 * gap * len(groups)
    highest = max((outline_of[1].max() for outline_of in _outlines(groups)), default=1.0)
    place, ticks, labels = 0.0, [], []
    with panels(path, title, (7.5, height), lines="x") as (figure, grid):
        axes: Axes = grid[0, 0]
        for name, methods in groups.items():
            if name:
                where = axes.get_yaxis_transform()
                axes.text(0, place + 0.28, name, transform=where, fontsize=9, fontweight="bold", va="center")
                place += gap
            for label, pooled in methods.items():
                _draw(axes, place, pooled.alphas, method_color(label), highest)
                ticks.append(place)
                labels.append(f"{label}, {pooled.seeds} seed{'' if pooled.seeds == 1 else 's'}")
                place += 1
        axes.set_yticks(ticks, labels, fontsize=8)
        axes.set_ylim(place - 0.45, -0.55 if gap == 0 else -0.2)
        axes.set_xlabel("PL_Alpha_Hill of the balanced layers at the end")
        figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False, fontsize=8, borderpad=0.8)


def _outlines(groups: Mapping[str, Mapping[str, Pooled]]) -> list[tuple[np.ndarray, np.ndarray]]:
    found = [outline(pooled.alphas) for methods in groups.values() for pooled in methods.values()]
    return [each for each in found if each is not None]


def _draw(axes: Axes, place: float, alphas: np.ndarray, color: str, highest: float) -> None:
    if not len(alphas):
        return
    shape = outline(alphas)
    widths = np.zeros_like(alphas)
    if shape is not None:
        places, density = shape
        half = _HEIGHT * density / highest
        axes.fill_between(places, place - half, place + half, color=color, alpha=0.4, linewidth=0)
        axes.fill_between(places, place - half, place + half, facecolor="none", edgecolor=color, linewidth=1)
        widths = np.interp(alphas, places, half)
    # Each layer of each seed is seen: of one seed's few layers the outline alone would tell too much.
    inside = np.random.default_rng(0).uniform(-0.8, 0.8, len(alphas)) * widths
    axes.scatter(alphas, place + inside, s=7, color=color, edgecolor="white", linewidth=0.25, zorder=3)
    median, mean = center(alphas)
    axes.vlines(median, place - _HEIGHT, place + _HEIGHT, color="black", linewidth=1.6, zorder=4)
    axes.plot(mean, place, marker="D", markersize=5.5, color="white", markeredgecolor="black", zorder=5)


def _legend() -> Sequence[Line2D]:
    return (
        Line2D([], [], marker="|", markersize=11, markeredgewidth=1.6, color="black", linestyle="none", label="median"),
        Line2D([], [], marker="D", color="white", markeredgecolor="black", markersize=5.5, linestyle="none", label="mean"),
        Line2D([], [], marker="o", color="#404040", markersize=3, linestyle="none", label="a layer of a seed"),
    )
