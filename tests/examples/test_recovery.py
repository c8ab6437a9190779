"""What a run's folder is after damage, and that no two processes write it at once."""

import json
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from on_vision import RunDirectory, read_results
from outcomes import assert_same_arrays, command_of, train_small, wait_for
from processes import finish, start

from examples.paper.__main__ import main
from examples.paper.checkpoints import Checkpoints, find_damage, last_saved, saved
from examples.paper.errors import UserError
from examples.paper.results import append_row
from examples.paper.vision.settings import Settings

STATE = {"weights": jnp.arange(400.0).reshape(20, 20) ** 0.5, "count": jnp.array(7)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run after three epochs, of which the last two have checkpoints."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "whole")
    directory.start(Settings().resolved())
    with Checkpoints(directory.checkpoints) as checkpoints:
        for epoch in range(4):
            checkpoints.save(epoch, STATE)
    for epoch in range(1, 4):
        directory.write_log({"epoch": epoch})
    return directory


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(whole.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def recovered(run):
    """The lines that a recovery tells."""
    lines = []
    run.recover(lines.append)
    return lines


def largest_file(checkpoint):
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path, index):
    content = bytearray(path.read_bytes())
    content[index] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "a flipped byte": lambda path: flip(path, path.stat().st_size // 2),
    "emptied": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_gone_on_from(run, damage):
    path = largest_file(run.checkpoints / "3")
    damage(path)
    (line,) = recovered(run)
    assert line.startswith(
        f"{path.relative_to(run.path)} is damaged; put into {run.path / 'put_aside' / '3'}, going on from"
    )
    assert line.endswith("epoch 2") and last_saved(run.checkpoints) == 2
    with Checkpoints(run.checkpoints) as checkpoints:
        restored = checkpoints.restore(2, STATE)
        checkpoints.save(3, STATE)
    np.testing.assert_array_equal(restored["weights"], STATE["weights"])
    assert saved(run.checkpoints) == [2, 3] and recovered(run) == []


@pytest.mark.parametrize("like", [{"weights": STATE["weights"], "step": STATE["count"]}, {**STATE, "count": jnp.zeros(3)}])
def test_a_state_of_another_version_is_refused(run, like):
    with Checkpoints(run.checkpoints) as checkpoints, pytest.raises(UserError, match="3 holds another kind of state"):
        checkpoints.restore(3, like)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "gone"])
def test_orbaxs_own_metadata_counts(run, damage):
    DAMAGE[damage](run.checkpoints / "3" / "_CHECKPOINT_METADATA")
    (line,) = recovered(run)
    assert "_CHECKPOINT_METADATA is damaged" in line and last_saved(run.checkpoints) == 2


@pytest.mark.parametrize("text", ["", "[1", "7"])
def test_damaged_checksums_are_named(run, text):
    (run.checkpoints / "3" / "checksums.json").write_text(text)
    (line,) = recovered(run)
    assert "checkpoints/3/checksums.json is damaged" in line and last_saved(run.checkpoints) == 2


def test_whatever_byte_is_flipped_in_whatever_file_is_found(run):
    generator = np.random.default_rng(0)
    checkpoint = run.checkpoints / "3"
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        for index in generator.choice(path.stat().st_size, min(40, path.stat().st_size), replace=False):
            flip(path, index)
            found = find_damage(checkpoint)
            assert found is not None or path.name in ("_CHECKPOINT_METADATA", "commit_success.txt")  # no state in these
            flip(path, index)
    assert find_damage(checkpoint) is None


def test_without_a_whole_checkpoint_nothing_is_moved_and_the_way_out_is_told(run):
    for epoch in (2, 3):
        DAMAGE["emptied"](largest_file(run.checkpoints / str(epoch)))
    with pytest.raises(UserError, match=r"cannot be resumed: checkpoints/3/.* is damaged; checkpoints/2/.*another --out"):
        recovered(run)
    assert saved(run.checkpoints) == [2, 3]


def test_a_log_that_ends_before_the_checkpoint_has_the_one_it_reaches_gone_on_from(run):
    run.cut_log(2)
    (line,) = recovered(run)
    assert line.startswith("the log ends with epoch 2, before checkpoint 3; put into")
    assert last_saved(run.checkpoints) == 2


def test_a_log_that_reaches_no_checkpoint_is_an_error(run):
    run.cut_log(1)
    with pytest.raises(UserError, match=r"the log ends with epoch 1, before checkpoint 3; the log ends .* checkpoint 2"):
        recovered(run)


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ('{"epoch": 1}\n{"epoch": 2}\n{"epo', 2),
        ('{"epoch": 1}\n{"epoch": 1}\n{"epoch": 2}\n', 1),
        ('{"epoch": 2}\n{"epoch": 3}\n', 0),
        ('{"epoch": 1}\n[]\n', 1),
        ('{"epoch": 1}\n7\n{"epoch": 2}\n', 1),
        ("\x00\x01\n", 0),
    ],
)
def test_a_log_is_believed_as_far_as_it_counts_epochs(run, text, epochs):
    (run.path / "log.jsonl").write_text(text)
    assert [line["epoch"] for line in run.log()] == list(range(1, epochs + 1))


