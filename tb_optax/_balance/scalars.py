"""Metrics and scales of an optimizer's state as plain numbers, for loggers."""

from collections import Counter
from typing import Any

import jax
import jax.core
import numpy as np

from tb_optax._balance.own_states import plain_state
from tb_optax._layers.layer import PyTree, short_repr


def scalars(opt_state: PyTree) -> dict[str, float]:
    """The metric and the scale of every balanced layer as a flat dict of floats, for W&B, TensorBoard or a JSON line.

    Call it outside of `jit`: it copies the numbers to the host, in one transfer.

    Args:
      opt_state: the state of an optimizer that contains `tempbalance` or `alphadecay`, at any depth: a chain's state, that
        of an `nnx.Optimizer`, a `TrainState`.

    Returns:
      A dict with the keys `tempbalance/metric/NAME` and `tempbalance/scale/NAME` for each layer, or `alphadecay/...`.
      Each slice of a stack has its index: `blocks/mlp[0]`, or `blocks/experts[0][3]` for two layer axes. Under `jax.vmap`,
      the index of the seed comes first. Several `tempbalance` are numbered in the state's order: `tempbalance[0]/...`,
      `tempbalance[1]/...`. A metric is 0 until the layer's first usable refresh. A layer that is not measured has no metric.

    Raises:
      ValueError: there is no such state in `opt_state`, or it is being traced.

    Example:
      >>> import jax, optax, tb_optax
      >>> keys = jax.random.split(jax.random.key(0), 6)
      >>> params = {f"dense{i}": {"kernel": jax.random.normal(key, (64, 64))} for i, key in enumerate(keys)}
      >>> tx = optax.chain(optax.adam(1e-3), tb_optax.tempbalance(update_interval=100))
      >>> updates, opt_state = tx.update(params, tx.init(params), params)
      >>> for name, value in tb_optax.scalars(opt_state).items():
      ...     print(f"{name} {value:.2f}")
      tempbalance/metric/dense0 2.11
      tempbalance/metric/dense1 2.09
      tempbalance/metric/dense2 2.13
      tempbalance/metric/dense3 2.20
      tempbalance/metric/dense4 2.18
      tempbalance/metric/dense5 2.05
      tempbalance/scale/dense0 0.88
      tempbalance/scale/dense1 0.79
      tempbalance/scale/dense2 1.00
      tempbalance/scale/dense3 1.50
      tempbalance/scale/dense4 1.36
      tempbalance/scale/dense5 0.50
    """
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_balance_state) if _is_balance_state(node)]
    if not states:
        raise ValueError(
            f"scalars: opt_state={short_repr(opt_state)} has no state of tempbalance or alphadecay; give the state of an "
            "optimizer that contains one. If it was restored as plain dicts, restore it into what init returns."
        )
    plain = [plain_state(state) for state in states]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(plain)):
        raise ValueError(
            "scalars: opt_state is being traced; call scalars outside of jit, on the state that the step returns."
        )
    numbers = jax.device_get([{"metric": state.metric, "scale": state.scale} for state in plain])
    classes = [type(state).__name__.removesuffix("State").removesuffix("Transition") for state in plain]
    prefixes = _prefixes([name.lower() for name in classes])
    return {
        f"{prefix}/{kind}/{name}{index}": value
        for prefix, fields in zip(prefixes, numbers, strict=True)
        for kind, by_layer in fields.items()
        for name, array in by_layer.items()
        for index, value in _entries(array)
    }


def _is_balance_state(node: Any) -> bool:
    return isinstance(node, tuple) and {"count", "metric", "scale"} <= set(getattr(node, "_fields", ()))


def _prefixes(names: list[str]) -> list[str]:
    """The names, numbered where there are several of one kind."""
    total, seen = Counter(names), Counter[str]()
    prefixes = []
    for name in names:
        prefixes.append(name if total[name] == 1 else f"{name}[{seen[name]}]")
        seen[name] += 1
    return prefixes


def _entries(array: Any) -> list[tuple[str, float]]:
    array = np.asarray(array)
    return [("".join(f"[{place}]" for place in index), float(array[index])) for index in np.ndindex(array.shape)]
