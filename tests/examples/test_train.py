import dataclasses
import functools
import json
import os
import re
import signal

import numpy as np
import on_vision
import pytest
from on_vision import compare
from outcomes import assert_same_arrays, command_of, final_arrays, wait_for
from processes import TESTS, finish, start

import tb_optax
from examples.paper.__main__ import main
from examples.paper.checkpoints import Checkpoints
from examples.paper.detection.domain import DETECTION
from examples.paper.errors import UserError
from examples.paper.language.domain import LANGUAGE
from examples.paper.observations import Spectrum, histograms, told_after
from examples.paper.parallel import Devices
from examples.paper.results import row_of
from examples.paper.vision.domain import VISION

train = functools.partial(on_vision.train, devices=Devices(mesh=1))  # as in a process of its own, on its one device
DOMAINS = (VISION, LANGUAGE, DETECTION)


@pytest.fixture(scope="module")
def settings(small_settings):
    return small_settings


@pytest.fixture(scope="module")
def finished(finished_small):
    return finished_small


def test_a_run_learns_and_logs_every_layer_each_epoch(finished):
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert log[-1]["train_accuracy"] > 0.9 > log[0]["train_accuracy"]
    for line in log:
        assert list(line["alpha"]) == list(line["gradient_norm"]) == ["convs/0", "convs/1", "convs/2", "linear"]
        assert list(line["scale"]) == ["convs/1", "convs/2"] and min(line["gradient_norm"].values()) > 0
        within = line["gradient_norms_within"]
        assert (within["every"], within["steps"]) == (30, 3) and list(within["norms"]) == list(line["alpha"])
        assert all(len(norms) == 1 and norms[0] > 0 for norms in within["norms"].values())
        assert min(line["scale"].values()) == pytest.approx(0.5)
        assert max(line["scale"].values()) == pytest.approx(1.5)
        assert line["refreshes"] == 1 and 0 < line["refresh_seconds"] < line["seconds"]
        assert {"train_loss", "test_loss", "test_accuracy", "images_per_second", "learning_rate"} <= set(line)


@pytest.mark.slow
def test_a_run_of_alphadecay_logs_the_scales_of_its_decay(settings, small, tmp_path, capsys):
    """Beside those of the learning rate, which are 1 without TempBalance."""
    own = dataclasses.replace(settings, method="adamw+alphadecay", learning_rate=1e-3, epochs=1, seed=2**32 - 1)
    run = train(own, tmp_path / "run")
    (line,) = run.log()
    assert set(line["scale"].values()) == {1.0} and line["refreshes"] == 1
    assert list(line["decay_scale"]) == list(line["decay_metric"]) == ["convs/1", "convs/2"]
    assert sorted(line["decay_scale"].values()) == pytest.approx([0.67, 5.0])
    assert "  decay scales 0.67-5.00" in capsys.readouterr().out
    last = {name: values[-1] for name, values in row_of(run)["history"]["decay_scale"].items()}
    assert last == pytest.approx(line["decay_scale"], rel=1e-4)


def test_every_key_of_the_log_is_documented_and_no_other(finished):
    page = (TESTS.parent / "docs" / "log.md").read_text()
    table = page[page.index("key by key") : page.index("## `results.jsonl`")]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    documented = {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}
    written = set(json.loads((finished / "log.jsonl").read_text().splitlines()[0])) | {"decay_scale", "decay_metric"}
    assert documented == written.union(*({domain.interval, domain.speed, *domain.metrics} for domain in DOMAINS))


def test_a_layer_whose_eigenvalues_are_infinite_has_no_histogram():
    infinite, finite = (
        Spectrum(np.array(values), tb_optax.fits.PowerLaw(*map(np.array, (2.0, 1.0, 0.1))))
        for values in ([np.inf] * 4, [1.0, 2.0, np.inf])
    )
    layers = [tb_optax.Layer(name, f"{name}/kernel") for name in ("a", "b")]
    found = histograms({"a": infinite, "b": finite}, layers)
    assert list(found) == ["b"] and sum(found["b"]["counts"]) == 2


