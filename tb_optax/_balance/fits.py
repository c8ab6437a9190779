"""Power laws fitted to the tail of a spectrum.

Each fit chooses a threshold, `xmin`, among the eigenvalues. The tail is the eigenvalues from `xmin` on, in ascending order,
and `alpha` is its maximum-likelihood exponent, the Hill estimator. The three fits differ only in how they choose `xmin`.
`alpha` does not depend on the scale of the eigenvalues.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Bool, Float, Int

from tb_optax._balance.attributes import any_part, declare, innermost
from tb_optax._dtypes import at_least_float32
from tb_optax._layers.layer import short_repr
from tb_optax._spectra.options import Lanczos

# Points of each tail that bound its KS distance from below. Memory is this many times the spectrum's length.
_PLACES = 64
_HISTOGRAM_BINS = 100
# In spectra from this length on, the search for `xmin` uses a second, closer bound, from this many points.
_LONG = 8192
_CLOSER_PLACES = 4096
# 100 * (1 - 0.9) is 9.99..., but the index must be 10.
_ROUNDING = 1e-9


class PowerLaw(NamedTuple):
    """A density `p(λ) ∝ λ^-alpha` fitted to the eigenvalues from `xmin` on.

    Equal eigenvalues have different ranks, so a tail may begin between two of them.

    Attributes:
      alpha: the exponent, above 1. NaN if there is no fit: the spectrum holds a NaN, or no `xmin` above zero has a tail
        whose spread exceeds rounding.
      xmin: the smallest eigenvalue of the tail.
      ks_distance: the Kolmogorov-Smirnov distance between the tail and the fit, 0 to 1.
    """

    alpha: Float[Array, "*layers"]
    xmin: Float[Array, "*layers"]
    ks_distance: Float[Array, "*layers"]


@runtime_checkable
class Fit(Protocol):
    """A function from spectra to power laws: `median`, another of `tb_optax.fits`, or your own.

    JAX traces it. Its argument is an array of ascending spectra of shape `(*layers, n)`. It returns a `PowerLaw` of arrays
    of shape `(*layers,)`, with NaN where it has no fit.

    A fit that sets the attribute `gram = True` declares that it tolerates spectra of Gram products, in which eigenvalues
    below a millionth of the largest are inexact or zero. `median` and `goodness_of_fit` do; `fix_finger` does not, because
    its histogram starts at the smallest eigenvalue.
    """

    def __call__(self, eigenvalues: Float[Array, "*layers n"], /) -> PowerLaw: ...


@declare(gram=True)
def median(eigenvalues: Float[Array, "*layers n"], *, tail_fraction: float = 0.5) -> PowerLaw:
    """Fits the upper half of the spectrum: the Hill estimator of PL_Alpha_Hill.

    With `i = int(n (1 - tail_fraction))` and `k = n - i`,
    `alpha = 1 + k / (Σ_{j >= i} ln λ_j - k ln λ_i)`. The indices are those of the authors' released code, which made
    the paper's tables, and the other fits use the same form of maximum likelihood. Eq. 3 of Zhou et al. (2023) takes `xmin`
    one order statistic lower.

    Args:
      eigenvalues: ascending along the last axis; any floating dtype.
      tail_fraction: the share of eigenvalues in the tail, in (0, 1].

    Raises:
      ValueError: fewer than 2 eigenvalues, or `tail_fraction` out of range.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> fit = tb_optax.fits.median(jnp.array([0.1, 0.2, 1.0, 2.0, 4.0]), tail_fraction=0.6)
      >>> round(float(fit.alpha), 3), float(fit.xmin)  # 1 + 3 / ln(1 * 2 * 4)
      (2.443, 1.0)
    """
    eigenvalues = as_spectra(eigenvalues)
    return _over_layers(_fit_at, eigenvalues, jnp.asarray(tail_start(eigenvalues.shape[-1], tail_fraction)))


@declare(gram=True)
def goodness_of_fit(eigenvalues: Float[Array, "*layers n"]) -> PowerLaw:
    """Fits the tail whose `xmin` gives the smallest Kolmogorov-Smirnov distance (Clauset et al., 2009).

    The fit tries every eigenvalue except the largest as `xmin`. Where eigenvalues are equal, it tries each of their places,
    as WeightWatcher does. The package `powerlaw` takes equal values as one.

    Args:
      eigenvalues: ascending along the last axis; any floating dtype.

    Raises:
      ValueError: fewer than 2 eigenvalues.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> ranks = 1 - (jnp.arange(200) + 0.5) / 200
      >>> float(tb_optax.fits.goodness_of_fit(ranks ** (-1 / (3.0 - 1))).alpha.round(1))  # quantiles of p(λ) ∝ λ^-3
      3.0
    """
    eigenvalues = as_spectra(eigenvalues)
    return _over_layers(_best_fit, eigenvalues, True)


def fix_finger(eigenvalues: Float[Array, "*layers n"]) -> PowerLaw:
    """Fits like `goodness_of_fit`, but tries `xmin` only near the peak of the spectrum (Zhou et al., 2023, Appendix).

    The peak is the lower edge `e` of the fullest of 100 bins of `log10 λ`. The fit tries the eigenvalues
    with `log10(0.95 * 10^e) <= λ <= 1.5 * 10^e`. The lower bound compares a logarithm with an eigenvalue, as the released
    code does; it rarely excludes anything. The bins span all eigenvalues above zero, so the smallest ones
    matter. `spectra` resolves them; so does `tempbalance` for a metric with this fit.

    Args:
      eigenvalues: ascending along the last axis; any floating dtype.

    Raises:
      ValueError: fewer than 2 eigenvalues.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> bulk, tail = jnp.full(50, 1.0), 1.02 ** jnp.arange(50.0)
      >>> bool(tb_optax.fits.fix_finger(jnp.sort(jnp.concatenate([bulk, tail]))).xmin <= 1.5)
      True
    """
    eigenvalues = as_spectra(eigenvalues)

    return _over_layers(_fit_at_peak, eigenvalues)


def is_fit(function: Any) -> bool:
    """Whether a function is one of this module's fits, also inside `functools.partial` and `jax.jit`."""
    return innermost(function) in (median, goodness_of_fit, fix_finger)


