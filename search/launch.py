"""One process per device: starting the workers of a study, watching over them, and ending them.

    launch ──► worker 0 ──ready──► worker 1, worker 2, ...        each: COMMAND --devices DEVICE
                  │
                  ├─ ends with 0      the study is complete
                  ├─ ends with 130    it was interrupted
                  ├─ ends with 2      its sentence is shown, the others finish their trials
                  └─ anything else    it starts again after 1, 2, 4 ... 60 s; the sixth time in a row that it ends by
                                      an error of its own is its last, and so is the thirtieth that it is killed

Ctrl-C once: every worker finishes its trial. Twice, or a request to terminate: the trials are handed back. A launcher
that is killed takes its workers with it, since their standard input ends (`search.events.stop_with_parent`).
"""

import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from search.child import USER_ERROR, Child, Stream
from search.devices import Device
from search.devices import environment as share_of_cores
from search.errors import UserError
from search.events import WORKER_VARIABLE, Event, Finished, Note, read
from search.signals import handled

COMPLETE = 0
DIED = 1
INTERRUPTED = 130

DEATHS_IN_A_ROW = 6
"""Deaths by an error of its own, without a complete trial between them, after which a worker is given up."""

KILLS_IN_A_ROW = 30
"""Deaths of any kind after which it is: who kills it, or takes its memory, may let it live again (half an hour)."""

KILLED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
"""Exit codes of a worker that was ended from outside."""

TICK_S = 0.1
"""Seconds at most between two looks at the workers."""

OUTPUT = {"PYTHONIOENCODING": "utf-8:backslashreplace", "PYTHONFAULTHANDLER": "1"}
"""Environment variables that make what a worker writes readable, and make it say where a crash happened."""

Ending = Literal["complete", "interrupted", "error", "died", "given up"]
"""How a worker's process ended: only one that died is started again."""


class Watcher(Protocol):
    """Is told what the workers do."""

    def started(self, worker: str) -> None:
        """A worker's process was started, for the first time or again."""
        ...

    def told(self, worker: str, event: Event) -> None:
        """A worker told something."""
        ...

    def printed(self, worker: str, text: str) -> None:
        """Code in a worker printed a line."""
        ...

    def ended(self, worker: str, ending: Ending, reason: str, again_s: float | None) -> None:
        """A worker ended, for this reason; it starts again in so many seconds, or never."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know."""
        ...

    def tick(self) -> None:
        """Time has passed."""
        ...


@dataclass(frozen=True)
class Pace:
    """How patient a launcher is.

    Attributes:
        ready_s: Seconds between two questions whether the other workers may start.
        first_wait_s: Seconds before a worker that died starts again; they double with each death in a row.
        longest_wait_s: Seconds that this wait never exceeds.
        stop_s: Seconds that a worker has to hand its trial back before it is killed.
    """

    ready_s: float = 1.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    stop_s: float = 20.0


def launch(
    command: Sequence[str],
    devices: Sequence[Device],
    *,
    environment: Mapping[str, str],
    view: Watcher,
    logs: Path,
    ready: Callable[[], bool] | None = None,
    pace: Pace | None = None,
) -> int:
    """Run one worker process per device until all have ended.

    Call it in the main thread: signals reach no other one, and nothing stops the workers then but their end.

    Args:
        command: Program and arguments of a worker, without secrets: other users of the machine can read them. Each
            worker gets `--devices` and the name of its device after them.
        devices: One per worker; their places, from 0, are the workers' names.
        environment: Environment variables of the workers beside this process's own. Passwords belong here; they are
            hidden in what is shown and logged.
        view: Is told what the workers do.
        logs: Folder of the files `worker-0.log` and so on, to which the workers' standard error is appended.
        ready: Whether the other workers may start beside the first one, because the study exists say. Asked in the
            launcher's loop, so it shall answer at once and raise nothing. None starts all workers together.
        pace: How patient to be.

    Returns:
        0 if the study is complete, 2 if a worker could not use what the user gave, 130 after an interruption, 1 if all
        workers were given up.

    Raises:
        UserError: If this system or the folder of the logs cannot be used; no worker has been started then.
    """
    if os.name != "posix":
        raise UserError(
            f"--devices names {len(devices)} devices; one command for several devices needs Linux or macOS: start the "
            "command once for each device"
        )
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder '{logs}' of the workers' logs cannot be made ({error.strerror}); start where you can write"
        ) from None
    workers = [
        _Worker(
            name=str(number),
            command=(*command, "--devices", device.name),
            environment={
                **os.environ,
                **OUTPUT,
                **environment,
                **share_of_cores(device, len(devices)),
                WORKER_VARIABLE: str(number),
            },
            log=logs / f"worker-{number}.log",
        )
        for number, device in enumerate(devices)
    ]
    launcher = _Launcher(workers, view, ready, pace or Pace())
    with launcher.listening():
        return launcher.run()


