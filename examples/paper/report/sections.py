"""Results by grid: what has become of each setting, and which settings are compared with each other."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from examples.paper.domain import Domain
from examples.paper.grids import Grid
from examples.paper.report.published import Published, read_published
from examples.paper.report.statistics import Paired, paired
from examples.paper.report.wording import method_labels, task_labels
from examples.paper.results import Row, run_key, setting_key
from examples.paper.settings import base_of, is_balanced


class Section(NamedTuple):
    """The settings of a grid and their finished runs."""

    domain: Domain
    name: str
    title: str
    entries: pd.DataFrame
    """A line for each setting, by its key: `settings` (without a seed), `method`, what is `published` of it, the numbers of
    runs `wanted` and `done`, `held_out` (mean of the metric that chooses learning rates), whether it is `compared`, and the
    names of its `task` and, if it is compared, of the method in that task (`label`)."""
    runs: pd.DataFrame
    """A line for each finished run: `key`, `setting`, `seed`, `row`, `result` by the domain's measure, `held_out`, and its
    setting's `settings`, `method`, `published`, `compared`, `task` and `label`."""

    def results(self, setting: str) -> pd.Series:
        """By seed."""
        return self.runs[self.runs.setting == setting].set_index("seed").result

    def tasks(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The finished runs that are compared, by task."""
        for task, runs in self.runs[self.runs.compared].groupby("task", sort=False):
            yield str(task), runs


def sections_of(domain: Domain, grids: Iterable[Grid], rows: Iterable[Row]) -> tuple[list[Section], list[Row]]:
    """A section for each grid, and the rows that are in none of them."""
    by_run, published, sections = {run_key(domain, row): row for row in rows}, read_published(domain), []
    for grid in grids:
        settings = [dataclasses.replace(settings, seed=seed) for settings in grid.settings for seed in grid.seeds]
        sections.append(_section(domain, grid.name, grid.title, settings, by_run, published))
    used = {key for section in sections for key in section.runs.key}
    return sections, [row for key, row in by_run.items() if key not in used]


def other_runs(domain: Domain, rows: Sequence[Row]) -> Section:
    """A section of rows that are in no grid: it wants no other runs."""
    settings = [domain.settings.of(row["settings"]) for row in rows]
    by_run = {run_key(domain, row): row for row in rows}
    return _section(domain, "other", "Other runs", settings, by_run, read_published(domain))


def _section(
    domain: Domain, name: str, title: str, settings: Sequence[Any], by_run: Mapping[str, Row], published: Sequence[Published]
) -> Section:
    """Of the settings of all runs that are wanted."""
    keys = [(setting_key(of), of.seed, of.key()) for of in settings]
    wanted = pd.DataFrame(keys, columns=["setting", "seed", "key"])
    runs = wanted[wanted.key.isin(list(by_run))]
    runs = runs.assign(row=pd.Series([by_run[key] for key in runs.key], runs.index, dtype=object))
    runs["result"] = [domain.measure.of(row) for row in runs.row]
    runs["held_out"] = [_held_out(domain, row) for row in runs.row]
    of_runs = runs.groupby("setting")
    entries = wanted.groupby("setting", sort=False).agg(wanted=("seed", "size"))
    entries["settings"] = [json.loads(key) for key in entries.index]
    entries["method"] = [settings["method"] for settings in entries.settings]
    of_others = [[each for each in published if each.is_of(settings)] for settings in entries.settings]
    entries["published"] = pd.Series(of_others, entries.index, dtype=object)
    entries["done"] = of_runs.size().reindex(entries.index, fill_value=0)
    entries["held_out"] = of_runs.held_out.mean()
    entries["compared"] = entries.index.isin(list(_compared(domain, entries, runs)))
    entries["task"] = task_labels(domain, entries.settings)
    of_tasks = entries[entries.compared].groupby("task").settings
    entries["label"] = pd.concat([pd.Series(dtype=object), *(method_labels(domain, settings) for _, settings in of_tasks)])
    of_settings = entries[["settings", "method", "published", "compared", "task", "label"]]
    return Section(domain, name, title, entries, runs.join(of_settings, "setting"))


def _held_out(domain: Domain, row: Row) -> float:
    """The least of the metric that chooses learning rates over a run's intervals; infinite where none is finite."""
    values = row["history"][domain.style.chosen_by] if domain.style.chosen_by else []
    return min((value for value in values if value is not None and math.isfinite(value)), default=math.inf)


def _compared(domain: Domain, entries: pd.DataFrame, runs: pd.DataFrame) -> Iterator[str]:
    """All settings, or those whose learning rate was the best on held-out data, where the domain chooses by them.

    Of settings that differ in their learning rate alone, it is the one with the least mean over the seeds that all of them
    with any runs have.
    """
    if domain.style.chosen_by is None:
        yield from entries.index
        return
    held_out = runs.pivot(index="seed", columns="setting", values="held_out")
    others = [json.dumps({**settings, "learning_rate": None}) for settings in entries.settings]
    for _, alike in entries.groupby(others, sort=False):
        tried = held_out[[setting for setting in alike.index if setting in held_out]]
        common = tried.dropna()
        means = (tried if common.empty else common).mean()
        yield alike.index[0] if means.empty else str(means.idxmin())


def closest(settings: Mapping[str, Any], candidates: pd.Series) -> Any:
    """The index of the candidate with the most settings in common, so the same learning rate if one has it; None of none."""
    alike = [sum(other[name] == value for name, value in settings.items()) for other in candidates]
    return candidates.index[alike.index(max(alike))] if alike else None


def baseline_and_tb(domain: Domain, runs: pd.DataFrame) -> tuple[int, str, str] | None:
    """The first seed that the baseline and TB after it both have in these runs of a task, and their labels.

    Where there are several TBs, it is the usual one: the baseline reads no setting of TB, so it has the defaults, and these
    are the paper's.
    """
    baseline, seeds = domain.style.baseline, runs.groupby("label").seed.agg(list)
    entries = runs.drop_duplicates("label").set_index("label")
    after = [str(label) for label, of in entries.method.items() if is_balanced(of) and base_of(of) == baseline]
    for label in map(str, entries.index[entries.method == baseline]):
        common = {other: [seed for seed in seeds[label] if seed in seeds[other]] for other in after}
        tb = closest(entries.settings[label], entries.settings[[other for other in after if common[other]]])
        if tb is not None:
            return common[tb][0], label, tb
    return None


def comparisons(section: Section) -> pd.DataFrame:
    """Every method against the task's baseline, TB after another method against that alone, and TB against its controls.

    A line for each two settings of a task that both have runs: `task`, `method`, `label`, `against` and the columns of
    `Paired`, which are NaN, but for `seeds`, where fewer than two seeds are common.
    """
    found = []
    for task, entries in section.entries[section.entries.compared].groupby("task", sort=False):
        for setting, entry in entries.iterrows():
            for other in _compared_with(section.domain, entry, entries.drop(index=setting)):
                if entry.done and entries.done[other]:
                    ours, theirs = section.results(str(setting)), section.results(other)
                    result = paired(ours, theirs, section.domain.measure.higher_is_better)
                    tested = result._asdict() if result else {"seeds": len(ours.index.intersection(theirs.index))}
                    names = dict(task=task, method=entry.method, label=entry.label, against=entries.label[other])
                    found.append({**names, **tested})
    return pd.DataFrame(found, columns=["task", "method", "label", "against", *Paired._fields])


def _compared_with(domain: Domain, entry: pd.Series, others: pd.DataFrame) -> Iterator[Any]:
    baseline = domain.style.baseline
    for method in dict.fromkeys((baseline, base_of(entry.method))):
        against = closest(entry.settings, others.settings[others.method == method])
        if against is not None and entry.method not in (baseline, method):
            yield against
    if is_balanced(entry.method) and entry.settings["control"] == "none":
        differs = lambda other: {name for name, value in entry.settings.items() if other[name] != value}
        yield from (key for key, settings in others.settings.items() if differs(settings) == {"control"})
