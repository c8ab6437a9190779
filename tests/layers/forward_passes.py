"""Forward passes of the programs whose parameters `test_programs.py` writes down.

They are short ones of our own. Each uses every parameter in the product in which the program uses it, with the program's
scans, remat, attention, norms and routes to experts.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.experimental import pallas

# What several programs have in common


def rms_norm(x, scale):
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def layer_norm(x, scale, bias):
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale + bias


def rotate(x):
    """Rotary positions, for `(batch, length, heads, head_dim)`."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] / 10_000 ** (jnp.arange(half) / half)
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate(
        [first * jnp.cos(angles) - second * jnp.sin(angles), second * jnp.cos(angles) + first * jnp.sin(angles)], -1
    )


def attend(query, key, value):
    """Causal softmax attention, in which several query heads may share a key head."""
    batch, length, heads, size = query.shape
    query = query.reshape(batch, length, key.shape[2], -1, size) * size**-0.5
    scores = jnp.einsum("btkgh,bskh->bkgts", query, key)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e30)
    return jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(scores), value).reshape(batch, length, heads, -1)


def gated(x, gate, up, down, act=jax.nn.silu):
    return (act(x @ gate) * (x @ up)) @ down


# Gemma and Tunix: a list of blocks


def gemma(p, tokens):
    x = p["embedder"]["input_embedding"][(tokens,)] * 8.0
    for block in p["layers"].values():
        attn, mlp = block["attn"], block["mlp"]
        y = rms_norm(x, 1 + block["pre_attention_norm"]["scale"])
        if "qkv_einsum" in attn:
            query, key, value = jnp.einsum("BTD,SNDH->SBTNH", y, attn["qkv_einsum"]["w"])
        else:
            query = jnp.einsum("BTD,NDH->BTNH", y, attn["q_einsum"]["w"])
            key, value = jnp.einsum("BSD,CKDH->CBSKH", y, attn["kv_einsum"]["w"])
        y = attend(rotate(query), rotate(key), value)
        x = x + jnp.einsum("BTNH,NHD->BTD", y, attn["attn_vec_einsum"]["w"])
        y = rms_norm(x, 1 + block["pre_ffw_norm"]["scale"])
        x = x + gated(y, *(mlp[f"{name}_proj"]["kernel"] for name in ("gate", "up", "down")), act=jax.nn.gelu)
    logits = rms_norm(x, 1 + p["final_norm"]["scale"]) @ p["embedder"]["input_embedding"].T
    return jnp.tanh(logits / 30.0) * 30.0


def tunix(p, tokens):
    x = p["embedder"]["input_embedding"][(tokens,)]
    for block in p["layers"].values():
        attn, mlp = block["attn"], block["mlp"]
        y = rms_norm(x, block["input_layernorm"]["w"])
        query, key, value = (jnp.einsum("BTD,DNH->BTNH", y, attn[f"{name}_proj"]["w"]) for name in "qkv")
        x = x + jnp.einsum("BTNH,NHD->BTD", attend(rotate(query), rotate(key), value), attn["o_proj"]["w"])
        y = rms_norm(x, block["post_attention_layernorm"]["w"])
        x = x + gated(y, *(mlp[f"{name}_proj"]["kernel"] for name in ("gate", "up", "down")))
    return jnp.einsum("BTD,DV->BTV", rms_norm(x, p["final_norm"]["w"]), p["lm_head"]["w"])


# lm1b: Linen modules, whose names are the tree's


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(64)(nn.Dropout(0.1)(x, deterministic=True))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(4, use_bias=False)(nn.LayerNorm()(x), mask=mask)
        return x + MlpBlock()(nn.LayerNorm()(x))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(300, 64)(tokens) + jnp.sin(jnp.arange(8)[:, None] / jnp.arange(1, 65))
        x = Block(name="encoderdecoderblock_0")(x, nn.make_causal_mask(tokens))
        return nn.Dense(300, name="logitdense")(nn.LayerNorm(name="encoderdecoder_norm")(x))


