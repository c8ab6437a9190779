"""Detection data: letterboxes, slots, digits on canvases, TFDS; augmentation, whose boxes follow."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from examples.paper.detection.augment import augment, plain
from examples.paper.detection.data import GRAY, in_slots, letterbox, load_detection_set
from examples.paper.errors import UserError

augmented = jax.jit(augment, static_argnames="flip")


@pytest.fixture(scope="module")
def digits():
    return load_detection_set("digits", None, "train", None, 64, 8)


def test_a_wide_image_is_scaled_into_the_middle_and_its_boxes_with_it():
    image = np.zeros((50, 100, 3), np.uint8)
    image[10:30, 40:80] = 255
    square, boxes = letterbox(image, np.array([[40, 10, 80, 30]], np.float32), 64)
    assert square.shape == (64, 64, 3) and (square[:16] == GRAY).all() and (square[48:] == GRAY).all()
    x1, y1, x2, y2 = boxes[0]
    assert boxes[0].tolist() == pytest.approx([40 * 0.64, 16 + 10 * 0.64, 80 * 0.64, 16 + 30 * 0.64], abs=0.01)
    rows, columns = (np.flatnonzero((square[16:48, :, 0] > 127).any(axis=axis)) for axis in (1, 0))
    assert abs(columns[0] - x1) <= 1 and abs(columns[-1] + 1 - x2) <= 1
    assert abs(rows[0] + 16 - y1) <= 1 and abs(rows[-1] + 17 - y2) <= 1


@pytest.mark.parametrize("shape", [(1, 200, 3), (200, 1, 1), (7, 7, 1), (64, 64, 3)])
def test_images_of_any_aspect_are_letterboxed(shape):
    square, boxes = letterbox(np.full(shape, 9, np.uint8), np.zeros((0, 4), np.float32), 64)
    assert square.shape == (64, 64, shape[2]) and boxes.shape == (0, 4)
    assert set(np.unique(square)) <= {9, GRAY} and (square == 9).any()


def test_slots_take_the_largest_boxes_with_an_area_cut_to_the_image():
    boxes = np.array([[0, 0, 4, 4], [5, 5, 5, 20], [-10, 0, 20, 20], [3, 3, 2, 9], [np.nan, 0, 1, 1], [10, 10, 90, 90]])
    placed, labels = in_slots(boxes, np.arange(6), 2, 64)
    assert labels.tolist() == [5, 2]
    assert placed.tolist() == [[10, 10, 64, 64], [0, 0, 20, 20]]
    placed, labels = in_slots(boxes[:0], np.zeros(0, int), 3, 64)
    assert labels.tolist() == [-1, -1, -1] and not placed.any()


def test_every_digit_has_a_box_around_its_ink(digits):
    for part in (digits.train, digits.test):
        assert part.images.shape[1:] == (64, 64, 1)
        for image, boxes, labels in zip(part.images, part.boxes, part.labels, strict=True):
            covered = np.zeros((64, 64), bool)
            for x1, y1, x2, y2 in boxes[labels >= 0].astype(int):
                patch = image[y1:y2, x1:x2, 0] > 32
                assert patch.any(axis=0)[[0, -1]].all() and patch.any(axis=1)[[0, -1]].all()
                covered[y1:y2, x1:x2] = True
            assert not (image[..., 0] > 32)[~covered].any()
            assert not boxes[labels < 0].any()
    counts = (digits.train.labels >= 0).sum(axis=1)
    assert counts.min() == 0 and 4 <= counts.max() <= 6
    assert set(digits.train.labels.ravel()) == set(range(-1, 10))


def test_splits_of_digits_differ_and_are_always_the_same(digits):
    again = load_detection_set("digits", None, "train", None, 64, 8)
    assert again.contents() == digits.contents() and (again.test.images == digits.test.images).all()
    validation = load_detection_set("digits", None, "train", "validation", 64, 8).test
    assert (validation.images != digits.test.images).any()
    with pytest.raises(UserError, match="no split 'extra'"):
        load_detection_set("digits", None, "train", "extra", 64, 8)


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """A data set prepared by TFDS as `voc/2007` is: images of two sizes, each with one object less than its number."""
    import tensorflow_datasets as tfds

    class Street(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            of_object = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["car", "dog"])}
            features = {"image": tfds.features.Image(shape=(None, None, 3)), "objects": tfds.features.Sequence(of_object)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for number in range(count):
                file = io.BytesIO()
                PIL.Image.fromarray(np.full((20 + 20 * (number % 2), 40, 3), 7, np.uint8)).save(file, "png")
                box = tfds.features.BBox(ymin=0.5, xmin=0.25, ymax=1.0, xmax=0.75)
                file.seek(0)
                yield number, {"image": file, "objects": [{"bbox": box, "label": number % 2}] * number}

    builder = Street(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def test_a_set_with_objects_is_read_as_tfds_has_it(street):
    found = load_detection_set("any", street, "train", None, 64, 2)
    assert found.classes == ("car", "dog") and found.flip and len(found.test.images) == 2
    assert sorted((found.train.labels >= 0).sum(axis=1)) == [0, 1, 2, 2]  # of three, two slots
    for boxes, labels in zip(found.train.boxes[:, 0], found.train.labels[:, 0], strict=True):
        # 40 x 20, half as high as wide, from 16 to 48; and 40 x 40.
        assert boxes.tolist() == {-1: [0, 0, 0, 0], 0: [16, 32, 48, 48], 1: [16, 32, 48, 64]}[int(labels)]


def test_a_set_without_boxes_is_refused(prepared):
    with pytest.raises(UserError, match="image, objects/bbox and objects/label are needed, or image, bbox and label"):
        load_detection_set("any", prepared, "train", None, 64, 2)


def painted(random, count, size=48, slots=3, channels=1):
    """Black images with boxes, each filled with its own brightness."""
    images, boxes = np.zeros((count, 4, size, size, channels), np.uint8), np.zeros((count, 4, slots, 4), np.float32)
    labels = np.full((count, 4, slots), -1, np.int32)
    for image, own, names in zip(*(each.reshape(-1, *each.shape[2:]) for each in (images, boxes, labels)), strict=True):
        for slot in range(random.integers(0, slots + 1)):
            x1, y1 = random.integers(0, size - 12, 2)
            x2, y2 = np.array([x1, y1]) + random.integers(8, 13, 2)
            if (image[y1:y2, x1:x2] == 0).all():
                image[y1:y2, x1:x2] = 100 + 15 * slot
                own[slot], names[slot] = (x1, y1, x2, y2), slot
    return images, boxes, labels


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_follow_their_images(flip):
    random = np.random.default_rng(0)
    images, boxes, labels = painted(random, 32)
    batch = augmented(jax.random.key(1), images, boxes, labels, flip=flip)
    assert batch.images.shape == (32, 48, 48, 1) and batch.boxes.shape == (32, 3, 4)
    mirrored = augmented(jax.random.key(1), images, boxes, labels, flip=False)
    checked, differ = 0, 0
    for image, own, names, straight in zip(*map(np.asarray, batch), np.asarray(mirrored.images), strict=True):
        differ += not np.array_equal(image, straight)
        for x1, y1, x2, y2 in own[names >= 0]:
            assert 0 <= x1 < x2 <= 48 and 0 <= y1 < y2 <= 48
            inner = image[int(y1 + 1) : int(y2), int(x1 + 1) : int(x2), 0]
            if inner.size:
                checked += 1
                assert inner.mean() > 0.15  # it holds what is painted, and no black ground
        assert not own[names < 0].any()
    assert checked > 25
    assert (differ > 5) if flip else differ == 0


@pytest.mark.slow
def test_a_mosaic_has_boxes_of_all_four_and_more_boxes_than_slots_leave_the_largest():
    images = np.zeros((64, 4, 48, 48, 1), np.uint8)
    boxes = np.tile(np.array([[20.0, 20, 30, 30]], np.float32), (64, 4, 1, 1))
    labels = np.tile(np.arange(4, dtype=np.int32)[:, None], (64, 1, 1))
    batch = augmented(jax.random.key(0), images, boxes, labels, flip=False)
    assert set(np.unique(batch.labels)) - {-1} == {0, 1, 2, 3}
    many = np.tile(boxes, (1, 1, 4, 1))
    batch = augmented(jax.random.key(0), images, many, np.tile(labels, (1, 1, 4)), flip=False)
    areas = np.prod(batch.boxes[..., 2:] - batch.boxes[..., :2], axis=-1)
    assert (np.diff(areas, axis=1) <= 1e-3).all()


def test_images_without_boxes_stay_without_and_nothing_is_nan():
    images, boxes, labels = painted(np.random.default_rng(2), 8, channels=3)
    batch = augmented(jax.random.key(3), images, 0 * boxes, 0 * labels - 1, flip=True)
    assert (batch.labels == -1).all() and not batch.boxes.any()
    assert np.isfinite(batch.images).all() and batch.images.min() >= 0 and batch.images.max() <= 1


def test_colours_change_and_gray_stays_gray():
    images = np.full((16, 4, 32, 32, 3), (200, 50, 50), np.uint8)
    images[:, :, :, 16:] = 90
    nothing = np.zeros((16, 4, 1, 4), np.float32), np.full((16, 4, 1), -1, np.int32)
    batch = augmented(jax.random.key(4), images, *nothing, flip=False)
    pixels = np.asarray(batch.images).reshape(16, -1, 3)
    spread = pixels.max(axis=-1) - pixels.min(axis=-1)
    assert (spread.min(axis=1) < 1e-3).all()  # the gray half, and what is around the image
    assert np.ptp(spread.max(axis=1)) > 0.1  # as saturated as is drawn
    assert np.ptp(pixels[:, 0].mean(axis=-1)) > 0.05  # as bright


def test_without_augmentation_images_are_as_they_are(digits):
    batch = plain(*(jnp.asarray(each[:4]) for each in digits.train))
    np.testing.assert_allclose(batch.images, digits.train.images[:4] / np.float32(255))
    np.testing.assert_array_equal(batch.boxes, digits.train.boxes[:4])