def test_a_run_leaves_plots_and_tensorboard_events(finished):
    from tensorboardX.proto.event_pb2 import Event

    assert {path.name for path in finished.glob("*.png")} == {"alpha.png", "learning_rate.png", "scale.png"}
    (events,) = finished.glob("events.out.tfevents.*")
    data, tags, start = events.read_bytes(), set(), 0
    while start < len(data):  # a record: its length, a checksum, itself, a checksum
        length = int.from_bytes(data[start : start + 8], "little")
        event = Event.FromString(data[start + 12 : start + 12 + length])
        tags.update((value.tag, event.step) for value in event.summary.value)
        start += 16 + length
    assert {("test_accuracy", 1), ("test_accuracy", 3), ("alpha/convs/0", 2), ("scale/convs/2", 3)} <= tags


def test_runs_are_shown_side_by_side(finished):
    import rich.console

    console = rich.console.Console(width=120, record=True)
    console.print(compare((finished, finished)))
    text = console.export_text()
    accuracy = json.loads((finished / "log.jsonl").read_text().splitlines()[-1])["test_accuracy"]
    assert text.count(f"{accuracy:.2%}") == 2 and "3/3" in text


@pytest.mark.slow
def test_a_run_killed_and_resumed_ends_bit_for_bit_as_one_that_was_not(settings, finished, small, tmp_path):
    out = tmp_path / "killed"
    (process,) = start([command_of(settings, out)], devices=1)
    wait_for(out / "log.jsonl", '"epoch": 1', process)
    process.kill()
    process.wait()
    with (out / "log.jsonl").open("a") as log:
        log.write('{"epoch": 2, "train_lo')  # as a kill within a write would leave it
    train(settings, out, resume=True)
    assert_same_arrays(finished, out, 3)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.slow
def test_ctrl_c_says_where_to_go_on_and_leaves_a_checkpoint(settings, tmp_path):
    out = tmp_path / "stopped"
    (process,) = start([command_of(dataclasses.replace(settings, epochs=1000), out)], devices=1)
    wait_for(out / "log.jsonl", '"epoch": 2', process)
    process.send_signal(signal.SIGINT)
    (output,) = finish([process], seconds=60)
    assert process.returncode == 130
    assert "Traceback" not in output
    latest = Checkpoints((out / "checkpoints").absolute()).latest()
    assert latest >= 1 and f"stopped after epoch {latest}; --resume goes on from there" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [dict(method="cal"), dict(method="tb"), dict(dtype="bfloat16")]
    + [dict(model=model) for model in ("resnet34", "vgg16", "vgg19", "wrn16-8", "wrn28-6")]
    + [dict(model=model, learning_rate=0.005) for model in ("resnet50", "resnet101")],  # so deep, and so narrow
    ids=str,
)
def test_every_choice_of_method_model_and_dtype_trains(settings, tmp_path, changes):
    directory = train(dataclasses.replace(settings, epochs=6, **changes), tmp_path / "run")
    first, *_, last = directory.log()
    assert last["train_loss"] < first["train_loss"]
    if changes == dict(method="cal"):
        assert set(last["scale"].values()) == {1.0} and last["refreshes"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["pl_alpha_hill", "spectral_norm"])
def test_the_log_tells_the_metric_that_set_the_scales_and_alphas_by_its_fit(settings, small, tmp_path, metric):
    own = dataclasses.replace(settings, epochs=1, metric=metric, fit="goodness_of_fit")
    directory = train(own, tmp_path / "run")
    (line,) = directory.log()
    kernel = lambda epoch, name: next(
        array for path, array in final_arrays(tmp_path / "run", epoch).items() if f"params{name}" in path_text(path)
    )
    for layer in ("convs/1", "convs/2"):
        before, after = (spectrum(kernel(epoch, f"/{layer}/kernel")) for epoch in (0, 1))
        fit = tb_optax.fits.goodness_of_fit if metric == "pl_alpha_hill" else tb_optax.fits.median
        np.testing.assert_allclose(line["alpha"][layer], fit(after).alpha, rtol=1e-3)
        used = fit(before).alpha if metric == "pl_alpha_hill" else before[-1]
        np.testing.assert_allclose(line["metric"][layer], used, rtol=1e-3)


