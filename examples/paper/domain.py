"""A task as the commands know it: its settings, its data, and training as pure functions."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh
from jaxtyping import Array

import tb_optax
from examples.paper.report.style import Style
from examples.paper.settings import RunSettings

PyTree = Any


class Training(NamedTuple):
    """A setting with its data on a mesh: pure functions on a state, which are compiled together.

    The state is a named tuple of all that a step changes. It has `params`, `opt_state` and `step`, the number of steps
    taken. What a step draws at random depends on the state alone, so a resumed run draws the same.
    """

    init: Callable[[int], Any]
    """The state, from a seed."""
    inputs: Callable[[Any, PyTree], PyTree]
    """What `loss` needs for each step of an interval, stacked along the first axis: of the state before, and `data`."""
    loss: Callable[[PyTree, Any, PyTree, PyTree], tuple[Array, tuple[Any, dict[str, Any]]]]
    """The loss, a named tuple of metrics, and new values of the state's other fields: of the parameters, the state before
    the step, the step's inputs, and `data`."""
    evaluate: Callable[[Any, PyTree], Any]
    """A named tuple of metrics, or what `summarize` makes one of: of a state, and `held_out_data`."""
    tx: optax.GradientTransformationExtraArgs
    """The optimizer. If it has a `refresh`, it is called before each interval."""
    data: PyTree
    held_out_data: PyTree
    balanced: tb_optax.Layers
    weights: tb_optax.Layers
    """Every weight with two eigenvalues or more, the first and the last layer too."""
    schedule: optax.Schedule
    """The learning rate, by the step."""
    steps: int
    """The number of steps of an interval."""
    test_data: PyTree = None
    """If given, the state also has `best` and `best_loss`: the parameters with the lowest held-out loss so far, which are
    tested on this, once, at the end."""
    summarize: Callable[[Any], Any] = lambda evaluated: evaluated
    """The named tuple of metrics, of what `evaluate` gives for one seed; on the host."""
    pictures: Callable[[int, Any, Path], Iterable[Path]] | None = None
    """Writes pictures at the end of a run: of its seed, what `evaluate` gives, and a folder."""

    @property
    def watched(self) -> tb_optax.Layer:
        """The layer whose spectrum is logged within the first interval too.

        It is an early one, which is small: copies of a late one would need as much memory as the network.
        """
        return (self.balanced or self.weights)[:2][-1]


class Measure(NamedTuple):
    """What runs are compared by, when they are done."""

    name: str
    """In results."""
    title: str
    percent: bool
    higher_is_better: bool

    def of(self, row: Mapping[str, Any]) -> float:
        """As tables have it."""
        return row[self.name] * (100 if self.percent else 1)

    def in_words(self, row: Mapping[str, Any]) -> str:
        return f"{self.of(row):.2f}" + "%" * self.percent


class Domain(NamedTuple):
    """A task. Its folder here has its name."""

    name: str
    settings: type[RunSettings]
    load: Callable[[Any], Any]
    """The data of settings, with a `name`, and `contents()` that tell whether several processes have the same. Raises
    UserError where there are none, or they do not fit."""
    build: Callable[[Any, Any, Mesh], Training]
    """Training as pure functions, of settings, data and a mesh. Raises UserError where the model does not fit the data."""
    measure: Measure
    metrics: tuple[str, ...]
    """The metrics in the log and in results: `train_` and a field of the metrics of `loss`, then `test_` or `valid_` and a
    field of those that are held out."""
    data: tuple[str, ...]
    """The settings that choose the data."""
    style: Style
    interval: str = "epoch"
    """What the log has a line for."""
    unit: str = "images"

    @property
    def folder(self) -> Path:
        """Of its `grids`, `results` and `published.jsonl`."""
        return Path(__file__).parent / self.name

    @property
    def held_out(self) -> str:
        """The part of the data that every interval is evaluated on, as its metrics are named."""
        return self.metrics[-1].partition("_")[0]

    @property
    def speed(self) -> str:
        """The key of the log for the speed of training."""
        return f"{self.unit}_per_second"
