"""What TempBalance adds to an update that refreshes nothing: `python -m benchmarks.steps --help`."""

import dataclasses
import statistics

from benchmarks import part
from benchmarks.tables import milliseconds, or_error, table
from benchmarks.timing import Contender, Deadline, Result, measure

# Updates in one program. An update alone in its program also costs the dispatch of every array of the state.
_UPDATES = (1, 20)
_METHODS = {"without tempbalance": "cal", "no refresh": "tb"}


@dataclasses.dataclass(frozen=True)
class Settings(part.Settings):
    """Times an update by the optimizer that refreshes nothing, and by the same chain without TempBalance."""

    network: str = "resnet18"
    """A network of benchmarks/networks.py, whose parameters the optimizer updates."""
    rounds: int = 20
    """How often each chain's update is timed in a process."""
    processes: int = 7
    """Processes in which each chain's update is timed: the place of its arrays in memory changes its time by up to 5%."""


def run(settings: Settings) -> Result:
    deadline = Deadline(settings.minutes)
    label = lambda name, count: f"{name}, {count} a program"
    without, never = _METHODS
    contenders = {
        label(name, count): Contender(
            "optimizer",
            {"network": settings.network, "method": method, "updates": count},
            base=label(without, count),
        )
        for count in _UPDATES
        for name, method in _METHODS.items()
    }
    seconds_each = settings.minutes * 12 / settings.processes
    processes: list[dict[str, Result]] = []
    cases: Result = {}
    for _ in deadline.admits(f"process {number}" for number in range(settings.processes)):
        processes.append(measure(contenders, rounds=settings.rounds, seconds_each=seconds_each, deadline=deadline))
        ratios = {str(count): [found[label(never, count)]["ratio"] for found in processes] for count in _UPDATES}
        cases = {
            "update": {name: _middle([found[name] for found in processes]) for name in contenders},
            "update_ratios": {count: None if None in each else statistics.median(each) for count, each in ratios.items()},
            "update_ratios_by_process": ratios,
        }
        settings.write("steps", cases)
    return cases


def _middle(results: list[Result]) -> Result:
    """The result of the process with the middle median, or of a process that failed."""
    failed = [each for each in results if "error" in each]
    return failed[0] if failed else sorted(results, key=lambda each: each["median"])[len(results) // 2]


def section(cases: Result) -> list[str]:
    """The paragraphs of the report."""
    time = lambda result: milliseconds(result, 2)
    return [
        "## Updates",
        "Programs of 1 and of 20 updates by the optimizer alone, which refresh nothing, in milliseconds.",
        table(("", "milliseconds"), [(label, or_error(result, time)) for label, result in cases["update"].items()]),
    ]


if __name__ == "__main__":
    part.main(Settings, run, section)
