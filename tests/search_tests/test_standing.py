"""How sure the front is: closed forms, calibration on fronts whose truth is known, and what is not told apart."""

import copy
from dataclasses import replace

import moocore
import numpy as np
import pytest
from noisy_fronts import ACCURACY, LATENCY, PARAMETERS, noisy_front, record_of, study_of
from scipy.stats import beta
from study_cases import synthetic

from search.analysis import standing
from search.analysis.front import front
from search.analysis.indicators import gains, hypervolume, volume
from search.analysis.standing import Standing, standings, unpaired
from search.analysis.volume_interval import final_interval, hypervolume_interval
from search.records import ObjectiveInfo


def answers(both, first, second, neither):
    """Of two trials: sentences that both have right, only the first, only the second, and neither."""
    counts = [both, first, second, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


@pytest.mark.parametrize(("first", "second"), [(8, 4), (12, 11), (3, 0), (30, 5)])
def test_two_points_have_the_probability_of_the_closed_form(first, second):
    """The weights of the sentences that differ add up to gamma variables: A is better with P(beta(b, c) > 1/2)."""
    a, b = answers(600, first, second, 200)
    study = study_of([record_of(0, a, parameters=2.0), record_of(1, b, parameters=1.0)])
    expected = beta.sf(0.5, first, second) if second else 1.0
    found = standings(study)
    assert found[0].probability == pytest.approx(expected, abs=0.04)
    assert found[1].probability == 1.0  # nothing is cheaper
    assert found[0].like == (1 if expected < 0.95 else None)
    assert found[1].like is None


def test_what_is_sure_is_certain():
    records = [record_of(n, np.ones(50), parameters=1.0 + n) for n in range(2)]
    equal = replace(records[0], trial=2)
    study = study_of([replace(r, answers=None, quantities={}) for r in (*records, equal)])
    assert standings(study) == {0: Standing(1.0, None), 2: Standing(1.0, None)}  # 1 is dominated
    assert standings(study_of([])) == {}


def test_a_point_that_is_surely_better_in_another_cost_is_told_apart():
    a, b = answers(600, 8, 4, 200)
    slow, fast = {"parameters": 1.0, "latency": (50.0, 0.5)}, {"parameters": 2.0, "latency": (40.0, 0.5)}
    told = study_of([record_of(0, a, **fast), record_of(1, b, **slow)], ACCURACY, PARAMETERS, LATENCY)
    assert [each.like for each in standings(told).values()] == [None, None]
    unsure = {"parameters": 2.0, "latency": (49.0, 0.5)}  # 2 ms are a standard error and a half of the difference
    alike = study_of([record_of(0, a, **unsure), record_of(1, b, **slow)], ACCURACY, PARAMETERS, LATENCY)
    assert [each.like for each in standings(alike).values()] == [1, None]


def test_of_several_cheaper_points_the_best_is_named():
    rights = np.ones((3, 1000))
    for number, (begin, end) in enumerate([(0, 10), (20, 31), (40, 52)]):
        rights[number, begin:end] = 0
    study = study_of([record_of(n, each, parameters=3.0 - n) for n, each in enumerate(rights)])
    assert [each.like for each in standings(study).values()] == [1, 2, None]


def test_a_trial_that_was_answered_from_another_is_no_rival_of_it():
    a, b = answers(600, 8, 4, 200)
    records = [record_of(0, a, parameters=2.0), record_of(1, b, parameters=1.0)]
    twin = replace(records[0], trial=2, answered_from=0)
    assert standings(study_of([*records, twin])) == standings(study_of(records))


def test_those_that_are_left_out_make_no_difference(monkeypatch):
    study, _truth = noisy_front(np.random.default_rng(3), trials=150, timed=True)
    pruned = standings(study)
    monkeypatch.setattr(standing, "_within_reach", lambda _study, candidates, _members: list(range(len(candidates))))
    whole = standings(replace(study))
    assert len(pruned) > 15
    assert pruned.keys() == whole.keys()
    for trial, each in pruned.items():
        assert each.probability == pytest.approx(whole[trial].probability, abs=0.06)


def stated_and_true(random, studies, **options):
    """Of the points of many fronts: the probability stated, and whether they are truly non-dominated."""
    stated, true = [], []
    for _ in range(studies):
        study, truth = noisy_front(random, **options)
        maximised = [objective.direction == "maximize" for objective in study.objectives]
        holds = moocore.is_nondominated(truth, maximise=maximised, keep_weakly=True)
        found = standings(study)
        stated += [each.probability for each in found.values()]
        true += [bool(holds[trial]) for trial in found]
    return np.array(stated), np.array(true)


@pytest.mark.parametrize("timed", [False, True])
def test_the_probability_is_calibrated(timed, monkeypatch):
    """Among points stated at p, the truth holds about as often; without the answers it would not."""
    monkeypatch.setattr(standing, "DRAWS", 300)
    stated, true = stated_and_true(np.random.default_rng(7), 40, timed=timed)
    assert len(stated) > 300
    assert stated.mean() == pytest.approx(true.mean(), abs=0.05)
    for low, high in ((0.0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)):
        chosen = (stated >= low) & (stated < high)
        chance = stated[chosen].mean()
        allowed = 0.05 + 2 * np.sqrt(chance * (1 - chance) / chosen.sum())
        assert true[chosen].mean() == pytest.approx(chance, abs=allowed), (low, high, chosen.sum())
    if not timed:
        alone, true_alone = stated_and_true(np.random.default_rng(7), 40, keeps=False)
        assert alone.mean() < true_alone.mean() - 0.05
        assert ((stated - true) ** 2).mean() < ((alone - true_alone) ** 2).mean()


def held(random, studies, **options):
    """How often the hypervolume's interval holds the hypervolume of the true values."""
    hits = 0
    for _ in range(studies):
        study, truth = noisy_front(random, trials=30, **options)
        ((_at, low, high),) = hypervolume_interval(study, moments=1, draws=100)
        hits += low <= volume(gains(study, truth)) <= high
    return hits / studies


def test_the_hypervolumes_interval_covers_about_as_often_as_it_claims():
    """95 % are claimed. Errors drawn for each trial alone would leave out what is hard for all of them."""
    paired = held(np.random.default_rng(11), 150)
    assert 0.89 <= paired <= 0.99
    assert held(np.random.default_rng(11), 100, keeps=False) < paired - 0.05


def test_the_final_interval_is_the_curves_last():
    study, _truth = noisy_front(np.random.default_rng(0))
    assert final_interval(study) == pytest.approx(hypervolume_interval(study)[-1][1:])
    low, high = final_interval(study)
    assert low < hypervolume(study) < high
    assert final_interval(study_of([])) is None


def test_studies_of_before_say_what_is_not_known():
    old, _truth = noisy_front(np.random.default_rng(0), trials=10, keeps=False)
    assert unpaired(old).startswith("No trial kept its answers sentence by sentence: accuracy without them is drawn")
    records = list(noisy_front(np.random.default_rng(0), trials=10)[0].records)
    assert unpaired(study_of(records)) is None
    mixed = study_of([replace(records[0], answers=None), *records[1:]])
    assert unpaired(mixed).startswith("Not every trial (1 of 10) kept its answers")
    assert 0 < min(each.probability for each in standings(mixed).values()) <= 1
    f1 = (ObjectiveInfo("f1", "", "maximize"), PARAMETERS)
    renamed = [replace(r, values={"f1": r.values["accuracy"], "parameters": r.values["parameters"]}) for r in records]
    assert unpaired(study_of(renamed, *f1)) == (
        "No trial kept its answers sentence by sentence: f1 without them is taken as exact."
    )
    assert {each.probability for each in standings(study_of(renamed, *f1)).values()} == {1.0}


def test_what_was_worked_out_is_kept_with_its_study_alone():
    study = synthetic(60)
    before = copy.deepcopy(study)
    assert front(study) is front(study)
    assert standings(study) is standings(study)
    assert study == before
    fewer = replace(study, records=study.records[:20])
    assert len(front(fewer)) < len(front(study))
    assert set(standings(fewer)) == {record.trial for record in front(fewer)}
