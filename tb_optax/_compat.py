"""All uses of unpublished parts of JAX, jaxlib and Optax, and what happens if a version lacks them.

| what | used for | seen in | without it |
| --- | --- | --- | --- |
| jaxprs inside equations | `trace_layers`, to see through calls, loops and branches | jax 0.8.1 to 0.12.0 | an error |
| parameters of primitives | `trace_layers`, to follow axes | jax 0.8.1 to 0.12.0 | an error |
| jaxlib's LAPACK targets | eigenvalues without vectors, on CPU | jaxlib 0.8.1 to 0.12.0 | the portable, slower function |
| mesh axes that `vmap` takes | seeds on different devices (`spmd_axis_name`) | jax 0.8.1 to 0.12.0 | an error from JAX |
| Optax's placeholder | `optax.tree.map_params` | optax 0.2.6 to 0.2.8 | that function fails: it finds no layers |

A loop's constants, carry and slices are counted from the shapes of its operands and results, which are published. The
loop's parameters are not used, because their names have changed from version to version. The errors are
`NotImplementedError`s that name the version and what to use instead.
"""

from typing import Any

import jax
import numpy as np

_KNOWN = "0.8.1 to 0.12.0"
_REQUIRED = object()
# If `trace_layers` treated one of these as arithmetic, the layers inside would be lost without an error.
_CALLS = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "shard_map"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    }
)


def parameter_of(equation: Any, name: str, default: Any = _REQUIRED) -> Any:
    """A parameter of a jaxpr's equation.

    Raises:
      NotImplementedError: the equation has no parameter of this name, and there is no default.
    """
    if name not in equation.params and default is _REQUIRED:
        raise _unreadable(equation, f"has no parameter {name!r}, but {sorted(equation.params)}")
    return equation.params.get(name, default)


def called_jaxpr(equation: Any) -> Any:
    """The jaxpr that an equation calls on its own operands (`jit`, `remat`, `custom_jvp`, `shard_map`, ...), if any.

    The jaxpr is found by its number of operands, whatever the parameter is called.

    Raises:
      NotImplementedError: the primitive is known to call a jaxpr, but the equation holds none.
    """
    for value in equation.params.values():
        called = _open(value)
        if called is not None and len(called.invars) == len(equation.invars):
            return called
    if equation.primitive.name in _CALLS:
        raise _unreadable(equation, f"holds no jaxpr of its operands, but {sorted(equation.params)}")
    return None


def cond_branches(equation: Any) -> list[Any]:
    """The jaxprs of a `cond`, which take all operands except the first."""
    return [_checked(equation, branch, len(equation.invars) - 1) for branch in parameter_of(equation, "branches")]


def scan_parts(equation: Any) -> tuple[Any, int, int]:
    """The body of a `scan`, the number of its constants, and the number of its carries; the other operands are slices.

    A sliced or stacked array has one axis more outside the body than inside.
    """
    body = _checked(equation, parameter_of(equation, "jaxpr"), len(equation.invars))
    slices = sum(_ndim(outer) > _ndim(inner) for outer, inner in zip(equation.invars, body.invars, strict=True))
    stacked = sum(_ndim(outer) > _ndim(inner) for outer, inner in zip(equation.outvars, body.outvars, strict=True))
    carry = len(equation.outvars) - stacked
    return body, len(equation.invars) - slices - carry, carry


def while_parts(equation: Any) -> tuple[Any, int, int]:
    """The body of a `while`, and the start and end of its constants among the operands; the carry comes after them."""
    body = _open(parameter_of(equation, "body_jaxpr"))
    carry = len(equation.outvars)
    if body is None or not carry <= len(body.invars) <= len(equation.invars):
        raise _unreadable(equation, "has a body of other operands")
    end = len(equation.invars) - carry
    return body, end - (len(body.invars) - carry), end


def lapack_target(routine: str, dtype: np.dtype) -> str | None:
    """The name that jaxlib gives a LAPACK routine (`syevd_ffi`, `gesdd_ffi`) for this dtype; None if it has none."""
    try:
        from jaxlib import lapack

        return lapack.prepare_lapack_call(routine, dtype)
    except (ImportError, AttributeError, TypeError, NotImplementedError):
        return None


def vmapped_mesh_axes() -> frozenset[str]:
    """The mesh axes over which `jax.vmap(..., spmd_axis_name=...)` divides the batch; empty if JAX does not say."""
    try:
        from jax._src import core

        return frozenset(core.get_axis_env().spmd_axis_names)
    except (ImportError, AttributeError):
        return frozenset()


def is_placeholder(params: Any) -> bool:
    """Whether `params` is the placeholder by which `optax.tree.map_params` finds the parameters in a state."""
    return type(params).__name__ == "_ParamsPlaceholder"


def _open(value: Any) -> Any:
    """A jaxpr without its constants, or None for anything else."""
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") and hasattr(value, "invars") else None


def _checked(equation: Any, value: Any, operands: int) -> Any:
    jaxpr = _open(value)
    if jaxpr is None or len(jaxpr.invars) != operands:
        raise _unreadable(equation, f"holds no jaxpr of {operands} operands")
    return jaxpr


def _ndim(variable: Any) -> int:
    return len(variable.aval.shape)


def _unreadable(equation: Any, why: str) -> NotImplementedError:
    return NotImplementedError(
        f"trace_layers cannot read the forward pass under JAX {jax.__version__}: the primitive {equation.primitive.name!r} "
        f"{why}. JAX {_KNOWN} is known to work. Use one of these, a newer tb_optax, or tb_optax.find_layers, which reads "
        "the parameter tree alone."
    )
