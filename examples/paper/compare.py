"""The command that shows runs of a domain side by side."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import rich.box
import rich.console
import rich.table
import tyro

from examples.paper.domain import Domain
from examples.paper.errors import UserError, telling_errors
from examples.paper.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Compare:
    """Shows runs side by side."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")]] = ()
    """Folders of runs: those that train wrote, or runs/sweep/* of a sweep."""


def compare_command(domain: Domain, arguments: Sequence[str], program: str) -> None:
    """Shows the runs that the command line names."""
    runs = tyro.cli(Compare, prog=program, args=arguments).runs
    console = rich.console.Console(highlight=False)
    with telling_errors(Path("runs")):
        if not runs:
            raise UserError("no run is given; give folders of runs, such as runs/sweep/*.")
        console.print(compare(domain, runs))
        for run in runs:
            console.print(f"plots of {run}: {' '.join(str(path) for path in sorted(run.glob('*.png')))}", soft_wrap=True)


def compare(domain: Domain, runs: tuple[Path, ...]) -> rich.table.Table:
    """A table with a row for each run: how well it does, and how far apart the layers' alphas ended.

    Raises:
      UserError: a folder holds no run, or one without a finished interval.
    """
    columns = ("run", "network", "method", f"{domain.interval}s", domain.measure.title, "spread of alpha", "minutes")
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption="spread of alpha: standard deviation over balanced layers")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right", overflow="fold")
    for run in runs:
        directory = RunDirectory(run, domain)
        settings, log = domain.settings(**directory.settings()), directory.log()
        if not log:
            raise UserError(f"{run} has no finished {domain.interval} yet.")
        last, found = log[-1], log[-1] | directory.summary()
        alphas = [last["alpha"][layer] for layer in last["scale"] if last["alpha"][layer] is not None]
        table.add_row(
            str(run),
            settings.network,
            settings.method,
            f"{len(log)}/{settings.intervals}",
            domain.measure.in_words(found) if domain.measure.name in found else "—",
            f"{np.std(alphas):.3f}",
            f"{sum(line['seconds'] for line in log) / 60:.1f}",
        )
    return table
