"""How a worker process tells its launcher what it does: lines of JSON on its standard output.

    {"paretobert": "stage", "trial": 7, "name": "recover", "done": 40, "total": 200}

Any other line is text that somebody's code printed. The other way there are signals, and the worker's standard input:
it ends when the launcher is gone, however that came about.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from search.definition import METRICS
from search.records import PREPARATION, Record, State, StudyRecord

WORKER_VARIABLE = "PARETOBERT_WORKER"
"""Environment variable that tells a process that a launcher started it: the worker's name, `0` say."""

STAGE_INTERVAL_S = 0.2
"""Seconds between two reports of one stage."""

PATIENCE_S = 90.0
"""Seconds that a worker has to hand its trial back after its launcher is gone."""

HEADLINE = (*METRICS, "encoder_share", "latency_ms")
"""Quantities that are told of a trial beside its objectives, where they were measured."""


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Stage(_Event):
    """A trial, or the preparation, is at this step of a stage.

    Attributes:
        trial: Number of the trial; `search.records.PREPARATION` stands for the preparation.
        name: Of the stage.
        done: Steps done.
        total: Steps in all.
    """

    kind: Literal["stage"] = Field("stage", alias="paretobert")
    trial: int
    name: str
    done: int
    total: int


class Known(_Event):
    """The worker is about to run trials of a study.

    Attributes:
        completed: Complete trials of the study.
        total: Trials that the study shall have.
    """

    kind: Literal["known"] = Field("known", alias="paretobert")
    completed: int
    total: int


class Finished(_Event):
    """A trial ended.

    Attributes:
        trial: Number of the trial.
        state: What became of it.
        role: `dense`, `ladder` or `search`.
        values: Objectives and `HEADLINE` quantities by name, as far as they were measured.
        feasible: Whether it keeps all constraints.
        answered_from: Number of the trial of the same plan whose record answered this one, else None.
        failure: Reason of a failed trial, else None.
        completed: Complete trials of the study.
        total: Trials that the study shall have.
    """

    kind: Literal["finished"] = Field("finished", alias="paretobert")
    trial: int
    state: State
    role: str
    values: dict[str, float]
    feasible: bool = True
    answered_from: int | None = None
    failure: str | None = None
    completed: int
    total: int


class Note(_Event):
    """Something a person should know.

    Attributes:
        text: One sentence.
    """

    kind: Literal["note"] = Field("note", alias="paretobert")
    text: str


class Ended(_Event):
    """The worker ends.

    Attributes:
        complete: Whether the study has all its trials; False after an interruption.
    """

    kind: Literal["ended"] = Field("ended", alias="paretobert")
    complete: bool


Event = Stage | Known | Finished | Note | Ended

_READER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def read(line: str) -> Event | None:
    """Read one line of a worker's output.

    Args:
        line: With or without its end of line.

    Returns:
        The event; None if the line is none, but text that was printed.
    """
    if '"paretobert"' not in line:
        return None
    try:
        return _READER.validate_json(line)
    except ValidationError:
        return None


def ended(record: Record, completed: int, total: int) -> Finished:
    """The event of a trial's end.

    Args:
        record: The trial.
        completed: Complete trials of the study.
        total: Trials that the study shall have.
    """
    measured = {name: float(record.quantities[name]["value"]) for name in HEADLINE if name in record.quantities}
    return Finished(
        trial=record.trial,
        state=record.state,
        role=record.role,
        values={**measured, **record.values},
        feasible=record.feasible,
        answered_from=record.answered_from,
        failure=None if record.failure is None else _clean(record.failure),
        completed=completed,
        total=total,
    )


def worker_name() -> str | None:
    """The name that a launcher gave to this process; None if no launcher started it."""
    return os.environ.get(WORKER_VARIABLE)


class Reporter:
    """Tells a launcher how the search goes on: the listener of a worker process.

    A launcher that is gone is no error: nothing is raised into a trial, and nothing more is written.

    Args:
        stream: Where the lines go; by default the standard output.
        clock: Seconds that only ever grow.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._stage: tuple[int, str] | None = None
        self._told_at = 0.0
        self._alone = False

    def preparing(self, name: str, done: int, total: int) -> None:
        """Tell the step of a stage of the preparation."""
        self.stage(PREPARATION, name, done, total)

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        """Tell the step of a trial's stage: each new stage at once, its steps every now and then."""
        now = self._clock()
        if (trial, name) == self._stage and now - self._told_at < STAGE_INTERVAL_S:
            return
        self._stage, self._told_at = (trial, name), now
        self._write(Stage(trial=trial, name=name, done=int(done), total=int(total)))

    def known(self, study: StudyRecord) -> None:
        """Tell what the study holds already."""
        self._write(Known(completed=len(study.complete), total=study.definition.engine.trials))

    def finished(self, record: Record, completed: int, total: int) -> None:
        """Tell what became of a trial."""
        self._write(ended(record, completed, total))

    def note(self, text: str) -> None:
        """Tell a sentence."""
        self._write(Note(text=_clean(text)))

    def ended(self, complete: bool) -> None:
        """Tell that the worker ends, and whether the study is complete."""
        self._write(Ended(complete=complete))

    def _write(self, event: Event) -> None:
        if self._alone:
            return
        try:
            # Somebody may have printed half a line before; the launcher passes over empty ones.
            self._stream.write(f"\n{event.model_dump_json(by_alias=True)}\n")
            self._stream.flush()
        except (OSError, ValueError):  # the launcher closed it, or this process did
            self._alone = True


def stop_with_parent(*, patience_s: float = PATIENCE_S) -> None:
    """End this process when its launcher is gone, even if that was killed: no worker stays behind on a device.

    A thread reads the standard input, whose other end the launcher holds open. At its end the process gets SIGTERM,
    upon which a worker hands its trial back. Call it once, in a process that a launcher started, after `take_cores`.

    Args:
        patience_s: Seconds after which the process is killed, should it still exist.
    """
    threading.Thread(target=_stop_at_end_of_input, args=(patience_s,), name="stop with parent", daemon=True).start()


def _stop_at_end_of_input(patience_s: float) -> None:
    # The file descriptor itself: a buffered reader that is blocked here would disturb the end of the interpreter.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    _discard_output()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _clean(text: str) -> str:
    """The text with what cannot be encoded, a file name's odd byte say, written out."""
    return text.encode(errors="backslashreplace").decode()


def _discard_output() -> None:
    """Send what is printed from now on nowhere: writing to a launcher that is gone would raise, in a trial even."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
