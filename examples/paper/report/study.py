"""The command that reports on the study in docs/study.md: chosen learning rates, results, and corrected comparisons."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import rich.console
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.paper.domain import Domain
from examples.paper.errors import UserError, telling_errors
from examples.paper.grids import load_grid
from examples.paper.report.statistics import LEVEL, detectable_difference, paired
from examples.paper.report.tables import markdown, p_value
from examples.paper.results import Row, read_results, setting_key
from examples.paper.settings import RunSettings

SELECTION_SEEDS = (1, 2)
"""The seeds whose validation loss chooses the learning rate, in language."""

Pairs: TypeAlias = tuple[tuple[str, str], ...]
"""Methods that are compared: the second is subtracted from the first."""


class Part(NamedTuple):
    """The study's part on a task."""

    methods: tuple[str, ...]
    """In the order of the tables."""
    primary: Pairs
    secondary: Pairs
    measure: str
    """What methods are compared by, in words."""
    result: Callable[[Row], float] | None = None
    """The measure of a run; None for the task's own."""
    validation: Callable[[Row], float] | None = None
    """The loss that chooses among learning rates; None where each method has one rate."""
    secondary_cells: tuple[str, ...] = ()
    """Cells whose comparisons are all secondary."""


_LANGUAGE = ("AdamW", "mean", "shape", "LLR (1, 3)", "reversed", "LLR (1, 5)", "TB (0.5, 1.5)", "shape (1, 5)")
_VISION = ("CAL", "TB", "relative to noise", "shape", "mean", "placebo")
PARTS: Mapping[str, Part] = {
    "language": Part(
        _LANGUAGE,
        primary=(("mean", "AdamW"), ("shape", "mean"), ("LLR (1, 3)", "shape")),
        secondary=(
            *((method, "AdamW") for method in _LANGUAGE[2:]),
            ("LLR (1, 3)", "mean"),
            ("LLR (1, 3)", "reversed"),
            ("LLR (1, 5)", "LLR (1, 3)"),
        ),
        measure="test loss in nats",
        result=lambda row: row["test_loss"],
        validation=lambda row: min(row["history"]["valid_loss"]),
    ),
    "vision": Part(
        _VISION,
        primary=tuple((method, "CAL") for method in _VISION[1:]),
        secondary=(),
        measure="test accuracy in %",
        secondary_cells=("10,000 images of cifar10_jpeg",),
    ),
}


@dataclasses.dataclass(frozen=True)
class StudyReport:
    """Writes the report on the study: README.md with its tables, and a figure of every comparison."""

    results: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[RESULTS ...]")]] = ()
    """Files of results, or folders of *.jsonl; by default the task's folders results and results/study."""
    out: Path | None = None
    """Where to write; by default the task's folder results/study."""


def study_command(domain: Domain, arguments: Sequence[str], program: str) -> None:
    """Writes the report that the command line asks for."""
    command = tyro.cli(StudyReport, prog=program, args=arguments)
    folder = domain.folder / "results" / "study"
    out = command.out or folder
    with telling_errors(out):
        if domain.name not in PARTS:
            raise UserError(f"The study has no part on {domain.name}; give vision or language.")
        rows = read_results(domain, command.results or (folder.parent, folder))
        out.mkdir(parents=True, exist_ok=True)
        write_report(domain, study_runs(domain, rows), out)
    rich.console.Console(highlight=False).print(str(out / "README.md"), soft_wrap=True)


def study_runs(domain: Domain, rows: Sequence[Row]) -> pd.DataFrame:
    """One line a run: cell, method, learning rate, seed, validation loss (language alone), result, seconds."""
    grids = [load_grid(domain, str(path)) for path in sorted((domain.folder / "grids" / "study").glob("*.toml"))]
    cells = {setting_key(settings): grid.title.removeprefix("Study: ") for grid in grids for settings in grid.settings}
    part, lines = PARTS[domain.name], []
    result = part.result or domain.measure.of
    for row in rows:
        settings = domain.settings.of(row["settings"])
        if setting_key(settings) in cells:
            lines.append(
                {
                    "cell": cells[setting_key(settings)],
                    "method": method_label(settings),
                    "learning rate": row["settings"].get("learning_rate"),
                    "seed": settings.seed,
                    "validation": np.nan if part.validation is None else part.validation(row),
                    "result": result(row),
                    "seconds": row["seconds"],
                }
            )
    runs = pd.DataFrame(lines)
    if runs.empty:
        raise UserError("None of these results is of the study; give those of its grids.")
    runs["cell"] = pd.Categorical(runs["cell"], list(dict.fromkeys(cells.values())), ordered=True)
    runs["method"] = pd.Categorical(runs["method"], part.methods, ordered=True)
    return runs


