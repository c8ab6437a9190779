"""What sharded parameters need."""

from typing import TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec

Tree = TypeVar("Tree")


def replicated(tree: Tree) -> Tree:
    """Gathers arrays whose types carry a sharding (JAX's explicit mode); where the compiler shards, it decides."""

    def gather(array: jax.Array) -> jax.Array:
        sharding = jax.typeof(array).sharding
        if all(axis_type != AxisType.Explicit for axis_type in sharding.mesh.axis_types):
            return array
        return jax.sharding.reshard(array, PartitionSpec())

    return jax.tree.map(gather, tree)
