import math
import random
from dataclasses import replace

import pytest
from study_cases import synthetic

from search.analysis.dimensions import FEWEST, dimension_importance
from search.analysis.indicators import hypervolume, hypervolume_history
from search.analysis.noise import interval, standard_error
from search.analysis.volume_interval import hypervolume_interval
from search.records import Record, StudyRecord


def record_of(name, **measured):
    return Record(0, "complete", quantities={name: measured})


@pytest.mark.parametrize(
    ("rows", "right", "low", "high"),
    [(100, 90, 0.8256, 0.9448), (10, 0, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],  # tables of Wilson's interval
)
def test_wilsons_interval(rows, right, low, high):
    ends = interval(record_of("accuracy", value=right / rows, samples=rows), "accuracy")
    assert ends == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_covers_as_often_as_it_says():
    """Of many samples of a known share, about 95 % have an interval that holds it."""
    chance = random.Random(0)
    hits = 0
    for _ in range(1000):
        right = sum(chance.random() < 0.85 for _ in range(200))
        low, high = interval(record_of("accuracy", value=right / 200, samples=200), "accuracy")
        hits += low <= 0.85 <= high
    assert 930 <= hits <= 970


def test_repeated_measurements_have_their_quartiles_and_the_error_of_a_median():
    """For samples of a normal distribution, the formula is as wide as the medians really scatter."""
    record = record_of("latency_ms", value=5.0, low=4.5, high=6.0, samples=25)
    assert interval(record, "latency_ms") == (4.5, 6.0)
    chance = random.Random(0)
    medians = [sorted(chance.gauss(0, 1) for _ in range(101))[50] for _ in range(2000)]
    scatter = math.sqrt(sum(median**2 for median in medians) / len(medians))
    normal = record_of("latency_ms", value=0.0, low=-0.6745, high=0.6745, samples=101)
    assert standard_error(normal, "latency_ms") == pytest.approx(scatter, rel=0.05)


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("parameters", {"value": 1e6}),
        ("accuracy", {"value": 0.9}),
        ("accuracy", {"value": math.nan, "samples": 100}),
        ("latency_ms", {"value": 5.0, "low": math.nan, "high": 6.0}),
        ("f1", {"value": 0.9, "samples": 100}),
    ],
)
def test_nothing_is_drawn_where_nothing_is_known(name, measured):
    assert interval(record_of(name, **measured), name) is None
    assert standard_error(record_of(name, **measured), name) == 0.0


def test_the_hypervolumes_interval_is_around_the_curve_and_ends_with_the_study():
    study = synthetic(150)
    band = hypervolume_interval(study)
    assert len(band) == 40
    assert band[-1][0] == max(r.trial for r in study.complete if r.feasible)
    history = hypervolume_history(study)
    for at, low, high in band[3:]:
        assert 0 <= low < high <= 1
        assert low < history[at]
    assert high - low < 0.2 * hypervolume(study)
    assert band == hypervolume_interval(study)


def test_the_interval_allows_for_the_luck_of_the_best():
    """Points that are all equal but for noise: the best of them look better than they are, and the interval says so."""
    chance = random.Random(1)
    costs = {"parameters": 1e6, "latency_ms": 50.0, "energy_mj": 1.0}
    dense = Record(0, "complete", values={"accuracy": 0.9, **{k: 2 * v for k, v in costs.items()}}, role="dense")
    records = [dense]
    for trial in range(1, 101):
        accuracy = 0.8 + chance.gauss(0, 0.02)
        quantities = {"accuracy": {"value": accuracy, "samples": 400}}  # standard error 0.02
        records.append(Record(trial, "complete", values={"accuracy": accuracy, **costs}, quantities=quantities))
    study = synthetic(1)
    study = StudyRecord(study.name, study.definition, study.objectives, study.shape, tuple(records))
    truth = (2 * 0.8 - 1) * 0.5**3
    _at, low, high = hypervolume_interval(study)[-1]
    assert hypervolume(study) > 1.1 * truth
    assert low < high < hypervolume(study)
    assert abs((low + high) / 2 - truth) < abs(hypervolume(study) - truth)


@pytest.mark.parametrize("accuracy", [0.5, 0.51, 0.55])
def test_near_chance_the_interval_stays_on_the_scale(accuracy):
    study = synthetic(60)
    alike = tuple(
        replace(
            record,
            values={**record.values, "accuracy": accuracy},
            quantities={**record.quantities, "accuracy": {"value": accuracy, "samples": 300}},
        )
        for record in study.records
    )
    band = hypervolume_interval(replace(study, records=alike))
    assert all(0.0 <= low <= high <= 1.0 for _at, low, high in band)
    assert band[-1][2] > 0.0


def test_no_interval_without_noise_or_dense_model():
    study = synthetic(50)
    quiet = tuple(Record(r.trial, r.state, values=r.values, role=r.role) for r in study.records)
    assert hypervolume_interval(StudyRecord("s", study.definition, study.objectives, study.shape, quiet)) == []
    without = StudyRecord("s", study.definition, study.objectives, study.shape, study.records[1:])
    assert hypervolume_interval(without) == []


def test_the_dimension_that_a_formula_rests_on_is_found():
    """Accuracy of layer 2's heads alone, latency of nothing."""
    chance = random.Random(0)
    names = [f"layer.{layer}.{what}" for layer in range(4) for what in ("heads", "neurons")]
    records = []
    for trial in range(200):
        ratios = {name: chance.random() for name in names}
        values = {"accuracy": 0.5 + ratios["layer.2.heads"] / 3, "parameters": 1e6, "latency_ms": 1.0}
        records.append(Record(trial, "complete", ratios=ratios, values={**values, "energy_mj": chance.gauss(5, 1)}))
    study = synthetic(1)
    accuracy, parameters, _latency, energy = dimension_importance(
        StudyRecord("s", study.definition, study.objectives, study.shape, tuple(records))
    )
    assert accuracy.shares["layer.2.heads"] > 0.9
    assert sum(accuracy.shares.values()) == pytest.approx(1)
    assert accuracy.explained > 0.95
    assert set(parameters.shares.values()) == {0.0}
    assert energy.explained < 0.2


def test_too_few_trials_say_nothing_about_dimensions():
    assert dimension_importance(synthetic(FEWEST - 1)) == []
