"""Can two published figures of one classifier both hold on a set of so many positives and negatives? Plain counting.

Every pair of true positives and true negatives is one possible outcome; those that round to what is stated are listed.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Outcome(NamedTuple):
    """What a classifier did on a set: counts of rows."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def accuracy(self) -> float:
        """Share of rows that are right."""
        return (self.tp + self.tn) / sum(self)

    @property
    def f1(self) -> float:
        """F1 of the positive class; 0 where nothing is right of it."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp else 0.0

    @property
    def f1_of_negatives(self) -> float:
        """F1 of the other class."""
        return Outcome(self.tn, self.fn, self.fp, self.tp).f1

    @property
    def f1_macro(self) -> float:
        """Mean of the two."""
        return (self.f1 + self.f1_of_negatives) / 2

    @property
    def f1_weighted(self) -> float:
        """Mean of the two, weighted by the rows of each class."""
        positives, rows = self.tp + self.fn, sum(self)
        return (positives * self.f1 + (rows - positives) * self.f1_of_negatives) / rows

    @property
    def matthews(self) -> float:
        """Matthews correlation; 0 where it is not defined."""
        of = (self.tp + self.fp) * (self.tp + self.fn) * (self.tn + self.fp) * (self.tn + self.fn)
        return (self.tp * self.tn - self.fp * self.fn) / math.sqrt(of) if of else 0.0


F1S: dict[str, Callable[[Outcome], float]] = {
    "positive class": lambda outcome: outcome.f1,
    "negative class": lambda outcome: outcome.f1_of_negatives,
    "macro": lambda outcome: outcome.f1_macro,
    "weighted": lambda outcome: outcome.f1_weighted,
}
"""What people mean by F1."""


def outcomes(positives: int, negatives: int) -> Iterator[Outcome]:
    """All that can come of a set of rows."""
    for tp in range(positives + 1):
        for tn in range(negatives + 1):
            yield Outcome(tp, negatives - tn, positives - tp, tn)


def reads_as(value: float, stated: float, decimals: int) -> bool:
    """Whether a share, in per cent, is rounded or cut off to what is stated.

    Example:
        >>> [reads_as(share, 96.3, 1) for share in (0.9624, 0.9625, 0.9634, 0.9639, 0.9640)]
        [False, True, True, True, False]
    """
    unit = 10.0**-decimals
    return stated - unit / 2 - 1e-9 <= 100 * value < stated + unit - 1e-9


def with_accuracy_and_f1(positives: int, negatives: int, accuracy: float, f1: float) -> dict[str, list[Outcome]]:
    """Outcomes that read as an accuracy and an F1, both in per cent with one decimal, by what F1 means."""
    right = [each for each in outcomes(positives, negatives) if reads_as(each.accuracy, accuracy, 1)]
    return {name: [each for each in right if reads_as(of(each), f1, 1)] for name, of in F1S.items()}
