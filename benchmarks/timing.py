"""Times contenders against each other: each in its process, in turn, round by round."""

import dataclasses
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from benchmarks.contenders import Case
from benchmarks.part import Deadline

Result = dict[str, Any]


class ContenderFailed(Exception):
    """A contender raised, died or took too long."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
      name: a contender in `benchmarks.contenders`.
      case: its argument.
      options: the arguments of each timed call. Contenders that differ in nothing else share a process.
      environment: variables of its process.
      base: the label of the contender that its times and alphas are compared with.
    """

    name: str
    case: Case
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    base: str = ""

    @property
    def process(self) -> str:
        return json.dumps([self.name, self.case, dict(self.environment)])

    @property
    def compiles(self) -> bool:
        """Whether its first call compiles."""
        return self.name not in ("PyTorch", "WeightWatcher")


class Worker:
    """The process of a contender."""

    def __init__(self, contender: Contender):
        environment = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
        # Several processes share a GPU, so none may reserve most of its memory at its start.
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2", **contender.environment}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, it is open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender.name, json.dumps(contender.case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )

    def wait_until_ready(self, limit: float) -> None:
        self._reply(limit)

    def first(self, limit: float) -> float:
        """Seconds of the first call, which compiles."""
        return self._ask(limit, do="first")["seconds"]

    def run(self, limit: float, **options: Any) -> float:
        """Seconds of one call."""
        return self._ask(limit, do="run", options=options)["seconds"]

    def end(self, limit: float = 60) -> Result:
        """Peak memory in bytes, and alphas where there are any; the process ends."""
        return self._ask(limit, do="end")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, limit: float, **request: Any) -> Result:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has died; its error is read below
        return self._reply(limit)

    def _reply(self, limit: float) -> Result:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(limit, 0))
        if not ready:
            raise ContenderFailed(f"took longer than {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise failure(self._process.wait(), self._errors)
        reply = json.loads(line)
        if "error" in reply:
            raise ContenderFailed(reply["error"])
        return reply


def failure(code: int, errors: IO[bytes]) -> ContenderFailed:
    """Says how a process ended, and the last line that it wrote."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return ContenderFailed(f"ended with {code}: {lines[-1] if lines else 'no message'}")


# Benchmarks measure the defaults, whatever the environment says.
_LEFT_OUT = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

# Seconds before each turn: threads of OpenBLAS and OpenMP in the process before it still spin for a while.
_REST = 0.1


def turns(labels: Iterable[str], rounds: int) -> Iterator[str]:
    """The labels in turn, as often as there are rounds; every other round goes through them backwards."""
    order = list(labels)
    for number in range(rounds):
        yield from order[:: 1 if number % 2 == 0 else -1]


def measure(
    contenders: Mapping[str, Contender], *, rounds: int, seconds_each: float, deadline: Deadline
) -> dict[str, Result]:
    """Times contenders in turn.

    Args:
      contenders: by their labels in the results.
      rounds: how often each is timed.
      seconds_each: no contender gets another round once it has taken this long, and none may take six times that (or a
        minute, if that is more) for a call. One that does not compile, and takes this long for its first call, is not
        called again: that is its time.
      deadline: after its first timed call, a contender begins none that would probably end later.

    Returns:
      For each label `first_seconds` (of its process), `seconds` (a list), `median`, `peak_memory` in bytes, `ratio` and
      `disagreement`; or an `error`. The ratio is how many times as long as its base a contender takes, the median over the
      rounds; the disagreement is the largest relative difference between their alphas of a layer. Both are None where one
      of the two failed or has no base or no alphas.
    """
    workers = _Workers(contenders.values(), deadline)
    seconds: dict[str, list[float]] = {label: [] for label in contenders}
    spent = dict.fromkeys(contenders, 0.0)

    def limit() -> float:
        return min(max(6 * seconds_each, 60), max(deadline.left(), 1))

    try:
        workers.ask_all(lambda worker: worker.wait_until_ready(max(60, limit())))
        first = workers.ask_all(lambda worker: worker.first(limit()))
        for label in turns(contenders, rounds):
            contender, own = contenders[label], seconds[label]
            if contender.process in workers.errors:
                continue
            if not contender.compiles and first[contender.process] > seconds_each:
                own[:] = [first[contender.process]]
            elif not own or (spent[label] < seconds_each and deadline.left() > spent[label] / len(own)):
                time.sleep(_REST)
                start = time.monotonic()
                run: Callable[[Worker], float] = lambda worker: worker.run(limit(), **contender.options)  # noqa: B023
                own.append(workers.ask(contender.process, run))
                spent[label] += time.monotonic() - start
        ends = workers.ask_all(Worker.end)
    finally:
        workers.close()

    results: dict[str, Result] = {}
    for label, process in ((label, contender.process) for label, contender in contenders.items()):
        if process in workers.errors:
            results[label] = {"error": workers.errors[process]}
        else:
            times = {"median": statistics.median(seconds[label]), "seconds": seconds[label]}
            results[label] = times | {"first_seconds": first[process], **ends[process]}
    _compare(results, {label: contender.base for label, contender in contenders.items()})
    return results


class _Workers:
    """The processes of contenders. One that fails is ended, and its error is kept."""

    def __init__(self, contenders: Iterable[Contender], deadline: Deadline):
        self.errors: dict[str, str] = {}
        self._deadline = deadline
        self._workers = {process: Worker(each) for process, each in {each.process: each for each in contenders}.items()}

    def ask(self, process: str, request: Callable[[Worker], Any]) -> Any:
        try:
            return request(self._workers[process])
        except ContenderFailed as error:
            self.errors[process] = str(error) if self._deadline.left() > 0 else "the time was up"
            self._workers.pop(process).close()

    def ask_all(self, request: Callable[[Worker], Any]) -> dict[str, Any]:
        return {process: self.ask(process, request) for process in list(self._workers)}

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def _compare(results: Mapping[str, Result], bases: Mapping[str, str]) -> None:
    """Puts ratio and disagreement in place of alphas."""
    alphas = {label: result.pop("alphas", None) for label, result in results.items()}
    for label, result in results.items():
        base = results.get(bases[label], {})
        ran = "seconds" in result and "seconds" in base
        result["ratio"] = paired_ratio(result["seconds"], base["seconds"]) if ran else None
        ours, theirs = alphas[label], alphas.get(bases[label])
        result["disagreement"] = max(abs(ours[name] / theirs[name] - 1) for name in ours) if ours and theirs else None


def paired_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """How many times as long as the others: the median over the rounds that both ran."""
    return statistics.median(mine / theirs for mine, theirs in zip(seconds, others, strict=False))
