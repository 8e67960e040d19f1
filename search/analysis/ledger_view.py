"""How a person reads the ledger: `paretobert ledger`, a section of the report, a line of `paretobert show`, and JSON.

what was done ─ how often ─ time ─ energy, one column per source
point of the front ─ saves per inference ─ pays after so many inferences
"""

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.analysis.ledger import (
    J_PER_KWH,
    LOST_GROUP,
    NEVER,
    PREPARATION,
    Energy,
    Entry,
    Ledger,
    Payback,
    groups,
    ledger,
    payback,
)
from search.analysis.modelled import MODEL
from search.definition import LATENCY
from search.records import Record, StudyRecord

Row = tuple[str, ...]


def render_ledger(study: StudyRecord, grid: float | None = None) -> RenderableType:
    """The ledger of a study for a terminal.

    Args:
        study: The study.
        grid: Intensity of the grid, g CO2-equivalent per kWh; None says nothing of CO2.
    """
    book = ledger(study)
    parts: list[RenderableType] = [_table(f"What the search of study {study.name} used", *spent_table(book))]
    if book.paybacks:
        parts += [Text(), _table("Paid for itself, against the dense model", *payback_table(study, book))]
    return Group(*parts, Text(), *(Text(sentence) for sentence in sentences(study, book, grid)))


def spent_table(book: Ledger) -> tuple[Row, list[Row]]:
    """Headers and rows of what was used: preparation by kind, trials by what became of them, the sum."""
    headers = ("", "how many", "time", *(f"energy ({each.source})" for each in _energies(book)))
    rows = []
    for group, entries in groups(book.entries).items():
        if group == PREPARATION:
            rows += [_spent(f"{group}: {entry.name}", [entry], book) for entry in entries]
        else:
            rows.append(_spent(f"trials: {group}", entries, book))
    sums = (_joules(each.joules, missing=each.missing) for each in _energies(book))
    return headers, [*rows, ("all", "", _time(book.seconds, missing=book.untimed), *sums)]


def payback_table(study: StudyRecord, book: Ledger) -> tuple[Row, list[Row]]:
    """Headers and rows of the points of the front: what each saves per inference, and when it pays."""
    latencies = [LATENCY, *study.definition.named_latencies]
    named = {name: "" if name == LATENCY else f" ({name.removeprefix(f'{LATENCY}.')})" for name in latencies}
    source = f" ({book.energy.source})" if book.energy else ""
    headers = (
        "trial",
        "saves mJ per inference",
        f"pays after, in energy{source}",
        *(text for n in latencies for text in (f"saves ms per inference{named[n]}", f"pays after, in time{named[n]}")),
    )
    return headers, [
        (
            str(each.trial),
            _number(each.saved_mj),
            inferences(each.after_energy),
            *(t for n in latencies for t in (_number(each.saved_ms.get(n)), inferences(each.after_time.get(n)))),
        )
        for each in book.paybacks
    ]


def sentences(study: StudyRecord, book: Ledger, grid: float | None = None) -> list[str]:
    """What has to be known to read the tables: sources, what is missing, CO2 where the grid's intensity is given."""
    said = []
    if not study.preparation:
        said.append("What the preparation took is not known: the study is of an earlier version.")
    if book.modelled is not None:
        said.append(
            "Energy by the model is computed from operations, a training step as three forward passes: products only, "
            "no optimizer, no idle device. It orders searches, it is no electricity bill."
        )
    if book.counted is None and book.modelled is None:
        said.append("The energy of the search is not known: no counter could be read, and none was modelled.")
    elif book.paybacks and book.energy is None:
        said.append("Cost and saving of energy are of different sources, which must not be divided.")
    for each in _energies(book):
        if each.missing:
            said.append(f"Energy ({each.source}): {_things(each.missing)} no figure, so the sum is a lower bound.")
    if book.untimed:
        said.append(f"Time: {_things(book.untimed)} none noted, so the sum is a lower bound.")
    if any(entry.group == LOST_GROUP for entry in book.entries):
        said.append("Of trials whose worker was lost, what counts is what it last said: up to 20 s or so are missing.")
    if grid is not None:
        said += [f"{carbon(each, grid)} ({each.source}), at {grid:g} g CO2-eq per kWh." for each in _energies(book)]
    if book.paybacks:
        said.append("An inference is one sequence; time is that of all workers together, on the study's own device.")
    return said


