"""The time of a refresh by network, fit and contender: `python -m benchmarks.refresh --help`."""

import dataclasses
from collections.abc import Callable, Sequence

from benchmarks import part
from benchmarks.tables import milliseconds, or_error, table
from benchmarks.timing import Contender, Deadline, Result

# The most important first: a run that is cut short has them.
NETWORKS = ("resnet18", "resnet34", "vgg16", "resnet101", "resnet50", "vgg19", "gpt2", "resnet18-1024")
NETWORKS_ON_GPU = ("resnet18", "resnet34", "vgg16", "resnet101", "gpt2", "llama1b", "resnet18-2048", "resnet50", "vgg19")
FITS = ("median", "goodness_of_fit", "fix_finger")
# The fits of each contender. One that has the median fit alone, or no fit, is labelled by its name.
_FITS_OF = {"tb_optax": FITS, "PyTorch": FITS, "WeightWatcher": FITS[1:]}
_BARE = ("plain eigvalsh", "eigenvalues alone", "Gram products alone")


@dataclasses.dataclass(frozen=True)
class Settings(part.Timed):
    """Times a refresh of each network by every contender, in turn."""

    all_fits: tuple[str, ...] = ("resnet18",)
    """Networks for which all three fits are timed instead of the median alone."""
    contenders: tuple[str, ...] = (*_FITS_OF, *_BARE)
    """Contenders to time: names in benchmarks/contenders.py."""
    rounds: int = 9
    """How often each refresh is timed."""
    seconds_each: float = 0.0
    """Time after which a contender gets no further round of a network; by default 10 s on CPU and 4 s on a GPU."""


def run(settings: Settings) -> list[Result]:
    settings = settings.for_device(networks=(NETWORKS, NETWORKS_ON_GPU), seconds_each=(10, 4))
    cases: list[Result] = []

    def contenders(network: str) -> dict[str, Contender]:
        return {
            name if name in _BARE else f"{name}, {fit}": Contender(
                name, {"network": network, "fit": fit}, base=f"tb_optax, {fit}"
            )
            for fit in (FITS if network in settings.all_fits else FITS[:1])
            for name in settings.contenders
            if fit in _FITS_OF.get(name, FITS[:1])
        }

    for network, found in settings.measure(Deadline(settings.minutes), contenders):
        cases.append({"network": network, "contenders": found})
        settings.write("refresh", cases)
    return cases


def section(cases: Sequence[Result]) -> list[str]:
    """The paragraphs of the report."""
    labels = dict.fromkeys(label for case in cases for label in case["contenders"])
    by_median = [label for label in labels if ", " not in label or label.endswith(", median")]
    columns = ["network", *(label.removesuffix(", median") for label in by_median)]

    def time(result: Result) -> str:
        ratio = "" if result["ratio"] in (None, 1) else f" (x{result['ratio']:.2f})"
        return f"{milliseconds(result, 1)}{ratio}"

    def rows(show: Callable[[Result], str]) -> list[list[str]]:
        cell = lambda case, label: or_error(case["contenders"][label], show) if label in case["contenders"] else ""
        return [[case["network"], *(cell(case, label) for label in by_median)] for case in cases]

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
        table(columns, rows(lambda result: f"{result['first_seconds']:.1f} s, {result['peak_memory'] / 2**20:,.0f} MiB")),
    ]


if __name__ == "__main__":
    part.main(Settings, run, section)
