"""What a run leaves."""

import contextlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from examples.paper.loop import Trainer


def final_arrays(directory, epoch):
    """Every array of a checkpoint, by path."""
    anywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever devices it was saved from
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    path = directory.absolute() / "checkpoints" / str(epoch) / "default"
    restored = checkpointer.restore(path, args=ocp.args.StandardRestore(fallback_sharding=anywhere))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}


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
