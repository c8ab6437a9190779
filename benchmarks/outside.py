"""What a refresh outside the step saves: `python -m benchmarks.outside` writes a table of `docs/performance.md`.

The step is AdamW's update of all parameters: alone, with `tempbalance(None)` behind it, or with `tempbalance(N)`. The
refresh is the program that `refresh` compiles. Everything is compiled and nothing run: ResNet-18 for this device, and a
decoder with 0.85 billion parameters for eight simulated CPU devices that share the weights (FSDP). What a step takes is
measured by `benchmarks.steps`, what a refresh takes by `benchmarks.refresh`.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
import tyro
from jax.sharding import NamedSharding, PartitionSpec

import tb_optax
from benchmarks.networks import create
from benchmarks.scale import DEVICES, NETWORKS, sharded_shapes
from benchmarks.tables import show, table

_DECODER = "Llama-like, 0.85B"


def rows(
    network: str, params: Any, layers: tb_optax.Layers, shapes_of: Callable[[Any], Any], rounds: int
) -> Iterator[Sequence[str]]:
    """A row for each program of a network.

    Args:
      network: its name in the table.
      params: shapes of its parameters.
      layers: what is balanced.
      shapes_of: from shapes of a state to shapes on the devices that hold it.
      rounds: how often each program is compiled.
    """
    alone, balance = optax.adamw(1e-3), tb_optax.tempbalance(None, layers=layers)
    outside, inside = (optax.chain(alone, tx) for tx in (balance, tb_optax.tempbalance(100, layers=layers)))

    def step(tx: optax.GradientTransformation) -> Callable[..., Any]:
        def run(state: Any, params: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return state, optax.apply_updates(params, updates)

        return run

    for name, tx, function in (
        ("step: AdamW alone", alone, step(alone)),
        ("step: `update_interval=None`", outside, step(outside)),
        ("step: `update_interval=N`", inside, step(inside)),
        ("`refresh`, a program of its own", outside, balance.refresh),
    ):
        arguments = [shapes_of(jax.eval_shape(tx.init, params)), params]
        is_step = function is not balance.refresh
        jitted = jax.jit(function, donate_argnums=(0, 1) if is_step else ())  # results replace the state and the parameters
        compiled, seconds = None, []
        for _ in range(rounds):
            jax.clear_caches()
            start = time.perf_counter()
            compiled = jitted.lower(*arguments, *([params] if is_step else [])).compile()
            seconds.append(time.perf_counter() - start)
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**20  # pyright: ignore[reportOptionalMemberAccess]
        yield network, name, f"{statistics.median(seconds):.2f} s", f"{memory:,.1f} MiB"


def main(out: Path | None = None, rounds: int = 3) -> None:
    """Prints a table of what a refresh outside the step saves.

    Args:
      out: a file to write the table to as well.
      rounds: how often each program is compiled; the table has the median.
    """
    jax.config.update("jax_num_cpu_devices", DEVICES)
    resnet = create("resnet18")
    shapes = jax.eval_shape(lambda: resnet.params)
    cells = list(
        rows("ResNet-18", shapes, tb_optax.find_layers(shapes, exclude=resnet.exclude), lambda state: state, rounds)
    )
    if jax.device_count() >= DEVICES:
        mesh, weights, layers = sharded_shapes(NETWORKS[_DECODER], "FSDP")
        sharding_of = {weight.shape: weight.sharding for weight in weights.values()}

        def sharded(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = sharding_of.get(leaf.shape, NamedSharding(mesh, PartitionSpec()))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        place = lambda state: jax.tree.map(sharded, state)
        cells += rows(f"{_DECODER}, {DEVICES} devices", weights, layers, place, rounds)
    show(table(("network", "program", "compile", "memory beside arguments"), cells, right=(2, 3)), out)


if __name__ == "__main__":
    tyro.cli(main)
