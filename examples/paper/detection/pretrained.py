"""Pre-trained weights: a safetensors file of the network's arrays by their names, and how PyTorch's become one.

The command `python -m examples.paper detection convert yolov8n.pt out.safetensors` makes one of a PyTorch state dict. It
needs PyTorch. The file is read with `weights_only`: it is to hold a state dict, which `torch.save(model.state_dict(), ...)`
writes, and not a pickled model, which could run anything.

Names are the paths of parameters and running statistics with dots: `layer2.m.0.cv1.conv.kernel` (height, width, inputs,
outputs), `layer2.m.0.cv1.bn.scale`, `.bias`, `.mean` and `.var`, `layer22.cv3.0.output.kernel` and `.bias`. Those of a
PyTorch state dict are made from `model.2.m.0.cv1.conv.weight`, `model.2.m.0.cv1.bn.weight`, `.bias`, `.running_mean`,
`.running_var`, and in the head from `model.22.cv3.0.0` and `.1` (units 1 and 2) and `.2` (the output). What counts batches,
and the fixed numbers of the bins (`dfl`), are no parameters here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from examples.paper.errors import UserError, first_line
from examples.paper.observations import kernels

_HEAD, _BRANCHES = "22", ("cv2", "cv3")
_BRANCH = {"0": "unit1", "1": "unit2", "2": "output"}
_OF_CONV = {"weight": "kernel", "bias": "bias"}
_OF_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


class Loaded(NamedTuple):
    """A network's numbers, and the names of those that the file has not, or in another shape."""

    params: nnx.State
    batch_stats: nnx.State
    missing: tuple[str, ...]


def names(state: nnx.State) -> dict[str, Any]:
    """The arrays of a state, by their names in a file."""
    return {path.replace("/", "."): leaf for path, leaf in kernels(state).items()}


def load_weights(path: Path, params: nnx.State, batch_stats: nnx.State) -> Loaded:
    """Puts the arrays of a file in the place of those with their names and shapes; all others stay as they are.

    So a network for other classes keeps its own outputs. What in the file belongs to nothing here is left alone.

    Raises:
      UserError: the file cannot be read, or nothing in it fits.
    """
    from safetensors.numpy import load_file

    try:
        file = load_file(path)
    except Exception as error:
        raise UserError(
            f"--weights {path} is no safetensors file ({first_line(error)}); of PyTorch's weights, "
            "python -m examples.paper detection convert makes one."
        ) from error
    missing: list[str] = []

    def replaced(state: nnx.State) -> nnx.State:
        leaves = names(state)
        fits = {name: name in file and file[name].shape == leaf.shape for name, leaf in leaves.items()}
        missing.extend(name for name, fit in fits.items() if not fit)
        new = [jnp.asarray(file[name], leaf.dtype) if fits[name] else leaf for name, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(state), new)

    loaded = Loaded(replaced(params), replaced(batch_stats), ())
    if len(missing) == len(names(params)) + len(names(batch_stats)):
        raise UserError(
            f"--weights {path} holds nothing of this network; its names are like {', '.join(list(file)[:2]) or 'none'}, and "
            f"{missing[0]} is needed."
        )
    return loaded._replace(missing=tuple(missing))


def from_torch(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a file, from the tensors of a PyTorch state dict, or NumPy arrays in their place.

    Raises:
      UserError: a name is none of a YOLOv8's.
    """
    found = {}
    for name, tensor in state_dict.items():
        if name.endswith("num_batches_tracked") or ".dfl." in name:
            continue
        model, number, *inner, last = name.split(".") if name.count(".") > 1 else ("", "", "")
        of_norm = inner[-1:] == ["bn"]
        kind = (_OF_NORM if of_norm else _OF_CONV).get(last)
        if model != "model" or not number.isdigit() or kind is None:
            raise UserError(f"{name} is none of YOLOv8's names, such as model.0.conv.weight; give its own state dict.")
        if inner[0] in _BRANCHES and number == _HEAD:
            inner[2] = _BRANCH[inner[2]]
        array = np.asarray(tensor, np.float32)
        turned = array.transpose(2, 3, 1, 0) if kind == "kernel" else array
        found[".".join([f"layer{number}", *inner, kind])] = np.ascontiguousarray(turned)  # safetensors writes as it lies
    return found


def convert(source: Annotated[Path, tyro.conf.Positional], target: Annotated[Path, tyro.conf.Positional]) -> None:
    """Converts the weights of a YOLOv8.

    Args:
      source: a PyTorch state dict.
      target: the safetensors file to write.
    """
    from safetensors.numpy import save_file

    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("PyTorch is not installed, and reads its own files; pip install torch.") from error
    try:
        state_dict = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{source} cannot be read as a state dict alone ({first_line(error)}); where it is a pickled model, load it "
            "where its code is, and torch.save(model.state_dict(), ...)."
        ) from error
    arrays = from_torch({name: tensor.float().numpy() for name, tensor in state_dict.items()})
    save_file(arrays, target)
    print(f"{target}: {len(arrays)} arrays, {sum(array.size for array in arrays.values()):,} numbers")
