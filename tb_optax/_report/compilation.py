"""Compiled programs are kept for later runs on the same network."""

import hashlib
import platform
from pathlib import Path

import jax
import platformdirs


def keep_compiled_programs(least_seconds: float = 0.1) -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX has another one (`JAX_COMPILATION_CACHE_DIR`).

    A program for a CPU is made for one kind of it, and homes may be shared by hosts: each kind has a folder of its own.

    Args:
      least_seconds: what compiles faster is not kept.
    """
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        folder = platformdirs.user_cache_path("tb_optax") / "compiled" / _kind_of_processor()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)


def _kind_of_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = sorted({line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))})
    except OSError:
        kind = [platform.machine(), platform.processor(), platform.release()]
    return hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]
