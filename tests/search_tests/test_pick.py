import copy
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cases import synthetic

from search.analysis.front import front
from search.analysis.pick import knee_of, known_names, pick, resolve
from search.definition import Definition
from search.errors import UserError
from search.plan import Plan, Shape
from search.records import ObjectiveInfo, Record, StudyRecord

SHAPE = Shape(
    layers=2, heads=4, head_size=8, hidden=32, neurons=64, vocabulary=99, positions=16, token_types=2, labels=2
)
OBJECTIVES = (
    ObjectiveInfo("accuracy", "", "maximize"),
    ObjectiveInfo("latency_ms", "ms", "minimize"),
    ObjectiveInfo("size", "MB", "minimize"),
)


def study_of(*rows, objectives=OBJECTIVES, **fields):
    """A study whose trial i has the values of row i."""
    records = [
        Record(
            trial,
            "complete",
            plan=Plan((trial % 4 + 1, 2), (trial, 64)),
            values={o.name: value for o, value in zip(objectives, row, strict=False)},
            role="dense" if trial == 0 else "search",
            **fields,
        )
        for trial, row in enumerate(rows)
    ]
    definition = Definition(name="study", data="data.csv")
    return StudyRecord("study", definition, tuple(objectives), SHAPE, tuple(records))


FOUR = study_of((0.90, 20.0, 90.0), (0.88, 10.0, 60.0), (0.80, 5.0, 40.0), (0.60, 4.0, 30.0))


def slow_pick(study, at_least, at_most, prefer):
    """The definition of `pick`, pair by pair; None where nothing keeps the bounds."""
    up = {o.name: o.direction == "maximize" for o in study.objectives}

    def beats(one, other):
        pairs = [(one.values[n], other.values[n]) if up[n] else (other.values[n], one.values[n]) for n in up]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    kept = [
        r
        for r in study.records
        if r.state == "complete"
        and r.feasible
        and all(math.isfinite(v) for v in r.values.values())
        and all(r.values[n] >= v for n, v in at_least.items())
        and all(r.values[n] <= v for n, v in at_most.items())
    ]
    best = [r for r in kept if not any(beats(other, r) for other in kept)]
    order = [prefer or study.objectives[0].name, *up]
    best.sort(key=lambda r: ([-r.values[n] if up[n] else r.values[n] for n in order], r.trial))
    return best[0].trial if best else None


@st.composite
def questions(draw):
    """A study with many ties, and what is asked of it."""
    few = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0])
    names = [f"o{number}" for number in range(draw(st.integers(1, 4)))]
    ways = st.sampled_from(["maximize", "minimize"])
    objectives = tuple(ObjectiveInfo(name, "", draw(ways)) for name in names)
    rows = draw(st.lists(st.tuples(*[few | st.just(math.nan) for _ in names]), max_size=12))
    study = study_of(*rows, objectives=objectives)
    bounds = st.dictionaries(st.sampled_from(names), few, max_size=2)
    return study, draw(bounds), draw(bounds), draw(st.none() | st.sampled_from(names))


@settings(deadline=None)  # how long it takes says more of the machine than of the choice
@given(questions())
def test_the_choice_is_that_of_a_slow_search(question):
    study, at_least, at_most, prefer = question
    before = copy.deepcopy(study)
    expected = slow_pick(study, at_least, at_most, prefer)
    if expected is None:
        with pytest.raises(UserError):
            pick(study, at_least=at_least, at_most=at_most, prefer=prefer)
    else:
        choice = pick(study, at_least=at_least, at_most=at_most, prefer=prefer)
        assert choice.record.trial == expected
        assert choice.on_front == (expected in {record.trial for record in front(study)})
    assert study == before


def test_bounds_and_a_preference_name_the_point_and_why():
    choice = pick(FOUR, at_least={"accuracy": 0.7}, at_most={"latency_ms": 10}, prefer="size")
    assert choice.record.trial == 2
    assert choice.on_front
    assert choice.why[:2] == (
        "Of 4 candidates, 2 keep accuracy at least 0.7 and latency_ms at most 10; of these, no other beats 2.",
        "Trial 2 has the lowest size of these: 40.",
    )
    assert pick(FOUR).record.trial == 0
    assert pick(FOUR, at_most={"latency_ms": 10}).record.trial == 1


