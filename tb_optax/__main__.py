"""The console script `tb-optax`, also `python -m tb_optax`."""

import logging
import sys


def main() -> None:
    """Runs the command; what it needs beyond the library is in the extra `report`."""
    try:
        from tb_optax._report.command import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("tyro", "rich"):
            sys.exit(f'tb-optax: {error.name} is not installed; pip install "tb_optax[report]".')
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
