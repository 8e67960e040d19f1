import copy
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.analysis.front import front
from search.analysis.indicators import has_reference, hypervolume, hypervolume_history, normalised
from search.definition import Definition
from search.plan import Shape
from search.records import ObjectiveInfo, Record, StudyRecord

SHAPE = Shape(
    layers=2, heads=4, head_size=8, hidden=32, neurons=64, vocabulary=99, positions=16, token_types=2, labels=2
)
ACCURACY = ObjectiveInfo("accuracy", "", "maximize")
COSTS = tuple(ObjectiveInfo(name, "", "minimize") for name in ("parameters", "latency_ms", "energy_mj"))
DENSE_COSTS = {"parameters": 1e8, "latency_ms": 20.0, "energy_mj": 500.0}


def study_of(records, objectives, labels=("0", "1"), metric="accuracy"):
    definition = Definition.model_validate(
        {"name": "study", "data": "data.csv", "task": {"labels": labels, "metric": metric}}
    )
    return StudyRecord("study", definition, tuple(objectives), SHAPE, tuple(records))


def dense_record(**values):
    return Record(0, "complete", values={"accuracy": 0.9, **DENSE_COSTS, **values}, role="dense")


def with_gains(rows, dimensions):
    """A study of accuracy and costs whose trials, from number 1 on, lie at these gains."""
    objectives = (ACCURACY, *COSTS)[:dimensions]
    records = [dense_record()]
    for trial, (first, *others) in enumerate(rows, start=1):
        values = {"accuracy": 0.5 + first / 2}
        for objective, gain in zip(objectives[1:], others, strict=True):
            values[objective.name] = (1 - gain) * DENSE_COSTS[objective.name]
        records.append(Record(trial, "complete", values=values))
    return study_of(records, objectives)


def union_volume(boxes):
    """Volume of a union of boxes that start in the origin, by inclusion and exclusion."""
    total = 0.0
    for chosen in range(1, 1 << len(boxes)):
        members = [box for number, box in enumerate(boxes) if chosen >> number & 1]
        total -= (-1) ** len(members) * math.prod(map(min, zip(*members, strict=True)))
    return total


CLOSED_FORMS = [
    ([(0.3, 0.5)], 0.15),
    ([(0.2, 0.8), (0.5, 0.5), (0.8, 0.2)], 0.16 + 0.3 * 0.5 + 0.3 * 0.2),
    ([(k / 10, 1 - k / 10) for k in range(1, 10)], 0.45),  # a stair of 9 steps, each 0.1 wide: 0.1 · (0.9 + ... + 0.1)
    ([(0.5, 0.5, 1.0), (0.5, 1.0, 0.5), (1.0, 0.5, 0.5)], 3 * 0.25 - 3 * 0.125 + 0.125),
    ([(0.5, 1.0, 1.0), (1.0, 0.5, 1.0), (1.0, 1.0, 0.5)], 1 - 0.5**3),  # all but one corner
    ([(0.5, 1.0, 1.0, 1.0), (1.0, 0.5, 1.0, 1.0), (1.0, 1.0, 0.5, 1.0), (1.0, 1.0, 1.0, 0.5)], 1 - 0.5**4),
    ([(0.1, 0.2, 0.3, 0.4)], 0.0024),
    ([(1.0, 1.0, 1.0, 1.0)], 1.0),
]


@pytest.mark.parametrize(("gains", "volume"), CLOSED_FORMS)
def test_volumes_known_in_closed_form(gains, volume):
    study = with_gains(gains, len(gains[0]))
    assert hypervolume(study, study.records) == pytest.approx(volume, abs=1e-12)
    assert hypervolume(study) == hypervolume(study, study.records)


TENTHS = st.integers(0, 10).map(lambda tenths: tenths / 10)


def point_lists(dimensions):
    return st.lists(st.tuples(*[TENTHS] * dimensions), min_size=1, max_size=6)


@given(st.integers(2, 4).flatmap(point_lists))
def test_hypervolume_is_the_volume_of_the_union_of_boxes(gains):
    study = with_gains(gains, len(gains[0]))
    assert hypervolume(study, study.records) == pytest.approx(union_volume(gains), abs=1e-9)


@given(point_lists(3), st.randoms(use_true_random=False))
def test_order_and_repetition_of_records_do_not_matter(gains, shuffler):
    study = with_gains(gains, 3)
    shuffled = [*study.records, *study.records]
    shuffler.shuffle(shuffled)
    assert hypervolume(study, shuffled) == pytest.approx(hypervolume(study, study.records), abs=1e-12)


@given(point_lists(3))
def test_the_front_has_the_hypervolume_of_all_records(gains):
    study = with_gains(gains, 3)
    assert hypervolume(study, front(study)) == pytest.approx(hypervolume(study, study.records), abs=1e-12)


@given(point_lists(4))
def test_the_history_is_the_hypervolume_of_each_beginning_and_never_falls(gains):
    study = with_gains(gains, 4)
    before = copy.deepcopy(study)
    history = hypervolume_history(study)
    expected = [hypervolume(study, study.records[: count + 1]) for count in range(len(study.records))]
    assert history == pytest.approx(expected, abs=1e-12)
    assert history == sorted(history)
    assert study == before


