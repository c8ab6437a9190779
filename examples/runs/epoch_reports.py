"""What tells of an epoch: a line in the log, TensorBoard's events, a line and a bar on the terminal."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress
from tensorboardX import SummaryWriter

from examples.runs.parallel import is_first_process
from examples.runs.run_directory import RunDirectory


@contextlib.contextmanager
def epoch_reports(
    epochs: int,
    seeds: Sequence[int],
    directories: Sequence[RunDirectory],
    done: int,
    console: rich.console.Console,
    describe: Callable[[Mapping[str, Any]], str],
) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """Takes the lines of an epoch, one for each seed; in one process of several, the others say nothing.

    Args:
      epochs: of the runs.
      seeds: that train together.
      directories: theirs.
      done: epochs that are done already; what was logged after them is dropped.
      console: the terminal.
      describe: what the terminal says of a line.
    """
    if not is_first_process():
        yield lambda lines: None
        return
    for directory in directories:
        directory.cut_log(done)
    columns = (
        rich.progress.TextColumn("epoch"),
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[line]}"),
        rich.progress.TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as opened:
        progress = opened.enter_context(rich.progress.Progress(*columns, console=console, disable=not console.is_terminal))
        events = [opened.enter_context(SummaryWriter(str(each.path), purge_step=done + 1)) for each in directories]
        task = progress.add_task("", total=epochs, completed=done, line="")

        def report(lines: Sequence[dict[str, Any]]) -> None:
            for line, seed, directory, writer in zip(lines, seeds, directories, events, strict=True):
                directory.write_log(line)
                _write_events(writer, line)
                which = f"seed {seed}  " if len(seeds) > 1 else ""
                console.print(f"epoch {line['epoch']:3d}  {which}{describe(line)}", soft_wrap=True)
            progress.update(task, completed=lines[0]["epoch"], line=describe(lines[0]))

        yield report


def _write_events(events: SummaryWriter, line: dict[str, Any]) -> None:
    for name, value in line.items():
        if name in ("gradient_norms_within", "spectra_within"):
            continue  # they are of steps, and TensorBoard's axis is of epochs
        if isinstance(value, dict):
            for layer, number in value.items():
                events.add_scalar(f"{name}/{layer}", number, line["epoch"])
        elif name != "epoch":
            events.add_scalar(name, value, line["epoch"])
    events.flush()
