"""Results by grid: what has become of each setting, and which settings are held against each other."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from examples.paper.domain import Domain
from examples.paper.grids import Grid
from examples.paper.report.statistics import Paired, common_seeds, paired
from examples.paper.report.wording import method_label, task_label
from examples.paper.results import Row, run_key, setting_key
from examples.paper.settings import base_of, is_balanced


@dataclasses.dataclass(frozen=True)
class Entry:
    """A setting, without its seed, and its finished runs by seed."""

    domain: Domain
    settings: Mapping[str, Any]
    rows: Mapping[int, Row]
    wanted: int

    @property
    def results(self) -> dict[int, float]:
        """By the domain's measure."""
        return {seed: self.domain.measure.of(row) for seed, row in self.rows.items()}

    def held_out(self, metric: str, seeds: Iterable[int]) -> float:
        """A metric's least over a run's intervals, the mean over these seeds; infinite where a run has no finite one."""
        least = lambda values: min(
            (value for value in values if value is not None and math.isfinite(value)), default=math.inf
        )
        return float(np.mean([least(self.rows[seed]["history"][metric]) for seed in seeds]))

    def is_tempbalance(self) -> bool:
        return is_balanced(self.settings["method"])


@dataclasses.dataclass(frozen=True)
class Task:
    """The entries of a section that train one network on one data set for as long."""

    label: str
    entries: Mapping[str, Entry]
    """By a label of the method that is theirs alone."""


@dataclasses.dataclass(frozen=True)
class Section:
    """The entries of a grid."""

    domain: Domain
    name: str
    title: str
    entries: Sequence[Entry]

    def rows(self) -> list[Row]:
        return [row for entry in self.entries for row in entry.rows.values()]

    def wanted(self) -> int:
        return sum(entry.wanted for entry in self.entries)

    def compared(self) -> list[Entry]:
        """All entries, or those whose learning rate was the best on held-out data, where the domain chooses by them.

        Of entries that differ in their learning rate alone, it is the one with the least mean over the seeds that all of
        them with any runs have.
        """
        metric = self.domain.style.chosen_by
        if metric is None:
            return list(self.entries)
        alike: dict[str, list[Entry]] = {}
        for entry in self.entries:
            others = {name: value for name, value in entry.settings.items() if name != "learning_rate"}
            alike.setdefault(json.dumps(others), []).append(entry)
        return [_best_held_out(entries, metric) for entries in alike.values()]

    def tasks(self) -> list[Task]:
        """Of the entries that are compared."""
        found: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self.compared():
            found.setdefault(tuple(entry.settings[name] for name in self.domain.style.task), []).append(entry)
        everything = [entry.settings for entry in self.entries]
        tasks = []
        for entries in found.values():
            among = [entry.settings for entry in entries]
            labels = [method_label(self.domain, settings, among) for settings in among]
            tasks.append(Task(task_label(self.domain, among[0], everything), dict(zip(labels, entries, strict=True))))
        return tasks


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method against another on the same task, both with runs; `result` is None where fewer than two seeds are common."""

    task: str
    method: str
    label: str
    against: str
    seeds: int
    result: Paired | None


def _best_held_out(entries: Sequence[Entry], metric: str) -> Entry:
    with_runs = [entry for entry in entries if entry.rows] or entries[:1]
    seeds = set.intersection(*(set(entry.rows) for entry in with_runs))
    return (
        min(with_runs, key=lambda entry: entry.held_out(metric, seeds or entry.rows)) if len(with_runs) > 1 else with_runs[0]
    )


def sections_of(domain: Domain, grids: Iterable[Grid], rows: Iterable[Row]) -> tuple[list[Section], list[Row]]:
    """A section for each grid, and the rows that are in none of them."""
    by_run = {run_key(domain, row): row for row in rows}
    left = dict(by_run)
    sections = []
    for grid in grids:
        entries = []
        for settings in grid.settings:
            keys = {seed: dataclasses.replace(settings, seed=seed).key() for seed in grid.seeds}
            found = {seed: by_run[key] for seed, key in keys.items() if key in by_run}
            entries.append(Entry(domain, json.loads(setting_key(settings)), found, len(grid.seeds)))
            for key in keys.values():
                left.pop(key, None)
        sections.append(Section(domain, grid.name, grid.title, entries))
    return sections, list(left.values())


def other_runs(domain: Domain, rows: Iterable[Row]) -> Section:
    """A section of rows that are in no grid: nothing more is wanted there than is done."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(setting_key(domain.settings.of(row["settings"])), {})[row["settings"]["seed"]] = row
    entries = [Entry(domain, json.loads(key), by_seed, len(by_seed)) for key, by_seed in found.items()]
    return Section(domain, "other", "Other runs", entries)


def closest(entry: Entry, candidates: Iterable[Entry]) -> Entry | None:
    """Of the candidates, the one that has the most settings in common with `entry`, so its learning rate if one has it."""
    alike = lambda other: sum(other.settings[name] == value for name, value in entry.settings.items())
    return max(candidates, key=alike, default=None)


def baseline_and_tb(task: Task) -> tuple[int, str, str] | None:
    """The first seed that the baseline and TB after it both have, and their labels; of several TBs, the usual one."""
    with_runs = {label: entry for label, entry in task.entries.items() if entry.rows}
    for label, base in with_runs.items():
        method = base.settings["method"]
        after = [e for e in with_runs.values() if e.is_tempbalance() and base_of(e.settings["method"]) == method]
        others = [entry for entry in after if common_seeds(base.rows, entry.rows)]
        if method == base.domain.style.baseline and others:
            # The baseline reads no setting of TB, so it has the defaults, and these are the paper's.
            balanced = closest(base, others)
            assert balanced is not None
            tb = next(label for label, other in with_runs.items() if other is balanced)
            return common_seeds(base.rows, balanced.rows)[0], label, tb
    return None


def comparisons(section: Section) -> list[Comparison]:
    """Every entry against the task's baseline, TB after another method against that alone, and TB against its controls."""
    return [comparison for task in section.tasks() for comparison in _comparisons(task)]


def _comparisons(task: Task) -> Iterator[Comparison]:
    labels = {id(entry): label for label, entry in task.entries.items()}
    for label, entry in task.entries.items():
        for against in _held_against(entry, list(task.entries.values())):
            if against.rows and entry.rows:
                seeds = len(entry.rows.keys() & against.rows.keys())
                result = paired(entry.results, against.results, entry.domain.measure.higher_is_better)
                yield Comparison(task.label, entry.settings["method"], label, labels[id(against)], seeds, result)


def _held_against(entry: Entry, entries: Sequence[Entry]) -> Iterator[Entry]:
    own = entry.settings["method"]
    baseline = entry.domain.style.baseline
    for method in dict.fromkeys((baseline, base_of(own))):
        against = closest(entry, [other for other in entries if other.settings["method"] == method])
        if against is not None and own not in (baseline, method):
            yield against
    if entry.is_tempbalance() and entry.settings["control"] == "none":
        differs = lambda other: {name for name, value in entry.settings.items() if other.settings[name] != value}
        yield from (other for other in entries if differs(other) == {"control"})
