"""Sets the BLAS library that JAX calls on CPU to one thread: its threads and JAX's would compete for the same cores."""

import functools
import logging
import os
from pathlib import Path

import jax
from threadpoolctl import ThreadpoolController

_SET_BY_THE_USER = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
_log = logging.getLogger("tb_optax")


@functools.cache
def limit_blas_threads() -> None:
    """Once for each process, and only where no environment variable sets the number of threads.

    Solving several eigenproblems at once with one thread each uses all cores better than solving them one after another with
    many threads. OpenBLAS's threads wait for each other by spinning: beside another busy program, a refresh with them took
    up to 25 times as long. JAX calls SciPy's BLAS. NumPy's wheels bring another one, which keeps its threads.
    """
    if jax.default_backend() != "cpu" or any(name in os.environ for name in _SET_BY_THE_USER):
        return
    # Loads the library: jaxlib does so only when it lowers its first LAPACK call.
    import scipy.linalg.cython_blas  # noqa: F401

    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas" and "numpy.libs" not in Path(library.filepath).parts:
            before = library.num_threads
            library.set_num_threads(1)
            if before != 1:
                _log.info(
                    "The BLAS threads of this process are set from %d to 1 (%s), so that they do not slow down eigenvalue "
                    "problems; decline it by solver=tb_optax.Exact(limit_blas_threads=False), or set OPENBLAS_NUM_THREADS.",
                    before,
                    library.filepath,
                )