def trial_lines(study: StudyRecord, record: Record) -> list[str]:
    """What one trial used, and when the whole search would be paid for by it; empty where nothing is known."""
    book = ledger(study)
    mine = next((entry for entry in book.entries if entry.name == str(record.trial)), None)
    if mine is None:
        return []
    used = [] if mine.seconds is None else [_time(mine.seconds)]
    used += [] if mine.counted_j is None else [f"{_joules(mine.counted_j)} ({mine.counter or 'a counter'})"]
    used += [] if mine.modelled_j is None else [f"{_joules(mine.modelled_j)} ({MODEL})"]
    lines = [f"used: {', '.join(used)}"] if used else []
    if record.state == "complete" and record.role != "dense":
        pays = payback(study, record, energy=book.energy, seconds=book.seconds)
        source = f" ({book.energy.source})" if book.energy else ""
        said = [] if pays.after_energy is None else [f"{inferences(pays.after_energy)} in energy{source}"]
        said += [f"{inferences(after)} in time ({name})" for name, after in pays.after_time.items()]
        lines += [f"inferences until the search is paid for: {', '.join(said)}"] if said else []
    return lines


def as_values(study: StudyRecord, grid: float | None = None) -> dict[str, Any]:
    """The ledger as plain values for JSON: joules, seconds, millijoules and milliseconds; `"never"`, not infinity."""
    book = ledger(study)
    return {
        "study": study.name,
        "seconds": round(book.seconds, 3),
        "entries_without_time": book.untimed,
        "energy": {name: _energy(each, grid) for name, each in _named(book).items()},
        "energy_that_pays": book.energy.source if book.energy else None,
        "grid_g_per_kwh": grid,
        "entries": [
            {
                "group": entry.group,
                "name": entry.name,
                "seconds": entry.seconds,
                "counted_j": entry.counted_j,
                "counter": entry.counter,
                "modelled_j": entry.modelled_j,
            }
            for entry in book.entries
        ],
        "points": [_pays(each) for each in book.paybacks],
    }


def carbon(energy: Energy, grid: float) -> str:
    """Emissions of the whole search, for example `1.2 g CO2-eq`."""
    grams = 1000 * energy.kg(grid)
    bound = "at least " if energy.missing else ""
    return f"{bound}{grams / 1000:.4g} kg CO2-eq" if grams >= 1000 else f"{bound}{grams:.4g} g CO2-eq"


def inferences(count: float | None) -> str:
    """A number of inferences for a narrow column.

    Example:
        >>> inferences(None), inferences(NEVER), inferences(950), inferences(12_345_678)
        ('not known', 'never', '950', '12.3 M')
    """
    if count is None:
        return "not known"
    if count == NEVER:
        return "never"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.1f} {prefix}"
    return f"{count:.0f}"


def _spent(name: str, entries: list[Entry], book: Ledger) -> Row:
    seconds = [entry.seconds for entry in entries if entry.seconds is not None]
    cells = [_time(sum(seconds), missing=len(entries) - len(seconds)) if seconds else "not known"]
    for each in _energies(book):
        found = [entry.modelled_j if each is book.modelled else entry.counted_j for entry in entries]
        known = [joules for joules in found if joules is not None]
        cells.append(_joules(sum(known), missing=len(found) - len(known)) if known else "not known")
    return (name, str(len(entries)), *cells)


def _energies(book: Ledger) -> list[Energy]:
    return list(_named(book).values())


def _named(book: Ledger) -> dict[str, Energy]:
    both = {"counted": book.counted, "modelled": book.modelled}
    return {name: each for name, each in both.items() if each is not None}


def _energy(energy: Energy, grid: float | None) -> dict[str, Any]:
    values = {"joules": round(energy.joules, 6), "source": energy.source, "entries_without": energy.missing}
    return values if grid is None else values | {"g_co2eq": 1000 * energy.kg(grid)}


def _pays(each: Payback) -> dict[str, Any]:
    return {
        "trial": each.trial,
        "saved_mj": each.saved_mj,
        "pays_after_energy": _plain(each.after_energy),
        "saved_ms": each.saved_ms,
        "pays_after_time": {name: _plain(after) for name, after in each.after_time.items()},
    }


def _plain(count: float | None) -> float | str | None:
    return "never" if count == NEVER else count


def _things(count: int) -> str:
    return "1 trial or artifact has" if count == 1 else f"{count} trials or artifacts have"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def _time(seconds: float, *, missing: int = 0) -> str:
    bound = "at least " if missing else ""
    if seconds >= 7200:
        return f"{bound}{seconds / 3600:.1f} h"
    return f"{bound}{seconds / 60:.1f} min" if seconds >= 120 else f"{bound}{seconds:.1f} s"


def _joules(joules: float, *, missing: int = 0) -> str:
    bound = "at least " if missing else ""
    if joules >= J_PER_KWH / 100:
        return f"{bound}{joules / J_PER_KWH:.4g} kWh"
    return f"{bound}{joules:,.0f} J" if joules >= 100 else f"{bound}{joules:.4g} J"


def _table(title: str, headers: Row, rows: list[Row]) -> Table:
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for number, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
