"""Checks of arguments, updates and states, with errors that name the argument, its value and what to write instead."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

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
            f"{argument_of}: params has fast and slow weights, as behind lookahead, where each would be scaled on its own; "
            "put it inside: lookahead(optax.chain(optimizer, " + argument_of + "(...)), ...)."
        )


def check_state_class(argument_of: str, state: Any, state_class: Any) -> None:
    """Checks that a state is of the NamedTuple class that the transformation's `init` returns."""
    if isinstance(state, state_class):
        return
    if not isinstance(state, Mapping):
        raise TypeError(
            f"{argument_of}: state={short_repr(state)} is not its state; give what its own init returned. For a chain's "
            "state, call the chain's own update, which gives each transformation its part."
        )
    if set(state_class._fields) <= set(state):
        fields = " and ".join(", ".join(state_class._fields).rsplit(", ", 1))
        raise TypeError(
            f"{argument_of}: state is a plain dict of {fields}, as from a checkpoint that was restored without a target; "
            "restore it into the structure that init returns."
        )
    raise TypeError(
        f"{argument_of}: state is a dict with the keys {short_repr(list(state))}, not its state; the arguments are "
        "tx.update(updates, state, params)."
    )


def check_state_layers(argument_of: str, names: Mapping[str, Any], found: Layers) -> None:
    """Checks that a state has the layers of `found`, so that it belongs to the same parameters."""
    if {layer.name for layer in found} != set(names):
        raise ValueError(
            f"{argument_of}: state has the layers {sorted(names)}, but params has "
            f"{sorted(layer.name for layer in found)}; call init with the same parameters."
        )


def check_balance_state(argument_of: str, state: Any, found: Layers, leaves: Mapping[Path, Any]) -> None:
    """Checks that a state of `count`, `metric` and `scale` belongs to these layers: their names and their stacks."""
    check_state_layers(argument_of, state.scale, found)
    check_state_layers(argument_of, state.metric, found.measured)
    if not jnp.issubdtype(jnp.result_type(state.count), jnp.integer):
        raise TypeError(
            f"{argument_of}: state has a count of dtype {jnp.result_type(state.count)}, which stops counting early; keep it "
            "an integer when you cast a state."
        )
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
                f"{argument_of}: {there} has {path!r}, but {missing} has not; give the gradients of these params, or the "
                "updates that earlier transformations made of them."
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
                "such as gradients."
            )
    return given


def known_number(argument_of: str, name: str, number: Any, static_args: tuple[str, ...]) -> float | None:
    """The value of an argument, after a check that it is one real number; None if it is traced."""
    if isinstance(number, jax.core.Tracer):
        return None
    is_number = isinstance(number, (int, float, np.number, np.ndarray, jax.Array)) and not isinstance(number, bool)
    if not is_number or np.iscomplexobj(number):
        raise TypeError(
            f"{argument_of}: {name}={short_repr(number)} is not a {'real ' * is_number}number; give one, or a "
            f"schedule of them through optax.inject_hyperparams({argument_of}, static_args={static_args})."
        )
    if np.ndim(number) > 0:
        raise TypeError(f"{argument_of}: {name} has shape {np.shape(number)}; give one number.")
    try:
        return float(number)
    except OverflowError:
        raise ValueError(
            f"{argument_of}: {name}={short_repr(number)} is above the largest float; give a smaller number."
        ) from None


def call_checked(
    argument_of: str, name: str, function: Any, arrays: tuple[Any, ...], what: str, shape: tuple[int, ...]
) -> Any:
    """Calls a user's metric or assignment on these arrays, and checks that it returns real numbers of this shape."""
    try:
        result = function(*arrays)
    except TypeError as error:  # A wrong number of arguments, or NumPy or `if` in a trace.
        kind = {"metric": "Metric", "assign": "Assignment"}[name]
        raise TypeError(
            f"{argument_of}: {name}={short_repr(function)} failed on arrays of shapes {[*map(jnp.shape, arrays)]} "
            f"({str(error).splitlines()[0]}); give a function as tb_optax.{kind} describes it, which computes with "
            "jax.numpy."
        ) from error
    if not isinstance(result, (int, float, np.number, np.ndarray, jax.Array)) or jnp.iscomplexobj(result):
        raise TypeError(
            f"{argument_of}: {name}={short_repr(function)} returned {short_repr(result)}; it must return an array of real "
            f"numbers of shape {shape}."
        )
    if jnp.shape(result) != shape:
        raise ValueError(
            f"{argument_of}: {name}={short_repr(function)} returned an array of shape {jnp.shape(result)}; it must "
            f"return one {what}: shape {shape}."
        )
    return result
