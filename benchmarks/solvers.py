"""Ways to compute spectra that a user can choose from, by what tables call them."""

import tb_optax

EXACT = "exact"
SOLVERS = {
    EXACT: tb_optax.Solver(),
    "windows, 81 of 100 rows": tb_optax.Solver(windows=tb_optax.Windows()),
    "windows, 9 of 100 rows": tb_optax.Solver(windows=tb_optax.Windows(places=3)),
    "Lanczos, 32 steps x 8 probes": tb_optax.Solver(approximate_from=128),
    "Lanczos, 16 steps x 1 probe": tb_optax.Solver(approximate_from=128, lanczos_steps=16, lanczos_probes=1),
}
