"""Saying that a disk is full, whoever notices it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def told(folder: Path, what: str) -> Iterator[None]:
    """Turn the error of a full disk into a sentence; every other error passes.

    Args:
        folder: The folder that is written in the block.
        what: What is written, for the sentence.

    Raises:
        UserError: If the disk of the folder is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not _is_full(error, folder):
            raise
        raise UserError(
            f"the artifact folder '{folder}' is full: there was no room to write the {what}, and nothing half was left "
            "behind; make room, and the same command goes on"
        ) from error


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether the error says so: by its number, or, from a library written in Rust, in the system's words only."""
    if not isinstance(error, OSError):
        return any(os.strerror(number) in str(error) for number in _FULL)
    elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(folder)
    return error.errno in _FULL and not elsewhere
