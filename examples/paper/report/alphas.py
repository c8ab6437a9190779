"""Final alphas over layers and seeds: how far apart they ended, and how they agree with published ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from examples.paper.domain import Domain
from examples.paper.report.published import Published, figures_of
from examples.paper.report.sections import Entry, Task, baseline_and_tb, closest, other_runs
from examples.paper.report.statistics import Paired, mean_and_deviation, paired
from examples.paper.report.wording import method_name
from examples.paper.results import Row


class Spread(NamedTuple):
    """How far apart the final alphas of a method's balanced layers are: means over the seeds."""

    method: str
    seeds: int
    extent: float
    """The largest minus the smallest."""
    deviation: float
    """The standard deviation over the layers."""
    against_base: Paired | None
    """The deviation minus the baseline's, by seed; None for that, and where they share fewer than two seeds."""
    of_larger_layers: Paired | None
    """The same over `larger_layers`; None too where there are none."""


class Pooled(NamedTuple):
    """Final alphas of a method's balanced layers, those of all its seeds together."""

    seeds: int
    alphas: Float[np.ndarray, " n"]


class Agreement(NamedTuple):
    """A setting's mean final alphas beside published ones, over the layers that both have."""

    method: str
    differences: Mapping[str, float]
    """Of each layer: ours minus the published."""
    extents: tuple[float, float]
    """The largest minus the smallest of the balanced layers' means, ours and published."""


def final_alphas(row: Row, layers: Iterable[str]) -> dict[str, float]:
    """The last alpha of each of these layers, NaN where it had none."""
    last = {layer: row["history"]["alpha"][layer][-1] for layer in layers}
    return {layer: np.nan if alpha is None else alpha for layer, alpha in last.items()}


def balanced_layers(rows: Sequence[Row]) -> list[str]:
    """Those that all these runs balance (some balance the first and the last too), in the network's order."""
    return [layer for layer in rows[0]["history"]["scale"] if all(layer in row["history"]["scale"] for row in rows)]


def larger_layers(rows: Sequence[Row], layers: Sequence[str]) -> list[str]:
    """Those with more eigenvalues than the median one: alphas of few eigenvalues scatter most."""
    counts = {layer: max(_eigenvalues(row, layer) for row in rows) for layer in layers}
    median = np.median(list(counts.values()))
    return [layer for layer in layers if counts[layer] > median]


def _eigenvalues(row: Row, layer: str) -> int:
    return row["spectra"][layer]["eigenvalues"] if layer in row["spectra"] else 0  # no spectrum where it diverged


def pooled(methods: Mapping[str, Sequence[Row]]) -> dict[str, Pooled]:
    """Of each method's runs the final alphas, those that there are, of the layers that all the methods balance."""
    layers = balanced_layers([row for rows in methods.values() for row in rows])
    found = {}
    for label, rows in methods.items():
        alphas = np.array([list(final_alphas(row, layers).values()) for row in rows], float).ravel()
        found[label] = Pooled(len(rows), alphas[np.isfinite(alphas)])
    return found


def pooled_by_task(domain: Domain, rows: Iterable[Row]) -> dict[str, dict[str, Pooled]]:
    """The final alphas under the baseline and under TB of every task that both have been run on with one seed at least."""
    found = {}
    for task in other_runs(domain, rows).tasks():
        pair = baseline_and_tb(task)
        if pair is not None:
            base, tb = (list(task.entries[label].rows.values()) for label in pair[1:])
            found[task.label] = pooled({method_name(domain, domain.style.baseline): base, "TB": tb})
    return found


def alphas_over_seeds(rows: Sequence[Row], layers: Sequence[str]) -> dict[str, tuple[float, float | None]]:
    """Of each of these layers' final alphas the mean and the sample standard deviation over the runs."""
    finals = [final_alphas(row, layers) for row in rows]
    return {layer: mean_and_deviation([final[layer] for final in finals]) for layer in layers}


def deviations_by_epoch(row: Row, layers: Sequence[str]) -> np.ndarray:
    """The standard deviation of alpha over these layers after each epoch, those without one left out; NaN of none."""
    alphas = np.array([row["history"]["alpha"][layer] for layer in layers], float)  # NaN for null
    return np.ma.masked_invalid(alphas).std(axis=0).filled(np.nan)


def spreads(task: Task) -> Iterator[Spread]:
    """Of each method that has runs with finite alphas; beside the baseline of the same learning rate where there is one."""
    with_runs = {label: entry for label, entry in task.entries.items() if entry.rows}
    rows = [row for entry in with_runs.values() for row in entry.rows.values()]
    layers = balanced_layers(rows)
    larger = larger_layers(rows, layers)
    bases = [entry for entry in task.entries.values() if entry.settings["method"] == entry.domain.style.baseline]
    for label, entry in with_runs.items():
        deviations = _last_deviations(entry, layers)
        if deviations:
            base = None if entry in bases else closest(entry, bases)
            against = [_paired_deviations(entry, base, among) for among in (layers, larger)]
            alphas = [list(final_alphas(entry.rows[seed], layers).values()) for seed in deviations]
            extent = float(np.mean(np.nanmax(alphas, axis=1) - np.nanmin(alphas, axis=1)))
            yield Spread(label, len(deviations), extent, float(np.mean(list(deviations.values()))), *against)


def agreements(task: Task, published: Sequence[Published]) -> Iterator[Agreement]:
    """Of each setting with runs for which alphas are published."""
    for label, entry in task.entries.items():
        rows = list(entry.rows.values())
        for alphas in (figure.alphas for figure in figures_of(entry.settings, published) if figure.alphas and rows):
            both = [layer for layer in rows[0]["history"]["alpha"] if layer in alphas]
            means = {layer: mean for layer, (mean, _) in alphas_over_seeds(rows, both).items()}
            differences = {layer: means[layer] - alphas[layer] for layer in both}
            balanced = [layer for layer in balanced_layers(rows) if layer in alphas]
            ours, theirs = (float(np.ptp([of[layer] for layer in balanced])) for of in (means, alphas))
            yield Agreement(label, differences, (ours, theirs))


def _last_deviations(entry: Entry, layers: Sequence[str]) -> dict[int, float]:
    """By seed, how far apart these layers ended, where one of them has an alpha."""
    last = {seed: float(deviations_by_epoch(row, layers)[-1]) for seed, row in entry.rows.items()}
    return {seed: deviation for seed, deviation in last.items() if np.isfinite(deviation)}


def _paired_deviations(entry: Entry, base: Entry | None, layers: Sequence[str]) -> Paired | None:
    return None if base is None or not layers else paired(_last_deviations(entry, layers), _last_deviations(base, layers))
