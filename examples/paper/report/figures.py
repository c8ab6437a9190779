"""Figures over results: bars, final alphas by layer, and what the three fits make of spectra of known exponent."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("agg")

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.paper.report.statistics import mean_and_deviation
from tb_optax import fits

DECAYS = np.linspace(0.5, 4, 15)
_EIGENVALUES = 1000
_DPI = 110
# Of Okabe and Ito's palette, which colour-blind people can tell apart.
_GREY, _BLUE, _ORANGE = "#8c8c8c", "#0072B2", "#E69F00"


class Bar(NamedTuple):
    """A method's results, one for each seed; and the mean that has been published, where there is one."""

    results: Sequence[float]
    published: float | None = None


class LayerAlphas(NamedTuple):
    """A method's final alpha of each layer: mean and standard deviation over its seeds, and means that are published."""

    over_seeds: Mapping[str, tuple[float, float | None]]
    published: Mapping[str, float]


def result_bars(title: str, results: Mapping[str, Mapping[str, Bar]], label: str, path: Path) -> None:
    """A panel for each task, with a bar for each method: mean, standard deviation, and a dot for each seed.

    Bars do not start at zero; a point is as long in one panel as in any other. `label` says what the results are.
    """
    across = min(len(results), 3)
    rows = [list(results.items())[start : start + across] for start in range(0, len(results), across)]
    heights = [0.9 + 0.33 * max(len(bars) for _, bars in row) for row in rows]
    size = (max(6, 1.2 + 3.6 * across), sum(heights) + 0.7)
    extents = {task: _extent(bars) for task, bars in results.items()}
    span = 1.25 * max(max(high - low for low, high in extents.values()), 0.4)
    published = any(bar.published is not None for bars in results.values() for bar in bars.values())
    with panels(path, title, size, len(rows), across, "x", height_ratios=heights) as (figure, grid):
        for axes in grid.flat[len(results) :]:
            axes.set_visible(False)
        for (task, bars), axes in zip(results.items(), grid.flat, strict=False):
            start = max(0.0, extents[task][1] - 0.95 * span)
            _draw_bars(axes, bars, start)
            axes.set_xlim(start, start + span)
            axes.set_title(task, fontsize=9)
        figure.supxlabel(f"{label}; the axes do not start at 0" + "; diamond: published" * published, fontsize=9)


_PUBLISHED: dict[str, Any] = dict(
    marker="D", markersize=6, markerfacecolor="none", markeredgecolor="black", linestyle="none"
)


def _extent(bars: Mapping[str, Bar]) -> tuple[float, float]:
    means = [mean_and_deviation(bar.results) for bar in bars.values()]
    ends = [mean + side * (deviation or 0) for mean, deviation in means for side in (-1, 1)]
    ends += [value for bar in bars.values() for value in bar.results]
    ends += [bar.published for bar in bars.values() if bar.published is not None]
    return min(ends), max(ends)


def _draw_bars(axes: Axes, bars: Mapping[str, Bar], start: float) -> None:
    for place, (label, bar) in enumerate(bars.items()):
        mean, deviation = mean_and_deviation(bar.results)
        axes.barh(place, mean - start, left=start, height=0.7, color=method_color(label), alpha=0.55)
        axes.errorbar(mean, place, xerr=deviation, color="black", capsize=3, linewidth=1.2)
        beside = np.linspace(-0.2, 0.2, len(bar.results)) if len(bar.results) > 1 else [0.0]
        axes.scatter(
            bar.results,
            place + np.asarray(beside),
            s=12,
            color=method_color(label),
            edgecolor="white",
            linewidth=0.5,
            zorder=3,
        )
        if bar.published is not None:
            axes.plot(bar.published, place, **_PUBLISHED, zorder=4)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8)


def method_color(label: str) -> str:
    """Grey for CAL, blue for TB and TB with another method, orange for all others."""
    return _BLUE if label.startswith("TB") else _GREY if label.startswith("CAL") else _ORANGE


