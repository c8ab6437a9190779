"""Training over several devices and processes: the results of one, logs from one, checkpoints that fit any."""

import dataclasses
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from outcomes import SMALL, assert_same_arrays, command_of, train_small, wait_for
from processes import finish, free_address, start
from small_network import SmallNetwork

from examples.paper.checkpoints import Checkpoints

BATCH, EPOCHS = SMALL["batch_size"], SMALL["epochs"]


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_run(out, expected):
    """The same numbers epoch by epoch, and the same state in the end, but for the order of sums and the time it took."""
    close = lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    timed = ("images_per_second", "refresh_seconds", "seconds")
    without = (*timed, "spectra_within")  # an eigenvalue may be in the next bin
    numbers = lambda out: [{name: line[name] for name in line if name not in without} for line in log(out)]
    largest = lambda out: [
        spectrum["log10_edges"][1] for line in log(out) for spectrum in line.get("spectra_within", {}).get("spectra", ())
    ]
    jax.tree.map(close, numbers(out), numbers(expected))
    np.testing.assert_allclose(largest(out), largest(expected), atol=1e-3)
    assert_same_arrays(out, expected, EPOCHS, close)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_a_run_on_several_devices_is_that_on_one_but_for_the_order_of_sums(
    small_settings, finished_small, tmp_path, monkeypatch, devices
):
    convolved, forward = [], SmallNetwork.__call__

    def inspected(self, images):
        jax.debug.inspect_array_sharding(images, callback=lambda s: convolved.append(s.shard_shape(images.shape)[0]))
        return forward(self, images)

    monkeypatch.setattr(SmallNetwork, "__call__", inspected)
    out = train_small(small_settings, tmp_path / "run", devices).path
    assert set(convolved) == {BATCH // devices}
    assert_same_run(out, finished_small)


def two_processes(*commands):
    """Both processes of a run, of two devices each."""
    coordinator = ("--coordinator-address", free_address(), "--num-processes", 2, "--process-id")
    return start([[*command, *coordinator, index] for index, command in enumerate(commands)], devices=2)


def told(output):
    """What it says to its user, without what JAX's collectives on CPU do, piecemeal from several threads."""
    noise = (
        r"\[Gloo\] Rank \d+|\s+is\s+connected\s+to\s+\d+\s+peer\s+ranks\.\s+Expected number of connected peer ranks is : \d+"
    )
    return "".join(line for line in re.sub(noise, "", output).splitlines(keepends=True) if line.strip())


@pytest.mark.slow
def test_two_processes_train_as_one_and_the_first_tells_of_it(small_settings, finished_small, tmp_path):
    out = tmp_path / "together"
    processes = two_processes(*[command_of(small_settings, out)] * 2)
    first, second = map(told, finish(processes))
    assert [process.returncode for process in processes] == [0, 0], first + second
    assert_same_run(out, finished_small)
    assert "each batch of 32 is split over 4 devices of 2 processes, 8 on each" in first and first.count("epoch ") == 3
    assert not set(second.split()) & {"each", "epoch", "train", "test", "plots:"}, second  # the words of the first
    assert len(list(out.glob("events.out.tfevents.*"))) == 1 and (out / "alpha.png").exists()
    assert Checkpoints((out / "checkpoints").absolute()).latest() == 3


@pytest.mark.slow
def test_ctrl_c_stops_both_and_leaves_a_checkpoint(small_settings, tmp_path):
    out = tmp_path / "stopped"
    both = two_processes(*[command_of(dataclasses.replace(small_settings, epochs=500), out)] * 2)
    wait_for(out / "log.jsonl", '"epoch": 2', *both)
    for process in both:
        process.send_signal(signal.SIGINT)
    first, second = map(told, finish(both, 60))
    assert [process.returncode for process in both] == [130, 130], first + second
    latest = Checkpoints((out / "checkpoints").absolute()).latest()
    assert f"stopped after epoch {latest}; --resume goes on from there" in first
    assert "Traceback" not in first + second


@pytest.fixture
def resumable(finished_small, tmp_path):
    """The run of one device as a crash in its last epoch would have left it."""
    shutil.copytree(finished_small, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(EPOCHS))
    return tmp_path / "run"


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(small_settings, finished_small, resumable):
    assert_same_run(train_small(small_settings, resumable, 8, resume=True).path, finished_small)


@pytest.mark.slow
def test_processes_started_by_a_launcher_find_each_other_and_go_on_with_a_run(small_settings, finished_small, resumable):
    host, port = free_address().split(":")
    launcher = {"OMPI_MCA_orte_hnp_uri": f"4096.0;tcp://{host}:1", "JAX_COORDINATOR_PORT": port, "OMPI_COMM_WORLD_SIZE": "2"}
    ranks = [{"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank} for rank in "01"]
    processes = start(
        [command_of(small_settings, resumable, "--distributed", "--resume")] * 2, 2, [launcher | rank for rank in ranks]
    )
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same_run(resumable, finished_small)


@pytest.mark.slow
def test_what_one_process_refuses_all_refuse(small_settings, tmp_path):
    own = [command_of(small_settings, tmp_path / name) for name in "01"]
    longer = command_of(dataclasses.replace(small_settings, epochs=4), tmp_path / "0")
    nowhere = command_of(dataclasses.replace(small_settings, data_dir=tmp_path), tmp_path / "0")
    for other, said in [
        (own[1], ("process 1 of 2 gave up; it says why", f"--out {tmp_path}/1: not the folder of process 0")),
        (longer, ("process 1 has other flags than process 0",) * 2),
        (nowhere, ("process 1 of 2 gave up; it says why", f"--data-dir {tmp_path} is not a data set")),
    ]:
        shutil.rmtree(tmp_path / "0", ignore_errors=True)
        processes = two_processes(own[0], other)
        for process, output, message in zip(processes, finish(processes), said, strict=True):
            assert process.returncode == 2 and told(output).startswith("error: ") and message in told(output), output
            assert told(output).count("\n") == 1


@pytest.mark.slow
def test_where_no_launcher_is_found_the_flags_are_named(small_settings, tmp_path):
    (process,) = start([command_of(small_settings, tmp_path / "run", "--distributed")], 1)
    (output,) = finish([process])
    assert process.returncode == 2 and "error: --distributed: " in output and "--coordinator-address" in output
