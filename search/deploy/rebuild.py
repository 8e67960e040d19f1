"""From a trial's record to its model: the same plan, cut and recovered again as the trial was.

record ─► plan ─► cut ─► refit ─► recover, with the trial's own schedule and seed ─► score ─► compared with the record
                   │              └─ or with other settings and another seed: then nothing is compared
                   └─ of the trial that it was cut from, where plans are cut from the nearest one: that is made first

A search keeps weights only where plans are cut from the nearest finished trial, a confirmation always; those are taken
as they are. Else a trial's model is made again when somebody wants it. On the machine and the versions of the search
that gives the same weights; elsewhere the sums of floating-point numbers may run in another order, and
`Rebuilt.difference` says what that did to the score.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from objectives import all_metrics
from search import candidates
from search.bert.surgery import cut
from search.definition import RecoverySettings
from search.errors import UserError
from search.pipeline import bring_back, cut_to, failures_told, selection_logits
from search.plan import Plan
from search.preparation import OnStage, Prepared
from search.records import Record, StudyRecord


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A trial's model, made again.

    Attributes:
        study: The study.
        record: The record that it was made from: the trial's own, or that of the trial which answered it.
        trial: Number of the trial that was asked for.
        model: The model, in evaluation mode, on the device of the preparation.
        recovery: How it was recovered; None where it was not, because nothing was cut or nothing was asked for.
        seed: Seed of the recovery.
        logits: Its logits on the selection split (rows, labels), computed in float32, on the CPU.
        metrics: Accuracy, F1 and Matthews correlation on the selection split (`objectives.Measurement.to_dict`), in the
            precision that the trial was scored in.
        faithful: Whether it was made as the trial was, so that the two scores should be equal.
        seconds: What it took, by stage.
    """

    study: StudyRecord
    record: Record
    trial: int
    model: PreTrainedModel
    recovery: RecoverySettings | None
    seed: int | None
    logits: Tensor
    metrics: Mapping[str, Mapping[str, Any]]
    faithful: bool
    seconds: Mapping[str, float]

    @property
    def plan(self) -> Plan:
        """What is kept."""
        assert self.record.plan is not None
        return self.record.plan

    @property
    def score(self) -> float:
        """The task's metric on the selection split."""
        return float(self.metrics[self.study.definition.task.metric]["value"])

    @property
    def difference(self) -> str | None:
        """In a sentence how far its score is from the recorded one; None where they are equal or not to be compared."""
        metric = self.study.definition.task.metric
        if not self.faithful or self.record.value(metric) == self.score:
            return None
        recorded = self.record.value(metric)
        return (
            f"the rebuilt model has {metric} {self.score:.4f} on the selection split and trial {self.record.trial} was "
            f"recorded with {recorded:.4f} ({self.score - recorded:+.4f}): another machine, number type, number of "
            "threads or version gives other sums of floating-point numbers, and on a GPU each training does"
        )


