"""Checks of arguments, updates and states, with errors that name the argument, its value and what to write instead."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tb_optax._dtypes import is_float_array
from tb_optax._layers.layer import Layers, Path, PyTree, kernel_shape, leaves_by_path, short_repr


def check_not_negative(argument_of: str, static_args: tuple[str, ...], **numbers: Any) -> None:
    """Checks that numbers are finite and at least 0, except traced ones.

    The numbers can be schedules under `inject_hyperparams` with these `static_args`.
    """
    for name, number in numbers.items():
        value = known_number(argument_of, name, number, static_args)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{argument_of}: {name}={value} must be finite and at least 0.")


def check_below_one(argument_of: str, **numbers: Any) -> None:
    for name, number in numbers.items():
        if not isinstance(number, jax.core.Tracer) and number >= 1:
            raise ValueError(f"{argument_of}: {name}={number} must be below 1.")


def check_params(argument_of: str, params: PyTree | None) -> None:
    if params is None:
        raise ValueError(
            f"{argument_of}: params=None; it reads the weights, so pass them: tx.update(updates, state, params)."
        )


def check_one_iterate(argument_of: str, params: PyTree) -> None:
    """Checks that params are not the two copies that `optax.lookahead` keeps."""
    if getattr(params, "_fields", ()) == ("fast", "slow"):
        raise ValueError(
            f"{argument_of}: params has fast and slow weights, so it stands behind lookahead, where it would scale each of "
            "them on its own; put it inside: lookahead(optax.chain(optimizer, " + argument_of + "(...)), ...)."
        )


def check_state(argument_of: str, names: Any, found: Layers) -> None:
    """Checks that a state has the layers of `found`, so that it belongs to the same parameters.

    If `names` is not a mapping by layer name, the state is another transformation's.
    """
    if not isinstance(names, Mapping):
        raise TypeError(
            f"{argument_of}: state={short_repr(names)} is not its state; give what its own init returned. A chain's state "
            "holds one for each of its transformations, which the chain's own update takes apart."
        )
    if {layer.name for layer in found} != set(names):
        raise ValueError(
            f"{argument_of}: state has the layers {sorted(names)}, but params has "
            f"{sorted(layer.name for layer in found)}; call init with the same parameters."
        )


def check_balance_state(argument_of: str, state: Any, found: Layers, leaves: Mapping[Path, Any]) -> None:
    """Checks that a state of `count`, `metric` and `scale` belongs to these layers: their names and their stacks."""
    if isinstance(state, Mapping):
        if {"count", "metric", "scale"} <= set(state):
            raise TypeError(
                f"{argument_of}: state is a plain dict of count, metric and scale, as from a checkpoint that was restored "
                "without a target; restore it into the structure that init returns."
            )
        raise TypeError(
            f"{argument_of}: state is a dict with the keys {short_repr(list(state))}, not its state; the arguments are "
            "tx.update(updates, state, params)."
        )
    check_state(argument_of, getattr(state, "scale", state), found)
    check_state(argument_of, getattr(state, "metric", state), found.measured)
    stacks = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape).stack for layer in found}
    shapes = {name: jnp.shape(number) for name, number in state.scale.items()}
    batched = [shape[: len(shape) - len(stacks[name])] for name, shape in shapes.items()]
    if (
        batched[0]
        and all(each == batched[0] for each in batched)
        and all(shape[len(batched[0]) :] == stacks[name] for name, shape in shapes.items())
    ):
        raise ValueError(
            f"{argument_of}: state has {batched[0]} numbers for each layer of params, as from init under jax.vmap; call "
            "update under jax.vmap too, or give the state of one network."
        )
    for name, shape in shapes.items():
        if shape != stacks[name]:
            raise ValueError(
                f"{argument_of}: state has the layer {name!r} as a stack {shape}, but params has it as {stacks[name]}; call "
                "init with these parameters."
            )


def check_updates(argument_of: str, updates: PyTree, found: Layers, leaves: Mapping[Path, Any]) -> dict[Path, Any]:
    """The updates by path, after a check that they fit the parameters.

    Each update must have a parameter of the same shape, and each parameter of a layer must have a floating-point update.
    """
    given = leaves_by_path(updates)
    of_layers = [path for layer in found for path in (layer.kernel, *layer.follows)]
    for path in (*given, *of_layers):
        if path not in leaves or path not in given:
            there, missing = ("updates", "params") if path in given else ("params", "updates")
            raise ValueError(
                f"{argument_of}: {there} has {path!r}, but {missing} has not; give the gradients of these params, or what "
                "the transformations before made of them."
            )
        if jnp.shape(given[path]) != jnp.shape(leaves[path]):
            raise ValueError(
                f"{argument_of}: updates has {path!r} of shape {jnp.shape(given[path])}, but params has it of shape "
                f"{jnp.shape(leaves[path])}; give updates and params of the same network."
            )
    for path in of_layers:
        if not is_float_array(given[path]):
            raise TypeError(
                f"{argument_of}: updates has {path!r} of dtype {jnp.result_type(given[path])}; give floating-point numbers, "
                "as the gradients of its layer are."
            )
    return given


def known_number(argument_of: str, name: str, number: Any, static_args: tuple[str, ...]) -> float | None:
    """The value of an argument, after a check that it is one number; None if it is traced."""
    if isinstance(number, jax.core.Tracer):
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float, np.number, np.ndarray, jax.Array)):
        raise TypeError(
            f"{argument_of}: {name}={number!r} is not a number; give one, or a schedule of them through "
            f"optax.inject_hyperparams({argument_of}, static_args={static_args})."
        )
    if np.ndim(number) > 0:
        raise TypeError(f"{argument_of}: {name} has shape {np.shape(number)}; give one number.")
    return float(number)


def check_shape(argument_of: str, name: str, function: Any, what: str, result: Array, shape: tuple[int, ...]) -> None:
    """Checks the shape of the array that a user's metric or assignment returned."""
    if jnp.shape(result) != shape:
        raise ValueError(
            f"{argument_of}: {name}={function} returned an array of shape {jnp.shape(result)}; it must return one {what}: "
            f"shape {shape}."
        )
