"""Where figures come from: device, versions, commit; and the files that hold both."""

import datetime
import functools
import importlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from examples.paper.provenance import commit, cores, processor, versions

_PACKAGES = (
    "tb_optax",
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "optax",
    "flax",
    "numpy",
    "scipy",
    "torch",
)
_PACKAGES += ("weightwatcher", "threadpoolctl")
# In a process of its own: one that has asked JAX for a GPU holds on to it.
_ASK_JAX = "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind, sep='|')"


@functools.cache
def device() -> dict[str, Any]:
    """JAX's devices and the processor."""
    answer = subprocess.run([sys.executable, "-c", _ASK_JAX], capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"JAX finds no device: {answer.stderr.strip().splitlines()[-1]}")
    kind, count, name = answer.stdout.strip().splitlines()[-1].split("|")
    return {
        "platform": kind,
        "devices": int(count),
        "device_kind": processor() if kind == "cpu" else name,
        "processor": processor(),
        "cores": cores(),
    }


def results_directory() -> Path:
    """`benchmarks/results/KIND`: the last run on each kind of device."""
    found = device()
    kind = f"cpu-{found['cores']}-cores" if found["platform"] == "cpu" else found["device_kind"]
    return Path(__file__).parent / "results" / re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def write(directory: Path, part: str, arguments: dict[str, Any], cases: Any) -> None:
    """Writes `PART.json`. It is written after every case, so that a run that is cut short leaves what it has."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"part": part, "arguments": arguments, "provenance": provenance(), "cases": cases}, indent=1)
    # Lists of times on one line each.
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    (directory / f"{part}.json").write_text(text + "\n")


@functools.cache
def provenance() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **device(),
        "system": platform.platform(),
        "versions": versions(_PACKAGES),
        "blas": _blas(),
        **commit(":!benchmarks/results"),
    }


def _blas() -> list[str]:
    """The BLAS of NumPy, and of SciPy, which jaxlib's LAPACK calls go to."""
    try:
        for module in ("numpy", "scipy.linalg"):
            importlib.import_module(module)
        pools = importlib.import_module("threadpoolctl").threadpool_info()
    except ImportError:
        return []
    return [f"{pool['internal_api']} {pool['version']} ({pool['prefix']})" for pool in pools]
