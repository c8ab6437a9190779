"""What a user can choose about how spectra are computed."""

import dataclasses
from typing import Any

from tb_optax._spectra.windows import Windows


@dataclasses.dataclass(frozen=True)
class Solver:
    """How spectra are computed: of which parts of a matrix, in how much memory, from which size on by an approximation.

    Attributes:
      max_stack_bytes: the memory that the matrices solved at once may take on a device, with what is computed from them.
        A stack of more is cut; a matrix that alone takes more is solved alone.
      approximate_from: matrices whose smaller side is at least this have their spectra approximated by stochastic Lanczos
        quadrature, which multiplies with the weight alone and never forms its correlation matrix; `None` for exact
        spectra always. It pays from about 1,000 on; alpha by the median fit then has an error of about a percent. The
        smallest eigenvalues are not resolved, so it does not suit `fix_finger`.
      lanczos_steps: products with each matrix, and with its transpose, for each probe. More are more exact.
      lanczos_probes: random vectors for each matrix. More are more exact.
      seed: of the random vectors: the same seed gives the same spectra.
      windows: pieces of one aspect ratio, of which spectra are made in place of whole matrices; `None` for whole ones.

    Raises:
      ValueError: a number is out of range.
      TypeError: a number is not a whole one, or `windows` are none.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (512, 768))}}
      >>> exact = tb_optax.spectra(params)["dense"]
      >>> near = tb_optax.spectra(params, solver=tb_optax.Solver(approximate_from=512))["dense"]
      >>> bool(abs(tb_optax.pl_alpha_hill(near) / tb_optax.pl_alpha_hill(exact) - 1) < 0.05)
      True
    """

    max_stack_bytes: int = 2**30
    approximate_from: int | None = None
    lanczos_steps: int = 32
    lanczos_probes: int = 8
    seed: int = 0
    windows: Windows | None = None

    def __post_init__(self):
        if not isinstance(self.windows, (Windows, type(None))):
            raise TypeError(f"Solver: windows={self.windows!r} are no tb_optax.Windows; give some such as {Windows()}.")
        least = {"max_stack_bytes": 1, "approximate_from": 2, "lanczos_steps": 2, "lanczos_probes": 1, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if name == "approximate_from" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Solver: {name}={value!r} must be a whole number.")
            if value < bound:
                raise ValueError(f"Solver: {name}={value} must be at least {bound}.")


DEFAULT_SOLVER = Solver()


def check_solver(argument_of: str, solver: Any) -> None:
    if not isinstance(solver, Solver):
        raise TypeError(f"{argument_of}: solver={solver!r} is not a tb_optax.Solver; give one such as {DEFAULT_SOLVER}.")
