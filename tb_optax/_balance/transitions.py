"""Scales that move to their new values over several updates.

A state with transitions has two more fields: `target`, the scales of the last refresh, and `remaining`, the number of
updates until `scale` reaches them. In a state without them, a refresh sets `scale` itself.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from tb_optax._balance.scales import LayerNumbers
from tb_optax._dtypes import as_int32
from tb_optax._layers.layer import short_repr

State = TypeVar("State", bound=Any)


def target_of(state: Any) -> LayerNumbers:
    """The scales of the last refresh."""
    return getattr(state, "target", state.scale)


def refreshed(
    state: State, metric: LayerNumbers, target: LayerNumbers, steps: Any, due: Bool[Array, ""] | bool = True
) -> State:
    """The state with the numbers of a refresh. If no refresh is due, `metric` and `target` are the state's own."""
    if steps is None:
        return state._replace(metric=metric, scale=target)
    remaining = jnp.where(due, as_int32(steps).astype(state.remaining.dtype), state.remaining)
    return state._replace(metric=metric, target=target, remaining=remaining)


def moved(state: State) -> State:
    """The state one update later: each scale takes the first of `remaining` equal steps to its target."""
    if "target" not in state._fields:
        return state
    remaining = jnp.maximum(state.remaining, 1)

    def move(scale: Array, target: Array) -> Array:
        return jnp.where(remaining == 1, target, scale + (target - scale) / remaining.astype(scale.dtype))

    scale = jax.tree.map(move, state.scale, state.target)
    return state._replace(scale=scale, remaining=remaining - 1)


def check_fields(argument_of: str, state: Any, state_class: type) -> None:
    """Checks that a state has a target if this transformation has transitions, and none otherwise."""
    fields = getattr(state, "_fields", ())
    has, needs = "target" in fields, "target" in state_class._fields
    if {"count", "metric", "scale"} <= set(fields) and has != needs:
        was = "with" if has else "without"
        raise ValueError(
            f"{argument_of}: state={short_repr(state)} was made {was} transition_steps; make a state by init, and give it "
            "the numbers of this one: init(params)._replace(count=state.count, metric=state.metric, scale=state.scale"
            f"{', target=state.scale' * needs})."
        )
