"""The compiled functions of a setting, for one seed or for several that train together."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from examples.paper.balance import FitTail, create_metric
from examples.paper.domain import Training
from examples.paper.observations import Observations, fitted_spectra, measure_alphas, observed_steps


class Program:
    """The compiled functions of a training. If several seeds train together, the first axis of every array is the seed's.

    Each batch is split over the mesh. Batch norms see the whole batch, so the split changes the order of sums only. Several
    seeds train under `vmap`.

    Attributes:
      train: an interval, of a state and the data: the state after it, metrics and observations. The state before is donated.
      evaluate: of a state and the held-out data: the state, with the best parameters kept, and metrics. It is donated too.
      measure: of parameters: the alpha of every weight, balanced or not; NaN where there is none.
      test: of a state and the test data: metrics of the best parameters.
      spectra: of one seed's parameters: the spectrum of every weight.
    """

    def __init__(self, training: Training, fit: FitTail, mesh: Mesh, together: int = 1):
        self._training, self._mesh, self._together = training, mesh, together
        self._replicated = NamedSharding(mesh, PartitionSpec())
        many = () if together == 1 else (together,)
        abstract = lambda leaf: jax.ShapeDtypeStruct((*many, *leaf.shape), leaf.dtype, sharding=self._replicated)
        state = jax.tree.map(abstract, jax.eval_shape(partial(training.init, 0)))
        alphas = partial(measure_alphas, create_metric("pl_alpha_hill", fit), training.weights)
        self.train = self._compiled(partial(train_interval, training), state, training.data, donate_argnums=0)
        self.evaluate = self._compiled(partial(evaluate_and_keep, training), state, training.held_out_data, donate_argnums=0)
        self.measure = self._compiled(alphas, state.params)
        self.spectra = jax.jit(partial(fitted_spectra, fit, training.weights))
        if training.test_data is not None:
            best = lambda state, data: training.evaluate(state._replace(params=state.best), data)
            self.test = self._compiled(best, state, training.test_data)

    def _compiled(self, function: Callable[..., Any], state: Any, *data: Any, **options: Any) -> Any:
        over_seeds = function if self._together == 1 else jax.vmap(function, (0, *(None for _ in data)))
        with jax.set_mesh(self._mesh):  # while tracing, this mesh is also what TempBalance divides its eigenproblems over
            return jax.jit(over_seeds, out_shardings=PartitionSpec(), **options).lower(state, *data).compile()

    def start(self, seeds: Sequence[int]) -> Any:
        """The state before the first interval."""
        with jax.set_mesh(self._mesh):
            states = [self._training.init(seed) for seed in seeds]
            return jax.device_put(states[0] if self._together == 1 else stack(states), self._replicated)

    def bytes_needed(self) -> int:
        """The memory that training needs on each device. Zero where the compiler does not say."""
        found = self.train.memory_analysis()
        parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
        return sum(getattr(found, part, 0) for part in parts) - getattr(found, "alias_size_in_bytes", 0)


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


def evaluate_and_keep(training: Training, state: Any, data: Any) -> tuple[Any, Any]:
    """Metrics on the held-out data, and the state with its parameters as the best ones, if they are."""
    metrics = training.evaluate(state, data)
    if training.test_data is None:
        return state, metrics
    better = metrics.loss < state.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best)
    return state._replace(best=best, best_loss=jnp.minimum(metrics.loss, state.best_loss)), metrics


def stack(states: Sequence[Any]) -> Any:
    """The states of seeds as that of all together."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(tree: Any, together: int) -> list[Any]:
    """What belongs to each seed."""
    if together == 1:
        return [tree]
    return [jax.tree.map(lambda leaf: leaf[index], tree) for index in range(together)]  # noqa: B023
