"""A made-up answer to 'how accurate is this plan', for comparing samplers in seconds: no model, no data.

    accuracy = 0.5 + (dense - 0.5) · exp(-h(L)) + quirk      h(L) = 0.245·L + 0.19·L⁴ + 1.5·L¹⁶
    L        = Σ over layers and kinds of  weight · share of the importance mass that was cut
    observed = accuracy + noise

What each constant is there for: h makes uniform plans lose what a prototype's did (2.0, 4.0 and 6.7 points at
50, 25 and 14 %); layers differ in weight, and the importance that the ladder tilts by knows the true weights only
roughly, so that half and full tilt gain about what they gained there; the quirk is a smooth function of the plan that
no sum over layers explains; the noise is that of one recovery and one selection split. Every seed is another model.

With `inherits`, a plan may be cut from the nearest finished trial (`recovery.start nearest`), and the accuracies of all
arms are those of a brief recovery: below the above by GAP · (share of the encoder cut) / √(recoveries of the weights).
GAP is such that a chain of recoveries gains about what one did on SST-2.

The figures say how samplers compare on such a landscape. They are not the figures of a BERT.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import moocore
import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler
from scipy.stats import t

from search.definition import Definition, EngineSettings, RecoverySettings, SpaceSettings
from search.engine import attributes
from search.engine import study as studies
from search.engine.ancestry import nearest
from search.engine.sampler import BY_NAME, PlanSampler, make, population_size
from search.plan import Plan, Shape, encoder_parameters
from search.records import ObjectiveInfo
from search.space import Space

SHAPE = Shape(
    layers=6, heads=12, head_size=32, hidden=384, neurons=1536, vocabulary=30522, positions=512, token_types=2, labels=2
)
"""The packaged checkpoint's."""
SPACE = Space.of(SpaceSettings(), SHAPE)
DENSE = 0.86
NOISE = 0.007
"""Standard deviation of one observation, a share: 0.7 points."""
QUIRK = 0.003
"""Standard deviation of what no sum over layers explains."""
SPREAD = 0.9
"""How differently layers weigh: standard deviation of log weights."""
GAP = 0.08
"""What a first recovery leaves for further ones to win where nearly all is cut, a share."""
ERROR = 0.8
"""How wrong the importance is about them: standard deviation of the log of its factor."""


