"""What makes a domain: all that training, sweeps and reports know of what is trained, on what, and for what."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, get_args, get_type_hints

import optax
from jax.sharding import Mesh

import tb_optax
from examples.paper.balance import FitTail
from examples.paper.observations import Observations

PyTree = Any


class Method(NamedTuple):
    """An optimizer, and whether TempBalance follows it."""

    base: str
    balanced: bool = False

    @property
    def decays(self) -> bool:
        """Whether the optimizer's decay is AlphaDecay's."""
        return self.base.endswith("+alphadecay")


class Settings(Protocol):
    """A dataclass of every choice that changes a run's result, each with a default; paths only say where data lie.

    Most domains have theirs from `examples.paper.balance.BalanceSettings`.
    """

    @property
    def method(self) -> Any: ...
    @property
    def model(self) -> Any: ...
    @property
    def dataset(self) -> str: ...
    @property
    def data_dir(self) -> Path | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch_size(self) -> int: ...

    @property
    def network(self) -> str:
        """The model and its size, in a few words."""
        ...

    @property
    def intervals(self) -> int:
        """How many a run has."""
        ...

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        ...

    def resolved(self) -> Self:
        """The same run, said in one way."""
        ...

    def tail_fit(self) -> FitTail:
        """How tails of spectra are fitted."""
        ...

    def refreshes(self, steps: int) -> tuple[int, int]:
        """The steps from one refresh of TempBalance to the next, and before the first; an interval has `steps`."""
        ...


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


@dataclasses.dataclass(frozen=True)
class Domain:
    """A kind of training with settings, data, networks and a measure of its own. Its folder here has its name."""

    name: str
    settings: type[Settings]
    load: Callable[[Any], Any]
    """The data of settings; raises UserError where there are none, or they do not fit."""
    prepare: Callable[[Any, Any, Mesh], Training]
    """Of settings, data and a mesh; raises UserError where the model does not fit the data."""
    methods: Mapping[str, Method]
    baseline: str
    """The method that all others are held against."""
    measure: Measure
    metrics: tuple[str, ...]
    """What every interval's line tells, and results keep: `train_` and `held_out` before the names of metrics."""
    describe: Callable[[Mapping[str, Any]], str]
    """What the terminal says of a line."""
    unused: Callable[[Mapping[str, Any]], set[str]]
    """The settings that a run with these ones does not read."""
    task: tuple[str, ...]
    """The settings that tell what is trained, on what and how long, whatever the method."""
    data: tuple[str, ...]
    """Those of them that choose the data."""
    always_told: tuple[str, ...] = ()
    """The settings that a report tells even where they are as by default."""
    speaking: tuple[str, ...] = ()
    """Those whose values need no name beside them."""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """How a report writes names: of methods, models, settings."""
    introduction: str = ""
    """What a report says of the baseline and of TB."""
    interval: str = "epoch"
    """What the log has a line of."""
    unit: str = "images"
    held_out: str = "test"
    """What every interval is evaluated on."""
    chosen_by: str | None = None
    """The metric of intervals, the lower the better, whose least in a run chooses among learning rates where a grid has
    several; None where every setting is compared."""
    appendix: Callable[[Path], Iterator[str]] = lambda _: iter(())
    """What else its report has, in Markdown, with figures in a folder."""

    @property
    def folder(self) -> Path:
        """Of its `grids`, `results` and `published.jsonl`."""
        return Path(__file__).parent / self.name

    @property
    def places(self) -> set[str]:
        """The settings that only say where data lie, which may be elsewhere when a run goes on: those that are paths."""
        return {name for name, hint in get_type_hints(self.settings).items() if Path in (hint, *get_args(hint))}

    @property
    def speed(self) -> str:
        """How a line calls it."""
        return f"{self.unit}_per_second"

    def field_names(self) -> list[str]:
        """Of the settings."""
        return [field.name for field in dataclasses.fields(self.settings)]  # pyright: ignore[reportArgumentType]

    def is_balanced(self, settings: Mapping[str, Any]) -> bool:
        return self.methods[settings["method"]].balanced
