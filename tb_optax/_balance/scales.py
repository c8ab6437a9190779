"""The pure function that a refresh calls: from the weights of all layers to their metrics and scales."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tb_optax._balance.attributes import all_declare, declares
from tb_optax._balance.options import BalanceOptions
from tb_optax._checks import call_checked
from tb_optax._dtypes import at_least_float32
from tb_optax._layers.blocks import group_ids
from tb_optax._layers.layer import KernelShape, Layers, Path, PyTree, kernel_shape, map_by_path
from tb_optax._spectra.execute import SpectrumStack, compute_spectra
from tb_optax._spectra.noise import noise_spectrum
from tb_optax._spectra.plan import SpectrumPlan, group_by, plan_spectra
from tb_optax._spectra.sharding import device_count, in_mesh, mesh_of

LayerNumbers = dict[str, Float[Array, "..."]]
"""A number for each slice of each layer, by the layer's name, in arrays with the sizes of its layer axes."""


def metrics_and_scales(
    options: BalanceOptions,
    layers: Layers,
    kernels: Mapping[Path, Any],
    metric: LayerNumbers,
    scale: LayerNumbers,
    due: Bool[Array, ""] | bool = True,
) -> tuple[LayerNumbers, LayerNumbers]:
    """The metrics and scales of all layers, from their weights.

    A layer whose spectrum is unusable keeps its number in `metric` and in `scale`, and takes no part in the others' scales.
    A layer in a block has the scale of its block. A layer that is not measured has the greatest scale of the measured ones.
    If no refresh is due, every layer keeps its numbers.
    """
    others = [layer.name for layer in layers if not layer.measured]
    layers = layers.measured
    names = [layer.name for layer in layers]
    groups = group_ids(layers, {layer.name: kernel_shape(layer, kernels[layer.kernel].shape) for layer in layers})
    with in_mesh(mesh_of(kernels.values())):
        gram, devices = all_declare(options.metric, "gram"), device_count()
        plan = plan_spectra(layers, kernels, options.solver, options.windows, gram=gram, devices=devices)
        if declares(options.metric, "spectrum", default=True):
            metrics = _metrics(options, plan, compute_spectra(plan, kernels), names)
        else:
            metrics = _metrics_of_shapes(options, plan, names)
    low, high = (jnp.asarray(bound).astype(metrics.dtype) for bound in (options.min_scale, options.max_scale))
    shared = _group_means(metrics, groups)
    arrays = shared, low, high
    scales = call_checked(options.argument_of, "assign", options.assign, arrays, "number for each metric", shared.shape)
    bounds_are_valid = (low >= 0) & (low <= high) & jnp.isfinite(high)
    usable = jnp.isfinite(shared) & jnp.isfinite(scales) & bounds_are_valid
    scales = jnp.clip(scales, low, high)
    if len(shared) < len(metrics):
        usable, scales = usable[groups], scales[groups]
    old_metrics, old_scales = _flatten(metric, names), _flatten(scale, names)
    usable &= due
    metrics = jnp.where(usable & jnp.isfinite(metrics), metrics.astype(old_metrics.dtype), old_metrics)
    scales = jnp.where(usable, scales.astype(old_scales.dtype), old_scales)
    greatest, any_usable = scales.max(), usable.any()
    unmeasured = {name: jnp.where(any_usable, greatest.astype(scale[name].dtype), scale[name]) for name in others}
    return _unflatten(metrics, metric, names), _unflatten(scales, scale, names) | unmeasured


def scale_by_layer(updates: PyTree, layers: Layers, leaves: Mapping[Path, Any], scale: LayerNumbers) -> PyTree:
    """Multiplies the update of each layer's kernel, and of the parameters that follow it, by the layer's number."""
    owner: dict[str, tuple[Array, KernelShape]] = {}
    for layer in layers:
        shape = kernel_shape(layer, leaves[layer.kernel].shape)
        owner |= {path: (scale[layer.name], shape) for path in (layer.kernel, *layer.follows)}

    def scaled(path: Path, update: Any) -> Any:
        if path not in owner:
            return update
        numbers, shape = owner[path]
        along = [update.shape[axis] if axis in shape.layer_axes else 1 for axis in range(update.ndim)]
        order = np.argsort(shape.layer_axes)
        # Rounds the product, not the scale: a scale in bfloat16 would change the layer's learning rate by up to 0.4%.
        wide = at_least_float32(update.dtype, numbers.dtype)
        return (update.astype(wide) * numbers.transpose(order).reshape(along).astype(wide)).astype(update.dtype)

    return map_by_path(scaled, updates)


