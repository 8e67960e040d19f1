"""The artifact folder: what is the same for all trials is made once, and found again by its content.

    artifacts/
      teacher-3f0c…/          one folder per thing made; the name is a hash of everything that determined it
        model.safetensors
        manifest.json         SHA-256 of each file: what does not match is made again, never trusted
      teacher-3f0c….lock      held while it is made, so that others wait; released by the system if the maker dies

A folder appears under its name in one step, after it is complete: an interruption leaves only a `.making-…` folder.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from search import folders
from search.errors import UserError

MANIFEST = "manifest.json"


def digest(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of the order of its keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_files(path: Path) -> str:
    """SHA-256 over a file's ending and content, or over the names and contents of all files directly in a folder."""
    if not path.is_dir():
        return digest([path.suffix, _sha256(path)])
    return digest([(file.name, _sha256(file)) for file in sorted(path.iterdir()) if file.is_file()])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Artifacts:
    """What a study made once and keeps.

    Args:
        folder: The artifact folder; it is made when the first thing is made.

    Raises:
        UserError: If the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folders.check_writable(folder)
        except OSError as error:
            raise UserError(
                f"the artifact folder '{folder}' cannot be written ({error.strerror}); name another with --artifacts"
            ) from None

    def made(self, kind: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a thing, made now if it was not made before.

        Args:
            kind: What it is, for example `teacher`; the folder's name begins so.
            key: Everything that determines its content, JSON-serialisable.
            make: Writes the thing into the empty folder it is given.

        Returns:
            A folder whose files match its manifest. `key.json` in it says what determined it.
        """
        target = self.folder / f"{kind}-{digest(key)[:20]}"
        lock = target.with_name(target.name + ".lock")
        new_folders = folders.make(self.folder)
        try:
            with FileLock(lock):
                self._make(target, key, make)
        except UserError:  # wrong input: leave nothing behind
            lock.unlink(missing_ok=True)
            folders.remove_empty(new_folders)
            raise
        return target

    def _make(self, target: Path, key: dict[str, Any], make: Callable[[Path], None]) -> None:
        """Make a thing under its name, unless it is there and intact; the lock is held."""
        if _is_intact(target):
            return
        shutil.rmtree(target, ignore_errors=True)
        for left_over in self.folder.glob(f".making-{target.name}-*"):
            shutil.rmtree(left_over, ignore_errors=True)  # of a maker that was killed
        making = self.folder / f".making-{target.name}-{uuid.uuid4().hex}"
        making.mkdir()
        try:
            make(making)
            (making / "key.json").write_text(json.dumps(key, indent=1, sort_keys=True), encoding="utf-8")
            _write_manifest(making)
            making.rename(target)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    files = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
        json.dump(files, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _is_intact(folder: Path) -> bool:
    """Whether the folder holds a manifest and every file in it has the content that the manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(_sha256(folder / name) == expected for name, expected in files.items())
    except (OSError, ValueError, AttributeError):
        return False
