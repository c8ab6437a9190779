"""TempBalance in the runs of every domain: its flags, and the transformation that they ask for."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import optax

import tb_optax
from examples.runs.controls import CONTROLS
from examples.runs.errors import UserError

FitTail: TypeAlias = Callable[..., tb_optax.PowerLaw]

_METRICS = {
    "pl_alpha_hill": tb_optax.pl_alpha_hill,
    "spectral_norm": tb_optax.spectral_norm,
    "alpha_weighted": tb_optax.alpha_weighted,
}
_FITS = {
    "median": tb_optax.median,
    "goodness_of_fit": tb_optax.goodness_of_fit,
    "fix_finger": tb_optax.fix_finger,
}
_ASSIGNMENTS = {
    "linear": tb_optax.linear,
    "sqrt": tb_optax.sqrt,
    "log2": tb_optax.log2,
    "step": tb_optax.step,
}


@dataclasses.dataclass(frozen=True)
class BalanceSettings:
    """What TempBalance does in a run, where its method has it; all that a domain adds has a default too."""

    metric: Literal["pl_alpha_hill", "spectral_norm", "alpha_weighted"] = "pl_alpha_hill"
    """What of a layer's spectrum its scale is read off (tb)."""
    fit: Literal["median", "goodness_of_fit", "fix_finger"] = "median"
    """How the tail of a spectrum is fitted (tb)."""
    tail_fraction: float = 0.5
    """The share of a spectrum that is its tail, where fit is median (tb)."""
    assignment: Literal["linear", "sqrt", "log2", "step"] = "linear"
    """How metrics become scales (tb)."""
    control: Literal["none", "placebo", "mean"] = "none"
    """Instead of each layer's own scale (tb), that of a layer drawn at every refresh, or every layer the mean of all."""
    min_scale: float = 0.5
    """The least scale of a layer (tb): with linear, that of the heaviest tail."""
    max_scale: float = 1.5
    """The greatest scale of a layer (tb)."""
    update_interval: int | None = None
    """Steps between refreshes of the scales (tb); by default an epoch's."""
    first_and_last: bool = False
    """Balances the first and the last layer too (tb)."""

    def refreshes(self, steps: int) -> tuple[int, int]:
        """The steps from one refresh to the next, and before the first; an interval has `steps`."""
        return (steps if self.update_interval is None else self.update_interval), 0

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        check_range(self, ("update_interval", "tail_fraction"), ("min_scale", "max_scale"))
        if self.min_scale > self.max_scale:
            raise UserError(f"--min-scale {self.min_scale} is above --max-scale {self.max_scale}.")
        if self.tail_fraction > 1:
            raise UserError(f"--tail-fraction {self.tail_fraction} must be at most 1.")

    def tail_fit(self) -> FitTail:
        """The fit, as spectra are fitted with it."""
        return (
            functools.partial(tb_optax.median, tail_fraction=self.tail_fraction) if self.fit == "median" else _FITS[self.fit]
        )


BALANCE = tuple(field.name for field in dataclasses.fields(BalanceSettings))


def unused_of_balance(settings: Mapping[str, Any], is_balanced: bool) -> set[str]:
    """Those of `BALANCE` that a run with these settings does not read."""
    if not is_balanced:
        return set(BALANCE)
    if settings["metric"] == "spectral_norm":
        return {"fit", "tail_fraction"}
    return set() if settings["fit"] == "median" else {"tail_fraction"}


def check_range(settings: object, positive: tuple[str, ...], others: tuple[str, ...]) -> None:
    """Raises UserError where a number is not above 0, or one of the others below it; None is any."""
    for name in (*positive, *others):
        value = getattr(settings, name)
        if value is not None and not (value > 0 if name in positive else value >= 0):
            least = "above 0" if name in positive else "at least 0"
            raise UserError(f"--{name.replace('_', '-')} {value} must be {least}.")


def balanced(
    optimizer: optax.GradientTransformation, settings: BalanceSettings, steps: int, layers: tb_optax.LayersOrFn
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with TempBalance after it: it scales the step, as PyTorch's per-layer learning rates do.

    Args:
      optimizer: its updates are scaled, decoupled decay included.
      settings: what TempBalance does.
      steps: of an interval.
      layers: that are balanced.
    """
    interval, start = settings.refreshes(steps)
    assign = _ASSIGNMENTS[settings.assignment]
    balance = tb_optax.tempbalance(
        interval,
        min_scale=settings.min_scale,
        max_scale=settings.max_scale,
        metric=create_metric(settings.metric, settings.tail_fit()),
        assign=assign if settings.control == "none" else CONTROLS[settings.control](assign),
        layers=layers,
        start_step=start,
    )
    return optax.chain(optimizer, balance)


def create_metric(metric: str, fit: FitTail) -> Callable[..., jax.Array]:
    """What is read off a spectrum, by its name and the fit that it takes, if it takes one."""
    return _METRICS[metric] if metric == "spectral_norm" else functools.partial(_METRICS[metric], fit=fit)
