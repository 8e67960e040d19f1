"""Telling Optuna, and the dashboard, by how much a trial breaks its constraints.

Optuna 5 keeps each constraint under a key of its own; optuna-dashboard 0.21 reads only the list that Optuna 4 wrote,
and would show every infeasible trial as feasible. Both are written. Optuna ignores a constraint that is set twice, so
this is called once per trial, at its end.
"""

from collections.abc import Mapping

from optuna.trial import FrozenTrial, Trial

DASHBOARD_KEY = "constraints"
"""System attribute that optuna-dashboard 0.21 reads."""


def set_constraints(trial: Trial, violations: Mapping[str, float]) -> None:
    """Store how far a trial is over each bound.

    Args:
        trial: The running trial.
        violations: By constrained quantity, in its own unit; at most 0 keeps the constraint.
    """
    if not violations:
        return
    for name, excess in violations.items():
        trial.set_constraint(name, excess)
    trial.storage.set_trial_system_attr(trial._trial_id, DASHBOARD_KEY, list(violations.values()))


def violations_of(trial: FrozenTrial) -> dict[str, float]:
    """How far a trial is over each bound, by constrained quantity.

    Optuna gives the dashboard's list back too, under the numbers of its places; these are left out.
    """
    return {name: excess for name, excess in trial.constraints.items() if not name.isdigit()}
