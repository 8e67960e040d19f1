"""Waiting for a study database that does not answer for a while.

A worker that trains for minutes must not lose its trial because the database was restarted, its network was cut, or
another process held its lock. Every call is repeated until it goes through, with growing pauses, for as long as the
storage's patience lasts. A call that did go through before its answer was lost is repeated as well; what then happens
is said at each of the calls that are not idempotent:

    create_new_trial         a second trial is made; nobody works at the first: its missing heartbeat gives it away
    set_trial_param          the second is refused by the database, and counts as done
    set_trial_state_values   the second is refused because the trial has ended; the worker looks up how it did
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from sqlalchemy import exc

LONGEST_PAUSE_S = 10.0
"""Seconds between two attempts, at most."""

SILENT_S = 2.0
"""Seconds of failing that are not worth a line."""

FIRST_PAUSE_S = 0.2
"""Seconds before the second attempt; each further pause is twice as long."""


def is_passing(error: BaseException) -> bool:
    """Whether an error of a storage may be gone when the call is repeated.

    Args:
        error: What a call of a storage raised.
    """
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return is_passing(error.__cause__)
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    if _is_of_proxy(error):
        return _code(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    return isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError | exc.PendingRollbackError)


def _is_of_proxy(error: BaseException) -> bool:
    """Whether it comes from gRPC, which is installed with the extra `proxy` only."""
    grpc = sys.modules.get("grpc")
    return grpc is not None and isinstance(error, grpc.RpcError)


def _code(error: BaseException) -> str:
    return str(getattr(error, "code", lambda: "")()).rpartition(".")[2]


def _is_written_already(error: BaseException) -> bool:
    """Whether a repeated call was refused because its first attempt had been written."""
    if isinstance(error, exc.IntegrityError):
        return True
    return _is_of_proxy(error) and _code(error) == "UNKNOWN" and "IntegrityError" in reason(error)


def reason(error: BaseException) -> str:
    """The first line of what a database or a proxy says went wrong; it holds no URL."""
    error = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error
    details = getattr(error, "details", None)
    text = details() if callable(details) else str(getattr(error, "orig", None) or error)
    return (text or type(error).__name__).strip().splitlines()[0]


def pauses() -> Iterator[float]:
    """Seconds to wait before the second attempt, the third, and so on."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_S)


def insist(call: Callable[[], Any], *, patience_s: float, note: Callable[[str], None]) -> Any:
    """Call until it goes through.

    Args:
        call: What to call.
        patience_s: Seconds after which the error is raised after all.
        note: Told once when it does not go through at first, and once when it does again.

    Returns:
        What the call returned.

    Raises:
        Exception: What the call raised, at once where repeating cannot help, else after `patience_s`.
    """
    start, told = time.monotonic(), False
    for number, pause in enumerate(pauses()):
        try:
            result = call()
        except Exception as error:
            if number > 0 and _is_written_already(error):
                return None
            if not is_passing(error) or time.monotonic() - start + pause > patience_s:
                raise
            if not told and time.monotonic() - start >= SILENT_S:
                note(f"the study database does not answer ({reason(error)}); trying again")
                told = True
            time.sleep(pause)
        else:
            if told:
                note(f"the study database answers again, after {time.monotonic() - start:.0f} s")
            return result
    raise AssertionError("unreachable")


class _Patient:
    """What a patient storage does beside passing calls on."""

    def __init__(self, inner: BaseStorage, *, patience_s: float = 0.0) -> None:
        self.inner = inner
        """The storage that answers."""
        self.patience_s = patience_s
        """Seconds that a call is repeated for; 0 raises at once."""
        self.note: Callable[[str], None] = lambda _text: None
        """Told when the storage stops answering, and when it answers again."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Give a sign of life; one that does not get through is followed by the next."""
        with suppress(UpdateFinishedTrialError):  # another worker declared it dead; the trial's end will show it
            try:
                self.inner.record_heartbeat(trial_id)  # type: ignore[attr-defined]
            except Exception as error:
                if not is_passing(error):
                    raise


def _passed_on(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.inner, name)
        return insist(lambda: method(*args, **kwargs), patience_s=self.patience_s, note=self.note)

    call.__name__ = name
    return call


_PASSED_ON = {
    name
    for base in (BaseStorage, BaseHeartbeat)
    for name, member in vars(base).items()
    if callable(member) and (not name.startswith("_") or name == "_get_stale_trial_ids")
} - {"record_heartbeat"}

PatientStorage: Any = type(
    "PatientStorage",
    (_Patient, BaseStorage, BaseHeartbeat),
    {name: _passed_on(name) for name in _PASSED_ON},
)
"""A storage that passes every call of Optuna's interfaces on to another one, until it goes through."""
