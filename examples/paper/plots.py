"""Plots of a run: alpha and learning rate of every layer over the epochs (the paper's Figures 13 and 14)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator


def plot_run(log: Sequence[Mapping[str, Any]], interval: str, title: str, directory: Path) -> list[Path]:
    """Writes `alpha.png` and `learning_rate.png` of the balanced layers and, where scales differ from 1, `scale.png`.

    Args:
      log: the lines of the run's `log.jsonl`.
      interval: what each line is of, and how lines call it.
      title: of the plots.
      directory: where to write.

    Returns:
      The files written.
    """
    epochs = [line[interval] for line in log]
    balanced = list(log[-1]["scale"])
    rates = np.array([line["learning_rate"] for line in log])
    alphas = {name: np.array([line["alpha"][name] for line in log], float) for name in balanced}
    scales = {name: np.array([line["scale"][name] for line in log]) for name in balanced}
    same = all((scale == 1).all() for scale in scales.values())
    panels = {
        "alpha": (f"PL_Alpha_Hill after the {interval}", alphas),
        "learning_rate": (
            "learning rate",
            {"all layers": rates} if same else {name: rates * scale for name, scale in scales.items()},
        ),
        "scale": ("learning-rate scale", {} if same else scales),
    }
    written = []
    for name, (label, lines) in panels.items():
        if lines:
            written.append(directory / f"{name}.png")
            figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
            # From the first layer (dark) to the last (light).
            colors = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(lines)))
            for (layer, values), color in zip(lines.items(), colors, strict=True):
                axes.plot(epochs, values, color=color, label=layer, linewidth=1.4, marker="o" if len(epochs) == 1 else None)
            axes.set(title=title, xlabel=interval, ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if len(lines) > 1:
                figure.legend(loc="outside right center", fontsize=7, frameon=False, title="layer", title_fontsize=8)
            figure.savefig(written[-1], dpi=150)
            plt.close(figure)
    return written
