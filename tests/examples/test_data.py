import shutil
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from examples.paper.errors import UserError
from examples.paper.vision import data
from examples.paper.vision.data import load_dataset
from examples.paper.vision.domain import crop_and_flip, normalize


def test_digits_are_scikit_learns_scaled_up_with_a_fixed_split():
    first, second = (load_dataset("digits", None, "train", None) for _ in range(2))
    assert first.train_images.shape == (1437, 32, 32, 1) and first.test_images.shape == (360, 32, 32, 1)
    np.testing.assert_array_equal(first.test_labels, second.test_labels)
    assert np.bincount(first.test_labels).min() > 20
    blocks = first.train_images.reshape(-1, 8, 4, 8, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all() and first.train_images.max() == 255
    assert not first.flip


def test_a_prepared_directory_is_read_without_tensorflow(prepared):
    dataset = load_dataset("digits", prepared, "train", None)
    assert dataset.train_images.shape == (96, 32, 32, 3) and dataset.train_images.dtype == np.uint8
    assert dataset.test_images.shape == (24, 32, 32, 3)  # validation, for there is no test
    brightness = dataset.train_images.reshape(96, -1).mean(axis=1)
    np.testing.assert_array_equal(dataset.train_labels, np.digitize(brightness, [75, 165]))
    pixels = dataset.train_images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=(0, 1, 2)), rtol=1e-5)
    assert dataset.num_classes == 3 and dataset.flip


def test_known_data_sets_are_normalized_as_in_the_papers_code():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for name, mean, std in (
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar10_jpeg", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        ("svhn_cropped", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        ("tiny_imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tiny_imagenet32", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        np.testing.assert_array_equal(data._normalization(name, images), np.array((mean, std), np.float32))
    with pytest.raises(UserError, match="data set 'brightness': channel 0 is the same in every pixel"):
        data._normalization("brightness", images)
    gray = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    np.testing.assert_allclose(data._normalization("cifar10_gray", gray)[0], gray.mean(axis=(0, 1, 2)) / 255, rtol=1e-5)


def test_what_tfds_cannot_open_is_said_in_one_line(prepared, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    folder = shutil.copytree(prepared, tmp_path / "brightness" / "1.0.0")
    assert len(load_dataset("brightness", None, "train", None).train_images) == 96
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"--dataset brightness: TFDS could not .*open it .*TFDS_DATA_DIR.*array_record"):
        load_dataset("brightness", None, "train", None)


def test_splits_are_those_of_tfds(prepared):
    assert len(load_dataset("digits", prepared, "train[:10]", "train[10:15]").train_images) == 10
    with pytest.raises(UserError, match="no split 'trian'; it has train, validation"):
        load_dataset("digits", prepared, "trian", None)


def test_what_is_no_data_set_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}.*dataset_info.json"):
        load_dataset("digits", tmp_path, "train", None)
    with pytest.raises(UserError, match=r"no_such_set.*cifar10"):
        load_dataset("no_such_set", None, "train", None)


def test_images_of_several_shapes_are_refused_with_two_of_them():
    source = [{"image": np.zeros((size, 4, 3), np.uint8), "label": size} for size in (4, 6, 4, 5)]
    builder = types.SimpleNamespace(name="ragged", as_data_source=lambda split: source)
    with pytest.raises(UserError, match=r"'ragged' have 3 different shapes, such as \(4, 4, 3\) and \(5, 4, 3\)"):
        data._read(builder, "train")


@pytest.fixture(scope="module")
def augmented():
    """Images, their crops, and the same crops where mirroring is allowed."""
    images = jax.random.randint(jax.random.key(0), (400, 6, 6, 2), 1, 255).astype(jnp.uint8)
    both = jax.jit(lambda images: [crop_and_flip(jax.random.key(1), images, flip=flip) for flip in (False, True)])
    return [np.asarray(each) for each in (images, *both(images))]


def test_a_crop_is_a_window_of_the_image_in_a_frame_of_zeros(augmented):
    images, crops, _ = augmented
    framed = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    found = set()
    for crop, frame in zip(crops[:64], framed, strict=False):
        windows = [(y, x) for y in range(9) for x in range(9) if (crop == frame[y : y + 6, x : x + 6]).all()]
        assert windows
        found.update(windows[:1])
    assert len(found) > 30


def test_about_half_of_the_images_are_mirrored_where_flips_are_allowed(augmented):
    _, plain, flipped = augmented
    same = (plain == flipped).all(axis=(1, 2, 3))
    mirrored = (plain[:, :, ::-1] == flipped).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_normalized_pixels_have_no_mean_and_unit_deviation(prepared):
    dataset = load_dataset("digits", prepared, "train", None)
    pixels = normalize(dataset.train_images, dataset.mean, dataset.std)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(pixels.std(axis=(0, 1, 2)), 1, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["digits", "mnist", "emnist", "kmnist", "mnist_corrupted", "binarized_mnist", "svhn_cropped"]
)
def test_letters_and_digits_are_not_mirrored(name):
    assert data._NOT_FLIPPED.search(name)


@pytest.mark.parametrize("name", ["cifar10", "cifar10_jpeg", "tiny_imagenet", "fashion_mnist", "oxford_flowers102"])
def test_what_may_be_mirrored_is(name):
    assert not data._NOT_FLIPPED.search(name)


def write_arrays(path, **changes):
    random = np.random.default_rng(0)
    arrays = {
        "train_images": random.integers(0, 256, (6, 8, 8, 3), np.uint8),
        "train_labels": np.arange(6) % 3,
        "test_images": random.integers(0, 256, (2, 8, 8, 3), np.uint8),
        "test_labels": np.array([1, 4], np.uint8),
    }
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez(path, **arrays)
    return arrays