def path_text(path):
    """`params/convs/1/kernel` of `['params']['convs']['1']['kernel']`."""
    return "/".join(re.findall(r"\w+", path))


def spectrum(kernel):
    """Of a convolution's kernel, as the paper has it: of every place of the window, all together."""
    matrices = np.asarray(kernel, np.float64).reshape(-1, *kernel.shape[2:]) * np.sqrt(0.5)
    return np.sort(np.linalg.svd(matrices, compute_uv=False).ravel() ** 2).astype(np.float32)


@pytest.mark.slow
def test_a_weights_spectra_are_told_within_the_first_epoch_and_after_some(settings, small, tmp_path):
    directory = train(dataclasses.replace(settings, epochs=2), tmp_path / "run")
    within = row_of(directory)["history"]["spectra_within"]
    assert (within["layer"], within["steps"]) == ("convs/2", 3)
    assert [spectrum["iteration"] for spectrum in within["spectra"]] == [0, 1, 2, 3, 6]
    for iteration, epoch in ((3, 1), (6, 2)):  # the checkpoints that are kept
        (kernel,) = (
            array
            for path, array in final_arrays(tmp_path / "run", epoch).items()
            if "params/convs/2/kernel" in path_text(path) and "opt" not in path
        )
        (told,) = (each for each in within["spectra"] if each["iteration"] == iteration)
        values = spectrum(kernel)
        assert told["eigenvalues"] == len(values) == sum(told["counts"])
        assert told["log10_edges"][1] == pytest.approx(np.log10(values[-1]), abs=1e-3)
    assert [epoch for epoch in range(1, 31) if told_after(epoch, 30)] == [1, 2, 5, 10, 20, 30]


@pytest.mark.slow
def test_norms_within_epochs_are_told_of_the_first_ten(settings, small, tmp_path):
    directory = train(dataclasses.replace(settings, epochs=12, batch_size=2), tmp_path / "run")
    log = directory.log()
    assert ["gradient_norms_within" in line for line in log] == [True] * 10 + [False] * 2
    within = row_of(directory)["history"]["gradient_norms_within"]
    assert (within["every"], within["steps"]) == (30, 48) and list(within["norms"]) == list(log[0]["gradient_norm"])
    for layer, norms in within["norms"].items():
        logged = [line["gradient_norms_within"]["norms"][layer] for line in log[:10]]
        assert np.shape(norms) == (10, 2)
        np.testing.assert_allclose(norms, logged, rtol=1e-4)


@pytest.mark.slow
def test_a_finished_run_resumed_is_left_as_it_is(settings, finished, small):
    before = (finished / "log.jsonl").read_text()
    train(settings, finished, resume=True)
    assert (finished / "log.jsonl").read_text() == before


def test_a_folder_is_never_overwritten_and_resumed_only_with_its_settings(settings, finished, tmp_path):
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        train(settings, finished)
    with pytest.raises(UserError, match=r"has --learning-rate 0\.05; give the same"):
        train(dataclasses.replace(settings, learning_rate=0.2), finished, resume=True)
    with pytest.raises(UserError, match="holds no run"):
        train(settings, tmp_path / "nothing", resume=True)


def test_an_unknown_model_is_answered_with_those_there_are(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["vision", "train", "--model", "resnet19"])
    answer = capsys.readouterr().err
    assert "resnet19" in answer and "resnet18" in answer and "Traceback" not in answer


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_checkpoint_stands(settings, small, monkeypatch, capsys, tmp_path):
    """The log is written to a device that is always full."""
    out = tmp_path / "run"
    out.mkdir()
    os.symlink("/dev/full", out / "log.jsonl")
    monkeypatch.setattr("examples.paper.run_directory.RunDirectory.cut_log", lambda self, epoch: None)
    monkeypatch.setattr("examples.paper.run_directory.RunDirectory.log", lambda self: [])
    with pytest.raises(SystemExit):
        main(["vision", "train", *map(str, command_of(settings, out)[2:])])
    assert "error: No space left on device" in capsys.readouterr().out
    assert Checkpoints((out / "checkpoints").absolute()).latest() == 0
