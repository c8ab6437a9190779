"""NNX networks with batch norms in training: their state, and a forward pass as a pure function."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32


class TrainState(NamedTuple):
    """All that an epoch changes, and the seed of what it draws."""

    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    epoch: Int[Array, ""]
    seed: UInt32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model without its numbers."""

    graphdef: nnx.GraphDef

    def apply(
        self, params: nnx.State, batch_stats: nnx.State, images: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Any, nnx.State]:
        """What the model makes of images, in float32, and the batch norms' new statistics."""
        model = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        model.set_attributes(use_running_average=not train, raise_if_not_found=False)
        outputs = jax.tree.map(lambda each: each.astype(jnp.float32), model(images))  # pyright: ignore[reportCallIssue]
        return outputs, nnx.state(model, nnx.Not(nnx.Param))
