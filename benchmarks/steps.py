"""What TempBalance adds to training: `python -m benchmarks.steps --help`.

Compares an optimizer's update without a refresh with the same chain without TempBalance. Then times epochs with refreshes
at several intervals: the length of an epoch, and the share of refreshes in it (the paper's Figure 24).
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from benchmarks import part
from benchmarks.part import Deadline
from benchmarks.tables import or_error, table
from benchmarks.timing import Contender, Result, measure

_WITHOUT, _NEVER = "without tempbalance", "no refresh"
# Updates in one program. An update alone in its program also costs the dispatch of every array of the state.
_UPDATES = (1, 20)


@dataclasses.dataclass(frozen=True)
class Settings(part.Settings):
    """Times an update without a refresh, and epochs at several update intervals."""

    network: str = "resnet18"
    """A network of benchmarks/networks.py, whose parameters the optimizer updates."""
    model: str = "resnet18"
    """Model to train, of examples/paper/vision."""
    width: float = 1.0
    """Factor on the number of the model's channels."""
    batch_size: int = 128
    """Images in each step."""
    steps: int | None = None
    """Steps in an epoch; by default 390 (50,000 images in batches of 128) on a GPU and 2 on CPU."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the model's computation; by default bfloat16 on a GPU and float32 on CPU."""
    intervals: tuple[int, ...] = (390, 100, 50, 10, 1)
    """Updates between refreshes. For an interval longer than an epoch, the share is computed from the time of a refresh."""
    update_rounds: int = 20
    """How often each chain's update is timed in a process."""
    update_processes: int = 7
    """Processes in which each chain's update is timed: the place of its arrays in memory changes its time by up to 5%."""
    rounds: int = 5
    """How often each epoch is timed."""


def run(settings: Settings) -> Result:
    deadline = Deadline(settings.minutes)
    settings = settings.for_device(steps=(2, 390), dtype=("float32", "bfloat16"))
    print("updates", flush=True)
    cases = _updates(settings, deadline)
    settings.write("steps", cases)
    print("epochs", flush=True)
    cases["training"] = _training(settings, deadline)
    settings.write("steps", cases)
    return cases


def _updates(settings: Settings, deadline: Deadline) -> Result:
    label = lambda name, count: f"{name}, {count} a program"
    contenders = {
        label(name, count): Contender(
            "optimizer",
            {"network": settings.network, "method": method, "updates": count},
            base=label(_WITHOUT, count),
        )
        for count in _UPDATES
        for name, method in ((_WITHOUT, "cal"), (_NEVER, "tb"))
    }
    seconds_each = settings.minutes * 6 / settings.update_processes
    processes: list[dict[str, Result]] = []
    for number in range(settings.update_processes):
        if number == 0 or deadline.left() > 30 * settings.minutes:
            found = measure(contenders, rounds=settings.update_rounds, seconds_each=seconds_each, deadline=deadline)
            processes.append(found)
    ratios = {str(count): [found[label(_NEVER, count)]["ratio"] for found in processes] for count in _UPDATES}
    return {
        "update": {name: _middle([found[name] for found in processes]) for name in contenders},
        "update_ratios": {count: None if None in each else statistics.median(each) for count, each in ratios.items()},
        "update_ratios_by_process": ratios,
    }


def _middle(results: Sequence[Result]) -> Result:
    """The result of the process with the middle median, or of a process that failed."""
    failed = [each for each in results if "error" in each]
    return failed[0] if failed else sorted(results, key=lambda each: each["median"])[len(results) // 2]


def _training(settings: Settings, deadline: Deadline) -> Result:
    """Epochs of two processes, one with TempBalance and one without, in turn."""
    assert settings.steps is not None
    case = {key: getattr(settings, key) for key in ("model", "width", "batch_size", "steps", "dtype")}
    without, never = (Contender("training", case | {"method": method}, base=_WITHOUT) for method in ("cal", "tb"))
    trained = [interval for interval in settings.intervals if interval <= settings.steps]
    contenders = {_WITHOUT: without, _NEVER: never}
    contenders |= {str(each): dataclasses.replace(never, options={"update_interval": each}) for each in trained}
    epochs = measure(contenders, rounds=settings.rounds, seconds_each=deadline.left(), deadline=deadline)
    for result in epochs.values():
        if "error" in result:
            return {"error": result["error"]}
    return {"epochs": epochs, "shares": _shares(settings.intervals, epochs, settings.steps)}


def _shares(intervals: Sequence[int], epochs: Mapping[str, Result], steps: int) -> dict[str, Any]:
    """For each interval the share of the training time that goes into refreshes, and whether it was trained or computed."""
    median = lambda label: epochs[label]["median"]
    step = median(_NEVER) / steps
    shares: dict[str, Any] = {}
    for interval in intervals:
        if str(interval) in epochs:
            shares[str(interval)] = {"share": 1 - median(_NEVER) / median(str(interval)), "trained": True}
        elif "1" in epochs:
            refresh = median("1") / steps - step
            shares[str(interval)] = {"share": refresh / (refresh + interval * step), "trained": False}
    return shares


def section(cases: Result) -> list[str]:
    """The paragraphs of the report."""
    milliseconds = lambda result: f"{1e3 * result['median']:.2f}"
    sections = [
        "## Training",
        "Programs of 1 and of 20 updates by the optimizer alone, which refresh nothing, in milliseconds.",
        table(("", "milliseconds"), [(label, or_error(result, milliseconds)) for label, result in cases["update"].items()]),
    ]
    training = cases.get("training", {})
    if "epochs" not in training:
        return [*sections, training.get("error", "No epoch was trained.")]
    epochs = [
        (f"a refresh every {label}" if label.isdigit() else label, f"{result['median']:.3f}", f"{result['ratio']:.3f}")
        for label, result in training["epochs"].items()
    ]
    shares = [
        (interval, f"{share['share']:.2%}", "" if share["trained"] else "computed from the time of a refresh")
        for interval, share in training["shares"].items()
    ]
    return [
        *sections,
        "An epoch, in seconds, and in epochs without.",
        table(("", "seconds", "ratio"), epochs),
        "The share of the training time that goes into refreshes (the paper's Figure 24).",
        table(("updates between refreshes", "share", ""), shares),
    ]


if __name__ == "__main__":
    part.main(Settings, run, section)
