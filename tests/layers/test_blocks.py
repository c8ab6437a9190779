"""Blocks are found from names, from stacks, or given; their layers share the mean of their metrics, and one scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import dense_params, numpy_alpha, numpy_linear, numpy_spectrum, ones_like, tempbalance, tiny_layers

import tb_optax

PARAMS = dense_params(depth=6)
ALPHAS = {name: numpy_alpha(numpy_spectrum(leaf["kernel"])) for name, leaf in PARAMS.items()}


def blocks_of(names):
    params = {name: {"kernel": jnp.ones((64, 64))} for name in names}
    return {layer.name: layer.block for layer in tb_optax.in_blocks(tb_optax.find_layers)(params)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["stem", "h_0/attn/c_attn", "h_0/mlp/c_fc", "h_1/mlp/c_fc"], ["", "h_0", "h_0", "h_1"]),
        (["layer1/0/conv1", "layer1/1/conv1", "layer2/0/shortcut/0"], ["layer1/0", "layer1/1", "layer2"]),
        (["stage1/block2/conv1", "stage1/block3/conv1", "stage1/conv"], ["stage1/block2", "stage1/block3", ""]),
        (
            ["Encoder_0/MultiHeadAttention_0/query", "Encoder_0/Mlp_0/Dense_0", "Encoder_1/Mlp_0/Dense_1"],
            ["Encoder_0", "Encoder_0", "Encoder_1"],
        ),
        (["model.layers.3.self_attn.q_proj", "model.layers.12.mlp.up_proj"], ["model.layers.3", "model.layers.12"]),
        (["Dense_0", "Dense_1", "Dense_2"], ["", "", ""]),
    ],
    ids=["GPT", "ResNet", "stages", "Flax", "PyTorch", "no blocks"],
)
def test_a_block_is_the_innermost_numbered_module_that_is_one_of_several(names, expected):
    assert blocks_of(names) == dict(zip(names, expected, strict=True))


def test_slices_of_stacks_with_as_many_are_in_the_same_blocks():
    stack = lambda rows: {"kernel": jnp.ones((3, rows, 64)), "bias": jnp.ones((3, 64))}
    params = {"blocks": {"attn": stack(64), "mlp": stack(80)}, "head": {"kernel": jnp.ones((64, 64))}}
    found = tb_optax.in_blocks(tb_optax.find_layers)(params)
    assert {layer.name: layer.block for layer in found} == {
        "blocks/attn": "blocks[3]",
        "blocks/mlp": "blocks[3]",
        "head": "",
    }
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape), jnp.float32), params)
    tx = tb_optax.tempbalance(1, layers=tb_optax.in_blocks(tb_optax.find_layers))
    _, state = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(state.scale["blocks/attn"], state.scale["blocks/mlp"])
    own = np.stack([state.metric["blocks/attn"], state.metric["blocks/mlp"]]).mean(axis=0)
    shared = dict(enumerate([*own, float(state.metric["head"])]))
    expected = list(numpy_linear(shared).values())
    np.testing.assert_allclose([*state.scale["blocks/attn"], float(state.scale["head"])], expected, rtol=1e-4)


def by_parity(name):
    """Even layers in one block, odd ones in another; the last in none."""
    return "" if name == "dense5" else f"parity{int(name[-1]) % 2}"


def test_layers_of_a_block_share_the_mean_of_their_metrics_and_one_scale():
    tx = tempbalance(1, layers=tb_optax.in_blocks(tiny_layers, by_parity))
    updates, state = jax.jit(tx.update)(ones_like(PARAMS), tx.init(PARAMS), PARAMS)
    even, odd = (np.mean([ALPHAS[f"dense{number}"] for number in own]) for own in ((0, 2, 4), (1, 3)))
    expected = numpy_linear({"even": even, "odd": odd, "last": ALPHAS["dense5"]})
    for number, kind in enumerate(["even", "odd", "even", "odd", "even", "last"]):
        name = f"dense{number}"
        assert state.scale[name] == pytest.approx(expected[kind], rel=1e-3)
        assert state.metric[name] == pytest.approx(ALPHAS[name], rel=1e-3)  # Each its own.
        np.testing.assert_allclose(updates[name]["kernel"], expected[kind], rtol=1e-3)


def test_an_unusable_spectrum_takes_no_part_in_its_block_and_has_its_scale():
    tx = tempbalance(1, layers=tb_optax.in_blocks(tiny_layers, by_parity))
    update = jax.jit(tx.update)
    _, before = update(ones_like(PARAMS), tx.init(PARAMS), jax.tree.map(lambda x: jnp.sign(x) * x**2, PARAMS))
    broken = PARAMS | {"dense2": jax.tree.map(jnp.zeros_like, PARAMS["dense2"])}
    _, state = update(ones_like(PARAMS), before, broken)
    even, odd = (np.mean([ALPHAS[f"dense{number}"] for number in own]) for own in ((0, 4), (1, 3)))
    expected = numpy_linear({"even": even, "odd": odd, "last": ALPHAS["dense5"]})
    for name in ("dense0", "dense2", "dense4"):
        assert state.scale[name] == pytest.approx(expected["even"], rel=1e-3)
    assert state.metric["dense2"] == before.metric["dense2"]
    zeros = PARAMS | {name: jax.tree.map(jnp.zeros_like, PARAMS[name]) for name in ("dense1", "dense3")}
    _, later = update(ones_like(PARAMS), state, zeros)
    assert later.scale["dense1"] == state.scale["dense1"]


def test_a_block_of_one_layer_is_that_layer():
    blocks = tempbalance(1, layers=tb_optax.in_blocks(tiny_layers, lambda name: name))
    for tx in (blocks, tempbalance(1)):
        _, state = tx.update(ones_like(PARAMS), tx.init(PARAMS), PARAMS)
        np.testing.assert_allclose(list(state.scale.values()), list(numpy_linear(ALPHAS).values()), rtol=1e-3)


def test_traced_layers_keep_what_follows_them_and_what_was_left_out():
    def apply(params, x):
        for name in PARAMS:
            x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"]) @ jnp.ones((12, 8))
        return x

    traced = tb_optax.trace_layers(apply, PARAMS, jnp.ones((2, 8)), min_eigenvalues=4)
    found = tb_optax.in_blocks(traced, by_parity)(PARAMS)
    assert [layer.follows for layer in found] == [layer.follows for layer in traced]
    assert found.left_out == traced.left_out
    assert "in block parity1" in str(found)


def test_what_cannot_be_blocks_is_named():
    with pytest.raises(TypeError, match="block_of='h'"):
        tb_optax.in_blocks(tiny_layers, "h")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"block_of\('dense0'\) returned 3"):
        tb_optax.in_blocks(tiny_layers, lambda name: 3)(PARAMS)  # pyright: ignore[reportArgumentType, reportReturnType]
    one = tempbalance(1, layers=tb_optax.in_blocks(tiny_layers, lambda name: "all"))
    with pytest.raises(ValueError, match="balances blocks of layers against each other, and found 1"):
        one.init(PARAMS)
    stacked = PARAMS | {"stack": {"kernel": jnp.ones((3, 8, 12)), "bias": jnp.ones((3, 12))}}
    with pytest.raises(ValueError, match=r"the stack \(3,\), but other layers of its block 'all'"):
        tempbalance(1, layers=tb_optax.in_blocks(tiny_layers, lambda name: "all")).init(stacked)


def test_alphadecay_has_blocks_too():
    layers = tb_optax.in_blocks(tiny_layers, by_parity)
    decay = functools.partial(tb_optax.alphadecay, 0.1, 1, layers=layers)
    tx = decay()
    _, state = tx.update(ones_like(PARAMS), tx.init(PARAMS), PARAMS)
    assert state.scale["dense0"] == state.scale["dense2"] != state.scale["dense1"]