def check_fit_of_solver(argument_of: str, functions: Sequence[Any], solver: Any) -> None:
    """Refuses approximate spectra for fits whose `xmin` depends on single eigenvalues: alpha is up to four times off."""
    if not isinstance(solver, Lanczos):
        return
    for fit in (goodness_of_fit, fix_finger):
        if any(any_part(function, lambda part, fit=fit: part is fit) for function in functions):
            raise ValueError(
                f"{argument_of}: solver={solver} is too inexact for tb_optax.fits.{fit.__name__}; give the fit "
                "tb_optax.fits.median, or solver=tb_optax.Exact()."
            )


def fit_spectra(fit: Callable[[Array], PowerLaw], spectra: Sequence[Float[np.ndarray, " n"]]) -> list[PowerLaw]:
    """Fits spectra of any lengths: this module's fits run as one program, other fits as one program for each length.

    Zeros before a spectrum do not change this module's fits, so each spectrum is padded to the length of the longest.

    Args:
      fit: a function from spectra to their power laws.
      spectra: each ascending.

    Returns:
      The power law of each spectrum, as numbers.
    """
    if not spectra:
        return []
    lengths = [len(values) for values in spectra]
    known = {median: _fit_tails, goodness_of_fit: lambda padded, _: goodness_of_fit(padded)}
    known[fix_finger] = lambda padded, _: fix_finger(padded)
    function, options = (fit.func, fit.keywords) if isinstance(fit, functools.partial) and not fit.args else (fit, {})
    if function not in known or set(options) - {"tail_fraction"}:
        alike = {length: [place for place, each in enumerate(lengths) if each == length] for length in lengths}
        laws = {}
        for places in alike.values():
            together = jax.device_get(fit(jnp.asarray(np.stack([spectra[place] for place in places]))))
            laws |= {place: PowerLaw(*(each[row] for each in together)) for row, place in enumerate(places)}
        return [laws[place] for place in range(len(spectra))]
    longest = max(lengths)
    padded = np.stack([np.pad(values, (longest - len(values), 0)) for values in spectra])
    starts = [longest - length + tail_start(length, **options) for length in lengths]
    together = jax.device_get(known[function](jnp.asarray(padded), jnp.asarray(starts)))
    return [PowerLaw(*(each[row] for each in together)) for row in range(len(spectra))]


def tail_start(n: int, tail_fraction: float = 0.5) -> int:
    """The index at which the tail of `n` eigenvalues begins."""
    known = isinstance(tail_fraction, (int, float, np.number, jax.Array)) and not isinstance(tail_fraction, core.Tracer)
    if not known or not 0 < tail_fraction <= 1:
        raise ValueError(
            f"tail_fraction={short_repr(tail_fraction)} must be above 0 and at most 1: the share of the spectrum to fit. "
            "(It cannot be a traced number.)"
        )
    return min(int(n * (1 - tail_fraction) + _ROUNDING), n - 2)


@jax.jit
def _fit_tails(eigenvalues: Float[Array, "layers n"], starts: Int[Array, " layers"]) -> PowerLaw:
    return jax.vmap(_fit_at)(eigenvalues.astype(at_least_float32(eigenvalues.dtype)), starts)


