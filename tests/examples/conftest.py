import io
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import PIL.Image
import pytest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data set prepared by TFDS: 96 noisy images of 32x32, three classes that differ in brightness; 24 to validate."""
    import tensorflow_datasets as tfds

    class Brightness(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 96), "validation": self._generate_examples(96, 120)}

        def _generate_examples(self, start, stop):
            for index in range(start, stop):
                noise = np.random.default_rng(index).integers(0, 60, (32, 32, 3))
                file = io.BytesIO()
                PIL.Image.fromarray((noise + 90 * (index % 3)).astype(np.uint8)).save(file, "png")
                file.seek(0)
                yield index, {"image": file, "label": index % 3}

    directory = tmp_path_factory.mktemp("tfds")
    builder = Brightness(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


@pytest.fixture(scope="session")
def small_settings(prepared):
    """A run of three epochs on the prepared data set."""
    from outcomes import SMALL

    from examples.paper.vision.settings import Settings

    return Settings(data_dir=prepared, **SMALL)


@pytest.fixture(scope="session")
def finished_small(small_settings, tmp_path_factory):
    """The folder of that run of the small network, on one device."""
    from outcomes import train_small

    return train_small(small_settings, tmp_path_factory.mktemp("runs") / "finished").path


@pytest.fixture
def small(monkeypatch):
    """A network that compiles in seconds, for every model; its smallest layers have 8 eigenvalues."""
    from small_network import create_small_network

    from examples.paper.vision import domain

    monkeypatch.setattr(domain, "create_model", create_small_network)
