"""The command that trains one network of a task."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import rich.console
import tyro

from examples.paper.checkpoints import last_saved
from examples.paper.domain import Domain
from examples.paper.errors import UserError, naming_write_errors, telling_errors
from examples.paper.loop import Trainer
from examples.paper.parallel import Devices, check_same, create_mesh, first_process_first, is_first_process, join_processes
from examples.paper.run_directory import RunDirectory
from tb_optax._report.compilation import keep_compiled_programs

SettingsType = TypeVar("SettingsType")


@dataclasses.dataclass(frozen=True)
class Command(Generic[SettingsType]):
    """Trains one network by one of the paper's methods.

    Writes to --out one JSON line an epoch or evaluation (log.jsonl), TensorBoard events, checkpoints, and plots of alpha,
    learning rate and the spectrum of every layer.
    """

    settings: Annotated[SettingsType, tyro.conf.arg(name="")]
    devices: Annotated[Devices, tyro.conf.arg(name="")]
    out: Path | None = None
    """Where to write; by default runs/DATASET-MODEL-METHOD-seedSEED."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder: the next run of the same network starts sooner."""


def train_command(domain: Domain, arguments: Sequence[str], program: str) -> None:
    """Trains as the command line says."""
    command: Any = tyro.cli(Command[domain.settings], prog=program, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    if command.compilation_cache:
        keep_compiled_programs()
    with telling_errors(command.out or Path("runs")):
        train(domain, command.settings, command.out, command.resume, command.devices)


_ALL_DEVICES = Devices()


def train(
    domain: Domain, settings: Any, out: Path | None = None, resume: bool = False, devices: Devices = _ALL_DEVICES
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
    settings, data, directory = first_process_first(lambda: _open(domain, settings, out, resume))
    anywhere = dict.fromkeys(domain.settings.places())
    check_same("flags", repr(dataclasses.replace(settings, **anywhere)).encode())
    check_same("training data", data.contents())
    trainer = Trainer(domain, settings, data, mesh, console)

    def begin() -> None:
        """Readies the folder, which stays this run's until `held` is closed."""
        if is_first_process():
            held.enter_context(directory.held())
            directory.begin(settings, resume, console)
        elif not directory.exists():
            raise UserError(
                f"--out {directory.path}: not the folder of process 0; give one on a file system that they share."
            )

    def what_stands() -> str:
        done = last_saved(directory.checkpoints)
        return f"; the checkpoint of {domain.interval} {done} stands: --resume goes on from it." if done >= 0 else ""

    with contextlib.ExitStack() as held:
        first_process_first(begin)
        if mesh.size > 1:
            where = f"{mesh.size} devices" + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
            share = settings.batch_size // mesh.size
            console.print(f"each batch of {settings.batch_size} is split over {where}, {share} on each", soft_wrap=True)
        held.enter_context(naming_write_errors(directory.path, what_stands))
        try:
            trainer.train({settings.seed: directory})
        except KeyboardInterrupt:
            done = last_saved(directory.checkpoints)
            after = f"after {domain.interval} {done}; --resume goes on from there"
            console.print(f"stopped {after if done >= 0 else 'before anything was saved'}", soft_wrap=True)
            os._exit(130)  # an interval may still be running on the device, and leaving in the usual way would wait for it
    return directory


def _open(domain: Domain, settings: Any, out: Path | None, resume: bool) -> tuple[Any, Any, RunDirectory]:
    """What exactly is run, the data, and the folder to write to, checked."""
    data = domain.load(settings)
    settings = dataclasses.replace(settings.resolved(), dataset=data.name)
    name = f"{data.name}-{settings.model}-{settings.method}-seed{settings.seed}"
    directory = RunDirectory(out or Path("runs", name), domain)
    directory.check(settings, resume)
    return settings, data, directory
