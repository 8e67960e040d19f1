"""What is one value of an objective: a number with its unit, its spread and where it comes from."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self


class MeasurementUnavailable(Exception):  # noqa: N818 - a state of the machine, not a mistake
    """A source of measurements cannot be read. The message says what is missing and what to do."""


@dataclass(frozen=True)
class Measurement:
    """One value of one objective.

    Attributes:
        value: The value, in `unit`; a finite number.
        unit: For example `ms`; empty for a share.
        source: Where the value comes from, for example `selection split`, `nvml` or `model`.
        low: Lower quartile of the observations, in `unit`; None where there is only one figure.
        high: Upper quartile of the observations, in `unit`; None where there is only one figure.
        samples: Observations that the value rests on: rows scored, batches timed, inferences under the counter.
        interval: 95 % confidence interval of the value, in `unit`; None where there is none.
        details: Further figures of the same measurement, by name; what they are says the objective.
        conditions: What the value depends on, as plain values: batch, tokens, threads and so on.
        warning: Why the value is to be taken with care; None where nothing is known against it.

    Raises:
        ValueError: If a number is not finite, quartiles or interval are in the wrong order, or there is no sample.

    Example:
        >>> Measurement(4.5, "ms", "eager torch", low=4.25, high=5.0, samples=20).to_dict()
        {'value': 4.5, 'unit': 'ms', 'source': 'eager torch', 'low': 4.25, 'high': 5.0, 'samples': 20}
    """

    value: float
    unit: str
    source: str
    low: float | None = None
    high: float | None = None
    samples: int = 1
    interval: tuple[float, float] | None = None
    details: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None

    def __post_init__(self) -> None:
        numbers = {"value": self.value, "low": self.low, "high": self.high, **self.details}
        if self.interval is not None:
            numbers |= {"the interval's lower end": self.interval[0], "the interval's upper end": self.interval[1]}
        for name, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise ValueError(
                    f"a measurement from {self.source!r} with {name} {number}: it must be a finite number; "
                    "raise MeasurementUnavailable where nothing could be measured"
                )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"a measurement with low {self.low} and high {self.high}: low must not exceed high")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"a measurement with the interval {self.interval}: its lower end must come first")
        if self.samples < 1:
            raise ValueError(f"a measurement with {self.samples} samples: a value rests on at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is None or empty is left out."""
        values = {name: entry for name, entry in asdict(self).items() if entry is not None and entry != {}}
        return values if self.interval is None else values | {"interval": list(self.interval)}

    def scaled(self, factor: float) -> Self:
        """The same measurement times a factor: value, quartiles and interval; details stay.

        Args:
            factor: Above 0.
        """
        low, high, interval = self.low, self.high, self.interval
        return replace(
            self,
            value=self.value * factor,
            low=None if low is None else low * factor,
            high=None if high is None else high * factor,
            interval=None if interval is None else (interval[0] * factor, interval[1] * factor),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The measurement that `to_dict` wrote.

        Raises:
            TypeError: If a field is missing or unknown.
            ValueError: If `values` does not hold a measurement.
        """
        interval = values.get("interval")
        return cls(**values | ({} if interval is None else {"interval": tuple(interval)}))
