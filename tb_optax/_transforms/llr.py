"""LLR: TempBalance for the pre-training of language models."""

import warnings
from collections.abc import Sequence

from jaxtyping import Array, Int

from tb_optax._balance.assignments import Bound
from tb_optax._balance.transformation import BalancedTransformation
from tb_optax._layers.layer import Layer, LayersOrFn
from tb_optax._spectra.options import DEFAULT_SOLVER, Exact, Lanczos
from tb_optax._transforms.tempbalance import tempbalance


def llr(
    total_updates: int,
    *,
    layers: LayersOrFn,
    update_interval: int | Int[Array, ""] = 40,
    max_scale: Bound = 3.0,
    transition_steps: int | Int[Array, ""] = 20,
    solver: Exact | Lanczos = DEFAULT_SOLVER,
) -> BalancedTransformation:
    """Layer-wise learning rates for language-model pre-training: `tempbalance` with scales from 1 to `max_scale`.

    He et al., "One LR Doesn't Fit All: Heavy-Tail Guided Layerwise Learning Rates for LLMs", ICML 2026. It differs from
    TempBalance's default in four ways:

    - Scales are linear in PL_Alpha_Hill from 1 to `max_scale`, so no layer has less than the base rate.
    - All linear layers of the blocks are measured. Embeddings and the output layer are not measured and have the greatest
      scale. Norms keep the base rate.
    - After a refresh, scales move to their new values in equal steps over `transition_steps` updates.
    - Scales are refreshed in the first fifth of the training only.

    The defaults are those of the paper's runs with 60 to 350 million parameters. Its run with 1 billion used `max_scale=5`,
    `update_interval=100` and `transition_steps=50`. All used AdamW with the base rate 6e-4 (5e-4 for 1 billion), betas 0.9
    and 0.95, weight decay 0.1, a warm-up over a tenth of the updates and a cosine decay to a tenth of the rate.

    Args:
      total_updates: updates in the whole training; in a run that `llr` joins, those that are left, because it counts from
        there.
      layers: the layers, with the embedding and the output layer among them: `trace_layers(forward, params, x,
        first_and_last="unmeasured")`, or `functools.partial(find_layers, unmeasured=("*embed*", "lm_head"))`.
      update_interval: updates between refreshes.
      max_scale: the scale of the layer with the greatest alpha, of embeddings and of the output layer.
      transition_steps: updates in which a scale moves to its new value.
      solver: how spectra are computed.

    Returns:
      A transformation to put after AdamW. Its state is a `TempBalanceTransitionState`.

    Raises:
      ValueError: `total_updates` is below 1; otherwise as in `tempbalance`.
      TypeError: `total_updates` is not a whole number; otherwise as in `tempbalance`.

    Example:
      >>> import functools, jax, optax, tb_optax
      >>> keys = jax.random.split(jax.random.key(0), 6)
      >>> params = {f"block{i}": {"kernel": jax.random.normal(key, (64, 64))} for i, key in enumerate(keys)}
      >>> params["embed"] = {"embedding": jax.random.normal(jax.random.key(1), (256, 64))}
      >>> layers = functools.partial(tb_optax.find_layers, unmeasured="embed*")
      >>> tx = optax.chain(optax.adamw(6e-4, b2=0.95, weight_decay=0.1), tb_optax.llr(3200, layers=layers))
      >>> state = tx.init(params)
      >>> for _ in range(20):
      ...     updates, state = tx.update(params, state, params)
      >>> scale = state[1].scale
      >>> [round(float(number), 2) for number in (min(scale.values()), max(scale.values()), scale["embed/embedding"])]
      [1.0, 3.0, 3.0]
    """
    if isinstance(total_updates, bool) or not isinstance(total_updates, int):
        raise TypeError(f"llr: total_updates={total_updates!r} must be a whole number: the updates of the whole training.")
    if total_updates < 1:
        raise ValueError(f"llr: total_updates={total_updates} must be at least 1: the updates of the whole training.")
    stop_step = (total_updates - 1) // 5
    if isinstance(update_interval, int) and update_interval > stop_step:
        warnings.warn(
            f"llr: update_interval={update_interval} leaves one refresh in the first fifth of total_updates="
            f"{total_updates}, that of the initial weights, so shapes decide the scales; give a smaller update_interval. "
            "(total_updates counts updates, not epochs.)",
            stacklevel=2,
        )
    given = [layer for layer in layers if isinstance(layer, Layer)] if isinstance(layers, Sequence) else []
    if given and all(layer.measured for layer in given):
        warnings.warn(
            "llr: layers= has no layer with measured=False, so embeddings and the output layer do not get the greatest "
            'scale; give trace_layers(..., first_and_last="unmeasured").',
            stacklevel=2,
        )
    return tempbalance(
        update_interval,
        min_scale=1.0,
        max_scale=max_scale,
        layers=layers,
        stop_step=stop_step,
        transition_steps=transition_steps,
        solver=solver,
    )
