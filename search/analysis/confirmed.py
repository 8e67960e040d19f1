"""Searched against confirmed: how far was the search too optimistic, and does its order of the points hold?

    searched    on the selection split, after the brief recovery: the best of many, so it looks better than it is
    retrained   on the selection split, after the full budget, with other seeds
    confirmed   on the held-out split, the same models: what to expect

Text is plain; who shows it escapes it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.analysis.evidence import DRAWS
from search.analysis.front import not_dominated
from search.analysis.noise import interval
from search.analysis.quantities import COUNTS, quantity, short
from search.analysis.resampling import Resampling, paired
from search.definition import METRICS
from search.records import Confirmation, Record, StudyRecord

HEADERS = ("trial", "quantity", "searched", "retrained", "confirmed", "95 % interval", "verdict")
"""Of the rows of `rows`."""


@dataclass(frozen=True)
class Compared:
    """One quantity of one trial, searched against confirmed.

    Attributes:
        searched: As the search measured it; None where it did not.
        retrained: Mean of the retrained models on the selection split; None but for metrics.
        confirmed: As it was confirmed.
        low: Low end of the 95 % interval of that; None where there is none.
        high: High end.
        verdict: What that says, in a few words.
    """

    searched: float | None
    retrained: float | None
    confirmed: float
    low: float | None
    high: float | None
    verdict: str


def compare(study: StudyRecord, confirmation: Confirmation, name: str) -> Compared | None:
    """Put a quantity as it was searched beside what it turned out to be.

    Args:
        study: The study.
        confirmation: One of its confirmations.
        name: Name of the quantity.

    Returns:
        None where the confirmation did not measure it.
    """
    again = confirmation.quantities.get(name)
    if again is None:
        return None
    record = study.records[confirmation.trial]
    searched, value = quantity(study, record, name), float(again["value"])
    low, high = again.get("low"), again.get("high")
    retrained = confirmation.selection.get(name) if name in METRICS else None
    if _is_dense(study, confirmation) and name in METRICS and searched is not None:
        verdict = f"{value - searched:+.4f} from split to split"  # nobody selected it
    else:
        shift = _shift(study, name)
        ends = (None if low is None else low - shift, None if high is None else high - shift)
        verdict = _verdict(study, record, name, searched, value - shift, *ends)
    return Compared(searched, retrained, value, low, high, verdict)


def rows(study: StudyRecord, confirmations: Sequence[Confirmation]) -> list[tuple[str, ...]]:
    """Rows of a table under `HEADERS`: the study's objectives, trial by trial.

    Args:
        study: The study.
        confirmations: Some of its confirmations, in the order in which they are listed.
    """
    found: list[tuple[str, ...]] = []
    for confirmation in confirmations:
        names = [objective.name for objective in study.objectives if objective.name in confirmation.quantities]
        for number, name in enumerate(names):
            compared = compare(study, confirmation, name)
            assert compared is not None
            found.append(
                (
                    _label(study, confirmation) if number == 0 else "",
                    name,
                    short(name, compared.searched),
                    short(name, compared.retrained) if compared.retrained is not None else "",
                    short(name, compared.confirmed),
                    ""
                    if compared.low is None or compared.high is None
                    else f"{short(name, compared.low)} to {short(name, compared.high)}",
                    compared.verdict,
                )
            )
    return found


def sentences(study: StudyRecord) -> list[str]:
    """What the confirmations of a study say, in words: optimism first, then the order, then the front."""
    if not study.confirmations:
        return []
    metric = study.definition.task.metric
    chosen = [each for each in study.confirmations if not _is_dense(study, each)]
    said = [_how(chosen or study.confirmations)]
    pairs = [(compare(study, each, metric), each) for each in chosen]
    known = [(compared, each) for compared, each in pairs if compared and compared.searched is not None]
    if known:
        searched = _mean([compared.searched for compared, _ in known])
        confirmed = _mean([compared.confirmed for compared, _ in known])
        said.append(
            f"In the search, {_these(known)} had {metric} {searched:.4f}{_on_average(known)}; confirmed, "
            f"{confirmed:.4f} ({confirmed - searched:+.4f}).{_of_dense(study)}"
        )
        said.append(_optimism(metric, [each.trial for compared, each in known if compared.verdict == OPTIMISTIC]))
    if len(chosen) > 1:
        said += [_order(study, chosen), _front(study)]
    return [sentence for sentence in said if sentence]


def one_line(study: StudyRecord, confirmation: Confirmation) -> str:
    """The task's metric of one confirmation, for an attribute or a list."""
    metric = study.definition.task.metric
    compared = compare(study, confirmation, metric)
    if compared is None:
        return "not measured"
    between = "" if compared.low is None else f" ({short(metric, compared.low)} to {short(metric, compared.high)})"
    trained = "" if _is_dense(study, confirmation) else f", {_trainings(confirmation)}"
    return (
        f"{metric} {short(metric, compared.confirmed)}{between} on {confirmation.rows:,} held-out rows{trained}; "
        f"searched {short(metric, compared.searched)}: {compared.verdict}"
    )