def test_arrays_in_a_file_are_a_data_set(tmp_path):
    arrays = write_arrays(tmp_path / "letters.npz")
    dataset = load_dataset("digits", tmp_path / "letters.npz", "train", None)
    assert dataset.name == "letters" and dataset.num_classes == 5 and dataset.flip
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(dataset, name), array)
    np.testing.assert_allclose(dataset.mean, arrays["train_images"].mean(axis=(0, 1, 2)) / 255, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(test_labels=None), "test_labels"),
        (dict(train_images=np.zeros((6, 8, 8, 3))), "train_images is float64"),
        (dict(train_images=np.zeros((6, 8, 8), np.uint8)), r"of shape \(6, 8, 8\)"),
        (dict(train_labels=np.arange(5)), "for each of the 6 images"),
        (dict(train_labels=np.arange(6) - 1), "from 0"),
        (dict(train_labels=np.arange(6) + 2**33), r"has the label 8589934597.* 8589934598 classes of 6 training images"),
        (dict(test_labels=np.array([0, 2**63 + 1], np.uint64)), "test_labels has the label 9223372036854775809"),
        (dict(train_images=np.zeros((6, 8, 8, 3), np.uint8)), "channel 0 is the same in every pixel"),
        (dict(test_images=np.zeros((2, 9, 8, 3), np.uint8)), "differ in shape"),
        (dict(train_labels=np.array([{}] * 6)), "no .npz file"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(tmp_path, changes, message):
    write_arrays(tmp_path / "letters.npz", **changes)
    with pytest.raises(UserError, match=message):
        load_dataset("digits", tmp_path / "letters.npz", "train", None)


def test_a_files_name_does_not_choose_its_normalization(tmp_path):
    for channels in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, channels), np.uint8)
        write_arrays(tmp_path / "cifar10_mine.npz", train_images=images, test_images=images[:2])
        dataset = load_dataset("digits", tmp_path / "cifar10_mine.npz", "train", None)
        np.testing.assert_allclose(dataset.mean, images.mean(axis=(0, 1, 2)) / 255, rtol=1e-5)


def test_labels_that_are_no_class_are_refused(monkeypatch, prepared):
    monkeypatch.setattr(data, "_read", lambda builder, split: (np.zeros((2, 4, 4, 3), np.uint8), np.array([-1, 2])))
    with pytest.raises(UserError, match="split 'train', has labels from -1 to 2, and its 3 classes are 0 to 2"):
        load_dataset("digits", prepared, "train", None)


def write_image(path, brightness, size=(8, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(brightness).integers(0, 9, (size[1], size[0], 3))
    PIL.Image.fromarray((brightness + noise).astype(np.uint8)).convert(mode).save(path)


def test_a_folder_of_images_is_a_data_set_with_a_fifth_held_out(tmp_path):
    for number in range(20):
        write_image(tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number}.png", 10 * number)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    first, second = (load_dataset("digits", tmp_path / "pets", "train", None) for _ in range(2))
    assert (first.name, first.num_classes, first.flip) == ("pets", 2, True)
    assert first.train_images.shape == (16, 6, 8, 3) and first.test_images.shape == (4, 6, 8, 3)
    np.testing.assert_array_equal(first.test_images, second.test_images)
    for images, labels in ((first.train_images, first.train_labels), (first.test_images, first.test_labels)):
        numbers = images.reshape(len(images), -1).min(axis=1) // 10
        np.testing.assert_array_equal(labels, (numbers + 1) % 2)  # cat is 0, dog is 1
    np.testing.assert_allclose(first.mean, first.train_images.mean(axis=(0, 1, 2)) / 255, rtol=1e-5)
    with pytest.raises(UserError, match="leave --train-split"):
        load_dataset("digits", tmp_path / "pets", "train[:3]", None)


def test_a_folder_of_images_may_have_a_test_set_of_its_own(tmp_path):
    for split, names in (("train", ("a", "b", "c")), ("val", ("b", "c"))):
        for number, name in enumerate(names):
            write_image(tmp_path / split / name / "1.png", 50 * number, mode="L")
    dataset = load_dataset("digits", tmp_path, "train", None)
    assert dataset.train_labels.tolist() == [0, 1, 2] and dataset.test_labels.tolist() == [1, 2]
    assert dataset.train_images.shape == (3, 6, 8, 1) and dataset.num_classes == 3
    with pytest.raises(UserError, match="no subfolder other"):
        load_dataset("digits", tmp_path, "train", "other")
    write_image(tmp_path / "train" / "a" / "2.png", 90, size=(9, 6))
    with pytest.raises(UserError, match=r"2 sizes, such as 8 x 6 \(.*\) and 9 x 6 \(.*2.png\)"):
        load_dataset("digits", tmp_path, "train", None)
    (tmp_path / "train" / "a" / "2.png").write_text("no image")
    with pytest.raises(UserError, match=r"2.png cannot be read as an image"):
        load_dataset("digits", tmp_path, "train", None)


def test_what_is_no_file_of_arrays_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    for path in (tmp_path / "text.npz", tmp_path / "nowhere.npz"):
        with pytest.raises(UserError, match=f"{path.name} is no .npz file"):
            load_dataset("digits", path, "train", None)
    with zipfile.ZipFile(tmp_path / "lying.npz", "w") as file, file.open("train_images.npy", "w") as array:
        np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (10**13, 64)})
    with pytest.raises(UserError, match=r"lying.npz is no .npz file"):
        load_dataset("digits", tmp_path / "lying.npz", "train", None)
    write_arrays(tmp_path / "letters.npz")
    with pytest.raises(UserError, match="leave --train-split"):
        load_dataset("digits", tmp_path / "letters.npz", "train[:3]", None)