def rebuild(
    prepared: Prepared,
    study: StudyRecord,
    trial: int,
    *,
    recovery: RecoverySettings | None = None,
    seed: int | None = None,
    weights: str | None = None,
    on_stage: OnStage,
) -> Rebuilt:
    """Make a trial's model again.

    Args:
        prepared: What is the same for all trials of the study (`search.reopening.reopen`).
        study: The study.
        trial: Number of a complete trial.
        recovery: How to recover it, cut from the model of the study; None takes the trial's own schedule, and an early
            ending that it had.
        seed: Seed of the recovery; None takes the trial's own, and cuts what the trial was cut from.
        weights: Digest under which a model that was made so is kept; where the artifacts lack it, it is made again.
        on_stage: Told what is being done.

    Returns:
        The model and its scores on the selection split. The dense plan is the teacher itself, never recovered: nothing
        was cut.

    Raises:
        UserError: If there is no such trial, it is not complete, or it broke a constraint and was therefore never
            recovered, and no settings are given.
        TrialError: If the loss stops being finite, or memory runs out.
    """
    record = origin(study, trial)
    assert record.plan is not None
    own = recovery is None and seed in (None, record.seed)
    dense = record.plan == Plan.dense(study.shape)
    settings = None if dense else recovery or settings_of(study, record)
    if settings is not None and recovery is None:
        _check_recovered(record, settings)
    ended_at = record.ended_at if recovery is None else None
    seed = record.seed if seed is None else seed

    def told(name: str, done: int, total: int) -> None:
        prepared.turns.give_way()
        on_stage(name, done, total)

    seconds: dict[str, float] = {}
    with failures_told(prepared), prepared.turns.working():
        told("cut", 0, 1)
        kept = _kept(prepared, record, record.weights if own else weights)
        outer = _outer(prepared, study, record, told) if own and kept is None else None
        model = kept or outer or cut_to(prepared, record.plan)
        if settings is not None and kept is None:
            if seed is None:
                raise UserError(f"trial {record.trial} has no seed on record; name one")
            bring_back(
                prepared,
                model,
                settings,
                seed=seed,
                seconds=seconds,
                on_stage=told,
                refits=outer is None,
                rungs=() if ended_at is None else (ended_at,),
                on_rung=None if ended_at is None else lambda _share: True,
            )
        logits = scored = selection_logits(prepared, model, on_stage=told)
        if record.precision != "fp32":
            scored = selection_logits(prepared, model, on_stage=told, precision=record.precision)
    metrics = {name: metric.to_dict() for name, metric in all_metrics(scored, prepared.selection.labels).items()}
    return Rebuilt(
        study=study,
        record=record,
        trial=trial,
        model=model,
        recovery=settings,
        seed=seed,
        logits=logits,
        metrics=metrics,
        faithful=own or dense,
        seconds=seconds,
    )


def _kept(prepared: Prepared, record: Record, weights: str | None) -> PreTrainedModel | None:
    """A trial's model as it was kept; None where it was not, or where it is not among the artifacts."""
    if prepared.artifacts is None or weights is None or record.plan is None:
        return None
    return candidates.found(prepared.artifacts, weights, record.plan, partial(cut_to, prepared))


def _outer(prepared: Prepared, study: StudyRecord, record: Record, on_stage: OnStage) -> PreTrainedModel | None:
    """The raw cut of the model that a trial was cut from, made again; None where that was the model of the study."""
    if record.cut_from is None or record.plan is None:
        return None
    outer = rebuild(prepared, study, record.cut_from, on_stage=on_stage)
    return cut(outer.model, candidates.within(outer.plan, record.plan, prepared.scores), directions=prepared.directions)


def origin(study: StudyRecord, trial: int) -> Record:
    """The record of the trial whose evaluation a trial stands for: its own, or that of the one which answered it.

    Raises:
        UserError: If there is no such trial, or it is not complete.
    """
    if not 0 <= trial < len(study.records):
        raise UserError(
            f"trial is {trial}; the study {study.name!r} has the trials 0 to {len(study.records) - 1}; name one of "
            "these"
        )
    record = study.records[trial]
    if record.state != "complete" or record.plan is None:
        why = f": {record.failure}" if record.failure else ""
        raise UserError(f"trial {trial} of the study {study.name!r} is {record.state}{why}; name a complete trial")
    return record if record.answered_from is None else study.records[record.answered_from]


def settings_of(study: StudyRecord, record: Record) -> RecoverySettings:
    """How a trial was recovered: the definition's settings with the trial's own schedule."""
    values = {**study.definition.recovery.model_dump(), **record.schedule}
    return RecoverySettings.model_validate(values)


def _check_recovered(record: Record, settings: RecoverySettings) -> None:
    """Refuse a plan that was never recovered because it broke a constraint on its size or its speed."""
    broken = [name for name, excess in record.violations.items() if excess > 0]
    asked = ["recover"] if settings.steps else ["refit"] if settings.refit_rows and record.cut_from is None else []
    if broken and any(stage not in record.seconds for stage in asked):
        raise UserError(
            f"trial {record.trial} breaks the constraint on {broken[0]!r} by {record.violations[broken[0]]:g} and was "
            "therefore never recovered; name a feasible trial"
        )
