"""How sure is a metric of several trainings on one split, and which of two is clearly better?

    trainings: the mean varies with their seeds          Student's t, n - 1 degrees of freedom
    rows: it varies with which rows the split holds      Wilson's interval for accuracy, else the bootstrap
    both: half-widths added in squares                   (Zou, Donner 2008: the method of variance estimates recovery)

Two points are compared on the same rows, drawn anew for both alike: what is hard for both does not blur the difference.

Reference:
    Zou, Donner 2008, "Construction of confidence limits about effect measures: a general approach".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.analysis import noise
from search.records import Record

DRAWS = 400
"""How often the rows are drawn anew."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the trainings of one point say about its metric.

    Attributes:
        values: The metric of each training (trainings,).
        drawn: Mean of the trainings on rows drawn anew (draws,), the same rows for all points.
        rows: Rows of the split.
    """

    values: NDArray[np.float64]
    drawn: NDArray[np.float64]
    rows: int

    @property
    def mean(self) -> float:
        """Mean of the trainings."""
        return float(self.values.mean())


def gather(scores: Sequence[Callable[[NDArray[np.int64]], float]], rows: int, *, seed: int = 0) -> Evidence:
    """Score trainings on all rows, and on rows drawn anew.

    Args:
        scores: One function per training: its metric on the rows of these numbers.
        rows: Rows of the split.
        seed: Seed of the draws; points that are to be compared need the same.

    Returns:
        The evidence.
    """
    whole, dice = np.arange(rows), np.random.default_rng(seed)
    drawn = [float(np.mean([score(some) for score in scores])) for some in _some(dice, rows)]
    return Evidence(np.array([score(whole) for score in scores]), np.array(drawn), rows)


def interval(evidence: Evidence, *, is_share: bool) -> tuple[float, float]:
    """The 95 % interval of the mean of all trainings that could be made, on all rows that could be drawn.

    Args:
        evidence: What is known.
        is_share: Whether the metric is a share of the rows, accuracy say.

    Returns:
        Low and high end, within what a metric can be. With one training its seed is not in it.
    """
    mean = evidence.mean
    low, high = np.quantile(evidence.drawn, [0.025, 0.975])
    if is_share:
        whole = Record(0, "complete", quantities={"accuracy": {"value": mean, "samples": evidence.rows}})
        low, high = noise.interval(whole, "accuracy") or (low, high)
    seeds = _reach(_variance(evidence.values), len(evidence.values) - 1)
    least = 0.0 if is_share else -1.0
    return max(mean - math.hypot(mean - low, seeds), least), min(mean + math.hypot(high - mean, seeds), 1.0)


def difference(one: Evidence, other: Evidence) -> tuple[float, float, float]:
    """How far one point's mean is above another's, with its 95 % interval.

    Args:
        one: A point.
        other: Another, scored on the same rows with the same seed of the draws.

    Returns:
        The difference, low and high end.
    """
    apart = one.mean - other.mean
    low, high = np.quantile(one.drawn - other.drawn, [0.025, 0.975])
    parts = [(_variance(each.values), len(each.values) - 1) for each in (one, other)]
    seeds = _reach(sum(variance for variance, _ in parts), _freedom(parts))
    return apart, apart - math.hypot(apart - low, seeds), apart + math.hypot(high - apart, seeds)


def _some(dice: np.random.Generator, rows: int) -> list[NDArray[np.int64]]:
    return [dice.integers(rows, size=rows) for _ in range(DRAWS)]


def _variance(values: NDArray[np.float64]) -> float:
    """Variance of the mean; 0 where one value says nothing about it."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _freedom(parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a difference (Welch, Satterthwaite)."""
    varying = [(variance, freedom) for variance, freedom in parts if variance > 0 and freedom > 0]
    below = sum(variance**2 / freedom for variance, freedom in varying)
    return sum(variance for variance, _ in varying) ** 2 / below if below else 0.0


def _reach(variance: float, freedom: float) -> float:
    """Half-width of the interval that comes from the seeds."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom)) * math.sqrt(variance) if variance > 0 and freedom > 0 else 0.0
