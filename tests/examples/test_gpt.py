"""The page that trains a decoder: what it computes, what it leaves, and that a stop changes nothing."""

import dataclasses
import json
import runpy
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from processes import finish, start

import tb_optax
from examples import gpt

TINY = gpt.Settings(
    blocks=2,
    width=64,
    heads=2,
    window=16,
    updates=24,
    batch_size=4,
    learning_rate=1e-2,
    warmup=4,
    refresh_interval=6,
    evaluation_interval=8,
    dtype="float32",
)
TEXT = b"The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 20


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(TEXT)
    return path


def train(out, text, devices=1, **changes):
    settings = dataclasses.replace(TINY, out=out, text=text, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        gpt.main(settings)
    return out


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    """A run with TempBalance on one device, from start to end."""
    return train(tmp_path_factory.mktemp("runs") / "alone", text)


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def last_state(out):
    """Every array of the last checkpoint, by path."""
    anywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever devices it was saved from
    path = out.absolute() / "checkpoints" / str(log(out)[-1]["update"]) / "state"
    restore = ocp.args.StandardRestore(fallback_sharding=anywhere)
    restored = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(path, args=restore)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}


def create(**changes):
    """A decoder's forward pass and its parameters."""
    graph, params = nnx.split(gpt.GPT(dataclasses.replace(TINY, **changes), nnx.Rngs(0)), nnx.Param)
    return jax.jit(lambda params, tokens: nnx.merge(graph, params, copy=True)(tokens)), params


def test_a_run_learns_and_leaves_its_log_and_plots(alone):
    lines = log(alone)
    assert [line["update"] for line in lines] == [8, 16, 24]
    assert [line["refreshed"] for line in lines] == [6, 12, 18]
    assert 5 > lines[0]["train_loss"] > lines[1]["train_loss"] > lines[2]["train_loss"]
    assert lines[2]["validation_loss"] < lines[0]["validation_loss"]
    kernels = ("query", "key", "value", "output", "gate", "up", "down")
    for line in lines:
        assert tuple(line["scale"]) == tuple(line["alpha"]) == tuple(f"blocks/{kernel}" for kernel in kernels)
        scales = np.array(list(line["scale"].values()))
        assert scales.shape == (7, TINY.blocks) and scales.min() == 0.5 and scales.max() == 1.5
    assert lines[0]["alpha"] != lines[2]["alpha"]
    for name in ("loss.png", "layers.png"):
        assert (alone / name).read_bytes().startswith(b"\x89PNG")


def test_a_stopped_and_resumed_run_ends_with_the_bits_of_one_that_was_not(alone, text, tmp_path, monkeypatch):
    def stopped(settings, layers, state, losses, valid):
        if int(state.update) == 16:
            raise KeyboardInterrupt
        return describe(settings, layers, state, losses, valid)

    describe = gpt.describe
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gpt, "describe", stopped)
        train(tmp_path / "run", text)
    assert [line["update"] for line in log(tmp_path / "run")] == [8]
    train(tmp_path / "run", text, resume=True)
    assert log(tmp_path / "run") == log(alone)
    jax.tree.map(np.testing.assert_array_equal, last_state(tmp_path / "run"), last_state(alone))


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_with_the_bits_of_one_that_was_not(text, tmp_path):
    expected = train(tmp_path / "expected", text, updates=200)
    values = {**vars(TINY), "text": text, "out": tmp_path / "run", "updates": 200}
    named = {f"--{name.replace('_', '-')}": value for name, value in values.items() if type(value) is not bool}
    command = ["-m", "examples.gpt", *(part for flag in named.items() for part in flag)]
    (process,) = start([command], devices=1)
    while not any((tmp_path / "run" / "checkpoints").glob("[0-9]*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "checkpoints" / "200").exists()
    (process,) = start([[*command, "--resume"]], devices=1)
    (output,) = finish([process])
    assert process.returncode == 0, output
    assert log(tmp_path / "run") == log(expected)
    jax.tree.map(np.testing.assert_array_equal, last_state(tmp_path / "run"), last_state(expected))


@pytest.mark.slow
def test_two_devices_train_as_one_but_for_the_order_of_sums(alone, text, tmp_path):
    close = lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-4)
    jax.tree.map(close, log(train(tmp_path / "run", text, devices=2)), log(alone))
    jax.tree.map(close, last_state(tmp_path / "run"), last_state(alone))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"method": "adamw"}, {"method": "shape"}, {"tied": True, "dtype": "bfloat16", "method": "llr"}], ids=str
)
def test_variants_learn(text, tmp_path, changes):
    lines = log(train(tmp_path / "run", text, **changes))
    assert lines[-1]["validation_loss"] < lines[0]["validation_loss"] < 5
    balanced = changes.get("method") != "adamw"
    assert ("scale" in lines[-1]) == (tmp_path / "run" / "layers.png").exists() == balanced


