"""The options that balanced transformations share, with their checks."""

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.core
import numpy as np

from tb_optax._balance.assignments import Assignment, Bound, linear, step
from tb_optax._balance.attributes import innermost
from tb_optax._balance.fits import check_fit_of_solver, is_fit
from tb_optax._balance.metrics import Metric, is_relative, relative_to_noise
from tb_optax._checks import known_number
from tb_optax._layers.layer import LayersOrFn, short_repr
from tb_optax._spectra.options import Solver, check_solver
from tb_optax._spectra.windows import Windows, check_windows

STATIC_ARGS = ("metric", "assign", "layers")
"""The `static_args` that `optax.inject_hyperparams` needs, because it treats functions as schedules."""
_MOST_UPDATES = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True, eq=False)
class BalanceOptions:
    """The arguments of a balanced transformation; all but the first are those of `tb_optax.tempbalance`.

    Attributes:
      argument_of: the name of the transformation, for errors.
    """

    argument_of: str
    update_interval: Any
    min_scale: Bound
    max_scale: Bound
    metric: Metric
    assign: Assignment
    layers: LayersOrFn
    start_step: Any
    solver: Solver
    windows: Windows | None
    stop_step: Any = None
    transition_steps: Any = None

    def __post_init__(self):
        """Checks everything except traced numbers (under `inject_hyperparams`), whose values are not known."""
        self._check_functions()
        self._check_schedule()
        self._check_bounds()
        check_solver(self.argument_of, self.solver)
        check_windows(self.argument_of, self.windows)
        check_fit_of_solver(self.argument_of, [self.metric], self.solver)

    def _check_functions(self) -> None:
        for name, example in (("metric", "metrics.pl_alpha_hill"), ("assign", "assignments.linear")):
            function = getattr(self, name)
            if not callable(function):
                raise TypeError(
                    f"{self.argument_of}: {name}={short_repr(function)} is not a function; give one such as "
                    f"tb_optax.{example}. (Under optax.inject_hyperparams, give static_args={STATIC_ARGS}: it treats "
                    "functions as schedules.)"
                )
        if is_relative(self.metric) and innermost(self.assign) in (linear, step):
            warnings.warn(
                f"{self.argument_of}: metric is relative to noise, and assign={innermost(self.assign).__name__} stretches "
                "its chance differences to the whole range from min_scale to max_scale; give tb_optax.assignments.sqrt or "
                "sigmoid.",
                stacklevel=6,
            )
        if innermost(self.metric) is relative_to_noise:
            raise TypeError(
                f"{self.argument_of}: metric=relative_to_noise makes a metric and is none itself; call it: "
                "metric=tb_optax.metrics.relative_to_noise()."
            )
        if is_fit(self.metric):
            fit = getattr(self.metric, "__name__", None)
            spelled = f"tb_optax.fits.{fit}" if fit else repr(self.metric)
            raise TypeError(
                f"{self.argument_of}: metric={spelled} is a fit, not a metric; give "
                f"metric=functools.partial(tb_optax.metrics.pl_alpha_hill, fit={spelled})."
            )

    def _check_schedule(self) -> None:
        for name, least in (("update_interval", 1), ("start_step", 0), ("stop_step", 0), ("transition_steps", 1)):
            number = getattr(self, name)
            if name != "start_step" and number is None:
                continue
            value = known_number(self.argument_of, name, number, STATIC_ARGS)
            if value is None:
                continue
            if not math.isfinite(value) or value != int(value):
                raise TypeError(f"{self.argument_of}: {name}={number!r} must be a whole number of updates.")
            if value > _MOST_UPDATES:
                raise ValueError(
                    f"{self.argument_of}: {name}={number!r} must be at most {_MOST_UPDATES}, because updates are counted in "
                    "an int32. To refresh only when you call refresh, give update_interval=None."
                )
            if value < least:
                raise ValueError(f"{self.argument_of}: {name}={number!r} must be at least {least}; it counts updates.")
        if self.update_interval is None and known_number(self.argument_of, "start_step", self.start_step, STATIC_ARGS):
            raise ValueError(
                f"{self.argument_of}: start_step={self.start_step!r} has no effect with update_interval=None; call refresh "
                "from that step on instead."
            )
        if self.update_interval is None and self.stop_step is not None:
            raise ValueError(
                f"{self.argument_of}: stop_step={self.stop_step!r} has no effect with update_interval=None; call refresh "
                "up to that step instead."
            )
        start, stop = self.start_step, self.stop_step
        if not isinstance(start, jax.core.Tracer) and not isinstance(stop, (jax.core.Tracer, type(None))) and stop < start:
            raise ValueError(
                f"{self.argument_of}: stop_step={stop!r} is below start_step={start!r}, so no update refreshes; give the "
                "smaller one as start_step."
            )

    def _check_bounds(self) -> None:
        names = ("min_scale", "max_scale")
        low, high = (known_number(self.argument_of, name, getattr(self, name), STATIC_ARGS) for name in names)
        for name, value in zip(names, (low, high), strict=True):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"{self.argument_of}: {name}={value} must be finite and not negative; the paper uses 0.5 and 1.5."
                )
        if low is not None and high is not None and low > high:
            raise ValueError(f"{self.argument_of}: min_scale={low} is above max_scale={high}; give the smaller one first.")
