"""Mean average precision as COCO has it, by pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from examples.paper.detection.boxes import Detections
from examples.paper.detection.data import Images

RECALLS = np.linspace(0, 1, 101)


class AveragePrecision(NamedTuple):
    """Means over the classes that there are; 0 where nothing is found."""

    map: float
    """The mean over ten IoU thresholds, 0.5 to 0.95."""
    map50: float
    """At an IoU of 0.5."""


class Evaluation(NamedTuple):
    average: AveragePrecision
    precision: Float[np.ndarray, "recalls classes"]
    """At an IoU of 0.5, at each of `RECALLS`; -1 of classes that no image has."""


def evaluate(found: Detections, truth: Images, classes: Sequence[str]) -> Evaluation:
    """Compares what is found in images with what is in them: at most 100 detections of an image, of any size."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
    images = [{"id": number} for number in range(len(truth.labels))]
    coco: Any = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": _annotations(truth)}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        coco.createIndex()
        results = _rows(found)
        if not len(results):
            return Evaluation(AveragePrecision(0.0, 0.0), np.zeros((len(RECALLS), len(classes))))
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # IoU thresholds, recalls, classes, sizes of objects, numbers of detections: of the latter two all, and the most.
    precision: Any = evaluation.eval["precision"][:, :, :, 0, -1]
    mean = lambda values: float(values[values >= 0].mean()) if (values >= 0).any() else 0.0
    return Evaluation(AveragePrecision(mean(precision), mean(precision[0])), precision[0])


def _annotations(truth: Images) -> list[dict[str, Any]]:
    found = []
    for image, slot in zip(*np.nonzero(np.asarray(truth.labels) >= 0), strict=True):
        x1, y1, x2, y2 = map(float, truth.boxes[image, slot])
        box = [x1, y1, x2 - x1, y2 - y1]
        category = int(truth.labels[image, slot]) + 1
        own = {"image_id": int(image), "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        found.append({"id": len(found) + 1} | own)
    return found


def _rows(found: Detections) -> Float[np.ndarray, "detections 7"]:
    """Image, box as corner and sides, score, class: as pycocotools takes them."""
    boxes, scores, labels = map(np.asarray, found)
    images, places = np.nonzero(labels >= 0)
    own = boxes[images, places]
    columns = [images[:, None], own[:, :2], own[:, 2:] - own[:, :2], scores[images, places, None]]
    return np.concatenate([*columns, labels[images, places, None] + 1], axis=1).astype(np.float64)
