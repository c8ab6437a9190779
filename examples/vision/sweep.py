"""Runs a grid: `python -m examples.vision.sweep table1`."""

from functools import partial

from examples.runs.parallel import run_command
from examples.runs.sweep import sweep_command
from examples.vision.domain import VISION

main = partial(sweep_command, VISION)

if __name__ == "__main__":
    run_command(main)
