"""SGDP and AdamP: optimizers that do not grow the weights in front of a normalization.

If the scale of a weight does not matter, its gradient is orthogonal to it, so each step makes the weight longer, and a step
turns a longer weight less. Momentum makes the weight grow faster still. For each weight with such a gradient, both
optimizers remove the part along the weight from their step.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from tb_optax._checks import check_below_one, check_not_negative, check_params, check_state_class, check_updates
from tb_optax._compat import is_placeholder
from tb_optax._dtypes import at_least_float32, is_float
from tb_optax._layers.find import find_all_layers
from tb_optax._layers.layer import KernelShape, LayersOrFn, Path, PyTree, kernel_shape, map_by_path, resolve_layers

_STATIC = ("layers",)


def sgdp(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | Float[Array, ""] = 0.9,
    *,
    nesterov: bool = False,
    weight_decay: float | Float[Array, ""] = 0.0,
    weight_decay_ratio: float | Float[Array, ""] = 0.1,
    delta: float | Float[Array, ""] = 0.1,
    eps: float | Float[Array, ""] = 1e-8,
    layers: LayersOrFn = find_all_layers,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum, without the part of each step along scale-invariant weights.

    From Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
    Section 3, as in the authors' code. A weight counts as scale-invariant if its gradient is nearly orthogonal to it:
    the cosine between the two is below `delta / sqrt(n)`. This is tested for each output of the weight (`n` is the size of
    one output), and if that fails, for the weight as a whole (`n` is its size). For a scale-invariant weight, the part along
    the weight is removed from the momentum, output by output or as a whole, and the weight decay is multiplied by
    `weight_decay_ratio`. In a stack of layers, each slice is a weight by itself.

    Weight decay is decoupled, and divided by `1 - momentum` to be as strong as in SGD: every parameter, including biases, is
    multiplied by `1 - learning_rate * weight_decay / (1 - momentum)`. The projection is computed at least in float32.

    Use it in place of `optax.sgd` before `tempbalance`: `optax.chain(sgdp(0.1), tempbalance(390))`.

    Args:
      learning_rate: a number, or a schedule.
      momentum: at least 0, below 1.
      nesterov: whether to use Nesterov momentum.
      weight_decay: the decay of all parameters, not negative.
      weight_decay_ratio: the factor on the decay of projected weights, not negative.
      delta: how close to orthogonal a gradient must be, not negative; at 0, nothing is projected.
      eps: the smallest norm that a weight or a gradient is divided by.
      layers: the weights that may be projected: a sequence of `Layer`, or a function of the parameters that finds them.
        The default is all layers that `find_layers` finds, so no embedding and no weight with a single input or output. A
        layer with `measured=False` is not projected.

    Returns:
      A transformation whose `update` needs `params`. With `optax.inject_hyperparams`, the numbers can be schedules; give
      `static_args="layers"`.

    Raises:
      ValueError: a number is out of range; from `init`, layers that do not fit the parameters; from `update`, no
        `params`.
      TypeError: a numeric argument is not a number, or `layers` is not layers; from `update`, another transformation's
        state.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tb_optax
      >>> unit = lambda kernel: kernel / jnp.linalg.norm(kernel, axis=0)  # what a normalization behind it would see
      >>> loss = lambda params: jnp.sum((unit(params["kernel"]) - 1) ** 2)
      >>> for tx in (optax.sgd(0.1, momentum=0.9), tb_optax.baselines.sgdp(0.1)):
      ...     params = {"kernel": jnp.eye(2)}
      ...     state = tx.init(params)
      ...     for _ in range(10):
      ...         updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...         params = optax.apply_updates(params, updates)
      ...     print(round(float(loss(params)), 2), round(float(jnp.linalg.norm(params["kernel"])), 2))
      0.55 3.63
      0.35 1.68
    """
    _check_learning_rate("sgdp", learning_rate)
    check_not_negative("sgdp", _STATIC, momentum=momentum, eps=eps)
    check_below_one("sgdp", momentum=momentum)
    project = _projected(
        "sgdp",
        optax.trace(momentum, nesterov),
        optax.TraceState,
        weight_decay=weight_decay,
        decay_scale=1 / (1 - momentum),
        weight_decay_ratio=weight_decay_ratio,
        delta=delta,
        eps=eps,
        layers=layers,
    )
    return _over_floats(optax.chain(project, optax.scale_by_learning_rate(learning_rate)))


