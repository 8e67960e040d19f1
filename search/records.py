"""A finished trial as plain data: what the analysis, the commands and the exports read. No Optuna, no torch."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from search.definition import Definition
from search.plan import Plan, Shape

PREPARATION = -1
"""Stands for what is done once per study, where a trial's number is expected."""

LOST = "its worker was lost"
"""Reason of a failed trial that could not say its own; what it used is known as far as its worker said so before."""

SPACE = "space"
"""Name of the constraint that a dense model breaks which lies outside the study's space."""

State = Literal["complete", "failed", "running", "waiting"]


@dataclass(frozen=True)
class ObjectiveInfo:
    """What an objective is: enough to print it and to compare values.

    Attributes:
        name: For example `latency_ms`.
        unit: For example `ms`; empty for a share.
        direction: Which way is better.
    """

    name: str
    unit: str
    direction: Literal["maximize", "minimize"]

    @property
    def label(self) -> str:
        """The name with its unit, for an axis or a column: `size [MB]`, and `latency_ms`, which says it already."""
        says_it = not self.unit or self.unit == self.name or self.name.lower().endswith(f"_{self.unit.lower()}")
        return self.name if says_it else f"{self.name} [{self.unit}]"


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        trial: Number of the trial in its study, from 0.
        state: What became of it.
        plan: Heads and neurons kept, and the rank of the word embeddings; None where the trial ended before it had one.
        ratios: The parameters in the study database, by dimension.
        schedule: What was chosen of the recovery's schedule, by field; empty where nothing was.
        precision: Number type that it was scored and measured in.
        rungs: Shares of the recovery's steps, and the metric after these.
        ended_at: Share of the steps after which the recovery was ended early; None where it was not.
        audited_at: Share after which it would have been ended, and went on to see what comes of it.
        values: Objective values by name, empty unless complete.
        quantities: Everything measured: for each name a dict of value, unit, source and spread
            (`objectives.Measurement.to_dict`).
        feasible: Whether it keeps all constraints. The front holds feasible trials only.
        violations: By constrained quantity, how far beyond its bound (above 0 breaks it); by `SPACE` that the dense
            model lies outside the study's space.
        seconds: Time by stage.
        seed: Seed that the trial's randomness came from; None where it was answered from another record.
        answered_from: Number of the trial whose record answered this one, else None.
        role: `dense`, `ladder` or `search`.
        failure: Reason of a failed trial, else None.
        conditions: Device, threads, versions and the source of the energy figure.
        energy_j: Energy that the trial's worker used since its trial before, in joules, as its device's counter says;
            of a worker that died, as far as it said so; None where no counter could be read.
        counter: Name of that counter; None where there was none, or an earlier version did not note it.
        lasted_s: Seconds from begin to end, waiting included; of a worker that died, as far as it said so; None where
            that was not noted.
        cut_from: Number of the trial whose recovered model was cut; None where that was the model of the study.
        weights: Digest under which the recovered weights are kept among the artifacts; None where they are not.
        answers: What it answered on the selection split, sentence by sentence (`search.answers.packed`); None where
            that was not kept.
    """

    trial: int
    state: State
    plan: Plan | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    schedule: dict[str, float] = field(default_factory=dict)
    precision: str = "fp32"
    rungs: tuple[tuple[float, float], ...] = ()
    ended_at: float | None = None
    audited_at: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    quantities: dict[str, dict[str, Any]] = field(default_factory=dict)
    feasible: bool = True
    violations: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    answered_from: int | None = None
    role: str = "search"
    failure: str | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    energy_j: float | None = None
    counter: str | None = None
    lasted_s: float | None = None
    cut_from: int | None = None
    weights: str | None = None
    answers: dict[str, Any] | None = None

    def value(self, name: str) -> float:
        """A measured quantity by name, objective or not.

        Raises:
            KeyError: If the trial did not measure it.
        """
        return self.values[name] if name in self.values else float(self.quantities[name]["value"])


@dataclass(frozen=True)
class Ancestor:
    """A finished trial whose recovered model another plan may be cut from.

    Attributes:
        trial: Its number.
        plan: What it keeps.
        weights: Digest under which its weights are kept among the artifacts.
    """

    trial: int
    plan: Plan
    weights: str


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation of one plan gave, as plain data.

    Attributes:
        quantities: Everything measured, by name (`objectives.Measurement.to_dict`).
        violations: By constrained quantity, how far beyond its bound; above 0 breaks it.
        seconds: Time by stage.
        conditions: Device, threads, versions and the source of the energy figure.
        cut_from: Number of the trial whose recovered model was cut; None where that was the model of the study.
        weights: Digest under which the recovered weights are kept among the artifacts; None where they are not.
        answers: What the candidate answered, sentence by sentence (`search.answers.packed`); None where that is not
            known.
    """

    quantities: dict[str, dict[str, Any]]
    violations: dict[str, float]
    seconds: dict[str, float]
    conditions: dict[str, Any]
    cut_from: int | None = None
    weights: str | None = None
    answers: dict[str, Any] | None = None


