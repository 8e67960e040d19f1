"""Several workers on one study, on every kind of storage: exact totals, dead workers noticed, no plan trained twice."""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from engine_cases import DEFINITION, SilentListener, create_in, evaluation_of
from optuna.trial import TrialState

from search.definition import Definition
from search.engine import attributes, heartbeats, housekeeping, retry, storage, study
from search.engine.claims import is_double, is_surplus, made_by_others
from search.engine.proxy import _tidy
from search.engine.retry import ATTEMPTS, DOUBLE, SURPLUS, hand_back, settle
from search.engine.worker import work
from search.plan import Plan
from search.records import Evaluation

KINDS = ("sqlite", "journal", "grpc")
HERE = str(Path(__file__).parent)

PROXY = """
import sys
from search.cli import main
sys.argv = ["paretobert", "proxy", "--storage", sys.argv[1], "--port", "0"]
main()
"""


@contextmanager
def proxied(url: str) -> Iterator[str]:
    """URL of a proxy in front of a database, in a process of its own."""
    pytest.importorskip("grpc", reason="needs the extra proxy")
    with subprocess.Popen([sys.executable, "-c", PROXY, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0


@contextmanager
def url_of(kind: str, folder: Path) -> Iterator[str]:
    if kind == "grpc":
        with proxied(f"sqlite:///{folder}/study.db") as url:
            yield url
    else:
        yield f"{kind}:///{folder}/study.db"


def small(**engine: object) -> Definition:
    return DEFINITION.model_copy(update={"engine": DEFINITION.engine.model_copy(update=engine)})


WORKER = """
import sys, time
from engine_cases import DEFINITION, SilentListener, evaluation_of
from search.engine import storage, study
from search.engine.worker import work
def slow(plan, **given):
    time.sleep(float(sys.argv[2]))
    return evaluation_of(plan)
opened = study.get(storage.open_storage(sys.argv[1], create=False, patience_s=60), DEFINITION.name)
print("ready", flush=True)
assert work(opened, slow, SilentListener())
"""


def started(url: str, seconds: float = 0.02) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, url, str(seconds)], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def check_whole(opened: optuna.Study, total: int) -> None:
    """Exactly the trials that were asked for, every other one failed with a reason, no network trained twice."""
    records = study.read(opened).records
    assert len([r for r in records if r.state == "complete"]) == total
    assert {r.state for r in records} <= {"complete", "failed"}
    assert all(r.failure for r in records if r.state == "failed")
    trained = Counter(r.plan for r in records if r.state == "complete" and r.answered_from is None)
    assert max(trained.values()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_is_exact_with_several_workers(kind: str, tmp_path: Path) -> None:
    with url_of(kind, tmp_path) as url:
        opened = create_in(storage.open_storage(url, create=True), small(trials=30))
        workers = [started(url) for _ in range(4)]
        errors = [worker.communicate()[1].decode() for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * 4, errors
        check_whole(opened, 30)
        storage.close(opened._storage)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_survives_a_killed_worker(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its heartbeat, as if it had been on another machine."""
    monkeypatch.setattr(heartbeats, "GRACE_S", 2)
    monkeypatch.setattr(heartbeats, "CONFIRM_S", 1)
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.5)
    monkeypatch.setattr(retry, "_machine", lambda: "another machine")
    # The proxy is a process of its own: there the trial is found by a worker that goes round it.
    with url_of(kind, tmp_path) as url:
        opened = create_in(storage.open_storage(url, create=True), small(trials=8))
        victim = started(url, seconds=600)
        deadline = time.monotonic() + 60
        while not opened.get_trials(states=(TrialState.RUNNING,)) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        victim.kill()
        victim.communicate()
        direct = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=False) if kind == "grpc" else None
        if direct is not None:
            opened = study.get(direct, DEFINITION.name)
        assert work(opened, evaluation_of, SilentListener())
        check_whole(opened, 8)
        failed = [r for r in study.read(opened).records if r.state == "failed"]
        assert [(r.trial, r.failure) for r in failed] == [(0, study.LOST)]
        storage.close(opened._storage)


def test_a_trial_whose_worker_never_gave_a_sign_of_life_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna looks at trials with a heartbeat only: who dies before the first leaves a trial that runs for ever."""
    monkeypatch.setattr(heartbeats, "GRACE_S", 1)
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(trials=8))
    opened._storage.set_trial_state_values(opened.trials[0]._trial_id, state=TrialState.RUNNING)
    housekeeping.tidy(opened, lambda _text: None)
    assert opened.trials[0].state == TrialState.RUNNING
    time.sleep(1.2)
    housekeeping.tidy(opened, lambda _text: None)
    assert opened.trials[0].state == TrialState.FAIL
    assert opened.trials[-1].user_attrs[attributes.RETRY_OF] == 0


def test_dead_workers_are_found_in_each_of_several_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a proxy, which looks after all studies of its database with one storage."""
    monkeypatch.setattr(heartbeats, "GRACE_S", 1)
    opened = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    both = [create_in(opened, small(ladder=()).model_copy(update={"name": name})) for name in ("one", "two")]
    for each in both:
        opened.set_trial_state_values(each.trials[0]._trial_id, state=TrialState.RUNNING)
    for pause in (0.0, 1.2):
        time.sleep(pause)
        _tidy(opened, lambda _text: None)
    assert [each.trials[0].state for each in both] == [TrialState.FAIL] * 2


def test_the_proxy_leaves_the_studies_of_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "GRACE_S", 1)
    monkeypatch.setattr(retry, "SETTLE_S", -1)
    opened = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    colleague = optuna.create_study(study_name="colleague", storage=f"sqlite:///{tmp_path}/study.db")
    colleague.optimize(lambda _trial: 1 / 0, n_trials=2, catch=(ZeroDivisionError,))
    running = colleague.ask()
    for pause in (0.0, 1.2):
        time.sleep(pause)
        _tidy(opened, lambda _text: None)
    assert [trial.state for trial in colleague.trials] == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]
    colleague.tell(running, 1.0)


def test_after_an_outage_the_living_are_not_declared_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their signs of life are as old as the outage was long, whatever the database's clock says."""
    monkeypatch.setattr(heartbeats, "GRACE_S", 1)
    monkeypatch.setattr(heartbeats, "CONFIRM_S", 3)
    url = f"sqlite:///{tmp_path}/study.db"
    opened = create_in(storage.open_storage(url, create=True), small(trials=8))
    other = study.get(storage.open_storage(url, create=False), DEFINITION.name)
    for number in (0, 1):
        opened._storage.set_trial_state_values(opened.trials[number]._trial_id, state=TrialState.RUNNING)
        opened._storage.record_heartbeat(opened.trials[number]._trial_id)
    time.sleep(3.2)  # nobody could write; SQLite's clock counts whole seconds
    housekeeping.tidy(other, lambda _text: None)
    assert other.trials[0].state == TrialState.RUNNING
    opened._storage.record_heartbeat(opened.trials[0]._trial_id)  # one lives, the other does not
    time.sleep(3.2)
    opened._storage.record_heartbeat(opened.trials[0]._trial_id)
    housekeeping.tidy(other, lambda _text: None)
    assert [t.state for t in other.trials[:2]] == [TrialState.RUNNING, TrialState.FAIL]


def test_the_own_trial_is_not_declared_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the machine slept, the own heartbeat is late; whoever looks first must not take the own trial away."""
    monkeypatch.setattr(heartbeats, "GRACE_S", 1)
    monkeypatch.setattr(heartbeats, "HEARTBEAT_S", 60)
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(trials=2))

    def sleeps(plan: Plan, **given: Any) -> Evaluation:
        time.sleep(2.2)
        housekeeping.tidy(opened, lambda _text: None)
        return evaluation_of(plan, **given)

    assert work(opened, sleeps, SilentListener())
    assert [t.state for t in opened.trials[:2]] == [TrialState.COMPLETE] * 2


def test_signs_of_life_pass_through_the_proxy(tmp_path: Path) -> None:
    """As heartbeats of the database, so that workers with and without the proxy share a study."""
    database = f"sqlite:///{tmp_path}/study.db"
    with proxied(database) as url:
        opened = create_in(storage.open_storage(url, create=False), small(trials=2))
        opened._storage.set_trial_state_values(opened.trials[0]._trial_id, state=TrialState.RUNNING)
        opened._storage.record_heartbeat(opened.trials[0]._trial_id)
        engine = storage.engine_of(storage.open_storage(database, create=False))
        assert engine is not None
        with engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT trial_id FROM trial_heartbeats").fetchall()
        engine.dispose()
        assert rows == [(opened.trials[0]._trial_id,)]
        assert heartbeats.SIGN not in opened.trials[0].system_attrs
        storage.close(opened._storage)


def test_surplus_trials_are_given_up_and_their_plans_queued_again(tmp_path: Path) -> None:
    opened = create_in(
        storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(trials=2, ladder=(0.5,))
    )
    assert [t.state for t in opened.trials] == [TrialState.WAITING] * 2
    opened.enqueue_trial(opened.trials[1].system_attrs["fixed_params"])
    assert [is_surplus(opened, number, 2) for number in (0, 1, 2)] == [False, False, True]
    listener, calls = SilentListener(), []

    def meanwhile(plan: Plan, **given: Any) -> Evaluation:
        calls.append(plan)
        if len(calls) == 1:  # another worker takes the third, out of order
            other = study.get(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=False), DEFINITION.name)
            other._storage.set_trial_state_values(other.trials[2]._trial_id, state=TrialState.RUNNING)
            assert is_surplus(other, 2, 2)
            other._storage.set_trial_user_attr(other.trials[2]._trial_id, attributes.FAILURE, SURPLUS)
            other._storage.set_trial_state_values(other.trials[2]._trial_id, state=TrialState.FAIL)
            hand_back(other, other.trials[2], counts=False)
        return evaluation_of(plan, **given)

    assert work(opened, meanwhile, listener)
    assert [t.state.name for t in opened.trials] == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    assert study.read(opened).records[2].failure == SURPLUS


def test_a_raised_total_is_read_by_running_workers(tmp_path: Path) -> None:
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(trials=6))
    listener = SilentListener()

    def raised(plan: Plan, **given: Any) -> Evaluation:
        if len(listener.records) == 3:
            study.set_trials(opened, small(trials=9))
        return evaluation_of(plan, **given)

    assert work(opened, raised, listener)
    assert len(study.read(opened).complete) == 9


def test_two_workers_do_not_train_one_plan_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.engine.worker.POLL_S", 0.1)
    url = f"sqlite:///{tmp_path}/study.db"
    opened = create_in(storage.open_storage(url, create=True), small(trials=2, ladder=()))
    opened.enqueue_trial(opened.trials[0].system_attrs["fixed_params"], user_attrs={attributes.ROLE: "dense"})
    begun, calls = threading.Event(), []

    def slow(plan: Plan, **given: Any) -> Evaluation:
        calls.append(plan)
        begun.set()
        time.sleep(1.5)
        return evaluation_of(plan, **given)

    first = threading.Thread(target=lambda: work(opened, slow, SilentListener()))
    first.start()
    assert begun.wait(20)
    other = study.get(storage.open_storage(url, create=False), DEFINITION.name)
    awaited = made_by_others(other, calls[0], 1)
    assert awaited is not None
    assert awaited.number == 0
    assert made_by_others(other, calls[0], 0) is None
    listener = SilentListener()
    assert work(other, slow, listener)
    first.join()
    assert len(calls) == 1
    assert [r.answered_from for r in study.read(opened).records] == [None, 0]
    assert any(name == "wait for the same plan" for _, name, _, _ in listener.stages)


def test_a_plan_that_nobody_handed_back_is_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever failed the trial died before it queued the plan again."""
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(ladder=(0.5,)))
    for trial in opened.trials:
        opened._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    assert settle(opened) == []  # a moment is left to whoever failed it
    monkeypatch.setattr(retry, "SETTLE_S", -1)
    assert settle(opened) == [0, 1]
    assert settle(opened) == []
    assert [t.user_attrs[attributes.RETRY_OF] for t in opened.trials[2:]] == [0, 1]
    opened._storage.set_trial_user_attr(opened.trials[2]._trial_id, attributes.FAILURE, "out of memory")
    opened._storage.set_trial_state_values(opened.trials[2]._trial_id, state=TrialState.FAIL)
    assert settle(opened) == []  # it failed by itself


def test_a_dense_model_that_nobody_handed_back_takes_one_place_of_the_total(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "SETTLE_S", 1)
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.5)
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(trials=3, ladder=()))
    opened._storage.set_trial_state_values(opened.trials[0]._trial_id, state=TrialState.FAIL)
    assert work(opened, evaluation_of, SilentListener())
    records = study.read(opened).records
    assert [r.role for r in records if r.state == "complete"].count("dense") == 1
    assert [r.role for r in records].count("dense") == 2


