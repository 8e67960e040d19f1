"""Which finished trial a plan is cut from, where a study asks for the nearest (`recovery.start`).

    finished:   ████████████ 0.7    ████████ 0.45    ███████ 0.4 (keeps fewer in some layer)    ████ 0.2
    plan:                              ██████ 0.35   ──► cut from 0.45, the smallest that keeps all that it keeps

So a small model is not trained from the raw cut of the dense one, but from one that has been recovered already, which
was cut from another: training adds up along the front, at the steps of one recovery per trial. A model that gives every
sentence the same answer is passed over: what is cut from it hardly ever comes back.

Reference:
    Elsken, Metzen, Hutter 2019, "Efficient Multi-Objective Neural Architecture Search via Lamarckian Evolution"
    (offspring inherit the weights of a member of the front).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.engine import attributes
from search.engine.offspring import OTHER, Grid, Plans
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
        recovered, those that another one answered have no weights of their own, and those that tell nothing apart
        would hand that on.
    """
    found = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        weights, kept = trial.user_attrs.get(attributes.WEIGHTS), plan_of(trial)
        if weights is not None and kept is not None and kept.contains(plan) and not tells_nothing(trial):
            found.append(Ancestor(trial.number, kept, weights))
    return min(found, key=lambda one: total_parameters(one.plan, shape), default=None)


def tells_nothing(trial: FrozenTrial) -> bool:
    """Whether a trial's model tells nothing apart, by what is recorded beside the task's metric.

    Args:
        trial: A finished trial.

    Returns:
        Whether the Matthews correlation, of a regression Pearson's, is there and not above 0. It is 0 where all rows
        get one answer, whatever the accuracy of that is.
    """
    measured = trial.user_attrs.get(attributes.QUANTITIES, {})
    correlations = [measured[name]["value"] for name in ("matthews", "pearson") if name in measured]
    return bool(correlations) and max(correlations) <= 0


class Recoveries:
    """How often the weights of plans have been recovered: once, and as often as what they are cut from.

    Of a plan that was tried it is what became of it, of another one what would; there the rank of the word embeddings,
    which is no matter of a layer's size, is passed over.

    Args:
        grid: The space.
        trials: Finished trials with a value for each of its dimensions.
    """

    def __init__(self, grid: Grid, trials: Sequence[FrozenTrial]) -> None:
        self._sized = grid.kinds != OTHER
        counts: dict[int, float] = {}
        for trial in sorted(trials, key=lambda one: one.number):
            counts[trial.number] = 1.0 + counts.get(trial.user_attrs.get(attributes.CUT_FROM, -1), 0.0)
        plans = grid.plans([trial.params for trial in trials])
        self._tried = {tuple(plan): counts[trial.number] for plan, trial in zip(plans.tolist(), trials, strict=True)}
        kept = [
            number
            for number, trial in enumerate(trials)
            if attributes.WEIGHTS in trial.user_attrs and not tells_nothing(trial)
        ]
        kept = [kept[place] for place in np.argsort(grid.sizes(plans[kept]).round(9), kind="stable")]
        self._sources = plans[kept][:, self._sized]
        self._counts = np.array([counts[trials[number].number] for number in kept])

    def __call__(self, plans: Plans) -> NDArray[np.float64]:
        """Recoveries behind each plan (plans,), its own among them."""
        # The sources stand in the order of their sizes: the first that keeps all is the smallest.
        contains = np.all(self._sources[None] >= plans[:, None, self._sized], axis=2)
        counts = np.ones(len(plans))
        if len(self._sources):
            counts += np.where(np.any(contains, axis=1), self._counts[contains.argmax(axis=1)], 0.0)
        return np.array(
            [self._tried.get(tuple(plan), count) for plan, count in zip(plans.tolist(), counts, strict=True)]
        )
