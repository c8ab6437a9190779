"""TempBalance: a learning rate for each layer."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from tb_optax._balance.assignments import Assignment, Bound, linear
from tb_optax._balance.metrics import Metric, pl_alpha_hill
from tb_optax._balance.options import BalanceOptions
from tb_optax._balance.scales import scale_by_layer
from tb_optax._balance.transformation import BalancedParams, BalancedTransformation, balanced_transformation
from tb_optax._layers.find import find_layers
from tb_optax._layers.layer import LayersOrFn, PyTree
from tb_optax._spectra.options import DEFAULT_SOLVER, Exact, Lanczos
from tb_optax._spectra.windows import Windows


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


class TempBalanceTransitionState(NamedTuple):
    """State of `tempbalance` with `transition_steps`.

    Attributes:
      count: updates made.
      metric: each layer's metric when it was last usable; 0 before the first refresh.
      scale: the scale that the last update applied to each layer; 1 before the first refresh.
      target: the scales of the last refresh.
      remaining: updates until `scale` is `target`.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    metric: dict[str, Float[Array, "*stack"]]
    scale: dict[str, Float[Array, "*stack"]]
    target: dict[str, Float[Array, "*stack"]]
    remaining: Int[Array, ""]


def tempbalance(
    update_interval: int | Int[Array, ""] | None,
    *,
    min_scale: Bound = 0.5,
    max_scale: Bound = 1.5,
    metric: Metric = pl_alpha_hill,
    assign: Assignment = linear,
    layers: LayersOrFn = find_layers,
    start_step: int | Int[Array, ""] = 0,
    stop_step: int | Int[Array, ""] | None = None,
    transition_steps: int | Int[Array, ""] | None = None,
    solver: Exact | Lanczos = DEFAULT_SOLVER,
    windows: Windows | None = None,
) -> BalancedTransformation:
    """Scales each layer's updates by a number computed from the eigenvalue spectrum of its weight: TempBalance.

    A refresh computes the eigenvalues of each balanced layer's weight. A metric of each spectrum (by default PL_Alpha_Hill,
    the exponent of its heavy tail) becomes a scale: small for heavy tails, large for light ones (Zhou et al., "Temperature
    Balancing, Layer-wise Weight Analysis, and Neural Network Training", NeurIPS 2023, Algorithm 1). Between refreshes the
    scales stay the same.

    Scales are refreshed every `update_interval` updates, from the parameters as they are before that update. With
    `update_interval=None`, they are refreshed only when your training loop calls `refresh`:

    - `opt_state = tb.refresh(opt_state, params)`, where `tb = tempbalance(None)` is part of the optimizer. The compiled step
      then holds no eigenvalue problem, needs no memory for one, and compiles faster. `refresh` finds the state of `tb`
      wherever it lies in `opt_state`.

    Put it after the optimizer. There it scales the step, which is the paper's layer-wise learning rate for every optimizer:
    `optax.chain(optax.adamw(1e-3), tempbalance(390))`. Before `optax.sgd` it scales the gradient. That is the same until a
    refresh, after which the momentum still holds gradients with old scales, for about `1 / (1 - momentum)` steps. Before
    Adam it has no effect, because Adam divides by the scale of the gradient.

    A layer whose spectrum is unusable keeps its scale and does not affect the others' scales. A spectrum is unusable if the
    weight holds a NaN or an infinity, if its entries are too large or too small to be squared, if they are all zero, or if
    its rank is so low that the fitted tail has no spread. Spectra are computed in float32, or in float64 for float64
    weights; updates keep their dtype. Only steps with a refresh compute spectra. Under `jax.vmap` over several seeds, all
    seeds compute them when one is due, but only those that are due change their scales. If the weights are sharded over a
    mesh, each device solves its share of the eigenvalue problems. Gradients through `update` treat the scales as constants.

    Args:
      update_interval: updates between refreshes, at least 1; the paper refreshes once an epoch. `None` to refresh only by
        `refresh`.
      min_scale: the smallest scale, finite and not negative; the paper's `s1`.
      max_scale: the largest scale, finite and not below `min_scale`; the paper's `s2`. The result of `assign` is clipped to
        these two.
      metric: a `tb_optax.Metric`, a function from ascending spectra `(*layers, n)` to metrics `(*layers,)`: one of
        `tb_optax.metrics`, a `functools.partial` of one with another fit, or your own. Spectra come from Gram products if it
        declares that it tolerates them, as all of `tb_optax.metrics` do with the fits `median` and `goodness_of_fit`;
        otherwise from singular values, at twice the cost.
      assign: a `tb_optax.Assignment`, a function `(metrics, min_scale, max_scale) -> scales` of all layers at once: one of
        `tb_optax.assignments`, or your own.
      layers: which layers to balance: a sequence of `Layer`, or a function of the parameters that finds them. The default
        leaves out embeddings and small layers, but not the first and the last layer, which the paper does not balance: name
        them in `exclude`, or use `trace_layers`, which finds them.
      start_step: the update of the first refresh.
      stop_step: the last update that may refresh, not below `start_step`; after it the scales stay. `None` to refresh until
        the end.
      transition_steps: the number of updates in which a scale moves to its new value, in equal steps. The update that
        refreshes makes the first step. A refresh in between starts from the scale as it is then. `None`, like 1, to apply
        new scales at once. With a number, the state is a `TempBalanceTransitionState`.
      solver: how spectra are computed: how much memory a refresh may use, and whether large matrices are approximated.
      windows: windows to take from every matrix, so that spectra do not depend on its aspect ratio; `None` for whole
        matrices.

    Returns:
      A transformation whose `update` needs `params`, with one more function: `refresh(opt_state, params) -> opt_state`. With
      `optax.inject_hyperparams`, the numbers can be schedules; give `static_args=("metric", "assign", "layers")`. While a
      scheduled number is invalid (an interval below 1, a `min_scale` above `max_scale`, a NaN), every scale stays as it is.

    Raises:
      ValueError: a number is out of range; from `init`, fewer than two balanced layers, or layers that do not fit the
        parameters; from `update`, no `params`, or updates or a state that do not fit them; from `refresh`, an
        `opt_state` without a state of this transformation.
      TypeError: a numeric argument is not a number, `metric` or `assign` is not a function, `metric` is a fit, or `layers`
        is neither layers nor a function; from `update`, another transformation's state, or updates that are not
        floating-point numbers.

    Example:
      >>> import jax, optax, tb_optax
      >>> keys = jax.random.split(jax.random.key(0), 6)
      >>> params = {f"dense{i}": {"kernel": jax.random.normal(key, (64, 64))} for i, key in enumerate(keys)}
      >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), tb_optax.tempbalance(update_interval=100))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> {name: round(float(scale), 2) for name, scale in state[1].scale.items()}
      {'dense0': 0.88, 'dense1': 0.79, 'dense2': 1.0, 'dense3': 1.5, 'dense4': 1.36, 'dense5': 0.5}
    """
    options = BalanceOptions(
        "tempbalance",
        update_interval=update_interval,
        min_scale=min_scale,
        max_scale=max_scale,
        metric=metric,
        assign=assign,
        layers=layers,
        start_step=start_step,
        stop_step=stop_step,
        transition_steps=transition_steps,
        solver=solver,
        windows=windows,
    )

    def scale_steps(updates: PyTree, state: TempBalanceState | TempBalanceTransitionState, now: BalancedParams) -> PyTree:
        del state
        return scale_by_layer(updates, now.layers, now.leaves, now.scale)

    state_class = TempBalanceState if transition_steps is None else TempBalanceTransitionState
    return balanced_transformation(options, state_class, scale_steps)
