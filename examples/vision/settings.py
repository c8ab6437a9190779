"""What a run is: every choice that changes its result."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from examples.runs.devices import Devices
from examples.runs.errors import UserError


class Method(NamedTuple):
    """An optimizer, and whether TempBalance follows it."""

    base: str
    balanced: bool = False


# What the paper's runs of each optimizer started from.
_LEARNING_RATES = {
    **dict.fromkeys(("cal", "snr", "sgdr", "lookahead", "sgdp"), 0.1),
    **{"lars": 28.0, "lamb": 0.01},
    **dict.fromkeys(("adam", "adamw", "adamp"), 0.001),
}
METHODS = {
    **{base: Method(base) for base in _LEARNING_RATES},
    "tb": Method("cal", balanced=True),
    **{f"tb+{base}": Method(base, balanced=True) for base in ("snr", "sgdp", "adam", "adamw")},
}
_READ_BY_BASE = {
    "snr": {"snr_coefficient"},
    "sgdr": {"restart_epochs"},
    "lookahead": {"lookahead_steps", "lookahead_step_size"},
}
_READ_BY_BALANCE = {
    *(
        "metric",
        "fit",
        "assignment",
        "control",
        "min_scale",
        "max_scale",
        "update_interval",
        "start_epoch",
        "first_and_last",
    ),
}


def unused_by(method: str, metric: str) -> set[str]:
    """The settings that a method with this metric does not read."""
    unused = set().union(*(names for base, names in _READ_BY_BASE.items() if base != METHODS[method].base))
    if not METHODS[method].balanced:
        return unused | _READ_BY_BALANCE
    return unused | {"fit"} if metric == "spectral_norm" else unused


@dataclasses.dataclass(frozen=True)
class Settings:
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
        "adamp",
        "tb",
        "tb+snr",
        "tb+sgdp",
        "tb+adam",
        "tb+adamw",
    ] = "tb"
    """cal: SGD, momentum 0.9, cosine annealing per epoch. snr: with spectral norm regularization. tb: TempBalance, a
    learning rate for each layer, after SGD or another."""
    model: Literal["resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "vgg19", "wrn16-8", "wrn28-6"] = "resnet18"
    """Network; its CIFAR variant."""
    width: float = 1.0
    """Multiplies the channels of every layer."""
    dataset: str = "digits"
    """digits (embedded), tiny_imagenet (see examples.vision.tiny_imagenet), or a TFDS image-classification data set, which
    TFDS downloads: cifar10, svhn_cropped, ..."""
    data_dir: Path | None = None
    """A data set already prepared by TFDS, instead of --dataset: the folder that holds its dataset_info.json."""
    train_split: str = "train"
    """What to train on, as TFDS writes splits: train, or train[:10000]."""
    test_split: str | None = None
    """What to test on; by default test, or validation where there is no test."""
    epochs: int = 200
    """Passes over the training set, in whole batches."""
    batch_size: int = 128
    """Images a step."""
    seed: int = 43
    """Of the initialization, the order of the images and their augmentation."""
    learning_rate: float | None = None
    """At the start; annealed to zero. By default 0.1; 28 for lars, 0.01 for lamb, 0.001 for adam, adamw, adamp, and for
    tb what the method that it follows has."""
    weight_decay: float = 5e-4
    """On every parameter, norms and biases too."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters are float32."""
    snr_coefficient: float = 0.01
    """Of half the sum of squared spectral norms, in the loss (snr, tb+snr)."""
    restart_epochs: int | None = None
    """Epochs from one warm restart to the next (sgdr); by default half of --epochs, as the paper's 100 of 200."""
    lookahead_steps: int = 10
    """Steps between synchronizations of the fast and the slow weights (lookahead)."""
    lookahead_step_size: float = 0.8
    """How far the slow weights then move towards the fast ones (lookahead)."""
    metric: Literal["pl_alpha_hill", "spectral_norm", "alpha_weighted"] = "pl_alpha_hill"
    """What of a layer's spectrum its scale is read off (tb)."""
    fit: Literal["median", "goodness_of_fit", "fix_finger"] = "median"
    """How the tail of a spectrum is fitted (tb)."""
    assignment: Literal["linear", "sqrt", "log2", "step"] = "linear"
    """How metrics become scales (tb)."""
    control: Literal["none", "placebo", "mean"] = "none"
    """Instead of each layer's own scale (tb), that of a layer drawn at every refresh, or every layer the mean of all."""
    min_scale: float = 0.5
    """The least scale of a layer (tb): with linear, that of the heaviest tail."""
    max_scale: float = 1.5
    """The greatest scale of a layer (tb)."""
    update_interval: int | None = None
    """Steps between refreshes of the scales (tb); by default an epoch's."""
    start_epoch: int = 0
    """Epochs before the first refresh (tb)."""
    first_and_last: bool = False
    """Balances the first and the last layer too (tb)."""

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        positive = ("width", "epochs", "batch_size", "learning_rate", "update_interval", "restart_epochs", "lookahead_steps")
        others = ("seed", "weight_decay", "min_scale", "max_scale", "snr_coefficient", "lookahead_step_size", "start_epoch")
        for name in (*positive, *others):
            value = getattr(self, name)
            if value is not None and not (value > 0 if name in positive else value >= 0):
                least = "above 0" if name in positive else "at least 0"
                raise UserError(f"--{name.replace('_', '-')} {value} must be {least}.")
        if self.min_scale > self.max_scale:
            raise UserError(f"--min-scale {self.min_scale} is above --max-scale {self.max_scale}.")
        if self.lookahead_step_size > 1:
            raise UserError(f"--lookahead-step-size {self.lookahead_step_size} must be at most 1.")

    def resolved(self) -> "Settings":
        """The same run, said in one way: with its method's learning rate, and defaults for what the method does not use."""
        rate = _LEARNING_RATES[METHODS[self.method].base] if self.learning_rate is None else self.learning_rate
        restart = -(-self.epochs // 2) if self.restart_epochs is None else self.restart_epochs
        unused = unused_by(self.method, self.metric)
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in unused}
        return dataclasses.replace(self, **{"learning_rate": rate, "restart_epochs": restart} | defaults)


@dataclasses.dataclass(frozen=True)
class Command:
    """Trains one network by one of the paper's methods.

    Writes to --out one JSON line an epoch (log.jsonl), TensorBoard events, a checkpoint an epoch, and plots of alpha,
    learning rate and the spectrum of every layer.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")]
    devices: Annotated[Devices, tyro.conf.arg(name="")]
    out: Path | None = None
    """Where to write; by default runs/DATASET-MODEL-METHOD-seedSEED."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder: the next run of the same network starts sooner."""
