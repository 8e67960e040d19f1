"""What is known about one trial, for `paretobert show`.

    trial and state ─ plan, layer by layer ─ everything measured ─ constraints ─ seconds by stage ─ conditions

Every text that a user can choose reaches the terminal as `rich.text.Text`, which knows no markup.
"""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.analysis.confirmed import render_confirmed
from search.analysis.ledger_view import trial_lines
from search.analysis.quantities import KEPT, missed, quantity, short
from search.records import Record, StudyRecord


def render_trial(study: StudyRecord, record: Record) -> RenderableType:
    """Everything that a study holds about one trial.

    Args:
        study: The study that the record belongs to.
        record: One of its records, finished or not.

    Returns:
        Lines and small tables without markup; what the trial does not have is left out.
    """
    parts = [Text(f"Trial {record.trial} of study {study.name}: {record.state}, {record.role}", style="bold")]
    tables: list[RenderableType] = []
    if record.failure is not None:
        parts.append(Text(f"failed: {record.failure}", style="red"))
    if record.answered_from is not None:
        parts.append(Text(f"answered from trial {record.answered_from}, whose plan is the same"))
    if record.ended_at is not None:
        parts.append(Text(f"ended early, after {record.ended_at:.0%} of its recovery: it could not reach the front"))
    if record.audited_at is not None:
        parts.append(Text(f"would have been ended after {record.audited_at:.0%} of its recovery; went on as a check"))
    if record.seed is not None:
        parts.append(Text(f"seed: {record.seed}"))
    parts += [Text(line) for line in trial_lines(study, record)]
    if record.plan is not None and record.plan.rank is not None:
        shape, rank = study.shape, record.plan.rank
        parts.append(Text(f"word embeddings: rank {rank} of {shape.embedding_width}, for {shape.vocabulary:,} tokens"))
    if record.precision != "fp32" or len(study.definition.space.precision) > 1:
        parts.append(Text(f"scored and measured in {record.precision}"))
    parts += [
        Text(f"warning: {measured['warning']}", style="yellow")
        for measured in record.quantities.values()
        if "warning" in measured
    ]
    if record.plan is not None:
        tables.append(_plan_table(study, record))
    if record.schedule:
        chosen = {name: f"{value:g}" for name, value in record.schedule.items()}
        tables.append(_pairs("schedule", "chosen", chosen))
    if record.values or record.quantities:
        tables.append(_quantity_table(study, record))
    if record.state == "complete" or record.violations:
        tables.append(_constraint_lines(record))
    confirmation = study.confirmation_of(record)
    if confirmation is not None:
        tables.append(Group(Text("confirmed", style="bold"), render_confirmed(study, confirmation)))
    if record.seconds:
        tables.append(_pairs("stage", "seconds", {stage: f"{spent:.3f}" for stage, spent in record.seconds.items()}))
    if record.conditions:
        tables.append(_pairs("condition", "value", record.conditions))
    return Group(*parts, *(part for table in tables for part in (Text(), table)))


def _plan_table(study: StudyRecord, record: Record) -> Table:
    """Heads and neurons kept of how many, one row per layer and one for the whole encoder."""
    table = _table("layer", "heads", "neurons", right=True)
    plan, shape = record.plan, study.shape
    if plan is None:
        return table
    for layer, (heads, neurons) in enumerate(zip(plan.heads, plan.neurons, strict=True)):
        table.add_row(str(layer), f"{heads} of {shape.heads}", f"{neurons} of {shape.neurons}")
    all_heads, all_neurons = shape.heads * shape.layers, shape.neurons * shape.layers
    table.add_section()
    table.add_row("all", f"{sum(plan.heads)} of {all_heads}", f"{sum(plan.neurons)} of {all_neurons}")
    return table


def _quantity_table(study: StudyRecord, record: Record) -> Table:
    """Objectives first and marked, then everything else that was measured."""
    table = _table("quantity", "value", "unit", "source", "spread")
    units = {objective.name: objective.unit for objective in study.objectives}
    for name in dict.fromkeys([*units, *record.quantities]):
        measured = record.quantities.get(name, {})
        if name not in record.values and not measured:
            continue
        table.add_row(
            Text(f"{name} *" if name in units else name),
            Text(exact(quantity(study, record, name))),
            Text(str(measured.get("unit") or units.get(name, ""))),
            Text(str(measured.get("source") or "")),
            Text(spread(measured)),
        )
    table.add_row("metric kept", short(KEPT, quantity(study, record, KEPT)), "", "", "")
    table.caption = Text("* an objective of the study")
    table.caption_justify = "left"
    return table


def exact(value: float | None) -> str:
    """Write a value in full where it is a whole number, else with six digits.

    Args:
        value: The value; None where it was not measured.
    """
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def spread(measured: Mapping[str, Any]) -> str:
    """How sure a value is and what it rests on, as far as the measurement says.

    Args:
        measured: What `objectives.Measurement.to_dict` wrote.

    Returns:
        Quartiles, interval, 95th percentile, throughput, net energy and ratio, those that there are.
    """
    low, high, samples = measured.get("low"), measured.get("high"), measured.get("samples", 1)
    parts = [] if low is None or high is None else [f"quartiles {low:.4g} to {high:.4g}"]
    if (interval := measured.get("interval")) is not None:
        parts.append(f"95 % interval {interval[0]:.4g} to {interval[1]:.4g}")
    if samples > 1:
        parts.append(f"{samples:,} samples")
    details = measured.get("details", {})
    if (error := details.get("table_error")) is not None:
        parts.append(f"median error of the table {error:.1%}")
    if (p95 := details.get("p95")) is not None:
        parts.append(f"95th percentile {p95:.4g}")
    if (throughput := details.get("throughput_per_s")) is not None:
        parts.append(f"{throughput:.4g} sequences/s")
    if (net := details.get("net")) is not None:
        parts.append(f"{net:.4g} above idle ({details.get('idle_w', 0.0):.3g} W)")
    if (ratio := details.get("ratio")) is not None:
        parts.append(f"{ratio:.3f} of the dense model beside it")
    return ", ".join(parts)


def _constraint_lines(record: Record) -> Text:
    """Whether the trial is feasible, and every constraint with the distance to its bound."""
    verdict = "feasible" if record.feasible else "infeasible: it can never enter the front"
    lines = [verdict, *(_constraint_line(name, excess) for name, excess in record.violations.items())]
    return Text("\n".join(lines), style="" if record.feasible else "red")


def _constraint_line(name: str, excess: float) -> str:
    by = short(name, abs(excess))
    return f"  {missed(name, by)}" if excess > 0 else f"  {name} is within its bound by {by}"


def _pairs(name_header: str, value_header: str, values: Mapping[str, Any]) -> Table:
    table = _table(name_header, value_header)
    for name, value in values.items():
        table.add_row(Text(str(name)), Text(str(value)))
    return table


def _table(*headers: str, right: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in headers:
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    return table
