"""Which dimensions of the space move which objective?

A random forest learns each objective from the ratios of the trials. A dimension matters as much as the forest's
prediction of trials that it has not seen gets worse when that dimension's column is shuffled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.analysis.front import listed_once
from search.records import Record, StudyRecord

FEWEST = 40
"""Trials below which nothing is said: a quarter of them is held back to judge the forest by."""

HELD_BACK = 4
"""Every fourth trial is held back."""

MOST = 3000
"""The forest is grown on the last so many trials: more make it slower, and hardly better."""


SHUFFLES = 10
"""How often each column is shuffled."""


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
        Breiman 2001, "Random Forests", section 10 (permutation importance); the forest is scikit-learn's. The
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

    inputs = np.array([[record.ratios[name] for name in names] for record in records])
    values = np.array([record.values[objective] for record in records])
    held = np.arange(len(records)) % HELD_BACK == HELD_BACK - 1
    if not np.ptp(values[held]) > 0 or not np.ptp(values[~held]) > 0:
        return Importance(objective, dict.fromkeys(names, 0.0), 0.0, len(records))
    values = (values - values.mean()) / values.std()  # parameters in the millions would drown in rounding otherwise
    forest = RandomForestRegressor(n_estimators=100, min_samples_leaf=2, max_features=0.5, random_state=seed)
    forest.fit(inputs[~held], values[~held])
    worse = np.maximum(_worse_when_shuffled(forest.predict, inputs[held], values[held], seed), 0.0)
    shares = worse / worse.sum() if worse.sum() > 0 else worse
    explained = float(forest.score(inputs[held], values[held]))
    return Importance(objective, dict(zip(names, map(float, shares), strict=True)), explained, len(records))


def _worse_when_shuffled(
    predict: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    inputs: NDArray[np.float64],
    values: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """By column, how much the mean squared error grows when that column is shuffled.

    All shuffled tables are predicted at once: one call for each would take twenty times as long.
    """
    random, (rows, columns) = np.random.default_rng(seed), inputs.shape
    tables = np.tile(inputs, (columns, SHUFFLES, 1, 1))
    for column in range(columns):
        for shuffle in range(SHUFFLES):
            tables[column, shuffle, :, column] = random.permutation(inputs[:, column])
    predicted = predict(tables.reshape(-1, columns)).reshape(columns, SHUFFLES, rows)
    shuffled: NDArray[np.float64] = ((predicted - values) ** 2).mean(axis=(1, 2))
    return shuffled - float(((predict(inputs) - values) ** 2).mean())


def _has_all(record: Record, names: list[str]) -> bool:
    return all(math.isfinite(record.ratios.get(name, math.nan)) for name in names)
