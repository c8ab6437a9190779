"""What TempBalance adds to training: `python -m benchmarks.steps --help`.

An update of the optimizer that refreshes nothing, against the same chain without TempBalance; and epochs with refreshes at
several intervals: the share of the time that goes into them (the paper's Figure 24), and the length of an epoch.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import provenance
from benchmarks.timing import Contender, ContenderFailed, Deadline, Result, Worker, measure, paired_ratio, ratio

_WITHOUT, _NEVER = "without tempbalance", "no refresh"
# Updates in one program: by itself, each also costs the dispatch of every array of the state.
_UPDATES = (1, 20)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times an update that refreshes nothing, and epochs at several update intervals."""

    network: str = "resnet18"
    """Whose parameters the optimizer updates: as in benchmarks.refresh."""
    model: str = "resnet18"
    """What is trained: a model of examples/paper/vision."""
    width: float = 1.0
    """Multiplies the model's channels."""
    batch_size: int = 128
    """Images a step."""
    steps: int | None = None
    """Steps of an epoch; by default 390 (50,000 images in batches of 128) on a GPU and 2 on CPU."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the model computes in; by default bfloat16 on a GPU and float32 on CPU."""
    intervals: tuple[int, ...] = (390, 100, 50, 10, 1)
    """Updates between refreshes. One longer than an epoch is not trained: its share follows from the time of a refresh."""
    update_rounds: int = 20
    """How often each chain's update is timed in a process."""
    update_processes: int = 7
    """How many processes each chain's update is timed in: where its arrays lie in memory makes up to 5%."""
    rounds: int = 5
    """How often each epoch is timed."""
    minutes: float = 10.0
    """No round is begun after this."""
    out: Path | None = None
    """Where to write steps.json; by default benchmarks/results/KIND OF DEVICE."""


def main() -> None:
    run(tyro.cli(Annotated[Settings, tyro.conf.arg(name="")]))


def run(settings: Settings) -> Result:
    deadline = Deadline(settings.minutes)
    on_cpu = provenance.device()["platform"] == "cpu"
    settings = dataclasses.replace(
        settings,
        steps=settings.steps or (2 if on_cpu else 390),
        dtype=settings.dtype or ("float32" if on_cpu else "bfloat16"),
    )
    directory = settings.out or provenance.results_directory()
    arguments = dataclasses.asdict(settings) | {"out": None}

    case = {"network": settings.network}
    contenders = {
        f"{label}, {count} a program": Contender("optimizer", case | {"method": method, "updates": count})
        for count in _UPDATES
        for label, method in ((_WITHOUT, "cal"), (_NEVER, "tb"))
    }
    processes = []
    for number in range(settings.update_processes):
        if number == 0 or deadline.left() > settings.minutes * 30:
            seconds_each = settings.minutes * 6 / settings.update_processes
            processes.append(
                measure(contenders, rounds=settings.update_rounds, seconds_each=seconds_each, deadline=deadline)
            )
    ratios = {
        str(count): [ratio(each, f"{_NEVER}, {count} a program", f"{_WITHOUT}, {count} a program") for each in processes]
        for count in _UPDATES
    }
    updates = {label: _over_processes([each[label] for each in processes]) for label in contenders}
    results: Result = {
        "update": updates,
        "update_ratios": {count: _median(each) for count, each in ratios.items()},
        "update_ratios_by_process": ratios,
    }
    provenance.write(directory, "steps", arguments, results)
    for label, result in updates.items():
        time = result.get("error") or f"{1e3 * result['median']:.2f} ms"
        print(f"{label:34}  {time}")

    try:
        for training in _rounds(settings, deadline):
            results["training"] = training
            provenance.write(directory, "steps", arguments, results)
    except ContenderFailed as error:
        print(f"training: {error}")
        results.setdefault("training", {"error": str(error)})
        provenance.write(directory, "steps", arguments, results)
    if "epochs" in results["training"]:
        _show(results["training"])
    return results


def _over_processes(results: Sequence[Result]) -> Result:
    """The result of the process with the middle median, or an error where there was any."""
    failed = [each for each in results if "error" in each]
    return failed[0] if failed else sorted(results, key=lambda each: each["median"])[len(results) // 2]


def _median(ratios: Sequence[float | None]) -> float | None:
    known = [each for each in ratios if each is not None]
    return statistics.median(known) if len(known) == len(ratios) else None


def _rounds(settings: Settings, deadline: Deadline) -> Iterator[Result]:
    """Epochs of two processes, one with TempBalance and one without, in turn; the results after each round."""
    assert settings.steps is not None
    case = {key: getattr(settings, key) for key in ("model", "width", "batch_size", "steps", "dtype")}
    workers: dict[str, Worker] = {}
    first: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    limit = lambda: max(deadline.left(), 60)
    epochs: dict[str, Callable[[], float]] = {
        _WITHOUT: lambda: workers["cal"].run(limit()),
        _NEVER: lambda: workers["tb"].run(limit()),
    }
    for interval in settings.intervals:
        if interval <= settings.steps:
            epochs[str(interval)] = lambda interval=interval: workers["tb"].run(limit(), update_interval=interval)
    try:
        for method in ("cal", "tb"):  # one after the other: on a GPU, each tries out which convolution is fastest
            workers[method] = Worker(Contender("training", case | {"method": method}))
            workers[method].wait_until_ready(limit())
            first[method] = workers[method].first(limit())
        for number in range(settings.rounds):
            if number > 0 and deadline.left() < sum(times[-1] for times in seconds.values()):
                break
            for label in list(epochs)[:: 1 if number % 2 == 0 else -1]:
                seconds.setdefault(label, []).append(epochs[label]())
            yield {"first_seconds": first, **_summary(settings, seconds)}
        memory = {method: worker.end()["peak_memory"] for method, worker in workers.items()}
        yield {"first_seconds": first, "peak_memory": memory, **_summary(settings, seconds)}
    finally:
        for worker in workers.values():
            worker.close()


def _summary(settings: Settings, seconds: dict[str, list[float]]) -> Result:
    assert settings.steps is not None
    epochs = {
        label: {"median": statistics.median(times), "seconds": times, "ratio": paired_ratio(times, seconds[_WITHOUT])}
        for label, times in seconds.items()
    }
    medians = {label: epoch["median"] for label, epoch in epochs.items()}
    return {"epochs": epochs, "shares": _shares(settings, medians, settings.steps)}


def _shares(settings: Settings, medians: dict[str, float], steps: int) -> dict[str, Any]:
    """For each interval the share of the training time that goes into refreshes, and whether it was trained or computed."""
    step = medians[_NEVER] / steps
    shares: dict[str, Any] = {}
    for interval in settings.intervals:
        if str(interval) in medians:
            shares[str(interval)] = {"share": 1 - medians[_NEVER] / medians[str(interval)], "trained": True}
        elif "1" in medians:
            refresh = medians["1"] / steps - step
            shares[str(interval)] = {"share": refresh / (refresh + interval * step), "trained": False}
    return shares


def _show(training: Result) -> None:
    for label, result in training["epochs"].items():
        name = f"interval {label}" if label.isdigit() else label
        print(f"epoch, {name:20}  {result['median']:.3f} s  x{result['ratio']:.3f}")
    for interval, share in training["shares"].items():
        computed = "" if share["trained"] else ", computed"
        print(f"refreshes every {interval:>3} updates: {share['share']:.2%} of the time{computed}")


if __name__ == "__main__":
    main()
