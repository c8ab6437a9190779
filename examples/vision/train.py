"""Trains one network: `python -m examples.vision.train --help`."""

import contextlib
import dataclasses
import logging
import os
from pathlib import Path

import jax
import rich.console
import tyro

from examples.runs.checkpoints import last_saved
from examples.runs.compilation import keep_compiled_programs
from examples.runs.devices import Devices
from examples.runs.errors import UserError, naming_write_errors, telling_errors
from examples.runs.parallel import (
    check_same,
    create_mesh,
    first_process_first,
    is_first_process,
    join_processes,
    run_command,
)
from examples.runs.recovery import recover
from examples.runs.run_directory import RunDirectory
from examples.vision.data import Dataset, load_dataset
from examples.vision.settings import Command, Settings
from examples.vision.trainer import Trainer


def main() -> None:
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # TFDS and Orbax report their every step, and all that they raise
    command = tyro.cli(Command, config=(tyro.conf.OmitArgPrefixes,))
    if command.compilation_cache:
        keep_compiled_programs()
    with telling_errors(command.out or Path("runs")):
        train(command.settings, command.out, command.resume, command.devices)


_ALL_DEVICES = Devices()


def train(
    settings: Settings, out: Path | None = None, resume: bool = False, devices: Devices = _ALL_DEVICES
) -> RunDirectory:
    """Trains a network, or goes on with it, and leaves its results in a folder.

    Every process of a run calls this; the first alone writes logs, events and plots, and to the terminal.

    Raises:
      UserError: the settings, the devices, the data or the folder do not fit.
    """
    settings.check()
    devices.check()
    join_processes(devices)
    mesh = create_mesh(devices.mesh, settings.batch_size)
    console = rich.console.Console(highlight=False, quiet=not is_first_process())
    settings, dataset, directory = first_process_first(lambda: _open(settings, out, resume))
    check_same("flags", repr(dataclasses.replace(settings, data_dir=None)).encode())
    check_same("training images", dataset.train_images.tobytes())
    trainer = Trainer(settings, dataset, mesh, console)
    with contextlib.ExitStack() as held:
        first_process_first(lambda: _start(directory, settings, resume, held, console))
        if mesh.size > 1:
            where = f"{mesh.size} devices" + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
            console.print(f"{settings.batch_size // mesh.size} images a step on each of {where}", soft_wrap=True)
        held.enter_context(naming_write_errors(directory.path, lambda: _what_stands(directory)))
        try:
            trainer.train({settings.seed: directory})
        except KeyboardInterrupt:
            epoch = last_saved(directory.checkpoints)
            done = f"after epoch {epoch}; --resume goes on from there" if epoch >= 0 else "before anything was saved"
            console.print(f"stopped {done}", soft_wrap=True)
            os._exit(130)  # an epoch may still be running on the device, and leaving in the usual way would wait for it
    return directory


def _open(settings: Settings, out: Path | None, resume: bool) -> tuple[Settings, Dataset, RunDirectory]:
    """What exactly is run, the data, and the folder to write to, checked."""
    dataset = open_dataset(settings)
    settings = dataclasses.replace(settings.resolved(), dataset=dataset.name)
    directory = RunDirectory(out or Path("runs", f"{dataset.name}-{settings.model}-{settings.method}-seed{settings.seed}"))
    directory.check(settings, resume)
    return settings, dataset, directory


def open_dataset(settings: Settings) -> Dataset:
    """Raises UserError where there is no such data set, or a batch is more than all of it."""
    dataset = load_dataset(settings.dataset, settings.data_dir, settings.train_split, settings.test_split)
    if len(dataset.train_images) < settings.batch_size:
        raise UserError(f"--batch-size {settings.batch_size} is more than the {len(dataset.train_images)} training images.")
    return dataset


def _start(
    directory: RunDirectory, settings: Settings, resume: bool, held: contextlib.ExitStack, console: rich.console.Console
) -> None:
    """Readies the folder, which stays this run's until `held` is closed."""
    if is_first_process():
        held.enter_context(directory.held())
        directory.check(settings, resume)  # once more: it may have been another's until now
        directory.start(settings)
        recover(directory, lambda line: console.print(line, style="yellow", soft_wrap=True))
    elif not directory.exists():
        raise UserError(f"--out {directory.path}: not the folder of process 0; give one on a file system that all share.")


def _what_stands(directory: RunDirectory) -> str:
    epoch = last_saved(directory.checkpoints)
    return f"; the checkpoint of epoch {epoch} stands: --resume goes on from it." if epoch >= 0 else ""


if __name__ == "__main__":
    run_command(main)
