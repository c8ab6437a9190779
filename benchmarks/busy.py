"""A refresh beside another program that keeps every core busy: `python -m benchmarks.busy --help`."""

import contextlib
import dataclasses
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import provenance
from benchmarks.timing import Contender, ContenderFailed, Deadline, Result, Worker, paired_ratio
from examples.paper.provenance import cores

# A core each, and nothing else: no memory, no threads. It does not outlive this program.
_BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times a refresh alone and beside a busy program, in turn, with the threads that each contender takes by default."""

    network: str = "resnet18"
    """As in benchmarks.refresh."""
    contenders: tuple[str, ...] = ("tb_optax", "PyTorch")
    """Who takes part."""
    rounds: int = 7
    """How often each is timed."""
    limit: float = 120.0
    """Seconds that one refresh may take."""
    minutes: float = 5.0
    """No round is begun after this."""
    out: Path | None = None
    """Where to write busy.json; by default benchmarks/results/KIND OF DEVICE."""


def main() -> None:
    run(tyro.cli(Annotated[Settings, tyro.conf.arg(name="")]))


def run(settings: Settings) -> Result:
    deadline = Deadline(settings.minutes)
    arguments = dataclasses.asdict(settings) | {"out": None}
    results: Result = {}
    with _busy_program() as busy:
        for name in settings.contenders:
            worker = Worker(Contender(name, {"network": settings.network, "fit": "median"}))
            seconds: dict[str, list[float]] = {"alone": [], "beside": []}
            try:
                worker.wait_until_ready(settings.limit)
                worker.first(settings.limit)
                while len(seconds["beside"]) < settings.rounds and (deadline.left() > 0 or not seconds["beside"]):
                    seconds["alone"].append(worker.run(settings.limit))
                    with busy():
                        seconds["beside"].append(worker.run(settings.limit))
                results[name] = {
                    key: {"median": statistics.median(value), "seconds": value} for key, value in seconds.items()
                }
                results[name]["ratio"] = paired_ratio(seconds["beside"], seconds["alone"])
            except ContenderFailed as error:
                results[name] = {"error": str(error), **seconds}
            finally:
                worker.close()
            provenance.write(settings.out or provenance.results_directory(), "busy", arguments, results)
            _show(name, results[name])
    return results


@contextlib.contextmanager
def _busy_program():
    """A program for every core, asleep but where its context is entered."""
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


def _show(name: str, result: Result) -> None:
    if "error" in result:
        print(f"{name}: {result['error']}")
        return
    alone, beside = (1e3 * result[key]["median"] for key in ("alone", "beside"))
    print(f"{name}: alone {alone:.0f} ms, beside a busy program {beside:.0f} ms, x{result['ratio']:.2f}")


if __name__ == "__main__":
    main()
