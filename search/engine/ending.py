"""Ending a recovery that cannot reach the front any more, even optimistically.

    metric at the rung + gain that like recoveries rarely exceeded ──► optimistic metric ─┬─ beaten by a finished
    size, latency, energy: known since the cut ───────────────────────────────────────────┘  trial? ─► it ends

The gains, final metric minus metric at the rung, come from the study's own finished trials: those of plans of about the
same size. If the new gain is one more of their kind, it exceeds the k-th smallest of n, k = ⌈(n + 1)(1 - α)⌉, with a
probability of at most α; with fewer than 1/α - 1 of them nothing is ended. Those that were ended have no final metric:
the gains are of recoveries that looked promising. How many are ended wrongly is therefore measured, by letting a share
of them go on. Each of r rungs is a chance to be wrong: α is `ending.wrong` / r, a share of all recoveries, not of those
that end.

Reference:
    Vovk, Gammerman, Shafer 2005, "Algorithmic Learning in a Random World", chapter 2 (split conformal prediction).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from search.definition import METRICS, Definition
from search.engine import attributes
from search.plan import Plan, encoder_parameters
from search.space import Space

ALIKE = 40
"""Finished trials, those nearest in size, that the gains are taken from."""

AUDIT = 2
"""Third part of the seed of the draw that decides who is let go on, so that it has nothing to do with other draws."""


def optimistic(metric: float, gains: Sequence[float], *, wrong: float) -> float:
    """A metric that a recovery will not exceed, but for a share of the cases.

    Args:
        metric: Its metric at the rung.
        gains: Final metric minus metric at the rung, of finished recoveries of its kind.
        wrong: That share, above 0 and below 1.

    Returns:
        The optimistic final metric; infinite where there are too few gains to tell.

    Example:
        >>> gains = [0.01 * number for number in range(1, 10)]
        >>> round(optimistic(0.5, gains, wrong=0.1), 3), optimistic(0.5, gains, wrong=0.05)
        (0.59, inf)
    """
    rank = math.ceil((len(gains) + 1) * (1 - wrong) - 1e-9)
    return metric + sorted(gains)[rank - 1] if rank <= len(gains) else math.inf


class Referee:
    """Decides at the rungs of one trial's recovery. Mutable: it remembers what it saw and decided.

    Nothing is ended in a study whose vector holds not exactly one task metric, or an objective that is only known after
    the recovery.

    Args:
        study: The study.
        definition: Its definition.
        space: Its dimensions.
        plan: The trial's plan.
        trial: The trial's number.
    """

    def __init__(self, study: Study, definition: Definition, space: Space, plan: Plan, trial: int) -> None:
        self._study = study
        self._definition = definition
        self._shape = space.shape
        self._size = encoder_parameters(plan, space.shape)
        self._trial = trial
        self._rungs: list[tuple[float, float]] = []
        self._ended_at: float | None = None
        self._audited_at: float | None = None

    def __call__(self, share: float, metric: float, known: Mapping[str, float]) -> bool:
        """Whether the recovery ends at a rung.

        Args:
            share: Share of its steps that are done.
            metric: The task's metric on the rung's rows.
            known: What was measured before the recovery, by quantity.
        """
        self._rungs.append((share, metric))
        if self._audited_at is not None or not self._is_beaten(share, metric, known):
            return False
        settings = self._definition
        dice = np.random.default_rng([settings.engine.seed, self._trial, AUDIT])
        if dice.random() < settings.ending.audited:
            self._audited_at = share
            return False
        self._ended_at = share
        return True

    def note(self, trial: Trial) -> None:
        """Write down what was seen and decided, where there was anything to see."""
        for name, value in (
            (attributes.RUNGS, [list(rung) for rung in self._rungs] or None),
            (attributes.ENDED, self._ended_at),
            (attributes.AUDITED, self._audited_at),
        ):
            if value is not None:
                trial.set_user_attr(name, value)

    def _is_beaten(self, share: float, metric: float, known: Mapping[str, float]) -> bool:
        names = self._definition.objective_names
        if [name for name in names if name in METRICS] != [self._definition.task.metric]:
            return False
        if any(name not in known for name in names if name not in METRICS):
            return False
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        place = names.index(self._definition.task.metric)
        ending = self._definition.ending
        best = optimistic(metric, self._gains(trials, share, place), wrong=ending.wrong / len(set(ending.rungs)))
        own = [best if name in METRICS else known[name] for name in names]
        signs = [1 if direction == StudyDirection.MAXIMIZE else -1 for direction in self._study.directions]
        feasible = (trial for trial in trials if all(value <= 0 for value in trial.constraints.values()))
        return any(
            all(sign * theirs >= sign * mine for sign, theirs, mine in zip(signs, trial.values, own, strict=True))
            for trial in feasible
        )

    def _gains(self, trials: Sequence[FrozenTrial], share: float, place: int) -> list[float]:
        """Gains after this rung of the finished recoveries that are nearest in size."""
        found = []
        for trial in trials:
            attrs = trial.user_attrs
            seen = dict(map(tuple, attrs.get(attributes.RUNGS, ())))
            if share in seen and attributes.ENDED not in attrs and attributes.ANSWERED_FROM not in attrs:
                plan = Plan(tuple(attrs[attributes.HEADS]), tuple(attrs[attributes.NEURONS]))
                apart = abs(encoder_parameters(plan, self._shape) - self._size)
                found.append((apart, trial.number, trial.values[place] - seen[share]))
        return [gain for _, _, gain in sorted(found)[:ALIKE]]
