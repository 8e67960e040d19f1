"""A sampler that asks a model first: of many plans near the front, the one that promises most is tried.

    finished trials ─► a model per objective ─► front of its predictions, pending trials among them
                                                  │
    offspring of that front ─► expected gain in hypervolume, by the second that the trial will take
                                                  └─► the best are varied, twice ─► the plan to try

Parameters and MACs are known from the plan. Quality is predicted with its uncertainty, other costs by regression
(`search.engine.response`), and so are a trial's seconds: a small plan is recovered several times as fast as a large
one, so that a gain that both promise is had there first. Where plans are cut from the nearest finished trial, the model
knows how often a plan's weights will have been recovered, so that a front that can still be trained on is.
Hundredths of a second per trial stand against minutes.

Reference:
    Cummings et al. 2022, "A Hardware-Aware Framework for Accelerating Neural Architecture Search Across Modalities"
    (LINAS: a predictor chooses what NSGA-II would have evaluated).
    Emmerich, Deutz, Klinkenberg 2011, "Hypervolume-Based Expected Improvement" (the integral that is used here).
    Snoek, Larochelle, Adams 2012, "Practical Bayesian Optimization of Machine Learning Algorithms", section 3.2
    (expected improvement per second).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import moocore
import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from search.definition import METRICS, Bound, Definition
from search.engine import attributes
from search.engine.ancestry import Recoveries, tells_nothing
from search.engine.constraints import violations_of
from search.engine.offspring import RUNGS, Grid, Plans, offspring, varied
from search.engine.response import Cost, Quality, Response, curves
from search.plan import Plan, Shape, encoder_macs, encoder_parameters, total_parameters
from search.space import Space

Values = NDArray[np.float64]

FEWEST = 6
"""Trials that a model needs; before, plans are drawn near the finished ones without it."""
TELLING = 10
"""Trials per dimension below which only rungs of the ladder are compared: fewer cannot tell what single layers need."""
POOL = 300
"""Offspring that the model compares first."""
ROUNDS = 2
"""How often the best of them are varied."""
BEST = 20
"""How many are varied."""
FASTEST = 0.1
"""No plan is believed to take less than this share of the median trial: the regression may say anything there."""
POINTS = 1024
"""Points of the cost box that the expected gain is averaged over."""


def exact(shape: Shape, *, tokens: int | Literal["selection"]) -> dict[str, Callable[[Plan], float]]:
    """The quantities that follow from a plan alone, by name.

    Args:
        shape: Sizes of the dense model.
        tokens: Tokens per sequence, for the MACs; they are left out where it is the length mix of a split.
    """
    dense = encoder_parameters(Plan.dense(shape), shape)
    known: dict[str, Callable[[Plan], float]] = {
        "parameters": lambda plan: total_parameters(plan, shape),
        "encoder_parameters": lambda plan: encoder_parameters(plan, shape),
        "encoder_share": lambda plan: encoder_parameters(plan, shape) / dense,
    }
    if tokens != "selection":
        known["macs"] = lambda plan: encoder_macs(plan, shape, tokens=tokens)
    return known


@dataclass(frozen=True)
class Known:
    """A response that is computed, not learned.

    Attributes:
        space: The study's dimensions.
        grid: The same as arrays.
        value: From a plan to the quantity.
    """

    space: Space
    grid: Grid
    value: Callable[[Plan], float]

    def predict(self, plans: Plans) -> tuple[Values, Values]:
        """The quantity (plans,), and no uncertainty."""
        values = [self.value(self.space.plan(self.grid.params(plan))) for plan in plans]
        return np.array(values, dtype=np.float64), np.zeros(len(plans))


class SurrogateSampler(BaseSampler):
    """Proposes the plan that a model of the finished trials expects to add most to the front.

    Args:
        definition: The study's definition: its objectives and constraints.
        space: The study's dimensions.
        seed: Of one trial; equal trials and an equal seed give the same plan.
    """

    def __init__(self, definition: Definition, space: Space, *, seed: int) -> None:
        self._definition = definition
        self._space = space
        self._grid = Grid.of(space)
        self._random = np.random.default_rng(seed)
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """None of its own: the wrapper says what is sampled together."""
        return {}

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """The plan to try; nothing where no trial has finished yet."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        finished = [t for t in trials if t.state == TrialState.COMPLETE and self._has_plan(t)]
        usable = [t for t in finished if all(value <= 0 for value in t.constraints.values())]
        if not finished:
            return {}
        if len(usable) < FEWEST:
            near = self._grid.plans([t.params for t in usable or finished])
            plan = offspring(self._grid, near, self._random, mass=self._mass(study))
        else:
            begun = (TrialState.RUNNING, TrialState.WAITING)
            pending = [self._planned(t) for t in trials if t.state in begun]
            plan = self._best(study, finished, usable, [one for one in pending if one is not None])
        params = self._grid.params(plan)
        return {name: params[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one ratio by chance: the first plan of a study without a ladder."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _mass(self, study: Study) -> list[Values]:
        """Importance that each dimension keeps with 0, 1, ... units."""
        return curves(self._grid, study.user_attrs.get(attributes.MASS, {}))

    def _has_plan(self, trial: FrozenTrial) -> bool:
        return all(name in trial.params for name in self._grid.names)

    def _planned(self, trial: FrozenTrial) -> dict[str, float] | None:
        """Ratios of a trial that has not finished; None while it has none."""
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        return params if all(name in params for name in self._grid.names) else None

    def _best(
        self, study: Study, finished: list[FrozenTrial], usable: list[FrozenTrial], pending: list[dict[str, float]]
    ) -> NDArray[np.int64]:
        """Of many plans near the predicted front, the one with the largest expected gain."""
        objectives, bounds = self._models(study, finished)
        scale = Scale.of(study, self._definition, objectives, self._grid.most[None])
        tried = self._grid.plans([trial.params for trial in usable] + pending)
        everything = self._grid.plans([trial.params for trial in finished] + pending)
        known = {tuple(plan) for plan in everything.tolist()}
        gains, _spread = scale.gains(objectives, tried)
        on_front = moocore.is_nondominated(gains, maximise=True)
        front, parents = gains[on_front], tried[on_front]
        box = self._random.random((POINTS, gains.shape[1]))

        seconds = self._seconds(finished)

        def promise(plans: Plans) -> Values:
            expected = expected_gain(*scale.gains(objectives, plans), front, box, axis=scale.axis) / seconds(plans)
            for name, model in bounds.items():
                expected *= _keeps(model, self._definition.bounds[name], plans)
            return expected

        mass, few = self._mass(study), len(finished) < TELLING * len(self._grid.names)
        rounds, size, rungs = (0, 2 * POOL, 1.0) if few else (ROUNDS, POOL, RUNGS)
        pool = np.stack([offspring(self._grid, parents, self._random, mass=mass, rungs=rungs) for _ in range(size)])
        for round_ in range(1 + rounds):
            pool = self._random.permutation(np.unique(pool, axis=0))
            new = np.array([tuple(plan) not in known for plan in pool.tolist()])
            pool = pool[new] if new.any() else pool
            best = pool[np.argsort(-promise(pool), kind="stable")[:BEST]]
            if round_ < rounds:
                picks = self._random.integers(len(best), size=POOL // 2)
                pool = np.concatenate([best, [varied(self._grid, best[pick], self._random) for pick in picks]])
        return np.asarray(best[0])

    def _seconds(self, finished: list[FrozenTrial]) -> Callable[[Plans], Values]:
        """What trials of these plans will take (plans,), as a share of the median one; 1 where too few have said so."""
        spent = {t.number: sum(t.user_attrs.get(attributes.SECONDS, {}).values()) for t in finished}
        own = [trial for trial in finished if spent[trial.number] > 0]
        if len(own) < FEWEST:
            return lambda plans: np.ones(len(plans))
        seen = np.array([spent[trial.number] for trial in own])
        model = Cost(self._grid).fit(self._grid.plans([trial.params for trial in own]), seen / np.median(seen))
        return lambda plans: np.maximum(model.predict(plans)[0], FASTEST)

    def _models(self, study: Study, finished: list[FrozenTrial]) -> tuple[list[Response], dict[str, Response]]:
        """A model of each objective, in order, and of each bounded quantity.

        A plan that breaks a bound on its costs was not recovered: these count, its quality does not. One that breaks a
        bound on its quality was, and where it did so tells where not to look again.
        """
        recovered = [trial for trial in finished if _was_recovered(trial)]
        closed = exact(self._space.shape, tokens=self._definition.latency.tokens)
        mass = self._mass(study)
        recoveries = Recoveries(self._grid, finished) if self._definition.recovery.inherits else None

        def model(values: dict[int, float], *, is_quality: bool, name: str) -> Response:
            own = [trial for trial in (recovered if is_quality else finished) if trial.number in values]
            plans = self._grid.plans([trial.params for trial in own])
            seen = np.array([values[trial.number] for trial in own])
            if name in closed:
                known = Known(self._space, self._grid, closed[name])
                # A space of other dimensions than heads and neurons may change sizes that the plan does not tell.
                if np.allclose(known.predict(plans)[0], seen, rtol=1e-6):
                    return known
            if not is_quality:
                return Cost(self._grid).fit(plans, seen)
            at_most = np.array([name in METRICS and tells_nothing(trial) for trial in own])
            return Quality(self._grid, mass, recoveries).fit(plans, seen, at_most)

        objectives = [
            model(
                {trial.number: trial.values[number] for trial in finished},
                is_quality=direction == StudyDirection.MAXIMIZE,
                name=name,
            )
            for number, (name, direction) in enumerate(
                zip(self._definition.objective_names, study.directions, strict=True)
            )
        ]
        bounds = {}
        for name in self._definition.bounds:
            quantities = [(t.number, t.user_attrs.get(attributes.QUANTITIES, {}).get(name)) for t in finished]
            values = {number: float(quantity["value"]) for number, quantity in quantities if quantity is not None}
            if len(values) >= FEWEST:
                bounds[name] = model(values, is_quality=name in METRICS, name=name)
        return objectives, bounds


@dataclass(frozen=True)
class Scale:
    """Maps predictions to gains: 0 at a reference that nobody would take, 1 at the ideal.

    Attributes:
        reference: Value of gain 0, by objective.
        ideal: Value of gain 1.
        axis: The objective whose uncertainty counts: the first that is maximised.
    """

    reference: Values
    ideal: Values
    axis: int

    @classmethod
    def of(cls, study: Study, definition: Definition, objectives: Sequence[Response], dense: Plans) -> "Scale":
        """Chance level and 1 for metrics; the largest plan's cost and 0; for another quality half and twice its."""
        reference, ideal = [], []
        for name, direction, model in zip(definition.objective_names, study.directions, objectives, strict=True):
            largest = float(model.predict(dense)[0][0])
            if name in METRICS:
                reference.append(1 / len(definition.task.labels) if name == "accuracy" else 0.0)
                ideal.append(1.0)
            elif direction == StudyDirection.MINIMIZE:
                reference.append(largest)
                ideal.append(0.0)
            else:
                reference.append(largest - abs(largest) / 2)
                ideal.append(largest + abs(largest))
        maximised = [number for number, one in enumerate(study.directions) if one == StudyDirection.MAXIMIZE]
        return cls(np.array(reference), np.array(ideal), maximised[0] if maximised else 0)

    def gains(self, objectives: Sequence[Response], plans: Plans) -> tuple[Values, Values]:
        """Means (plans, objectives), and the standard deviation of the gain of `axis` (plans,)."""
        width = self.ideal - self.reference
        width = np.where(width == 0, 1.0, width)
        predicted = [model.predict(plans) for model in objectives]
        means = (np.stack([mean for mean, _ in predicted], axis=1) - self.reference) / width
        return means, predicted[self.axis][1] / abs(float(width[self.axis]))


def expected_gain(means: Values, spread: Values, front: Values, box: Values, *, axis: int) -> Values:
    """Expected gain in hypervolume of each plan, were it tried: over the uncertainty of one objective.

    For a point of the box that leaves the objective `axis` open, a plan that is at least as good in all others gains
    E[max(0, Y - b)], Y normal, with b the best that the front reaches there (0 where nothing does). The expected gain
    is the mean over the points.

    Args:
        means: Predicted gains (plans, objectives).
        spread: Standard deviation of the gain of `axis` (plans,).
        front: Gains that are there already (points, objectives).
        box: Points of the unit box (points, objectives); the column of `axis` is not read.
        axis: Column of the objective that is uncertain.

    Returns:
        Shares of the unit box (plans,), at least 0.

    Example:
        >>> box = np.linspace(0.005, 0.995, 100)[:, None].repeat(2, axis=1)
        >>> expected_gain(np.array([[0.5, 0.5]]), np.zeros(1), np.array([[0.3, 0.5]]), box, axis=0).round(3).tolist()
        [0.1]
    """
    others = [column for column in range(means.shape[1]) if column != axis]
    points = box[:, others]
    reached = (front[:, None, others] >= points[None]).all(axis=2)
    best = np.where(reached, np.maximum(front[:, axis], 0.0)[:, None], 0.0).max(axis=0, initial=0.0)
    covers = (means[:, None, others] >= points[None]).all(axis=2)
    sigma = np.maximum(spread, 1e-9)[:, None]
    z = (means[:, axis][:, None] - best[None]) / sigma
    improvement = sigma * (z * ndtr(z) + np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))
    return np.asarray((covers * improvement).mean(axis=1))


def _was_recovered(trial: FrozenTrial) -> bool:
    """Whether a finished trial broke no bound that is known before the recovery."""
    return all(excess <= 0 or name in METRICS for name, excess in violations_of(trial).items())


def _keeps(model: Response, bound: Bound, plans: Plans) -> Values:
    """Probability (plans,) that plans keep a bound; 0 or 1 where the quantity is known."""
    mean, spread = model.predict(plans)
    sure = isinstance(model, Known)
    # A regressed cost comes without a spread: a hundredth stands for what the regression and the clock do not know.
    sigma = np.maximum(spread, 0.01 * np.abs(mean) + 1e-12)
    share = np.ones(len(plans))
    if bound.at_most is not None:
        share *= mean <= bound.at_most if sure else ndtr((bound.at_most - mean) / sigma)
    if bound.at_least is not None:
        share *= mean >= bound.at_least if sure else ndtr((mean - bound.at_least) / sigma)
    return share
