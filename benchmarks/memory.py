"""Peak memory: of the device where there is one, of the process where there is none."""

import contextlib
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The rise of memory to its peak since this object was made."""

    def __init__(self):
        if _torch_on_gpu():
            sys.modules["torch"].cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # Linux: forgets the process's peak so far
        self._before = _in_use()

    def rise(self) -> int:
        """In bytes."""
        return max(_peak() - self._before, 0)


def _in_use() -> int:
    if _torch_on_gpu():
        return sys.modules["torch"].cuda.memory_allocated()
    statistics = _jax_statistics()
    return statistics["bytes_in_use"] if statistics else _status("VmRSS")


def _peak() -> int:
    if _torch_on_gpu():
        return sys.modules["torch"].cuda.max_memory_allocated()
    statistics = _jax_statistics()
    return statistics["peak_bytes_in_use"] if statistics else _status("VmHWM")


def _torch_on_gpu() -> bool:
    return "torch" in sys.modules and sys.modules["torch"].cuda.is_available()


def _jax_statistics() -> dict[str, int] | None:
    return sys.modules["jax"].devices()[0].memory_stats() if "jax" in sys.modules else None


def _status(field: str) -> int:
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
