"""The contenders on PyTorch: the released algorithm, and WeightWatcher."""

import contextlib
import io
import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks import torch_tempbalance
from benchmarks.contenders import Case, Prepared
from benchmarks.networks import create, torch_layout


def tempbalance(case: Case) -> Prepared:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {name: _tensor(weight).to(device) for name, weight in create(case["network"]).weights().items()}
    groups = [{"params": [weight], "name": name} for name, weight in weights.items()]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    def run() -> dict[str, float]:
        alphas = torch_tempbalance.refresh(optimizer, base_lr=0.1, fit=case["fit"])
        if device == "cuda":
            torch.cuda.synchronize()
        return alphas

    return Prepared(run, dict)


# WeightWatcher's names of the fits. It has no median fit.
_WEIGHTWATCHER_FITS: dict[str, dict[str, Any]] = {"goodness_of_fit": {}, "fix_finger": {"fix_fingers": "xmin_peak"}}


def weightwatcher(case: Case) -> Prepared:
    """WeightWatcher's `analyze`, with as little else as its options allow."""
    if case["fit"] not in _WEIGHTWATCHER_FITS:
        raise ValueError(f"fit={case['fit']!r}: WeightWatcher has {', '.join(_WEIGHTWATCHER_FITS)}; give one of them.")
    weights = {name: _tensor(weight) for name, weight in create(case["network"]).weights().items()}
    analyze = analysis(weights, **_WEIGHTWATCHER_FITS[case["fit"]])
    return Prepared(analyze, lambda details: dict(zip(weights, map(float, details.alpha), strict=True)))


def analysis(weights: Mapping[str, torch.Tensor], **options: Any) -> Callable[[], Any]:
    """A function that returns WeightWatcher's table of these weights, with this library's minimum of 50 eigenvalues."""
    import weightwatcher  # pyright: ignore[reportMissingImports]

    logging.disable(logging.WARNING)
    model = torch.nn.ModuleDict({re.sub("[/.]", "_", name): _module(weight) for name, weight in weights.items()})

    def run() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return weightwatcher.WeightWatcher(model=model).analyze(min_evals=50, **options)

    return run


def _tensor(weight: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(torch_layout(weight).astype(np.float32))
    return tensor if weight.dtype == np.float32 else tensor.to(torch.bfloat16)


def _module(weight: torch.Tensor) -> torch.nn.Module:
    outputs, inputs, *window = weight.shape
    make = partial(torch.nn.Conv2d, kernel_size=tuple(window)) if window else torch.nn.Linear
    module = make(inputs, outputs, bias=False)
    module.weight = torch.nn.Parameter(weight.float())
    return module
