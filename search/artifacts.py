"""The artifact folder: what is the same for all trials is made once, and found again by its content.

    artifacts/
      teacher-3f0c…/          one folder per thing made; the name is a hash of everything that determined it
        model.safetensors
        key.json              what determined it
        manifest.json         SHA-256 of each file: what does not match is made again, never trusted
      teacher-3f0c….lock      held while it is made, so that others wait; released by the system if the maker dies

A folder appears under its name in one step, after it is complete: an interruption leaves only a `.making-…` folder, and
of a long making its state, in a `.unfinished-…` file that the next maker goes on from.

Where machines share a store (`search.stores`), the folder is this machine's copy of it:

    intact here, and the same there ──────────────────────────────► used
    another one there ──► fetched, each file verified ──► whole? ──► used
    nothing there, or not whole ──► made by one machine (`search.makers`), unless it is here ──► put there ──► used
"""

import json
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from search import costs, folders, full_disk, locks, makers, manifests, stores
from search.errors import UserError
from search.stores import NotWholeError, Store

OnWait = Callable[[str], None]
"""Told, about once per second, which thing another process is making, and what that process last said."""

_PROGRESS = ".progress"
"""File in the `.making-…` folder with what the maker last said; it goes with the folder."""

_UNFINISHED = ".unfinished-"

_SAY_EVERY_S = 0.5


