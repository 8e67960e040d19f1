"""Is a point as good as the search said? Trained again in full, with several seeds, and scored on rows never seen.

    trial ─► plan ─┬─ seed 1 ─► cut ─► full budget ─► held-out rows scored ─► measured ─► kept, with its weights
                   ├─ seed 2 ─► ...                                                              │
                   └─ seed n ─► ...                                  weighed together (search.weighing) ◄┘

A training that is done is found again by everything that determined it, so that an interrupted confirmation goes on,
and one with more seeds begins with those that are there.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from objectives import Subject
from search import candidates
from search.artifacts import Artifacts, OnWait, digest
from search.bert.encoding import Encoded
from search.definition import METRICS, Definition, RecoverySettings
from search.deploy.rebuild import origin, rebuild, settings_of
from search.keys import wanted
from search.pipeline import conditions_of, cut_to, failures_told, is_wanted, logits_on
from search.plan import Plan
from search.preparation import OnStage, Prepared
from search.records import Confirmation, Record, StudyRecord

KIND = "confirmation"
"""What a training is called among the artifacts."""

SEEDS = 3
"""Third part of a training's seed, so that it has nothing to do with the seeds of the search."""


@dataclass(frozen=True, eq=False)
class Training:
    """One training of one plan.

    Attributes:
        seed: Its seed; None for the dense model, which is the teacher itself.
        logits: Logits on the held-out split (rows, labels), float32.
        selection: Its metrics on the selection split, by name.
        measured: What was measured of it, by name (`objectives.Measurement.to_dict`).
        conditions: Device, threads, versions and the source of the energy figure.
        seconds: What it took.
        weights: Digest under which its weights are kept among the artifacts; None for the dense model, and for
            trainings of earlier versions.
    """

    seed: int | None
    logits: Tensor
    selection: Mapping[str, float]
    measured: Mapping[str, dict[str, Any]]
    conditions: Mapping[str, Any]
    seconds: float
    weights: str | None = None


def full_budget(
    study: StudyRecord, trial: int, *, rows: int, epochs: float | None = None, steps: int | None = None
) -> RecoverySettings:
    """How a trial's plan is trained in full: as in the search, for longer.

    Args:
        study: The study.
        trial: Number of the trial; what its schedule chose is kept, but for the steps.
        rows: Rows of the training split.
        epochs: Passes over them; None takes as many as the dense model was fine-tuned for.
        steps: Optimizer steps instead.

    Returns:
        The settings. Unless steps are given, never fewer than the search took.
    """
    settings = settings_of(study, origin(study, trial))
    passes = study.definition.teacher.epochs if epochs is None else epochs
    whole = max(settings.steps, round(rows / settings.batch_size * passes)) if steps is None else steps
    return settings.model_copy(update={"steps": whole})


def seeds_of(study: StudyRecord, trial: int, count: int) -> list[int]:
    """Seeds of so many trainings of a trial; those of fewer are the first of them, and none is the search's."""
    seed = study.definition.engine.seed
    return [int(np.random.SeedSequence([seed, trial, SEEDS, n]).generate_state(1)[0]) for n in range(count)]


def is_dense(study: StudyRecord, record: Record) -> bool:
    """Whether a trial is the dense model, which is confirmed as it is: it is the teacher of all others."""
    return record.plan == Plan.dense(study.shape)


class Created(Protocol):
    """What a study was created with: what its database says, or what is prepared from it."""

    @property
    def definition(self) -> Definition:
        """The study's definition."""

    @property
    def content(self) -> Mapping[str, str]:
        """Hashes of what all trials have in common."""

    @property
    def machine(self) -> str:
        """Device and threads that latencies are measured with."""

    @property
    def energy_source(self) -> str:
        """`nvml`, `rapl` or `model`."""

    @property
    def reference_ms(self) -> Mapping[str, float]:
        """Latencies of the dense model, by quantity."""


def key(created: Created, record: Record, recovery: RecoverySettings | None, seed: int | None) -> dict[str, Any]:
    """Everything that determines a training and its measurements."""
    plan = record.plan
    assert plan is not None
    definition = created.definition
    how = definition.model_dump(mode="json", include={"latency", "latencies", "energy", "objectives", "constraints"})
    return {
        "made of": wanted(definition, created.content),
        "plan": [list(plan.heads), list(plan.neurons), plan.rank],
        "recovery": None if recovery is None else recovery.model_dump(mode="json"),
        "seed": seed,
        **({} if record.precision == "fp32" else {"precision": record.precision}),
        "measured on": created.machine,
        "measured how": {**how, "energy_source": created.energy_source, "reference_ms": dict(created.reference_ms)},
    }


