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
    intervals: int, directories: Mapping[int, RunDirectory], done: int, console: rich.console.Console
) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """Takes the lines of an interval, one for each seed; in one process of several, the others say nothing.

    Args:
      intervals: of the runs.
      directories: by seed, of the seeds that train together.
      done: intervals that are done already; what was logged after them is dropped.
      console: the terminal.
    """
    if not is_first_process():
        yield lambda lines: None
        return
    with contextlib.ExitStack() as opened:
        events = []
        for directory in directories.values():
            directory.cut_log(done)
            events.append(opened.enter_context(SummaryWriter(str(directory.path), purge_step=done + 1)))
        bar = rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn()
        progress = opened.enter_context(rich.progress.Progress(*bar, console=console, disable=not console.is_terminal))
        task = progress.add_task("", total=intervals, completed=done)

        def report(lines: Sequence[dict[str, Any]]) -> None:
            for line, (seed, directory), writer in zip(lines, directories.items(), events, strict=True):
                directory.write_log(line)
                _write_events(writer, line[directory.domain.interval], line)
                which = f"seed {seed}  " if len(directories) > 1 else ""
                console.print(which + _describe(directory.domain, line), soft_wrap=True)
            progress.advance(task)

        yield report


def _describe(domain: Domain, line: Mapping[str, Any]) -> str:
    told = [f"{domain.interval} {line[domain.interval]:3d}"]
    told += [f"{name.replace('_', ' ')} {line[name]:.4g}" for name in domain.metrics]
    told.append(f"{line[domain.speed]:,.0f} {domain.unit}/s")
    for name in ("scale", "decay_scale"):
        scales = line.get(name, {}).values()
        if scales and set(scales) != {1.0}:
            told.append(f"{name.replace('_', ' ')}s {min(scales):.2f}-{max(scales):.2f}")
    return "  ".join(told)


def _write_events(events: SummaryWriter, number: int, line: Mapping[str, Any]) -> None:
    for name, value in line.items():
        if name in ("gradient_norms_within", "spectra_within"):
            continue  # they are of steps, and TensorBoard's axis is of intervals
        if isinstance(value, dict):
            for layer, each in value.items():
                events.add_scalar(f"{name}/{layer}", each, number)
        else:
            events.add_scalar(name, value, number)
    events.flush()
