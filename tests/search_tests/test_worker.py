"""The worker's loop: how many trials, what becomes of each, and how it ends."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from engine_cases import DEFINITION, OBJECTIVES, SHAPE, SilentListener, begin, create_in, evaluation_of

from search.analysis.front import front
from search.definition import Definition, LayerRanges, Range, SpaceSettings
from search.engine import attributes, storage, study
from search.engine.retry import ATTEMPTS
from search.engine.sampler import PlanSampler, population_size
from search.engine.worker import work
from search.errors import TrialError, UserError
from search.plan import Plan
from search.records import Evaluation, ObjectiveInfo


def small(**engine: object) -> Definition:
    return DEFINITION.model_copy(update={"engine": DEFINITION.engine.model_copy(update=engine)})


def reopened(url: str) -> Any:
    return study.get(storage.open_storage(url, create=False), DEFINITION.name)


def test_the_dense_model_comes_first_then_the_ladder(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    assert work(opened, evaluation_of, SilentListener())
    records = study.read(opened).records
    assert records[0].role == "dense"
    assert records[0].plan == Plan.dense(SHAPE)
    assert [r.role for r in records[1:5]] == ["ladder"] * 4
    assert {r.role for r in records[5:]} == {"search"}


def test_the_number_of_trials_is_the_total_also_on_resume(tmp_path: Path) -> None:
    opened, url = begin(tmp_path, small(trials=9))
    assert work(opened, evaluation_of, SilentListener())
    assert work(reopened(url), evaluation_of, SilentListener())
    assert len(study.read(reopened(url)).records) == 9
    again = reopened(url)
    study.set_trials(again, small(trials=11))
    listener = SilentListener()
    assert work(again, evaluation_of, listener)
    assert len(study.read(again).complete) == 11
    assert [r.trial for r in listener.records] == [9, 10]


def test_everything_a_person_reads_is_stored(tmp_path: Path) -> None:
    opened, url = begin(tmp_path, DEFINITION)
    work(opened, evaluation_of, SilentListener())
    result = study.read(reopened(url))
    assert result.definition == DEFINITION
    assert result.objectives == OBJECTIVES
    assert result.shape == SHAPE
    for record in result.complete:
        assert record.plan is not None
        assert record.quantities == evaluation_of(record.plan).quantities
        assert record.values == {o.name: record.quantities[o.name]["value"] for o in OBJECTIVES}
        assert record.conditions == {"device": "formula"}
        assert record.seconds == {"recover": 0.0}
    seeds = [record.seed for record in result.complete]
    assert len(set(seeds)) == len(seeds)


def test_the_front_is_the_same_as_optunas(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    work(opened, evaluation_of, SilentListener())
    assert {r.trial for r in front(study.read(opened))} == {t.number for t in opened.best_trials}


def test_a_failed_trial_keeps_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    calls = []

    def sometimes(plan: Plan, **given: Any) -> Evaluation:
        calls.append(plan)
        if len(calls) == 3:
            raise TrialError("the loss became nan at step 7")
        if len(calls) == 4:
            raise ZeroDivisionError("a bug")
        return evaluation_of(plan, **given)

    assert work(opened, sometimes, SilentListener())
    result = study.read(opened)
    assert len(result.complete) == DEFINITION.engine.trials
    assert [(r.trial, r.failure) for r in result.records if r.state == "failed"] == [
        (2, "the loss became nan at step 7"),
        (3, "ZeroDivisionError: a bug"),
    ]
    assert "in sometimes" in opened.trials[3].user_attrs["traceback"]


def test_an_evaluation_that_lacks_an_objective_fails_with_the_reason(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(failures_in_a_row=1))

    def incomplete(plan: Plan, **given: Any) -> Evaluation:
        whole = evaluation_of(plan, **given)
        return Evaluation({"accuracy": whole.quantities["accuracy"]}, {}, {}, {})

    with pytest.raises(UserError, match="did not measure parameters, latency_ms, energy_mj"):
        work(opened, incomplete, SilentListener())
    assert "did not measure" in str(study.read(opened).records[0].failure)


def test_ten_failures_in_a_row_stop_the_search_with_the_reason(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, DEFINITION)
    calls = []

    def breaks_later(plan: Plan, **given: Any) -> Evaluation:
        calls.append(plan)
        if len(calls) in (1, 5):
            return evaluation_of(plan, **given)
        raise TrialError("out of memory on cpu")

    with pytest.raises(UserError, match=r"10 trials in a row failed .* out of memory on cpu; put that right"):
        work(opened, breaks_later, SilentListener())
    assert len(calls) == 15
    assert {r.failure for r in study.read(opened).records if r.state == "failed"} == {"out of memory on cpu"}


def test_an_error_of_the_input_is_no_failed_trial_to_go_on_from(tmp_path: Path) -> None:
    opened, url = begin(tmp_path, DEFINITION)

    def wrong(_plan: Plan, **_given: Any) -> Evaluation:
        raise UserError("the data are gone")

    with pytest.raises(UserError, match="the data are gone"):
        work(opened, wrong, SilentListener())
    assert study.read(opened).records[0].state == "failed"
    assert len([r for r in study.read(opened).records if r.state == "waiting"]) == 5
    gone = []

    def gone_at_first(plan: Plan, **given: Any) -> Evaluation:
        if len(study.read(opened).complete) == 1 and not gone:
            gone.append(plan)
            raise UserError("no space left")
        return evaluation_of(plan, **given)

    with pytest.raises(UserError, match="no space left"):
        work(opened, gone_at_first, SilentListener())
    assert work(reopened(url), gone_at_first, SilentListener())
    result = study.read(opened)
    assert len(result.complete) == DEFINITION.engine.trials
    assert [r.role for r in result.complete].count("dense") == 1
    assert [r.plan for r in result.complete].count(gone[0]) == 1
    assert [(r.role, r.failure) for r in result.records if r.state == "failed"] == [
        ("dense", "the data are gone"),
        ("ladder", "no space left"),
    ]


def test_a_dense_model_that_only_the_input_failed_is_not_given_up(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(trials=1, ladder=()))

    def wrong(_plan: Plan, **_given: Any) -> Evaluation:
        raise UserError("the data are gone")

    for _ in range(ATTEMPTS + 1):
        with pytest.raises(UserError, match="the data are gone"):
            work(opened, wrong, SilentListener())
    assert work(opened, evaluation_of, SilentListener())
    assert [r.role for r in study.read(opened).complete] == ["dense"]


def test_an_equal_plan_is_answered_from_its_record(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(trials=7))
    opened.enqueue_trial(opened.trials[1].system_attrs["fixed_params"])
    opened.enqueue_trial(opened.trials[1].system_attrs["fixed_params"])
    calls = []

    def counted(plan: Plan, **given: Any) -> Evaluation:
        calls.append(plan)
        return evaluation_of(plan, **given)

    assert work(opened, counted, SilentListener())
    assert len(calls) == len(set(calls)) == 5
    answered = [r for r in study.read(opened).records if r.answered_from is not None]
    assert [r.answered_from for r in answered] == [1, 1]
    assert all(r.values == study.read(opened).records[1].values for r in answered)


def test_one_interruption_lets_the_running_trial_finish(tmp_path: Path) -> None:
    opened, url = begin(tmp_path, DEFINITION)
    listener = SilentListener()

    def interrupted(plan: Plan, **given: Any) -> Evaluation:
        if len(listener.records) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluation_of(plan, **given)

    before = signal.getsignal(signal.SIGINT)
    assert not work(opened, interrupted, listener)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(study.read(opened).complete) == 3
    assert listener.notes == ["finishing trial 2, then stopping; press Ctrl-C again to hand it back and stop now"]
    assert work(reopened(url), evaluation_of, SilentListener())
    assert len(study.read(opened).complete) == DEFINITION.engine.trials


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM]])
def test_a_second_interruption_hands_the_plan_back(signals: list[int], tmp_path: Path) -> None:
    opened, url = begin(tmp_path, DEFINITION)
    listener = SilentListener()

    def interrupted(plan: Plan, **given: Any) -> Evaluation:
        if len(listener.records) == 2:
            for number in signals:
                os.kill(os.getpid(), number)
        return evaluation_of(plan, **given)

    assert not work(opened, interrupted, listener)
    records = study.read(opened).records
    assert records[2].state == "failed"
    assert records[2].failure == "stopped on request; its plan is queued again"
    assert listener.notes[-1] == "trial 2 was stopped; its plan is queued again"
    plan = records[2].plan
    assert work(reopened(url), evaluation_of, SilentListener())
    assert [r.plan for r in study.read(opened).complete].count(plan) == 1
    assert not [r for r in study.read(opened).records if r.state in ("waiting", "running")]


def test_a_worker_runs_in_any_thread(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(trials=6))
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(work(opened, evaluation_of, SilentListener())))
    thread.start()
    thread.join()
    assert done == [True]


def test_a_late_answer_of_a_worker_declared_dead_is_not_counted(tmp_path: Path) -> None:
    opened, _url = begin(tmp_path, small(trials=6))
    listener = SilentListener()

    def slept(plan: Plan, **given: Any) -> Evaluation:
        if not listener.records and not listener.notes:
            other = reopened(_url)
            trial_id = other.trials[0]._trial_id
            other._storage.set_trial_state_values(trial_id, state=study.TrialState.FAIL)
            study_retry(other)
        return evaluation_of(plan, **given)

    def study_retry(other: Any) -> None:
        from search.engine.retry import hand_back

        hand_back(other, other.trials[0])

    assert work(opened, slept, listener)
    records = study.read(opened).records
    assert records[0].state == "failed"
    assert listener.notes == ["this worker was silent for too long; its trial was handed to another"]
    assert len(study.read(opened).complete) == 6
    assert [r.plan for r in study.read(opened).complete].count(Plan.dense(SHAPE)) == 1


def test_a_dense_model_outside_of_the_ranges_is_a_reference_only(tmp_path: Path) -> None:
    narrow = DEFINITION.model_copy(update={"space": SpaceSettings(neuron_block=16, heads=Range(high=0.5))})
    opened, _url = begin(tmp_path, narrow)
    work(opened, evaluation_of, SilentListener())
    result = study.read(opened)
    assert result.dense is not None
    assert result.dense.plan == Plan.dense(SHAPE)
    assert not result.dense.feasible
    assert result.dense.trial not in {r.trial for r in front(result)}


def test_bounds_of_a_single_layer_are_kept(tmp_path: Path) -> None:
    layers = {1: LayerRanges(heads=Range(low=0.5, high=0.5))}
    opened, _url = begin(
        tmp_path, DEFINITION.model_copy(update={"space": SpaceSettings(neuron_block=16, layers=layers)})
    )
    work(opened, evaluation_of, SilentListener())
    assert {r.plan.heads[1] for r in study.read(opened).complete if r.plan and r.role != "dense"} == {2}


def test_another_definition_under_the_same_name_is_refused_with_the_differences(tmp_path: Path) -> None:
    _opened, url = begin(tmp_path, DEFINITION)
    other = DEFINITION.model_copy(update={"objectives": ("metric",)})
    with pytest.raises(UserError, match=r'exists with another definition.*objectives: .* -> ."metric".'):
        study.check_same(reopened(url), other)
    with pytest.raises(UserError, match="exists with another definition"):
        begin(tmp_path, other)


def test_a_study_of_another_program_is_refused(tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path}/study.db"
    foreign = optuna.create_study(study_name="foreign", storage=storage.open_storage(url, create=True))
    foreign.set_user_attr("theirs", 1)
    with pytest.raises(UserError, match="'foreign' was not made by paretobert"):
        study.read(foreign)


def test_an_interrupted_creation_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_settings: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "CREATION_S", 0.5)
    monkeypatch.setattr(study, "population_size", interrupted)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, DEFINITION)
    monkeypatch.setattr(study, "population_size", population_size)
    left = storage.existing(f"sqlite:///{tmp_path}/study.db", DEFINITION.name)
    assert left is not None
    assert not study.is_whole(left)
    opened, _url = begin(tmp_path, DEFINITION)
    assert work(opened, evaluation_of, SilentListener())
    records = study.read(opened).records
    assert [r.role for r in records].count("dense") == 1
    assert [r.role for r in records].count("ladder") == 4


def test_axes_carry_their_units() -> None:
    assert ObjectiveInfo("latency_ms", "ms", "minimize").label == "latency_ms"
    assert ObjectiveInfo("memory", "MB", "minimize").label == "memory [MB]"
    assert ObjectiveInfo("parameters", "parameters", "minimize").label == "parameters"
    assert ObjectiveInfo("accuracy", "", "maximize").label == "accuracy"
    assert attributes.POPULATION == "population"


def test_an_interrupted_creation_with_other_objectives_is_not_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "CREATION_S", 0.5)
    opened = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    optuna.create_study(study_name=DEFINITION.name, storage=opened, directions=["maximize", "minimize"])
    with pytest.raises(UserError, match=r"is there, empty, and is to maximize, minimize, where .* choose another name"):
        create_in(opened, DEFINITION)


def test_a_dense_model_that_failed_is_tried_again(tmp_path: Path) -> None:
    opened, url = begin(tmp_path, small(trials=5))
    calls = []

    def fails_first(plan: Plan, **given: Any) -> Evaluation:
        calls.append(plan)
        if len(calls) == 1:
            raise TrialError("out of memory on cpu")
        return evaluation_of(plan, **given)

    assert work(opened, fails_first, SilentListener())
    again = reopened(url)
    study.set_trials(again, small(trials=6))
    assert work(again, evaluation_of, SilentListener())
    assert study.read(again).dense is not None


def test_a_trial_interrupted_while_it_is_sampled_is_handed_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, url = begin(tmp_path, small(trials=6))
    listener = SilentListener()
    before_trial = PlanSampler.before_trial

    def interrupted(*given: Any) -> None:
        before_trial(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PlanSampler, "before_trial", interrupted)
        assert not work(opened, evaluation_of, listener)
    assert listener.notes == ["trial 0 was stopped; its plan is queued again"]
    assert study.read(opened).records[0].state == "failed"
    queued = opened.trials[-1]
    assert queued.state == study.TrialState.WAITING
    assert queued.system_attrs["fixed_params"] == opened.trials[0].system_attrs["fixed_params"]
    assert queued.user_attrs == {attributes.ROLE: "dense", attributes.RETRY_OF: 0, attributes.ATTEMPT: 1}
    assert work(reopened(url), evaluation_of, SilentListener())
    assert len(study.read(opened).complete) == 6
    assert [r.role for r in study.read(opened).complete].count("dense") == 1


def test_a_trial_interrupted_before_it_has_a_plan_is_not_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, url = begin(tmp_path, small(trials=1, ladder=()))
    assert work(opened, evaluation_of, SilentListener())
    study.set_trials(opened, small(trials=2, ladder=()))

    def interrupted(*_given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PlanSampler, "infer_relative_search_space", interrupted)
        assert not work(opened, evaluation_of, SilentListener())
    assert [r.state for r in study.read(opened).records] == ["complete", "failed"]
    assert work(reopened(url), evaluation_of, SilentListener())
    assert [r.role for r in study.read(opened).complete] == ["dense", "search"]


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM]])
def test_an_interruption_while_a_finished_trial_is_reported_ends_the_search(signals: list[int], tmp_path: Path) -> None:
    opened, url = begin(tmp_path, DEFINITION)

    class Interrupting(SilentListener):
        def finished(self, *_given: Any) -> None:
            for number in signals:
                os.kill(os.getpid(), number)

    assert not work(opened, evaluation_of, Interrupting())
    assert [r.state for r in study.read(opened).records] == ["complete", *["waiting"] * 4]
    assert work(reopened(url), evaluation_of, SilentListener())
    assert len(study.read(opened).complete) == DEFINITION.engine.trials


def test_an_error_of_its_own_ends_a_worker_instead_of_passing_for_a_trial_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, _url = begin(tmp_path, small(trials=6))

    def wrong(*_args: Any) -> Any:
        raise ValueError("zip() argument 2 is longer than argument 1")

    monkeypatch.setattr("search.engine.worker.made_by_others", wrong)
    listener = SilentListener()
    with pytest.raises(RuntimeError, match=r"trial 0 cannot be run: zip\(\) argument 2"):
        work(opened, evaluation_of, listener)
    assert not [note for note in listener.notes if "silent" in note]
