"""Each kind of weight is read right by names, shapes and neighbours, or left out with the reason: none is read wrongly."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tb_optax
from tb_optax._layers.layer import kernel_shape


def shapes(tree):
    is_shape = lambda node: isinstance(node, tuple) and all(isinstance(size, int) for size in node)
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), tree, is_leaf=is_shape)


def read(tree, **options):
    """For each kernel: its stack, how many matrices share a spectrum, and their two sides."""
    tree = shapes(tree)
    layers = tb_optax.find_layers(tree, min_eigenvalues=2, **options)
    found = {layer.kernel: kernel_shape(layer, layers.shapes[layer.kernel]) for layer in layers}
    return {path: (each.stack, each.matrices, each.rows, each.columns) for path, each in found.items()}, layers


DENSE = lambda rows, columns, stack=(): (stack, 1, rows, columns)
CONV = lambda matrices, rows, columns: ((), matrices, rows, columns)

# By kind: a tree, and how each kernel is to be read; a text is a part of the reason for which it is left out.
KINDS = {
    "attention, embed first, fewer heads of keys": (
        {
            "attn": {
                **{"q_proj": {"w": (96, 6, 20)}, "k_proj": {"w": (96, 2, 20)}, "v_proj": {"w": (96, 2, 20)}},
                "o_proj": {"w": (6, 20, 96)},
            },
            "norm": {"w": (96,)},
        },
        {
            "attn/q_proj/w": DENSE(96, 120),
            **{f"attn/{name}_proj/w": DENSE(96, 40) for name in "kv"},
            "attn/o_proj/w": DENSE(120, 96),
        },
    ),
    "attention, heads first, keys and values in one": (
        {
            "attn": {
                "q_einsum": {"w": (6, 96, 20)},
                "kv_einsum": {"w": (2, 3, 96, 20)},
                "attn_vec_einsum": {"w": (6, 20, 96)},
            }
        },
        {"attn/q_einsum/w": DENSE(96, 120), "attn/kv_einsum/w": DENSE(96, 120), "attn/attn_vec_einsum/w": DENSE(120, 96)},
    ),
    "attention in a stack along the second axis": (
        {
            "layers": {
                "attention": {name: {"kernel": (96, 5, 6, 20)} for name in ("query", "key", "value")}
                | {"out": {"kernel": (6, 5, 20, 96)}},
                "norm": {"scale": (96, 5)},
            }
        },
        {f"layers/attention/{name}/kernel": DENSE(96, 120, (5,)) for name in ("query", "key", "value")}
        | {"layers/attention/out/kernel": DENSE(120, 96, (5,))},
    ),
    "latent attention": (
        {
            "blocks": {
                "attn": {
                    "wq_a": {"kernel": (96, 4, 48)},
                    "wq_b": {"kernel": (48, 4, 6, 20)},
                    "out": {"kernel": (6, 4, 20, 96)},
                },
                "norm": {"scale": (96, 4)},
            }
        },
        {
            "blocks/attn/wq_a/kernel": DENSE(96, 48, (4,)),
            "blocks/attn/wq_b/kernel": DENSE(48, 120, (4,)),
            "blocks/attn/out/kernel": DENSE(120, 96, (4,)),
        },
    ),
    "attention without its output": (
        {"a": {"wk": {"w": (96, 6, 20)}}, "norm": {"scale": (96,)}},
        {"a/wk/w": "attention"},
    ),
    "attention whose sizes fit two readings": (
        {"a": {"wk": {"w": (20, 20, 20)}, "wo": {"w": (20, 20, 20)}}, "n": {"scale": (20,)}},
        {"a/wk/w": "attention", "a/wo/w": "attention"},
    ),
    "dense kernels over several axes that nothing names": (
        {"mixer": {"kernel": (96, 40, 20)}, "norm": {"scale": (96,)}},
        {"mixer/kernel": "a product over several axes"},
    ),
    "experts of a scanned network": (
        {
            "layers": {
                "moe": {"gate": {"kernel": (96, 5, 7)}, "w_in": (7, 5, 96, 200), "w_out": (7, 5, 200, 96)},
                "norm": {"scale": (96, 5)},
            }
        },
        {
            "layers/moe/gate/kernel": DENSE(96, 7, (5,)),
            "layers/moe/w_in": DENSE(96, 200, (7, 5)),
            "layers/moe/w_out": DENSE(200, 96, (7, 5)),
        },
    ),
    "fused experts without a bias": (
        {"mlp.experts.gate_up": (7, 96, 200), "norm.weight": (96,)},
        {"mlp.experts.gate_up": DENSE(96, 200, (7,))},
    ),
    "a stack of one along the second axis": (
        {"dense_layers": {"up": {"kernel": (96, 1, 200)}, "down": {"kernel": (200, 1, 96)}, "norm": {"scale": (96, 1)}}},
        {"dense_layers/up/kernel": DENSE(96, 200, (1,)), "dense_layers/down/kernel": DENSE(200, 96, (1,))},
    ),
    "weight norm by parametrizations, over an axis that is not the first": (
        {
            "enc.conv.parametrizations.weight.original0": (1, 1, 9),
            "enc.conv.parametrizations.weight.original1": (80, 30, 9),
            "enc.conv.bias": (80,),
            "fc.parametrizations.weight.original": (70, 90),
            "fc.bias": (70,),
        },
        {
            "enc.conv.parametrizations.weight.original1": CONV(9, 30, 80),
            "fc.parametrizations.weight.original": DENSE(90, 70),
        },
    ),
    "weight norm by its old names": (
        {"ups.2.weight_g": (90, 1, 1), "ups.2.weight_v": (90, 70, 11), "ups.2.bias": (90,)},
        {"ups.2.weight_v": CONV(11, 70, 90)},
    ),
    "depthwise convolutions, and filters of one channel": (
        {
            "dw": {"kernel": (9, 9, 1, 128), "bias": (128,)},
            "stft.conv.weight": (258, 1, 256),
            "long.weight": (1, 1, 1040),
            "head.weight": (1, 64),
        },
        {"dw/kernel": "81 matrices is a vector", "stft.conv.weight": "256 matrices is a vector"}
        | {"long.weight": "several readings", "head.weight": "its one matrix is a vector"},
    ),
    "a grouped convolution": ({"g": {"kernel": (3, 3, 8, 64), "bias": (64,)}}, {"g/kernel": CONV(9, 8, 64)}),
    "the window of a convolution tells its layout, whatever its name": (
        {
            "stage1/weights:0": (5, 5, 48, 80),
            "net/Conv_7/transpose:0": (300, 200, 7, 1),
            "c.W": (96, 48, 3, 3),
            "n": {"scale": (48,)},
        },
        {
            "stage1/weights:0": CONV(25, 48, 80),
            "net/Conv_7/transpose:0": CONV(7, 200, 300),
            "c.W": CONV(9, 48, 96),
        },
    ),
    "a long window in one dimension, said by a name": (
        {"conv_pos": {"kernel": (200, 48, 96)}, "conv_out.weight": (96, 48, 400), "n": {"scale": (48,)}},
        {"conv_pos/kernel": CONV(200, 48, 96), "conv_out.weight": CONV(400, 48, 96)},
    ),
    "tables and buffers": (
        {
            **{"dec.embed_tokens.3.weight": (300, 64), "emb_m.0.weight": (400, 64), "enc.latents": (64, 96)},
            **{"object_queries_features.weight": (80, 64)},
            **{"a.rel_pos_w": (61, 64), "pos.pe": (1, 300, 64), "a.causal_mask": (1, 1, 90, 90), "r.sin_cached": (90, 64)},
            **{"layers/embedding/vars/0": (300, 64), "layers/dense/vars/0": (64, 90), "layers/dense/vars/1": (90,)},
            **{"q.scales": (80, 400), "vq.codebook": (300, 64), "time_embed.0.weight": (90, 64), "time_embed.0.bias": (90,)},
        },
        {"layers/dense/vars/0": DENSE(64, 90), "time_embed.0.weight": DENSE(64, 90)}
        | dict.fromkeys(("dec.embed_tokens.3.weight", "emb_m.0.weight", "layers/embedding/vars/0"), "an embedding")
        | dict.fromkeys(("enc.latents", "a.rel_pos_w", "pos.pe", "a.causal_mask", "r.sin_cached"), "a table or a buffer")
        | dict.fromkeys(("q.scales", "vq.codebook"), "a table or a buffer")
        | {"object_queries_features.weight": DENSE(64, 80)},  # Nothing in its name says that it is a table.
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_right_or_left_out(kind):
    tree, expected = KINDS[kind]
    found, layers = read(tree)
    assert found == {path: reading for path, reading in expected.items() if not isinstance(reading, str)}
    for path, reason in expected.items():
        if isinstance(reason, str):
            assert reason in layers.left_out[path]


def test_the_gain_of_weight_norm_follows_its_direction():
    layers = tb_optax.find_layers(shapes(KINDS["weight norm by its old names"][0]))
    assert [(layer.name, layer.follows) for layer in layers] == [("ups.2", ("ups.2.bias", "ups.2.weight_g"))]
    tree = KINDS["weight norm by parametrizations, over an axis that is not the first"][0]
    assert {layer.name: layer.follows for layer in tb_optax.find_layers(shapes(tree))} == {
        "enc.conv": ("enc.conv.bias", "enc.conv.parametrizations.weight.original0"),
        "fc": ("fc.bias",),
    }


def test_a_layout_decides_where_sizes_allow_both():
    tree = {"c": {"kernel": (8, 9, 3, 5)}, "n": {"scale": (9,)}}
    assert read(tree)[0] == {"c/kernel": CONV(72, 3, 5)}
    assert read(tree, layout="jax") == read(tree)
    assert read(tree, layout="torch")[0] == {"c/kernel": CONV(15, 9, 8)}
    sizes_tell = {"c": {"kernel": (3, 3, 64, 96)}}
    assert read(sizes_tell, layout="torch")[0] == {"c/kernel": CONV(9, 64, 96)}
    with pytest.raises(ValueError, match="find_layers: layout='hwio' is unknown; give 'torch', 'jax' or None"):
        read(tree, layout="hwio")


def test_a_window_of_one_dimension_may_be_long_in_two():
    tree = {"conv": {"weight": (128, 96, 64, 1), "bias": (128,)}, "other": {"weight": (128, 96, 64, 2), "bias": (128,)}}
    found, layers = read(tree, layout="torch")
    assert found == {"conv/weight": CONV(64, 96, 128)}
    assert "other/weight" in layers.left_out


class Named:
    """An array with named axes, as Haliax has it: a node with one child that has no key."""

    def __init__(self, array):
        self.array = array


jax.tree_util.register_pytree_node(Named, lambda node: ((node.array,), None), lambda _, children: Named(*children))


def test_the_one_child_of_a_named_array_is_the_array():
    tree = shapes({"ln": {"weight": (60, 64), "bias": (60, 64)}, "fc": {"weight": (60, 64, 90), "bias": (60, 90)}})
    boxed = {"blocks": jax.tree.map(Named, tree), "token_embeddings": {"weight": Named(shapes((90, 64)))}}
    layers = tb_optax.find_layers(boxed)
    assert [(layer.kernel, layer.follows, layer.layer_axes) for layer in layers] == [
        ("blocks/fc/weight", ("blocks/fc/bias",), (0,))
    ]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), boxed)
    tx = tb_optax.tempbalance(1, layers=layers)
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_a_field_called_value_beside_others_is_no_box():
    node = jax.tree_util.register_dataclass

    @node
    @dataclasses.dataclass
    class Dual:
        value: jax.Array
        grad: jax.Array

    @node
    @dataclasses.dataclass
    class Box:
        value: jax.Array

    tree = {"a": Dual(jnp.ones((64, 64)), jnp.ones((64, 80))), "b": Box(jnp.ones((64, 64)))}
    assert {layer.kernel for layer in tb_optax.find_layers(tree)} == {"a/value", "a/grad", "b"}


# What is printed, and the warning


def test_printing_shows_how_each_kernel_is_read():
    tree = {
        "blocks": {"up": {"kernel": (12, 64, 96), "bias": (12, 96)}},
        "conv": {"kernel": (3, 3, 64, 80)},
        "attn": {"query": {"kernel": (96, 6, 20)}, "out": {"kernel": (6, 20, 96)}, "norm": {"scale": (96,)}},
    }
    text = str(tb_optax.find_layers(shapes(tree)))
    assert "blocks/up: blocks/up/kernel (12, 64, 96), stack of 12, dense 64 x 96, + blocks/up/bias\n" in text
    assert "conv: conv/kernel (3, 3, 64, 80), 9 matrices of 64 x 80, a convolution\n" in text
    assert "attn/query: attn/query/kernel (96, 6, 20), 96 x 120 over axes 0 and (1, 2)\n" in text
    assert text.endswith("4 layers, with 100% of the parameters")


def test_init_warns_once_where_less_than_half_is_balanced():
    tree = {f"dense{i}": jnp.ones((64, 64)) for i in range(6)} | {
        "odd": jnp.ones((100, 64, 64)),
        "n": {"scale": jnp.ones(64)},
    }
    with pytest.warns(
        UserWarning, match=r"tempbalance balances 6% of the parameters in matrices.*'odd' \(100, 64, 64\)"
    ) as seen:
        tb_optax.tempbalance(1).init(tree)
    assert len(seen) == 1


HIDDEN = {f"dense{i}": (64, 64) for i in range(5)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "tree",
    [
        {**HIDDEN, "embed": {"embedding": (9000, 64)}},
        {**HIDDEN, "table.weight_v": (70, 64), "head": (64, 10)},
    ],
)
def test_init_does_not_warn_of_embeddings_or_small_heads(tree):
    tb_optax.tempbalance(1).init(shapes(tree))


@pytest.mark.parametrize("transform", [tb_optax.tempbalance(1), tb_optax.alphadecay(0.1, 1)])
def test_init_warns_once_below_five_layers(transform):
    with pytest.warns(UserWarning, match=r"balances only 4 layers: the smallest metric and the largest") as seen:
        transform.init(shapes({name: HIDDEN[name] for name in list(HIDDEN)[:4]}))
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transform.init(shapes(HIDDEN))


# Traced layers: an NNX module, and masks


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(60, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(3)])
        self.norm, self.dropout = nnx.BatchNorm(64, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        for layer in self.hidden:
            x = self.dropout(nnx.relu(self.norm(layer(x))))
        return self.last(x)


def test_an_nnx_module_is_traced_as_it_is():
    model = Net(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
    layers = tb_optax.trace_layers(model, jax.ShapeDtypeStruct((2, 60), jnp.float32))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    forward = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)
    assert layers == tb_optax.trace_layers(forward, params, jnp.ones((2, 60), jnp.float32))
    assert [layer.name for layer in layers] == [f"hidden/{i}" for i in range(3)]
    assert not model.dropout.deterministic, "the model itself stays in training mode"
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model, nnx.BatchStat))
    optimizer = nnx.Optimizer(model, optax.chain(optax.adam(1e-3), tb_optax.tempbalance(1, layers=layers)), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))


def test_what_is_no_module_needs_parameters():
    with pytest.raises(TypeError, match="trace_layers: params is missing"):
        tb_optax.trace_layers(lambda params: params)
    with pytest.raises(ValueError, match=r"trace_layers: wrt=.* is for an NNX module"):
        tb_optax.trace_layers(lambda params: params, {}, wrt=nnx.Param)


def mlp(depth=5):
    keys = jax.random.split(jax.random.key(0), depth)
    params = {f"l{i}": {"kernel": jax.random.normal(key, (64, 64)), "bias": jnp.ones(64)} for i, key in enumerate(keys)}

    def apply(params, x):
        for layer in params.values():
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x

    return params, tb_optax.trace_layers(apply, params, jnp.ones((1, 64)))


@pytest.mark.parametrize("where", ["partition", "masked", "muon's split"])
def test_traced_layers_inside_a_mask(where):
    """Hidden followers are dropped, and a hidden kernel leaves its layer out: the others' scales are as without it."""
    params, layers = mlp()
    assert [layer.name for layer in layers] == ["l1", "l2", "l3"]
    tb = tb_optax.tempbalance(1, layers=layers)
    kernels = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    if where == "partition":
        labels = jax.tree.map(lambda is_kernel: "matrix" if is_kernel else "rest", kernels)
        tx = optax.partition({"matrix": optax.chain(optax.sgd(1.0), tb), "rest": optax.sgd(1.0)}, labels)
    elif where == "masked":
        kernels["l2"]["kernel"] = False
        tx = optax.masked(tb, kernels)
    else:
        tx = optax.chain(optax.contrib.muon(1e-3), tb)
    updates, state = tx.update(params, tx.init(params), params)
    left = [name for name in ("l1", "l2", "l3") if where != "masked" or name != "l2"]
    alphas = {name: tb_optax.spectra(params, layers=layers)[name] for name in left}
    metrics = jnp.stack([tb_optax.metrics.pl_alpha_hill(values) for values in alphas.values()])
    expected = dict(zip(left, tb_optax.assignments.linear(metrics).tolist(), strict=True))
    scale = optax.tree_utils.tree_get(state, "TempBalanceState").scale
    assert {name: float(each) for name, each in scale.items()} == pytest.approx(expected, rel=1e-3)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    if where == "partition":
        np.testing.assert_allclose(updates["l1"]["bias"], -1.0)  # Hidden from TempBalance.


