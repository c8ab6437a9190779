"""TempBalance and AlphaDecay in the runs of every domain: their flags, and the transformations that they ask for."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import optax

import tb_optax
from examples.paper.controls import CONTROLS
from examples.paper.errors import UserError
from tb_optax import fits

FitTail: TypeAlias = Callable[..., fits.PowerLaw]
LayersOrFn: TypeAlias = Sequence[tb_optax.Layer] | Callable[[Any], Sequence[tb_optax.Layer]]

_METRICS = {
    "pl_alpha_hill": tb_optax.metrics.pl_alpha_hill,
    "spectral_norm": tb_optax.metrics.spectral_norm,
    "alpha_weighted": tb_optax.metrics.alpha_weighted,
}
_FITS = {
    "median": fits.median,
    "goodness_of_fit": fits.goodness_of_fit,
    "fix_finger": fits.fix_finger,
}
_ASSIGNMENTS = {
    "linear": tb_optax.assignments.linear,
    "sqrt": tb_optax.assignments.sqrt,
    "log2": tb_optax.assignments.log2,
    "step": tb_optax.assignments.step,
    "sigmoid": tb_optax.assignments.sigmoid,
}
_OF_SCALES = {"control", "min_scale", "max_scale"}
_OF_DECAYS = {"min_decay_scale", "max_decay_scale"}


@dataclasses.dataclass(frozen=True)
class BalanceSettings:
    """What TempBalance (tb) and AlphaDecay do in a run that has them; all that a domain adds has a default too."""

    metric: Literal["pl_alpha_hill", "spectral_norm", "alpha_weighted"] = "pl_alpha_hill"
    """What of a layer's spectrum its scale is read off (tb, alphadecay)."""
    fit: Literal["median", "goodness_of_fit", "fix_finger"] = "median"
    """How the tail of a spectrum is fitted (tb, alphadecay)."""
    tail_fraction: float = 0.5
    """The share of a spectrum that is its tail, where fit is median (tb, alphadecay)."""
    spectrum_rows: int | None = None
    """Instead of a weight's own spectrum, that of square windows of so many rows (FARMS; tb, alphadecay)."""
    blocks: bool = False
    """Layers of a block share one scale (tb, alphadecay)."""
    assignment: Literal["linear", "sqrt", "log2", "step", "sigmoid"] = "linear"
    """How metrics become scales (tb, alphadecay)."""
    control: Literal["none", "placebo", "mean"] = "none"
    """Instead of each layer's own scale (tb), that of a layer drawn at every refresh, or every layer the mean of all."""
    min_scale: float = 0.5
    """The least scale of a layer (tb): with linear, that of the heaviest tail."""
    max_scale: float = 1.5
    """The greatest scale of a layer (tb)."""
    min_decay_scale: float = 0.67
    """The least of what a layer's weight decay is multiplied by (alphadecay)."""
    max_decay_scale: float = 5.0
    """The greatest of it (alphadecay)."""
    update_interval: int | None = None
    """Steps between refreshes of the scales (tb, alphadecay); by default an epoch's."""
    first_and_last: bool = False
    """Balances the first and the last layer too (tb, alphadecay)."""

    def refreshes(self, steps: int) -> tuple[int, int]:
        """The steps from one refresh to the next, and before the first; an interval has `steps`."""
        return (steps if self.update_interval is None else self.update_interval), 0

    def refreshed_by_loop(self, steps: int) -> bool:
        """Whether scales are refreshed before each interval, and never within one."""
        return self.update_interval is None and self.refreshes(steps) == (steps, 0)

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        bounds = ("min_scale", "max_scale", "min_decay_scale", "max_decay_scale")
        check_range(self, ("update_interval", "tail_fraction"), bounds)
        for low, high in (bounds[:2], bounds[2:]):
            if getattr(self, low) > getattr(self, high):
                least, greatest = (f"--{name.replace('_', '-')} {getattr(self, name)}" for name in (low, high))
                raise UserError(f"{least} is above {greatest}.")
        if self.spectrum_rows is not None and self.spectrum_rows < 2:
            raise UserError(f"--spectrum-rows {self.spectrum_rows} must be at least 2.")
        if self.tail_fraction > 1:
            raise UserError(f"--tail-fraction {self.tail_fraction} must be at most 1.")

    def tail_fit(self) -> FitTail:
        """The fit, as spectra are fitted with it."""
        return functools.partial(fits.median, tail_fraction=self.tail_fraction) if self.fit == "median" else _FITS[self.fit]


BALANCE = tuple(field.name for field in dataclasses.fields(BalanceSettings))


