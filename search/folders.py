"""Making folders, and taking back those that turned out not to be needed."""

import tempfile
from contextlib import suppress
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
