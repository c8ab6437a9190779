"""Figure 14 of the paper: learning rate and alpha of two layers over the intervals, two methods, every seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from examples.paper.report import layer_figures
from examples.paper.report.figures import method_color, panels
from examples.paper.results import Row

NAMED = ("layer1/0/conv2", "layer4/0/conv2")
"""The paper's `layer1.0.conv2` and `layer4.0.conv2`."""

_READ = {
    "learning rate": layer_figures.rates,
    "PL_Alpha_Hill": lambda history, layer: layer_figures.numbers(history["alpha"][layer]),
}


def two_layers(balanced: Sequence[str]) -> tuple[str, ...]:
    """The paper's where the network has them, otherwise the second and the last but one; fewer where there are fewer."""
    if set(NAMED) <= set(balanced):
        return NAMED
    inner = balanced[1:-1] or balanced
    return tuple(dict.fromkeys((inner[0], inner[-1]))) if inner else ()


def over_seeds(rows: Sequence[Row], quantity: str, layer: str) -> Float[np.ndarray, "seeds intervals"]:
    """The layer's `learning rate` or `PL_Alpha_Hill` in each of these runs; NaN where it had none."""
    return np.array([_READ[quantity](row["history"], layer) for row in rows])


def two_layers_figure(
    title: str, methods: Mapping[str, Sequence[Row]], layers: Sequence[str], interval: str, path: Path
) -> None:
    """A column for each layer, learning rate above alpha; a thin line for each seed and a thick one for their mean."""
    size = (1.0 + 3.3 * len(layers), 5.4)
    with panels(path, title, size, len(_READ), len(layers), sharex=True, sharey="row") as (figure, grid):
        for row, quantity in zip(grid, _READ, strict=True):
            for axes, layer in zip(row, layers, strict=True):
                for label, runs in methods.items():
                    _draw(axes, over_seeds(runs, quantity, layer), label)
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            row[0].set_ylabel(quantity)
        for axes, layer in zip(grid[0], layers, strict=True):
            axes.set_title(layer, fontsize=10)
            axes.set_ylim(0, None)
        for axes in grid[-1]:
            axes.set_xlabel(interval)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _draw(axes: Axes, lines: np.ndarray, label: str) -> None:
    numbers, color = range(1, lines.shape[1] + 1), method_color(label)
    axes.plot(numbers, lines.T, color=color, linewidth=0.8, alpha=0.5)
    mean = np.ma.masked_invalid(lines).mean(axis=0).filled(np.nan)
    axes.plot(
        numbers, mean, color=color, linewidth=2.2, label=f"{label}, mean of {len(lines)}", marker="o" * (len(numbers) == 1)
    )
