"""Waiting for a storage that does not answer, and not waiting for one that never will."""

import io
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from engine_cases import DEFINITION, SilentListener, create_in, evaluation_of
from optuna.exceptions import StorageInternalError
from rich.console import Console
from sqlalchemy import exc

from search.engine import patience, storage, study
from search.engine.patience import insist, is_passing, pauses, reason
from search.engine.worker import work
from search.errors import UserError
from search.events import WORKER_VARIABLE
from search.process import Place
from search.run import EXIT_USER_ERROR, _take_over_total, guarded


def operational(text: str) -> Exception:
    return exc.OperationalError("SELECT secret", {}, sqlite3.OperationalError(text))


def wrapped(cause: Exception) -> StorageInternalError:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


@contextmanager
def locked(file: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Hold SQLite's write lock for so many seconds; None holds it until the block ends."""
    lock = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    release = threading.Timer(seconds or 0.0, lambda: (lock.execute("COMMIT"), lock.close()))
    if seconds is not None:
        release.start()
    try:
        yield
    finally:
        if seconds is None:
            release.start()
        release.join()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(patience, "SILENT_S", 0.0)


@pytest.mark.parametrize("error", [operational("locked"), wrapped(operational("server closed the connection"))])
@pytest.mark.usefixtures("quick")
def test_a_call_is_repeated_until_it_goes_through(error: Exception) -> None:
    calls, notes = [], []

    def call() -> str:
        calls.append(1)
        if len(calls) < 6:
            raise error
        return "answer"

    assert insist(call, patience_s=60, note=notes.append) == "answer"
    assert len(calls) == 6
    assert [note.split(" (")[0] for note in notes] == [
        "the study database does not answer",
        "the study database answers again, after 0 s",
    ]
    assert reason(error) in notes[0]
    assert "secret" not in notes[0]


@pytest.mark.usefixtures("quick")
def test_patience_ends() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise operational("locked")

    with pytest.raises(exc.OperationalError):
        insist(call, patience_s=0.05, note=lambda _text: None)
    assert 2 < len(calls) < 50


def test_what_cannot_pass_is_raised_at_once() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise KeyError("no such trial")

    with pytest.raises(KeyError):
        insist(call, patience_s=60, note=lambda _text: None)
    assert len(calls) == 1
    assert not is_passing(exc.IntegrityError("INSERT", {}, Exception("twice")))
    assert not is_passing(wrapped(exc.IntegrityError("INSERT", {}, Exception("twice"))))
    assert is_passing(exc.DBAPIError("SELECT", {}, Exception("gone"), connection_invalidated=True))


@pytest.mark.usefixtures("quick")
def test_a_repeated_call_that_was_written_the_first_time_is_done() -> None:
    errors: list[Exception] = [operational("connection lost"), exc.IntegrityError("INSERT", {}, Exception("twice"))]

    def call() -> None:
        raise errors.pop(0)

    assert insist(call, patience_s=60, note=lambda _text: None) is None
    with pytest.raises(exc.IntegrityError):
        insist(
            lambda: (_ for _ in ()).throw(exc.IntegrityError("INSERT", {}, Exception("x"))), patience_s=60, note=print
        )


def test_pauses_grow_and_stay_short() -> None:
    first = [pause for pause, _ in zip(pauses(), range(12), strict=False)]
    assert first[:3] == [0.2, 0.4, 0.8]
    assert first[-1] == 10.0


def test_a_worker_waits_for_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SQLITE_PATIENCE_S", 0.1)
    url = f"sqlite:///{tmp_path}/study.db"
    opened = create_in(storage.open_storage(url, create=True), DEFINITION)
    storage.be_patient(opened, 60)
    listener = SilentListener()
    opened._storage.note = listener.note
    with locked(tmp_path / "study.db", seconds=4):
        assert work(opened, evaluation_of, listener)
    assert len(study.read(opened).complete) == DEFINITION.engine.trials
    assert any("database is locked" in note for note in listener.notes)


def test_a_launcher_waits_for_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SQLITE_PATIENCE_S", 0.1)
    place = Place(f"sqlite:///{tmp_path}/study.db")
    opened = create_in(storage.open_storage(place.storage, create=True), DEFINITION)
    console = Console(width=200, file=io.StringIO())
    more = DEFINITION.model_copy(update={"engine": DEFINITION.engine.model_copy(update={"trials": 99})})
    with locked(tmp_path / "study.db", seconds=4):
        _take_over_total(more, place, console, may_lower=True)
    assert study.stored(opened).definition.engine.trials == 99
    assert "the study database does not answer (database is locked)" in console.file.getvalue()


def test_a_command_says_in_a_sentence_that_the_database_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "SQLITE_PATIENCE_S", 0.1)
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), DEFINITION)
    with locked(tmp_path / "study.db"), pytest.raises(SystemExit) as end:
        guarded(lambda: opened.set_user_attr("mine", 1))
    assert end.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err.startswith("error: the study database does not answer (database is locked)")
    monkeypatch.setenv(WORKER_VARIABLE, "0")  # whose launcher starts it again
    with locked(tmp_path / "study.db"), pytest.raises(StorageInternalError):
        guarded(lambda: opened.set_user_attr("mine", 1))


