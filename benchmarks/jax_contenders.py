"""The contenders on JAX: this library, a plain implementation, and the routines that no implementation can do without."""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jaxtyping import Array, Float

import tb_optax
from benchmarks.contenders import Case, Prepared
from benchmarks.networks import create, matrices
from benchmarks.solvers import EXACT, SOLVERS
from examples.paper.provenance import cores


def tempbalance(case: Case) -> Prepared:
    """A refresh by the public interface: the new state, from the parameters.

    `case["devices"]`, where given, is how many devices hold the parameters, replicated, as in data-parallel training;
    `case["solver"]` is how spectra are computed, one of `benchmarks.solvers.SOLVERS`.
    """
    network = create(case["network"])
    metric = functools.partial(tb_optax.metrics.pl_alpha_hill, fit=getattr(tb_optax.fits, case["fit"]))
    layers = functools.partial(tb_optax.find_layers, exclude=network.exclude)
    tx = tb_optax.tempbalance(1, metric=metric, layers=layers, **SOLVERS[case.get("solver", EXACT)])
    refresh = jax.jit(lambda state, params: tx.update(params, state, params)[1])
    sharding = None
    if "devices" in case:
        mesh = jax.make_mesh((case["devices"],), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        jax.set_mesh(mesh)
        sharding = jax.NamedSharding(mesh, jax.P())
    params = jax.device_put(network.params, sharding)
    state = jax.device_put(tx.init(params), sharding)

    def alphas(state: tb_optax.TempBalanceState) -> dict[str, float]:
        named: dict[str, float] = {}
        for name, metric in state.metric.items():
            labels = [f"{name}[{index}]" for index in range(len(metric))] if metric.ndim else [name]
            named |= zip(labels, np.ravel(metric).tolist(), strict=True)
        return named

    return Prepared(lambda: jax.block_until_ready(refresh(state, params)), alphas)


def plain(case: Case) -> Prepared:
    """`jnp.linalg.eigvalsh` and the median fit, a jitted function of each weight.

    One program for all layers can hang on CPU.
    """
    if case["fit"] != "median":
        raise ValueError(f"fit={case['fit']!r}: the plain contender has the median fit only; give fit='median'.")
    weights = jax.device_put(create(case["network"]).weights())

    @jax.jit
    def alpha(weight: Array) -> Float[Array, ""]:
        values = jnp.sort(jnp.linalg.eigvalsh(_gram(weight)).ravel())
        tail = values[len(values) // 2 :]
        return 1 + len(tail) / jnp.sum(jnp.log(tail / tail[0]))

    def run() -> dict[str, float]:
        return {name: float(alpha(weight)) for name, weight in weights.items()}  # one at a time, or they hang on CPU too

    return Prepared(run, dict)


def gram(case: Case) -> Prepared:
    """The Gram products alone, in one program."""
    weights = jax.device_put(create(case["network"]).weights())
    products = jax.jit(lambda weights: {name: _gram(weight) for name, weight in weights.items()})
    return Prepared(lambda: jax.block_until_ready(products(weights)))


def eigenvalues(case: Case) -> Prepared:
    """The eigenvalue routine alone, the Gram matrices given: on CPU LAPACK's `syevd` for values only, on all cores."""
    weights = create(case["network"]).weights()
    stacks: dict[int, list[Array]] = {}
    for weight in weights.values():
        products = jax.jit(_gram)(weight)
        stacks.setdefault(products.shape[-1], []).append(products)
    joined = [jnp.concatenate(stacks[size]) for size in sorted(stacks, reverse=True)]
    if jax.default_backend() == "cpu":
        return Prepared(_lapack([np.asarray(stack) for stack in joined]))
    solve = jax.jit(jnp.linalg.eigvalsh)
    return Prepared(lambda: jax.block_until_ready([solve(stack) for stack in joined]))


def _lapack(stacks: list[np.ndarray]) -> Callable[[], Any]:
    """One matrix at a time in as many threads as cores, the largest first; NumPy releases the interpreter."""
    pool = concurrent.futures.ThreadPoolExecutor(cores())
    singles = [matrix for stack in stacks for matrix in stack]
    threadpoolctl.threadpool_limits(1, user_api="blas")
    return lambda: list(pool.map(np.linalg.eigvalsh, singles))


def _gram(weight: Array) -> Float[Array, "matrices n n"]:
    stack = jnp.asarray(matrices(weight), jnp.float32)  # pyright: ignore[reportArgumentType]
    if stack.shape[1] > stack.shape[2]:
        stack = stack.swapaxes(1, 2)
    return jnp.einsum("sij,skj->sik", stack, stack, precision=jax.lax.Precision.HIGHEST)
