"""Boxes, their losses and their assignment, against plain NumPy; suppression against a plain one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.paper.detection.boxes import (
    complete_iou,
    expected_distances,
    from_distances,
    intersection_over_union,
    places,
    suppress,
    to_distances,
)
from examples.paper.detection.losses import Predictions, assign, detection_loss, distribution_focal_loss

CENTRES, STRIDES = places(64)
jitted_loss = jax.jit(lambda predictions, boxes, labels: detection_loss(predictions, CENTRES, STRIDES, boxes, labels))


def drawn_boxes(random, *shape, size=64.0):
    corners = random.uniform(0, size, (*shape, 2, 2))
    return np.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1)


def plain_iou(a, b):
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    shared = wide * high if wide > 0 and high > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def plain_complete_iou(a, b):
    iou = plain_iou(a, b)
    apart = sum(((a[k] + a[k + 2]) / 2 - (b[k] + b[k + 2]) / 2) ** 2 for k in range(2))
    diagonal = sum((max(a[k + 2], b[k + 2]) - min(a[k], b[k])) ** 2 for k in range(2))
    v = 4 / math.pi**2 * (math.atan2(a[2] - a[0], a[3] - a[1]) - math.atan2(b[2] - b[0], b[3] - b[1])) ** 2
    return iou - apart / diagonal - v * v / (1 - iou + v)


def test_places_are_the_cells_of_three_grids():
    assert len(CENTRES) == 8 * 8 + 4 * 4 + 2 * 2
    assert CENTRES[:2].tolist() == [[4, 4], [12, 4]] and CENTRES[64].tolist() == [8, 8] and CENTRES[-1].tolist() == [48, 48]
    assert [int((stride == STRIDES).sum()) for stride in (8, 16, 32)] == [64, 16, 4]


def test_distances_and_boxes_are_each_others_inverse():
    random = np.random.default_rng(0)
    distances = random.uniform(0, 15, (len(CENTRES), 4)).astype(np.float32)
    boxes = from_distances(distances, CENTRES, STRIDES)
    np.testing.assert_allclose(to_distances(boxes, CENTRES, STRIDES), distances, atol=1e-4)
    x1, y1, x2, y2 = map(float, boxes[70])
    expected = [CENTRES[70, 0] - x1, CENTRES[70, 1] - y1, x2 - CENTRES[70, 0], y2 - CENTRES[70, 1]]
    np.testing.assert_allclose(expected, distances[70] * 16, rtol=1e-5)


def test_a_distribution_s_distance_is_its_mean():
    logits = np.full((4, 16), -np.inf, np.float32)
    logits[0, 3] = logits[1, [2, 6]] = logits[3, 15] = 0.0
    logits[2] = 0.0
    np.testing.assert_allclose(expected_distances(logits), [3, 4, 7.5, 15], rtol=1e-6)


def test_overlaps_are_those_of_a_plain_formula():
    random = np.random.default_rng(1)
    ours, theirs = drawn_boxes(random, 200), drawn_boxes(random, 200)
    with jax.enable_x64(True):
        iou, complete = intersection_over_union(ours, theirs), complete_iou(jnp.asarray(ours), jnp.asarray(theirs))
    np.testing.assert_allclose(iou, [plain_iou(*pair) for pair in zip(ours, theirs, strict=True)], atol=1e-6)
    np.testing.assert_allclose(complete, [plain_complete_iou(*pair) for pair in zip(ours, theirs, strict=True)], atol=1e-5)


def test_the_gradient_of_complete_iou_is_that_of_finite_differences():
    """With the weight of the aspect ratio's term held still, as its authors have it."""
    random, gradient_of = np.random.default_rng(2), jax.jit(jax.grad(complete_iou))
    with jax.enable_x64(True):
        for ours, theirs in zip(drawn_boxes(random, 5), drawn_boxes(random, 5), strict=True):
            gradient = gradient_of(jnp.asarray(ours), jnp.asarray(theirs))

            def held(box, ours=ours, theirs=theirs):
                turn = lambda box: math.atan2(box[2] - box[0], box[3] - box[1])
                v = lambda box: 4 / math.pi**2 * (turn(box) - turn(theirs)) ** 2
                weight = v(ours) / (1 - plain_iou(ours, theirs) + v(ours))
                free = v(box) / (1 - plain_iou(box, theirs) + v(box))
                return plain_complete_iou(box, theirs) + (free - weight) * v(box)

            for side in range(4):
                step = np.eye(4)[side] * 1e-5
                slope = (held(ours + step) - held(ours - step)) / 2e-5
                assert float(gradient[side]) == pytest.approx(slope, abs=1e-5)