def unused_of_balance(settings: Mapping[str, Any], is_balanced: bool, decays: bool = False) -> set[str]:
    """Those of `BALANCE` that a run with these settings does not read: TempBalance balances it, or AlphaDecay, or both."""
    if not (is_balanced or decays):
        return set(BALANCE)
    others = (set() if is_balanced else _OF_SCALES) | (set() if decays else _OF_DECAYS)
    if settings["metric"] == "spectral_norm":
        return others | {"fit", "tail_fraction"}
    return others if settings["fit"] == "median" else others | {"tail_fraction"}


def check_seed(seed: object) -> None:
    """Raises UserError where a seed is not one of the 32-bit numbers that JAX draws from."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed} must be a whole number from 0 to {2**32 - 1}.")


def check_range(settings: object, positive: tuple[str, ...], others: tuple[str, ...]) -> None:
    """Raises UserError where a number is not above 0, or one of the others below it; None is any."""
    for name in (*positive, *others):
        value = getattr(settings, name)
        if value is not None and not (value > 0 if name in positive else value >= 0):
            least = "above 0" if name in positive else "at least 0"
            raise UserError(f"--{name.replace('_', '-')} {value} must be {least}.")


class Refreshable(optax.GradientTransformationExtraArgs):
    """An optimizer with parts whose scales the loop refreshes, before each interval."""

    refresh: Callable[[optax.OptState, Any], optax.OptState]


def chain(*parts: optax.GradientTransformation) -> Refreshable:
    """`optax.chain`, with a `refresh` that calls the parts' own."""
    chained = Refreshable(*optax.chain(*parts))
    own = [part.refresh for part in parts if hasattr(part, "refresh")]  # pyright: ignore[reportAttributeAccessIssue]
    chained.refresh = lambda opt_state, params: functools.reduce(lambda state, each: each(state, params), own, opt_state)
    return chained


def refreshing(
    tx: optax.GradientTransformation, train: Callable[[Any, Any], Any], settings: BalanceSettings, steps: int
) -> Callable[[Any, Any], Any]:
    """`train(state, data)`, an interval, with scales refreshed before it if that is when the settings refresh them."""
    if not (settings.refreshed_by_loop(steps) and hasattr(tx, "refresh")):
        return train
    refresh = tx.refresh  # pyright: ignore[reportAttributeAccessIssue]

    def train_refreshed(state: Any, data: Any) -> Any:
        return train(state._replace(opt_state=refresh(state.opt_state, state.params)), data)

    return train_refreshed


def balanced(
    optimizer: optax.GradientTransformation, settings: BalanceSettings, steps: int, layers: LayersOrFn
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with TempBalance after it: it scales the step, as PyTorch's per-layer learning rates do.

    Args:
      optimizer: its updates are scaled, decoupled decay included.
      settings: what TempBalance does.
      steps: of an interval.
      layers: that are balanced.
    """
    assign = _ASSIGNMENTS[settings.assignment]
    balance = tb_optax.tempbalance(
        min_scale=settings.min_scale,
        max_scale=settings.max_scale,
        assign=assign if settings.control == "none" else CONTROLS[settings.control](assign),
        **_of_both(settings, steps, layers),
    )
    return chain(optimizer, balance)


def adamw_with_alphadecay(
    schedule: optax.Schedule, weight_decay: float, settings: BalanceSettings, steps: int, layers: LayersOrFn
) -> optax.GradientTransformation:
    """AdamW, with AlphaDecay for its decay.

    Args:
      schedule: of the learning rate.
      weight_decay: of a layer whose scale is 1.
      settings: what AlphaDecay does.
      steps: of an interval.
      layers: that are balanced.
    """
    decay = tb_optax.alphadecay(
        weight_decay,
        min_scale=settings.min_decay_scale,
        max_scale=settings.max_decay_scale,
        assign=_ASSIGNMENTS[settings.assignment],
        **_of_both(settings, steps, layers),
    )
    return chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(schedule))


def _of_both(settings: BalanceSettings, steps: int, layers: LayersOrFn) -> dict[str, Any]:
    interval, start = (None, 0) if settings.refreshed_by_loop(steps) else settings.refreshes(steps)
    windows = None if settings.spectrum_rows is None else tb_optax.Windows(settings.spectrum_rows)
    return {
        "update_interval": interval,
        "start_step": start,
        "metric": create_metric(settings.metric, settings.tail_fit()),
        "layers": tb_optax.in_blocks(layers) if settings.blocks else layers,
        "windows": windows,
    }


def create_metric(metric: str, fit: FitTail) -> Callable[..., jax.Array]:
    """What is read off a spectrum, by its name and the fit that it takes, if it takes one."""
    return _METRICS[metric] if metric == "spectral_norm" else functools.partial(_METRICS[metric], fit=fit)
