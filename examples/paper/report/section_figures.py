"""Which figures a section of the report has: results, and for the first tasks the layers of the baseline's and TB's runs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from examples.paper.domain import Domain
from examples.paper.report import layer_figures, result_figures, spectrum_figures
from examples.paper.report.alphas import balanced_layers, pooled
from examples.paper.report.sections import Section, baseline_and_tb

Drawn = dict[tuple[str, ...], Path]
"""Where each figure of layers is that has been drawn: grids share runs, and each figure is drawn once."""

_Figure = tuple[str, str, str, pd.DataFrame, Callable[..., None]]
"""Name, title, what it shows, the runs that it shows, and what draws it, of the title, the runs and a path."""

_MOST_TASKS = 2
_MOST_METHODS = 4


def section_figures(section: Section, out: Path, drawn: Drawn) -> Iterator[tuple[Path, str]]:
    """Draws what is not drawn yet, and gives each one's path and what it shows."""
    domain, measure, runs = section.domain, section.domain.measure, section.runs
    path = out / f"{section.name}-{measure.title.split()[-1]}.png"
    means = [next((figure.mean for figure in figures), float("nan")) for figures in runs.published]
    compared = runs.assign(published=means)[runs.compared]
    result_figures.result_bars(section.title, compared, measure.title + ", %" * measure.percent, path)
    yield path, f"{section.title}: {measure.title} of each method, with a dot for each seed"
    pairs = [(task, of, pair) for task, of in section.tasks() if (pair := baseline_and_tb(domain, of)) is not None]
    for number, (task, of, (seed, *pair)) in enumerate(pairs[:_MOST_TASKS], 1):
        all_seeds = _all_seeds_figures(domain, task, of, pair)
        for name, title, says, shown, draw in (*all_seeds, *_one_seed_figures(domain, task, of[of.seed == seed], pair)):
            key = (name, title, *shown.key)
            if key not in drawn:
                drawn[key] = out / f"{section.name}-{number}-{name}.png"
                draw(title, shown, path=drawn[key])
            yield drawn[key], f"{title}: {says}"


def _all_seeds_figures(domain: Domain, task: str, runs: pd.DataFrame, pair: Sequence[str]) -> Iterator[_Figure]:
    draw = lambda title, runs, path: result_figures.alpha_distributions(title, pooled(runs), path)
    says = "final alphas of the balanced layers under each method; median, mean, and every layer"
    yield "alphas", f"{task}, {_seeds(runs)}", says, runs, draw
    both, two = pd.concat([runs[runs.label == label] for label in pair]), " and ".join(pair)
    says = f"final alphas of the balanced layers under {two}, means and deviations over the seeds"
    yield "layers", task, says, both, result_figures.alphas_by_layer
    says = f"deviation of alpha over the balanced layers, over the {domain.interval}s, each seed under {two}"
    yield "deviations", task, says, both, partial(result_figures.deviations_over_intervals, interval=domain.interval)
    few = layer_figures.two_layers(balanced_layers(both.row))
    if few:
        which = "" if few == layer_figures.NAMED else ": this network has not the paper's two"
        says = f"learning rate and alpha of {' and '.join(few)} over the {domain.interval}s, {two}{which}"
        draw = partial(layer_figures.two_layers_figure, layers=few, interval=domain.interval)
        yield "pair", f"{task}, {_seeds(both)}", says, both, draw


def _one_seed_figures(domain: Domain, task: str, runs: pd.DataFrame, pair: Sequence[str]) -> Iterator[_Figure]:
    title, two, interval = f"{task}, {_seeds(runs)}", " and ".join(pair), domain.interval
    both = pd.concat([runs[runs.label == label] for label in pair])
    methods = pd.concat([both, runs[~runs.method.isin(both.method)].drop_duplicates("method")])[:_MOST_METHODS]
    draw = partial(layer_figures.layers_figure, quantities=layer_figures.QUANTITIES, interval=interval)
    yield "training", title, f"alpha and learning rate of each layer over the {interval}s, {two}", both, draw
    draw = partial(layer_figures.gradient_figure, interval=interval)
    yield "gradients", title, f"gradient norm of each layer over the {interval}s by method", methods, draw
    if all("gradient_norms_within" in row["history"] for row in both.row):  # older runs have none
        says = f"largest, mean and least gradient norm within the first {interval}s, {two}"
        yield "norms", title, says, both, partial(layer_figures.norms_figure, interval=interval)
        says = f"gradient norms of the layers at iterations of {interval} 1, {two}"
        yield "histograms", title, says, both, layer_figures.histograms_figure
    layer = spectrum_figures.logged_weight(both.row)
    if layer is not None:
        says = f"spectrum of {layer} within the first {interval} and after, {two}"
        yield "weight", title, says, both, partial(spectrum_figures.weight_figure, interval=interval)
    shown = [layer for layer in balanced_layers(runs.row) if all(layer in row["spectra"] for row in both.row)]
    if shown:
        few = [shown[index] for index in sorted({0, len(shown) // 2, len(shown) - 1})]
        draw = partial(spectrum_figures.spectra_figure, layers=few)
        yield "spectra", title, f"final spectra of a few layers with the fitted tails, {two}", both, draw


def _seeds(runs: pd.DataFrame) -> str:
    seeds = sorted(runs.seed.unique())
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