def adamp(
    learning_rate: optax.ScalarOrSchedule,
    b1: float | Float[Array, ""] = 0.9,
    b2: float | Float[Array, ""] = 0.999,
    eps: float | Float[Array, ""] = 1e-8,
    *,
    nesterov: bool = False,
    weight_decay: float | Float[Array, ""] = 0.0,
    weight_decay_ratio: float | Float[Array, ""] = 0.1,
    delta: float | Float[Array, ""] = 0.1,
    layers: LayersOrFn = find_all_layers,
) -> optax.GradientTransformationExtraArgs:
    """Adam, without the part of each step along scale-invariant weights.

    From Heo et al., ICLR 2021, Section 3: `sgdp` with Adam's direction instead of the momentum. The test uses the
    raw gradient, and the part along the weight is removed from Adam's direction. Weight decay is AdamW's: every parameter is
    multiplied by `1 - learning_rate * weight_decay`.

    Args:
      learning_rate: a number, or a schedule.
      b1: as in `optax.adam`.
      b2: as in `optax.adam`.
      eps: as in `optax.adam`; also the smallest norm that a weight or a gradient is divided by.
      nesterov: whether to use Nesterov momentum, with the bias corrections of `optax.nadam`. The authors' code keeps Adam's
        bias corrections.
      weight_decay: the decay of all parameters, not negative.
      weight_decay_ratio: the factor on the decay of projected weights, not negative.
      delta: how close to orthogonal a gradient must be, not negative; at 0, nothing is projected.
      layers: the weights that may be projected, as in `sgdp`.

    Returns:
      A transformation whose `update` needs `params`. With `optax.inject_hyperparams`, the numbers can be schedules; give
      `static_args="layers"`.

    Raises:
      ValueError: a number is out of range; from `init`, layers that do not fit the parameters; from `update`, no
        `params`.
      TypeError: a numeric argument is not a number, or `layers` is not layers; from `update`, another transformation's
        state.

    Example:
      >>> import jax.numpy as jnp, optax, tb_optax
      >>> params = {"dense": {"kernel": jnp.array([[2.0, 1.0], [1.0, 2.0]])}}
      >>> gradients = {"dense": {"kernel": jnp.array([[1.0, -4.0], [-2.0, 2.0]])}}  # orthogonal to each column
      >>> for tx in (optax.adam(0.1), tb_optax.baselines.adamp(0.1)):
      ...     updates, _ = tx.update(gradients, tx.init(params), params)
      ...     print(abs(round(float(jnp.vdot(updates["dense"]["kernel"], params["dense"]["kernel"])), 3)))
      0.2
      0.0
    """
    _check_learning_rate("adamp", learning_rate)
    check_not_negative("adamp", _STATIC, b1=b1, b2=b2, eps=eps)
    check_below_one("adamp", b1=b1, b2=b2)
    project = _projected(
        "adamp",
        optax.scale_by_adam(b1, b2, eps, nesterov=nesterov),
        optax.ScaleByAdamState,
        weight_decay=weight_decay,
        decay_scale=1.0,
        weight_decay_ratio=weight_decay_ratio,
        delta=delta,
        eps=eps,
        layers=layers,
    )
    return _over_floats(optax.chain(project, optax.scale_by_learning_rate(learning_rate)))


