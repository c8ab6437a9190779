"""Trains a setting: the intervals of one seed, or of several together, and what is logged of each."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
from jax.sharding import Mesh

from examples.paper.balance import tail_fit
from examples.paper.checkpoints import Checkpoints
from examples.paper.domain import Domain
from examples.paper.interval_reports import interval_reports
from examples.paper.observations import (
    NORM_INTERVAL,
    Observations,
    by_slice,
    first_slice,
    kernels,
    slice_name,
    watched_steps,
)
from examples.paper.parallel import is_first_process
from examples.paper.program import Program, compile_program, stack, unstack
from examples.paper.provenance import provenance
from examples.paper.run_directory import RunDirectory
from examples.paper.settings import RunSettings
from examples.paper.weight_spectra import Spectrum, histograms, of_one_weight, told_after

_INTERVALS_WITHIN = 10
"""The first intervals, whose logs have gradient norms of single steps too: as many epochs as the paper's Figure 18."""


class Trainer:
    """Trains any seeds of a setting. It is compiled once for each number of seeds that train together.

    Raises:
      UserError: the model does not fit the data.
    """

    def __init__(self, domain: Domain, settings: RunSettings, data: Any, mesh: Mesh, console: rich.console.Console):
        self.domain, self.settings = domain, settings
        self.training = domain.prepare(settings, data, mesh)
        self._data, self._mesh, self._console = data, mesh, console
        self._fit = tail_fit(settings)
        self._programs: dict[int, Program] = {}

    def program(self, together: int) -> Program:
        """The compiled functions for this number of seeds."""
        if together not in self._programs:
            self._programs[together] = compile_program(self.training, self._fit, self._mesh, together)
        return self._programs[together]

    def train(self, directories: Mapping[int, RunDirectory]) -> None:
        """Trains seeds together, each from the last checkpoint in its directory. All must stand at the same interval.

        Raises:
          KeyboardInterrupt: after the checkpoints are whole.
        """
        program = self.program(len(directories))
        with contextlib.ExitStack() as opened:
            checkpoints = [opened.enter_context(Checkpoints(directory.checkpoints)) for directory in directories.values()]
            state = self._train_intervals(program, tuple(directories), tuple(directories.values()), checkpoints)
            tested = {} if program.test is None else _named("test", program.test(state))
            last = {} if self.domain.pictures is None else program.evaluate(state)
        if is_first_process():
            states = unstack((state, jax.device_get(tested), jax.device_get(last)), len(directories))
            for (seed_state, seed_tested, seed_last), (seed, directory) in zip(states, directories.items(), strict=True):
                spectra = program.spectra(jax.device_get(seed_state.params))  # alone: the other processes are not here
                self._finish(spectra, jax.tree.map(float, seed_tested), seed_last, seed, directory)

    def _train_intervals(
        self,
        program: Program,
        seeds: Sequence[int],
        directories: Sequence[RunDirectory],
        checkpoints: Sequence[Checkpoints],
    ) -> Any:
        training, together = self.training, len(seeds)
        with self._console.status("compiling"):
            state = program.start(seeds)
            program.bytes_needed()  # waits
        done = checkpoints[0].latest()
        if done is None:
            done = 0
            _save(checkpoints, 0, state)
        else:
            like = unstack(state, together)
            states = [each.restore(done, one) for each, one in zip(checkpoints, like, strict=True)]
            state = states[0] if together == 1 else jax.device_put(stack(states), jax.tree.map(_sharding, state))
        with interval_reports(self.settings.intervals, seeds, directories, done, self._console) as report:
            for number in range(done + 1, self.settings.intervals + 1):
                rate = float(jnp.asarray(training.schedule((number - 1) * training.steps)))
                state, lines = self._train_interval(program, state, number, together)
                report([{self.domain.interval: number, "learning_rate": rate, **line} for line in lines])
                _save(checkpoints, number, state)
        return state

    def _train_interval(self, program: Program, state: Any, number: int, together: int) -> tuple[Any, list[dict[str, Any]]]:
        """Trains one interval: the state after it, and the line of each seed's log, as `docs/log.md` describes it.

        A refresh inside the compiled interval cannot be timed alone. Its time is taken as that of measuring alpha
        afterwards, which is a refresh that includes the few layers that are not balanced.
        """
        training = self.training
        start = time.perf_counter()
        state, train_metrics, observed = program.train(state)
        _wait(train_metrics)
        trained = time.perf_counter()
        held_out = _wait(program.evaluate(state))
        evaluated = time.perf_counter()
        alphas = _wait(program.measure(state))
        measured = time.perf_counter()
        state = program.keep(state, held_out)
        names = ("TempBalanceState", "TempBalanceTransitionState")
        states = [optax.tree_utils.tree_get(state.opt_state, name) for name in names]
        balance = next((found for found in states if found is not None), None)
        decay = optax.tree_utils.tree_get(state.opt_state, "AlphaDecayState")
        refreshes = self._refreshes(number)
        common = {
            self.domain.speed: together * training.steps * self.settings.units / (trained - start),
            "refreshes": refreshes,
            "refresh_seconds": refreshes * (measured - evaluated) / together,
            "seconds": (measured - start) / together,
        }
        found = {
            **_named("train", train_metrics),
            self.domain.held_out: held_out,
            "alpha": alphas,
            "scale": {} if balance is None else balance.scale,
            "metric": {} if balance is None else balance.metric,
            **({} if decay is None else {"decay_scale": decay.scale, "decay_metric": decay.metric}),
            "gradient_norm": observed.norms,
        }
        lines = []
        for one in unstack(jax.device_get(found), together):
            one |= _named(self.domain.held_out, self.domain.summarize(one.pop(self.domain.held_out), self._data))
            one["scale"] = one["scale"] or {
                layer.name: np.ones_like(one["alpha"][layer.name]) for layer in training.balanced.measured
            }
            ordered = {name: self._in_order(one[name]) for name in found if isinstance(one.get(name), dict)}
            others = {name: float(value) for name, value in one.items() if name not in ordered}
            lines.append(others | ordered | common)
        weight = kernels(state.params)[training.watched.kernel]
        for line, own, kernel in zip(lines, unstack(observed, together), unstack(weight, together), strict=True):
            line |= self._within(number, own, kernel)
        return state, lines

    def _within(self, number: int, observed: Observations, kernel: jax.Array) -> dict[str, Any]:
        """What some lines of the log have besides: `gradient_norms_within` and `spectra_within`."""
        found, steps, watched = {}, self.training.steps, self.training.watched
        if number <= _INTERVALS_WITHIN:
            norms = {name: np.moveaxis(each, 0, -1) for name, each in jax.device_get(observed.norms_within).items()}
            told = {"every": NORM_INTERVAL, "steps": steps, "norms": self._in_order(norms, inner=1)}
            found["gradient_norms_within"] = told
        if told_after(number, self.settings.intervals):
            copies = jax.device_get(observed.watched) if number == 1 else ()
            weights = dict(zip(watched_steps(steps), copies, strict=False))
            weights[number * steps] = jax.device_get(first_slice(watched, kernel))
            spectra = of_one_weight(watched, weights, self._fit)
            name = slice_name(watched.name, [0] * len(watched.layer_axes))
            found["spectra_within"] = {"layer": name, "steps": steps, "spectra": spectra}
        return found

    def _refreshes(self, number: int) -> int:
        """How many refreshes fall in an interval, the first being 1."""
        if not (self.settings.balanced or self.settings.decays):
            return 0
        steps = self.training.steps
        every, begin = self.settings.refreshes(steps)
        before = lambda number: len(range(begin, number * steps, every))
        return before(number) - before(number - 1)

    def _finish(
        self,
        spectra: Mapping[str, Spectrum],
        tested: dict[str, float],
        last: Any,
        seed: int,
        directory: RunDirectory,
    ) -> None:
        """Writes the summary and the plots of a finished run."""
        from examples.paper.plots import plot_run  # here, for matplotlib takes a while

        told = histograms(spectra, self.training.weights)
        directory.write_summary({**tested, "spectra": told, "provenance": provenance()})
        log = directory.log()
        title = f"{self.settings.network}, {self._data.name}, {self.settings.method}, seed {seed}"
        plots = plot_run(log, self.domain.interval, title, directory.path)
        if self.domain.pictures is not None:
            settings = dataclasses.replace(self.settings, seed=seed)
            plots += self.domain.pictures(settings, self._data, last, directory.path)
        measure, count = self.domain.measure, self.settings.intervals
        result = f"{measure.title} {measure.in_words(log[-1] | tested)} after {count} {self.domain.interval}s"
        self._console.print(result, style="bold")
        self._console.print(f"plots: {' '.join(map(str, plots))}", soft_wrap=True)

    def _in_order(self, values: Mapping[str, Any], inner: int = 0) -> dict[str, Any]:
        """By layer, in the network's order, each slice of a stack alone; `inner` as in `by_slice`."""
        ordered = {layer.name: values[layer.name] for layer in self.training.weights if layer.name in values}
        return by_slice(ordered, inner)


def _named(on: str, metrics: Any) -> dict[str, Any]:
    """Metrics by their names in the log: `test_loss`."""
    return {f"{on}_{name}": value for name, value in metrics._asdict().items()}


def _save(checkpoints: Sequence[Checkpoints], number: int, state: Any) -> None:
    for each, one in zip(checkpoints, unstack(state, len(checkpoints)), strict=True):
        each.save(number, one)


def _sharding(leaf: jax.Array) -> Any:
    return leaf.sharding


def _wait(arrays: Any) -> Any:
    """Waits for arrays in Python, where Ctrl-C interrupts; the runtime's own wait does not react to it."""
    while not all(array.is_ready() for array in jax.tree.leaves(arrays)):
        time.sleep(0.002)
    return arrays
