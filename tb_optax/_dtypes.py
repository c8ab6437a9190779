"""The dtypes of computations."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int


def is_float_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a floating-point number or array, real or complex: not an integer, a bool or a `float0`."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact) if hasattr(leaf, "dtype") else isinstance(leaf, (float, complex))


def at_least_float32(*dtypes: Any) -> Any:
    """The widest of these floating dtypes and float32: the dtype for computations on arrays of these dtypes.

    A complex dtype is wider than a real one. `jnp.promote_types` gives the same dtype, but raises an error under
    `jax_numpy_dtype_promotion="strict"`.
    """
    width = lambda dtype: (jnp.issubdtype(dtype, jnp.complexfloating), jnp.finfo(dtype).bits)
    return max((jnp.dtype(jnp.float32), *map(jnp.dtype, dtypes)), key=width)


def as_int32(number: Any) -> Int[Array, ""]:
    """A number of updates as an integer: `inject_hyperparams` gives schedules' values in the parameters' precision.

    A NaN, or a float that is negative or too large for an int32, becomes -1, which no check accepts.
    """
    number = jnp.asarray(number)
    if jnp.issubdtype(number.dtype, jnp.floating):
        number = jnp.where((number >= 0) & (number < 2.0**31), jnp.round(number), -1.0)
    return number.astype(jnp.int32)
