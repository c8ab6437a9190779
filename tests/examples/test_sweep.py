"""Grids, sweeps over them, and their results."""

import contextlib
import dataclasses
import functools
import json
from functools import partial

import jax
import numpy as np
import pytest
import rich.console
from on_vision import folder_of_run, load_grid, name_of_run, parse_changes, read_results, ready_grids, sweep
from outcomes import assert_same_arrays

from examples.paper import loop as loop_module
from examples.paper import sweep as sweep_module
from examples.paper.__main__ import main
from examples.paper.errors import UserError, WriteError
from examples.paper.grids import PAPER_SEEDS
from examples.paper.results import append_row, setting_key
from examples.paper.sweep import Sweep
from examples.paper.vision.settings import Settings

TINY = ("dataset=brightness", "train_split=train", "epochs=2", "batch_size=32")


@pytest.fixture
def command(tmp_path, prepared):
    """A sweep of a small grid: CAL and TB, two seeds."""
    grid = tmp_path / "tiny.toml"
    grid.write_text(
        'seeds = [1, 2]\nruns = [{ method = ["cal", "tb"], epochs = 2, dataset = "brightness", batch_size = 32 }]'
    )
    data = (f"brightness={prepared}",)
    return Sweep(str(grid), results=tmp_path / "results.jsonl", runs=tmp_path / "runs", data=data)


class Stopped(BaseException):
    """As an operator's Ctrl-C, but one that the test survives."""


def stop_after(monkeypatch, runs):
    """Ctrl-C within the first epoch of the run behind so many finished ones."""
    trained, train_epoch = [], loop_module.Trainer._train_interval

    def interrupted(self, program, state, epoch, together):
        if len(trained) == runs and epoch == 2:
            raise KeyboardInterrupt
        if epoch == self.settings.epochs:
            trained.append(self.settings)
        return train_epoch(self, program, state, epoch, together)

    def leave(status):
        raise Stopped(status)

    monkeypatch.setattr(loop_module.Trainer, "_train_interval", interrupted)
    monkeypatch.setattr(sweep_module.os, "_exit", leave)
    return trained


def logged_epochs(monkeypatch):
    """Every epoch that is trained, as it is."""
    found, train_epoch = [], loop_module.Trainer._train_interval

    def noted(self, program, state, epoch, together):
        found.append((self.settings.method, epoch, together))
        return train_epoch(self, program, state, epoch, together)

    monkeypatch.setattr(loop_module.Trainer, "_train_interval", noted)
    return found


