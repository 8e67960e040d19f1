"""What else might the values of a study's trials have been? They are drawn again, for all trials at once.

    task metric          every sentence gets a random weight, the same one for all trials (Bayesian bootstrap): what is
                         hard for all of them cancels in their differences
      answers not kept   accuracy: normal with the binomial standard error, each trial for itself; other metrics: exact
    latency, energy      normal with the standard error of their stored spread (`noise.standard_error`)
    counted              exact

A draw is the measured value plus what resampling changes. The weights stand for other sentences of the same kind, not
for another training of the models.

Reference:
    Rubin 1981, "The Bayesian Bootstrap".
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from search.analysis.front import objective_values
from search.analysis.noise import standard_error
from search.answers import RIGHT, unpacked
from search.definition import METRICS
from search.records import Record, StudyRecord

CHUNK = 256
"""Trials whose sentences are weighted at a time: more would take more memory, and no less time."""

Weights = NDArray[np.float64]
"""Shape (sentences, draws): the weight of each sentence in each draw; 1 on average."""


class Resampling:
    """Draws of the objective values of some records, jointly; the same ones each time it is iterated over.

    Args:
        study: The study.
        records: Complete records of it whose objectives are finite numbers.
        draws: How many.
        seed: Seed of the draws.

    Yields:
        One array per draw: a row per record and a column per objective, each in the objective's own unit. Records with
        the same answers have the same change of the task metric, bit by bit.
    """

    def __init__(self, study: StudyRecord, records: Sequence[Record], *, draws: int, seed: int) -> None:
        self.values = objective_values(study, records)
        self.draws, self._seed = draws, seed
        names = [objective.name for objective in study.objectives]
        self._errors = np.array([[standard_error(record, name) for name in names] for record in records])
        self._errors = self._errors.reshape(self.values.shape)
        random = np.random.default_rng([seed, 0])
        self._shifts = [
            (column, places, shifts)
            for column, name in enumerate(names)
            if name in METRICS and len(places := paired(records, name))
            for shifts in (_shifts(name, [records[place] for place in places], draws, random.spawn(1)[0]),)
        ]
        for column, places, _shifts_of in self._shifts:
            self._errors[places, column] = 0.0

    @property
    def is_noisy(self) -> bool:
        """Whether any draw differs from the measured values."""
        return bool(self._errors.any()) or any(shifts.any() for _, _, shifts in self._shifts)

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        random = np.random.default_rng([self._seed, 1])
        for draw in range(self.draws):
            drawn = self.values + self._errors * random.standard_normal(self.values.shape)
            for column, places, shifts in self._shifts:
                drawn[places, column] = self.values[places, column] + shifts[:, draw]
            yield drawn


def paired(records: Sequence[Record], metric: str) -> NDArray[np.int64]:
    """Which of some records can be compared sentence by sentence: the places of those that answered the same ones.

    Args:
        records: The records.
        metric: The metric that is compared; f1 and matthews need the classes, accuracy only which answers were right.
    """
    kinds = [
        (record.answers["rows"], record.answers["labels"]) if record.answers is not None else None for record in records
    ]
    usable = Counter(kind for kind in kinds if kind is not None and (metric == "accuracy" or kind[1] > 0))
    most = max(usable, key=lambda kind: usable[kind], default=None)
    return np.array([place for place, kind in enumerate(kinds) if kind is not None and kind == most], dtype=np.int64)


def _shifts(metric: str, records: Sequence[Record], draws: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Shape (records, draws): what weighting the sentences changes of a metric."""
    # Each different text is unpacked and weighted once, so that equal answers are equal to the last bit.
    different = {str(record.answers["bits"]): record.answers for record in records if record.answers is not None}
    place = {bits: number for number, bits in enumerate(different)}
    answers = [unpacked(values) for values in different.values()]
    kept, rows, labels = len(answers[0].codes), answers[0].rows, answers[0].labels
    weights = random.standard_exponential((kept, draws))
    weights /= weights.mean(axis=0)
    even = np.ones((kept, 1))
    shifts = np.empty((len(answers), draws))
    for begin in range(0, len(answers), CHUNK):
        codes = np.stack([each.codes for each in answers[begin : begin + CHUNK]])
        measured = weighted(metric, codes, labels, even)
        shifts[begin : begin + CHUNK] = weighted(metric, codes, labels, weights) - measured
    shifts *= np.sqrt(kept / rows)  # of a very long split a part is kept: the metric is of the whole
    shifts = shifts.round(9)  # what is the same in theory is the same in numbers
    return shifts[[place[str(record.answers["bits"])] for record in records if record.answers is not None]]


def weighted(metric: str, codes: NDArray[np.int64], labels: int, weights: Weights) -> NDArray[np.float64]:
    """A metric of some trials where the sentences have weights.

    Args:
        metric: `accuracy`, `f1` or `matthews`, defined as in `objectives.quality`.
        codes: Shape (trials, sentences): what they answered, as in `search.answers.Answers`.
        labels: Number of classes; 0 where the codes say only right and wrong.
        weights: Of the sentences, for each draw.

    Returns:
        Shape (trials, draws).
    """
    if labels == 0:
        return _share(codes == RIGHT, weights)
    true, predicted = np.divmod(codes, labels)
    return _BY_CLASSES[metric](true, predicted, labels, weights)


def _accuracy(
    true: NDArray[np.int64], predicted: NDArray[np.int64], _labels: int, weights: Weights
) -> NDArray[np.float64]:
    return _share(true == predicted, weights)


def _f1(true: NDArray[np.int64], predicted: NDArray[np.int64], _labels: int, weights: Weights) -> NDArray[np.float64]:
    both = _sum((true == 1) & (predicted == 1), weights)
    return _quotient(2 * both, _sum(true == 1, weights) + _sum(predicted == 1, weights))


def _matthews(
    true: NDArray[np.int64], predicted: NDArray[np.int64], labels: int, weights: Weights
) -> NDArray[np.float64]:
    """Gorodkin 2004, equation 8, in the form of scikit-learn."""
    of_true = [_share(true == label, weights) for label in range(labels)]
    of_predicted = [_share(predicted == label, weights) for label in range(labels)]
    by_chance = sum(t * p for t, p in zip(of_true, of_predicted, strict=True))
    spread_true = np.maximum(1 - sum(t**2 for t in of_true), 0.0)
    spread_predicted = np.maximum(1 - sum(p**2 for p in of_predicted), 0.0)
    bottom = np.sqrt(spread_true * spread_predicted)
    return _quotient(_share(true == predicted, weights) - by_chance, np.where(bottom > 1e-6, bottom, 0.0))


_BY_CLASSES: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64], int, Weights], NDArray[np.float64]]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
}


def _sum(chosen: NDArray[np.bool_], weights: Weights) -> NDArray[np.float64]:
    """Shape (trials, draws): the weight of the chosen sentences."""
    summed: NDArray[np.float64] = chosen.astype(np.float64) @ weights
    return summed


def _share(chosen: NDArray[np.bool_], weights: Weights) -> NDArray[np.float64]:
    """Shape (trials, draws): the share that the chosen sentences have of all weight."""
    share: NDArray[np.float64] = _sum(chosen, weights) / weights.sum(axis=0)
    return share


def _quotient(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotients; 0 where they are not defined."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
