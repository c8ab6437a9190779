"""The time of a refresh by network, fit and contender: `python -m benchmarks.refresh --help`."""

import dataclasses
from collections.abc import Sequence

from benchmarks import part
from benchmarks.part import Deadline
from benchmarks.tables import or_error, table
from benchmarks.timing import Contender, Result, measure

# The most important first: a run that is cut short has them.
NETWORKS = ("resnet18", "resnet34", "vgg16", "resnet101", "resnet50", "vgg19", "gpt2", "resnet18-1024")
NETWORKS_ON_GPU = ("resnet18", "resnet34", "vgg16", "resnet101", "gpt2", "llama1b", "resnet18-2048", "resnet50", "vgg19")
NETWORKS_ON_GPU += ("resnet18-1024",)
_BARE = ("plain eigvalsh", "eigenvalues alone", "Gram products alone")


@dataclasses.dataclass(frozen=True)
class Settings(part.Settings):
    """Times a refresh of each network by every contender, in turn."""

    networks: tuple[str, ...] = ()
    """Networks; by default the paper's and GPT-2 and, on a GPU, ResNet-18 of 2,048 channels and a Transformer of 1.1B."""
    all_fits: tuple[str, ...] = ("resnet18",)
    """Networks for which all three fits are timed instead of the median alone."""
    contenders: tuple[str, ...] = ("tb_optax", "PyTorch", "WeightWatcher", *_BARE)
    """Contenders to time: names in benchmarks/contenders.py."""
    rounds: int = 9
    """How often each refresh is timed."""
    seconds_each: float | None = None
    """Time after which a contender gets no further round of a network; by default 10 s on CPU and 4 s on a GPU."""


def run(settings: Settings) -> list[Result]:
    deadline = Deadline(settings.minutes)
    settings = settings.for_device(networks=(NETWORKS, NETWORKS_ON_GPU), seconds_each=(10, 4))
    assert settings.seconds_each is not None
    cases: list[Result] = []
    for network in deadline.admits(settings.networks, 2 * settings.seconds_each):
        fits = ("median", "goodness_of_fit", "fix_finger") if network in settings.all_fits else ("median",)
        contenders = {
            _label(name, fit): Contender(name, {"network": network, "fit": fit}, base=f"tb_optax, {fit}")
            for fit in fits
            for name in settings.contenders
            if _has(name, fit)
        }
        results = measure(contenders, rounds=settings.rounds, seconds_each=settings.seconds_each, deadline=deadline)
        cases.append({"network": network, "contenders": results})
        settings.write("refresh", cases)
    return cases


def _label(name: str, fit: str) -> str:
    return name if name in _BARE else f"{name}, {fit}"


def _has(name: str, fit: str) -> bool:
    """WeightWatcher has no median fit; the bare routines have the median or no fit."""
    return fit == "median" if name in _BARE else name != "WeightWatcher" or fit != "median"


def section(cases: Sequence[Result]) -> list[str]:
    """The paragraphs of the report."""
    labels = list(dict.fromkeys(label for case in cases for label in case["contenders"]))
    by_median = [label for label in labels if ", " not in label or label.endswith(", median")]
    columns = ["network", *(label.removesuffix(", median") for label in by_median)]

    def time(result: Result) -> str:
        ratio = "" if result["ratio"] in (None, 1) else f" (x{result['ratio']:.2f})"
        return f"{1e3 * result['median']:.1f}{ratio}"

    cost = lambda result: f"{result['first_seconds']:.1f} s, {result['peak_memory'] / 2**20:,.0f} MiB"
    rows = lambda show: [
        [
            case["network"],
            *(or_error(found, show) if (found := case["contenders"].get(label)) else "" for label in by_median),
        ]
        for case in cases
    ]
    fits = [
        [case["network"], label, or_error(result, time), f"{result['disagreement']:.1e}" if result["disagreement"] else ""]
        for case in cases
        if not set(case["contenders"]) <= set(by_median)
        for label, result in case["contenders"].items()
        if ", " in label
    ]
    return [
        "## A refresh",
        "Milliseconds, medians over the rounds; in brackets how many times as long as this library.",
        table(columns, rows(time)),
        "The three fits; the last column is the largest relative difference from this library's alphas.",
        table(("network", "contender and fit", "milliseconds", "alphas differ by"), fits),
        "The first call, compilation included, and the rise of memory to its peak since the weights were loaded.",
        table(columns, rows(cost)),
    ]


if __name__ == "__main__":
    part.main(Settings, run, section)
