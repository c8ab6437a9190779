"""A refresh on CPU holds the BLAS that JAX calls to one thread, unless the user said how many; NumPy's stays as it is."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tb_optax._spectra.eigenvalues import cores

REFRESH = """
    import json, jax, numpy, threadpoolctl, tb_optax

    def threads():
        libraries = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
        return {"numpy" if "numpy.libs" in library["filepath"] else "jax": library["num_threads"] for library in libraries}

    before = threads()
    tb_optax.spectra({"kernel": jax.numpy.ones((60, 60))})
    print(json.dumps([before, threads()]))
"""


@pytest.mark.parametrize("chosen", [None, "2"])
def test_blas_has_one_thread_unless_the_user_chose(chosen):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    if chosen:
        environment["OPENBLAS_NUM_THREADS"] = chosen
    command = [sys.executable, "-c", textwrap.dedent(REFRESH)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    before, after = json.loads(done.stdout or f"{done.stderr!r}")
    assert after["jax"] == (min(int(chosen), cores()) if chosen else 1)  # it takes no more than there are cores
    if "numpy" in before:
        assert after["numpy"] == before["numpy"]
