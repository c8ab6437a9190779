"""Figures of runs layer by layer: alpha, learning rate and gradient norms, over the intervals and within the first ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from examples.paper.report.alphas import balanced_layers, layer_history
from examples.paper.report.figures import layer_colors, method_color, name_layers, rows_by_label, table_of_panels
from examples.paper.results import Row

QUANTITIES = {"PL_Alpha_Hill": "alpha", "learning rate": "learning_rate"}
NAMED = ("layer1/0/conv2", "layer4/0/conv2")
"""The layers of the paper's Figure 14, `layer1.0.conv2` and `layer4.0.conv2`."""

_BINS = 12
_MOST_ITERATIONS = 4


def layers_figure(
    title: str, runs: pd.DataFrame, quantities: dict[str, str], interval: str, path: Path, **options: Any
) -> None:
    """Every balanced layer over the intervals: a row for each quantity of `layer_history`, a column for each run."""
    layers, columns = balanced_layers(runs.row), rows_by_label(runs)
    options = dict(sharex=True, sharey="row", xlabel=interval, **options)
    with table_of_panels(path, title, quantities, columns, (3.3, 2.7), **options) as (figure, grid):
        for axes, quantity, row in grid:
            lines = layer_history(row, quantity, layers)
            axes.set_prop_cycle(color=layer_colors(len(layers)))
            axes.plot(lines, linewidth=1.2, marker="o" * (len(lines) == 1))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        name_layers(figure, layers)


def gradient_figure(title: str, runs: pd.DataFrame, interval: str, path: Path) -> None:
    """The norm of the loss gradient, of every balanced layer over the intervals; a column for each run."""
    norms = {f"gradient norm, mean of the {interval}": "gradient_norm"}
    layers_figure(title, runs, norms, interval, path, subplot_kw={"yscale": "log"})


def two_layers(balanced: Sequence[str]) -> tuple[str, ...]:
    """The paper's where the network has them, otherwise the second and the last but one; fewer where there are fewer."""
    if set(NAMED) <= set(balanced):
        return NAMED
    inner = balanced[1:-1] or balanced
    return tuple(dict.fromkeys((inner[0], inner[-1]))) if inner else ()


def over_seeds(rows: Iterable[Row], quantity: str, layer: str) -> pd.DataFrame:
    """The layer's `alpha` or `learning_rate`: a line for each interval, a column for each run."""
    return pd.concat([layer_history(row, quantity, [layer]) for row in rows], axis=1)


def two_layers_figure(title: str, runs: pd.DataFrame, layers: Sequence[str], interval: str, path: Path) -> None:
    """Figure 14: learning rate above alpha, a column for each layer; a line for each seed, a thick one for their mean."""
    quantities, columns = dict(reversed(QUANTITIES.items())), {layer: layer for layer in layers}
    options = dict(sharex=True, sharey="row", xlabel=interval)
    with table_of_panels(path, title, quantities, columns, (3.3, 2.3), **options) as (figure, grid):
        for axes, quantity, layer in grid:
            for label, of in runs.groupby("label", sort=False):
                lines, color = over_seeds(of.row, quantity, layer), method_color(str(label))
                axes.plot(lines, color=color, linewidth=0.8, alpha=0.5)
                mean, name = lines.mean(axis=1), f"{label}, mean of {len(of)}"
                axes.plot(mean, color=color, linewidth=2.2, label=name, marker="o" * (len(mean) == 1))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        grid[0][0].set_ylim(0, None)
        lines = grid[0][0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def norms_within(row: Row, layers: Sequence[str]) -> pd.DataFrame:
    """Gradient norms within the first intervals: a line for each iteration from the start, a column for each layer."""
    within = row["history"]["gradient_norms_within"]
    norms = np.array([within["norms"][layer] for layer in layers], float)  # layers, intervals, points; NaN for null
    intervals, points = norms.shape[1:]
    iterations = within["steps"] * np.arange(intervals)[:, None] + within["every"] * np.arange(points)
    return pd.DataFrame(norms.reshape(len(layers), -1).T, iterations.ravel(), list(layers))


def norms_figure(title: str, runs: pd.DataFrame, interval: str, path: Path) -> None:
    """Figure 18: the largest, mean and least norm over the layers, over the iterations; a column for each run."""
    layers, columns = balanced_layers(runs.row), {label: (label, row) for label, row in rows_by_label(runs).items()}
    rows, below = {"gradient norm over the balanced layers": None}, f"iteration; dotted: a new {interval}"
    options = dict(lines="y", sharex=True, sharey=True, subplot_kw={"yscale": "log"}, xlabel=below)
    with table_of_panels(path, title, rows, columns, (3.9, 2.7), **options) as (_, grid):
        for axes, _, (label, row) in grid:
            norms, color = norms_within(row, layers), method_color(label)
            steps = row["history"]["gradient_norms_within"]["steps"]
            for start in range(steps, norms.index[-1] + 1, steps):
                axes.axvline(start, color="black", alpha=0.18, linewidth=0.7, linestyle=":")
            over_layers = norms.agg(["max", "mean", "min"], axis=1)
            axes.fill_between(norms.index, over_layers["min"], over_layers["max"], color=color, alpha=0.18, linewidth=0)
            for of, name, style in (("max", "largest", "--"), ("mean", "mean", "-"), ("min", "least", "-.")):
                axes.plot(over_layers[of], color=color, linestyle=style, linewidth=2 if of == "mean" else 1.2, label=name)
            axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
        low, high = grid[0][0].get_ylim()
        grid[0][0].set_ylim(low, high * (high / low) ** 0.08)  # room for the legends


def in_first_interval(row: Row, layers: Sequence[str]) -> pd.DataFrame:
    """The norms at a few iterations of the first interval, which are spread evenly over it."""
    norms = norms_within(row, layers)
    points = int((norms.index < row["history"]["gradient_norms_within"]["steps"]).sum())
    return norms.iloc[np.unique(np.linspace(0, points - 1, min(_MOST_ITERATIONS, points)).round().astype(int))]


def histograms_figure(title: str, runs: pd.DataFrame, path: Path) -> None:
    """Figure 19: how the layers' norms are distributed at iterations of the first interval; a row for each run."""
    norms = {label: in_first_interval(row, balanced_layers(runs.row)) for label, row in rows_by_label(runs).items()}
    rows = {label: (method_color(label), of) for label, of in norms.items()}
    columns = {f"iteration {iteration}": iteration for iteration in next(iter(norms.values())).index}
    bins = shared_bins(pd.concat(norms).to_numpy().ravel())
    options = dict(
        lines="y", sharex=True, sharey=True, subplot_kw={"xscale": "log"}, xlabel="gradient norm", ylabel="layers"
    )
    with table_of_panels(path, title, rows, columns, (2.5, 1.9), **options) as (_, grid):
        for axes, (color, of), iteration in grid:
            axes.hist(of.loc[iteration].dropna(), bins=list(bins), color=color, alpha=0.7, edgecolor="white")
            axes.tick_params(axis="x", which="both", labelsize=7)


def shared_bins(norms: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edges"]:
    """Edges, equally far apart in the logarithm, that hold all norms above zero; some edges where there are none."""
    values = norms[np.isfinite(norms) & (norms > 0)]
    low, high = (values.min() / 1.001, values.max() * 1.001) if len(values) else (0.1, 10)
    return np.geomspace(low, high, _BINS + 1)
