"""What does a record say about a quantity, and how does a person read it?"""

import math

from search.definition import METRICS
from search.plan import Plan, encoder_parameters, total_parameters
from search.records import SPACE, Record, StudyRecord

COUNTS = ("parameters", "encoder_parameters", "macs", "stored_bytes", "peak_memory_bytes")
"""Names of the quantities that are whole numbers."""

SHARES = ("encoder_share", "kept")
"""Names of the quantities that are read as a percentage of the dense model."""

KEPT = "kept"
"""Name of the share of the dense model's task metric that a trial keeps."""


def quantity(study: StudyRecord, record: Record, name: str) -> int | float | None:
    """One quantity of a trial.

    Sizes that the trial did not record are counted from its plan, which is exact.

    Args:
        study: The study that the record belongs to.
        record: One of its records.
        name: Name of an objective or of another measured quantity, or `kept`.

    Returns:
        The value in the quantity's own unit, a whole number for `COUNTS`; None where it was not measured or is not a
        finite number.
    """
    value = _kept(study, record) if name == KEPT else _recorded(record, name)
    if value is None and record.plan is not None:
        value = _counted(study, record.plan, name)
    if value is None or not math.isfinite(value):
        return None
    return round(value) if name in COUNTS else float(value)


def missed(name: str, by: str) -> str:
    """Say that a trial breaks a constraint.

    Args:
        name: What is constrained; `SPACE` stands for the space itself, which only a dense model misses.
        by: How far the trial is beyond the bound.
    """
    return "the dense model lies outside the study's space" if name == SPACE else f"{name} misses its bound by {by}"


def short(name: str, value: float | None) -> str:
    """Write a value for a narrow column: about four digits, sizes with a prefix, shares in per cent.

    Args:
        name: Name of the quantity.
        value: Its value, None where it was not measured.

    Returns:
        Text without the unit, except for the per cent sign; a hyphen for None.

    Example:
        >>> short("parameters", 12_345_678), short("encoder_share", 0.612), short("latency_ms", 4.56789)
        ('12.3 M', '61.2 %', '4.568')
    """
    if value is None:
        return "-"
    if name in SHARES:
        return f"{100 * value:.1f} %"
    if name in METRICS:
        return f"{value:.4f}"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if name in COUNTS and abs(value) >= factor:
            return f"{value / factor:.1f} {prefix}"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def _recorded(record: Record, name: str) -> float | None:
    if name in record.values:
        return record.values[name]
    value = record.quantities.get(name, {}).get("value")
    return None if value is None else float(value)


def _counted(study: StudyRecord, plan: Plan, name: str) -> float | None:
    if name == "parameters":
        return total_parameters(plan, study.shape)
    if name == "encoder_parameters":
        return encoder_parameters(plan, study.shape)
    if name == "encoder_share":
        return encoder_parameters(plan, study.shape) / encoder_parameters(Plan.dense(study.shape), study.shape)
    return None


def _kept(study: StudyRecord, record: Record) -> float | None:
    """Task metric over the dense model's task metric; None where either is missing or the dense one is not above 0."""
    metric = study.definition.task.metric
    mine, dense = _recorded(record, metric), _recorded(study.dense, metric) if study.dense else None
    return mine / dense if mine is not None and dense is not None and dense > 0 else None
