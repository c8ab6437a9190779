"""Divides a stack of problems over the devices of the mesh that the program runs under (`jax.set_mesh`)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
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


def over_devices(function: Callable[..., Array], *stacks: Shaped[Array, "stack ..."]) -> Shaped[Array, "stack ..."]:
    """Calls a function on each device, of its equal share of each stack; what it returns are shares of a stack.

    Without a mesh, or inside a `shard_map` over all of it, where a program speaks for one device, all is done in place.
    """
    axes = _free_axes()
    if device_count() == 1:
        return function(*stacks)
    share = PartitionSpec(axes)
    divided = jax.shard_map(
        function, in_specs=(share,) * len(stacks), out_specs=share, axis_names=set(axes), check_vma=False
    )
    return divided(*stacks)


def whole(stack: Shaped[Array, "stack ..."]) -> Shaped[Array, "stack ..."]:
    """The stack, not divided along its first axis, and along the others as it was: what comes after does not change that."""
    return _along_first(stack, ()) if device_count() > 1 else stack


def dealt(stack: Shaped[Array, "stack ..."]) -> Shaped[Array, "stack ..."]:
    """The stack with an equal part of it on each device.

    It is dealt out along one axis of the mesh after the other, by exchanges in which no device ever has more than its part:
    from one sharding over several axes to another XLA would go by way of the whole stack on every device.
    """
    axes = _free_axes() if device_count() > 1 else ()
    for count in range(1, len(axes) + 1):
        stack = _along_first(stack, axes[:count])
    return stack


def alike_over_devices(stacks: Sequence[Shaped[Array, "stack n m"]]) -> list[Shaped[Array, "stack n m"]]:
    """Matrices of one size as they can be put together: over a mesh of several axes with their rows divided over all of it.

    Where they lie differently over two axes, as weights before and after a nonlinearity do, all of them would come together
    on every device; where the devices do not divide the rows evenly, they still do.
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
    """The axes of the mesh that no `shard_map` around has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind != AxisType.Manual)
