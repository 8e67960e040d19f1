"""Putting a plan back that was taken by a worker and not finished.

Optuna's own callback copies all attributes of the dead trial, and with them its generation and its constraints, which
then cannot be set again. Here the new trial gets the parameters, its place in the lineage, and nothing else.

    running ──worker dies──► failed, no reason ──hand_back──► waiting, attempt + 1     three times, then for good
    running ──Ctrl-C twice──► failed, STOPPED  ──hand_back──► waiting, same attempt
    running ──disk full, say──► failed, why    ──hand_back──► waiting, attempt + 1     likewise
    running ──not needed──► failed, SURPLUS    ──hand_back──► waiting, same attempt    where it was queued

Whoever fails a trial may die before it has handed the plan back: `settle` finds such trials and does it.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.engine import attributes

ATTEMPTS = 3
"""How often a plan is tried before it is failed for good."""


STOPPED = "stopped on request; its plan is queued again"
"""Reason of a trial that a person stopped."""

SURPLUS = "not needed: the study has its trials"
"""Reason of a trial that was begun while others were at the last ones."""

DOUBLE = "not needed: another trial of this plan's lineage was there first"
"""Reason of a trial that was queued twice, by two workers that noticed the same death."""

SETTLE_S = 120
"""Seconds after which a failed trial's plan that nobody handed back is handed back by whoever notices."""

CLOCK_STEP_S = 60
"""Seconds by which a process's start may seem to have moved: the system's clock is set now and then."""


def hand_back(study: Study, trial: FrozenTrial, *, counts: bool = True) -> None:
    """Queue the plan of an unfinished trial again, unless it was tried `ATTEMPTS` times.

    Nothing is queued where a later trial of the lineage exists already.

    Args:
        study: The study.
        trial: The trial that did not finish; its state is FAIL already.
        counts: Whether this attempt counts; not so where a person stopped it.
    """
    attempt = trial.user_attrs.get(attributes.ATTEMPT, 1) + counts
    params = trial.system_attrs.get("fixed_params") or trial.params
    first = lineage(trial)
    later = (t for t in _counted(study.get_trials(deepcopy=False)) if t.number > trial.number and lineage(t) == first)
    if attempt > ATTEMPTS or not params or any(later):
        return
    kept = {key: trial.user_attrs[key] for key in (attributes.ROLE,) if key in trial.user_attrs}
    study.enqueue_trial(params, user_attrs={**kept, attributes.RETRY_OF: first, attributes.ATTEMPT: attempt})


def _counted(trials: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
    """The trials without those that gave way to another one of their lineage."""
    return (trial for trial in trials if trial.user_attrs.get(attributes.FAILURE) != DOUBLE)


def lineage(trial: FrozenTrial) -> int:
    """Number of the first trial of a trial's plan."""
    return int(trial.user_attrs.get(attributes.RETRY_OF, trial.number))


def settle(study: Study) -> list[int]:
    """Hand back the plans of failed trials that nobody handed back, because who failed them died before that.

    Args:
        study: The study.

    Returns:
        Numbers of the trials whose plan was queued again.
    """
    long_ago = datetime.now() - timedelta(seconds=SETTLE_S)
    settled = []
    for trial in unsettled(study.get_trials(deepcopy=False)):
        if (trial.datetime_complete or long_ago) < long_ago:
            hand_back(study, trial, counts=attributes.FAILURE not in trial.user_attrs)
            settled.append(trial.number)
    return settled


def unsettled(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The failed trials whose plans shall be queued again and are not yet.

    Args:
        trials: All trials of a study.
    """
    last = {lineage(trial): trial.number for trial in _counted(trials)}
    found = []
    for trial in trials:
        failure = trial.user_attrs.get(attributes.FAILURE)
        if (
            trial.state == TrialState.FAIL
            and failure in (None, STOPPED, SURPLUS)
            and last.get(lineage(trial)) == trial.number
            and (trial.system_attrs.get("fixed_params") or trial.params)
            and (failure is not None or trial.user_attrs.get(attributes.ATTEMPT, 1) < ATTEMPTS)
        ):
            found.append(trial)
    return found


def this_worker() -> str:
    """Name of this process that no other process has: machine, number and start."""
    return f"{_machine()} process {os.getpid()} started {psutil.Process().create_time():.2f}"


def take_back_orphans(study: Study) -> list[int]:
    """Hand back, at once, the trials of this machine's processes that are gone.

    Heartbeats find the dead workers of other machines, after a while. A process of this machine can be looked up, so
    that a search that was killed and started again goes on with the very trial that it was at.

    Args:
        study: The study.

    Returns:
        Numbers of the trials that were handed back.
    """
    return _take_back(study, _is_orphan, counts=True)


def give_up_own(study: Study) -> list[int]:
    """Hand back what this process is running, because a person stopped it; that attempt does not count.

    Args:
        study: The study.

    Returns:
        Numbers of the trials that were handed back.
    """
    return _take_back(study, lambda worker: worker == this_worker(), counts=False)


def _take_back(study: Study, is_meant: Callable[[str], bool], *, counts: bool) -> list[int]:
    """Fail the running trials of the workers that are meant, and queue their plans again."""
    taken = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_meant(trial.user_attrs.get(attributes.WORKER, "")):
            try:
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            except UpdateFinishedTrialError:  # another worker was faster
                continue
            hand_back(study, trial, counts=counts)
            taken.append(trial.number)
    return taken


def _is_orphan(worker: str) -> bool:
    """Whether a worker was a process of this machine that does not exist any more."""
    machine, _, process = worker.partition(" process ")
    number, _, started = process.partition(" started ")
    if machine != _machine() or not started:
        return False
    try:
        return bool(abs(psutil.Process(int(number)).create_time() - float(started)) > CLOCK_STEP_S)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _machine() -> str:
    """Host name and, on Linux, the boot and the space of process numbers: hosts may share a name, containers a host."""
    space, boot = Path("/proc/self/ns/pid"), Path("/proc/sys/kernel/random/boot_id")
    parts = [str(space.readlink())] if space.exists() else []
    parts += [boot.read_text(encoding="ascii").strip()] if boot.exists() else []
    return " ".join([socket.gethostname(), *parts])
