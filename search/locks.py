"""One makes, the others wait and say so. The system releases the lock of a process that dies."""

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

WAIT_S = 1.0
"""Seconds between two signs of a waiting process."""


def acquired(file: Path, on_wait: Callable[[], None]) -> FileLock:
    """Take a lock, as soon as nobody else holds it.

    Args:
        file: The lock file; its folder exists.
        on_wait: Called at once where somebody else holds the lock, and every `WAIT_S` seconds from then on. What it
            raises ends the waiting.

    Returns:
        The lock, held; the caller releases it.

    Raises:
        OSError: If the lock file cannot be made or written.
    """
    lock = FileLock(file)
    patience_s = 0.0
    while True:
        try:
            lock.acquire(timeout=patience_s)
        except Timeout:
            on_wait()
            patience_s = WAIT_S
        else:
            return lock
