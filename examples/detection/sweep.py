"""Runs a grid: `python -m examples.detection.sweep table7a`."""

from functools import partial

from examples.detection.domain import DETECTION
from examples.runs.parallel import run_command
from examples.runs.sweep import sweep_command

main = partial(sweep_command, DETECTION)

if __name__ == "__main__":
    run_command(main)
