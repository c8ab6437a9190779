"""The compiled functions of a setting, for one seed or for several that train together."""

import concurrent.futures
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from examples.runs.domain import Training
from examples.runs.observations import Observations, measure_alphas


class Program(NamedTuple):
    """What trains a setting. Where several seeds train together, every array has a first axis of their number."""

    start: Callable[[Sequence[int]], Any]
    train: Callable[[Any], tuple[Any, Any, Observations]]
    """An interval; the state before it is gone."""
    evaluate: Callable[[Any], Any]
    """Metrics on what is held out."""
    measure: Callable[[Any], dict[str, Array]]
    """The alpha of each of the training's weights, balanced or not; NaN where there is none."""
    keep: Callable[[Any, Any], Any]
    """The state with what the training's selection keeps; the state before it is gone."""
    test: Callable[[Any], Any] | None
    """Metrics of the best state on the test data, where a selection has them."""
    bytes_needed: int
    """On each device, while it trains."""


def compile_program(training: Training, alpha: Callable[..., Array], mesh: Mesh, together: int = 1) -> Program:
    """Compiles a setting for a mesh.

    Each batch is split over the mesh. Its batch norms are those of the whole batch: the split changes nothing but the
    order of sums. Seeds that train together do so under `vmap`.

    Args:
      training: the setting.
      alpha: how a layer's alpha is measured, from its eigenvalues.
      mesh: the devices.
      together: how many seeds train together.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def start(seeds: Sequence[int]) -> Any:
        assert len(seeds) == together
        with jax.set_mesh(mesh):
            states = [training.initial(seed) for seed in seeds]
            return jax.device_put(states[0] if together == 1 else stack(states), replicated)

    over_seeds: Any = (lambda function, axes: function) if together == 1 else jax.vmap
    compiled = partial(jax.jit, out_shardings=PartitionSpec())
    many = () if together == 1 else (together,)
    abstract = lambda leaf: jax.ShapeDtypeStruct((*many, *leaf.shape), leaf.dtype, sharding=replicated)
    selection = training.selection
    # In force while tracing, the mesh is also what TempBalance divides its eigenproblems over.
    with jax.set_mesh(mesh):
        state = jax.tree.map(abstract, jax.eval_shape(partial(training.initial, 0)))
        evaluate = compiled(over_seeds(training.evaluate, (0, None)))
        lowered = {
            "train": compiled(over_seeds(training.train, (0, None)), donate_argnums=0).lower(state, training.data),
            "evaluate": evaluate.lower(state, training.held_out_data),
            "measure": compiled(over_seeds(partial(measure_alphas, alpha, training.weights), 0)).lower(state.params),
        }
        if selection is not None:
            best = lambda state, data: training.evaluate(selection.best(state), data)
            metrics = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), evaluate.eval_shape(
                state, training.held_out_data))  # fmt: skip
            lowered["keep"] = compiled(over_seeds(selection.keep, 0), donate_argnums=0).lower(state, metrics)
            lowered["test"] = compiled(over_seeds(best, (0, None))).lower(state, selection.test_data)
    with concurrent.futures.ThreadPoolExecutor() as at_once:
        ready = dict(zip(lowered, at_once.map(lambda each: each.compile(), lowered.values()), strict=True))
    return Program(
        start,
        lambda state: ready["train"](state, training.data),
        lambda state: ready["evaluate"](state, training.held_out_data),
        lambda state: ready["measure"](state.params),
        (lambda state, _: state) if selection is None else ready["keep"],
        None if selection is None else lambda state: ready["test"](state, selection.test_data),
        _bytes_needed(ready["train"]),
    )


def stack(states: Sequence[Any]) -> Any:
    """The states of seeds as that of all together."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(tree: Any, together: int) -> list[Any]:
    """What belongs to each seed."""
    if together == 1:
        return [tree]
    return [jax.tree.map(lambda leaf: leaf[index], tree) for index in range(together)]  # noqa: B023


def _bytes_needed(compiled: Any) -> int:
    """Zero where the compiler does not say."""
    found = compiled.memory_analysis()
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    return sum(getattr(found, part, 0) for part in parts) - getattr(found, "alias_size_in_bytes", 0)
