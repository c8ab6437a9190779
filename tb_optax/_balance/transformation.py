"""Balanced transformations: transformations with a scale for each layer, refreshed from the spectra of the weights.

`tempbalance` and `alphadecay` differ in what the scales multiply. This module says when scales are refreshed: inside the
update every `update_interval` updates, and outside it when `refresh` is called.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Int

from tb_optax._balance import transitions
from tb_optax._balance.options import BalanceOptions
from tb_optax._balance.own_states import OwnStates
from tb_optax._balance.scales import LayerNumbers, metrics_and_scales
from tb_optax._batching import any_over_batch
from tb_optax._checks import check_balance_state, check_one_iterate, check_params, check_state_class, check_updates
from tb_optax._compat import is_placeholder
from tb_optax._dtypes import as_int32, at_least_float32
from tb_optax._layers.blocks import group_ids
from tb_optax._layers.layer import KernelShape, Layers, Path, PyTree, check_share, kernel_shape, resolve_layers
from tb_optax._spectra.sharding import in_mesh, mesh_of, pinned, replicated


@runtime_checkable
class BalanceState(Protocol):
    """A NamedTuple of the updates made, and two dicts with an array for each layer, of the sizes of its layer axes.

    `metric` has no entry for a layer that is not measured. With transitions, a state has `target` and `remaining` too (see
    `transitions`).
    """

    @property
    def count(self) -> Any: ...
    @property
    def metric(self) -> Any: ...
    @property
    def scale(self) -> Any: ...
    def _replace(self, **fields: Any) -> Any: ...


State = TypeVar("State", bound=BalanceState)


class BalancedParams(NamedTuple):
    """Parameters, their layers, and the numbers of those layers."""

    params: PyTree
    layers: Layers
    leaves: Mapping[Path, Any]
    scale: LayerNumbers


class BalancedTransformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation that can also refresh its scales outside the update.

    Attributes:
      refresh: `refresh(opt_state, params) -> opt_state` computes metrics and scales from `params`. It finds the states of
        this transformation wherever they lie in `opt_state` (in a chain, `partition`, `MultiSteps`, an NNX optimizer's
        state, a whole `TrainState`), and leaves everything else as it is.
    """

    refresh: Callable[[PyTree, PyTree], PyTree]

    def __new__(cls, init: Any, update: Any, refresh: Callable[[PyTree, PyTree], PyTree]) -> "BalancedTransformation":
        self = super().__new__(cls, init, update)
        self.refresh = refresh
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.init, self.update, self.refresh)


def balanced_transformation(
    options: BalanceOptions,
    state_class: Any,
    apply: Callable[[PyTree, State, BalancedParams], PyTree],
) -> BalancedTransformation:
    """The transformation with these options.

    Args:
      options: when scales are refreshed, and from what.
      state_class: makes a state of `count`, `metric` and `scale`.
      apply: makes new updates from updates, the state before this update, and the parameters with their scales.
    """
    argument_of = options.argument_of
    own_states = OwnStates(options, state_class)

    def refreshed(layers: Layers, state: State, kernels: Mapping[Path, Any]) -> State:
        metric, target = metrics_and_scales(options, layers, kernels, state.metric, transitions.target_of(state))
        return transitions.refreshed(state, metric, target, options.transition_steps)

    def refreshed_if_due(layers: Layers, state: State, kernels: Mapping[Path, Any]) -> State:
        due = is_due(state.count, options.update_interval, options.start_step, options.stop_step)
        if options.transition_steps is not None:
            due &= as_int32(options.transition_steps) >= 1
        old = state.metric, transitions.target_of(state)

        def solved(kernels: Mapping[Path, Any]) -> tuple[LayerNumbers, LayerNumbers]:
            # Under vmap this branch runs if any element of the batch is due: `due` says which ones are.
            return metrics_and_scales(options, layers, kernels, *old, due)

        metric, target = jax.lax.cond(any_over_batch(due), solved, lambda _: old, kernels)
        return transitions.refreshed(state, metric, target, options.transition_steps, due)

    # Jitted so that an un-jitted `tx.update` also compiles only once.
    refreshed, refreshed_if_due = (jax.jit(function, static_argnums=0) for function in (refreshed, refreshed_if_due))

    def init_fn(params: PyTree) -> State:
        if is_placeholder(params):  # Optax asks which parts of the state are parameters. The state holds no parameters.
            return _placeholder_state(state_class, own_states.names())
        check_one_iterate(argument_of, params)
        layers, leaves = resolve_layers(options.layers, params)
        shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in layers}
        _check_enough(argument_of, layers.measured, shapes)
        check_share(argument_of, layers)
        dtype = at_least_float32(*(leaves[layer.kernel].dtype for layer in layers))
        measured = [layer.name for layer in layers.measured]
        state = initial_state(state_class, shapes, measured, dtype, [leaves[layer.kernel] for layer in layers])
        own_states.remember(state, layers, leaves)
        return state

    def update_fn(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: object) -> tuple[PyTree, State]:
        del extra_args
        check_params(argument_of, params)
        check_one_iterate(argument_of, params)
        transitions.check_fields(argument_of, state, state_class)
        check_state_class(argument_of, state, state_class)
        layers, leaves = resolve_layers(options.layers, params)
        check_balance_state(argument_of, state, layers, leaves)
        own_states.remember(state, layers, leaves)
        after = state
        if options.update_interval is not None:
            after = refreshed_if_due(layers, state, _kernels(layers, leaves))
        after = transitions.moved(after)
        check_updates(argument_of, updates, layers, leaves)
        updates = apply(updates, state, BalancedParams(params, layers, leaves, after.scale))
        return updates, after._replace(count=jnp.asarray(optax.safe_increment(state.count)))

    def refresh(opt_state: PyTree, params: PyTree) -> PyTree:
        check_params(f"{argument_of}.refresh", params)

        def after(state: State, layers: Layers, leaves: Mapping[Path, Any]) -> State:
            return refreshed(layers, state, _kernels(layers, leaves))

        return own_states.map(after, opt_state, params)

    return BalancedTransformation(init_fn, update_fn, refresh)


