"""One HTML file with everything about a study: it opens without a network, anywhere, in years.

    records ──► figures (plotly) ──► JSON ─┐
       └──────► rows of the table ──► JSON ┼──► page.html with page.css, page.js and plotly.js inside
                sentences ──► escaped HTML ┘

The page may run the two scripts in it, known by their hashes, and nothing else, and may load nothing.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import plotly.graph_objects as go

from search.analysis import confirmed, figures, ledger, ledger_view, stories
from search.analysis.dimensions import Importance, dimension_importance
from search.analysis.figures import KINDS
from search.analysis.front import front, is_candidate, listed_once
from search.analysis.noise import interval
from search.analysis.quantities import COUNTS, KEPT, SHARES, quantity
from search.analysis.standing import standings
from search.definition import METRICS
from search.records import ObjectiveInfo, Record, StudyRecord


def render_report(study: StudyRecord, *, written: date | None = None, grid: float | None = None) -> str:
    """The report of a study.

    Args:
        study: The study, at any stage. It is not changed.
        written: The day that it names; None takes today.
        grid: Intensity of the grid, g CO2-equivalent per kWh; None says nothing of CO2.

    Returns:
        A whole HTML document. Nothing in it comes from elsewhere; names and messages of the study are escaped.
    """
    moves = dimension_importance(study)
    drawn = pictures(study, moves)
    script, plotly_js = _inline(_asset("page.js")), _inline(_plotly_js())
    return Template(_asset("page.html")).substitute(
        policy=_policy(script, plotly_js),
        title=escape(f"{_shortened(study.name, 80)} · paretobert report"),
        style=_asset("page.css"),
        name=escape(study.name),
        lead=escape(stories.lead(study, written or date.today())),
        cards="".join(_card(card) for card in stories.cards(study)),
        about=_pairs(stories.about(study)),
        front_note=escape(stories.front_note(study)),
        scatters=_places(drawn, "scatter"),
        confirmed=_confirmed(study),
        layers_note=escape(stories.layers_note(study)),
        layers=_places(drawn, "layers"),
        course=_section(drawn, "plot-hypervolume", stories.hypervolume_note(study)),
        importance=_section(drawn, "plot-importance", stories.importance_note(moves)),
        cost=_section(drawn, "plot-time", stories.cost_note(study)),
        ledger=_ledger(study, grid),
        failures=_failures(study),
        conditions=_pairs(stories.conditions(study)) + _definition(study),
        footer=escape(stories.footer(study)),
        data=_json({**_rows(study), "figures": {name: _plain(figure) for name, figure in drawn.items()}}),
        plotly=plotly_js,
        script=script,
    )


def pictures(study: StudyRecord, moves: Sequence[Importance]) -> dict[str, go.Figure]:
    """The pictures of a study by the name of their place in the page; those that would be empty are left out.

    Args:
        study: The study. It is not changed.
        moves: What `dimensions.dimension_importance` gave.
    """
    members = figures.groups(study)
    drawn = {}
    for number, (x, y) in enumerate(figures.pairs(study)):
        drawn[f"scatter-{number}"] = figures.scatter(study, x, y, members=members)
    if len(study.objectives) == 1:
        drawn["scatter-0"] = figures.against_trials(study, study.objectives[0], members=members)
    for what in ("heads", "neurons"):
        drawn[f"layers-{what}"] = figures.kept_by_layer(study, what)
    drawn["plot-hypervolume"] = figures.hypervolume_curve(study)
    drawn["plot-importance"] = figures.importance_map(moves)
    drawn["plot-time"] = figures.time_spent(study)
    return {name: figure for name, figure in drawn.items() if any(_has_points(trace) for trace in figure.data)}


def _has_points(trace: Any) -> bool:
    return any(values is not None and len(values) > 0 for values in (trace.x, trace.y))


def _rows(study: StudyRecord) -> dict[str, Any]:
    """What the table, the hover texts and the panel of a trial are made of: columns of equal length.

    Infeasible trials and such with values that are no numbers are among them, as `infeasible`.
    """
    columns = _columns(study)
    records = sorted(
        listed_once(study.complete), key=lambda record: (not is_candidate(study, record), *_best_first(study, record))
    )
    kinds = figures.kinds(study, records)
    on_front, sure = {record.trial for record in front(study)}, standings(study)
    return {
        "study": study.name,
        "file": _shortened("".join(c if c.isalnum() or c in "._-" else "-" for c in study.name), 60),
        "columns": columns,
        "kinds": {key: {"name": k.name, "symbol": k.symbol, "colour": k.colour} for key, k in KINDS.items()},
        "shape": {"heads": study.shape.heads, "neurons": study.shape.neurons},
        "trial": [record.trial for record in records],
        "kind": kinds,
        "front": [int(record.trial in on_front) for record in records],
        "sure": {trial: [round(standing.probability, 3), standing.like] for trial, standing in sure.items()},
        "values": [[_digits(quantity(study, record, column["name"])) for column in columns] for record in records],
        "intervals": [_intervals(record, columns) for record in records],
        "heads": [list(record.plan.heads) if record.plan else None for record in records],
        "neurons": [list(record.plan.neurons) if record.plan else None for record in records],
        "notes": {record.trial: note for record in records if (note := stories.reason(study, record))},
    }


def _best_first(study: StudyRecord, record: Record) -> tuple[float, int]:
    first = study.objectives[0]
    value = quantity(study, record, first.name) or 0.0
    return (-value if first.direction == "maximize" else value), record.trial


def _columns(study: StudyRecord) -> list[dict[str, Any]]:
    """The objectives, and what every table of this product shows beside them."""
    more = [
        ObjectiveInfo(KEPT, "", "maximize"),
        ObjectiveInfo("encoder_share", "", "minimize"),
    ]
    names = [objective.name for objective in study.objectives]
    labels = {KEPT: "metric kept", "encoder_share": "encoder kept"}
    return [
        {
            "name": each.name,
            "label": each.label if each.name in names else labels[each.name],
            "kind": _format(each.name),
            "better": "up" if each.direction == "maximize" else "down",
            "objective": each.name in names,
        }
        for each in (*study.objectives, *(each for each in more if each.name not in names))
    ]


def _format(name: str) -> str:
    if name in SHARES:
        return "share"
    return "metric" if name in METRICS else "count" if name in COUNTS else "number"


def _intervals(record: Record, columns: Iterable[Mapping[str, Any]]) -> list[list[float | None] | None] | None:
    ends = [interval(record, column["name"]) for column in columns]
    return (
        [[_digits(low), _digits(high)] if each else None for each in ends for low, high in [each or (0, 0)]]
        if any(ends)
        else None
    )


def _ledger(study: StudyRecord, grid: float | None) -> str:
    """What the search used and when it pays, as tables and sentences."""
    book = ledger.ledger(study)
    tables = [("", *ledger_view.spent_table(book))]
    tables += [("Paid for itself", *ledger_view.payback_table(study, book))] if book.paybacks else []
    said = " ".join(ledger_view.sentences(study, book, grid))
    return "".join(_cells(*table) for table in tables) + f'<p class="note">{escape(said)}</p>'


def _cells(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col" class="words">{escape(header)}</th>' for header in headers)
    body = "".join("<tr>" + "".join(f'<td class="words">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'{heading}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _confirmed(study: StudyRecord) -> str:
    """What the confirmations say, and their table; nothing where there are none."""
    if not study.confirmations:
        return ""
    said = "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in confirmed.sentences(study))
    table = _table("", confirmed.HEADERS, confirmed.rows(study, study.confirmations))
    return f'<section id="confirmed"><h2>Searched and confirmed</h2>{said}{table}</section>'


def _failures(study: StudyRecord) -> str:
    """Tables of why trials failed and which constraints were broken, and one sentence where none did."""
    tables = [
        _table("Failed", ("why", "trials", "which"), stories.failures(study)),
        _table("Infeasible", ("constraint broken", "trials", "which"), stories.infeasible(study)),
    ]
    return "".join(tables) or "<p>No trial failed, and every trial kept the constraints.</p>"


def _table(title: str, headers: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col" class="words">{escape(header)}</th>' for header in headers)
    body = "".join(
        "<tr>" + "".join(f'<td class="words wide">{escape(str(cell))}</td>' for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<h3>{title}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _card(card: stories.Card) -> str:
    inner = f"<span>{escape(card.title)}</span><b>{escape(card.value)}</b><span>{escape(card.detail)}</span>"
    if card.trial is None:
        return f'<div class="card">{inner}</div>'
    return f'<button type="button" class="card" data-choose="{card.trial}">{inner}</button>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"


def _definition(study: StudyRecord) -> str:
    text = escape(study.definition.model_dump_json(indent=2))
    return f"<details><summary>The whole definition</summary><pre><code>{text}</code></pre></details>"


def _places(drawn: Mapping[str, go.Figure], kind: str) -> str:
    names = [name for name in drawn if name.startswith(kind)]
    return "".join(f'<div id="{name}" class="plot"></div>' for name in names) or "<p>There is nothing to draw yet.</p>"


def _section(drawn: Mapping[str, go.Figure], name: str, note: str) -> str:
    place = f'<div id="{name}" class="plot"></div>' if name in drawn else ""
    return f'<p class="note">{escape(note)}</p>{place}'


def _plain(figure: go.Figure) -> Any:
    return json.loads(figure.to_json())


def _json(values: Any) -> str:
    """JSON that may stand in a script element: no character that could end it, and no NaN."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(*scripts: str) -> str:
    """The Content-Security-Policy: these two scripts run, nothing is loaded, sent or framed."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{text}'" for text in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _inline(script: str) -> str:
    """A script that may stand in a page: browsers read CR LF as LF, and would end it at a closing tag in a string."""
    return script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _asset(name: str) -> str:
    return files("search.analysis").joinpath("page", name).read_text(encoding="utf-8")


def _digits(value: float | None) -> float | None:
    """Seven digits; whole numbers stay whole."""
    return value if value is None or isinstance(value, int) else float(f"{value:.7g}")


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