def test_a_convolution_of_patches_is_one_matrix():
    """Its stride is its window, without padding: else it has a matrix for each place of the window."""
    params = {
        "embed": jax.random.normal(jax.random.key(0), (4, 4, 3, 96)),
        "up": jax.random.normal(jax.random.key(1), (96, 96)),
    }

    def apply(stride, padding):
        def forward(params, x):
            dims = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, params["embed"], (stride, stride), padding, dimension_numbers=dims)
            return jax.nn.relu(x) @ params["up"]

        return forward

    images = jnp.ones((1, 16, 16, 3))
    read = lambda *how: {
        layer.kernel: kernel_shape(layer, params[layer.kernel].shape)
        for layer in tb_optax.trace_layers(apply(*how), params, images, first_and_last=True, min_eigenvalues=2)
    }["embed"]
    patches = read(4, "VALID")
    assert (patches.matrices, patches.rows, patches.columns) == (1, 48, 96)
    for how in ((2, "VALID"), (4, [(2, 2), (2, 2)])):
        assert (read(*how).matrices, read(*how).rows, read(*how).columns) == (16, 3, 96)


def test_experts_that_are_all_given_every_token_are_a_layer_each_in_both_directions():
    params = {
        "moe": {"wi": jnp.ones((4, 64, 96)), "wo": jnp.ones((4, 96, 64)), "gate": jnp.ones((64, 4))},
        "head": {"w": jnp.ones((64, 70))},
    }

    def apply(params, x):
        weights = jax.nn.softmax(x @ params["moe"]["gate"])
        hidden = jax.nn.relu(jnp.einsum("td,edf->tef", x, params["moe"]["wi"]))
        x = jnp.einsum("te,ted->td", weights, jnp.einsum("tef,efd->ted", hidden, params["moe"]["wo"]))
        return x @ params["head"]["w"]

    layers = tb_optax.trace_layers(apply, params, jnp.ones((5, 64)), first_and_last=True)
    assert {layer.kernel: layer.layer_axes for layer in layers} == {"moe/wi": (0,), "moe/wo": (0,), "head/w": ()}


