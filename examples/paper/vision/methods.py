"""The optimizers of the paper's runs, as its authors ran them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import tb_optax
from examples.paper.balance import LayersOrFn, adamw_with_alphadecay, with_tempbalance
from examples.paper.network import epoch_cosine
from examples.paper.vision.settings import Settings


def create_schedule(settings: Settings, steps_per_epoch: int) -> optax.Schedule:
    """`η0/2 (1 + cos(π t / T))` with `t` the epochs done: constant within an epoch. Under `sgdr` it starts anew.

    SGDR (Loshchilov and Hutter, 2017) as in the paper's runs: every cycle is as long as the first.
    """
    settings = settings.resolved()
    cycle, rate = settings.restart_epochs or settings.epochs, settings.learning_rate
    assert rate is not None
    return epoch_cosine(rate, cycle, steps_per_epoch)


def create_optimizer(
    settings: Settings,
    schedule: optax.Schedule,
    steps_per_epoch: int,
    layers: LayersOrFn,
    weights: LayersOrFn,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `settings.method`, with TempBalance after it where the method has it.

    Args:
      settings: method and numbers.
      schedule: of the learning rate.
      steps_per_epoch: the unit of `settings.start_epoch`, and the update interval by default.
      layers: that TempBalance balances.
      weights: all weights of two or more axes, for SNR and for the projections of SGDP and AdamP.
    """
    if settings.decays:
        optimizer = adamw_with_alphadecay(schedule, settings.weight_decay, settings, steps_per_epoch, layers)
    else:
        optimizer = _OPTIMIZERS[settings.base](settings, schedule, weights)
    return with_tempbalance(optimizer, settings, steps_per_epoch, layers)


def _sgd(settings: Settings, schedule: optax.Schedule, *_: Any) -> optax.GradientTransformation:
    """PyTorch's SGD: the decay is part of the gradient, norms and biases included."""
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), optax.sgd(schedule, momentum=0.9))


class FastWeightsState(NamedTuple):
    """The slow weights, and the state of the optimizer that moves both."""

    slow: optax.Params
    inner: optax.OptState


def _lookahead(settings: Settings, schedule: optax.Schedule, *_: Any) -> optax.GradientTransformation:
    """`optax.lookahead` with the fast weights as the parameters and the slow ones in the state.

    So it is a transformation like the others, and accuracies are the fast weights', as in the released code.
    """
    sgd = _sgd(settings, schedule)
    lookahead: Any = optax.lookahead(sgd, settings.lookahead_steps, settings.lookahead_step_size)

    def init_fn(params: optax.Params) -> FastWeightsState:
        slow = jax.tree.map(jnp.copy, params)  # a buffer of its own: both may be donated
        return FastWeightsState(slow, lookahead.init(optax.LookaheadParams(params, slow)))

    def update_fn(
        updates: optax.Updates, state: FastWeightsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, FastWeightsState]:
        moves, inner = lookahead.update(updates, state.inner, optax.LookaheadParams(params, state.slow))  # pyright: ignore
        return moves.fast, FastWeightsState(optax.apply_updates(state.slow, moves.slow), inner)

    return optax.GradientTransformation(init_fn, update_fn)  # pyright: ignore[reportArgumentType]


_OPTIMIZERS: dict[str, Callable[[Settings, optax.Schedule, LayersOrFn], optax.GradientTransformation]] = {
    "cal": _sgd,
    "sgdr": _sgd,
    "lookahead": _lookahead,
    "snr": lambda settings, schedule, weights: optax.chain(
        tb_optax.baselines.spectral_norm_regularization(settings.snr_coefficient, layers=weights), _sgd(settings, schedule)
    ),
    "sgdp": lambda settings, schedule, weights: tb_optax.baselines.sgdp(
        schedule, momentum=0.9, weight_decay=settings.weight_decay, layers=weights
    ),
    "adamp": lambda settings, schedule, weights: tb_optax.baselines.adamp(
        schedule, weight_decay=settings.weight_decay, layers=weights
    ),
    # PyTorch's Adam: the decay is part of the gradient.
    "adam": lambda settings, schedule, _: optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.adam(schedule)
    ),
    "adamw": lambda settings, schedule, _: optax.adamw(schedule, weight_decay=settings.weight_decay),
    # Without momentum, as the released code ran it (hence the learning rates near 30). Its clipping at 10 is not needed.
    # Optax has the norm of the decayed gradient below the trust ratio's fraction, the released code the sum of two norms.
    "lars": lambda settings, schedule, _: optax.lars(
        schedule, weight_decay=settings.weight_decay, trust_coefficient=0.001, eps=1e-5, momentum=0.0
    ),
    # With gradients clipped to a norm of 1, as in the released code. Optax corrects the moments' bias; that does not.
    "lamb": lambda settings, schedule, _: optax.chain(
        optax.clip_by_global_norm(1.0), optax.lamb(schedule, eps=1e-6, weight_decay=settings.weight_decay)
    ),
}
