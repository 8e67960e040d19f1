"""What a person sees of many workers, on a terminal and in a log file."""

import io
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from search import view as views
from search.definition import Definition, EngineSettings
from search.devices import Device
from search.events import Finished, Known, Note, Stage
from search.plan import Shape
from search.progress import Display
from search.records import PREPARATION, ObjectiveInfo, Record, StudyRecord
from search.sentences import best_so_far, outcome
from search.view import View

SHAPE = Shape(
    layers=1, heads=2, head_size=8, hidden=16, neurons=32, vocabulary=99, positions=16, token_types=2, labels=2
)
DEVICES = (Device("cuda:0"), Device("cuda:1"))
KNOWN = Known(completed=2, total=10)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def scored(trial: int, accuracy: float, share: float, latency_ms: float = 5.0, **more) -> Record:
    values = {"accuracy": accuracy, "latency_ms": latency_ms}
    quantities = {name: {"value": value} for name, value in {**values, "encoder_share": share}.items()}
    return Record(trial, "complete", values=values, quantities=quantities, **more)


def study_of(*records: Record, trials: int = 10) -> StudyRecord:
    objectives = (ObjectiveInfo("accuracy", "", "maximize"), ObjectiveInfo("latency_ms", "ms", "minimize"))
    definition = Definition(name="s", data="d", engine=EngineSettings(trials=trials))
    return StudyRecord("s", definition, objectives, SHAPE, records)


DENSE = scored(0, 0.9, 1.0, 10.0, role="dense")
STUDY = study_of(DENSE, scored(1, 0.89, 0.4), Record(2, "running"), Record(3, "running"), Record(4, "failed"))


def view_of(study: Callable[[], StudyRecord | None] = lambda: None, *, terminal: bool, width: int = 110):
    console = Console(
        file=io.StringIO(), width=width, height=40, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    clock = Clock()
    return View(console, DEVICES, metric="accuracy", total=10, study=study, clock=clock, poll_s=0.01), console, clock


def text_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def picture(view: View, width: int = 110) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view)
    return text_of(console)


def finished(trial: int, **more) -> Finished:
    values = {"accuracy": 0.86, "encoder_share": 0.31, "latency_ms": 4.21}
    given = {"state": "complete", "role": "search", "values": values, "completed": 3, "total": 10, **more}
    return Finished(trial=trial, **given)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.perf_counter() + 10
    while not condition():
        assert time.perf_counter() < end, "it did not happen"
        time.sleep(0.005)


def test_in_a_log_file_each_thing_is_one_line() -> None:
    view, console, clock = view_of(terminal=False)
    with view:
        view.started("0")
        for done in (0, 5):
            view.told("0", Stage(trial=PREPARATION, name="teacher", done=done, total=9))
        view.told("0", KNOWN)
        view.started("1")
        view.told("0", Stage(trial=7, name="recover", done=0, total=9))
        clock.now += 30
        view.told("0", Stage(trial=7, name="recover", done=5, total=9))
        view.told("0", finished(7))
        view.told("1", finished(8, feasible=False, answered_from=7, role="ladder"))
        view.told("1", finished(9, state="failed", failure="the loss became nan [at step 3]"))
        view.told("1", Note(text="trial 4 was left [unfinished]"))
        view.printed("0", "[1/2] \x1b[31mred\x1b[0m")
        view.ended("1", "died", "exit code 3: no [memory]", 4.0)
        view.started("1")
        view.ended("1", "given up", "6 deaths in a row; the last: exit code 3", None)
        view.ended("0", "error", "the data are gone", None)
        view.ended("0", "interrupted", "", None)
        view.note("stopping")
    assert text_of(console) == [
        "worker 0 (cuda:0): started",
        "worker 0 (cuda:0): preparing: teacher",
        "worker 1 (cuda:1): started",
        "[3/10] worker 0: trial 7 (search), accuracy 0.860, 31% of the encoder, 4.2 ms; 4 min left",
        "[4/10] worker 1: trial 8 (ladder), accuracy 0.860, 31% of the encoder, 4.2 ms, same plan as trial 7, breaks a "
        "constraint; 90 s left".replace("90 s", "2 min"),
        "[4/10] worker 1: trial 9 failed: the loss became nan [at step 3]; 2 min left",
        "worker 1 (cuda:1): trial 4 was left [unfinished]",
        "worker 0: [1/2] red",
        "worker 1 (cuda:1): died, and starts again in 4 s: exit code 3: no [memory]",
        "worker 1 (cuda:1): started again",
        "worker 1 (cuda:1): is given up after 6 deaths in a row; the last: exit code 3",
        "worker 0 (cuda:0): error: the data are gone",
        "stopping",
    ]


def test_in_a_log_file_the_totals_come_every_minute_if_they_changed() -> None:
    view, console, clock = view_of(lambda: STUDY, terminal=False)
    with view:
        wait_until(lambda: views.Totals.of(STUDY) == view.totals)
        view.tick()
        assert not text_of(console)
        for _ in range(200):
            clock.now += 1
            view.tick()
    assert text_of(console) == [
        "study 2/10: 2 running, 1 failed, hypervolume 0.390, smallest with 97 % of dense: 40% of the encoder at "
        "accuracy 0.890 (trial 1)"
    ]


