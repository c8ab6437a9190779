"""Runs one contender in a process of its own and answers lines of JSON: `python -m benchmarks.worker CONTENDER CASE`.

When the case is loaded, the process answers `ready`, `first` (the first call, which compiles), `run` (one more call) and
`end` (peak memory and alphas). Whatever a contender prints goes to standard error.
"""

import contextlib
import json
import math
import sys
import time
import traceback
from typing import Any

from benchmarks.contenders import Case, Prepared, load
from benchmarks.memory import PeakMemory

# A short call is repeated until this many seconds have passed, and the mean is its time.
_LEAST_SECONDS = 0.2
_MOST_CALLS = 1000


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        try:
            _serve(sys.argv[1], json.loads(sys.argv[2]))
        except Exception as error:
            traceback.print_exc()
            _reply(error=f"{type(error).__name__}: {error}".splitlines()[0])
            sys.exit(1)


def _serve(contender: str, case: Case) -> None:
    prepared = load(contender, case)
    memory, result, calls = PeakMemory(), None, 0
    for request in map(str.strip, sys.stdin):
        if request == "ready":
            _reply()
            continue
        if request == "end":
            return _reply(peak_memory=memory.rise(), alphas=prepared.alphas(result) if prepared.alphas else None)
        result, seconds = _timed(prepared, calls or 1)
        if request == "run" and not calls:
            calls = min(math.ceil(_LEAST_SECONDS / seconds), _MOST_CALLS)
            if calls > 1:
                result, seconds = _timed(prepared, calls)
        _reply(seconds=seconds)


def _timed(prepared: Prepared, calls: int) -> tuple[Any, float]:
    result = None
    start = time.perf_counter()
    for _ in range(calls):
        result = prepared.run()
    return result, (time.perf_counter() - start) / calls


def _reply(**message: Any) -> None:
    print(json.dumps(message), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
