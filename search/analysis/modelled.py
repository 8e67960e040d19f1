"""What would the per-operation model say that a search used, where no counter could be read?

    energy = sequences passed · passes · energy of one inference by the model

    forward    1 pass       scoring, logits of the teacher, latency measurements
    training   3 passes     forward, and backward with about twice its products

The energy of one inference is what the study's own objective says of the same model, with the same constants, so that
cost and saving are in the same currency. Sequences of other lengths count in proportion to their tokens. Only products
are in it: no optimizer, no reading of data, no idle device; a figure of what was computed, not of an electricity bill.
Trials that did not end by themselves are taken at the mean energy per second of those that did.

Reference:
    Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1, for the three passes of a training step.
"""

import math
from collections.abc import Mapping
from typing import Any

from search.definition import LATENCY
from search.records import Record, StudyRecord

ENERGY = "energy_mj"
"""Name of the quantity that holds the energy of one inference."""

MODEL = "model"
"""Source of an energy that was computed from operations."""

TRAINING = 3
"""Passes of a training step, in forward passes."""

TURN_MS = 50.0
"""Milliseconds that a turn of a model lasts at least, when it is timed beside the dense one (`objectives.pairs`)."""


def trials_j(study: StudyRecord) -> dict[int, float]:
    """Joules that each trial took by the model.

    Args:
        study: The study.

    Returns:
        By number of the trial. Missing are those of which too little is known; all of them, where the dense model has
        no energy by the model.
    """
    dense_mj = _inference_mj(study.dense)
    if dense_mj is None:
        return {}
    found = {}
    for record in study.complete:
        inference_mj = _inference_mj(record)
        if record.answered_from is not None:
            found[record.trial] = 0.0
        elif inference_mj is not None and record.seconds:
            found[record.trial] = _trial_mj(study, record, inference_mj, dense_mj) / 1000
    ended = [record for record in study.complete if found.get(record.trial) and record.seconds]
    seconds = sum(sum(record.seconds.values()) for record in ended)
    if seconds > 0:
        mean_w = sum(found[record.trial] for record in ended) / seconds
        for record in study.records:
            if record.state in ("failed", "running") and record.lasted_s is not None:
                found[record.trial] = record.lasted_s * mean_w
    return found


def preparation_j(study: StudyRecord) -> dict[str, float]:
    """Joules that each artifact took by the model, by kind; those of which too little is known are missing."""
    dense_mj, definition = _inference_mj(study.dense), study.definition
    if dense_mj is None or "train" not in study.rows:
        return {}
    count, tokens = study.rows["train"]
    one = dense_mj / 1000 * tokens / _tokens(study, definition.latency.tokens, tokens)
    ranked = TRAINING if definition.importance.method in ("fisher", "taylor") else 0
    supernet = definition.supernet
    low = supernet.drawn_from
    mean_plan = (low - 1) / math.log(low) if low < 1 else 1.0  # of sizes whose logarithm is uniform
    passes = {
        "tokens": 0.0,
        "directions": 0.0,
        "teacher": 0.0 if definition.teacher.fine_tuned else TRAINING * definition.teacher.epochs * count,
        "logits": float(count),
        "importance": min(definition.importance.rows, count) * (ranked + study.shape.layers + 2),
        "supernet": TRAINING * supernet.steps * supernet.batch_size * (supernet.smallest + supernet.plans * mean_plan),
    }
    return {kind: passes[kind] * one for kind in study.preparation if kind in passes}


def _trial_mj(study: StudyRecord, record: Record, inference_mj: float, dense_mj: float) -> float:
    """What a complete trial passed through its model and the dense one."""
    definition, recovery = study.definition, study.definition.recovery
    base = _tokens(study, definition.latency.tokens, 1.0)
    train = study.rows["train"][1] / base if "train" in study.rows else 1.0
    selection = study.rows["selection"][1] / base if "selection" in study.rows else 1.0
    own, dense = 0.0, 0.0
    if "recover" in record.seconds:
        steps = record.schedule.get("steps", recovery.steps) * (record.ended_at or 1.0)
        own += TRAINING * steps * recovery.batch_size * train
        dense += steps * recovery.batch_size * train if recovery.hidden_weight > 0 else 0.0
        own += len(record.rungs) * definition.ending.rows * selection
    if "refit" in record.seconds:
        own += recovery.refit_rows * train
        dense += recovery.refit_rows * train
    own += record.quantities.get(definition.task.metric, {}).get("samples", 0) * selection
    for name, settings in {LATENCY: definition.latency, **definition.named_latencies}.items():
        measured = record.quantities.get(name, {})
        sequences = settings.batch * _tokens(study, settings.tokens, base) / base
        mine, others = _batches(measured)
        own += (settings.warmup + mine) * sequences if mine else 0.0
        dense += others * sequences
    return float(own * inference_mj + dense * dense_mj)


def _batches(latency: Mapping[str, Any]) -> tuple[float, float]:
    """Batches of the model, and of the dense one, that were run to time it; none where a table answered."""
    details = latency.get("details", {})
    if not latency or "table_error" in details or str(latency.get("source", "")).startswith("table"):
        return 0.0, 0.0
    if "pairs" not in details:
        return float(latency.get("samples", 0)), 0.0
    turns = (math.ceil(TURN_MS / details[name]) if details[name] > 0 else 1 for name in ("absolute", "reference"))
    mine, others = (details["pairs"] * max(1, turn) for turn in turns)
    return mine, others


def _tokens(study: StudyRecord, tokens: int | str, unknown: float) -> float:
    """Tokens of a sequence under some conditions; of the mix of lengths their mean, where it is known."""
    if not isinstance(tokens, str):
        return float(tokens)
    return study.rows["selection"][1] if "selection" in study.rows else unknown


def _inference_mj(record: Record | None) -> float | None:
    """Energy of one inference by the model; None where the trial has none of that source."""
    measured = record.quantities.get(ENERGY, {}) if record is not None else {}
    return float(measured["value"]) if measured.get("source") == MODEL else None
