"""Does the front know its noise? Studies whose truth is known, and what is said about them.

    python studies/benchmarks/front_noise.py --quick

- Models answer sentences of different difficulty: the scores of two models for a sentence correlate by 0.7. Accuracy
  rises with the size; around that curve the true accuracies vary by `spread`. Sizes are exact.
- Of the points of many fronts: at which probability they are stated to be non-dominated, and how often they truly are.
- How often the hypervolume's interval holds the hypervolume of the true values; 95 % are claimed.
- Both again without the answers of the trials, as in studies of earlier versions: the noise is then drawn for each
  trial alone.

Quick is 30 studies per case, else 100.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import moocore
import numpy as np
from harness import arguments, finish, say
from scipy.stats import norm

from search.analysis.indicators import gains, volume
from search.analysis.standing import standings
from search.analysis.volume_interval import final_interval
from search.answers import packed
from search.definition import Definition
from search.plan import Shape
from search.records import ObjectiveInfo, Record, StudyRecord

ALIKE = 0.7
"""Correlation of two models' scores of a sentence."""

BINS = (0.0, 0.5, 0.7, 0.9, 1.01)
"""Stated probabilities are put together from one of these to the next."""

SHAPE = Shape(
    layers=6, heads=12, head_size=32, hidden=384, neurons=1536, vocabulary=30522, positions=512, token_types=2, labels=2
)
OBJECTIVES = (ObjectiveInfo("accuracy", "", "maximize"), ObjectiveInfo("parameters", "", "minimize"))


@dataclass(frozen=True)
class Case:
    """A kind of study.

    Attributes:
        trials: Trials in it.
        rows: Sentences that they are scored on.
        spread: Standard deviation of the true accuracies around the curve.
    """

    trials: int
    rows: int
    spread: float


CASES = {
    "apart": Case(40, 872, 0.02),
    "many": Case(150, 872, 0.015),
    "crowded": Case(150, 872, 0.005),
    "few sentences": Case(40, 200, 0.02),
}
"""The noise of a difference of two trials is about 0.01 with 872 sentences, and 0.02 with 200."""


def study(case: Case, random: np.random.Generator) -> tuple[StudyRecord, np.ndarray]:
    """A study, and the true values of its trials, a row for each; trial 0 is the dense model."""
    size = np.concatenate([[1.0], np.exp(random.uniform(np.log(0.05), 0, case.trials - 1))])
    accuracy = np.clip(0.8 + 0.1 * (1 - np.exp(-6 * size)) + random.normal(0, case.spread, case.trials), 0.5, 0.99)
    shared, own = random.standard_normal(case.rows), random.standard_normal((case.trials, case.rows))
    right = norm.ppf(accuracy)[:, None] + np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * own > 0
    records = [
        Record(
            trial,
            "complete",
            values={"accuracy": float(answers.mean()), "parameters": 1e6 * size[trial]},
            quantities={"accuracy": {"value": float(answers.mean()), "samples": case.rows}},
            role="search" if trial else "dense",
            answers=packed(np.ones(case.rows, int), answers.astype(int), labels=0),
        )
        for trial, answers in enumerate(right)
    ]
    definition = Definition(name="front-noise", data="none")
    truth = np.stack([accuracy, 1e6 * size], axis=1)
    return StudyRecord(definition.name, definition, OBJECTIVES, SHAPE, tuple(records)), truth


def measure(case: Case, *, studies: int) -> dict[str, Any]:
    """What is stated and what is true of so many studies."""
    random = np.random.default_rng(0)
    stated: dict[str, list[float]] = {"paired": [], "unpaired": []}
    held = {"paired": 0, "unpaired": 0}
    true: list[bool] = []
    for _ in range(studies):
        made, truth = study(case, random)
        holds = moocore.is_nondominated(truth, maximise=[True, False], keep_weakly=True)
        without = replace(made, records=tuple(replace(record, answers=None) for record in made.records))
        for name, each in (("paired", made), ("unpaired", without)):
            found = standings(each)
            stated[name] += [standing.probability for standing in found.values()]
            low, high = final_interval(each) or (0.0, 1.0)
            held[name] += low <= volume(gains(made, truth)) <= high
        true += [bool(holds[trial]) for trial in found]
    return {
        "trials": case.trials,
        "rows": case.rows,
        "spread": case.spread,
        "points": len(true),
        "true": round(float(np.mean(true)), 3),
        **{
            name: {
                "stated": round(float(np.mean(values)), 3),
                "brier": round(float(np.mean((np.array(values) - true) ** 2)), 3),
                "calibration": _calibration(np.array(values), np.array(true)),
                "hypervolume_coverage": round(held[name] / studies, 3),
            }
            for name, values in stated.items()
        },
    }


def _calibration(stated: np.ndarray, true: np.ndarray) -> list[dict[str, float]]:
    """By bin: the mean probability stated, the share that is true, and the number of points."""
    found = []
    for low, high in pairwise(BINS):
        chosen = (stated >= low) & (stated < high)
        if chosen.any():
            means = {"stated": stated[chosen].mean(), "true": true[chosen].mean()}
            found.append({**{name: round(float(mean), 3) for name, mean in means.items()}, "points": int(chosen.sum())})
    return found


def main() -> None:
    given = arguments(__doc__.splitlines()[0])
    studies = 30 if given.quick else 100
    result: dict[str, Any] = {"benchmark": "front_noise", "quick": given.quick, "studies": studies}
    for name, case in CASES.items():
        result[name] = measure(case, studies=studies)
        for how in ("paired", "unpaired"):
            bins = ", ".join(f"{b['stated']:.2f} is {b['true']:.2f}" for b in result[name][how]["calibration"])
            say(f"{name}, {how}: {bins}; hypervolume held {result[name][how]['hypervolume_coverage']:.0%}")
    finish(result, given.json)


if __name__ == "__main__":
    main()