def _over_floats(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The transformation, which leaves integers, bools and `float0` in the tree as they are."""
    masked = optax.masked(tx, lambda tree: jax.tree.map(is_float, tree))

    def init_fn(params: PyTree) -> Any:
        return (tx if is_placeholder(params) or all(map(is_float, jax.tree.leaves(params))) else masked).init(params)

    def update_fn(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, Any]:
        inner = masked if isinstance(state, optax.MaskedState) else tx
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_learning_rate(argument_of: str, learning_rate: Any) -> None:
    if not callable(learning_rate):
        check_not_negative(argument_of, _STATIC, learning_rate=learning_rate)


def _projected(
    argument_of: str,
    inner: optax.GradientTransformation,
    state_class: type,
    *,
    weight_decay: Any,
    decay_scale: Any,
    weight_decay_ratio: Any,
    delta: Any,
    eps: Any,
    layers: LayersOrFn,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `inner` without its part along scale-invariant weights, plus weight decay. The state is `inner`'s,
    of the class `state_class`.
    """
    numbers = dict(weight_decay=weight_decay, weight_decay_ratio=weight_decay_ratio, delta=delta)
    check_not_negative(argument_of, _STATIC, **numbers)

    def init_fn(params: PyTree) -> Any:
        if not is_placeholder(params):
            resolve_layers(layers, params)
        return inner.init(params)

    def update_fn(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, Any]:
        del extra_args
        check_params(argument_of, params)
        check_state_class(argument_of, state, state_class)
        found, weights = resolve_layers(layers, params)
        shapes = {layer.kernel: kernel_shape(layer, weights[layer.kernel].shape) for layer in found.measured}
        gradients = check_updates(argument_of, updates, found, weights)
        directions, state = inner.update(updates, state, params)

        def projected(path: Path, direction: Array) -> Array:
            direction = jnp.asarray(direction)
            wide = lambda array: jnp.asarray(array).astype(at_least_float32(jnp.result_type(array)))
            weight, along, ratio = wide(weights[path]), 0.0, 1.0
            if path in shapes:
                along, found_invariant = _radial_part(
                    wide(gradients[path]), wide(direction), weight, shapes[path], delta, eps
                )
                ratio = jnp.where(found_invariant, weight_decay_ratio, 1.0)
            decay = decay_scale * weight_decay * ratio
            return (wide(direction) + (decay - along) * weight).astype(direction.dtype)

        return map_by_path(projected, directions), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _radial_part(
    gradient: Float[Array, "..."],
    direction: Float[Array, "..."],
    weight: Float[Array, "..."],
    shape: KernelShape,
    delta: Any,
    eps: Any,
) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
    """The coefficient of the weight in the direction, 0 if the weight is not scale-invariant; and whether it is.

    Both broadcast against the kernel: they have size 1 along its inputs, and the second also along its outputs.
    """
    over_inputs = lambda array: jnp.sum(array, shape.input_axes, keepdims=True)
    over_outputs = lambda array: jnp.sum(array, shape.output_axes, keepdims=True)
    products = [
        over_inputs(x * y) for x, y in ((gradient, weight), (gradient, gradient), (weight, weight), (direction, weight))
    ]

    def view(products: list[Array], length: int) -> tuple[Array, Array]:
        """Whether all rows are orthogonal to their gradients, and the coefficient of each row in its direction."""
        overlap, gradient_square, weight_square, along = products
        gradient_norm, weight_norm = jnp.sqrt(gradient_square), jnp.sqrt(weight_square)
        cosine = jnp.abs(overlap) / (jnp.maximum(gradient_norm, eps) * jnp.maximum(weight_norm, eps))
        orthogonal = jnp.max(cosine, shape.output_axes, keepdims=True) < delta / math.sqrt(length)
        return orthogonal, along / (weight_norm + eps) ** 2

    inputs = shape.rows * shape.matrices
    by_output, along_outputs = view(products, inputs)
    as_a_whole, along_whole = view([over_outputs(product) for product in products], inputs * shape.columns)
    along = jnp.where(by_output, along_outputs, jnp.where(as_a_whole, along_whole, 0))
    return along, by_output | as_a_whole
