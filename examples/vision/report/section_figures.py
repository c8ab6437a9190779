"""Which figures a section of the report has: accuracies, and for the first tasks the layers of CAL's and TB's runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from examples.vision.report.alphas import alphas_over_seeds, balanced_layers, deviations_by_epoch, final_alphas
from examples.vision.report.figures import (
    Bar,
    LayerAlphas,
    accuracy_bars,
    alpha_distributions,
    alphas_by_layer,
    deviations_over_epochs,
)
from examples.vision.report.layer_figures import gradient_figure, spectra_figure, training_figure
from examples.vision.report.published import Published, figures_of
from examples.vision.report.sections import Entry, Section, Task, closest
from examples.vision.report.statistics import common_seeds
from examples.vision.results import Row, run_key

Drawn = dict[tuple[str, ...], Path]
"""Where each figure of layers is that has been drawn: grids share runs, and each figure is drawn once."""

_MOST_TASKS = 2
_MOST_METHODS = 4


def section_figures(section: Section, published: Sequence[Published], out: Path, drawn: Drawn) -> Iterator[tuple[Path, str]]:
    """Draws what is not drawn yet, and gives each one's path and what it shows."""
    panels = {task.label: _bars(task, published) for task in section.tasks()}
    path = out / f"{section.name}-accuracy.png"
    accuracy_bars(section.title, {label: bars for label, bars in panels.items() if bars}, path)
    yield path, f"{section.title}: test accuracy of each method, with a dot for each seed"
    pairs = [(task, pair) for task in section.tasks() if (pair := _pair(task)) is not None]
    for number, (task, (seed, cal, balanced)) in enumerate(pairs[:_MOST_TASKS], 1):
        start = out / f"{section.name}-{number}"
        yield from _all_seeds_figures(task, (cal, balanced), published, start, drawn)
        yield from _one_seed_figures(task, seed, (cal, balanced), start, drawn)


def _bars(task: Task, published: Sequence[Published]) -> dict[str, Bar]:
    bars = {}
    for label, entry in task.entries.items():
        if entry.rows:
            figures = figures_of(entry.settings, published)
            bars[label] = Bar(list(entry.accuracies.values()), figures[0].mean if figures else None)
    return bars


def _pair(task: Task) -> tuple[int, str, str] | None:
    """The first seed that CAL and TB have both been run with, and their labels; of several TBs, the paper's choice."""
    with_runs = {label: entry for label, entry in task.entries.items() if entry.rows}
    for label, cal in with_runs.items():
        others = [e for e in with_runs.values() if e.settings["method"] == "tb" and common_seeds(cal.rows, e.rows)]
        if cal.settings["method"] == "cal" and others:
            # CAL reads no setting of TB, so it has the defaults, and these are the paper's.
            balanced = closest(cal, others)
            assert balanced is not None
            return common_seeds(cal.rows, balanced.rows)[0], label, _label(task, balanced)
    return None


def _label(task: Task, entry: Entry) -> str:
    return next(label for label, other in task.entries.items() if other is entry)


def _all_seeds_figures(
    task: Task, pair: tuple[str, str], published: Sequence[Published], start: Path, drawn: Drawn
) -> Iterator[tuple[Path, str]]:
    entries = {label: task.entries[label] for label in pair}
    rows = [row for entry in entries.values() for row in entry.rows.values()]
    layers = balanced_layers(rows)
    methods = {}
    for label, entry in entries.items():
        alphas = next((figure.alphas for figure in figures_of(entry.settings, published) if figure.alphas), {})
        methods[label] = LayerAlphas(alphas_over_seeds(list(entry.rows.values()), layers), alphas)
    both = " and ".join(pair)
    once = partial(_once, start, drawn, task.label, layers)
    title = f"{task.label}, mean and deviation over the seeds"
    path = once("layers", rows, lambda path: alphas_by_layer(title, methods, layers, path))
    yield path, f"{task.label}: final alphas of the balanced layers under {both}, means and deviations over the seeds"
    deviations = {
        label: [deviations_by_epoch(row, layers) for row in entry.rows.values()] for label, entry in entries.items()
    }
    path = once("deviations", rows, lambda path: deviations_over_epochs(f"{task.label}, each seed", deviations, path))
    yield path, f"{task.label}: deviation of alpha over the balanced layers, over the epochs, each seed under {both}"


def _one_seed_figures(task: Task, seed: int, pair: tuple[str, str], start: Path, drawn: Drawn) -> Iterator[tuple[Path, str]]:
    runs = {label: entry.rows[seed] for label, entry in task.entries.items() if seed in entry.rows}
    both = {label: runs[label] for label in pair}
    methods = _first_of_each_method(task, runs, both)
    layers = balanced_layers(list(runs.values()))
    title = f"{task.label}, seed {seed}"
    finals = {label: final_alphas(row, layers) for label, row in runs.items()}
    shown = [layer for layer in layers if all(layer in row["spectra"] for row in both.values())]
    few = [shown[index] for index in sorted({0, len(shown) // 2, len(shown) - 1})] if shown else []

    once = partial(_once, start, drawn, title, layers)
    path = once("alphas", runs.values(), lambda path: alpha_distributions(title, finals, path))
    yield path, f"{title}: final alphas of the balanced layers under each method"
    path = once("training", both.values(), lambda path: training_figure(title, both, layers, path))
    yield path, f"{title}: alpha and learning rate of each layer over the epochs, CAL beside TB"
    path = once("gradients", methods.values(), lambda path: gradient_figure(title, methods, layers, path))
    yield path, f"{title}: gradient norm of each layer over the epochs by method"
    if few:
        path = once("spectra", both.values(), lambda path: spectra_figure(title, both, few, path))
        yield path, f"{title}: final spectra of a few layers with the fitted tails, CAL and TB"


def _once(
    start: Path,
    drawn: Drawn,
    title: str,
    layers: Sequence[str],
    name: str,
    rows: Iterable[Row],
    draw: Callable[[Path], None],
) -> Path:
    """Where a figure of these runs' layers is; draws it where it has not been drawn."""
    key = (name, title, *layers, *(run_key(row["settings"]) for row in rows))
    if key not in drawn:
        drawn[key] = start.with_name(f"{start.name}-{name}.png")
        draw(drawn[key])
    return drawn[key]


def _first_of_each_method(task: Task, runs: Mapping[str, Row], pair: Mapping[str, Row]) -> dict[str, Row]:
    """CAL and TB, and the first of each other method."""
    chosen = dict(pair)
    methods = {task.entries[label].settings["method"] for label in pair}
    for label, row in runs.items():
        method = task.entries[label].settings["method"]
        if method not in methods and len(chosen) < _MOST_METHODS:
            methods.add(method)
            chosen[label] = row
    return chosen
