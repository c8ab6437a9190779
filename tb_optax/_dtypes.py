"""The dtypes of computations."""

from typing import Any

import jax.numpy as jnp


def is_float_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a real floating-point array or a Python float: not an integer, a bool or a `float0`."""
    return is_float_array(leaf) or isinstance(leaf, float)


def at_least_float32(*dtypes: Any) -> Any:
    """The widest of these floating dtypes and float32: the dtype for computations on arrays of these dtypes.

    `jnp.promote_types` gives the same dtype, but raises an error under `jax_numpy_dtype_promotion="strict"`.
    """
    return max((jnp.dtype(jnp.float32), *map(jnp.dtype, dtypes)), key=lambda dtype: jnp.finfo(dtype).bits)