def kept_as(created: Created, study: StudyRecord, confirmation: Confirmation) -> dict[int | None, str]:
    """Digests of the trainings that a confirmation rests on, among the artifacts of kind `KIND`, by their seeds."""
    record = origin(study, confirmation.trial)
    recovery = RecoverySettings.model_validate(confirmation.recovery) if confirmation.recovery else None
    return {seed: digest(key(created, record, recovery, seed)) for seed in confirmation.seeds or (None,)}


def train_again(
    prepared: Prepared,
    study: StudyRecord,
    artifacts: Artifacts,
    held_out: Encoded,
    trial: int,
    recovery: RecoverySettings | None,
    seed: int | None,
    *,
    on_stage: OnStage,
    on_wait: OnWait | None = None,
) -> Training:
    """Train a trial's plan in full, score and measure it; or find that it was done.

    Args:
        prepared: What is the same for all trials.
        study: The study.
        artifacts: Where the training is kept as soon as it is done.
        held_out: The rows that the search never saw.
        trial: Number of the trial.
        recovery: How to train; None for the dense model.
        seed: Seed of the training; None for the dense model.
        on_stage: Told what is being done.
        on_wait: Told while another process does the same training.

    Returns:
        The training.

    Raises:
        TrialError: If the loss stops being finite, memory runs out or a measurement fails. Nothing is kept then.
    """
    record = origin(study, trial)

    def make(folder: Path) -> None:
        began = time.perf_counter()
        built = rebuild(prepared, study, trial, recovery=recovery, seed=seed, on_stage=on_stage)
        with failures_told(prepared):
            with prepared.turns.working():
                logits = logits_on(
                    prepared,
                    built.model,
                    held_out,
                    stage="score the held-out rows",
                    on_stage=on_stage,
                    precision=record.precision,
                )
            with prepared.turns.measuring(lambda: on_stage("wait to measure", 0, 1)):
                measured = _measured(prepared, built.model, logits, held_out, on_stage, record.precision)
        about = {
            "selection": {name: metric["value"] for name, metric in built.metrics.items()},
            "measured": measured,
            "conditions": conditions_of(prepared),
            "seconds": round(time.perf_counter() - began, 3),
            "weights": None
            if recovery is None
            else candidates.keep(artifacts, built.model, built.plan, partial(cut_to, prepared)),
        }
        save_file({"logits": logits}, folder / "held_out.safetensors")
        (folder / "record.json").write_text(json.dumps(about), encoding="utf-8")

    folder = artifacts.made(KIND, key(prepared, record, recovery, seed), make, on_wait=on_wait)
    return _read(folder, seed)


def remembered(
    prepared: Prepared, study: StudyRecord, artifacts: Artifacts, confirmation: Confirmation
) -> list[Training]:
    """The trainings that an earlier confirmation rests on; empty where the artifacts lack one of them."""
    trainings = []
    for seed, kept in kept_as(prepared, study, confirmation).items():
        folder = artifacts.found(KIND, kept)
        if folder is None:
            return []
        trainings.append(_read(folder, seed))
    return trainings


def _measured(
    prepared: Prepared, model: nn.Module, logits: Tensor, held_out: Encoded, on_stage: OnStage, precision: str
) -> dict[str, dict[str, Any]]:
    """Everything that the study measures, the metrics apart."""
    on_stage("measure", 0, 1)
    subject = Subject(model, logits=logits, labels=held_out.labels)
    return {
        name: objective.measure(subject).to_dict()
        for name, objective in prepared.deployed[precision].items()
        if name not in METRICS and is_wanted(name, prepared)
    }


def _read(folder: Path, seed: int | None) -> Training:
    about = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return Training(
        seed=seed,
        logits=load_file(folder / "held_out.safetensors")["logits"],
        selection=about["selection"],
        measured=about["measured"],
        conditions=about["conditions"],
        seconds=about["seconds"],
        weights=about.get("weights"),
    )
