"""`find_layers` reads the layers of every framework off their parameter trees."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import KEY, NETWORKS, conv_spectrum, filled, hwio, oihw, stacked
from tiny import numpy_spectrum, tiny_layers

import tb_optax


def arrays(shapes):
    """The tree with normal numbers in the place of its shapes."""
    is_shape = lambda node: isinstance(node, tuple) and all(isinstance(size, int) for size in node)
    return filled(jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=is_shape))


def find(params, **options):
    return tb_optax.find_layers(params, **{"min_eigenvalues": 2, **options})


def found(params):
    """For each layer's kernel: what follows it, and its reduction, output and layer axes."""
    return {
        layer.kernel: (layer.follows, layer.reduction_axes, layer.output_axes, layer.layer_axes) for layer in find(params)
    }


def assert_spectra(params, expected, layers=find):
    spectra = tb_optax.spectra(params, layers=layers)
    assert spectra.keys() == expected.keys()
    for name, eigenvalues in expected.items():
        np.testing.assert_allclose(spectra[name], eigenvalues, rtol=1e-3, atol=1e-5 * eigenvalues.max(), err_msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_spectra_are_those_of_the_matrices_that_one_would_cut_out_by_hand(name):
    network = NETWORKS[name]()
    assert_spectra(network.params, network.spectra)


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_all_it_needs(name):
    network = NETWORKS[name]()
    is_array = lambda leaf: hasattr(leaf, "shape")
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array(leaf) else leaf, network.params
    )
    assert find(abstract) == find(network.params)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_array_of_two_axes_is_a_kernel_or_follows_one_or_is_left_out_for_a_reason(name):
    params = NETWORKS[name]().params
    layers = find(params)
    paths = tb_optax._layers.layer.leaves_by_path(params)
    weights = {path for path, leaf in paths.items() if hasattr(leaf, "shape") and len(leaf.shape) >= 2}
    of_layers = {path for layer in layers for path in (layer.kernel, *layer.follows)}
    assert weights <= of_layers | set(layers.left_out)
    assert not of_layers & set(layers.left_out)


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_and_embeddings_are_no_layers_and_no_followers(name):
    layers = find(NETWORKS[name]().params)
    modules = {path.split("/")[-2] for layer in layers for path in (layer.kernel, *layer.follows)}
    assert not modules & {"tok", "ln", "rms", "gn", "bn", "lnd", "lnf", "~"}
    assert any("tok" in path and reason == "an embedding" for path, reason in layers.left_out.items())
    assert any("pos_embedding" in path and reason == "an embedding" for path, reason in layers.left_out.items())


@pytest.mark.parametrize("name", [name for name in NETWORKS if "without bias" not in name])
def test_every_bias_follows_the_kernel_beside_it(name):
    for layer in find(NETWORKS[name]().params):
        module = layer.kernel.rsplit("/", 1)[0]
        bias = "b" if name.startswith("haiku") else "bias"
        no_bias_anywhere = name.startswith("equinox") and module.endswith("rms")
        assert layer.follows == (() if no_bias_anywhere else (f"{module}/{bias}",))


# Trees of PyTorch, and plain ones


def test_pytorch_names_are_read_outputs_first():
    params = arrays(
        {
            "layer1.0.conv1.weight": (6, 4, 3, 2),
            "layer1.0.bn1.weight": (6,),
            "layer1.0.bn1.bias": (6,),
            "patch_embed.proj.weight": (5, 3, 2, 2),
            "tok_emb.weight": (9, 4),
            "embed_tokens.weight": (9, 4),
            "attn.in_proj_weight": (12, 4),
            "attn.in_proj_bias": (12,),
            "rnn.weight_ih_l0": (8, 4),
            "rnn.bias_ih_l0": (8,),
            "conv.weight_v": (6, 4, 3, 3),
            "fc.weight": (5, 6),
            "fc.bias": (5,),
        }
    )
    outputs_first = ((1,), (0,), ())
    assert found(params) == {
        "attn.in_proj_weight": (("attn.in_proj_bias",), *outputs_first),
        "conv.weight_v": ((), *outputs_first),
        "fc.weight": (("fc.bias",), *outputs_first),
        "layer1.0.conv1.weight": ((), *outputs_first),
        "patch_embed.proj.weight": ((), *outputs_first),
        "rnn.weight_ih_l0": (("rnn.bias_ih_l0",), *outputs_first),
    }
    assert {layer.name for layer in find(params)} >= {"layer1.0.conv1", "fc"}
    assert find(params).left_out == {"tok_emb.weight": "an embedding", "embed_tokens.weight": "an embedding"}
    assert_spectra({"c.weight": params["layer1.0.conv1.weight"]}, {"c": oihw(params["layer1.0.conv1.weight"])})


