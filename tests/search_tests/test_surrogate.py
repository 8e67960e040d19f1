"""The model of the finished trials, and the plans that it chooses."""

import time
from collections.abc import Callable
from typing import Any

import moocore
import numpy as np
import optuna
import pytest
from engine_cases import DEFINITION, OBJECTIVES, SHAPE, evaluation_of
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.definition import Bound, Definition, SpaceSettings
from search.engine import attributes, study, surrogate
from search.engine.ancestry import tells_nothing
from search.engine.constraints import set_constraints
from search.engine.offspring import Grid
from search.engine.response import Cost, Quality, curves
from search.engine.sampler import make
from search.engine.surrogate import Known, SurrogateSampler, expected_gain
from search.plan import Shape, encoder_macs, total_parameters
from search.space import Space

SPACE = Space.of(DEFINITION.space, SHAPE)
BERT = Shape(6, 12, 32, 384, 1536, 30522, 512, 2, 2)
WIDE = Space.of(SpaceSettings(), BERT)
GRID = Grid.of(WIDE)


def some_plans(count: int, seed: int) -> np.ndarray:
    """Plans of all sizes."""
    rng = np.random.default_rng(seed)
    ratios = np.clip(rng.uniform(0.05, 1, (count, 1)) + rng.normal(0, 0.15, (count, len(GRID.units))), 0, 1)
    return np.rint(ratios * GRID.units).astype(np.int64)


def some_mass() -> dict[str, list[float]]:
    rng = np.random.default_rng(3)
    weights = rng.uniform(0.2, 1, len(WIDE.dimensions))
    weights /= np.array([weights[number % 2 :: 2].sum() for number in range(len(weights))])
    return {
        d.name: (w * np.sqrt(np.arange(d.units + 1) / d.units)).tolist()
        for d, w in zip(WIDE.dimensions, weights, strict=True)
    }


def quality(plans: np.ndarray, extra: int | None = None) -> np.ndarray:
    """Accuracy that follows the importance mass; one dimension may matter more than the mass says."""
    kept = np.stack([curve[units] for curve, units in zip(curves(GRID, some_mass()), plans.T, strict=True)], axis=1)
    lost = 1 - kept.sum(axis=1) / 2 + (0 if extra is None else 0.5 * (kept[:, extra].max() - kept[:, extra]))
    return 0.86 - 0.2 * lost**1.5


@pytest.mark.parametrize("extra", [None, 3])
def test_quality_is_predicted_more_exactly_than_it_is_measured(extra: int | None) -> None:
    plans, fresh = some_plans(60, 0), some_plans(300, 1)
    noise = np.random.default_rng(2).normal(0, 0.007, 60)
    model = Quality(GRID, curves(GRID, some_mass())).fit(plans, quality(plans, extra) + noise)
    mean, spread = model.predict(fresh)
    error = mean - quality(fresh, extra)
    assert np.sqrt((error**2).mean()) < 0.005
    assert (np.abs(error) < 2 * spread).mean() > 0.8
    assert spread.max() < 0.03


def test_what_further_recoveries_bring_is_learned() -> None:
    plans, fresh = some_plans(80, 0), some_plans(300, 1)
    rng = np.random.default_rng(4)
    counts = {tuple(plan): float(count) for plan, count in zip(plans.tolist(), rng.integers(1, 9, 80), strict=True)}

    def recoveries(asked: np.ndarray, other: float = 1.0) -> np.ndarray:
        return np.array([counts.get(tuple(plan), other) for plan in asked.tolist()])

    seen = quality(plans) - 0.04 * recoveries(plans) ** -0.5 + rng.normal(0, 0.003, 80)
    errors = []
    for other in (1.0, 8.0):
        model = Quality(GRID, curves(GRID, some_mass()), lambda asked, other=other: recoveries(asked, other))
        errors.append(model.fit(plans, seen).predict(fresh)[0] - (quality(fresh) - 0.04 * other**-0.5))
    assert max(float(np.sqrt((error**2).mean())) for error in errors) < 0.005
    blind = Quality(GRID, curves(GRID, some_mass())).fit(plans, seen).predict(fresh)[0] - quality(fresh)
    assert float(np.sqrt(((blind + 0.04) ** 2).mean())) > 0.012