def test_handing_back_twice_queues_once(tmp_path: Path) -> None:
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(ladder=()))
    opened._storage.set_trial_state_values(opened.trials[0]._trial_id, state=TrialState.FAIL)
    for _ in range(2):
        hand_back(opened, opened.trials[0])
    assert len(opened.trials) == 2


def test_a_plan_that_kills_its_workers_fails_for_good_with_the_reason(tmp_path: Path) -> None:
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(ladder=()))
    for number in range(ATTEMPTS):
        opened._storage.set_trial_state_values(opened.trials[number]._trial_id, state=TrialState.FAIL)
        hand_back(opened, opened.trials[number])
    assert [r.failure for r in study.read(opened).records] == [study.LOST, study.LOST, study.FOR_GOOD]


def test_too_many_workers_for_the_population_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.engine.retry.SETTLE_S", 1)  # the four that are failed below are handed back soon
    monkeypatch.setattr("search.engine.housekeeping.EVERY_S", 0.5)
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(trials=9))
    for trial in opened.trials[:4]:
        opened._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING)
        opened._storage.set_trial_user_attr(trial._trial_id, attributes.WORKER, "elsewhere process 1 started 1.00")

    def finish(plan: Plan, **given: Any) -> Evaluation:
        for trial in opened.get_trials(states=(TrialState.RUNNING,))[:4]:
            if trial.user_attrs[attributes.WORKER].startswith("elsewhere"):
                opened._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        return evaluation_of(plan, **given)

    listener = SilentListener()
    work(opened, finish, listener)
    assert listener.notes[0].startswith("5 workers share a population of 8")
    assert "use at most 4 workers" in listener.notes[0]


