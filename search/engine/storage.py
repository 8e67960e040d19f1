"""Opening the study database, with the traps of Optuna 5 closed.

    sqlite:///PATH                      one machine
    postgresql+psycopg://USER@HOST/DB   many machines (extra postgres)
    journal:///PATH                     Optuna's journal file
    grpc://HOST:PORT                    `paretobert proxy` in front of a database (extra proxy)

- SQLite hands one waiting trial to two workers, and gives up when it is locked: write-ahead log, immediate transactions
  and patience close both.
- A worker that dies leaves its trial running: `search.engine.heartbeats` finds it on each of these storages, and
  `search.engine.retry` puts its plan back.
- A database that does not answer for a while is waited for: `search.engine.patience`.
- A password in a URL never shows: `shown` is what messages print.
"""

import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, get_storage
from optuna.study import Study
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from search import folders
from search.engine.database import READING, Database
from search.engine.heartbeats import Journal, Proxy
from search.engine.patience import SILENT_S, PatientStorage, pauses, reason
from search.errors import UserError

SQLITE_PATIENCE_S = 20
"""Seconds that SQLite itself waits for another process's transaction, before our patience begins."""

PROXY_PORT = 13000
"""Port of `paretobert proxy`, where none is given."""

TABLE = "study_directions"
"""A table that every database of Optuna's has."""

TABLES_S = 30.0
"""Seconds that an empty database is looked at again while another process makes its tables."""

FORMS = "sqlite:///PATH, postgresql+psycopg://USER@HOST/NAME, journal:///PATH or grpc://HOST:PORT"

POSTGRES: dict[str, Any] = {
    # A worker talks to the database for milliseconds between minutes of training: one connection is kept, tested before
    # it is used and replaced after half an hour; what heartbeats need beside it is closed at once.
    "pool_size": 1,
    "max_overflow": 4,
    "pool_pre_ping": True,
    "pool_recycle": 1800,
    "connect_args": {
        "connect_timeout": 10,
        # Who is gone is noticed within half a minute, on both ends: a worker that vanished must not hold locks.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 "
        "-c idle_in_transaction_session_timeout=60s -c lock_timeout=60s",
    },
}
"""Connection settings for a database that many machines share."""


class NoStudiesError(UserError):
    """A database holds no tables of Optuna's: it is somebody else's, or a new one."""


def shown(url: str) -> str:
    """The URL with its passwords hidden, for messages and logs; nothing of it where it cannot be read."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: what stands where the port belongs may be the password
        return "(not a database URL)"
    hidden = {key: "hidden" for key in parsed.query if "pass" in key.lower()}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def open_storage(
    url: str,
    *,
    create: bool,
    patience_s: float = 0.0,
    answered_s: float = 0.0,
    note: Callable[[str], None] = lambda _text: None,
) -> Any:
    """Open the study database.

    Args:
        url: What it is and where; see above.
        create: Whether a file, its folder and tables are made where they do not exist.
        patience_s: Seconds that the database is waited for, now and in every later call; 0 gives up at once.
        answered_s: Seconds that it is waited for in every later call, where that is longer: a database that could be
            opened is the right one, and comes back.
        note: Told when it does not answer and when it answers again.

    Returns:
        An Optuna storage with heartbeats, safe for several workers.

    Raises:
        NoStudiesError: If a database is there that never held studies, and nothing is to be made.
        UserError: If the URL is not one, its driver is not installed, or the database cannot be reached or written.
    """
    parsed = _parsed(url)
    file = _file(parsed)
    if file is not None:
        _check_file(file, url, create=create)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start, told = time.monotonic(), False
    for pause in pauses():
        try:
            # Workers that start together must not make the tables twice; on a server, who is refused looks again.
            with FileLock(f"{file}.lock") if file is not None and create else nullcontext():
                if not create:
                    _check_tables(parsed)
                storage = PatientStorage(_opened(parsed, file), patience_s=max(patience_s, answered_s))
            break
        except ImportError as error:
            raise UserError(_missing_driver(url, error)) from None
        except (SQLAlchemyError, StorageInternalError, ConnectionError) as error:
            made_twice = isinstance(error, IntegrityError) or "already exists" in reason(error)
            if time.monotonic() - start + pause > (max(patience_s, TABLES_S) if made_twice else patience_s):
                raise UserError(
                    f"the storage '{shown(url)}' cannot be reached ({reason(error)}); check that it runs and that the "
                    "URL is right"
                ) from None
            if not told and time.monotonic() - start >= SILENT_S:
                told = True
                note(f"the storage '{shown(url)}' cannot be reached ({reason(error)}); trying again")
            time.sleep(pause)
        except (RuntimeError, ValueError, OSError) as error:  # another Optuna's tables, another kind of file
            raise UserError(
                f"the storage '{shown(url)}' cannot be used ({reason(error)}); name the study's database with "
                "--storage, or open it with the version that made it"
            ) from None
    storage.note = note
    return storage


def _check_tables(url: URL) -> None:
    """Refuse a database that never held studies: Optuna would make its tables there."""
    if url.get_backend_name() in ("journal", "grpc"):
        return
    connect = POSTGRES["connect_args"] if url.get_backend_name() == "postgresql" else {}
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=connect)
    if not sqlalchemy.inspect(engine).has_table(TABLE):
        raise NoStudiesError(
            f"the storage '{shown(url.render_as_string(hide_password=False))}' holds no studies; name the study's "
            "database with --storage, or start the study with its script"
        )


def _opened(url: URL, file: Path | None) -> BaseStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match url.get_backend_name():
            case "grpc":
                proxy = Proxy(host=url.host or "127.0.0.1", port=url.port or PROXY_PORT)
                proxy.wait_server_ready(timeout=10)
                return proxy
            case "journal" if file is not None:
                return Journal(file)
            case "sqlite":
                database = Database(
                    url.render_as_string(hide_password=False),
                    engine_kwargs={"connect_args": {"timeout": SQLITE_PATIENCE_S}},
                )
                _make_safe(database.engine)
            case "postgresql":
                database = Database(url.render_as_string(hide_password=False), engine_kwargs=POSTGRES)
            case _:
                database = Database(url.render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})
    return get_storage(database)


def existing(url: str, name: str, **patience: Any) -> Study | None:
    """The study of that name, where the database and the study exist; nothing is written.

    Args:
        url: What the database is and where.
        name: Name of the study.
        **patience: `patience_s`, `answered_s` and `note` of `open_storage`.

    Raises:
        UserError: If the database cannot be reached, or its file could not be made.
    """
    file = _file(_parsed(url))
    if file is not None and not file.exists():
        try:
            folders.check_writable(file.absolute().parent)
        except OSError as error:
            raise UserError(
                f"the storage '{shown(url)}' cannot be made ({error.strerror}); name another with --storage"
            ) from None
        return None
    try:
        storage = open_storage(url, create=False, **patience)
    except NoStudiesError:
        return None
    if name not in optuna.get_all_study_names(storage):
        close(storage)
        return None
    return optuna.load_study(study_name=name, storage=storage)


def be_patient(study: Study, patience_s: float) -> None:
    """Let every later call of a study's storage be repeated for so many seconds."""
    storage: Any = study._storage
    storage.patience_s = patience_s


