"""One network on each framework, with every kind of layer, and their spectra by hand: numpy's singular values of matrices
cut out of the weights.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny import numpy_spectrum

KEY = jax.random.key(0)
TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)


class Network(NamedTuple):
    params: Any
    apply: Callable[..., Any]
    """A function of the parameters and `TOKENS`."""
    spectra: dict[str, np.ndarray]
    """By hand, for every layer."""


def filled(tree):
    """The tree with normal numbers for its floating-point arrays."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        floating = hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) if floating else leaf

    return jax.tree.map(fill, tree)


def paired(x, axis: int = -1):
    """Two channels of one array: the matrices of a convolution of one channel would be vectors."""
    return jnp.stack([x, -x], axis)


def conv_spectrum(matrices: Iterable[np.ndarray]) -> np.ndarray:
    """The spectrum of a convolution, given the matrices of its window: half the squared singular values, pooled."""
    return 0.5 * np.sort(np.concatenate([numpy_spectrum(matrix) for matrix in matrices]))


def hwio(kernel) -> np.ndarray:
    window = itertools.product(*map(range, kernel.shape[:-2]))
    return conv_spectrum(np.asarray(kernel)[place] for place in window)


def oihw(kernel) -> np.ndarray:
    window = itertools.product(*map(range, kernel.shape[2:]))
    return conv_spectrum(np.asarray(kernel)[:, :, *place] for place in window)


def stacked(spectrum: Callable[[Any], np.ndarray], kernels) -> np.ndarray:
    return np.stack([spectrum(kernel) for kernel in kernels])


def into_heads(kernel) -> np.ndarray:
    """Of queries, keys and values: `(embed, heads, head_dim)`."""
    return numpy_spectrum(np.asarray(kernel).reshape(kernel.shape[0], -1))


def out_of_heads(kernel) -> np.ndarray:
    return numpy_spectrum(np.asarray(kernel).reshape(-1, kernel.shape[-1]))


def flax_attention(name: str, params: Mapping, over: Callable = lambda spectrum, kernel: spectrum(kernel)):
    """The spectra of an attention module, through `over` where it is stacked."""
    into = {f"{name}/{own}": over(into_heads, params[own]["kernel"]) for own in ("query", "key", "value")}
    return into | {f"{name}/out": over(out_of_heads, params["out"]["kernel"])}


# Flax Linen


class LinenBlock(nn.Module):
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm(name="ln")(x)
        x = x + nn.MultiHeadDotProductAttention(2, use_bias=self.use_bias, name="attn")(y)
        x = x + nn.Conv(6, (3,), use_bias=self.use_bias, name="conv")(x)
        y = nn.gelu(nn.Dense(8, use_bias=self.use_bias, name="up")(nn.RMSNorm(name="rms")(x)))
        return x + nn.Dense(6, use_bias=self.use_bias, name="down")(y), None


class LinenNetwork(nn.Module):
    """`stack_axis` None leaves out the scanned blocks."""

    use_bias: bool = True
    stack_axis: int | None = 0
    remat: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 6, name="tok")(tokens) + self.param("pos_embedding", nn.initializers.ones, (1, 5, 6))
        x = nn.Conv(8, (3,), use_bias=self.use_bias, name="conv1")(x)
        x = nn.GroupNorm(2, name="gn")(x)
        x = nn.relu(nn.Conv(4, (3, 2), use_bias=self.use_bias, name="conv2")(paired(x)))
        x = nn.relu(nn.Conv(3, (2, 2, 2), use_bias=self.use_bias, name="conv3")(paired(x)))
        x = nn.Dense(6, name="dense")(x.reshape(*x.shape[:2], -1))
        x = nn.MultiHeadDotProductAttention(2, use_bias=self.use_bias, qkv_features=8, name="attn")(x)
        if self.stack_axis is not None:
            block = nn.remat(LinenBlock) if self.remat else LinenBlock
            axes = {"params": self.stack_axis}
            x, _ = nn.scan(block, axes, split_rngs={"params": True}, length=3)(self.use_bias, name="blocks")(x, None)
        return nn.Dense(5, name="head")(nn.LayerNorm(name="lnf")(x))