def test_a_score_that_only_bounds_the_quality_does_not_bend_the_model() -> None:
    """What tells nothing apart scores the same however small it is: the model goes on falling below."""
    plans, fresh = some_plans(80, 0), some_plans(300, 1)
    floor = float(np.median(quality(plans)))
    seen = np.maximum(quality(plans), floor)
    model = Quality(GRID, curves(GRID, some_mass()))
    above = quality(fresh) > floor
    errors = {}
    for bounded in (True, False):
        mean, spread = model.fit(plans, seen, (seen <= floor) if bounded else None).predict(fresh)
        errors[bounded] = float(np.sqrt(((mean - quality(fresh))[above] ** 2).mean()))
        sure = (mean + spread < floor)[~above].mean()
        assert sure > 0.8 if bounded else sure < 0.3
    assert errors[True] < errors[False]


def test_bounds_are_nothing_where_there_are_none_and_all_where_there_is_nothing_else() -> None:
    plans = some_plans(30, 0)
    model = Quality(GRID, curves(GRID, some_mass()))
    expected = model.fit(plans, quality(plans)).predict(plans)[0]
    none = model.fit(plans, quality(plans), np.zeros(30, dtype=bool)).predict(plans)[0]
    assert none.tolist() == expected.tolist()
    alone = model.fit(plans, np.full(30, 0.5), np.ones(30, dtype=bool)).predict(some_plans(50, 1))
    assert np.isfinite(alone[0]).all()
    assert np.isfinite(alone[1]).all()


def test_quality_without_a_stored_importance_is_predicted_too() -> None:
    plans, fresh = some_plans(80, 0), some_plans(300, 1)
    mean, _spread = Quality(GRID, curves(GRID, {})).fit(plans, quality(plans)).predict(fresh)
    assert np.corrcoef(mean, quality(fresh))[0, 1] > 0.97


def test_spread_grows_away_from_the_trials() -> None:
    plans = some_plans(40, 0)
    model = Quality(GRID, curves(GRID, some_mass())).fit(plans, quality(plans))
    lonely = np.zeros((1, len(GRID.units)), dtype=np.int64)
    assert model.predict(lonely)[1][0] > 3 * np.median(model.predict(plans)[1])


def test_macs_are_learned_from_a_few_plans() -> None:
    def macs(plans: np.ndarray) -> np.ndarray:
        return np.array([encoder_macs(WIDE.plan(GRID.params(plan)), BERT, tokens=32) / 1e6 for plan in plans])

    plans, fresh = some_plans(12, 0), some_plans(100, 1)
    mean, _ = Cost(GRID).fit(plans, macs(plans)).predict(fresh)
    assert np.abs(mean / macs(fresh) - 1).max() < 0.02


@pytest.mark.parametrize("objectives", [2, 3])
def test_expected_gain_agrees_with_sampling_hypervolumes(objectives: int) -> None:
    rng = np.random.default_rng(0)
    front = moocore.filter_dominated(rng.uniform(0.1, 0.7, (8, objectives)), maximise=True)
    means, spread = rng.uniform(0.2, 0.8, (12, objectives)), rng.uniform(0.01, 0.2, 12)
    found = expected_gain(means, spread, front, rng.random((40_000, objectives)), axis=0)
    before = moocore.hypervolume(front, ref=0.0, maximise=True)
    for mean, sigma, expected in zip(means, spread, found, strict=True):
        slow = []
        for value in rng.normal(mean[0], sigma, 2000):
            point = np.concatenate([[max(value, 0.0)], mean[1:]])
            slow.append(moocore.hypervolume(np.vstack([front, point]), ref=0.0, maximise=True) - before)
        assert expected == pytest.approx(np.mean(slow), abs=0.004)


