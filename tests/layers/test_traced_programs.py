"""`trace_layers` reads each kernel as its program multiplies with it, in the forward passes of `forward_passes.py`."""

import forward_passes as passes
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas
from test_programs import PROGRAMS, tree

import tb_optax
from tb_optax._layers.layer import kernel_shape

TOKENS = jax.ShapeDtypeStruct((2, 8), jnp.int32)

ROUTES = (passes.every_expert, passes.experts_with_capacity, passes.sorted_experts, passes.gathered_experts)
EMBEDDING = "an embedding"
MAXTEXT_ENDS = {"token_embedder/embedding": EMBEDDING, "decoder/logits_dense/kernel": "the last layer"}
# For each forward pass: the program, and what is left out of it.
FORWARD_PASSES = {
    "Gemma": (passes.gemma, "Flax Gemma", {"embedder/input_embedding": "the first layer"}),
    "Gemma, all heads": (passes.gemma, "Flax Gemma, as many heads of keys", {"embedder/input_embedding": "the first layer"}),
    "lm1b": (
        passes.lm1b,
        "Flax lm1b",
        {"decoder/Embed_0/embedding": EMBEDDING, "decoder/logitdense/kernel": "the last layer"},
    ),
    "MaxText Llama": (passes.maxtext_llama, "MaxText Llama", MAXTEXT_ENDS),
    **{
        f"MaxText {route.__name__}": (passes.maxtext_experts(route), "MaxText mixture of experts", MAXTEXT_ENDS)
        for route in ROUTES
    },
    **{
        f"DeepSeek {route.__name__}": (passes.maxtext_deepseek(route), "MaxText DeepSeek, one dense layer", MAXTEXT_ENDS)
        for route in ROUTES
    },
    "Tunix": (passes.tunix, "Tunix Llama 3", {"embedder/input_embedding": EMBEDDING, "lm_head/w": "the last layer"}),
    "Levanter": (
        passes.levanter,
        "Levanter GPT-2, named arrays",
        {
            "embeddings/token_embeddings/weight": "the first layer",
            "embeddings/position_embeddings/weight": "no matrix product with it in the forward pass",
        },
    ),
}


FOLLOWERS = (
    *(f"{layer}/bias" for layer in ("Dense_0", "Dense_1", "c_attn", "c_fc", "c_proj")),
    "q_norm/scale",
    "kv_norm/scale",
)


def trace(forward, program, **options):
    written, box = PROGRAMS[program]
    params = tree({path: entry[0] for path, entry in written.items()}, box or (lambda array: array))
    return tb_optax.trace_layers(forward, params, TOKENS, min_eigenvalues=2, **options)


def readings(layers):
    found = {layer.kernel: kernel_shape(layer, layers.shapes[layer.kernel]) for layer in layers}
    return {path: (each.stack, each.matrices, each.rows, each.columns) for path, each in found.items()}


def expected_readings(program):
    written, _ = PROGRAMS[program]
    return {path: (entry[1], 1, *entry[2:]) for path, entry in written.items() if len(entry) > 1}


@pytest.mark.parametrize("name", FORWARD_PASSES)
def test_every_kernel_is_read_as_its_program_multiplies_with_it(name):
    forward, program, left_out = FORWARD_PASSES[name]
    layers = trace(forward, program)
    expected = expected_readings(program)
    assert readings(layers) == {path: reading for path, reading in expected.items() if path not in left_out}
    assert layers.left_out == left_out
    written, _ = PROGRAMS[program]
    assert {path for layer in layers for path in layer.follows} == {path for path in written if path.endswith(FOLLOWERS)}


@pytest.mark.parametrize(("name", "embedding"), [("Gemma", (64, 512)), ("Levanter", (64, 128)), ("lm1b", None)])
def test_the_last_layer_is_read_too_if_it_is_asked_for(name, embedding):
    forward, program, left_out = FORWARD_PASSES[name]
    tied = {next(iter(left_out)): ((), 1, *embedding)} if embedding else {}
    assert readings(trace(forward, program, first_and_last=True)) == expected_readings(program) | tied


def test_experts_in_a_pallas_kernel_are_left_out_with_that_reason():
    layers = trace(passes.maxtext_experts(passes.experts_in_pallas), "MaxText mixture of experts")
    reason = "it is an operand of pallas_call, which cannot be read; if it is a layer, describe it in a Layer"
    experts = {f"decoder/layers/MoeBlock_0/{name}": reason for name in ("wi_0", "wi_1", "wo")}
    assert layers.left_out == experts | MAXTEXT_ENDS
    assert len(layers) == 5


def test_a_pallas_kernel_may_be_the_first_layer_or_the_last():
    product = pallas.pallas_call(lambda *refs: None, out_shape=jax.ShapeDtypeStruct((8, 64), jnp.float32))
    params = {name: jax.ShapeDtypeStruct((64, 64), jnp.float32) for name in ("w1", "w2", "w3")}
    forward = lambda p, x: product(product(x, p["w1"]) @ p["w2"], p["w3"])
    layers = tb_optax.trace_layers(forward, params, jax.ShapeDtypeStruct((8, 64), jnp.float32))
    assert [layer.name for layer in layers] == ["w2"]
    assert list(layers.left_out) == ["w1", "w3"]