def linen(**options) -> Network:
    model = LinenNetwork(**options)
    params = filled(jax.eval_shape(model.init, KEY, TOKENS)["params"])
    return Network(
        params, lambda params, tokens: model.apply({"params": params}, tokens), flax_spectra(params, model.stack_axis)
    )


def flax_spectra(p: Mapping, stack_axis: int | None = 0) -> dict[str, np.ndarray]:
    spectra = {name: hwio(p[name]["kernel"]) for name in ("conv1", "conv2", "conv3")}
    spectra |= {name: numpy_spectrum(p[name]["kernel"]) for name in ("dense", "head")}
    spectra |= flax_attention("attn", p["attn"])
    if stack_axis is not None:
        blocks = p["blocks"]
        over = lambda spectrum, kernels: stacked(spectrum, np.moveaxis(np.asarray(kernels), stack_axis, 0))
        spectra |= {f"blocks/{name}": over(numpy_spectrum, blocks[name]["kernel"]) for name in ("up", "down")}
        spectra |= {"blocks/conv": over(hwio, blocks["conv"]["kernel"])} | flax_attention(
            "blocks/attn", blocks["attn"], over
        )
    return spectra


# Flax NNX


class NNXBlock(nnx.Module):
    def __init__(self, use_bias: bool, rngs: nnx.Rngs):
        self.ln = nnx.LayerNorm(6, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 6, decode=False, use_bias=use_bias, rngs=rngs)
        self.conv = nnx.Conv(6, 6, (3,), use_bias=use_bias, rngs=rngs)
        self.rms = nnx.RMSNorm(6, rngs=rngs)
        self.up = nnx.Linear(6, 8, use_bias=use_bias, rngs=rngs)
        self.down = nnx.Linear(8, 6, use_bias=use_bias, rngs=rngs)

    def __call__(self, x):
        x = x + self.attn(self.ln(x))
        x = x + self.conv(x)
        return x + self.down(nnx.gelu(self.up(self.rms(x))))


