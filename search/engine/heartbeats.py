"""Noticing dead workers, on every storage.

Optuna's heartbeats exist for databases only, and there they miss a worker that died between taking a trial and its
first sign of life. Journal files and the gRPC proxy have none at all. Here each of them has Optuna's interface, so that
Optuna's own loop sends the signs of life and finds the trials whose signs have stopped.

    database  table of heartbeats, judged by the database's clock and confirmed by a Watch (see database.py)
    journal   an attribute of the trial that changes with each sign of life, judged by a Watch
    proxy     the same attribute, which `paretobert proxy` turns into a heartbeat of its database (search.engine.proxy);
              there the dead are found too, so that workers with and without the proxy share a study

A Watch needs no clocks that agree: it notes when *it* last saw a sign change.
"""

import io
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from optuna.storages import GrpcStorageProxy, JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import TrialState

from search.engine.retry import hand_back

HEARTBEAT_S = 10
"""Seconds between two signs of life of a running trial."""

GRACE_S = 60
"""Seconds without a sign of life after which a trial's worker counts as dead."""

CONFIRM_S = 18
"""Seconds for which this process itself must have seen no new sign, whatever the database's clock says: after it was
away for a while, the signs of the living are old as well, and their next ones are due within `HEARTBEAT_S`."""

KEEPALIVE = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
"""Options of a gRPC connection that notices that its other end is gone."""

LONGEST_GAP_S = 50.0
"""Seconds between two looks after which a Watch begins anew."""

SIGN = "sign of life"
"""System attribute of a running trial that stands for a heartbeat on storages that know none."""

FIRST_BYTES = b'{"op_code":'
"""What a journal file begins with, unless it is empty."""


class Watch:
    """Says whose sign of life has not changed for how long, by the clock of this process alone.

    It counts unbroken looks only: while this process could not look, the others could not give signs either.

    Args:
        clock: Seconds from any moment; it must not jump.

    Example:
        >>> now = 0.0
        >>> watch = Watch(clock=lambda: now)
        >>> watch.unchanged_s({7: "a"})
        {7: 0.0}
        >>> now = 20.0
        >>> watch.unchanged_s({7: "a", 8: "a"})
        {7: 20.0, 8: 0.0}
        >>> now = 40.0
        >>> watch.unchanged_s({7: "b", 8: "a"})
        {7: 0.0, 8: 20.0}
        >>> now = 400.0
        >>> watch.unchanged_s({7: "b", 8: "a"})
        {7: 0.0, 8: 0.0}
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, tuple[Hashable, float]] = {}
        self._looked = -LONGEST_GAP_S

    def unchanged_s(self, signs: Mapping[int, Hashable]) -> dict[int, float]:
        """Seconds for which each sign has been seen as it is.

        Args:
            signs: The sign of life of everything that should be alive, by key. What is left out is forgotten.
        """
        now = self._clock()
        known = self._seen if now - self._looked <= LONGEST_GAP_S else {}
        self._looked = now
        self._seen = {
            key: known[key] if key in known and known[key][0] == sign else (sign, now) for key, sign in signs.items()
        }
        return {key: now - since for key, (_, since) in self._seen.items()}


class _Signs(BaseHeartbeat):
    """Optuna's heartbeat interface on a storage that has none."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Change the trial's sign of life."""
        self.set_trial_system_attr(trial_id, SIGN, uuid.uuid4().hex[:8])  # type: ignore[attr-defined]

    def get_heartbeat_interval(self) -> int | None:
        """Seconds between two signs of life."""
        return HEARTBEAT_S

    def get_heartbeat_stale_trial_callback(self) -> Callable[..., None] | None:
        """What is done with a trial whose worker is dead."""
        return hand_back


class _Lock(BaseJournalFileLock):
    """The lock of who appends. The system releases it when its holder dies; Optuna's own stays for half a minute."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = FileLock(f"{file}.writing", poll_interval=0.005)

    def acquire(self) -> bool:
        """Wait for the lock, and take away what a write that was cut short (a full disk, say) left of its line."""
        self._lock.acquire()
        try:
            with suppress(FileNotFoundError):
                _cut_to_whole_lines(self._file)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


def _cut_to_whole_lines(file: Path) -> None:
    """Cut a file behind its last newline: what is appended to half a line is lost, and then the whole file."""
    with file.open("r+b") as opened:
        if opened.seek(0, io.SEEK_END) == 0:
            return
        opened.seek(-1, io.SEEK_END)
        if opened.read() != b"\n":
            opened.truncate(file.read_bytes().rfind(b"\n") + 1)


class Journal(_Signs, JournalStorage):
    """A journal file with heartbeats.

    Raises:
        ValueError: If the file is no journal.
    """

    def __init__(self, file: Path) -> None:
        if file.exists():  # before anything is appended to it, or cut off
            with file.open("rb") as opened:
                if not FIRST_BYTES.startswith(opened.read(len(FIRST_BYTES))):
                    raise ValueError("it is a file of another kind")
        self._watches: dict[int, Watch] = defaultdict(Watch)
        self._own: set[int] = set()
        super().__init__(JournalFileBackend(str(file), lock_obj=_Lock(file)))

    def record_heartbeat(self, trial_id: int) -> None:
        """Change the sign of life of a trial that this process runs."""
        self._own.add(trial_id)
        super().record_heartbeat(trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        signs = {trial._trial_id: trial.system_attrs.get(SIGN) for trial in running}
        unchanged = self._watches[study_id].unchanged_s(signs)
        return [trial_id for trial_id, seconds in unchanged.items() if seconds > GRACE_S and trial_id not in self._own]


class Proxy(_Signs, GrpcStorageProxy):
    """A connection to `paretobert proxy`, with heartbeats: Optuna's proxy passes none on.

    A proxy whose machine vanished is noticed within a minute; Optuna's own channel would wait for its answer for ever.
    """

    def _setup(self) -> None:
        super()._setup()
        self._channel.close()
        import grpc
        from optuna.storages._grpc.auto_generated import api_pb2_grpc
        from optuna.storages._grpc.client import GrpcClientCache

        options = [("grpc.max_receive_message_length", -1), *KEEPALIVE]
        self._channel = grpc.insecure_channel(f"{self._host}:{self._port}", options=options)
        self._stub = api_pb2_grpc.StorageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._cache = GrpcClientCache(self._stub)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:  # noqa: ARG002 - the dead are found by the proxy itself
        return []
