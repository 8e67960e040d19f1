"""Which point shall it be?

    candidates ──► keep all bounds ──► not dominated among these ──┬─ prefer: the best in one quantity
                        │                                          └─ knee: the best compromise
                        └─ none left: which bound rules out what, and by how much

Bounds may be on anything that was measured, objective or not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.analysis.confirmed import one_line
from search.analysis.front import front, is_candidate, listed_once, not_dominated, objective_values
from search.analysis.noise import interval
from search.analysis.quantities import KEPT, SHARES, quantity
from search.analysis.standing import standings
from search.definition import METRICS
from search.errors import UserError, unknown_name
from search.records import Record, StudyRecord

COUNTED = ("parameters", "encoder_parameters", "encoder_share", KEPT)
"""Quantities that every trial with a plan has, measured or not."""


@dataclass(frozen=True)
class Choice:
    """A point, and why it is this one.

    Attributes:
        record: The chosen trial.
        why: Sentences for a person: how many points kept the bounds, by what the choice was made, how sure it is.
        on_front: Whether the trial is on the study's front; a bound on what is no objective can lead away from it.
    """

    record: Record
    why: tuple[str, ...]
    on_front: bool


@dataclass(frozen=True)
class _Bound:
    """One bound: a quantity, which side, and where."""

    name: str
    is_least: bool
    at: float

    def slack(self, value: float | None) -> float:
        """How far inside the bound a value is; below 0 breaks it, and what was not measured breaks it by far."""
        if value is None:
            return -np.inf
        return value - self.at if self.is_least else self.at - value

    def __str__(self) -> str:
        return f"{self.name} {'at least' if self.is_least else 'at most'} {_shown(self.name, self.at)}"


def pick(
    study: StudyRecord,
    *,
    at_least: Mapping[str, float] | None = None,
    at_most: Mapping[str, float] | None = None,
    prefer: str | None = None,
    knee: bool = False,
) -> Choice:
    """Choose one point of a study.

    Among the candidates of the front (complete, feasible, measured) that keep all bounds, those that no other of them
    dominates are compared: by `prefer`, with ties broken by the objectives in their order and then by the number of
    the trial; or by `knee_of`. Bounds on the worse side of objectives (accuracy at least, latency at most) lead to a
    point of the study's front.

    Args:
        study: The study. It is not changed.
        at_least: Smallest allowed value by quantity, in its own unit. An objective, another measured quantity or
            `kept` (share of the dense model's metric); `metric` is the task's, and `latency` means `latency_ms`.
        at_most: Largest allowed value, likewise.
        prefer: The quantity that shall be best; None takes the first objective.
        knee: Take the best compromise instead.

    Returns:
        The choice with its reasons.

    Raises:
        UserError: If a name is unknown, a bound is not a number, `prefer` and `knee` are both given, or no candidate
            keeps all bounds; then it says which bound rules out what, and by how much.
    """
    if knee and prefer is not None:
        raise UserError(f"both a knee and a preference ({prefer}) are asked for; give one of them")
    bounds = [_bound(study, name, at, is_least=True) for name, at in (at_least or {}).items()]
    bounds += [_bound(study, name, at, is_least=False) for name, at in (at_most or {}).items()]
    by = resolve(study, prefer) if prefer is not None else study.objectives[0].name
    candidates = listed_once([record for record in study.records if is_candidate(study, record)])
    if not candidates:
        raise UserError(f"the study {study.name!r} has no trial to choose from yet; {_states(study)}")
    kept = [record for record in candidates if all(_slack(study, record, bound) >= 0 for bound in bounds)]
    if not kept:
        raise UserError(_ruled_out(study, candidates, bounds))
    best = not_dominated(study, kept)
    measured = [record for record in best if quantity(study, record, by) is not None]
    if not measured:
        raise UserError(f"no trial that keeps the bounds has measured {by!r}; prefer another quantity")
    record = knee_of(study, best) if knee else min(measured, key=_by(study, by))
    why = [_how_many(candidates, kept, best, bounds), _how(study, record, by, knee=knee), *_how_sure(study, record)]
    on_front = record.trial in {member.trial for member in front(study)}
    if not on_front:
        why.append("It is not on the front of the study: a bound is on what is no objective, or on its better side.")
    return Choice(record, tuple(why), on_front)


def knee_of(study: StudyRecord, records: Sequence[Record]) -> Record:
    """The best compromise: the point whose gain in quality and gain in cost add up to most.

    Every objective is scaled so that the worst of these points is at 0 and the best at 1. What is maximised is averaged
    to a quality, what is minimised to a cost, because costs go along with each other: counted one by one, four costs
    would always outvote the accuracy. The point with the smallest Manhattan distance to the ideal (1, 1) is the knee;
    it is also the farthest from the straight line between the two extremes.

    Args:
        study: The study.
        records: Points that do not dominate each other, at least one.

    Returns:
        One of them; the first by number of the trial where several are equal.

    Reference:
        Chiu, Yen, Juan 2016, "Minimum Manhattan Distance Approach to Multiple Criteria Decision Making in
        Multiobjective Optimization Problems"; Das 1999, "On characterizing the 'knee' of the Pareto curve based on
        Normal-Boundary Intersection".
    """
    ordered = sorted(records, key=lambda record: record.trial)
    gain = _scaled(study, ordered)
    maximised = np.array([objective.direction == "maximize" for objective in study.objectives])
    groups = [gain[:, group].mean(axis=1) for group in (maximised, ~maximised) if group.any()]
    return ordered[int(np.argmax(np.round(np.sum(groups, axis=0), 12)))]


def known_names(study: StudyRecord) -> list[str]:
    """Names of all quantities that a choice can be made by: objectives first, then what else was measured."""
    objectives = [objective.name for objective in study.objectives]
    measured = sorted({name for record in study.complete for name in record.quantities})
    return list(dict.fromkeys([*objectives, *measured, *COUNTED]))


def resolve(study: StudyRecord, name: str) -> str:
    """The quantity that a name means: itself, the task's metric for `metric`, `latency_ms` for `latency`.

    Raises:
        UserError: If it means none; the known ones and the nearest are listed.
    """
    known = known_names(study)
    if name in known:
        return name
    if name == "metric" and study.definition.task.metric in known:
        return study.definition.task.metric
    without_unit = [each for each in known if each.rpartition("_")[0] == name and "." not in each]
    if len(without_unit) == 1:
        return without_unit[0]
    raise UserError(unknown_name("quantity", name, known))


def _bound(study: StudyRecord, name: str, at: float, *, is_least: bool) -> _Bound:
    if not np.isfinite(at):
        raise UserError(f"the bound on {name!r} is {at}; give a finite number")
    return _Bound(resolve(study, name), is_least, at)


def _slack(study: StudyRecord, record: Record, bound: _Bound) -> float:
    return bound.slack(quantity(study, record, bound.name))


def _is_maximised(study: StudyRecord, name: str) -> bool:
    """Whether more is better: what the objective says; else metrics are qualities and everything else is a cost."""
    directions = {objective.name: objective.direction for objective in study.objectives}
    return directions.get(name, "maximize" if name in (*METRICS, KEPT) else "minimize") == "maximize"


def _by(study: StudyRecord, name: str) -> Callable[[Record], tuple[float, ...]]:
    """Sorting key: best first by one quantity, then by the objectives in their order, then by number."""
    names = [name, *(objective.name for objective in study.objectives)]

    def key(record: Record) -> tuple[float, ...]:
        values = [float(quantity(study, record, each) or 0.0) for each in names]
        signs = [-1.0 if _is_maximised(study, each) else 1.0 for each in names]
        return (*(sign * value for sign, value in zip(signs, values, strict=True)), record.trial)

    return key


def _scaled(study: StudyRecord, records: Sequence[Record]) -> NDArray[np.float64]:
    """Objective values from 0 (the worst of these) to 1 (the best); 1 for all where they are all equal."""
    signs = np.array([1.0 if objective.direction == "maximize" else -1.0 for objective in study.objectives])
    values = objective_values(study, records) * signs
    worst, best = values.min(axis=0), values.max(axis=0)
    spread = np.where(best > worst, best - worst, 1.0)
    return np.where(best > worst, (values - worst) / spread, 1.0)


def _how_many(
    candidates: Sequence[Record], kept: Sequence[Record], best: Sequence[Record], bounds: Sequence[_Bound]
) -> str:
    listed = " and ".join(map(str, bounds))
    if not bounds:
        return f"Of {_trials(len(candidates))}, no other beats {len(best)}."
    verb = "keeps" if len(kept) == 1 else "keep"
    return f"Of {_trials(len(candidates))}, {len(kept)} {verb} {listed}; of these, no other beats {len(best)}."


def _how(study: StudyRecord, record: Record, name: str, *, knee: bool) -> str:
    if knee:
        return (
            f"Trial {record.trial} is the knee: the smallest Manhattan distance to the best values of these, the "
            "objectives scaled to their range and the costs averaged (Chiu, Yen, Juan 2016)."
        )
    extreme = "highest" if _is_maximised(study, name) else "lowest"
    return f"Trial {record.trial} has the {extreme} {name} of these: {_shown(name, quantity(study, record, name))}."


def _how_sure(study: StudyRecord, record: Record) -> list[str]:
    """What the noise of the measurements means for the choice."""
    standing = standings(study).get(record.trial)
    ahead = []
    if standing is not None:
        ahead.append(
            f"With a probability of {standing.probability:.0%} no other trial dominates it, as far as the noise of the "
            "measurements goes."
        )
        if standing.like is not None:
            ahead.append(f"It cannot be told from trial {standing.like}, which is cheaper.")
    confirmation = study.confirmation_of(record)
    if confirmation is not None:
        return [f"Trained again in full: {one_line(study, confirmation)}.", *ahead]
    metric = study.definition.task.metric
    around, rows = interval(record, metric), record.quantities.get(metric, {}).get("samples")
    if metric != "accuracy" or around is None:
        return ahead
    return [
        f"Its accuracy was measured on {rows} rows, so 95 % reach from {around[0]:.4f} to {around[1]:.4f}; being the "
        "best of many on the same rows makes it look better than it is: confirm it on rows that the search never saw.",
        *ahead,
    ]


def _ruled_out(study: StudyRecord, candidates: Sequence[Record], bounds: Sequence[_Bound]) -> str:
    """Which bound rules everything out, and by how much; or which of several do so together."""
    alone = [bound for bound in bounds if all(_slack(study, record, bound) < 0 for record in candidates)]
    if alone:
        return "no trial keeps " + "; nor ".join(_miss(study, candidates, bound) for bound in alone)
    parts = []
    for bound in bounds:
        others = [other for other in bounds if other is not bound]
        rest = [record for record in candidates if all(_slack(study, record, other) >= 0 for other in others)]
        if rest:
            parts.append(_miss(study, rest, bound))
    together = f"each of {', '.join(map(str, bounds))} can be kept, but not all of them by one trial"
    if not parts:
        return f"{together}; loosen more than one of them"
    return f"{together}; keeping the others, none keeps " + "; nor ".join(parts)


def _miss(study: StudyRecord, records: Sequence[Record], bound: _Bound) -> str:
    nearest = max(records, key=lambda record: (_slack(study, record, bound), -record.trial))
    value = quantity(study, nearest, bound.name)
    if value is None:
        return f"{bound}: it was not measured"
    by = _shown(bound.name, abs(_slack(study, nearest, bound))).replace("%", "percentage points")
    side = "below" if bound.is_least else "above"
    return f"{bound}: the nearest is trial {nearest.trial} with {_shown(bound.name, value)}, {by} {side} it"


def _shown(name: str, value: float | None) -> str:
    """A value with enough digits that one beyond a bound never reads like the bound itself."""
    if value is None:
        return "-"
    if name in SHARES:
        return f"{100 * value:.6g} %"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


def _trials(count: int) -> str:
    return "1 candidate" if count == 1 else f"{count:,} candidates"


def _states(study: StudyRecord) -> str:
    """How far the study is, in words."""
    infeasible = sum(1 for record in study.complete if not record.feasible)
    failed = sum(1 for record in study.records if record.state == "failed")
    complete = f"{len(study.complete)} are complete ({infeasible} of them infeasible)"
    return f"of its {len(study.records)} trials, {complete} and {failed} failed"