def begun(**engine: Any) -> tuple[Study, Definition]:
    """A study in memory with a ladder of four finished trials and the dense one."""
    constraints = engine.pop("constraints", {})
    settings = DEFINITION.engine.model_copy(update={"sampler": "surrogate", **engine})
    definition = DEFINITION.model_copy(update={"engine": settings, "constraints": constraints})
    opened = study.create(
        optuna.storages.InMemoryStorage(),
        definition,
        shape=SHAPE,
        objectives=OBJECTIVES,
        energy_source="model",
        content={},
        machine="none",
        ladder=[SPACE.uniform(size) for size in (0.75, 0.5, 0.25)]
        + [{d.name: d.snap(0.5 if number % 2 else 1.0) for number, d in enumerate(SPACE.dimensions)}]
        + [{d.name: d.snap(1.0 if number % 2 else 0.5) for number, d in enumerate(SPACE.dimensions)}],
    )
    opened.sampler = make(definition, SPACE, population=8)
    return opened, definition


def ask(opened: Study) -> tuple[optuna.Trial, dict[str, float]]:
    trial = opened.ask()
    return trial, {d.name: trial.suggest_float(d.name, d.low, d.high) for d in SPACE.dimensions}


def run(
    opened: Study,
    count: int,
    *,
    at_most: float | None = None,
    spoilt: float | None = None,
    seconds: Callable[[float], float] | None = None,
    cliff: float | None = None,
    at_least: float | None = None,
) -> list[dict[str, Any]]:
    """So many trials; where a bound is given, those over it are infeasible, with the accuracy `spoilt`.

    `seconds` says from the encoder's share how long one takes; below the share `cliff` all have the accuracy 0.5.
    `at_least` bounds the accuracy.
    """
    proposed = []
    for _ in range(count):
        trial, ratios = ask(opened)
        evaluation = evaluation_of(SPACE.plan(ratios), at_most=at_most)
        values = [evaluation.quantities[o.name]["value"] for o in OBJECTIVES]
        if evaluation.violations.get("parameters", 0) > 0 and spoilt is not None:
            values[0] = spoilt
        share = evaluation.quantities["encoder_share"]["value"]
        if cliff is not None:
            values[0] = 0.5 + 0.5 * max(0.0, share - cliff)
        seen = {**evaluation.quantities, "accuracy": {**evaluation.quantities["accuracy"], "value": values[0]}}
        trial.set_user_attr(attributes.QUANTITIES, seen)
        if seconds is not None:
            trial.set_user_attr(attributes.SECONDS, {"recover": seconds(share)})
        under = {} if at_least is None else {"accuracy": at_least - values[0]}
        set_constraints(trial, {**evaluation.violations, **under})
        opened.tell(trial, values)
        if attributes.ROLE not in trial.user_attrs:
            proposed.append(ratios)
    return proposed


def test_a_proposal_is_new_and_the_same_again() -> None:
    plans = []
    for _ in range(2):
        opened, _definition = begun(seed=5)
        plans.append(run(opened, 12))
    assert plans[0] == plans[1]
    everything = [tuple(trial.params.values()) for trial in opened.trials]
    assert len(set(everything)) == len(everything)
    other, _definition = begun(seed=6)
    assert run(other, 12) != plans[0]


def test_running_trials_count_and_are_not_proposed_again() -> None:
    opened, _definition = begun()
    run(opened, 12)
    asked = [ask(opened)[1] for _ in range(4)]  # nobody tells what came out
    assert len({tuple(ratios.values()) for ratios in asked}) == 4
    assert len(opened.get_trials(states=(TrialState.RUNNING,))) == 4


def test_a_running_trial_is_believed_to_bring_what_was_expected_of_it() -> None:
    """Two proposals may be the same by chance; of three, one shows what is believed."""
    following: dict[TrialState, list[dict[str, float]]] = {TrialState.RUNNING: [], TrialState.FAIL: []}
    for state, proposals in following.items():
        for tried in (12, 14, 16):
            opened, _definition = begun()
            run(opened, tried)
            trial, _first = ask(opened)
            if state == TrialState.FAIL:
                opened.tell(trial, state=state)
            proposals.append(ask(opened)[1])
    # A trial that failed brings nothing; all else is the same.
    assert following[TrialState.RUNNING] != following[TrialState.FAIL]


