"""Opening the study database, with the traps of Optuna 5 closed.

- SQLite hands one waiting trial to two workers, and gives up when it is locked: write-ahead log, immediate transactions
  and a minute's patience close both.
- A worker that dies leaves its trial running: heartbeats find it, and `search.engine.retry` puts its plan back.
- A password in a URL never shows: `shown` is what messages print.
"""

import warnings
from contextlib import nullcontext
from pathlib import Path

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from search import folders
from search.engine.retry import hand_back
from search.errors import UserError

HEARTBEAT_S = 10
"""Seconds between two signs of life of a running trial."""

GRACE_S = 60
"""Seconds without a sign of life after which a trial's worker counts as dead."""

SQLITE_PATIENCE_S = 60
"""Seconds that a worker waits for another worker's transaction."""


def shown(url: str) -> str:
    """The URL with its password hidden, for messages and logs."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(not a database URL)"


def open_storage(url: str, *, create: bool) -> RDBStorage:
    """Open the study database.

    Args:
        url: SQLAlchemy URL, for example `sqlite:///runs/quickstart/study.db` or `postgresql+psycopg://user@host/db`.
        create: Whether an SQLite file and its folder are made where they do not exist.

    Returns:
        The storage, with heartbeats and with the settings that make SQLite safe for several workers.

    Raises:
        UserError: If the URL is not one, its driver is not installed, or the database cannot be reached or written.
    """
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError):
        raise UserError(
            f"the storage '{shown(url)}' is not a database URL; write sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME"
        ) from None
    is_sqlite = parsed.get_backend_name() == "sqlite"
    file = _sqlite_file(url)
    if is_sqlite and (file is None or str(file) == ":memory:"):
        raise UserError(f"the storage '{shown(url)}' lies in memory and would be lost; write sqlite:///PATH")
    if file is not None:
        _check_file(file, url, create=create)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Workers that start together must not make the tables twice.
    making = FileLock(f"{file}.lock") if file is not None and create else nullcontext()
    try:
        with making, warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": SQLITE_PATIENCE_S}}
                if is_sqlite
                else {"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=hand_back,
            )
    except ImportError:
        raise UserError(
            f"the storage '{shown(url)}' needs a database driver that is not installed; "
            'for PostgreSQL: pip install "paretobert[postgres]"'
        ) from None
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise UserError(
            f"the storage '{shown(url)}' cannot be reached ({reason}); check that it runs and that the URL is right"
        ) from None
    if is_sqlite:
        _make_safe(storage.engine)
    return storage


def existing(url: str, name: str) -> Study | None:
    """The study of that name, where the database and the study exist; nothing is written.

    Args:
        url: SQLAlchemy URL.
        name: Name of the study.

    Raises:
        UserError: If the database cannot be reached, or its file could not be made.
    """
    file = _sqlite_file(url)
    if file is not None and not file.exists():
        try:
            folders.check_writable(file.absolute().parent)
        except OSError as error:
            raise UserError(
                f"the storage '{shown(url)}' cannot be made ({error.strerror}); name another with --storage"
            ) from None
        return None
    storage = open_storage(url, create=False)
    if name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage)


def close(storage: RDBStorage) -> None:
    """Close the storage's connections; it opens new ones when it is used again."""
    storage.remove_session()
    storage.engine.dispose()


def _sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; None for other databases."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def _check_file(file: Path, url: str, *, create: bool) -> None:
    if not create:
        if not file.is_file():
            raise UserError(
                f"the storage '{shown(url)}' does not exist; name the study's database with --storage, "
                "or start the study with its script"
            )
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder '{file.parent}' of the storage cannot be made ({error.strerror}); name another with --storage"
        ) from None


def _make_safe(engine: sqlalchemy.Engine) -> None:
    """Write-ahead log, and transactions that take the write lock when they begin."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def _connect(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # SQLAlchemy, not sqlite3, begins transactions
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection) -> None:  # type: ignore[no-untyped-def]
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that were opened before the settings
