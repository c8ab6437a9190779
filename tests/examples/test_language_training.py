"""Language models in training: what an update, an evaluation and a run are, against the same done by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from outcomes import assert_resumes

import tb_optax
from examples.paper.checkpoints import Checkpoints
from examples.paper.domain import Training
from examples.paper.errors import UserError
from examples.paper.language.data import windows
from examples.paper.language.domain import (
    LANGUAGE,
    TrainState,
    build,
    create_optimizer,
    evaluate,
    find_layers,
    learning_rate_schedule,
    load,
)
from examples.paper.language.domain import loss as loss_of
from examples.paper.language.models import create_model
from examples.paper.language.settings import Settings
from examples.paper.observations import watched_steps
from examples.paper.parallel import Devices, create_mesh
from examples.paper.program import train_interval
from examples.paper.train import train

SMALL = dict(width=56, layers=2, window=8, batch_size=8, updates=60, evaluation_interval=20, update_interval=10)
STACKS = (*(f"layers/attention/{part}" for part in "qkvo"), "layers/feed_forward/in", "layers/feed_forward/out")
SLICES = [f"{name}[{index}]" for name in STACKS for index in range(2)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Words that mostly tell the next one, a sentence each four."""
    random = np.random.default_rng(0)
    words = [0]
    for _ in range(6000):
        words.append((7 * words[-1] + 3) % 30 if random.random() < 0.9 else int(random.integers(30)))
    path = tmp_path_factory.mktemp("text") / "walk.txt"
    path.write_text(" ".join(f"w{word}" + "." * (place % 4 == 3) for place, word in enumerate(words)))
    return path


@pytest.fixture(scope="module")
def settings(text):
    return Settings(text=text, learning_rate=1e-2, **SMALL)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    return train(LANGUAGE, settings, tmp_path_factory.mktemp("runs") / "run", devices=Devices(mesh=1))


@pytest.fixture(scope="module")
def state(finished, settings):
    """The last state."""
    with Checkpoints(finished.checkpoints) as checkpoints:
        return checkpoints.restore(3, build(settings, load(settings), create_mesh(1, 8)).init(43))


def test_a_run_learns_and_logs_every_slice_of_a_stack(finished):
    lines = finished.log()
    assert [line["evaluation"] for line in lines] == [1, 2, 3]
    assert lines[-1]["valid_perplexity"] < 10 < lines[0]["valid_perplexity"]
    for line in lines:
        assert line["valid_perplexity"] == pytest.approx(np.exp(line["valid_loss"]), rel=1e-5)
        assert list(line["scale"]) == SLICES and list(line["alpha"]) == [*SLICES, "embedding"]
        assert line["refreshes"] == 2 and line["tokens_per_second"] > 0
    scales = np.array([list(line["scale"].values()) for line in lines])
    assert scales.min(axis=1) == pytest.approx(0.5) and scales.max(axis=1) == pytest.approx(1.5)
    norms = lines[0]["gradient_norms_within"]["norms"]
    assert np.shape(norms["layers/feed_forward/in[1]"]) == (1,)  # of 20 updates, every 30th
    assert lines[0]["spectra_within"]["layer"] == "layers/attention/k[0]"