def as_spectra(eigenvalues: Any) -> Float[Array, "*layers n"]:
    """Ascending spectra as floating-point arrays: lists and integers are converted, known values out of order are sorted.

    Raises:
      TypeError: they are not real numbers.
      ValueError: there are fewer than two eigenvalues.
    """
    if isinstance(eigenvalues, Mapping):
        raise TypeError(
            f"eigenvalues is a dict with the keys {short_repr(list(eigenvalues))}; give one of its arrays, because a fit "
            "takes spectra of one length."
        )
    # Traced eigenvalues cannot be checked; spectra of this library are ascending.
    if any(isinstance(each, core.Tracer) for each in jax.tree.leaves(eigenvalues)):
        return _as_floats(eigenvalues)
    with jax.ensure_compile_time_eval():  # Inside a trace, JAX would trace these known eigenvalues too.
        eigenvalues = _as_floats(eigenvalues)
        is_unsorted = bool((eigenvalues[..., 1:] < eigenvalues[..., :-1]).any())
        return jnp.sort(eigenvalues, axis=-1) if is_unsorted else eigenvalues


def _as_floats(eigenvalues: Any) -> Float[Array, "*layers n"]:
    eigenvalues = jnp.asarray(eigenvalues)
    if eigenvalues.ndim < 1 or eigenvalues.shape[-1] < 2:
        raise ValueError(
            f"eigenvalues of shape {eigenvalues.shape}: give at least two along the last axis. (Under "
            "optax.inject_hyperparams, give static_args=('metric', 'assign', 'layers'): it treats functions as schedules.)"
        )
    if jnp.issubdtype(eigenvalues.dtype, jnp.complexfloating):
        raise TypeError(f"eigenvalues of dtype {eigenvalues.dtype}: give real numbers.")
    if not jnp.issubdtype(eigenvalues.dtype, jnp.floating):
        eigenvalues = eigenvalues.astype(jnp.float32)
    return eigenvalues


@functools.partial(jax.jit, static_argnums=0)
def _over_layers(fit: Callable[..., PowerLaw], eigenvalues: Float[Array, "*layers n"], *args: Any) -> PowerLaw:
    flat = eigenvalues.reshape(-1, eigenvalues.shape[-1])
    flat = flat.astype(at_least_float32(flat.dtype))
    one = lambda values: fit(values, *args)
    # Long spectra one after another: under `vmap`, the `cond` in `_search_long` would compute every distance.
    fits = jax.vmap(one)(flat) if flat.shape[-1] <= _LONG else jax.lax.map(one, flat)
    known = ~jnp.isnan(flat).any(axis=-1)
    return jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan).reshape(eigenvalues.shape[:-1]), fits)


def _exponents(logs: Float[Array, " n"]) -> Float[Array, " n"]:
    """The Hill estimator for every `xmin`."""
    n = len(logs)
    return _exponent(jnp.cumsum(logs[::-1])[::-1] / (n - jnp.arange(n)).astype(logs.dtype) - logs)


def _exponent(spread: Float[Array, "*thresholds"]) -> Float[Array, "*thresholds"]:
    """`alpha` from the mean logarithm of `λ / xmin`; NaN where that mean is zero up to rounding."""
    return jnp.where(spread > 100 * jnp.finfo(spread.dtype).eps, 1 + 1 / spread, jnp.nan)


def _gaps(
    logs: Float[Array, " n"],
    alpha: Float[Array, " thresholds"],
    index: Int[Array, " thresholds"],
    j: Int[Array, "*#thresholds k"],
) -> Float[Array, "thresholds k"]:
    """The gap at `j` between a tail from `xmin = λ_i` and its fit, `|1 - (λ_j/λ_i)^(1-alpha) - (j-i)/k|`; 0 below it."""
    fitted = 1 - jnp.exp((1 - alpha)[:, None] * (logs[j] - logs[index][:, None]))
    # Cast first: an integer divided by an integer is float64 if JAX allows float64.
    rank = (j - index[:, None]).astype(logs.dtype) / (len(logs) - index)[:, None].astype(logs.dtype)
    return jnp.where(rank >= 0, jnp.abs(fitted - rank), 0.0)


def _distance(logs: Float[Array, " n"], alpha: Float[Array, ""], index: Int[Array, ""]) -> Float[Array, ""]:
    """The KS distance of the tail from one `xmin`: the largest gap."""
    return _gaps(logs, alpha[None], index[None], jnp.arange(len(logs))[None]).max()


