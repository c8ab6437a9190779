"""Sets the BLAS library that JAX calls on CPU to one thread, because its threads and JAX's compete for the same cores."""

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
    """Limits the threads once for each process, unless an environment variable sets their number.

    Solving several eigenproblems at once with one thread each uses all cores better than solving them one after another with
    many threads. OpenBLAS's threads wait for each other by spinning: beside another busy program, a refresh took up to 25
    times as long with many. JAX calls SciPy's BLAS. NumPy's wheels bring another one, which keeps its threads.
    """
    if jax.default_backend() != "cpu" or any(name in os.environ for name in _SET_BY_THE_USER):
        return
    # Importing this loads SciPy's BLAS, which jaxlib loads only when it lowers its first LAPACK call.
    import scipy.linalg.cython_blas  # noqa: F401

    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas" and "numpy.libs" not in Path(library.filepath).parts:
            before = library.num_threads
            library.set_num_threads(1)
            if before != 1:
                _log.info(
                    "tb_optax sets the BLAS threads of this process from %d to 1 (%s), which speeds up eigenvalue problems. "
                    "To keep them, give solver=tb_optax.Exact(limit_blas_threads=False), or set OPENBLAS_NUM_THREADS.",
                    before,
                    library.filepath,
                )