def _metrics(
    options: BalanceOptions, plan: SpectrumPlan, stacks: Sequence[SpectrumStack], names: Sequence[str]
) -> Float[Array, " slices"]:
    """The metrics of all layers in the order of `names`, NaN where unusable.

    A metric is called once for all spectra of a length. If it takes noise, but not row by row, it is called once for all
    spectra of a length whose matrices have the same sides.
    """
    sides = {layer.name: (layer.grid.rows, layer.grid.columns) for batch in plan.batches for layer in batch.layers}
    wants_noise, by_row = (declares(options.metric, name, default=False) for name in ("noise", "noise_by_row"))
    if wants_noise and not by_row:
        stacks = [part for stack in stacks for part in stack.by_layer()]
    found, positions, start = [], {}, 0
    kind = lambda stack: sides[stack.names[0]] if wants_noise and not by_row else None
    for group in group_by(stacks, lambda stack: (stack.spectra.shape[1], stack.spectra.dtype, kind(stack))):
        rows = jnp.concatenate([stack.spectra for stack in group])
        given = ()
        if wants_noise:
            noise = _noise_of(group, sides).astype(rows.dtype)
            given = (noise if by_row else noise[0],)
        what = f"number for each spectrum of shape {rows.shape}"
        values = call_checked(options.argument_of, "metric", options.metric, (rows, *given), what, rows.shape[:1])
        found.append(jnp.where(jnp.isfinite(values) & (rows[:, -1] > 0), values, jnp.nan))
        for stack in group:
            slices = len(stack.spectra) // len(stack.names)
            for name in stack.names:
                positions[name] = np.arange(start, start + slices)
                start += slices
    return jnp.concatenate(found)[np.concatenate([positions[name] for name in names])]


def _noise_of(group: Sequence[SpectrumStack], sides: Mapping[str, tuple[int, int]]) -> Float[np.ndarray, "rows n"]:
    """The spectrum of noise beside each spectrum of these stacks."""
    rows = []
    for stack in group:
        count, length = stack.spectra.shape
        for name in stack.names:
            rows += [noise_spectrum(*sides[name], length)] * (count // len(stack.names))
    return np.stack(rows)


def _metrics_of_shapes(options: BalanceOptions, plan: SpectrumPlan, names: Sequence[str]) -> Float[Array, " slices"]:
    """The metrics of all layers in the order of `names`, from the spectra of noise alone: nothing is solved."""
    found = {}
    for layer in (layer for batch in plan.batches for layer in batch.layers):
        noise = noise_spectrum(layer.grid.rows, layer.grid.columns, 1024)
        what = f"number for the spectrum of noise of shape {noise.shape}"
        value = call_checked(options.argument_of, "metric", options.metric, (jnp.asarray(noise, layer.dtype),), what, ())
        found[layer.name] = jnp.full(math.prod(layer.shape.stack), value)
    return jnp.concatenate([found[name] for name in names])


def _group_means(metrics: Float[Array, " slices"], groups: Int[np.ndarray, " slices"]) -> Float[Array, " groups"]:
    """The mean metric of each group of slices, over the known metrics; NaN if a group has no known metric."""
    count = int(groups.max()) + 1
    if count == len(metrics):
        return metrics
    known = jnp.isfinite(metrics)
    total = jnp.zeros(count, metrics.dtype).at[groups].add(jnp.where(known, metrics, 0.0))
    return total / jnp.zeros(count, metrics.dtype).at[groups].add(known.astype(metrics.dtype))


def _flatten(numbers: LayerNumbers, names: Sequence[str]) -> Float[Array, " slices"]:
    """The numbers of all layers in the order of `names`; of a stack of layers, one after another."""
    return jnp.concatenate([numbers[name].reshape(-1) for name in names])


def _unflatten(flat: Float[Array, " slices"], like: LayerNumbers, names: Sequence[str]) -> LayerNumbers:
    numbers, start = {}, 0
    for name in names:
        shape, stop = like[name].shape, start + like[name].size
        if shape:
            numbers[name] = flat[start:stop].reshape(shape)
        else:  # All layers share one compiled kernel for a masked sum. A slice for each would take some 10 ms each on CPU.
            numbers[name] = jnp.sum(flat, where=np.arange(len(flat)) == start)
        start = stop
    return numbers
