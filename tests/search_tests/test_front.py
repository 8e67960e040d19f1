import copy
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.analysis.front import front, is_candidate, objective_values
from search.definition import Definition
from search.plan import Plan, Shape
from search.records import ObjectiveInfo, Record, StudyRecord

SHAPE = Shape(
    layers=2, heads=4, head_size=8, hidden=32, neurons=64, vocabulary=99, positions=16, token_types=2, labels=2
)
OBJECTIVES = (ObjectiveInfo("accuracy", "", "maximize"), ObjectiveInfo("latency_ms", "ms", "minimize"))


def study_of(records, objectives=OBJECTIVES):
    return StudyRecord("study", Definition(name="study", data="data.csv"), tuple(objectives), SHAPE, tuple(records))


def record_of(trial, values, **fields):
    return Record(trial, fields.pop("state", "complete"), plan=Plan((1, 2), (trial, 64)), values=values, **fields)


def pair(trial, accuracy, latency_ms, **fields):
    return record_of(trial, {"accuracy": accuracy, "latency_ms": latency_ms}, **fields)


def trials(records):
    return [record.trial for record in records]


def slow_front(study):
    """Definition of Pareto dominance, pair by pair."""

    def dominates(one, other):
        pairs = [
            (one.values[objective.name], other.values[objective.name])
            if objective.direction == "maximize"
            else (-one.values[objective.name], -other.values[objective.name])
            for objective in study.objectives
        ]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    able = [record for record in study.records if record.state == "complete" and record.feasible]
    return {record.trial for record in able if not any(dominates(other, record) for other in able)}


@st.composite
def studies(draw):
    """Studies of 1 to 5 objectives whose few distinct values make ties and equal points common."""
    directions = draw(st.lists(st.sampled_from(["maximize", "minimize"]), min_size=1, max_size=5))
    objectives = [ObjectiveInfo(f"objective_{number}", "", way) for number, way in enumerate(directions)]
    values = st.tuples(*[st.sampled_from([-2.0, 0.0, 0.5, 1.0, 1e9]) for _ in objectives])
    rows = draw(st.lists(st.tuples(values, st.booleans(), st.sampled_from(["complete", "failed"])), max_size=25))
    return study_of(
        [
            record_of(
                trial,
                {o.name: v for o, v in zip(objectives, row, strict=True)},
                feasible=feasible or trial % 2,
                state=state,
            )
            for trial, (row, feasible, state) in enumerate(rows)
        ],
        objectives,
    )


@given(studies())
def test_the_front_is_what_no_candidate_dominates(study):
    assert set(trials(front(study))) == slow_front(study)


@given(studies(), st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(study, shuffler):
    shuffled = list(study.records)
    shuffler.shuffle(shuffled)
    assert front(study_of(shuffled, study.objectives)) == front(study)


@given(studies())
def test_the_study_is_not_changed(study):
    before = copy.deepcopy(study)
    front(study)
    assert study == before


@pytest.mark.parametrize(("direction", "expected"), [("maximize", [3, 1, 2]), ("minimize", [2, 1, 3])])
def test_best_first_by_the_first_objective(direction, expected):
    first = ObjectiveInfo("score", "", direction)
    second = ObjectiveInfo("cost", "", direction)
    records = [record_of(1, {"score": 2.0, "cost": 2.0}), record_of(2, {"score": 1.0, "cost": 3.0})]
    records.append(record_of(3, {"score": 3.0, "cost": 1.0}))
    assert trials(front(study_of(records, [first, second]))) == expected


def test_equal_points_of_different_plans_stay_in_the_order_of_their_trials():
    assert trials(front(study_of([pair(5, 0.9, 3.0), pair(2, 0.9, 3.0), pair(1, 0.8, 9.0)]))) == [2, 5]


def test_a_trial_answered_from_a_listed_one_is_not_listed_again():
    records = [pair(0, 0.9, 3.0), pair(1, 0.9, 3.0, answered_from=0), pair(2, 0.9, 3.0, answered_from=1)]
    assert trials(front(study_of(records))) == [0]


def test_a_trial_answered_from_one_that_is_gone_speaks_for_itself():
    assert trials(front(study_of([pair(7, 0.9, 3.0, answered_from=3)]))) == [7]


@pytest.mark.parametrize(
    "fields", [{"feasible": False}, {"state": "failed"}, {"state": "running"}, {"state": "waiting"}]
)
def test_infeasible_and_unfinished_trials_are_never_on_the_front_and_push_nothing_off_it(fields):
    assert trials(front(study_of([pair(0, 1.0, 1.0, **fields), pair(1, 0.5, 5.0)]))) == [1]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["accuracy", "latency_ms"])
def test_values_that_are_not_finite_never_enter(name, number):
    odd = record_of(0, {"accuracy": 0.9, "latency_ms": 1.0, name: number})
    assert trials(front(study_of([odd, pair(1, 0.5, 5.0)]))) == [1]


def test_a_trial_that_lacks_an_objective_never_enters():
    assert trials(front(study_of([record_of(0, {"accuracy": 1.0}), pair(1, 0.5, 5.0)]))) == [1]


def test_a_study_without_trials_has_an_empty_front():
    assert front(study_of([])) == ()


def test_candidates_are_complete_feasible_and_finite():
    study = study_of([])
    assert is_candidate(study, pair(0, 0.5, 5.0))
    assert not is_candidate(study, pair(0, 0.5, 5.0, feasible=False))


def test_values_stand_in_the_order_of_the_objectives():
    values = objective_values(study_of([]), [record_of(0, {"latency_ms": 5.0, "accuracy": 0.5, "extra": 1.0})])
    assert values.tolist() == [[0.5, 5.0]]
    assert objective_values(study_of([]), []).shape == (0, 2)


def test_a_front_of_many_random_points_agrees_with_the_slow_twin():
    numbers = random.Random(0)
    study = study_of([pair(trial, numbers.random(), numbers.random()) for trial in range(300)])
    assert set(trials(front(study))) == slow_front(study)