def test_proposals_keep_a_bound_that_follows_from_the_plan() -> None:
    bound = total_parameters(SPACE.plan(SPACE.uniform(0.6)), SHAPE)
    opened, _definition = begun(constraints={"parameters": Bound(at_most=bound)})
    proposed = run(opened, 32, at_most=bound)
    for ratios in proposed[-12:]:  # the first ones are drawn without a model
        assert total_parameters(SPACE.plan(ratios), SHAPE) <= bound


def test_the_accuracy_of_an_infeasible_trial_is_not_learned_from() -> None:
    bound = total_parameters(SPACE.plan(SPACE.uniform(0.7)), SHAPE)
    plans = []
    for accuracy in (0.0, 1.0):
        opened, _definition = begun(constraints={"parameters": Bound(at_most=bound)})
        plans.append(run(opened, 13, at_most=bound, spoilt=accuracy))
    assert plans[0] == plans[1]


def test_where_the_quality_breaks_its_bound_is_not_searched_on() -> None:
    """Below three tenths of the encoder no plan is good enough: a few trials show it, however cheap they are."""
    opened, _definition = begun(constraints={"accuracy": Bound(at_least=0.65)})
    run(opened, 36, cliff=0.0, at_least=0.65, seconds=lambda kept: 1 + 20 * kept)
    missed = [trial.constraints["accuracy"] > 0 for trial in opened.trials[8:]]
    assert sum(missed) <= 8, missed
    assert sum(missed[-10:]) <= 2, missed


def test_what_takes_longer_has_to_promise_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "TELLING", 0)  # rungs alone are few in so small a space

    def shares(seconds: Callable[[float], float] | None) -> list[float]:
        """Encoder shares of proposals, where a trial takes so many seconds by its share."""
        kept = []
        for seed in range(3):
            opened, _definition = begun(seed=seed)
            run(opened, 8, seconds=seconds)
            for _ in range(3):
                trial, ratios = ask(opened)
                kept.append(evaluation_of(SPACE.plan(ratios)).quantities["encoder_share"]["value"])
                opened.tell(trial, state=TrialState.FAIL)
        return kept

    alike = shares(None)
    assert shares(lambda _share: 7.0) == alike
    assert np.mean(shares(lambda share: 1 + 50 * share)) < np.mean(alike) - 0.02
    assert np.mean(shares(lambda share: 51 - 50 * share)) > np.mean(alike) + 0.02


