"""Parameter trees of training programs, written down as shapes (reduced in size), with the reading of each kernel beside it.

The readings are from the programs' own products: Flax's Gemma and lm1b, MaxText (mixture of experts, latent attention, one
dense layer), Tunix's Llama 3, Levanter's GPT-2.
"""

import jax
import jax.numpy as jnp
import pytest

import tb_optax
from tb_optax._layers.layer import kernel_shape


class Named:
    """A named array of Haliax: a node with one child that has no key."""

    def __init__(self, array):
        self.array = array


jax.tree_util.register_pytree_node(Named, lambda node: ((node.array,), None), lambda _, children: Named(*children))


def tree(shapes, box=lambda array: array):
    """Nested dicts of shapes, from a flat one."""
    found = {}
    for path, shape in shapes.items():
        *modules, name = path.split("/")
        node = found
        for module in modules:
            node = node.setdefault(module, {})
        node[name] = box(jax.ShapeDtypeStruct(shape, jnp.float32))
    return found


def norm(module, size):
    return {f"{module}/scale": ((size,),), f"{module}/bias": ((size,),)}


# For each kernel: its shape; then the stack and the sides of its matrices. What is no kernel has its shape alone.
GEMMA = {
    "layers/0/attn/q_einsum/w": ((4, 64, 32), (), 64, 128),
    "layers/0/attn/kv_einsum/w": ((2, 2, 64, 32), (), 64, 128),
    "layers/0/attn/attn_vec_einsum/w": ((4, 32, 64), (), 128, 64),
    "layers/0/mlp/gate_proj/kernel": ((64, 256), (), 64, 256),
    "layers/0/mlp/up_proj/kernel": ((64, 256), (), 64, 256),
    "layers/0/mlp/down_proj/kernel": ((256, 64), (), 256, 64),
    "layers/0/pre_attention_norm/scale": ((64,),),
    "layers/0/pre_ffw_norm/scale": ((64,),),
    "final_norm/scale": ((64,),),
    "embedder/input_embedding": ((512, 64),),
}
GEMMA_ALL_HEADS = {**GEMMA, "layers/0/attn/qkv_einsum/w": ((3, 4, 64, 32), (), 64, 384)}
del GEMMA_ALL_HEADS["layers/0/attn/q_einsum/w"], GEMMA_ALL_HEADS["layers/0/attn/kv_einsum/w"]
LM1B = {
    "decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/query/kernel": ((64, 4, 16), (), 64, 64),
    "decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/key/kernel": ((64, 4, 16), (), 64, 64),
    "decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/value/kernel": ((64, 4, 16), (), 64, 64),
    "decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/out/kernel": ((4, 16, 64), (), 64, 64),
    "decoder/encoderdecoderblock_0/MlpBlock_0/Dense_0/kernel": ((64, 256), (), 64, 256),
    "decoder/encoderdecoderblock_0/MlpBlock_0/Dense_0/bias": ((256,),),
    "decoder/encoderdecoderblock_0/MlpBlock_0/Dense_1/kernel": ((256, 64), (), 256, 64),
    "decoder/encoderdecoderblock_0/MlpBlock_0/Dense_1/bias": ((64,),),
    **norm("decoder/encoderdecoderblock_0/LayerNorm_0", 64),
    **norm("decoder/encoderdecoderblock_0/LayerNorm_1", 64),
    **norm("decoder/encoderdecoder_norm", 64),
    "decoder/Embed_0/embedding": ((300, 64),),
    "decoder/logitdense/kernel": ((64, 300), (), 64, 300),
    "decoder/logitdense/bias": ((300,),),
}
MAXTEXT_LLAMA = {
    "decoder/layers/self_attention/query/kernel": ((64, 3, 4, 16), (3,), 64, 64),
    "decoder/layers/self_attention/key/kernel": ((64, 3, 2, 16), (3,), 64, 32),
    "decoder/layers/self_attention/value/kernel": ((64, 3, 2, 16), (3,), 64, 32),
    "decoder/layers/self_attention/out/kernel": ((4, 3, 16, 64), (3,), 64, 64),
    "decoder/layers/mlp/wi_0/kernel": ((64, 3, 128), (3,), 64, 128),
    "decoder/layers/mlp/wi_1/kernel": ((64, 3, 128), (3,), 64, 128),
    "decoder/layers/mlp/wo/kernel": ((128, 3, 64), (3,), 128, 64),
    "decoder/layers/pre_self_attention_layer_norm/scale": ((64, 3),),
    "decoder/layers/post_self_attention_layer_norm/scale": ((64, 3),),
    "decoder/decoder_norm/scale": ((64,),),
    "decoder/logits_dense/kernel": ((64, 256), (), 64, 256),
    "token_embedder/embedding": ((256, 64),),
}
MAXTEXT_EXPERTS = {
    **{path: entry for path, entry in MAXTEXT_LLAMA.items() if "/mlp/" not in path},
    "decoder/layers/MoeBlock_0/gate/kernel": ((64, 3, 4), (3,), 64, 4),
    "decoder/layers/MoeBlock_0/wi_0": ((4, 3, 64, 128), (4, 3), 64, 128),
    "decoder/layers/MoeBlock_0/wi_1": ((4, 3, 64, 128), (4, 3), 64, 128),
    "decoder/layers/MoeBlock_0/wo": ((4, 3, 128, 64), (4, 3), 128, 64),
}


