"""What is computed in which dtype."""

from typing import Any

import jax.numpy as jnp


def is_float_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def at_least_float32(*dtypes: Any) -> Any:
    """The widest of these floating dtypes and float32: what is computed from them is computed in it.

    As `jnp.promote_types` has it, which under `jax_numpy_dtype_promotion="strict"` refuses.
    """
    return max((jnp.dtype(jnp.float32), *map(jnp.dtype, dtypes)), key=lambda dtype: jnp.finfo(dtype).bits)
