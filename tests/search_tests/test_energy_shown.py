"""A counter that counts 1,000 mJ over 10 inferences gives 100 mJ per inference wherever energy is shown."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from objectives.energy.choose import COUNTERS
from objectives.energy.meter import Meter
from search.analysis.table import frame, front_frame, points, render_front
from search.analysis.trial import render_trial
from search.artifacts import Artifacts
from search.bert.ladder import ladder
from search.cli import app
from search.definition import (
    Definition,
    EnergySettings,
    EngineSettings,
    ImportanceSettings,
    LatencySettings,
    RecoverySettings,
    Task,
    TeacherSettings,
)
from search.engine import storage, study
from search.engine.worker import work
from search.pipeline import evaluate
from search.preparation import prepare
from search.records import ObjectiveInfo, StudyRecord


class Counter:
    """Counts 1,000 mJ between any two readings."""

    source = "rapl"

    def __init__(self) -> None:
        self.readings = 0

    def read_mj(self) -> float:
        self.readings += 1
        return 1000.0 * self.readings


class Silent:
    def stage(self, *_: object) -> None: ...

    def finished(self, *_: object) -> None: ...

    def note(self, _: str) -> None: ...


@pytest.fixture
def read_back(minilm: Path, movie_reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyRecord:
    """A study of one trial, the dense model, in a real database, whose only objective beside accuracy is energy."""

    def opened(_: torch.device) -> Meter:
        return Counter()

    monkeypatch.setitem(COUNTERS, "rapl", opened)  # type: ignore[arg-type]
    definition = Definition(
        name="energy",
        model=str(minilm),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=16, selection_rows=16, held_out_rows=16, max_tokens=16
        ),
        teacher=TeacherSettings(epochs=1, batch_size=16),
        importance=ImportanceSettings(method="magnitude"),
        recovery=RecoverySettings(steps=0),
        latency=LatencySettings(batch=10, tokens=4, warmup=0, repeats=3, seconds=0),
        energy=EnergySettings(source="rapl", window_s=1e-9, windows=1, idle_s=0),  # one batch of ten sequences
        objectives=("metric", "energy_mj"),
        engine=EngineSettings(trials=1),
    )
    prepared = prepare(
        definition,
        Artifacts(tmp_path / "artifacts"),
        device=torch.device("cpu"),
        own_objectives={},
        on_stage=lambda *_: None,
    )
    infos = [prepared.objectives[name] for name in definition.objective_names]
    made = study.create(
        storage.open_storage(f"sqlite:///{tmp_path}/study.db", create=True),
        definition,
        shape=prepared.shape,
        objectives=tuple(ObjectiveInfo(info.name, info.unit, info.direction) for info in infos),
        energy_source=prepared.energy_source,
        content=prepared.content,
        machine=prepared.machine,
        ladder=ladder(prepared.space, prepared.scores, sizes=(), tilts=()),
    )
    work(made, lambda plan, *, seed, on_stage: evaluate(prepared, plan, seed=seed, on_stage=on_stage), Silent())
    assert optuna.load_study(study_name="energy", storage=made._storage).trials[0].values[1] == 100.0
    return study.read(made)


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_it_is_100_mj_everywhere(read_back: StudyRecord, tmp_path: Path) -> None:
    (record,) = read_back.complete
    quantity = record.quantities["energy_mj"]
    assert (quantity["value"], quantity["unit"], quantity["source"], quantity["samples"]) == (100.0, "mJ", "rapl", 10)
    assert quantity["details"]["gross"] == 100.0
    assert record.values["energy_mj"] == 100.0
    assert record.conditions["energy_source"] == "rapl"
    assert [info.unit for info in read_back.objectives if info.name == "energy_mj"] == ["mJ"]
    assert list(front_frame(read_back)["energy_mj"]) == [100.0]
    assert [point["energy_mj"] for point in points(read_back)] == [100.0]
    assert [line.split() for line in shown(render_front(read_back)).splitlines() if "energy" in line]
    (row,) = [line for line in shown(render_trial(read_back, record)).splitlines() if "energy_mj" in line]
    assert row.split()[:5] == ["energy_mj", "*", "100", "mJ", "rapl"]
    assert json.loads(json.dumps(asdict(record)))["values"]["energy_mj"] == 100.0
    assert list(frame(read_back)["energy_mj"]) == [100.0]

    url = f"sqlite:///{tmp_path}/study.db"
    for command in (
        ["front", "energy", "--storage", url, "--csv", f"{tmp_path}/front.csv"],
        ["report", "energy", "--storage", url, "--out", f"{tmp_path}/report.html"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    with (tmp_path / "front.csv").open(encoding="utf-8", newline="") as file:
        assert [float(row["energy_mj"]) for row in csv.DictReader(file)] == [100.0]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(page.partition('type="application/json" id="data">')[2].partition("</script>")[0])
    (at,) = [number for number, column in enumerate(data["columns"]) if column["name"] == "energy_mj"]
    assert data["columns"][at]["label"] == "energy_mj"  # the unit is in the name
    assert [row[at] for row in data["values"]] == [100.0]
