"""Divides a stack of problems over the devices of the mesh that the program runs under (`jax.set_mesh`)."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Shaped

T = TypeVar("T")


def partitioned_by_compiler(function: Callable[..., T], *args: Any) -> T:
    """Calls a function of arrays of any sharding; in explicit mode, where types carry it, its results are replicated."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return function(*args)
    return jax.sharding.auto_axes(function, out_sharding=PartitionSpec())(*args)  # pyright: ignore[reportReturnType]


def replicated(array: Array) -> Array:
    """The array, the same on every device: what a state is to be, whatever the sharding of what it is computed from."""
    if not _free_axes():
        return array
    return partitioned_by_compiler(lambda own: jax.lax.with_sharding_constraint(own, PartitionSpec()), array)


def device_count() -> int:
    """Over how many devices `over_devices` divides a stack."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in _free_axes())


def over_devices(solve: Callable[[Array], Array], problems: Shaped[Array, "stack ..."]) -> Shaped[Array, "stack ..."]:
    """Solves an equal share of the stack on each device; the solutions are replicated.

    Without a mesh, or inside a `shard_map` over all of it, where a program speaks for one device, all is solved in place.
    """
    devices, axes = device_count(), _free_axes()
    if devices == 1:
        return solve(problems)
    missing = -len(problems) % devices
    filled = jnp.concatenate([problems, jnp.zeros((missing, *problems.shape[1:]), problems.dtype)])
    share = PartitionSpec(axes)
    divided = jax.shard_map(solve, in_specs=share, out_specs=share, axis_names=set(axes), check_vma=False)
    return jax.lax.with_sharding_constraint(divided(filled), PartitionSpec())[: len(problems)]


def _free_axes() -> tuple[str, ...]:
    """The axes of the mesh that no `shard_map` around has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind != AxisType.Manual)
