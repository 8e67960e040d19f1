"""What did the search itself use, and after how many inferences has it paid for itself?

    preparation + all trials, the failed and lost ones too ──► seconds, joules
    joules / (dense energy per inference - a point's)      ──► inferences until the search is paid for, in energy
    seconds / (dense time per inference - a point's)       ──► the same in time

Energy has a source: a counter of the workers' devices, or the per-operation model (`search.analysis.modelled`), which
is labelled so. Cost and saving are only divided where both are of one source. A point that saves nothing never pays.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from search.analysis import modelled
from search.analysis.front import front
from search.analysis.modelled import ENERGY, MODEL
from search.definition import LATENCY
from search.records import LOST, Record, StudyRecord

J_PER_KWH = 3.6e6
"""Joules in a kilowatt-hour."""

NEVER = math.inf
"""Inferences after which a point pays that saves nothing."""

PREPARATION = "preparation"
"""Group of what is made once."""

LOST_GROUP = "worker lost"
"""Group of the trials whose worker died, or fell silent for too long."""


@dataclass(frozen=True)
class Entry:
    """What one trial, or one thing that was made once, used.

    Attributes:
        group: `preparation`, or what became of the trial.
        name: Kind of the thing, or the trial's number.
        seconds: Time; None where it is not known.
        counted_j: Joules by a counter; None where none could be read.
        counter: Name of that counter; None where it is not known.
        modelled_j: Joules by the per-operation model; None where it has no figure.
    """

    group: str
    name: str
    seconds: float | None
    counted_j: float | None
    counter: str | None
    modelled_j: float | None


@dataclass(frozen=True)
class Energy:
    """Energy of the whole search from one source.

    Attributes:
        joules: The sum of what is known.
        source: `model`, or the counters' names.
        missing: How many trials and things have no figure from this source; above 0 the sum is a lower bound.
    """

    joules: float
    source: str
    missing: int

    def kg(self, grid: float) -> float:
        """Kilograms of CO2-equivalent.

        Args:
            grid: Intensity of the grid, g CO2-equivalent per kWh.

        Example:
            >>> Energy(7.2e6, "nvml", 0).kg(400.0)
            0.8
        """
        return self.joules / J_PER_KWH * grid / 1000


@dataclass(frozen=True)
class Payback:
    """When the search has paid for itself with one point of the front.

    Attributes:
        trial: The point.
        saved_mj: Energy that it saves per inference against the dense model, in millijoules; below 0 it takes more.
            None where one of the two was not measured.
        after_energy: Inferences (sequences) until the energy of the search is saved; `NEVER` where nothing is saved,
            None where it cannot be said.
        saved_ms: Time that it saves per inference, in milliseconds, by name of the latency.
        after_time: Inferences until the time of the search is saved, by name of the latency; `NEVER` likewise.
    """

    trial: int
    saved_mj: float | None = None
    after_energy: float | None = None
    saved_ms: dict[str, float] = field(default_factory=dict)
    after_time: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """What a search used and when it pays.

    Attributes:
        entries: Everything that was done, preparation first.
        counted: Energy by counters; None where none was read.
        modelled: Energy by the per-operation model; None where the study's own energy is not of that source.
        energy: The one of the two that has the source of the study's energy per inference; None where neither has.
        paybacks: The points of the front but the dense model, in the order of the front.
    """

    entries: tuple[Entry, ...]
    counted: Energy | None
    modelled: Energy | None
    energy: Energy | None
    paybacks: tuple[Payback, ...]

    @property
    def seconds(self) -> float:
        """Seconds of all workers together, as far as they are known."""
        return sum(entry.seconds or 0.0 for entry in self.entries)

    @property
    def untimed(self) -> int:
        """How many entries have no time: where there are any, the seconds are a lower bound."""
        return sum(entry.seconds is None for entry in self.entries)


def pays_after(cost: float, saving: float) -> float:
    """Inferences until a cost is saved.

    Args:
        cost: What the search used, at least 0.
        saving: What one inference saves, in the same unit.

    Returns:
        A whole number; `NEVER` where nothing is saved.

    Example:
        >>> pays_after(1000.0, 0.1), pays_after(1.0, 0.3), pays_after(5.0, 0.0), pays_after(5.0, -1.0)
        (10000, 4, inf, inf)
    """
    return math.ceil(round(cost / saving, 6)) if saving > 0 and math.isfinite(cost / saving) else NEVER


def ledger(study: StudyRecord) -> Ledger:
    """Add up what a search used, and divide it by what each point of its front saves.

    Args:
        study: The study, at any stage.
    """
    entries = (*_prepared(study), *_tried(study))
    counted = _energy(entries, lambda entry: entry.counted_j, _counters(entries))
    by_model = _energy(entries, lambda entry: entry.modelled_j, MODEL)
    source = study.dense.quantities.get(ENERGY, {}).get("source") if study.dense else None
    energy = None if source is None else by_model if source == MODEL else counted
    seconds = sum(entry.seconds or 0.0 for entry in entries)
    points = [record for record in front(study) if record.role != "dense"]
    paybacks = tuple(payback(study, record, energy=energy, seconds=seconds) for record in points)
    return Ledger(entries, counted, by_model, energy, paybacks)


def payback(study: StudyRecord, record: Record, *, energy: Energy | None, seconds: float) -> Payback:
    """When the search has paid for itself with one trial.

    Args:
        study: The study.
        record: One of its complete trials.
        energy: What the search used, of the source of the study's energy per inference.
        seconds: Time that it used.
    """
    dense = study.dense
    if dense is None:
        return Payback(record.trial)
    mine, whole = _value(record, ENERGY), _value(dense, ENERGY)
    saved_mj = None if mine is None or whole is None or not _one_source(record, dense) else whole - mine
    after = None if saved_mj is None or energy is None else pays_after(energy.joules, saved_mj / 1000)
    saved_ms = {}
    for name, settings in {LATENCY: study.definition.latency, **study.definition.named_latencies}.items():
        own_ms, dense_ms = _value(record, name), _value(dense, name)
        if own_ms is not None and dense_ms is not None:
            saved_ms[name] = (dense_ms - own_ms) / settings.batch
    after_time = {name: pays_after(seconds, saved / 1000) for name, saved in saved_ms.items()}
    return Payback(record.trial, saved_mj, after, saved_ms, after_time)


def _prepared(study: StudyRecord) -> list[Entry]:
    by_model = modelled.preparation_j(study)
    found = []
    for kind, seconds in study.preparation.items():
        joules, counter = study.preparation_j.get(kind, (None, None))
        found.append(Entry(PREPARATION, kind, seconds, joules, counter, by_model.get(kind)))
    return found


def _tried(study: StudyRecord) -> list[Entry]:
    by_model = modelled.trials_j(study)
    return [
        Entry(
            group_of(record),
            str(record.trial),
            seconds_of(record),
            record.energy_j,
            record.counter,
            by_model.get(record.trial),
        )
        for record in study.records
        if record.state != "waiting"
    ]


def group_of(record: Record) -> str:
    """What became of a trial, as the ledger says it."""
    if record.state == "failed":
        return LOST_GROUP if (record.failure or "").startswith(LOST) else "failed or stopped"
    if record.state == "running":
        return "running"
    if record.answered_from is not None:
        return "answered from a record"
    if record.ended_at is not None:
        return "ended early"
    return "complete" if record.feasible else "infeasible"


def seconds_of(record: Record) -> float | None:
    """Seconds that a trial took, as far as it is known; of studies of earlier versions its stages together."""
    if record.lasted_s is not None:
        return record.lasted_s
    if record.answered_from is not None:
        return 0.0
    return sum(record.seconds.values()) if record.seconds else None


def _energy(entries: Iterable[Entry], joules: Callable[[Entry], float | None], source: str) -> Energy | None:
    known = [joules(entry) for entry in entries]
    found = [each for each in known if each is not None]
    return Energy(math.fsum(found), source, len(known) - len(found)) if found else None


def _counters(entries: Iterable[Entry]) -> str:
    """The names of the counters that were read."""
    names = dict.fromkeys(entry.counter or "a counter" for entry in entries if entry.counted_j is not None)
    return ", ".join(names)


def groups(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The entries by group, in the order in which the groups first occur."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.group].append(entry)
    return dict(found)


def _value(record: Record, name: str) -> float | None:
    """A measured quantity; None where the trial has none that is a finite number."""
    value = record.values.get(name, record.quantities.get(name, {}).get("value"))
    return float(value) if value is not None and math.isfinite(value) else None


def _one_source(record: Record, dense: Record) -> bool:
    """Whether two energies may be subtracted."""
    return bool(record.quantities.get(ENERGY, {}).get("source") == dense.quantities.get(ENERGY, {}).get("source"))
