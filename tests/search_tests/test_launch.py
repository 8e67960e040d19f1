"""One process per device: how they start, die, start again and end. The workers are real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from search.child import hider
from search.devices import Device, available_cores, resolve
from search.errors import UserError
from search.events import Ended, Event, Finished, Note, Stage
from search.launch import DEATHS_IN_A_ROW, KILLS_IN_A_ROW, Pace, launch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")

FAST = Pace(ready_s=0.02, first_wait_s=0.02, longest_wait_s=0.1, stop_s=1.0)
PASSWORD = "s3cret-of-the-test"
URL = f"postgresql+psycopg://someone:{PASSWORD}@nowhere.invalid/studies"

BEGINNING = """
import json, os, signal, sys, time
from pathlib import Path
signal.alarm(60)  # whatever goes wrong
name, here = os.environ["PARETOBERT_WORKER"], Path(__file__).parent
(here / f"pid-{name}").write_text(str(os.getpid()))
def tell(kind, **fields):
    print(json.dumps({"paretobert": kind, **fields}), flush=True)
def note(text):
    tell("note", text=text)
def done(state="complete", failure=None):
    tell("finished", trial=7, state=state, role="search", values={}, failure=failure, completed=1, total=9)
def nth():
    "How often this worker has been started."
    with (here / f"starts-{name}").open("a") as file: file.write("x")
    return len((here / f"starts-{name}").read_text())
def drain_or_stop(drain_s=0.0):
    "What search.engine.worker makes of signals."
    asked = []
    signal.signal(signal.SIGINT, lambda *_: (asked.append(1), note("draining")))
    def stop(*_): note("handed back"); sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    note("working")
    while not asked: time.sleep(0.01)
    time.sleep(drain_s); done(); sys.exit(130)
"""
"""Starts in no time; what it writes is what `REAL` writes, which a test holds together."""

REAL = """
from search import devices, events
from search.records import Record
devices.take_cores()
events.stop_with_parent()
reporter = events.Reporter()
"""


class Recorder:
    """Remembers what it was told, as tuples of worker and what happened."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.events: list[tuple[str, Event]] = []
        self.waits: list[float] = []
        self.ticks = 0

    def started(self, worker: str) -> None:
        self.log.append((worker, "started"))

    def told(self, worker: str, event: Event) -> None:
        self.events.append((worker, event))

    def printed(self, worker: str, text: str) -> None:
        self.log.append((worker, "printed", text))

    def ended(self, worker: str, ending: str, reason: str, again_s: float | None) -> None:
        self.log.append((worker, ending, reason))
        if again_s is not None:
            self.waits.append(again_s)

    def note(self, text: str) -> None:
        self.log.append(("", "note", text))

    def tick(self) -> None:
        self.ticks += 1

    def of(self, what: str) -> list[tuple[str, ...]]:
        return [entry for entry in self.log if entry[1] == what]


def cores(number: int) -> list[Device]:
    return [Device("cpu", (available_cores()[0],)) for _ in range(number)]


@pytest.fixture
def run(tmp_path: Path):
    """Launches workers that run some code; returns the exit code and what the view was told."""

    def run(code: str, devices: Sequence[Device], *, pace: Pace = FAST, ready=None, **more: str):
        script = tmp_path / "worker.py"
        script.write_text(BEGINNING + code)
        recorder = Recorder()
        status = launch(
            [sys.executable, *([] if code.startswith(REAL) else ["-S"]), str(script)],
            devices,
            environment={"PARETOBERT_STORAGE": URL, **more},
            view=recorder,
            logs=tmp_path / "logs",
            ready=ready,
            pace=pace,
        )
        return status, recorder

    threads = threading.active_count()
    yield run
    assert not psutil.Process().children(recursive=True)
    assert threading.active_count() == threads


