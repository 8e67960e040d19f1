"""Making folders, and taking back those that turned out not to be needed."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def make(folder: Path) -> list[Path]:
    """Make a folder and its parents.

    Returns:
        Those that were made now, the innermost first.

    Raises:
        OSError: If it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove the folders that are empty, in their order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check_writable(folder: Path) -> None:
    """Try to write into a folder, made for the purpose if it is missing; nothing is left behind.

    Raises:
        OSError: If it cannot be made or written.
    """
    made: list[Path] = []
    try:
        made = make(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        remove_empty(made)


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """An empty folder that takes its name when the block ends well; else nothing is left of it.

    Args:
        target: Its name: a folder that does not exist, or is empty. Parents are made.

    Yields:
        The folder to write into; it lies beside `target`.

    Raises:
        OSError: If it cannot be made, or gets no name because something is there by now.
    """
    new = make(target.parent)
    making = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    try:
        making.mkdir()
        yield making
        if target.is_dir():
            target.rmdir()  # only an empty folder can be removed so
        making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        remove_empty(new)