def test_a_file_of_pytorch_is_read_outputs_first(tmp_path):
    """By its metadata, where sizes allow both; the layout can be said, too."""
    from safetensors.numpy import save_file

    kernel = np.random.default_rng(0).standard_normal((8, 9, 3, 5)).astype(np.float32)
    save_file({"c.kernel": kernel, "norm.weight": np.ones(9, np.float32)}, tmp_path / "pt.safetensors", {"format": "pt"})
    save_file({"c.kernel": kernel, "norm.weight": np.ones(9, np.float32)}, tmp_path / "plain.safetensors")
    find = tb_optax.find_layers
    matrices = lambda name, **options: tb_optax.report(tmp_path / f"{name}.safetensors", **options).records[0].matrices
    assert matrices("pt") == 15 and matrices("plain") == 72
    assert matrices("plain", layers=lambda params: find(params, layout="torch")) == 15


@pytest.mark.parametrize("names", [("w_g", "w_v"), ("parametrizations.w.original0", "parametrizations.w.original1")])
@pytest.mark.parametrize("shape", [(80, 1, 1), (1, 1, 9)])
def test_the_report_measures_the_weight_that_weight_norm_applies(names, shape, tmp_path):
    from safetensors.numpy import save_file

    names = [name.replace("w", "weight", 1) if name.startswith("w") else name.replace(".w.", ".weight.") for name in names]
    random = np.random.default_rng(0)
    gain, direction = random.uniform(1, 9, shape).astype(np.float32), random.standard_normal((80, 64, 9)).astype(np.float32)
    save_file({f"conv.{names[0]}": gain, f"conv.{names[1]}": direction}, tmp_path / "m.safetensors", {"format": "pt"})
    axes = (1, 2) if shape[0] > 1 else (0, 1)
    weight = gain * direction / np.linalg.norm(direction.astype(np.float64), axis=axes, keepdims=True)
    (record,) = tb_optax.report(tmp_path / "m.safetensors").records
    singular = [np.linalg.svd(weight[:, :, place], compute_uv=False) for place in range(9)]
    expected = np.sort(0.5 * np.concatenate(singular) ** 2)
    np.testing.assert_allclose(record.eigenvalues, expected, rtol=1e-3, atol=1e-5 * expected[-1])


def test_all_gates_that_read_the_networks_input_are_its_first_layer():
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            cell = nn.RNN(nn.LSTMCell(64))
            x = nn.RNN(nn.LSTMCell(64))(cell(x))
            return nn.Dense(70)(x)

    x = jnp.ones((2, 5, 60), jnp.float32)
    params = jax.eval_shape(Net().init, jax.random.key(0), x)["params"]
    layers = tb_optax.trace_layers(lambda params, x: Net().apply({"params": params}, x), params, x)
    first = {path for path, reason in layers.left_out.items() if reason == "the first layer"}
    assert len(first) == 4 and len({path.rsplit("/", 2)[0] for path in first}) == 1
    assert len(layers) == 12, "the hidden gates of both cells, and the input gates of the second"
