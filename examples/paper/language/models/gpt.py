"""A decoder as people train them today: pre-norm, rotary positions, no biases, its layers scanned over.

RMSNorm, for in front of a weight it does what LayerNorm does at less cost, and has no bias. Queries, keys and values have a
kernel each: their spectra differ, and a joined kernel would show one that is none of theirs.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

_DEVIATION = 0.02
_ROTARY_BASE = 10_000.0


class GPT(nn.Module):
    """A causal decoder whose output weight is its embedding.

    Parameters are float32, and each one of the layers' is a stack: `layers/attention/q/kernel` is `(layers, width, width)`.

    Attributes:
      vocabulary: number of tokens.
      layers: how many.
      width: of the residual stream.
      heads: of queries; they share the width, an even part each.
      key_value_heads: of keys and values; each serves an equal group of the query heads.
      feed_forward: width of the feed-forward part, in multiples of `width`.
      dropout: of the embedding, and of what each branch adds.
      dtype: what is computed in; the insides of norms and softmax, and the logits, are float32.
      remat: whether the backward pass computes the insides of a layer again, rather than keeps them.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    key_value_heads: int
    feed_forward: int = 4
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"], *, train: bool) -> Float[Array, "batch length vocabulary"]:
        init = nn.initializers.normal(_DEVIATION)
        embedding = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=init, name="embedding")
        x = nn.Dropout(self.dropout)(embedding(tokens), deterministic=not train)
        layer = nn.remat(_Layer, prevent_cse=False) if self.remat else _Layer
        stack = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.layers)
        into_residual = nn.initializers.normal(_DEVIATION / math.sqrt(2 * self.layers))
        heads = (self.heads, self.key_value_heads)
        x, _ = stack(heads, self.feed_forward, self.dropout, into_residual, self.dtype, not train, name="layers")(x)
        x = nn.RMSNorm(dtype=self.dtype, name="norm")(x)
        weight = embedding.embedding.astype(self.dtype)
        return jnp.einsum("bnd,vd->bnv", x, weight, preferred_element_type=jnp.float32)


class _Layer(nn.Module):
    heads: tuple[int, int]
    feed_forward: int
    dropout: float
    into_residual: nn.initializers.Initializer
    dtype: jnp.dtype
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> tuple[Float[Array, "batch length width"], None]:
        attention = _Attention(self.heads, self.into_residual, self.dtype, name="attention")
        feed_forward = _FeedForward(self.feed_forward, self.into_residual, self.dtype, name="feed_forward")
        for name, branch in (("attention", attention), ("feed_forward", feed_forward)):
            y = branch(nn.RMSNorm(dtype=self.dtype, name=f"{name}_norm")(x))
            x = x + nn.Dropout(self.dropout)(y, deterministic=self.deterministic)
        return x, None


class _Attention(nn.Module):
    heads: tuple[int, int]
    into_residual: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        init = nn.initializers.normal(_DEVIATION)
        batch, length, width = x.shape
        queries, keys = self.heads
        size = width // queries
        q, k, v = (
            nn.Dense(heads * size, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)(x).reshape(
                batch, length, heads, size
            )
            for name, heads in (("q", queries), ("k", keys), ("v", keys))
        )
        y = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True).reshape(x.shape)
        return nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=self.into_residual, name="o")(y)


class _FeedForward(nn.Module):
    multiple: int
    into_residual: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        width, init = x.shape[-1], nn.initializers.normal(_DEVIATION)
        hidden = nn.Dense(self.multiple * width, use_bias=False, dtype=self.dtype, kernel_init=init, name="in")(x)
        out = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=self.into_residual, name="out")
        return out(nn.gelu(hidden))


def rotate(x: Float[Array, "batch length heads size"]) -> Float[Array, "batch length heads size"]:
    """Turns each pair of features, one of either half, by an angle that grows with the position (Su et al., 2021).

    The product of two vectors turned so depends on how far apart they are, not on where.
    """
    _, length, _, size = x.shape
    frequencies = _ROTARY_BASE ** (-jnp.arange(0, size, 2) / size)
    angles = jnp.arange(length)[:, None] * frequencies
    cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
