"""Reproduces the paper: `python -m examples.paper TASK COMMAND [FLAGS]`.

Tasks and their commands; each has a --help of its own:

  vision | language | detection
    train               trains one network
    sweep GRID          trains what is missing of a grid of settings, such as table1; `list` shows the grids
    compare RUN ...     shows runs side by side
    report [RESULTS]    writes tables, tests and figures from results
  vision | language
    study [RESULTS]     writes the report on the study in docs/study.md
  vision
    tiny_imagenet ZIP   prepares the data set Tiny ImageNet
  detection
    convert PT OUT      makes safetensors of a PyTorch state dict
  curvature
    train               trains the networks of Figure 9
    figure9             draws Figure 9 and says what it shows
"""

import importlib
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from examples.paper.errors import telling_errors

COMMANDS = {
    "train": "train",
    "sweep": "sweep",
    "compare": "compare",
    "report": "report.markdown",
    "study": "report.study",
}
"""The modules of the commands that every task has."""
TASKS = ("vision", "language", "detection")
OTHERS = {
    "vision tiny_imagenet": ("vision.tiny_imagenet", "tiny_imagenet"),
    "detection convert": ("detection.pretrained", "convert"),
    "curvature train": ("curvature.train", "train"),
    "curvature figure9": ("curvature.figure9", "figure9"),
}
"""The other commands: modules, and functions whose arguments are flags."""


def main(arguments: Sequence[str]) -> None:
    """Runs the command that the arguments name.

    Raises:
      SystemExit: there is no such command, or it ends with an error.
    """
    task, command, *flags = (*arguments, "", "")[: max(2, len(arguments))]
    program = f"python -m examples.paper {task} {command}"
    if task in TASKS and command in COMMANDS:
        # Imported here, for a command is to start without loading the others.
        run: Callable[..., None] = getattr(_module(COMMANDS[command]), f"{command}_command")
        run(getattr(_module(f"{task}.domain"), task.upper()), flags, program)
    elif f"{task} {command}" in OTHERS:
        module, function = OTHERS[f"{task} {command}"]
        with telling_errors(Path()):
            tyro.cli(getattr(_module(module), function), prog=program, args=flags)
    elif task in ("-h", "--help"):
        print(__doc__)
    else:
        given = f"'{task} {command}'".replace(" '", "'")
        print(f"{__doc__}\nerror: {given} is no command; give one of those above.", file=sys.stderr)
        raise SystemExit(2)


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(f"examples.paper.{name}")


if __name__ == "__main__":
    from examples.paper.parallel import run_command

    run_command(lambda: main(sys.argv[1:]))