@dataclass(frozen=True)
class Landscape:
    """One made-up model.

    Attributes:
        mass: Importance mass that a dimension keeps with 0, 1, ... units (dimension, units + 1), 0 to 1, truly.
        weight: Weight of each dimension, sum 1, truly.
        estimate: Weights as the importance method has them, sum 1 over each kind.
        waves: Frequencies of the quirk (waves, dimensions).
        phases: Phases of the quirk (waves,).
    """

    mass: tuple[NDArray[np.float64], ...]
    weight: NDArray[np.float64]
    estimate: NDArray[np.float64]
    waves: NDArray[np.float64]
    phases: NDArray[np.float64]

    @classmethod
    def of(cls, seed: int) -> "Landscape":
        """Draw one."""
        rng = np.random.default_rng([seed, 7])
        count = len(SPACE.dimensions)
        early = np.repeat(np.linspace(0.4, -0.4, SHAPE.layers), 2)  # early layers keep most
        weight = np.exp(early + rng.normal(0, SPREAD, count))
        estimate = weight * np.exp(rng.normal(0, ERROR, count))
        mass = []
        for dimension in SPACE.dimensions:
            steep = rng.uniform(1.5, 4.0)
            ratio = np.arange(dimension.units + 1) / dimension.units
            mass.append((1 - np.exp(-steep * ratio)) / (1 - np.exp(-steep)))
        waves, phases = rng.normal(0, 1.5, (30, count)), rng.uniform(0, 2 * np.pi, 30)
        return cls(tuple(mass), weight / weight.sum(), estimate / estimate.sum(), waves, phases)

    def accuracy(self, ratios: dict[str, float]) -> float:
        """The true accuracy of a plan, a share."""
        kept = np.array([ratios[d.name] for d in SPACE.dimensions])
        units = [round(ratio * d.units) for ratio, d in zip(kept, SPACE.dimensions, strict=True)]
        lost = sum(w * (1 - m[u]) for w, m, u in zip(self.weight, self.mass, units, strict=True))
        hazard = 0.245 * lost + 0.19 * lost**4 + 1.5 * lost**16
        quirk = QUIRK * np.sqrt(2 / len(self.phases)) * np.cos(self.waves @ kept + self.phases).sum()
        if sum(units[0::2]) == 0:
            return 0.5  # no attention at all: the classifier's token sees no other
        return float(0.5 + (DENSE - 0.5) * np.exp(-hazard) + quirk * min(1.0, 8 * lost))

    def kept(self) -> dict[str, list[float]]:
        """Importance mass kept by dimension, by the estimate (as `search.bert.ladder.kept_mass`)."""
        own = zip(SPACE.dimensions, self.estimate, self.mass, range(len(self.mass)), strict=True)
        return {d.name: (m * e / self.estimate[number % 2 :: 2].sum()).tolist() for d, e, m, number in own}

    def tilted(self, size: float, tilt: float) -> dict[str, float]:
        """One rung of the ladder, by the estimated importance (as `search.bert.ladder` does with scores)."""
        ratios = {}
        for kind in (0, 1):
            own = SPACE.dimensions[kind::2]
            gains = np.stack(
                [e * np.diff(m) for e, m in zip(self.estimate[kind::2], self.mass[kind::2], strict=True)]
            )  # (layers, units)
            best = np.argsort(-gains, axis=None, kind="stable")[: round(size * gains.size)]
            counts = np.bincount(best // gains.shape[1], minlength=len(own))
            for dimension, count in zip(own, counts, strict=True):
                ratios[dimension.name] = dimension.snap((1 - tilt) * size + tilt * count / dimension.units)
        return ratios


def encoder_share(ratios: dict[str, float]) -> float:
    """Share of the encoder's parameters that a plan keeps."""
    return encoder_parameters(SPACE.plan(ratios), SHAPE) / encoder_parameters(Plan.dense(SHAPE), SHAPE)


SIZES = tuple(round(float(size), 3) for size in np.geomspace(0.8, 0.02, 8))
"""Sizes of the ladder that every search starts from; it reaches down to where the hypervolume is."""
TILTS = (0.5, 1.0)
DEFINITION = Definition(
    name="synthetic",
    data="unused",
    objectives=("metric", "encoder_share"),
    engine=EngineSettings(ladder=SIZES, tilts=TILTS),
)
OBJECTIVES = (ObjectiveInfo("accuracy", "", "maximize"), ObjectiveInfo("encoder_share", "", "minimize"))


@dataclass
class Trials:
    """What one search has tried. Mutable: it grows.

    Attributes:
        gap: What a first recovery leaves to be won; 0 where recoveries are no matter.
    """

    landscape: Landscape
    noise: np.random.Generator
    true: list[float]
    seen: list[float]
    share: list[float]
    gap: float = 0.0

    def run(self, ratios: dict[str, float], recoveries: int = 1) -> tuple[float, float]:
        """Try a plan whose weights have been recovered so often; the observed accuracy and the encoder share."""
        self.share.append(encoder_share(ratios))
        missing = self.gap * (1 - self.share[-1]) * recoveries**-0.5
        self.true.append(max(0.5, self.landscape.accuracy(ratios) - missing))
        self.seen.append(self.true[-1] + float(self.noise.normal(0, NOISE)))
        return self.seen[-1], self.share[-1]

    def volumes(self) -> dict[str, float]:
        """Hypervolume as the search sees it, and of the true accuracies of the front that it chose."""
        seen = np.stack([(np.array(self.seen) - 0.5) * 2, 1 - np.array(self.share)], axis=1)
        true = np.stack([(np.array(self.true) - 0.5) * 2, 1 - np.array(self.share)], axis=1)
        chosen = moocore.is_nondominated(seen, maximise=True)
        return {"selection": volume(seen), "held_out": volume(true[chosen])}


def volume(gains: NDArray[np.float64]) -> float:
    """Hypervolume of gains, reference 0."""
    inside = np.minimum(gains[(gains > 0).all(axis=1)], 1.0)
    return float(moocore.hypervolume(inside, ref=0.0, maximise=True)) if len(inside) else 0.0


def ladder_alone(trials: Trials, count: int) -> None:
    """Sizes between the whole model and almost nothing, three tilts each, until `count` plans are tried."""
    tried = [SPACE.uniform(1.0)]
    sizes = np.geomspace(1, 0.015, max(2, (count - 1) // 3 + 1))[1:]
    wanted = [(size, tilt) for size in sizes for tilt in (0.0, 0.5, 1.0)]
    finer = np.random.default_rng(0)
    while len(tried) < count:
        size, tilt = wanted.pop(0) if wanted else (finer.uniform(0.015, 1), finer.choice((0.0, 0.5, 1.0)))
        ratios = trials.landscape.tilted(float(size), float(tilt))
        if ratios not in tried:
            tried.append(ratios)
    for ratios in tried:
        trials.run(ratios)


def search(
    trials: Trials, name: str, count: int, *, seed: int, from_ladder: bool = True, inherits: bool = False
) -> float:
    """A search through Optuna with one of the samplers; seconds per proposal that was not queued."""
    engine = {"sampler": name if name in BY_NAME else "nsga2", "seed": seed, "trials": count}
    recovery = RecoverySettings(start="nearest" if inherits else "dense")
    definition = DEFINITION.model_copy(
        update={"engine": DEFINITION.engine.model_copy(update=engine), "recovery": recovery}
    )
    landscape = trials.landscape
    opened = studies.create(
        optuna.storages.InMemoryStorage(),
        definition,
        shape=SHAPE,
        objectives=OBJECTIVES,
        energy_source="model",
        content={},
        machine="none",
        ladder=[landscape.tilted(size, tilt) for tilt in TILTS for size in SIZES] if from_ladder else [],
        mass=landscape.kept(),
    )
    opened.sampler = sampler_of(name, definition, seed)
    seconds, proposals = 0.0, 0
    recoveries: dict[int, int] = {}
    for _ in range(count):
        start = time.perf_counter()
        trial = opened.ask()
        ratios = {d.name: trial.suggest_float(d.name, d.low, d.high) for d in SPACE.dimensions}
        if "role" not in trial.user_attrs:  # not queued
            seconds, proposals = seconds + time.perf_counter() - start, proposals + 1
        plan = SPACE.plan(ratios)
        source = nearest(opened, plan, SHAPE) if inherits else None
        recoveries[trial.number] = 1 if source is None else 1 + recoveries[source.trial]
        told = {attributes.HEADS: plan.heads, attributes.NEURONS: plan.neurons, attributes.WEIGHTS: str(trial.number)}
        for name_, value in (told | ({} if source is None else {attributes.CUT_FROM: source.trial})).items():
            trial.set_user_attr(name_, value)
        opened.tell(trial, list(trials.run(ratios, recoveries[trial.number])))
    return seconds / max(proposals, 1)


def sampler_of(name: str, definition: Definition, seed: int) -> BaseSampler:
    """One of the engine's samplers, or a stock one of Optuna's behind the engine's wrapper."""
    population = population_size(definition.engine)
    stock = {
        "stock nsga2": lambda one: NSGAIISampler(population_size=population, seed=one),
        "gp": lambda one: GPSampler(n_startup_trials=population, deterministic_objective=False, seed=one),
    }
    if name in stock:
        return PlanSampler(stock[name], SPACE, seed=seed)
    return make(definition, SPACE, population=population)


ARMS: dict[str, Callable[[Trials, int, int], float | None]] = {
    "ladder alone": lambda trials, count, _seed: ladder_alone(trials, count),
    "stock nsga2, no ladder": lambda trials, count, seed: search(
        trials, "stock nsga2", count, seed=seed, from_ladder=False
    ),
    **{
        name: partial(lambda name, trials, count, seed: search(trials, name, count, seed=seed), name)
        for name in ("random", "stock nsga2", "nsga2", "tpe", "surrogate", "gp")
    },
}


INHERITING: dict[str, Callable[[Trials, int, int], float | None]] = {
    f"nearest, {name}": partial(
        lambda name, trials, count, seed: search(trials, name, count, seed=seed, inherits=True), name
    )
    for name in ("nsga2", "surrogate")
}
"""Searches that cut each plan from the nearest finished trial."""


def compare(
    *, seeds: int, trials: int, arms: Sequence[str], say: Callable[[str], None], gap: float = 0.0
) -> dict[str, Any]:
    """Mean hypervolumes of each arm, and its gain over the ladder alone with a 95 % interval over seeds (t)."""
    volumes: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    asks: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        for arm in arms:
            own = Trials(Landscape.of(seed), np.random.default_rng([seed, 2]), [], [], [], gap)
            asked = {**ARMS, **INHERITING}[arm](own, trials, seed)
            volumes[arm].append(own.volumes())
            asks[arm].append(asked or 0.0)
        say(f"synthetic seed {seed + 1} of {seeds}")
    result = {}
    ladder = np.array([one["held_out"] for one in volumes["ladder alone"]])
    for arm in arms:
        held = np.array([one["held_out"] for one in volumes[arm]])
        gains = held / ladder - 1
        half = float(t.ppf(0.975, seeds - 1) * gains.std(ddof=1) / np.sqrt(seeds)) if seeds > 1 else None
        middle = float(gains.mean())
        result[arm] = {
            "held_out": round(float(held.mean()), 4),
            "selection": round(float(np.mean([one["selection"] for one in volumes[arm]])), 4),
            "gain_over_ladder": round(float(gains.mean()), 4),
            "interval": None if half is None else [round(middle - half, 4), round(middle + half, 4)],
            "seconds_per_proposal": round(float(np.mean(asks[arm])), 4),
        }
    return result