class NNXNetwork(nnx.Module):
    def __init__(self, use_bias: bool, rngs: nnx.Rngs):
        self.tok = nnx.Embed(11, 6, rngs=rngs)
        self.pos_embedding = nnx.Param(jnp.ones((1, 5, 6), jnp.float32))
        self.conv1 = nnx.Conv(6, 8, (3,), use_bias=use_bias, rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.conv2 = nnx.Conv(2, 4, (3, 2), use_bias=use_bias, rngs=rngs)
        self.conv3 = nnx.Conv(2, 3, (2, 2, 2), use_bias=use_bias, rngs=rngs)
        self.dense = nnx.Linear(96, 6, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 6, 8, decode=False, use_bias=use_bias, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        make = nnx.vmap(lambda rngs: NNXBlock(use_bias, rngs), in_axes=0)
        self.blocks = nnx.split_rngs(splits=3)(make)(rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, tokens):
        x = self.tok(tokens) + self.pos_embedding[...]
        x = self.bn(self.conv1(x))
        x = nnx.relu(self.conv2(paired(x)))
        x = nnx.relu(self.conv3(paired(x)))
        x = self.dropout(self.attn(self.dense(x.reshape(*x.shape[:2], -1))))
        x = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        return self.head(x)


def nnx_network(use_bias: bool = True, train: bool = True, pure: bool = False) -> Network:
    model = nnx.eval_shape(lambda: NNXNetwork(use_bias, nnx.Rngs(0)))
    (model.train if train else model.eval)()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = filled(params)
    by_name = nnx.to_pure_dict(params)
    apply = lambda params, tokens, rest: nnx.merge(graph, params, rest)(tokens)
    return Network(
        by_name if pure else params, lambda params, tokens: apply(params, tokens, rest_of(rest)), flax_spectra(by_name)
    )


def rest_of(rest):
    """Statistics and random states for a trace: arrays of its own, since a network in training writes to them."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)


# Haiku


def haiku_forward(use_bias: bool):
    def block(x):
        x = x + hk.MultiHeadAttention(2, 3, w_init=jnp.ones, model_size=6, with_bias=use_bias, name="attn")(
            *[norm("ln")(x)] * 3
        )
        x = x + hk.Conv1D(6, 3, with_bias=use_bias, name="conv")(x)
        y = jax.nn.relu(hk.Linear(8, with_bias=use_bias, name="up")(x))
        return x + hk.Linear(6, with_bias=use_bias, name="down")(y)

    norm = lambda name: hk.LayerNorm(-1, True, True, name=name)

    def forward(tokens):
        x = hk.Embed(11, 6, name="tok")(tokens) + hk.get_parameter("pos_embedding", (5, 6), init=jnp.ones)
        x = hk.Conv1D(8, 3, with_bias=use_bias, name="conv1")(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9, name="bn")(x, True))
        x = jax.nn.relu(hk.Conv2D(4, (3, 2), with_bias=use_bias, name="conv2")(paired(x)))
        x = jax.nn.relu(hk.Conv3D(3, 2, with_bias=use_bias, name="conv3")(paired(x)))
        x = norm("lnd")(hk.Linear(6, name="dense")(x.reshape(*x.shape[:2], -1)))
        x = hk.experimental.layer_stack(3, name="blocks")(block)(x)
        return hk.Linear(5, name="head")(x)

    return forward


def haiku(use_bias: bool = True) -> Network:
    model = hk.transform_with_state(haiku_forward(use_bias))
    params, state = jax.eval_shape(model.init, KEY, TOKENS)
    params = filled(params)
    apply = lambda params, tokens: model.apply(params, jax.tree.map(lambda s: jnp.zeros(s.shape), state), KEY, tokens)[0]
    spectra = {name: hwio(params[name]["w"]) for name in ("conv1", "conv2", "conv3")}
    spectra |= {name: numpy_spectrum(params[name]["w"]) for name in ("dense", "head")}
    attention = [f"blocks/attn/{own}" for own in ("query", "key", "value", "linear")]
    dense = [*attention, "blocks/up", "blocks/down"]
    spectra |= {name: stacked(numpy_spectrum, params[name]["w"]) for name in dense}
    return Network(params, apply, spectra | {"blocks/conv": stacked(hwio, params["blocks/conv"]["w"])})


# Equinox


class EquinoxBlock(eqx.Module):
    ln: eqx.nn.LayerNorm
    attn: eqx.nn.MultiheadAttention
    conv: eqx.nn.Conv1d
    rms: eqx.nn.RMSNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, use_bias: bool, key):
        self.ln = eqx.nn.LayerNorm(6)
        bias = dict.fromkeys([f"use_{name}_bias" for name in ("query", "key", "value", "output")], use_bias)
        self.attn = eqx.nn.MultiheadAttention(2, 6, **bias, key=key)
        self.conv = eqx.nn.Conv1d(6, 6, 3, padding=1, use_bias=use_bias, key=key)
        self.rms = eqx.nn.RMSNorm(6, use_bias=False)
        self.up = eqx.nn.Linear(6, 8, use_bias=use_bias, key=key)
        self.down = eqx.nn.Linear(8, 6, use_bias=use_bias, key=key)

    def __call__(self, x):
        y = jax.vmap(self.ln)(x)
        x = x + self.attn(y, y, y)
        x = x + self.conv(x.T).T
        return x + jax.vmap(lambda row: self.down(jax.nn.relu(self.up(self.rms(row)))))(x)


class EquinoxNetwork(eqx.Module):
    tok: eqx.nn.Embedding
    pos_embedding: jax.Array
    conv1: eqx.nn.Conv1d
    gn: eqx.nn.GroupNorm
    conv2: eqx.nn.Conv2d
    conv3: eqx.nn.Conv3d
    dense: eqx.nn.Linear
    blocks: EquinoxBlock
    head: eqx.nn.MLP

    def __init__(self, use_bias: bool, key):
        self.tok = eqx.nn.Embedding(11, 6, key=key)
        self.pos_embedding = jnp.ones((5, 6))
        self.conv1 = eqx.nn.Conv1d(6, 8, 3, padding=1, use_bias=use_bias, key=key)
        self.gn = eqx.nn.GroupNorm(2, 8)
        self.conv2 = eqx.nn.Conv2d(2, 4, (3, 2), padding="SAME", use_bias=use_bias, key=key)
        self.conv3 = eqx.nn.Conv3d(2, 3, 2, padding="SAME", use_bias=use_bias, key=key)
        self.dense = eqx.nn.Linear(96, 6, key=key)
        self.blocks = eqx.filter_vmap(lambda key: EquinoxBlock(use_bias, key))(jax.random.split(key, 3))
        self.head = eqx.nn.MLP(6, 5, 7, 1, key=key)

    def __call__(self, tokens):
        x = jax.vmap(self.tok)(tokens) + self.pos_embedding
        x = self.gn(self.conv1(x.T))
        x = jax.nn.relu(self.conv2(paired(x, 0)))
        x = jax.nn.relu(self.conv3(paired(x, 0)))
        x = jax.vmap(self.dense)(jnp.moveaxis(x, 2, 0).reshape(5, -1))
        arrays, functions = eqx.partition(self.blocks, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, block: (eqx.combine(block, functions)(x), None), x, arrays)
        return jax.vmap(self.head)(x)


def equinox(use_bias: bool = True, filtered: bool = True) -> Network:
    """The whole module holds functions too; `filtered`, it holds arrays alone."""
    model = filled(eqx.filter_eval_shape(EquinoxNetwork, use_bias, KEY))
    arrays, functions = eqx.partition(model, eqx.is_array)
    apply = lambda params, tokens: jax.vmap(eqx.combine(params, functions) if filtered else params)(tokens)
    spectra = {name: oihw(getattr(model, name).weight) for name in ("conv1", "conv2", "conv3")}
    spectra["dense"] = numpy_spectrum(model.dense.weight)
    attention = [f"attn/{own}_proj" for own in ("query", "key", "value", "output")]
    for name in (*attention, "up", "down"):
        module = model.blocks
        for own in name.split("/"):
            module = getattr(module, own)
        spectra[f"blocks/{name}"] = stacked(numpy_spectrum, module.weight)
    spectra["blocks/conv"] = stacked(oihw, model.blocks.conv.weight)
    spectra |= {f"head/layers/{i}": numpy_spectrum(layer.weight) for i, layer in enumerate(model.head.layers)}
    return Network(arrays if filtered else model, apply, spectra)


NETWORKS: dict[str, Callable[[], Network]] = {
    "linen": linen,
    "linen without bias": lambda: linen(use_bias=False),
    "linen without stack": lambda: linen(stack_axis=None),
    "linen scanned over axis 1": lambda: linen(stack_axis=1),
    "linen without bias over axis 1": lambda: linen(stack_axis=1, use_bias=False),
    "linen with remat": lambda: linen(remat=True),
    "nnx": nnx_network,
    "nnx in evaluation": lambda: nnx_network(train=False),
    "nnx without bias": lambda: nnx_network(use_bias=False),
    "nnx pure dict": lambda: nnx_network(pure=True),
    "haiku": haiku,
    "haiku without bias": lambda: haiku(use_bias=False),
    "equinox": equinox,
    "equinox without bias": lambda: equinox(use_bias=False),
    "equinox unfiltered": lambda: equinox(filtered=False),
}
