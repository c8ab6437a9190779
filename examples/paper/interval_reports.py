"""What tells of an interval of training: a line in the log, TensorBoard's events, a line and a bar on the terminal."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress
from tensorboardX import SummaryWriter

from examples.paper.domain import Domain
from examples.paper.parallel import is_first_process
from examples.paper.run_directory import RunDirectory


@contextlib.contextmanager
def interval_reports(
    intervals: int,
    seeds: Sequence[int],
    directories: Sequence[RunDirectory],
    done: int,
    console: rich.console.Console,
) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """Takes the lines of an interval, one for each seed; in one process of several, the others say nothing.

    Args:
      intervals: of the runs.
      seeds: that train together.
      directories: theirs.
      done: intervals that are done already; what was logged after them is dropped.
      console: the terminal.
    """
    if not is_first_process():
        yield lambda lines: None
        return
    for directory in directories:
        directory.cut_log(done)
    domain = directories[0].domain
    interval = domain.interval
    columns = (
        rich.progress.TextColumn(interval),
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[line]}"),
        rich.progress.TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as opened:
        progress = opened.enter_context(rich.progress.Progress(*columns, console=console, disable=not console.is_terminal))
        events = [opened.enter_context(SummaryWriter(str(each.path), purge_step=done + 1)) for each in directories]
        task = progress.add_task("", total=intervals, completed=done, line="")

        def report(lines: Sequence[dict[str, Any]]) -> None:
            for line, seed, directory, writer in zip(lines, seeds, directories, events, strict=True):
                directory.write_log(line)
                _write_events(writer, interval, line)
                which = f"seed {seed}  " if len(seeds) > 1 else ""
                console.print(f"{interval} {line[interval]:3d}  {which}{_describe(domain, line)}", soft_wrap=True)
            progress.update(task, completed=lines[0][interval], line=_describe(domain, lines[0]))

        yield report


def _describe(domain: Domain, line: Mapping[str, Any]) -> str:
    spread = ""
    for name in ("scale", "decay_scale"):
        scales = line.get(name, {}).values()
        if scales and set(scales) != {1.0}:
            spread += f"  {name.replace('_', ' ')}s {min(scales):.2f}-{max(scales):.2f}"
    return f"{domain.describe(line)}  {line[domain.speed]:,.0f} {domain.unit}/s{spread}"


def _write_events(events: SummaryWriter, interval: str, line: Mapping[str, Any]) -> None:
    for name, value in line.items():
        if name in ("gradient_norms_within", "spectra_within"):
            continue  # they are of steps, and TensorBoard's axis is of intervals
        if isinstance(value, dict):
            for layer, each in value.items():
                events.add_scalar(f"{name}/{layer}", each, line[interval])
        elif name != interval:
            events.add_scalar(name, value, line[interval])
    events.flush()
