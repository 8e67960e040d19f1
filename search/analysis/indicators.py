"""How good is a set of trials, as one number that studies of any size and unit share?

Every objective is mapped to a gain: 0 at a reference that nobody would take, 1 at an ideal.

    objective                       gain 0 (reference)     gain 1 (ideal)     in between
    task metric                     chance level           1                  linear
    minimised (cost)                the dense model        0                  1 - value / dense
    maximised, a user's own         0                      never reached      value / (value + dense): dense is 0.5

Chance level is what guessing with equal odds gets in accuracy (1 / labels), and 0 in the other metrics. Where one label
is much more frequent, a model that always answers with it has more, in accuracy and f1: there the metric matthews, in
which it has 0, is the better objective.

Nothing depends on the best value seen so far, so the hypervolume of a growing study never falls.
"""

import math
from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

from search.analysis.front import is_candidate, objective_values
from search.definition import METRICS
from search.records import ObjectiveInfo, Record, StudyRecord


def normalised(study: StudyRecord, records: Sequence[Record]) -> NDArray[np.float64]:
    """Map objective vectors so that 0 is the reference and 1 the ideal on every axis.

    Args:
        study: The study, which holds the dense model's values.
        records: Complete records of it.

    Returns:
        One row per record and one column per objective, without unit. Below 0 is worse than the reference; nothing is
        clipped here.

    Raises:
        ValueError: If the study holds no complete dense trial, or the dense value of a cost or of a user's own
            objective is not a number above 0.
        KeyError: If a record has no value for an objective.
    """
    return gains(study, objective_values(study, records))


def gains(study: StudyRecord, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map objective vectors, of trials or imagined, as `normalised` does.

    Args:
        study: The study, which holds the dense model's values.
        values: One row per point and one column per objective, each in the objective's own unit.

    Returns:
        The same shape, without unit: 0 is the reference and 1 the ideal.

    Raises:
        ValueError: As `normalised`.
    """
    dense = study.dense
    if dense is None:
        raise ValueError(f"study {study.name!r} has no complete dense trial to compare with; let it run one first")
    columns = [
        _gains(
            values[:, column], objective, dense.values.get(objective.name, math.nan), len(study.definition.task.labels)
        )
        for column, objective in enumerate(study.objectives)
    ]
    return np.stack(columns, axis=1)


def hypervolume(study: StudyRecord, records: Sequence[Record] | None = None) -> float | None:
    """The share of the box between reference and ideal that some records dominate.

    Records that are incomplete, infeasible or not finite count for nothing, and so do points that are not better than
    the reference on every axis. The order and the repetition of records do not matter.

    Args:
        study: The study, which holds the dense model's values.
        records: Records of it; None takes all.

    Returns:
        A share from 0 to 1; None while there is nothing to compare with (see `normalised`).

    Reference:
        Zitzler, Thiele 1998, "Multiobjective Optimization Using Evolutionary Algorithms"; computed by moocore
        (Guerreiro, Fonseca 2017 in three and four dimensions).
    """
    if not has_reference(study):
        return None
    chosen = study.records if records is None else records
    return volume(normalised(study, [record for record in chosen if is_candidate(study, record)]))


def volume(points: NDArray[np.float64]) -> float:
    """The share of the box between 0 and 1 that some points dominate; what lies beyond the ideal is cut off there.

    Args:
        points: Gains, one row per point and one column per objective (`gains`).

    Returns:
        A share from 0 to 1.
    """
    return _volume(_inside(points))


def hypervolume_history(study: StudyRecord) -> list[float | None]:
    """The hypervolume after each trial.

    Args:
        study: The study.

    Returns:
        One value per record, in the order of `study.records`: the `hypervolume` of the records up to and including it.
        None before the dense trial, and throughout where there is nothing to compare with.
    """
    if not has_reference(study):
        return [None] * len(study.records)
    kept = np.empty((0, len(study.objectives)))
    history: list[float | None] = []
    reached, seen_dense = 0.0, False
    for record in study.records:
        seen_dense = seen_dense or record is study.dense
        new = _inside(normalised(study, [record])) if is_candidate(study, record) else kept[:0]
        if len(new) and not (kept >= new).all(axis=1).any():
            kept = np.concatenate([kept[~(kept <= new).all(axis=1)], new])
            reached = _volume(kept)
        history.append(reached if seen_dense else None)
    return history


def has_reference(study: StudyRecord) -> bool:
    """Whether values can be compared: a complete dense trial, with a number above 0 wherever the scale needs one."""
    dense = study.dense
    return dense is not None and all(
        objective.name in METRICS or _is_scale(dense.values.get(objective.name, math.nan))
        for objective in study.objectives
    )


def _gains(values: NDArray[np.float64], objective: ObjectiveInfo, dense: float, labels: int) -> NDArray[np.float64]:
    """Map one objective; the table at the top of this file says how."""
    if objective.name in METRICS:
        chance = 1 / labels if objective.name == "accuracy" else 0.0
        return (values - chance) / (1 - chance)
    if not _is_scale(dense):
        raise ValueError(f"the dense model's {objective.name} is {dense}: the scale needs a number above 0")
    if objective.direction == "minimize":
        return 1 - values / dense
    return values / (np.maximum(values, 0.0) + dense)


def _is_scale(dense: float) -> bool:
    return math.isfinite(dense) and dense > 0


def _inside(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points that dominate a part of the box, cut off at the ideal."""
    return np.minimum(points[(points > 0).all(axis=1)], 1.0)


def _volume(points: NDArray[np.float64]) -> float:
    return float(moocore.hypervolume(points, ref=0.0, maximise=True)) if len(points) else 0.0
