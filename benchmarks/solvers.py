"""The ways to compute spectra: the arguments for each, by its name in the tables."""

from typing import Any

import tb_optax

EXACT = "exact"
SOLVERS: dict[str, dict[str, Any]] = {
    EXACT: {},
    "windows, 81 of 100 rows": {"windows": tb_optax.Windows()},
    "windows, 9 of 100 rows": {"windows": tb_optax.Windows(grid=3)},
    "Lanczos, 48 steps x 32 probes": {"solver": tb_optax.Lanczos(min_size=128)},
    "Lanczos, 32 steps x 8 probes": {"solver": tb_optax.Lanczos(min_size=128, steps=32)},
    "Lanczos, 16 steps x 1 probe": {"solver": tb_optax.Lanczos(min_size=128, steps=16, probes=1)},
}
