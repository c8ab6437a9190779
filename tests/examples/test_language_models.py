import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tb_optax
from examples.paper.errors import UserError
from examples.paper.language.models import MODELS, create_model
from examples.paper.language.models.gpt import rotate
from examples.paper.language.models.tensorized import TensorizedTransformer, paper_layers
from tb_optax._layers.layer import kernel_shape, leaves_by_path

VOCABULARY, WINDOW = 11, 6
NARROW = {"gpt-small": 24, "gpt-medium": 32}  # a head each of two features at least
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (2, WINDOW))


def narrow(name, **kwargs):
    return create_model(name, vocabulary=VOCABULARY, window=WINDOW, width=NARROW.get(name, 24), layers=2, **kwargs)


def abstract_params(model, length=WINDOW):
    init = lambda key: model.init({"params": key}, jnp.zeros((1, length), jnp.int32), train=False)["params"]
    return jax.eval_shape(init, jax.random.key(0))


def drawn_params(model, deviation=0.3):
    """Parameters large enough that every part of the network shows in its outputs."""
    generator = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten_with_path(abstract_params(model))
    shift = lambda path: 1.0 if path[-1].key == "scale" else 0.0
    return structure.unflatten(
        [jnp.asarray(generator.normal(shift(path), deviation, leaf.shape), leaf.dtype) for path, leaf in leaves]
    )


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens):
    return model.apply({"params": params}, tokens, train=False)


@functools.partial(jax.jit, static_argnums=0)
def loss(model, params, tokens, targets):
    logits = model.apply({"params": params}, tokens, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def number_of_parameters(model, length=WINDOW):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(abstract_params(model, length)))


@pytest.mark.parametrize("name", MODELS)
def test_an_output_depends_on_no_later_token_unless_the_model_is_called_leaking(name):
    model = narrow(name)
    params = drawn_params(model)
    before = np.asarray(logits_of(model, params, TOKENS))
    assert before.shape == (2, WINDOW, VOCABULARY) and before.dtype == np.float32
    for changed in range(WINDOW):
        tokens = TOKENS.copy()
        tokens[:, changed] = (tokens[:, changed] + 1) % VOCABULARY
        difference = np.abs(np.asarray(logits_of(model, params, tokens)) - before).max(axis=(0, 2))
        assert (difference[changed:] > 1e-3).all()
        if name == "tensorized_leaking":
            assert (difference[:changed] > 1e-3).all()
        else:
            assert (difference[:changed] == 0).all()


def layer_norm(x, params):
    centred = x - x.mean(axis=-1, keepdims=True)
    return params["scale"] * centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) + params["bias"]


