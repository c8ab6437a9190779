"""What a run is: every choice that changes its result."""

import dataclasses
from pathlib import Path
from typing import Literal

from examples.paper.detection.boxes import STRIDES
from examples.paper.detection.yolo import Model
from examples.paper.errors import UserError
from examples.paper.settings import RunSettings, check_range


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """Trains one detector by one of the paper's methods."""

    method: Literal["adam", "adamw", "tb+adam", "tb+adamw"] = "tb+adam"
    """Optimizer, with a cosine by epochs. tb: TempBalance, a learning rate for each layer, after it."""
    min_scale: float = 0.6
    """The smallest scale of a layer (tb). With linear, the layer with the heaviest tail has it."""
    max_scale: float = 1.4
    """The largest scale of a layer (tb)."""
    min_eigenvalues: int = 65
    """Layers with fewer eigenvalues are not balanced (tb)."""
    model: Model = "yolov8n"
    """The network."""
    width: float | None = None
    """Multiplies channels, instead of the model's own (yolov8n: 0.25)."""
    depth: float | None = None
    """Multiplies the bottlenecks in a block, instead of the model's own (yolov8n: 0.33)."""
    weights: Path | None = None
    """Weights to begin with, a safetensors file as the command convert writes it; what does not fit begins anew."""
    dataset: str = "digits"
    """digits (scikit-learn's, scattered over canvases), or a TFDS data set with boxes, which TFDS downloads: voc/2007."""
    data_dir: Path | None = None
    """Instead of --dataset, a data set already prepared by TFDS, the folder that holds its dataset_info.json."""
    train_split: str = "train"
    """The split to train on, in the notation of TFDS: train, train+validation, or train[:1000]."""
    test_split: str | None = None
    """The split to test on; by default test, or validation if there is no test."""
    image_size: int = 128
    """Images are scaled to fit into a square with sides of this many pixels. The paper has 640."""
    slots: int = 16
    """The most boxes of an image; the largest are kept."""
    augment: bool = True
    """Augments with mosaics, scales, shifts, mirrors and colours."""
    epochs: int = 20
    """Passes over the training set, in whole batches."""
    batch_size: int = 16
    """Images per step."""
    seed: int = 43
    """The seed of the initialization, of the order of the images, and of their augmentation."""
    learning_rate: float = 2e-3
    """The learning rate at the start; it is annealed to zero. The default is the best on digits. The paper has 7.5e-6 to
    2.5e-5, from pre-trained weights."""
    weight_decay: float = 5e-4
    """On every parameter: decoupled for adamw, with the gradient for adam."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the network's computations; parameters are float32."""

    @property
    def network(self) -> str:
        """The model and its size."""
        sizes = [f" {name} {size:g}" for name in ("width", "depth") if (size := getattr(self, name)) is not None]
        return self.model + ",".join(sizes)

    @property
    def intervals(self) -> int:
        """Epochs."""
        return self.epochs

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        super().check()
        positive = ("width", "depth", "image_size", "slots", "epochs", "learning_rate", "min_eigenvalues")
        check_range(self, positive, ("weight_decay",))
        if self.image_size % STRIDES[-1]:
            raise UserError(f"--image-size {self.image_size} must be a multiple of {STRIDES[-1]}, the largest stride.")
        if self.min_eigenvalues < 2:
            raise UserError(f"--min-eigenvalues {self.min_eigenvalues} must be at least 2.")

    def unused(self) -> set[str]:
        """The settings that a run with these ones does not read."""
        return super().unused() | (set() if self.balanced else {"min_eigenvalues"})