def test_the_first_worker_starts_alone_and_the_others_once_the_study_is_there(run, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def ready() -> bool:
        asked.append(sorted(path.name for path in tmp_path.glob("at-*")))
        return (tmp_path / "study").exists()

    code = """
(here / f"at-{name}").touch()
if name == "0": time.sleep(0.3); (here / "study").touch(); time.sleep(0.5)
assert (here / "study").exists()
tell("ended", complete=True)
"""
    status, told = run(code, cores(3), ready=ready)
    assert status == 0
    assert [entry[0] for entry in told.of("started")] == ["0", "1", "2"]
    assert len(asked) > 3
    assert all(names in ([], ["at-0"]) for names in asked)
    assert [(w, e) for w, e in told.events if isinstance(e, Ended)]
    assert {entry[:2] for entry in told.log if entry[1] != "started"} == {(str(n), "complete") for n in range(3)}


def test_no_other_worker_starts_once_the_first_one_has_completed_the_study(run) -> None:
    status, told = run("sys.exit(0)", cores(2), ready=lambda: False)
    assert status == 0
    assert told.log == [("0", "started"), ("0", "complete", ""), ("1", "complete", "")]


def test_the_others_start_when_the_first_device_is_given_up(run) -> None:
    code = "if name == '0': sys.exit(3)"
    status, told = run(code, cores(2), ready=lambda: False)
    assert status == 0
    assert ("1", "started") in told.log
    assert [entry[0] for entry in told.of("given up")] == ["0"]


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(available_cores()) < 2, reason="needs core affinity and two cores"
)
def test_cpu_workers_run_on_disjoint_cores(run, tmp_path: Path) -> None:
    code = f"""{REAL}
threads = int(os.environ["OMP_NUM_THREADS"])
found = {{"cores": sorted(os.sched_getaffinity(0)), "threads": threads, "argv": sys.argv[1:]}}
(here / ("found-" + name)).write_text(json.dumps(found))
"""
    devices = resolve("cpu:2")
    status, _told = run(code, devices)
    found = [json.loads((tmp_path / f"found-{name}").read_text()) for name in "01"]
    assert status == 0
    assert [tuple(one["cores"]) for one in found] == [device.cores for device in devices]
    assert not set(found[0]["cores"]) & set(found[1]["cores"])
    assert [one["threads"] for one in found] == [len(one["cores"]) for one in found]
    assert [one["argv"] for one in found] == [["--devices", "cpu"]] * 2


def test_what_workers_tell_and_print_reaches_the_view(run, tmp_path: Path) -> None:
    code = f"""{REAL}
print("unfinished", end="")
reporter.stage(7, "recover", 1, 9)
print("printed — ü")
sys.stderr.write("to the log\\rand more\\n")
reporter.finished(Record(7, "complete"), 1, 9)
print("last words", end="")
"""
    status, told = run(code, cores(1))
    assert status == 0
    assert [entry[2] for entry in told.of("printed")] == ["unfinished", "printed — ü", "last words"]
    assert [event for _, event in told.events] == [
        Stage(trial=7, name="recover", done=1, total=9),
        Finished(trial=7, state="complete", role="search", values={}, completed=1, total=9),
    ]
    first, *rest = (tmp_path / "logs" / "worker-0.log").read_text().splitlines()
    assert first.startswith("--- 2")
    assert first.endswith("--devices cpu")
    assert rest == ["to the log", "and more"]


def test_a_worker_that_was_killed_starts_again(run, tmp_path: Path) -> None:
    code = "if nth() == 1: os.kill(os.getpid(), signal.SIGKILL)"
    status, told = run(code, cores(1))
    assert status == 0
    assert [entry[1] for entry in told.log] == ["started", "died", "started", "complete"]
    assert "SIGKILL" in told.of("died")[0][2]
    assert (tmp_path / "logs" / "worker-0.log").read_text().count("--- ") == 2


def test_the_wait_doubles_and_a_device_is_given_up_after_six_deaths_in_a_row(run, tmp_path: Path) -> None:
    code = "sys.stderr.write(f'RuntimeError: start {nth()} failed\\n  for more, see\\n'); sys.exit(3)"
    status, told = run(code, cores(1))
    assert status == 1
    assert told.waits == [0.02, 0.04, 0.08, 0.1, 0.1]
    assert len(told.of("started")) == DEATHS_IN_A_ROW == 6
    assert told.of("given up")[0][2] == (
        "6 deaths in a row; the last: exit code 3: RuntimeError: start 6 failed; "
        f"see {tmp_path / 'logs' / 'worker-0.log'}"
    )


def test_a_worker_that_is_killed_again_and_again_is_not_given_up_so_soon(run) -> None:
    status, told = run("if nth() <= 9: os.kill(os.getpid(), signal.SIGKILL)", cores(1))
    assert status == 0
    assert len(told.of("died")) == 9 > DEATHS_IN_A_ROW
    status, told = run("os.kill(os.getpid(), signal.SIGKILL)", cores(1), pace=Pace(first_wait_s=0, longest_wait_s=0))
    assert status == 1
    assert len(told.of("started")) == KILLS_IN_A_ROW == 30


