"""Which worker may do what, decided from the database alone: no lock, no leader, no clock.

Each worker writes what it intends, then reads what the others have written; of two that intend the same, at least one
sees the other, and the rule says who gives way.
"""

from collections.abc import Mapping

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.engine import attributes
from search.engine.retry import lineage
from search.plan import Plan


def is_surplus(study: Study, trial: int, total: int) -> bool:
    """Whether a trial that has just begun is one too many.

    It is, if the complete trials and the unfinished ones with lower numbers make up the total already. Numbers are
    given in order, so of all trials that go on and complete, the one with the highest number has counted the others:
    there are never more than `total` of them. Where an unfinished one fails later, its place is free again.

    Args:
        study: The study.
        trial: Number of the trial, which is running.
        total: Completed trials that the study shall have.
    """
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    ahead = [
        other
        for other in study.get_trials(deepcopy=False)
        if other.state == TrialState.COMPLETE or (other.state in unfinished and other.number < trial)
    ]
    return len(ahead) >= total


def is_double(study: Study, trial: int) -> bool:
    """Whether an earlier trial of the same lineage is complete, running or queued.

    Handing a plan back is reading and then writing: two workers that notice the same death may both do it.

    Args:
        study: The study.
        trial: Number of the trial, which is running.
    """
    trials = study.get_trials(deepcopy=False)
    states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
    own = lineage(trials[trial])
    return any(other.state in states and lineage(other) == own for other in trials[:trial])


def with_plan(
    study: Study, plan: Plan, schedule: Mapping[str, float] | None = None, precision: str = "fp32"
) -> list[FrozenTrial]:
    """The trials of this plan, recovered by this schedule and deployed so, that are complete or running, by number."""
    deployed = None if precision == "fp32" else precision
    wanted = [list(plan.heads), list(plan.neurons), plan.rank, dict(schedule) if schedule else None, deployed]
    names = (attributes.HEADS, attributes.NEURONS, attributes.RANK, attributes.SCHEDULE, attributes.PRECISION)
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        if [trial.user_attrs.get(name) for name in names] == wanted
    ]


def made_by_others(
    study: Study, plan: Plan, trial: int, schedule: Mapping[str, float] | None = None, precision: str = "fp32"
) -> FrozenTrial | None:
    """A trial that answers for this plan: a complete one, or else a running one with a lower number, to be waited for.

    Args:
        study: The study.
        plan: The plan.
        trial: Number of the trial that asks.
        schedule: What was chosen of its recovery's schedule; None or empty where nothing was.
        precision: Number type that it is scored and measured in.
    """
    others = with_plan(study, plan, schedule, precision)
    complete = [other for other in others if other.state == TrialState.COMPLETE]
    running = [other for other in others if other.state == TrialState.RUNNING and other.number < trial]
    return next(iter(complete + running), None)
