"""All parts, for the kind of device that is here, within a time: `python -m benchmarks.run --help`.

On a GPU everything is done within 9 minutes. A part that fails or takes too long costs the others nothing. The tables come
last.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import provenance
from benchmarks.report import report

# Each part, with the share of the time that it gets. A new part is a module and a line here, and a section in the report.
_ON_CPU = {
    "refresh": 0.34,
    "steps": 0.17,
    "figure23": 0.25,
    "busy": 0.05,
    "devices": 0.05,
    "approximate": 0.14,
    "choice": 0.2,
    "checkpoint": 0.2,
}
_ON_GPU = {"refresh": 0.4, "steps": 0.3, "figure23": 0.2, "approximate": 0.1, "choice": 0.1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Runs every benchmark that suits this machine's device and reports."""

    minutes: float | None = None
    """For everything; by default 20 on CPU and 9 on a GPU."""
    parts: tuple[str, ...] = ()
    """Some of refresh, steps, figure23, busy, devices, approximate, choice, checkpoint; by default all that suit the
    device."""
    out: Path | None = None
    """Where to write results, report and plots; by default benchmarks/results/KIND OF DEVICE."""


def main() -> None:
    run(tyro.cli(Annotated[Settings, tyro.conf.arg(name="")]))


def run(settings: Settings) -> None:
    device = provenance.device()
    on_cpu = device["platform"] == "cpu"
    shares = _ON_CPU if on_cpu else _ON_GPU | ({"devices": 0.1} if device["devices"] > 1 else {})
    parts = _known(shares, settings.parts)
    end = time.monotonic() + 60 * (settings.minutes or (20 if on_cpu else 9)) - 15
    directory = settings.out or provenance.results_directory()
    print(
        f"{device['device_kind']}, {device['devices']} device(s), {device['cores']} cores; results in {directory}",
        flush=True,
    )
    while parts:
        # What one part leaves of its time is the next ones'.
        left = end - time.monotonic()
        share = parts[part := next(iter(parts))] / sum(parts.values())
        del parts[part]
        minutes = max(left * share / 60, 0.2)
        print(f"\n{part}: at most {minutes:.1f} minutes", flush=True)
        print(f"{part}: {_run_part(part, minutes, directory)}", flush=True)
    print("", report(directory), sep="\n")


def _known(shares: dict[str, float], parts: tuple[str, ...]) -> dict[str, float]:
    unknown = set(parts) - set(shares)
    if unknown:
        raise ValueError(f"parts={parts}: {', '.join(sorted(unknown))} is no part here; give some of {', '.join(shares)}.")
    return {part: share for part, share in shares.items() if not parts or part in parts}


def _run_part(part: str, minutes: float, directory: Path) -> str:
    command = [
        sys.executable,
        "-u",
        "-m",
        f"benchmarks.{part}",
        "--minutes",
        f"{0.85 * minutes:.2f}",
        "--out",
        str(directory),
    ]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(60 * minutes)
        return f"ended with {code}" if code else "done"
    except subprocess.TimeoutExpired:
        return "cut off; what it had written stands"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the workers that it may have left


if __name__ == "__main__":
    main()