def lm1b(p, tokens):
    return Decoder().apply({"params": p["decoder"]}, tokens)


# MaxText: a scan over the second axis of each parameter


def scanned(block, x, layers):
    in_front = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), layers)
    step = lambda x, layer: (jax.checkpoint(block)(layer, x).astype(x.dtype), None)
    return lax.scan(step, x, in_front)[0]


def maxtext_decoder(p, tokens, run):
    x = run(p["decoder"], p["token_embedder"]["embedding"][tokens])
    return rms_norm(x, p["decoder"]["decoder_norm"]["scale"]) @ p["decoder"]["logits_dense"]["kernel"]


def general(x, kernel, axes=1):
    """A product over the last axes of the inputs and the first ones of the kernel."""
    return lax.dot_general(x, kernel, ((tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))), ((), ())))


def attention(p, x):
    query, key, value = (general(x, p[name]["kernel"]) for name in ("query", "key", "value"))
    return general(attend(rotate(query), rotate(key), value), p["out"]["kernel"], 2)


def latent_attention(p, x):
    """Low-rank queries, and keys and values; a part of each head, the same for all key heads, is rotated."""
    query = general(rms_norm(general(x, p["wq_a"]["kernel"]), p["q_norm"]["scale"]), p["wq_b"]["kernel"])
    low_rank, rotated = jnp.split(general(x, p["wkv_a"]["kernel"]), [512], -1)
    key, value = jnp.split(general(rms_norm(low_rank, p["kv_norm"]["scale"]), p["wkv_b"]["kernel"]), 2, -1)
    plain, own = jnp.split(query, 2, -1)
    rotated = jnp.broadcast_to(rotate(rotated[:, :, None]), key.shape)
    y = attend(jnp.concatenate([plain, rotate(own)], -1), jnp.concatenate([key, rotated], -1), value)
    return general(y, p["out"]["kernel"], 2)


def mlp(p, x):
    return gated(x, *(p[name]["kernel"] for name in ("wi_0", "wi_1", "wo")))


def every_expert(p, x, weights, chosen):
    h = jax.nn.silu(jnp.einsum("BSM,EMH->BSEH", x, p["wi_0"])) * jnp.einsum("BSM,EMH->BSEH", x, p["wi_1"])
    share = (jax.nn.one_hot(chosen, 4) * weights[..., None]).sum(2)
    return jnp.einsum("BSEM,BSE->BSM", jnp.einsum("BSEH,EHM->BSEM", h, p["wo"]), share)


def experts_with_capacity(p, x, weights, chosen, capacity=6):
    mask = jax.nn.one_hot(chosen, 4)  # (B, S, K, E)
    place = jnp.cumsum(mask.reshape(2, -1, 4), 1).reshape(mask.shape) * mask
    dispatch = mask[..., None] * jax.nn.one_hot(place.astype(int) - 1, capacity)  # (B, S, K, E, C)
    sent = jnp.einsum("BSM,BSEC->EBCM", x, dispatch.sum(2))
    h = jax.nn.silu(jnp.einsum("EBCM,EMH->EBCH", sent, p["wi_0"])) * jnp.einsum("EBCM,EMH->EBCH", sent, p["wi_1"])
    y = jnp.einsum("EBCH,EHM->EBCM", h, p["wo"])
    return jnp.einsum("EBCM,BSEC->BSM", y, (dispatch * weights[..., None, None]).sum(2))


