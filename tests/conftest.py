"""Every test sees eight CPU devices; arrays lie on the first unless a test shards them."""

import atexit
import os
import shutil
import tempfile

# Before numpy: the threads of OpenBLAS spin while they wait, and make a busy machine crawl.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# What was compiled once is not again, in any process of this run of the tests: they inherit the directory.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tb_optax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)

# The same few examples everywhere: most of the time of each goes into compiling.
settings.register_profile("few", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("few")