def absolute(url: str) -> str:
    """The URL with the path of its file, if it is one, from the root: it means the same in any folder."""
    parsed = _parsed(url)
    file = _file(parsed)
    if file is None:
        return url
    return parsed.set(database=str(file.absolute())).render_as_string(hide_password=False)


def engine_of(storage: Any) -> sqlalchemy.Engine | None:
    """The SQLAlchemy engine of a database that `open_storage` opened; None for other storages."""
    database = getattr(storage.inner, "_backend", None)
    return database.engine if isinstance(database, Database) else None


def close(storage: Any) -> None:
    """Close the storage's connections; a database opens new ones when it is used again."""
    storage.remove_session()
    engine = engine_of(storage)
    if engine is not None:
        engine.dispose()
    if isinstance(storage.inner, Proxy):
        storage.inner.close()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        if parsed.drivername not in ("journal", "grpc"):
            parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise UserError(f"the storage '{shown(url)}' is not a database URL; write {FORMS}") from None
    except ImportError as error:
        raise UserError(_missing_driver(url, error)) from None
    if parsed.get_backend_name() in ("sqlite", "journal") and parsed.database in (None, "", ":memory:"):
        raise UserError(f"the storage '{shown(url)}' lies in memory and would be lost; write sqlite:///PATH")
    return parsed


def _missing_driver(url: str, error: ImportError) -> str:
    known = {"grpc": 'for a proxy: pip install "paretobert[proxy]"', "post": 'pip install "paretobert[postgres]"'}
    what = known.get(url[:4], "install it with pip, or take PostgreSQL or SQLite")
    return f"the storage '{shown(url)}' needs a database driver that is not installed ({error.name or error}); {what}"


def _file(url: URL) -> Path | None:
    """The file of a database that is one; None for servers."""
    return Path(url.database) if url.get_backend_name() in ("sqlite", "journal") and url.database else None


def _check_file(file: Path, url: str, *, create: bool) -> None:
    if not create:
        if not file.is_file():
            raise UserError(
                f"the storage '{shown(url)}' does not exist; name the study's database with --storage, "
                "or start the study with its script"
            )
        if url.startswith("sqlite") and not (os.access(file, os.W_OK) and os.access(file.absolute().parent, os.W_OK)):
            raise UserError(
                f"the storage '{shown(url)}' may not be written, which SQLite needs even to read it; copy {file.name}, "
                f"and {file.name}-wal if it is there, to a folder of your own, and name the copy with --storage"
            )
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder '{file.parent}' of the storage cannot be made ({error.strerror}); name another with --storage"
        ) from None


def _make_safe(engine: sqlalchemy.Engine) -> None:
    """Write-ahead log, and transactions that take the write lock when they begin, if they are going to write."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def _connect(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # SQLAlchemy, not sqlite3, begins transactions
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection) -> None:  # type: ignore[no-untyped-def]
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(READING) else "BEGIN IMMEDIATE")

    engine.dispose()  # connections that were opened before the settings
