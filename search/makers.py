"""Who makes a thing in a store that machines share: one does, the others wait, and take over from a maker that died.

    teacher-3f0c…/maker-1.json   {"maker": …, "beat": 12, "said": "teacher 37/120", "ended": false}
    teacher-3f0c…/maker-2.json   who took over, because the first one ended without the thing, or fell silent

Only one machine can write the next number (`Store.write_new`). A maker renews its beat; whoever sees the same beat for
`SILENT_S` seconds by its own clock counts it as dead, so that no two machines' clocks are compared. Should a maker that
was only held up publish after all, the first one to publish wins (`search.stores.publish`): nothing is lost, something
was made twice. A store without conditional writes cannot tell the machines apart; then each of them makes the thing.
"""

import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from search.errors import UserError
from search.stores import Store


@dataclass(frozen=True)
class Pace:
    """How often makers and those who wait ask the store.

    Attributes:
        beat_s: Seconds between two beats of a maker.
        look_s: Seconds between two looks of one who waits.
        silent_s: Seconds without a new beat after which a maker counts as dead.
    """

    beat_s: float = 5.0
    look_s: float = 2.0
    silent_s: float = 60.0


@dataclass(frozen=True)
class _Claim:
    """What a maker says of itself."""

    maker: str
    beat: int = 0
    said: str = ""
    ended: bool = False


@contextmanager
def turn(
    store: Store,
    name: str,
    *,
    is_there: Callable[[], bool],
    said: Callable[[], str],
    on_wait: Callable[[str], None],
    pace: Pace | None = None,
) -> Iterator[bool]:
    """Be the one who makes a thing, or wait until it is there.

    Args:
        store: The store.
        name: Name of the thing.
        is_there: Whether the store has it by now.
        said: What those who wait are told of how far this maker is; called from another thread.
        on_wait: Told what the maker that is waited for said last, now and then. What it raises ends the waiting.
        pace: How often to ask.

    Yields:
        Whether this process shall make it; False once it is there.

    Raises:
        UserError: If the store cannot be used.
    """
    pace = pace or Pace()
    number = _wait(store, name, is_there, on_wait, pace)
    if number is None:
        yield False
        return
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, _file(name, number), said, done, pace), daemon=True)
    beating.start()
    try:
        yield True
    finally:
        done.set()
        beating.join()


def _wait(
    store: Store, name: str, is_there: Callable[[], bool], on_wait: Callable[[str], None], pace: Pace
) -> int | None:
    """The number under which this process is the maker; None once the thing is there."""
    number, seen, since = 1, None, time.monotonic()
    while not is_there():
        claim = _read(store, _file(name, number))
        if claim is None:
            if _write(store, _file(name, number), _Claim(uuid.uuid4().hex), new=True):
                return number
            time.sleep(pace.look_s / 10)  # another machine was quicker: its claim appears
            continue
        if claim != seen:
            seen, since = claim, time.monotonic()
        if claim.ended or time.monotonic() - since > pace.silent_s:
            number, seen = number + 1, None
            continue
        on_wait(claim.said)
        time.sleep(pace.look_s)
    return None


def _beat(store: Store, file: str, said: Callable[[], str], done: threading.Event, pace: Pace) -> None:
    """Renew a claim until the maker is done, then say that it ended."""
    claim = _read(store, file)
    while claim is not None and not claim.ended:
        ended = done.wait(pace.beat_s)
        claim = replace(claim, beat=claim.beat + 1, said=said(), ended=ended)
        with suppress(UserError):  # the store is away: who waits meets the same, and the next beat may arrive
            _write(store, file, claim)


def _file(name: str, number: int) -> str:
    return f"{name}/maker-{number}.json"


def _read(store: Store, file: str) -> _Claim | None:
    content = io.BytesIO()
    if not store.read(file, content):
        return None
    try:
        return _Claim(**json.loads(content.getvalue()))
    except (ValueError, TypeError):
        return _Claim(maker="?", ended=True)  # not of our writing: whoever wrote it is not waited for


def _write(store: Store, file: str, claim: _Claim, *, new: bool = False) -> bool:
    with TemporaryDirectory(prefix="paretobert-") as folder:
        written = Path(folder) / "claim.json"
        written.write_text(json.dumps(vars(claim)), encoding="utf-8")
        if new:
            return store.write_new(file, written)
        store.write(file, written)
        return True
