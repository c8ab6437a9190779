"""What is observed in training: gradient norms, copies of one weight, alphas, and spectra as logs and results store them."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import tb_optax
from examples.paper.balance import FitTail

PyTree = Any
State = TypeVar("State")

NORM_INTERVAL = 30
"""Steps from one recorded norm to the next, as in the paper's Figure 18."""
_BINS = 50
_TOLD_AFTER = (1, 2, 5, 10, 20, 50, 100, 150, 200)


class Observations(NamedTuple):
    """What is recorded in an interval: gradient norms by layer, and copies of one weight."""

    norms: dict[str, Float[Array, "*stack"]]
    """The norm of the gradient of each layer's kernel, mean over the steps."""
    norms_within: dict[str, Float[Array, "..."]]
    """The same norm at the first step and at every `NORM_INTERVAL`th after it, along the first axis."""
    watched: Float[Array, "copies ..."]
    """The first slice of the watched kernel, before each of the steps in `watched_steps`."""


def observed_steps(
    step: Callable[[State, Any], tuple[State, PyTree, PyTree]],
    state: State,
    inputs: PyTree,
    layers: tb_optax.Layers,
    watched: tb_optax.Layer,
) -> tuple[State, PyTree, Observations]:
    """Takes one step for each of the inputs.

    Args:
      step: from a state with `params` and the inputs of a step to the next state, the gradients, and metrics.
      state: the first state.
      inputs: the inputs of all steps, stacked along the first axis.
      layers: the layers whose gradient norms are recorded.
      watched: the layer whose kernel is copied.

    Returns:
      The last state, the mean of the metrics, and what was recorded.
    """
    steps = len(jax.tree.leaves(inputs)[0])
    copied = jnp.asarray(watched_steps(steps))
    kernel = lambda state: first_slice(watched, kernels(state.params)[watched.kernel])

    def one(carry: tuple[Any, Array], numbered: tuple[Array, Any]) -> tuple[tuple[Any, Array], Any]:
        (state, copies), (number, own) = carry, numbered
        # Each copy is overwritten until its step is reached. After the last copy's step nothing is written.
        copies = copies.at[jnp.sum(copied < number)].set(kernel(state), mode="drop")
        state, grads, metrics = step(state, own)
        return (state, copies), (metrics, kernel_norms(grads, layers))

    first = kernel(state)
    carry = (state, jnp.zeros((len(copied), *first.shape), first.dtype))
    (state, copies), (metrics, norms) = jax.lax.scan(one, carry, (jnp.arange(steps), inputs))
    within = {layer: values[::NORM_INTERVAL] for layer, values in norms.items()}
    metrics, mean = jax.tree.map(lambda values: jnp.mean(values, axis=0), (metrics, norms))
    return state, metrics, Observations(mean, within, copies)


