"""The gradient transformation."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from tb_optax._assignments import Assignment, Bound, linear
from tb_optax._checks import check_arguments, check_params, check_shape, check_state, check_updates
from tb_optax._compat import is_placeholder
from tb_optax._find import find_layers
from tb_optax._layers import (
    KernelShape,
    Layers,
    LayersOrFn,
    PyTree,
    at_least_float32,
    kernel_shape,
    path_name,
    resolve_layers,
)
from tb_optax._metrics import Metric, needs_small_eigenvalues, pl_alpha_hill
from tb_optax._solver import DEFAULT_SOLVER, Solver
from tb_optax._spectra import stacked_spectra
from tb_optax._stacks import alike


class TempBalanceState(NamedTuple):
    """State of `tempbalance`.

    Every array is finite at every step. The dicts have one entry for each balanced layer, an array with the sizes of its
    layer axes, `()` for a layer that is not stacked; their dtype is float32, or float64 where a kernel's is.

    Attributes:
      count: updates made.
      metric: each layer's metric when it was last usable; 0 before the first refresh.
      scale: each layer's learning-rate scale; 1 before the first refresh.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    metric: dict[str, Float[Array, "*stack"]]
    scale: dict[str, Float[Array, "*stack"]]


def tempbalance(
    update_interval: int | Int[Array, ""],
    *,
    min_scale: Bound = 0.5,
    max_scale: Bound = 1.5,
    metric: Metric = pl_alpha_hill,
    assign: Assignment = linear,
    layers: LayersOrFn = find_layers,
    start_step: int | Int[Array, ""] = 0,
    solver: Solver = DEFAULT_SOLVER,
) -> optax.GradientTransformationExtraArgs:
    """Scales each layer's updates by what the spectrum of its weight says of its training: TempBalance.

    Every `update_interval` updates, the eigenvalues of each balanced layer's weight are computed from the parameters as
    they are before the update; a metric of each spectrum (by default PL_Alpha_Hill, the exponent of its heavy tail) is
    turned into a scale, small for heavy tails and large for light ones (Zhou et al., "Temperature Balancing, Layer-wise
    Weight Analysis, and Neural Network Training", NeurIPS 2023, Algorithm 1). In between, the scales stay.

    After an optimizer, it scales the step, which is the paper's per-layer learning rate exactly and right for every
    optimizer: `optax.chain(optax.adamw(1e-3), tempbalance(390))`. Before `optax.sgd` it scales the gradient: the same
    while scales hold; behind a refresh, the momentum still carries gradients scaled as they came, for about
    `1 / (1 - momentum)` steps. Before Adam and its kin it would be divided out again.

    A layer whose spectrum is unusable (a NaN or an infinity in its weight, entries too large or too small to be squared,
    all zero, a rank so low that the fitted tail has no spread) keeps its scale and takes no part in the others'. Spectra
    are computed in float32, or in float64 for float64 weights; updates keep their dtype. Only a step that refreshes
    pays: under `jax.vmap` (several seeds at once) too, where all refresh when one is due, and those not due keep their
    scales. Under a mesh (`jax.set_mesh`), every device solves its share of the eigenproblems. Gradients through `update`
    take the scales for constants.

    Args:
      update_interval: updates between refreshes, at least 1. The paper refreshes once an epoch.
      min_scale: the least scale, finite and not negative; the paper's `s1`.
      max_scale: the greatest scale, finite and not below `min_scale`; the paper's `s2`. Whatever `assign` returns is
        clipped to the two.
      metric: a function from ascending spectra `(*layers, n)` to metrics `(*layers,)`: `pl_alpha_hill`, `spectral_norm`,
        `alpha_weighted`, a `functools.partial` of one with another fit, or your own. NaN marks a layer as unusable. With
        the library's metrics and the fits `median` and `goodness_of_fit`, spectra come from Gram products; with `fix_finger`
        or anything of your own, which may read eigenvalues of less than a millionth of the largest, from singular values,
        at twice the cost.
      assign: a function `(metrics, min_scale, max_scale) -> scales` of all layers at once: `linear`, `sqrt`, `log2`,
        `step`, or your own. NaN marks a layer that takes no part.
      layers: which layers to balance: a sequence of `Layer`, or a function of the parameters that finds them. The
        default leaves nothing out but small layers: name the first and last layer in `exclude`, or use `trace_layers`,
        which knows them.
      start_step: the update of the first refresh.
      solver: how much memory a refresh may take, and whether large matrices are approximated.

    Returns:
      A transformation whose `update` needs `params`. With `optax.inject_hyperparams`, the numbers can be schedules; give
      `static_args=("metric", "assign", "layers")`. While a scheduled number is one that could not be given (an interval
      below 1, a `min_scale` above `max_scale`, a NaN), every scale stays as it is.

    Raises:
      ValueError: a number is out of range; from `init`, fewer than two balanced layers, or layers that do not fit the
        parameters; from `update`, no `params`, or updates or a state that do not fit them.
      TypeError: a number is not one, or `metric`, `assign` or `layers` is not a function (or layers); from `update`,
        another transformation's state, or updates that are not floating-point numbers.

    Example:
      >>> import jax, optax, tb_optax
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {f"dense{i}": {"kernel": jax.random.normal(key, (64, 64))} for i, key in enumerate(keys)}
      >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), tb_optax.tempbalance(update_interval=100))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> {name: round(float(scale), 2) for name, scale in state[1].scale.items()}
      {'dense0': 0.9, 'dense1': 0.5, 'dense2': 1.5}
    """
    check_arguments(update_interval, min_scale, max_scale, metric, assign, start_step, solver)

    def init_fn(params: PyTree) -> TempBalanceState:
        count = jnp.zeros((), jnp.int32)
        if is_placeholder(params):  # The parameters are nowhere in the state.
            return TempBalanceState(count, jnp.zeros(()), jnp.ones(()))  # pyright: ignore[reportArgumentType]
        found, leaves = resolve_layers(layers, params)
        shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in found}
        _check_enough(found, shapes)
        dtype = _state_dtype(found, leaves)
        return TempBalanceState(
            count,
            {name: jnp.zeros(shape.stack, dtype) for name, shape in shapes.items()},
            {name: jnp.ones(shape.stack, dtype) for name, shape in shapes.items()},
        )

    @functools.partial(jax.jit, static_argnums=0)  # Where nothing around it is jitted, it is compiled once all the same.
    def refresh_if_due(found: Layers, state: TempBalanceState, kernels: dict[str, Array]) -> tuple[Any, Any]:
        interval, start = _whole(update_interval), _whole(start_step)
        since = state.count - start
        due = (start >= 0) & (since >= 0) & (interval >= 1) & (since % jnp.maximum(interval, 1) == 0)

        names = [layer.name for layer in found]
        before = state.metric, state.scale

        def refresh(kernels: dict[str, Array]) -> tuple[Any, Any]:
            small = needs_small_eigenvalues(metric)
            spectra = stacked_spectra(found, kernels, solver, small_eigenvalues=small)
            metrics = _metrics(spectra, metric, names)
            old = _flat(state.metric, names), _flat(state.scale, names)
            new = _refresh(metrics, *old, assign, min_scale, max_scale)
            # The branch is taken where any seed is due; those that are not keep what they have.
            metrics, scales = jax.tree.map(lambda new, old: jnp.where(due, new, old), new, old)
            return _unflat(metrics, state.metric, names), _unflat(scales, state.scale, names)

        return jax.lax.cond(_any_over_batch(due), refresh, lambda _: before, kernels)

    def update_fn(
        updates: PyTree, state: TempBalanceState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, TempBalanceState]:
        del extra_args
        check_params("tempbalance", params)
        found, leaves = resolve_layers(layers, params)
        check_state("tempbalance", getattr(state, "scale", state), found)
        check_updates("tempbalance", updates, found, leaves)
        kernels = jax.lax.stop_gradient({layer.kernel: leaves[layer.kernel] for layer in found})
        metrics, scales = refresh_if_due(found, state, kernels)
        new_state = TempBalanceState(jnp.asarray(optax.safe_increment(state.count)), metrics, scales)
        return _scale_updates(updates, found, leaves, scales), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore[reportArgumentType]


