"""Finds the states of one balanced transformation in the state of a whole optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from tb_optax._balance.options import BalanceOptions
from tb_optax._checks import check_balance_state
from tb_optax._layers.layer import Layers, Path, PyTree, leaves_by_path, resolve_layers, short_repr

Signature: TypeAlias = frozenset[tuple[str, tuple[int, ...]]]
Refresh: TypeAlias = Callable[[Any, Layers, Mapping[Path, Any]], Any]


class OwnStates:
    """Knows the states that one transformation made, and the layers of each.

    A state holds arrays only, so it does not say which transformation made it. Under `optax.masked` and `optax.partition`,
    `init` and `update` see other parameters than `refresh`, and may find other layers in them. So a transformation remembers
    the layers of each state that `init` and `update` see, by the names and sizes in it. In a process that restored a state
    and called neither, `refresh` finds the layers anew in all parameters.
    """

    def __init__(self, options: BalanceOptions, state_class: Any):
        self._options, self._state_class = options, state_class
        self._remembered: dict[Signature, tuple[Layers, dict[Path, tuple[int, ...]]]] = {}

    def remember(self, state: Any, layers: Layers, leaves: Mapping[Path, Any]) -> None:
        shapes = {layer.kernel: tuple(leaves[layer.kernel].shape) for layer in layers}
        self._remembered[_signature(state)] = layers, shapes

    def names(self) -> dict[str, bool] | None:
        """The names of the layers in every state of this transformation, and which are measured: None if they differ.

        Before the first `init`, they are known only if `layers` is a sequence.
        """
        known = [layers for layers, _ in self._remembered.values()]
        if not known and not callable(self._options.layers):
            known = [self._options.layers]
        named = [{layer.name: layer.measured for layer in layers} for layers in known]
        return named[0] if named and all(other == named[0] for other in named) else None

    def map(self, function: Refresh, opt_state: PyTree, params: PyTree) -> PyTree:
        """The optimizer's state, with `function` applied to each state of this transformation.

        Raises:
          ValueError: there is no such state, it is not of these parameters, or several states have the same layers.
        """
        is_state = lambda node: isinstance(node, self._state_class)
        nodes, structure = jax.tree.flatten(opt_state, is_leaf=is_state)
        own = self._own([node for node in nodes if is_state(node)])
        leaves = leaves_by_path(params)
        replaced = {}
        for state in own:
            plain = plain_state(state)
            layers = self._layers_of(plain, leaves, params)
            after = function(plain, layers, leaves)
            replaced[id(state)] = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(after))
        return jax.tree.unflatten(structure, [replaced.get(id(node), node) for node in nodes])

    def _own(self, states: list[Any]) -> list[Any]:
        name, argument_of = self._state_class.__name__, self._options.argument_of
        if not states:
            raise ValueError(
                f"{argument_of}.refresh: opt_state has no {name}; give the state of an optimizer that contains this "
                "transformation. If it was restored as plain dicts, restore it again into the structure that init returns."
            )
        signatures = [_signature(plain_state(state)) for state in states]
        remembered = [state for state, own in zip(states, signatures, strict=True) if own in self._remembered]
        if len(states) > 1 and not remembered:
            raise ValueError(
                f"{argument_of}.refresh: opt_state has {len(states)} states of type {name}, and this transformation made "
                "none of them in this process; call the optimizer's init first (jax.eval_shape of it is enough)."
            )
        alike = [own for own in self._remembered if signatures.count(own) > 1]
        if alike:
            raise ValueError(
                f"{argument_of}.refresh: opt_state has {signatures.count(alike[0])} states of type {name} of the layers "
                f"{short_repr(sorted(name for name, _ in alike[0]))}, which cannot be told apart; refresh each of these "
                "states on its own."
            )
        return remembered if len(states) > 1 else states

    def _layers_of(self, state: Any, leaves: Mapping[Path, Any], params: PyTree) -> Layers:
        layers, shapes = self._remembered.get(_signature(state), (Layers(), {}))
        fits = all(path in leaves and tuple(leaves[path].shape) == shape for path, shape in shapes.items())
        if not layers or not fits:
            found, _ = resolve_layers(self._options.layers, params)
            layers = Layers([layer for layer in found if layer.name in state.scale], found.left_out)
        check_balance_state(f"{self._options.argument_of}.refresh", state, layers, leaves)
        return layers


def _signature(state: Any) -> Signature:
    return frozenset((name, tuple(number.shape)) for name, number in state.scale.items())


def plain_state(state: Any) -> Any:
    """The state with plain arrays: NNX boxes each array of an optimizer's state in a variable."""
    unboxed = lambda field: (
        {name: _only_leaf(number) for name, number in field.items()} if isinstance(field, Mapping) else _only_leaf(field)
    )
    return type(state)(*map(unboxed, state))


def _only_leaf(boxed: Any) -> Any:
    leaves = jax.tree.leaves(boxed)
    if len(leaves) != 1:
        raise ValueError(
            f"refresh: opt_state holds {short_repr(boxed)} where its state has one array; give the state that init or "
            "update returned."
        )
    return leaves[0]
