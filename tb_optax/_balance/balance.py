"""A number for each layer, refreshed now and then from the spectra of the weights: what balanced transformations share.

A transformation is a few lines on top of a `Balance`: its own state of `count`, `metric` and `scale`, and what the scales
multiply.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from tb_optax._balance.assignments import Assignment, Bound
from tb_optax._balance.metrics import Metric, needs_small_eigenvalues
from tb_optax._checks import check_arguments, check_params, check_shape, check_state, check_updates
from tb_optax._compat import is_placeholder
from tb_optax._dtypes import at_least_float32
from tb_optax._layers.blocks import units
from tb_optax._layers.layer import KernelShape, Layers, LayersOrFn, Path, PyTree, kernel_shape, path_name, resolve_layers
from tb_optax._spectra.solver import Solver, check_solver
from tb_optax._spectra.spectra import stacked_spectra
from tb_optax._spectra.stacks import alike


class BalanceState(Protocol):
    """A NamedTuple of these arrays, the dicts with one entry for each layer, of the sizes of its layer axes."""

    @property
    def count(self) -> Int[Array, ""]: ...
    @property
    def metric(self) -> dict[str, Float[Array, "*stack"]]: ...
    @property
    def scale(self) -> dict[str, Float[Array, "*stack"]]: ...


State = TypeVar("State", bound=BalanceState)


class Refreshed(NamedTuple, Generic[State]):
    """A state after an update, and the layers and the leaves of the parameters that it is of."""

    state: State
    layers: Layers
    leaves: Mapping[Path, Any]


class Balance(Generic[State]):
    """When scales are refreshed, from which metrics, and what becomes of a layer whose spectrum is unusable.

    Args:
      argument_of: the transformation, for errors.
      create_state: makes its state of `count`, `metric` and `scale`.
      update_interval: likewise all others: see `tb_optax.tempbalance`.
    """

    def __init__(
        self,
        argument_of: str,
        create_state: Callable[..., State],
        update_interval: Any,
        *,
        min_scale: Bound,
        max_scale: Bound,
        metric: Metric,
        assign: Assignment,
        layers: LayersOrFn,
        start_step: Any,
        solver: Solver,
    ):
        check_arguments(argument_of, update_interval, min_scale, max_scale, metric, assign, start_step)
        check_solver(argument_of, solver)
        self._argument_of, self._create_state, self._layers, self._solver = argument_of, create_state, layers, solver
        self._update_interval, self._start_step = update_interval, start_step
        self._metric, self._assign, self._bounds = metric, assign, (min_scale, max_scale)
        # Where nothing around it is jitted, it is compiled once all the same.
        self._refresh_if_due = jax.jit(self._refreshed_if_due, static_argnums=0)

    def init(self, params: PyTree) -> State:
        """The state before the first update."""
        count = jnp.zeros((), jnp.int32)
        if is_placeholder(params):  # The parameters are nowhere in the state.
            return self._create_state(count, jnp.zeros(()), jnp.ones(()))
        found, leaves = resolve_layers(self._layers, params)
        shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in found}
        _check_enough(self._argument_of, found, shapes)
        dtype = at_least_float32(*(leaves[layer.kernel].dtype for layer in found))
        return self._create_state(
            count,
            {name: jnp.zeros(shape.stack, dtype) for name, shape in shapes.items()},
            {name: jnp.ones(shape.stack, dtype) for name, shape in shapes.items()},
        )

    def update(self, state: State, params: PyTree | None) -> Refreshed[State]:
        """Counts an update, and before it refreshes metrics and scales from these parameters if it is time."""
        check_params(self._argument_of, params)
        found, leaves = resolve_layers(self._layers, params)
        check_state(self._argument_of, getattr(state, "scale", state), found)
        kernels = jax.lax.stop_gradient({layer.kernel: leaves[layer.kernel] for layer in found})
        metrics, scales = self._refresh_if_due(found, state, kernels)
        return Refreshed(self._create_state(jnp.asarray(optax.safe_increment(state.count)), metrics, scales), found, leaves)

    def transformation(
        self, change: Callable[[PyTree, PyTree, State, Refreshed[State]], PyTree]
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation on this core: `change(updates, params, state before, refreshed)` makes its updates."""

        def update_fn(
            updates: PyTree, state: State, params: PyTree | None = None, **extra_args: object
        ) -> tuple[PyTree, State]:
            del extra_args
            refreshed = self.update(state, params)
            check_updates(self._argument_of, updates, refreshed.layers, refreshed.leaves)
            return change(updates, params, state, refreshed), refreshed.state

        return optax.GradientTransformationExtraArgs(self.init, update_fn)  # pyright: ignore[reportArgumentType]

    def _refreshed_if_due(self, found: Layers, state: State, kernels: dict[Path, Array]) -> tuple[Any, Any]:
        interval, start = _whole(self._update_interval), _whole(self._start_step)
        since = state.count - start
        due = (start >= 0) & (since >= 0) & (interval >= 1) & (since % jnp.maximum(interval, 1) == 0)
        names = [layer.name for layer in found]
        balanced = units(found, {layer.name: kernel_shape(layer, kernels[layer.kernel].shape) for layer in found})

        def refresh(kernels: dict[Path, Array]) -> tuple[Any, Any]:
            small = needs_small_eigenvalues(self._metric)
            metrics = self._metrics(stacked_spectra(found, kernels, self._solver, small_eigenvalues=small), names)
            old = _flat(state.metric, names), _flat(state.scale, names)
            new = self._refreshed(metrics, balanced, *old)
            # The branch is taken where any seed is due; those that are not keep what they have.
            metrics, scales = jax.tree.map(lambda new, old: jnp.where(due, new, old), new, old)
            return _unflat(metrics, state.metric, names), _unflat(scales, state.scale, names)

        return jax.lax.cond(_any_over_batch(due), refresh, lambda _: (state.metric, state.scale), kernels)

    def _metrics(
        self, spectra: list[tuple[list[str], Float[Array, "rows n"]]], names: Sequence[str]
    ) -> Float[Array, " slices"]:
        """The metrics of all layers in the order of their names, NaN where unusable; one call for spectra of a length."""
        found, places, start = [], {}, 0
        for stack in alike(spectra, lambda item: (item[1].shape[1], item[1].dtype)):
            rows = jnp.concatenate([rows for _, rows in stack])
            values = self._metric(rows)
            check_shape(
                self._argument_of,
                "metric",
                self._metric,
                f"number for each spectrum of shape {rows.shape}",
                values,
                rows.shape[:1],
            )
            found.append(jnp.where(jnp.isfinite(values) & (rows[:, -1] > 0), values, jnp.nan))
            for own_names, own in stack:
                slices = len(own) // len(own_names)
                for name in own_names:
                    places[name] = np.arange(start, start + slices)
                    start += slices
        return jnp.concatenate(found)[np.concatenate([places[name] for name in names])]

    def _refreshed(
        self,
        metrics: Float[Array, " slices"],
        balanced: Int[np.ndarray, " slices"],
        old_metrics: Float[Array, " slices"],
        old_scales: Float[Array, " slices"],
    ) -> tuple[Float[Array, " slices"], Float[Array, " slices"]]:
        """Metrics and the scales assigned to them, each layer's last ones where its spectrum is unusable.

        A layer in a block has the block's scale, which that of an unusable spectrum takes no part in.
        """
        low, high = (jnp.asarray(bound).astype(metrics.dtype) for bound in self._bounds)
        shared = _mean_of_each(metrics, balanced)
        scales = self._assign(shared, low, high)
        check_shape(self._argument_of, "assign", self._assign, "number for each metric", scales, shared.shape)
        in_order = (low >= 0) & (low <= high) & jnp.isfinite(high)
        usable = jnp.isfinite(shared) & jnp.isfinite(scales) & in_order
        scales = jnp.clip(scales, low, high)
        if len(shared) < len(metrics):
            usable, scales = usable[balanced], scales[balanced]
        keep = lambda usable, new, old: jnp.where(usable, new.astype(old.dtype), old)
        return keep(usable & jnp.isfinite(metrics), metrics, old_metrics), keep(usable, scales, old_scales)


