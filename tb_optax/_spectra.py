"""Spectra: the eigenvalues of the correlation matrices of each layer's weight."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tb_optax._eigenvalues import squared_singular_values, symmetric_eigenvalues
from tb_optax._find import find_layers
from tb_optax._layers import KernelShape, Layers, LayersOrFn, Path, PyTree, kernel_shape, resolve_layers

# The released code scales convolutions' weights by sqrt(0.5).
_POOLED_SCALE = 0.5


def spectra(params: PyTree, *, layers: LayersOrFn = find_layers) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    """The spectrum of every layer: the ascending eigenvalues of `W Wᵀ`, taken on the smaller side.

    A convolution has one matrix for each place of its window, and pools their eigenvalues; as in the authors' code, its
    weight is scaled by `sqrt(0.5)` before. These are the spectra that TempBalance fits during training (Zhou et al.,
    2023, Section 3.1): what is plotted is what is used. They come from singular values, computed in the weight's
    precision, at least in float32; during training, where the metric allows, from Gram products, which are faster and
    agree but for eigenvalues of less than a millionth of the largest.

    Args:
      params: the parameters.
      layers: the layers, or a function of `params` that finds them.

    Returns:
      For each layer's name, an array of shape `(*sizes of its layer axes, number of eigenvalues)`, at least float32. NaN
      where the weight holds a NaN or an infinity; zero where rounding cannot tell an eigenvalue from zero.

    Raises:
      TypeError: `layers` is not a sequence of layers, or does not return one.
      ValueError: `layers` does not fit `params`.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (64, 128))}}
      >>> eigenvalues = tb_optax.spectra(params)["dense"]
      >>> eigenvalues.shape
      (64,)
      >>> round(float(tb_optax.pl_alpha_hill(eigenvalues)), 1)
      2.8
    """
    found, leaves = resolve_layers(layers, params)
    return layer_spectra(found, leaves, small_eigenvalues=True)


def layer_spectra(
    layers: Layers, leaves: Mapping[Path, Any], *, small_eigenvalues: bool
) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    """`spectra` of layers already resolved. Matrices of one size, of all layers, are solved as one stack.

    Without `small_eigenvalues`, those of less than a millionth of the largest are inexact or zero, at half the cost.
    """
    solve = squared_singular_values if small_eigenvalues else symmetric_eigenvalues
    shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in layers}
    stacks = defaultdict(list)
    for layer in layers:
        matrices = _matrices(leaves[layer.kernel], shapes[layer.name])
        matrices = matrices if small_eigenvalues else _gram(matrices)
        stacks[matrices.shape[1:], matrices.dtype].append((layer.name, matrices))
    spectra = {}
    for members in stacks.values():
        values = solve(jnp.concatenate([matrices for _, matrices in members]))
        start = 0
        for name, matrices in members:
            shape = shapes[name]
            own = values[start : start + len(matrices)].reshape(*shape.stack, shape.eigenvalues)
            start += len(matrices)
            if shape.matrices > 1:
                own = jnp.sort(own, axis=-1)
            spectra[name] = own * (_POOLED_SCALE if shape.pooled_axes else 1.0)
    return {layer.name: spectra[layer.name] for layer in layers}


def _matrices(kernel: Array, shape: KernelShape) -> Float[Array, "matrices n m"]:
    """Every matrix of a kernel, its smaller side first, in at least float32."""
    kernel = jnp.asarray(kernel)
    rows, columns = shape.reduction_axes, shape.output_axes
    if shape.rows > shape.columns:
        rows, columns = columns, rows
    matrices = kernel.transpose(*shape.layer_axes, *shape.pooled_axes, *rows, *columns)
    matrices = matrices.reshape(-1, *sorted((shape.rows, shape.columns)))
    return matrices.astype(jnp.promote_types(kernel.dtype, jnp.float32))


def _gram(matrices: Float[Array, "matrices n m"]) -> Float[Array, "matrices n n"]:
    # Anything less than full precision (TF32, bfloat16) ruins the small half of the spectrum.
    return jnp.einsum("sij,skj->sik", matrices, matrices, precision=jax.lax.Precision.HIGHEST)
