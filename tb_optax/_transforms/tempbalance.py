"""TempBalance: a learning rate for each layer."""

from typing import NamedTuple

import optax
from jaxtyping import Array, Float, Int

from tb_optax._balance.assignments import Assignment, Bound, linear
from tb_optax._balance.balance import Balance, scale_by_layer
from tb_optax._balance.metrics import Metric, pl_alpha_hill
from tb_optax._layers.find import find_layers
from tb_optax._layers.layer import LayersOrFn
from tb_optax._spectra.solver import DEFAULT_SOLVER, Solver


class TempBalanceState(NamedTuple):
    """State of `tempbalance`.

    Every array is finite at every step. The dicts have one entry for each balanced layer, an array with the sizes of its
    layer axes, `()` for a layer that is not stacked; their dtype is float32, or float64 where a kernel's is.

    Attributes:
      count: updates made.
      metric: each layer's metric when it was last usable; 0 before the first refresh.
      scale: each layer's learning-rate scale; 1 before the first refresh.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    metric: dict[str, Float[Array, "*stack"]]
    scale: dict[str, Float[Array, "*stack"]]


def tempbalance(
    update_interval: int | Int[Array, ""],
    *,
    min_scale: Bound = 0.5,
    max_scale: Bound = 1.5,
    metric: Metric = pl_alpha_hill,
    assign: Assignment = linear,
    layers: LayersOrFn = find_layers,
    start_step: int | Int[Array, ""] = 0,
    solver: Solver = DEFAULT_SOLVER,
) -> optax.GradientTransformationExtraArgs:
    """Scales each layer's updates by what the spectrum of its weight says of its training: TempBalance.

    Every `update_interval` updates, the eigenvalues of each balanced layer's weight are computed from the parameters as
    they are before the update; a metric of each spectrum (by default PL_Alpha_Hill, the exponent of its heavy tail) is
    turned into a scale, small for heavy tails and large for light ones (Zhou et al., "Temperature Balancing, Layer-wise
    Weight Analysis, and Neural Network Training", NeurIPS 2023, Algorithm 1). In between, the scales stay.

    After an optimizer, it scales the step, which is the paper's per-layer learning rate exactly and right for every
    optimizer: `optax.chain(optax.adamw(1e-3), tempbalance(390))`. Before `optax.sgd` it scales the gradient: the same
    while scales hold; behind a refresh, the momentum still carries gradients scaled as they came, for about
    `1 / (1 - momentum)` steps. Before Adam and its kin it would be divided out again.

    A layer whose spectrum is unusable (a NaN or an infinity in its weight, entries too large or too small to be squared,
    all zero, a rank so low that the fitted tail has no spread) keeps its scale and takes no part in the others'. Spectra
    are computed in float32, or in float64 for float64 weights; updates keep their dtype. Only a step that refreshes
    pays: under `jax.vmap` (several seeds at once) too, where all refresh when one is due, and those not due keep their
    scales. Under a mesh (`jax.set_mesh`), every device solves its share of the eigenproblems. Gradients through `update`
    take the scales for constants.

    Args:
      update_interval: updates between refreshes, at least 1. The paper refreshes once an epoch.
      min_scale: the least scale, finite and not negative; the paper's `s1`.
      max_scale: the greatest scale, finite and not below `min_scale`; the paper's `s2`. Whatever `assign` returns is
        clipped to the two.
      metric: a function from ascending spectra `(*layers, n)` to metrics `(*layers,)`: `pl_alpha_hill`, `spectral_norm`,
        `alpha_weighted`, a `functools.partial` of one with another fit, or your own. NaN marks a layer as unusable. With
        the library's metrics and the fits `median` and `goodness_of_fit`, spectra come from Gram products; with `fix_finger`
        or anything of your own, which may read eigenvalues of less than a millionth of the largest, from singular values,
        at twice the cost.
      assign: a function `(metrics, min_scale, max_scale) -> scales` of all layers at once: `linear`, `sqrt`, `log2`,
        `step`, or your own. NaN marks a layer that takes no part.
      layers: which layers to balance: a sequence of `Layer`, or a function of the parameters that finds them. The
        default leaves nothing out but small layers: name the first and last layer in `exclude`, or use `trace_layers`,
        which knows them.
      start_step: the update of the first refresh.
      solver: how much memory a refresh may take, and whether large matrices are approximated.

    Returns:
      A transformation whose `update` needs `params`. With `optax.inject_hyperparams`, the numbers can be schedules; give
      `static_args=("metric", "assign", "layers")`. While a scheduled number is one that could not be given (an interval
      below 1, a `min_scale` above `max_scale`, a NaN), every scale stays as it is.

    Raises:
      ValueError: a number is out of range; from `init`, fewer than two balanced layers, or layers that do not fit the
        parameters; from `update`, no `params`, or updates or a state that do not fit them.
      TypeError: a number is not one, or `metric`, `assign` or `layers` is not a function (or layers); from `update`,
        another transformation's state, or updates that are not floating-point numbers.

    Example:
      >>> import jax, optax, tb_optax
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {f"dense{i}": {"kernel": jax.random.normal(key, (64, 64))} for i, key in enumerate(keys)}
      >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), tb_optax.tempbalance(update_interval=100))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> {name: round(float(scale), 2) for name, scale in state[1].scale.items()}
      {'dense0': 0.9, 'dense1': 0.5, 'dense2': 1.5}
    """
    balance = Balance(
        "tempbalance",
        TempBalanceState,
        update_interval,
        min_scale=min_scale,
        max_scale=max_scale,
        metric=metric,
        assign=assign,
        layers=layers,
        start_step=start_step,
        solver=solver,
    )

    return balance.transformation(
        lambda updates, params, state, now: scale_by_layer(updates, now.layers, now.leaves, now.state.scale)
    )
