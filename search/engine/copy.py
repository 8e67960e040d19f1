"""Moving a study from one storage to another: SQLite, PostgreSQL, journal files, in any direction.

Optuna's own copy keeps what must change: NSGA-II stores each generation's parents by numbers that the storage gave, and
they mean other trials elsewhere. And it leaves half a study behind when it is interrupted.
"""

import copy as copies
from collections.abc import Callable
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.engine import attributes
from search.engine import study as studies
from search.engine.retry import hand_back
from search.errors import UserError

PARENTS = ":parent:"
"""Part of the names under which Optuna keeps the parents of a generation."""


def copy(source: Study, storage: Any, *, on_trial: Callable[[int, int], None] = lambda _done, _total: None) -> Study:
    """Copy a study with all its trials and attributes.

    Trials keep their numbers. What is running in the source is lost to the copy: it is failed there and its plan
    queued, so copy a study when no worker is at it.

    Args:
        source: The study.
        storage: Where to.
        on_trial: Told how many trials are copied.

    Returns:
        The copy.

    Raises:
        UserError: If the target holds a study of that name, the source was not made by paretobert, or the copy turns
            out not to be equal.
    """
    studies.stored(source)
    present = studies.find(storage, source.study_name)
    if present is not None:
        if attributes.UNFINISHED not in present.user_attrs or attributes.POPULATION in present.user_attrs:
            raise UserError(
                f"the target holds a study {source.study_name!r} already; delete it there, or name another storage"
            )
        optuna.delete_study(study_name=source.study_name, storage=storage)
    target = optuna.create_study(study_name=source.study_name, storage=storage, directions=source.directions)
    target.set_user_attr(attributes.UNFINISHED, True)
    trials = source.get_trials(deepcopy=False)
    renumbered = {}
    for done, trial in enumerate(trials, start=1):
        new_id = storage.create_new_trial(target._study_id, template_trial=_finished(trial))
        renumbered[trial._trial_id] = new_id
        on_trial(done, len(trials))
    for key, value in source._storage.get_study_system_attrs(source._study_id).items():
        moved = [renumbered[number] for number in value if number in renumbered] if PARENTS in key else value
        storage.set_study_system_attr(target._study_id, key, moved)
    for key, value in source.user_attrs.items():
        if key not in (attributes.POPULATION, attributes.UNFINISHED):
            target.set_user_attr(key, value)
    _compare(trials, target.get_trials(deepcopy=False))
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            hand_back(target, target.get_trials(deepcopy=False)[trial.number], counts=False)
    target.set_user_attr(attributes.POPULATION, source.user_attrs[attributes.POPULATION])  # makes the study whole
    return target


def _finished(trial: FrozenTrial) -> FrozenTrial:
    """The trial as it is copied: what was running has failed."""
    if trial.state != TrialState.RUNNING:
        return trial
    failed = copies.deepcopy(trial)
    failed.state = TrialState.FAIL
    failed.datetime_complete = failed.datetime_start
    return failed


def _compare(trials: list[FrozenTrial], copied: list[FrozenTrial]) -> None:
    """Make sure that the copy says what the source says."""
    for old, new in zip(trials, copied, strict=True):
        for what in ("number", "values", "params", "distributions", "user_attrs", "system_attrs"):
            if getattr(old, what) != getattr(new, what):
                raise UserError(f"trial {old.number} was not copied whole (its {what} differ); copy the study again")
        if new.state != _finished(old).state:
            raise UserError(f"trial {old.number} was not copied whole (its state differs); copy the study again")
