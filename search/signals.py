"""Taking up a person's requests to stop (Ctrl-C, a request to terminate) for a while, and giving the handlers back."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None
"""What `signal.signal` takes and gives back."""


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Handle signals in a block, and put back afterwards what handled them before.

    In another thread than the main one nothing is changed: Python hands signals to the main thread alone.

    Args:
        handlers: Handler of each signal, by its number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept() -> Iterator[None]:
    """Put back the handlers of both requests after a block in which other code, a library say, changes them."""
    with handled({number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}):
        yield