def alphas_by_layer(title: str, methods: Mapping[str, LayerAlphas], layers: Sequence[str], path: Path) -> None:
    """The final alphas of these layers under each method."""
    with panels(path, title, (2 + 0.32 * len(layers), 3.8)) as (_, grid):
        axes: Axes = grid[0, 0]
        for shift, (label, alphas) in zip(np.linspace(-0.15, 0.15, len(methods)), methods.items(), strict=True):
            places = np.arange(len(layers)) + shift
            means = [alphas.over_seeds[layer][0] for layer in layers]
            deviations = [alphas.over_seeds[layer][1] or 0 for layer in layers]
            axes.errorbar(
                places,
                means,
                yerr=deviations,
                color=method_color(label),
                linestyle="none",
                marker="o",
                capsize=2,
                label=label,
            )
            published = [alphas.published.get(layer, np.nan) for layer in layers]
            axes.plot(places, published, **_PUBLISHED, zorder=4, label="published" if alphas.published else None)
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
        axes.set_ylabel("PL_Alpha_Hill at the end")
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))  # what is published, once
        axes.legend(list(named.values()), list(named), frameon=False, fontsize=8)


def deviations_over_intervals(title: str, methods: Mapping[str, Sequence[np.ndarray]], interval: str, path: Path) -> None:
    """How far apart the alphas of the balanced layers are after each interval: under each method, a line for each seed."""
    with panels(path, title, (5.5, 3.2)) as (_, grid):
        axes: Axes = grid[0, 0]
        for label, runs in methods.items():
            for number, deviations in enumerate(runs):
                numbers = range(1, len(deviations) + 1)
                axes.plot(numbers, deviations, color=method_color(label), marker=".", label=None if number else label)
        axes.set(xlabel=interval, ylabel="deviation of PL_Alpha_Hill\nover the balanced layers", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)


def synthetic_alphas() -> dict[str, np.ndarray]:
    """What each fit gives for the spectra `λ_i = i^-s`, for each `s` of `DECAYS`; their tails have `1 + 1/s`."""
    ranks = np.arange(_EIGENVALUES, 0.0, -1)
    spectra = jnp.asarray([ranks**-decay for decay in DECAYS])
    tails = {"median": fits.median, "goodness of fit": fits.goodness_of_fit, "fix finger": fits.fix_finger}
    return {name: np.asarray(fit(spectra).alpha) for name, fit in tails.items()}


def synthetic_figure(path: Path) -> None:
    """Alpha of spectra that decay as a power of the rank, by each fit, beside what theory has."""
    with panels(path, "", (6, 3.8)) as (_, grid):
        axes: Axes = grid[0, 0]
        axes.plot(DECAYS, 1 + 1 / DECAYS, color="black", linewidth=1, label="theory: 1 + 1/s")
        # Hollow and of different sizes: the fits agree, and each must be seen.
        markers = {"median": ("s", 10, _GREY), "goodness of fit": ("o", 6, _ORANGE), "fix finger": ("x", 4, _BLUE)}
        for name, alphas in synthetic_alphas().items():
            marker, size, color = markers[name]
            shape: dict[str, Any] = dict(
                marker=marker, markersize=size, markeredgecolor=color, markerfacecolor="none", markeredgewidth=1.5
            )
            axes.plot(DECAYS, alphas, linestyle="none", label=name, **shape)
        axes.set(xlabel="s, of eigenvalues that decay as $\\lambda_i = i^{-s}$", ylabel="alpha")
        axes.legend(frameon=False)


def layer_colors(count: int) -> ListedColormap:
    """From the first layer (dark) to the last (light)."""
    return ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 0.95, count)))


def name_layers(figure: Figure, axes: Sequence[Axes], layers: Sequence[str]) -> None:
    """A bar of the layers' colours beside the axes, with as many of their names as there is room for."""
    count, height = len(layers), figure.get_figheight()
    colored = ScalarMappable(BoundaryNorm(np.arange(count + 1) - 0.5, count), layer_colors(count))
    named: list[int] = np.linspace(0, count - 1, min(count, int(3 * height))).round().astype(int).tolist()
    bar = figure.colorbar(colored, ax=axes, ticks=named, aspect=5 * height, pad=0.02)
    bar.ax.set_yticklabels([layers[index] for index in named], fontsize=7)
    bar.ax.invert_yaxis()
    bar.ax.tick_params(which="both", length=0)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


@contextlib.contextmanager
def panels(
    path: Path, title: str, size: tuple[float, float], rows: int = 1, columns: int = 1, lines: str = "both", **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure of panels to draw in, which gets its title, its grid lines and its file at the end.

    Args:
      path: the file.
      title: above all panels.
      size: width and height in inches.
      rows: of panels.
      columns: likewise.
      lines: which axis has grid lines: `x`, `y` or `both`.
      **options: of `plt.subplots`.
    """
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    yield figure, grid
    figure.suptitle(title, fontsize=10)
    for axes in grid.flat:
        axes.grid(alpha=0.25, axis=lines)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
