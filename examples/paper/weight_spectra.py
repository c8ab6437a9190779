"""Spectra of weights as logs and results store them: a histogram and the fitted tail."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

import tb_optax
from examples.paper.balance import FitTail
from examples.paper.observations import by_slice

_BINS = 50
_EPOCHS = (1, 2, 5, 10, 20, 50, 100, 150, 200)


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
        for histogram in histograms(_fitted_spectra(fit, alone, {layer.kernel: kernel}), alone).values():
            found.append({"iteration": iteration, **histogram})
    return found


_fitted_spectra = jax.jit(fitted_spectra, static_argnums=(0, 1))


def told_after(epoch: int, epochs: int) -> bool:
    """Whether the spectrum of the watched weight is logged after this epoch: ever more rarely, and after the last."""
    return epoch in _EPOCHS or epoch == epochs
