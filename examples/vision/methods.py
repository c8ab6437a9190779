"""The optimizers of the paper's runs."""

import jax.numpy as jnp
import optax

import tb_optax

METHODS = ("cal", "tb")


def cosine_per_epoch(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """`η0/2 (1 + cos(π t / T))` with `t` the epochs done: constant within an epoch."""
    cosine = optax.cosine_decay_schedule(learning_rate, epochs)
    return lambda count: cosine(jnp.asarray(count) // steps_per_epoch)


def create_optimizer(
    method: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    update_interval: int,
    min_scale: float,
    max_scale: float,
    layers: tb_optax.LayersOrFn,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum 0.9 and weight decay on every parameter (`cal`), and the same with TempBalance (`tb`).

    TempBalance comes last: it scales the step, as PyTorch's per-layer learning rates do.
    """
    sgd = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum=0.9))
    if method == "cal":
        return sgd
    balance = tb_optax.tempbalance(update_interval, min_scale=min_scale, max_scale=max_scale, layers=layers)
    return optax.chain(sgd, balance)
