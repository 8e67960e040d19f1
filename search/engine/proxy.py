"""Optuna's gRPC storage proxy, for so many workers that the database could not hold their connections.

    workers ──grpc──► paretobert proxy ──SQL──► database

Optuna's proxy passes no heartbeats on. Its clients' signs of life arrive as an attribute (`search.engine.heartbeats`),
and are written here as heartbeats of the database; the dead are looked for here, in all studies of this package. There
is no encryption and no login: who reaches the port can change the studies.
"""

import ipaddress
import socket
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import TrialState

from search.engine import attributes, housekeeping
from search.engine.database import Database
from search.engine.heartbeats import KEEPALIVE, SIGN
from search.engine.patience import PatientStorage, is_passing
from search.engine.storage import open_storage, shown
from search.errors import UserError

THREADS = 32
"""Calls that are answered at a time."""

OPTIONS = (
    ("grpc.so_reuseport", 0),
    *KEEPALIVE,
    # As often as the workers' connections do it.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)
"""Options of the server."""

PATIENCE_S = 3600.0
"""Seconds that the database is waited for, while the workers wait for the proxy."""


class _Translating(PatientStorage):  # type: ignore[misc]
    """A database behind a proxy: signs of life that arrive as attributes become its heartbeats."""

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute, or a heartbeat."""
        if key != SIGN:
            super().set_trial_system_attr(trial_id, key, value)
            return
        with suppress(UpdateFinishedTrialError):
            try:
                self.inner._backend.record_for_another(trial_id)
            except Exception as error:
                if not is_passing(error):
                    raise


def serve(
    url: str,
    *,
    host: str,
    port: int,
    listening: Callable[[int], None],
    note: Callable[[str], None],
    over: threading.Event,
) -> None:
    """Answer workers until told otherwise.

    Args:
        url: URL of the database.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        listening: Called with the port once workers can connect.
        note: Told what a person should know, from other threads too.
        over: Set it to end.

    Raises:
        UserError: If gRPC is not installed, the storage is not a database or cannot be reached, or the address is
            taken.
    """
    try:
        import grpc
        from optuna.storages._grpc.auto_generated import api_pb2_grpc
        from optuna.storages._grpc.servicer import OptunaStorageProxyService
    except ImportError as error:
        raise UserError(
            f'the proxy needs a package that is not installed ({error.name}); pip install "paretobert[proxy]"'
        ) from None
    patient = open_storage(url, create=True, patience_s=0.0)
    if not isinstance(getattr(patient.inner, "_backend", None), Database):
        raise UserError(
            f"the storage '{shown(url)}' is not a database; a proxy stands in front of postgresql+psycopg:// or sqlite://"
        )
    patient.inner._backend.gathers = False  # what a worker was told is written must survive the proxy
    storage = _Translating(patient.inner, patience_s=PATIENCE_S)
    storage.note = note
    # Optuna's own make_server ignores whether the port could be taken.
    server = grpc.server(ThreadPoolExecutor(max_workers=THREADS), options=OPTIONS)
    add_servicer: Callable[..., None] = api_pb2_grpc.add_StorageServiceServicer_to_server
    add_servicer(OptunaStorageProxyService(storage), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise UserError(
            f"the proxy cannot listen on {host}:{port}; name another address with --host and --port"
        ) from None
    server.start()
    if not is_private(host):
        note(f"{host} can be reached from outside; the proxy has no encryption and no login: put a firewall before it")
    listening(bound)
    try:
        while not over.wait(housekeeping.EVERY_S):
            _tidy(storage, note)
    finally:
        server.stop(grace=5).wait()


def is_private(host: str) -> bool:
    """Whether an address can be reached from this machine or a private network only.

    Args:
        host: Address, or name of a host.

    Example:
        >>> [is_private(host) for host in ("127.0.0.1", "10.0.0.5", "0.0.0.0", "8.8.8.8")]
        [True, True, False, False]
    """
    try:
        address = ipaddress.ip_address(socket.gethostbyname(host))
    except (OSError, ValueError):
        return False
    return address.is_private and not address.is_unspecified


def _tidy(storage: Any, note: Callable[[str], None]) -> None:
    """Look for dead workers in every study of ours that has running trials."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            for name in optuna.get_all_study_names(storage):
                study = optuna.load_study(study_name=name, storage=storage)
                if attributes.POPULATION not in study.user_attrs:
                    continue  # of somebody else, whose trials are none of our business; or not whole yet
                if study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL)):
                    housekeeping.tidy(study, note)
    except Exception as error:
        if not is_passing(error):
            note(f"the studies could not be kept in order: {type(error).__name__}: {error}")