def scale_by_layer(
    updates: PyTree, found: Layers, leaves: Mapping[Path, Any], scales: Mapping[str, Float[Array, "*stack"]]
) -> PyTree:
    """Multiplies what belongs to each layer's kernel, and to what follows it, by the layer's number."""
    owner: dict[str, tuple[Array, KernelShape]] = {}
    for layer in found:
        shape = kernel_shape(layer, leaves[layer.kernel].shape)
        owner |= {path: (scales[layer.name], shape) for path in (layer.kernel, *layer.follows)}

    def scaled(key_path: tuple[Any, ...], update: Array) -> Array:
        path = path_name(key_path)
        if path not in owner:
            return update
        scale, shape = owner[path]
        along = [update.shape[axis] if axis in shape.layer_axes else 1 for axis in range(update.ndim)]
        order = np.argsort(shape.layer_axes)
        # The product is rounded, not the scale: in bfloat16 that would move the layer's learning rate by up to 0.4%.
        wide = at_least_float32(update.dtype, scale.dtype)
        return (update.astype(wide) * scale.transpose(order).reshape(along).astype(wide)).astype(update.dtype)

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _mean_of_each(metrics: Float[Array, " slices"], balanced: Int[np.ndarray, " slices"]) -> Float[Array, " units"]:
    """Over the slices of each unit, those that are known; NaN where none is."""
    count = int(balanced.max()) + 1
    if count == len(metrics):
        return metrics
    known = jnp.isfinite(metrics)
    total = jnp.zeros(count, metrics.dtype).at[balanced].add(jnp.where(known, metrics, 0.0))
    return total / jnp.zeros(count, metrics.dtype).at[balanced].add(known.astype(metrics.dtype))


