"""Training over several devices and processes: the results of one, logs from one, checkpoints that fit any."""

import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import on_vision
import pytest
from outcomes import final_arrays
from processes import finish, free_address, start
from small_network import SmallNetwork, create_small_network

from examples.paper.__main__ import main
from examples.paper.checkpoints import Checkpoints
from examples.paper.devices import Devices
from examples.paper.vision import domain as domain_module
from examples.paper.vision.settings import Settings

RUN = dict(batch_size=32, learning_rate=0.05, epochs=3)


def train(prepared, out, devices, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain_module, "create_model", create_small_network)
        on_vision.train(Settings(data_dir=prepared, **RUN), out, devices=Devices(mesh=devices), **changes)
    return out


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory):
    """A run on one device."""
    return train(prepared, tmp_path_factory.mktemp("runs") / "alone", 1)


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
    jax.tree.map(close, final_arrays(out, RUN["epochs"]), final_arrays(expected, RUN["epochs"]))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_a_run_on_several_devices_is_that_on_one_but_for_the_order_of_sums(prepared, alone, tmp_path, monkeypatch, devices):
    convolved, forward = [], SmallNetwork.__call__

    def inspected(self, images):
        jax.debug.inspect_array_sharding(images, callback=lambda s: convolved.append(s.shard_shape(images.shape)[0]))
        return forward(self, images)

    monkeypatch.setattr(SmallNetwork, "__call__", inspected)
    out = train(prepared, tmp_path / "run", devices)
    assert set(convolved) == {RUN["batch_size"] // devices}
    assert_same_run(out, alone)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh", "0"], "--mesh 0 must be at least 1"),
        (["--mesh", "9"], "--mesh 9 is more than the 8 devices"),
        (["--mesh", "3"], "--batch-size 128 does not split evenly over 3 devices; give a multiple of 3, or a --mesh"),
        (["--batch-size", "20"], "--batch-size 20 does not split evenly over 8 devices"),
        (["--num-processes", "2"], "--num-processes 2 needs --coordinator-address and --process-id too"),
        (
            ["--coordinator-address", "host", "--num-processes", "2", "--process-id", "0"],
            "--coordinator-address host must be HOST:PORT",
        ),
        (
            ["--coordinator-address", "host:1", "--num-processes", "2", "--process-id", "2"],
            "--process-id 2 must be from 0 to 1, below --num-processes 2",
        ),
    ],
)
def test_mistakes_get_one_line(monkeypatch, capsys, flags, message):
    with pytest.raises(SystemExit) as exit:
        main(["vision", "train", *flags])
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert exit.value.code == 2
    assert line.startswith("error: ") and message in line


def command(prepared, out, *flags, **changes):
    values = {"data-dir": prepared, "out": out, **RUN, **changes}
    named = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    return ["-m", "small_network", *named, *flags]


def two_processes(*commands):
    """Both processes of a run, of two devices each."""
    coordinator = ("--coordinator-address", free_address(), "--num-processes", 2, "--process-id")
    return start([[*command, *coordinator, index] for index, command in enumerate(commands)], devices=2)


def told(output):
    """What it says to its user, without what JAX's collectives on CPU do, piecemeal from several threads."""
    noise = r"\[Gloo\] Rank \d+| is connected to \d+ peer ranks\. Expected number of connected peer ranks is : \d+"
    return "".join(line for line in re.sub(noise, "", output).splitlines(keepends=True) if line.strip())


@pytest.mark.slow
def test_two_processes_train_as_one_and_the_first_tells_of_it(prepared, alone, tmp_path):
    out = tmp_path / "together"
    processes = two_processes(*[command(prepared, out)] * 2)
    first, second = map(told, finish(processes))
    assert [process.returncode for process in processes] == [0, 0], first + second
    assert_same_run(out, alone)
    assert "each batch of 32 is split over 4 devices of 2 processes, 8 on each" in first and first.count("epoch ") == 3
    assert not set(second.split()) & {"each", "epoch", "train", "test", "plots:"}, second  # the words of the first
    assert len(list(out.glob("events.out.tfevents.*"))) == 1 and (out / "alpha.png").exists()
    assert Checkpoints((out / "checkpoints").absolute()).latest() == 3


@pytest.mark.slow
def test_ctrl_c_stops_both_and_leaves_a_checkpoint(prepared, tmp_path):
    out = tmp_path / "stopped"
    both = two_processes(*[command(prepared, out, epochs=500)] * 2)
    deadline = time.monotonic() + 240
    while not (out / "log.jsonl").exists() or len(log(out)) < 2:
        assert time.monotonic() < deadline and all(process.poll() is None for process in both), finish(both, 0)
        time.sleep(0.02)
    for process in both:
        process.send_signal(signal.SIGINT)
    first, second = map(told, finish(both, 60))
    assert [process.returncode for process in both] == [130, 130], first + second
    latest = Checkpoints((out / "checkpoints").absolute()).latest()
    assert f"stopped after epoch {latest}; --resume goes on from there" in first
    assert "Traceback" not in first + second


def resumable(alone, out):
    """The run of one device as a crash in its last epoch would have left it."""
    shutil.copytree(alone, out)
    shutil.rmtree(out / "checkpoints" / str(RUN["epochs"]))
    return out


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(prepared, alone, tmp_path):
    assert_same_run(train(prepared, resumable(alone, tmp_path / "run"), 8, resume=True), alone)


@pytest.mark.slow
def test_processes_started_by_a_launcher_find_each_other_and_go_on_with_a_run(prepared, alone, tmp_path):
    out = resumable(alone, tmp_path / "run")
    host, port = free_address().split(":")
    launcher = {"OMPI_MCA_orte_hnp_uri": f"4096.0;tcp://{host}:1", "JAX_COORDINATOR_PORT": port, "OMPI_COMM_WORLD_SIZE": "2"}
    ranks = [{"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank} for rank in "01"]
    processes = start([command(prepared, out, "--distributed", "--resume")] * 2, 2, [launcher | rank for rank in ranks])
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same_run(out, alone)


@pytest.mark.slow
def test_what_one_process_refuses_all_refuse(prepared, tmp_path):
    own = [command(prepared, tmp_path / name) for name in "01"]
    longer = command(prepared, tmp_path / "0", epochs=4)
    nowhere = command(tmp_path, tmp_path / "0")
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
def test_where_no_launcher_is_found_the_flags_are_named(prepared, tmp_path):
    (process,) = start([command(prepared, tmp_path / "run", "--distributed")], 1)
    (output,) = finish([process])
    assert process.returncode == 2 and "error: --distributed: " in output and "--coordinator-address" in output
