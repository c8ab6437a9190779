"""What a run is: every choice that changes its result."""

import dataclasses
from pathlib import Path
from typing import Literal

from examples.paper.errors import UserError
from examples.paper.language.data import Tokens
from examples.paper.language.models import Model
from examples.paper.settings import RunSettings, check_range


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """Trains one language model by one of the paper's methods."""

    method: Literal["adam", "adamw", "adamw+alphadecay", "tb+adam", "tb+adamw", "tb+adamw+alphadecay"] = "tb+adam"
    """Optimizer, with cosine annealing. tb: TempBalance, a learning rate for each layer, after it. alphadecay: a weight
    decay for each layer."""
    model: Model = "gpt-tiny"
    """Network. tensorized is the paper's, of three layers; tensorized_leaking is as its authors trained it: it sees the
    tokens that it is to predict, and what it reaches is no perplexity of a language model."""
    width: int | None = None
    """The width of the residual stream, instead of the model's own."""
    layers: int | None = None
    """The number of layers, instead of the model's own."""
    dropout: float = 0.1
    """The dropout rate."""
    dataset: str = "pydoc"
    """pydoc: the help topics that come with Python."""
    data_dir: Path | None = None
    """A folder with train.txt, valid.txt and test.txt, or ptb.train.txt and so on, instead of --dataset."""
    text: Path | None = None
    """Any text file, instead of --dataset: 90% of it for training, 5% for validation, 5% for testing."""
    tokens: Tokens = "words"
    """The unit that is predicted."""
    train_fraction: float = 1.0
    """The fraction of the training text to train on."""
    updates: int = 2000
    """Steps of the optimizer."""
    evaluation_interval: int = 100
    """Updates from one evaluation on the validation text to the next; the best parameters are tested at the end."""
    batch_size: int = 16
    """Windows an update: the training text is cut into so many rows, and each gives one."""
    window: int = 64
    """Tokens that are predicted at once; the first of them from nothing before it."""
    seed: int = 43
    """The seed of the initialization and of dropout."""
    learning_rate: float = 1e-3
    """The greatest learning rate, from which a cosine leads to zero, update by update."""
    warm_up: float = 0.0
    """The first part of the updates, in which the learning rate rises linearly from zero to the greatest."""
    weight_decay: float = 0.1
    """The weight decay of every parameter (adamw)."""
    clip: float = 0.25
    """The norm that gradients are clipped to."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the network's computations; parameters are float32."""
    remat: bool = False
    """Recomputes the activations of each layer in the backward pass: slower, with less memory."""
    update_interval: int | None = 25
    """Updates from one refresh of the scales to the next (tb, alphadecay)."""

    @property
    def network(self) -> str:
        """The model and what of its size is not its own."""
        sizes = [f"{name} {value}" for name in ("width", "layers") if (value := getattr(self, name)) is not None]
        return ", ".join([self.model, *sizes])

    @property
    def intervals(self) -> int:
        """Evaluations."""
        return self.updates // self.evaluation_interval

    @property
    def units(self) -> int:
        """Tokens a step."""
        return self.batch_size * self.window

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        super().check()
        positive = ("width", "layers", "updates", "evaluation_interval", "window", "learning_rate", "clip")
        check_range(self, positive, ("dropout", "weight_decay", "warm_up"))
        if self.warm_up >= 1:
            raise UserError(f"--warm-up {self.warm_up} must be below 1.")
        if self.updates % self.evaluation_interval:
            raise UserError(
                f"--updates {self.updates} do not end with an evaluation; give a multiple of "
                f"--evaluation-interval {self.evaluation_interval}."
            )

    def unused(self) -> set[str]:
        """The settings that a run with these ones does not read."""
        return super().unused() | ({"weight_decay"} if self.base == "adam" else set())
