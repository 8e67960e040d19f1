"""Of machines that share a store one makes a thing; the others wait, and take over from one that died."""

import json
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from search.errors import UserError
from search.makers import Pace, turn

PACE = Pace(beat_s=0.05, look_s=0.02, silent_s=0.5)


class MemoryStore:
    """Keeps bytes in memory, with conditional writes."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.away = False
        self._lock = threading.Lock()

    def read(self, name: str, into: BinaryIO) -> bool:
        self._check()
        with self._lock:
            into.write(self.kept.get(name, b""))
            return name in self.kept

    def write(self, name: str, file: Path) -> None:
        self._check()
        with self._lock:
            self.kept[name] = file.read_bytes()

    def write_new(self, name: str, file: Path) -> bool:
        self._check()
        with self._lock:
            if name in self.kept:
                return False
            self.kept[name] = file.read_bytes()
            return True

    def _check(self) -> None:
        if self.away:
            raise UserError("the store is away")


def take(store: MemoryStore, made: list[int], number: int, seconds: float, waited: list[str] | None = None) -> None:
    """Make the thing, or wait for it, as one machine."""
    with turn(
        store,
        "thing",
        is_there=lambda: "thing/manifest.json" in store.kept,
        said=lambda: f"machine {number}",
        on_wait=(waited if waited is not None else []).append,
        pace=PACE,
    ) as mine:
        if mine:
            time.sleep(seconds)
            made.append(number)
            store.kept["thing/manifest.json"] = b"{}"


def test_of_many_machines_one_makes_it_and_the_others_hear_how_far_it_is() -> None:
    store, made, waited = MemoryStore(), list[int](), list[str]()
    threads = [threading.Thread(target=take, args=(store, made, number, 1.2, waited)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1  # though it took longer than the silence after which a maker counts as dead
    assert f"machine {made[0]}" in waited
    assert json.loads(store.kept["thing/maker-1.json"])["ended"]


def test_one_takes_over_from_a_maker_that_fell_silent() -> None:
    store, made = MemoryStore(), list[int]()
    store.kept["thing/maker-1.json"] = json.dumps({"maker": "dead", "beat": 7, "said": "", "ended": False}).encode()
    threads = [threading.Thread(target=take, args=(store, made, number, 0.1)) for number in range(4)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert time.monotonic() - start > PACE.silent_s
    assert "thing/maker-3.json" not in store.kept


def test_one_takes_over_at_once_from_a_maker_that_stopped() -> None:
    store = MemoryStore()
    with (
        pytest.raises(KeyboardInterrupt),
        turn(store, "thing", is_there=lambda: False, said=str, on_wait=print, pace=PACE),
    ):
        raise KeyboardInterrupt
    start, made = time.monotonic(), list[int]()
    take(store, made, 1, 0.0)
    assert made == [1]
    assert time.monotonic() - start < PACE.silent_s


@pytest.mark.parametrize("content", [b"", b"[]", b'{"unknown": 1}', b"torn {"])
def test_a_claim_that_cannot_be_read_holds_nobody_up(content: bytes) -> None:
    store, made = MemoryStore(), list[int]()
    store.kept["thing/maker-1.json"] = content
    take(store, made, 1, 0.0)
    assert made == [1]


def test_a_store_that_is_away_for_a_while_does_not_end_the_making() -> None:
    store = MemoryStore()
    with turn(store, "thing", is_there=lambda: False, said=str, on_wait=print, pace=PACE) as mine:
        store.away = True
        time.sleep(0.3)
        store.away = False
        time.sleep(0.2)
    assert mine
    assert json.loads(store.kept["thing/maker-1.json"])["ended"]


def test_what_is_there_is_waited_for_by_nobody() -> None:
    store, made = MemoryStore(), list[int]()
    store.kept["thing/manifest.json"] = b"{}"
    take(store, made, 1, 0.0)
    assert made == []
    assert list(store.kept) == ["thing/manifest.json"]
