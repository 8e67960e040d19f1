"""Plans near known ones: sizes first, deviations second."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_cases import SHAPE
from hypothesis import given, settings
from hypothesis import strategies as some

from search.bert.importance import Scores
from search.bert.ladder import kept_mass, tilted
from search.definition import LayerRanges, Range, SpaceSettings
from search.engine import offspring as module
from search.engine.offspring import HEADS, NEURONS, OTHER, Grid, offspring, varied
from search.engine.response import curves
from search.plan import Plan, Shape, encoder_parameters
from search.space import Dimension, Space

BERT = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
SPACE = Space.of(SpaceSettings(), BERT)
GRID = Grid.of(SPACE)
RUNGS = GRID.plans([SPACE.uniform(size) for size in (1.0, 0.75, 0.5, 0.25, 0.1)])


def drawn(count: int, parents: np.ndarray = RUNGS, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([offspring(GRID, parents, rng, mass=curves(GRID, {}), rungs=0.0) for _ in range(count)])


def test_sizes_are_the_shares_of_what_a_layer_can_lose() -> None:
    least = encoder_parameters(Plan((0,) * 12, (0,) * 12), BERT)
    dense = encoder_parameters(Plan.dense(BERT), BERT)
    for plan, size in zip(RUNGS, GRID.sizes(RUNGS), strict=True):
        count = encoder_parameters(SPACE.plan(GRID.params(plan)), BERT)
        assert size == pytest.approx((count - least) / (dense - least))


def test_ratios_become_units_and_ratios_again() -> None:
    for plan in drawn(20):
        assert GRID.plans([GRID.params(plan)])[0].tolist() == plan.tolist()
        for dimension in SPACE.dimensions:
            ratio = GRID.params(plan)[dimension.name]
            assert ratio == dimension.snap(ratio)


def test_all_sizes_are_drawn_where_independent_ratios_crowd_in_the_middle() -> None:
    sizes = GRID.sizes(drawn(400))
    independent = GRID.sizes(np.random.default_rng(0).integers(GRID.fewest, GRID.most + 1, (400, len(GRID.units))))
    assert (independent < 0.25).mean() < 0.01
    for low, high in ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)):
        assert 0.08 < ((sizes >= low) & (sizes < high)).mean() < 0.35


def test_layers_stay_near_those_of_the_parents() -> None:
    ratios = drawn(400) / GRID.units
    assert np.abs(ratios - ratios.mean(axis=1, keepdims=True)).mean() < 0.1  # independent ratios: 0.25


def test_parents_are_not_changed() -> None:
    before = RUNGS.copy()
    drawn(50)
    varied(GRID, RUNGS[2], np.random.default_rng(0))
    assert (before == RUNGS).all()


def test_one_parent_is_enough() -> None:
    sizes = GRID.sizes(drawn(200, parents=RUNGS[2:3]))
    assert sizes.min() < 0.2
    assert sizes.max() > 0.8


def test_a_varied_plan_keeps_its_size_about() -> None:
    rng = np.random.default_rng(0)
    plans = np.stack([varied(GRID, RUNGS[2], rng) for _ in range(200)])
    assert (plans != RUNGS[2]).any(axis=1).mean() > 0.9
    change = GRID.sizes(plans) - GRID.sizes(RUNGS[2:3])
    assert abs(change.mean()) < 0.005
    assert np.abs(change).max() < 0.05


@pytest.mark.parametrize("layers", range(1, 13))
def test_the_largest_plan_is_no_larger_than_the_largest_size(layers: int) -> None:
    """Sizes are sums of floating-point numbers; that of the dense model comes to a bit more than 1 in some shapes."""
    for heads, hidden, neurons in ((4, 64, 128), (12, 384, 1536), (12, 768, 3072), (16, 1024, 4096)):
        shape = Shape(layers, heads, hidden // heads, hidden, neurons, 100, 32, 2, 2)
        grid = Grid.of(Space.of(SpaceSettings(neuron_block=32), shape))
        parents = np.stack([grid.most, np.maximum(grid.most // 2, grid.fewest)])
        for seed in range(8):
            assert (offspring(grid, parents, np.random.default_rng(seed), mass=curves(grid, {})) <= grid.most).all()


@settings(max_examples=60, deadline=None)
@given(
    low=some.floats(0, 0.5),
    high=some.floats(0.5, 1),
    own=some.floats(0.25, 1),
    seed=some.integers(0, 2**32),
    count=some.integers(1, 5),
)
def test_bounds_are_kept(low: float, high: float, own: float, seed: int, count: int) -> None:
    ranges = {1: LayerRanges(heads=Range(low=0.25, high=own))}
    space = Space.of(SpaceSettings(heads=Range(low=low, high=high), neuron_block=16, layers=ranges), SHAPE)
    grid, rng = Grid.of(space), np.random.default_rng(seed)
    parents = rng.integers(grid.fewest, grid.most + 1, (count, len(grid.units)))
    for plan in (
        *(offspring(grid, parents, rng, mass=curves(grid, {}), rungs=share) for share in (0.0, 1.0)),
        varied(grid, parents[0], rng),
    ):
        assert (plan >= grid.fewest).all()
        assert (plan <= grid.most).all()


def rungs(count: int, mass: list[np.ndarray]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([offspring(GRID, RUNGS, rng, mass=mass, rungs=1.0) for _ in range(count)])


def test_a_rung_lies_between_the_uniform_plan_and_what_importance_keeps() -> None:
    """Layer 0 has most of the importance: whatever the tilt, it keeps the most. The ladder's plans are among them."""
    dice = torch.Generator().manual_seed(0)
    scores = Scores(torch.rand(12, 12, generator=dice).double(), torch.rand(12, 3072, generator=dice).double())
    scores.heads[0] += 10
    scores.neurons[0] += 10
    drawn_rungs = rungs(1000, curves(GRID, kept_mass(SPACE, scores)))
    share = drawn_rungs / GRID.units
    for kind in (HEADS, NEURONS):
        own = share[:, GRID.kinds == kind]
        assert (own[:, 0] >= own[:, 1:].max(axis=1) - 1 / 12).mean() > 0.95
    for size, tilt in ((0.25, 1.0), (0.5, 0.5), (0.5, 0.0)):
        rung = GRID.plans([tilted(SPACE, scores, size=size, tilt=tilt)])[0]
        nearest = np.abs((drawn_rungs - rung) / GRID.units).mean(axis=1).min()
        untilted = np.abs(size - rung / GRID.units).mean()
        assert nearest < 0.05, (size, tilt)
        assert tilt == 0.0 or nearest < 0.5 * untilted, (size, tilt)


