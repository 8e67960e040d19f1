"""The front as rows: for pandas, for JSON and for the terminal.

Every text that a user can choose reaches the terminal as `rich.text.Text`, which knows no markup.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from search.analysis.front import front
from search.analysis.indicators import hypervolume
from search.analysis.quantities import COUNTS, KEPT, SHARES, quantity, short
from search.analysis.standing import SURE, Standing, standings, unpaired
from search.analysis.volume_interval import final_interval
from search.records import ObjectiveInfo, Overview, Record, StudyRecord

SURENESS = ("nondominated_probability", "like_cheaper")
"""Columns of `standing.Standing`: the probability that no trial dominates a point, and the cheaper one it is like."""

SURE_TYPES: dict[str, Any] = dict(zip(SURENESS, (float, "Int64"), strict=True))
"""Their types in a data frame."""

POINT = ("accuracy", "encoder_share", "parameters", "latency_ms", "energy_mj")
"""Quantities that every point of `points` names, measured or not."""


def front_frame(study: StudyRecord) -> pd.DataFrame:
    """The front as a table, one row per point, best first by the first objective.

    Args:
        study: The study.

    Returns:
        Columns `trial`, `role`, the objectives by name (their unit is in the name), `kept` (share of the dense model's
        task metric), `encoder_share`, `encoder_parameters`, `nondominated_probability` and `like_cheaper` (number of a
        cheaper point that it cannot be told from; `standing.standings` defines both), `heads` and `neurons` (kept layer
        by layer, for example `12 12 9 7 3 6`); `rank` of the word embeddings where that is a dimension (the hidden size
        where they are one table), and `precision` where that is one. What was not measured is missing (NaN). An empty
        front has the columns and no rows.
    """
    names = _unique([objective.name for objective in study.objectives], KEPT, "encoder_share", "encoder_parameters")
    columns = ["trial", "role", *names, *SURENESS, *_further_names(study), "heads", "neurons"]
    rows = [
        {
            "trial": record.trial,
            "role": record.role,
            **{name: quantity(study, record, name) for name in names},
            **_sureness(study, record),
            **_further(study, record),
            "heads": _counts(record.plan.heads) if record.plan else None,
            "neurons": _counts(record.plan.neurons) if record.plan else None,
        }
        for record in front(study)
    ]
    frame = pd.DataFrame(rows, columns=columns)
    measured = {name: float for name in names if name not in COUNTS or frame[name].hasnans}
    return frame.astype({**measured, **SURE_TYPES})


def frame(study: StudyRecord) -> pd.DataFrame:
    """All trials as a table, one row per trial.

    Args:
        study: The study. It is not changed.

    Returns:
        Columns `trial`, `state`, `role`, `on_front`, `nondominated_probability` and `like_cheaper` (of the points of
        the front; `standing.standings` defines both), `feasible`, `answered_from`; the objectives and everything else
        that was measured, with the unit in the name (`latency_ms`, `memory [MB]`) and, where quartiles were recorded,
        `latency_ms_low` and `latency_ms_high`; `kept` (share of the dense model's task metric), `encoder_share`,
        `encoder_parameters`; `heads` and `neurons` (kept layer by layer, for example `12 12 9 7 3 6`); `seconds` (of
        the whole trial), `energy_j` (used by its worker) and `failure`; `precision` where that is a dimension. What
        was not measured is missing.
    """
    names = _all_quantities(study)
    labels = {objective.name: objective.label for objective in study.objectives}
    ends = [
        (name, end)
        for name in names
        for end in ("low", "high")
        if any(end in record.quantities.get(name, {}) for record in study.records)
    ]
    on_front = {record.trial for record in front(study)}
    rows = [
        {
            "trial": record.trial,
            "state": record.state,
            "role": record.role,
            "on_front": record.trial in on_front,
            **_sureness(study, record),
            "feasible": record.feasible,
            "answered_from": record.answered_from,
            **{labels.get(name, name): quantity(study, record, name) for name in names},
            **{f"{labels.get(name, name)}_{end}": record.quantities.get(name, {}).get(end) for name, end in ends},
            "precision": record.precision,
            "heads": _counts(record.plan.heads) if record.plan else None,
            "neurons": _counts(record.plan.neurons) if record.plan else None,
            "seconds": sum(record.seconds.values()) if record.seconds else None,
            "energy_j": record.energy_j,
            "failure": record.failure,
        }
        for record in study.records
    ]
    columns = [
        *("trial", "state", "role", "on_front", *SURENESS, "feasible", "answered_from"),
        *(labels.get(name, name) for name in names),
        *(f"{labels.get(name, name)}_{end}" for name, end in ends),
        *(["precision"] if "precision" in _further_names(study) else []),
        *("heads", "neurons", "seconds", "energy_j", "failure"),
    ]
    whole: dict[str, Any] = {"trial": "int64", "on_front": bool, "feasible": bool, "answered_from": "Int64"}
    counts = {labels.get(name, name): "Int64" for name in names if name in COUNTS}
    measured = [labels.get(name, name) for name in names if name not in COUNTS]
    numbers = [*measured, *(f"{labels.get(name, name)}_{end}" for name, end in ends), "seconds", "energy_j"]
    return pd.DataFrame(rows, columns=columns).astype(
        {**whole, **SURE_TYPES, **counts, **dict.fromkeys(numbers, float)}
    )


def _sureness(study: StudyRecord, record: Record) -> dict[str, float | int | None]:
    """`SURENESS` of a record; None off the front."""
    found = standings(study).get(record.trial)
    return (
        dict.fromkeys(SURENESS) if found is None else dict(zip(SURENESS, (found.probability, found.like), strict=True))
    )


def points(study: StudyRecord) -> list[dict[str, Any]]:
    """The front as plain values for JSON, best first by the first objective.

    Args:
        study: The study.

    Returns:
        One dict per point: `trial`, the quantities of `POINT`, all objectives, `kept`, `role`,
        `nondominated_probability` and `like_cheaper` (None where it can be told from all cheaper ones;
        `standing.standings` defines both); `rank` of the word embeddings and `precision` where these are dimensions.
        Sizes are whole numbers; what was not measured is None, never NaN.
    """
    names = _unique([*POINT, *(objective.name for objective in study.objectives)], KEPT)
    return [
        {
            "trial": record.trial,
            **{name: quantity(study, record, name) for name in names},
            **_further(study, record),
            "role": record.role,
            **_sureness(study, record),
        }
        for record in front(study)
    ]


def render_front(study: StudyRecord) -> Table:
    """The front for a terminal of 100 columns, the dense model first for comparison.

    The dense row stands there even where the dense model is dominated. The column `on front` is the probability that no
    trial of the study dominates the point, and, after a `~`, the number of a cheaper point that it cannot be told from:
    one that is better with a probability of 95 % in at least one objective other than a task metric, while the point
    itself is better with 95 % in none (`standing.standings`). The foot lines say so, and what is not known. Neurons are
    in blocks of the definition's `space.neuron_block`, a block begun counted as a whole one.

    Args:
        study: The study.

    Returns:
        A table whose cells hold no markup. Long plans wrap within their cells.
    """
    members = front(study)
    listed = "1 point" if len(members) == 1 else f"{len(members)} points"
    table = render_records(study, members, title=f"Front of study {study.name}: {listed}")
    table.caption = Text("\n").join(map(Text, [str(table.caption), *_foot(study, members)]))
    return table


def _foot(study: StudyRecord, members: Sequence[Record]) -> list[str]:
    """What the column `on front` means, how sure the hypervolume is, and what is not known of the noise."""
    if not members:
        return []
    like = next((standing.like for standing in standings(study).values() if standing.like is not None), None)
    lines = ["on front: probability that no trial dominates the point, given the noise of the measurements"]
    if like is not None:
        lines.append(
            f"~{like}: not distinguishable from trial {like}, which is better in a cost and worse in nothing "
            f"(p = {SURE})"
        )
    if (ends := final_interval(study)) is not None:
        lines.append(f"hypervolume {hypervolume(study):.4f}, 95 % interval {ends[0]:.4f} to {ends[1]:.4f}")
    return lines if (lacking := unpaired(study)) is None else [*lines, lacking]


def render_records(study: StudyRecord, members: Sequence[Record], *, title: str) -> Table:
    """Some records in the columns of `render_front`, the dense model first.

    Args:
        study: The study that they belong to.
        members: The records, in the order in which they are listed.
        title: Heading of the table.
    """
    dense, block = study.dense, study.definition.space.neuron_block
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        caption=Text(
            "\n".join(
                ["heads and neurons layer by layer; 12x3 is 12 in three layers in a row", *_tabled(study, members)]
            )
        ),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    columns = _front_columns(study.objectives)
    known = standings(study)
    table.add_column("trial", overflow="fold")
    for name, header in columns.items():
        table.add_column(Text(header), justify="right", overflow="fold", no_wrap=name in SHARES)
    table.add_column(Text("on\nfront"), justify="right", overflow="fold")
    for name in _further_names(study):
        table.add_column(name, justify="right")
    table.add_column("heads", overflow="fold")
    table.add_column(Text(f"neurons / {block}"), overflow="fold")
    for record in (*((dense,) if dense else ()), *(member for member in members if member is not dense)):
        table.add_row(
            Text(_label(record)),
            *(Text(short(name, quantity(study, record, name)), no_wrap=True) for name in columns),
            Text(_standing(known.get(record.trial))),
            *(Text(str(chosen)) for chosen in _further(study, record).values()),
            Text(_runs(record.plan.heads) if record.plan else "-"),
            Text(_runs([math.ceil(kept / block) for kept in record.plan.neurons]) if record.plan else "-"),
            style="dim" if record is dense else None,
        )
    return table


def _tabled(study: StudyRecord, members: Sequence[Record]) -> list[str]:
    """One line for each objective that was added up by a table, and not measured on each trial."""
    lines = []
    for objective in study.objectives:
        details = [record.quantities.get(objective.name, {}).get("details", {}) for record in members]
        errors = [found["table_error"] for found in details if "table_error" in found]
        if errors:
            lines.append(f"{objective.name} by the table, with a median error of {errors[0]:.1%} on random plans")
    return lines


def _standing(standing: Standing | None) -> str:
    """`0.85`, `0.85 ~7`; a hyphen off the front. Only what is certain is 1.00."""
    if standing is None:
        return "-"
    share = standing.probability
    text = ">0.99" if 0.995 <= share < 1 else "<0.01" if 0 < share < 0.005 else f"{share:.2f}"
    return text if standing.like is None else f"{text} ~{standing.like}"


def _further_names(study: StudyRecord) -> list[str]:
    """What a plan chooses beside heads and neurons, and the recovery's schedule."""
    space = study.definition.space
    return [*(["rank"] if space.factorises else []), *(["precision"] if len(space.precision) > 1 else [])]


def _further(study: StudyRecord, record: Record) -> dict[str, int | str]:
    """What a record has of these."""
    known: dict[str, int | str] = {"rank": _rank(study, record), "precision": record.precision}
    return {name: known[name] for name in _further_names(study)}


def _rank(study: StudyRecord, record: Record) -> int:
    """Rank of the word embeddings: their width where they are one table."""
    rank = record.plan.rank if record.plan else None
    return study.shape.embedding_width if rank is None else rank


def _front_columns(objectives: Sequence[ObjectiveInfo]) -> dict[str, str]:
    """Headers by quantity: the objectives, what is kept of the metric, and the share of the encoder."""
    named = {objective.name: _header(objective) for objective in objectives}
    return {**named, KEPT: "metric\nkept", "encoder_share": "encoder\nkept"}


def _header(objective: ObjectiveInfo) -> str:
    """Name and unit on two lines, the unit once; spaces let a long name wrap."""
    suffix = f"_{objective.unit}"
    if objective.unit and objective.name.lower().endswith(suffix.lower()):
        return f"{objective.name[: -len(suffix)].replace('_', ' ')}\n{objective.unit}"
    return objective.name.replace("_", " ")


def _label(record: Record) -> str:
    """Number of the trial, and its role where that is not the search's."""
    return str(record.trial) if record.role == "search" else f"{record.trial} {record.role}"


def _counts(counts: Sequence[int]) -> str:
    return " ".join(map(str, counts))


def _runs(counts: Sequence[int]) -> str:
    """The counts with equal neighbours drawn together: `12x3 9 7` for 12, 12, 12, 9, 7."""
    runs = [(count, len(list(equal))) for count, equal in groupby(counts)]
    return " ".join(str(count) if length == 1 else f"{count}x{length}" for count, length in runs)


def _all_quantities(study: StudyRecord) -> list[str]:
    """Names of the objectives, of everything else that any trial measured, and of what is counted from the plans."""
    objectives = [objective.name for objective in study.objectives]
    measured = dict.fromkeys(name for record in study.records for name in record.quantities)
    return _unique([*objectives, *measured], KEPT, "encoder_share", "encoder_parameters")


def _unique(names: list[str], *others: str) -> list[str]:
    return list(dict.fromkeys([*names, *others]))


def render_studies(studies: Sequence[Overview]) -> Table:
    """The studies of a storage as a table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("study", "complete", "failed", "running", "waiting", "last"):
        table.add_column(column, justify="left" if column in ("study", "last") else "right")
    for study in studies:
        of = "" if study.total is None else f" / {study.total}"
        table.add_row(
            Text(study.name),
            f"{study.counts.get('complete', 0)}{of}",
            *(str(study.counts.get(state, 0)) for state in ("failed", "running", "waiting")),
            "" if study.last is None else study.last.strftime("%Y-%m-%d %H:%M"),
        )
    return table
