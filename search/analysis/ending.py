"""Of the recoveries that were ended early: how many, and how many wrongly, as far as those tell that were let go on."""

from dataclasses import dataclass

import moocore
from scipy.stats import binomtest

from search.analysis.front import is_candidate, objective_values
from search.records import Record, StudyRecord


@dataclass(frozen=True)
class Ends:
    """What became of the recoveries that could be ended.

    Attributes:
        ended: How many were ended.
        audited: How many would have been, and went on.
        reached: How many of the audited reached the front as it was before them.
    """

    ended: int
    audited: int
    reached: int

    @property
    def wrong(self) -> tuple[float, float]:
        """Share of wrong ends, 95 % interval; from 0 to 1 where none was audited."""
        if not self.audited:
            return 0.0, 1.0
        wilson = binomtest(self.reached, self.audited).proportion_ci(method="wilson")
        return float(wilson.low), float(wilson.high)


def ends(study: StudyRecord) -> Ends:
    """Count the recoveries of a study that were ended, and those that were audited."""
    audited = [record for record in study.complete if record.audited_at is not None]
    return Ends(
        ended=sum(record.ended_at is not None and record.answered_from is None for record in study.complete),
        audited=len(audited),
        reached=sum(_reached(study, record) for record in audited),
    )


def _reached(study: StudyRecord, record: Record) -> bool:
    """Whether no trial with a lower number beats a record."""
    if not is_candidate(study, record):
        return False
    before = [other for other in study.records if other.trial < record.trial and is_candidate(study, other)]
    maximised = [objective.direction == "maximize" for objective in study.objectives]
    values = objective_values(study, [*before, record])
    return bool(moocore.is_nondominated(values, maximise=maximised, keep_weakly=True)[-1])


def sentence(study: StudyRecord) -> str | None:
    """What a person should know about the ends of a study; None where there were none."""
    counted = ends(study)
    if not counted.ended and not counted.audited:
        return None
    text = f"{counted.ended} recoveries were ended early, because they could not reach the front any more"
    if not counted.audited:
        return text
    low, high = counted.wrong
    return (
        f"{text}; of {counted.audited} more that were let go on as a check {counted.reached} reached it "
        f"(95 % interval {low:.0%} to {high:.0%})"
    )
