"""What a user of WeightWatcher would run on a file of weights: `python -m benchmarks.weightwatcher_command FILE CSV`."""

import contextlib
import io
import logging
import sys

import torch  # pyright: ignore[reportMissingImports]
import weightwatcher  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file


def main() -> None:
    """Analyzes the weights of a safetensors file, with the least number of eigenvalues that this library's report has."""
    logging.disable(logging.WARNING)
    file, out = sys.argv[1:]
    modules = {name.removesuffix(".weight"): _module(weight) for name, weight in load_file(file).items()}
    model = torch.nn.ModuleDict({name.replace(".", "_"): module for name, module in modules.items()})
    with contextlib.redirect_stdout(io.StringIO()):
        details = weightwatcher.WeightWatcher(model=model).analyze(min_evals=50)
    details["layer"] = list(modules)
    details.to_csv(out)


def _module(weight: torch.Tensor) -> torch.nn.Module:
    outputs, inputs, *window = weight.shape
    module = torch.nn.Conv2d(inputs, outputs, tuple(window)) if window else torch.nn.Linear(inputs, outputs)
    module.weight = torch.nn.Parameter(weight)
    return module


if __name__ == "__main__":
    main()
