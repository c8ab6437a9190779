"""Runs all parts that suit this machine's device, within a time limit: `python -m benchmarks.run --help`.

A part that fails or takes too long does not affect the others. The tables are printed last.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import tyro

from benchmarks import provenance
from benchmarks.report import report
from benchmarks.timing import Deadline

# The share of the time that each part gets on CPU and on a GPU; on one GPU, `devices` is left out.
_SHARES = {
    "refresh": (0.35, 0.4),
    "steps": (0.1, 0.15),
    "figure23": (0.25, 0.25),
    "busy": (0.05, 0),
    "devices": (0.05, 0.1),
    "choice": (0.2, 0.1),
    "checkpoint": (0.2, 0),
}


def main(minutes: float | None = None, out: Path | None = None) -> None:
    """Runs every benchmark that suits this machine's device, and prints a report.

    Args:
      minutes: for everything; by default 20 on CPU and 9 on a GPU.
      out: where to write results, report and plots; by default benchmarks/results/KIND OF DEVICE.
    """
    device = provenance.provenance()
    on_gpu = device["platform"] != "cpu"
    shares = {part: share[on_gpu] for part, share in _SHARES.items() if share[on_gpu]}
    if on_gpu and device["devices"] == 1:
        del shares["devices"]
    deadline = Deadline((minutes or (9 if on_gpu else 20)) - 0.25)
    directory = out or provenance.results_directory()
    print(f"{device['device_kind']}, {device['devices']} device(s), {device['cores']} cores; results in {directory}")
    while shares:
        # The time that a part does not use goes to the next parts.
        given = max(deadline.left() / 60 * next(iter(shares.values())) / sum(shares.values()), 0.2)
        shares.pop(part := next(iter(shares)))
        print(f"\n{part}: at most {given:.1f} minutes", flush=True)
        print(f"{part}: {_run_part(part, given, directory)}", flush=True)
    print("", report(directory), sep="\n")


def _run_part(part: str, minutes: float, directory: Path) -> str:
    options = ["--minutes", f"{0.85 * minutes:.2f}", "--out", str(directory)]
    process = subprocess.Popen([sys.executable, "-u", "-m", f"benchmarks.{part}", *options], start_new_session=True)
    try:
        code = process.wait(60 * minutes)
        return f"ended with {code}" if code else "done"
    except subprocess.TimeoutExpired:
        return "cut off; the results that it had written are kept"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # The group includes workers that the part may have left.


if __name__ == "__main__":
    tyro.cli(main)
