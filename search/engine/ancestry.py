"""Which finished trial a plan is cut from, where a study asks for the nearest (`recovery.start`).

    finished:   ████████████ 0.7    ████████ 0.45    ███████ 0.4 (keeps fewer in some layer)    ████ 0.2
    plan:                              ██████ 0.35   ──► cut from 0.45, the smallest that keeps all that it keeps

So a small model is not trained from the raw cut of the dense one, but from one that has been recovered already, which
was cut from another: training adds up along the front, at the steps of one recovery per trial.

Reference:
    Elsken, Metzen, Hutter 2019, "Efficient Multi-Objective Neural Architecture Search via Lamarckian Evolution"
    (offspring inherit the weights of a member of the front).
"""

from optuna.study import Study
from optuna.trial import TrialState

from search.engine import attributes
from search.engine.study import plan_of
from search.plan import Plan, Shape, total_parameters
from search.records import Ancestor


def nearest(study: Study, plan: Plan, shape: Shape) -> Ancestor | None:
    """The smallest finished trial that keeps all that a plan keeps, and whose weights are kept.

    Args:
        study: The study.
        plan: The plan.
        shape: Sizes of the dense model.

    Returns:
        The trial, of equally large ones the first; None where there is none. Trials that break a constraint were not
        recovered, and those that another one answered have no weights of their own.
    """
    found = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        weights, kept = trial.user_attrs.get(attributes.WEIGHTS), plan_of(trial)
        if weights is not None and kept is not None and kept.contains(plan):
            found.append(Ancestor(trial.number, kept, weights))
    return min(found, key=lambda one: total_parameters(one.plan, shape), default=None)
