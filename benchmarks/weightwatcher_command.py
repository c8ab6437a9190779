"""Runs WeightWatcher on a file of weights, as its users do: `python -m benchmarks.weightwatcher_command FILE CSV`."""

import sys

from safetensors.torch import load_file

from benchmarks.torch_contenders import analysis

if __name__ == "__main__":
    weights = {name.removesuffix(".weight"): weight for name, weight in load_file(sys.argv[1]).items()}
    details = analysis(weights)()
    details["layer"] = list(weights)
    details.to_csv(sys.argv[2])