class _Request(IntEnum):
    """What the workers are asked for."""

    WORK = 0
    DRAIN = 1
    STOP = 2


SENTENCES = {
    _Request.DRAIN: "each worker finishes its trial and stops; press Ctrl-C again to hand the trials back and stop now",
    _Request.STOP: "the workers hand their trials back and stop",
}


@dataclass
class _Worker:
    """One device's worker. Mutable: it is the state of the loop."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: Child | None = None
    start_at: float | None = None
    """When to start, by the monotonic clock; None while it waits for the first worker."""
    deaths: int = 0
    """How often in a row it died."""
    errors: int = 0
    """How often of these by an error of its own."""
    ending: Ending | None = None
    """How it ended for good."""


class _Launcher:
    """The loop of a launcher."""

    def __init__(self, workers: Sequence[_Worker], view: Watcher, ready: Callable[[], bool] | None, pace: Pace) -> None:
        self._workers = workers
        self._view = view
        self._ready = ready
        self._pace = pace
        self._ask_at = 0.0
        self._wanted = self._request = _Request.WORK
        self._kill_at: float | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Start the workers, watch them until all have ended, and say how that was."""
        try:
            self._workers[0].start_at = 0.0
            while any(worker.ending is None for worker in self._workers):
                self._admit_others()
                self._obey()
                self._start_due()
                for key, _ in self._selector.select(TICK_S):
                    self._read(*key.data)
                self._bury()
                self._view.tick()
        finally:
            self._end_all()
            self._selector.close()
        return self._code()

    def listening(self) -> AbstractContextManager[None]:
        """Take up the requests of a person."""

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            self._wanted = _Request(min(self._wanted + 1, _Request.STOP))

        def terminate(_number: int, _frame: FrameType | None) -> None:
            self._wanted = _Request.STOP

        return handled({signal.SIGINT: interrupt, signal.SIGTERM: terminate})

    def _admit_others(self) -> None:
        """Let the other workers start once the first one has made the study, or has ended."""
        first, *others = self._workers
        waiting = [worker for worker in others if worker.start_at is None and worker.ending is None]
        if not waiting or self._request > _Request.WORK:
            return
        now = time.perf_counter()
        if self._ready is not None and first.ending is None:
            if now < self._ask_at:
                return
            self._ask_at = now + self._pace.ready_s
            if not self._ready():
                return
        for worker in waiting:
            worker.start_at = now

    def _obey(self) -> None:
        """Pass on what was asked for. Workers that are not running then, or once all is done, never start again."""
        if self._wanted > self._request:
            self._request = self._wanted
            if self._request == _Request.STOP:
                self._kill_at = time.perf_counter() + self._pace.stop_s
            for process in self._running():
                process.signal(signal.SIGINT if self._request == _Request.DRAIN else signal.SIGTERM)
            if self._running():
                self._view.note(SENTENCES[self._request])
        if self._kill_at is not None and time.perf_counter() > self._kill_at:
            for process in self._running():
                process.kill()
        complete = any(worker.ending == "complete" for worker in self._workers)
        if complete or self._request > _Request.WORK:
            for worker in self._workers:
                if worker.process is None and worker.ending is None:
                    self._end(worker, "complete" if complete else "interrupted", "")

    def _running(self) -> list[Child]:
        return [worker.process for worker in self._workers if worker.process is not None]

    def _start_due(self) -> None:
        now = time.perf_counter()
        for worker in self._workers:
            if worker.ending is None and worker.process is None and worker.start_at is not None:
                if now < worker.start_at:
                    continue
                worker.process = Child(worker.command, worker.environment, worker.log)
                for stream in worker.process.streams:
                    self._selector.register(stream.pipe, selectors.EVENT_READ, (worker, worker.process, stream))
                self._view.started(worker.name)

    def _read(self, worker: _Worker, process: Child, stream: Stream) -> None:
        """Take in what a worker wrote."""
        for line in stream.read():
            if stream.is_error:
                process.log(line)
            else:
                self._take(worker, process, line)
        if stream.at_end:
            self._selector.unregister(stream.pipe)

    def _take(self, worker: _Worker, process: Child, line: str) -> None:
        """Tell the view about a line of a worker's standard output."""
        match read(line):
            case None:
                self._view.printed(worker.name, process.hide(line))
            case Note() as note:
                self._view.told(worker.name, note.model_copy(update={"text": process.hide(note.text)}))
            case Finished() as finished:
                if finished.state == "complete":
                    worker.deaths = worker.errors = 0
                hidden = None if finished.failure is None else process.hide(finished.failure)
                self._view.told(worker.name, finished.model_copy(update={"failure": hidden}))
            case event:
                self._view.told(worker.name, event)

    def _bury(self) -> None:
        """Take leave of the processes that ended, and decide what becomes of their workers."""
        for worker in self._workers:
            process = worker.process
            if process is None or (code := process.code()) is None:
                continue
            for stream in process.streams:
                while not stream.at_end and stream.has_more():
                    self._read(worker, process, stream)
                if not stream.at_end:  # the worker's own children, perhaps, hold the other end
                    self._selector.unregister(stream.pipe)
            process.close()
            worker.process = None
            self._judge(worker, code, process)

    def _judge(self, worker: _Worker, code: int, process: Child) -> None:
        """Decide what becomes of a worker whose process ended."""
        if code == COMPLETE:
            self._end(worker, "complete", "")
        elif code == INTERRUPTED:
            self._end(worker, "interrupted", "")
        elif code == USER_ERROR:
            self._wanted = max(self._wanted, _Request.DRAIN)
            self._end(worker, "error", process.sentence())
        elif self._wanted > _Request.WORK:
            self._end(worker, "interrupted", self._why_stopped(code, process))
        else:
            worker.deaths += 1
            worker.errors += code not in KILLED
            if worker.errors >= DEATHS_IN_A_ROW or worker.deaths >= KILLS_IN_A_ROW:
                self._end(worker, "given up", f"{worker.deaths} deaths in a row; the last: {process.cause(code)}")
                return
            wait_s = min(self._pace.longest_wait_s, self._pace.first_wait_s * 2 ** (worker.deaths - 1))
            worker.start_at = time.perf_counter() + wait_s
            self._view.ended(worker.name, "died", process.cause(code), wait_s)

    def _why_stopped(self, code: int, process: Child) -> str:
        """What is worth saying of a process that ended after it was asked to: nothing, if it was asked for that."""
        if code in (-signal.SIGINT, -signal.SIGTERM):
            return ""
        if code == -signal.SIGKILL and self._kill_at is not None:
            return f"killed, because it did not stop within {self._pace.stop_s:g} s"
        return process.cause(code)

    def _end(self, worker: _Worker, ending: Ending, reason: str) -> None:
        worker.ending = ending
        self._view.ended(worker.name, ending, reason, None)

    def _end_all(self) -> None:
        """Leave no process behind, whatever happened."""
        running = self._running()
        for process in running:
            process.signal(signal.SIGTERM)
        deadline = time.perf_counter() + self._pace.stop_s
        while any(process.code() is None for process in running) and time.perf_counter() < deadline:
            time.sleep(TICK_S)
        for process in running:
            process.kill()
            process.close()

    def _code(self) -> int:
        endings = {worker.ending for worker in self._workers}
        if "error" in endings:
            return USER_ERROR
        if "complete" in endings:
            return COMPLETE
        return INTERRUPTED if "interrupted" in endings else DIED
