"""A refresh on CPU sets the BLAS that JAX calls to one thread, unless the user declines; NumPy's keeps its threads."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tb_optax._spectra.eigenvalues import cores

REFRESH = """
    import json, logging, jax, numpy, threadpoolctl, tb_optax

    def threads():
        libraries = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
        return {"numpy" if "numpy.libs" in library["filepath"] else "jax": library["num_threads"] for library in libraries}

    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    import scipy.linalg.cython_blas
    before = threads()
    for solver in SOLVERS:
        tb_optax.spectra({"kernel": jax.numpy.ones((60, 60))}, solver=solver)
    print(json.dumps([before, threads()]))
"""


def threads_before_and_after(solvers, chosen=None):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    if chosen:
        environment["OPENBLAS_NUM_THREADS"] = chosen
    command = [sys.executable, "-c", textwrap.dedent(REFRESH.replace("SOLVERS", solvers))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    before, after = json.loads(done.stdout or f"{done.stderr!r}")
    return before, after, [line for line in done.stderr.splitlines() if line.startswith("tb_optax ")]


@pytest.mark.parametrize("chosen", [None, "2"])
def test_blas_has_one_thread_unless_the_user_chose(chosen):
    before, after, logged = threads_before_and_after("[tb_optax.Exact()] * 2", chosen)
    assert after["jax"] == (min(int(chosen), cores()) if chosen else 1)  # it takes no more than there are cores
    if "numpy" in before:
        assert after["numpy"] == before["numpy"]
    if before["jax"] != after["jax"]:
        assert len(logged) == 1 and f"from {before['jax']} to 1" in logged[0] and "limit_blas_threads=False" in logged[0]
    else:
        assert not logged


def test_blas_keeps_its_threads_if_the_user_declines():
    exact = "tb_optax.Exact(limit_blas_threads=False)"
    before, after, logged = threads_before_and_after(f"[{exact}, tb_optax.Lanczos(below={exact})]")
    assert before == after and not logged
