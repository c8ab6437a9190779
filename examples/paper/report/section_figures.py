"""Which figures a section of the report has: results, and for the first tasks the layers of the baseline's and TB's runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from examples.paper.domain import Domain
from examples.paper.report.alphas import alphas_over_seeds, balanced_layers, deviations_by_epoch, pooled
from examples.paper.report.few_layers import NAMED, two_layers, two_layers_figure
from examples.paper.report.figures import (
    Bar,
    LayerAlphas,
    alphas_by_layer,
    deviations_over_intervals,
    result_bars,
)
from examples.paper.report.gradient_figures import histograms_figure, norms_figure, told
from examples.paper.report.layer_figures import gradient_figure, spectra_figure, training_figure
from examples.paper.report.published import Published, figures_of
from examples.paper.report.sections import Section, Task, baseline_and_tb
from examples.paper.report.violins import alpha_distributions
from examples.paper.report.weight_figure import tells_spectra, weight_figure
from examples.paper.results import Row, run_key

Drawn = dict[tuple[str, ...], Path]
"""Where each figure of layers is that has been drawn: grids share runs, and each figure is drawn once."""

_MOST_TASKS = 2
_MOST_METHODS = 4


def section_figures(section: Section, published: Sequence[Published], out: Path, drawn: Drawn) -> Iterator[tuple[Path, str]]:
    """Draws what is not drawn yet, and gives each one's path and what it shows."""
    panels = {task.label: _bars(task, published) for task in section.tasks()}
    measure = section.domain.measure
    path = out / f"{section.name}-{measure.title.split()[-1]}.png"
    label = measure.title + ", %" * measure.percent
    result_bars(section.title, {label: bars for label, bars in panels.items() if bars}, label, path)
    yield path, f"{section.title}: {measure.title} of each method, with a dot for each seed"
    pairs = [(task, pair) for task in section.tasks() if (pair := baseline_and_tb(task)) is not None]
    for number, (task, (seed, base, balanced)) in enumerate(pairs[:_MOST_TASKS], 1):
        start = out / f"{section.name}-{number}"
        yield _distribution_figure(section.domain, task, start, drawn)
        yield from _all_seeds_figures(section.domain, task, (base, balanced), published, start, drawn)
        yield from _one_seed_figures(section.domain, task, seed, (base, balanced), start, drawn)


def _distribution_figure(domain: Domain, task: Task, start: Path, drawn: Drawn) -> tuple[Path, str]:
    methods = {label: list(entry.rows.values()) for label, entry in task.entries.items() if entry.rows}
    rows = [row for of in methods.values() for row in of]
    title = f"{task.label}, {_seeds(rows)}"
    draw = lambda path: alpha_distributions(title, {"": pooled(methods)}, path)
    path = _once(domain, start, drawn, title, balanced_layers(rows), "alphas", rows, draw)
    return path, f"{title}: final alphas of the balanced layers under each method; median, mean, and every layer"


def _seeds(rows: Iterable[Row]) -> str:
    seeds = sorted({row["settings"]["seed"] for row in rows})
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def _bars(task: Task, published: Sequence[Published]) -> dict[str, Bar]:
    bars = {}
    for label, entry in task.entries.items():
        if entry.rows:
            figures = figures_of(entry.settings, published)
            bars[label] = Bar(list(entry.results.values()), figures[0].mean if figures else None)
    return bars


