"""Makes weights for `--weights` of a PyTorch state dict.

The command is `python -m examples.paper detection convert yolov8n.pt out.safetensors`. It needs PyTorch. The file is read
with `weights_only`, so it is to hold a state dict, which `torch.save(model.state_dict(), ...)` writes, and not a pickled
model, which could run anything.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from examples.paper.detection.pretrained import from_torch
from examples.paper.errors import UserError, first_line, telling_errors


def main(arguments: Sequence[str], program: str) -> None:
    """Converts weights as the command line says."""
    with telling_errors(Path()):
        tyro.cli(convert, prog=program, args=arguments)


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
