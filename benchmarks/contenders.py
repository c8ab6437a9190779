"""The contenders: each is a function from a case to the work that is timed."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

Case: TypeAlias = dict[str, Any]

# A contender's module is loaded in its own process only: where PyTorch runs, no JAX does.
_CONTENDERS = {
    "tb_optax": "benchmarks.jax_contenders:tempbalance",
    "plain eigvalsh": "benchmarks.jax_contenders:plain",
    "eigenvalues alone": "benchmarks.jax_contenders:eigenvalues",
    "Gram products alone": "benchmarks.jax_contenders:gram",
    "PyTorch": "benchmarks.torch_contenders:tempbalance",
    "WeightWatcher": "benchmarks.torch_contenders:weightwatcher",
    "optimizer": "benchmarks.training:optimizer",
    "training": "benchmarks.training:training",
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A contender with its weights loaded.

    Attributes:
      run: does the work and returns when the device is done.
      alphas: from the result of `run` to each layer's alpha.
    """

    run: Callable[[], Any]
    alphas: Callable[[Any], dict[str, float]] | None = None


def load(contender: str, case: Case) -> Prepared:
    if contender not in _CONTENDERS:
        raise ValueError(f"contender {contender!r} is not known; give one of {', '.join(_CONTENDERS)}.")
    module, function = _CONTENDERS[contender].split(":")
    return getattr(importlib.import_module(module), function)(case)
