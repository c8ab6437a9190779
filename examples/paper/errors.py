"""What a user can put right: shown as one line, without a traceback."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import rich.console
import rich.markup


class UserError(Exception):
    """A mistake in what was asked for; its message names the thing, its value and the way out."""


class WriteError(UserError):
    """A file could not be written, or the disk is full."""


def first_line(error: Exception) -> str:
    """Of what it says, or else its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def telling_errors(where: Path) -> Iterator[None]:
    """Ends the command with one line where a user can put something right.

    Args:
      where: the command writes to, for errors that do not say.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # TFDS and Orbax report their every step, and all that they raise
    try:
        with naming_write_errors(where):
            yield
    except UserError as error:
        console = rich.console.Console(highlight=False)
        console.print(f"[bold red]error:[/] {rich.markup.escape(str(error))}", soft_wrap=True)
        sys.exit(2)


@contextlib.contextmanager
def naming_write_errors(where: Path, then: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Raises an error of a file or the disk as a WriteError.

    Args:
      where: is written to, for errors that do not say.
      then: what stands by now, and how to go on.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise WriteError(f"{error.strerror or error}: {error.filename or where}{then()}") from error
    except Exception as error:
        if "No space left" not in str(error):
            raise
        raise WriteError(f"no space left to write {where}{then()}") from error
