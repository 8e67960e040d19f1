"""What a worker uses, written into its trials: seconds, and joules where a counter can be read.

    start-up │ trial 4 ......................... │ ask │ trial 5 ....................
             │        └ so far    └ so far       │     │        └ so far    ✗ killed
             │◄────────── seconds of 4 ─────────►│     │◄ seconds of 5 ►│ of which this is known
    │◄─────────────────── joules of 4 ──────────►│◄───── joules of 5 ──►│

The joules between two trials are those of the later one: the device draws power then as well. What a worker used that
died, or whose trial was taken away, is known as far as it said so.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial

from search.costs import Counter
from search.engine import attributes


class Metered:
    """Notes in each trial what it used. Mutable: it knows the running trial, and what was said of it so far.

    Args:
        counter: Energy counter of this worker's device; None where none can be read.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, counter: Counter | None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._counter = counter
        self._clock = clock
        self._trial: Trial | None = None
        self._start_s = 0.0
        self._said_j = 0.0

    @contextmanager
    def noted(self, trial: Trial) -> Iterator[None]:
        """Note what a trial used when the block ends, however it ends; no joules where they cannot be read then."""
        self._start_s, self._said_j, self._trial = self._clock(), 0.0, trial
        try:
            yield
        finally:
            self._trial = None
            used_j = self._counter.open_j() if self._counter else None
            noted_j = self._said_j  # all that stays known where the trial was taken away, or nothing can be read
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr(attributes.LASTED_S, round(self._clock() - self._start_s, 3))
                if self._counter is not None and used_j is not None:
                    trial.set_user_attr(attributes.COUNTER, self._counter.source)
                    trial.set_user_attr(attributes.ENERGY_J, round(used_j, 3))
                    noted_j = used_j
            if self._counter is not None:
                self._counter.charge(noted_j)

    def say_so_far(self) -> None:
        """Note in the running trial what it used so far; called now and then, from another thread.

        It is another attribute than what is noted in the end: whichever of the two is written last, both stay true.
        """
        trial, seconds = self._trial, round(self._clock() - self._start_s, 3)
        if trial is None:
            return
        open_j = None if self._counter is None else self._counter.open_j()
        used_j = None if open_j is None else round(open_j, 3)
        source = None if self._counter is None or used_j is None else self._counter.source
        with suppress(UpdateFinishedTrialError):
            trial.storage.set_trial_user_attr(trial._trial_id, attributes.SO_FAR, [seconds, used_j, source])
            if trial is self._trial:
                self._said_j = used_j or 0.0


def lasted_s(trial: FrozenTrial) -> float | None:
    """Seconds that a trial took, or is known to have taken; None in studies of versions that did not note it."""
    so_far = trial.user_attrs.get(attributes.SO_FAR, (None,))[0]
    seconds = trial.user_attrs.get(attributes.LASTED_S, so_far)
    return None if seconds is None else float(seconds)


def energy_j(trial: FrozenTrial) -> float | None:
    """Joules that a trial's worker used since its trial before, or is known to have used; None without a counter."""
    so_far = trial.user_attrs.get(attributes.SO_FAR, (None, None))[1]
    joules = trial.user_attrs.get(attributes.ENERGY_J, so_far)
    return None if joules is None else float(joules)


def counter_of(trial: FrozenTrial) -> str | None:
    """Name of the counter that a trial's energy was read from; None where that is not known, or there was none."""
    so_far = trial.user_attrs.get(attributes.SO_FAR, (None, None, None))[2]
    name = trial.user_attrs.get(attributes.COUNTER, so_far)
    return None if name is None else str(name)
