"""How sure a metric of several trainings is: coverage by simulation, closed forms, and what is clearly better."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from study_cases import NASTY, OBJECTIVES, synthetic

from objectives import all_metrics
from search import weighing
from search.analysis import evidence
from search.analysis.confirmed import OPTIMISTIC, compare, one_line, rows, sentences
from search.analysis.evidence import Evidence, difference, gather, interval
from search.analysis.report import render_report
from search.answers import packed
from search.deploy.confirm import Training
from search.records import Confirmation, ObjectiveInfo, Record


def of(correct, seed=0):
    """The evidence of trainings that classify these rows correctly."""
    return gather([lambda some, one=one: float(one[some].mean()) for one in correct], len(correct[0]), seed=seed)


def test_of_one_training_the_interval_is_wilsons():
    correct = np.zeros(200, bool)
    correct[:150] = True
    p, n, z = 0.75, 200, 1.959964
    middle, reach = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2)
    expected = [(middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)]
    assert interval(of([correct]), is_share=True) == pytest.approx(expected)


def test_seeds_that_differ_widen_the_interval_by_students_t():
    values = np.array([0.7, 0.74, 0.78])
    flat = Evidence(values, np.full(400, values.mean()), 10**9)
    low, high = interval(flat, is_share=False)
    assert high - 0.74 == pytest.approx(4.302653 * 0.04 / math.sqrt(3))
    assert 0.74 - low == pytest.approx(4.302653 * 0.04 / math.sqrt(3))
    apart = difference(flat, replace(flat, values=values - 0.2, drawn=flat.drawn - 0.2))
    assert apart[0] == pytest.approx(0.2)
    assert apart[2] - apart[0] == pytest.approx(2.776445 * 0.04 * math.sqrt(2 / 3))  # Welch: 4 degrees of freedom


def test_the_interval_covers_what_other_seeds_and_rows_would_give(monkeypatch):
    """Rows of different difficulty, seeds of different quality: the true mean lies inside at least 93 times of 100."""
    monkeypatch.setattr(evidence, "DRAWS", 100)
    dice, inside, without = np.random.default_rng(0), 0, 0
    ease = dice.normal(1.0, 1.0, 200_000)
    quality = dice.normal(0, 0.25, 20_000)
    truth = float((1 / (1 + np.exp(-(dice.choice(ease, 10**6) + dice.choice(quality, 10**6))))).mean())
    for _ in range(300):
        sample, seeds = dice.choice(ease, 300), dice.choice(quality, 3)
        chances = 1 / (1 + np.exp(-(sample[None, :] + seeds[:, None])))
        known = of(list(dice.random(chances.shape) < chances))
        low, high = interval(known, is_share=True)
        inside += low <= truth <= high
        low, high = interval(replace(known, values=known.values[:1]), is_share=True)
        without += low <= truth <= high
    assert inside >= 0.93 * 300
    assert without < inside  # one training knows nothing of the seeds


def test_points_are_compared_on_the_same_rows():
    """Two points that err on the same rows but for a few are told apart; with errors of their own they are not."""
    dice = np.random.default_rng(1)
    one = dice.random(400) < 0.8
    worse = one.copy()
    worse[np.flatnonzero(one)[:14]] = False
    apart, low, high = difference(of([one]), of([worse]))
    assert apart == pytest.approx(14 / 400)
    assert 0 < low < apart < high
    shuffled = dice.permutation(worse)
    assert difference(of([one]), of([shuffled]))[1] < 0
    turned = difference(of([worse]), of([one]))
    assert turned == pytest.approx((-apart, -high, -low))


def confirmation(trial, value, *, low=None, high=None, beats=(), searched_on=None, **quantities):
    """A confirmation of a trial whose accuracy came out so."""
    accuracy = {"value": value, "each": [value], "low": low or value - 0.02, "high": high or value + 0.02, "unit": ""}
    return Confirmation(
        trial,
        {"accuracy": accuracy, **{name: {"value": number, "each": [number]} for name, number in quantities.items()}},
        selection={"accuracy": searched_on or value},
        seeds=() if trial == 0 else (1, 2, 3),
        asked=0 if trial == 0 else 3,
        recovery={} if trial == 0 else {"steps": 500},
        rows=1000,
        beats=tuple(beats),
    )


def study_with(*confirmations):
    """A study with searched accuracies 0.90 (dense), 0.88, 0.86 and 0.84."""
    study = synthetic(4)
    records = [
        replace(record, values={**record.values, "accuracy": 0.9 - 0.02 * record.trial}, feasible=True)
        for record in study.records
    ]
    return replace(study, records=tuple(records), confirmations=confirmations)


def test_where_the_search_was_too_optimistic_is_said():
    study = study_with(
        confirmation(0, 0.895), confirmation(1, 0.84, beats=(2,)), confirmation(2, 0.81), confirmation(3, 0.845)
    )
    said = " ".join(sentences(study))
    assert "In the search, these 3 points had accuracy 0.8600 on average; confirmed, 0.8317 (-0.0283)." in said
    assert "has 0.9000 on the selection split and 0.8950 on the held-out one (-0.0050)" in said
    assert "The search was too optimistic about trial 1, 2, beyond the splits' difference: the best of many" in said
    assert compare(study, study.confirmations[0], "accuracy").verdict == "-0.0050 from split to split"
    assert compare(study, study.confirmations[1], "accuracy").verdict == OPTIMISTIC
    assert compare(study, study.confirmations[3], "accuracy").verdict == "holds"
    assert one_line(study, study.confirmations[1]) == (
        "accuracy 0.8400 (0.8200 to 0.8600) on 1,000 held-out rows, 3 trainings; searched 0.8800: "
        "the search was too optimistic"
    )


def test_what_the_dense_model_loses_as_well_is_not_the_searchs():
    points = [confirmation(trial, value) for trial, value in ((1, 0.84), (2, 0.81), (3, 0.85))]
    harder = study_with(confirmation(0, 0.86), *points)  # the held-out rows cost the dense model 0.04
    verdicts = [compare(harder, each, "accuracy").verdict for each in harder.confirmations]
    assert verdicts == ["-0.0400 from split to split", "holds", "holds", "better than searched"]
    assert "Nowhere was the search clearly too optimistic" in " ".join(sentences(harder))


def test_intervals_stay_within_what_a_metric_can_be():
    seeds = of([np.arange(100) < right for right in (99, 100, 92)])
    assert interval(seeds, is_share=True)[1] == 1.0
    assert interval(of([np.arange(100) < right for right in (99, 10)]), is_share=False) == (-1.0, 1.0)


def test_few_measurements_without_intervals_of_their_own_have_a_wide_one():
    from search.weighing import _again

    measured = [{"value": value} for value in (242.2, 216.8, 221.2)]
    known = _again(measured)
    assert (known["low"], known["high"]) == pytest.approx(
        (221.2 - 33.7, 221.2 + 33.7), abs=0.1
    )  # 4.303 * 13.57 / 3 ** 0.5
    assert _again([*measured, {"value": 220.0, "interval": [210.0, 230.0]}])["low"] == 210.0
    assert "low" not in _again(measured[:1])


@pytest.mark.parametrize(("drop", "optimistic"), [(0.0, (0, 0.05)), (0.09, (0.9, 1))])
def test_the_search_is_called_too_optimistic_where_it_was(drop, optimistic, monkeypatch):
    """500 rows searched, 872 held out, three trainings: equal truths are told apart 2.5 times of 100 on each side."""
    monkeypatch.setattr(evidence, "DRAWS", 2)  # accuracy has Wilson's interval
    study, dice, said = study_with(), np.random.default_rng(0), []
    for _ in range(400):
        found = float(((dice.random(500) < 0.85) ^ (dice.random(500) < 0.02)).mean())
        record = Record(1, "complete", quantities={"accuracy": {"value": found, "samples": 500}})
        known = of(list((dice.random(872) < 0.85 - drop) ^ (dice.random((3, 872)) < 0.02)))
        low, high = interval(known, is_share=True)
        one = replace(study, records=(study.records[0], record))
        said.append(compare(one, confirmation(1, known.mean, low=low, high=high), "accuracy").verdict)
    assert optimistic[0] <= said.count(OPTIMISTIC) / 400 <= optimistic[1]
    assert said.count("better than searched") / 400 <= 0.05


def test_the_noise_of_other_metrics_is_that_of_the_answers():
    """Searched on 300 rows, 0.68 is as good as 0.59 to 0.65; were it exact, it would not be."""
    right, true = np.arange(300) % 20 > 2, np.arange(300) % 3 > 0
    predicted = np.where(right, true, ~true)
    searched = float(np.corrcoef(true, predicted)[0, 1])
    assert searched == pytest.approx(0.68, abs=0.005)
    study = replace(study_with(), objectives=(ObjectiveInfo("matthews", "", "maximize"),))
    answers = packed(true.astype(int), predicted.astype(int), labels=2)
    record = replace(study.records[1], values={"matthews": searched}, answers=answers)

    def verdict(value, record=record):
        again = {"value": value, "low": value - 0.03, "high": value + 0.03, "each": [value]}
        one = replace(study, records=(study.records[0], record))
        return compare(one, Confirmation(1, {"matthews": again}), "matthews").verdict

    assert verdict(0.62) == verdict(0.74) == "holds"
    assert verdict(0.53) == OPTIMISTIC
    assert verdict(0.83) == "better than searched"
    assert verdict(0.62, replace(record, answers=None)) == OPTIMISTIC


@pytest.mark.parametrize(
    ("beats", "said"),
    [
        (
            {1: (2, 3), 2: (3,)},
            "The ranking by accuracy holds: all pairs are clearly apart on the held-out rows, as in the search.",
        ),
        (
            {1: (3,)},
            "Of 3 pairs 1 is clearly apart on the held-out rows, as the search ranks them by accuracy; of the o",
        ),
        ({3: (1,)}, "does not hold: on the held-out rows trial 3 is above trial 1."),
        ({}, "cannot be told: none of 3 pairs is clearly apart"),
    ],
)
def test_whether_the_ranking_holds(beats, said):
    study = study_with(*(confirmation(trial, 0.85, beats=beats.get(trial, ())) for trial in (1, 2, 3)))
    assert said in " ".join(sentences(study))


def test_points_that_took_different_numbers_of_steps_are_not_ranked():
    """Trial 1 has a claim on trial 2 from before that was trained again for longer, and cost and metric below it."""
    one, two = confirmation(1, 0.85, beats=(2,), parameters=9.0), confirmation(2, 0.86, parameters=8.0)
    objectives = (OBJECTIVES[0], OBJECTIVES[1])
    longer = replace(two, recovery={"steps": 900})
    same = " ".join(sentences(replace(study_with(one, two), objectives=objectives)))
    assert "holds: all pairs are clearly apart on the held-out rows, as in the search." in same
    assert "trial 1 is beaten by another of these." in same
    assert "different numbers of steps" not in same
    said = " ".join(sentences(replace(study_with(one, longer), objectives=objectives)))
    assert "ranking" not in said
    assert "Points that took different numbers of steps are not ranked. " in said
    assert "none of these is beaten by another after as many steps." in said
    three = confirmation(3, 0.8, parameters=10.0)
    said = " ".join(sentences(replace(study_with(replace(one, beats=(2, 3)), longer, three), objectives=objectives)))
    assert (
        "holds: all pairs are clearly apart on the held-out rows, as in the search. Points that took different" in said
    )
    assert "trial 3 is beaten by another of these after as many steps." in said


def test_only_what_took_as_many_steps_is_said_to_be_beaten():
    known = {trial: of([np.arange(400) < 390 - 60 * trial]) for trial in range(4)}
    ranked = weighing.ranked(
        [
            confirmation(0, 0.9, beats=(3,)),
            confirmation(1, 0.85, beats=(2, 3)),
            replace(confirmation(2, 0.8), recovery={"steps": 900}),
            confirmation(3, 0.7),
        ],
        known,
    )
    assert [each.beats for each in ranked] == [(1, 2, 3), (3,), (), ()]


def test_an_unfinished_confirmation_says_what_is_missing():
    half = replace(confirmation(1, 0.85), seeds=(1,))
    said = " ".join(sentences(study_with(half)))
    assert "With one training of trial 1, the seed is not in its interval." in said
    assert "Trial 1 lacks trainings: the same command goes on." in said
    assert "1 of 3 trainings" in one_line(study_with(half), half)


def test_costs_are_compared_with_what_is_known_of_their_spread():
    study = study_with(confirmation(1, 0.85))
    record = study.records[1]
    searched = record.values["latency_ms"]
    again = {"value": 2 * searched, "low": 1.9 * searched, "high": 2.1 * searched, "each": []}

    def verdict(factor):
        scaled = {name: factor * value if name != "each" else [] for name, value in again.items()}
        one = replace(study.confirmations[0], quantities={"latency_ms": scaled})
        return compare(study, one, "latency_ms").verdict

    assert verdict(1.0) == "worse than searched (2.00 times)"
    assert verdict(0.5) == "holds"
    assert verdict(0.25) == "better than searched (0.50 times)"
    parameters = replace(study.confirmations[0], quantities={"parameters": {"value": record.values["parameters"]}})
    assert compare(study, parameters, "parameters").verdict == "the same"


def test_confirmations_of_every_sort_are_shown_and_escaped():
    objectives = (*OBJECTIVES, ObjectiveInfo(NASTY, "", "minimize"))
    study = synthetic(6, objectives=objectives, name=NASTY)
    nan = {"value": math.nan, "low": math.nan, "high": math.nan, "each": []}
    odd = Confirmation(2, {NASTY: {"value": 1.0, "each": [1.0]}, "accuracy": nan}, recovery={"steps": 1}, asked=3)
    whole = replace(study, confirmations=(confirmation(0, 0.9), confirmation(1, 0.85), odd))
    assert len(rows(whole, whole.confirmations)) == 4
    assert sentences(whole)
    page = render_report(whole)
    assert "<script>window.broken" not in page
    assert "Searched and confirmed" in page
    empty = replace(study, confirmations=(Confirmation(1, {}),))
    assert "Confirmed on 0 held-out rows" in sentences(empty)[0]
    assert render_report(empty)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_what_trainings_say_is_the_librarys_metric_on_every_draw(metric: str) -> None:
    dice = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (90,), generator=dice)
    logits = torch.randn(90, 2, generator=dice)
    logits[torch.arange(90), labels] += 0.7
    study = synthetic(8)
    task = study.definition.task.model_copy(update={"metric": metric})
    study = replace(study, definition=study.definition.model_copy(update={"task": task}))
    training = Training(1, logits, {}, {}, {}, 0.0)
    found = weighing.evidence_of(study, [training], labels)
    dice_of_rows = np.random.default_rng(study.definition.engine.seed)
    for value in found.drawn[:40]:
        some = torch.from_numpy(dice_of_rows.integers(90, size=90))
        assert value == pytest.approx(all_metrics(logits[some], labels[some])[metric].value, abs=1e-12)
    assert found.values[0] == pytest.approx(all_metrics(logits, labels)[metric].value, abs=1e-12)
