"""Options for how spectra are computed: `Exact` or `Lanczos`."""

import dataclasses
import numbers
from typing import Any, Literal, TypeAlias, get_args

Method: TypeAlias = Literal["auto", "gram", "svd"]


def _check_whole(argument_of: str, options: Any, **least: int) -> None:
    for name, bound in least.items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{argument_of}: {name}={value!r} must be a whole number.")
        if value < bound:
            raise ValueError(f"{argument_of}: {name}={value} must be at least {bound}.")
        if name == "seed" and value >= 2**32:
            raise ValueError(f"{argument_of}: seed={value} must be below 2**32.")


@dataclasses.dataclass(frozen=True)
class Exact:
    """Exact spectra: every eigenvalue of every matrix.

    Attributes:
      max_bytes: memory in bytes that a device may use for the matrices that it solves at once and for what is computed from
        them. If all matrices need more, they are solved in chunks; a matrix that needs more by itself is solved alone. The
        memory of the eigenvalues is not included.
      method: `"gram"` computes eigenvalues of the Gram product `W Wᵀ`: fast, but eigenvalues below a millionth of the
        largest are inexact or zero. `"svd"` computes singular values of `W`: exact far below that, at twice the cost.
        `"auto"` takes `"gram"` in training if the metric declares that it tolerates Gram products (see `Metric`), otherwise
        `"svd"`. After `"gram"`, it solves a matrix again by singular values if its median eigenvalue is below 1e-5 of the
        largest, or below 1e-30.
      limit_blas_threads: on CPU, whether to set the BLAS library that JAX calls to one thread, for the whole process.
        OpenBLAS's threads wait by spinning: on a busy machine, a refresh with them took up to 25 times as long. The change
        is logged once. It is not made if `OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS` or `OMP_NUM_THREADS` is set.

    Raises:
      ValueError: `max_bytes` is below 1, or `method` is unknown.
      TypeError: `max_bytes` is not a whole number, or `limit_blas_threads` is not a bool.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (64, 128))}}
      >>> svd = tb_optax.spectra(params)["dense"]
      >>> gram = tb_optax.spectra(params, solver=tb_optax.Exact(method="gram"))["dense"]
      >>> bool(abs(gram / svd - 1).max() < 1e-4)
      True
    """

    max_bytes: int = 2**30
    method: Method = "auto"
    limit_blas_threads: bool = True

    def __post_init__(self):
        _check_whole("Exact", self, max_bytes=1)
        if self.method not in get_args(Method):
            raise ValueError(
                f"Exact: method={self.method!r} is unknown; give one of {', '.join(map(repr, get_args(Method)))}."
            )
        if not isinstance(self.limit_blas_threads, bool):
            raise TypeError(f"Exact: limit_blas_threads={self.limit_blas_threads!r} must be True or False.")


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """Approximate spectra of large matrices, by stochastic Lanczos quadrature.

    The method multiplies vectors by the weight and never forms `W Wᵀ`. It is faster than `Exact` from about 1,000 rows on.
    Alpha by the median fit was within 2% of the exact one for random matrices of 1,024 x 1,024, 1,024 x 4,096 and
    2,048 x 2,048 with 0 to 128 learned directions. The method does not resolve single small eigenvalues, so the fits
    `goodness_of_fit` and `fix_finger` are refused.

    Attributes:
      min_size: matrices whose smaller side is at least this are approximated.
      steps: products with each matrix, and with its transpose, for each probe. With fewer steps, the alpha of a weight with
        some tens of learned directions is too small.
      probes: random vectors for each matrix. More probes give less scatter: with 16, up to 2.5% in the same matrices.
      seed: the seed of the random vectors, below 2**32. The same seed gives the same spectra.
      below: how smaller matrices are solved; its `max_bytes` bounds the memory of both.

    Raises:
      ValueError: a number is out of range.
      TypeError: a number is not a whole number, or `below` is not an `Exact`.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (512, 768))}}
      >>> exact = tb_optax.spectra(params)["dense"]
      >>> near = tb_optax.spectra(params, solver=tb_optax.Lanczos(min_size=512))["dense"]
      >>> alpha = tb_optax.metrics.pl_alpha_hill
      >>> bool(abs(alpha(near) / alpha(exact) - 1) < 0.05)
      True
    """

    min_size: int = 2048
    steps: int = 48
    probes: int = 32
    seed: int = 0
    below: Exact = Exact()

    def __post_init__(self):
        _check_whole("Lanczos", self, min_size=2, steps=2, probes=1, seed=0)
        if not isinstance(self.below, Exact):
            raise TypeError(f"Lanczos: below={self.below!r} must be a tb_optax.Exact, such as {Exact()}.")


Solver: TypeAlias = Exact | Lanczos
DEFAULT_SOLVER = Exact()


def check_solver(argument_of: str, solver: Any) -> None:
    if not isinstance(solver, (Exact, Lanczos)):
        raise TypeError(
            f"{argument_of}: solver={solver!r} must be a tb_optax.Exact or tb_optax.Lanczos, such as {DEFAULT_SOLVER}."
        )