def test_a_run_that_has_no_checkpoint_yet_is_left_as_it_is(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.start(Settings().resolved())
    assert recovered(run) == [] and run.exists()


@pytest.mark.parametrize("text", ["", '{"method": "tb"', "[]", "\x00"])
def test_damaged_settings_are_one_line(run, monkeypatch, capsys, text):
    (run.path / "settings.json").write_text(text)
    with pytest.raises(SystemExit):
        main(["vision", "train", "--out", str(run.path), "--resume"])
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith(f"error: {run.path}/settings.json is damaged")


# Locks


@pytest.mark.slow
def test_a_folder_in_which_another_process_trains_is_refused_until_that_ends(tmp_path):
    hold = f"""
import pathlib, sys, time
from on_vision import RunDirectory
with RunDirectory(pathlib.Path({str(tmp_path)!r})).held():
    print("held", flush=True)
    time.sleep(600)
"""
    (process,) = start([["-c", hold]], devices=1)
    try:
        assert process.stdout.readline() == "held\n"
        told = rf"is being trained by process {process.pid} on .* since 20.*another folder"
        with pytest.raises(UserError, match=told), RunDirectory(tmp_path).held():
            pass
    finally:
        process.kill()  # as hard as can be
        process.wait()
    with RunDirectory(tmp_path).held():
        pass


@pytest.mark.slow
def test_rows_that_processes_add_at_once_are_all_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    add = f"""
import pathlib, sys
from examples.paper.results import append_row
for seed in range(15):
    append_row(pathlib.Path({str(path)!r}), {{"settings": {{"seed": 100 * int(sys.argv[1]) + seed}}}})
"""
    finish(start([["-c", add, index] for index in range(3)], devices=1))
    append_row(path, {"settings": {"seed": 1000}})
    assert {row["settings"]["seed"] for row in read_results([path])} == {
        *(100 * index + seed for index in range(3) for seed in range(15)),
        1000,
    }


# Whole runs


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_a_run_damaged_and_resumed_ends_as_one_that_was_not(small_settings, finished_small, tmp_path, capsys, what):
    out = tmp_path / "run"
    shutil.copytree(finished_small, out)
    if what == "checkpoint":
        flip(largest_file(out / "checkpoints" / "3"), 100)
    else:
        RunDirectory(out).cut_log(2)
    train_small(small_settings, out, resume=True)
    told = capsys.readouterr().out
    assert "going on from epoch 2" in told and "after 3 epochs" in told
    accuracies = lambda out: [line["test_accuracy"] for line in RunDirectory(out).log()]
    assert accuracies(out) == accuracies(finished_small) and len(accuracies(out)) == 3
    assert_same_arrays(finished_small, out, 3)


@pytest.mark.slow
def test_of_two_starts_at_once_one_trains_and_the_other_says_who(small_settings, tmp_path):
    out = tmp_path / "run"
    processes = start([command_of(small_settings, out)] * 2, devices=1)
    outputs = finish(processes)
    (trained, its_output), (refused, answer) = sorted(
        zip(processes, outputs, strict=True), key=lambda each: each[0].returncode
    )
    assert (trained.returncode, refused.returncode) == (0, 2), outputs
    assert "after 3 epochs" in its_output
    assert f"is being trained by process {trained.pid} on" in answer or "already holds a run; add --resume" in answer
    assert len(answer.strip().splitlines()) == 1
    assert [json.loads(line)["epoch"] for line in (out / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


FAILING = """
import sys, threading
from small_network import create_small_network
from examples.paper import loop
from examples.paper.__main__ import main
from examples.paper.parallel import run_command
from examples.paper.vision import domain

domain.create_model = create_small_network
train_epoch = loop.Trainer._train_interval

def fail(self, program, state, epoch, together):
    if epoch == 2:
        threading.Thread(target=threading.Event().wait).start()
        raise RuntimeError("no more")
    return train_epoch(self, program, state, epoch, together)

loop.Trainer._train_interval = fail
run_command(lambda: main(["vision", "train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_an_error_in_training_ends_the_process_whatever_still_waits_and_what_was_saved_stands(small_settings, tmp_path):
    out = tmp_path / "run"
    (process,) = start([["-c", FAILING, *command_of(small_settings, out)[2:]]], devices=1)
    (output,) = finish([process], seconds=120)
    assert process.returncode == 1 and "RuntimeError: no more" in output
    assert last_saved((out / "checkpoints").absolute()) == 1
    train_small(small_settings, out, resume=True)
    assert len(RunDirectory(out).log()) == 3


@pytest.mark.slow
def test_ctrl_c_before_anything_is_saved_does_not_say_that_something_stands(small_settings, tmp_path):
    out = tmp_path / "run"
    (process,) = start([command_of(small_settings, out)], devices=1)
    try:
        wait_for(out / "settings.json", "", process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "resume" not in output and "Traceback" not in output
