"""What a made thing consists of: the SHA-256 of each of its files, in a file beside them.

A thing is a flat folder. What does not match its manifest, and a manifest that names anything but plain files of its
own folder, is never trusted, wherever it comes from.
"""

import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

MANIFEST = "manifest.json"

KEY_FILE = "key.json"
"""Says what determined the thing; every thing has one, so an empty manifest is not one."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(folder: Path) -> None:
    """Write the manifest of all files that are in the folder, and see it onto the disk.

    Raises:
        OSError: If it cannot be written.
    """
    files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    write_bytes(folder, json.dumps(files, indent=1).encode())


def write_bytes(folder: Path, manifest: bytes) -> None:
    """Write a manifest that is known already, and see it onto the disk.

    Raises:
        OSError: If it cannot be written.
    """
    with (folder / MANIFEST).open("wb") as stream:
        stream.write(manifest)
        stream.flush()
        os.fsync(stream.fileno())


def parse(manifest: bytes) -> dict[str, str]:
    """The files of a manifest.

    Args:
        manifest: What a manifest file holds; it may come from anywhere.

    Returns:
        SHA-256 by file name. The names are plain: none leads out of the folder that the manifest lies in.

    Raises:
        ValueError: If it is not a manifest of a thing.

    Example:
        >>> parse(b'{"key.json": "00", "../x": "00"}')
        Traceback (most recent call last):
            ...
        ValueError: not a manifest of plain files
    """
    files = json.loads(manifest)
    if not isinstance(files, dict) or KEY_FILE not in files:
        raise ValueError("not a manifest of a thing")
    for name, expected in files.items():
        if not (_is_plain(name) and isinstance(expected, str) and _SHA256.fullmatch(expected)):
            raise ValueError("not a manifest of plain files")
    return files


def intact(folder: Path) -> bytes | None:
    """The manifest of a folder whose files all have the content that it says; None of any other. It only reads."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        whole = all(sha256(folder / name) == expected for name, expected in parse(manifest).items())
    except (OSError, ValueError):
        return None
    return manifest if whole else None


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file, on any system, and not a way to elsewhere."""
    return name == PurePosixPath(name).name == PureWindowsPath(name).name and name not in ("", "..", MANIFEST)
