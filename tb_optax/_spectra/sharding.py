"""Divides stacks of matrices over the devices of a mesh: the mesh in force (`jax.set_mesh`), or else the weights' mesh."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from tb_optax._compat import vmapped_mesh_axes

T = TypeVar("T")


def mesh_of(arrays: Iterable[Any]) -> jax.sharding.AbstractMesh:
    """The mesh in force, or else the first mesh that an array is sharded over; an empty mesh if there is none."""
    in_force = jax.sharding.get_abstract_mesh()
    if not in_force.empty:
        return in_force
    for array in arrays:
        sharding = jax.typeof(array).sharding if isinstance(array, jax.Array) else None
        if isinstance(sharding, NamedSharding) and not sharding.mesh.empty:
            return sharding.mesh.abstract_mesh
    return in_force


def in_mesh(mesh: jax.sharding.AbstractMesh) -> contextlib.AbstractContextManager[Any]:
    """Puts a mesh in force while a program is traced."""
    return contextlib.nullcontext() if mesh.empty else jax.sharding.use_abstract_mesh(mesh)


def pinned(arrays: T) -> T:
    """The arrays; those that are constants of the traced program get their sharding as a constraint.

    JAX compiles a jitted function that closes over sharded weights, and has no sharded argument, for one device unless
    something in it names the others. Code in it that divides work over a mesh would not run.
    """
    if not isinstance(jnp.zeros(()), jax.core.Tracer):
        return arrays

    def pin(array: Any) -> Any:
        if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array):
            return array
        sharding = array.sharding
        if not isinstance(sharding, NamedSharding) or AxisType.Explicit in sharding.mesh.axis_types:
            return array  # In explicit mode, the array's type names the mesh.
        return jax.lax.with_sharding_constraint(array, sharding)

    return jax.tree.map(pin, arrays)


def partitioned_by_compiler(function: Callable[..., T]) -> Callable[..., T]:
    """The function, for arrays of any sharding. In explicit mode, where types carry it, its results are replicated."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return function
    return jax.sharding.auto_axes(function, out_sharding=PartitionSpec())  # pyright: ignore[reportReturnType]


def replicated(array: Array) -> Array:
    """The array, the same on every device, as a state must be whatever the sharding of the weights.

    It is also a barrier: no later sharding reaches the operations that compute the array.
    """
    if not _free_axes():
        return array
    return partitioned_by_compiler(lambda own: jax.lax.with_sharding_constraint(own, PartitionSpec()))(array)


def device_count() -> int:
    """Over how many devices a stack is divided: 1 without a mesh, or inside a `shard_map` over the whole mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in _free_axes())


def over_devices(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function of stacks, called on each device with its equal share of each stack; the results are stacked."""
    axes = _free_axes()
    share = PartitionSpec(axes)
    return jax.shard_map(function, in_specs=share, out_specs=share, axis_names=set(axes), check_vma=False)


def unshard_stack(stack: Shaped[Array, "stack ..."]) -> Shaped[Array, "stack ..."]:
    """The stack, not divided along its first axis; its other axes keep their sharding."""
    return _along_first(stack, ())


def shard_stack(stack: Shaped[Array, "stack ..."]) -> Shaped[Array, "stack ..."]:
    """The stack with an equal part of it on each device.

    It is divided along one mesh axis after the other, by exchanges in which no device holds more than its part. In a single
    step from one sharding over several axes to another, XLA would gather the whole stack on every device.
    """
    axes = _free_axes()
    for count in range(1, len(axes) + 1):
        stack = _along_first(stack, axes[:count])
    return stack


def rows_over_mesh(stacks: Sequence[Float[Array, "_ n m"]]) -> list[Float[Array, "_ n m"]]:
    """Stacks of matrices of one size, sharded so that they can be concatenated: over several mesh axes, by their rows.

    Weights before and after a nonlinearity are sharded differently over two axes; to concatenate them, XLA would gather all.
    It still does so if the devices do not divide the rows evenly.
    """
    axes = _free_axes()
    if len(stacks) == 1 or len(axes) <= 1 or stacks[0].shape[1] % device_count():
        return list(stacks)
    rows = PartitionSpec(None, axes)
    return [jax.lax.with_sharding_constraint(stack, rows) for stack in stacks]


def _along_first(stack: Shaped[Array, "stack ..."], axes: tuple[str, ...]) -> Shaped[Array, "stack ..."]:
    others = [PartitionSpec.UNCONSTRAINED] * (stack.ndim - 1)
    return jax.lax.with_sharding_constraint(stack, PartitionSpec(axes, *others))


def _free_axes() -> tuple[str, ...]:
    """The mesh axes that no surrounding `shard_map` or `vmap` has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    taken = vmapped_mesh_axes()
    return tuple(name for name, kind in kinds if kind != AxisType.Manual and name not in taken)
