"""What a run leaves."""

import jax
import numpy as np
import orbax.checkpoint as ocp


def final_arrays(directory, epoch):
    """Every array of a checkpoint, by path."""
    anywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever devices it was saved from
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    path = directory.absolute() / "checkpoints" / str(epoch) / "default"
    restored = checkpointer.restore(path, args=ocp.args.StandardRestore(fallback_sharding=anywhere))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}
