"""Workers that share a device take turns: with real processes, one of which is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from search.turns import Alone, Shared, turns

HOLDER = """
import sys, time
from pathlib import Path
from search.turns import Shared
shared = Shared(Path(sys.argv[1]), stride_s=0.05)
if sys.argv[2] == "measure":
    with shared.measuring(lambda: None):
        print("in", flush=True)
        time.sleep(60)
else:
    with shared.working():
        print("in", flush=True)
        while True:
            time.sleep(0.01)
            if sys.argv[2] == "train":
                shared.give_way()
"""


@contextmanager
def holder(file: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains and gives way, holds without giving way, or measures."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file), what], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "device.lock"


class ImpatientError(Exception):
    """Raised to stop waiting."""


def give_up() -> None:
    raise ImpatientError


def test_two_train_at_a_time(file: Path) -> None:
    with holder(file, "hold"), Shared(file).working():
        pass


def test_nobody_measures_while_another_trains(file: Path) -> None:
    with holder(file, "hold"):
        mine = Shared(file)
        with mine.working():
            with pytest.raises(ImpatientError), mine.measuring(give_up):
                pytest.fail("two on the device")
            assert mine._working  # and goes on with what it did
        with Shared(file).working():
            pass  # whoever gave up stands in nobody's way


@pytest.mark.parametrize("many", [1, 2])
def test_whoever_waits_to_measure_comes_first(many: int, file: Path) -> None:
    """Trainers without end: each gives way within a stride, and does not begin again before."""
    mine = Shared(file)
    with holder(file, "train"), holder(file, "train"), mine.working():
        end = time.monotonic() + 20

        def hope() -> None:
            assert time.monotonic() < end, "those who train never let it measure"

        for _ in range(many):
            with mine.measuring(hope):
                pass


@pytest.mark.parametrize("what", ["hold", "measure"])
def test_a_killed_holder_leaves_nothing_locked(what: str, file: Path) -> None:
    with holder(file, what) as process:
        with pytest.raises(ImpatientError), Shared(file).measuring(give_up):
            pytest.fail("two on the device")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        start = time.monotonic()
        with Shared(file).measuring(lambda: None):
            pass
        with Shared(file).working():
            pass
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("what", ["hold", "measure"])
def test_a_stopped_holder_is_not_waited_for_for_ever(what: str, file: Path) -> None:
    with holder(file, what) as process:
        os.kill(process.pid, signal.SIGSTOP)
        mine, start, waited = Shared(file, patience_s=2.0), time.monotonic(), list[None]()
        with mine.working():
            with mine.measuring(lambda: waited.append(None)):
                assert time.monotonic() - start >= 2.0
            assert len(waited) >= 2
        os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.wait()
        with mine.measuring(give_up):
            pass  # nothing of it is left locked


def test_a_long_measurement_is_waited_for(file: Path) -> None:
    measuring, other = Shared(file, patience_s=2.0), Shared(file, patience_s=2.0)
    order: list[str] = []

    def train() -> None:
        with other.working():
            order.append("train")

    with measuring.measuring(give_up):
        thread = threading.Thread(target=train)
        thread.start()
        time.sleep(5)
        order.append("measured")
    thread.join(timeout=10)
    assert order == ["measured", "train"]
    assert not file.with_suffix(".sign").exists()


def test_a_measurement_that_fails_ends(file: Path) -> None:
    mine = Shared(file)
    with pytest.raises(ValueError, match="broken"), mine.working(), mine.measuring(give_up):
        raise ValueError("broken")
    with Shared(file).measuring(give_up):
        pass


def test_who_shares_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(device: str, exclusive: str) -> str:
        made = turns(device, exclusive, folder=tmp_path)  # type: ignore[arg-type]
        return made._gate.name if isinstance(made, Shared) else "nobody"

    monkeypatch.setattr("search.turns.available_cores", lambda: (0, 1))
    first, first_always = name("cpu", "auto"), name("cpu", "always")
    assert name("cpu", "auto") == first
    monkeypatch.setattr("search.turns.available_cores", lambda: (2, 3))
    assert name("cpu", "auto") != first
    assert name("cpu", "always") == first_always
    assert name("board 1", "auto") == name("board 1", "always") != name("board 2", "auto")
    assert name("board 1", "never") == name("cpu", "never") == "nobody"


def test_alone_waits_for_nobody() -> None:
    with Alone().working(), Alone().measuring(give_up):
        Alone().give_way()


def test_the_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.turns.tempfile.gettempdir", lambda: str(tmp_path))
    turns("board", "auto")
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
