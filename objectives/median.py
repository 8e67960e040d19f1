"""How well is the median of some observations known, whatever their distribution is.

    sorted observations     x1  x2  x3  ...  xk  ... median ...  xl  ...  xn
                                             └────── interval ──────┘         l = n + 1 - k

The number of observations below the true median is binomial(n, 1/2), so the chance that the k-th smallest lies above
it, or the k-th largest below it, needs no assumption but independence. Neighbouring timings of a busy machine are not
quite independent; the interval is then too narrow.
"""

from collections.abc import Sequence
from math import comb

CONFIDENCE = 0.95
"""How often an interval holds the true median, at least."""


def median_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Interval that holds the true median of a distribution, from independent observations of it.

    Args:
        values: Observations in any order.
        confidence: How often the interval shall hold the median, at least; above 0 and below 1.

    Returns:
        Two of the observations, the narrowest symmetric pair; None where there are too few of them: 95 % needs 6.

    Raises:
        ValueError: If `confidence` is not between 0 and 1.

    Reference:
        Conover 1999, "Practical Nonparametric Statistics", 3rd edition, section 3.2: intervals for quantiles.

    Example:
        >>> median_interval([5, 1, 4, 2, 3, 6, 7, 8, 9, 10])
        (2, 9)
        >>> median_interval([1, 2, 3, 4, 5]) is None
        True
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: it lies between 0 and 1")
    rank = _rank(len(values), confidence)
    if rank < 1:
        return None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[-rank]


def relative_width(interval: tuple[float, float] | None, median: float) -> float:
    """Width of an interval as a share of the median; infinite where there is none."""
    if interval is None or not median > 0:
        return float("inf")
    return (interval[1] - interval[0]) / median


def _rank(count: int, confidence: float) -> int:
    """Largest k for which the k-th smallest and the k-th largest of `count` hold the median often enough; 0 for none.

    They miss it if fewer than k observations lie on one side: 2 · P(binomial(count, 1/2) < k).
    """
    rank, below = 0, 0
    share, of = (1 - confidence).as_integer_ratio()  # whole numbers: 2**count is beyond any float from 1024 on
    while 2 * (below + comb(count, rank)) * of <= share << count:
        below += comb(count, rank)
        rank += 1
    return rank
