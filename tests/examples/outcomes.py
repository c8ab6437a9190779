"""Runs of a small network, and what they leave."""

import contextlib
import dataclasses
import json
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_network import create_small_network

from examples.paper.loop import Trainer
from examples.paper.parallel import Devices
from examples.paper.train import train
from examples.paper.vision import domain
from examples.paper.vision.settings import Settings

SMALL = dict(method="tb", width=1 / 16, epochs=3, batch_size=32, learning_rate=0.05)


def train_small(settings, out, devices=1, **options):
    """Trains the small network, which compiles in seconds, as in a process of its own with so many devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "create_model", create_small_network)
        return train(domain.VISION, settings, out, devices=Devices(mesh=devices), **options)


def command_of(settings, out, *flags):
    """The same in another process."""
    values = dataclasses.asdict(settings)
    changed = [name for name, value in values.items() if value != getattr(Settings(), name)]
    return ["-m", "small_network", "--out", out, *(f"--{name.replace('_', '-')}={values[name]}" for name in changed), *flags]


def wait_for(path, what, *processes):
    """Waits until a file says so."""
    deadline = time.monotonic() + 240
    while not (path.exists() and what in path.read_text()):
        assert all(process.poll() is None for process in processes), [process.communicate()[0] for process in processes]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def final_arrays(directory, epoch):
    """Every array of a checkpoint, by path."""
    anywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever devices it was saved from
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    path = directory.absolute() / "checkpoints" / str(epoch) / "default"
    restored = checkpointer.restore(path, args=ocp.args.StandardRestore(fallback_sharding=anywhere))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}


def assert_same_arrays(directory, other, epoch, equal=np.testing.assert_array_equal):
    """The same state after an epoch, bit for bit or as `equal` has it."""
    jax.tree.map(equal, final_arrays(directory, epoch), final_arrays(other, epoch))


def untimed(run):
    """The log of a run without what tells seconds."""
    return [{key: value for key, value in line.items() if "second" not in key} for line in run.log()]


@contextlib.contextmanager
def killed_before(number, monkeypatch):
    """What trains within it is killed before the interval of that number."""
    train_interval = Trainer._train_interval

    def killed(self, program, state, interval, together):
        if interval == number:
            raise RuntimeError("killed")
        return train_interval(self, program, state, interval, together)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "_train_interval", killed)
        yield


def assert_resumes(domain, settings, finished, monkeypatch, out):
    """A run that is killed before its second interval and goes on ends as the finished one, which was not."""
    with killed_before(2, monkeypatch):
        train(domain, settings, out, devices=Devices(mesh=1))
    resumed = train(domain, settings, out, resume=True, devices=Devices(mesh=1))
    assert json.dumps(untimed(resumed)) == json.dumps(untimed(finished))
    tested = [
        {name: value for name, value in run.summary().items() if name.startswith("test")} for run in (resumed, finished)
    ]
    assert tested[0] == tested[1]
