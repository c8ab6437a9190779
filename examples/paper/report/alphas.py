"""Alphas over layers, intervals and seeds: how far apart they ended, and how they agree with published ones."""

from collections.abc import Iterable, Sequence

import pandas as pd

from examples.paper.domain import Domain
from examples.paper.report.sections import Section, baseline_and_tb, closest, other_runs
from examples.paper.report.statistics import paired
from examples.paper.report.wording import method_name
from examples.paper.results import Row
from examples.paper.settings import is_balanced


def layer_history(row: Row, quantity: str, layers: Sequence[str]) -> pd.DataFrame:
    """A run's `alpha`, `scale`, `gradient_norm` or `learning_rate`: a line for each interval, a column for each layer.

    A layer's learning rate is the schedule's at the start of the interval, by the scale in force at its end.
    """
    history = row["history"]
    over_layers = history["scale" if quantity == "learning_rate" else quantity]
    frame = pd.DataFrame({layer: over_layers[layer] for layer in layers}, dtype=float)
    frame.index += 1
    return frame.mul(history["learning_rate"], axis=0) if quantity == "learning_rate" else frame


def balanced_layers(rows: Iterable[Row]) -> list[str]:
    """Those that all these runs balance (some balance the first and the last too), in the network's order."""
    scales = [row["history"]["scale"] for row in rows]
    return [layer for layer in scales[0] if all(layer in of for of in scales)]


def larger_layers(rows: Iterable[Row], layers: Sequence[str]) -> list[str]:
    """Those with more eigenvalues than the median one: alphas of few eigenvalues scatter most."""
    counts = pd.DataFrame([{layer: spectrum["eigenvalues"] for layer, spectrum in row["spectra"].items()} for row in rows])
    counts = counts.reindex(columns=list(layers)).max().fillna(0)  # a layer that diverged has no spectrum
    return list(counts.index[counts > counts.median()])


def final_alphas(runs: pd.DataFrame, layers: Sequence[str]) -> pd.DataFrame:
    """A line for each run, by label and seed, a column for each layer; NaN where a layer had no alpha."""
    alphas = [[row["history"]["alpha"][layer][-1] for layer in layers] for row in runs.row]
    return pd.DataFrame(alphas, pd.MultiIndex.from_frame(runs[["label", "seed"]]), list(layers), dtype=float)


def pooled(runs: pd.DataFrame) -> pd.DataFrame:
    """A line for each final alpha of the layers that all these runs balance: `task`, `label`, `seed`, `layer`, `alpha`."""
    finals = final_alphas(runs, balanced_layers(runs.row)).reset_index().assign(task=runs.task.to_numpy())
    return finals.melt(["task", "label", "seed"], var_name="layer", value_name="alpha")


def pooled_by_task(domain: Domain, rows: Sequence[Row]) -> pd.DataFrame:
    """The final alphas under the baseline and TB, and their `task`: tasks that both have been run on with the same seed."""
    section, found = other_runs(domain, rows), []
    pairs = [(runs, pair) for _, runs in section.tasks() if (pair := baseline_and_tb(domain, runs)) is not None]
    for runs, (_, base, tb) in pairs:
        names = {base: method_name(domain, domain.style.baseline), tb: "TB"}
        found.append(pooled(runs.assign(label=runs.label.map(names)).dropna(subset="label")))
    return pd.concat(found) if found else pd.DataFrame()


def spreads(section: Section) -> pd.DataFrame:
    """How far apart the final alphas of each method's balanced layers are, in tasks that the baseline and TB have run on.

    A line for each method with finite alphas: `task`, `method`, the number of `seeds`, `largest - smallest` and `deviation`
    over the layers, means over the seeds; `minus` is the `Paired` difference of the deviations to the baseline's with the
    closest settings, and `in larger layers` the same over `larger_layers`: None where there is no such comparison.
    """
    baseline, found = section.domain.style.baseline, []
    for task, runs in section.tasks():
        if baseline not in set(runs.method) or not any(map(is_balanced, runs.method)):
            continue
        layers = balanced_layers(runs.row)
        finals = final_alphas(runs, layers)
        extents = (finals.max(axis=1) - finals.min(axis=1)).unstack("label")
        of_layers = (layers, larger_layers(runs.row, layers))
        deviations = [finals[among].std(axis=1, ddof=0).unstack("label") for among in of_layers]  # seeds by methods
        entries = section.entries[section.entries.compared & (section.entries.task == task)].set_index("label")
        bases = entries.settings[entries.method == baseline]
        for label in runs.label.unique():
            own, base = deviations[0][label].dropna(), None if label in bases else closest(entries.settings[label], bases)
            minus = [paired(of[label].dropna(), of[base].dropna()) if base in of else None for of in deviations]
            if not own.empty:
                found.append([task, label, len(own), extents[label].mean(), own.mean(), *minus])
    columns = ["task", "method", "seeds", "largest - smallest", "deviation", "minus", "in larger layers"]
    return pd.DataFrame(found, columns=columns)


def agreements(section: Section) -> pd.DataFrame:
    """Mean final alphas beside published ones, over the layers that both have; a line for each publication of a setting.

    The columns are `task`, `method`, the number of `layers`; `mean difference`, ours minus the published, `mean size` of the
    differences, the `largest` one and its layer (`of`); and the largest minus the smallest of the balanced layers' means,
    `ours` and `published`.
    """
    found = []
    for task, runs in section.tasks():
        for label, of in runs.groupby("label", sort=False):
            for alphas in (figure.alphas for figure in of.published.iloc[0] if figure.alphas):
                layers = [layer for layer in of.row.iloc[0]["history"]["alpha"] if layer in alphas]
                ours, theirs = final_alphas(of, layers).mean(), pd.Series(alphas)[layers]
                sizes, balanced = (ours - theirs).abs(), [layer for layer in balanced_layers(of.row) if layer in alphas]
                largest = str(sizes.idxmax())
                extents = [means[balanced].max() - means[balanced].min() for means in (ours, theirs)]
                told = [(ours - theirs).mean(), sizes.mean(), (ours - theirs)[largest], largest]
                found.append([task, label, len(layers), *told, *extents])
    columns = ["task", "method", "layers", "mean difference", "mean size", "largest", "of", "ours", "published"]
    return pd.DataFrame(found, columns=columns)