def test_the_picture_on_a_terminal() -> None:
    view, _console, clock = view_of(lambda: STUDY, terminal=True)
    with view:
        wait_until(lambda: view.totals is not None)
        view.started("0")
        view.told("0", KNOWN)
        view.told("0", Stage(trial=7, name="recover", done=3, total=9))
        clock.now += 60
        view.told("0", finished(7))
        view.told("0", Stage(trial=8, name="recover", done=3, total=9))
        lines = picture(view)
        assert lines[1].split() == [
            *("study", "━━━━━━━", "3/10", "2", "running,", "1", "failed,", "hypervolume", "0.390,", "7", "min", "left")
        ]
        assert lines[2] == "smallest with 97 % of dense: 40% of the encoder at accuracy 0.890 (trial 1)"
        assert lines[3].split() == ["worker", "device", "trial", "stage", "done", "per", "hour"]
        assert lines[4].split() == ["0", "cuda:0", "8", "recover", "━━━", "3/9", "1", "60"]
        assert lines[5].split() == ["1", "cuda:1", "waiting", "for", "worker", "0"]
        view.started("1")
        view.told("1", Stage(trial=PREPARATION, name="tokens", done=0, total=1))
        assert picture(view)[5].split() == ["1", "cuda:1", "preparing:", "tokens"]
        view.ended("1", "died", "exit code 3: " + "a long reason " * 20, 8.0)
        clock.now += 2
        assert "starts again in 6 s" in picture(view)[5]
        assert picture(view)[6].startswith("worker 1: last error: exit code 3: a long reason")
        assert picture(view)[6].endswith("…")
        view.started("1")
        assert picture(view)[5].split()[2:] == ["starting"]
        view.ended("1", "given up", "6 deaths in a row", None)
        view.ended("0", "complete", "", None)
        assert picture(view)[4].split()[2] == "finished"
        assert picture(view)[5].split()[2:] == ["given", "up"]
        assert picture(view)[6:] == ["worker 1: restarted 1 ×, last error: 6 deaths in a row"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_each_worker_has_one(width: int) -> None:
    view, _console, _clock = view_of(lambda: STUDY, terminal=True, width=width)
    with view:
        wait_until(lambda: view.totals is not None)
        view.told("0", Stage(trial=8, name="recover", done=3, total=9))
        view.ended("1", "died", "exit code 3: " + "a long reason " * 20, 8.0)
        lines = picture(view, width)
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert lines[3].split() == ["worker", "device", "trial", "stage", "done", "per", "hour"]
    assert len(lines) == 7  # empty, study, best, heading, two workers, one error


def test_a_terminal_keeps_the_lines_and_loses_the_picture() -> None:
    view, console, clock = view_of(terminal=True)
    with view:
        view.told("0", KNOWN)
        view.told("0", finished(7))
        for _ in range(10):
            clock.now += 0.11
            view.tick()
    output = "\n".join(text_of(console))
    assert output.count("trial 7 (search)") == 1
    assert 5 <= output.count("waiting for worker 0") <= 8  # drawn about every 0.2 s, and with the line
    assert output.endswith("\x1b[1A\x1b[2K")  # the last picture is taken back


def test_a_database_that_does_not_answer_is_said_and_tolerated() -> None:
    broken = threading.Event()

    def study() -> StudyRecord:
        if broken.is_set():
            raise OSError("postgresql://me:secret@host is gone")
        return STUDY

    view, console, clock = view_of(study, terminal=False)
    with view:
        wait_until(lambda: view.totals is not None)
        broken.set()
        wait_until(lambda: view.is_silent)
        clock.now += 61
        view.tick()
        assert "the study database does not answer" in text_of(console)[-1]
        assert "hypervolume 0.390" in text_of(console)[-1]
        broken.clear()
        wait_until(lambda: not view.is_silent)
        clock.now += 61
        view.tick()
        assert "does not answer" not in text_of(console)[-1]
    assert "secret" not in "".join(text_of(console))


def test_a_study_that_cannot_be_found_any_more_is_said() -> None:
    found: list[StudyRecord | None] = [STUDY]
    view, _console, _clock = view_of(lambda: found[0], terminal=False)
    with view:
        wait_until(lambda: view.totals is not None)
        found[0] = None
        wait_until(lambda: view.is_silent)


def test_trials_of_other_machines_and_another_total_count() -> None:
    records = [DENSE, *(scored(number, 0.8, 0.5) for number in range(1, 6))]
    view, console, clock = view_of(lambda: study_of(*records, trials=20), terminal=False)
    with view:
        wait_until(lambda: view.totals is not None)
        view.told("0", KNOWN)
        view.told("0", Stage(trial=7, name="recover", done=3, total=9))
        clock.now += 40
        view.told("0", finished(7))
    assert text_of(console)[-1].startswith("[6/20]")  # the database has it already
    assert text_of(console)[-1].endswith("2 min left")  # 4 in 40 s, 14 to go


def test_nothing_of_the_view_is_left_behind() -> None:
    before = threading.active_count()
    view, _console, _clock = view_of(lambda: STUDY, terminal=True)
    with view:
        wait_until(lambda: view.totals is not None)
    assert threading.active_count() == before


def test_one_worker_and_many_say_the_same_of_a_trial_and_of_the_best() -> None:
    console = Console(file=io.StringIO(), width=100)
    display = Display(console)
    display.known(study_of(DENSE))
    record = scored(3, 0.885, 0.25, 4.21)
    display.finished(record, 2, 10)
    values = {"accuracy": 0.885, "encoder_share": 0.25, "latency_ms": 4.21}
    said = text_of(console)[0]
    assert outcome(finished(3, values=values), "accuracy") in said
    assert best_so_far([DENSE, record], "accuracy") in said


def test_the_best_so_far_keeps_the_constraints() -> None:
    small = scored(2, 0.9, 0.1, feasible=False)
    assert best_so_far([small], "accuracy") == "the dense model is not scored yet"
    assert "40% of the encoder" in best_so_far([DENSE, small, scored(1, 0.89, 0.4)], "accuracy")
    infeasible = scored(0, 0.9, 1.0, role="dense", feasible=False)
    assert best_so_far([infeasible, small], "accuracy") == "no model keeps 97 % of dense and the constraints yet"
