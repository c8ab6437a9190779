"""The console script `tb-optax`, also `python -m tb_optax`."""

import logging
import sys

from tb_optax import __version__


def main() -> None:
    """Runs the command; what it needs beyond the library is in the extra `report`."""
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
    """Standard error is for what the command says.

    Orbax says there what it did not find, and the loops within it what they could not end when a file is damaged.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None


if __name__ == "__main__":
    main()
