"""A refresh beside another program that keeps every core busy: `python -m benchmarks.busy --help`."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks import part
from benchmarks.tables import milliseconds, or_error, ratio, table
from benchmarks.timing import Contender, Deadline, Result, measure
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


def run(settings: Settings) -> Result:
    deadline = Deadline(settings.minutes)
    results: Result = {}
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(subprocess.Popen([sys.executable, "-c", _BUSY])) for _ in range(cores())]
        stack.callback(_send, programs, signal.SIGKILL)
        _send(programs, signal.SIGSTOP)
        for name in deadline.admits(settings.contenders):
            alone = Contender(name, {"network": settings.network, "fit": "median"}, base="alone")
            contenders = {"alone": alone, "beside": dataclasses.replace(alone, around=lambda: _awake(programs))}
            found = measure(contenders, rounds=settings.rounds, seconds_each=20 * settings.rounds, deadline=deadline)
            results[name] = found["beside"] if "error" in found["beside"] else found | {"ratio": found["beside"]["ratio"]}
            settings.write("busy", results)
    return results


def _send(programs: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for program in programs:
        program.send_signal(number)


@contextlib.contextmanager
def _awake(programs: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Wakes the programs, which sleep outside of the context."""
    _send(programs, signal.SIGCONT)
    time.sleep(0.2)
    yield
    _send(programs, signal.SIGSTOP)


def section(cases: Result) -> list[str]:
    """The paragraphs of the report."""
    time = lambda result, state: or_error(result, lambda result: milliseconds(result[state]))
    rows = [(name, time(result, "alone"), time(result, "beside"), or_error(result, ratio)) for name, result in cases.items()]
    return ["## Beside a program that keeps all cores busy", table(("", "alone, ms", "beside it, ms", "ratio"), rows)]


if __name__ == "__main__":
    part.main(Settings, run, section)
