"""A store that machines share: what is kept there of a made thing, and how it comes and goes.

teacher-3f0c…/manifest.json                         written last: without it nothing of the thing counts
teacher-3f0c…/9ab1…/model.safetensors               each file under its own SHA-256, so that two makers of the
teacher-3f0c…/51d0…/key.json                        same thing never mix their files
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from search import manifests


class Store(Protocol):
    """Keeps bytes by name. An error of the store itself is a `UserError` that names the store and the reason."""

    def read(self, name: str, into: BinaryIO) -> bool:
        """Copy what is kept under a name; False where there is nothing."""

    def write(self, name: str, file: Path) -> None:
        """Keep a file's content under a name, in place of what was there; it appears whole or not at all."""

    def write_new(self, name: str, file: Path) -> bool:
        """Keep a file's content under a name where there is nothing yet; False where there is something."""


class NotWholeError(Exception):
    """What a store holds does not match its manifest; it must not be used."""


def manifest(store: Store, name: str) -> bytes | None:
    """The manifest of a thing in a store, as it is; None where there is none.

    Args:
        store: The store.
        name: Name of the thing.

    Raises:
        UserError: If the store cannot be used.
    """
    content = io.BytesIO()
    return content.getvalue() if store.read(f"{name}/{manifests.MANIFEST}", content) else None


def fetch(store: Store, name: str, manifest: bytes, folder: Path, on_file: Callable[[int, int], None]) -> None:
    """Copy a thing into an empty folder, file by file, each compared with its manifest.

    Args:
        store: The store.
        name: Name of the thing.
        manifest: Its manifest in the store.
        folder: Where to.
        on_file: Told how many files are there, and how many there will be.

    Raises:
        NotWholeError: If the manifest is not one, or a file is missing or does not match.
        UserError: If the store cannot be used.
        OSError: If the folder cannot be written.
    """
    try:
        files = manifests.parse(manifest)
    except ValueError as error:
        raise NotWholeError(str(error)) from None
    for number, (file, expected) in enumerate(files.items()):
        on_file(number, len(files))
        with (folder / file).open("wb") as into:
            there = store.read(_name(name, file, expected), into)
        if not there or manifests.sha256(folder / file) != expected:
            raise NotWholeError(f"{file} is missing or has another content")
    manifests.write_bytes(folder, manifest)


def publish(store: Store, folder: Path, *, replace: bool) -> bool:
    """Copy a thing into a store under its folder's name: its files first, its manifest last.

    Args:
        store: The store.
        folder: The thing, intact.
        replace: Whether it takes the place of what is there, because that turned out not to be whole.

    Returns:
        False where another machine was first: its thing stays.

    Raises:
        UserError: If the store cannot be used.
        OSError: If the folder cannot be read.
    """
    manifest = folder / manifests.MANIFEST
    for file, content_sha256 in manifests.parse(manifest.read_bytes()).items():
        store.write(_name(folder.name, file, content_sha256), folder / file)
    name = f"{folder.name}/{manifests.MANIFEST}"
    if not replace:
        return store.write_new(name, manifest)
    store.write(name, manifest)
    return True


def _name(thing: str, file: str, content_sha256: str) -> str:
    return f"{thing}/{content_sha256}/{file}"
