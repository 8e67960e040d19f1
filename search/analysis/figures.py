"""The pictures of a study, as plotly figures: for the report, for a notebook, for a dashboard.

A shape says who proposed a trial, a filled shape that it is on the front, so nothing rests on colour alone. The colours
are Okabe and Ito's, which people with any colour vision tell apart, in shades that read on white and on black.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search.analysis.dimensions import Importance
from search.analysis.front import front, is_candidate, listed_once, not_dominated
from search.analysis.indicators import hypervolume_history
from search.analysis.noise import interval
from search.analysis.quantities import quantity
from search.analysis.volume_interval import hypervolume_interval
from search.plan import Plan
from search.records import ObjectiveInfo, Record, StudyRecord

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#2f86c8", "#d9622b", "#129e78", "#b56fa0", "#8a919c"

MOST_DOMINATED = 1500
"""Dominated trials drawn at most, evenly taken: a browser draws more of them slowly, and they hide each other."""

GRID = "rgba(128,128,128,0.22)"

COLOUR_BAR = {"tickformat": ".0%", "thickness": 12, "outlinewidth": 0}


@dataclass(frozen=True)
class Kind:
    """One kind of trial in the scatter plots.

    Attributes:
        name: What it is, for the legend.
        symbol: Plotly's name of the shape.
        colour: As `#rrggbb`.
        size: Diameter in pixels.
        opacity: Of the whole mark.
        has_error_bars: Whether its noise is drawn.
    """

    name: str
    symbol: str
    colour: str
    size: int
    opacity: float
    has_error_bars: bool


KINDS = {
    "infeasible": Kind("infeasible", "x-thin-open", GREY, 7, 0.6, False),
    "dominated": Kind("dominated", "circle-open", GREY, 5, 0.55, False),
    "tilted": Kind("ladder, tilted by importance", "diamond", PURPLE, 10, 0.95, True),
    "uniform": Kind("ladder, uniform", "square", GREEN, 10, 0.95, True),
    "front": Kind("front", "circle", BLUE, 9, 0.95, True),
    "dense": Kind("dense model", "star", VERMILLION, 15, 1.0, True),
}
"""By key, in the order in which they are drawn."""


def groups(study: StudyRecord) -> dict[str, list[Record]]:
    """The trials that can be drawn, by kind: the keys of `KINDS`.

    A trial stands in one group: the dense model and the ladder stand in theirs, on the front or not. What was answered
    from another record is left out, and of very many dominated trials some (`MOST_DOMINATED`).

    Args:
        study: The study.

    Returns:
        Records by kind; kinds without a trial are there, empty.
    """
    found: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    records = listed_once(study.complete)
    for record, key in zip(records, kinds(study, records), strict=True):
        found[key].append(record)
    for kind in ("dominated", "infeasible"):
        found[kind] = _thinned(found[kind])
    return found


def kinds(study: StudyRecord, records: Sequence[Record]) -> list[str]:
    """The kind of each of some complete records: keys of `KINDS`."""
    on_front = {record.trial for record in front(study)}
    return [_kind(study, record, on_front) for record in records]


def pairs(study: StudyRecord) -> list[tuple[ObjectiveInfo, ObjectiveInfo]]:
    """Every pair of objectives as (horizontal, vertical): the earlier objective of a pair stands upright."""
    return [(second, first) for first, second in combinations(study.objectives, 2)]


def scatter(
    study: StudyRecord, x: ObjectiveInfo, y: ObjectiveInfo, *, members: Mapping[str, Sequence[Record]] | None = None
) -> go.Figure:
    """All trials in the plane of two objectives, with their noise and the front of just these two as a line.

    Args:
        study: The study.
        x: The horizontal objective.
        y: The vertical objective.
        members: What `groups` gave, where several figures are drawn.

    Returns:
        One trace per kind, whose `customdata` are the numbers of the trials, and one for the line. Error bars are those
        of `noise.interval`.
    """
    members = groups(study) if members is None else members
    on_front = {record.trial for record in front(study)}
    figure = go.Figure(layout=_layout(_axis(x), _axis(y), height=340))
    figure.update_layout(hovermode="closest", showlegend=False, dragmode=False)
    figure.add_trace(_best_line(study, x, y, [r for group in members.values() for r in group]))
    for key, kind in KINDS.items():
        drawn = [record for record in members[key] if _is_finite(record, x.name) and _is_finite(record, y.name)]
        figure.add_trace(_marks(key, kind, drawn, x.name, y.name, on_front))
    return figure


def against_trials(
    study: StudyRecord, y: ObjectiveInfo, *, members: Mapping[str, Sequence[Record]] | None = None
) -> go.Figure:
    """The only objective over the numbers of the trials: what a study of one objective has instead of pairs."""
    members = groups(study) if members is None else members
    on_front = {record.trial for record in front(study)}
    figure = go.Figure(layout=_layout("trial", _axis(y), height=340))
    figure.update_layout(hovermode="closest", showlegend=False, dragmode=False)
    for key, kind in KINDS.items():
        drawn = [record for record in members[key] if _is_finite(record, y.name)]
        figure.add_trace(_marks(key, kind, drawn, None, y.name, on_front))
    return figure


def kept_by_layer(study: StudyRecord, what: str) -> go.Figure:
    """What the points of the front keep of each layer, the largest encoder on top.

    Args:
        study: The study.
        what: `heads` or `neurons`.

    Returns:
        A heat map of shares from 0 to 1; `customdata` holds the counts. Without any trace where the front is empty.
    """
    points = by_size(study)
    full = study.shape.heads if what == "heads" else study.shape.neurons
    figure = go.Figure(layout=_layout("layer", "trial", height=min(90 + 22 * max(len(points), 4), 720)))
    if not points:
        return figure
    counts = np.array([plan.heads if what == "heads" else plan.neurons for _record, plan in points])
    figure.add_trace(
        go.Heatmap(
            z=(counts / full).round(4).tolist(),
            x=list(range(counts.shape[1])),
            y=[str(record.trial) for record, _plan in points],
            customdata=counts.tolist(),
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            xgap=1,
            ygap=1 if len(points) <= 60 else 0,
            colorbar={
                "title": {"text": f"{what} kept", "side": "right"},
                "tickformat": ".0%",
                "thickness": 12,
                "outlinewidth": 0,
            },
            hovertemplate=f"trial %{{y}}, layer %{{x}}: %{{customdata}} of {full} {what} (%{{z:.0%}})<extra></extra>",
        )
    )
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_xaxes(dtick=1 if counts.shape[1] <= 12 else 2, showgrid=False, constrain="domain")
    return figure


def by_size(study: StudyRecord) -> list[tuple[Record, Plan]]:
    """The points of the front with their plans, the largest encoder first."""
    points = [(record, record.plan) for record in front(study) if record.plan is not None]
    return sorted(points, key=lambda point: (-(quantity(study, point[0], "encoder_share") or 0.0), point[0].trial))


def hypervolume_curve(study: StudyRecord) -> go.Figure:
    """The hypervolume after each trial, with what the noise of the measurements makes of it.

    Args:
        study: The study.

    Returns:
        A step line and a band (`volume_interval.hypervolume_interval`, 95 %); a dotted line stands where the ladder
        ends. Without any trace where there is nothing to compare with.
    """
    figure = go.Figure(layout=_layout("trial", "hypervolume (share of the ideal)", height=320))
    figure.update_layout(showlegend=False, dragmode=False, hovermode="x")
    numbers = [record.trial for record in study.records]
    history = [(number, reached) for number, reached in zip(numbers, hypervolume_history(study), strict=True)]
    known = [(number, reached) for number, reached in history if reached is not None]
    if not known:
        return figure
    band = [(numbers[at], low, high) for at, low, high in hypervolume_interval(study)]
    if band:
        outline = [*((x, high) for x, _low, high in band), *((x, low) for x, low, _high in reversed(band))]
        figure.add_trace(
            go.Scatter(
                x=[x for x, _y in outline],
                y=[_digits(y) for _x, y in outline],
                fill="toself",
                fillcolor="rgba(47,134,200,0.22)",
                line={"width": 0},
                hoverinfo="skip",
                name="95 % interval",
            )
        )
    steps = [point for at, point in enumerate(known) if at in (0, len(known) - 1) or point[1] != known[at - 1][1]]
    figure.add_trace(
        go.Scatter(
            x=[x for x, _y in steps],
            y=[_digits(y) for _x, y in steps],
            mode="lines",
            line={"shape": "hv", "color": BLUE, "width": 2.5},
            hovertemplate="after trial %{x}: %{y:.4f}<extra></extra>",
            name="hypervolume",
        )
    )
    ladder = [record.trial for record in study.records if record.role in ("dense", "ladder")]
    if ladder and max(ladder) < numbers[-1]:
        figure.add_vline(x=max(ladder) + 0.5, line={"dash": "dot", "width": 1.5, "color": GREY})
    return figure


def importance_map(found: Sequence[Importance]) -> go.Figure:
    """How much each dimension moves each objective.

    Args:
        found: What `dimensions.dimension_importance` gave.

    Returns:
        A heat map: a row per dimension, a column per objective, each column adding up to 100 %. Without any trace where
        nothing was found.
    """
    names = list(found[0].shares) if found else []
    figure = go.Figure(layout=_layout(None, None, height=90 + 19 * max(len(names), 4)))
    if not found:
        return figure
    shares = [[round(each.shares[name], 4) for each in found] for name in names]
    top = max(max(row) for row in shares)
    figure.add_trace(
        go.Heatmap(
            z=shares,
            x=[f"{_text(each.objective, 14)}<br>R² {each.explained:.2f}" for each in found],
            y=[_text(name, 24) for name in names],
            zmin=0,
            zmax=top or 1,
            colorscale="Cividis",
            xgap=2,
            ygap=1,
            texttemplate="%{z:.0%}",
            colorbar=COLOUR_BAR,
            hovertemplate="%{y}: %{z:.1%} of %{x}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_xaxes(side="top", type="category", showgrid=False)
    return figure


def time_spent(study: StudyRecord) -> go.Figure:
    """Where the time of all trials went, stage by stage.

    Args:
        study: The study.

    Returns:
        A bar per stage, the longest on top. Without any trace where no time was recorded.
    """
    spent = seconds_by_stage(study)
    longest = max(spent.values(), default=0.0)
    unit, factor = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 120 else ("seconds", 1)
    figure = go.Figure(layout=_layout(unit, None, height=80 + 34 * max(len(spent), 2)))
    if not spent:
        return figure
    total = sum(spent.values()) or 1.0
    figure.add_trace(
        go.Bar(
            x=[_digits(seconds / factor) for seconds in spent.values()],
            y=[_text(stage, 24) for stage in spent],
            orientation="h",
            marker={"color": BLUE},
            text=[f"{seconds / total:.0%}" for seconds in spent.values()],
            hovertemplate=f"%{{y}}: %{{x:.2f}} {unit} (%{{text}})<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_layout(dragmode=False)
    return figure


def seconds_by_stage(study: StudyRecord) -> dict[str, float]:
    """Seconds of all trials by stage, the longest first."""
    spent: dict[str, float] = {}
    for record in study.records:
        for stage, seconds in record.seconds.items():
            if math.isfinite(seconds):
                spent[stage] = spent.get(stage, 0.0) + seconds
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def _kind(study: StudyRecord, record: Record, on_front: set[int]) -> str:
    if record.role == "dense":
        return "dense"
    if not is_candidate(study, record):
        return "infeasible"
    if record.role == "ladder":
        return "uniform" if _is_uniform(record) else "tilted"
    return "front" if record.trial in on_front else "dominated"


def _is_uniform(record: Record) -> bool:
    """Whether every layer keeps the same; the last one keeps a head even where the others have none."""
    if record.plan is None or len(set(record.plan.neurons)) > 1:
        return False
    others, last = set(record.plan.heads[:-1]), record.plan.heads[-1]
    return others <= {last} or (others == {0} and last == 1)


def _thinned(records: list[Record]) -> list[Record]:
    if len(records) <= MOST_DOMINATED:
        return records
    return [records[round(at)] for at in np.linspace(0, len(records) - 1, MOST_DOMINATED)]


def _marks(key: str, kind: Kind, records: Sequence[Record], x: str | None, y: str, on_front: set[int]) -> go.Scatter:
    """One trace of marks; `x` None stands for the number of the trial."""
    shapes = [
        f"{kind.symbol}-open" if kind.has_error_bars and record.trial not in on_front else kind.symbol
        for record in records
    ]
    bars: dict[str, Any] = {}
    if kind.has_error_bars:
        bars = {"error_y": _bars(records, y, kind.colour)}
        if x is not None:
            bars["error_x"] = _bars(records, x, kind.colour)
    across = "trial" if x is None else _text(x, 40)
    return go.Scatter(
        x=[record.trial if x is None else _digits(record.values[x]) for record in records],
        y=[_digits(record.values[y]) for record in records],
        customdata=[record.trial for record in records],
        mode="markers",
        name=kind.name,
        meta=key,
        marker={
            "symbol": shapes if len(set(shapes)) > 1 else (shapes or [kind.symbol])[0],
            "size": kind.size,
            "color": kind.colour,
            "opacity": kind.opacity,
            "line": {"width": 1.5 if kind.has_error_bars else 1, "color": kind.colour},
        },
        visible="legendonly" if key == "infeasible" else True,
        hovertemplate=f"trial %{{customdata}}<br>{across} %{{x}}<br>{_text(y, 40)} %{{y}}<extra></extra>",
        **bars,
    )


def _bars(records: Sequence[Record], name: str, colour: str) -> dict[str, Any]:
    """Error bars of one quantity; none where no record says how sure it is."""
    around = [interval(record, name) for record in records]
    if not any(around):
        return {}
    values = [record.values[name] for record in records]
    return {
        "type": "data",
        "symmetric": False,
        "array": [_digits(ends[1] - v) if ends else 0 for ends, v in zip(around, values, strict=True)],
        "arrayminus": [_digits(v - ends[0]) if ends else 0 for ends, v in zip(around, values, strict=True)],
        "color": f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.45)",
        "thickness": 1,
        "width": 0,
    }


def _best_line(study: StudyRecord, x: ObjectiveInfo, y: ObjectiveInfo, records: Sequence[Record]) -> go.Scatter:
    """The front of two objectives alone, as a step line."""
    two = StudyRecord(study.name, study.definition, (y, x), study.shape, ())
    best = not_dominated(two, [r for r in records if is_candidate(study, r)]) if records else []
    best = sorted(best, key=lambda record: (record.values[x.name], record.values[y.name]))
    return go.Scatter(
        x=[_digits(record.values[x.name]) for record in best],
        y=[_digits(record.values[y.name]) for record in best],
        mode="lines",
        line={"shape": "hv" if x.direction == "minimize" else "vh", "color": BLUE, "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
        name="best of these two",
        meta="line",
    )


def _layout(x: str | None, y: str | None, *, height: int) -> dict[str, Any]:
    """What all figures share: no background of their own, so that they fit a light and a dark page."""
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "linecolor": GRID}
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "xaxis": {**axis, "title": {"text": x, "standoff": 8}},
        "yaxis": {**axis, "title": {"text": y, "standoff": 8}},
    }


def _axis(objective: ObjectiveInfo) -> str:
    return f"{_text(objective.label, 40)} ({'more' if objective.direction == 'maximize' else 'less'} is better)"


def _text(name: str, longest: int) -> str:
    """A name as plotly shall show it: it reads tags, and a long name would push the picture aside."""
    return escape(name if len(name) <= longest else f"{name[: longest - 1]}…", quote=False)


def _is_finite(record: Record, name: str) -> bool:
    return math.isfinite(record.values.get(name, math.nan))


def _digits(value: float) -> float:
    """Seven digits are more than any picture shows, and keep the file small."""
    return float(f"{value:.7g}")