def _relative_logs(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """The logarithms of `λ / λ_max`, 0 for an eigenvalue of zero.

    A ratio near 1 keeps all its digits in its logarithm. A logarithm of `λ` itself would keep few if `λ` is far from 1.
    """
    return jnp.log(jnp.where(values > 0, values / values[-1], 1.0))


def _fit_at(values: Float[Array, " n"], index: Int[Array, ""]) -> PowerLaw:
    n = len(values)
    logs = _relative_logs(values)
    above = jnp.where(jnp.arange(n) >= index, logs - logs[index], 0.0)
    alpha = _exponent(above.sum() / (n - index).astype(logs.dtype))
    alpha = jnp.where((values[index] > 0) & jnp.isfinite(values[-1]), alpha, jnp.nan)
    return PowerLaw(alpha, values[index], _distance(logs, alpha, index))


def _fit_at_peak(values: Float[Array, " n"]) -> PowerLaw:
    positive = values > 0
    logs = jnp.log10(jnp.where(positive, values, values[-1]))
    low, high = logs.min(), logs.max()
    bins = jnp.floor((logs - low) / (high - low) * _HISTOGRAM_BINS)
    bins = jnp.clip(bins, 0, _HISTOGRAM_BINS - 1).astype(jnp.int32)
    counts = jnp.zeros(_HISTOGRAM_BINS, jnp.int32).at[bins].add(positive.astype(jnp.int32))
    peak = 10 ** (low + counts.argmax().astype(logs.dtype) * (high - low) / _HISTOGRAM_BINS)
    return _best_fit(values, (jnp.log10(0.95 * peak) <= values) & (values <= 1.5 * peak))


def _best_fit(values: Float[Array, " n"], candidates: Bool[Array, "#n"]) -> PowerLaw:
    """The fit with the smallest KS distance among the candidates for `xmin`; the largest eigenvalue has no tail to fit.

    The gaps at `_PLACES` points of a tail bound its KS distance from below. The loop computes the distance of the candidate
    with the smallest bound, until no bound is below the smallest distance found. The result is exact, and the loop mostly
    tries a few dozen candidates.
    """
    n = len(values)
    logs = _relative_logs(values)
    alpha = _exponents(logs)
    ranks = jnp.arange(n)
    candidates = candidates & (values > 0) & jnp.isfinite(values[-1]) & jnp.isfinite(alpha) & (ranks < n - 1)
    fractions = jnp.linspace(0, 1, _PLACES, dtype=logs.dtype)
    places = ranks[:, None] + jnp.round(fractions[None] * (n - 1 - ranks)[:, None].astype(logs.dtype)).astype(ranks.dtype)
    bounds = jnp.where(candidates, _gaps(logs, alpha, ranks, places).max(axis=-1), jnp.inf)

    if n > _LONG:
        distance, best = _search_long(logs, alpha, bounds)
    else:

        def try_most_promising(search: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            bounds, least, best = search
            index = bounds.argmin()
            distance = _distance(logs, alpha[index], index)
            better = distance < least
            return bounds.at[index].set(jnp.inf), jnp.where(better, distance, least), jnp.where(better, index, best)

        start = (bounds, jnp.asarray(jnp.inf, logs.dtype), bounds.argmin())
        _, distance, best = jax.lax.while_loop(lambda search: search[0].min() < search[1], try_most_promising, start)
    fit = PowerLaw(alpha[best], values[best], distance)
    return jax.tree.map(lambda leaf: jnp.where(candidates.any(), leaf, jnp.nan), fit)


def _search_long(
    logs: Float[Array, " n"], alpha: Float[Array, " n"], bounds: Float[Array, " n"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The smallest KS distance and its index, in a spectrum so long that a minimum over all bounds is expensive.

    The candidates are tried in the order of their bounds. Each gets a closer bound first, from gaps at more points: on an
    exact power law, where all distances are nearly equal, the first bounds leave a tenth of the candidates.
    """
    order = jnp.argsort(bounds)
    n = len(logs)
    fractions = jnp.linspace(0, 1, _CLOSER_PLACES, dtype=logs.dtype)

    def try_next(search: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, least, best = search
        index = order[number]
        places = index + jnp.round(fractions * (n - 1 - index).astype(logs.dtype)).astype(index.dtype)
        bound = _gaps(logs, alpha[index][None], index[None], places[None]).max()
        infinity = jnp.asarray(jnp.inf, logs.dtype)
        distance = jax.lax.cond(bound < least, lambda: _distance(logs, alpha[index], index), lambda: infinity)
        better = distance < least
        return number + 1, jnp.where(better, distance, least), jnp.where(better, index, best)

    unfinished = lambda search: (search[0] < n) & (bounds[order[jnp.minimum(search[0], n - 1)]] < search[1])
    start = (jnp.zeros((), order.dtype), jnp.asarray(jnp.inf, logs.dtype), order[0])
    _, distance, best = jax.lax.while_loop(unfinished, try_next, start)
    return distance, best