def is_due(count: Int[Array, ""], interval: Any, start: Any, stop: Any = None) -> Bool[Array, ""]:
    """Whether update number `count` refreshes: from `start` on, every `interval` updates, up to and including `stop`."""
    interval, start = as_int32(interval), as_int32(start)
    since = count - start
    due = (start >= 0) & (since >= 0) & (interval >= 1) & (since % jnp.maximum(interval, 1) == 0)
    return due if stop is None else due & (count <= as_int32(stop))


def initial_state(
    state_class: Any,
    shapes: Mapping[str, KernelShape],
    measured: Sequence[str],
    dtype: Any,
    kernels: Sequence[Any],
) -> Any:
    """The state before the first update: metrics of 0 and scales of 1."""

    def create() -> Any:
        numbers = dict(
            count=jnp.zeros((), jnp.int32),
            metric={name: jnp.zeros(shapes[name].stack, dtype) for name in measured},
            scale={name: jnp.ones(shape.stack, dtype) for name, shape in shapes.items()},
            target={name: jnp.ones(shape.stack, dtype) for name, shape in shapes.items()},
            remaining=jnp.zeros((), jnp.int32),
        )
        return state_class(**{name: numbers[name] for name in state_class._fields})

    mesh = mesh_of(kernels)
    if AxisType.Explicit not in mesh.axis_types or not jax.sharding.get_abstract_mesh().empty:
        return create()

    def create_in_mesh(kernels: Sequence[Any]) -> Any:
        del kernels  # They are arguments only to say on which devices this runs.
        with in_mesh(mesh):
            return jax.tree.map(replicated, create())

    # In explicit mode, the type of a state has a mesh before the first refresh too.
    return jax.jit(create_in_mesh, keep_unused=True)(kernels)


def _kernels(layers: Layers, leaves: Mapping[Path, Any]) -> Mapping[Path, Any]:
    return jax.lax.stop_gradient(pinned({layer.kernel: leaves[layer.kernel] for layer in layers.measured}))


def _placeholder_state(state_class: Any, measured: Mapping[str, bool] | None) -> Any:
    """A state whose metrics and scales are no parameters, for `optax.tree_map_params`."""
    of_all = jnp.zeros(()) if measured is None else dict.fromkeys(measured, 0.0)
    metric = of_all if measured is None else {name: 0.0 for name, has_metric in measured.items() if has_metric}
    number = jnp.zeros((), jnp.int32)
    fields = {"count": number, "metric": metric, "scale": of_all, "target": of_all, "remaining": number}
    return state_class(**{name: fields[name] for name in state_class._fields})


def _check_enough(argument_of: str, layers: Layers, shapes: Mapping[str, KernelShape]) -> None:
    """Raises if fewer than two layers are balanced, and warns if fewer than five."""
    number = len(set(group_ids(layers, shapes).tolist()))
    blocks = any(layer.block for layer in layers)
    if number < 2:
        reasons = [f"  {path}: {reason}" for path, reason in layers.left_out.items()]
        raise ValueError(
            f"{argument_of} balances {'blocks of ' * blocks}layers against each other, and found {number} to balance "
            f"({', '.join(layer.name for layer in layers) or 'none'}). Left out:\n"
            + ("\n".join(reasons) or "  nothing: params has no other weight of two or more axes")
            + "\nGive other layers=, a smaller min_eigenvalues or fewer exclude patterns."
        )
    if number < 5:
        warnings.warn(
            f"{argument_of} balances only {number} {'blocks' if blocks else 'layers'}: the smallest metric and the largest "
            "get the two extreme scales, even if they differ by chance. Give it five or more.",
            stacklevel=4,
        )
