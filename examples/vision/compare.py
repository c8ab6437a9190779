"""Shows runs side by side: `python -m examples.vision.compare runs/demo/cal runs/demo/tb`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import rich.box
import rich.console
import rich.table
import tyro

from examples.runs.errors import UserError, telling_errors
from examples.runs.run_directory import RunDirectory
from examples.vision.settings import Settings


def main() -> None:
    runs = tyro.cli(tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]], description=__doc__)
    console = rich.console.Console(highlight=False)
    with telling_errors(Path("runs")):
        console.print(compare(runs))
        for run in runs:
            console.print(f"plots of {run}: {' '.join(str(path) for path in sorted(run.glob('*.png')))}", soft_wrap=True)


def compare(runs: tuple[Path, ...]) -> rich.table.Table:
    """A table with a row for each run: accuracy, and how far apart the layers' alphas ended.

    Raises:
      UserError: a folder holds no run, or one without a finished epoch.
    """
    columns = ("run", "network", "method", "epochs", "test accuracy", "spread of alpha", "minutes")
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption="spread of alpha: standard deviation over balanced layers")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right")
    for run in runs:
        directory = RunDirectory(run)
        settings, log = directory.settings(Settings), directory.log()
        if not log:
            raise UserError(f"{run} has no finished epoch yet.")
        last = log[-1]
        alphas = [last["alpha"][layer] for layer in last["scale"] if last["alpha"][layer] is not None]
        table.add_row(
            str(run),
            f"{settings['model']} x{settings['width']:g}",
            settings["method"],
            f"{len(log)}/{settings['epochs']}",
            f"{last['test_accuracy']:.2%}",
            f"{np.std(alphas):.3f}",
            f"{sum(line['seconds'] for line in log) / 60:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
