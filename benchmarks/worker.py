"""Runs one contender in a process of its own and answers lines of JSON: `python -m benchmarks.worker CONTENDER CASE`.

The process writes a line when the case is loaded. Then it answers `first` (the first call, which compiles), `run` (one more
call) and `end` (peak memory and alphas). Whatever a contender prints goes to standard error.
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
    _reply(ready=True)
    memory, result, calls = PeakMemory(), None, 0
    for line in sys.stdin:
        request = json.loads(line)
        options = request.get("options", {})
        if request["do"] == "end":
            alphas = prepared.alphas(result) if prepared.alphas else None
            _reply(peak_memory=memory.rise(), alphas=alphas)
            return
        result, seconds = _timed(prepared, options, calls or 1)
        if request["do"] == "run" and not calls:
            calls = min(math.ceil(_LEAST_SECONDS / seconds), _MOST_CALLS)
            if calls > 1:
                result, seconds = _timed(prepared, options, calls)
        _reply(seconds=seconds)


def _timed(prepared: Prepared, options: dict[str, Any], calls: int) -> tuple[Any, float]:
    result = None
    start = time.perf_counter()
    for _ in range(calls):
        result = prepared.run(**options)
    return result, (time.perf_counter() - start) / calls


def _reply(**message: Any) -> None:
    print(json.dumps(message), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