def _refresh(
    metrics: Float[Array, " slices"],
    old_metrics: Float[Array, " slices"],
    old_scales: Float[Array, " slices"],
    assign: Assignment,
    min_scale: Bound,
    max_scale: Bound,
) -> tuple[Float[Array, " slices"], Float[Array, " slices"]]:
    """Metrics and the scales assigned to them, each layer's last ones where its spectrum is unusable."""
    low, high = (jnp.asarray(bound).astype(metrics.dtype) for bound in (min_scale, max_scale))
    scales = assign(metrics, low, high)
    check_shape("assign", assign, "number for each metric", scales, metrics.shape)
    in_order = (low >= 0) & (low <= high) & jnp.isfinite(high)
    usable = jnp.isfinite(metrics) & jnp.isfinite(scales) & in_order
    scales = jnp.clip(scales, low, high)
    keep = lambda new, old: jnp.where(usable, new.astype(old.dtype), old)
    return keep(metrics, old_metrics), keep(scales, old_scales)


def _flat(numbers: dict[str, Float[Array, "*stack"]], names: Iterable[str]) -> Float[Array, " slices"]:
    """The numbers of all layers, in the order of their names; of a stack of layers, one after another."""
    return jnp.concatenate([numbers[name].reshape(-1) for name in names])