def test_boxes_without_an_area_overlap_with_nothing_and_have_gradients():
    point, box = jnp.array([5.0, 5.0, 5.0, 5.0]), jnp.array([0.0, 0.0, 10.0, 10.0])
    assert float(intersection_over_union(point, box)) == 0
    for one, other in ((point, box), (point, point), (box, box)):
        value, gradient = jax.jit(jax.value_and_grad(complete_iou))(one, other)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def plain_assign(scores, predicted, boxes, labels):
    """One place after another, one box after another."""
    count, taken = len(CENTRES), {}
    overlap, alignment = np.zeros((len(boxes), count)), np.zeros((len(boxes), count))
    for slot, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if label < 0:
            continue
        within = [p for p, (x, y) in enumerate(CENTRES) if box[0] < x < box[2] and box[1] < y < box[3]]
        for p in within:
            overlap[slot, p] = max(plain_complete_iou(predicted[p], box), 0)
            alignment[slot, p] = scores[p, label] ** 0.5 * overlap[slot, p] ** 6
        for p in sorted(within, key=lambda p: -alignment[slot, p])[:10]:
            if p not in taken or overlap[slot, p] > overlap[taken[p], p]:
                taken[p] = slot
    score = np.zeros(count)
    for p, slot in taken.items():
        own = [q for q, other in taken.items() if other == slot]
        most = max(alignment[slot, q] for q in own)
        score[p] = alignment[slot, p] / most * max(overlap[slot, q] for q in own) if most > 0 else 0
    return taken, score


@pytest.mark.parametrize("seed", range(8))
def test_the_assignment_is_that_of_a_plain_one(seed):
    random = np.random.default_rng(seed)
    boxes, labels = drawn_boxes(random, 6), random.integers(-1, 3, 6, np.int32)
    scores = random.uniform(size=(len(CENTRES), 3))
    predicted = from_distances(random.uniform(0, 3, (len(CENTRES), 4)), CENTRES, STRIDES)
    arguments = scores, predicted, CENTRES, boxes, labels
    with jax.enable_x64(True):  # so that neither rounds a tie away
        found = jax.jit(assign)(*map(jnp.asarray, arguments))
    taken, score = plain_assign(scores, np.asarray(predicted), boxes, labels)
    assert np.flatnonzero(found.positive).tolist() == sorted(taken)
    for place, slot in taken.items():
        np.testing.assert_allclose(found.box[place], boxes[slot], rtol=1e-6)
        assert found.label[place] == labels[slot]
    np.testing.assert_allclose(found.score, score, atol=1e-5)


def test_a_box_between_all_places_and_one_without_an_area_have_none():
    boxes = jnp.array([[5.0, 5.0, 7.0, 7.0], [30.0, 30.0, 30.0, 50.0], [0.0, 0.0, 0.0, 0.0]])
    predicted = from_distances(jnp.ones((len(CENTRES), 4)), CENTRES, STRIDES)
    found = jax.jit(assign)(jnp.full((len(CENTRES), 2), 0.5), predicted, jnp.asarray(CENTRES), boxes, jnp.array([0, 1, 1]))
    assert not found.positive.any() and not found.score.any()


def test_the_distribution_loss_is_the_cross_entropy_with_both_neighbours():
    logits = np.random.default_rng(3).standard_normal((2, 16)).astype(np.float32)
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = [-(0.25 * np.log(chances[0, 3]) + 0.75 * np.log(chances[0, 4])), -np.log(chances[1, 7])]
    np.testing.assert_allclose(distribution_focal_loss(logits, np.array([3.75, 7.0], np.float32)), expected, rtol=1e-5)


