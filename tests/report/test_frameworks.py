"""Trees of every framework and PyTorch's names, from checkpoints: the layers, which way a weight lies, what is none."""

import math

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import tb_optax
from tb_optax._report.formats import open_checkpoint
from tb_optax._report.measuring import Measuring

_WIDTH = 64


def _linen():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            hidden = nn.LayerNorm()(nn.Conv(72, (3, 3), name="a")(inputs))
            return nn.Dense(96, name="c")(nn.Dense(64, name="b")(hidden))

    return Network().init(jax.random.key(0), jnp.ones((1, 4, 4, 64)))["params"]


def _nnx():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Conv(64, 72, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(72, rngs=rngs)
            self.b = nnx.Linear(72, 64, rngs=rngs)
            self.c = nnx.Linear(64, 96, rngs=rngs)

    return nnx.state(Network(nnx.Rngs(0)), nnx.Param)


def _haiku():
    def forward(inputs):
        hidden = hk.LayerNorm(-1, True, True)(hk.Conv2D(72, 3, name="a")(inputs))
        return hk.Linear(96, name="c")(hk.Linear(64, name="b")(hidden))

    return hk.transform(forward).init(jax.random.key(0), jnp.ones((1, 4, 4, 64)))


def _equinox():
    class Network(eqx.Module):
        a: eqx.nn.Conv2d
        norm: eqx.nn.LayerNorm
        b: eqx.nn.Linear
        c: eqx.nn.Linear

    keys = jax.random.split(jax.random.key(0), 3)
    return Network(
        eqx.nn.Conv2d(64, 72, 3, key=keys[0]),
        eqx.nn.LayerNorm(72),
        eqx.nn.Linear(72, 64, key=keys[1]),
        eqx.nn.Linear(64, 96, key=keys[2]),
    )


@pytest.mark.parametrize("make", [_linen, _nnx, _haiku, _equinox])
def test_a_tree_of_each_framework_has_its_layers(make):
    params = make()
    report = tb_optax.report(params)
    assert [record.layer[-1] for record in report.records] == ["a", "b", "c"]
    assert [math.prod(record.shape) for record in report.records] == [9 * 64 * 72, 72 * 64, 64 * 96]
    assert [record.matrices for record in report.records] == [9, 1, 1]
    training = tb_optax.spectra(params)
    for record in report.records:
        np.testing.assert_allclose(record.eigenvalues, training[record.layer], rtol=2e-4, atol=1e-7)


# Networks of PyTorch, by names and shapes: (name, shape) of their state dictionaries, of width 64.


def _linear(name, outputs, inputs, bias=True):
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name, size=_WIDTH, bias=True):
    return {f"{name}.weight": (size,)} | ({f"{name}.bias": (size,)} if bias else {})


def _gpt2():
    """Its `Conv1D` has inputs first, and its masks are called `bias`."""
    block = "transformer.h.0"
    conv1d = lambda name, inputs, outputs: {f"{block}.{name}.weight": (inputs, outputs), f"{block}.{name}.bias": (outputs,)}
    return {
        "transformer.wte.weight": (500, _WIDTH),
        "transformer.wpe.weight": (128, _WIDTH),
        **_norm(f"{block}.ln_1"),
        f"{block}.attn.bias": (1, 1, 128, 128),
        f"{block}.attn.masked_bias": (),
        **conv1d("attn.c_attn", _WIDTH, 3 * _WIDTH),
        **conv1d("attn.c_proj", _WIDTH, _WIDTH),
        **conv1d("mlp.c_fc", _WIDTH, 4 * _WIDTH),
        **conv1d("mlp.c_proj", 4 * _WIDTH, _WIDTH),
        **_norm("transformer.ln_f"),
        "lm_head.weight": (500, _WIDTH),
    }


def _llama():
    block = "model.layers.0"
    sizes = {"q": (_WIDTH, _WIDTH), "k": (56, _WIDTH), "v": (56, _WIDTH), "o": (_WIDTH, _WIDTH)}
    return {
        "model.embed_tokens.weight": (500, _WIDTH),
        **{f"{block}.self_attn.{name}_proj.weight": size for name, size in sizes.items()},
        **{f"{block}.mlp.{name}_proj.weight": (172, _WIDTH) for name in ("gate", "up")},
        f"{block}.mlp.down_proj.weight": (_WIDTH, 172),
        **_norm(f"{block}.input_layernorm", bias=False),
        **_norm(f"{block}.post_attention_layernorm", bias=False),
        **_norm("model.norm", bias=False),
        "lm_head.weight": (500, _WIDTH),
    }


