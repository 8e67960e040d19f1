"""Putting a plan back that was taken by a worker and not finished.

Optuna's own callback copies all attributes of the dead trial, and with them its generation and its constraints, which
then cannot be set again. Here the new trial gets the parameters, its place in the lineage, and nothing else.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.engine import attributes

ATTEMPTS = 3
"""How often a plan is tried before it is failed for good."""


CLOCK_STEP_S = 60
"""Seconds by which a process's start may seem to have moved: the system's clock is set now and then."""


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
    """Host name and, on Linux, the space of process numbers: containers of one host have their own."""
    space = Path("/proc/self/ns/pid")
    return socket.gethostname() + (f" {space.readlink()}" if space.exists() else "")
