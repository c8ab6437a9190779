"""The compiled functions of a setting, for one seed or for several that train together."""

import concurrent.futures
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from examples.paper.balance import FitTail, create_metric
from examples.paper.domain import Training
from examples.paper.observations import Observations, measure_alphas, observed_steps
from examples.paper.parallel import is_first_process
from examples.paper.weight_spectra import Spectrum, fitted_spectra


class Program(NamedTuple):
    """The compiled functions of a setting. If several seeds train together, the first axis of every array is the seed's."""

    start: Callable[[Sequence[int]], Any]
    train: Callable[[Any], tuple[Any, Any, Observations]]
    """Trains an interval. The state before it is donated."""
    evaluate: Callable[[Any], Any]
    """Metrics on the held-out data."""
    measure: Callable[[Any], dict[str, Array]]
    """The alpha of every weight, balanced or not; NaN where there is none."""
    keep: Callable[[Any, Any], Any]
    """The state with the best parameters kept. The state before it is donated."""
    test: Callable[[Any], Any] | None
    """Metrics of the best parameters on the test data; None without a selection."""
    spectra: Callable[[Any], dict[str, Spectrum]]
    """The spectrum of every weight in the parameters of one seed. Only the first process has it."""
    bytes_needed: Callable[[], int]
    """The memory that training needs on each device. Waits until training is compiled."""


def compile_program(training: Training, fit: FitTail, mesh: Mesh, together: int = 1) -> Program:
    """Compiles a setting for a mesh.

    Each batch is split over the mesh. Batch norms see the whole batch, so the split changes the order of sums only.
    Several seeds train under `vmap`.

    Args:
      training: the setting.
      fit: of the tails of spectra.
      mesh: the devices.
      together: how many seeds train together.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def start(seeds: Sequence[int]) -> Any:
        assert len(seeds) == together
        with jax.set_mesh(mesh):
            states = [training.init(seed) for seed in seeds]
            return jax.device_put(states[0] if together == 1 else stack(states), replicated)

    one = jax.eval_shape(partial(training.init, 0))
    many = () if together == 1 else (together,)
    abstract = lambda leaf: jax.ShapeDtypeStruct((*many, *leaf.shape), leaf.dtype, sharding=replicated)
    state, selection = jax.tree.map(abstract, one), training.selection

    def jitted(function: Callable[..., Any], axes: Any, **options: Any) -> Any:
        over_seeds = function if together == 1 else jax.vmap(function, axes)
        return jax.jit(over_seeds, out_shardings=PartitionSpec(), **options)

    evaluate = jitted(training.evaluate, (0, None))
    alphas = partial(measure_alphas, create_metric("pl_alpha_hill", fit), training.weights)
    lower = {
        "train": lambda: jitted(partial(train_interval, training), (0, None), donate_argnums=0).lower(state, training.data),
        "evaluate": lambda: evaluate.lower(state, training.held_out_data),
        "measure": lambda: jitted(alphas, 0).lower(state.params),
    }
    if selection is not None:
        best = lambda state, data: training.evaluate(selection.best(state), data)
        metrics = lambda: jax.tree.map(_shape, evaluate.eval_shape(state, training.held_out_data))
        lower["keep"] = lambda: jitted(selection.keep, 0, donate_argnums=0).lower(state, metrics())
        lower["test"] = lambda: jitted(best, (0, None)).lower(state, selection.test_data)

    def compiled(name: str) -> Any:
        # In force while tracing, the mesh is also what TempBalance divides its eigenproblems over.
        with jax.set_mesh(mesh):
            return lower[name]().compile()

    # XLA uses all cores for one compilation, so they run one after the other. Training begins once `train` is compiled.
    in_turn = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    ready = {name: in_turn.submit(compiled, name) for name in lower}
    if is_first_process():  # The end of a run is its alone.
        spectra = jax.jit(partial(fitted_spectra, fit, training.weights))
        ready["spectra"] = in_turn.submit(lambda: spectra.lower(one.params).compile())
    in_turn.shutdown(wait=False)
    call: Callable[..., Any] = lambda name, *arguments: ready[name].result()(*arguments)
    return Program(
        start,
        lambda state: call("train", state, training.data),
        lambda state: call("evaluate", state, training.held_out_data),
        lambda state: call("measure", state.params),
        (lambda state, _: state) if selection is None else partial(call, "keep"),
        None if selection is None else lambda state: call("test", state, selection.test_data),
        partial(call, "spectra"),
        lambda: _bytes_needed(ready["train"].result()),
    )


def train_interval(training: Training, state: Any, data: Any) -> tuple[Any, Any, Observations]:
    """The steps of an interval: the state after them, the mean of their metrics, and observations."""
    tx = training.tx
    if hasattr(tx, "refresh"):
        state = state._replace(opt_state=tx.refresh(state.opt_state, state.params))  # pyright: ignore[reportAttributeAccessIssue]

    def step(state: Any, inputs: Any) -> tuple[Any, Any, Any]:
        grad_fn = jax.value_and_grad(training.loss, has_aux=True)
        (_, (metrics, changes)), grads = grad_fn(state.params, state, inputs, data)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1, **changes), grads, metrics

    return observed_steps(step, state, training.inputs(state, data), training.weights, training.watched)


def stack(states: Sequence[Any]) -> Any:
    """The states of seeds as that of all together."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(tree: Any, together: int) -> list[Any]:
    """What belongs to each seed."""
    if together == 1:
        return [tree]
    return [jax.tree.map(lambda leaf: leaf[index], tree) for index in range(together)]  # noqa: B023


def _shape(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Without a sharding, which is any."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _bytes_needed(compiled: Any) -> int:
    """Zero where the compiler does not say."""
    found = compiled.memory_analysis()
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    return sum(getattr(found, part, 0) for part in parts) - getattr(found, "alias_size_in_bytes", 0)
