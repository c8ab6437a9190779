"""Where figures come from: device, versions, commit."""

import datetime
import functools
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import scipy.linalg  # noqa: F401, with the BLAS of NumPy and its own  # pyright: ignore[reportUnusedImport]
import threadpoolctl

from examples.paper.provenance import commit, cores, processor, versions

_PACKAGES = ("tb_optax", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "optax", "flax", "numpy", "scipy")
_PACKAGES += ("torch", "weightwatcher", "threadpoolctl")
# Asked in another process: a process that has asked JAX for a GPU keeps it.
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


@functools.cache
def provenance() -> dict[str, Any]:
    blas = threadpoolctl.threadpool_info()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **device(),
        "system": platform.platform(),
        "versions": versions(_PACKAGES),
        "blas": [f"{pool['internal_api']} {pool['version']} ({pool['prefix']})" for pool in blas],
        **commit(":!benchmarks/results"),
    }