def test_rungs_have_all_sizes_several_balances_and_a_head_in_the_last_layer() -> None:
    drawn_rungs = rungs(300, curves(GRID, {}))
    sizes = GRID.sizes(drawn_rungs)
    assert sizes.min() < 0.05
    assert sizes.max() > 0.9
    heads = (drawn_rungs / GRID.units)[:, GRID.kinds == HEADS].mean(axis=1)
    neurons = (drawn_rungs / GRID.units)[:, GRID.kinds == NEURONS].mean(axis=1)
    middle = (sizes > 0.2) & (sizes < 0.6)
    balance = np.log(heads[middle] / neurons[middle])
    assert 0.3 < balance.std() < 1.0
    assert abs(balance.mean()) < 0.3
    assert np.abs((heads + 2 * neurons) / 3 - sizes).max() < 0.03  # BERT's neurons have twice the heads' parameters
    names = [name for name in GRID.names if name.endswith("heads")]
    assert drawn_rungs[:, GRID.names.index(names[-1])].min() == 1
    assert drawn_rungs[:, GRID.names.index(names[0])].min() == 0


def test_half_of_the_offspring_are_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_rung", lambda grid, *_others: np.full(len(grid.units), -1))
    rng = np.random.default_rng(0)
    plans = np.stack([offspring(GRID, RUNGS, rng, mass=curves(GRID, {})) for _ in range(300)])
    assert 0.4 < (plans[:, 0] == -1).mean() < 0.6


def test_a_dimension_that_is_no_matter_of_size_is_taken_from_parents_and_stepped() -> None:
    rank = Dimension("embedding.rank", 0.25, 1.0, 8)
    space = replace(SPACE, dimensions=(*SPACE.dimensions, rank))
    grid, rng = Grid.of(space), np.random.default_rng(0)
    assert grid.kinds[-1] == OTHER
    parents = np.concatenate([RUNGS, np.full((len(RUNGS), 1), 4)], axis=1)
    for share in (0.0, 1.0):
        mass = curves(grid, {})
        ranks = [int(offspring(grid, parents, rng, mass=mass, rungs=share)[-1]) for _ in range(300)]
        assert 0.4 < np.mean(np.array(ranks) == 4) < 1.0, share
        assert set(ranks) >= {3, 4, 5}, share