def tensorized_logits(params, tokens, causal):
    """The formula, term by term, in float64."""
    embedding = params["embedding"]["embedding"]
    window, width = tokens.shape[1], embedding.shape[1]
    x = embedding[tokens] * np.sqrt(width)
    positions = np.zeros((window, width))
    for j in range(window):
        for pair in range(width // 2):
            angle = (window - 1 - j) / 10000 ** (2 * pair / width)
            positions[j, pair], positions[j, width // 2 + pair] = np.sin(angle), np.cos(angle)
    for index in range(sum(name.startswith("layer") for name in params)):
        layer = params[f"layer{index}"]
        attention, core = layer["attention"], layer["attention"]["core"]
        q, k, v = np.split(x @ attention["qkv"]["kernel"], 3, axis=-1)
        r = positions @ attention["r"]["kernel"]
        pairs = np.einsum("h,bih,bjh,bkh->bijk", core, q + params["content_bias"], k, v)
        pairs += np.einsum("h,bih,jh,bkh->bijk", core, q + params["position_bias"], r, v)
        if causal:
            for i in range(window):
                pairs[:, i, i + 1 :] = 0
                pairs[:, i, :, i + 1 :] = 0
        x = layer_norm(x + pairs.reshape(*x.shape[:2], -1) @ attention["o"]["kernel"], layer["attention_norm"])
        first, second = layer["feed_forward"]["in"], layer["feed_forward"]["out"]
        hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
        x = layer_norm(x + hidden @ second["kernel"] + second["bias"], layer["feed_forward_norm"])
    return x @ embedding.T + params["output_bias"]


@pytest.mark.parametrize("causal", [True, False])
def test_the_tensorized_network_and_its_gradient_are_those_of_its_formula(causal):
    model = TensorizedTransformer(VOCABULARY, WINDOW, layers=2, width=8, head=5, hidden=12, causal=causal)
    params = drawn_params(model)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = tensorized_logits(exact, TOKENS, causal)
    np.testing.assert_allclose(logits_of(model, params, TOKENS), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - tensorized_logits(exact, TOKENS, not causal)).max() > 0.1

    targets = np.roll(TOKENS, -1, axis=1)

    def expected_loss(params):
        logits = tensorized_logits(params, TOKENS, causal)
        chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return np.mean(np.log(np.exp(logits).sum(axis=-1)) - chosen)

    gradients = jax.grad(loss, argnums=1)(model, params, TOKENS, targets)
    generator = np.random.default_rng(2)
    leaves, structure = jax.tree.flatten(exact)
    for place, gradient in enumerate(np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients)):
        length = float(np.linalg.norm(gradient))
        assert length > 1e-4
        for direction in (gradient, generator.normal(size=gradient.shape)):
            step = 1e-5 * direction / np.linalg.norm(direction)
            up, down = ([*leaves[:place], leaves[place] + sign * step, *leaves[place + 1 :]] for sign in (1, -1))
            slope = (expected_loss(structure.unflatten(up)) - expected_loss(structure.unflatten(down))) / 2
            assert slope == pytest.approx(np.vdot(gradient, step), abs=1e-4 * 1e-5 * length)


@pytest.mark.parametrize("name", ["tensorized", "tensorized_leaking"])
def test_the_papers_network_has_as_many_parameters_as_the_released_one(name):
    assert number_of_parameters(create_model(name, vocabulary=1000, window=32), 32) == 4_402_252


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("gpt") and not name.endswith("grouped")])
def test_a_gpt_has_twelve_squares_of_its_width_a_layer_a_norm_before_each_branch_and_one_embedding(name):
    model = create_model(name, vocabulary=50257, window=1024)
    count = 50257 * model.width + model.layers * (12 * model.width**2 + 2 * model.width) + model.width
    assert number_of_parameters(model) == count
    if name == "gpt-small":
        assert (model.layers, model.width, model.heads) == (12, 768, 12)
        # GPT-2 small has 124,439,808: positions, biases and the norms' biases more.
        assert count == 124_439_808 - 1024 * 768 - 12 * (4 + 4 + 1 + 2) * 768 - 768


