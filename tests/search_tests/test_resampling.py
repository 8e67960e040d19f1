"""Draws of what the values could have been: the right spread, and what trials have in common cancels."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from noisy_fronts import ACCURACY, LATENCY, PARAMETERS, record_of, study_of
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from search.analysis.resampling import Resampling, paired, weighted
from search.answers import packed
from search.records import ObjectiveInfo, Record

F1 = ObjectiveInfo("f1", "", "maximize")
SCORES = {"accuracy": accuracy_score, "f1": f1_score, "matthews": matthews_corrcoef}


def draws_of(study, *, draws=2000, seed=0):
    return np.stack(list(Resampling(study, study.records, draws=draws, seed=seed)))


@pytest.mark.parametrize(
    ("metric", "labels"), [("accuracy", 2), ("accuracy", 3), ("f1", 2), ("matthews", 2), ("matthews", 4)]
)
def test_weighted_metrics_are_scikit_learns(metric, labels):
    random = np.random.default_rng(0)
    true, predicted = random.integers(0, labels, 300), random.integers(0, labels, (3, 300))
    predicted[0] = np.where(random.random(300) < 0.8, true, predicted[0])
    weights = random.standard_exponential((300, 4))
    found = weighted(metric, true * labels + predicted, labels, weights)
    expected = [[SCORES[metric](true, each, sample_weight=w) for w in weights.T] for each in predicted]
    assert found == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize(("metric", "predicted"), [("f1", 0), ("matthews", 0), ("matthews", 1)])
def test_a_metric_that_is_not_defined_is_zero(metric, predicted):
    true = np.zeros(50, int) if metric == "f1" else np.arange(50) % 2
    assert weighted(metric, (2 * true + predicted)[None], 2, np.full((50, 1), 1.37)).item() == 0.0


def test_the_spread_of_an_accuracy_is_binomial_and_that_of_a_difference_is_mcnemars():
    """60 of 1000 sentences are right in A only, 40 in B only: the difference of 0.02 varies by √(100 - 0.4) / 1000."""
    a = np.repeat([1, 1, 0, 0], [800, 60, 40, 100])
    b = np.repeat([1, 0, 1, 0], [800, 60, 40, 100])
    drawn = draws_of(study_of([record_of(0, a, parameters=2.0), record_of(1, b, parameters=1.0)]), draws=4000)
    assert drawn[:, 0, 0].mean() == pytest.approx(0.86, abs=0.001)
    assert drawn[:, 0, 0].std() == pytest.approx(np.sqrt(0.86 * 0.14 / 1000), rel=0.05)
    difference = drawn[:, 0, 0] - drawn[:, 1, 0]
    assert difference.mean() == pytest.approx(0.02, abs=0.001)
    assert difference.std() == pytest.approx(np.sqrt(100 - 0.4) / 1000, rel=0.05)
    assert (drawn[:, :, 1] == [2.0, 1.0]).all()


def test_equal_answers_stay_equal_to_the_last_bit():
    random = np.random.default_rng(1)
    right = random.random((300, 871)) < 0.8
    right[17] = right[290]  # in another chunk
    drawn = draws_of(study_of([record_of(n, each, parameters=1.0) for n, each in enumerate(right)]), draws=20)
    assert (drawn[:, 17] == drawn[:, 290]).all()
    assert (drawn[:, 16] != drawn[:, 290]).any()


def test_without_answers_each_accuracy_is_drawn_alone_and_a_stored_spread_is_the_latencys():
    right = np.repeat([1, 0], [800, 200])
    records = [record_of(n, right, keeps=False, parameters=1.0, latency=(50.0, 2.0)) for n in range(2)]
    drawn = draws_of(study_of(records, ACCURACY, PARAMETERS, LATENCY), draws=4000)
    assert drawn.std(axis=0)[0] == pytest.approx([np.sqrt(0.8 * 0.2 / 1000), 0.0, 2.0], rel=0.05)
    assert abs(np.corrcoef(drawn[:, 0, 0], drawn[:, 1, 0])[0, 1]) < 0.05


def test_of_a_long_split_the_spread_is_that_of_the_whole():
    right = np.random.default_rng(0).random(50_000) < 0.8
    drawn = draws_of(study_of([record_of(0, right, parameters=1.0)]))
    assert drawn[:, 0, 0].std() == pytest.approx(np.sqrt(0.8 * 0.2 / 50_000), rel=0.05)


def test_a_metric_of_classes_needs_classes():
    true, predicted = np.array([0, 1] * 50), np.array([0, 1, 1, 1] * 25)
    quantities = {"f1": {"value": f1_score(true, predicted), "samples": 100}}
    values = {"f1": quantities["f1"]["value"], "parameters": 1.0}
    whole = Record(0, "complete", values=values, quantities=quantities, answers=packed(true, predicted, labels=2))
    only_right = replace(whole, trial=1, answers=packed(true, predicted, labels=0))
    nothing = replace(whole, trial=2, answers=None)
    assert paired([whole, only_right, nothing], "f1").tolist() == [0]
    spread = draws_of(study_of([whole, only_right, nothing], F1, PARAMETERS)).std(axis=0)[:, 0]
    assert spread[0] == pytest.approx(0.03, abs=0.01)
    assert spread[1:] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_trials_that_answered_other_sentences_are_not_paired():
    records = [record_of(n, np.ones(rows), parameters=1.0) for n, rows in enumerate([90, 100, 100])]
    assert paired(records, "accuracy").tolist() == [1, 2]
    assert paired([replace(record, answers=None) for record in records], "accuracy").tolist() == []


def test_the_same_seed_draws_the_same_and_nothing_is_changed():
    study = study_of([record_of(n, [1, 0, 1, n], parameters=1.0, latency=(5.0, 0.1)) for n in range(2)])
    before = copy.deepcopy(study)
    again = Resampling(study, study.records, draws=5, seed=3)
    assert (np.stack(list(again)) == np.stack(list(again))).all()
    assert (np.stack(list(again)) == draws_of(study, draws=5, seed=3)).all()
    assert (np.stack(list(again)) != draws_of(study, draws=5, seed=4)).any()
    assert again.is_noisy
    assert study == before


def test_values_without_noise_are_said_to_have_none():
    study = study_of([record_of(0, np.ones(50), parameters=1.0)])  # all right: no resampling changes that
    assert not Resampling(study, study.records, draws=5, seed=0).is_noisy
