"""What is known about one model, wherever it comes from: the card that `paretobert measure` prints.

what it is ─ every quantity with its spread, its source and its share of the dense model's ─ what was not measured
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.analysis.quantities import COUNTS
from search.analysis.trial import exact, spread

HELD_OUT = "held-out split"
"""Source of the metrics on rows that the search never sees."""


@dataclass(frozen=True)
class Card:
    """One model as the objectives see it.

    Attributes:
        model: The checkpoint, as it was named.
        what: What it is, in words.
        study: Name of the study whose conditions it was measured under; None where they were named.
        quantities: Everything measured, by name (`objectives.Measurement.to_dict`).
        held_out: The task's metrics on the held-out split, by name; empty where they were not asked for.
        dense: The dense model's values in the study, by quantity; empty where there are none.
        unmeasured: Why a quantity was not measured, by name.
        conditions: Device, threads, versions and the source of the energy figure.
        notes: What else should be known.
        beside_is_dense: Whether the model that was timed beside this one is what `dense` is of, or what this one is
            to be compared with instead; else it is the dense model in another precision.
    """

    model: str
    what: str
    study: str | None = None
    quantities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    held_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dense: Mapping[str, float] = field(default_factory=dict)
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    beside_is_dense: bool = True

    def ratio(self, name: str) -> float | None:
        """A quantity as a multiple of the dense model's: of the one measured beside it where there was one.

        Args:
            name: Name of a measured quantity.

        Returns:
            The ratio; None where the study has no such figure of the dense model, or it is not above 0.
        """
        beside = self.quantities[name].get("details", {}).get("ratio")
        if beside is not None and self.beside_is_dense:
            return float(beside)
        dense = self.dense.get(name)
        return float(self.quantities[name]["value"]) / dense if dense is not None and dense > 0 else None


def render_card(card: Card) -> RenderableType:
    """The card for a terminal.

    Args:
        card: The card.

    Returns:
        Lines and a table without markup.
    """
    under = f"under the conditions of study {card.study}" if card.study else "under the conditions named"
    lines = [Text(f"{card.model}: {card.what}", style="bold"), Text(f"measured {under}")]
    warned = [each["warning"] for each in card.quantities.values() if "warning" in each]
    lines += [Text(f"warning: {text}", style="yellow") for text in warned]
    lines += [Text(f"note: {text}") for text in card.notes]
    missing = [Text(f"{name}: not measured: {reason}") for name, reason in card.unmeasured.items()]
    conditions = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in card.conditions.items())
    return Group(*lines, Text(), _table(card), Text(), *missing, Text(f"conditions: {conditions}"))


def as_values(card: Card) -> dict[str, Any]:
    """The card as plain values for JSON.

    Args:
        card: The card.
    """
    return {
        "model": card.model,
        "what": card.what,
        "study": card.study,
        "quantities": dict(card.quantities),
        "held_out": dict(card.held_out),
        "dense": dict(card.dense),
        "ratio_to_dense": {name: ratio for name in card.quantities if (ratio := card.ratio(name)) is not None},
        "not_measured": dict(card.unmeasured),
        "conditions": dict(card.conditions),
        "notes": list(card.notes),
    }


def _table(card: Card) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    ratios = {name: ratio for name in card.quantities if (ratio := card.ratio(name)) is not None}
    for header in ("quantity", "value", "unit", *(["of dense"] if ratios else []), "source", "spread"):
        table.add_column(header, justify="right" if header in ("value", "of dense") else "left", overflow="fold")
    for name, measured in (*card.quantities.items(), *card.held_out.items()):
        ratio = None if measured is card.held_out.get(name) else ratios.get(name)
        of_dense = [Text("" if ratio is None else f"{ratio:.3f}")] if ratios else []
        value, unit, *rest = _cells(measured, is_count=name in COUNTS)
        table.add_row(Text(name), value, unit, *of_dense, *rest)
    return table


def _cells(measured: Mapping[str, Any], *, is_count: bool) -> tuple[Text, ...]:
    value = float(measured["value"])
    unit, source = str(measured.get("unit", "")), str(measured.get("source", ""))
    return tuple(Text(cell) for cell in (exact(round(value) if is_count else value), unit, source, spread(measured)))
