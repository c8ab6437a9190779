"""What a person looks at: a batch as it is trained on, found and true boxes, precision against recall."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from examples.paper.detection.augment import Batch
from examples.paper.detection.average_precision import RECALLS, Evaluation
from examples.paper.detection.boxes import Detections
from examples.paper.detection.data import Images

_COLUMNS, _ROWS = 4, 2
_SHOWN_SCORE = 0.25
_FOUND, _TRUE = "#e4572e", "#2e9cca"


def batch_picture(batch: Batch, classes: Sequence[str], path: Path) -> Path:
    """The first images of a batch, with the boxes that the loss sees."""
    figure, panels = _panels()
    for axes, image, boxes, labels in zip(panels, *map(np.asarray, batch), strict=False):
        _image(axes, image)
        _boxes(axes, boxes[labels >= 0], [classes[int(label)] for label in labels[labels >= 0]], _TRUE, "-")
    return _saved(figure, path)


def detections_picture(truth: Images, found: Detections, classes: Sequence[str], path: Path) -> Path:
    """The first images of a set: what is there, dashed, and what is found with a score of 0.25 or more."""
    figure, panels = _panels()
    for number, axes in enumerate(panels[: len(truth.images)]):
        _image(axes, truth.images[number] / 255)
        there = truth.labels[number] >= 0
        _boxes(axes, truth.boxes[number][there], None, _TRUE, "--")
        boxes, scores, labels = (np.asarray(each[number]) for each in found)
        told = scores >= _SHOWN_SCORE
        words = [f"{classes[int(label)]} {score:.2f}" for label, score in zip(labels[told], scores[told], strict=True)]
        _boxes(axes, boxes[told], words, _FOUND, "-")
    figure.suptitle(f"found (score {_SHOWN_SCORE} or more) and, dashed, true", fontsize=9)
    return _saved(figure, path)


def precision_picture(evaluation: Evaluation, classes: Sequence[str], path: Path) -> Path:
    """Precision against recall at an IoU of 0.5, of each class, thin, and their mean."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    known = [label for label in range(len(classes)) if (evaluation.precision[:, label] >= 0).all()]
    for label in known:
        name = classes[label] if len(known) <= 10 else None
        axes.plot(RECALLS, evaluation.precision[:, label], linewidth=0.8, alpha=0.7, label=name)
    if known:
        mean = evaluation.precision[:, known].mean(axis=1)
        axes.plot(RECALLS, mean, color="black", linewidth=2, label=f"mean, {evaluation.average.map50:.3f}")
        axes.legend(fontsize=7, frameon=False, loc="lower left")
    axes.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def _panels() -> tuple[Any, Sequence[Axes]]:
    figure, panels = plt.subplots(_ROWS, _COLUMNS, figsize=(10, 5.4), layout="constrained")
    for axes in panels.flat:
        axes.axis("off")
    return figure, panels.ravel()


def _image(axes: Axes, image: np.ndarray) -> None:
    gray = image.shape[-1] == 1
    axes.imshow(image[..., 0] if gray else image, vmin=0, vmax=1, cmap="gray" if gray else None, interpolation="nearest")


def _boxes(axes: Axes, boxes: np.ndarray, words: Sequence[str] | None, color: str, style: str) -> None:
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        # Pixels have their centres on whole numbers there.
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, color=color, linestyle=style))
        if words is not None:
            axes.text(x1, y1 - 1, words[number], color=color, fontsize=6, va="bottom", clip_on=True)


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