def render_confirmations(study: StudyRecord, confirmations: Sequence[Confirmation]) -> RenderableType:
    """The table and the sentences for a terminal, without markup."""
    return Group(_table(study, confirmations), *(Text(sentence) for sentence in sentences(study)))


def render_confirmed(study: StudyRecord, confirmation: Confirmation) -> RenderableType:
    """One confirmation for a terminal: its table, and how it was trained."""
    how = "" if _is_dense(study, confirmation) else f"; {_trainings(confirmation)}"
    steps = confirmation.recovery.get("steps")
    trained = "" if steps is None else f" of {steps} steps"
    return Group(_table(study, [confirmation]), Text(f"on {confirmation.rows:,} held-out rows{how}{trained}"))


def _table(study: StudyRecord, confirmations: Sequence[Confirmation]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in HEADERS:
        table.add_column(header, justify="left" if header in ("trial", "quantity", "verdict") else "right")
    for row in rows(study, confirmations):
        table.add_row(*(Text(cell) for cell in row))
    return table


OPTIMISTIC = "the search was too optimistic"
"""Verdict on a metric whose searched value lies further above the confirmed one than the dense model's does, which
nobody selected, and than the rows of either split and the seeds explain (95 %, half-widths added in squares)."""


def _verdict(
    study: StudyRecord,
    record: Record,
    name: str,
    searched: float | None,
    value: float,
    low: float | None,
    high: float | None,
) -> str:
    if searched is None:
        return "not measured in the search"
    if name in COUNTS or low is None or high is None:
        return "the same" if value == searched else f"{value - searched:+.4g}"
    if name in METRICS:
        around = _around(study, record, name, searched)
        if searched - value > math.hypot(high - value, searched - around[0]):
            return OPTIMISTIC
        return "better than searched" if value - searched > math.hypot(value - low, around[1] - searched) else "holds"
    around = interval(record, name) or (searched, searched)
    if low <= around[1] and high >= around[0]:
        return "holds"
    rises = low > around[1]
    less = {objective.name: objective.direction for objective in study.objectives}.get(name, "minimize") == "minimize"
    return f"{'worse' if rises == less else 'better'} than searched ({value / searched:.2f} times)" if searched else ""


def _around(study: StudyRecord, record: Record, name: str, searched: float) -> tuple[float, float]:
    """The 95 % interval of a searched metric for the rows that it was scored on; no width where those are not known."""
    names = [objective.name for objective in study.objectives]
    if name == "accuracy" or name not in names or not len(paired([record], name)):
        return interval(record, name) or (searched, searched)
    drawn = [values[0, names.index(name)] for values in Resampling(study, [record], draws=DRAWS, seed=0)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _shift(study: StudyRecord, name: str) -> float:
    """How much higher a metric of the dense model is on the held-out split; 0 for all else, and where that is unknown.

    The rows of the two splits differ for all models alike: what they make of the dense one is not the search's luck.
    """
    dense = next((each for each in study.confirmations if _is_dense(study, each)), None)
    if name not in METRICS or dense is None or name not in dense.quantities:
        return 0.0
    searched = quantity(study, study.records[dense.trial], name)
    return 0.0 if searched is None else float(dense.quantities[name]["value"]) - searched


def _is_dense(study: StudyRecord, confirmation: Confirmation) -> bool:
    return study.dense is not None and confirmation.trial == study.dense.trial


def _label(study: StudyRecord, confirmation: Confirmation) -> str:
    return f"{confirmation.trial} dense" if _is_dense(study, confirmation) else str(confirmation.trial)


def _trainings(confirmation: Confirmation) -> str:
    done, asked = len(confirmation.seeds), confirmation.asked
    of = "" if done == asked else f" of {asked}"
    return f"{done}{of} training{'' if done == 1 and not of else 's'}"


def _how(confirmations: Sequence[Confirmation]) -> str:
    """What was done, and what is missing."""
    first = confirmations[0]
    steps = sorted({each.recovery["steps"] for each in confirmations if "steps" in each.recovery})
    trained = f"each plan was trained anew for {' or '.join(map(str, steps))} steps, and " if steps else ""
    text = (
        f"Confirmed on {first.rows:,} held-out rows, which the search never saw: {trained}the interval (95 %) "
        "holds what rows and seeds leave open."
    )
    few = [each.trial for each in confirmations if each.recovery and len(each.seeds) == 1]
    undone = [each.trial for each in confirmations if len(each.seeds) < each.asked]
    if few:
        text += f" With one training of trial {_listed(few)}, the seed is not in its interval."
    if undone:
        text += f" Trial {_listed(undone)} lacks trainings: the same command goes on."
    return text


def _of_dense(study: StudyRecord) -> str:
    """How far the two splits differ for the dense model, which nobody selected."""
    dense = next((each for each in study.confirmations if _is_dense(study, each)), None)
    compared = None if dense is None else compare(study, dense, study.definition.task.metric)
    if compared is None or compared.searched is None:
        return ""
    return (
        f" The dense model, which nobody chose, has {compared.searched:.4f} on the selection split and "
        f"{compared.confirmed:.4f} on the held-out one ({compared.confirmed - compared.searched:+.4f}): so much is the "
        "splits' difference."
    )


def _optimism(metric: str, trials: Sequence[int]) -> str:
    if not trials:
        return (
            f"Nowhere was the search clearly too optimistic: no searched {metric} lies further above the confirmed one "
            "than the splits' difference, rows and seeds explain."
        )
    return (
        f"The search was too optimistic about trial {_listed(trials)}, beyond the splits' difference: the best of many "
        "on the same rows look better than they are. Count on the confirmed values."
    )


def _order(study: StudyRecord, chosen: Sequence[Confirmation]) -> str:
    """Whether the order of the points by the task metric is that of the search, among those of one budget."""
    metric = study.definition.task.metric
    value = {each.trial: quantity(study, study.records[each.trial], metric) or 0.0 for each in chosen}
    ordered = sorted(chosen, key=lambda each: (-value[each.trial], each.trial))
    pairs = [(one, other) for one, other in combinations(ordered, 2) if one.is_like(other)]
    apart = "" if _is_one_budget(chosen) else "Points that took different numbers of steps are not ranked."
    if not pairs:
        return apart
    return f"{_ranking(metric, pairs, value)} {apart}".rstrip()


def _ranking(metric: str, pairs: Sequence[tuple[Confirmation, Confirmation]], value: Mapping[int, float]) -> str:
    """What pairs say of the ranking, in each of them the better one by its searched value first."""
    clear, turned, count = 0, [], 0
    for one, other in pairs:
        if value[one.trial] == value[other.trial]:
            continue
        count += 1
        if other.trial in one.beats:
            clear += 1
        elif one.trial in other.beats:
            turned.append((other.trial, one.trial))
    if turned:
        named = "; ".join(f"trial {better} is above trial {worse}" for better, worse in turned[:5])
        more = f"; and {len(turned) - 5} more" if len(turned) > 5 else ""
        return f"The ranking by {metric} does not hold: on the held-out rows {named}{more}."
    if not clear:
        return (
            f"Whether the ranking by {metric} holds cannot be told: none of {count} pairs is clearly apart on the "
            "held-out rows. More of these, or more seeds, would tell."
        )
    if clear < count:
        return (
            f"Of {count} pairs {clear} {'is' if clear == 1 else 'are'} clearly apart on the held-out rows, as the "
            f"search ranks them by {metric}; of the others nothing can be said."
        )
    return f"The ranking by {metric} holds: all pairs are clearly apart on the held-out rows, as in the search."


def _front(study: StudyRecord) -> str:
    """Which of the confirmed points another one of the same budget beats, by their confirmed values."""
    names = [objective.name for objective in study.objectives]
    whole = [each for each in study.confirmations if all(name in each.quantities for name in names)]
    if not whole:
        return ""
    again = {
        each.trial: replace(
            study.records[each.trial], values={name: float(each.quantities[name]["value"]) for name in names}
        )
        for each in whole
    }
    lost = []
    for each in whole:
        best = not_dominated(study, [again[other.trial] for other in whole if each.is_like(other)])
        if again[each.trial] not in best:
            lost.append(each.trial)
    steps = "" if _is_one_budget(whole) else " after as many steps"
    if not lost:
        return f"By their confirmed values, none of these is beaten by another{steps}."
    return f"By their confirmed values, trial {_listed(lost)} is beaten by another of these{steps}."


def _is_one_budget(confirmations: Sequence[Confirmation]) -> bool:
    return all(one.is_like(other) for one, other in combinations(confirmations, 2))


def _these(known: Sequence[object]) -> str:
    return "this point" if len(known) == 1 else f"these {len(known)} points"


def _on_average(known: Sequence[object]) -> str:
    return "" if len(known) == 1 else " on average"


def _mean(values: Sequence[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers)


def _listed(trials: Sequence[int]) -> str:
    return ", ".join(map(str, trials))
