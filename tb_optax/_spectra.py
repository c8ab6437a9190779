"""Spectra: the eigenvalues of the correlation matrices of each layer's weight."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tb_optax._eigenvalues import symmetric_eigenvalues
from tb_optax._find import find_layers
from tb_optax._layers import KernelShape, Layers, LayersOrFn, Path, PyTree, kernel_shape, resolve_layers

# The released code scales convolutions' weights by sqrt(0.5).
_POOLED_SCALE = 0.5


def spectra(params: PyTree, *, layers: LayersOrFn = find_layers) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    """The spectrum of every layer: the ascending eigenvalues of `W Wᵀ`, taken on the smaller side.

    A convolution has one matrix for each place of its window, and pools their eigenvalues; as in the authors' code, its
    weight is scaled by `sqrt(0.5)` before. These are the spectra that TempBalance fits during training (Zhou et al.,
    2023, Section 3.1): what is plotted is what is used. The Gram products are computed in the weight's precision, at
    least in float32.

    Args:
      params: the parameters.
      layers: the layers, or a function of `params` that finds them.

    Returns:
      For each layer's name, an array of shape `(*sizes of its layer axes, number of eigenvalues)`, at least float32. NaN
      where the weight holds a NaN or an infinity; zero where rounding cannot tell an eigenvalue from zero.

    Raises:
      TypeError: `layers` is not a sequence of `Layer`s, or does not return one.
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
    return layer_spectra(found, leaves)


def layer_spectra(layers: Layers, leaves: Mapping[Path, Any]) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    """`spectra` of layers already resolved. Matrices of one size, of all layers, are solved as one stack."""
    shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in layers}
    stacks = defaultdict(list)
    for layer in layers:
        gram = _gram_matrices(leaves[layer.kernel], shapes[layer.name])
        stacks[gram.shape[-1], gram.dtype].append((layer.name, gram))
    spectra = {}
    for members in stacks.values():
        values = symmetric_eigenvalues(jnp.concatenate([gram for _, gram in members]))
        start = 0
        for name, gram in members:
            shape = shapes[name]
            own = values[start : start + len(gram)].reshape(*shape.stack, shape.eigenvalues)
            start += len(gram)
            spectra[name] = jnp.sort(own, axis=-1) * (_POOLED_SCALE if shape.pooled_axes else 1.0)
    return {layer.name: spectra[layer.name] for layer in layers}


def _gram_matrices(kernel: Array, shape: KernelShape) -> Float[Array, "matrices n n"]:
    """`W Wᵀ` of every matrix of a kernel, on the smaller side, in at least float32."""
    kernel = jnp.asarray(kernel)
    order = (*shape.layer_axes, *shape.pooled_axes, *shape.reduction_axes, *shape.output_axes)
    matrices = kernel.transpose(order).reshape(-1, shape.rows, shape.columns)
    matrices = matrices.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    equation = "sij,skj->sik" if shape.rows <= shape.columns else "sji,sjk->sik"
    # Anything less than full precision (TF32, bfloat16) ruins the small half of the spectrum.
    return jnp.einsum(equation, matrices, matrices, precision=jax.lax.Precision.HIGHEST)
