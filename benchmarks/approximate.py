"""How far the approximate spectrum is off, and what it saves: `python -m benchmarks.approximate --help`.

On the weights of a network that predicts the next character of Python's own documentation, trained here with a fixed seed,
and on weights made to have power laws for spectra. Each weight's exponent, of the median fit, is compared with the exact
one under several seeds of the probes.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Int

import tb_optax
from benchmarks import provenance
from tb_optax._spectra.eigenvalues import gram, symmetric_eigenvalues
from tb_optax._spectra.lanczos import lanczos_spectrum

_CONTEXT, _EMBEDDING, _BATCH = 16, 32, 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compares approximate spectra with exact ones, by size of the weight, steps and probes."""

    sizes: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Widths of the network's layers, two of each, and so the sizes of its square weights."""
    power_law_sizes: tuple[int, ...] = (512, 1024)
    """Sizes of the weights that are made with a power law of exponent 2 and of 4."""
    steps: tuple[int, ...] = (16, 32, 64)
    """Steps of Lanczos."""
    probes: tuple[int, ...] = (1, 2, 4, 8)
    """Random vectors."""
    seeds: int = 8
    """How often each setting is tried."""
    training_steps: int = 300
    """Updates of the network by AdamW, in batches of 64."""
    minutes: float | None = None
    """For everything: no weight is begun later."""
    out: Path | None = None
    """Where to write approximate.json; by default benchmarks/results/KIND OF DEVICE."""


def main() -> None:
    settings = tyro.cli(Annotated[Settings, tyro.conf.arg(name="")])
    directory = settings.out or provenance.results_directory()
    cases: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * (settings.minutes or float("inf"))
    for name, weight in _weights(settings):
        if time.monotonic() > end:
            print(f"no time is left for {name}")
            break
        cases.append(_compare(name, weight, settings))
        provenance.write(directory, "approximate", dataclasses.asdict(settings) | {"out": None}, cases)
        _show(cases[-1])


def _weights(settings: Settings) -> Iterator[tuple[str, Float[Array, "n m"]]]:
    for n in settings.power_law_sizes:
        random = np.random.default_rng(0)
        left, right = (np.linalg.qr(random.standard_normal((n, n)))[0] for _ in range(2))
        for alpha in (2.0, 4.0):
            roots = np.arange(1.0, n + 1) ** (-0.5 / (alpha - 1))
            yield f"power law, alpha {alpha:g}", jnp.asarray((left * roots) @ right, jnp.float32)
    for name, layer in _train(settings).items():
        if name.startswith("hidden"):
            kernel = layer["kernel"]
            yield f"trained, {name}", kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T


def _compare(name: str, weight: Float[Array, "n m"], settings: Settings) -> dict[str, Any]:
    stack = weight[None]
    exact_seconds, exact = _timed(lambda: symmetric_eigenvalues(gram(stack)))
    alpha, norm = float(tb_optax.metrics.pl_alpha_hill(exact)[0]), float(exact[0, -1])
    case: dict[str, Any] = {"weight": name, "shape": weight.shape, "alpha": alpha, "seconds": exact_seconds}
    # How far the tail reaches: a few for a random weight.
    case["largest_over_median"] = norm / float(exact[0, len(weight) // 2])
    case["approximate"] = []
    for steps in settings.steps:
        for probes in settings.probes:
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
    """The best of up to five calls, no more than ten seconds of them, after one that compiles."""
    result = jax.block_until_ready(function())
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < 10:
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def _show(case: dict[str, Any]) -> None:
    n, m = case["shape"]
    print(f"{case['weight']}, {n} x {m}: alpha {case['alpha']:.3f}, exact in {1e3 * case['seconds']:.0f} ms")
    print(f"  {'steps':>5} {'probes':>6}  {'error of alpha (rms)':>20}  {'bias':>6}  {'of norm':>7}  {'ms':>7}  faster by")
    for setting in case["approximate"]:
        print(
            f"  {setting['steps']:5} {setting['probes']:6}  {setting['root_mean_square_error']:20.2%}"
            f"  {setting['mean_error']:6.2%}  {setting['largest_error_of_norm']:7.0e}"
            f"  {1e3 * setting['seconds']:7.1f}  {case['seconds'] / setting['seconds']:.1f}",
            flush=True,
        )


def _train(settings: Settings) -> dict[str, Any]:
    """Parameters of a pyramid of layers, each as wide as the one before or the next wider."""
    codes, characters = _text()
    widths = [_CONTEXT * _EMBEDDING, *np.repeat(settings.sizes, 2).tolist()]
    widths = widths[1:] if widths[0] == widths[1] else widths
    params = _initialize(jax.random.key(0), widths, characters)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.1))

    def update(state: tuple[Any, Any], windows: Int[Array, "batch length"]) -> tuple[tuple[Any, Any], Array]:
        def loss(params: Any) -> Array:
            logits = _predict(params, windows[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()

        params, opt_state = state
        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    step = jax.jit(update, donate_argnums=0)
    state, random = (params, tx.init(params)), np.random.default_rng(0)
    for index in range(settings.training_steps):
        starts = random.integers(0, len(codes) - _CONTEXT, _BATCH)
        state, loss = step(state, codes[starts[:, None] + np.arange(_CONTEXT + 1)])
        if index % 50 == 0 or index == settings.training_steps - 1:
            print(f"training, update {index}: loss {float(loss):.3f}", flush=True)
    return state[0]


def _text() -> tuple[Int[np.ndarray, " length"], int]:
    """The help texts that come with every Python, as numbers of characters."""
    from pydoc_data.topics import topics

    text = "".join(topics[topic] for topic in sorted(topics))
    characters, codes = np.unique(np.array(list(text)), return_inverse=True)
    return codes.astype(np.int32), len(characters)


def _initialize(key: Array, widths: list[int], characters: int) -> dict[str, Any]:
    # A tenth of the usual size, so that what is learned soon outweighs what is random, as it does after long training.
    def dense(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
        kernel = 0.1 / np.sqrt(inputs) * jax.random.normal(key, (inputs, outputs))
        return {"kernel": kernel, "bias": jnp.zeros(outputs)}

    keys = jax.random.split(key, len(widths) + 1)
    params: dict[str, Any] = {"embedding": jax.random.normal(keys[0], (characters, _EMBEDDING))}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        params[f"hidden{index}"] = dense(keys[index + 1], inputs, outputs)
    return params | {"output": dense(keys[-1], widths[-1], characters)}


def _predict(params: dict[str, Any], inputs: Int[Array, "batch context"]) -> Float[Array, "batch characters"]:
    hidden = params["embedding"][inputs].reshape(len(inputs), -1)
    for index in range(len(params) - 2):
        layer = params[f"hidden{index}"]
        hidden = jax.nn.relu(jax.nn.standardize(hidden) @ layer["kernel"] + layer["bias"])
    return jax.nn.standardize(hidden) @ params["output"]["kernel"] + params["output"]["bias"]


if __name__ == "__main__":
    main()