def test_the_reference_is_chance_and_the_dense_costs_and_the_ideal_is_one_and_nothing():
    objectives = (ACCURACY, *COSTS)
    at_reference = Record(1, "complete", values={"accuracy": 0.5, **DENSE_COSTS})
    at_ideal = Record(2, "complete", values={"accuracy": 1.0, "parameters": 0.0, "latency_ms": 0.0, "energy_mj": 0.0})
    half_way = Record(
        3, "complete", values={"accuracy": 0.75, "parameters": 5e7, "latency_ms": 10.0, "energy_mj": 250.0}
    )
    study = study_of([dense_record(), at_reference, at_ideal, half_way], objectives)
    assert normalised(study, study.records[1:]).tolist() == [[0.0] * 4, [1.0] * 4, [0.5] * 4]


def test_chance_is_one_over_the_number_of_labels():
    objectives = (ACCURACY, COSTS[0])
    record = Record(1, "complete", values={"accuracy": 0.25, "parameters": 0.0})
    study = study_of([dense_record(), record], objectives, labels=("a", "b", "c", "d"))
    assert normalised(study, [record]).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_the_other_metrics_start_at_zero(metric):
    record = Record(1, "complete", values={metric: 0.25})
    study = study_of([dense_record(**{metric: 0.5}), record], [ObjectiveInfo(metric, "", "maximize")], metric=metric)
    assert normalised(study, [record]).tolist() == [[0.25]]


def test_an_own_objective_that_is_maximised_is_one_half_at_the_dense_model_and_below_one_everywhere():
    own = ObjectiveInfo("sentences_per_second", "1/s", "maximize")
    records = [
        Record(n, "complete", values={own.name: v}) for n, v in enumerate([-30.0, 0.0, 10.0, 30.0, 90.0], start=1)
    ]
    study = study_of([dense_record(sentences_per_second=30.0), *records], [own])
    assert normalised(study, records).ravel().tolist() == [-1.0, 0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("worse", [{"accuracy": 0.4}, {"parameters": 2e8}, {"accuracy": 0.5}, {"parameters": 1e8}])
def test_points_that_are_not_better_than_the_reference_contribute_nothing(worse):
    record = Record(1, "complete", values={"accuracy": 0.9, "parameters": 5e7, **worse})
    study = study_of([dense_record(), record], (ACCURACY, COSTS[0]))
    assert hypervolume(study, study.records) == 0.0


def test_points_beyond_the_ideal_are_cut_off_at_it():
    own = ObjectiveInfo("balance", "", "minimize")
    record = Record(1, "complete", values={"accuracy": 1.0, "balance": -5.0})
    study = study_of([dense_record(balance=1.0), record], (ACCURACY, own))
    assert hypervolume(study, study.records) == 1.0


def test_infeasible_failed_and_odd_records_count_for_nothing():
    good = {"accuracy": 1.0, "parameters": 1.0}
    records = [
        dense_record(),
        Record(1, "complete", values=good, feasible=False),
        Record(2, "failed", values=good),
        Record(3, "complete", values={**good, "accuracy": math.nan}),
        Record(4, "complete", values={"accuracy": 0.75, "parameters": 5e7}),
    ]
    study = study_of(records, (ACCURACY, COSTS[0]))
    assert hypervolume(study, study.records) == 0.25
    assert hypervolume_history(study) == [0.0, 0.0, 0.0, 0.0, 0.25]


def test_no_number_before_the_dense_trial():
    early = Record(0, "complete", values={"accuracy": 0.75, "parameters": 5e7})
    dense = Record(1, "complete", values={"accuracy": 0.9, "parameters": 1e8}, role="dense")
    without = study_of([early], (ACCURACY, COSTS[0]))
    assert hypervolume(without, without.records) is None
    assert hypervolume_history(without) == [None]
    with pytest.raises(ValueError, match="no complete dense trial"):
        normalised(without, without.records)
    assert hypervolume_history(study_of([early, dense], (ACCURACY, COSTS[0]))) == [None, 0.25]


def test_an_infeasible_dense_model_is_still_the_reference():
    dense = Record(0, "complete", values={"accuracy": 0.9, "parameters": 1e8}, role="dense", feasible=False)
    other = Record(1, "complete", values={"accuracy": 0.75, "parameters": 5e7})
    study = study_of([dense, other], (ACCURACY, COSTS[0]))
    assert hypervolume(study, study.records) == 0.25


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_dense_value_that_is_no_scale_gives_no_number(value):
    study = study_of([dense_record(parameters=value)], (ACCURACY, COSTS[0]))
    assert not has_reference(study)
    assert hypervolume(study, study.records) is None
    assert hypervolume_history(study) == [None]
    with pytest.raises(ValueError, match=r"dense model's parameters is .*: the scale needs a number above 0"):
        normalised(study, study.records)


def test_an_empty_study_has_no_number_and_an_empty_history():
    study = study_of([], (ACCURACY, COSTS[0]))
    assert hypervolume(study, []) is None
    assert hypervolume_history(study) == []


def test_no_records_of_a_study_with_a_reference_dominate_nothing():
    study = study_of([dense_record()], (ACCURACY, COSTS[0]))
    assert hypervolume(study, []) == 0.0
    assert normalised(study, []).shape == (0, 2)


def test_the_history_of_a_thousand_trials_ends_where_the_hypervolume_does():
    numbers = np.random.default_rng(0)
    gains = numbers.random((1000, 4))
    gains /= np.linalg.norm(gains, axis=1, keepdims=True)  # on a sphere: every point is on the front
    study = with_gains(gains.tolist(), 4)
    history = hypervolume_history(study)
    assert len(front(study)) == 1000  # the dense model, worst in every cost, is beaten
    for trial in random.Random(0).sample(range(1000), 5):
        assert history[trial] == pytest.approx(hypervolume(study, study.records[: trial + 1]), abs=1e-12)
