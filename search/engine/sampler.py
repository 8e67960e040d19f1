"""Who proposes the next plan: Optuna's samplers and ours by name, behind one wrapper that closes their traps.

- Parameters are ratios on a grid; the samplers draw real numbers. The wrapper snaps them, so equal plans have equal
  parameters, and draws again when a plan is already in the study.
- NSGA-II gives no generation to a trial whose parameters were all queued, so it would never become a parent. The
  wrapper gives every trial its generation.
- NSGA-II's own first generation is random, and its crossover and mutation know nothing of sizes. Here the ladder is
  the first generation, and offspring are plans near their parents (`search.engine.offspring`).
- A sampler with the same seed repeats its samples when a search is resumed, and two workers with equal seeds sample the
  same. Here every trial has its own seed, from the study's seed and the trial's number: an interrupted search goes on
  as if it had not been interrupted, and no two workers draw the same.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.samplers._ga import BaseGASampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.definition import Definition, EngineSettings
from search.engine import attributes
from search.engine.offspring import Grid, offspring
from search.engine.response import curves
from search.engine.retry import this_worker
from search.space import Space

REDRAWS = 20
"""How often a plan that is in the study already is drawn again."""


def population_size(settings: EngineSettings) -> int:
    """Plans per generation: the definition's, or a fifth of the trials, at least 8 and at most 50.

    A population as large as the number of trials would make NSGA-II a random search.

    Example:
        >>> [population_size(EngineSettings(trials=n)) for n in (24, 100, 1000)]
        [8, 20, 50]
    """
    return settings.population or min(max(settings.trials // 5, 8), 50)


def trial_seed(seed: int, trial: int) -> int:
    """The seed of one trial's plan.

    Args:
        seed: The study's seed.
        trial: Number of the trial.
    """
    return int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])


class NearParents:
    """How NSGA-II and NSGA-III make a child: a plan near the population, its size first.

    Args:
        space: The study's dimensions.
        seed: Of one trial.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._grid = Grid.of(space)
        self._random = np.random.default_rng(seed)

    def __call__(
        self,
        study: Study,
        search_space: Mapping[str, BaseDistribution],
        parent_population: Sequence[FrozenTrial],
    ) -> dict[str, Any]:
        """Ratios of the child for all dimensions of `search_space`."""
        parents = self._grid.plans([parent.params for parent in parent_population])
        mass = curves(self._grid, study.user_attrs.get(attributes.MASS, {}))
        child = self._grid.params(offspring(self._grid, parents, self._random, mass=mass))
        return {name: child[name] for name in search_space}


@dataclass(frozen=True)
class Setting:
    """What a sampler is made for.

    Attributes:
        definition: The study's definition.
        space: Its dimensions.
        population: Plans per generation.
        seed: Of one trial.
    """

    definition: Definition
    space: Space
    population: int
    seed: int


def _nsga2(given: Setting) -> BaseSampler:
    children = NearParents(given.space, given.seed)
    return NSGAIISampler(population_size=given.population, seed=given.seed, child_generation_strategy=children)


def _nsga3(given: Setting) -> BaseSampler:
    children = NearParents(given.space, given.seed)
    return NSGAIIISampler(population_size=given.population, seed=given.seed, child_generation_strategy=children)


def _surrogate(given: Setting) -> BaseSampler:
    from search.engine.surrogate import SurrogateSampler

    return SurrogateSampler(given.definition, given.space, seed=given.seed)


def _tpe(given: Setting) -> BaseSampler:
    return TPESampler(n_startup_trials=given.population, multivariate=True, seed=given.seed)


def _random(given: Setting) -> BaseSampler:
    return RandomSampler(seed=given.seed)


BY_NAME: Mapping[str, Callable[[Setting], BaseSampler]] = {
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "surrogate": _surrogate,
    "tpe": _tpe,
    "random": _random,
}
"""Samplers by name."""