def test_what_was_measured_or_counted_beside_the_objectives_can_be_asked_for():
    assert pick(FOUR, at_least={"kept": 0.95}, prefer="latency").record.trial == 1  # 0.88 / 0.90 is 97.8 %
    assert pick(FOUR, at_least={"metric": 0.85}, prefer="latency").record.trial == 1
    assert pick(FOUR, prefer="encoder_share").record.trial == 0
    away = pick(FOUR, at_least={"latency_ms": 5}, prefer="latency_ms")
    assert away.record.trial == 2
    beyond = pick(study_of((0.9, 5, 5), (0.8, 6, 6)), at_least={"latency_ms": 5.5})
    assert not beyond.on_front
    assert "not on the front" in beyond.why[-1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"at_least": {"accuracy": 0.95}},
            "no trial keeps accuracy at least 0.95: the nearest is trial 0 with 0.9, 0.05 below it",
        ),
        (
            {"at_least": {"accuracy": 0.95}, "at_most": {"latency_ms": 3}},
            "no trial keeps accuracy at least 0.95: the nearest is trial 0 with 0.9, 0.05 below it; nor latency_ms at "
            "most 3: the nearest is trial 3 with 4, 1 above it",
        ),
        (
            {"at_least": {"accuracy": 0.85}, "at_most": {"latency_ms": 8}},
            "each of accuracy at least 0.85, latency_ms at most 8 can be kept, but not all of them by one trial; "
            "keeping the others, none keeps accuracy at least 0.85: the nearest is trial 2 with 0.8, 0.05 below it; "
            "nor latency_ms at most 8: the nearest is trial 1 with 10, 2 above it",
        ),
        (
            {"at_least": {"kept": 1.001}},
            "no trial keeps kept at least 100.1 %: the nearest is trial 0 with 100 %, 0.1 percentage points below it",
        ),
        ({"at_least": {"acuracy": 0.9}}, "unknown quantity 'acuracy'; did you mean 'accuracy'? Known: accuracy, "),
        ({"prefer": "speed"}, "unknown quantity 'speed'. Known: accuracy, latency_ms, size, "),
        ({"at_most": {"size": math.nan}}, "the bound on 'size' is nan; give a finite number"),
        ({"prefer": "size", "knee": True}, "both a knee and a preference (size) are asked for; give one of them"),
    ],
)
def test_what_rules_everything_out_is_said_with_the_distance(asked, message):
    with pytest.raises(UserError) as error:
        pick(FOUR, **asked)
    assert str(error.value).startswith(message)


def test_three_bounds_of_which_no_two_fit_together():
    study = study_of((0.9, 20, 90), (0.5, 1, 90), (0.5, 20, 10))
    with pytest.raises(UserError, match="loosen more than one of them"):
        pick(study, at_least={"accuracy": 0.8}, at_most={"latency_ms": 5, "size": 20})


def test_a_study_without_candidates_says_how_far_it_is():
    infeasible = study_of((0.9, 1, 1), (0.8, 1, 1), feasible=False)
    with pytest.raises(UserError, match=r"no trial to choose from yet; of its 2 trials, 2 are complete \(2 of them"):
        pick(infeasible)


def test_a_preference_never_leads_to_a_trial_that_another_beats():
    """Trial 1 has the smallest encoder, but trial 2 beats it in every objective."""
    study = study_of((0.9, 20, 90), (0.7, 12, 50), (0.8, 10, 40))
    plans = [Plan((4, 4), (64, 64)), Plan((1, 1), (0, 0)), Plan((2, 2), (32, 32))]
    records = tuple(replace(record, plan=plan) for record, plan in zip(study.records, plans, strict=True))
    assert pick(replace(study, records=records), prefer="encoder_share").record.trial == 2


def test_the_knee_is_where_the_curve_bends_most():
    """On the quarter circle x² + y² = 1 that is the middle, whatever the units."""
    angles = [math.pi / 2 * step / 20 for step in range(21)]
    rows = [(0.5 + 0.4 * math.sin(angle), 100 - 70 * math.cos(angle)) for angle in angles]
    study = study_of(*rows, objectives=OBJECTIVES[:2])
    assert pick(study, knee=True).record.trial == 10
    assert "Manhattan" in pick(study, knee=True).why[1]


def test_costs_that_go_along_with_each_other_do_not_outvote_the_accuracy():
    """The same curve with its cost counted four times has the same knee."""
    angles = [math.pi / 2 * step / 20 for step in range(21)]
    costs = tuple(ObjectiveInfo(f"cost{number}", "", "minimize") for number in range(4))
    rows = [(math.sin(angle), *(-math.cos(angle) * 10**n for n in range(4))) for angle in angles]
    study = study_of(*rows, objectives=(OBJECTIVES[0], *costs))
    assert pick(study, knee=True).record.trial == 10


def test_the_knee_of_one_point_and_of_equal_points():
    assert knee_of(FOUR, FOUR.records[:1]).trial == 0
    assert pick(study_of((0.5, 1, 1), (0.5, 1, 1)), knee=True).record.trial == 0


def test_known_names_begin_with_the_objectives():
    names = known_names(synthetic(20))
    assert names[:4] == ["accuracy", "parameters", "latency_ms", "energy_mj"]
    assert {"kept", "encoder_share", "encoder_parameters"} <= set(names)


def test_the_choice_says_how_sure_its_accuracy_is():
    assert "measured on 600 rows, so 95 % reach from 0." in pick(synthetic(30)).why[2]


def test_latency_means_the_plain_one_where_there_are_others_too():
    objectives = (*OBJECTIVES, ObjectiveInfo("latency_ms.single", "ms", "minimize"))
    study = study_of((0.90, 20.0, 90.0, 3.0), (0.88, 10.0, 60.0, 4.0), objectives=objectives)
    assert resolve(study, "latency") == "latency_ms"
    assert resolve(study, "latency_ms.single") == "latency_ms.single"
