"""Checks of what `tempbalance` is given, with errors that name the argument, its value and the way out."""

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tb_optax._solver import DEFAULT_SOLVER, Solver


def check_arguments(
    update_interval: Any, min_scale: Any, max_scale: Any, metric: Any, assign: Any, start_step: Any, solver: Any
) -> None:
    """Checks what is known now: a number that is being traced (under `inject_hyperparams`, say) is not."""
    check_solver("tempbalance", solver)
    for name, function in (("metric", metric), ("assign", assign)):
        if not callable(function):
            raise TypeError(
                f"tempbalance: {name}={function!r} is not a function; give one such as "
                f"tb_optax.{'pl_alpha_hill' if name == 'metric' else 'linear'}. (Under optax.inject_hyperparams, give "
                "static_args=('metric', 'assign', 'layers'): it takes functions for schedules.)"
            )
    for name, number, least in (("update_interval", update_interval, 1), ("start_step", start_step, 0)):
        value = _known_number(name, number)
        if value is not None and (value != int(value) if math.isfinite(value) else True):
            raise TypeError(f"tempbalance: {name}={number!r} must be a whole number of updates.")
        if value is not None and value < least:
            raise ValueError(f"tempbalance: {name}={number!r} must be at least {least}; it counts updates.")
    low, high = _known_number("min_scale", min_scale), _known_number("max_scale", max_scale)
    for name, value in (("min_scale", low), ("max_scale", high)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"tempbalance: {name}={value} must be finite and not negative; the paper has 0.5 and 1.5.")
    if low is not None and high is not None and low > high:
        raise ValueError(f"tempbalance: min_scale={low} is above max_scale={high}; give the smaller one first.")


def check_solver(argument_of: str, solver: Any) -> None:
    if not isinstance(solver, Solver):
        raise TypeError(f"{argument_of}: solver={solver!r} is not a tb_optax.Solver; give one such as {DEFAULT_SOLVER}.")


def _known_number(name: str, number: Any) -> float | None:
    if isinstance(number, jax.core.Tracer):
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float, np.number, np.ndarray, jax.Array)):
        raise TypeError(
            f"tempbalance: {name}={number!r} is not a number; give one, or a schedule of them through "
            "optax.inject_hyperparams(tempbalance, static_args=('metric', 'assign', 'layers'))."
        )
    if np.ndim(number) > 0:
        raise TypeError(f"tempbalance: {name} has shape {np.shape(number)}; give one number.")
    return float(number)


def check_shape(name: str, function: Any, what: str, result: Array, shape: tuple[int, ...]) -> None:
    """Checks what a user's metric or assignment returned."""
    if jnp.shape(result) != shape:
        raise ValueError(
            f"tempbalance: {name}={function} returned an array of shape {jnp.shape(result)}; it must return one {what}: "
            f"shape {shape}."
        )