def latent_attention(layers, count):
    """MaxText's latent attention, with the norms of its block."""
    return {
        f"{layers}/self_attention/wq_a/kernel": ((64, count, 512), (count,), 64, 512),
        f"{layers}/self_attention/wq_b/kernel": ((512, count, 8, 128), (count,), 512, 1024),
        f"{layers}/self_attention/wkv_a/kernel": ((64, count, 576), (count,), 64, 576),
        f"{layers}/self_attention/wkv_b/kernel": ((512, count, 8, 128), (count,), 512, 1024),
        f"{layers}/self_attention/out/kernel": ((8, count, 64, 64), (count,), 512, 64),
        f"{layers}/self_attention/q_norm/scale": ((512, count),),
        f"{layers}/self_attention/kv_norm/scale": ((512, count),),
        f"{layers}/pre_self_attention_layer_norm/scale": ((64, count),),
        f"{layers}/post_self_attention_layer_norm/scale": ((64, count),),
    }


MAXTEXT_DEEPSEEK = {
    **latent_attention("decoder/dense_layers", 1),
    "decoder/dense_layers/mlp/wi_0/kernel": ((64, 1, 128), (1,), 64, 128),
    "decoder/dense_layers/mlp/wi_1/kernel": ((64, 1, 128), (1,), 64, 128),
    "decoder/dense_layers/mlp/wo/kernel": ((128, 1, 64), (1,), 128, 64),
    **latent_attention("decoder/moe_layers", 2),
    "decoder/moe_layers/DeepSeekMoeBlock_0/MoeBlock_0/gate/kernel": ((64, 2, 4), (2,), 64, 4),
    "decoder/moe_layers/DeepSeekMoeBlock_0/MoeBlock_0/gate/bias": ((4, 2),),
    "decoder/moe_layers/DeepSeekMoeBlock_0/MoeBlock_0/wi_0": ((4, 2, 64, 32), (4, 2), 64, 32),
    "decoder/moe_layers/DeepSeekMoeBlock_0/MoeBlock_0/wi_1": ((4, 2, 64, 32), (4, 2), 64, 32),
    "decoder/moe_layers/DeepSeekMoeBlock_0/MoeBlock_0/wo": ((4, 2, 32, 64), (4, 2), 32, 64),
    "decoder/moe_layers/DeepSeekMoeBlock_0/shared_experts/wi_0/kernel": ((64, 2, 32), (2,), 64, 32),
    "decoder/moe_layers/DeepSeekMoeBlock_0/shared_experts/wi_1/kernel": ((64, 2, 32), (2,), 64, 32),
    "decoder/moe_layers/DeepSeekMoeBlock_0/shared_experts/wo/kernel": ((32, 2, 64), (2,), 32, 64),
    "decoder/decoder_norm/scale": ((64,),),
    "decoder/logits_dense/kernel": ((64, 256), (), 64, 256),
    "token_embedder/embedding": ((256, 64),),
}
TUNIX = {
    "layers/0/attn/q_proj/w": ((64, 4, 16), (), 64, 64),
    "layers/0/attn/k_proj/w": ((64, 2, 16), (), 64, 32),
    "layers/0/attn/v_proj/w": ((64, 2, 16), (), 64, 32),
    "layers/0/attn/o_proj/w": ((4, 16, 64), (), 64, 64),
    "layers/0/mlp/gate_proj/kernel": ((64, 128), (), 64, 128),
    "layers/0/mlp/up_proj/kernel": ((64, 128), (), 64, 128),
    "layers/0/mlp/down_proj/kernel": ((128, 64), (), 128, 64),
    "layers/0/input_layernorm/w": ((64,),),
    "layers/0/post_attention_layernorm/w": ((64,),),
    "final_norm/w": ((64,),),
    "embedder/input_embedding": ((256, 64),),
    "lm_head/w": ((64, 256), (), 64, 256),
}
LEVANTER = {
    "transformer/blocks/stacked/attn/c_attn/weight": ((60, 64, 3, 4, 16), (60,), 64, 192),
    "transformer/blocks/stacked/attn/c_attn/bias": ((60, 3, 4, 16),),
    "transformer/blocks/stacked/attn/c_proj/weight": ((60, 4, 16, 64), (60,), 64, 64),
    "transformer/blocks/stacked/attn/c_proj/bias": ((60, 64),),
    "transformer/blocks/stacked/mlp/c_fc/weight": ((60, 64, 256), (60,), 64, 256),
    "transformer/blocks/stacked/mlp/c_fc/bias": ((60, 256),),
    "transformer/blocks/stacked/mlp/c_proj/weight": ((60, 256, 64), (60,), 256, 64),
    "transformer/blocks/stacked/mlp/c_proj/bias": ((60, 64),),
    "transformer/blocks/stacked/ln_1/weight": ((60, 64),),
    "transformer/blocks/stacked/ln_1/bias": ((60, 64),),
    "transformer/blocks/stacked/ln_2/weight": ((60, 64),),
    "transformer/blocks/stacked/ln_2/bias": ((60, 64),),
    "transformer/ln_f/weight": ((64,),),
    "transformer/ln_f/bias": ((64,),),
    "embeddings/token_embeddings/weight": ((128, 64),),
    "embeddings/position_embeddings/weight": ((32, 64),),
}

