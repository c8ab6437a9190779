"""AlphaDecay: a weight decay for each layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from tb_optax._balance.assignments import Assignment, Bound, linear
from tb_optax._balance.metrics import Metric, pl_alpha_hill
from tb_optax._balance.options import BalanceOptions
from tb_optax._balance.scales import scale_by_layer
from tb_optax._balance.transformation import BalancedParams, BalancedTransformation, balanced_transformation
from tb_optax._checks import check_not_negative
from tb_optax._dtypes import at_least_float32, is_float
from tb_optax._layers.find import find_layers
from tb_optax._layers.layer import LayersOrFn, PyTree, short_repr
from tb_optax._spectra.options import DEFAULT_SOLVER, Exact, Lanczos
from tb_optax._spectra.windows import Windows

_STATIC = ("metric", "assign", "layers", "mask")


class AlphaDecayState(NamedTuple):
    """State of `alphadecay`, with arrays like those of `TempBalanceState`.

    Attributes:
      count: updates made.
      metric: each layer's metric when it was last usable; 0 before the first refresh.
      scale: the factor on each layer's weight decay; 1 before the first refresh.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    metric: dict[str, Float[Array, "*stack"]]
    scale: dict[str, Float[Array, "*stack"]]


def alphadecay(
    weight_decay: optax.ScalarOrSchedule,
    update_interval: int | Int[Array, ""] | None,
    *,
    min_scale: Bound = 0.67,
    max_scale: Bound = 5.0,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    metric: Metric = pl_alpha_hill,
    assign: Assignment = linear,
    layers: LayersOrFn = find_layers,
    start_step: int | Int[Array, ""] = 0,
    solver: Exact | Lanczos = DEFAULT_SOLVER,
    windows: Windows | None = None,
) -> BalancedTransformation:
    """Adds weight decay, scaled for each layer by a number computed from the spectrum of its weight: AlphaDecay.

    Use it in place of `optax.add_decayed_weights`. It adds `weight_decay * scale * params` to the updates. The scale is
    computed as in `tempbalance`: small for heavy tails, large for light ones (He et al., "AlphaDecay: Module-wise Weight
    Decay for Heavy-Tailed Balancing in LLMs", 2025). Parameters in no balanced layer have the scale 1. Put between Adam's
    direction and the learning rate, it makes AdamW with a layer-wise weight decay:
    `optax.chain(optax.scale_by_adam(), alphadecay(0.1, 500), optax.scale_by_learning_rate(1e-3))`. If `tempbalance` comes
    after it, both scales multiply a layer's decay.

    Refreshes, the choice of layers, unusable spectra, meshes and seeds under `jax.vmap` are as in `tempbalance`. A layer's
    bias and the normalization after it get the layer's scale, unless `mask` leaves them out.

    Args:
      weight_decay: the decay at scale 1, or a schedule of it: a function of the number of updates made.
      update_interval: updates between refreshes, at least 1. The released runs refresh every 500.
      min_scale: the smallest scale; 0.67 in the released runs.
      max_scale: the largest scale; 5 in the released runs.
      mask: as in `optax.add_decayed_weights`: a tree of booleans, or a function of the parameters that gives one. Only
        parameters marked true are decayed or balanced.
      metric: as in `tempbalance`, like all arguments below.
      assign: a function from all layers' metrics to scales.
      layers: which layers to balance.
      start_step: the update of the first refresh.
      solver: how spectra are computed.
      windows: windows to take from every matrix; `None` for whole matrices.

    Returns:
      A transformation whose `update` needs `params`, with `refresh` as in `tempbalance`. With `optax.inject_hyperparams`,
      the numbers can be schedules; give `static_args=("metric", "assign", "layers", "mask")`.

    Raises:
      ValueError: `weight_decay` is negative or not finite; otherwise as in `tempbalance`.
      TypeError: `mask` is neither a tree of booleans nor a function; otherwise as in `tempbalance`.

    Example:
      >>> import jax, optax, tb_optax
      >>> keys = jax.random.split(jax.random.key(0), 6)
      >>> params = {f"dense{i}": {"kernel": jax.random.normal(key, (64, 64))} for i, key in enumerate(keys)}
      >>> tx = optax.chain(optax.scale_by_adam(), tb_optax.alphadecay(0.1, 500), optax.scale_by_learning_rate(1e-3))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> {name: round(float(scale), 2) for name, scale in state[1].scale.items()}
      {'dense0': 2.3, 'dense1': 1.93, 'dense2': 2.84, 'dense3': 5.0, 'dense4': 4.39, 'dense5': 0.67}
    """
    if not callable(weight_decay):
        check_not_negative("alphadecay", _STATIC, weight_decay=weight_decay)
    if not callable(mask) and not all(isinstance(leaf, (bool, np.bool_, jax.Array)) for leaf in jax.tree.leaves(mask)):
        raise TypeError(
            f"alphadecay: mask={short_repr(mask)} must be a tree of True and False, or a function of params that gives one."
        )
    options = BalanceOptions(
        "alphadecay",
        update_interval=update_interval,
        min_scale=min_scale,
        max_scale=max_scale,
        metric=metric,
        assign=assign,
        layers=layers,
        start_step=start_step,
        solver=solver,
        windows=windows,
    )

    def add_decayed(updates: PyTree, state: AlphaDecayState, now: BalancedParams) -> PyTree:
        decay = weight_decay(state.count) if callable(weight_decay) else weight_decay
        balanced = scale_by_layer(now.params, now.layers, now.leaves, now.scale)
        return jax.tree.map(lambda update, own: _plus(update, decay, own), updates, balanced)

    transformation = balanced_transformation(options, AlphaDecayState, add_decayed)
    if mask is None:
        return transformation
    return BalancedTransformation(*optax.masked(transformation, mask), transformation.refresh)


def _plus(update: Array, decay: Any, balanced: Array) -> Array:
    """`update + decay * balanced`, computed at least in float32 and returned in the update's dtype.

    An integer, a bool or a `float0` does not decay.
    """
    if not is_float(update):
        return update
    update, balanced = jnp.asarray(update), jnp.asarray(balanced)
    wide = at_least_float32(update.dtype)
    return (update.astype(wide) + decay * balanced.astype(wide)).astype(update.dtype)
