"""The paper's network of its Appendix G: "tensorized Transformer core-1" (Ma et al., 2019).

Its attention has no softmax. Token `i` gets a number for each pair of tokens `j`, `k`, the sum over the features `h` of one
head of a learned core times query times key times value,

    T[i, j, k] = Σ_h g_h ((q_ih + u_h) k_jh + (q_ih + v_h) r_jh) v_kh

and a weight makes its output of these `n x n` numbers. `r` are keys of positions, `u` and `v` biases that all layers share.
Initialization, dropout and the norms behind each sum are those of the program that the paper's authors released.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

import tb_optax

_DEVIATION = 0.02


class TensorizedTransformer(nn.Module):
    """A Transformer with tensorized attention, whose output weight is its embedding.

    Attributes:
      vocabulary: number of tokens.
      window: number of positions, no more and no less.
      layers: how many.
      width: of the residual stream.
      head: size of the queries, keys and values.
      hidden: width of the feed-forward part.
      dropout: of embeddings and positions, and behind each weight of a branch but those of queries, keys and values.
      dtype: what is computed in; the insides of norms, and the logits, are float32.
      causal: whether `T[i, j, k]` is zero for later tokens, `j > i` or `k > i`. In the released program it is not: there
        every output sees the whole window, the token that it is to predict included.
      remat: whether the backward pass computes the insides of a layer again, rather than keeps them.
    """

    vocabulary: int
    window: int
    layers: int = 3
    width: int = 256
    head: int = 40
    hidden: int = 2100
    dropout: float = 0.3
    dtype: jnp.dtype = jnp.dtype("float32")
    causal: bool = True
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch window"], *, train: bool) -> Float[Array, "batch window vocabulary"]:
        if tokens.shape[1] != self.window:
            raise ValueError(f"this network has a window of {self.window} tokens; these are {tokens.shape[1]}.")
        init = nn.initializers.normal(_DEVIATION)
        embedding = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=init, name="embedding")
        content_bias, position_bias = (
            self.param(f"{name}_bias", init, (self.head,), jnp.float32).astype(self.dtype)
            for name in ("content", "position")
        )
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(embedding(tokens) * math.sqrt(self.width))
        positions = drop(jnp.asarray(sinusoids(self.window, self.width), self.dtype))
        layer = nn.remat(_Layer) if self.remat else _Layer
        for index in range(self.layers):
            x = layer(self.head, self.hidden, self.dropout, self.dtype, self.causal, not train, name=f"layer{index}")(
                x, positions, content_bias, position_bias
            )
        bias = self.param("output_bias", nn.initializers.zeros, (self.vocabulary,), jnp.float32)
        weight = embedding.embedding.astype(self.dtype)
        return jnp.einsum("bnd,vd->bnv", x, weight, preferred_element_type=jnp.float32) + bias


class _Layer(nn.Module):
    head: int
    hidden: int
    dropout: float
    dtype: jnp.dtype
    causal: bool
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch window width"],
        positions: Float[Array, "window width"],
        content_bias: Float[Array, " head"],
        position_bias: Float[Array, " head"],
    ) -> Float[Array, "batch window width"]:
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        attention = _Attention(self.head, self.dtype, self.causal, name="attention")
        x = self._norm("attention_norm", x + drop(attention(x, positions, content_bias, position_bias)))
        feed_forward = _FeedForward(self.hidden, self.dropout, self.dtype, self.deterministic, name="feed_forward")
        return self._norm("feed_forward_norm", x + feed_forward(x))

    def _norm(self, name: str, x: Float[Array, "batch window width"]) -> Float[Array, "batch window width"]:
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, scale_init=_around_one, name=name)(x)


class _Attention(nn.Module):
    head: int
    dtype: jnp.dtype
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch window width"],
        positions: Float[Array, "window width"],
        content_bias: Float[Array, " head"],
        position_bias: Float[Array, " head"],
    ) -> Float[Array, "batch window width"]:
        batch, window, width = x.shape
        init = nn.initializers.normal(_DEVIATION)
        dense = lambda size, name: nn.Dense(size, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)
        core = self.param("core", _softmax_of_normals, (self.head,)).astype(self.dtype)
        q, k, v = jnp.split(dense(3 * self.head, "qkv")(x), 3, axis=-1)
        r = dense(self.head, "r")(positions)
        # `window` times as large as the queries, and about as large as T: no array has all of `i`, `j`, `k` and `h`.
        scores = core * ((q + content_bias)[:, :, None] * k[:, None] + (q + position_bias)[:, :, None] * r)
        # Numbers of a few thousandths each are multiplied here: TF32 would leave three digits of them.
        pairs = jnp.einsum("bijh,bkh->bijk", scores, v, precision=jax.lax.Precision.HIGHEST)
        if self.causal:
            seen = jnp.tri(window, dtype=bool)
            pairs = jnp.where(seen[:, :, None] & seen[:, None, :], pairs, 0)
        return dense(width, "o")(pairs.reshape(batch, window, window * window))


class _FeedForward(nn.Module):
    hidden: int
    dropout: float
    dtype: jnp.dtype
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch window width"]) -> Float[Array, "batch window width"]:
        init, drop = nn.initializers.normal(_DEVIATION), nn.Dropout(self.dropout, deterministic=self.deterministic)
        hidden = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=init, name="in")(x)
        return drop(nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name="out")(drop(nn.relu(hidden))))


def paper_layers(layers: tb_optax.Layers) -> tb_optax.Layers:
    """The layers as the authors' code balances them: a norm takes the scale of the weight in front of it.

    Between the two stands the sum with the residual stream, which is why `trace_layers` lets these norms follow nothing.
    """
    norms = {"attention/o": "attention_norm", "feed_forward/out": "feed_forward_norm"}

    def with_norm(layer: tb_optax.Layer) -> tb_optax.Layer:
        number, _, part = layer.name.partition("/")
        if part not in norms:
            return layer
        norm = tuple(f"{number}/{norms[part]}/{parameter}" for parameter in ("scale", "bias"))
        return dataclasses.replace(layer, follows=layer.follows + norm)

    return tb_optax.Layers(map(with_norm, layers), layers.left_out)


def sinusoids(window: int, width: int) -> Float[np.ndarray, "window width"]:
    """Sines, then cosines, of the distances `window - 1` to 0 at `width / 2` frequencies."""
    frequencies = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(window - 1, -1, -1)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def _around_one(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, " width"]:
    return 1 + _DEVIATION * jax.random.normal(key, shape, dtype)


def _softmax_of_normals(key: Array, shape: tuple[int, ...]) -> Float[Array, " head"]:
    return jax.nn.softmax(jax.random.normal(key, shape, jnp.float32))