PROGRAMS = {
    "Flax Gemma": (GEMMA, None),
    "Flax Gemma, as many heads of keys": (GEMMA_ALL_HEADS, None),
    "Flax lm1b": (LM1B, None),
    "MaxText Llama": (MAXTEXT_LLAMA, None),
    "MaxText mixture of experts": (MAXTEXT_EXPERTS, None),
    "MaxText DeepSeek, one dense layer": (MAXTEXT_DEEPSEEK, None),
    "Tunix Llama 3": (TUNIX, None),
    "Levanter GPT-2, named arrays": (LEVANTER, Named),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_kernel_of_a_program_is_read_as_the_program_multiplies_with_it(program):
    written, box = PROGRAMS[program]
    shapes = {path: entry[0] for path, entry in written.items()}
    layers = tb_optax.find_layers(tree(shapes, box or (lambda array: array)), min_eigenvalues=2)
    found = {layer.kernel: kernel_shape(layer, layers.shapes[layer.kernel]) for layer in layers}
    assert {path: (each.stack, each.matrices, each.rows, each.columns) for path, each in found.items()} == {
        path: (entry[1], 1, *entry[2:]) for path, entry in written.items() if len(entry) > 1
    }


@pytest.mark.parametrize("norm", ["input_layernorm", "ln_1", "q_norm", "norm1"])
def test_a_stack_of_norms_without_biases_is_no_kernel_and_tells_the_stack(norm):
    blocks = "transformer/layers/stacked"
    shapes = {f"{blocks}/{norm}/weight": (60, 64), f"{blocks}/mlp/up_proj/weight": (60, 128, 64)}
    layers = tb_optax.find_layers(tree(shapes, Named))
    assert [(layer.kernel, layer.layer_axes) for layer in layers] == [(f"{blocks}/mlp/up_proj/weight", (0,))]
    assert layers.left_out == {f"{blocks}/{norm}/weight": "a bias or normalization"}
