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
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contenders import Case

Result = dict[str, Any]


class Deadline:
    """When a part of the benchmarks has to be done."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """In seconds."""
        return self._end - time.monotonic()


class ContenderFailed(Exception):
    """A contender raised, died or took too long."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A contender with its case, and variables for its environment."""

    name: str
    case: Case
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def compiles(self) -> bool:
        """Whether its first call does."""
        return self.name not in ("PyTorch", "WeightWatcher")


class Worker:
    """The process of a contender."""

    def __init__(self, contender: Contender):
        environment = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
        # Several processes share a GPU: none may take most of its memory at the start.
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
            pass  # it has died, and what it said last is still to be read
        return self._reply(limit)

    def _reply(self, limit: float) -> Result:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(limit, 0))
        if not ready:
            raise ContenderFailed(f"took longer than {limit:.0f} s")
        line = self._process.stdout.readline()
        reply = json.loads(line) if line else {"error": self._last_words()}
        if "error" in reply:
            raise ContenderFailed(reply["error"])
        return reply

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"ended with {self._process.wait()}: {lines[-1] if lines else 'without a word'}"


# The benchmark shows what users get who set nothing.
_LEFT_OUT = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

# Before each turn: the threads of OpenBLAS and OpenMP in the process that had the last one still spin for a while.
_REST = 0.1


def measure(
    contenders: Mapping[str, Contender], *, rounds: int, seconds_each: float, deadline: Deadline
) -> dict[str, Result]:
    """Times contenders in turn.

    Args:
      contenders: by the label each is to have.
      rounds: how often each is timed; every other round goes through them backwards.
      seconds_each: no contender gets another round once it has taken this long, and none may take six times that (or a
        minute, if that is more) for a call. One that does not compile, and takes this long for its first call, is not
        called again: that is its time.
      deadline: after it, no round is begun.

    Returns:
      For each label `first_seconds`, `seconds` (a list), `median`, `peak_memory` in bytes and `alphas`; or an `error`.
    """
    results: dict[str, Result] = {label: {} for label in contenders}
    workers = {label: Worker(contender) for label, contender in contenders.items()}

    def attempt(label: str, key: str, ask: Any) -> None:
        try:
            results[label][key] = ask()
        except ContenderFailed as error:
            results[label]["error"] = str(error) if deadline.left() > 0 else "the time was up"
            workers.pop(label).close()

    def limit() -> float:
        return min(max(6 * seconds_each, 60), max(deadline.left(), 1))

    try:
        for label, worker in list(workers.items()):
            attempt(label, "ready", lambda worker=worker: worker.wait_until_ready(max(60, limit())))
        for label, worker in list(workers.items()):
            attempt(label, "first_seconds", lambda worker=worker: worker.first(limit()))
        spent = {label: 0.0 for label in workers}
        for number in range(rounds):
            for label in list(workers)[:: 1 if number % 2 == 0 else -1]:
                seconds = results[label].setdefault("seconds", [])
                if not contenders[label].compiles and results[label]["first_seconds"] > seconds_each:
                    seconds[:] = [results[label]["first_seconds"]]
                elif (spent[label] < seconds_each and deadline.left() > 0) or not seconds:
                    time.sleep(_REST)
                    start = time.monotonic()
                    attempt(label, "last", lambda label=label: workers[label].run(limit()))
                    spent[label] += time.monotonic() - start
                    seconds += [results[label].pop("last")] if label in workers else []
        for label, worker in list(workers.items()):
            attempt(label, "end", worker.end)
    finally:
        for worker in workers.values():
            worker.close()
    return {label: _summary(result) for label, result in results.items()}


def _summary(result: Result) -> Result:
    if "error" in result:
        return {"error": result["error"]}
    return {
        "median": statistics.median(result["seconds"]),
        "seconds": result["seconds"],
        "first_seconds": result["first_seconds"],
        **result["end"],
    }


def ratio(results: Mapping[str, Result], label: str, other: str) -> float | None:
    """How many times as long as `other` it takes: the median over the rounds that both ran."""
    if not all("seconds" in results.get(name, {}) for name in (label, other)):
        return None
    return paired_ratio(results[label]["seconds"], results[other]["seconds"])


def paired_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(seconds, others, strict=False))


def disagreement(results: Mapping[str, Result], label: str, other: str) -> float | None:
    """The largest relative difference between two contenders' alphas of a layer."""
    ours, theirs = (results.get(name, {}).get("alphas") for name in (label, other))
    if not ours or not theirs:
        return None
    return max(abs(ours[name] / theirs[name] - 1) for name in ours)
