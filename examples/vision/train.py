"""Trains one network: `python -m examples.vision.train --help`."""

import contextlib
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import rich.console
import rich.markup
import rich.progress
import tyro
from flax import nnx
from tensorboardX import SummaryWriter

from examples.vision.checkpoints import Checkpoints
from examples.vision.data import Dataset, load_dataset
from examples.vision.errors import UserError
from examples.vision.methods import cosine_per_epoch, create_optimizer
from examples.vision.models import create_model
from examples.vision.parallel import (
    check_same,
    create_mesh,
    first_process_first,
    is_first_process,
    join_processes,
    leaving_at_once,
)
from examples.vision.plots import plot_run
from examples.vision.run_directory import RunDirectory
from examples.vision.settings import Command, Devices, Settings
from examples.vision.training import Run, TrainState, prepare


def main() -> None:
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # TFDS and Orbax report their every step, and all that they raise
    command = tyro.cli(Command, config=(tyro.conf.OmitArgPrefixes,))
    with leaving_at_once():
        try:
            train(command.settings, command.out, command.resume, command.devices)
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            _fail(f"{error.strerror or error}: {error.filename or command.out or 'runs'}; the last checkpoint stands.")
        except Exception as error:
            if "No space left" not in str(error):
                raise
            _fail(f"no space left to write {command.out or 'runs'}; the last checkpoint stands: free some and --resume.")


def _fail(message: str) -> None:
    rich.console.Console(highlight=False).print(f"[bold red]error:[/] {rich.markup.escape(message)}", soft_wrap=True)
    sys.exit(2)


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
    dataset, directory = first_process_first(lambda: _open(settings, out, resume))
    check_same("flags", repr(dataclasses.replace(settings, data_dir=None)).encode())
    check_same("training images", dataset.train_images.tobytes())
    steps = len(dataset.train_images) // settings.batch_size
    try:
        with jax.set_mesh(mesh):
            model = _initialize(settings, dataset)
    except ValueError as error:
        raise UserError(str(error)) from error
    first_process_first(lambda: _start(directory, settings))
    schedule = cosine_per_epoch(settings.learning_rate, settings.epochs, steps)
    create_tx = lambda layers: create_optimizer(
        settings.method,
        schedule,
        weight_decay=settings.weight_decay,
        update_interval=settings.update_interval or steps,
        min_scale=settings.min_scale,
        max_scale=settings.max_scale,
        layers=layers,
    )
    if mesh.size > 1:
        where = f"{mesh.size} devices" + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
        console.print(f"{settings.batch_size // mesh.size} images a step on each of {where}", soft_wrap=True)
    with console.status("compiling"):
        run = prepare(model, create_tx, dataset, settings.batch_size, settings.seed, mesh)
    checkpoints = Checkpoints(directory.checkpoints)
    try:
        _train_epochs(settings, run, schedule, steps, directory, checkpoints, console)
    except KeyboardInterrupt:
        checkpoints.close()
        console.print(f"stopped after epoch {checkpoints.last_saved()}; --resume goes on from there")
        os._exit(130)  # an epoch may still be running on the device, and leaving in the usual way would wait for it
    checkpoints.close()
    if is_first_process():
        log = directory.log()
        plots = plot_run(log, f"{settings.model} x{settings.width:g}, {dataset.name}, {settings.method}", directory.path)
        console.print(f"test accuracy {log[-1]['test_accuracy']:.2%} after {settings.epochs} epochs", style="bold")
        console.print(f"plots: {' '.join(map(str, plots))}", soft_wrap=True)
    return directory


def _open(settings: Settings, out: Path | None, resume: bool) -> tuple[Dataset, RunDirectory]:
    """The data, and the folder to write to, checked."""
    dataset = load_dataset(settings.dataset, settings.data_dir, settings.train_split, settings.test_split)
    if len(dataset.train_images) < settings.batch_size:
        raise UserError(f"--batch-size {settings.batch_size} is more than the {len(dataset.train_images)} training images.")
    directory = RunDirectory(out or Path("runs", f"{dataset.name}-{settings.model}-{settings.method}-seed{settings.seed}"))
    directory.check(settings, resume)
    return dataset, directory


def _start(directory: RunDirectory, settings: Settings) -> None:
    if is_first_process():
        directory.start(settings)
    elif not directory.exists():
        raise UserError(f"--out {directory.path}: not the folder of process 0; give one on a file system that all share.")