def method_label(settings: RunSettings) -> str:
    """The name of a method in the study."""
    if not settings.balanced:
        return {"adamw": "AdamW", "cal": "CAL"}[settings.method]
    ranged = f"({settings.min_scale:g}, {settings.max_scale:g})"
    if settings.control != "none":
        wide = settings.control == "shape" and settings.max_scale == 5
        return f"{settings.control} {ranged}" if wide else settings.control
    if settings.greatest_ends:
        return f"LLR {ranged}"
    if settings.metric == "relative_to_noise":
        return "relative to noise"
    return "TB" if settings.method == "tb" else f"TB {ranged}"


def chosen_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """For each cell and method: the mean validation loss at each learning rate, and which rate has the least."""
    selection = runs[runs["seed"].isin(SELECTION_SEEDS)]
    means = selection.groupby(["cell", "method", "learning rate"], observed=True)["validation"].mean().reset_index()
    of_each = means.groupby(["cell", "method"], observed=True)["validation"]
    means["chosen"] = means["validation"] == of_each.transform("min")
    return means


def results_at_chosen_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs at each method's chosen learning rate; all runs where a method has one rate in a cell."""
    if runs["validation"].isna().all():
        return runs
    rates = chosen_rates(runs)
    return runs.merge(rates[rates["chosen"]][["cell", "method", "learning rate"]])


def compare(results: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, higher_is_better: bool, holm: bool) -> pd.DataFrame:
    """Paired t tests by seed in every cell that has both methods; with Holm's correction for the number of tests."""
    lines = []
    for cell, of_cell in results.groupby("cell", observed=True):
        values = of_cell.set_index(["method", "seed"])["result"].unstack("method")
        for first, second in pairs:
            if first not in values or second not in values:
                continue
            found = paired(values[first].dropna(), values[second].dropna(), higher_is_better)
            if found is not None:
                lines.append({"cell": cell, "first": first, "second": second, **found._asdict()})
    table = pd.DataFrame(lines)
    if holm and not table.empty:
        table["corrected p"] = holm_corrected(table["p"].to_numpy())
        strictest = LEVEL / len(table)
        table["detectable"] *= [
            detectable_difference(1.0, seeds, strictest) / detectable_difference(1.0, seeds) for seeds in table["seeds"]
        ]
    return table


def holm_corrected(p: np.ndarray) -> np.ndarray:
    """Holm (1979): the k-th smallest of n values times `n - k + 1`, never below the one before it, at most 1."""
    order = np.argsort(p)
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return corrected[np.argsort(order)]


def write_report(domain: Domain, runs: pd.DataFrame, out: Path) -> None:
    """Writes README.md and comparisons.png."""
    results = results_at_chosen_rates(runs)
    part, better = PARTS[domain.name], domain.measure.higher_is_better
    in_secondary_cell = results["cell"].isin(part.secondary_cells)
    tested = compare(results[~in_secondary_cell], part.primary, higher_is_better=better, holm=True)
    others = pd.concat(
        [
            compare(results[~in_secondary_cell], part.secondary, higher_is_better=better, holm=False),
            compare(results[in_secondary_cell], part.primary, higher_is_better=better, holm=False),
        ]
    )
    picture, one_axis = out / "comparisons.png", not part.secondary_cells
    draw_comparisons(pd.concat([tested, others]), part.measure, picture, share_axis=one_axis)
    parts = list(_parts(domain, runs, results, tested, others))
    (out / "README.md").write_text("\n\n".join(parts) + "\n")


