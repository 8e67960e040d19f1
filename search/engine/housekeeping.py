"""What keeps a study in order while workers are busy with their trials: a thread of each worker, every half minute.

Trials whose worker is dead are failed and their plans queued again, also when every living worker is in the middle of a
long trial. What this worker's own trial used so far is written down, in case it does not live to say it in the end.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study

from search.engine.patience import is_passing
from search.engine.retry import settle, take_back_orphans

EVERY_S = 20.0
"""Seconds between two rounds."""


def tidy(study: Study, note: Callable[[str], None]) -> None:
    """Queue again what dead workers left: at once those of this machine, after a while those of others.

    Args:
        study: The study.
        note: Told what was found.
    """
    for number in take_back_orphans(study):
        note(f"trial {number} was left unfinished by a worker that is gone; its plan is queued again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    settle(study)


@contextmanager
def in_background(study: Study, note: Callable[[str], None], say_so_far: Callable[[], None]) -> Iterator[None]:
    """Keep the study in order while the block runs.

    Args:
        study: The study; the thread has a handle of its own on the same storage.
        note: Told what was found, from another thread.
        say_so_far: Called in each round, from that thread: what the running trial used so far.
    """
    over = threading.Event()
    own = optuna.load_study(study_name=study.study_name, storage=study._storage)

    def rounds() -> None:
        while not over.wait(EVERY_S):
            try:
                tidy(own, note)
                say_so_far()
            except Exception as error:
                if not is_passing(error):  # a storage that does not answer now is tried again in the next round
                    note(f"the study could not be kept in order: {type(error).__name__}: {error}")

    thread = threading.Thread(target=rounds, name="housekeeping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