def test_commands_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SQLITE_PATIENCE_S", 0.1)
    url = f"sqlite:///{tmp_path}/study.db"
    opened = create_in(storage.open_storage(url, create=True), DEFINITION)
    with locked(tmp_path / "study.db"):
        start = time.monotonic()
        with pytest.raises(StorageInternalError):
            opened.set_user_attr("mine", 1)
        assert time.monotonic() - start < 5


def test_a_server_that_is_not_there_is_waited_for_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(storage, "SILENT_S", 0.0)
    notes: list[str] = []
    url = "postgresql+psycopg://me:hidden-word@127.0.0.1:9/db"
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached") as failure:
        storage.open_storage(url, create=False, patience_s=5, note=notes.append)
    assert 1 < time.monotonic() - start < 30
    assert len(notes) == 1
    assert "hidden-word" not in f"{failure.value}{notes}"


@pytest.mark.parametrize(
    "content", [b"one line", b"two\nlines\n", b'{"a": 1}\n{"a": 2}\n', b"SQLite format 3\0\xff\n\n\n"]
)
@pytest.mark.parametrize("create", [False, True])
def test_a_file_of_another_kind_is_no_journal_and_stays_as_it_is(content: bytes, create: bool, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"notes.txt' cannot be used \(it is a file of another kind\); name the study's"
    ):
        storage.open_storage(f"journal:///{file}", create=create, patience_s=60)
    assert file.read_bytes() == content


def test_a_journal_with_a_broken_line_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    create_in(storage.open_storage(f"journal:///{file}", create=True), DEFINITION)
    whole = file.read_bytes()
    file.write_bytes(b'{"op_code":0,"work' + whole)
    with pytest.raises(UserError, match=r"study.journal' cannot be used \(Expecting"):
        storage.open_storage(f"journal:///{file}", create=False)


def test_a_database_of_another_optuna_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    storage.close(storage.open_storage(url, create=True))
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0'")
    connection.close()
    with pytest.raises(UserError, match=r"cannot be used \(The runtime optuna version .* or open it with the version"):
        storage.open_storage(url, create=False, patience_s=60)


def test_every_call_of_optunas_interfaces_is_passed_on(tmp_path: Path) -> None:
    opened = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    own = {name for kind in type(opened).__mro__[:2] for name in vars(kind)}
    for base in (optuna.storages.BaseStorage, optuna.storages._heartbeat.BaseHeartbeat):
        public = {name for name, member in vars(base).items() if callable(member) and not name.startswith("_")}
        assert public <= own
    assert optuna.storages._heartbeat.is_heartbeat_enabled(opened)
