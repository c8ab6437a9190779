"""`trace_layers` reads layers, their order and what follows them off the forward pass."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from networks import KEY, NETWORKS, TOKENS, LinenNetwork, filled, linen

import tb_optax

X = jnp.ones((2, 6))
IMAGES = jnp.ones((2, 8, 8, 3), jnp.float32)
SEQUENCES = jnp.ones((2, 5, 6), jnp.float32)
SQUARES = {name: jnp.ones((6, 6)) for name in ("w1", "w2", "w3")}
STACK = {"w": jnp.ones((3, 6, 6)), "b": jnp.ones((3, 6)), "scale": jnp.ones((3, 6))}


def trace(fn, params, *args, **options):
    return tb_optax.trace_layers(fn, params, *args, **{"min_eigenvalues": 2, "first_and_last": True, **options})


def follows(fn, params, *args):
    return {layer.kernel: set(layer.follows) for layer in trace(fn, params, *args)}


def axes(layers):
    return {layer.kernel: (layer.reduction_axes, layer.output_axes, layer.layer_axes) for layer in layers}


def traced_axes(fn, params, *args):
    return axes(trace(fn, params, *args))


def init(model, *args):
    return filled(jax.eval_shape(model.init, KEY, *args))


# The same layers as in the tree, on every framework


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_and_axes_are_those_that_the_tree_shows(name):
    params, apply, spectra = NETWORKS[name]()
    traced = trace(apply, params, TOKENS)
    assert axes(traced) == axes(tb_optax.find_layers(params, min_eigenvalues=2))
    assert {layer.name for layer in traced} == spectra.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_bias_beside_a_kernel_follows_it(name):
    params, apply, _ = NETWORKS[name]()
    traced = {layer.kernel: set(layer.follows) for layer in trace(apply, params, TOKENS)}
    for layer in tb_optax.find_layers(params, min_eigenvalues=2):
        assert set(layer.follows) <= traced[layer.kernel]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_norm_follows_the_layer_right_before_it_and_none_behind_a_residual_branch(name):
    params, apply, _ = NETWORKS[name]()
    norms = {
        layer.name: {path for path in layer.follows if path.split("/")[-2] != layer.name.split("/")[-1]}
        for layer in trace(apply, params, TOKENS)
    }
    norm = {"linen": "gn", "nnx": "bn", "haiku": "bn", "equinox": "gn"}[name.split()[0]]
    parts = {
        "linen": ("scale", "bias"),
        "nnx": ("scale", "bias"),
        "haiku": ("scale", "offset"),
        "equinox": ("weight", "bias"),
    }
    expected = {layer: set() for layer in norms} | {"conv1": {f"{norm}/{part}" for part in parts[name.split()[0]]}}
    if name.startswith("haiku"):
        expected["dense"] = {"lnd/scale", "lnd/offset"}
    if name == "linen without stack":
        expected["attn/out"] = {"lnf/scale", "lnf/bias"}
    assert norms == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_the_lookup_is_the_first_layer_and_the_head_the_last(name):
    params, apply, _ = NETWORKS[name]()
    layers = tb_optax.trace_layers(apply, params, TOKENS, min_eigenvalues=2)
    assert layers[0].name == "conv1"
    assert [path.split("/")[0] for path, reason in layers.left_out.items() if reason == "the last layer"] == ["head"]
    assert [path.split("/")[0] for path, reason in layers.left_out.items() if reason == "an embedding"] == ["tok"]
    assert not [path for path, reason in layers.left_out.items() if reason == "the first layer"]


def test_layers_come_in_the_order_of_their_use():
    forward = lambda p, x: jnp.tanh(jnp.tanh(x @ p["w3"]) @ p["w1"]) @ p["w2"]
    assert [layer.name for layer in trace(forward, SQUARES, X)] == ["w3", "w1", "w2"]
    layers = tb_optax.trace_layers(forward, SQUARES, X, min_eigenvalues=2)
    assert [layer.name for layer in layers] == ["w1"]
    assert layers.left_out == {"w3": "the first layer", "w2": "the last layer"}


# Normalizations


class Residual(nn.Module):
    """A small ResNet: an input norm, projection shortcuts, norms behind sums, pooling and nonlinearities."""

    train: bool = True

    @nn.compact
    def __call__(self, x):
        norm = lambda name: nn.BatchNorm(use_running_average=not self.train, name=name)
        conv = lambda name, size=3: nn.Conv(4, (size, size), use_bias=False, name=name)
        x = nn.relu(norm("bn1")(nn.Conv(4, (3, 3), name="conv1")(norm("bn_input")(x))))
        y = nn.relu(norm("bn2")(conv("conv2")(x)))
        y = nn.GroupNorm(2, name="gn3")(conv("conv3")(y))
        x = nn.relu(y + norm("bn_shortcut")(conv("shortcut", 1)(x)))
        x = conv("conv4")(nn.LayerNorm(name="ln_sum")(x))
        x = nn.LayerNorm(name="ln_pooled")(nn.relu(x.mean((1, 2))))
        x = nn.RMSNorm(name="rms")(nn.Dense(4, name="dense")(x))
        return nn.Dense(3, name="head")(nn.LayerNorm(name="ln_gelu")(nn.gelu(x)))


RESIDUAL = {
    "conv1": {"conv1/bias", "bn1/scale", "bn1/bias"},
    "conv2": {"bn2/scale", "bn2/bias"},
    "conv3": {"gn3/scale", "gn3/bias"},
    "shortcut": {"bn_shortcut/scale", "bn_shortcut/bias"},
    "conv4": set(),
    "dense": {"dense/bias", "rms/scale"},
    "head": {"head/bias"},
}


@pytest.mark.parametrize("train", [True, False])
def test_a_norm_follows_the_layer_right_before_it_in_training_and_in_evaluation(train):
    model = Residual(train)
    variables = init(model, IMAGES)

    def loss(params, stats, images, labels):
        logits, _ = model.apply({"params": params, "batch_stats": stats}, images, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    args = variables["params"], variables["batch_stats"], IMAGES, jnp.zeros(2, int)
    layers = trace(loss, *args)
    assert [layer.name for layer in layers] == list(RESIDUAL)
    assert {layer.name: set(layer.follows) for layer in layers} == RESIDUAL
    assert trace(lambda *args: jax.jit(jax.remat(loss))(*args), *args) == layers


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.bn(self.conv(x)))).mean((1, 2)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("way", ["state as an argument", "copy", "module"])
def test_nnx_networks_with_statistics_are_traced_in_training_and_in_evaluation(train, way):
    model = Normalized(nnx.Rngs(0))
    (model.train if train else model.eval)()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    match way:
        case "state as an argument":
            traced = follows(lambda params, rest, x: nnx.merge(graph, params, rest)(x), params, rest, IMAGES)
        case "copy":
            traced = follows(lambda params, x: nnx.merge(graph, params, rest, copy=True)(x), params, IMAGES)
        case "module":  # Its running statistics are among its arrays.
            traced = follows(lambda model, x: model(x), model, IMAGES)
            traced["conv/kernel"] -= {"bn/mean", "bn/var"}
    assert traced == {"conv/kernel": {"conv/bias", "bn/scale", "bn/bias"}, "head/kernel": {"head/bias"}}


VECTORS = {name: jnp.ones(6) for name in ("b", "scale", "shift")}
BEHIND = {
    "bias": (lambda h, x, p: h + p["b"], {"b"}),
    "scaled bias": (lambda h, x, p: h * 0.5 - p["b"], {"b"}),
    "layer norm": (
        lambda h, x, p: (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True) * p["scale"] + p["shift"],
        {"scale", "shift"},
    ),
    "rms norm": (lambda h, x, p: h * (lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]), {"scale"}),
    "reshapes": (lambda h, x, p: (h.reshape(2, 2, 3) * p["scale"].reshape(2, 3)).reshape(2, 6).T.T + p["b"], {"scale", "b"}),
    "bfloat16": (lambda h, x, p: h.astype(jnp.bfloat16) + p["b"].astype(jnp.bfloat16), {"b"}),
    "nonlinearity": (lambda h, x, p: jax.nn.relu(h + p["b"]) * p["scale"], {"b"}),
    "gate": (lambda h, x, p: h * jax.nn.sigmoid(h) * p["scale"], set()),
    "residual sum": (lambda h, x, p: (h + jnp.tanh(h)) * p["scale"], set()),
    "sum with the input": (lambda h, x, p: (h + x) * p["scale"], set()),
    "sum with the scaled input": (lambda h, x, p: (h + x * p["shift"]) * p["scale"], set()),
    "softmax": (lambda h, x, p: jax.nn.softmax(h) * p["scale"], set()),
    "nonlinearity behind pooling": (lambda h, x, p: jax.nn.relu(h.mean(0)) * p["scale"], set()),
    "concatenation": (lambda h, x, p: jnp.concatenate([h[:, :3], x[:, :3]], 1) * p["scale"], set()),
}


@pytest.mark.parametrize("name", BEHIND)
def test_what_follows_a_layer_is_what_meets_its_own_output(name):
    behind, expected = BEHIND[name]
    traced = follows(lambda p, x: behind(x @ p["w1"], x, p).astype(x.dtype), {"w1": jnp.ones((6, 6)), **VECTORS}, X)
    assert traced == {"w1": expected}


def test_a_sum_with_what_a_later_layer_reads_is_where_branches_meet():
    forward = lambda p, x, y: (x @ p["w1"] + y) * p["scale"] + y @ p["w2"]
    assert follows(forward, SQUARES | VECTORS, X, X) == {"w1": set(), "w2": set()}


def test_what_follows_several_layers_follows_none():
    def forward(p, x):
        x = jnp.tanh((x @ p["w1"] + p["b"]) * p["scale"])
        return (x @ p["w2"] + p["b"]) * p["shift"]

    assert follows(forward, SQUARES | VECTORS, X) == {"w1": {"scale"}, "w2": {"shift"}}


def test_a_layer_used_twice_keeps_its_bias():
    forward = lambda p, x: jnp.tanh(x @ p["w1"] + p["b"]) @ p["w1"] + p["b"]
    assert follows(forward, SQUARES | VECTORS, X) == {"w1": {"b"}}


def test_a_network_may_begin_with_a_norm():
    forward = lambda p, x: jnp.tanh(((x - x.mean(0)) * p["scale"] + p["shift"]) @ p["w1"] + p["b"]) @ p["w2"]
    assert follows(forward, SQUARES | VECTORS, X) == {"w1": {"b"}, "w2": set()}


# Embeddings


@pytest.mark.parametrize("tokens", [jnp.ones((2, 5), int), jnp.ones((1, 1), int), jnp.ones((), int)])
def test_a_lookup_of_however_many_rows_is_an_embedding_and_a_first_layer(tokens):
    params = {"table": jnp.ones((9, 6)), **SQUARES}
    layers = tb_optax.trace_layers(
        lambda p, t: p["table"][t] @ p["w1"] @ p["w2"] @ p["w3"], params, tokens, min_eigenvalues=2
    )
    assert [layer.name for layer in layers] == ["w1", "w2"]
    assert layers.left_out == {"table": "an embedding", "w3": "the last layer"}


def test_an_embedding_used_as_the_head_is_the_first_layer():
    params = {"table": jnp.ones((9, 6)), **SQUARES}
    layers = tb_optax.trace_layers(lambda p, t: p["table"][t] @ p["w1"] @ p["table"].T, params, TOKENS, min_eigenvalues=2)
    assert [layer.name for layer in layers] == ["w1"]
    assert layers.left_out["table"] == "the first layer"
    tied = trace(lambda p, t: p["table"][t] @ p["w1"] @ p["table"].T, params, TOKENS)
    assert axes(tied)["table"] == ((1,), (0,), ())


def test_positions_are_no_layers():
    params = {"table": jnp.ones((9, 6)), "positions": jnp.ones((8, 6)), "w1": jnp.ones((6, 6))}
    for positions in (lambda p: p["positions"][:5], lambda p: p["positions"][jnp.arange(5)]):
        layers = trace(lambda p, t, positions=positions: (p["table"][t] + positions(p)) @ p["w1"], params, TOKENS)
        assert [layer.name for layer in layers] == ["w1"]


# Seen through


@jax.custom_jvp
def jvp_relu(x):
    return jnp.maximum(x, 0)


jvp_relu.defjvp(lambda primals, tangents: (jvp_relu(*primals), tangents[0]))


@jax.custom_vjp
def vjp_dense(w, x):
    return x @ w


vjp_dense.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: (saved[1].T @ g, g @ saved[0].T))
TRANSPOSED = ((1,), (0,), ())
PLAIN = ((0,), (1,), ())
THROUGH = {
    "jit": lambda p, x: jax.jit(lambda w, x: x @ w)(p["w1"], x),
    "remat": lambda p, x: jax.remat(lambda w, x: x @ w)(p["w1"], x),
    "custom_vjp": lambda p, x: vjp_dense(p["w1"], x),
    "custom_jvp": lambda p, x: x @ jvp_relu(p["w1"]),
    "vmap": lambda p, x: jax.vmap(lambda row: row @ p["w1"])(x),
    "cond": lambda p, x: lax.cond(x[0, 0] > 0, lambda: x @ p["w1"], lambda: x),
    "switch": lambda p, x: lax.switch(0, [lambda: x @ p["w1"], lambda: x]),
    "scan over time": lambda p, x: lax.scan(lambda h, row: (jnp.tanh(row + h @ p["w1"]), None), jnp.zeros(6), x)[0],
    "while": lambda p, x: lax.while_loop(lambda c: c[0] < 9, lambda c: (c[0] + 1, c[1] @ p["w1"]), (0, x))[1],
    "cast": lambda p, x: x.astype(jnp.bfloat16) @ p["w1"].astype(jnp.bfloat16),
    "einsum": lambda p, x: jnp.einsum("bi,io->ob", x, p["w1"]),
    "einsum of heads": lambda p, x: jnp.einsum("bhd,hdo->bo", x.reshape(2, 2, 3), p["w1"].reshape(2, 3, 6)),
    "dropped weights": lambda p, x: x @ (p["w1"] * jax.random.bernoulli(KEY, 0.5, (6, 6))),
    "low-rank adapter": lambda p, x: x @ (p["w1"] + p["w2"][:, :2] @ p["w3"][:2]),
    "weight norm": lambda p, x: x @ (p["w1"] / jnp.linalg.norm(p["w1"], axis=0)),
    "literal input": lambda p, x: jnp.ones((2, 6)) @ p["w1"],
}


@pytest.mark.parametrize("name", THROUGH)
def test_a_product_is_seen_through(name):
    assert traced_axes(THROUGH[name], SQUARES, X) == {"w1": PLAIN}


def test_a_transposed_kernel_is_read_transposed():
    assert traced_axes(lambda p, x: x @ p["w1"].T, SQUARES, X) == {"w1": TRANSPOSED}
    assert traced_axes(lambda p, x: p["w1"] @ x.T, SQUARES, X) == {"w1": TRANSPOSED}


@pytest.mark.parametrize("devices", [1, 2])
def test_a_sharded_product_is_seen_through(devices):
    mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    def forward(p, x):
        def body(w1, w2, w3, b, x):
            x = lax.psum(jnp.tanh(x @ w1) @ w2, "d") + b
            return x @ lax.all_gather(w3, "d", axis=0, tiled=True).reshape(2, 3, 6).reshape(6, 6)

        specs = P(None, "d"), P("d"), P("d"), P(), P()
        return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(
            p["w1"], p["w2"], p["w3"], p["b"], x
        )

    layers = trace(forward, {**SQUARES, "b": jnp.ones(6)}, X)
    assert axes(layers) == dict.fromkeys(SQUARES, PLAIN)
    assert [layer.follows for layer in layers] == [(), ("b",), ()]


def test_each_of_several_weights_behind_a_barrier_is_itself():
    def forward(p, x):
        w1, w2, b = lax.optimization_barrier((p["w1"], p["w2"], p["b"]))
        return jnp.tanh(x @ w2.T) @ w1 + b

    assert traced_axes(forward, SQUARES | VECTORS, X) == {"w2": TRANSPOSED, "w1": PLAIN}
    assert follows(forward, SQUARES | VECTORS, X) == {"w2": set(), "w1": {"b"}}


def test_fused_queries_keys_and_values_are_one_layer_however_they_are_cut():
    params = {"qkv": jnp.ones((6, 18)), "b": jnp.ones(18), "out": jnp.ones((6, 6))}

    def attend(p, q, k, v):
        return (
            jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k)), v).reshape(2, 5, 6) @ p["out"]
        )

    def split_outputs(p, x):
        return attend(p, *(part.reshape(2, 5, 2, 3) for part in jnp.split(x @ p["qkv"] + p["b"], 3, -1)))

    def split_weights(p, x):
        return attend(
            p,
            *((x @ w + b).reshape(2, 5, 2, 3) for w, b in zip(jnp.split(p["qkv"], 3, 1), jnp.split(p["b"], 3), strict=True)),
        )

    def reshaped_weights(p, x):
        w, b = p["qkv"].reshape(6, 3, 2, 3), p["b"].reshape(3, 2, 3)
        return attend(p, *(jnp.einsum("btd,dhe->bthe", x, w[:, i]) + b[i] for i in range(3)))

    for forward in (split_outputs, split_weights, reshaped_weights):
        assert traced_axes(forward, params, jnp.ones((2, 5, 6))) == {"qkv": PLAIN, "out": PLAIN}
        assert follows(forward, params, jnp.ones((2, 5, 6))) == {"qkv": {"b"}, "out": set()}


def test_standardized_and_normalized_weights_are_followed_by_their_gains():
    def forward(p, x):
        w = (p["w"] - p["w"].mean((0, 1, 2))) / jnp.sqrt(p["w"].var((0, 1, 2)) + 1e-5) * p["gain"]
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + p["b"]

    params = {"w": jnp.ones((3, 3, 3, 4), jnp.float32), "gain": jnp.ones(4, jnp.float32), "b": jnp.ones(4, jnp.float32)}
    assert traced_axes(forward, params, IMAGES) == {"w": ((2,), (3,), ())}
    assert follows(forward, params, IMAGES) == {"w": {"gain", "b"}}


WITH_PARAMETERS = "it is only multiplied with other parameters; if it is a layer, describe it in a Layer"


def test_what_only_meets_other_parameters_is_no_layer_and_says_so():
    params = {**SQUARES, "a": jnp.ones((6, 2)), "b": jnp.ones((2, 6))}
    left_out = trace(lambda p, x: x @ (p["w1"] + p["a"] @ p["b"]), params, X).left_out
    assert left_out["a"] == left_out["b"] == WITH_PARAMETERS
    assert left_out["w2"] == "no matrix product with it in the forward pass"
    both_ways = trace(lambda p, x: x @ p["a"] @ p["b"], params, X)
    assert {layer.name for layer in both_ways} == {"a", "b"}


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell])
def test_recurrent_cells_are_seen_through_time(cell):
    model = nn.Sequential([nn.RNN(cell(4)), nn.Dense(3)])
    params = init(model, SEQUENCES)["params"]
    traced = traced_axes(lambda p, x: model.apply({"params": p}, x), params, SEQUENCES)
    kernels = {path for path in tb_optax._layers.layer.leaves_by_path(params) if path.endswith("kernel")}
    assert traced == dict.fromkeys(kernels, PLAIN)


def test_what_a_cell_stores_as_one_is_one_layer():
    cell = eqx.nn.GRUCell(6, 4, dtype=jnp.float32, key=KEY)
    forward = lambda cell, xs: lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(4, xs.dtype), xs)[0]
    assert traced_axes(forward, cell, SEQUENCES[0]) == {"weight_ih": TRANSPOSED, "weight_hh": TRANSPOSED}
    model = nnx.RNN(nnx.OptimizedLSTMCell(6, 4, rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    traced = follows(lambda params, rest, x: nnx.merge(graph, params, rest)(x), params, rest, SEQUENCES)
    assert traced == {"cell/dense_i/kernel": set(), "cell/dense_h/kernel": {"cell/dense_h/bias"}}


# Kernels joined before their product


def bidirectional(cell):
    return nn.Sequential([nn.Bidirectional(nn.RNN(cell(4)), nn.RNN(cell(4))), nn.Dense(6), nn.Dense(3)])


GATES = {
    kind: [f"layers_0/{way}_rnn/cell/{kind}{gate}" for way in ("forward", "backward") for gate in "ifgo"] for kind in "ih"
}


@pytest.mark.parametrize("transform", [lambda forward: forward, jax.jit, jax.remat])
def test_kernels_that_a_cell_joins_are_layers_with_their_biases(transform):
    model = bidirectional(nn.OptimizedLSTMCell)
    params = init(model, SEQUENCES)["params"]
    layers = trace(transform(lambda p, x: model.apply({"params": p}, x)), params, SEQUENCES)
    dense = ["layers_1", "layers_2"]
    assert axes(layers) == {f"{name}/kernel": PLAIN for name in (*GATES["i"], *GATES["h"], *dense)}
    biases = {name: {f"{name}/bias"} for name in (*GATES["h"], *dense)}
    assert {layer.name: set(layer.follows) for layer in layers} == {name: set() for name in GATES["i"]} | biases
    assert not layers.left_out


def test_a_cell_that_joins_its_kernels_has_the_layers_of_one_that_does_not():
    params = init(bidirectional(nn.LSTMCell), SEQUENCES)["params"]
    traced = [
        follows(lambda p, x, cell=cell: bidirectional(cell).apply({"params": p}, x), params, SEQUENCES)
        for cell in (nn.LSTMCell, nn.OptimizedLSTMCell)
    ]
    assert traced[0] == traced[1]


def test_a_stack_of_cells_that_join_their_kernels_is_a_stack():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.RNN(nn.OptimizedLSTMCell(6, name="cell"))(x), None

    model = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=3)()
    params = init(model, SEQUENCES, None)["params"]
    layers = trace(lambda p, x: model.apply({"params": p}, x, None)[0], params, SEQUENCES)
    assert axes(layers) == {f"cell/{kind}{gate}/kernel": ((1,), (2,), (0,)) for kind in "ih" for gate in "ifgo"}
    assert {path for layer in layers for path in layer.follows} == {f"cell/h{gate}/bias" for gate in "ifgo"}


def beside(*arrays):
    return jnp.concatenate(arrays, -1)


def halves(h):
    return jnp.split(h, 2, -1)


def gated(first, second):
    return jax.nn.sigmoid(first) * jnp.tanh(second)


def joined_cond(p, x):
    return lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: x @ w + 1.0, beside(p["w1"], p["w2"]))


def joined_outside_of_a_loop(p, x):
    step = lambda h, row: (gated(*halves(row + beside(p["b"], p["scale"]))) + h @ p["w3"], None)
    return lax.scan(step, jnp.zeros(6), x @ beside(p["w1"], p["w2"]))[0]


def joined_in_a_loop(p, x):
    rows = lax.map(lambda row: row @ beside(p["w1"], p["w2"]), x)
    return gated(*halves(rows + beside(p["b"], p["scale"])))


def joined_stack(p, x, kernels, biases):
    first, second = jnp.einsum("kbi,kio->kbo", jnp.stack([x, jnp.tanh(x)]), kernels) + biases
    return gated(first, second)


def convolved(p, x):
    w = jnp.concatenate([p["w1"].reshape(1, 6, 6), p["w2"].reshape(1, 6, 6)], 2)
    h = lax.conv_general_dilated(x[None], w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return gated(*halves(h + beside(p["b"], p["scale"])))


def sharded(p, x):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    product = lambda w, b, x: x @ w + b
    specs = {"in_specs": (P(None, "d"), P("d"), P()), "out_specs": P(None, "d")}
    return jax.shard_map(product, mesh=mesh, **specs)(beside(p["w1"], p["w2"]), beside(p["b"], p["scale"]), x)


OWN_BIASES = {"w1": {"b"}, "w2": {"scale"}}
NO_BIASES = {"w1": set(), "w2": set()}
JOINED = {
    "biases joined too": (
        lambda p, x: gated(*halves(x @ beside(p["w1"], p["w2"]) + beside(p["b"], p["scale"]))),
        OWN_BIASES,
    ),
    "biases behind": (
        lambda p, x: gated(
            *(h + b for h, b in zip(halves(x @ beside(p["w1"], p["w2"])), (p["b"], p["scale"]), strict=True))
        ),
        OWN_BIASES,
    ),
    "sliced": (
        lambda p, x: gated((h := x @ beside(p["w1"], p["w2"]))[:, :6] + p["b"], h[:, 6:12] * p["scale"]),
        OWN_BIASES,
    ),
    "gates as a dimension": (
        lambda p, x: gated((h := (x @ beside(p["w1"], p["w2"])).reshape(2, 2, 6))[:, 0] + p["b"], h[:, 1] + p["scale"]),
        OWN_BIASES,
    ),
    "gates in front": (
        lambda p, x: gated(*(jnp.moveaxis((x @ beside(p["w1"], p["w2"])).reshape(2, 2, 6), 1, 0) + p["b"])),
        NO_BIASES,
    ),
    "biases at other places": (
        lambda p, x: gated(*halves(x @ beside(p["w1"], p["w2"]) + beside(p["b"][:3], p["scale"], p["b"][3:]))),
        NO_BIASES,
    ),
    "a bias across": (lambda p, x: gated(*halves(x @ beside(p["w1"], p["w2"]) + p["long"])), NO_BIASES),
    "a norm of both": (
        lambda p, x: gated(*halves(jax.nn.standardize(x @ beside(p["w1"], p["w2"])) * p["long"])),
        NO_BIASES,
    ),
    "unequal sizes": (
        lambda p, x: x @ beside(p["w1"][:, :2], p["w2"]) + beside(p["b"][:2], p["scale"]),
        OWN_BIASES,
    ),
    "joined inputs": (lambda p, x: beside(x, jnp.tanh(x)) @ jnp.concatenate([p["w1"], p["w2"]]) + p["b"], NO_BIASES),
    "with a constant": (
        lambda p, x: gated((h := x @ beside(jnp.zeros((6, 3)), p["w1"], p["w2"]))[:, 3:9] + p["b"], h[:, 9:]),
        {"w1": {"b"}, "w2": set()},
    ),
    "join of joins": (
        lambda p, x: (
            x @ beside(beside(p["w1"], p["w2"]), beside(p["w1"])) + beside(beside(p["b"]), beside(p["scale"], p["b"]))
        ),
        OWN_BIASES,
    ),
    "cast": (
        lambda p, x: gated(
            *halves(
                x.astype(jnp.bfloat16) @ beside(p["w1"], p["w2"]).astype(jnp.bfloat16)
                + beside(p["b"], p["scale"]).astype(jnp.bfloat16)
            )
        ).astype(x.dtype),
        OWN_BIASES,
    ),
    "masked": (
        lambda p, x: x @ (beside(p["w1"], p["w2"]) * jax.random.bernoulli(KEY, 0.5, (6, 12))) + beside(p["b"], p["scale"]),
        OWN_BIASES,
    ),
    "stack": (
        lambda p, x: joined_stack(p, x, jnp.stack([p["w1"], p["w2"]]), jnp.stack([p["b"], p["scale"]])[:, None]),
        OWN_BIASES,
    ),
    "stack under vmap": (
        lambda p, x: jax.vmap(lambda w, b: x @ w + b)(jnp.stack([p["w1"], p["w2"]]), jnp.stack([p["b"], p["scale"]])).sum(0),
        OWN_BIASES,
    ),
    "flat stack": (
        lambda p, x: x @ jnp.stack([p["w1"], p["w2"]], 1).reshape(6, 12) + jnp.stack([p["b"], p["scale"]]).reshape(12),
        OWN_BIASES,
    ),
    "vmap": (
        lambda p, x: jax.vmap(lambda row: row @ beside(p["w1"], p["w2"]) + beside(p["b"], p["scale"]))(x),
        OWN_BIASES,
    ),
    "cond": (lambda p, x: joined_cond(p, x) + beside(p["b"], p["scale"]), OWN_BIASES),
    "outside of a loop": (joined_outside_of_a_loop, OWN_BIASES | {"w3": set()}),
    "in a loop": (joined_in_a_loop, OWN_BIASES),
    "convolution": (convolved, OWN_BIASES),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_kernels_are_layers_and_keep_what_follows_them_where_it_can_be_told(name):
    forward, expected = JOINED[name]
    params = SQUARES | VECTORS | {"long": jnp.ones(12)}
    for transformed in (forward, jax.jit(jax.remat(forward))):
        assert follows(transformed, params, X) == expected
        assert traced_axes(transformed, params, X) == dict.fromkeys(expected, PLAIN)


def test_a_transposed_join_is_read_transposed():
    forward = lambda p, x: gated(*halves(x @ jnp.concatenate([p["w1"], p["w2"]]).T + beside(p["b"], p["scale"])))
    assert traced_axes(forward, SQUARES | VECTORS, X) == {"w1": TRANSPOSED, "w2": TRANSPOSED}
    assert follows(forward, SQUARES | VECTORS, X) == OWN_BIASES


@pytest.mark.parametrize("shuffled", [lambda w: beside(w, w), lambda w: beside(w[:, 3:], -w[:, :3])])
def test_a_kernel_joined_with_itself_is_itself(shuffled):
    forward = lambda p, x: x @ shuffled(p["w1"]) + shuffled(p["b"][None])
    assert follows(forward, SQUARES | VECTORS, X) == {"w1": {"b"}}
    assert traced_axes(forward, SQUARES | VECTORS, X) == {"w1": PLAIN}


def test_stacks_that_are_joined_are_stacks():
    forward = lambda p, x: lax.scan(
        lambda x, s: (gated(*halves(x @ beside(s["w"], s["v"]) + beside(s["b"], s["c"]))), None), x, p
    )[0]
    params = {name: jnp.ones((3, 6, 6) if name in "wv" else (3, 6)) for name in "wvbc"}
    assert traced_axes(forward, params, X) == {"w": ((1,), (2,), (0,)), "v": ((1,), (2,), (0,))}
    assert follows(forward, params, X) == {"w": {"b"}, "v": {"c"}}
    slices = lambda p, x: jnp.einsum("kbi,kio->bo", jnp.stack([x] * 3), jnp.stack([p["w"][i] for i in range(3)]))
    assert traced_axes(slices, params, X) == {"w": ((1,), (2,), (0,))}


UNCLEAR = {
    "blocks": lambda p, x: jnp.tile(x, 2) @ jnp.block([[p["w1"], p["w2"]], [p["w2"], p["w1"]]]),
    "shuffled": lambda p, x: x @ beside(p["w1"], p["w2"])[:, jnp.array([0, 9, 3])],
    "strided": lambda p, x: x @ beside(p["w1"], p["w2"])[:, ::2],
    "cut through": lambda p, x: jnp.einsum("bi,iho->bho", x, beside(p["w1"], p["w2"][:, :2]).reshape(6, 2, 4)),
    "sorted": lambda p, x: x @ jnp.sort(beside(p["w1"], p["w2"]), -1),
    "stack in a loop": lambda p, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.stack([p["w1"], p["w2"]]))[0],
    "with data": lambda p, x: x @ jnp.concatenate([p["w1"], p["w2"], x]).T,
    "sharded": sharded,
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_kernels_that_cannot_be_told_apart_are_left_out_and_said_to_be(name):
    layers = trace(UNCLEAR[name], SQUARES | VECTORS, X)
    reason = "only something computed from it is in a matrix product"
    assert not layers
    assert layers.left_out["w1"] == layers.left_out["w2"] == reason


def test_a_kernel_to_which_joined_ones_are_added_is_the_layer():
    params = {"w": jnp.ones((6, 12)), **SQUARES}
    forward = lambda p, x: x @ (beside(p["w1"], p["w2"]) + p["w"])
    assert traced_axes(forward, params, X) == {"w": PLAIN}


def test_all_kernels_of_a_join_are_the_first_layer_and_the_last():
    def forward(p, x):
        x = jnp.tanh(gated(*halves(x @ beside(p["w1"], p["w2"]))) @ p["w3"])
        return x @ beside(p["w4"], p["w5"])

    params = SQUARES | {name: jnp.ones((6, 6)) for name in ("w4", "w5")}
    layers = tb_optax.trace_layers(forward, params, X, min_eigenvalues=2)
    assert [layer.name for layer in layers] == ["w3"]
    ends = {"w1": "the first layer", "w2": "the first layer", "w4": "the last layer", "w5": "the last layer"}
    assert layers.left_out == ends


# Products of two parameters


class Pool(nn.Module):
    """Attention from learned queries to the outputs of a layer."""

    queries: int = 1
    norm: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="embed")(x)
        probe = self.param("probe", nn.initializers.ones, (1, self.queries, 8), jnp.float32)
        probe = nn.LayerNorm(name="ln_probe")(probe) if self.norm else probe
        y = nn.MultiHeadDotProductAttention(2, name="attn")(jnp.tile(probe, [x.shape[0], 1, 1]), x)
        y = y + nn.Dense(8, name="mlp")(nn.LayerNorm(name="ln")(y))
        return nn.Dense(3, name="head")(y[:, 0])


INTO_HEADS = ((0,), (1, 2), ())
LEARNED = "a learned vector, to which a layer is applied"


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("transform", [lambda forward: forward, jax.jit, jax.remat])
def test_the_query_of_a_learned_probe_is_a_layer(norm, transform):
    model = Pool(norm=norm)
    params = init(model, SEQUENCES)["params"]
    layers = trace(transform(lambda p, x: model.apply({"params": p}, x)), params, SEQUENCES)
    assert [layer.name for layer in layers] == [
        "embed",
        *(f"attn/{own}" for own in ("query", "key", "value", "out")),
        "mlp",
        "head",
    ]
    assert axes(layers)["attn/query/kernel"] == axes(layers)["attn/key/kernel"] == INTO_HEADS
    assert layers[1].follows == ("attn/query/bias",)
    assert layers.left_out == {"probe": LEARNED}


@pytest.mark.parametrize("transform", [nn.scan, nn.vmap])
def test_a_stack_of_pools_is_a_stack(transform):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            probe = self.param("probe", nn.initializers.ones, (1, 1, 6), jnp.float32)
            probe = jnp.broadcast_to(probe, (x.shape[0], 1, 6))
            return x + nn.MultiHeadDotProductAttention(2, name="attn")(probe, x), None

    options = {"length": 3} if transform is nn.scan else {"in_axes": 0, "axis_size": 3}
    model = transform(Block, variable_axes={"params": 0}, split_rngs={"params": True}, **options)()
    x = SEQUENCES if transform is nn.scan else jnp.stack([SEQUENCES] * 3)
    params = init(model, x, None)["params"] if transform is nn.scan else init(model, x, jnp.ones(3))["params"]
    layers = trace(lambda p, x: model.apply({"params": p}, x, None if transform is nn.scan else jnp.ones(3))[0], params, x)
    assert axes(layers)["attn/query/kernel"] == ((1,), (2, 3), (0,))
    assert {path for layer in layers for path in layer.follows} == {
        f"attn/{own}/bias" for own in ("query", "key", "value", "out")
    }
    assert layers.left_out == {"probe": LEARNED}


def test_what_becomes_of_a_learned_vector_is_a_layers_output():
    def forward(p, x):
        style = jnp.tanh(p["b"] @ p["w1"] + p["scale"]) @ p["w2"]
        query, key = halves((style @ beside(p["w3"], p["w4"]) + beside(p["shift"], p["shift"]))[None])
        return x @ p["w5"] * query + key

    params = SQUARES | VECTORS | {"w4": jnp.ones((6, 6)), "w5": jnp.ones((6, 6))}
    assert traced_axes(forward, params, X) == {f"w{i}": PLAIN for i in range(1, 6)}
    assert follows(forward, params, X)["w1"] == {"scale"}
    fused = lambda p, x: gated(*halves(p["b"] @ beside(p["w1"], p["w2"]) + beside(p["scale"], p["shift"]))) + x @ p["w3"]
    assert follows(fused, params, X) == {"w1": {"scale"}, "w2": {"shift"}, "w3": set()}


def test_the_first_layer_is_one_that_reads_data():
    forward = lambda p, x: jnp.tanh(jnp.tanh(p["b"] @ p["w1"]) + x @ p["w2"]) @ p["w3"]
    layers = tb_optax.trace_layers(forward, SQUARES | VECTORS, X, min_eigenvalues=2)
    assert [layer.name for layer in layers] == ["w1"]
    assert layers.left_out == {"w2": "the first layer", "w3": "the last layer"}


ONLY_KERNELS = {
    "the kernel meets data too": lambda p, x: jnp.tanh(x @ p["w1"]) + p["b"] @ p["w1"],
    "the product is part of a kernel": lambda p, x: x @ (p["w1"] * (p["w2"] @ p["b"])),
    "the product is part of a kernel, reshaped": lambda p, x: x @ (p["w1"] + (p["b"] @ p["deep"]).reshape(6, 6)),
    "a spectral norm": lambda p, x: x @ (p["w1"] / (p["b"] @ p["w1"] @ p["scale"])),
    "an initial state": lambda p, x: lax.scan(lambda h, row: (jnp.tanh(row + h @ p["w1"]), None), p["b"], x)[0],
}


@pytest.mark.parametrize("name", ONLY_KERNELS)
def test_a_matrix_that_is_also_something_else_is_no_layer_by_its_product_with_a_vector(name):
    layers = trace(ONLY_KERNELS[name], SQUARES | VECTORS | {"deep": jnp.ones((6, 36))}, X)
    assert axes(layers) == {"w1": PLAIN}


def test_several_learned_queries_are_left_out_with_their_kernel_for_they_might_be_a_factored_one():
    model = Pool(queries=2)
    params = init(model, SEQUENCES)["params"]
    layers = trace(lambda p, x: model.apply({"params": p}, x), params, SEQUENCES)
    assert [layer.name for layer in layers] == ["embed", "attn/key", "attn/value", "attn/out", "mlp", "head"]
    assert layers.left_out["probe"] == layers.left_out["attn/query/kernel"] == WITH_PARAMETERS
    factored = trace(lambda p, x: x @ (p["w1"][:, :2] @ p["w2"][:2]) @ p["w3"], SQUARES, X)
    assert axes(factored) == {"w3": PLAIN}
    assert factored.left_out == {"w1": WITH_PARAMETERS, "w2": WITH_PARAMETERS}


# Stacks of biases are not listed


def test_stacks_of_biases_and_scales_are_not_said_to_be_left_out_and_positions_are():
    model = LinenNetwork()
    params = init(model, TOKENS)["params"]
    every = tb_optax.trace_layers(
        lambda p, t: model.apply({"params": p}, t), params, TOKENS, exclude=("*",), min_eigenvalues=2
    )
    assert not every
    kernels = {path for path in tb_optax._layers.layer.leaves_by_path(params) if path.endswith("kernel")}
    assert every.left_out.keys() == kernels | {"tok/embedding", "pos_embedding"}
    assert every.left_out["pos_embedding"] == "no matrix product with it in the forward pass"


def test_a_vector_that_several_stacks_share_is_not_listed_and_what_is_more_than_a_bias_is():
    def block(x, s):
        x = jnp.tanh(x @ s["w"] + s["b"])
        return jnp.tanh(x @ s["v"] + s["b"]) + s["token"] * s["mask"], None

    def forward(p, x):
        x, _ = lax.scan(block, x, {name: p[name] for name in ("w", "v", "b", "token", "mask")})
        return jnp.concatenate([x, p["row"]]) + p["table"]

    params = {"w": jnp.ones((3, 6, 6)), "v": jnp.ones((3, 6, 6)), "b": jnp.ones((3, 6)), "token": jnp.ones((3, 2, 6))}
    params |= {"mask": jnp.ones((3, 1, 6)), "row": jnp.ones((1, 6)), "table": jnp.ones((3, 6)), "unused": jnp.ones((2, 6))}
    layers = trace(forward, params, X)
    assert [layer.follows for layer in layers] == [(), ()]
    assert set(layers.left_out) == {"token", "mask", "row", "table", "unused"}


def test_joined_layers_and_those_of_learned_vectors_are_scaled_with_their_biases():
    model = nn.Sequential([nn.RNN(nn.OptimizedLSTMCell(6)), Pool()])
    params = init(model, SEQUENCES)["params"]
    layers = trace(lambda p, x: model.apply({"params": p}, x), params, SEQUENCES)
    tx = tb_optax.tempbalance(1, layers=layers)
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    scales = {layer.name: float(state.scale[layer.name]) for layer in layers}
    cell = {name: scale for name, scale in scales.items() if "cell/" in name}
    assert len(cell) == len(set(cell.values())) == 8
    for name, scale in {**cell, "layers_1/attn/query": scales["layers_1/attn/query"]}.items():
        of_layer = updates
        for own in name.split("/"):
            of_layer = of_layer[own]
        for update in jax.tree.leaves(of_layer):
            np.testing.assert_allclose(update, scale, rtol=1e-6)
    np.testing.assert_array_equal(updates["layers_1"]["probe"], 1.0)


# Stacks


def block(x, w, b, scale):
    x = x @ w + b
    return jnp.tanh(x * lax.rsqrt((x**2).mean(-1, keepdims=True)) * scale)


def unrolled(p, x, index=lambda i: i):
    for i in range(3):
        x = block(x, *(p[name][index(i)] for name in ("w", "b", "scale")))
    return x


STACKED = {
    "static indexing": unrolled,
    "indexing by arrays": lambda p, x: unrolled(p, x, lambda i: jnp.asarray(i)),
    "unstack": lambda p, x: [
        block(x, *slices) for slices in zip(*map(jnp.unstack, (p["w"], p["b"], p["scale"])), strict=True)
    ][-1],
    "fori_loop": lambda p, x: lax.fori_loop(0, 3, lambda i, x: block(x, p["w"][i], p["b"][i], p["scale"][i]), x),
    "while_loop": lambda p, x: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, block(c[1], p["w"][c[0]], p["b"][c[0]], p["scale"][c[0]])), (0, x)
    )[1],
    "scan": lambda p, x: lax.scan(lambda x, s: (block(x, *s), None), x, (p["w"], p["b"], p["scale"]))[0],
    "scan of remat": lambda p, x: lax.scan(lambda x, s: (jax.remat(block)(x, *s), None), x, (p["w"], p["b"], p["scale"]))[0],
    "vmap": lambda p, x: jax.vmap(block)(jnp.stack([x, x, x]), p["w"], p["b"], p["scale"]),
}


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_is_a_stack_however_it_is_run_through(name):
    (layer,) = trace(STACKED[name], STACK, X)
    assert axes([layer]) == {"w": ((1,), (2,), (0,))}
    assert set(layer.follows) == {"b", "scale"}


def test_weights_that_a_loop_makes_are_a_stack():
    forward = lambda p, x: jax.vmap(lambda w: x @ w)(lax.map(jnp.tanh, p["w"]))
    assert traced_axes(forward, STACK, X) == {"w": ((1,), (2,), (0,))}


def test_a_scanned_stack_is_neither_the_first_layer_nor_the_last():
    assert len(tb_optax.trace_layers(STACKED["scan"], STACK, X, min_eigenvalues=2)) == 1


def test_a_bias_shared_by_a_stack_does_not_follow_it_even_if_sizes_agree():
    params = {"w": jnp.ones((6, 6, 6)), "b": jnp.ones(6), "stack": jnp.ones((6, 6))}
    forward = lambda p, x: lax.scan(lambda x, s: (jnp.tanh(x @ s[0] + p["b"]) * 1.0, None), x, (p["w"], p["stack"]))[0]
    assert follows(forward, params, X) == {"w": set()}


@pytest.mark.parametrize("route", ["gather", "ragged_dot"])
def test_experts_are_a_stack(route):
    def forward(p, x):
        if route == "ragged_dot":
            return lax.ragged_dot(x, p["w"], jnp.array([1, 1, 0]))
        return jnp.einsum("bi,bio->bo", x, p["w"][jnp.argmax(x @ p["router"], -1)])

    traced = traced_axes(forward, {"w": jnp.ones((3, 6, 6)), "router": jnp.ones((6, 3))}, X)
    assert traced["w"] == ((1,), (2,), (0,))


def test_a_batch_of_convolutions_is_a_stack():
    def member(w, b, x):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b

    params = {"w": jnp.ones((5, 3, 3, 3, 4)), "b": jnp.ones((5, 4))}
    (layer,) = trace(lambda p, x: jax.vmap(member)(p["w"], p["b"], x), params, jnp.ones((5, 2, 8, 8, 3)))
    assert axes([layer]) == {"w": ((3,), (4,), (0,))}
    assert layer.follows == ("b",)


def test_a_grouped_convolution_is_no_stack():
    images = jnp.ones((*IMAGES.shape[:-1], 6))
    model = nn.Conv(6, (3, 3), feature_group_count=3)
    params = init(model, images)["params"]
    assert traced_axes(lambda p, x: model.apply({"params": p}, x), params, images) == {"kernel": ((2,), (3,), ())}


# What it takes and what it costs


def test_nothing_is_computed():
    calls = []

    def forward(p, x):
        assert all(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((p, x)))
        return jax.pure_callback(lambda x: calls.append(x) or x, jax.ShapeDtypeStruct(X.shape, X.dtype), x) @ p["w1"]

    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (SQUARES, X))
    assert [layer.name for layer in trace(forward, *abstract)] == ["w1"]
    assert not calls


def test_it_may_run_inside_a_trace():
    seen = []

    @jax.jit
    def init(params):
        seen.append(trace(lambda p, x: x @ p["w1"], params, X))
        return params

    init(SQUARES)
    assert [layer.name for layer in seen[0]] == ["w1"]


def test_leaves_that_are_no_arrays_reach_the_network():
    params = {"act": jax.nn.relu, "gain": 2.0, "skip": None, **SQUARES}
    forward = lambda p, x: p["act"](x @ p["w1"]) * p["gain"] @ p["w2"]
    assert [layer.name for layer in trace(forward, params, X)] == ["w1", "w2"]


def test_weights_that_are_no_floating_point_are_left_out():
    params = {"w1": jnp.ones((6, 6), jnp.int8), "w2": jnp.ones((6, 6))}
    layers = trace(lambda p, x: x @ p["w1"].astype(x.dtype) @ p["w2"], params, X)
    assert [layer.name for layer in layers] == ["w2"]
    assert layers.left_out == {"w1": "its dtype, int8, is not real floating-point"}


def test_exclude_and_min_eigenvalues_leave_out_further_layers():
    params, apply, _ = linen()
    layers = trace(apply, params, TOKENS, exclude=("blocks/attn/*",), min_eigenvalues=6)
    attention = [f"attn/{own}" for own in ("query", "key", "value", "out")]
    blocks = ["blocks/conv", "blocks/up", "blocks/down"]
    assert [layer.name for layer in layers] == ["conv1", "conv2", "conv3", "dense", *attention, *blocks]
    assert layers.left_out["blocks/attn/query/kernel"] == "excluded by 'blocks/attn/*'"
    assert layers.left_out["head/kernel"] == "5 eigenvalues, fewer than min_eigenvalues=6"


def test_spectra_take_traced_layers():
    params, apply, expected = linen(stack_axis=1)
    spectra = tb_optax.spectra(params, layers=lambda params: trace(apply, params, TOKENS))
    for name, eigenvalues in expected.items():
        np.testing.assert_allclose(spectra[name], eigenvalues, rtol=1e-3, atol=1e-5 * eigenvalues.max())


def test_exclude_may_name_what_is_left_out_anyway():
    """Such as `("conv1", "head")`, which `find_layers` needs for the ends; a misspelled name still raises."""
    params, apply, _ = linen()
    traced = functools.partial(tb_optax.trace_layers, apply, params, TOKENS, min_eigenvalues=2)
    layers = traced()
    assert layers.left_out["head/kernel"] == "the last layer"
    assert traced(exclude=("head", "tok/embedding")) == layers
    with pytest.raises(ValueError, match=r"exclude='heat' matches no layer.*the layers are: conv.*, head"):
        traced(exclude="heat")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: tb_optax.trace_layers(model, nnx.state(model, nnx.Param), IMAGES), "positional argument"),
        (lambda model: tb_optax.trace_layers(model, (2, 8, 8, 3)), "tuple"),
        (lambda model: tb_optax.trace_layers(lambda params, x: x @ params["w1"], SQUARES, jnp.ones((2, 5))), "shape"),
    ],
)
def test_an_error_of_the_forward_pass_says_how_to_call(call, words):
    with pytest.raises((TypeError, AttributeError), match=words) as error:
        call(Normalized(nnx.Rngs(0)))
    assert "trace_layers(model, *data) for an NNX module" in "".join(error.value.__notes__)


def test_a_class_in_place_of_a_module_is_refused():
    with pytest.raises(TypeError, match=r"is not a function; give .* an instance of an NNX module"):
        tb_optax.trace_layers(Normalized, IMAGES)