def test_a_plan_that_was_queued_twice_is_made_once(tmp_path: Path) -> None:
    """Two workers notice the same death, and both hand the plan back."""
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(trials=2, ladder=()))
    opened._storage.set_trial_state_values(opened.trials[0]._trial_id, state=TrialState.FAIL)
    for _ in range(2):
        attrs = {attributes.ROLE: "dense", attributes.RETRY_OF: 0, attributes.ATTEMPT: 2}
        opened.enqueue_trial(opened.trials[0].system_attrs["fixed_params"], user_attrs=attrs)
    assert not is_double(opened, 1)
    assert is_double(opened, 2)
    listener = SilentListener()
    assert work(opened, evaluation_of, listener)
    records = study.read(opened).records
    assert [r.state for r in records] == ["failed", "complete", "failed", "complete"]
    assert records[2].failure == DOUBLE
    assert settle(opened) == []
    assert len(opened.trials) == 4


def test_a_dense_model_that_kills_its_workers_is_not_tried_for_ever(tmp_path: Path) -> None:
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True), small(trials=1, ladder=()))
    for number in range(ATTEMPTS):
        opened._storage.set_trial_state_values(opened.trials[number]._trial_id, state=TrialState.FAIL)
        hand_back(opened, opened.trials[number])
    assert work(opened, evaluation_of, SilentListener())
    assert [r.role for r in study.read(opened).complete] == ["search"]
