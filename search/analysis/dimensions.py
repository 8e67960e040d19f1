"""Which dimensions of the space move which objective?

A random forest learns each objective from the ratios of the trials. A dimension matters as much as the forest's
prediction of trials that it has not seen gets worse when that dimension's column is shuffled.
"""

import math
from dataclasses import dataclass

import numpy as np

from search.analysis.front import listed_once
from search.records import Record, StudyRecord

FEWEST = 40
"""Trials below which nothing is said: a quarter of them is held back to judge the forest by."""

HELD_BACK = 4
"""Every fourth trial is held back."""

MOST = 3000
"""The forest is grown on the last so many trials: more make it slower, and hardly better."""


@dataclass(frozen=True)
class Importance:
    """What moves one objective.

    Attributes:
        objective: Its name.
        shares: By dimension, its share of all dimensions' importance, from 0 to 1; they add up to 1 unless all are 0.
        explained: R² of the forest on trials that it has not seen; at 0 or below it predicts nothing, and the shares
            mean nothing.
        trials: Trials that the forest was grown on and judged by.
    """

    objective: str
    shares: dict[str, float]
    explained: float
    trials: int


def dimension_importance(study: StudyRecord, *, seed: int = 0) -> list[Importance]:
    """The importance of every dimension for every objective.

    Infeasible trials are left out, because they were not recovered: their metrics mean something else.

    Args:
        study: The study. It is not changed.
        seed: Seed of the forest and of the shuffling.

    Returns:
        One entry per objective; empty where fewer than `FEWEST` trials have values. Importances below 0, which are
        noise, count as 0.

    Reference:
        Breiman 2001, "Random Forests", section 10 (permutation importance), as implemented by scikit-learn. The
        judgement on trials held back avoids crediting a dimension with what the forest has only memorised.
    """
    names = list(dict.fromkeys(name for record in study.complete for name in record.ratios))
    usable = listed_once([record for record in study.complete if record.feasible and _has_all(record, names)])
    found = []
    for objective in study.objectives:
        records = [r for r in usable if math.isfinite(r.values.get(objective.name, math.nan))][-MOST:]
        if names and len(records) >= FEWEST:
            found.append(_importance(objective.name, names, records, seed))
    return found


def _importance(objective: str, names: list[str], records: list[Record], seed: int) -> Importance:
    # Here, because importing it takes a second, and only the report needs it.
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    inputs = np.array([[record.ratios[name] for name in names] for record in records])
    values = np.array([record.values[objective] for record in records])
    held = np.arange(len(records)) % HELD_BACK == HELD_BACK - 1
    if not np.ptp(values[held]) > 0 or not np.ptp(values[~held]) > 0:
        return Importance(objective, dict.fromkeys(names, 0.0), 0.0, len(records))
    values = (values - values.mean()) / values.std()  # parameters in the millions would drown in rounding otherwise
    forest = RandomForestRegressor(n_estimators=100, min_samples_leaf=2, max_features=0.5, random_state=seed)
    forest.fit(inputs[~held], values[~held])
    shuffled = permutation_importance(forest, inputs[held], values[held], n_repeats=10, random_state=seed)
    gains = np.maximum(shuffled.importances_mean, 0.0)
    shares = gains / gains.sum() if gains.sum() > 0 else gains
    explained = float(forest.score(inputs[held], values[held]))
    return Importance(objective, dict(zip(names, map(float, shares), strict=True)), explained, len(records))


def _has_all(record: Record, names: list[str]) -> bool:
    return all(math.isfinite(record.ratios.get(name, math.nan)) for name in names)
