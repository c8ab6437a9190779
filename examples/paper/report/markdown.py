"""The command that makes tables, tests and figures of a domain's results."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import rich.console
import tyro

from examples.paper.domain import Domain
from examples.paper.errors import UserError, telling_errors
from examples.paper.grids import load_grid, ready_grids
from examples.paper.report.alphas import Agreement, agreements, pooled_by_task, spreads
from examples.paper.report.published import Published, figures_of, read_published
from examples.paper.report.section_figures import Drawn, section_figures
from examples.paper.report.sections import Comparison, Entry, Section, Task, comparisons, other_runs, sections_of
from examples.paper.report.statistics import Paired, mean_and_deviation, p_of_equal_means
from examples.paper.report.violins import alpha_distributions
from examples.paper.report.wording import column_title, columns, in_common, method_name, varying
from examples.paper.results import Row, read_results

_DASH = "—"


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes a report on results: README.md, and the figures that it shows.

    For each grid: a table of results, paired comparisons with the baseline, how far apart the layers' alphas ended, and
    figures like the paper's.
    """

    results: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[RESULTS ...]")]] = ()
    """Files of results, or folders of *.jsonl; by default the committed ones."""
    grids: tuple[str, ...] = ()
    """Ready grids or TOML files; by default all ready ones, and the runs that are in none of them."""
    out: Path | None = None
    """Where to write; by default the folder report beside the first results."""


def report_command(domain: Domain, arguments: Sequence[str], program: str) -> None:
    """Writes the report that the command line asks for."""
    command = tyro.cli(Report, prog=program, args=arguments)
    if not command.results:
        command = dataclasses.replace(command, results=(domain.folder / "results",))
    with telling_errors(_out(command)):
        path = report(domain, command)
    rich.console.Console(highlight=False).print(str(path), soft_wrap=True)


def report(domain: Domain, command: Report) -> Path:
    """Writes the report and returns the path of its README.md.

    Raises:
      UserError: there are no such results or grids, or two grids have one name.
    """
    published = read_published(domain)
    rows = read_results(domain, command.results)
    grids = [load_grid(domain, name) for name in command.grids or ready_grids(domain)]
    names = [grid.name for grid in grids]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--grids: two are called {twice}, and figures have their grid's name; rename a file.")
    sections, others = sections_of(domain, grids, rows)
    if others and not command.grids:
        sections.append(other_runs(domain, others))
        others = []
    out = _out(command)
    out.mkdir(parents=True, exist_ok=True)
    parts = [*_introduction(domain, sections)]
    drawn: Drawn = {}
    for section in sections:
        if section.rows():
            parts += [f"## {section.title}", *_section(section, published, out, drawn)]
    parts += [*domain.style.appendix(out), *_figure12(domain, rows, out)]
    for section in sections:
        if not section.rows():
            parts += _published_only(section, published)
    parts += [*_not_run(sections), *_provenance(rows)]
    if others:
        parts.append(f"{_number(len(others), 'more run')} {'is' if len(others) == 1 else 'are'} in none of these grids.")
    path = out / "README.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def _out(command: Report) -> Path:
    if command.out is not None:
        return command.out
    first = command.results[0]
    return (first.parent if first.suffix == ".jsonl" else first) / "report"


def _introduction(domain: Domain, sections: Iterable[Section]) -> Iterator[str]:
    tested = sum(comparison.result is not None for section in sections for comparison in comparisons(section))
    yield "# Results"
    yield (
        f"The {domain.measure.title} at the end of runs{', in percent' * domain.measure.percent}: mean ± sample standard "
        f"deviation over the seeds. Data sets are called by their own names. {domain.style.introduction} There "
        f"{'is' if tested == 1 else 'are'} {_number(tested, 'paired comparison')} below, with no correction for their "
        "number: between equals, one in twenty would be told apart by chance."
    )
    yield (
        "*Published* has what `published.jsonl` holds for a setting: the paper's tables, means and deviations over seeds, "
        "and what the authors' code gave in a setting that was run with it. Grids of which nothing has been run have their "
        "tables below ours. To add a figure, append a line with its source, the settings that make out the run, mean, "
        "deviation and number of seeds."
    )


def _section(section: Section, published: Sequence[Published], out: Path, drawn: Drawn) -> Iterator[str]:
    yield f"In all, where it applies: {in_common(section.domain, [entry.settings for entry in section.entries])}."
    yield from _results(section, published)
    yield from _tests(section.domain, comparisons(section))
    yield from _spreads(section)
    yield from _agreements(section, published)
    yield from _notes(section)
    for path, says in section_figures(section, published, out, drawn):
        yield f"![{says}]({path.name})"