def test_a_grid_is_every_combination_with_every_seed(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(
        'title = "Two"\nseeds = [7, 8]\nruns = [\n'
        '  { method = ["cal", "tb"], learning_rate = [0.05, 0.1, 1], dataset = "cifar10" },\n  { method = "lars" },\n]'
    )
    grid = load_grid(str(path))
    assert grid.title == "Two" and grid.name == "grid"
    assert len(grid.settings) == 7 and len(grid.runs()) == 14
    assert {(run.method, run.learning_rate) for run in grid.runs()} >= {("tb", 1.0), ("cal", 0.05), ("lars", 28.0)}
    assert {run.seed for run in grid.runs()} == {7, 8}
    changed = load_grid(str(path), {"epochs": 3, "learning_rate": 0.2}, seeds=[1])
    assert len(changed.runs()) == 3 and {run.epochs for run in changed.runs()} == {3}  # what became the same counts once


def test_ready_grids_are_the_papers():
    paper = ["table1", "table2", "table3", "table4", "table5", "table6"]
    paper += ["figure15", "figure16", "figure17", "figure21", "figure22", "figure24"]
    assert set(paper) <= set(ready_grids()) and ready_grids()[:6] == paper[:6]
    grids = {name: load_grid(name) for name in paper}
    assert all(grid.seeds == PAPER_SEEDS == (43, 37, 13, 51, 71) for grid in grids.values())
    everything = [settings for grid in grids.values() for settings in grid.settings]
    every = lambda field: {getattr(settings, field) for settings in everything}
    alone = {"cal", "snr", "sgdr", "lars", "lamb", "lookahead", "sgdp", "adam", "adamw", "adamp", "tb"}
    assert every("method") == alone - {"adamw", "adamp"} | {"tb+snr", "tb+sgdp"}
    assert every("dataset") == {"cifar10", "cifar100", "svhn_cropped", "tiny_imagenet"}
    assert every("model") >= {"resnet18", "resnet34", "vgg16", "vgg19", "wrn16-8", "wrn28-6"}
    assert every("width") == {0.5, 1.0, 1.5} and every("learning_rate") >= {0.05, 0.1, 0.15, 28.0, 32.0}
    assert every("metric") == {"pl_alpha_hill", "spectral_norm", "alpha_weighted"}
    assert every("fit") == {"median", "goodness_of_fit", "fix_finger"}
    assert every("assignment") == {"linear", "sqrt", "log2", "step"}
    assert every("epochs") == {200} and every("batch_size") == {128} and every("weight_decay") == {5e-4}


def test_grids_on_prepared_data_have_the_numbers_of_table_1():
    """But for the size of the network and of the run."""
    own = dict(dataset="", epochs=0, width=0.0)
    numbers = lambda name, dataset: {
        dataclasses.replace(settings, **own) for settings in load_grid(name).settings if settings.dataset == dataset
    }
    assert numbers("cifar10_jpeg", "cifar10_jpeg") == numbers("table1", "cifar10")
    assert numbers("cifar10_jpeg_50k", "cifar10_jpeg") < numbers("table1", "cifar10")
    assert numbers("tiny_imagenet32", "tiny_imagenet32") < numbers("table1", "tiny_imagenet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs = [", "is not a grid in TOML"),
        ("title = 'x'", "needs a list of runs"),
        ("runs = [{ momentum = 0.8 }]", "momentum is not a setting of a grid"),
        ("runs = [{ seed = 3 }]", "seeds stand by themselves"),
        ("runs = [{ method = 'sgd' }]", "method = 'sgd' must be 'cal' or "),
        ("runs = [{ epochs = 1.5 }]", "epochs = 1.5 must be int"),
        ("runs = [{ epochs = 0 }]", "--epochs 0 must be above 0"),
        ("seeds = [4294967296]\nruns = [{ epochs = 2 }]", "--seed 4294967296 must be a whole number from 0 to 4294967295"),
        ("seeds = ['a']\nruns = [{ epochs = 2 }]", "--seed a must be a whole number"),
    ],
)
def test_a_mistake_in_a_grid_is_named(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_grid(str(path))


def test_mistakes_in_the_command_are_named(command, capsys):
    with pytest.raises(UserError, match="--set epochs must be NAME=VALUE"):
        parse_changes(["epochs"])
    with pytest.raises(UserError, match=r"--set: epoch is not a setting"):
        parse_changes(["epoch=2"])
    with pytest.raises(UserError, match="none of the ready grids: table1, "):
        load_grid("table7")
    with pytest.raises(UserError, match="--together 0"):
        sweep(dataclasses.replace(command, together=0))
    with pytest.raises(UserError, match="--data brightness must be NAME=DIR"):
        sweep(dataclasses.replace(command, data=("brightness",)))
    (place,) = (item.partition("=")[2] for item in command.data)
    with pytest.raises(UserError, match="2 of 2 settings failed"):
        sweep(dataclasses.replace(command, changes=("dataset=darkness",), data=(f"darkness={place}",)))
    assert "holds brightness; name it so in the grid" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_stopped_and_started_again_ends_as_one_that_was_not(command, small, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        stop_after(patch, runs=1)
        with pytest.raises(Stopped):
            sweep(command)
    assert len(read_results([command.results])) == 1
    with monkeypatch.context() as patch:
        epochs = logged_epochs(patch)
        sweep(command)
    assert epochs == [("cal", 2, 1), *((("tb", epoch, 1)) for _ in range(2) for epoch in (1, 2))]  # from the checkpoint on
    rows = read_results([command.results])
    assert [(row["settings"]["method"], row["settings"]["seed"]) for row in rows] == [
        ("cal", 1), ("cal", 2), ("tb", 1), ("tb", 2)
    ]  # fmt: skip
    whole = dataclasses.replace(command, results=tmp_path / "whole.jsonl", runs=tmp_path / "whole")
    sweep(whole)
    for row, other in zip(rows, read_results([whole.results]), strict=True):
        for name in ("settings", "test_accuracy", "test_loss", "train_loss", "spectra"):
            assert row[name] == other[name]
        assert row["history"]["alpha"] == other["history"]["alpha"]


@pytest.mark.slow
def test_a_row_holds_what_a_report_needs(command, small):
    sweep(dataclasses.replace(command, changes=('method="tb"',), seeds=(1,)))
    (row,) = read_results([command.results])
    assert row["settings"]["dataset"] == "brightness" and "data_dir" not in row["settings"]
    assert 0 <= row["test_accuracy"] <= 1 and row["seconds"] > 0
    history = row["history"]
    assert list(history["alpha"]) == ["convs/0", "convs/1", "convs/2", "linear"]  # the network's order
    assert list(history["scale"]) == ["convs/1", "convs/2"] and list(history["gradient_norm"]) == list(history["alpha"])
    series = [*history["alpha"].values(), *history["gradient_norm"].values(), history["test_accuracy"]]
    assert all(len(values) == 2 for values in series)
    for spectrum in row["spectra"].values():
        assert sum(spectrum["counts"]) <= spectrum["eigenvalues"] and len(spectrum["counts"]) == 50
    assert row["provenance"]["platform"] == jax.default_backend() and "jax" in row["provenance"]["versions"]
    json.dumps(row, allow_nan=False)


def test_every_setting_is_announced_with_the_seeds_that_it_lacks(command, capsys, monkeypatch):
    monkeypatch.setattr(sweep_module, "_train_setting", lambda *_: None)
    sweep(dataclasses.replace(command, seeds=(2, 3)))
    told = capsys.readouterr().out
    assert "brightness-resnet18-cal-batch_size_32-epochs_2, seed 2, 3\n" in told
    assert "brightness-resnet18-tb-batch_size_32-epochs_2, seed 2, 3\n" in told


def test_a_setting_that_fails_does_not_stop_the_others_and_is_listed_at_the_end(command, capsys, monkeypatch):
    tried = []

    def train_setting(domain, command, settings, seeds, *_):
        tried.append(settings.batch_size)
        if settings.batch_size == 16:
            raise UserError("no such batch")
        if settings.batch_size == 32:
            raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(sweep_module, "_train_setting", train_setting)
    (grid := command.runs.parent / "batches.toml").write_text('runs = [{ dataset = "digits", batch_size = [16, 32, 64] }]')
    with pytest.raises(UserError, match="2 of 3 settings failed, as listed above; the same command tries them again"):
        sweep(dataclasses.replace(command, grid=str(grid), seeds=(1,), data=()))
    assert tried == [16, 32, 64]
    listed = capsys.readouterr().out.splitlines()[-2:]
    assert listed == [
        "digits-resnet18-tb-batch_size_16, seed 1: no such batch",
        "digits-resnet18-tb-batch_size_32, seed 1: RuntimeError: out of memory",
    ]


def test_a_data_set_that_is_not_there_stops_its_own_settings_only(command, capsys, monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(sweep_module, "_train_setting", lambda *arguments: trained.append(arguments[4]().name))
    (grid := tmp_path / "sets.toml").write_text('runs = [{ dataset = ["nowhere", "brightness"] }]')
    data = (*command.data, f"nowhere={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="1 of 2 settings failed"):
        sweep(dataclasses.replace(command, grid=str(grid), data=data))
    assert trained == ["brightness"] and "nowhere is not a data set" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_stops_a_sweep(command, monkeypatch):
    def full(*_):
        raise WriteError("No space left on device")

    monkeypatch.setattr(sweep_module, "_train_setting", full)
    with pytest.raises(WriteError, match="No space left"):
        sweep(command)


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_a_row_and_the_sweep_goes_on(command, small):
    """Its weights are finite and their squares, the eigenvalues, are not."""
    sweep(dataclasses.replace(command, changes=("learning_rate=1e6", 'method="tb"'), seeds=(1, 2)))
    for row in read_results([command.results]):
        assert len(row["history"]["train_loss"]) == 2 and len(row["spectra"]) < 4


@pytest.mark.slow
def test_seeds_trained_together_end_as_one_at_a_time(command, small, monkeypatch, tmp_path):
    sweep(command)
    together = dataclasses.replace(command, results=tmp_path / "both.jsonl", runs=tmp_path / "both", together=2)
    with monkeypatch.context() as patch:
        epochs = logged_epochs(patch)
        sweep(together)
    assert epochs == [(method, epoch, 2) for method in ("cal", "tb") for epoch in (1, 2)]
    one, other = read_results([command.results]), read_results([together.results])
    assert [row["settings"] for row in one] == [row["settings"] for row in other]
    for row, same in zip(one, other, strict=True):
        np.testing.assert_allclose(row["test_loss"], same["test_loss"], rtol=1e-3)
        for layer, alphas in row["history"]["alpha"].items():
            np.testing.assert_allclose(alphas, same["history"]["alpha"][layer], rtol=1e-2)
        first, others = (each["history"]["gradient_norms_within"]["norms"] for each in (row, same))
        for layer, norms in first.items():
            np.testing.assert_allclose(norms[0], others[layer][0], rtol=1e-2)
    for path in sorted(command.runs.iterdir()):  # every folder is as if that run had been alone
        assert_same_arrays(path, together.runs / path.name, 2, partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3))


@pytest.mark.slow
def test_seeds_that_stand_at_different_epochs_go_on_in_groups(command, small, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, runs=0)
        with pytest.raises(Stopped):
            sweep(dataclasses.replace(command, seeds=(1,)))
    epochs = logged_epochs(monkeypatch)
    sweep(dataclasses.replace(command, changes=("method=cal",), seeds=(1, 2, 3), together=3))
    assert epochs == [("cal", 2, 1), ("cal", 1, 2), ("cal", 2, 2)]
    assert len(read_results([command.results])) == 3


def test_memory_says_how_many_seeds_train_together(monkeypatch):
    class Device:
        platform = "cuda"

        def memory_stats(self):
            return {"bytes_limit": 1000}

    class Trainer:
        def program(self, together):
            return type("Program", (), {"bytes_needed": staticmethod(lambda: 300 * together)})

    console = rich.console.Console(quiet=True)
    for device, most, together in ((Device(), 5, 3), (Device(), 2, 2), (jax.devices("cpu")[0], 5, 1)):
        assert sweep_module._how_many(Trainer(), most, device, console) == together


def test_results_of_two_machines_merge_and_a_cut_off_line_is_left_out(tmp_path):
    row = lambda seed, accuracy: {
        "settings": dataclasses.asdict(Settings(seed=seed)) | {"data_dir": None},
        "test_accuracy": accuracy,
    }
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    append_row(one, row(1, 0.5))
    append_row(two, row(2, 0.6))
    append_row(two, row(1, 0.7))
    both = tmp_path / "both.jsonl"
    both.write_text(one.read_text() + two.read_text() + '{"settings": {"see')
    for paths in ([one, two], [tmp_path], [both]):
        assert {r["settings"]["seed"]: r["test_accuracy"] for r in read_results(paths)} == {1: 0.7, 2: 0.6}
    append_row(both, row(3, 0.8))
    assert len(read_results([both])) == 3
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        read_results([tmp_path / "none.jsonl"])
    two.write_text(json.dumps({"settings": {"method": "nosuch"}}) + "\n")
    with pytest.raises(UserError, match=r"two\.jsonl, line 1, has the method 'nosuch', which this version does not know"):
        read_results([two])
    two.write_bytes(b'{"settings": "\xe9"}\n')
    with pytest.raises(UserError, match=r"two\.jsonl is not in UTF-8 \(byte 14\)"):
        read_results([two])
    two.write_text("[]\n{}\n")
    with pytest.raises(UserError, match=r"two\.jsonl, line 1, is not a result"):
        read_results([two])


def test_a_run_is_known_by_its_settings_wherever_its_data_lie(tmp_path):
    settings = Settings(method="tb", seed=3)
    assert settings.key() == dataclasses.replace(settings, data_dir=tmp_path, learning_rate=0.1).key()
    assert settings.key() != dataclasses.replace(settings, seed=4).key()
    assert setting_key(settings) == setting_key(dataclasses.replace(settings, seed=4))
    old = {name: value for name, value in dataclasses.asdict(settings.resolved()).items() if name != "snr_coefficient"}
    assert Settings.of(old | {"later": 1}).key() == settings.key()  # a row of a version before, or after


def test_a_fit_that_the_metric_does_not_take_makes_no_other_run():
    runs = {
        Settings(method="tb", metric="spectral_norm", fit=fit).key() for fit in ("median", "goodness_of_fit", "fix_finger")
    }
    assert len(runs) == 1
    row = dataclasses.asdict(Settings(method="tb", metric="spectral_norm").resolved()) | {"fit": "fix_finger"}
    assert {Settings.of(row).key()} == runs  # one of before
    assert Settings(method="tb", fit="fix_finger").key() != Settings(method="tb").key()


def test_settings_that_differ_have_folders_that_differ():
    different = [
        Settings(train_split=split).resolved() for split in ("train", "train[:10000]", "train[10000:]", "train10000")
    ]
    different += [Settings(test_split=split).resolved() for split in ("test", "test[:1]", "te/st", "te%2Fst")]
    different += [Settings(dataset=name).resolved() for name in ("voc/2007", "a-resnet18", "a")]
    long = {
        "learning_rate": 0.0005,
        "transition_steps": 5,
        "refresh_fraction": 0.2,
        "greatest_ends": True,
        "tail_fraction": 0.3,
    }
    long |= {"train_split": "train[:10000]", "test_split": "train[10000:]", "weight_decay": 1e-3, "update_interval": 10}
    different += [Settings(method="tb", control=control, **long).resolved() for control in ("mean", "reversed", "none")]
    names = [folder_of_run(settings, settings.seed).name for settings in different]
    assert len(set(names)) == len(names) and not any(set(name) & set("/,=: []") for name in names)
    assert max(map(len, names)) <= 200 < len(name_of_run(different[-1]))


def test_a_dry_run_trains_nothing(command, capsys, monkeypatch):
    main(["vision", "sweep", "table1", "--results", str(command.results), "--dry-run"])
    assert "Table 1, Figure 3: CAL, SNR, TB and TB + SNR: 0 of 240 runs done" in capsys.readouterr().out
    assert not command.runs.exists()


def test_a_dry_run_says_which_seeds_are_done_begun_and_missing(command, capsys):
    done, begun, *_ = load_grid(command.grid, seeds=(1, 2, 3)).runs()
    append_row(command.results, {"settings": {**dataclasses.asdict(done), "data_dir": None}})
    (command.runs / f"{name_of_run(begun)}-seed_2").mkdir(parents=True)
    sweep(dataclasses.replace(command, seeds=(1, 2, 3), dry_run=True))
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        "brightness-resnet18-cal-batch_size_32-epochs_2: done 1; begun 2; missing 3",
        "brightness-resnet18-tb-batch_size_32-epochs_2: missing 1, 2, 3",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ready_grids())
def test_every_ready_grid_starts_stops_and_goes_on(name, command, small, monkeypatch):
    """With its own methods and numbers, on images and for a time that a test can afford."""
    tiny = dataclasses.replace(command, grid=name, seeds=(1,), changes=(*TINY, "model=resnet18", "width=1.0"))
    wanted = {setting_key(settings) for settings in load_grid(name, parse_changes(tiny.changes)).settings}
    for done in (1, 2):
        with monkeypatch.context() as patch:
            stop_after(patch, runs=1)
            with pytest.raises(Stopped) if done < len(wanted) else contextlib.nullcontext():
                sweep(tiny)
        rows = read_results([tiny.results])
        assert len(rows) == done and {setting_key(Settings.of(row["settings"])) for row in rows} <= wanted


METHODS = functools.reduce(set.union, ({run.method for run in load_grid(name).settings} for name in ready_grids()), set())
CHOICES = [dict(method=method) for method in sorted(METHODS)]
CHOICES += [dict(metric="spectral_norm"), dict(metric="alpha_weighted"), dict(fit="goodness_of_fit"), dict(fit="fix_finger")]
CHOICES += [dict(assignment=assignment) for assignment in ("sqrt", "log2", "step")]
CHOICES += [dict(first_and_last=True), dict(start_epoch=1), dict(update_interval=2), dict(min_scale=0.1, max_scale=1.9)]


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_every_choice_trains(changes, command, small):
    flags = [f"{name}={json.dumps(value)}" for name, value in (dict(method="tb") | changes).items()]
    sweep(dataclasses.replace(command, seeds=(1,), changes=(*TINY, "epochs=8", *flags)))
    (row,) = read_results([command.results])
    losses = row["history"]["train_loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
