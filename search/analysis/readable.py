"""A study and its trials as short attributes that a person reads: what the dashboard shows beside the values.

    measured = {"latency_ms": {"value": 46.1, "low": 45.2, ...}, ...}     what is stored, for programs
        ──► latency_ms: quartiles 45.2 to 46.9, 20 samples (wall clock)   what is shown
            encoder_share: 0.3619                                         a number, so that a table can sort by it

Text is plain; who shows it escapes it.
"""

import math
from collections.abc import Mapping
from typing import Any

from search.analysis import stories
from search.analysis.confirmed import one_line
from search.analysis.quantities import KEPT, quantity
from search.records import Record, StudyRecord

SPREAD = "spread of {}"
"""Name of the attribute that says how sure a value is, and where it comes from."""


def trial_attributes(study: StudyRecord, record: Record) -> dict[str, str | int | float]:
    """What is known about a trial beside its parameters and objective values.

    Args:
        study: The study that the record belongs to, with its dense trial at least.
        record: One of its trials.

    Returns:
        Short texts and finite numbers by name, those first that matter most. Numbers are in the unit of their name.
    """
    objectives = [objective.name for objective in study.objectives]
    found: dict[str, str | int | float | None] = {"role": record.role, "failure": record.failure}
    if record.state == "complete" and (why := stories.reason(study, record)) is not None:
        found["not a candidate"] = why
    if record.plan is not None:
        found["heads kept"] = " ".join(map(str, record.plan.heads))
        found["neurons kept"] = " ".join(map(str, record.plan.neurons))
        found["rank of the word embeddings"] = record.plan.rank
        found["encoder_share"] = quantity(study, record, "encoder_share")
    found[KEPT] = quantity(study, record, KEPT)
    for name in record.quantities:
        if name not in objectives:
            found.setdefault(name, quantity(study, record, name))
    for name, measured in record.quantities.items():
        found[SPREAD.format(name)] = _spread(measured)
        if "warning" in measured:
            found[f"warning about {name}"] = str(measured["warning"])
    found["answered from trial"] = record.answered_from
    found["schedule"] = _listed(record.schedule)
    found["precision"] = None if record.precision == "fp32" else record.precision
    found["ended early after"] = _percent(record.ended_at)
    found["would have ended after"] = _percent(record.audited_at)
    found["seconds"] = round(sum(record.seconds.values()), 3) if record.seconds else None
    found["seconds by stage"] = _listed(record.seconds)
    found["energy used [J]"] = record.energy_j
    found["conditions"] = _listed(record.conditions)
    found["seed"] = record.seed
    return {name: _short(value) for name, value in found.items() if value is not None and _says_something(value)}


def study_attributes(study: StudyRecord) -> dict[str, str]:
    """What a study is, under which conditions it was measured, and its whole definition, by name."""
    return {
        **dict(stories.about(study)),
        **dict(stories.conditions(study)),
        "Whole definition": study.definition.to_json(),
    }


def confirmed_attributes(study: StudyRecord) -> dict[str, str]:
    """What became of the trials that were confirmed, by name; needs all trials of the study."""
    return {f"Confirmed trial {each.trial}": one_line(study, each) for each in study.confirmations}


def _spread(measured: Mapping[str, Any]) -> str:
    """How sure a value is and where it comes from; empty where it is a count."""
    low, high, samples = measured.get("low"), measured.get("high"), measured.get("samples", 1)
    parts = []
    if isinstance(low, int | float) and isinstance(high, int | float):
        parts.append(f"quartiles {low:.4g} to {high:.4g}")
    if isinstance(samples, int) and samples > 1:
        parts.append(f"{samples:,} samples")
    if not parts:
        return ""
    source = measured.get("source")
    return ", ".join(parts) + (f" ({source})" if source else "")


def _listed(values: Mapping[str, Any]) -> str:
    shown = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _says_something(value: str | int | float) -> bool:
    """Whether it is worth showing: NaN is not, and it is no JSON either."""
    return math.isfinite(value) if isinstance(value, float) else value != ""


def _short(value: str | int | float) -> str | int | float:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%} of its recovery"