@pytest.mark.parametrize("tied", [False, True])
def test_traced_layers_are_the_kernels_of_the_blocks_a_slice_each(tied):
    apply, params = create(tied=tied)
    layers = tb_optax.trace_layers(apply, params, jax.ShapeDtypeStruct((1, TINY.window), jnp.int32))
    shapes = {layer.name: layers.shapes[layer.kernel] for layer in layers}
    square, hidden = (2, 64, 64), 8 * (64 // 3)
    assert shapes == {
        **{f"blocks/{name}": square for name in ("query", "key", "value", "output")},
        **{"blocks/gate": (2, 64, hidden), "blocks/up": (2, 64, hidden), "blocks/down": (2, hidden, 64)},
    }
    for layer in layers:
        assert (layer.layer_axes, layer.reduction_axes, layer.output_axes) == ((0,), (1,), (2,))
    assert set(layers.left_out) == {"embedding/embedding"} | (set() if tied else {"head/kernel"})


@pytest.mark.parametrize("changes", [{}, {"tied": True, "dtype": "bfloat16"}], ids=str)
def test_a_later_token_changes_no_earlier_logits(changes):
    apply, params = create(**changes)
    tokens = jax.random.randint(jax.random.key(1), (2, TINY.window), 0, 256)
    logits, changed = apply(params, tokens), apply(params, tokens.at[:, 9].add(1))
    assert logits.dtype == jnp.float32 and logits.shape == (2, TINY.window, 256)
    np.testing.assert_array_equal(changed[:, :9], logits[:, :9])
    assert (np.abs(changed[:, 9:] - logits[:, 9:]).max(axis=-1) > 1e-4).all()


def test_products_of_rotated_vectors_depend_on_their_distance():
    query, key = jax.random.normal(jax.random.key(2), (2, 8))
    at_all_places = lambda vector: gpt.rotate(jnp.broadcast_to(vector, (1, 6, 1, 8)))[0, :, 0]
    products = np.asarray(at_all_places(query) @ at_all_places(key).T)
    for distance in range(-5, 6):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert np.ptp([np.diagonal(products, distance)[0] for distance in range(-5, 6)]) > 0.1
    np.testing.assert_allclose(at_all_places(query)[0], query)


def test_matrices_decay_and_scales_of_norms_do_not():
    apply, params = create()
    layers = tb_optax.trace_layers(apply, params, jax.ShapeDtypeStruct((1, TINY.window), jnp.int32))
    tx, _ = gpt.create_optimizer(dataclasses.replace(TINY, warmup=0, method="adamw"), layers)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    decayed = {
        jax.tree_util.keystr(path): bool(jnp.any(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert len(decayed) == 12
    assert all(decays == ("norm" not in path) for path, decays in decayed.items())


def test_a_sample_begins_with_its_prompt_and_follows_the_logits():
    favoured = lambda params, tokens: 100.0 * jax.nn.one_hot((tokens + params) % 256, 256)
    drawn = gpt.sample(favoured, jnp.asarray(3), jnp.asarray([250, 251], jnp.uint8), 6, jax.random.key(0))
    np.testing.assert_array_equal(drawn, [250, 251, 254, 1, 4, 7])


def test_validation_is_the_mean_over_all_windows():
    """Of a model whose logits are those of the token that it reads: 21 windows, in batches of 4."""
    table = jax.random.normal(jax.random.key(3), (256, 256))
    valid = jnp.asarray(np.frombuffer(TEXT, np.uint8)[: 21 * TINY.window + 7])
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    forward = lambda params, tokens: params[tokens]
    _, validate = gpt.create_programs(TINY, forward, optax.identity(), jax.random.key(0), split)
    read, following = np.asarray(valid[: 21 * TINY.window], int), np.asarray(valid[1 : 21 * TINY.window + 1], int)
    expected = -np.asarray(jax.nn.log_softmax(table))[read, following].mean()
    np.testing.assert_allclose(validate(table, valid), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 0}, "--updates 0 must be more than 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan must be more than 0"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1 must be at least 0"),
        ({"width": 66}, "--width 66 must be a multiple of twice --heads 2"),
        ({"width": 48}, "--width 48 must be at least 50 for --method tb"),
        ({"warmup": 24}, "--warmup 24 must be less than --updates 24"),
        ({"batch_size": 3}, "--batch-size 3 must be a multiple of the 2 devices"),
        ({"window": 136}, "--text has 1360 bytes, which must be more than ten times --window 136"),
    ],
)
def test_settings_that_cannot_run_end_in_one_line(text, tmp_path, changes, message):
    with pytest.raises(SystemExit) as exit:
        train(tmp_path / "run", text, devices=2, **changes)
    assert str(exit.value).startswith(f"error: {message}") and "\n" not in str(exit.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(alone, text):
    before = (alone / "log.jsonl").read_bytes()
    with pytest.raises(SystemExit, match=f"error: --out {alone} holds a run; go on with it by --resume"):
        train(alone, text)
    with pytest.raises(SystemExit, match=r"error: --resume: seed is 0 in .*settings\.json, and 1 now"):
        train(alone, text, seed=1, resume=True)
    try:
        text.write_bytes(TEXT.upper())
        with pytest.raises(SystemExit, match="error: --resume: text_crc32 is"):
            train(alone, text, resume=True)
    finally:
        text.write_bytes(TEXT)
    assert (alone / "log.jsonl").read_bytes() == before


def test_a_text_that_cannot_be_read_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpt", "--text", str(tmp_path / "none.txt"), "--out", str(tmp_path / "run")])
    monkeypatch.delitem(sys.modules, "examples.gpt")  # or runpy warns that it is imported already
    with pytest.raises(SystemExit, match=r"error: .*none\.txt"):
        runpy.run_module("examples.gpt", run_name="__main__")


def test_topics_hold_each_paragraph_once():
    paragraphs = gpt.help_topics().split(b"\n\n")
    assert len(paragraphs) == len(set(paragraphs)) > 1000
