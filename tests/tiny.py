"""Tiny networks, and the formulas of TempBalance and SGDP once more, in float64 numpy."""

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

import tb_optax

tiny_layers = functools.partial(tb_optax.find_layers, min_eigenvalues=4)
tempbalance = functools.partial(tb_optax.tempbalance, layers=tiny_layers)
"""`tempbalance` for networks too small for its default."""


def dense_params(seed: int = 0, depth: int = 3, rows: int = 8, columns: int = 12) -> dict[str, dict[str, jax.Array]]:
    """Dense layers of one size, with biases, whose spectra differ: powers of normal numbers."""
    normal = np.random.default_rng(seed).standard_normal((depth, rows, columns))
    return {
        f"dense{i}": {
            "kernel": jnp.asarray(np.sign(kernel) * np.abs(kernel) ** (1 + i), jnp.float32),
            "bias": jnp.full(columns, 0.5, jnp.float32),
        }
        for i, kernel in enumerate(normal)
    }


def ones_like(tree):
    return jax.tree.map(jnp.ones_like, tree)


def numpy_spectrum(kernel) -> np.ndarray:
    """Ascending squared singular values of a matrix."""
    return np.sort(np.linalg.svd(np.asarray(kernel, np.float64), compute_uv=False) ** 2)


def numpy_alpha(eigenvalues, index: int | None = None) -> float:
    """The maximum-likelihood exponent of the tail that starts at `index`, by default in the middle."""
    logs = np.log(np.asarray(eigenvalues, np.float64))
    index = len(logs) // 2 if index is None else index
    count = len(logs) - index
    return 1 + count / (logs[index:].sum() - count * logs[index])


def numpy_linear(metrics: Mapping[str, float], low: float = 0.5, high: float = 1.5) -> dict[str, float]:
    """Eq. 2 of the paper."""
    least, greatest = min(metrics.values()), max(metrics.values())
    return {name: low + (high - low) * (metric - least) / (greatest - least) for name, metric in metrics.items()}


def numpy_scales(params: Mapping, low: float = 0.5, high: float = 1.5) -> dict[str, float]:
    """TempBalance's default scales of a dict of dense layers."""
    return numpy_linear({name: numpy_alpha(numpy_spectrum(leaf["kernel"])) for name, leaf in params.items()}, low, high)


def numpy_project(weight, gradient, direction, delta: float = 0.1, epsilon: float = 1e-8):
    """The direction without what lies along the weight, and by which view: "outputs", "whole" or neither, ""."""
    for view, rows in (("outputs", weight.shape[0]), ("whole", 1)):
        weights, gradients, directions = (x.reshape(rows, -1) for x in (weight, gradient, direction))
        cosines = [abs(g @ w) / (np.linalg.norm(g) * np.linalg.norm(w)) for g, w in zip(gradients, weights, strict=True)]
        if max(cosines) < delta / np.sqrt(weights.shape[1]):
            units = [w / (np.linalg.norm(w) + epsilon) for w in weights]
            projected = [d - (u @ d) * u for d, u in zip(directions, units, strict=True)]
            return np.array(projected).reshape(weight.shape), view
    return direction, ""


def counted(metric=tb_optax.metrics.pl_alpha_hill):
    """The metric, and a list that grows each time it is computed (rather than traced)."""
    calls: list[None] = []

    def counting(eigenvalues):
        jax.debug.callback(lambda: calls.append(None))
        return metric(eigenvalues)

    return counting, calls


def traced(function):
    """The function, and a list that grows each time it is traced."""
    traces: list[None] = []

    def tracing(*args):
        traces.append(None)
        return function(*args)

    return tracing, traces


def equations(jaxpr: core.Jaxpr, enter=lambda equation: True) -> Iterator[core.JaxprEqn]:
    """All equations of a jaxpr, those inside others too where `enter` allows."""
    for equation in jaxpr.eqns:
        yield equation
        if enter(equation):
            for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    yield from equations(getattr(value, "jaxpr", value), enter)