def _results(section: Section, published: Sequence[Published]) -> Iterator[str]:
    among = [entry.settings for entry in section.entries]
    names = list(dict.fromkeys(("model", *varying(section.domain, among))))
    sources: dict[str, int] = {}
    chosen_by, compared = section.domain.style.chosen_by, section.compared()
    cells = []
    for entry in section.entries:
        texts = columns(section.domain, entry.settings)
        figures = figures_of(entry.settings, published)
        marks = [sources.setdefault(figure.source, len(sources) + 1) for figure in figures]
        told = [f"{_spread(each.mean, each.deviation)} [{mark}]" for each, mark in zip(figures, marks, strict=True)]
        differences = [_minus_published(entry, each) for each in figures]
        cells.append(
            [
                *(texts.get(name, "") for name in names),
                method_name(section.domain, entry.settings["method"]),
                f"{len(entry.rows)}/{entry.wanted}",
                *([] if chosen_by is None else [_held_out(entry, chosen_by, entry in compared)]),
                _result(entry),
                ", ".join(told) or _DASH,
                ", ".join(differences) or _DASH,
            ]
        )
    title = lambda name: column_title(section.domain, name)
    of_ours = [section.domain.measure.title] if chosen_by is None else [title(chosen_by), section.domain.measure.title]
    yield _table((*map(title, names), "method", "runs", *of_ours, "published", "ours - published"), cells)
    if chosen_by is not None and len(compared) < len(section.entries):
        yield (
            f"The {title(chosen_by)} is the least of a run, the mean over its seeds. In bold: of each method's learning "
            "rates the one with the least, over the seeds that all of them have. All below is of these."
        )
    if sources:
        listed = "; ".join(f"[{mark}] {source}" for source, mark in sources.items())
        welch = " The differences' p is Welch's t test's, uncorrected." if section.rows() else ""
        yield f"Published: {listed}.{welch}"


def _held_out(entry: Entry, metric: str, compared: bool) -> str:
    if not entry.rows:
        return _DASH
    told = f"{entry.held_out(metric, entry.rows):.3f}"
    return f"**{told}**" if compared else told


def _result(entry: Entry) -> str:
    return _spread(*mean_and_deviation(list(entry.results.values()))) if entry.rows else "not run"


def _minus_published(entry: Entry, figure: Published) -> str:
    if not entry.rows:
        return _DASH
    values = list(entry.results.values())
    difference = mean_and_deviation(values)[0] - figure.mean
    p = p_of_equal_means(values, figure.mean, figure.deviation, figure.seeds)
    return f"{difference:+.2f}" if p is None else f"{difference:+.2f} (p {_p(p)})"


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _tests(domain: Domain, found: Sequence[Comparison]) -> Iterator[str]:
    if not found:
        return
    tested = sum(comparison.result is not None for comparison in found)
    lower = "" if domain.measure.higher_is_better else ", and lower is better"
    yield (
        f"Paired by seed, {_number(tested, 'comparison')}, uncorrected; {_which_rates(domain)}. "
        f"Differences are in points{lower}; *detectable* is the smallest "
        "true difference that so many seeds find at 5% with 80% power, if differences scatter as these do."
    )
    cells = []
    for comparison in found:
        result, named = comparison.result, (comparison.task, f"{comparison.label} against {comparison.against}")
        if result is None:
            cells.append([*named, str(comparison.seeds), *[_DASH] * 4, "needs 2 seeds that both have"])
            continue
        cells.append(
            [
                *named,
                str(result.seeds),
                f"{result.difference:+.2f}",
                f"{result.low:+.2f} to {result.high:+.2f}",
                _p(result.p),
                f"{result.detectable:.2f}",
                _in_words(domain, comparison.method, result),
            ]
        )
    yield _table(("task", "compared", "seeds", "difference", "95% interval", "p", "detectable", ""), cells)


def _which_rates(domain: Domain) -> str:
    if domain.style.chosen_by is not None:
        return "each at its own learning rate, the best on validation"
    return f"with the {method_name(domain, domain.style.baseline)} of the same learning rate where the grid has one"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _in_words(domain: Domain, method: str, result: Paired) -> str:
    told = result.verdict
    return told if told == "not told apart" else f"{method_name(domain, method)} is {told}"


def _spreads(section: Section) -> Iterator[str]:
    """Of the final alphas over the balanced layers."""
    cells = []
    for task in section.tasks():
        methods = {entry.settings["method"] for entry in task.entries.values() if entry.rows}
        if section.domain.style.baseline not in methods or not any(
            entry.is_tempbalance() and entry.rows for entry in task.entries.values()
        ):
            continue
        cells += list(_spread_cells(task))
    base = method_name(section.domain, section.domain.style.baseline)
    if cells:
        yield (
            "How far apart the balanced layers' alphas ended: the largest minus the smallest, and their standard "
            f"deviation over the layers; means over the seeds. Then how much larger the deviation is than {base}'s, with "
            "the 95% interval of a paired t test; and the same over the larger layers alone, of more eigenvalues than the "
            "median layer: alphas of few eigenvalues scatter most."
        )
        titles = ("task", "method", "seeds", "largest - smallest", "deviation", f"minus {base}'s", "in larger layers")
        yield _table(titles, cells)


