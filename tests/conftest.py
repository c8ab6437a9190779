"""Every test sees eight CPU devices; arrays lie on the first unless a test shards them."""

import os

# Before numpy: the threads of OpenBLAS spin while they wait, and make a busy machine crawl.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)

# The same few examples everywhere: most of the time of each goes into compiling.
settings.register_profile("few", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("few")