def test_lists_of_weights_and_biases_are_layers_named_by_their_place():
    params = arrays([[(4, 5), (5,)], [(3, 3, 5, 6), (6,)], [(6, 2), (2,)]])
    assert found(params) == {
        "0/0": (("0/1",), (0,), (1,), ()),
        "1/0": (("1/1",), (2,), (3,), ()),
        "2/0": (("2/1",), (0,), (1,), ()),
    }
    assert [layer.name for layer in find(params)] == ["0", "1", "2"]


def test_a_stack_of_weights_and_biases_in_a_list_is_a_stack():
    params = arrays([[(3, 4, 5), (3, 5)]])
    assert found(params) == {"0/0": (("0/1",), (1,), (2,), (0,))}
    assert_spectra(params, {"0": stacked(numpy_spectrum, params[0][0])})


@pytest.mark.parametrize(
    ("weight", "bias"), [("w", "b"), ("W", "b"), ("weights", "biases"), ("weight", "bias"), ("W1", "b1")]
)
def test_a_plain_dict_names_its_biases_as_people_do(weight, bias):
    params = arrays(
        {"dense": {weight: (3, 4, 5), bias: (3, 5)}} if weight == "w" else {"dense": {weight: (4, 5), bias: (5,)}}
    )
    (layer,) = find(params)
    assert layer.kernel == f"dense/{weight}"
    assert layer.follows == (f"dense/{bias}",)


def test_the_size_of_a_bias_tells_where_the_outputs_of_a_convolution_are_if_the_name_does_not():
    params = arrays({"a": {"w": (6, 4, 3, 2), "b": (6,)}, "b": {"weight": (3, 2, 4, 6), "bias": (6,)}})
    assert_spectra(params, {"a": oihw(params["a"]["w"]), "b": hwio(params["b"]["weight"])})


def test_a_transposed_convolution_has_the_spectrum_of_a_convolution():
    kernel = arrays((3, 2, 6, 4))
    assert_spectra({"c": {"kernel": kernel, "bias": jnp.ones(6)}}, {"c": hwio(kernel)})
    kernel = arrays((4, 6, 3, 2))
    assert_spectra({"c.weight": kernel, "c.bias": jnp.ones(6)}, {"c": oihw(kernel)})


def test_a_bias_belongs_to_one_kernel_or_to_none():
    params = arrays({"gru": {"w_i": (4, 6), "w_h": (2, 6), "b": (6,)}})
    assert [layer.follows for layer in find(params)] == [(), ()]


def test_a_dense_kernel_with_several_output_axes_is_known_by_its_bias():
    params = arrays({"qkv": {"kernel": (6, 3, 4), "bias": (3, 4)}})
    assert found(params) == {"qkv/kernel": (("qkv/bias",), (0,), (1, 2), ())}


def test_a_bias_that_fits_no_axes_leaves_its_kernel_out_and_says_so():
    layers = find(arrays({"odd": {"kernel": (6, 3, 4), "bias": (5, 7)}}))
    assert not layers
    assert "bias of shape (5, 7)" in layers.left_out["odd/kernel"]
    assert "trace_layers" in layers.left_out["odd/kernel"]


# Stacks


