"""A small study whose evaluation is a formula: what the engine's tests run."""

from pathlib import Path
from typing import Any

from optuna import Study
from optuna.storages import RDBStorage

from search.definition import Definition, EngineSettings, SpaceSettings
from search.engine import storage, study
from search.plan import Plan, Shape, encoder_macs, encoder_parameters, total_parameters
from search.records import Evaluation, ObjectiveInfo, Record, StudyRecord
from search.space import Space

SHAPE = Shape(
    layers=3, heads=4, head_size=8, hidden=32, neurons=64, vocabulary=100, positions=32, token_types=2, labels=2
)
DEFINITION = Definition(
    name="case", data="unused", space=SpaceSettings(neuron_block=16), engine=EngineSettings(trials=12, population=8)
)
OBJECTIVES = (
    ObjectiveInfo("accuracy", "", "maximize"),
    ObjectiveInfo("parameters", "", "minimize"),
    ObjectiveInfo("latency_ms", "ms", "minimize"),
    ObjectiveInfo("energy_mj", "mJ", "minimize"),
)


class SilentListener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.records: list[Record] = []
        self.stages: list[tuple[int, str, int, int]] = []

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        self.stages.append((trial, name, done, total))

    def finished(self, record: Record, completed: int, total: int) -> None:  # noqa: ARG002
        self.records.append(record)

    def known(self, study: StudyRecord) -> None:
        self.records.extend(study.records)

    def note(self, text: str) -> None:
        self.notes.append(text)


def begin(folder: Path, definition: Definition) -> tuple[Study, str]:
    """A new study in an SQLite file of the folder, and its URL."""
    url = f"sqlite:///{folder}/study.db"
    return create_in(storage.open_storage(url, create=True), definition), url


def create_in(opened: RDBStorage, definition: Definition) -> Study:
    """A new study in an open storage."""
    space = Space.of(definition.space, SHAPE, definition.recovery)
    return study.create(
        opened,
        definition,
        shape=SHAPE,
        objectives=OBJECTIVES,
        energy_source="model",
        content={"rows": "r", "teacher": "t"},
        machine="cpu with 1 threads",
        ladder=[space.uniform(size) for size in definition.engine.ladder],
    )


def evaluation_of(plan: Plan, *, at_most: float | None = None, **_given: Any) -> Evaluation:
    """Accuracy that falls with what is cut, unevenly; the costs are the real closed forms.

    `at_most` is a bound on the parameters, as the pipeline would check it.
    """
    share = encoder_parameters(plan, SHAPE) / encoder_parameters(Plan.dense(SHAPE), SHAPE)
    uneven = sum((layer + 1) * heads for layer, heads in enumerate(plan.heads)) / 24
    macs = encoder_macs(plan, SHAPE, tokens=16)
    values = {
        "accuracy": 0.5 + 0.4 * share**0.3 * (0.8 + 0.2 * uneven),
        "parameters": total_parameters(plan, SHAPE),
        "encoder_share": share,
        "latency_ms": 1 + macs / 1e5,
        "energy_mj": 0.1 + macs / 2e6 + sum(plan.heads) / 100,
    }
    return Evaluation(
        quantities={name: {"value": value, "unit": "", "source": "formula"} for name, value in values.items()},
        violations={} if at_most is None else {"parameters": values["parameters"] - at_most},
        seconds={"recover": 0.0},
        conditions={"device": "formula"},
    )