def _resnet():
    norm = lambda name, size: _norm(name, size) | {f"{name}.running_mean": (size,), f"{name}.running_var": (size,)}
    return {
        "conv1.weight": (64, 3, 7, 7),
        **norm("bn1", 64),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        **norm("layer1.0.bn1", 64),
        "layer1.0.bn1.num_batches_tracked": "int64",
        "layer1.0.downsample.0.weight": (128, 64, 1, 1),
        **norm("layer1.0.downsample.1", 128),
        **_linear("fc", 100, 128),
    }


def _vit():
    block = "vit.encoder.layer.0"
    return {
        "vit.embeddings.cls_token": (1, 1, _WIDTH),
        "vit.embeddings.position_embeddings": (1, 197, _WIDTH),
        "vit.embeddings.patch_embeddings.projection.weight": (_WIDTH, 3, 16, 16),
        "vit.embeddings.patch_embeddings.projection.bias": (_WIDTH,),
        **_linear(f"{block}.attention.attention.query", _WIDTH, _WIDTH),
        **_linear(f"{block}.intermediate.dense", 256, _WIDTH),
        **_linear(f"{block}.output.dense", _WIDTH, 256),
        **_norm(f"{block}.layernorm_before"),
        **_linear("classifier", 10, _WIDTH),
    }


def _torchvision_vit():
    block = "encoder.layers.encoder_layer_0"
    return {
        "class_token": (1, 1, _WIDTH),
        "encoder.pos_embedding": (1, 197, _WIDTH),
        "conv_proj.weight": (_WIDTH, 3, 16, 16),
        "conv_proj.bias": (_WIDTH,),
        f"{block}.self_attention.in_proj_weight": (3 * _WIDTH, _WIDTH),
        f"{block}.self_attention.in_proj_bias": (3 * _WIDTH,),
        **_linear(f"{block}.self_attention.out_proj", _WIDTH, _WIDTH),
        **_norm(f"{block}.ln_1"),
        **_linear(f"{block}.mlp.0", 256, _WIDTH),
        **_linear("heads.head", 10, _WIDTH),
    }


def _bert():
    return {
        "embeddings.word_embeddings.weight": (500, _WIDTH),
        "embeddings.position_embeddings.weight": (128, _WIDTH),
        "embeddings.position_ids": "int64",
        **_norm("embeddings.LayerNorm"),
        **_linear("encoder.layer.0.attention.self.query", _WIDTH, _WIDTH),
        **_norm("encoder.layer.0.attention.output.LayerNorm"),
        **_linear("encoder.layer.0.output.dense", _WIDTH, 256),
        **_linear("pooler.dense", _WIDTH, _WIDTH),
    }


def _t5():
    block = "encoder.block.0.layer"
    return {
        "shared.weight": (500, _WIDTH),
        f"{block}.0.SelfAttention.q.weight": (_WIDTH, _WIDTH),
        f"{block}.0.SelfAttention.relative_attention_bias.weight": (32, 8),
        **_norm(f"{block}.0.layer_norm", bias=False),
        f"{block}.1.DenseReluDense.wi.weight": (256, _WIDTH),
        "lm_head.weight": (500, _WIDTH),
    }


def _whisper():
    return {
        "model.encoder.conv1.weight": (_WIDTH, 80, 3),
        "model.encoder.conv1.bias": (_WIDTH,),
        "model.encoder.embed_positions.weight": (1500, _WIDTH),
        **_linear("model.encoder.layers.0.fc1", 256, _WIDTH),
        **_linear("model.encoder.layers.0.self_attn.k_proj", _WIDTH, _WIDTH, bias=False),
    }


