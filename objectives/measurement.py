"""What is one value of an objective: a number with its unit, its spread and where it comes from."""

import math
from dataclasses import asdict, dataclass
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

    Raises:
        ValueError: If a number is not finite, the quartiles are in the wrong order, or there is no sample.

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

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(
                    f"a measurement from {self.source!r} with {name} {number}: it must be a finite number; "
                    "raise MeasurementUnavailable where nothing could be measured"
                )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"a measurement with low {self.low} and high {self.high}: low must not exceed high")
        if self.samples < 1:
            raise ValueError(f"a measurement with {self.samples} samples: a value rests on at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a quartile that is None is left out."""
        return {name: entry for name, entry in asdict(self).items() if entry is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The measurement that `to_dict` wrote.

        Raises:
            TypeError: If a field is missing or unknown.
            ValueError: If `values` does not hold a measurement.
        """
        return cls(**values)
