"""Studies whose truth is known: models that answer sentences of different difficulty, and measured costs."""

import numpy as np
from scipy.stats import norm
from study_cases import SHAPE

from search.answers import packed
from search.definition import Definition
from search.records import ObjectiveInfo, Record, StudyRecord

ACCURACY = ObjectiveInfo("accuracy", "", "maximize")
PARAMETERS = ObjectiveInfo("parameters", "", "minimize")
LATENCY = ObjectiveInfo("latency_ms", "ms", "minimize")


def record_of(trial, right, *, role="search", keeps=True, latency=None, **costs):
    """A trial with these answers (right or wrong), costs, and a latency of (value, standard error)."""
    right = np.asarray(right, dtype=int)
    values = {"accuracy": float(right.mean()), **costs}
    quantities = {"accuracy": {"value": values["accuracy"], "samples": len(right)}}
    if latency is not None:
        value, error = latency
        reach = 1.959964 * error
        values["latency_ms"] = value
        quantities["latency_ms"] = {"value": value, "interval": [value - reach, value + reach], "samples": 30}
    answers = packed(np.ones_like(right), right, labels=0) if keeps else None
    return Record(trial, "complete", values=values, quantities=quantities, role=role, answers=answers)


def study_of(records, *objectives):
    definition = Definition(name="noisy", data="rows.csv")
    return StudyRecord("noisy", definition, objectives or (ACCURACY, PARAMETERS), SHAPE, tuple(records))


def noisy_front(random, *, trials=40, rows=872, spread=0.015, alike=0.7, keeps=True, timed=False):
    """A study, and the true values of its trials.

    Larger models are better on average; `spread` is the standard deviation of the true accuracies around that curve.
    A sentence is as hard for every model as it is (`alike` is the correlation of two models' scores of a sentence).

    Returns:
        The study and one row of true values per trial, in the order of the objectives. Trial 0 is the dense model.
    """
    size = np.concatenate([[1.0], np.exp(random.uniform(np.log(0.05), 0, trials - 1))])
    accuracy = np.clip(0.8 + 0.1 * (1 - np.exp(-6 * size)) + random.normal(0, spread, trials), 0.5, 0.99)
    own = np.sqrt(1 - alike) * random.standard_normal((trials, rows))
    right = norm.ppf(accuracy)[:, None] + np.sqrt(alike) * random.standard_normal(rows) + own > 0
    times = 100 * size * random.uniform(0.9, 1.1, trials)
    errors = 0.03 * times
    measured = times + errors * random.standard_normal(trials)
    records = [
        record_of(
            trial,
            right[trial],
            role="dense" if trial == 0 else "search",
            keeps=keeps,
            parameters=1e6 * size[trial],
            latency=(measured[trial], errors[trial]) if timed else None,
        )
        for trial in range(trials)
    ]
    truth = np.stack([accuracy, 1e6 * size, *([times] if timed else [])], axis=1)
    return study_of(records, ACCURACY, PARAMETERS, *([LATENCY] if timed else [])), truth