# Per network: layers with the number of their matrices, and which axes are inputs; of what was left out, a reason's start.
_NETWORKS = {
    _gpt2: (
        {
            "lm_head": (1, (1,)),
            "transformer.h.0.attn.c_attn": (1, (0,)),
            "transformer.h.0.attn.c_proj": (1, (1,)),  # Square: nothing tells, and the spectrum is the same.
            "transformer.h.0.mlp.c_fc": (1, (0,)),
            "transformer.h.0.mlp.c_proj": (1, (0,)),
        },
        {
            "transformer.h.0.attn.bias": "a bias",
            "transformer.wpe.weight": "an embedding",
            "transformer.wte.weight": "an embedding",
        },
    ),
    _llama: (
        {"lm_head": (1, (1,))}
        | {f"model.layers.0.mlp.{name}_proj": (1, (1,)) for name in ("down", "gate", "up")}
        | {f"model.layers.0.self_attn.{name}_proj": (1, (1,)) for name in "koqv"},
        {"model.embed_tokens.weight": "an embedding"},
    ),
    _resnet: (
        {
            "conv1": (49, (1,)),
            "fc": (1, (1,)),
            "layer1.0.conv1": (9, (1,)),
            "layer1.0.downsample.0": (1, (1,)),
        },
        {"layer1.0.bn1.num_batches_tracked": "its dtype"},
    ),
    _vit: (
        {
            "vit.embeddings.patch_embeddings.projection": (256, (1,)),
            "vit.encoder.layer.0.attention.attention.query": (1, (1,)),
            "vit.encoder.layer.0.intermediate.dense": (1, (1,)),
            "vit.encoder.layer.0.output.dense": (1, (1,)),
        },
        {
            "classifier.weight": "10 eigenvalues",
            "vit.embeddings.cls_token": "a table or a buffer",
            "vit.embeddings.position_embeddings": "an embedding",
        },
    ),
    _torchvision_vit: (
        {
            "conv_proj": (256, (1,)),
            "encoder.layers.encoder_layer_0.mlp.0": (1, (1,)),
            "encoder.layers.encoder_layer_0.self_attention": (1, (1,)),
            "encoder.layers.encoder_layer_0.self_attention.out_proj": (1, (1,)),
        },
        {
            "class_token": "a table or a buffer",
            "encoder.pos_embedding": "an embedding",
            "heads.head.weight": "10 eigenvalues",
        },
    ),
    _bert: (
        {
            "encoder.layer.0.attention.self.query": (1, (1,)),
            "encoder.layer.0.output.dense": (1, (1,)),
            "pooler.dense": (1, (1,)),
        },
        {
            "embeddings.position_embeddings.weight": "an embedding",
            "embeddings.position_ids": "its dtype",
            "embeddings.word_embeddings.weight": "an embedding",
        },
    ),
    _t5: (
        {
            "encoder.block.0.layer.0.SelfAttention.q": (1, (1,)),
            "encoder.block.0.layer.1.DenseReluDense.wi": (1, (1,)),
            "lm_head": (1, (1,)),
        },
        {
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "an embedding",
            "shared.weight": "an embedding",
        },
    ),
    _whisper: (
        {
            "model.encoder.conv1": (3, (1,)),
            "model.encoder.layers.0.fc1": (1, (1,)),
            "model.encoder.layers.0.self_attn.k_proj": (1, (1,)),
        },
        {"model.encoder.embed_positions.weight": "an embedding"},
    ),
}


@pytest.mark.parametrize("make", _NETWORKS)
def test_pytorchs_names_are_understood(make, tmp_path):
    expected, left_out = _NETWORKS[make]
    random = np.random.default_rng(0)
    arrays = {
        name: np.zeros((1, 128), np.int64) if shape == "int64" else random.standard_normal(shape).astype(np.float16)
        for name, shape in make().items()
    }
    save_file({name: np.asarray(array) for name, array in arrays.items()}, tmp_path / "model.safetensors")
    measuring = Measuring(open_checkpoint(tmp_path))
    for _ in measuring.steps():
        pass
    report = measuring.report()
    assert [record.layer for record in report.records] == list(expected)
    found = {
        layer.name: (record.matrices, layer.reduction_axes)
        for layer, record in zip(measuring.layers, report.records, strict=True)
    }
    assert found == expected
    assert set(report.left_out) == set(left_out)
    for path, reason in report.left_out.items():
        assert reason.startswith(left_out[path])
    for record in report.records:
        weight = arrays[record.kernel].astype(np.float64)
        matrices = weight.reshape(*weight.shape[:2], -1).transpose(2, 0, 1)
        values = np.sort(np.linalg.svd(matrices, compute_uv=False).ravel() ** 2)
        np.testing.assert_allclose(record.lambda_max * (2 if weight.ndim > 2 else 1), values[-1], rtol=1e-5)
        assert len(record.eigenvalues) == len(values)
