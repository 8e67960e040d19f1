"""Who may use a device now: many train at a time, and one measures alone.

    worker A   train ......... │ give way ──────────► wait      │ train ...
    worker B   train ... │ wait for A │ measure, alone │ train ...........
                         └ gate: nobody new begins, so whoever wants to measure gets the device within a step

Workers of one search never share a device, but two searches on one machine may, or several workers on one GPU of a
cluster. The locks are the operating system's: those of a process that dies, by kill -9 even, are free at once. One that
is stopped is waited for two minutes at most, and one that measures for as long as it gives signs of life. They hold
among the processes of one user on one machine that have the same folder for temporary files.
"""

import getpass
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Literal, Protocol

from filelock import ReadWriteLock, Timeout

from search.devices import available_cores
from search.locks import WAIT_S, acquired

STRIDE_S = 0.5
"""Seconds that a worker trains between two looks whether another one waits to measure."""

PATIENCE_S = 120.0
"""Seconds after which whoever neither gives way nor shows that it measures is waited for no longer: its process was
stopped, by Ctrl-Z say, and does not use the device either."""

SIGN_S = 5.0
"""Seconds between two signs of life of a worker that measures, at most; a table of all blocks takes minutes."""

Exclusive = Literal["auto", "always", "never"]
"""Which workers take turns: those on one device, all on one machine's CPU, or none."""


class Turns(Protocol):
    """The turns of one worker on its device."""

    def working(self) -> AbstractContextManager[None]:
        """Use the device beside others, for as long as the block runs."""
        ...

    def give_way(self) -> None:
        """Let others measure who wait for it; called again and again by a worker that is working."""
        ...

    def measuring(self, on_wait: Callable[[], None], /) -> AbstractContextManager[None]:
        """Have the device alone, for as long as the block runs.

        Args:
            on_wait: Called at once where others use it, and every second from then on. What it raises ends the waiting.
        """
        ...


class Alone:
    """Turns of a worker that waits for nobody."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Begin at once."""
        yield

    def give_way(self) -> None:
        """Go on."""

    @contextmanager
    def measuring(self, on_wait: Callable[[], None]) -> Iterator[None]:  # noqa: ARG002
        """Begin at once."""
        yield


class _TooLongError(Exception):
    """Somebody else did not give way for too long."""


class Shared:
    """Turns among all processes that name the same file. Mutable: it knows whether this worker is working.

    Args:
        file: The lock; its folder exists. Beside it lie the gate, and the sign of whoever measures.
        stride_s: Seconds between two looks whether another worker waits.
        patience_s: Seconds after which this worker goes on beside whoever does not give way.
    """

    def __init__(self, file: Path, *, stride_s: float = STRIDE_S, patience_s: float = PATIENCE_S) -> None:
        self._lock = ReadWriteLock(file, is_singleton=False)
        self._gate = file.with_suffix(".gate")
        self._sign = file.with_suffix(".sign")
        self._stride_s = stride_s
        self._patience_s = patience_s
        self._working = False
        self._held = ExitStack()
        self._since_s = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Begin as soon as nobody measures, or waits to."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    def give_way(self) -> None:
        """Where the stride is over, stop and begin again: whoever waits to measure comes first."""
        if self._working and time.monotonic() - self._since_s > self._stride_s:
            self._end()
            self._begin()

    @contextmanager
    def measuring(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Begin as soon as all others have stopped; they stop within a stride, and nobody new begins."""
        was_working = self._working
        self._end()
        wait = self._patient(on_wait)
        try:
            with ExitStack() as held:
                with suppress(_TooLongError):
                    held.callback(acquired(self._gate, wait).release)
                    _insist(lambda patience_s: self._lock.acquire_write(timeout=patience_s), wait)
                    held.callback(self._lock.release)
                held.enter_context(self._shown())
                yield
        finally:
            if was_working:
                self._begin()

    def _begin(self) -> None:
        wait = self._patient(lambda: None)
        with ExitStack() as passing, suppress(_TooLongError):
            passing.callback(acquired(self._gate, wait).release)
            _insist(lambda patience_s: self._lock.acquire_read(timeout=patience_s), wait)
            self._held.callback(self._lock.release)
        self._working, self._since_s = True, time.monotonic()

    def _end(self) -> None:
        self._working = False
        self._held.close()

    def _patient(self, on_wait: Callable[[], None]) -> Callable[[], None]:
        """Called while this worker waits; ends the waiting when it has taken too long, and nobody is measuring."""
        start_s = time.monotonic()

        def waited() -> None:
            on_wait()
            if time.monotonic() - start_s > self._patience_s and not self._is_measured_on():
                raise _TooLongError

        return waited

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Give signs of life while the block runs."""
        over = threading.Event()

        def signs() -> None:
            with suppress(OSError):  # without them this worker is waited for as one that is stopped
                while not over.is_set():
                    self._sign.touch()
                    over.wait(min(SIGN_S, self._patience_s / 4))

        thread = threading.Thread(target=signs, name="signs of measuring", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(OSError):
                self._sign.unlink()

    def _is_measured_on(self) -> bool:
        """Whether somebody gave a sign of measuring lately."""
        try:
            return 0 <= time.time() - self._sign.stat().st_mtime < self._patience_s
        except OSError:
            return False


def _insist(take: Callable[[float], object], on_wait: Callable[[], None]) -> None:
    """Take a lock as soon as it is free."""
    patience_s = 0.0
    while True:
        try:
            take(patience_s)
            return
        except Timeout:
            on_wait()
            patience_s = WAIT_S


def turns(device: str, exclusive: Exclusive, *, folder: Path | None = None) -> Turns:
    """The turns of a worker.

    Args:
        device: What the worker computes on: `cpu`, or a name of the board that is the same in all processes.
        exclusive: `never` waits for nobody. `auto` takes turns with workers on the same board, or on the same set of
            cores: workers with cores of their own disturb each other little, through memory and clock, and taking turns
            would stop all of them for every measurement. `always` takes turns with all workers on this machine's CPU.
        folder: Where the locks lie; by default in the folder for temporary files, one for each user.

    Returns:
        What tells when to work and when to measure.

    Raises:
        OSError: If the folder cannot be made.
    """
    if exclusive == "never":
        return Alone()
    if device == "cpu" and exclusive == "auto":
        device = f"cpu {','.join(str(core) for core in available_cores())}"
    folder = Path(tempfile.gettempdir()) / f"paretobert-{_user()}" if folder is None else folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Shared(folder / f"{sha256(device.encode()).hexdigest()[:20]}.lock")


def _user() -> str:
    """A name of the user that a file name can hold; a container's user may have no name."""
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
