"""Putting a plan back that was taken by a worker and not finished.

Optuna's own callback copies all attributes of the dead trial, and with them its generation and its constraints, which
then cannot be set again. Here the new trial gets the parameters, its place in the lineage, and nothing else.
"""

from optuna.study import Study
from optuna.trial import FrozenTrial

from search.engine import attributes

ATTEMPTS = 3
"""How often a plan is tried before it is failed for good."""


def hand_back(study: Study, trial: FrozenTrial, *, counts: bool = True) -> None:
    """Queue the plan of an unfinished trial again, unless it was tried `ATTEMPTS` times.

    Args:
        study: The study.
        trial: The trial that did not finish; its state is FAIL already.
        counts: Whether this attempt counts; not so where a person stopped it.
    """
    attempt = trial.user_attrs.get(attributes.ATTEMPT, 1) + counts
    params = trial.system_attrs.get("fixed_params") or trial.params
    if attempt > ATTEMPTS or not params:
        return
    kept = {key: trial.user_attrs[key] for key in (attributes.ROLE,) if key in trial.user_attrs}
    first = trial.user_attrs.get(attributes.RETRY_OF, trial.number)
    study.enqueue_trial(params, user_attrs={**kept, attributes.RETRY_OF: first, attributes.ATTEMPT: attempt})
