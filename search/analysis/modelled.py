"""What would the per-operation model say that a search used, where no counter could be read?

    energy = sequences passed · passes · energy of one inference by the model

    forward    1 pass       scoring, logits of the teacher, latency measurements
    training   3 passes     forward, and backward with about twice its products

The energy of one inference is what the study's own objective says of the same model, with the same constants, so that
cost and saving are in the same currency; what is trained counts in fp32, whatever it is deployed in. Sequences of other
lengths count in proportion to their tokens. Only products are in it: no optimizer, no reading of data, no idle device;
a figure of what was computed, not of an electricity bill. Trials that did not end by themselves are taken at the mean
energy per second of those that did.

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

MIX_BATCHES = 8
"""Batches of a pass over a mix of lengths (`objectives.inference`)."""


def trials_j(study: StudyRecord) -> dict[int, float]:
    """Joules that each trial took by the model.

    Args:
        study: The study.

    Returns:
        By number of the trial. Missing are those of which too little is known; all of them, where the dense model has
        no energy by the model.
    """
    dense_mj = _inference_mj(study.dense, fp32=True)
    if dense_mj is None:
        return {}
    found = {}
    for record in study.complete:
        deployed_mj, trained_mj = _inference_mj(record), _inference_mj(record, fp32=True)
        if record.answered_from is not None:
            found[record.trial] = 0.0
        elif deployed_mj is not None and trained_mj is not None and record.seconds:
            found[record.trial] = _trial_mj(study, record, deployed_mj, trained_mj, dense_mj) / 1000
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
    dense_mj, definition = _inference_mj(study.dense, fp32=True), study.definition
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


def _trial_mj(study: StudyRecord, record: Record, deployed_mj: float, trained_mj: float, dense_mj: float) -> float:
    """What a complete trial passed through its model, while it was trained and as it is deployed, and the dense one."""
    definition, recovery = study.definition, study.definition.recovery
    base = _tokens(study, definition.latency.tokens, 1.0)
    train = study.rows["train"][1] / base if "train" in study.rows else 1.0
    selection = study.rows["selection"][1] / base if "selection" in study.rows else 1.0
    trained, deployed, dense = 0.0, 0.0, 0.0
    if "recover" in record.seconds:
        steps = record.schedule.get("steps", recovery.steps) * (record.ended_at or 1.0)
        trained += TRAINING * steps * recovery.batch_size * train
        dense += steps * recovery.batch_size * train if recovery.hidden_weight > 0 else 0.0
        trained += len(record.rungs) * definition.ending.rows * selection
    if "refit" in record.seconds:
        trained += recovery.refit_rows * train
        dense += recovery.refit_rows * train
    deployed += record.quantities.get(definition.task.metric, {}).get("samples", 0) * selection
    for name, settings in {LATENCY: definition.latency, **definition.named_latencies}.items():
        measured = record.quantities.get(name, {})
        sequences = settings.batch * _tokens(study, settings.tokens, base) / base
        a_pass = MIX_BATCHES if settings.tokens == "selection" else 1
        mine, others = _passes(measured, a_pass)
        deployed += (settings.warmup + mine) * a_pass * sequences if mine else 0.0
        dense += others * a_pass * sequences
    return float(trained * trained_mj + deployed * deployed_mj + dense * dense_mj)


def _passes(latency: Mapping[str, Any], batches: int) -> tuple[float, float]:
    """Passes of so many batches over the model, and over the dense one, to time it; none where a table answered."""
    details = latency.get("details", {})
    if not latency or "table_error" in details or str(latency.get("source", "")).startswith("table"):
        return 0.0, 0.0
    if "pairs" not in details:
        return float(latency.get("samples", 0)), 0.0
    took_ms = (batches * details[name] for name in ("absolute", "reference"))
    turns = (math.ceil(TURN_MS / each) if each > 0 else 1 for each in took_ms)
    mine, others = (details["pairs"] * max(1, turn) for turn in turns)
    return mine, others


def _tokens(study: StudyRecord, tokens: int | str, unknown: float) -> float:
    """Tokens of a sequence under some conditions; of the mix of lengths their mean, where it is known."""
    if not isinstance(tokens, str):
        return float(tokens)
    return study.rows["selection"][1] if "selection" in study.rows else unknown


def _inference_mj(record: Record | None, *, fp32: bool = False) -> float | None:
    """Energy of one inference by the model, as it is deployed or in fp32; None where the trial has none of that source.

    Trials of earlier versions do not say what they cost in fp32 where they are deployed in less: the former stands in.
    """
    measured = record.quantities.get(ENERGY, {}) if record is not None else {}
    if measured.get("source") != MODEL:
        return None
    in_fp32 = measured.get("details", {}).get("fp32") if fp32 else None
    return float(measured["value"] if in_fp32 is None else in_fp32)