def test_the_best_parameters_are_tested_once_on_every_window(finished, settings, state):
    corpus = load(settings)
    model = create_model("gpt-tiny", vocabulary=len(corpus.vocabulary), window=8, width=56, layers=2)
    length, forward = (
        len(corpus.test) // 10,
        jax.jit(lambda tokens: model.apply({"params": state.best}, tokens, train=False)),
    )
    rows, losses = corpus.test[: 10 * length].reshape(10, length), []
    for start in range(0, length - 8, 8):
        chances = np.asarray(jax.nn.log_softmax(forward(rows[:, start : start + 8])))
        losses.append(-np.take_along_axis(chances, rows[:, start + 1 : start + 9, None], axis=-1).mean())
    assert len(losses) % 8  # so that a batch of windows is filled up
    assert finished.summary()["test_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert finished.summary()["test_perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert float(state.best_loss) == min(line["valid_loss"] for line in finished.log())


def test_the_spectrum_of_each_slice_is_its_own(finished, state):
    spectra, alphas = finished.summary()["spectra"], finished.log()[-1]["alpha"]
    for part in ("q", "v"):
        for index, kernel in enumerate(np.asarray(state.params["layers"]["attention"][part]["kernel"], np.float64)):
            eigenvalues = np.sort(np.linalg.svd(kernel, compute_uv=False) ** 2)
            told, tail = spectra[f"layers/attention/{part}[{index}]"], np.log(eigenvalues[28:])
            alpha = 1 + 28 / np.sum(tail - tail[0])
            assert told["log10_edges"][1] == pytest.approx(np.log10(eigenvalues[-1]), abs=1e-3)
            assert told["alpha"] == pytest.approx(alpha, rel=1e-3)
            assert alphas[f"layers/attention/{part}[{index}]"] == pytest.approx(alpha, rel=1e-3)


@pytest.mark.slow
def test_a_run_stopped_and_gone_on_with_ends_as_one_that_was_not(finished, settings, monkeypatch, tmp_path):
    assert_resumes(LANGUAGE, settings, finished, monkeypatch, tmp_path / "run")


@pytest.mark.slow
def test_a_run_on_two_devices_is_that_on_one_but_for_the_order_of_sums(finished, settings, tmp_path):
    both = train(LANGUAGE, settings, tmp_path / "run", devices=Devices(mesh=2))
    for name in ("train_loss", "valid_loss"):
        told = [[line[name] for line in run.log()] for run in (both, finished)]
        np.testing.assert_allclose(told[0], told[1], rtol=2e-3)


def test_the_rate_rises_linearly_over_the_warm_up_and_falls_by_a_cosine_to_zero():
    settings = Settings(method="adamw", updates=100, learning_rate=0.2, warm_up=0.1)
    told = np.array([learning_rate_schedule(settings)(step) for step in range(101)])
    cosine = 0.1 * (1 + np.cos(np.pi * np.arange(91) / 90))
    np.testing.assert_allclose(told, [*(0.02 * np.arange(10)), *cosine], atol=1e-7)
    with pytest.raises(UserError, match=r"--warm-up 1\.0 must be below 1"):
        dataclasses.replace(settings, warm_up=1.0).check()


@pytest.mark.parametrize("method", ["adam", "adamw", "adamw+alphadecay", "tb+adamw", "tb+adamw+alphadecay"])
def test_what_a_method_does_with_a_gradient(method):
    """Two updates of a stack, by the formulas: clipping, Adam, the cosine, decay and rate of each slice by its scale."""
    random = np.random.default_rng(0)
    kernel = random.standard_normal((2, 60, 50)) * np.array([1.0, 0.9])[:, None, None] ** np.arange(50)
    layers = tb_optax.Layers([tb_optax.Layer("stack", "kernel", layer_axes=(0,))])
    settings = Settings(method=method, updates=4, learning_rate=0.1, weight_decay=0.2, clip=0.25, update_interval=10)
    schedule = optax.cosine_decay_schedule(0.1, 4)
    tx = create_optimizer(settings, schedule, layers)
    params = {"kernel": jnp.asarray(kernel, jnp.float32)}
    state, first, second, weight = tx.init(params), 0.0, 0.0, kernel
    scale = np.array([0.5, 1.5]) if method.startswith("tb") else np.ones(2)
    for step in range(2):
        grads = random.standard_normal(kernel.shape)
        updates, state = tx.update({"kernel": jnp.asarray(grads, jnp.float32)}, state, params)
        clipped = grads * 0.25 / np.linalg.norm(grads)
        first, second = 0.9 * first + 0.1 * clipped, 0.999 * second + 0.001 * clipped**2
        direction = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
        decay = 0.2 * weight if "adamw" in method else 0.0
        rate = 0.05 * (1 + np.cos(np.pi * step / 4))
        if method.startswith("tb"):
            told = np.asarray(optax.tree_utils.tree_get(state, "TempBalanceState").scale["stack"])
            assert sorted(told) == [0.5, 1.5]
            scale = told
        if method.endswith("alphadecay"):
            told = np.asarray(optax.tree_utils.tree_get(state, "AlphaDecayState").scale["stack"])
            np.testing.assert_allclose(sorted(told), [0.67, 5.0], rtol=1e-6)
            decay = told[:, None, None] * decay
        moved = -rate * scale[:, None, None] * (direction + decay)
        np.testing.assert_allclose(updates["kernel"], moved, rtol=2e-4, atol=5e-6)
        params, weight = optax.apply_updates(params, updates), weight + moved


@pytest.mark.slow
def test_updates_take_the_windows_of_a_text_in_order_and_begin_again():
    """At a learning rate of nothing, the loss of an interval is the mean over its windows."""
    tokens = np.random.default_rng(0).integers(0, 12, (3, 23))
    cut = windows(tokens, 5)
    assert cut.shape == (4, 3, 6)
    np.testing.assert_array_equal(cut[:, :, 1:].swapaxes(0, 1).reshape(3, 20), tokens[:, 1:21])
    np.testing.assert_array_equal(cut[1:, :, 0], cut[:-1, :, -1])
    model = create_model("gpt-tiny", vocabulary=12, window=5, width=8, layers=2)
    params = model.init(jax.random.key(0), cut[0, :, :-1], train=False)["params"]
    layers = find_layers(model, params, 5, min_eigenvalues=2, first_and_last=True)
    tx = optax.with_extra_args_support(optax.sgd(0.0))
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(params, tx.init(params), zero, params, jnp.asarray(jnp.inf), jnp.uint32(0))

    @jax.jit
    @jax.value_and_grad
    def loss(params, window):
        chances = jax.nn.log_softmax(model.apply({"params": params}, window[:, :-1], train=False))
        return -jnp.take_along_axis(chances, window[:, 1:, None], axis=-1).mean()

    by_window, grads = zip(*(loss(params, each) for each in cut), strict=True)
    steps, rows = (lambda state, _: state.step + jnp.arange(3)), jnp.asarray(cut)
    training = Training(None, steps, partial(loss_of, model), None, tx, rows, rows, layers, layers, None, 3)
    interval = jax.jit(lambda state: train_interval(training, state, rows))
    with jax.set_mesh(create_mesh(1, 3)):
        state, first, observed = interval(state)
        state, second, _ = interval(state)
        evaluated = jax.jit(lambda state: evaluate(model, 5, state, jnp.asarray(cut)))(state)  # 12 windows in batches of 5
    assert int(state.step) == 6
    assert float(first.loss) == pytest.approx(np.mean(by_window[:3]), rel=1e-5)
    assert float(second.loss) == pytest.approx(np.mean([by_window[3], *by_window[:2]]), rel=1e-5)
    assert float(evaluated.loss) == pytest.approx(np.mean(by_window), rel=1e-5)
    assert observed.watched.shape == (len(watched_steps(3)), 1, 8, 8)
    by_slice = [np.linalg.norm(each["layers"]["feed_forward"]["in"]["kernel"].reshape(2, -1), axis=1) for each in grads[:3]]
    np.testing.assert_allclose(observed.norms["layers/feed_forward/in"], np.mean(by_slice, axis=0), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(model="tensorized", width=56, method="tb+adam"),
        dict(model="tensorized_leaking", width=56, method="tb+adamw", control="placebo"),
        dict(dtype="bfloat16", remat=True, method="tb+adam", tail_fraction=0.8),
        dict(method="adam", tokens="characters", dropout=0.0),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_choice_trains(settings, tmp_path, changes):
    chosen = Settings(**{**vars(settings), "updates": 40, "evaluation_interval": 20, **changes})
    lines = train(LANGUAGE, chosen, tmp_path / "run", devices=Devices(mesh=1)).log()
    assert lines[-1]["valid_loss"] < lines[0]["valid_loss"]
