"""How sure is a measured value, as far as the record of its measurement says?

    quantity                                 interval drawn                    standard error
    accuracy on n rows                       Wilson, 95 %                      √(p·(1 - p) / n)
    measured repeatedly (latency, energy)    the quartiles of the samples      1.2533 · (IQR / 1.349) / √samples
      with a 95 % interval of its own        the quartiles of the samples      width of the interval / 3.92
    counted (parameters), or nothing said    none                              0

p is the share of rows classified correctly, IQR the distance between the quartiles. The samples of a counter of energy
are its windows. All of it is what one measurement says of itself: a machine that was slower for a minute is not in it.
"""

import math

from search.records import Record

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
    low, high = _interval(record, name)
    if low is not None and high is not None and low <= high:
        return (high - low) / (2 * Z_95)
    low, high = _quartiles(record, name)
    if low is None or high is None or high < low:
        return 0.0
    samples = int(record.quantities[name].get("details", {}).get("windows") or samples)
    return MEDIAN_OVER_MEAN * (high - low) / IQR_OF_NORMAL / math.sqrt(samples)


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
    return _finite(measured.get("low")), _finite(measured.get("high"))


def _interval(record: Record, name: str) -> tuple[float | None, float | None]:
    low, high = record.quantities.get(name, {}).get("interval") or (None, None)
    return _finite(low), _finite(high)


def _finite(end: object) -> float | None:
    return float(end) if isinstance(end, int | float) and math.isfinite(end) else None
