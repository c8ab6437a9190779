"""Runs a grid: `python -m examples.language.sweep table7b`."""

from functools import partial

from examples.language.domain import LANGUAGE
from examples.runs.parallel import run_command
from examples.runs.sweep import sweep_command

main = partial(sweep_command, LANGUAGE)

if __name__ == "__main__":
    run_command(main)
