"""A detector in training: what a run writes, going on with one, several seeds at once, and commands' errors."""

import jax
import numpy as np
import pytest
import rich.console
from outcomes import assert_resumes

from examples.paper.checkpoints import Checkpoints
from examples.paper.detection.average_precision import evaluate
from examples.paper.detection.domain import DETECTION, build, detect_all, load
from examples.paper.detection.settings import Settings
from examples.paper.loop import Trainer
from examples.paper.parallel import Devices, create_mesh
from examples.paper.run_directory import RunDirectory
from examples.paper.train import train

SMALL = dict(width=0.0625, image_size=64, epochs=2, batch_size=64, learning_rate=4e-3, first_and_last=True)
ONE = Devices(mesh=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(DETECTION, Settings(**SMALL), tmp_path_factory.mktemp("runs") / "run", devices=ONE)


@pytest.mark.slow
def test_a_run_learns_and_writes_what_a_person_looks_at(finished):
    lines = finished.log()
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["train_loss"] < 0.8 * lines[0]["train_loss"]
    parts = ("box", "distribution", "classes")
    assert lines[1]["train_loss"] == pytest.approx(sum(lines[1][f"train_{part}"] for part in parts), rel=1e-5)
    scales = np.array([list(line["scale"].values()) for line in lines])
    assert scales.min() == pytest.approx(0.6) and scales.max() == pytest.approx(1.4)
    assert set(lines[0]["scale"]) < set(lines[0]["alpha"])
    for name in ("alpha", "scale", "learning_rate", "batch", "detections", "precision_recall"):
        assert (finished.path / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_what_the_log_says_of_the_last_epoch_is_what_its_state_finds(finished):
    settings = Settings(**SMALL).resolved()
    dataset = load(settings)
    training = build(settings, dataset, create_mesh(1, settings.batch_size))
    with Checkpoints(finished.checkpoints) as checkpoints:
        state = checkpoints.restore(2, training.init(43))
    with jax.set_mesh(create_mesh(1, settings.batch_size)):
        found = jax.jit(training.evaluate)(state, training.held_out_data)
    assert training.evaluate.func is detect_all
    assert found.boxes.shape == (128, 300, 4)  # the last batch is whole; all images are there
    average = evaluate(found, dataset.test, dataset.classes).average
    assert finished.log()[-1]["test_map"] == pytest.approx(average.map, abs=1e-6)


@pytest.mark.slow
def test_a_run_stopped_and_gone_on_with_ends_as_one_that_was_not(finished, monkeypatch, tmp_path):
    assert_resumes(DETECTION, Settings(**SMALL), finished, monkeypatch, tmp_path / "run")


@pytest.mark.slow
def test_seeds_that_train_together_have_an_average_precision_each(tmp_path):
    settings = Settings(**SMALL | {"epochs": 1}).resolved()
    trainer = Trainer(DETECTION, settings, load(settings), create_mesh(1, 64), rich.console.Console(quiet=True))
    directories = {seed: RunDirectory(tmp_path / str(seed), DETECTION) for seed in (1, 2)}
    for directory in directories.values():
        directory.start(settings)
    trainer.train(directories)
    losses = [directory.log()[0]["train_loss"] for directory in directories.values()]
    assert losses[0] != losses[1]
    assert all((directory.path / "detections.png").exists() for directory in directories.values())
    assert all(0 <= directory.log()[0]["test_map50"] <= 1 for directory in directories.values())
