"""Final alphas over layers and seeds: how far apart they ended, and how they agree with published ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from examples.vision.report.published import Published, figures_of
from examples.vision.report.sections import Entry, Task, closest
from examples.vision.report.statistics import Paired, paired
from examples.vision.results import Row


class Spread(NamedTuple):
    """How far apart the final alphas of a method's balanced layers are: means over the seeds."""

    method: str
    seeds: int
    extent: float
    """The largest minus the smallest."""
    deviation: float
    """The standard deviation over the layers."""
    against_cal: Paired | None
    """The deviation minus CAL's, by seed; None for CAL, and where they share fewer than two seeds."""


class Agreement(NamedTuple):
    """A setting's mean final alphas beside published ones, over the layers that both have."""

    method: str
    differences: Mapping[str, float]
    """Of each layer: ours minus the published."""
    extents: tuple[float, float]
    """The largest minus the smallest of the balanced layers' means, ours and published."""


def final_alphas(row: Row) -> dict[str, float]:
    """The last alpha of each layer, NaN where it had none."""
    last = {layer: values[-1] for layer, values in row["history"]["alpha"].items()}
    return {layer: np.nan if alpha is None else alpha for layer, alpha in last.items()}


def balanced_layers(rows: Sequence[Row]) -> list[str]:
    """Those that all these runs balance (some balance the first and the last too), in the network's order."""
    return [layer for layer in rows[0]["history"]["scale"] if all(layer in row["history"]["scale"] for row in rows)]


def alphas_over_seeds(rows: Sequence[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each layer the mean final alpha, and its standard deviation over the runs (0 of a single one)."""
    finals = [final_alphas(row) for row in rows]
    by_layer = {layer: [final[layer] for final in finals] for layer in finals[0]}
    several = min(1, len(rows) - 1)
    return (
        {layer: float(np.mean(values)) for layer, values in by_layer.items()},
        {layer: float(np.std(values, ddof=several)) for layer, values in by_layer.items()},
    )


def spreads(task: Task) -> Iterator[Spread]:
    """Of each method that has runs with finite alphas; beside the CAL of the same learning rate where there is one."""
    with_runs = {label: entry for label, entry in task.entries.items() if entry.rows}
    layers = balanced_layers([row for entry in with_runs.values() for row in entry.rows.values()])
    cals = [entry for entry in task.entries.values() if entry.settings["method"] == "cal"]
    for label, entry in with_runs.items():
        deviations = _deviations(entry, layers)
        if deviations:
            extents = [np.ptp(alphas) for alphas in _finite(entry, layers).values()]
            cal = None if entry in cals else closest(entry, cals)
            against = None if cal is None else paired(deviations, _deviations(cal, layers))
            extent, deviation = float(np.mean(extents)), float(np.mean(list(deviations.values())))
            yield Spread(label, len(deviations), extent, deviation, against)


def agreements(task: Task, published: Sequence[Published]) -> Iterator[Agreement]:
    """Of each setting with runs for which alphas are published."""
    for label, entry in task.entries.items():
        rows = list(entry.rows.values())
        for alphas in (figure.alphas for figure in figures_of(entry.settings, published) if figure.alphas and rows):
            means, _ = alphas_over_seeds(rows)
            differences = {layer: means[layer] - alphas[layer] for layer in means if layer in alphas}
            both = [layer for layer in balanced_layers(rows) if layer in alphas]
            ours, theirs = (float(np.ptp([of[layer] for layer in both])) for of in (means, alphas))
            yield Agreement(label, differences, (ours, theirs))


def _finite(entry: Entry, layers: Sequence[str]) -> dict[int, list[float]]:
    """By seed, those of these layers' final alphas that are finite, where there is one."""
    found = {seed: [final_alphas(row)[layer] for layer in layers] for seed, row in entry.rows.items()}
    finite = {seed: [alpha for alpha in alphas if np.isfinite(alpha)] for seed, alphas in found.items()}
    return {seed: alphas for seed, alphas in finite.items() if alphas}


def _deviations(entry: Entry, layers: Sequence[str]) -> dict[int, float]:
    return {seed: float(np.std(alphas)) for seed, alphas in _finite(entry, layers).items()}