def _parts(
    domain: Domain, runs: pd.DataFrame, results: pd.DataFrame, tested: pd.DataFrame, others: pd.DataFrame
) -> Iterator[str]:
    part = PARTS[domain.name]
    measure = part.measure
    yield f"# Study: {domain.name}"
    yield (
        "The plan is in `docs/study.md`. This file is written by `python -m examples.paper "
        f"{domain.name} study`, from {len(runs)} runs, {runs['seconds'].sum() / 3600:.1f} h of training on one core each."
    )
    yield "## Primary comparisons"
    yield f"The {measure}, paired by seed; p is corrected by Holm's method for {len(tested)} comparisons."
    yield _comparison_table(tested)
    if not others.empty:
        yield "## Secondary comparisons"
        yield "Intervals and p without correction."
        yield _comparison_table(others)
    yield f"![Differences of the {measure} with 95% intervals, by cell](comparisons.png)"
    yield "Blue: found after correction. Orange: primary and not found. Gray: secondary."
    yield "## Results"
    yield f"The {measure}: mean ± sample standard deviation over the seeds, at the chosen learning rate."
    of_each = results.groupby(["cell", "method"], observed=True)
    table = of_each.agg(
        rate=("learning rate", "first"), seeds=("seed", "count"), mean=("result", "mean"), sd=("result", "std")
    )
    table[measure] = [f"{mean:.4f} ± {sd:.4f}" for mean, sd in zip(table.pop("mean"), table.pop("sd"), strict=True)]
    yield markdown(table.reset_index().rename(columns={"rate": "learning rate"}))
    if part.validation is not None:
        yield "## Learning rates"
        yield "Mean validation loss of the seeds 1 and 2; the chosen rate in bold."
        rates = chosen_rates(runs)
        told = [f"**{value:.4f}**" if best else f"{value:.4f}" for value, best in rates[["validation", "chosen"]].to_numpy()]
        rates["told"] = [f"{rate:g}: {text}" for rate, text in zip(rates["learning rate"], told, strict=True)]
        joined = rates.groupby(["cell", "method"], observed=True)["told"].agg(", ".join)
        yield markdown(joined.reset_index(name="learning rate: validation loss"))


def _comparison_table(table: pd.DataFrame) -> str:
    interval = [f"{low:+.4f} to {high:+.4f}" for low, high in zip(table["low"], table["high"], strict=True)]
    shown = pd.DataFrame(
        {
            "cell": table["cell"],
            "comparison": table["first"].astype(str) + " minus " + table["second"].astype(str),
            "seeds": table["seeds"],
            "difference": table["difference"].map("{:+.4f}".format),
            "95% interval": interval,
        }
    )
    for name in ("p", "corrected p"):
        if name in table:
            shown[name] = table[name].map(p_value)
    shown["detectable"] = table["detectable"].map("{:.4f}".format)
    return markdown(shown)


def draw_comparisons(table: pd.DataFrame, measure: str, path: Path, *, share_axis: bool) -> None:
    """One panel a cell: each difference with its 95% interval.

    Blue: found after correction. Orange: a primary comparison that is not found. Gray: secondary.
    """
    cells = list(dict.fromkeys(table["cell"]))
    count = int(table.groupby("cell", observed=True).size().max())
    columns = min(2, len(cells))
    lines = -(-len(cells) // columns)
    figure = Figure(figsize=(5.2 * columns, lines * (1.0 + 0.25 * count)), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=share_axis, squeeze=False).ravel()
    for axes, cell in zip(panels, cells, strict=False):
        of_cell = table[table["cell"] == cell].iloc[::-1]
        places = np.arange(len(of_cell))
        corrected = of_cell.get("corrected p", pd.Series(np.nan, of_cell.index)).to_numpy(float)
        colors = np.where(np.isnan(corrected), "gray", np.where(corrected < LEVEL, "C0", "C1"))
        axes.hlines(places, of_cell["low"], of_cell["high"], colors=list(colors), linewidth=2)
        axes.scatter(of_cell["difference"], places, c=list(colors), zorder=3)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(places, [f"{first} - {second}" for first, second in of_cell[["first", "second"]].to_numpy()])
        axes.set_title(cell, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    for axes in panels[-columns:]:
        axes.set_xlabel(f"difference of the {measure}")
    figure.savefig(path, dpi=120)
