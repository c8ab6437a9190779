"""Trains one network: `python -m examples.vision.train --help`."""

from functools import partial

from examples.runs.parallel import run_command
from examples.runs.train import train_command
from examples.vision.domain import VISION

main = partial(train_command, VISION)

if __name__ == "__main__":
    run_command(main)