def _flat(numbers: dict[str, Float[Array, "*stack"]], names: Iterable[str]) -> Float[Array, " slices"]:
    """The numbers of all layers, in the order of their names; of a stack of layers, one after another."""
    return jnp.concatenate([numbers[name].reshape(-1) for name in names])


def _unflat(
    flat: Float[Array, " slices"], like: dict[str, Float[Array, "*stack"]], names: Iterable[str]
) -> dict[str, Float[Array, "*stack"]]:
    numbers, start = {}, 0
    for name in names:
        shape, stop = like[name].shape, start + like[name].size
        if shape:
            numbers[name] = flat[start:stop].reshape(shape)
        else:  # Picked by a mask to read: XLA compiles that once, and a slice for each layer.
            numbers[name] = jnp.sum(flat, where=np.arange(len(flat)) == start)
        start = stop
    return numbers


@jax.custom_batching.custom_vmap
def _any_over_batch(due: Bool[Array, ""]) -> Bool[Array, ""]:
    """`due` itself; under `vmap`, whether any is, unbatched, so that the `cond` on it stays one and skips work."""
    return due


@_any_over_batch.def_vmap
def _(axis_size: int, in_batched: list[bool], due: Bool[Array, " batch"]) -> tuple[Array, bool]:
    del axis_size, in_batched
    return _any_over_batch(jnp.any(due)), False


def _whole(number: Any) -> Array:
    """A number of updates as an integer; `inject_hyperparams` gives schedules' values in the parameters' precision.

    Negative where it is none: NaN, or too large for an int32.
    """
    number = jnp.asarray(number)
    if jnp.issubdtype(number.dtype, jnp.floating):
        number = jnp.where((number >= 0) & (number < 2.0**31), jnp.round(number), -1.0)
    return number.astype(jnp.int32)


def _check_enough(argument_of: str, found: Layers, shapes: dict[str, KernelShape]) -> None:
    number = len(set(units(found, shapes).tolist()))
    if number < 2:
        reasons = [f"  {path}: {reason}" for path, reason in found.left_out.items()]
        blocks = any(layer.block for layer in found)
        raise ValueError(
            f"{argument_of} balances {'blocks of ' * blocks}layers against each other, and found {number} to balance "
            f"({', '.join(layer.name for layer in found) or 'none'}). Left out:\n"
            + ("\n".join(reasons) or "  nothing: params has no other weight of two or more axes")
            + "\nGive other layers=, a smaller min_eigenvalues or fewer exclude patterns."
        )