def watched_steps(steps: int) -> list[int]:
    """Four steps of an interval, the first included; fewer if the interval is shorter."""
    return sorted({part * steps // 4 for part in range(4)})


def kernel_norms(grads: PyTree, layers: tb_optax.Layers) -> dict[str, Float[Array, "*stack"]]:
    """The norm of each layer's gradient, over all axes but those along which layers are stacked."""
    leaves = kernels(grads)
    return {layer.name: _norms(layer, leaves[layer.kernel].astype(jnp.float32)) for layer in layers}


def _norms(layer: tb_optax.Layer, kernel: Float[Array, "..."]) -> Float[Array, "*stack"]:
    count = len(layer.layer_axes)
    stacked = jnp.moveaxis(kernel, layer.layer_axes, range(count))
    return jnp.linalg.norm(stacked.reshape(*stacked.shape[:count], -1), axis=-1)


def first_slice(layer: tb_optax.Layer, kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """The first layer of a stack, as a stack of one. A layer that is no stack stays as it is."""
    for axis in layer.layer_axes:
        kernel = jax.lax.slice_in_dim(kernel, 0, 1, axis=axis)
    return kernel


def by_slice(values: Mapping[str, Any], inner: int = 0) -> dict[str, Any]:
    """What belongs to the layers of a stack, each by a name of its own: `layers/attention/q[0]`, and so on.

    Args:
      values: by the name of a layer, arrays whose axes are the stack's, and `inner` more at the end.
      inner: how many axes each layer's own value has.

    Returns:
      Numbers, or lists of them.
    """
    found = {}
    for name, value in values.items():
        array = np.asarray(value)
        for index in np.ndindex(array.shape[: array.ndim - inner]):
            found[slice_name(name, index)] = array[index].tolist()
    return found


def slice_name(name: str, index: Sequence[int]) -> str:
    return f"{name}[{','.join(map(str, index))}]" if index else name


def kernels(params: PyTree) -> dict[str, Array]:
    """Every leaf, by the path that layers have for it."""
    path_name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def measure_alphas(
    alpha: Callable[..., Array], layers: tb_optax.Layers, params: PyTree
) -> dict[str, Float[Array, "*stack"]]:
    """The metric `alpha` of each of `layers`, computed by a refresh of TempBalance; NaN if a layer has none."""
    refresh = tb_optax.tempbalance(1, metric=alpha, layers=layers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tempbalance balances", UserWarning)  # Nothing is balanced here.
        state = refresh.init(params)
    _, refreshed = refresh.update(params, state, params)
    alphas = optax.tree_utils.tree_get(refreshed, "metric")
    return {name: jnp.where(alpha > 0, alpha, jnp.nan) for name, alpha in alphas.items()}


class Spectrum(NamedTuple):
    """Of a layer, or of each layer of a stack."""

    eigenvalues: Float[Array, "*stack n"]
    tail: tb_optax.fits.PowerLaw


def fitted_spectra(fit: FitTail, layers: tb_optax.Layers, params: Any) -> dict[str, Spectrum]:
    """By layer."""
    return {name: Spectrum(values, fit(values)) for name, values in tb_optax.spectra(params, layers=layers).items()}


def histograms(spectra: Mapping[str, Spectrum], layers: Sequence[tb_optax.Layer]) -> dict[str, dict[str, Any]]:
    """By layer, in their order. Layers without a positive finite eigenvalue are left out, as where training diverged."""
    found = {}
    in_order = {layer.name: jax.device_get(spectra[layer.name]) for layer in layers}
    alphas = by_slice({name: spectrum.tail.alpha for name, spectrum in in_order.items()})
    thresholds = by_slice({name: spectrum.tail.xmin for name, spectrum in in_order.items()})
    for name, each in by_slice({name: spectrum.eigenvalues for name, spectrum in in_order.items()}, inner=1).items():
        values = np.array(each)
        logs = np.log10(values[(values > 0) & np.isfinite(values)])
        if len(logs):
            counts, edges = np.histogram(logs, _BINS)
            edges = [round(float(edges[0]), 4), round(float(edges[-1]), 4)]
            tail = {"alpha": alphas[name], "threshold": thresholds[name]}
            found[name] = {"log10_edges": edges, "counts": counts.tolist(), **tail, "eigenvalues": len(values)}
    return found


def of_one_weight(
    layer: tb_optax.Layer, kernels: Mapping[int, Float[np.ndarray, "..."]], fit: FitTail
) -> list[dict[str, Any]]:
    """Its histograms after so many iterations, counted from the start of the training."""
    alone = tb_optax.Layers([dataclasses.replace(layer, follows=())])
    found = []
    for iteration, kernel in kernels.items():
        for histogram in histograms(_jitted_spectra(fit, alone, {layer.kernel: kernel}), alone).values():
            found.append({"iteration": iteration, **histogram})
    return found


_jitted_spectra = jax.jit(fitted_spectra, static_argnums=(0, 1))


def told_after(epoch: int, epochs: int) -> bool:
    """Whether the spectrum of the watched weight is logged after this epoch: ever more rarely, and after the last."""
    return epoch in _TOLD_AFTER or epoch == epochs
