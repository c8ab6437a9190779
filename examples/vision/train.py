"""Trains one network: `python -m examples.vision.train --help`."""

import logging
import os
import sys
import time
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
from examples.vision.plots import plot_run
from examples.vision.run_directory import RunDirectory
from examples.vision.settings import Command, Settings
from examples.vision.training import Run, TrainState, prepare

_console = rich.console.Console(highlight=False)


def main() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS and Orbax report their every step
    command = tyro.cli(Command, config=(tyro.conf.OmitArgPrefixes,))
    try:
        train(command.settings, command.out, command.resume)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or command.out or 'runs'}; the last checkpoint stands.")
    except Exception as error:
        if "No space left" not in str(error):
            raise
        _fail(f"no space left to write {command.out or 'runs'}; the last checkpoint stands: free some and --resume.")


def _fail(message: str) -> None:
    _console.print(f"[bold red]error:[/] {rich.markup.escape(message)}", soft_wrap=True)
    sys.exit(2)


def train(settings: Settings, out: Path | None = None, resume: bool = False) -> RunDirectory:
    """Trains a network, or goes on with it, and leaves its results in a folder.

    Raises:
      UserError: the settings, the data or the folder do not fit.
    """
    settings.check()
    dataset = load_dataset(settings.dataset, settings.data_dir, settings.train_split, settings.test_split)
    steps = len(dataset.train_images) // settings.batch_size
    if steps == 0:
        raise UserError(f"--batch-size {settings.batch_size} is more than the {len(dataset.train_images)} training images.")
    directory = RunDirectory(out or Path("runs", f"{dataset.name}-{settings.model}-{settings.method}-seed{settings.seed}"))
    directory.check(settings, resume)
    try:
        model = _initialize(settings, dataset)
    except ValueError as error:
        raise UserError(str(error)) from error
    directory.start(settings)
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
    with _console.status("compiling"):
        run = prepare(model, create_tx, dataset, settings.batch_size, settings.seed)
    checkpoints = Checkpoints(directory.checkpoints)
    try:
        _train_epochs(settings, run, schedule, steps, directory, checkpoints)
    except KeyboardInterrupt:
        checkpoints.close()
        _console.print(f"stopped after epoch {Checkpoints(directory.checkpoints).latest()}; --resume goes on from there")
        os._exit(130)  # an epoch may still be running on the device, and leaving in the usual way would wait for it
    checkpoints.close()
    log = directory.log()
    plots = plot_run(log, f"{settings.model} x{settings.width:g}, {dataset.name}, {settings.method}", directory.path)
    _console.print(f"test accuracy {log[-1]['test_accuracy']:.2%} after {settings.epochs} epochs", style="bold")
    _console.print(f"plots: {' '.join(map(str, plots))}", soft_wrap=True)
    return directory


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
    settings: Settings, run: Run, schedule: optax.Schedule, steps: int, directory: RunDirectory, checkpoints: Checkpoints
) -> None:
    state, done = run.state, checkpoints.latest()
    if done is None:
        done = 0
        checkpoints.save(0, state)
    else:
        state = checkpoints.restore(done, state)
    directory.cut_log(done)
    columns = (
        rich.progress.TextColumn("epoch"),
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[line]}"),
        rich.progress.TimeRemainingColumn(),
    )
    with (
        rich.progress.Progress(*columns, console=_console, disable=not _console.is_terminal) as progress,
        SummaryWriter(str(directory.path), purge_step=done + 1) as events,
    ):
        task = progress.add_task("", total=settings.epochs, completed=done, line="")
        for epoch in range(done + 1, settings.epochs + 1):
            state, line = _train_epoch(settings, run, steps, state)
            line = {"epoch": epoch, "learning_rate": float(jnp.asarray(schedule((epoch - 1) * steps))), **line}
            directory.write_log(line)
            _write_events(events, line)
            checkpoints.save(epoch, state)
            text = _describe(line)
            _console.print(f"epoch {epoch:3d}  {text}", soft_wrap=True)
            progress.update(task, completed=epoch, line=text)


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