def sorted_experts(p, x, weights, chosen):
    tokens, flat = x.reshape(-1, 64), chosen.ravel()
    order, sizes = jnp.argsort(flat), jnp.bincount(flat, length=4)
    rows = tokens[order // 2]
    h = jax.nn.silu(lax.ragged_dot(rows, p["wi_0"], sizes)) * lax.ragged_dot(rows, p["wi_1"], sizes)
    y = lax.ragged_dot(h, p["wo"], sizes)[jnp.argsort(order)]
    return jnp.einsum("TKM,TK->TM", y.reshape(-1, 2, 64), weights.reshape(-1, 2)).reshape(x.shape)


def gathered_experts(p, x, weights, chosen):
    wi_0, wi_1, wo = (p[name][chosen] for name in ("wi_0", "wi_1", "wo"))  # (B, S, K, M, H)
    h = jax.nn.silu(jnp.einsum("BSM,BSKMH->BSKH", x, wi_0)) * jnp.einsum("BSM,BSKMH->BSKH", x, wi_1)
    return jnp.einsum("BSKM,BSK->BSM", jnp.einsum("BSKH,BSKHM->BSKM", h, wo), weights)


def experts_in_pallas(p, x, weights, chosen):
    """MaxText's default route, without what its kernel computes, which no jaxpr shows."""
    run = pallas.pallas_call(lambda *refs: None, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))
    return run(x, p["wi_0"], p["wi_1"], p["wo"], chosen) * weights.sum(-1, keepdims=True)


def experts(p, x, route):
    logits = general(x, p["gate"]["kernel"])
    if "bias" not in p["gate"]:
        weights, chosen = lax.top_k(logits, 2)
        return route(p, x, jax.nn.softmax(weights), chosen)
    scores = jax.nn.sigmoid(logits)  # DeepSeek's bias decides which experts are chosen, and not their weights.
    _, chosen = lax.top_k(scores + p["gate"]["bias"], 2)
    weights = jnp.take_along_axis(scores, chosen, -1)
    return route(p, x, weights / weights.sum(-1, keepdims=True), chosen)


def block_of(attention, feed_forward):
    def block(p, x):
        x = x + attention(p["self_attention"], rms_norm(x, p["pre_self_attention_layer_norm"]["scale"]))
        return x + feed_forward(p, rms_norm(x, p["post_self_attention_layer_norm"]["scale"]))

    return block


def maxtext_llama(p, tokens):
    block = block_of(attention, lambda p, x: mlp(p["mlp"], x))
    return maxtext_decoder(p, tokens, lambda p, x: scanned(block, x, p["layers"]))


def maxtext_experts(route):
    block = block_of(attention, lambda p, x: experts(p["MoeBlock_0"], x, route))
    return lambda p, tokens: maxtext_decoder(p, tokens, lambda p, x: scanned(block, x, p["layers"]))


def maxtext_deepseek(route):
    def routed_and_shared(p, x):
        both = p["DeepSeekMoeBlock_0"]
        return experts(both["MoeBlock_0"], x, route) + mlp(both["shared_experts"], x)

    def run(p, x):
        x = scanned(block_of(latent_attention, lambda p, x: mlp(p["mlp"], x)), x, p["dense_layers"])
        return scanned(block_of(latent_attention, routed_and_shared), x, p["moe_layers"])

    return lambda p, tokens: maxtext_decoder(p, tokens, run)


# Levanter: a scan over blocks of named arrays


def levanter(p, tokens):
    p = jax.tree.map(lambda named: named.array, p, is_leaf=lambda node: hasattr(node, "array"))
    affine = lambda p, x, axes=1: general(x, p["weight"], axes) + p["bias"]
    norm = lambda p, x: layer_norm(x, p["weight"], p["bias"])

    @jax.checkpoint
    def block(x, p):
        query, key, value = jnp.unstack(affine(p["attn"]["c_attn"], norm(p["ln_1"], x)), axis=2)
        x = x + affine(p["attn"]["c_proj"], attend(query, key, value), 2)
        return x + affine(p["mlp"]["c_proj"], jax.nn.gelu(affine(p["mlp"]["c_fc"], norm(p["ln_2"], x)))), None

    embedding = p["embeddings"]["token_embeddings"]["weight"]
    x = embedding[tokens] + p["embeddings"]["position_embeddings"]["weight"][: tokens.shape[1]]
    x, _ = lax.scan(block, x, p["transformer"]["blocks"]["stacked"])
    return jnp.einsum("BSD,VD->BSV", norm(p["transformer"]["ln_f"], x), embedding)
