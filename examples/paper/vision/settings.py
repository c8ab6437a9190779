"""What a run is: every choice that changes its result."""

import dataclasses
from pathlib import Path
from typing import Literal, Self

from examples.paper.errors import UserError
from examples.paper.settings import RunSettings, check_range
from examples.paper.vision.models import Model

# What the paper's runs of each optimizer started from.
_LEARNING_RATES = {
    **dict.fromkeys(("cal", "snr", "sgdr", "lookahead", "sgdp"), 0.1),
    **{"lars": 28.0, "lamb": 0.01},
    **dict.fromkeys(("adam", "adamw", "adamw+alphadecay", "adamp"), 0.001),
}
_READ_BY_BASE = {
    "snr": {"snr_coefficient"},
    "sgdr": {"restart_epochs"},
    "lookahead": {"lookahead_steps", "lookahead_step_size"},
}


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """Trains one network by one of the paper's methods."""

    method: Literal[
        "cal",
        "snr",
        "sgdr",
        "lars",
        "lamb",
        "lookahead",
        "sgdp",
        "adam",
        "adamw",
        "adamw+alphadecay",
        "adamp",
        "tb",
        "tb+snr",
        "tb+sgdp",
        "tb+adam",
        "tb+adamw",
        "tb+adamw+alphadecay",
    ] = "tb"
    """cal: SGD, momentum 0.9, cosine annealing per epoch. snr: with spectral norm regularization. tb: TempBalance, a
    learning rate for each layer, after SGD or another. alphadecay: a weight decay for each layer."""
    model: Model = "resnet18"
    """The network, in its variant for CIFAR's small images."""
    width: float = 1.0
    """Multiplies the number of channels of every layer."""
    dataset: str = "digits"
    """digits (embedded), tiny_imagenet (once the command tiny_imagenet has prepared it), or a TFDS image-classification
    data set, which TFDS downloads: cifar10, svhn_cropped, ..."""
    data_dir: Path | None = None
    """Instead of --dataset, a data set already prepared by TFDS, the folder that holds its dataset_info.json; a folder of
    images, one subfolder a class (or train and test, and the classes in them); or an .npz file of the arrays train_images,
    train_labels, test_images and test_labels."""
    train_split: str = "train"
    """The split to train on, in the notation of TFDS: train, or train[:10000]."""
    test_split: str | None = None
    """The split to test on; by default test, or validation if there is no test."""
    epochs: int = 200
    """Passes over the training set, in whole batches."""
    batch_size: int = 128
    """Images per step."""
    seed: int = 43
    """The seed of the initialization, of the order of the images, and of their augmentation."""
    learning_rate: float | None = None
    """The learning rate at the start; it is annealed to zero. By default 0.1; 28 for lars, 0.01 for lamb, 0.001 for adam,
    adamw and adamp. tb+METHOD has the default of METHOD."""
    weight_decay: float = 5e-4
    """The weight decay of every parameter, norms and biases included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the network's computations; parameters are float32."""
    snr_coefficient: float = 0.01
    """The coefficient in the loss of half the sum of the squared spectral norms (snr, tb+snr)."""
    restart_epochs: int | None = None
    """Epochs from one warm restart to the next (sgdr); by default half of --epochs, as in the paper (100 of 200)."""
    lookahead_steps: int = 10
    """Steps between synchronizations of the fast and the slow weights (lookahead)."""
    lookahead_step_size: float = 0.8
    """The fraction of the way that the slow weights move towards the fast ones (lookahead)."""
    start_epoch: int = 0
    """Epochs before the first refresh (tb, alphadecay)."""

    @property
    def network(self) -> str:
        """The model and its size."""
        return f"{self.model} x{self.width:g}"

    @property
    def intervals(self) -> int:
        """Epochs."""
        return self.epochs

    def refreshes(self, steps: int) -> tuple[int, int]:
        """The steps from one refresh to the next, and before the first; an epoch has `steps`."""
        interval, _ = super().refreshes(steps)
        return interval, self.start_epoch * steps

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        super().check()
        positive = ("width", "epochs", "learning_rate", "restart_epochs", "lookahead_steps")
        check_range(self, positive, ("weight_decay", "snr_coefficient", "lookahead_step_size", "start_epoch"))
        if self.lookahead_step_size > 1:
            raise UserError(f"--lookahead-step-size {self.lookahead_step_size} must be at most 1.")

    def unused(self) -> set[str]:
        """The settings that a run with these ones does not read."""
        names = super().unused().union(*(names for base, names in _READ_BY_BASE.items() if base != self.base))
        return names if self.balanced or self.decays else names | {"start_epoch"}

    def resolved(self) -> Self:
        """With its method's learning rate too."""
        rate = _LEARNING_RATES[self.base] if self.learning_rate is None else self.learning_rate
        restart = -(-self.epochs // 2) if self.restart_epochs is None else self.restart_epochs
        own = dataclasses.replace(self, learning_rate=rate, restart_epochs=restart)
        return super(Settings, own).resolved()
