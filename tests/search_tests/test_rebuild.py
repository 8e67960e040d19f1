"""From a record back to its model: the same weights as in the search, or a plain word why not."""

import dataclasses
from typing import Any

import pytest
import torch
from small_study import Searched

from search.deploy.rebuild import Rebuilt, rebuild, settings_of
from search.errors import UserError
from search.pipeline import evaluate
from search.plan import Plan
from search.records import Record, StudyRecord

HALF = Plan((2, 2, 0), (64, 0, 32))


def ignore(_name: str, _done: int, _total: int) -> None:
    pass


def again(small: Searched, trial: int, study: StudyRecord | None = None, **given: Any) -> Rebuilt:
    return rebuild(small.again.prepared, study or small.again.study, trial, on_stage=ignore, **given)


def with_record(study: StudyRecord, record: Record) -> StudyRecord:
    records = list(study.records)
    records[record.trial] = record
    return dataclasses.replace(study, records=tuple(records))


def test_every_trial_is_rebuilt_to_the_logits_that_it_was_scored_by(small: Searched) -> None:
    study = small.again.study
    assert {record.role for record in study.complete} == {"dense", "ladder", "search"}
    assert len({tuple(record.schedule.items()) for record in study.complete}) > 2
    for record in study.complete:
        rebuilt = again(small, record.trial)
        assert torch.equal(rebuilt.logits, small.logits[record.trial]), record
        assert rebuilt.score == record.value("accuracy")
        assert (rebuilt.difference, rebuilt.faithful) == (None, True)
    different = {tuple(logits.flatten().tolist()) for logits in small.logits.values()}
    assert len(different) == len(study.complete)


def test_a_trial_that_was_answered_is_rebuilt_from_the_one_that_answered(small: Searched) -> None:
    study = small.again.study
    answered = dataclasses.replace(study.records[-1], plan=study.records[1].plan, answered_from=1, seed=None)
    rebuilt = again(small, answered.trial, with_record(study, answered))
    assert torch.equal(rebuilt.logits, small.logits[1])
    assert (rebuilt.trial, rebuilt.record.trial) == (answered.trial, 1)


def test_a_recovery_that_was_ended_early_ends_there_again(small: Searched) -> None:
    prepared, study = small.again.prepared, small.again.study
    rungs = prepared.definition.model_copy(
        update={"ending": prepared.definition.ending.model_copy(update={"rungs": (0.5,)})}
    )
    scores = {}
    for ends in (True, False):
        evaluation = evaluate(
            dataclasses.replace(prepared, definition=rungs),
            HALF,
            seed=3,
            on_stage=ignore,
            on_rung=lambda _share, _metric, _known, ends=ends: ends,
        )
        record = Record(1, "complete", plan=HALF, seed=3, ended_at=0.5 if ends else None)
        record = dataclasses.replace(record, quantities=evaluation.quantities, seconds=evaluation.seconds)
        rebuilt = again(small, 1, with_record(study, record))
        assert rebuilt.difference is None
        scores[ends] = rebuilt.logits
    assert not torch.equal(scores[True], scores[False])


def test_other_settings_and_seeds_make_another_model_which_is_not_compared(small: Searched) -> None:
    study = small.again.study
    own = settings_of(study, study.records[1])
    for given in ({"seed": 5}, {"recovery": own.model_copy(update={"steps": 9})}):
        rebuilt = again(small, 1, **given)
        assert not torch.equal(rebuilt.logits, small.logits[1])
        assert (rebuilt.difference, rebuilt.faithful) == (None, False)
    assert torch.equal(again(small, 1, recovery=own, seed=study.records[1].seed).logits, small.logits[1])
    assert again(small, 0, seed=7).recovery is None


def test_a_score_that_is_not_the_recorded_one_is_told(small: Searched) -> None:
    study = small.again.study
    record = study.records[1]
    wrong = {**record.quantities["accuracy"], "value": 0.25}
    changed = dataclasses.replace(record, values={}, quantities={**record.quantities, "accuracy": wrong})
    difference = again(small, 1, with_record(study, changed)).difference
    assert difference is not None
    assert "trial 1 was recorded with 0.2500" in difference
    assert f"has accuracy {record.value('accuracy'):.4f}" in difference


def test_what_has_no_recovered_model_is_refused(small: Searched) -> None:
    study = small.again.study
    with pytest.raises(UserError, match=r"trial is 99; the study 'small' has the trials 0 to 4"):
        again(small, 99)
    failed = Record(1, "failed", failure="out of memory")
    with pytest.raises(UserError, match="trial 1 of the study 'small' is failed: out of memory; name a complete"):
        again(small, 1, with_record(study, failed))
    seconds = {name: spent for name, spent in study.records[1].seconds.items() if name != "recover"}
    broken = dataclasses.replace(study.records[1], violations={"latency_ms": 2.5}, seconds=seconds, feasible=False)
    with pytest.raises(UserError, match=r"trial 1 breaks the constraint on 'latency_ms' by 2\.5 .* never recovered"):
        again(small, 1, with_record(study, broken))
    settings = settings_of(study, study.records[1])
    assert again(small, 1, with_record(study, broken), recovery=settings).recovery == settings
    refitted = study.definition.recovery.model_copy(update={"steps": 0, "refit_rows": 32})
    only = dataclasses.replace(study, definition=study.definition.model_copy(update={"recovery": refitted}))
    with pytest.raises(UserError, match=r"trial 1 breaks the constraint on 'latency_ms' by 2\.5 .* never recovered"):
        again(small, 1, with_record(only, dataclasses.replace(broken, schedule={})))


def test_a_study_is_reopened_where_nothing_of_it_could_be_measured(small: Searched) -> None:
    prepared = small.again.prepared
    assert prepared.definition == small.again.study.definition
    assert prepared.seconds == {}