def right_predictions(boxes, labels, classes=3, sure=30.0):
    """Of each place inside a box, that box, for certain; the image's boxes do not overlap."""
    distances, logits = np.zeros((len(CENTRES), 4, 16), np.float32), np.full((len(CENTRES), classes), -sure, np.float32)
    for box, label in zip(boxes, labels, strict=True):
        sides = np.concatenate([CENTRES - box[:2], box[2:] - CENTRES], axis=-1) / STRIDES[:, None]
        for place in np.flatnonzero((sides > 0).all(axis=-1)):
            for side, distance in enumerate(sides[place]):
                low = min(int(distance), 14)
                share = min(distance - low, 1.0)
                distances[place, side] = -sure
                distances[place, side, [low, low + 1]] = np.log([max(1 - share, 1e-12), max(share, 1e-12)])
            logits[place, label] = sure
    return Predictions(jnp.asarray(distances)[None], jnp.asarray(logits)[None])


def test_right_predictions_have_next_to_no_loss_and_wrong_ones_have_more():
    boxes, labels = np.array([[4.5, 6.0, 30.0, 28.0], [34.0, 30.0, 61.0, 63.0]], np.float32), np.array([1, 2])
    loss = lambda boxes, labels: jitted_loss(right_predictions(boxes, labels), truth[None], names[None])
    truth, names = jnp.asarray(boxes), jnp.asarray(labels)
    right = loss(boxes, labels)
    assert float(right.box) < 1e-3
    assert (
        float(loss(boxes, labels[::-1]).classes) > 2 * float(right.classes) + 1
    )  # the best ten places of a box are its own, not all
    assert float(loss(boxes + 3, labels).box) > 0.2
    assert float(right.loss) == pytest.approx(sum(map(float, right[1:])), rel=1e-6)


gradients_of = jax.jit(jax.value_and_grad(lambda logits, *truth: jitted_loss(Predictions(*logits), *truth).loss))


@pytest.mark.parametrize("case", ["no boxes", "no area", "all slots empty but one between places"])
def test_images_without_usable_boxes_have_a_finite_loss_and_gradient(case):
    boxes = {"no boxes": np.zeros((2, 4)), "no area": np.array([[9.0, 9, 9, 30], [8.0, 8, 30, 8]])}
    boxes = boxes.get(case, np.array([[5.0, 5, 7, 7], [0, 0, 0, 0]])).astype(np.float32)
    labels = np.array([-1, -1] if case == "no boxes" else [0, 1 if case == "no area" else -1])
    random = np.random.default_rng(4)
    logits = [jnp.asarray(random.normal(0, 40, shape), jnp.float32) for shape in ((1, 84, 4, 16), (1, 84, 3))]
    value, gradients = gradients_of(logits, boxes[None], labels[None])
    assert np.isfinite(value) and all(np.isfinite(each).all() for each in gradients)
    assert not gradients[0].any()


def plain_suppress(boxes, scores, most, least, overlap):
    pairs = sorted(((s, p, c) for (p, c), s in np.ndenumerate(scores) if s > least), key=lambda pair: -pair[0])[:most]
    kept = []
    for score, place, label in pairs:
        if all(label != other or plain_iou(boxes[place], boxes[rival]) <= overlap for _, rival, other in kept):
            kept.append((score, place, label))
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_that_of_a_plain_one(seed):
    random = np.random.default_rng(seed)
    centres = drawn_boxes(random, 6)
    boxes = (centres[random.integers(0, 6, 80)] + random.normal(0, 2, (80, 4))).astype(np.float32)
    scores = random.uniform(size=(80, 3)).astype(np.float32) * (random.uniform(size=(80, 3)) < 0.5)
    found = jax.jit(lambda boxes, scores: suppress(boxes, scores, most=60, least_score=0.2, most_overlap=0.5))(boxes, scores)
    kept = plain_suppress(boxes, scores, 60, 0.2, 0.5)
    assert found.boxes.shape == (60, 4) and 5 < len(kept) < 60
    np.testing.assert_allclose(found.scores[: len(kept)], [score for score, _, _ in kept], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[: len(kept)], [boxes[place] for _, place, _ in kept], rtol=1e-6)
    assert found.labels[: len(kept)].tolist() == [label for _, _, label in kept]
    assert (found.labels[len(kept) :] == -1).all() and not found.scores[len(kept) :].any()