def test_a_finished_trial_ends_the_row_and_a_failed_one_does_not(run) -> None:
    code = "n = nth()\nif n == 9: sys.exit(0)\nif n % 3 == 0: done()\nos.abort()"
    status, told = run(code, cores(1))
    assert status == 0
    assert told.waits == [0.02, 0.04, 0.02, 0.04, 0.08, 0.02, 0.04, 0.08]
    assert "ended by SIGABRT" in told.of("died")[0][2]
    status, told = run("done('failed'); sys.exit(1)", cores(1))
    assert status == 1
    assert len(told.of("started")) == 6


def test_an_error_of_the_input_stops_all_with_its_sentence(run) -> None:
    code = """
if name == "0": drain_or_stop(0.2)
time.sleep(0.3)
sys.stderr.write("Some warning\\nerror: the data 'x.csv' has no column 'label';\\nname one\\n"); sys.exit(2)
"""
    status, told = run(code, cores(2))
    assert status == 2
    assert told.of("error") == [("1", "error", "the data 'x.csv' has no column 'label'; name one")]
    assert told.of("interrupted") == [("0", "interrupted", "")]
    assert [type(event) for worker, event in told.events if worker == "0"] == [Note, Note, Finished]
    assert len(told.of("started")) == 2


def test_an_error_of_the_first_worker_starts_no_other(run) -> None:
    status, told = run("sys.exit('error: no') if 0 else sys.exit(2)", cores(2), ready=lambda: False)
    assert status == 2
    assert [entry[0] for entry in told.of("started")] == ["0"]
    assert not told.of("note")


def test_a_worker_that_waits_to_start_again_does_not_once_the_study_is_complete(run) -> None:
    code = "if name == '1': sys.exit(3)\ntime.sleep(1)"
    status, told = run(code, cores(2), pace=Pace(first_wait_s=60))
    assert status == 0
    assert len(told.of("started")) == 2
    assert told.log[-1] == ("1", "complete", "")


def test_the_children_of_a_worker_that_died_are_ended_too(run, tmp_path: Path) -> None:
    code = """
if nth() == 1:
    import subprocess
    child = subprocess.Popen(["sleep", "60"]); (here / "child").write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(code, cores(1))[0] == 0
    assert is_gone(int((tmp_path / "child").read_text()))


def test_passwords_are_in_no_argument_and_shown_nowhere(run, tmp_path: Path) -> None:
    code = """
url = os.environ["PARETOBERT_STORAGE"]
(here / "has").write_text(url)
print(url); note(f"lost {url}"); done("failed", url)
time.sleep(0.3)
sys.stderr.write(f"error: cannot reach {url}\\n"); sys.exit(2)
"""
    arguments: list[str] = []

    def ready() -> bool:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                arguments.extend(child.cmdline())
        return False

    status, told = run(code, cores(2), ready=ready)
    assert status == 2
    assert (tmp_path / "has").read_text() == URL
    assert str(tmp_path / "worker.py") in arguments
    log = (tmp_path / "logs" / "worker-0.log").read_text()
    for text in (repr(arguments), repr(told.log), repr(told.events), log):
        assert PASSWORD not in text
    hidden = URL.replace(PASSWORD, "***")
    assert told.of("error")[0][2] == f"cannot reach {hidden}"
    assert hidden in repr(told.events)
    assert hidden in log


def test_short_passwords_are_hidden_where_they_can_only_be_one() -> None:
    hide = hider({"A": "postgresql://me:pg@host/db", "PGPASSWORD": "long p4ss", "B": "http://u:a%20long%2fone@x/"})
    assert hide("postgresql://me:pg@host/db pgbench") == "postgresql://me:***@host/db pgbench"
    assert hide("long p4ss, a long/one, a%20long%2fone") == "***, ***, ***"
    assert hider({"A": "sqlite:///runs/a.db"})("sqlite:///runs/a.db") == "sqlite:///runs/a.db"


def test_a_folder_that_cannot_be_made_is_an_error_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the folder '.*file/logs' of the workers' logs cannot be made"):
        launch(["true"], cores(1), environment={}, view=Recorder(), logs=tmp_path / "file" / "logs")


def test_an_error_of_the_view_leaves_no_worker_behind(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tick(_self: Recorder) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise ZeroDivisionError

    monkeypatch.setattr(Recorder, "tick", tick)
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); (here / 'pid').write_text(str(os.getpid())); time.sleep(60)"
    with pytest.raises(ZeroDivisionError):
        run(code, cores(1), pace=Pace(stop_s=0.3))
    assert is_gone(int((tmp_path / "pid").read_text()))


LAUNCHER = """
import sys
from pathlib import Path
from search.devices import Device
from search.launch import Pace, launch
here = Path(__file__).parent
class Printer:
    def started(self, worker): print("started", worker, flush=True)
    def told(self, worker, event): print(getattr(event, "text", event.kind), worker, flush=True)
    def printed(self, worker, text): print("printed", worker, text, flush=True)
    def ended(self, worker, ending, reason, again_s): print(ending, worker, reason, flush=True)
    def note(self, text): print("note", text, flush=True)
    def tick(self): pass
