"""Which trials does no other trial beat?

records ──► complete, feasible, finite ──► listed once ──► non-dominated ──► best first
"""

import math
from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

from search.analysis.remembered import remembered
from search.records import Record, StudyRecord


@remembered
def front(study: StudyRecord) -> tuple[Record, ...]:
    """The Pareto front of a study under its own objectives and directions.

    A record is on the front when no other candidate is at least as good in every objective and better in one. A trial
    that was answered from another record stands for the same network and the same measurement, and is left out. Equal
    points of different plans all stay: neither beats the other, and the user may prefer one of the shapes.

    Args:
        study: The study. It is not changed.

    Returns:
        Records, best first by the first objective, then by number of the trial. Empty where no trial qualifies.

    Reference:
        Kung, Luccio, Preparata 1975, "On Finding the Maxima of a Set of Vectors", as implemented by moocore.
    """
    records = listed_once([record for record in study.records if is_candidate(study, record)])
    if not records:
        return ()
    first = study.objectives[0]
    sign = -1.0 if first.direction == "maximize" else 1.0
    return tuple(
        sorted(not_dominated(study, records), key=lambda record: (sign * record.values[first.name], record.trial))
    )


def is_candidate(study: StudyRecord, record: Record) -> bool:
    """Whether a record may be on the front: complete, feasible, and every objective a finite number."""
    return (
        record.state == "complete"
        and record.feasible
        and all(math.isfinite(record.values.get(objective.name, math.nan)) for objective in study.objectives)
    )


def objective_values(study: StudyRecord, records: Sequence[Record]) -> NDArray[np.float64]:
    """The objective vectors of some records.

    Args:
        study: The study that the records belong to.
        records: Complete records.

    Returns:
        One row per record and one column per objective, each in the objective's own unit.

    Raises:
        KeyError: If a record has no value for an objective.
    """
    rows = [[record.values[objective.name] for objective in study.objectives] for record in records]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(study.objectives))


def listed_once(records: Sequence[Record]) -> list[Record]:
    """Leave out every record that was answered from another one of these: it stands for the same network."""
    numbers = {record.trial for record in records}
    return [record for record in records if record.answered_from not in numbers]


def not_dominated(study: StudyRecord, records: Sequence[Record]) -> list[Record]:
    """Those of some records that no other of them beats; equal points all stay."""
    maximised = [objective.direction == "maximize" for objective in study.objectives]
    keep = moocore.is_nondominated(objective_values(study, records), maximise=maximised, keep_weakly=True)
    return [record for record, stays in zip(records, keep, strict=True) if stays]
