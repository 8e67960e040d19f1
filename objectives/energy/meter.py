"""What is an energy counter."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Meter(Protocol):
    """A counter of energy spent by a whole device, whoever spends it. Two readings give the energy between them."""

    @property
    def source(self) -> str:
        """Name of the source, which stands in every measurement made with it."""

    def read_mj(self) -> float:
        """Read the counter.

        Returns:
            Millijoules since some fixed moment; never less than at an earlier reading.

        Raises:
            MeasurementUnavailable: If the counter cannot be read.
        """
