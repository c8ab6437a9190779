"""What a run is: every choice that changes its result; and what it is computed on."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from examples.vision.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains one network with SGD and cosine annealing (`cal`), or the same with TempBalance (`tb`)."""

    method: Literal["cal", "tb"] = "tb"
    """cal: SGD, momentum 0.9, cosine annealing per epoch. tb: the same with a learning rate for each layer."""
    model: Literal["resnet18", "resnet34", "vgg16", "vgg19"] = "resnet18"
    """Network; its CIFAR variant."""
    width: float = 1.0
    """Multiplies the channels of every layer."""
    dataset: str = "digits"
    """digits (embedded), or a TFDS image-classification data set, which TFDS downloads: cifar10, svhn_cropped, ..."""
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
    learning_rate: float = 0.1
    """At the start; annealed to zero."""
    weight_decay: float = 5e-4
    """On every parameter, norms and biases too."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters are float32."""
    update_interval: int | None = None
    """Steps between refreshes of the scales (tb); by default an epoch's."""
    min_scale: float = 0.5
    """The scale of the layer with the heaviest tail (tb)."""
    max_scale: float = 1.5
    """The scale of the layer with the lightest tail (tb)."""

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        positive = ("width", "epochs", "batch_size", "learning_rate", "update_interval")
        for name in (*positive, "seed", "weight_decay", "min_scale", "max_scale"):
            value = getattr(self, name)
            if value is not None and not (value > 0 if name in positive else value >= 0):
                least = "above 0" if name in positive else "at least 0"
                raise UserError(f"--{name.replace('_', '-')} {value} must be {least}.")
        if self.min_scale > self.max_scale:
            raise UserError(f"--min-scale {self.min_scale} is above --max-scale {self.max_scale}.")


@dataclasses.dataclass(frozen=True)
class Devices:
    """What a run is computed on, which changes its result by rounding only; a run may be resumed on other devices."""

    mesh: int | None = None
    """How many devices each batch is split over; by default all, of all processes."""
    distributed: bool = False
    """One of several processes that train together, started by SLURM, Open MPI, Kubernetes or on Cloud TPU."""
    coordinator_address: str | None = None
    """HOST:PORT of the first of several processes that were started in another way; any free port."""
    num_processes: int | None = None
    """How many processes there are; with --coordinator-address."""
    process_id: int | None = None
    """Which one this is, from 0; with --coordinator-address."""

    def several_processes(self) -> bool:
        return self.distributed or self.coordinator_address is not None

    def check(self) -> None:
        """Raises UserError where a number is out of range, or one of three that belong together is missing."""
        if self.mesh is not None and self.mesh < 1:
            raise UserError(f"--mesh {self.mesh} must be at least 1.")
        names = ("coordinator_address", "num_processes", "process_id")
        given = {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}
        if len(set(value is None for value in given.values())) > 1:
            missing = " and ".join(flag for flag, value in given.items() if value is None)
            there = " ".join(f"{flag} {value}" for flag, value in given.items() if value is not None)
            raise UserError(f"{there} needs {missing} too.")
        if self.coordinator_address is not None and not self.coordinator_address.rpartition(":")[2].isdecimal():
            raise UserError(f"--coordinator-address {self.coordinator_address} must be HOST:PORT, such as 10.0.0.1:8476.")
        if self.num_processes is not None and self.process_id is not None:
            if self.num_processes < 1:
                raise UserError(f"--num-processes {self.num_processes} must be at least 1.")
            if not 0 <= self.process_id < self.num_processes:
                raise UserError(
                    f"--process-id {self.process_id} must be from 0 to {self.num_processes - 1}, "
                    f"below --num-processes {self.num_processes}."
                )


@dataclasses.dataclass(frozen=True)
class Command:
    """Trains one network with SGD and cosine annealing (cal), or the same with TempBalance (tb).

    Writes to --out one JSON line an epoch (log.jsonl), TensorBoard events, a checkpoint an epoch, and plots of alpha and
    learning rate of every layer.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")]
    devices: Annotated[Devices, tyro.conf.arg(name="")]
    out: Path | None = None
    """Where to write; by default runs/DATASET-MODEL-METHOD-seedSEED."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
