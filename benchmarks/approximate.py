"""The error and the speed of approximate spectra: `python -m benchmarks.approximate --help`.

The weights are those of a network that predicts the next character of Python's own documentation, trained here with a fixed
seed, and synthetic ones whose spectra are power laws. Each weight's exponent by the median fit is compared with the exact
one under several seeds of the probes.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import tb_optax
from benchmarks import part
from benchmarks.part import Deadline
from benchmarks.tables import table
from tb_optax._spectra.eigenvalues import gram, symmetric_eigenvalues
from tb_optax._spectra.lanczos import lanczos_spectrum

_CONTEXT, _EMBEDDING, _BATCH = 16, 32, 64


@dataclasses.dataclass(frozen=True)
class Settings(part.Settings):
    """Compares approximate spectra with exact ones, by size of the weight, steps and probes."""

    sizes: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Widths of the network's layers, two layers of each."""
    power_law_sizes: tuple[int, ...] = (512, 1024)
    """Sizes of synthetic weights, whose spectra are power laws of exponent 2 and 4."""
    steps: tuple[int, ...] = (16, 32, 64)
    """Numbers of steps of Lanczos."""
    probes: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of random vectors."""
    seeds: int = 8
    """Seeds with which each setting is tried."""
    training_steps: int = 300
    """Updates of the network by AdamW, in batches of 64."""


def run(settings: Settings) -> list[dict[str, Any]]:
    deadline = Deadline(settings.minutes)
    cases: list[dict[str, Any]] = []
    for name, weight in _weights(settings):
        if cases and deadline.left() < 0:
            print(f"{name}: left out, the time is up")
            break
        print(name, flush=True)
        cases.append(_compare(name, weight, settings))
        settings.write("approximate", cases)
    return cases


def _weights(settings: Settings) -> Iterator[tuple[str, Float[Array, "n m"]]]:
    for n in settings.power_law_sizes:
        random = np.random.default_rng(0)
        left, right = (np.linalg.qr(random.standard_normal((n, n)))[0] for _ in range(2))
        for alpha in (2.0, 4.0):
            roots = np.arange(1.0, n + 1) ** (-0.5 / (alpha - 1))
            yield f"power law, alpha {alpha:g}", jnp.asarray((left * roots) @ right, jnp.float32)
    for index, kernel in enumerate(_train(settings)):
        yield f"trained, hidden{index}", kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T


def _compare(name: str, weight: Float[Array, "n m"], settings: Settings) -> dict[str, Any]:
    stack = weight[None]
    exact_seconds, exact = _timed(lambda: symmetric_eigenvalues(gram(stack)))
    alpha, norm = float(tb_optax.metrics.pl_alpha_hill(exact)[0]), float(exact[0, -1])
    case: dict[str, Any] = {"weight": name, "shape": weight.shape, "alpha": alpha, "seconds": exact_seconds}
    # The length of the tail: a random weight has a few times the median.
    case["largest_over_median"] = norm / float(exact[0, len(weight) // 2])
    case["approximate"] = []
    for steps, probes in itertools.product(settings.steps, settings.probes):
        solve = lambda seed: lanczos_spectrum(stack, steps=steps, probes=probes, seed=seed)  # noqa: B023
        seconds, _ = _timed(lambda: solve(0))  # noqa: B023
        spectra = jnp.concatenate([solve(seed) for seed in range(settings.seeds)])
        errors = [float(value) / alpha - 1 for value in tb_optax.metrics.pl_alpha_hill(spectra)]
        case["approximate"].append(
            {
                "steps": steps,
                "probes": probes,
                "seconds": seconds,
                "errors": errors,
                "root_mean_square_error": statistics.fmean(error**2 for error in errors) ** 0.5,
                "mean_error": statistics.fmean(errors),
                "largest_error_of_norm": float(jnp.abs(spectra[:, -1] / norm - 1).max()),
            }
        )
    return case


def _timed(function: Callable[[], Array]) -> tuple[float, Array]:
    """The fastest of five calls, or of as many as take ten seconds, after one that compiles."""
    result = jax.block_until_ready(function())
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < 10:
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def _train(settings: Settings) -> list[Array]:
    """The hidden kernels of a pyramid of layers, each as wide as the one before or the next wider."""
    codes, characters = _text()
    widths = [_CONTEXT * _EMBEDDING, *np.repeat(settings.sizes, 2).tolist()]
    widths = [*(widths[1:] if widths[0] == widths[1] else widths), characters]
    keys = jax.random.split(jax.random.key(0), len(widths))
    # A tenth of the usual size: a short training then outweighs the initialization, as a long one does.
    kernels = [
        0.1 / np.sqrt(inputs) * jax.random.normal(key, (inputs, outputs))
        for key, (inputs, outputs) in zip(keys, itertools.pairwise(widths), strict=False)
    ]
    params = {"embedding": jax.random.normal(keys[-1], (characters, _EMBEDDING)), "kernels": kernels}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.1))

    def loss_of(params: Any, windows: Int[Array, "batch length"]) -> Float[Array, ""]:
        hidden = params["embedding"][windows[:, :-1]].reshape(len(windows), -1)
        for kernel in params["kernels"][:-1]:
            hidden = jax.nn.relu(jax.nn.standardize(hidden) @ kernel)
        logits = jax.nn.standardize(hidden) @ params["kernels"][-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()

    def step(params: Any, opt_state: Any, windows: Int[Array, "batch length"]) -> tuple[Any, Any, Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, windows)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    update, opt_state, random = jax.jit(step, donate_argnums=(0, 1)), tx.init(params), np.random.default_rng(0)
    for index in range(settings.training_steps):
        starts = random.integers(0, len(codes) - _CONTEXT, _BATCH)
        params, opt_state, loss = update(params, opt_state, codes[starts[:, None] + np.arange(_CONTEXT + 1)])
        if index % 50 == 0 or index == settings.training_steps - 1:
            print(f"training, update {index}: loss {float(loss):.3f}", flush=True)
    return params["kernels"][:-1]


def _text() -> tuple[Int[np.ndarray, " length"], int]:
    """The help texts that come with every Python, as numbers of characters."""
    from pydoc_data.topics import topics

    text = "".join(topics[topic] for topic in sorted(topics))
    characters, codes = np.unique(np.array(list(text)), return_inverse=True)
    return codes.astype(np.int32), len(characters)


def section(cases: Sequence[dict[str, Any]]) -> list[str]:
    """The paragraphs of the report."""
    settings = list(dict.fromkeys((found["steps"], found["probes"]) for case in cases for found in case["approximate"]))
    rows = []
    for case in cases:
        cells = dict.fromkeys(settings, "")
        for found in case["approximate"]:
            faster = case["seconds"] / found["seconds"]
            cells[found["steps"], found["probes"]] = f"{found['root_mean_square_error']:.1%} (x{faster:.1f})"
        shape = " x ".join(map(str, case["shape"]))
        rows.append((case["weight"], shape, f"{case['alpha']:.2f}", f"{1e3 * case['seconds']:.0f}", *cells.values()))
    columns = ("weight", "shape", "alpha", "exact, ms", *(f"{steps} x {probes}" for steps, probes in settings))
    return [
        "## Approximate spectra",
        "Root mean square error of alpha by steps x probes, and in brackets how many times as fast as the exact spectrum.",
        table(columns, rows),
    ]


if __name__ == "__main__":
    part.main(Settings, run, section)
