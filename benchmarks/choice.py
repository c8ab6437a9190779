"""What each way to compute spectra costs, and how far it agrees with the exact one: `python -m benchmarks.choice --help`.

Costs are of a refresh, on weights of published shapes. Agreement is of alphas, of the layers' ranks by alpha, and of the
scales that follow, on trained weights: any checkpoints that `tb-optax report` reads.
"""

import dataclasses
import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.stats
import tyro

import tb_optax
from benchmarks import provenance
from benchmarks.solvers import EXACT, SOLVERS
from benchmarks.timing import Contender, Deadline, Result, measure, ratio


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times refreshes by each solver, and compares alphas on trained weights."""

    networks: tuple[str, ...] = ("resnet18", "gpt2", "llama_layer")
    """As in benchmarks.refresh: what is timed."""
    trained: tuple[Path, ...] = ()
    """Checkpoints of trained networks, or run folders of the examples: what is compared. A folder's name is its label."""
    exclude: tuple[str, ...] = ("conv1", "linear")
    """The first and the last layer of the trained networks, as `find_layers` takes them; what one has not is no matter."""
    rounds: int = 5
    """How often each is timed."""
    minutes: float = 5.0
    """No network is begun after this, and no round."""
    out: Path | None = None
    """Where to write choice.json; by default benchmarks/results/KIND OF DEVICE."""


def main() -> None:
    run(tyro.cli(Annotated[Settings, tyro.conf.arg(name="")]))


def run(settings: Settings) -> Result:
    deadline = Deadline(settings.minutes)
    results: Result = {"agreement": {}, "costs": {}}
    arguments = dataclasses.asdict(settings) | {"trained": [path.name for path in settings.trained], "out": None}

    def write() -> None:
        provenance.write(settings.out or provenance.results_directory(), "choice", arguments, results)

    for path in settings.trained:
        results["agreement"][path.name] = _agreement(path, settings.exclude)
        write()
    for network in settings.networks:
        if deadline.left() > 0:
            results["costs"][network] = _costs(network, settings.rounds, deadline)
            write()
    _show(results)
    return results


def _costs(network: str, rounds: int, deadline: Deadline) -> dict[str, Result]:
    contenders = {name: Contender("tb_optax", {"network": network, "fit": "median", "solver": name}) for name in SOLVERS}
    found = measure(contenders, rounds=rounds, seconds_each=max(deadline.left() / 10, 10), deadline=deadline)
    for name, result in found.items():
        result.pop("alphas", None)
        result["ratio"] = ratio(found, name, EXACT)
    return found


def _agreement(path: Path, exclude: tuple[str, ...]) -> Result:
    """With the exact spectra: Spearman's correlation over the layers, and differences of alphas and of scales."""

    def layers(tree: Any) -> tb_optax.Layers:
        names = [layer.name for layer in tb_optax.find_layers(tree)]
        return tb_optax.find_layers(tree, exclude=[each for each in exclude if fnmatch.filter(names, each)])

    checkpoint = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    reports = {name: tb_optax.report(checkpoint, layers=layers, **options) for name, options in SOLVERS.items()}
    of: Callable[[str, str], Any] = lambda name, what: np.array([getattr(own, what) for own in reports[name].records])
    exact = of(EXACT, "alpha")
    return {
        "layers": len(exact),
        "alpha": {name: of(name, "alpha").tolist() for name in SOLVERS},
        "spearman": {name: float(_spearman(of(name, "alpha"), exact)[0]) for name in SOLVERS},
        "alpha_differs": {name: float(np.median(np.abs(of(name, "alpha") / exact - 1))) for name in SOLVERS},
        "scale_differs": {name: float(np.abs(of(name, "scale") - of(EXACT, "scale")).mean()) for name in SOLVERS},
    }


def _spearman(some: Any, others: Any) -> Any:
    return scipy.stats.spearmanr(some, others)


def _show(results: Result) -> None:
    for network, found in results["costs"].items():
        for name, result in found.items():
            time = result.get("error") or f"{1e3 * result['median']:.0f} ms"
            print(f"{network:12}  {name:30}  {time}")
    for label, found in results["agreement"].items():
        for name, correlation in found["spearman"].items():
            print(
                f"{label}, {found['layers']} layers  {name:30}  ranks {correlation:.2f}  "
                f"alpha {found['alpha_differs'][name]:.1%} off  scales {found['scale_differs'][name]:.3f} off"
            )


if __name__ == "__main__":
    main()