def test_what_tells_nothing_apart_is_not_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a third of the encoder all are at chance: that region is left alone, however cheap its trials are."""

    def share(trial: FrozenTrial) -> float:
        return float(trial.user_attrs[attributes.QUANTITIES]["encoder_share"]["value"])

    blind = {}
    for known in (True, False):
        monkeypatch.setattr(surrogate, "tells_nothing", lambda trial, known=known: known and share(trial) <= 0.33)
        blind[known] = 0
        for seed in range(2):
            opened, _definition = begun(seed=seed)
            run(opened, 30, cliff=0.33, seconds=lambda kept: 1 + 20 * kept)
            blind[known] += sum(share(trial) <= 0.33 for trial in opened.trials[8:])
    assert blind[True] < 0.5 * blind[False], blind


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"accuracy": 0.704, "matthews": 0.0}, True),
        ({"accuracy": 0.3, "matthews": -0.1}, True),
        ({"accuracy": 0.71, "matthews": 0.02}, False),
        ({"pearson": 0.0, "spearman": 0.01}, True),
        ({"pearson": 0.2}, False),
        ({"accuracy": 0.5}, False),  # no correlation is recorded
    ],
)
def test_what_tells_nothing_apart_is_known_by_its_correlation(measured: dict[str, float], *, expected: bool) -> None:
    opened, _definition = begun()
    run(opened, 1)
    trial = opened.trials[0]
    trial.set_user_attr(attributes.QUANTITIES, {name: {"value": value} for name, value in measured.items()})
    assert tells_nothing(trial) is expected


def test_recoveries_count_where_plans_are_cut_from_the_nearest_trial() -> None:
    """The model knows of recoveries where plans are cut from the nearest trial, and nowhere else."""
    asked = []
    for start in ("dense", "supernet", "nearest", "supernet-nearest"):
        opened, definition = begun()
        run(opened, 12)
        own = SurrogateSampler(
            definition.model_copy(update={"recovery": definition.recovery.model_copy(update={"start": start})}),
            SPACE,
            seed=0,
        )
        models, _bounds = own._models(opened, opened.trials)
        assert isinstance(models[0], Quality)
        asked.append(models[0]._smooth.shape[1])
    assert [columns - asked[0] for columns in asked] == [0, 0, 1, 1]


def test_failed_trials_are_passed_over() -> None:
    opened, _definition = begun()
    run(opened, 10)
    trial, failed = ask(opened)
    opened.tell(trial, state=TrialState.FAIL)
    assert failed not in run(opened, 5)


def test_the_surrogate_finds_more_than_chance_with_as_many_trials() -> None:
    def volume(sampler: str, seed: int) -> float:
        opened, _definition = begun(sampler=sampler, seed=seed)
        run(opened, 18)
        dense = opened.trials[0].values
        gains = np.array([[(t.values[0] - 0.5) * 2, *(1 - np.divide(t.values, dense)[1:])] for t in opened.trials])
        return float(moocore.hypervolume(gains[(gains > 0).all(axis=1)], ref=0.0, maximise=True))

    better = [volume("surrogate", seed) / volume("random", seed) - 1 for seed in range(2)]
    assert min(better) > 0.02


def test_a_size_that_the_plan_does_not_tell_is_learned() -> None:
    opened, definition = begun()
    run(opened, 12)
    own = SurrogateSampler(definition, SPACE, seed=0)
    known, _bounds = own._models(opened, opened.trials)
    assert [type(model) for model in known] == [Quality, Known, Cost, Cost]
    shrunk = opened.trials
    for trial in shrunk:  # as if another dimension had halved the embedding
        trial.values = [trial.values[0], trial.values[1] - 1500, *trial.values[2:]]
    learned, _bounds = own._models(opened, shrunk)
    assert [type(model) for model in learned] == [Quality, Cost, Cost, Cost]
    plans = Grid.of(SPACE).plans([trial.params for trial in shrunk])
    seen = [trial.values[1] for trial in shrunk]
    assert learned[1].predict(plans)[0] == pytest.approx(seen, rel=1e-2)


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def test_a_proposal_takes_well_under_a_second_after_300_trials() -> None:
    definition = DEFINITION.model_copy(update={"space": SpaceSettings()})
    opened = study.create(
        optuna.storages.InMemoryStorage(),
        definition,
        shape=BERT,
        objectives=OBJECTIVES,
        energy_source="model",
        content={},
        machine="none",
        ladder=[],
        mass=some_mass(),
    )
    plans = some_plans(300, 0)
    for plan, accuracy in zip(plans, quality(plans), strict=True):
        params = GRID.params(plan)
        costs = [float(total_parameters(WIDE.plan(params), BERT)), float(plan.sum()), float(plan.sum() + 1)]
        distributions = {d.name: optuna.distributions.FloatDistribution(d.low, d.high) for d in WIDE.dimensions}
        opened.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, values=[float(accuracy), *costs])
        )
    settings = definition.engine.model_copy(update={"sampler": "surrogate"})
    opened.sampler = make(definition.model_copy(update={"engine": settings}), WIDE, population=50)
    opened.ask()  # the dense model, which was queued
    assert cpu_seconds(opened.ask) < 1.0