sys.exit(launch([sys.executable, str(here / "worker.py")], [Device("mps")] * 2, environment={}, view=Printer(),
                logs=here / "logs", pace=Pace(stop_s=1.0)))
"""


class Launched:
    """A launcher in a process of its own, with two workers."""

    def __init__(self, folder: Path, code: str) -> None:
        (folder / "worker.py").write_text(BEGINNING + "(here / f'pid-{name}').write_text(str(os.getpid()))\n" + code)
        (folder / "launcher.py").write_text(LAUNCHER)
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, folder / "launcher.py"], stdout=subprocess.PIPE, text=True)
        self.said: list[str] = []

    def until(self, *lines: str) -> None:
        """Read until all these lines have come."""
        assert self.process.stdout is not None
        missing = set(lines)
        while missing:
            line = self.process.stdout.readline()
            assert line, f"no {missing} in {self.said}"
            self.said.append(line.strip())
            missing.discard(self.said[-1])

    def end(self) -> int:
        assert self.process.stdout is not None
        self.said += [line.strip() for line in self.process.stdout]
        return self.process.wait(timeout=20)

    @property
    def workers(self) -> list[int]:
        return [int(path.read_text()) for path in sorted(self.folder.glob("pid-*"))]


@pytest.fixture
def launched(tmp_path: Path) -> Iterator:
    running: list[Launched] = []

    def make(code: str) -> Launched:
        running.append(Launched(tmp_path, code))
        return running[-1]

    yield make
    for one in running:
        one.process.kill()
        one.process.wait()
        assert one.process.stdout is not None
        one.process.stdout.close()
        for pid in one.workers:
            assert is_gone(pid)


def is_gone(pid: int, *, within_s: float = 10.0) -> bool:
    """Whether a process ends soon; one that nobody waits for, in a container say, counts as gone."""
    end = time.perf_counter() + within_s
    while time.perf_counter() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_one_interruption_lets_every_worker_finish_its_trial(launched) -> None:
    one = launched("drain_or_stop(0.5)")
    one.until("working 0", "working 1")
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 130
    assert {"draining 0", "draining 1", "finished 0", "finished 1", "interrupted 0", "interrupted 1"} <= set(one.said)
    assert not [line for line in one.said if "handed back" in line]
    assert len([line for line in one.said if line.startswith("started")]) == 2


def test_a_second_interruption_hands_the_trials_back(launched) -> None:
    one = launched("drain_or_stop(60)")
    one.until("working 0", "working 1")
    one.process.send_signal(signal.SIGINT)
    one.until("draining 0", "draining 1")
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 130
    assert {"handed back 0", "handed back 1"} <= set(one.said)
    assert not [line for line in one.said if "finished" in line]


def test_a_request_to_terminate_hands_the_trials_back_at_once(launched) -> None:
    one = launched("drain_or_stop(60)")
    one.until("working 0", "working 1")
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == 130
    assert {"handed back 0", "handed back 1"} <= set(one.said)
    assert not [line for line in one.said if "draining" in line]


def test_a_worker_that_does_not_stop_is_killed(launched) -> None:
    one = launched("signal.signal(signal.SIGTERM, signal.SIG_IGN); note('working')\nwhile 1: time.sleep(1)")
    one.until("working 0", "working 1")
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == 130
    assert "interrupted 0 killed, because it did not stop within 1 s" in one.said


def test_workers_hear_no_interruption_from_the_terminal(launched) -> None:
    one = launched("drain_or_stop()")
    one.until("working 0", "working 1")
    assert {os.getsid(pid) for pid in one.workers} == set(one.workers)
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == 130


def test_a_launcher_that_is_killed_leaves_no_worker_behind(launched) -> None:
    one = launched(REAL + "drain_or_stop()")
    one.until("working 0", "working 1")
    assert len(one.workers) == 2
    one.process.kill()
    one.process.wait()
    assert all(is_gone(pid, within_s=5) for pid in one.workers)