def test_grouped_attention_has_fewer_keys_and_values_and_equals_attention_whose_groups_repeat_them():
    grouped = narrow("gpt-tiny-grouped")
    params = drawn_params(grouped)
    shapes = {name: params["layers"]["attention"][name]["kernel"].shape for name in ("q", "k", "v", "o")}
    assert shapes == {"q": (2, 24, 24), "k": (2, 24, 6), "v": (2, 24, 6), "o": (2, 24, 24)}
    assert params["layers"]["feed_forward"]["in"]["kernel"].shape == (2, 24, 8 * 24)
    repeated = dataclasses.replace(grouped, key_value_heads=4)
    attention = dict(params["layers"]["attention"])
    for name in ("k", "v"):
        attention[name] = {"kernel": jnp.tile(attention[name]["kernel"], (1, 1, 4))}
    of_repeated = {**params, "layers": {**params["layers"], "attention": attention}}
    np.testing.assert_allclose(
        logits_of(grouped, params, TOKENS), logits_of(repeated, of_repeated, TOKENS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_weights_start_as_the_released_program_and_gpt_2_have_them():
    keys = {"params": jax.random.key(0, impl="rbg")}
    model = create_model("tensorized", vocabulary=500, window=8, layers=1)
    leaves = leaves_by_path(jax.jit(lambda: model.init(keys, jnp.zeros((1, 8), jnp.int32), train=False))()["params"])
    for path, leaf in leaves.items():
        if path.endswith(("kernel", "embedding", "content_bias", "position_bias")):
            assert np.std(leaf) == pytest.approx(0.02, rel=0.35 if leaf.ndim == 1 else 0.05)
        elif path.endswith("scale"):
            assert np.mean(leaf) == pytest.approx(1, abs=0.005) and np.std(leaf) == pytest.approx(0.02, rel=0.2)
        elif path.endswith("core"):
            assert np.sum(leaf) == pytest.approx(1, rel=1e-5) and np.min(leaf) > 0
            assert np.std(np.log(leaf)) == pytest.approx(1, rel=0.35)
        else:
            assert path.endswith("bias") and not np.any(leaf)
    model = create_model("gpt-tiny", vocabulary=500, window=8, layers=8)
    leaves = leaves_by_path(jax.jit(lambda: model.init(keys, jnp.zeros((1, 8), jnp.int32), train=False))()["params"])
    for path, leaf in leaves.items():
        if path.endswith("scale"):
            assert (leaf == 1).all()
        else:
            deviation = 0.02 / 4 if path.endswith(("o/kernel", "out/kernel")) else 0.02
            assert np.std(leaf) == pytest.approx(deviation, rel=0.05)
    first, second = leaves["layers/attention/q/kernel"][:2]
    assert np.abs(first - second).max() > 0.01  # each layer draws its own


def test_rotary_scores_depend_on_how_far_apart_tokens_are_and_keep_their_lengths():
    query, key = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    everywhere = lambda x: rotate(jnp.broadcast_to(x, (1, 10, 3, 8)))
    scores = np.asarray(jnp.einsum("bihd,bjhd->hij", everywhere(query), everywhere(key)))
    for distance in range(-9, 10):
        diagonal = np.diagonal(scores, distance, axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, np.repeat(diagonal[:, :1], diagonal.shape[1], axis=1), rtol=1e-4, atol=1e-5)
    by_distance = [scores[:, 0, distance] for distance in range(10)]
    assert np.abs(np.diff(by_distance, axis=0)).max(axis=1).min() > 0.1
    np.testing.assert_allclose(by_distance[0], (query * key).sum(axis=-1), rtol=1e-4)
    lengths = np.linalg.norm(everywhere(query), axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(np.linalg.norm(query, axis=-1), lengths.shape), rtol=1e-5)


def test_a_gpt_knows_the_order_of_its_tokens():
    model = narrow("gpt-tiny")
    tokens = np.array([[1, 2, 3, 4], [3, 2, 1, 4]])
    ordered, exchanged = logits_of(model, drawn_params(model), tokens)[:, -1]
    assert np.abs(ordered - exchanged).max() > 1e-2


@pytest.mark.parametrize("name", ["tensorized", "gpt-tiny"])
def test_the_output_weight_is_the_embedding(name):
    model = narrow(name)
    params = drawn_params(model)
    tokens = np.minimum(TOKENS, VOCABULARY - 2)  # the last one of the vocabulary is not read
    before = np.asarray(logits_of(model, params, tokens))
    params["embedding"]["embedding"] = params["embedding"]["embedding"].at[-1].multiply(3)
    after = np.asarray(logits_of(model, params, tokens))
    bias = params["output_bias"] if name == "tensorized" else np.zeros(VOCABULARY)
    np.testing.assert_array_equal(after[..., :-1], before[..., :-1])
    np.testing.assert_allclose(after[..., -1] - bias[-1], 3 * (before[..., -1] - bias[-1]), rtol=1e-4, atol=1e-5)
    assert [path for path, leaf in leaves_by_path(params).items() if leaf.ndim == 2 and VOCABULARY in leaf.shape] == [
        "embedding/embedding"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorized", "gpt-tiny"])
def test_rematerialization_changes_nothing_but_rounding(name):
    plain, again = narrow(name), narrow(name, remat=True)
    assert jax.tree.structure(abstract_params(plain)) == jax.tree.structure(abstract_params(again))
    params = drawn_params(plain, 0.1)
    both = [jax.value_and_grad(functools.partial(loss, model)) for model in (plain, again)]
    programs = [str(jax.make_jaxpr(f)(params, TOKENS, TOKENS)) for f in both]
    assert ["checkpoint" in program or "remat" in program for program in programs] == [False, True]
    results = [f(params, TOKENS, TOKENS) for f in both]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorized", "gpt-tiny"])
def test_bfloat16_is_what_a_model_computes_in_not_what_it_keeps(name):
    exact, rounded = narrow(name), narrow(name, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(rounded))} == {jnp.dtype("float32")}
    params = drawn_params(exact, 0.1)
    assert logits_of(rounded, params, TOKENS).dtype == jnp.float32
    expected, actual = (float(loss(model, params, TOKENS, TOKENS)) for model in (exact, rounded))
    assert actual == pytest.approx(expected, rel=0.02) and actual != expected
    gradients = jax.tree.leaves(jax.grad(loss, argnums=1)(rounded, params, TOKENS, TOKENS))
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in gradients)


@pytest.mark.parametrize("name", ["tensorized", "gpt-tiny"])
def test_dropout_is_of_training_alone_and_drawn_anew_with_each_key(name):
    model = narrow(name, dropout=0.5)
    params = drawn_params(model)
    apply = jax.jit(lambda key: model.apply({"params": params}, TOKENS, train=True, rngs={"dropout": key}))
    first, again, other = (apply(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    without = narrow(name)
    np.testing.assert_array_equal(logits_of(model, params, TOKENS), logits_of(without, params, TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorized", "gpt-tiny"])
def test_a_small_network_learns_a_few_tokens_by_heart(name):
    model = narrow(name)
    tokens = np.stack([np.arange(WINDOW), np.arange(WINDOW)[::-1]])  # a GPT cannot tell the first two apart if they are one
    params = model.init({"params": jax.random.key(0)}, tokens, train=False)["params"]
    targets = np.random.default_rng(3).integers(0, VOCABULARY, tokens.shape)
    tx = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradients = jax.value_and_grad(functools.partial(loss, model))(params, tokens, targets)
            updates, state = tx.update(gradients, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=100)[1]

    losses = train(params)
    assert losses[0] > 2 and losses[-1] < 0.05


def traced(name):
    model = create_model(name, vocabulary=1000, window=32)
    params = abstract_params(model, 32)
    apply = lambda params, tokens: model.apply({"params": params}, tokens, train=False)
    return tb_optax.trace_layers(apply, params, jax.ShapeDtypeStruct((2, 32), jnp.int32)), params


@pytest.mark.parametrize("name", ["tensorized", "tensorized_leaking"])
def test_four_weights_of_each_tensorized_layer_are_balanced_and_norms_follow_the_weight_before_them(name):
    found, _ = traced(name)
    parts = ("attention/qkv", "attention/o", "feed_forward/in", "feed_forward/out")
    assert [layer.name for layer in found] == [f"layer{index}/{part}" for index in range(3) for part in parts]
    assert set(found.left_out) == {"embedding/embedding", *(f"layer{index}/attention/r/kernel" for index in range(3))}
    assert "40 eigenvalues" in found.left_out["layer0/attention/r/kernel"]
    follows = {layer.name: layer.follows for layer in found}
    assert follows["layer0/attention/qkv"] == follows["layer0/attention/o"] == ()  # the sum is between it and the norm
    balanced = {layer.name: set(layer.follows) for layer in paper_layers(found)}
    assert list(balanced) == [layer.name for layer in found]
    for layer in ("layer0", "layer1", "layer2"):
        norms = {
            part: {f"{layer}/{part}_norm/{leaf}" for leaf in ("scale", "bias")} for part in ("attention", "feed_forward")
        }
        assert balanced[f"{layer}/attention/qkv"] == set()
        assert balanced[f"{layer}/attention/o"] == norms["attention"]
        assert balanced[f"{layer}/feed_forward/in"] == {f"{layer}/feed_forward/in/bias"}
        assert balanced[f"{layer}/feed_forward/out"] == norms["feed_forward"] | {f"{layer}/feed_forward/out/bias"}


def test_each_slice_of_a_gpts_six_kernels_is_a_layer_and_norms_before_weights_follow_nothing():
    found, params = traced("gpt-tiny")
    parts = (*(f"attention/{part}" for part in "qkvo"), "feed_forward/in", "feed_forward/out")
    assert [layer.name for layer in found] == [f"layers/{part}" for part in parts]
    assert set(found.left_out) == {"embedding/embedding"}
    leaves = leaves_by_path(params)
    for layer in found:
        shape = kernel_shape(layer, leaves[layer.kernel].shape)
        assert shape.stack == (4,) and shape.eigenvalues == 128 and layer.follows == ()
        assert (shape.rows, shape.columns) == leaves[layer.kernel].shape[1:]


def test_what_is_no_model_or_no_size_is_refused_by_name_and_value():
    with pytest.raises(UserError, match=r"'gpt-huge'.*tensorized, .*gpt-small"):
        narrow("gpt-huge")
    build = functools.partial(create_model, vocabulary=10, window=8)
    with pytest.raises(UserError, match=r"width=770 .*12 heads of gpt-small.*multiple of 24"):
        build("gpt-small", width=770)
    with pytest.raises(UserError, match=r"width=12 .*even size"):  # heads of three features
        build("gpt-tiny", width=12)
    with pytest.raises(UserError, match=r"width=33 .*even"):
        build("tensorized", width=33)
    with pytest.raises(UserError, match=r"layers=0 "):
        build("gpt-tiny", layers=0)
    with pytest.raises(UserError, match=r"dropout=1\.0 "):
        build("gpt-tiny", dropout=1.0)
    with pytest.raises(ValueError, match=r"window of 6 tokens; these are 5"):
        abstract_params(narrow("tensorized"), 5)
