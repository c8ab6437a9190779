"""Holds the BLAS that JAX calls on CPU to one thread: its threads and JAX's would stand in each other's way."""

import functools
import os
from pathlib import Path

import jax
from threadpoolctl import ThreadpoolController

_CHOSEN_BY_THE_USER = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@functools.cache
def hold_blas_to_one_thread() -> None:
    """Once per process, and not where an environment variable says how many threads to use.

    Several eigenproblems at once, one thread each, use all cores better than one after another with threads of their
    own. And OpenBLAS's threads wait for each other by spinning: beside another busy program, a refresh with them took up
    to 25 times as long. The BLAS is SciPy's, which jaxlib calls; NumPy's wheels bring another one, which stays as it is.
    """
    if jax.default_backend() != "cpu" or any(name in os.environ for name in _CHOSEN_BY_THE_USER):
        return
    import scipy.linalg.cython_blas  # noqa: F401  # Loads it, which jaxlib does only when it lowers its first LAPACK call.

    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas" and "numpy.libs" not in Path(library.filepath).parts:
            library.set_num_threads(1)