@pytest.mark.parametrize(
    ("shapes", "layer_axes"),
    [
        ({"w": (3, 4, 4), "norm": (3, 4)}, (0,)),
        ({"attn": {"w": (3, 4, 4)}, "norm": {"scale": (3, 4), "offset": (3, 4)}}, (0,)),
        ({"attn": {"w": (2, 3, 4, 4)}, "norm": {"scale": (2, 3, 4)}}, (0, 1)),
        ({"attn": {"w": (5, 3, 4)}, "norm": {"scale": (5, 3)}, "up": {"w": (4, 3, 5)}}, (1,)),
        ({"attn": {"w": (3, 4, 4)}, "norm": {"scale": (4,)}}, ()),
        ({"attn": {"w": (3, 1, 5, 4)}, "norm": {"scale": (1, 1, 1, 4)}}, ()),
    ],
)
def test_a_stack_without_biases_is_known_by_the_norms_around_it(shapes, layer_axes):
    layers = {layer.name.split("/")[-1]: layer for layer in find(arrays({"blocks": shapes}))}
    assert layers["blocks" if "w" in shapes else "attn"].layer_axes == layer_axes


def test_only_the_module_around_a_stack_says_that_it_is_one():
    params = arrays(
        {"stack": {"a": {"w": (3, 4, 4)}, "ln": {"scale": (3, 4)}}, "conv": {"w": (3, 4, 4)}, "ln": {"scale": (4,)}}
    )
    assert {layer.name: layer.layer_axes for layer in find(params)} == {"stack/a": (0,), "conv": ()}


def test_a_stack_that_nothing_in_the_tree_tells_from_a_convolution_is_left_out_unless_a_name_does():
    kernel = arrays((3, 4, 5))
    layers = find({"dense": {"kernel": kernel}})
    assert not layers and "a convolution, or a stack of 3" in layers.left_out["dense/kernel"]
    assert_spectra({"conv_in": {"kernel": kernel}}, {"conv_in": conv_spectrum(np.asarray(kernel))})
    near = {"dense": {"kernel": kernel}, "norm": {"scale": jnp.ones(4)}}  # Not stacked, so the kernel is not.
    assert_spectra(near, {"dense": conv_spectrum(np.asarray(kernel))})


def test_dense_layers_called_like_attention_are_dense():
    names = ("query", "key", "value", "out")
    stack = arrays({name: {"kernel": (3, 6, 6), "bias": (3, 6)} for name in names})
    assert_spectra(stack, {name: stacked(numpy_spectrum, stack[name]["kernel"]) for name in names})
    bare = arrays({name: {"kernel": (3, 6, 6)} for name in names} | {"norm": {"scale": (3, 6)}})
    assert_spectra(bare, {name: stacked(numpy_spectrum, bare[name]["kernel"]) for name in names})
    flat = arrays({name: {"kernel": (6, 5)} for name in names})
    assert_spectra(flat, {name: numpy_spectrum(flat[name]["kernel"]) for name in names})


def test_attention_stacked_without_any_bias_or_norm_is_attention_still():
    params = arrays(
        {name: {"kernel": (3, 6, 2, 4)} for name in ("query", "key", "value")} | {"out": {"kernel": (3, 2, 4, 6)}}
    )
    assert {layer.layer_axes for layer in find(params)} == {(0,)}


def test_equinox_modules_are_known_by_their_type():
    model = eqx.filter_vmap(lambda key: {"table": eqx.nn.Embedding(9, 4, key=key), "n": eqx.nn.RMSNorm(4, use_bias=False)})
    params = model(jax.random.split(KEY, 3))
    layers = find(params)
    assert not layers
    assert layers.left_out == {"table/weight": "an embedding", "n/weight": "a bias or normalization"}


class Embed(eqx.Module):
    projection: eqx.nn.Linear


def test_a_dense_layer_in_a_module_named_embed_is_a_layer():
    assert [layer.name for layer in find(Embed(eqx.nn.Linear(5, 6, key=KEY)))] == ["projection"]
    params = {"embed": eqx.nn.Linear(5, 6, key=KEY)}
    assert [layer.name for layer in find(params)] == ["embed"]
    params = jax.eval_shape(nn.Dense(6, name="embed").init, KEY, jnp.ones((1, 5)))["params"]
    assert [layer.name for layer in find({"embed": params})] == ["embed"]


# What is left out


