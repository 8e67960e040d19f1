"""Latencies related to the dense model's, and measured while nobody else uses the device."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import DEFINITION, SilentListener, create_in, evaluation_of
from test_turns import holder

from search.artifacts import Artifacts
from search.definition import (
    Definition,
    ImportanceSettings,
    LatencySettings,
    MeasuringSettings,
    RecoverySettings,
    Task,
    TeacherSettings,
    build,
    differences,
    from_json,
)
from search.engine import attributes, storage, study
from search.engine.worker import work
from search.errors import UserError
from search.pipeline import evaluate
from search.plan import Plan
from search.preparation import Prepared, prepare, referred
from search.turns import Alone, Shared

HALF = Plan((6,) * 6, (768,) * 6)


def ignore(_name: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture(scope="module")
def definition(minilm: Path, movie_reviews: Path) -> Definition:
    settings = LatencySettings(batch=2, tokens=16, warmup=1, repeats=6, seconds=0)
    return Definition(
        name="measuring",
        model=str(minilm),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=16, selection_rows=16, held_out_rows=16, max_tokens=16
        ),
        teacher=TeacherSettings(epochs=1, batch_size=16),
        importance=ImportanceSettings(method="magnitude"),
        recovery=RecoverySettings(steps=0),
        latency=settings,
        latencies={"single": settings.model_copy(update={"batch": 1})},
        measuring=MeasuringSettings(exclusive="never"),
        objectives=("metric", "latency_ms"),
    )


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(tmp_path_factory.mktemp("artifacts"))


def make(definition: Definition, artifacts: Artifacts, **given: Any) -> Prepared:
    return prepare(definition, artifacts, device=torch.device("cpu"), own_objectives={}, on_stage=ignore, **given)


def measuring(definition: Definition, **fields: Any) -> Definition:
    return definition.model_copy(update={"measuring": MeasuringSettings(exclusive="never", **fields)})


def test_a_new_study_measures_the_dense_model_and_corrects_by_it(definition: Definition, artifacts: Artifacts) -> None:
    prepared = make(definition, artifacts)
    assert set(prepared.reference_ms) == {"latency_ms", "latency_ms.single"}
    assert all(value > 0 for value in prepared.reference_ms.values())
    prepared = referred(prepared, {"latency_ms": 1000.0, "latency_ms.single": 500.0})
    quantities = evaluate(prepared, HALF, seed=1, on_stage=ignore).quantities
    for name, at_start in prepared.reference_ms.items():
        value, details = quantities[name]["value"], quantities[name]["details"]
        assert details["reference_at_start"] == at_start
        assert details["pairs"] == quantities[name]["samples"] == 3
        assert value == details["corrected"] == pytest.approx(details["ratio"] * at_start)
        assert quantities[name]["low"] <= value <= quantities[name]["high"]
        assert 0.1 < details["ratio"] < 1.0


def test_a_study_of_an_earlier_version_goes_on_as_it_began(definition: Definition, artifacts: Artifacts) -> None:
    older = json.loads(definition.to_json())
    del older["measuring"]
    loaded = from_json(json.dumps(older), source="an older study")
    assert loaded.measuring == MeasuringSettings()
    assert differences(loaded, definition) == []
    prepared = make(definition, artifacts, reference_ms={})
    quantity = evaluate(prepared, HALF, seed=1, on_stage=ignore).quantities["latency_ms"]
    assert set(quantity["details"]) == {"p95", "throughput_per_s"}


def test_the_definition_says_which_figure_is_the_objective(definition: Definition, artifacts: Artifacts) -> None:
    prepared = make(measuring(definition, figure="absolute"), artifacts, reference_ms={"latency_ms": 1000.0})
    quantity = evaluate(prepared, HALF, seed=1, on_stage=ignore).quantities["latency_ms"]
    assert quantity["value"] == quantity["details"]["absolute"] != quantity["details"]["corrected"]
    without = make(measuring(definition, reference=False), artifacts)
    assert without.reference_ms == {}
    assert "ratio" not in evaluate(without, HALF, seed=1, on_stage=ignore).quantities["latency_ms"]["details"]
    with pytest.raises(UserError, match="a corrected figure needs the reference"):
        build({"name": "x", "data": "d", "measuring": {"figure": "corrected", "reference": False}}, source="here")
    resumed = definition.model_copy(update={"measuring": MeasuringSettings(exclusive="always")})
    assert differences(definition, resumed) == []
    assert differences(definition, measuring(definition, figure="absolute"))


def test_the_database_holds_the_reference(tmp_path: Path) -> None:
    opened = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    older = create_in(opened, DEFINITION)
    assert study.stored(older).reference_ms == {}
    about = study.stored(older)
    given = {
        "shape": about.shape, "objectives": about.objectives, "energy_source": "model", "content": about.content,
        "machine": about.machine, "ladder": [],
    }  # fmt: skip
    newer = DEFINITION.model_copy(update={"name": "newer"})
    study.create(opened, newer, **given, reference_ms={"latency_ms": 12.5})
    again = study.create(opened, newer, **given, reference_ms={"latency_ms": 99.0})  # another worker, a moment later
    assert study.stored(again).reference_ms == {"latency_ms": 12.5}


def test_warnings_stand_in_the_trial(tmp_path: Path) -> None:
    engine = DEFINITION.engine.model_copy(update={"trials": 2})
    opened = storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    made = create_in(opened, DEFINITION.model_copy(update={"engine": engine}))
    first: list[Plan] = []

    def noisy(plan: Plan, **given: Any) -> Any:
        evaluation = evaluation_of(plan, **given)
        if not first:
            evaluation.quantities["latency_ms"]["warning"] = "latency_ms: too wide"
        first.append(plan)
        return evaluation

    work(made, noisy, SilentListener())
    noted = [trial.user_attrs.get(attributes.WARNINGS) for trial in made.get_trials(deepcopy=False)[:2]]
    assert noted == [["latency_ms: too wide"], None]


def test_a_trial_measures_alone(definition: Definition, artifacts: Artifacts, tmp_path: Path) -> None:
    prepared = make(definition, artifacts)
    assert isinstance(prepared.turns, Alone)
    file = tmp_path / "device.lock"
    stages: list[str] = []
    with holder(file, "hold") as other:

        def on_stage(name: str, _done: int, _total: int) -> None:
            stages.append(name)
            if name == "wait to measure":
                other.kill()

        mine = dataclasses.replace(prepared, turns=Shared(file))
        evaluation = evaluate(mine, HALF, seed=1, on_stage=on_stage)
    assert list(dict.fromkeys(stages)) == ["cut", "measure", "wait to measure", "score"]
    assert set(evaluation.seconds) == {"cut", "measure", "score"}
    with Shared(file).measuring(lambda: pytest.fail("the trial is over, and the device not free")):
        pass
