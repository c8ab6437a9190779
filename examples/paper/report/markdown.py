"""The command that makes tables, tests and figures of a domain's results."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import rich.console
import tyro

from examples.paper.domain import Domain
from examples.paper.errors import UserError, telling_errors
from examples.paper.grids import load_grid, ready_grids
from examples.paper.report.alphas import pooled_by_task
from examples.paper.report.result_figures import alpha_distributions
from examples.paper.report.section_figures import Drawn, section_figures
from examples.paper.report.sections import Section, comparisons, other_runs, sections_of
from examples.paper.report.tables import agreement_table, comparison_table, plural, result_table, spread_table
from examples.paper.report.wording import in_common, method_name
from examples.paper.results import Row, read_results


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
    for name in command.grids:
        if name.endswith(".jsonl"):
            raise UserError(f"--grids {name} is a file of results; give it before --grids.")
    rows = read_results(domain, command.results)
    grids = [load_grid(domain, name) for name in command.grids or ready_grids(domain)]
    names = [grid.name for grid in grids]
    for twice in (name for name in names if names.count(name) > 1):
        raise UserError(f"--grids: two are called {twice}, and figures have their grid's name; rename a file.")
    sections, others = sections_of(domain, grids, rows)
    if others and not command.grids:
        sections.append(other_runs(domain, others))
        others = []
    out = _out(command)
    out.mkdir(parents=True, exist_ok=True)
    run, not_run = ([each for each in sections if each.runs.empty == empty] for empty in (False, True))
    parts = [*_introduction(domain, sections)]
    if others:
        parts.append(f"{plural(len(others), 'more run')} {'is' if len(others) == 1 else 'are'} in none of these grids.")
    drawn: Drawn = {}
    for section in run:
        parts += [f"## {section.title}", *_section(section, out, drawn)]
    parts += [*domain.style.appendix(out), *_figure12(domain, rows, out)]
    for section in not_run:
        parts += _published_only(section)
    parts += [*_not_run(not_run), *_provenance(rows)]
    path = out / "README.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def _out(command: Report) -> Path:
    first = command.results[0]
    return command.out or (first.parent if first.suffix == ".jsonl" else first) / "report"


def _introduction(domain: Domain, sections: Iterable[Section]) -> Iterator[str]:
    tested = sum(comparisons(section).verdict.count() for section in sections)
    yield "# Results"
    yield (
        f"The {domain.measure.title} at the end of runs{', in percent' * domain.measure.percent}: mean ± sample standard "
        f"deviation over the seeds. Data sets are called by their own names. {domain.style.introduction} There "
        f"{'is' if tested == 1 else 'are'} {plural(tested, 'paired comparison')} below, with no correction for their "
        "number: between equals, one in twenty would be told apart by chance."
    )
    yield (
        "*Published* has what `published.jsonl` holds for a setting: the paper's tables, means and deviations over seeds, "
        "and what the authors' code gave in a setting that was run with it. Grids of which nothing has been run have their "
        "tables below ours. To add a figure, append a line with its source, the settings that make out the run, mean, "
        "deviation and number of seeds."
    )


def _section(section: Section, out: Path, drawn: Drawn) -> Iterator[str]:
    yield f"In all, where it applies: {in_common(section.domain, section.entries.settings)}."
    yield from result_table(section)
    yield from comparison_table(section)
    yield from spread_table(section)
    yield from agreement_table(section)
    yield from _notes(section)
    for path, says in section_figures(section, out, drawn):
        yield f"![{says}]({path.name})"


def _notes(section: Section) -> Iterator[str]:
    """What lines of results say of themselves, each note once."""
    runs = section.runs.assign(note=[row.get("note") for row in section.runs.row])
    for note, of in runs.groupby("note", sort=False):
        yield f"Note on the runs of {' and '.join(method_name(section.domain, name) for name in of.method.unique())}: {note}"


def _figure12(domain: Domain, rows: Sequence[Row], out: Path) -> Iterator[str]:
    alphas = pooled_by_task(domain, rows)
    if not alphas.empty:
        path, base = out / "figure12.png", method_name(domain, domain.style.baseline)
        alpha_distributions("Final alphas by network and data set", alphas, path)
        yield "## Figure 12: final alphas by network and data set"
        yield f"Of all that {base} and TB after it have both been run on: the balanced layers of all seeds together."
        yield f"![Final alphas of the balanced layers, {base} and TB by network and data set: median, mean]({path.name})"


def _published_only(section: Section) -> Iterator[str]:
    """The table of what is published of a grid of which nothing has been run."""
    entries = section.entries[section.entries.published.map(len) > 0]
    if not entries.empty:
        yield f"## {section.title}: published, not run here"
        yield f"In all, where it applies: {in_common(section.domain, entries.settings)}."
        yield from result_table(section._replace(entries=entries))
        if len(entries) < len(section.entries):
            yield f"Of {plural(len(section.entries) - len(entries), 'more setting')} of the grid nothing is published."


def _not_run(sections: Iterable[Section]) -> Iterator[str]:
    lines = [f"- {section.title} (`{section.name}`): {section.entries.wanted.sum()} runs" for section in sections]
    if lines:
        yield "## Not run"
        yield "\n".join(lines)


def _provenance(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each kind of provenance: runs may have been trained on different machines and days."""
    if not rows:
        return
    runs = [(_kind(row), row["seconds"], row["provenance"]["date"][:10]) for row in rows]
    runs = pd.DataFrame(runs, columns=["kind", "seconds", "date"])
    hours = lambda count, seconds: f"{plural(count, 'run')}, {seconds / 3600:.1f} h"
    yield "## Where these come from"
    yield f"{hours(len(runs), runs.seconds.sum())} of training in all."
    lines = []
    for kind, of in runs.groupby("kind", sort=False):
        dates = " to ".join(dict.fromkeys((of.date.min(), of.date.max())))
        lines.append(f"- {hours(len(of), of.seconds.sum())}, {dates}: {kind}")
    yield "\n".join(lines)


def _kind(row: Row) -> str:
    origin = row["provenance"]
    device = origin["device_kind"] + (f", {origin['cores']} cores" if origin["platform"] == "cpu" else "")
    commit = (origin["commit"] or "unknown")[:10] + (" with changes" if origin["changed"] else "")
    versions = ", ".join(f"{package} {version}" for package, version in origin["versions"].items())
    return f"{device}; commit {commit}; {versions}"
