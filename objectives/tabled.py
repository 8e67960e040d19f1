"""A quantity by a table instead of a clock or a counter: the same model has the same value whenever it is asked for."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from objectives.additive import Agreement, Kept, Table
from objectives.measurement import Measurement
from objectives.objective import Direction, Subject
from objectives.products import widths


@dataclass(frozen=True)
class Tabled:
    """What a model costs by an additive table.

    Attributes:
        name: Name of the quantity, for example `latency_ms`.
        unit: Its unit.
        table: Costs of blocks.
        source: Source of the figures that the table was fitted to.
        factor: What the table's figures are multiplied with: for those that are shares of the dense model's latency
            this latency in milliseconds; above 0.
        agreement: How well it agrees with direct measurements; None where that was not looked at.
        conditions: What those figures depend on.

    Raises:
        ValueError: If `factor` is not above 0.
    """

    name: str
    unit: str
    table: Table
    source: str
    factor: float = 1.0
    agreement: Agreement | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"{self.name} by a table with the factor {self.factor}: it must be above 0")

    def measure(self, subject: Subject) -> Measurement:
        """Add up.

        Returns:
            The cost. Its source says that it comes from a table, and of what; `interval` is what 95 % of the errors on
            random plans do not exceed; `details` hold these errors and Kendall's tau.

        Raises:
            TypeError: If the model is not a BERT classifier.
            ValueError: If a layer has more heads or neurons than the table's largest entry.
        """
        heads, neurons = widths(subject.model)
        value = self.factor * self.table.cost(Kept(heads, neurons))
        source = f"table of {self.source}"
        if self.agreement is None:
            return Measurement(value, self.unit, source, conditions=self.conditions)
        found, reach = self.agreement, value * self.agreement.most
        order = {} if found.tau is None else {"table_tau": found.tau}
        return Measurement(
            value,
            self.unit,
            source,
            interval=(max(0.0, value - reach), value + reach),
            details={"table_error": found.median, "table_error_95": found.most, **order},
            conditions=self.conditions,
        )
