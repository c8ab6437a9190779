"""Where a figure comes from: day, device, versions, commit."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("tb_optax", "jax", "jaxlib", "optax", "flax", "numpy")


def provenance() -> dict[str, Any]:
    """Of what this process computes."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": device.platform,
        "device_kind": processor() if device.platform == "cpu" else device.device_kind,
        "cores": cores(),
        "versions": versions(_PACKAGES),
        **commit(":!examples/paper/*/results", ":!runs"),
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python, and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(*ignored: str) -> dict[str, Any]:
    """The commit, and whether the files differ from it; None for both in a copy without its history.

    Args:
      *ignored: what may differ, as git writes paths: `":!benchmarks/results"`.
    """
    try:
        return {"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain", "--", ".", *ignored))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
