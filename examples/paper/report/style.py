"""How the report of a task compares runs and writes their settings."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

WORDS = {
    **{name: name.upper() for name in ("cal", "tb", "snr", "sgdr", "lars", "lamb", "sgdp", "vgg16", "vgg19")},
    **{"lookahead": "Lookahead", "adam": "Adam", "adamw": "AdamW", "adamp": "AdamP", "alphadecay": "AlphaDecay"},
    **{f"resnet{depth}": f"ResNet{depth}" for depth in (18, 34, 50, 101)},
    **{"wrn16-8": "WRN16-8", "wrn28-6": "WRN28-6", "yolov8n": "YOLOv8n", "dataset": "data set", "model": "network"},
    **{"tensorized": "tensorized Transformer", "tensorized_leaking": "tensorized Transformer that sees ahead"},
    **{f"gpt-{size}": f"GPT {size}" for size in ("tiny", "mini", "small", "medium")},
}


class Style(NamedTuple):
    """What only reports need of a task."""

    baseline: str
    """The method that all others are compared with."""
    task: tuple[str, ...]
    """The settings that say what is trained, on what and how long, whatever the method."""
    always_told: tuple[str, ...] = ()
    """The settings that are written even where they have their defaults."""
    words: Mapping[str, str] = WORDS
    """How names of methods, models and settings are written."""
    introduction: str = ""
    """What the baseline and TB are."""
    chosen_by: str | None = None
    """A metric of intervals, lower is better, whose minimum chooses among the learning rates of a grid; None where every
    setting is compared."""
    appendix: Callable[[Path], Iterator[str]] = lambda _: iter(())
    """More Markdown, with figures in a folder."""


def figure10(out: Path) -> Iterator[str]:
    """What the fits make of spectra whose exponent is known."""
    from examples.paper.report.result_figures import synthetic_figure

    synthetic_figure(out / "figure10.png")
    yield "## Figure 10: the three fits on synthetic spectra"
    yield "Eigenvalues that decay as `i^-s` have a tail of exponent `1 + 1/s`; 1,000 of them, computed with this report."
    yield "![Alpha by the three fits against the decay s of synthetic spectra, beside the theory's 1 + 1/s](figure10.png)"


VISION = Style(
    baseline="cal",
    task=("model", "dataset", "width", "train_split", "test_split", "epochs", "batch_size", "weight_decay", "dtype"),
    always_told=("dataset", "width", "epochs", "learning_rate"),
    introduction="CAL is SGD with cosine annealing, TB the same with TempBalance.",
    appendix=figure10,
)


LANGUAGE = Style(
    baseline="adam",
    task=(
        *("model", "width", "layers", "dropout", "dataset", "tokens", "train_fraction", "updates", "evaluation_interval"),
        *("batch_size", "window", "clip", "dtype", "remat"),
    ),
    always_told=("dataset", "updates", "learning_rate"),
    words=WORDS | {"dataset": "text"},
    introduction="Adam and AdamW have the cosine of all updates, and TB is TempBalance after them.",
    chosen_by="valid_loss",
)


DETECTION = Style(
    baseline="adam",
    task=(
        *("model", "width", "depth", "dataset", "train_split", "test_split", "image_size", "slots", "augment"),
        *("epochs", "batch_size", "weight_decay", "dtype"),
    ),
    always_told=("dataset", "epochs", "learning_rate"),
    introduction="Adam and AdamW have the cosine of all epochs, and TB is TempBalance after them.",
)
