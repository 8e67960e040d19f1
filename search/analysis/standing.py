"""Which points of the front are really ahead, and which could be the luck of their measurement?

candidates ──► those that no point of the front beats by far ──► drawn again, all at once (`resampling`)
                                                                   └─► in which share of the draws
    is a point not dominated?                            its probability of being non-dominated
    is one of two better, objective by objective?        which of them cannot be told from a cheaper one
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import moocore
import numpy as np
from numpy.typing import NDArray

from search.analysis.front import front, is_candidate, listed_once, objective_values
from search.analysis.noise import standard_error
from search.analysis.remembered import remembered
from search.analysis.resampling import Resampling, paired
from search.definition import METRICS
from search.records import Record, StudyRecord

DRAWS, DRAWS_OF_MANY = 1000, 400
"""How often the values are drawn again: the probabilities are good to 0.03, or 0.05 where there are many trials."""

MANY = 3000
"""Trials within reach of the front above which fewer draws are made, because each takes longer."""

SURE = 0.95
"""Probability from which one trial counts as better than another in one objective."""

FAR = 5.0
"""Standard errors of a difference, taken as if the two errors were independent, beyond which a draw does not reach."""


@dataclass(frozen=True)
class Standing:
    """How sure it is that a point of the front stands where it does.

    Attributes:
        probability: That no other candidate of the study dominates it, as far as the noise of the measurements goes.
        like: Number of a cheaper point of the front that it cannot be told from; None where it can be told from all.
    """

    probability: float
    like: int | None


@remembered
def standings(study: StudyRecord) -> dict[int, Standing]:
    """How sure the points of the front are.

    The **probability of being non-dominated** is the share of draws (`resampling.Resampling`) in which no candidate of
    the study dominates the point. It takes the measured values as the best guess of the true ones (a flat prior). It is
    calibrated where the trials differ by more than their noise. Where many of them lie closer together than that, those
    on the front are there by luck more often than measuring each of them alone would tell, and probabilities above 0.6
    are too high by up to 0.2: what was chosen as the best of many has to be measured on rows that chose nothing.

    A point A **is not distinguishable from a cheaper one** where the front has a point B such that, with a probability
    of `SURE` or more, B is better than A in at least one objective other than a task metric, and A is better than B in
    no objective. Of several such B the one with the best first objective is named. Pairs are judged one by one, without
    a correction for their number.

    Args:
        study: The study. It is not changed.

    Returns:
        By number of the trial, for every point of the front.
    """
    members = front(study)
    if not members:
        return {}
    candidates = listed_once([record for record in study.records if is_candidate(study, record)])
    places = _within_reach(study, candidates, members)
    records = [candidates[place] for place in places]
    numbers = {record.trial: place for place, record in enumerate(records)}
    mine = np.array([numbers[member.trial] for member in members])
    signs = np.array([1.0 if objective.direction == "maximize" else -1.0 for objective in study.objectives])
    kept = np.zeros(len(members))
    better = np.zeros((len(members), len(members), len(signs)))
    again = Resampling(study, records, draws=DRAWS if len(records) <= MANY else DRAWS_OF_MANY, seed=0)
    draws = again.draws if again.is_noisy else 1
    for values in islice(again, draws):
        drawn = values * signs
        kept += moocore.is_nondominated(drawn, maximise=True, keep_weakly=True)[mine]
        better += drawn[mine][:, None] > drawn[mine][None, :]
    like = _like_cheaper(study, members, better / draws)
    return {
        member.trial: Standing(float(share), other)
        for member, share, other in zip(members, kept / draws, like, strict=True)
    }


def _like_cheaper(study: StudyRecord, members: Sequence[Record], better: NDArray[np.float64]) -> list[int | None]:
    """For each point of the front, best first, the cheaper one that it cannot be told from.

    Args:
        study: The study.
        members: The front.
        better: Shape (members, members, objectives): probability that the first is better than the second.
    """
    is_cost = np.array([objective.name not in METRICS for objective in study.objectives])
    sure = better >= SURE
    is_ahead = sure.any(axis=2)
    is_cheaper = (sure & is_cost).any(axis=2)
    alike = is_cheaper.T & ~is_ahead  # of row A and column B: B is cheaper than A, and A is ahead in nothing
    return [members[int(row.argmax())].trial if row.any() else None for row in alike]


def _within_reach(study: StudyRecord, candidates: Sequence[Record], members: Sequence[Record]) -> list[int]:
    """Places of the candidates that could be non-dominated in a draw: those that no point of the front beats by far.

    The others could dominate a point only together with the one that beats them.
    """
    signs = np.array([1.0 if objective.direction == "maximize" else -1.0 for objective in study.objectives])
    values = objective_values(study, candidates) * signs
    reach = np.array([[_reach(record, o.name) for o in study.objectives] for record in candidates])
    place = {record.trial: number for number, record in enumerate(candidates)}
    is_beaten = np.zeros(len(candidates), dtype=bool)
    for member in members:
        at = place[member.trial]
        ahead = values[at] - values
        is_beaten |= ((ahead >= FAR * np.hypot(reach[at], reach)) & (ahead >= 0)).all(axis=1) & (ahead > 0).any(axis=1)
    return [int(at) for at in np.flatnonzero(~is_beaten)]


def _reach(record: Record, name: str) -> float:
    """A standard error that is not too small, also where resampling knows it and the record does not."""
    if name in METRICS and name != "accuracy" and record.answers is not None:
        return float(2 / np.sqrt(record.answers["rows"]))
    return standard_error(record, name)


def unpaired(study: StudyRecord) -> str | None:
    """What is not known of the noise of the task metric, in a sentence; None where every candidate kept its answers."""
    names = [objective.name for objective in study.objectives if objective.name in METRICS]
    candidates = listed_once([record for record in study.records if is_candidate(study, record)])
    for name in names:
        lacking = len(candidates) - len(paired(candidates, name))
        if lacking:
            how = "drawn for each trial alone, from the binomial error" if name == "accuracy" else "taken as exact"
            which = "No trial" if lacking == len(candidates) else f"Not every trial ({lacking} of {len(candidates)})"
            return f"{which} kept its answers sentence by sentence: {name} without them is {how}."
    return None
