"""What a worker process tells, and that it does not outlive its launcher."""

import io
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from search.definition import Definition
from search.events import Ended, Finished, Known, Note, Reporter, Stage, read, worker_name
from search.listener import Listener
from search.plan import Shape
from search.progress import PREPARATION
from search.records import Record, StudyRecord

SHAPE = Shape(
    layers=1, heads=2, head_size=8, hidden=16, neurons=32, vocabulary=99, positions=16, token_types=2, labels=2
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(stream: io.StringIO) -> list:
    return [read(line) for line in stream.getvalue().splitlines() if line]


def test_every_event_is_read_as_it_was_told() -> None:
    stream = io.StringIO()
    reporter: Listener = Reporter(stream)
    quantities = {
        "accuracy": {"value": 0.5},
        "f1": {"value": 0.25},
        "macs": {"value": 7},
        "encoder_share": {"value": 0.125},
    }
    record = Record(3, "complete", values={"accuracy": 0.5}, quantities=quantities, role="ladder", feasible=False)
    reporter.stage(3, "recover", 1, 9)
    reporter.finished(record, 4, 12)
    reporter.finished(Record(4, "failed", failure="Zeile\nzwei — ü", values={"accuracy": math.inf}), 4, 12)
    reporter.note("one")
    definition = Definition(name="s", data="d")
    reporter.known(StudyRecord("s", definition, (), SHAPE, (record, Record(4, "running"))))
    assert isinstance(reporter, Reporter)
    reporter.preparing("tokens", 0, 2)
    reporter.ended(False)
    values = {"accuracy": 0.5, "f1": 0.25, "encoder_share": 0.125}
    assert told(stream) == [
        Stage(trial=3, name="recover", done=1, total=9),
        Finished(trial=3, state="complete", role="ladder", values=values, feasible=False, completed=4, total=12),
        Finished(
            trial=4,
            state="failed",
            role="search",
            values={"accuracy": math.inf},
            failure="Zeile\nzwei — ü",
            completed=4,
            total=12,
        ),
        Note(text="one"),
        Known(completed=1, total=definition.engine.trials),
        Stage(trial=PREPARATION, name="tokens", done=0, total=2),
        Ended(complete=False),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "epoch 3",
        "{}",
        '{"paretobert": 3}',
        '{"paretobert": "unheard of"}',
        '{"paretobert": "note"}',
        '{"paretobert": "note", "text": 3}',
        '{"paretobert": "note", "text": "a", "more": 1}',
        '["paretobert"]',
        '{"paretobert": "note", ',
    ],
)
def test_any_other_line_is_text(line: str) -> None:
    assert read(line) is None


def test_the_steps_of_a_stage_are_told_five_times_a_second_and_a_new_stage_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = Reporter(stream, clock=clock)
    for step in range(100):  # one second
        reporter.stage(1, "recover", step, 100)
        clock.now += 0.01
    assert 5 <= len(told(stream)) <= 6
    before = len(told(stream))
    reporter.stage(1, "score", 0, 1)
    reporter.stage(2, "score", 0, 1)
    reporter.stage(2, "score", 1, 1)
    assert [(event.trial, event.name, event.done) for event in told(stream)[before:]] == [
        (1, "score", 0),
        (2, "score", 0),
    ]


def test_half_a_line_that_was_printed_before_spoils_no_event() -> None:
    stream = io.StringIO("...")
    stream.seek(0, io.SEEK_END)
    Reporter(stream).note("a")
    assert told(stream) == [None, Note(text="a")]


def test_odd_characters_are_written_out() -> None:
    stream = io.StringIO()
    Reporter(stream).note("file \udcff")
    assert told(stream) == [Note(text="file \\udcff")]


def test_a_launcher_that_is_gone_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    reporter = Reporter(stream)
    reporter.note("a")
    reporter.finished(Record(1, "failed"), 0, 1)
    with pytest.raises(BrokenPipeError):
        stream.close()  # what was left in the buffer
    closed = io.StringIO()
    closed.close()
    Reporter(closed).note("a")


def test_a_process_knows_whether_a_launcher_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARETOBERT_WORKER", raising=False)
    assert worker_name() is None
    monkeypatch.setenv("PARETOBERT_WORKER", "0")
    assert worker_name() == "0"


def orphan(code: str) -> "tuple[int, float]":
    """Exit code, and seconds until the end, of a process whose standard input ends once it has said something."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    start = time.perf_counter()
    process.stdin.close()
    process.stdout.close()
    return process.wait(timeout=20), time.perf_counter() - start


def test_a_process_ends_with_its_launcher() -> None:
    code = (
        "from search.events import stop_with_parent; import time; stop_with_parent(); print('here', flush=True);"
        "time.sleep(60)"
    )
    assert orphan(code)[0] == -signal.SIGTERM


def test_it_may_first_hand_its_trial_back_and_print() -> None:
    code = (
        "from search.events import stop_with_parent; import signal, sys, time\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGTERM, stop); stop_with_parent()\n"
        "try: print('here', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: print('handed back', flush=True); sys.exit(130)\n"
    )
    assert orphan(code)[0] == 130


def test_one_that_does_not_end_is_killed() -> None:
    code = (
        "from search.events import stop_with_parent; import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); stop_with_parent(patience_s=0.5); print('here', flush=True)\n"
        "time.sleep(60)"
    )
    ended, seconds = orphan(code)
    assert ended == -signal.SIGKILL
    assert 0.4 < seconds < 10


def test_a_process_that_has_nothing_to_do_ends_although_its_launcher_is_there() -> None:
    code = "from search.events import stop_with_parent; stop_with_parent()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    with process.stdin, process.stderr:
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == b""
