"""Where figures come from: device, versions, commit."""

import functools
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("tb_optax", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "optax", "flax", "numpy", "scipy")
_PACKAGES += ("torch", "weightwatcher", "threadpoolctl")


@functools.cache
def provenance() -> dict[str, Any]:
    """Of this machine, asked in another process: a process that has asked JAX for a GPU keeps it."""
    answer = subprocess.run([sys.executable, "-m", "benchmarks.provenance"], capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"JAX finds no device: {answer.stderr.strip().splitlines()[-1]}")
    return json.loads(answer.stdout.strip().splitlines()[-1])


def results_directory() -> Path:
    """`benchmarks/results/KIND`: the last run on each kind of device."""
    found = provenance()
    kind = f"cpu-{found['cores']}-cores" if found["platform"] == "cpu" else found["device_kind"]
    return Path(__file__).parent / "results" / re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def main() -> None:
    import jax
    import scipy.linalg  # noqa: F401, with the BLAS of NumPy and its own  # pyright: ignore[reportUnusedImport]
    import threadpoolctl

    from examples.paper import provenance

    blas = [f"{pool['internal_api']} {pool['version']} ({pool['prefix']})" for pool in threadpoolctl.threadpool_info()]
    found = provenance.provenance() | {"devices": jax.device_count(), "processor": provenance.processor()}
    found |= {"system": platform.platform(), "versions": provenance.versions(_PACKAGES), "blas": blas}
    print(json.dumps(found | provenance.commit(":!benchmarks/results")))


if __name__ == "__main__":
    main()
