"""What a study comes to at 75, 50, 25 and 12.5 % of the encoder: which points, and the table that the README shows.

    front of the search ─► per size the best by the task's metric ─► confirmed on held-out rows, seeds ─► one row each

The best of many looks better than it is; so the search only says which plan stands for a size, and everything in a row
is what the confirmation and the measurements after it gave.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.analysis.pick import pick
from search.analysis.quantities import quantity
from search.errors import UserError
from search.records import Confirmation, StudyRecord

SIZES = (0.75, 0.5, 0.25, 0.125)
"""Shares of the encoder."""

ROOM = 1.02
"""A size may be missed by this factor: heads are whole, and biases and LayerNorms stay, so 25 % is 25.1 %."""


def chosen(study: StudyRecord) -> dict[float, int | None]:
    """The trial that stands for each size: the best by the task's metric among those of at most that size.

    Args:
        study: The study.

    Returns:
        Number of the trial by size; None where the search has nothing so small.
    """
    found: dict[float, int | None] = {}
    for size in SIZES:
        try:
            best = pick(study, at_most={"encoder_share": ROOM * size}, prefer="metric").record
        except UserError:
            found[size] = None
        else:
            found[size] = best.trial if best.answered_from is None else best.answered_from
    return found


def rows(
    study: StudyRecord,
    trials: Mapping[float, int | None],
    speeds: Mapping[int, Mapping[str, Mapping[str, Any]]],
    dense_seeds: Sequence[float],
) -> list[dict[str, Any]]:
    """The rows of the table, the dense model first.

    Args:
        study: The study, confirmed.
        trials: What `chosen` gave.
        speeds: Speed-ups by trial and name of the condition.
        dense_seeds: The task's metric of dense models on the held-out rows, one per seed, the teacher's first.

    Returns:
        One dict per row. `kept` is the confirmed mean as a share of the dense models' mean on the same rows.
    """
    assert study.dense is not None
    metric = study.definition.task.metric
    confirmed = {each.trial: each for each in study.confirmations}
    dense = confirmed[study.dense.trial]
    whole = float(np.mean(dense_seeds))
    first = {
        "seeds": len(dense_seeds),
        metric: _spread(dense_seeds),
        "kept": 1.0 if whole > 0 else None,
        "speed_up": {},
    }
    found = [_row(study, 1.0, dense, dense, whole) | first]
    for size, trial in trials.items():
        if trial is None or trial not in confirmed:
            found.append({"size": size, "trial": trial, "why_not": "no trial so small" if trial is None else "failed"})
        else:
            row = _row(study, size, confirmed[trial], dense, whole)
            found.append(row | {"speed_up": {name: dict(each) for name, each in speeds.get(trial, {}).items()}})
    return found


def _row(study: StudyRecord, size: float, point: Confirmation, dense: Confirmation, whole: float) -> dict[str, Any]:
    metric, record = study.definition.task.metric, study.records[point.trial]
    found = point.quantities[metric]
    row: dict[str, Any] = {
        "size": size,
        "trial": point.trial,
        "role": record.role,
        **{name: quantity(study, record, name) for name in ("encoder_share", "encoder_parameters", "parameters")},
        "searched": quantity(study, record, metric),
        metric: _spread(found["each"]) | {name: found.get(name) for name in ("low", "high")},
        "seeds": len(point.seeds),
        "kept": float(found["value"]) / whole if whole > 0 else None,
    }
    if "energy_mj" in point.quantities and "energy_mj" in dense.quantities:
        mine, whole = (each.quantities["energy_mj"] for each in (point, dense))
        row |= {
            "energy_mj": mine["value"],
            "energy_ratio": float(whole["value"]) / float(mine["value"]),
            "energy_source": mine.get("source"),
        }
    return row


def _spread(each: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds; the latter None for one seed."""
    return {
        "mean": float(np.mean(each)),
        "sd": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        "each": [float(value) for value in each],
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """The lines of the table in Markdown, made of the JSON of a result and of nothing else.

    Args:
        result: What `studies/evidence.py` wrote as evidence.json.
    """
    metric, listed = result["metric"], result["rows"]
    speeds = list(dict.fromkeys(name for row in listed for name in row.get("speed_up", {})))
    source = next((row["energy_source"] for row in listed if "energy_source" in row), "")
    seen = ("encoder at most", "encoder", "total", f"{metric}, held out", "of the dense model's")
    headers = (*seen, *(f"speed-up {name}" for name in speeds), f"energy ({source}), times less")
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    for row in listed:
        name = "dense" if row["size"] == 1.0 else f"{100 * row['size']:g} %"
        if "why_not" in row:
            lines.append(f"| {name} | {row['why_not']} |" + " |" * (len(headers) - 2))
            continue
        sd = "" if row[metric]["sd"] is None else f" ± {row[metric]['sd']:.4f}"
        cells = [
            name,
            f"{row['encoder_parameters'] / 1e6:.2f} M ({100 * row['encoder_share']:.1f} %)",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row[metric]['mean']:.4f}{sd} ({row['seeds']} seed{'' if row['seeds'] == 1 else 's'})",
            "-" if row["kept"] is None else f"{100 * row['kept']:.1f} %",
            *(f"{row['speed_up'][each]['speed_up']:.2f}" if each in row["speed_up"] else "1" for each in speeds),
            f"{row['energy_ratio']:.2f}" if "energy_ratio" in row else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