def _unflat(
    flat: Float[Array, " slices"], like: dict[str, Float[Array, "*stack"]], names: Iterable[str]
) -> dict[str, Float[Array, "*stack"]]:
    ends = np.cumsum([like[name].size for name in names])[:-1]
    return {name: own.reshape(like[name].shape) for name, own in zip(names, jnp.split(flat, ends), strict=True)}


def _metrics(
    spectra: list[tuple[list[str], Float[Array, "rows n"]]], metric: Metric, names: Sequence[str]
) -> Float[Array, " slices"]:
    """The metrics of all layers in the order of their names, NaN where unusable; one call for all spectra of a length."""
    found, places, start = [], {}, 0
    for stack in alike(spectra, lambda item: (item[1].shape[1], item[1].dtype)):
        rows = jnp.concatenate([rows for _, rows in stack])
        values = metric(rows)
        check_shape("metric", metric, f"number for each spectrum of shape {rows.shape}", values, rows.shape[:1])
        found.append(jnp.where(jnp.isfinite(values) & (rows[:, -1] > 0), values, jnp.nan))
        for own_names, own in stack:
            slices = len(own) // len(own_names)
            for name in own_names:
                places[name] = np.arange(start, start + slices)
                start += slices
    return jnp.concatenate(found)[np.concatenate([places[name] for name in names])]


def _scale_updates(updates: PyTree, found: Layers, leaves: dict[str, Any], scales: dict[str, Array]) -> PyTree:
    """Multiplies the updates of each layer's kernel, and of what follows it, by the layer's scale."""
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


def _state_dtype(found: Layers, leaves: dict[str, Any]) -> Any:
    return at_least_float32(*(leaves[layer.kernel].dtype for layer in found))


def _check_enough(found: Layers, shapes: dict[str, KernelShape]) -> None:
    slices = sum(math.prod(shape.stack) for shape in shapes.values())
    if slices < 2:
        reasons = [f"  {path}: {reason}" for path, reason in found.left_out.items()]
        raise ValueError(
            f"tempbalance balances layers against each other, and found {slices} to balance "
            f"({', '.join(layer.name for layer in found) or 'none'}). Left out:\n"
            + ("\n".join(reasons) or "  nothing: params has no other weight of two or more axes")
            + "\nGive other layers=, a smaller min_eigenvalues or fewer exclude patterns."
        )
