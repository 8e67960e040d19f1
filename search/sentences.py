"""What a person is told of a search, in words: a trial, the best so far, a duration."""

from collections.abc import Sequence

from search.events import Finished
from search.records import Record

ENOUGH = 0.97
"""Share of the dense metric that a small model has to keep to be called the best so far."""


def best_so_far(records: Sequence[Record], metric: str) -> str:
    """Name the smallest model that keeps enough of the dense metric.

    Args:
        records: Complete trials.
        metric: Name of the task metric.

    Returns:
        A sentence without its full stop.
    """
    scored = [r for r in records if {metric, "encoder_share"} <= {*r.values, *r.quantities}]
    dense = next((record for record in scored if record.role == "dense"), None)
    if dense is None:
        return "the dense model is not scored yet"
    enough = ENOUGH * dense.value(metric)
    good = [record for record in scored if record.feasible and record.value(metric) >= enough]
    best = min(good, key=lambda record: record.value("encoder_share"), default=None)
    if best is None:
        return f"no model keeps {100 * ENOUGH:.0f} % of dense and the constraints yet"
    return (
        f"smallest with {100 * ENOUGH:.0f} % of dense: {best.value('encoder_share'):.0%} of the encoder at "
        f"{metric} {best.value(metric):.3f} (trial {best.trial})"
    )


def outcome(event: Finished, metric: str) -> str:
    """Say in one line what became of a trial.

    Args:
        event: The trial.
        metric: Name of the task metric.

    Returns:
        A line.
    """
    if event.state != "complete":
        return f"trial {event.trial} failed: {event.failure}"
    formats = {metric: f"{metric} {{:.3f}}", "encoder_share": "{:.0%} of the encoder", "latency_ms": "{:.1f} ms"}
    parts = [f"trial {event.trial} ({event.role})"]
    parts += [form.format(event.values[name]) for name, form in formats.items() if name in event.values]
    if event.answered_from is not None:
        parts.append(f"same plan as trial {event.answered_from}")
    if not event.feasible:
        parts.append("breaks a constraint")
    return ", ".join(parts)


def minutes(seconds: float) -> str:
    """Say a duration in seconds or minutes, as far as one cares."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