def digest(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of the order of its keys, in hexadecimal."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_files(path: Path) -> str:
    """SHA-256 over a file's ending and content, or over the names and contents of all files directly in a folder.

    Hidden files, which systems and editors leave in folders (`.DS_Store`), do not count.
    """
    if not path.is_dir():
        return digest([path.suffix, manifests.sha256(path)])
    files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    return digest([(file.name, manifests.sha256(file)) for file in files])


class Artifacts:
    """What a study made once and keeps.

    Args:
        folder: The artifact folder; it is made when the first thing is made.
        store: Where machines share what is in it; None where the folder itself is all there is.

    Attributes:
        folder: The artifact folder.
        counter: Energy counter of the device that things are made on; None where none can be read.
    """

    counter: costs.Counter | None = None

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self.folder = folder
        self._store = store
        self._thread = threading.local()  # .making: the folder that this thread writes now

    def check_writable(self) -> None:
        """Make sure, before long work, that things can be kept; nothing is left behind.

        Raises:
            UserError: If the folder cannot be written, or the store cannot be reached.
        """
        self._check_folder()
        if self._store is not None:
            self._store.read("check", BytesIO())

    def found(self, kind: str, digest_: str) -> Path | None:
        """The folder of a thing that was made before. Where it is intact in the folder, nothing is written.

        Args:
            kind: What it is, for example `teacher`.
            digest_: `digest` of the key that it was made with.

        Returns:
            A folder whose files match its manifest; None where neither the folder nor the store has it whole.

        Raises:
            UserError: If it has to be fetched, and the store cannot be reached, or the folder is full or not writable.
            ValueError: If `digest_` is not a digest.
        """
        target = self._target(kind, digest_)
        if manifests.intact(target) is not None:
            return target
        theirs = None if self._store is None else stores.manifest(self._store, target.name)
        if theirs is None:
            return None
        with self._writing(kind, target, None):
            there = manifests.intact(target) is not None or self._fetched(target, theirs)
        return target if there else None

    def made(
        self, kind: str, key: dict[str, Any], make: Callable[[Path], None], *, on_wait: OnWait | None = None
    ) -> Path:
        """The folder of a thing, made now if it was not made before.

        Args:
            kind: What it is, for example `teacher`; the folder's name begins so.
            key: Everything that determines its content, JSON-serialisable.
            make: Writes the thing into the empty folder it is given: plain files, no folders.
            on_wait: Told while another process makes it, for example `teacher (teacher 37/120)`.

        Returns:
            A folder whose files match its manifest. `key.json` in it says what determined it.

        Raises:
            UserError: If it has to be written, and the folder cannot be written or is full, or the store cannot be
                used. What was made whole by then is kept, and the same call goes on from there.
        """
        target = self._target(kind, digest(key))
        if not self._is_settled(target):
            with self._writing(kind, target, on_wait):
                self._settle(kind, target, key, make, on_wait)
        return target

    def unfinished(self, kind: str, key: dict[str, Any]) -> Path:
        """File that the maker of a thing may keep its state in, to go on from there after an interruption.

        Only while it makes the thing may it touch the file, so that nobody else does. It stays on this machine, and is
        removed when the thing is there.

        Args:
            kind: What it is.
            key: Everything that determines its content.
        """
        return self.folder / f"{_UNFINISHED}{self._target(kind, digest(key)).name}"

    def cost(self, kind: str, digest_: str) -> costs.Cost | None:
        """What the making of a thing took, wherever it was made; None where its maker did not note it.

        Args:
            kind: What it is.
            digest_: `digest` of the key that it was made with.
        """
        return costs.read(self._target(kind, digest_))

    def say(self, stage: str, done: int, total: int) -> None:
        """Let those who wait for what this thread makes know how far it is; without effect while it makes nothing.

        Args:
            stage: What is being done.
            done: Steps done.
            total: Steps in all.
        """
        making: Path | None = getattr(self._thread, "making", None)
        if making is None or time.monotonic() < self._thread.say_again_at:
            return
        self._thread.say_again_at = time.monotonic() + _SAY_EVERY_S
        with suppress(OSError):  # a word to others is no reason to stop
            (making / _PROGRESS).write_text(f"{stage} {done}/{total}", encoding="utf-8")

    def _target(self, kind: str, digest_: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", digest_):
            raise ValueError(f"the digest of a key has 64 hexadecimal digits, not {digest_!r}")
        return self.folder / f"{kind}-{digest_[:20]}"

    def _check_folder(self) -> None:
        try:
            with full_disk.told(self.folder, "first file"):
                folders.check_writable(self.folder)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        hint = "name another with --artifacts" if self._store is None else "start in a folder that can be written"
        return UserError(f"the artifact folder '{self.folder}' cannot be written ({error.strerror}); {hint}")

    def _is_settled(self, target: Path) -> bool:
        """Whether a thing is intact here, and is the one that is in the store."""
        ours = manifests.intact(target)
        return ours is not None and (self._store is None or stores.manifest(self._store, target.name) == ours)

    @contextmanager
    def _writing(self, kind: str, target: Path, on_wait: OnWait | None) -> Iterator[None]:
        """Hold a thing's lock. What the user has to put right leaves nothing behind."""
        with full_disk.told(self.folder, kind):
            self._check_folder()
            new_folders = folders.make(self.folder)
            file = target.with_name(target.name + ".lock")
            try:
                lock = locks.acquired(file, lambda: on_wait(self._awaited(kind, target)) if on_wait else None)
            except PermissionError as error:  # another user's lock
                raise self._unwritable(error) from None
            try:
                with full_disk.told(self.folder, kind):
                    yield
            except UserError:
                with suppress(OSError):
                    file.unlink()  # while it is held: those who wait see that it is gone, and take a new one
                folders.remove_empty(new_folders)
                raise
            finally:
                lock.release()

    def _awaited(self, kind: str, target: Path) -> str:
        """The kind, and what its maker last said."""
        for file in self.folder.glob(f".making-{target.name}-*/{_PROGRESS}"):
            with suppress(OSError, ValueError):
                said = file.read_text(encoding="utf-8")
                return f"{kind} ({said})" if said else kind
        return kind

    def _settle(
        self, kind: str, target: Path, key: dict[str, Any], make: Callable[[Path], None], on_wait: OnWait | None
    ) -> None:
        """Have a thing under its name, and in the store; the lock is held."""
        ours = manifests.intact(target)
        theirs = None if self._store is None else stores.manifest(self._store, target.name)
        if ours is not None and (self._store is None or theirs == ours):
            return
        if ours is None:
            shutil.rmtree(target, ignore_errors=True)
        if theirs is not None and self._fetched(target, theirs):
            return
        if self._store is None:
            self._make(target, key, make)
            return
        mine = nullcontext(True) if ours is not None else self._turn(self._store, kind, target, theirs, on_wait)
        with mine as is_mine:
            if is_mine and ours is None:
                self._make(target, key, make)
            first = is_mine and stores.publish(self._store, target, replace=theirs is not None)
        if not first:  # another machine was: its thing is everybody's
            self._settle(kind, target, key, make, on_wait)

    def _turn(
        self, store: Store, kind: str, target: Path, theirs: bytes | None, on_wait: OnWait | None
    ) -> AbstractContextManager[bool]:
        """Be the one machine that makes a thing, or wait until the store has another one than `theirs`."""
        return makers.turn(
            store,
            target.name,
            is_there=lambda: stores.manifest(store, target.name) != theirs,
            said=lambda: self._awaited(kind, target),
            on_wait=lambda said: on_wait(said or kind) if on_wait else None,
        )

    def _make(self, target: Path, key: dict[str, Any], make: Callable[[Path], None]) -> None:
        """Make a thing under its name."""
        with self._appearing(target) as making:
            make(making)
            (making / _PROGRESS).unlink(missing_ok=True)
            (making / manifests.KEY_FILE).write_text(json.dumps(key, indent=1, sort_keys=True), encoding="utf-8")
            manifests.write(making)

    def _fetched(self, target: Path, theirs: bytes) -> bool:
        """Whether the store's thing was whole, and is here now; the lock is held, and the store is there."""
        assert self._store is not None
        try:
            with self._appearing(target) as making:
                stores.fetch(self._store, target.name, theirs, making, lambda n, total: self.say("fetching", n, total))
                (making / _PROGRESS).unlink(missing_ok=True)
        except NotWholeError:
            return False
        return True

    @contextmanager
    def _appearing(self, target: Path) -> Iterator[Path]:
        """An empty folder that takes a thing's name when the block ends well; else nothing is left of it."""
        for left_over in self.folder.glob(f".making-{target.name}-*"):
            shutil.rmtree(left_over, ignore_errors=True)  # of a maker that was killed
        making = self.folder / f".making-{target.name}-{uuid.uuid4().hex}"
        making.mkdir()
        self._thread.making, self._thread.say_again_at = making, 0.0
        try:
            yield making
            shutil.rmtree(target, ignore_errors=True)
            making.rename(target)
            for state in self.folder.glob(f"{_UNFINISHED}{target.name}*"):
                state.unlink(missing_ok=True)
        finally:
            self._thread.making = None
            shutil.rmtree(making, ignore_errors=True)
