"""The confidence interval of a median: against slow counting, and whether it covers as often as it claims."""

import itertools
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.median import median_interval, relative_width

DISTRIBUTIONS: dict[str, tuple[Callable[[random.Random], float], float]] = {
    "symmetric": (lambda draw: draw.gauss(10.0, 1.0), 10.0),
    "long tail": (lambda draw: 5.0 + draw.expovariate(1.0), 5.0 + 0.6931471805599453),
    "two modes": (lambda draw: draw.gauss(1.0 if draw.random() < 0.6 else 9.0, 0.1), 1.0 + 0.1 * 0.967422),
}
"""How an observation is drawn, and the true median. Of two modes: the quantile 0.5 / 0.6 of the lower one."""


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [6, 15, 20, 45])
def test_it_covers_at_least_as_often_as_it_claims(name: str, count: int) -> None:
    observe, truth = DISTRIBUTIONS[name]
    draw, rounds = random.Random(count), 3000
    covered = 0
    for _ in range(rounds):
        interval = median_interval([observe(draw) for _ in range(count)])
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered / rounds >= 0.95 - 3 * (0.95 * 0.05 / rounds) ** 0.5


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_it_is_the_narrowest_that_does(count: int, confidence: float) -> None:
    """Every way in which `count` observations can lie below (0) or above (1) the median is equally likely."""

    def covers(rank: int) -> float:
        sides = list(itertools.product((0, 1), repeat=count))
        return sum(rank <= sum(side) <= count - rank for side in sides) / len(sides)

    ranks = [rank for rank in range(1, count // 2 + 1) if covers(rank) >= confidence]
    values = list(range(1, count + 1))
    expected = (max(ranks), count + 1 - max(ranks)) if ranks else None
    assert median_interval(values, confidence=confidence) == expected


@given(st.lists(st.floats(0.001, 1000), min_size=6, max_size=60))
def test_it_holds_the_median_and_does_not_depend_on_the_order(values: list[float]) -> None:
    before = list(values)
    interval = median_interval(values)
    assert interval is not None
    assert values == before
    assert interval[0] <= statistics.median(values) <= interval[1]
    assert median_interval(values[::-1]) == interval


def test_too_few_observations_have_none() -> None:
    assert median_interval([1.0] * 5) is None
    assert relative_width(None, 1.0) == float("inf")
    assert relative_width((0.9, 1.1), 1.0) == pytest.approx(0.2)
    assert relative_width((0.0, 0.0), 0.0) == float("inf")


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_a_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="it lies between 0 and 1"):
        median_interval([1.0], confidence=confidence)


def test_thousands_of_observations_have_an_interval() -> None:
    """A small model on a fast backend is run more often than a float can count the outcomes of."""
    low, high = median_interval(range(5000)) or (0, 0)
    assert (low, high) == pytest.approx((2430, 2569), abs=1)  # 2500 -+ 1.96 * sqrt(5000) / 2
