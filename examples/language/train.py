"""Trains one network: `python -m examples.language.train --help`."""

from functools import partial

from examples.language.domain import LANGUAGE
from examples.runs.parallel import run_command
from examples.runs.train import train_command

main = partial(train_command, LANGUAGE)

if __name__ == "__main__":
    run_command(main)
