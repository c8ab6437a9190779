"""Trains one network: `python -m examples.detection.train --help`."""

from functools import partial

from examples.detection.domain import DETECTION
from examples.runs.parallel import run_command
from examples.runs.train import train_command

main = partial(train_command, DETECTION)

if __name__ == "__main__":
    run_command(main)
