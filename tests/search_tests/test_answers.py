"""What trials answered: packed and unpacked, kept with each trial of a study however it ended, and by every storage."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import DEFINITION, SilentListener, create_in, evaluation_of
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from search.answers import MOST_BYTES, packed, unpacked
from search.definition import Definition
from search.engine import attributes, storage, study
from search.engine.copy import copy
from search.engine.retry import hand_back
from search.engine.worker import work
from search.plan import Plan
from search.records import Evaluation

ROWS = 40


@given(st.data(), st.sampled_from([0, 2, 3, 16, 77]), st.integers(1, 60))
def test_what_is_unpacked_is_what_was_packed(data: st.DataObject, labels: int, rows: int) -> None:
    classes = st.lists(st.integers(0, max(labels, 2) - 1), min_size=rows, max_size=rows)
    true, predicted = (np.array(data.draw(classes)) for _ in range(2))
    values = json.loads(json.dumps(packed(true, predicted, labels=labels)))
    answers = unpacked(values)
    assert answers.kind == (rows, labels)
    if labels:
        assert np.array_equal(answers.codes // labels, true)
        assert np.array_equal(answers.codes % labels, predicted)
    else:
        assert np.array_equal(answers.codes == 1, true == predicted)


@pytest.mark.parametrize(("rows", "labels", "letters"), [(872, 0, 148), (872, 2, 292), (5000, 0, 836), (5000, 2, 1668)])
def test_it_takes_little_room(rows: int, labels: int, letters: int) -> None:
    assert len(packed(np.zeros(rows, int), np.zeros(rows, int), labels=labels)["bits"]) == letters


@pytest.mark.parametrize("labels", [0, 3])
def test_of_a_very_long_split_the_same_rows_are_kept_of_all_trials(labels: int) -> None:
    random = np.random.default_rng(0)
    true = np.arange(100_000) * 3 // 100_000  # sorted by class
    one, other = (unpacked(packed(true, random.integers(0, 3, len(true)), labels=labels)) for _ in range(2))
    width = 1 if labels == 0 else 4
    assert len(one.codes) == len(other.codes) == MOST_BYTES * 8 // width
    assert one.rows == 100_000
    if labels:
        assert np.array_equal(one.codes // 3, other.codes // 3)
        assert np.bincount(one.codes // 3) == pytest.approx(len(one.codes) / 3, rel=0.01)


@pytest.mark.parametrize(
    ("true", "predicted", "labels", "message"),
    [
        ([0, 1], [0], 0, "give one of each for every row"),
        ([], [], 0, "give one of each for every row"),
        ([0, 2], [0, 1], 2, "a class is not one of the 2 from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(true: list[int], predicted: list[int], labels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packed(np.array(true, int), np.array(predicted, int), labels=labels)


def test_bits_of_another_number_of_rows_are_refused() -> None:
    values = packed(np.zeros(16, int), np.zeros(16, int), labels=0)
    with pytest.raises(ValueError, match="2 bytes of answers: 17 sentences take 3"):
        unpacked({**values, "rows": 17})


# --- in a study


def answering(plan: Plan, **given_: Any) -> Evaluation:
    """The formula's evaluation with answers that are those of the plan."""
    random = np.random.default_rng([*plan.heads, *plan.neurons])
    answers = packed(random.integers(0, 2, ROWS), random.integers(0, 2, ROWS), labels=0)
    return dataclasses.replace(evaluation_of(plan, **given_), answers=answers)


def small(trials: int) -> Definition:
    return DEFINITION.model_copy(update={"engine": DEFINITION.engine.model_copy(update={"trials": trials})})


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_every_trial_keeps_its_own_answers_also_where_another_trial_answered_it(kind: str, tmp_path: Path) -> None:
    opened = create_in(storage.open_storage(f"{kind}:///{tmp_path}/one.db", create=True), small(9))
    opened.enqueue_trial(opened.trials[1].system_attrs["fixed_params"])
    assert work(opened, answering, SilentListener())
    read = study.read(opened)
    assert len(read.complete) == 9
    assert sum(record.answered_from is not None for record in read.complete) == 1
    for record in read.complete:
        assert record.plan is not None
        assert record.answers == answering(record.plan).answers
    assert not any(attributes.ANSWERS in trial.user_attrs for trial in opened.trials)  # the dashboard lists these
    moved = copy(opened, storage.open_storage(f"{kind}:///{tmp_path}/other.db", create=True))
    assert study.read(moved) == read


def test_a_plan_that_is_tried_again_has_nothing_of_the_answers_before(tmp_path: Path) -> None:
    """A worker that dies after it wrote its answers leaves them with the failed trial; the next attempt has its own."""
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/one.db", create=True), small(6))
    first, kept = opened.trials[0], opened._storage
    stale = packed(np.zeros(ROWS, int), np.zeros(ROWS, int), labels=0)
    kept.set_trial_state_values(first._trial_id, state=TrialState.RUNNING)
    kept.set_trial_system_attr(first._trial_id, attributes.ANSWERS, stale)
    kept.set_trial_state_values(first._trial_id, state=TrialState.FAIL)
    assert opened.trials[0].system_attrs[attributes.ANSWERS] == stale
    hand_back(opened, opened.trials[0])
    assert attributes.ANSWERS not in opened.trials[-1].system_attrs
    assert work(opened, answering, SilentListener())
    for record in study.read(opened).complete:
        assert record.plan is not None
        assert record.answers == answering(record.plan).answers


def test_an_evaluation_without_answers_and_a_study_of_before_have_none(tmp_path: Path) -> None:
    opened = create_in(storage.open_storage(f"sqlite:///{tmp_path}/one.db", create=True), small(5))
    assert work(opened, evaluation_of, SilentListener())
    assert all(record.answers is None for record in study.read(opened).records)
