"""Spectral norm regularization: a penalty on the largest singular value of every weight, by power iteration."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tb_optax._checks import check_not_negative, check_params, check_state_class, check_state_layers, check_updates
from tb_optax._compat import is_placeholder
from tb_optax._dtypes import at_least_float32
from tb_optax._layers.find import find_all_layers
from tb_optax._layers.layer import KernelShape, Layers, LayersOrFn, Path, PyTree, kernel_shape, map_by_path, resolve_layers
from tb_optax._spectra.sharding import replicated

_STATIC = ("power_iterations", "layers", "seed")


class SpectralNormRegularizationState(NamedTuple):
    """State of `spectral_norm_regularization`.

    Attributes:
      left_singular_vectors: for each layer's name, the vectors of the power iteration: unit vectors over the outputs. The
        array has the shape of the kernel, but size 1 along all axes that are neither output nor layer axes. Finite at
        every step; float32, or float64 for a float64 kernel.
    """

    left_singular_vectors: dict[str, Float[Array, "..."]]


def spectral_norm_regularization(
    coefficient: float | Float[Array, ""],
    *,
    power_iterations: int = 1,
    layers: LayersOrFn = find_all_layers,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adds to the updates the gradient of a penalty that keeps the spectral norms of the weights small.

    The penalty is `coefficient / 2` times the sum of the squared spectral norms. Its gradient is `coefficient * σ u vᵀ`,
    with the largest singular value `σ` of a weight and its singular vectors `u` and `v` (Yoshida and Miyato, "Spectral Norm
    Regularization for Improving the Generalizability of Deep Learning", 2017). It is a baseline of Zhou et al. (2023), whose
    released code restarts the power iteration at each step. Here a weight is one matrix: outputs by all other axes,
    including the window of a convolution. In a stack of layers, each slice is one matrix.

    The vectors come from power iteration, which continues from update to update as the weights change. It computes in the
    weight's precision, at least in float32; updates keep their dtype. A zero weight has no penalty. A weight that holds a
    NaN or an infinity gets a gradient of NaN, and its state stays as it was.

    Put it first in a chain, like `optax.add_decayed_weights`:
    `optax.chain(spectral_norm_regularization(1e-2), optax.sgd(0.1, momentum=0.9), tempbalance(390))`.

    Args:
      coefficient: the strength of the penalty, finite and not negative.
      power_iterations: rounds of power iteration in each update, at least 1.
      layers: which weights to regularize: a sequence of `Layer`, or a function of the parameters that finds them. The
        default is all layers that `find_layers` finds, so no embedding and no weight with a single input or output. A layer
        with `measured=False` is not regularized.
      seed: the seed of the vectors that power iteration starts from.

    Returns:
      A transformation whose `update` needs `params`. With `optax.inject_hyperparams`, `coefficient` can be a schedule;
      give `static_args=("power_iterations", "layers", "seed")`.

    Raises:
      ValueError: a number is out of range; from `init`, no layers, or layers that do not fit the parameters; from
        `update`, no `params`, or a state that does not fit them.
      TypeError: a numeric argument is not a number, or `layers` is not layers; from `update`, another transformation's
        state.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> params = {"dense": {"kernel": jnp.diag(jnp.array([3.0, 2.0, 1.0])), "bias": jnp.ones(3)}}
      >>> tx = tb_optax.baselines.spectral_norm_regularization(0.1, power_iterations=20)
      >>> gradients = {"dense": {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}}
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> abs(updates["dense"]["kernel"].round(3))
      Array([[0.3, 0. , 0. ],
             [0. , 0. , 0. ],
             [0. , 0. , 0. ]], dtype=float32)
    """
    check_not_negative("spectral_norm_regularization", _STATIC, coefficient=coefficient)
    for name, number in (("power_iterations", power_iterations), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
            raise TypeError(
                f"spectral_norm_regularization: {name}={number!r} must be a whole number. (Under optax.inject_hyperparams, "
                f"give static_args={_STATIC}.)"
            )
    for name, number, least in (("power_iterations", power_iterations, 1), ("seed", seed, 0)):
        if number < least:
            raise ValueError(f"spectral_norm_regularization: {name}={number} must be at least {least}.")

    def init_fn(params: PyTree) -> SpectralNormRegularizationState:
        if is_placeholder(params):  # The state holds no parameters.
            return SpectralNormRegularizationState(jnp.zeros(()))  # pyright: ignore[reportArgumentType]
        found, leaves = resolve_layers(layers, params)
        found = found.measured
        if not found:
            raise ValueError(
                "spectral_norm_regularization found no layers to regularize; give others as layers=. Left out: "
                f"{', '.join(f'{path} ({why})' for path, why in found.left_out.items()) or 'nothing'}."
            )
        vectors = {}
        for index, layer in enumerate(found):
            kernel = leaves[layer.kernel]
            shape = kernel_shape(layer, kernel.shape)
            # Drawn by NumPy, because JAX needs half a second to compile each shape.
            start = np.random.default_rng((seed, index)).standard_normal(_vectors_shape(shape, kernel))
            start /= np.sqrt(np.sum(start**2, axis=shape.output_axes, keepdims=True))
            vectors[layer.name] = replicated(jnp.asarray(start, at_least_float32(kernel.dtype)))
        return SpectralNormRegularizationState(vectors)

    def update_fn(
        updates: PyTree, state: SpectralNormRegularizationState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, SpectralNormRegularizationState]:
        del extra_args
        check_params("spectral_norm_regularization", params)
        check_state_class("spectral_norm_regularization", state, SpectralNormRegularizationState)
        found, leaves = resolve_layers(layers, params)
        found = found.measured
        check_state_layers("spectral_norm_regularization", state.left_singular_vectors, found)
        for layer in found:
            own, kernel = jnp.shape(state.left_singular_vectors[layer.name]), leaves[layer.kernel]
            expected = _vectors_shape(kernel_shape(layer, kernel.shape), kernel)
            if own != expected:
                raise ValueError(
                    f"spectral_norm_regularization: state has the layer {layer.name!r} with vectors of shape {own}, but "
                    f"params needs {expected}; call init with these parameters."
                )
        check_updates("spectral_norm_regularization", updates, found, leaves)
        kernels = {layer.kernel: leaves[layer.kernel] for layer in found}
        gradients, vectors = _power_iteration(found, int(power_iterations), kernels, state.left_singular_vectors)

        def regularized(path: Path, update: Array) -> Array:
            if path not in gradients:
                return update
            penalty = coefficient * gradients[path]
            return (update.astype(penalty.dtype) + penalty).astype(update.dtype)

        return map_by_path(regularized, updates), SpectralNormRegularizationState(vectors)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore[reportArgumentType]


def _vectors_shape(shape: KernelShape, kernel: Array) -> tuple[int, ...]:
    """The kernel's shape with size 1 along its inputs."""
    return tuple(1 if axis in shape.input_axes else size for axis, size in enumerate(kernel.shape))


@functools.partial(jax.jit, static_argnums=(0, 1))  # One program, even if `tx.update` is not jitted.
def _power_iteration(
    found: Layers, rounds: int, kernels: dict[Path, Array], start: dict[str, Float[Array, "..."]]
) -> tuple[dict[Path, Array], dict[str, Float[Array, "..."]]]:
    """`σ u vᵀ` of each layer, by kernel path and in the kernel's shape; and `u` of each layer, by layer name."""

    def one_round(lefts: dict[str, Array]) -> tuple[dict[Path, Array], dict[str, Array]]:
        gradients, new_lefts = {}, {}
        for layer in found:
            shape = kernel_shape(layer, kernels[layer.kernel].shape)
            left = lefts[layer.name]
            kernel = kernels[layer.kernel].astype(left.dtype)
            # Unlike a matmul, sums of products are full float32 on every device, need no transpose, and are faster on CPU.
            right, _ = _normalized(jnp.sum(kernel * left, shape.output_axes, keepdims=True), shape.input_axes)
            product = jnp.sum(kernel * right, shape.input_axes, keepdims=True)
            new, sigma = _normalized(product, shape.output_axes)
            gradients[layer.kernel] = product * right
            new_lefts[layer.name] = replicated(jnp.where(jnp.isfinite(sigma) & (sigma > 0), new, left))
        return gradients, new_lefts

    return one_round(jax.lax.fori_loop(1, rounds, lambda _, lefts: one_round(lefts)[1], start))


def _normalized(vectors: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Vectors along these axes scaled to unit length (zero vectors stay zero), and their lengths."""
    length = jnp.sqrt(jnp.sum(vectors**2, axes, keepdims=True))
    return jnp.where(length == 0, 0, vectors / length), length
