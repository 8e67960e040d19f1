"""How are a model and its reference timed side by side, and when is it enough?

    model ▒▒▒▒ reference ████ │ reference ████ model ▒▒▒▒ │ model ▒▒▒▒ reference ████ │ ...
    └───────── pair ─────────┘ └───────── pair ──────────┘ └───────── pair ─────────┘

A pair is the time of the model over that of the reference next to it. What slows the machine for longer than a pair
cancels in it; what falls into one pair spoils one of many. Which of the two comes first changes from pair to pair, so
that a steady drift cancels between neighbours. A turn lasts at least `TURN_S`: short batches run several times, and the
median leaves out the first one, which meets the caches that the other model left.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from objectives.inference import Conditions, Run
from objectives.median import median_interval, relative_width

TURN_S = 0.05
"""Seconds that a turn of the model or of the reference runs, at least; one pass always."""

FEWEST_PAIRS = 2


@dataclass(frozen=True)
class Observed:
    """What was timed.

    Attributes:
        passes: Milliseconds of each batch of each pass over the model.
        reference: Milliseconds of a batch of the reference, one figure for each of its turns.
        pairs: The model's share of the reference, pair by pair; empty without a reference.
    """

    passes: list[list[float]] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    pairs: list[float] = field(default_factory=list)

    @property
    def means(self) -> list[float]:
        """Milliseconds of a batch, one figure for each pass over the model."""
        return [statistics.fmean(times_ms) for times_ms in self.passes]


def observe(
    runs: Sequence[Run],
    reference_runs: Sequence[Run],
    conditions: Conditions,
    clock: Callable[[], float],
    *,
    related: bool = True,
    work_clock: Callable[[], float] | None = None,
) -> Observed:
    """Time a model, beside its reference where there is one, until the figure is known well enough or time is up.

    Args:
        runs: What runs each batch of the model, warm.
        reference_runs: What runs each batch of the reference; empty where there is none.
        conditions: How many observations at least, half of them of the reference where there is one; how narrow the
            95 % interval shall be; how many seconds of running, the reference's included, end it all the same.
        clock: A monotonic clock in seconds.
        related: Whether the median of the pairs is the figure, not that of the passes.
        work_clock: What counts the seconds of running; None takes those of `clock` that were timed.

    Returns:
        All that was timed, nothing left out.
    """
    observed, timed_ms = Observed(), 0.0
    begin_s = work_clock() if work_clock else 0.0
    done, least = 0, conditions.repeats
    if reference_runs:
        least = max(FEWEST_PAIRS, math.ceil(least / 2))
    while True:
        if reference_runs:
            timed_ms += _pair(observed, runs, reference_runs, clock, model_first=done % 2 == 0)
        else:
            observed.passes.append(_timed(runs, clock))
            timed_ms += sum(observed.passes[-1])
        done += 1
        if done < least:
            continue
        figures = observed.pairs if reference_runs and related else observed.means
        spent_s = work_clock() - begin_s if work_clock else timed_ms / 1000
        if _is_enough(figures, conditions.interval) or spent_s >= conditions.limit_s:
            return observed
        least += max(1, least // 2)  # seldom: who looks often stops at a narrow interval by luck


def _pair(
    observed: Observed,
    runs: Sequence[Run],
    reference_runs: Sequence[Run],
    clock: Callable[[], float],
    *,
    model_first: bool,
) -> float:
    """Note a turn of both; the milliseconds of both together."""
    if model_first:
        mine = _turn(runs, clock)
        others = _turn(reference_runs, clock)
    else:
        others = _turn(reference_runs, clock)
        mine = _turn(runs, clock)
    observed.passes.extend(mine)
    observed.reference.append(_of_a_turn(others))
    observed.pairs.append(_of_a_turn(mine) / observed.reference[-1])
    return sum(map(sum, (*mine, *others)))


def _turn(runs: Sequence[Run], clock: Callable[[], float]) -> list[list[float]]:
    """Milliseconds of each batch of each pass."""
    passes: list[list[float]] = []
    while sum(map(sum, passes)) < 1000 * TURN_S or not passes:
        passes.append(_timed(runs, clock))
    return passes


def _of_a_turn(passes: Sequence[Sequence[float]]) -> float:
    return statistics.median(statistics.fmean(times_ms) for times_ms in passes)


def _timed(runs: Sequence[Run], clock: Callable[[], float]) -> list[float]:
    """Milliseconds of each batch of one pass."""
    times_ms = []
    for run in runs:
        start_s = clock()
        run()
        times_ms.append((clock() - start_s) * 1000)
    return times_ms


def _is_enough(figures: Sequence[float], width: float | None) -> bool:
    return width is None or relative_width(median_interval(figures), statistics.median(figures)) <= width
