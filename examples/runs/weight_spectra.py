"""Spectra of weights as logs and results have them: a histogram, and the tail that a fit finds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import tb_optax
from examples.runs.balance import FitTail
from examples.runs.observations import by_slice

_BINS = 50
_EPOCHS = (1, 2, 5, 10, 20, 50, 100, 150, 200)


def histograms(params: Any, layers: Sequence[tb_optax.Layer], fit_tail: FitTail) -> dict[str, dict[str, Any]]:
    """By layer, in their order; those without a positive eigenvalue, as where training diverged, are left out."""
    found = {}
    eigenvalues = tb_optax.spectra(params, layers=layers)
    for name, each in by_slice({layer.name: eigenvalues[layer.name] for layer in layers}, inner=1).items():
        values = np.asarray(each)
        fit = fit_tail(jnp.asarray(values))
        logs = np.log10(values[values > 0])
        if len(logs):
            counts, edges = np.histogram(logs, _BINS)
            edges = [round(float(edges[0]), 4), round(float(edges[-1]), 4)]
            tail = {"alpha": float(fit.alpha), "threshold": float(fit.threshold)}
            found[name] = {"log10_edges": edges, "counts": counts.tolist(), **tail, "eigenvalues": len(values)}
    return found


def of_one_weight(
    layer: tb_optax.Layer, kernels: Mapping[int, Float[np.ndarray, "..."]], fit_tail: FitTail
) -> list[dict[str, Any]]:
    """Its histograms after so many iterations, counted from the start of the training."""
    alone = dataclasses.replace(layer, follows=())
    found = []
    for iteration, kernel in kernels.items():
        for histogram in histograms({layer.kernel: kernel}, [alone], fit_tail).values():
            found.append({"iteration": iteration, **histogram})
    return found


def told_after(epoch: int, epochs: int) -> bool:
    """Whether the watched weight's spectrum is told after this epoch of so many: ever more rarely, and after the last."""
    return epoch in _EPOCHS or epoch == epochs
