"""What a refresh outside the step saves: `python -m benchmarks.outside` writes a table of `docs/performance.md`.

The step is AdamW's update of all parameters: alone, with `tempbalance(None)` behind it, or with `tempbalance(N)`. The
refresh is the program that `refresh` compiles. ResNet-18 is run on this device. The decoder with 0.85 billion parameters is
compiled for eight simulated CPU devices that share the weights (FSDP), and not run.
"""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import NamedSharding, PartitionSpec

import tb_optax
from benchmarks.networks import create
from benchmarks.scale import DEVICES, NETWORKS, sharded_shapes
from benchmarks.tables import show, table
from benchmarks.timing import turns

_MIB = 2**20
_NEVER = 10**6
_DECODER = "Llama-like, 0.85B"
_REFRESH = "`refresh`, a program of its own"


class Program(NamedTuple):
    """A function of parameters, the optimizer's state and gradients. The results of a step replace the first two."""

    tx: optax.GradientTransformation
    function: Callable[..., Any]
    donated: tuple[int, ...] = (0, 1)

    def compile(self, *arguments: Any, rounds: int) -> tuple[Any, list[str]]:
        """The compiled program; the median time to trace, lower and compile it, and its memory beside its arguments."""
        compiled, seconds = None, []
        for _ in range(rounds):
            jax.clear_caches()
            start = time.perf_counter()
            compiled = jax.jit(self.function, donate_argnums=self.donated).lower(*arguments).compile()
            seconds.append(time.perf_counter() - start)
        memory = compiled.memory_analysis().temp_size_in_bytes / _MIB  # pyright: ignore[reportOptionalMemberAccess]
        return compiled, [f"{statistics.median(seconds):.2f} s", f"{memory:,.1f} MiB"]


def programs(layers: tb_optax.Layers) -> dict[str, Program]:
    """The program of each row."""
    alone = optax.adamw(1e-3)
    outside, inside = (tb_optax.tempbalance(interval, layers=layers) for interval in (None, _NEVER))

    def step(tx: optax.GradientTransformation, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    chains = {
        "step: AdamW alone": alone,
        "step: `update_interval=None`": optax.chain(alone, outside),
        "step: `update_interval=N`, no refresh due": optax.chain(alone, inside),
    }
    refresh = Program(optax.chain(alone, outside), lambda params, state, grads: outside.refresh(state, params), donated=())
    return {name: Program(tx, functools.partial(step, tx)) for name, tx in chains.items()} | {_REFRESH: refresh}


def resnet18(rounds: int, runs: int) -> list[Sequence[str]]:
    """The programs for ResNet-18, run in turn."""
    network = create("resnet18")
    layers = tb_optax.find_layers(network.params, exclude=network.exclude)
    params = jax.device_put(network.params)
    grads = jax.tree.map(lambda leaf: 1e-3 * leaf, params)
    costs, run = {}, {}
    for name, program in programs(layers).items():
        state = program.tx.init(params)
        compiled, costs[name] = program.compile(params, state, grads, rounds=rounds)
        run[name] = _timed(compiled, [jax.tree.map(jnp.copy, params), state], grads, is_step=name != _REFRESH)
        run[name]()  # The first update of an interval refreshes; none after it does.
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for name in turns(run, runs):
        seconds[name].append(run[name]())
    return [("ResNet-18", name, *cost, f"{1e3 * statistics.median(seconds[name]):.1f} ms") for name, cost in costs.items()]


def _timed(compiled: Any, carry: list[Any], grads: Any, *, is_step: bool) -> Callable[[], float]:
    """A function that runs a program and returns the seconds that this takes."""

    def run() -> float:
        jax.block_until_ready(carry)
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*carry, grads))
        seconds = time.perf_counter() - start
        if is_step:
            carry[:] = result
        return seconds

    return run


def decoder(rounds: int) -> list[Sequence[str]]:
    """The programs for a sharded decoder, compiled only."""
    mesh, weights, layers = sharded_shapes(NETWORKS[_DECODER], "FSDP")
    sharding_of = {weight.shape: weight.sharding for weight in weights.values()}

    def sharded(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = sharding_of.get(leaf.shape, NamedSharding(mesh, PartitionSpec()))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    rows = []
    for name, program in programs(layers).items():
        state = jax.tree.map(sharded, jax.eval_shape(program.tx.init, weights))
        _, cost = program.compile(weights, state, weights, rounds=rounds)
        rows.append((f"{_DECODER}, {DEVICES} devices", name, *cost, ""))
    return rows


def main(out: Path | None = None, rounds: int = 3, runs: int = 60) -> None:
    """Prints a table of what a refresh outside the step saves.

    Args:
      out: a file to write the table to as well.
      rounds: how often each program is compiled; the table has the median.
      runs: how often each step is run; the table has the median.
    """
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows = resnet18(rounds, runs) + (decoder(rounds) if jax.device_count() >= DEVICES else [])
    show(table(("network", "program", "compile", "memory beside arguments", "time"), rows, right=range(2, 5)), out)


if __name__ == "__main__":
    tyro.cli(main)
