"""Several processes on this machine that find each other as JAX's processes on several hosts do."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).parent


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def start(
    commands: Sequence[Sequence[object]], devices: int, environments: Sequence[Mapping[str, str]] | None = None
) -> list[subprocess.Popen[str]]:
    """Starts `python COMMAND` for each, with simulated CPU devices and variables of its own, in the repository's root."""
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "examples")))
    common = {
        **os.environ,
        "PYTHONPATH": paths,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "OPENBLAS_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=TESTS.parent,
            env={**common, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, environment in zip(commands, environments or [{}] * len(commands), strict=True)
    ]


def finish(processes: Sequence[subprocess.Popen[str]], seconds: float = 240) -> list[str]:
    """What each has printed, once all have ended; kills those that have not in time: JAX makes them ignore SIGTERM."""
    deadline = time.monotonic() + seconds
    try:
        return [process.communicate(timeout=max(deadline - time.monotonic(), 0.1))[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