def test_a_factor_called_b_is_a_weight_and_a_stack_of_biases_called_b_is_none():
    params = {
        "lora": {"w": (8, 8), "a": (8, 2), "b": (2, 8)},
        "alone": {"a": (6, 3), "b": (3, 6)},
        "adapters": {"kernel": (5, 8, 8), "bias": (5, 8), "a": (5, 8, 2), "b": (5, 2, 8)},
        "gru": {"w_i": (5, 4, 12), "w_h": (5, 6, 12), "b": (5, 12)},
    }
    layers = find(arrays(params))
    assert {layer.kernel for layer in layers} == {
        *("lora/w", "lora/a", "lora/b", "alone/a", "alone/b"),
        *("adapters/kernel", "adapters/a", "adapters/b", "gru/w_i", "gru/w_h"),
    }
    assert {layer.kernel: layer.follows for layer in layers if layer.follows} == {"adapters/kernel": ("adapters/bias",)}
    assert layers.left_out == {"gru/b": "a bias or normalization"}


def test_only_real_floating_point_arrays_are_layers():
    params = {
        "mask": jnp.ones((4, 4), bool),
        "ids": jnp.ones((4, 4), int),
        "wave": jnp.ones((4, 4), jnp.complex64),
        "half": jnp.ones((4, 4), jnp.bfloat16),
        "function": jax.nn.relu,
        "number": 3.0,
    }
    layers = find(params)
    assert [layer.kernel for layer in layers] == ["half"]
    assert layers.left_out == {
        path: f"its dtype, {params[path].dtype}, is not real floating-point" for path in ("mask", "ids", "wave")
    }


def test_min_eigenvalues_counts_a_layers_pooled_eigenvalues_not_those_of_its_stack():
    params = arrays({"conv": {"kernel": (3, 3, 4, 8)}, "stack": {"kernel": (9, 4, 8), "bias": (9, 8)}})
    layers = tb_optax.find_layers(params, min_eigenvalues=36)
    assert [layer.name for layer in layers] == ["conv"]
    assert layers.left_out["stack/kernel"] == "4 eigenvalues, fewer than min_eigenvalues=36"
    assert not tb_optax.find_layers(params, min_eigenvalues=37)


def test_exclude_matches_whole_names_shell_style():
    params = arrays({"block": {"conv1": {"kernel": (4, 4)}, "conv2": {"kernel": (4, 4)}}, "conv1": {"kernel": (4, 4)}})
    names = lambda exclude: [layer.name for layer in find(params, exclude=exclude)]
    assert names("conv1") == ["block/conv1", "block/conv2"]
    assert names(("*conv1",)) == ["block/conv2"]
    assert names(("block/*", "conv?")) == []
    assert find(params, exclude="conv1").left_out == {"conv1/kernel": "excluded by 'conv1'"}


def test_excluding_what_is_left_out_anyway_is_no_error():
    params = arrays({"embed": {"embedding": (9, 4)}, "dense": {"kernel": (4, 4)}})
    assert [layer.name for layer in find(params, exclude="embed/embedding")] == ["dense"]


def test_a_single_array_is_no_tree():
    with pytest.raises(ValueError, match=r"a single array of shape \(4, 4\)"):
        find(arrays((4, 4)))


def test_nnx_paths_read_like_linen_paths():
    linear = nnx.eval_shape(lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    assert found(nnx.state({"a": linear}, nnx.Param)) == {"a/kernel": (("a/bias",), (0,), (1,), ())}


def test_printing_tells_each_layer_and_each_reason():
    params = arrays({"dense": {"kernel": (8, 8), "bias": (8,)}, "embed": {"embedding": (9, 8)}, "head": {"kernel": (8, 3)}})
    assert str(tiny_layers(params)) == (
        "dense: dense/kernel (8, 8), dense 8 x 8, + dense/bias\n"
        "left out: embed/embedding (9, 8): an embedding\n"
        "left out: head/kernel (8, 3): 3 eigenvalues, fewer than min_eigenvalues=4\n"
        "1 layer, with 43% of the parameters"
    )


def test_a_module_with_several_kernels_names_its_layers_by_their_paths():
    assert [layer.name for layer in find(arrays({"lstm": {"w_i": (4, 8), "w_h": (2, 8)}}))] == ["lstm/w_h", "lstm/w_i"]
