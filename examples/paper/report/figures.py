"""What figures share: panels, colours, and lines over the intervals."""

import contextlib
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from examples.paper.results import Row

_DPI = 110
# Of Okabe and Ito's palette, which colour-blind people can tell apart.
GREY, BLUE, ORANGE = "#8c8c8c", "#0072B2", "#E69F00"


def method_color(label: str) -> str:
    """Grey for CAL, blue for TB and TB with another method, orange for all others."""
    return BLUE if label.startswith("TB") else GREY if label.startswith("CAL") else ORANGE


def rows_by_label(runs: pd.DataFrame) -> dict[str, Row]:
    """Of runs that have a label each."""
    return dict(zip(runs.label, runs.row, strict=True))


def layer_colors(count: int) -> np.ndarray:
    """From the first layer (dark) to the last (light)."""
    return plt.get_cmap("viridis")(np.linspace(0, 0.95, count))


def name_layers(figure: Figure, layers: Sequence[str]) -> None:
    """A bar of the layers' colours beside all panels, with as many of their names as there is room for."""
    count, height = len(layers), figure.get_figheight()
    colored = ScalarMappable(BoundaryNorm(np.arange(count + 1) - 0.5, count), ListedColormap(layer_colors(count)))
    named: list[int] = np.linspace(0, count - 1, min(count, int(3 * height))).round().astype(int).tolist()
    bar = figure.colorbar(colored, ax=figure.axes, ticks=named, aspect=5 * height, pad=0.02)
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


@contextlib.contextmanager
def table_of_panels(
    path: Path, title: str, rows: Mapping[str, Any], columns: Mapping[str, Any], size: tuple[float, float], **options: Any
) -> Iterator[tuple[Figure, list[tuple[Axes, Any, Any]]]]:
    """Panels with the names of their rows on the left and of their columns above; each with its row's and column's value.

    Args:
      path: the file.
      title: above all panels.
      rows: by name.
      columns: by name.
      size: width and height of a panel in inches.
      **options: of `panels`; and `xlabel` below the last row, `ylabel` below the rows' names.
    """
    xlabel, ylabel = options.pop("xlabel", ""), options.pop("ylabel", "")
    whole = (1.0 + size[0] * len(columns), 1.0 + size[1] * len(rows))
    with panels(path, title, whole, len(rows), len(columns), **options) as (figure, grid):
        for axes, name in zip(grid[:, 0], rows, strict=True):
            axes.set_ylabel(f"{textwrap.fill(name, 24)}\n{ylabel}".strip())
        for top, bottom, name in zip(grid[0], grid[-1], columns, strict=True):
            top.set_title(name, fontsize=9)
            bottom.set_xlabel(xlabel)
        values = itertools.product(rows.values(), columns.values())
        yield figure, [(axes, row, column) for axes, (row, column) in zip(grid.flat, values, strict=True)]


@contextlib.contextmanager
def panels_by_task(
    path: Path, title: str, runs: pd.DataFrame, **options: Any
) -> Iterator[tuple[Figure, list[tuple[Axes, str, int, str, pd.DataFrame]]]]:
    """A panel for each `task` of some lines, with a row for each `label`; as axes, task, number of the row, label, lines."""
    tasks = [(str(task), list(of.groupby("label", sort=False))) for task, of in runs.groupby("task", sort=False)]
    heights = [0.4 + 0.45 * len(methods) for _, methods in tasks]
    size = (7.0, 1.1 + sum(heights))
    with panels(path, title, size, len(tasks), lines="x", height_ratios=heights, **options) as (figure, grid):
        found = []
        for axes, (task, methods) in zip(grid.flat, tasks, strict=True):
            axes.set_yticks(range(len(methods)), [label for label, _ in methods], fontsize=8)
            axes.set_ylim(len(methods) - 0.4, -0.6)
            axes.set_title(task * (len(tasks) > 1), fontsize=9)
            found += [(axes, task, row, str(label), of) for row, (label, of) in enumerate(methods)]
        yield figure, found
