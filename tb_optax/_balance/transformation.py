"""Balanced transformations: transformations whose scales are refreshed now and then from the spectra of the weights.

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

from tb_optax._balance.options import BalanceOptions
from tb_optax._balance.own_states import OwnStates
from tb_optax._balance.scales import LayerNumbers, metrics_and_scales
from tb_optax._batching import any_over_batch
from tb_optax._checks import check_balance_state, check_one_iterate, check_params, check_state_class, check_updates
from tb_optax._compat import is_placeholder
from tb_optax._dtypes import at_least_float32
from tb_optax._layers.blocks import group_ids
from tb_optax._layers.layer import KernelShape, Layers, Path, PyTree, check_share, kernel_shape, resolve_layers
from tb_optax._spectra.sharding import in_mesh, mesh_of, replicated


@runtime_checkable
class BalanceState(Protocol):
    """A NamedTuple of these arrays; each dict has one entry for each layer, with the sizes of its layer axes."""

    @property
    def count(self) -> Any: ...
    @property
    def metric(self) -> Any: ...
    @property
    def scale(self) -> Any: ...


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
    state_class: Callable[..., State],
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

    def compute(layers: Layers, state: State, kernels: Mapping[Path, Any]) -> tuple[LayerNumbers, LayerNumbers]:
        return metrics_and_scales(options, layers, kernels, state.metric, state.scale)

    def compute_if_due(layers: Layers, state: State, kernels: Mapping[Path, Any]) -> tuple[LayerNumbers, LayerNumbers]:
        due = is_due(state.count, options.update_interval, options.start_step)
        old = state.metric, state.scale

        def refreshed(kernels: Mapping[Path, Any]) -> tuple[LayerNumbers, LayerNumbers]:
            # Under vmap this branch runs if any element of the batch is due: `due` says which ones are.
            return metrics_and_scales(options, layers, kernels, *old, due)

        return jax.lax.cond(any_over_batch(due), refreshed, lambda _: old, kernels)

    # Jitted, so that each is one program, compiled once, where nothing around it is jitted.
    compute, compute_if_due = jax.jit(compute, static_argnums=0), jax.jit(compute_if_due, static_argnums=0)

    def init_fn(params: PyTree) -> State:
        count = jnp.zeros((), jnp.int32)
        if is_placeholder(params):  # Optax asks which parts of the state are parameters: none is.
            names = own_states.names()
            return state_class(count, *(jnp.zeros(()) if names is None else dict.fromkeys(names, 0.0) for _ in range(2)))
        check_one_iterate(argument_of, params)
        layers, leaves = resolve_layers(options.layers, params)
        shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in layers}
        _check_enough(argument_of, layers, shapes)
        check_share(argument_of, layers)
        dtype = at_least_float32(*(leaves[layer.kernel].dtype for layer in layers))
        state = initial_state(state_class, shapes, dtype, [leaves[layer.kernel] for layer in layers])
        own_states.remember(state, layers, leaves)
        return state

    def update_fn(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: object) -> tuple[PyTree, State]:
        del extra_args
        check_params(argument_of, params)
        check_one_iterate(argument_of, params)
        check_state_class(argument_of, state, state_class)
        layers, leaves = resolve_layers(options.layers, params)
        check_balance_state(argument_of, state, layers, leaves)
        own_states.remember(state, layers, leaves)
        metric, scale = state.metric, state.scale
        if options.update_interval is not None:
            metric, scale = compute_if_due(layers, state, _kernels(layers, leaves))
        check_updates(argument_of, updates, layers, leaves)
        updates = apply(updates, state, BalancedParams(params, layers, leaves, scale))
        return updates, state_class(jnp.asarray(optax.safe_increment(state.count)), metric, scale)

    def refresh(opt_state: PyTree, params: PyTree) -> PyTree:
        check_params(f"{argument_of}.refresh", params)

        def refreshed(state: State, layers: Layers, leaves: Mapping[Path, Any]) -> tuple[LayerNumbers, LayerNumbers]:
            return compute(layers, state, _kernels(layers, leaves))

        return own_states.map(refreshed, opt_state, params)

    return BalancedTransformation(init_fn, update_fn, refresh)


def is_due(count: Int[Array, ""], interval: Any, start: Any) -> Bool[Array, ""]:
    """Whether an update refreshes: the update of number `start`, and every `interval` updates from then on."""
    interval, start = _as_int32(interval), _as_int32(start)
    since = count - start
    return (start >= 0) & (since >= 0) & (interval >= 1) & (since % jnp.maximum(interval, 1) == 0)


def initial_state(
    state_class: Callable[..., State], shapes: Mapping[str, KernelShape], dtype: Any, kernels: Sequence[Any]
) -> State:
    """The state before the first update: metrics of 0 and scales of 1."""

    def create() -> State:
        metric = {name: jnp.zeros(shape.stack, dtype) for name, shape in shapes.items()}
        scale = {name: jnp.ones(shape.stack, dtype) for name, shape in shapes.items()}
        return state_class(jnp.zeros((), jnp.int32), metric, scale)

    mesh = mesh_of(kernels)
    if AxisType.Explicit not in mesh.axis_types or not jax.sharding.get_abstract_mesh().empty:
        return create()

    def create_in_mesh(kernels: Sequence[Any]) -> State:
        del kernels  # They say on which devices this runs.
        with in_mesh(mesh):
            return jax.tree.map(replicated, create())

    # In explicit mode, the type of a state has a mesh before the first refresh too.
    return jax.jit(create_in_mesh, keep_unused=True)(kernels)


def _kernels(layers: Layers, leaves: Mapping[Path, Any]) -> Mapping[Path, Any]:
    return jax.lax.stop_gradient({layer.kernel: leaves[layer.kernel] for layer in layers})


def _as_int32(number: Any) -> Int[Array, ""]:
    """A number of updates as an integer; `inject_hyperparams` gives the values of schedules in the parameters' precision.

    Negative where it is no such number: NaN, or too large for an int32.
    """
    number = jnp.asarray(number)
    if jnp.issubdtype(number.dtype, jnp.floating):
        number = jnp.where((number >= 0) & (number < 2.0**31), jnp.round(number), -1.0)
    return number.astype(jnp.int32)


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
            f"{argument_of} balances only {number} {'blocks' if blocks else 'layers'} against each other. The smallest "
            "metric and the largest get the two extreme scales, even if they differ by chance: give it five or more.",
            stacklevel=4,
        )
