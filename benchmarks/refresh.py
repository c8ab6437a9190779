"""How long a refresh takes, of which network, with which fit, against whom: `python -m benchmarks.refresh --help`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import provenance
from benchmarks.timing import Contender, Deadline, Result, disagreement, measure, ratio

# The most telling first: a run that is cut short has them.
NETWORKS = ("resnet18", "resnet34", "vgg16", "resnet101", "resnet50", "vgg19", "gpt2", "resnet18-1024")
NETWORKS_ON_GPU = ("resnet18", "resnet34", "vgg16", "resnet101", "gpt2", "llama1b", "resnet18-2048", "resnet50", "vgg19")
NETWORKS_ON_GPU += ("resnet18-1024",)
_BARE = ("plain eigvalsh", "eigenvalues alone", "Gram products alone")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times a refresh of each network by every contender, in turn."""

    networks: tuple[str, ...] = ()
    """By default the paper's networks and GPT-2 and, on a GPU, ResNet-18 of 2,048 channels and a Transformer of 1.1B."""
    all_fits: tuple[str, ...] = ("resnet18",)
    """Networks for which all three fits are timed, and not the median alone."""
    contenders: tuple[str, ...] = ("tb_optax", "PyTorch", "WeightWatcher", *_BARE)
    """Who takes part."""
    rounds: int = 9
    """How often each is timed."""
    seconds_each: float | None = None
    """No contender gets another round of a network once it has taken this long; by default 10 s on CPU and 4 on a GPU."""
    minutes: float = 10.0
    """No network is begun, and no round, after this."""
    out: Path | None = None
    """Where to write refresh.json; by default benchmarks/results/KIND OF DEVICE."""


def main() -> None:
    run(tyro.cli(Annotated[Settings, tyro.conf.arg(name="")]))


def run(settings: Settings) -> list[Result]:
    deadline = Deadline(settings.minutes)
    on_cpu = provenance.device()["platform"] == "cpu"
    networks = settings.networks or (NETWORKS if on_cpu else NETWORKS_ON_GPU)
    seconds_each = settings.seconds_each or (10 if on_cpu else 4)
    arguments = dataclasses.asdict(settings) | {"networks": networks, "seconds_each": seconds_each, "out": None}
    cases: list[Result] = []
    for network in networks:
        if cases and deadline.left() < 2 * seconds_each:
            print(f"{network}: left out, the time is up")
            continue
        fits = ("median", "goodness_of_fit", "fix_finger") if network in settings.all_fits else ("median",)
        contenders = {
            _label(name, fit): Contender(name, {"network": network, "fit": fit})
            for fit in fits
            for name in settings.contenders
            if _has(name, fit)
        }
        results = measure(contenders, rounds=settings.rounds, seconds_each=seconds_each, deadline=deadline)
        for label, contender in contenders.items():
            ours = f"tb_optax, {contender.case['fit']}"
            results[label]["ratio"] = ratio(results, label, ours)
            results[label]["disagreement"] = disagreement(results, label, ours)
        for result in results.values():
            result.pop("alphas", None)
        cases.append({"network": network, "contenders": results})
        provenance.write(settings.out or provenance.results_directory(), "refresh", arguments, cases)
        _show(network, results)
    return cases


def _label(name: str, fit: str) -> str:
    return name if name in _BARE else f"{name}, {fit}"


def _has(name: str, fit: str) -> bool:
    """WeightWatcher has no median fit; the bare routines have no fits, or the median only."""
    return fit == "median" if name in _BARE else name != "WeightWatcher" or fit != "median"


def _show(network: str, results: dict[str, Result]) -> None:
    print(network)
    for label, result in results.items():
        if "error" in result:
            print(f"  {label:27} {result['error']}")
            continue
        times = "" if result["ratio"] is None else f"  x{result['ratio']:.2f}"
        print(
            f"  {label:27} {1e3 * result['median']:9.1f} ms{times:9}  first call {result['first_seconds']:.1f} s, "
            f"peak memory {result['peak_memory'] / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
