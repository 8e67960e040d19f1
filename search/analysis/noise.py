"""How sure is a measured value, as far as the record of its measurement says?

    quantity                                 interval drawn                    standard error
    accuracy on n rows                       Wilson, 95 %                      √(p·(1 - p) / n)
    measured repeatedly (latency, energy)    the quartiles of the samples      1.2533 · (IQR / 1.349) / √samples
    counted (parameters), or nothing said    none                              0

p is the share of rows classified correctly, IQR the distance between the quartiles.
"""

import math

import moocore
import numpy as np
from numpy.typing import NDArray

from search.analysis.front import is_candidate, objective_values
from search.analysis.indicators import gains, has_reference, volume
from search.records import Record, StudyRecord

Z_95 = 1.959964
"""Quantile of the standard normal distribution that leaves 2.5 % above it."""

IQR_OF_NORMAL = 1.349
"""Distance between the quartiles of the standard normal distribution."""

MEDIAN_OVER_MEAN = math.sqrt(math.pi / 2)
"""How much larger the standard error of a median is than that of a mean, for normal samples."""


def interval(record: Record, name: str) -> tuple[float, float] | None:
    """The interval that is drawn around a value: the table at the top of this file says which.

    Args:
        record: A record.
        name: Name of a quantity.

    Returns:
        Low and high end in the quantity's own unit, around the value; None where the record says nothing about it.

    Reference:
        Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    Example:
        >>> record = Record(0, "complete", quantities={"accuracy": {"value": 0.9, "samples": 100}})
        >>> low, high = interval(record, "accuracy")
        >>> round(low, 4), round(high, 4)
        (0.8256, 0.9448)
    """
    value, samples = _value_and_samples(record, name)
    if value is None:
        return None
    if name == "accuracy":
        return _wilson(value, samples) if samples > 1 and 0 <= value <= 1 else None
    low, high = _quartiles(record, name)
    if low is None or high is None:
        return None
    return min(low, value), max(high, value)


def standard_error(record: Record, name: str) -> float:
    """Standard error of a value: the table at the top of this file says how it is taken.

    Args:
        record: A record.
        name: Name of a quantity.

    Returns:
        In the quantity's own unit; 0 where the record says nothing about it.
    """
    value, samples = _value_and_samples(record, name)
    if value is None:
        return 0.0
    if name == "accuracy":
        return math.sqrt(value * (1 - value) / samples) if samples > 1 and 0 <= value <= 1 else 0.0
    low, high = _quartiles(record, name)
    if low is None or high is None or high < low:
        return 0.0
    return MEDIAN_OVER_MEAN * (high - low) / IQR_OF_NORMAL / math.sqrt(samples)


def hypervolume_interval(
    study: StudyRecord, *, moments: int = 40, draws: int = 100, seed: int = 0
) -> list[tuple[int, float, float]]:
    """How far the hypervolume could be off because its trials were measured with noise.

    The basic bootstrap: every trial's values are drawn again around the measured ones, the hypervolume is computed
    anew, and its deviations are turned around. A search keeps what happened to be measured well, so the interval lies
    mostly below the curve. Errors of different trials are drawn independently of each other. What another seed of the
    search would have found is not in it.

    Args:
        study: The study. It is not changed.
        moments: At how many trials the interval is computed at most; the last candidate is always one of them.
        draws: How often the values are drawn again.
        seed: Seed of the draws.

    Returns:
        Position in `study.records`, low and high end (95 %); empty where no value has an error, or there is nothing to
        compare with (`indicators.hypervolume`).

    Reference:
        Davison, Hinkley 1997, "Bootstrap Methods and their Application", equation 5.6 (the basic bootstrap).
    """
    positions = [at for at, record in enumerate(study.records) if is_candidate(study, record)]
    if not has_reference(study) or not positions:
        return []
    records = [study.records[at] for at in positions]
    values = objective_values(study, records)
    errors = np.array([[standard_error(record, o.name) for o in study.objectives] for record in records])
    if not errors.any():
        return []
    random = np.random.default_rng(seed)
    last = np.unique(np.linspace(0, len(records) - 1, moments).round().astype(int))
    measured = _growth(gains(study, values), last)
    drawn = [_growth(gains(study, values + errors * random.standard_normal(values.shape)), last) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    # The deviations, turned around.
    ends = zip(np.maximum(2 * measured - high, 0.0), np.minimum(2 * measured - low, 1.0), strict=True)
    return [(positions[at], float(below), float(above)) for at, (below, above) in zip(last, ends, strict=True)]


def _growth(points: NDArray[np.float64], last: NDArray[np.int_]) -> NDArray[np.float64]:
    """The hypervolume of the points up to and including each of some positions, in rising order."""
    kept, begin, volumes = points[:0], 0, []
    for at in last:
        kept = np.concatenate([kept, points[begin : at + 1]])
        kept = kept[moocore.is_nondominated(kept, maximise=True)]
        begin = at + 1
        volumes.append(volume(kept))
    return np.array(volumes)


def _wilson(share: float, rows: int) -> tuple[float, float]:
    middle = share + Z_95**2 / (2 * rows)
    reach = Z_95 * math.sqrt(share * (1 - share) / rows + (Z_95 / (2 * rows)) ** 2)
    return (middle - reach) / (1 + Z_95**2 / rows), (middle + reach) / (1 + Z_95**2 / rows)


def _value_and_samples(record: Record, name: str) -> tuple[float | None, int]:
    measured = record.quantities.get(name, {})
    value = record.values.get(name, measured.get("value"))
    finite = isinstance(value, int | float) and math.isfinite(value)
    return (float(value) if finite and value is not None else None), max(int(measured.get("samples") or 1), 1)


def _quartiles(record: Record, name: str) -> tuple[float | None, float | None]:
    measured = record.quantities.get(name, {})
    ends = (measured.get("low"), measured.get("high"))
    low, high = (float(end) if isinstance(end, int | float) and math.isfinite(end) else None for end in ends)
    return low, high