def _initialize(settings: Settings, dataset: Dataset) -> nnx.Module:
    # As one program, and with keys of the kind that compiles fast: four seconds instead of twenty on CPU.
    @nnx.jit
    def create() -> nnx.Module:
        return create_model(
            settings.model,
            width=settings.width,
            num_classes=dataset.num_classes,
            image_shape=dataset.train_images.shape[1:],
            dtype=jnp.dtype(settings.dtype),
            rngs=nnx.Rngs(jax.random.key(settings.seed, impl="rbg")),
        )

    return create()


def _train_epochs(
    settings: Settings,
    run: Run,
    schedule: optax.Schedule,
    steps: int,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    console: rich.console.Console,
) -> None:
    state, done = run.state, checkpoints.latest()
    if done is None:
        done = 0
        checkpoints.save(0, state)
    else:
        state = checkpoints.restore(done, state)
    with _reports(settings, directory, done, console) if is_first_process() else contextlib.nullcontext() as report:
        for epoch in range(done + 1, settings.epochs + 1):
            state, line = _train_epoch(settings, run, steps, state)
            if report is not None:
                report({"epoch": epoch, "learning_rate": float(jnp.asarray(schedule((epoch - 1) * steps))), **line})
            checkpoints.save(epoch, state)


@contextlib.contextmanager
def _reports(
    settings: Settings, directory: RunDirectory, done: int, console: rich.console.Console
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What tells of an epoch in the log, in TensorBoard's events and on the terminal."""
    directory.cut_log(done)
    columns = (
        rich.progress.TextColumn("epoch"),
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[line]}"),
        rich.progress.TimeRemainingColumn(),
    )
    with (
        rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        SummaryWriter(str(directory.path), purge_step=done + 1) as events,
    ):
        task = progress.add_task("", total=settings.epochs, completed=done, line="")

        def report(line: dict[str, Any]) -> None:
            directory.write_log(line)
            _write_events(events, line)
            text = _describe(line)
            console.print(f"epoch {line['epoch']:3d}  {text}", soft_wrap=True)
            progress.update(task, completed=line["epoch"], line=text)

        yield report


def _train_epoch(settings: Settings, run: Run, steps: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """One epoch, and what the log says of it.

    Scales are those of the balanced layers in force at the epoch's end, alphas those of the weights after it. A refresh
    inside the compiled epoch cannot be timed there: its time is that of measuring alpha behind the epoch, by a
    refresh that takes in the few layers that are not balanced.
    """
    first = int(state.epoch) * steps
    interval = settings.update_interval or steps
    refreshes = len(range(-(-first // interval) * interval, first + steps, interval)) if settings.method == "tb" else 0
    start = time.perf_counter()
    state, train_metrics = run.train(state)
    _wait(train_metrics)
    trained = time.perf_counter()
    test_metrics = _wait(run.test(state))
    tested = time.perf_counter()
    alphas = _wait(run.measure(state))
    measured = time.perf_counter()
    balance = optax.tree_utils.tree_get(state.opt_state, "TempBalanceState")
    return state, {
        "train_loss": float(train_metrics.loss),
        "train_accuracy": float(train_metrics.accuracy),
        "test_loss": float(test_metrics.loss),
        "test_accuracy": float(test_metrics.accuracy),
        "alpha": {name: float(alpha) for name, alpha in alphas.items()},
        "scale": {layer.name: 1.0 if balance is None else float(balance.scale[layer.name]) for layer in run.layers},
        "images_per_second": steps * settings.batch_size / (trained - start),
        "refreshes": refreshes,
        "refresh_seconds": refreshes * (measured - tested),
        "seconds": measured - start,
    }


def _wait(arrays: Any) -> Any:
    """Waits for arrays in Python, where Ctrl-C is heard, and not in the runtime, where it is not."""
    while not all(array.is_ready() for array in jax.tree.leaves(arrays)):
        time.sleep(0.002)
    return arrays


def _describe(line: dict[str, Any]) -> str:
    scales = line["scale"].values()
    spread = f"  scales {min(scales):.2f}-{max(scales):.2f}" if line["refreshes"] or max(scales) != 1 else ""
    return (
        f"loss {line['train_loss']:.3f}  train {line['train_accuracy']:.1%}  test {line['test_accuracy']:.1%}  "
        f"{line['images_per_second']:,.0f} images/s{spread}"
    )


def _write_events(events: SummaryWriter, line: dict[str, Any]) -> None:
    for name, value in line.items():
        if isinstance(value, dict):
            for layer, number in value.items():
                events.add_scalar(f"{name}/{layer}", number, line["epoch"])
        elif name != "epoch":
            events.add_scalar(name, value, line["epoch"])
    events.flush()


if __name__ == "__main__":
    main()
