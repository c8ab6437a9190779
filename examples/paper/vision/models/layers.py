"""The layers that all networks are made of, with PyTorch's padding, initialization and batch norm."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from examples.paper.vision.convolution import conv_general_dilated

_kernel_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(±1/√fan_in), PyTorch's default


def _bias_init(fan_in: int) -> Callable[..., Array]:
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


@dataclasses.dataclass(frozen=True)
class Make:
    """Makes layers that compute in a dtype, whose weights are drawn from `rngs`."""

    dtype: jnp.dtype
    rngs: nnx.Rngs

    def conv(self, in_channels: int, channels: int, window: int, stride: int = 1, use_bias: bool = False) -> nnx.Conv:
        """A convolution with an odd window, padded so that only the stride makes the image smaller."""
        pad = window // 2
        return nnx.Conv(
            in_channels,
            channels,
            (window, window),
            strides=stride,
            padding=((pad, pad), (pad, pad)),
            use_bias=use_bias,
            kernel_init=_kernel_init,
            bias_init=_bias_init(window**2 * in_channels),
            conv_general_dilated=conv_general_dilated,
            dtype=self.dtype,
            rngs=self.rngs,
        )

    def batch_norm(self, channels: int, momentum: float = 0.9, epsilon: float = 1e-5) -> nnx.BatchNorm:
        """A batch norm; `momentum` is the share of the running statistics that stays, so one less PyTorch's."""
        return nnx.BatchNorm(channels, momentum=momentum, epsilon=epsilon, dtype=self.dtype, rngs=self.rngs)

    def linear(self, in_features: int, features: int) -> nnx.Linear:
        """A linear layer."""
        bias_init = _bias_init(in_features)
        return nnx.Linear(
            in_features, features, kernel_init=_kernel_init, bias_init=bias_init, dtype=self.dtype, rngs=self.rngs
        )
