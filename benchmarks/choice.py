"""The cost of each way to compute spectra, and its agreement with the exact one: `python -m benchmarks.choice --help`.

Costs are those of a refresh, on weights of published shapes. Alphas, the layers' ranks by alpha, and scales are compared on
trained weights, of any checkpoint that `tb-optax report` reads.
"""

import dataclasses
import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

import tb_optax
from benchmarks import part
from benchmarks.solvers import EXACT, SOLVERS
from benchmarks.tables import milliseconds, or_error, table
from benchmarks.timing import Contender, Deadline, Result


@dataclasses.dataclass(frozen=True)
class Settings(part.Timed):
    """Times refreshes by each solver, and compares alphas on trained weights."""

    networks: tuple[str, ...] = ("resnet18", "gpt2", "llama_layer")
    """Networks to time, of benchmarks/networks.py."""
    trained: tuple[Path, ...] = ()
    """Weights to compare: checkpoints of trained networks, or run folders of the examples. A folder's name is its label."""
    exclude: tuple[str, ...] = ("conv1", "linear")
    """The first and the last layer of the trained networks, as `find_layers` takes them. Names that a network does not
    have are ignored."""
    rounds: int = 5
    """How often each refresh is timed."""


def run(settings: Settings) -> Result:
    deadline = Deadline(settings.minutes)
    results: Result = {"agreement": {}, "costs": {}}
    for path in settings.trained:
        results["agreement"][path.name] = _agreement(path, settings.exclude)
        settings.write("choice", results)

    def contenders(network: str) -> dict[str, Contender]:
        case = {"network": network, "fit": "median"}
        return {name: Contender("tb_optax", case | {"solver": name}, base=EXACT) for name in SOLVERS}

    for network, found in settings.measure(deadline, contenders):
        results["costs"][network] = found
        settings.write("choice", results)
    return results


def _agreement(path: Path, exclude: tuple[str, ...]) -> Result:
    """Spearman's correlation with the exact spectra over the layers, and differences of alphas and of scales."""

    def layers(tree: Any) -> tb_optax.Layers:
        names = [layer.name for layer in tb_optax.find_layers(tree)]
        return tb_optax.find_layers(tree, exclude=[pattern for pattern in exclude if fnmatch.filter(names, pattern)])

    checkpoint = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    reports = {name: tb_optax.report(checkpoint, layers=layers, **options) for name, options in SOLVERS.items()}
    of = lambda what: {name: np.array([getattr(row, what) for row in found.records]) for name, found in reports.items()}
    alphas, scales = of("alpha"), of("scale")
    spearman: Any = scipy.stats.spearmanr
    return {
        "layers": len(alphas[EXACT]),
        "alpha": {name: alpha.tolist() for name, alpha in alphas.items()},
        "spearman": {name: float(spearman(alpha, alphas[EXACT])[0]) for name, alpha in alphas.items()},
        "alpha_differs": {name: float(np.median(np.abs(alpha / alphas[EXACT] - 1))) for name, alpha in alphas.items()},
        "scale_differs": {name: float(np.abs(scale - scales[EXACT]).mean()) for name, scale in scales.items()},
    }


def section(cases: Result) -> list[str]:
    """The paragraphs of the report."""
    costs, agreement = cases["costs"], cases["agreement"]
    solvers = list(next(iter((*costs.values(), *(found["spearman"] for found in agreement.values())))))
    time = lambda result: milliseconds(result) + (f" (x{result['ratio']:.2g})" if result["ratio"] else "")
    close = lambda found, name: (
        f"{found['spearman'][name]:.2f}, {found['alpha_differs'][name]:.1%}, {found['scale_differs'][name]:.2f}"
    )
    rows = [
        (name, *(or_error(found[name], time) for found in costs.values()), *(close(f, name) for f in agreement.values()))
        for name in solvers
    ]
    return [
        "## Exact spectra, windows, and Lanczos's method",
        "A refresh in milliseconds, and in refreshes with exact spectra; and on trained weights Spearman's correlation of "
        "alphas with the exact ones over the layers, the median difference of alphas, and the mean difference of scales "
        "between 0.5 and 1.5.",
        table(("", *costs, *(f"{label}, {found['layers']} layers" for label, found in agreement.items())), rows),
    ]


if __name__ == "__main__":
    part.main(Settings, run, section)
