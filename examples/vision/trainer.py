"""Trains a setting: the epochs of one seed, or of several together, and what is written of each."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import rich.console
from flax import nnx
from jax.sharding import Mesh

from examples.runs.checkpoints import Checkpoints
from examples.runs.epoch_reports import epoch_reports
from examples.runs.parallel import is_first_process
from examples.runs.plots import plot_run
from examples.runs.provenance import provenance
from examples.runs.run_directory import RunDirectory
from examples.runs.weight_spectra import histograms, of_one_weight, told_after
from examples.vision.data import Dataset
from examples.vision.methods import FITS, create_metric, create_optimizer, create_schedule
from examples.vision.models import create_model
from examples.vision.program import Program, compile_program, place, stack, unstack
from examples.vision.settings import METHODS, Settings
from examples.vision.training import NORM_INTERVAL, Observations, TrainState, kernels, watched_steps

_EPOCHS_WITHIN = 10
"""So many epochs' logs tell gradient norms within the epoch too: as many as the paper's Figure 18 shows."""


class Trainer:
    """A setting, ready to train any of its seeds; compiled once for each number of seeds that train together.

    Raises:
      UserError: the model does not fit the images.
    """

    def __init__(self, settings: Settings, dataset: Dataset, mesh: Mesh, console: rich.console.Console):
        self.settings = settings
        self.steps = len(dataset.train_images) // settings.batch_size
        self._schedule = create_schedule(settings, self.steps)
        self._data, self._name = place(dataset, mesh), dataset.name
        self._mesh, self._console = mesh, console
        self._create_model = _model_creator(settings, dataset)
        self._programs: dict[int, Program] = {}
        jax.eval_shape(lambda: nnx.state(self._create_model(0)))  # what it refuses it refuses before anything is written

    def program(self, together: int) -> Program:
        """The compiled functions for so many seeds."""
        if together not in self._programs:
            with self._console.status("compiling"):
                self._programs[together] = compile_program(
                    self._create_model,
                    lambda balanced, weights: create_optimizer(self.settings, self._schedule, self.steps, balanced, weights),
                    create_metric("pl_alpha_hill", self.settings.fit),
                    self._data,
                    self.settings.batch_size,
                    self._mesh,
                    together=together,
                    first_and_last=self.settings.first_and_last,
                )
        return self._programs[together]

    def train(self, directories: Mapping[int, RunDirectory]) -> None:
        """Trains seeds together, each from the last checkpoint in its directory, which must be the same epoch's in all.

        Raises:
          KeyboardInterrupt: after the checkpoints are whole.
        """
        program = self.program(len(directories))
        with contextlib.ExitStack() as opened:
            checkpoints = [opened.enter_context(Checkpoints(directory.checkpoints)) for directory in directories.values()]
            state = self._train_epochs(program, tuple(directories), tuple(directories.values()), checkpoints)
        if is_first_process():
            for seed_state, (seed, directory) in zip(unstack(state, len(directories)), directories.items(), strict=True):
                self._finish(program, seed_state, seed, directory)

    def _train_epochs(
        self,
        program: Program,
        seeds: Sequence[int],
        directories: Sequence[RunDirectory],
        checkpoints: Sequence[Checkpoints],
    ) -> TrainState:
        together = len(seeds)
        state, done = program.start(seeds), checkpoints[0].latest()
        if done is None:
            done = 0
            _save(checkpoints, 0, state)
        else:
            like = unstack(state, together)
            states = [each.restore(done, one) for each, one in zip(checkpoints, like, strict=True)]
            state = states[0] if together == 1 else jax.device_put(stack(states), jax.tree.map(_sharding, state))
        with epoch_reports(self.settings.epochs, seeds, directories, done, self._console, _describe) as report:
            for epoch in range(done + 1, self.settings.epochs + 1):
                rate = float(jnp.asarray(self._schedule((epoch - 1) * self.steps)))
                state, lines = self._train_epoch(program, state, epoch, together)
                report([{"epoch": epoch, "learning_rate": rate, **line} for line in lines])
                _save(checkpoints, epoch, state)
        return state

    def _train_epoch(
        self, program: Program, state: TrainState, epoch: int, together: int
    ) -> tuple[TrainState, list[dict[str, Any]]]:
        """One epoch, and what the logs say of it.

        Scales are those of the balanced layers in force at the epoch's end, and metrics what they were assigned from;
        alphas are those of the weights after it, by the fit that the metric has. A refresh inside the compiled epoch
        cannot be timed there: its time is that of measuring alpha behind the epoch, by a refresh that takes in the few
        layers that are not balanced. Where seeds train together, each one's times are its share.
        """
        start = time.perf_counter()
        state, train_metrics, observed = program.train(state)
        _wait(train_metrics)
        trained = time.perf_counter()
        test_metrics = _wait(program.test(state))
        tested = time.perf_counter()
        alphas = _wait(program.measure(state))
        measured = time.perf_counter()
        balance = optax.tree_utils.tree_get(state.opt_state, "TempBalanceState")
        refreshes = self._refreshes(epoch)
        common = {
            "images_per_second": together * self.steps * self.settings.batch_size / (trained - start),
            "refreshes": refreshes,
            "refresh_seconds": refreshes * (measured - tested) / together,
            "seconds": (measured - start) / together,
        }
        found = {
            "train_loss": train_metrics.loss,
            "train_accuracy": train_metrics.accuracy,
            "test_loss": test_metrics.loss,
            "test_accuracy": test_metrics.accuracy,
            "alpha": alphas,
            "scale": {} if balance is None else balance.scale,
            "metric": {} if balance is None else balance.metric,
            "gradient_norm": observed.norms,
        }
        lines = []
        for one in unstack(jax.device_get(found), together):
            one["scale"] = one["scale"] or {layer.name: 1.0 for layer in program.balanced}
            ordered = {name: _in_order(program, one[name]) for name in ("alpha", "metric", "scale", "gradient_norm")}
            lines.append(jax.tree.map(float, one | ordered) | common)
        weight = kernels(state.params)[program.watched.kernel]
        for line, own, kernel in zip(lines, unstack(observed, together), unstack(weight, together), strict=True):
            line |= self._within(program, epoch, own, kernel)
        return state, lines

    def _within(self, program: Program, epoch: int, observed: Observations, kernel: jax.Array) -> dict[str, Any]:
        """What the log of some epochs tells of the steps in between.

        `gradient_norms_within` has, of each layer, the norms at steps 0, `every`, 2 `every` and so on of the epoch's
        `steps`; `spectra_within` the spectra of one weight, within the first epoch and after some.
        """
        found = {}
        if epoch <= _EPOCHS_WITHIN:
            norms = {name: values.tolist() for name, values in jax.device_get(observed.norms_within).items()}
            found["gradient_norms_within"] = {
                "every": NORM_INTERVAL, "steps": self.steps, "norms": _in_order(program, norms)
            }  # fmt: skip
        if told_after(epoch, self.settings.epochs):
            copies = jax.device_get(observed.watched) if epoch == 1 else ()
            weights = dict(zip(watched_steps(self.steps), copies, strict=False))
            weights[epoch * self.steps] = jax.device_get(kernel)
            spectra = of_one_weight(program.watched, weights, FITS[self.settings.fit])
            found["spectra_within"] = {"layer": program.watched.name, "steps": self.steps, "spectra": spectra}
        return found

    def _refreshes(self, epoch: int) -> int:
        """How many refreshes fall in an epoch, the first being 1."""
        if not METHODS[self.settings.method].balanced:
            return 0
        begin, interval = self.settings.start_epoch * self.steps, self.settings.update_interval or self.steps
        before = lambda epoch: len(range(begin, epoch * self.steps, interval))
        return before(epoch) - before(epoch - 1)

    def _finish(self, program: Program, state: TrainState, seed: int, directory: RunDirectory) -> None:
        """What is left of a run behind its last epoch."""
        params = jax.device_get(state.params)  # alone: the other processes are not here
        spectra = _in_order(program, histograms(params, program.weights, FITS[self.settings.fit]))
        directory.write_summary({"spectra": spectra, "provenance": provenance()})
        log = directory.log()
        title = f"{self.settings.model} x{self.settings.width:g}, {self._name}, {self.settings.method}"
        plots = plot_run(log, f"{title}, seed {seed}", directory.path)
        accuracy = f"test accuracy {log[-1]['test_accuracy']:.2%} after {self.settings.epochs} epochs"
        self._console.print(accuracy, style="bold")
        self._console.print(f"plots: {' '.join(map(str, plots))}", soft_wrap=True)


def _describe(line: Mapping[str, Any]) -> str:
    scales = line["scale"].values()
    spread = f"  scales {min(scales):.2f}-{max(scales):.2f}" if line["refreshes"] or max(scales) != 1 else ""
    return (
        f"loss {line['train_loss']:.3f}  train {line['train_accuracy']:.1%}  test {line['test_accuracy']:.1%}  "
        f"{line['images_per_second']:,.0f} images/s{spread}"
    )


def _model_creator(settings: Settings, dataset: Dataset) -> Callable[[int], nnx.Module]:
    # As one program, and with keys of the kind that compiles fast: four seconds instead of twenty on CPU.
    @nnx.jit
    def create(key: jax.Array) -> nnx.Module:
        return create_model(
            settings.model,
            width=settings.width,
            num_classes=dataset.num_classes,
            image_shape=dataset.train_images.shape[1:],
            dtype=jnp.dtype(settings.dtype),
            rngs=nnx.Rngs(key),
        )

    return lambda seed: create(jax.random.key(seed, impl="rbg"))


def _save(checkpoints: Sequence[Checkpoints], epoch: int, state: TrainState) -> None:
    for each, one in zip(checkpoints, unstack(state, len(checkpoints)), strict=True):
        each.save(epoch, one)


def _sharding(leaf: jax.Array) -> Any:
    return leaf.sharding


def _in_order(program: Program, values: Mapping[str, Any]) -> dict[str, Any]:
    """By layer, in the network's order."""
    return {layer.name: values[layer.name] for layer in program.weights if layer.name in values}


def _wait(arrays: Any) -> Any:
    """Waits for arrays in Python, where Ctrl-C is heard, and not in the runtime, where it is not."""
    while not all(array.is_ready() for array in jax.tree.leaves(arrays)):
        time.sleep(0.002)
    return arrays
