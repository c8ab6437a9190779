"""The console script `tb-optax`, also `python -m tb_optax`."""

import logging
import sys

from tb_optax import __version__


def main() -> None:
    """Runs the command, which needs the extra `report`."""
    if sys.argv[1:] in (["--version"], ["report", "--version"]):
        print(f"tb-optax {__version__}")
        return
    try:
        from tb_optax._report.command import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("tyro", "rich", "platformdirs"):
            sys.exit(f'tb-optax: {package} is not installed; pip install "tb_optax[report]".')
        raise
    _keep_libraries_quiet()
    run()


def _keep_libraries_quiet() -> None:
    """Keeps standard error for the command's own messages.

    Orbax writes to it which files it did not find and, if a file is damaged, which of its tasks did not end.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None


if __name__ == "__main__":
    main()
