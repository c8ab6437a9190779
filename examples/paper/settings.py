"""The settings that the runs of all tasks have; a task's own are a dataclass that adds to them."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

from examples.paper.errors import UserError

_OF_SCALES = {"control", "min_scale", "max_scale", "greatest_ends", "transition_steps", "refresh_fraction"}
_OF_DECAYS = {"min_decay_scale", "max_decay_scale"}


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Every choice that changes a run's result, each with a default. Paths only say where data lie."""

    method: str = "tb"
    model: str = ""
    dataset: str = ""
    data_dir: Path | None = None
    seed: int = 43
    batch_size: int = 1
    metric: Literal["pl_alpha_hill", "spectral_norm", "alpha_weighted", "relative_to_noise"] = "pl_alpha_hill"
    """The metric of a layer's spectrum that its scale is computed from (tb, alphadecay). relative_to_noise is pl_alpha_hill
    over that of noise of the layer's shape, for the assignments sqrt and sigmoid."""
    fit: Literal["median", "goodness_of_fit", "fix_finger"] = "median"
    """How a power law is fitted to the tail of a spectrum (tb, alphadecay)."""
    tail_fraction: float = 0.5
    """The fraction of the eigenvalues that the fit `median` takes as the tail (tb, alphadecay)."""
    spectrum_rows: int | None = None
    """Measures square windows with this many rows instead of whole matrices (FARMS; tb, alphadecay)."""
    blocks: bool = False
    """The layers of a block share one scale (tb, alphadecay)."""
    assignment: Literal["linear", "sqrt", "log2", "step", "sigmoid"] = "linear"
    """How scales are computed from metrics (tb, alphadecay)."""
    control: Literal["none", "placebo", "mean", "reversed", "shape", "embedding"] = "none"
    """A control of tb. placebo deals the scales to layers at random; mean gives every layer the mean scale; reversed deals
    the scales in reverse order of the metric; shape takes the alpha of noise of a layer's shape for its metric; embedding
    scales only what --greatest-ends gives the greatest scale."""
    min_scale: float = 0.5
    """The smallest scale of a layer (tb). With linear, the layer with the heaviest tail has it."""
    max_scale: float = 1.5
    """The largest scale of a layer (tb)."""
    min_decay_scale: float = 0.67
    """The smallest factor on a layer's weight decay (alphadecay)."""
    max_decay_scale: float = 5.0
    """The largest factor on a layer's weight decay (alphadecay)."""
    update_interval: int | None = None
    """Steps from one refresh of the scales to the next (tb, alphadecay); by default the steps of an epoch."""
    first_and_last: bool = False
    """Balances the first and the last layer too (tb, alphadecay)."""
    greatest_ends: bool = False
    """Gives the embedding, the first and the last layer the greatest scale, without measuring them, as LLR does (tb)."""
    transition_steps: int | None = None
    """The steps that a scale takes to its new value (tb); 20 in LLR."""
    refresh_fraction: float = 1.0
    """The first part of the training in which scales are refreshed (tb); 0.2 in LLR."""

    @property
    def base(self) -> str:
        """The optimizer, which TempBalance may follow: `snr` of `tb+snr`."""
        return base_of(self.method)

    @property
    def balanced(self) -> bool:
        """Whether TempBalance follows the optimizer."""
        return is_balanced(self.method)

    @property
    def decays(self) -> bool:
        """Whether the optimizer's weight decay is AlphaDecay's."""
        return self.base.endswith("+alphadecay")

    @property
    def network(self) -> str:
        """The model and its size, in a few words."""
        return self.model

    @property
    def intervals(self) -> int:
        """How many epochs or evaluations a run has."""
        raise NotImplementedError

    @property
    def units(self) -> int:
        """How many images or tokens a step trains on."""
        return self.batch_size

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    @functools.cache
    def places(cls) -> frozenset[str]:
        """The settings that are paths. The data may lie elsewhere when a run is resumed."""
        hints = get_type_hints(cls)
        return frozenset(name for name in cls.names() if Path in (hints[name], *get_args(hints[name])))

    @classmethod
    @functools.cache
    def methods(cls) -> tuple[str, ...]:
        """The methods that there are."""
        return get_args(get_type_hints(cls)["method"])

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From a line of results: settings that it lacks have their defaults, and names that are none are left out."""
        names = cls.names()
        return cls(**{name: value for name, value in values.items() if name in names})

    def key(self) -> str:
        """As text; equal for equal runs, wherever their data lie."""
        values = sorted(dataclasses.asdict(self.resolved()).items())
        return json.dumps({name: value for name, value in values if name not in self.places()})

    def unused(self) -> set[str]:
        """The settings that a run with these ones does not read."""
        if not (self.balanced or self.decays):
            return set(BALANCE)
        others = (set() if self.balanced else _OF_SCALES) | (set() if self.decays else _OF_DECAYS)
        if self.control in ("shape", "embedding"):
            return others | {"metric", "fit", "tail_fraction", "spectrum_rows"}
        if self.metric == "spectral_norm":
            return others | {"fit", "tail_fraction"}
        return others if self.fit == "median" else others | {"tail_fraction"}

    def resolved(self) -> Self:
        """The same run with the defaults of all settings that it does not read, so that equal runs compare equal."""
        not_read = self.unused()
        return dataclasses.replace(
            self, **{each.name: each.default for each in dataclasses.fields(self) if each.name in not_read}
        )

    @property
    def ends(self) -> bool | Literal["unmeasured"]:
        """What `trace_layers` does with the first and the last layer."""
        return "unmeasured" if self.greatest_ends else self.first_and_last

    def refreshes(self, steps: int) -> tuple[int, int]:
        """The steps from one refresh to the next, and before the first; an interval has `steps`."""
        return (steps if self.update_interval is None else self.update_interval), 0

    def refreshed_by_loop(self, steps: int) -> bool:
        """Whether scales are refreshed before each interval, and never within one."""
        return self.update_interval is None and self.refreshes(steps) == (steps, 0) and self.refresh_fraction == 1

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        bounds = ("min_scale", "max_scale", "min_decay_scale", "max_decay_scale")
        check_range(self, ("update_interval", "tail_fraction", "batch_size"), bounds)
        check_range(self, ("transition_steps", "refresh_fraction"), ())
        check_seed(self.seed)
        if self.refresh_fraction > 1:
            raise UserError(f"--refresh-fraction {self.refresh_fraction} must be at most 1.")
        if self.first_and_last and self.greatest_ends:
            raise UserError("--first-and-last and --greatest-ends exclude each other; give one of them.")
        if self.control == "embedding" and not self.greatest_ends:
            raise UserError("--control embedding scales what --greatest-ends names; give --greatest-ends too.")
        for low, high in (bounds[:2], bounds[2:]):
            if getattr(self, low) > getattr(self, high):
                least, greatest = (f"--{name.replace('_', '-')} {getattr(self, name)}" for name in (low, high))
                raise UserError(f"{least} is above {greatest}.")
        if self.spectrum_rows is not None and self.spectrum_rows < 2:
            raise UserError(f"--spectrum-rows {self.spectrum_rows} must be at least 2.")
        if self.tail_fraction > 1:
            raise UserError(f"--tail-fraction {self.tail_fraction} must be at most 1.")


BALANCE = tuple(
    name for name in RunSettings.names() if name not in ("method", "model", "dataset", "data_dir", "seed", "batch_size")
)
"""The settings of TempBalance and AlphaDecay."""


def base_of(method: str) -> str:
    """The optimizer of a method without TempBalance: `snr` of `tb+snr`; `cal`, the paper's SGD, of `tb` alone."""
    return method.removeprefix("tb").removeprefix("+") or "cal"


def is_balanced(method: str) -> bool:
    """Whether TempBalance is part of a method."""
    return method.split("+")[0] == "tb"


def check_seed(seed: object) -> None:
    """Raises UserError where a seed is not one of the 32-bit numbers that JAX draws from."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed} must be a whole number from 0 to {2**32 - 1}.")


def check_range(settings: RunSettings, positive: tuple[str, ...], others: tuple[str, ...]) -> None:
    """Raises UserError where a number is not above 0, or one of the others is below it. None is in every range."""
    for name in (*positive, *others):
        value = getattr(settings, name)
        if value is not None and not (value > 0 if name in positive else value >= 0):
            least = "above 0" if name in positive else "at least 0"
            raise UserError(f"--{name.replace('_', '-')} {value} must be {least}.")
