"""When a search ends before its study has all its trials: its time, or the study's energy, is used up.

A trial is not begun if it could not finish: what it will take is taken to be the most that one took so far.
"""

import time
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from search.engine import attributes
from search.engine.metering import energy_j
from search.limits import Limits

J_PER_KWH = 3.6e6
"""Joules in a kilowatt-hour."""


def spent(
    limits: Limits, trials: Sequence[FrozenTrial], worker: str, *, prepared_j: float = 0.0, now: float | None = None
) -> str | None:
    """Why no further trial is begun, or None where one may be.

    Args:
        limits: What the search may use.
        trials: All trials of the study.
        worker: Name of the worker that asks; its own trials say what one takes, where it has finished any.
        prepared_j: Joules that the study's preparation took.
        now: Seconds since 1970; by default now.
    """
    now = time.time() if now is None else now
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE and _seconds(trial) > 0]
    own = [trial for trial in done if trial.user_attrs.get(attributes.WORKER) == worker] or done
    if limits.until is not None:
        takes = max(map(_seconds, own), default=0.0)
        if now >= limits.until:
            return "the time is over"
        if now + takes > limits.until:
            return f"a trial takes up to {takes:.0f} s, and {limits.until - now:.0f} s are left"
    if limits.energy_kwh is not None:
        finished = [trial for trial in trials if trial.state != TrialState.RUNNING]
        used = (prepared_j + sum(map(_energy_j, finished))) / J_PER_KWH
        takes = max(map(_energy_j, own), default=0.0) / J_PER_KWH
        running = len(trials) - len(finished)
        if used + takes * (1 + running) > limits.energy_kwh:
            return (
                f"the study has used {used:.6g} of {limits.energy_kwh:g} kWh, and a trial takes up to {takes:.3g} kWh"
            )
    return None


def _energy_j(trial: FrozenTrial) -> float:
    """Energy that a trial's worker used since its trial before, in joules; 0 where no counter could be read."""
    return energy_j(trial) or 0.0


def _seconds(trial: FrozenTrial) -> float:
    """Seconds that a trial was worked at; 0 where it was answered from another one's record."""
    return float(sum(trial.user_attrs.get(attributes.SECONDS, {}).values()))
