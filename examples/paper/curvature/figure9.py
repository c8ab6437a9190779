"""Draws Figure 9 and says what it shows: `python -m examples.paper curvature figure9`.

What is compared was decided before any of the runs, on seed 0, which is none of them: exponents of the ranks 10 to 50, which
the penalty holds to the power law, of output covariance and Hessian alike; Pearson's correlation of the two over the six
epochs of a training, a figure for each seed, and its mean over the seeds. Two things that both drift while a network trains
correlate whatever ties them. So the same is also told of the epochs from 10 on, when the loss has come down; and across the
settings of the penalty, at the last epoch, where nothing differs but what was asked of the output covariance.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes

from examples.paper.curvature.spectra import decay_exponent
from examples.paper.curvature.train import RESULTS
from examples.paper.report.figures import panels
from examples.paper.report.statistics import paired
from examples.paper.results import Row, read_rows

# Okabe and Ito's.
_COLORS = {None: "#8c8c8c", 0.5: "#009E73", 1.0: "#0072B2", 1.5: "#D55E00"}


class Exponents(NamedTuple):
    """Of output covariance and Hessian, of one training at one epoch."""

    covariance: float
    hessian: float


# By what the penalty asked for, by seed, by epoch.
Runs: TypeAlias = dict[float | None, dict[int, dict[int, Exponents]]]


def figure9(
    results: Path = RESULTS, figure: Path = Path("docs/images/figure9.png"), ranks: tuple[int, int] = (10, 50)
) -> None:
    """Prints correlations and draws the figure.

    Args:
      results: lines that the command `curvature train` has added.
      figure: where the picture goes.
      ranks: of the first and the last eigenvalue that the exponents are fitted to, up to 50.
    """
    runs = exponents(read_rows(results), ranks)
    for line in findings(runs):
        print(line)
    draw(runs, ranks, figure)


def exponents(rows: Iterable[Row], ranks: tuple[int, int]) -> Runs:
    """The exponents of all runs."""
    found: Runs = {}
    for row in rows:
        asked, seed = row["settings"]["exponent"], row["settings"]["seed"]
        found.setdefault(asked, {})[seed] = {
            each["epoch"]: Exponents(
                *(decay_exponent(np.array(each[name]), *ranks) for name in ("output_covariance", "hessian"))
            )
            for each in row["history"]
        }
    return found


def findings(runs: Runs) -> list[str]:
    """A line for each setting, and one across the settings."""
    lines = []
    for asked, seeds in runs.items():
        for first in (1, 10):
            chosen = {seed: [each for epoch, each in epochs.items() if epoch >= first] for seed, epochs in seeds.items()}
            lines.append(f"{_name(asked)}, epochs {first} to 50: {_told(_correlations(chosen))}")
    if len(runs) < 3:  # two points lie on a line
        return lines
    together = set.intersection(*(set(seeds) for seeds in runs.values()))
    across = {seed: [list(seeds[seed].values())[-1] for seeds in runs.values()] for seed in sorted(together)}
    lines.append(f"across {len(runs)} settings, epoch 50: {_told(_correlations(across))}")
    return lines


def _correlations(exponents: Mapping[int, Sequence[Exponents]]) -> dict[int, float]:
    return {seed: float(np.corrcoef(np.array(pairs).T)[0, 1]) for seed, pairs in exponents.items()}


def _told(correlations: dict[int, float]) -> str:
    """The mean and its 95% interval in Fisher's transformation, in which a correlation scatters evenly up to 1."""
    transformed = {seed: float(np.arctanh(value)) for seed, value in correlations.items()}
    mean = paired(transformed, dict.fromkeys(transformed, 0.0))
    if mean is None:
        return "one seed only"
    told, low, high = np.tanh([mean.difference, mean.low, mean.high])
    return f"r {told:+.2f} ({low:+.2f} to {high:+.2f}), {mean.seeds} seeds"


def _name(asked: float | None) -> str:
    return "no penalty" if asked is None else f"penalty for {asked:g}"


def draw(runs: Runs, ranks: tuple[int, int], path: Path) -> None:
    """Means over the seeds with their deviations, a line for each setting from the first epoch (hollow) to the last."""
    with panels(path, "Epochs 1 (hollow), 10, 20, 30, 40, 50", (6.2, 4.4)) as (_, grid):
        _draw_runs(grid[0, 0], runs, ranks)


def _draw_runs(axes: Axes, runs: Runs, ranks: tuple[int, int]) -> None:
    for asked, seeds in runs.items():
        table = np.array([list(epochs.values()) for epochs in seeds.values()])  # seeds x epochs x 2
        mean, deviation = table.mean(axis=0), table.std(axis=0, ddof=min(1, len(table) - 1))
        color = _COLORS.get(asked, "black")
        axes.errorbar(
            mean[:, 0],
            mean[:, 1],
            xerr=deviation[:, 0],
            yerr=deviation[:, 1],
            color=color,
            marker="o",
            markersize=4,
            lw=1,
            label=_name(asked),
        )
        axes.plot(mean[0, 0], mean[0, 1], marker="o", markersize=8, markerfacecolor="white", markeredgecolor=color, zorder=3)
        axes.annotate("50", mean[-1], xytext=(5, 5), textcoords="offset points", fontsize=8, color=color)
    axes.set(
        xlabel=f"exponent of the output covariance, ranks {ranks[0]} to {ranks[1]}",
        ylabel=f"exponent of the Hessian, ranks {ranks[0]} to {ranks[1]}",
    )
    axes.legend(frameon=False, fontsize=9)
