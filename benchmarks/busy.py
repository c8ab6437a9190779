"""A refresh beside another program that keeps every core busy: `python -m benchmarks.busy --help`."""

import contextlib
import dataclasses
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks import part
from benchmarks.part import Deadline
from benchmarks.tables import or_error, ratio, table
from benchmarks.timing import Contender, ContenderFailed, Result, Worker, paired_ratio
from examples.paper.provenance import cores

# Keeps one core busy and uses no memory. It ends when this program does.
_BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"


@dataclasses.dataclass(frozen=True)
class Settings(part.Settings):
    """Times a refresh alone and beside a busy program, in turn, with the threads that each contender takes by default."""

    network: str = "resnet18"
    """A network of benchmarks/networks.py."""
    contenders: tuple[str, ...] = ("tb_optax", "PyTorch")
    """Contenders to time: names in benchmarks/contenders.py."""
    rounds: int = 7
    """How often each contender is timed."""
    limit: float = 120.0
    """Time limit of one refresh, in seconds."""


def run(settings: Settings) -> Result:
    deadline = Deadline(settings.minutes)
    results: Result = {}
    with _busy_program() as busy:
        for name in deadline.admits(settings.contenders):
            worker = Worker(Contender(name, {"network": settings.network, "fit": "median"}))
            seconds: dict[str, list[float]] = {"alone": [], "beside": []}
            try:
                worker.wait_until_ready(settings.limit)
                worker.first(settings.limit)
                while len(seconds["beside"]) < settings.rounds and (deadline.left() > 0 or not seconds["beside"]):
                    seconds["alone"].append(worker.run(settings.limit))
                    with busy():
                        seconds["beside"].append(worker.run(settings.limit))
                medians = {key: {"median": statistics.median(value), "seconds": value} for key, value in seconds.items()}
                results[name] = medians | {"ratio": paired_ratio(seconds["beside"], seconds["alone"])}
            except ContenderFailed as error:
                results[name] = {"error": str(error), **seconds}
            finally:
                worker.close()
            settings.write("busy", results)
    return results


@contextlib.contextmanager
def _busy_program() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A program for every core, which sleeps outside of the context that is yielded."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(cores())]

    def send(number: signal.Signals) -> None:
        for process in processes:
            process.send_signal(number)

    @contextlib.contextmanager
    def busy() -> Iterator[None]:
        send(signal.SIGCONT)
        time.sleep(0.2)
        yield
        send(signal.SIGSTOP)

    try:
        send(signal.SIGSTOP)
        yield busy
    finally:
        for process in processes:
            process.kill()
            process.wait()


def section(cases: Result) -> list[str]:
    """The paragraphs of the report."""
    median = lambda result, key: or_error(result, lambda result: f"{1e3 * result[key]['median']:.0f}")
    rows = [
        (name, median(result, "alone"), median(result, "beside"), or_error(result, ratio)) for name, result in cases.items()
    ]
    return ["## Beside a program that keeps all cores busy", table(("", "alone, ms", "beside it, ms", "ratio"), rows)]


if __name__ == "__main__":
    part.main(Settings, run, section)
