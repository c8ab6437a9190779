"""The contenders on PyTorch: the released algorithm, and WeightWatcher."""

import contextlib
import io
import logging
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks import torch_tempbalance
from benchmarks.contenders import Case, Prepared
from benchmarks.networks import create


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


# What WeightWatcher calls its fits. It has none that takes the upper half of the spectrum.
_WEIGHTWATCHER_FITS: dict[str, dict[str, Any]] = {"goodness_of_fit": {}, "fix_finger": {"fix_fingers": "xmin_peak"}}


def weightwatcher(case: Case) -> Prepared:
    """WeightWatcher's `analyze`, with as little else as it can be told to do."""
    import weightwatcher  # pyright: ignore[reportMissingImports]

    if case["fit"] not in _WEIGHTWATCHER_FITS:
        raise ValueError(f"fit={case['fit']!r}: WeightWatcher has {', '.join(_WEIGHTWATCHER_FITS)}; give one of them.")
    logging.disable(logging.WARNING)
    modules = {name: _module(_tensor(weight)) for name, weight in create(case["network"]).weights().items()}
    model = torch.nn.ModuleDict({name.replace("/", "_").replace(".", "_"): module for name, module in modules.items()})
    options = _WEIGHTWATCHER_FITS[case["fit"]]

    def run() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return weightwatcher.WeightWatcher(model=model).analyze(min_evals=50, **options)

    return Prepared(run, lambda details: dict(zip(modules, map(float, details.alpha), strict=True)))


def _tensor(weight: np.ndarray) -> torch.Tensor:
    """In PyTorch's layout: `OIHW`, or outputs by inputs."""
    single = np.ascontiguousarray(weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T)
    if single.dtype == np.float32:
        return torch.from_numpy(single)
    return torch.from_numpy(single.astype(np.float32)).to(torch.bfloat16)


def _module(weight: torch.Tensor) -> torch.nn.Module:
    outputs, inputs = weight.shape[:2]
    if weight.ndim == 2:
        module = torch.nn.Linear(inputs, outputs, bias=False)
    else:
        module = torch.nn.Conv2d(inputs, outputs, (weight.shape[2], weight.shape[3]), bias=False)
    module.weight = torch.nn.Parameter(weight.float())
    return module
