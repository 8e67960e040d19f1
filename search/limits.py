"""When a search ends before its study has all its trials."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a search may use.

    Attributes:
        until: Moment at which it ends, in seconds since 1970 (`time.time`); None has no end.
        energy_kwh: Energy that the whole study may use, as the counters of its workers' devices say; None has no end.
    """

    until: float | None = None
    energy_kwh: float | None = None
