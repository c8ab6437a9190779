"""Spectra: the eigenvalues of the correlation matrices of each layer's weight."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tb_optax._layers.find import find_layers
from tb_optax._layers.layer import Layers, LayersOrFn, Path, PyTree, kernel_shape, resolve_layers
from tb_optax._spectra.execute import compute_spectra
from tb_optax._spectra.options import DEFAULT_SOLVER, Exact, Lanczos, Solver, check_solver
from tb_optax._spectra.plan import plan_spectra
from tb_optax._spectra.sharding import device_count, in_mesh, mesh_of, pinned
from tb_optax._spectra.windows import Windows, check_windows


def spectra(
    params: PyTree,
    *,
    layers: LayersOrFn = find_layers,
    solver: Exact | Lanczos = DEFAULT_SOLVER,
    windows: Windows | None = None,
) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    """The eigenvalue spectrum of every layer: the ascending eigenvalues of `W Wᵀ`, taken on the smaller side.

    A convolution has one matrix for each position of its window and pools their eigenvalues; as in the authors' code, its
    weight is scaled by `sqrt(0.5)` first. TempBalance fits these spectra during training (Zhou et al., 2023, Section 3.1).
    This function computes them from singular values, in the weight's precision, at least in float32. During training, if
    the metric allows it, they come from Gram products, which is faster and agrees except for eigenvalues below a millionth
    of the largest.

    Args:
      params: the parameters.
      layers: the layers, or a function of `params` that finds them.
      solver: how spectra are computed.
      windows: windows to take from every matrix; `None` for whole matrices.

    Returns:
      For each measured layer's name, an array of shape `(*sizes of its layer axes, number of eigenvalues)`, at least
      float32. NaN if the weight holds a NaN or an infinity; zero for an eigenvalue below the noise of rounding.

    Raises:
      TypeError: `layers` is not a sequence of layers, or does not return one; `solver` or `windows` has the wrong type.
      ValueError: `layers` does not fit `params`.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (64, 128))}}
      >>> eigenvalues = tb_optax.spectra(params)["dense"]
      >>> eigenvalues.shape
      (64,)
      >>> round(float(tb_optax.metrics.pl_alpha_hill(eigenvalues)), 1)
      2.8
    """
    check_solver("spectra", solver)
    check_windows("spectra", windows)
    found, leaves = resolve_layers(layers, params)
    found = found.measured
    by_name = _by_name(pinned({layer.kernel: leaves[layer.kernel] for layer in found}), found, solver, windows)
    return {layer.name: by_name[layer.name] for layer in found}


# Jitted so that it is one program where nothing around it is jitted.
@functools.partial(jax.jit, static_argnames=("layers", "solver", "windows"))
def _by_name(
    leaves: Mapping[Path, Any], layers: Layers, solver: Solver, windows: Windows | None
) -> dict[str, Float[Array, "*_"]]:
    spectra = {}
    with in_mesh(mesh_of(leaves.values())):
        plan = plan_spectra(layers, leaves, solver, windows, gram=False, devices=device_count())
        stacks = compute_spectra(plan, leaves)
    for names, rows in stacks:
        spectra |= zip(names, jnp.split(rows, len(names)), strict=True)
    shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in layers}
    return {name: spectra[name].reshape(*shape.stack, -1) for name, shape in shapes.items()}
