"""Trains a setting: the intervals of one seed, or of several together, and what is logged of each."""

import concurrent.futures
import contextlib
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
    histograms,
    kernels,
    of_one_weight,
    slice_name,
    told_after,
    watched_steps,
)
from examples.paper.parallel import is_first_process, raise_if_interrupted
from examples.paper.program import Program, stack, unstack
from examples.paper.provenance import provenance
from examples.paper.run_directory import RunDirectory
from examples.paper.settings import RunSettings

_INTERVALS_WITHIN = 10
"""The first intervals, whose logs have gradient norms of single steps too: as many epochs as the paper's Figure 18."""


class Trainer:
    """Trains any seeds of a setting. It is compiled once for each number of seeds that train together.

    Raises:
      UserError: the model does not fit the data.
    """

    def __init__(self, domain: Domain, settings: RunSettings, data: Any, mesh: Mesh, console: rich.console.Console):
        self.domain, self.settings = domain, settings
        self.training = domain.build(settings, data, mesh)
        self._title = f"{settings.network}, {data.name}, {settings.method}"
        self._mesh, self._console = mesh, console
        self._fit = tail_fit(settings)
        self._programs: dict[int, Program] = {}

    def program(self, together: int) -> Program:
        """The compiled functions for this number of seeds."""
        if together not in self._programs:
            # In a thread, for Ctrl-C reaches Python while it waits, and may be lost or come late while it compiles.
            thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
            compiled = thread.submit(Program, self.training, self._fit, self._mesh, together)
            thread.shutdown(wait=False)
            with self._console.status("compiling"):
                self._programs[together] = compiled.result()
        return self._programs[together]

    def train(self, directories: Mapping[int, RunDirectory]) -> None:
        """Trains seeds together, each from the last checkpoint in its directory. All must stand at the same interval.

        Raises:
          KeyboardInterrupt: after the checkpoints are whole.
        """
        training, folders = self.training, tuple(directories.values())
        program, tested, last = self.program(len(folders)), {}, None
        with contextlib.ExitStack() as opened:
            checkpoints = [opened.enter_context(Checkpoints(directory.checkpoints)) for directory in folders]
            state, done = self._restored(program.start(tuple(directories)), checkpoints)
            report = opened.enter_context(interval_reports(self.settings.intervals, directories, done, self._console))
            for number in range(done + 1, self.settings.intervals + 1):
                state, lines = self._train_interval(program, state, number, len(folders))
                report(lines)
                _save(checkpoints, number, state)
                raise_if_interrupted()
        if training.test_data is not None:
            tested = _named("test", program.test(state, training.test_data))
        if training.pictures is not None:
            state, last = program.evaluate(state, training.held_out_data)
        if is_first_process():
            states = unstack((state, *jax.device_get((tested, last))), len(folders))
            for own, (seed, directory) in zip(states, directories.items(), strict=True):
                self._finish(program, seed, directory, *own)

    def _restored(self, state: Any, checkpoints: Sequence[Checkpoints]) -> tuple[Any, int]:
        """The state to begin with, and how many intervals are done."""
        done = checkpoints[0].latest()
        if done is None:
            _save(checkpoints, 0, state)
            return state, 0
        like = unstack(state, len(checkpoints))
        states = [each.restore(done, one) for each, one in zip(checkpoints, like, strict=True)]
        if len(states) == 1:
            return states[0], done
        return jax.device_put(stack(states), jax.tree.map(lambda leaf: leaf.sharding, state)), done

    def _train_interval(self, program: Program, state: Any, number: int, together: int) -> tuple[Any, list[dict[str, Any]]]:
        """Trains one interval: the state after it, and the line of each seed's log, as `docs/log.md` describes it.

        A refresh inside the compiled interval cannot be timed alone. Its time is taken as that of measuring alpha
        afterwards, which is a refresh that includes the few layers that are not balanced.
        """
        training, domain = self.training, self.domain
        start = time.perf_counter()
        state, train_metrics, observed = program.train(state, training.data)
        _wait(train_metrics)
        trained = time.perf_counter()
        state, held_out = program.evaluate(state, training.held_out_data)
        _wait(held_out)
        evaluated = time.perf_counter()
        alphas = _wait(program.measure(state.params))
        measured = time.perf_counter()
        own_states = (
            optax.tree_utils.tree_get(state.opt_state, name)
            for name in ("TempBalanceState", "TempBalanceTransitionState", "AlphaDecayState")
        )
        balance, in_transition, decay = own_states
        balance = in_transition if balance is None else balance
        refreshes = self._refreshes(number)
        rate = float(jnp.asarray(training.schedule((number - 1) * training.steps)))
        common = {
            domain.speed: together * training.steps * self.settings.units / (trained - start),
            "refreshes": refreshes,
            "refresh_seconds": refreshes * (measured - evaluated) / together,
            "seconds": (measured - start) / together,
        }
        by_layer = {
            "alpha": alphas,
            "scale": {} if balance is None else balance.scale,
            "metric": {} if balance is None else balance.metric,
            **({} if decay is None else {"decay_scale": decay.scale, "decay_metric": decay.metric}),
            "gradient_norm": observed.norms,
        }
        weight = kernels(state.params)[training.watched.kernel]
        lines = []
        found = jax.device_get((_named("train", train_metrics), held_out, by_layer))
        for (trained_on, held, layers), seen, kernel in zip(
            *(unstack(each, together) for each in (found, observed, weight)), strict=True
        ):
            metrics = trained_on | _named(domain.held_out, training.summarize(held))
            layers["scale"] = layers["scale"] or {
                layer.name: np.ones_like(layers["alpha"][layer.name]) for layer in training.balanced.measured
            }
            lines.append(
                {domain.interval: number, "learning_rate": rate}
                | {name: float(value) for name, value in metrics.items()}
                | {name: self._in_order(layers[name]) for name in by_layer}
                | common
                | self._within(number, seen, kernel)
            )
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

    def _finish(self, program: Program, seed: int, directory: RunDirectory, state: Any, tested: Any, last: Any) -> None:
        """Writes the summary and the plots of a finished run."""
        from examples.paper.plots import plot_run  # here, for matplotlib takes a while

        tested = jax.tree.map(float, tested)
        spectra = program.spectra(jax.device_get(state.params))  # alone: the other processes are not here
        told = histograms(spectra, self.training.weights)
        directory.write_summary({**tested, "spectra": told, "provenance": provenance()})
        log, interval = directory.log(), self.domain.interval
        plots = plot_run(log, interval, f"{self._title}, seed {seed}", directory.path)
        if self.training.pictures is not None:
            plots += self.training.pictures(seed, last, directory.path)
        measure, count = self.domain.measure, self.settings.intervals
        result = f"{measure.title} {measure.in_words(log[-1] | tested)} after {count} {interval}s"
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


def _wait(arrays: Any) -> Any:
    """Waits for arrays in Python, where Ctrl-C interrupts; the runtime's own wait does not react to it."""
    while not all(array.is_ready() for array in jax.tree.leaves(arrays)):
        time.sleep(0.002)
    return arrays
