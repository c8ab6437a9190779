"""A task as training, sweeps and reports know it: settings, data, and training as pure functions."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import optax
from jax.sharding import Mesh

import tb_optax
from examples.paper.observations import Observations
from examples.paper.report.style import Style
from examples.paper.settings import RunSettings

PyTree = Any


class Data(Protocol):
    """What a run trains on, in memory."""

    @property
    def name(self) -> str: ...

    def contents(self) -> bytes:
        """Which tell whether several processes have the same."""
        ...


class TrainState(Protocol):
    """A pytree of all that training changes; what it draws hangs on nothing else."""

    @property
    def params(self) -> PyTree: ...
    @property
    def opt_state(self) -> optax.OptState: ...


class Selection(NamedTuple):
    """How runs that are evaluated on validation data choose the parameters that are tested, once, at their end."""

    keep: Callable[[Any, Any], Any]
    """The state that has also in it whether it is the best so far, of a state and its metrics."""
    best: Callable[[Any], Any]
    """The best state, as it can be evaluated."""
    test_data: PyTree


class Training(NamedTuple):
    """A setting with its data on a mesh: pure functions, which are compiled together, and what there is to say of them."""

    initial: Callable[[int], Any]
    """The state, from a seed."""
    train: Callable[[Any, PyTree], tuple[Any, Any, Observations]]
    """An interval: the state after it, a named tuple of metrics, and observations. Of a state and `data`."""
    evaluate: Callable[[Any, PyTree], Any]
    """A named tuple of metrics, or what `summarize` makes one of: of a state and `held_out_data`."""
    data: PyTree
    held_out_data: PyTree
    balanced: tb_optax.Layers
    weights: tb_optax.Layers
    """Every weight with two eigenvalues or more, the first and the last layer too."""
    watched: tb_optax.Layer
    """Whose spectrum is told within the first interval too."""
    schedule: optax.Schedule
    """Of the learning rate, by the step."""
    steps: int
    """Of an interval."""
    units: int
    """That an interval trains on: images, tokens."""
    selection: Selection | None = None
    summarize: Callable[[Any], Any] = lambda metrics: metrics
    """The named tuple of metrics of what `evaluate` gives of one seed, where that is something else; on the host."""
    pictures: Callable[[int, Any, Path], Iterable[Path]] | None = None
    """Files of pictures, of a seed, of what `evaluate` gives at its end, and of a folder to write them to."""


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
    """A task: settings, data, and training as pure functions. Its folder here has its name."""

    name: str
    settings: type[RunSettings]
    load: Callable[[Any], Any]
    """The data of settings. Raises UserError where there are none, or they do not fit."""
    prepare: Callable[[Any, Any, Mesh], Training]
    """Training as pure functions, of settings, data and a mesh. Raises UserError where the model does not fit the data."""
    measure: Measure
    metrics: tuple[str, ...]
    """The metrics in the log and in results, named `train_` or `held_out`, then the field of the named tuple."""
    describe: Callable[[Mapping[str, Any]], str]
    """What the terminal shows of a line of the log."""
    data: tuple[str, ...]
    """The settings that choose the data."""
    style: Style
    interval: str = "epoch"
    """What the log has a line for."""
    unit: str = "images"
    held_out: str = "test"
    """The part of the data that every interval is evaluated on."""

    @property
    def folder(self) -> Path:
        """Of its `grids`, `results` and `published.jsonl`."""
        return Path(__file__).parent / self.name

    @property
    def speed(self) -> str:
        """The key of the log for the speed of training."""
        return f"{self.unit}_per_second"
