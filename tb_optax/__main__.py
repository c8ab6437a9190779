"""The console script `tb-optax`, also `python -m tb_optax`."""

import sys


def main() -> None:
    """Runs the command; what it needs beyond the library is in the extra `report`."""
    try:
        from tb_optax._report.command import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("tyro", "rich"):
            sys.exit(f'tb-optax: {error.name} is not installed; pip install "tb_optax[report]".')
        raise
    run()


if __name__ == "__main__":
    main()