def _all_seeds_figures(
    domain: Domain, task: Task, pair: tuple[str, str], published: Sequence[Published], start: Path, drawn: Drawn
) -> Iterator[tuple[Path, str]]:
    entries = {label: task.entries[label] for label in pair}
    rows = [row for entry in entries.values() for row in entry.rows.values()]
    layers = balanced_layers(rows)
    methods = {}
    for label, entry in entries.items():
        alphas = next((figure.alphas for figure in figures_of(entry.settings, published) if figure.alphas), {})
        methods[label] = LayerAlphas(alphas_over_seeds(list(entry.rows.values()), layers), alphas)
    both, interval = " and ".join(pair), domain.interval
    once = partial(_once, domain, start, drawn, task.label, layers)
    title = f"{task.label}, mean and deviation over the seeds"
    path = once("layers", rows, lambda path: alphas_by_layer(title, methods, layers, path))
    yield path, f"{task.label}: final alphas of the balanced layers under {both}, means and deviations over the seeds"
    deviations = {
        label: [deviations_by_epoch(row, layers) for row in entry.rows.values()] for label, entry in entries.items()
    }
    path = once(
        "deviations", rows, lambda path: deviations_over_intervals(f"{task.label}, each seed", deviations, interval, path)
    )
    yield path, f"{task.label}: deviation of alpha over the balanced layers, over the {interval}s, each seed under {both}"
    few = two_layers(layers)
    if few:
        runs = {label: list(entry.rows.values()) for label, entry in entries.items()}
        title = f"{task.label}, {_seeds(rows)}"
        path = once("pair", rows, lambda path: two_layers_figure(title, runs, few, interval, path))
        which = "" if few == NAMED else ": this network has not the paper's two"
        yield path, f"{title}: learning rate and alpha of {' and '.join(few)} over the {interval}s, {both}{which}"


def _one_seed_figures(
    domain: Domain, task: Task, seed: int, pair: tuple[str, str], start: Path, drawn: Drawn
) -> Iterator[tuple[Path, str]]:
    runs = {label: entry.rows[seed] for label, entry in task.entries.items() if seed in entry.rows}
    both, two, interval = {label: runs[label] for label in pair}, " and ".join(pair), domain.interval
    methods = _first_of_each_method(task, runs, both)
    layers = balanced_layers(list(runs.values()))
    title = f"{task.label}, seed {seed}"
    shown = [layer for layer in layers if all(layer in row["spectra"] for row in both.values())]
    few = [shown[index] for index in sorted({0, len(shown) // 2, len(shown) - 1})] if shown else []

    once = partial(_once, domain, start, drawn, title, layers)
    path = once("training", both.values(), lambda path: training_figure(title, both, layers, interval, path))
    yield path, f"{title}: alpha and learning rate of each layer over the {interval}s, {two}"
    path = once("gradients", methods.values(), lambda path: gradient_figure(title, methods, layers, interval, path))
    yield path, f"{title}: gradient norm of each layer over the {interval}s by method"
    if told(list(both.values())):
        path = once("norms", both.values(), lambda path: norms_figure(title, both, layers, interval, path))
        yield path, f"{title}: largest, mean and least gradient norm within the first {interval}s, {two}"
        path = once("histograms", both.values(), lambda path: histograms_figure(title, both, layers, path))
        yield path, f"{title}: gradient norms of the layers at iterations of {interval} 1, {two}"
    if tells_spectra(list(both.values())):
        layer = both[pair[0]]["history"]["spectra_within"]["layer"]
        path = once("weight", both.values(), lambda path: weight_figure(f"{title}: {layer}", both, interval, path))
        yield path, f"{title}: spectrum of {layer} within the first {interval} and after, {two}"
    if few:
        path = once("spectra", both.values(), lambda path: spectra_figure(title, both, few, path))
        yield path, f"{title}: final spectra of a few layers with the fitted tails, {two}"


def _once(
    domain: Domain,
    start: Path,
    drawn: Drawn,
    title: str,
    layers: Sequence[str],
    name: str,
    rows: Iterable[Row],
    draw: Callable[[Path], None],
) -> Path:
    """Where a figure of these runs' layers is; draws it where it has not been drawn."""
    key = (name, title, *layers, *(run_key(domain, row) for row in rows))
    if key not in drawn:
        drawn[key] = start.with_name(f"{start.name}-{name}.png")
        draw(drawn[key])
    return drawn[key]


def _first_of_each_method(task: Task, runs: Mapping[str, Row], pair: Mapping[str, Row]) -> dict[str, Row]:
    """The pair, and the first of each other method."""
    chosen = dict(pair)
    methods = {task.entries[label].settings["method"] for label in pair}
    for label, row in runs.items():
        method = task.entries[label].settings["method"]
        if method not in methods and len(chosen) < _MOST_METHODS:
            methods.add(method)
            chosen[label] = row
    return chosen