class PlanSampler(BaseSampler):
    """An Optuna sampler whose samples are plans.

    Args:
        make_inner: From a seed to the sampler that draws.
        space: The study's dimensions.
        seed: The study's seed.
    """

    def __init__(self, make_inner: Callable[[int], BaseSampler], space: Space, *, seed: int) -> None:
        self._make_inner = make_inner
        self._dimensions = {dimension.name: dimension for dimension in space.dimensions}
        self._seed = seed
        self._finished: dict[int, tuple[int, ...]] = {}
        self._begin(trial=0)

    def _begin(self, *, trial: int) -> None:
        seed = trial_seed(self._seed, trial)
        self._random = np.random.default_rng(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.inner = self._make_inner(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Take the trial's seed, note who runs it, and give it its generation, whether or not it was queued."""
        self._begin(trial=trial.number)
        study._storage.set_trial_user_attr(trial._trial_id, attributes.WORKER, this_worker())
        if isinstance(self.inner, BaseGASampler):
            # Said in the trial at hand too, or NSGA-II would count through the whole study once more when it samples.
            generation = self.inner.get_trial_generation(study, trial)
            trial.system_attrs[self.inner._get_generation_key()] = generation
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The dimensions that are sampled together: all that leave a choice, the same for every trial of a study."""
        if isinstance(self.inner, RandomSampler):
            return self.inner.infer_relative_search_space(study, trial)
        return {name: FloatDistribution(d.low, d.high) for name, d in self._dimensions.items() if d.choices > 1}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a plan on the grid that the study does not hold yet, if `REDRAWS` draws and steps find one."""
        seen = self._plans_in(study)
        sample: dict[str, Any] = {}
        for _ in range(REDRAWS):
            drawn = self.inner.sample_relative(study, trial, search_space) or self._first(study, search_space)
            if not drawn:
                return {}
            # A sampler may leave a ratio out of its draw, to be drawn alone.
            sample = {
                name: self._snap(name, drawn[name])
                if name in drawn
                else self.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }
            if self._key(sample) not in seen:
                return sample
        return self._step_aside(sample, seen)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one ratio on its grid."""
        return self._snap(param_name, self.inner.sample_independent(study, trial, param_name, param_distribution))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass the finished trial on."""
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Pass the wish for a fresh seed on."""
        self.inner.reseed_rng()

    def _first(self, study: Study, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """A child of the finished trials while NSGA-II's first generation, which has no parents, is not complete."""
        children = getattr(self.inner, "_child_generation_strategy", None)
        if not isinstance(children, NearParents):
            return {}
        names = self._dimensions.keys()
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        usable = [trial for trial in finished if names <= trial.params.keys()]
        feasible = [trial for trial in usable if all(value <= 0 for value in trial.constraints.values())]
        return children(study, search_space, feasible or usable) if usable else {}

    def _snap(self, name: str, value: Any) -> Any:
        dimension = self._dimensions.get(name)
        return value if dimension is None else dimension.snap(float(value))

    def _key(self, params: Mapping[str, Any]) -> tuple[int, ...]:
        """What plans with equal parameters share; a dimension without a choice is in a trial, and not in a sample."""
        given = {name: params.get(name, d.low if d.choices == 1 else -1) for name, d in self._dimensions.items()}
        return tuple(round(ratio * self._dimensions[name].units) for name, ratio in given.items())

    def _plans_in(self, study: Study) -> set[tuple[int, ...]]:
        """The plans of all trials; those of finished ones are remembered, so that a large study costs no more."""
        plans = set()
        for trial in study.get_trials(deepcopy=False):
            key = self._finished.get(trial._trial_id)
            if key is None:
                key = self._key(trial.params or trial.system_attrs.get("fixed_params", {}))
                if trial.state.is_finished():
                    self._finished[trial._trial_id] = key
            plans.add(key)
        return plans

    def _step_aside(self, sample: dict[str, Any], seen: set[tuple[int, ...]]) -> dict[str, Any]:
        """Move random dimensions by one unit until the plan is new; a converged population repeats itself otherwise."""
        movable = [d for d in self._dimensions.values() if d.choices > 1 and d.name in sample]
        for _ in range(REDRAWS if movable else 0):
            dimension = movable[self._random.integers(len(movable))]
            step = self._random.choice((-1, 1)) / dimension.units
            sample[dimension.name] = dimension.snap(sample[dimension.name] + step)
            if self._key(sample) not in seen:
                break
        return sample


def make(definition: Definition, space: Space, *, population: int) -> PlanSampler:
    """The sampler of a study; the same for all its workers.

    Args:
        definition: The study's definition.
        space: The study's dimensions.
        population: Plans per generation, as fixed when the study was created.
    """

    def make_inner(seed: int) -> BaseSampler:
        return BY_NAME[definition.engine.sampler](Setting(definition, space, population, seed))

    return PlanSampler(make_inner, space, seed=definition.engine.seed)