def _spread_cells(task: Task) -> Iterator[list[str]]:
    for method, seeds, extent, deviation, *against in spreads(task):
        minus = [
            _DASH if each is None else f"{each.difference:+.3f} ({each.low:+.3f} to {each.high:+.3f})" for each in against
        ]
        yield [task.label, method, str(seeds), f"{extent:.3f}", f"{deviation:.3f}", *minus]


def _agreements(section: Section, published: Sequence[Published]) -> Iterator[str]:
    """Of the final alphas with published ones."""
    found = [_agreement_cells(task, each) for task in section.tasks() for each in agreements(task, published)]
    if found:
        yield (
            "Final alphas beside the published, layer by layer, all layers: means over the seeds, ours minus the published; "
            "and the largest minus the smallest of the balanced layers' means."
        )
        titles = ("task", "method", "layers", "mean difference", "mean size", "largest", "ours", "published")
        yield _table(titles, found)


def _agreement_cells(task: Task, agreement: Agreement) -> list[str]:
    differences = agreement.differences
    sizes = {layer: abs(difference) for layer, difference in differences.items()}
    mean = lambda values: sum(values) / len(values)
    layer = max(sizes, key=lambda layer: sizes[layer])
    return [
        task.label,
        agreement.method,
        str(len(differences)),
        f"{mean(differences.values()):+.3f}",
        f"{mean(sizes.values()):.3f}",
        f"{differences[layer]:+.2f} ({layer})",
        *(f"{extent:.2f}" for extent in agreement.extents),
    ]


def _notes(section: Section) -> Iterator[str]:
    """What lines of results say of themselves, each note once."""
    rows = section.rows()
    for note in dict.fromkeys(row["note"] for row in rows if "note" in row):
        methods = {row["settings"]["method"]: None for row in rows if row.get("note") == note}
        names = " and ".join(method_name(section.domain, method) for method in methods)
        yield f"Note on the runs of {names}: {note}"


def _figure12(domain: Domain, rows: Sequence[Row], out: Path) -> Iterator[str]:
    groups = pooled_by_task(domain, rows)
    if groups:
        path, base = out / "figure12.png", method_name(domain, domain.style.baseline)
        alpha_distributions("Final alphas by network and data set", groups, path)
        yield "## Figure 12: final alphas by network and data set"
        yield f"Of all that {base} and TB after it have both been run on: the balanced layers of all seeds together."
        yield f"![Final alphas of the balanced layers, {base} and TB by network and data set: median, mean]({path.name})"


def _published_only(section: Section, published: Sequence[Published]) -> Iterator[str]:
    """The table of what is published of a grid of which nothing has been run."""
    entries = [entry for entry in section.entries if figures_of(entry.settings, published)]
    if entries:
        yield f"## {section.title}: published, not run here"
        yield f"In all, where it applies: {in_common(section.domain, [entry.settings for entry in entries])}."
        yield from _results(dataclasses.replace(section, entries=entries), published)
        if len(entries) < len(section.entries):
            yield f"Of {_number(len(section.entries) - len(entries), 'more setting')} of the grid nothing is published."


def _not_run(sections: Iterable[Section]) -> Iterator[str]:
    lines = [f"- {section.title} (`{section.name}`): {section.wanted()} runs" for section in sections if not section.rows()]
    if lines:
        yield "## Not run"
        yield "\n".join(lines)


def _provenance(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each kind of provenance: runs may have been trained on different machines and days."""
    if not rows:
        return
    yield "## Where these come from"
    hours = lambda some: (
        f"{len(some)} run{'' if len(some) == 1 else 's'}, {sum(row['seconds'] for row in some) / 3600:.1f} h"
    )
    yield f"{hours(rows)} of training in all."
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        origin = row["provenance"]
        device = origin["device_kind"] + (f", {origin['cores']} cores" if origin["platform"] == "cpu" else "")
        commit = (origin["commit"] or "unknown")[:10] + (" with changes" if origin["changed"] else "")
        versions = ", ".join(f"{package} {version}" for package, version in origin["versions"].items())
        kinds.setdefault(f"{device}; commit {commit}; {versions}", []).append(row)
    lines = []
    for kind, some in kinds.items():
        dates = sorted({row["provenance"]["date"][:10] for row in some})
        lines.append(f"- {hours(some)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}: {kind}")
    yield "\n".join(lines)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown that reads well as text too."""
    cells = [list(titles), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])