@dataclass(frozen=True)
class Confirmation:
    """What a trial's plan is worth when it is trained again, with the full budget, and scored on rows never seen.

    Attributes:
        trial: Number of the trial.
        quantities: Everything measured, by name: `value` (metrics: mean of the trainings, on the held-out split; else
            their median), `each` (one value per training), `unit`, and where it is known `low` and `high` (95 %).
        selection: Means of the same models' metrics on the selection split, by name.
        seeds: Seeds of the trainings that are done; empty for the dense model, which is the teacher itself.
        asked: How many trainings were asked for.
        recovery: How they were trained; empty for the dense model.
        best: Seed of the one that has the best metric on the selection split, which is what can be exported; None for
            the dense model, and in records of earlier versions.
        weights: Digest under which the weights of that one are kept among the artifacts; None where there are none.
        rows: Rows of the held-out split.
        beats: Other confirmed trials whose task metric on these rows, after as many steps, is clearly (95 %) below this
            one's.
        conditions: Device, threads, versions and the source of the energy figure.
        seconds: What the trainings took, with their measurements.
    """

    trial: int
    quantities: dict[str, dict[str, Any]]
    selection: dict[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    asked: int = 0
    recovery: dict[str, Any] = field(default_factory=dict)
    best: int | None = None
    weights: str | None = None
    rows: int = 0
    beats: tuple[int, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def is_like(self, other: "Confirmation") -> bool:
        """Whether two of them may be ranked: as many steps each, or one of them was not trained at all."""
        return not self.recovery or not other.recovery or self.recovery.get("steps") == other.recovery.get("steps")


@dataclass(frozen=True)
class StudyRecord:
    """One study as plain data.

    Attributes:
        name: Name of the study.
        definition: The definition it was created with.
        objectives: Its objectives, in the order of the vector.
        shape: Sizes of the dense model.
        records: All trials, by number.
        preparation: Seconds that each artifact took when it was really made, by kind; empty where that is not known.
        preparation_j: Joules that each took, and the counter that says so, by kind; those without one are missing.
        rows: Rows and mean tokens of the splits that a search reads, by split; empty where that is not known.
        confirmations: What became of the trials that were confirmed, by number.
    """

    name: str
    definition: Definition
    objectives: tuple[ObjectiveInfo, ...]
    shape: Shape
    records: tuple[Record, ...]
    preparation: dict[str, float] = field(default_factory=dict)
    preparation_j: dict[str, tuple[float, str]] = field(default_factory=dict)
    rows: dict[str, tuple[int, float]] = field(default_factory=dict)
    confirmations: tuple[Confirmation, ...] = ()

    @property
    def complete(self) -> tuple[Record, ...]:
        """The trials that have values."""
        return tuple(record for record in self.records if record.state == "complete")

    @cached_property  # asked for once per row of a table
    def dense(self) -> Record | None:
        """The trial that evaluated the dense model, or None where there is none yet."""
        return next((record for record in self.complete if record.role == "dense"), None)

    def confirmation_of(self, record: Record | None) -> Confirmation | None:
        """What a trial came to when it, or the one whose record answered it, was confirmed; None where neither was."""
        numbers = () if record is None else (record.trial, record.answered_from)
        return next((each for each in self.confirmations if each.trial in numbers), None)


@dataclass(frozen=True)
class Overview:
    """How far a study is.

    Attributes:
        name: Name of the study.
        counts: Trials by state.
        total: Completed trials that it shall have; None where paretobert did not make it.
        last: When something last happened in it, in this machine's time; None where nothing has.
    """

    name: str
    counts: dict[State, int]
    total: int | None
    last: datetime | None
