"""Times contenders against each other: each in its process, in turn, round by round."""

import contextlib
import dataclasses
import json
import math
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

Result = dict[str, Any]


class Deadline:
    """The end of a part's time."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """In seconds."""
        return self._end - time.monotonic()

    def admits(self, names: Iterable[str], seconds: float = 0.0) -> Iterator[str]:
        """Yields the names in turn and prints them; after the first, only while at least `seconds` are left."""
        for number, name in enumerate(names):
            if number > 0 and self.left() < seconds:
                print(f"{name}: left out, the time is up", flush=True)
            else:
                print(name, flush=True)
                yield name


class ContenderFailed(Exception):
    """A contender raised, died or took too long."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
      name: a contender in `benchmarks.contenders`.
      case: its argument.
      environment: variables of its process.
      around: a context in which each call is timed. Contenders that differ in nothing else share a process.
      base: the label of the contender that its times and alphas are compared with.
    """

    name: str
    case: Case
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    base: str = ""

    @property
    def process(self) -> str:
        return json.dumps([self.name, self.case, dict(self.environment)])


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

    def ask(self, request: str, limit: float) -> Result:
        """The answer to `ready`, `first`, `run` or `end`, as `benchmarks.worker` has it, within so many seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # where the process has died; its error is read below
            self._process.stdin.write(f"{request}\n".encode())
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], max(limit, 0))[0]:
            raise ContenderFailed(f"took longer than {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise failure(self._process.wait(), self._errors)
        reply = json.loads(line)
        if "error" in reply:
            raise ContenderFailed(reply["error"])
        return reply

    def close(self) -> None:
        """Ends the process; may be called again."""
        self._process.kill()
        self._process.wait()
        for file in filter(None, (self._process.stdin, self._process.stdout, self._errors)):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def failure(code: int, errors: IO[bytes]) -> ContenderFailed:
    """Says how a process ended, and the last line that it wrote."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return ContenderFailed(f"ended with {code}: {lines[-1] if lines else 'no message'}")


# Benchmarks measure the defaults, whatever the environment says.
_LEFT_OUT = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

# Seconds before each turn: threads of OpenBLAS and OpenMP in the process before it still spin for a while.
_REST = 0.1

# Contenders whose first call compiles nothing.
_NOT_COMPILED = ("PyTorch", "WeightWatcher")


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
    workers = {process: Worker(each) for process, each in {each.process: each for each in contenders.values()}.items()}
    errors: dict[str, str] = {}
    seconds: dict[str, list[float]] = {label: [] for label in contenders}
    spent = dict.fromkeys(contenders, 0.0)

    def ask(process: str, request: str, least: float = 1.0) -> Result:
        """The answer, or nothing from a process that has failed."""
        if process not in errors:
            try:
                return workers[process].ask(request, max(least, min(max(6 * seconds_each, 60), deadline.left())))
            except ContenderFailed as error:
                errors[process] = str(error) if deadline.left() > 0 else "the time was up"
                workers[process].close()
        return {}

    try:
        for process in workers:
            ask(process, "ready", least=60)
        first = {process: ask(process, "first").get("seconds", math.nan) for process in workers}
        for label in turns(contenders, rounds):
            contender, own = contenders[label], seconds[label]
            if contender.process in errors:
                continue
            if contender.name in _NOT_COMPILED and first[contender.process] > seconds_each:
                own[:] = [first[contender.process]]
            elif not own or (spent[label] < seconds_each and deadline.left() > spent[label] / len(own)):
                time.sleep(_REST)
                start = time.monotonic()
                with contender.around():
                    own += ask(contender.process, "run").values()
                spent[label] += time.monotonic() - start
        ends = {process: ask(process, "end", least=60) for process in workers}
    finally:
        for worker in workers.values():
            worker.close()

    results: dict[str, Result] = {}
    for label, process in ((label, contender.process) for label, contender in contenders.items()):
        if process in errors:
            results[label] = {"error": errors[process]}
        else:
            times = {"median": statistics.median(seconds[label]), "seconds": seconds[label]}
            results[label] = times | {"first_seconds": first[process], **ends[process]}
    _compare(results, {label: contender.base for label, contender in contenders.items()})
    return results


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
