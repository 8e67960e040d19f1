"""What the report says in words: plain text, which the report escapes."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from search.analysis import figures
from search.analysis.dimensions import FEWEST, Importance
from search.analysis.front import front, is_candidate, listed_once
from search.analysis.indicators import hypervolume
from search.analysis.noise import interval
from search.analysis.pick import knee_of
from search.analysis.quantities import KEPT, missed, quantity, short
from search.analysis.standing import SURE, standings, unpaired
from search.analysis.volume_interval import final_interval
from search.definition import Bound, RecoverySettings
from search.errors import UserError
from search.plan import Plan, total_parameters
from search.records import Record, StudyRecord
from search.space import Space

KEEPS = (0.99, 0.97)
"""Shares of the dense metric for which the smallest model is named."""

LISTED = 20
"""Numbers of trials that are written out after one reason."""

J_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Card:
    """One figure at the top of the report.

    Attributes:
        title: What it is.
        value: The figure.
        detail: What it means.
        trial: The trial that it stands for, else None.
    """

    title: str
    value: str
    detail: str
    trial: int | None = None


def lead(study: StudyRecord, written: date) -> str:
    """One line: how far the study is, and when this was written."""
    return f"{progress(study)}, written on {written.isoformat()}"


def progress(study: StudyRecord) -> str:
    """How far the study is, in a few words."""
    states = Counter(record.state for record in study.records)
    rest = ", ".join(f"{states[state]} {state}" for state in ("failed", "running", "waiting") if states[state])
    complete = f"{states['complete']:,} of {study.definition.engine.trials:,} trials complete"
    return f"{complete}{f' ({rest})' if rest else ''}"


def cards(study: StudyRecord) -> list[Card]:
    """The study in short: the dense model, the front, and three points worth a look."""
    members, dense, metric = front(study), study.dense, study.definition.task.metric
    reached = hypervolume(study)
    found = []
    if dense is not None:
        found.append(Card("Dense model", _metric(study, dense), f"{metric}, {_size(study, dense)}", dense.trial))
    found.append(Card("Points on the front", f"{len(members):,}", _of_candidates(study)))
    for share in KEEPS:
        record = smallest_that_keeps(study, share)
        if record is not None and record.trial not in [card.trial for card in found[1:]]:
            title = f"Smallest encoder with {100 * share:.0f} % of the dense {metric}"
            what = f"of the encoder: trial {record.trial}{_faster(study, record)}"
            found.append(Card(title, short("encoder_share", _share(study, record)), what, record.trial))
    if len(members) > 2:
        knee = knee_of(study, members)
        found.append(Card("Knee of the front", f"trial {knee.trial}", f"{metric} {_metric(study, knee)}", knee.trial))
    if reached is not None:
        ends = final_interval(study)
        how_sure = "" if ends is None else f"; 95 % interval {ends[0]:.4f} to {ends[1]:.4f}"
        found.append(Card("Hypervolume", f"{reached:.4f}", f"share of the ideal, from 0 to 1{how_sure}"))
    return found


def smallest_that_keeps(study: StudyRecord, share: float) -> Record | None:
    """The point of the front with the smallest encoder that keeps a share of the dense model's metric.

    Returns:
        A point other than the dense model; None where there is none.
    """
    able = [
        record
        for record in front(study)
        if record.role != "dense" and (quantity(study, record, KEPT) or 0.0) >= share and _share(study, record)
    ]
    return min(able, key=lambda record: (_share(study, record), record.trial), default=None)


def about(study: StudyRecord) -> list[tuple[str, str]]:
    """What was searched, as pairs of a name and a text."""
    definition, shape = study.definition, study.shape
    task, recovery, engine = definition.task, definition.recovery, definition.engine
    size = short("parameters", total_parameters(Plan.dense(shape), shape))
    told = f"one of {len(task.labels)}: {', '.join(task.labels)}" if task.labels else "a number"
    held = f"{', '.join(task.text)} → {task.label}, {told}"
    return [
        (
            "Model",
            f"{definition.model}: {shape.layers} layers of {shape.heads} heads and {shape.neurons:,} neurons, {size} "
            "parameters",
        ),
        ("Data", f"{definition.data}{f' ({task.config})' if task.config else ''}: {held}"),
        ("Objectives", "; ".join(_objective(o.label, o.direction) for o in study.objectives)),
        ("Constraints", "; ".join(_bound(name, bound) for name, bound in definition.bounds.items()) or "none"),
        ("Space", _space(study)),
        ("Ranking", f"{definition.importance.method} importance says which heads and neurons stay"),
        (
            "Recovery",
            _recovery(recovery),
        ),
        ("Search", f"{engine.sampler}, seed {engine.seed}, after the dense model and a ladder of fixed sizes"),
    ]


def _recovery(recovery: RecoverySettings) -> str:
    """What happens to a model after the cut."""
    refit = f", re-fit on {recovery.refit_rows} rows" if recovery.refit_rows else ""
    trained = "scored without training"
    if recovery.steps:
        trained = (
            f"{recovery.steps} steps of {recovery.batch_size} rows at {recovery.learning_rate:g}, distillation weight "
            f"{recovery.distillation:g}"
        )
    return f"{recovery.cut_from}, {trained}{refit}"


def front_note(study: StudyRecord) -> str:
    """How to read the scatter plots, and what their bars are."""
    members = front(study)
    if not members:
        return "No trial is on the front yet: none is complete, feasible and measured in every objective."
    parts = [
        "A point is on the front when no other trial is at least as good in every objective and better in one. Filled "
        "marks are on it, open ones are not; the dotted line is the front of the two objectives of its plot alone.",
        _bars(study),
        _sureness(study),
        "Hover over a point for its plan; click it for its layers.",
    ]
    for kind in ("dominated", "infeasible"):
        whole = sum(1 for key in figures.kinds(study, listed_once(study.complete)) if key == kind)
        if whole > figures.MOST_DOMINATED:
            parts.append(f"Of {whole:,} {kind} trials {figures.MOST_DOMINATED:,} are drawn, evenly taken.")
    return " ".join(part for part in parts if part)


def _sureness(study: StudyRecord) -> str:
    """What the probabilities of the front are, and how much of it could be the luck of the measurements."""
    known = standings(study).values()
    like = sum(1 for standing in known if standing.like is not None)
    parts = [
        "Each point of the front has a probability of being non-dominated, as far as the noise of the measurements "
        f"goes (half of them have at least {np.median([standing.probability for standing in known]):.0%})."
    ]
    if like:
        parts.append(
            f"{like} of {len(known)} cannot be told from a cheaper point (~): one that is better in a cost with "
            f"{SURE:.0%}, while they are better in nothing with {SURE:.0%}."
        )
    parts.append("That the best of many were chosen on these very rows is not in it: confirm a point on others.")
    return " ".join([*parts, unpaired(study) or ""]).strip()


def layers_note(study: StudyRecord) -> str:
    """What the small models of the front keep, in a sentence."""
    points = figures.by_size(study)
    how = "Each row is a point of the front, the largest encoder on top; a bright cell keeps much of its layer."
    if len(points) < 4:
        return how
    small = [plan for _record, plan in points[len(points) // 2 :]]
    heads = np.array([plan.heads for plan in small]).mean(axis=0) / study.shape.heads
    neurons = np.array([plan.neurons for plan in small]).mean(axis=0) / study.shape.neurons
    return f"{how} In the smaller half ({len(small)} points), {_most('heads', heads)}; {_most('neurons', neurons)}."


def hypervolume_note(study: StudyRecord) -> str:
    """What the hypervolume is and what its band means."""
    if hypervolume(study) is None:
        return "There is no hypervolume yet: it needs a complete dense trial whose costs are above 0."
    return (
        "The share of the box between the reference (chance level at the dense model's costs) and the ideal (metric 1 "
        "at no cost) that the trials so far dominate. The band (95 %) is what the noise of the measurements leaves "
        "open; it lies mostly below the line, because a search keeps what happened to be measured well. What another "
        "seed would have found is not in it. The ladder ends at the dotted line."
    )


def importance_note(found: Sequence[Importance]) -> str:
    """How the importance of the dimensions was found, or why it was not.

    Args:
        found: What `dimensions.dimension_importance` gave.
    """
    if not found:
        return f"Too few trials to say: it takes {FEWEST} different ones that are feasible."
    return (
        "A random forest learns each objective from the ratios; a dimension matters as much as the prediction for "
        "trials held back gets worse when its column is shuffled (permutation importance, Breiman 2001). R² says how "
        "well the forest predicts trials that it has not seen: below about 0.3, do not read much into a column."
    )


def cost_note(study: StudyRecord) -> str:
    """Time and energy of the whole study, in words."""
    spent = [sum(record.seconds.values()) for record in study.records if record.seconds]
    if not spent:
        return "No time was recorded."
    answered = sum(1 for record in study.records if record.answered_from is not None)
    energy = [record.energy_j for record in study.records if record.energy_j is not None]
    text = f"{_duration(sum(spent))} in {len(spent):,} trials, half of them under {_duration(float(np.median(spent)))}."
    if answered:
        text += f" {answered:,} trials were answered from a record, because their plan had been tried."
    if energy:
        return f"{text} Energy: {_energy(sum(energy))}, by the counters of the devices of {len(energy):,} trials."
    return f"{text} No energy counter could be read."


def conditions(study: StudyRecord) -> list[tuple[str, str]]:
    """Under which conditions the trials were measured; where they differ, each with its number of trials."""
    latency = study.definition.latency
    pairs = [
        (
            "Latency, energy and MACs",
            f"batches of {latency.batch} × {latency.tokens} tokens; latency: {_observed(study)}",
        )
    ]
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for record in study.records:
        for name, value in record.conditions.items():
            seen[str(name).replace("_", " ")][str(value)] += 1
        for name, measured in record.quantities.items():
            if measured.get("source"):
                seen[f"source of {name}"][str(measured["source"])] += 1
    return [*pairs, *((name, _counted(values)) for name, values in seen.items())]


def _observed(study: StudyRecord) -> str:
    """What a latency is the median of; where a table answers, that stands with the sources."""
    latency, measuring = study.definition.latency, study.definition.measuring
    observed = f"at least {latency.repeats} passes"
    if measuring.reference:
        turns = math.ceil(latency.repeats / 2)
        observed = f"at least {turns} pairs with the dense model"
        if measuring.figure == "absolute":
            observed = f"all passes of at least {turns} turns, beside the dense model"
    return f"median of {observed}, after {latency.warmup} to warm up"


def failures(study: StudyRecord) -> list[tuple[str, int, str]]:
    """Why trials failed: reason, how many, which; the most frequent first."""
    failed = [
        (record.failure or "no reason was recorded", record) for record in study.records if record.state == "failed"
    ]
    return _grouped(failed)


def infeasible(study: StudyRecord) -> list[tuple[str, int, str]]:
    """Which constraints were broken, by how much and by which trials; and which values are no numbers."""
    broken: dict[str, list[tuple[float, Record]]] = defaultdict(list)
    others = []
    for record in study.complete:
        over = [(name, excess) for name, excess in record.violations.items() if excess > 0]
        for name, excess in over:
            broken[name].append((excess, record))
        if not is_candidate(study, record) and not over:
            others.append((reason(study, record) or "infeasible", record))
    rows = []
    for name, found in sorted(broken.items(), key=lambda item: -len(item[1])):
        least, most = min(excess for excess, _ in found), max(excess for excess, _ in found)
        by = short(name, least) if len(found) == 1 else f"{short(name, least)} to {short(name, most)}"
        rows.append((missed(name, by), len(found), _numbers(record for _, record in found)))
    return [*rows, *_grouped(others)]


def reason(study: StudyRecord, record: Record) -> str | None:
    """Why a complete trial cannot be on the front; None where it can."""
    if is_candidate(study, record):
        return None
    over = [missed(name, short(name, excess)) for name, excess in record.violations.items() if excess > 0]
    if over:
        return f"Infeasible: {'; '.join(over)}."
    unmeasured = [o.name for o in study.objectives if quantity(study, record, o.name) is None]
    return f"Not a number: {', '.join(unmeasured)}." if unmeasured else "Infeasible."


def footer(study: StudyRecord) -> str:
    """How to go on from here."""
    try:
        written_by = f"paretobert {version('paretobert')}"
    except PackageNotFoundError:
        written_by = "paretobert"
    return (
        f"Written by {written_by}. Values are of the selection split, which the search optimised on: confirm the point "
        f"you choose on rows that it never saw. Choose on the command line: paretobert pick {study.name} --knee"
    )


def _objective(label: str, direction: str) -> str:
    return f"{label} ({'more' if direction == 'maximize' else 'less'} is better)"


def _bound(name: str, bound: Bound) -> str:
    ends = [("at least", bound.at_least), ("at most", bound.at_most)]
    return f"{name} {' and '.join(f'{side} {end:g}' for side, end in ends if end is not None)}"


def _space(study: StudyRecord) -> str:
    block = study.definition.space.neuron_block
    try:
        space = Space.of(study.definition.space, study.shape)
    except UserError:  # a study of another version may lie beyond what this one can lay out
        return f"ratios of heads and of blocks of {block} neurons, layer by layer"
    size = f"{len(space.dimensions)} dimensions, about 10^{space.log10_size():.1f} plans"
    return f"{size}: which share of the heads and of the blocks of {block} neurons each layer keeps"


def _bars(study: StudyRecord) -> str:
    """What the error bars are, as far as there are any."""
    names = [objective.name for objective in study.objectives]
    known = [name for name in names if any(interval(record, name) for record in front(study))]
    rows = max((record.quantities.get("accuracy", {}).get("samples", 0) for record in study.complete), default=0)
    parts = [f"the 95 % interval of accuracy on {rows:,} rows (Wilson)"] if "accuracy" in known else []
    repeated = [name for name in known if name != "accuracy"]
    parts += [f"the quartiles of the repeated measurements of {' and '.join(repeated)}"] if repeated else []
    unknown = [name for name in names if name not in known and name not in ("parameters", "encoder_parameters", "macs")]
    missing = f" No spread is recorded for {' and '.join(unknown)}." if unknown and parts else ""
    return f"Bars are {' and '.join(parts)}.{missing}" if parts else "No spread of the measurements is recorded."


def _most(what: str, shares: np.ndarray) -> str:
    most, least = int(shares.argmax()), int(shares.argmin())
    if shares[most] - shares[least] < 0.05:
        return f"all layers keep about the same share of their {what} ({shares.mean():.0%})"
    return f"layer {most} keeps most of its {what} ({shares[most]:.0%}) and layer {least} fewest ({shares[least]:.0%})"


def _metric(study: StudyRecord, record: Record) -> str:
    metric = study.definition.task.metric
    return short(metric, quantity(study, record, metric))


def _size(study: StudyRecord, record: Record) -> str:
    return f"{short('parameters', quantity(study, record, 'parameters'))} parameters"


def _share(study: StudyRecord, record: Record) -> float:
    return float(quantity(study, record, "encoder_share") or 0.0)


def _faster(study: StudyRecord, record: Record) -> str:
    """How many times faster than the dense model, where both were timed."""
    dense = study.dense
    whole = quantity(study, dense, "latency_ms") if dense is not None else None
    mine = quantity(study, record, "latency_ms")
    return f", {whole / mine:.1f} times as fast" if whole and mine else ""


def _of_candidates(study: StudyRecord) -> str:
    count = sum(1 for record in listed_once(study.complete) if is_candidate(study, record))
    return f"of {count:,} different candidates"


def _grouped(reasons: Iterable[tuple[str, Record]]) -> list[tuple[str, int, str]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for why, record in reasons:
        found[why].append(record)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [(why, len(records), _numbers(records)) for why, records in ordered]


def _numbers(records: Iterable[Record]) -> str:
    numbers = [str(record.trial) for record in records]
    more = f" and {len(numbers) - LISTED:,} more" if len(numbers) > LISTED else ""
    return ", ".join(numbers[:LISTED]) + more


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    listed = [f"{value} ({count:,} trials)" for value, count in values.most_common(LISTED)]
    return "; ".join(listed) + (f"; and {len(values) - LISTED} more" if len(values) > LISTED else "")


def _duration(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.1f} seconds"


def _energy(joules: float) -> str:
    return f"{joules / J_PER_KWH:.3g} kWh" if joules >= J_PER_KWH / 100 else f"{joules:,.0f} J"
