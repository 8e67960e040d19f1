"""The ladder that a search starts from."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.bert.importance import Scores
from search.bert.ladder import dropped, in_order, kept_mass, ladder, tilted
from search.definition import EngineSettings, LayerRanges, Range, SpaceSettings
from search.errors import UserError
from search.plan import Shape
from search.space import Space

SHAPE = Shape(
    layers=4, heads=4, head_size=8, hidden=32, neurons=64, vocabulary=100, positions=32, token_types=2, labels=2
)
SPACE = Space.of(SpaceSettings(neuron_block=16), SHAPE)


def falling(heads: list[float], neurons: list[float]) -> Scores:
    """Each layer's units fall from its weight to half of it."""
    return Scores(
        heads=torch.tensor(heads).double()[:, None] * torch.linspace(1, 0.5, 4).double(),
        neurons=torch.tensor(neurons).double()[:, None] * torch.linspace(1, 0.5, 64).double(),
    )


EARLY = falling([8.0, 4.0, 3.0, 1.0], [1.0, 1.0, 1.0, 1.0])


def test_sizes_come_from_both_ends_or_from_the_largest() -> None:
    sizes = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
    assert in_order(sizes, from_largest=False) == [0.125, 0.5, 0.75, 0.25, 0.375, 0.625, 0.875]
    assert in_order(sizes[::-1], from_largest=True) == list(sizes)
    assert in_order((0.5, 0.25, 0.5), from_largest=False) == [0.25, 0.5]
    assert in_order((), from_largest=False) == []


def test_without_tilt_every_layer_keeps_the_same() -> None:
    for size in (0.25, 0.5, 0.875):
        assert tilted(SPACE, EARLY, size=size, tilt=0.0) == SPACE.uniform(size)


def test_full_tilt_keeps_what_one_threshold_keeps() -> None:
    ratios = tilted(SPACE, EARLY, size=0.5, tilt=1.0)
    # 8 of 16 heads: all of layer 0 (8 to 4), three of layer 1 (4, 3.3, 2.7), one of layer 2 (3); and one of the last
    assert [ratios[f"layer.{layer}.heads"] for layer in range(4)] == [1.0, 0.75, 0.25, 0.25]
    assert [ratios[f"layer.{layer}.neurons"] for layer in range(4)] == [0.5] * 4


def test_half_a_tilt_lies_half_way() -> None:
    ratios = tilted(SPACE, EARLY, size=0.5, tilt=0.5)
    assert [ratios[f"layer.{layer}.heads"] for layer in range(4)] == [0.75, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.0])
def test_the_first_token_keeps_its_last_look_at_the_sentence(tilt: float) -> None:
    smallest = SPACE.plan(tilted(SPACE, EARLY, size=0.05, tilt=tilt))
    assert smallest.heads[-1] == 1
    assert sum(smallest.heads[:-1]) <= 1
    none = Space.of(SpaceSettings(neuron_block=16, layers={3: LayerRanges(heads=Range(low=0.0, high=0.0))}), SHAPE)
    assert none.plan(tilted(none, EARLY, size=0.05, tilt=tilt)).heads[-1] == 0


def test_neurons_compete_block_by_block_in_the_order_in_which_they_would_go() -> None:
    scores = falling([1.0] * 4, [1.0, 1.0, 1.0, 8.0])
    shuffled = Scores(heads=scores.heads, neurons=scores.neurons[:, torch.randperm(64)])
    ratios = tilted(SPACE, shuffled, size=0.25, tilt=1.0)
    assert [ratios[f"layer.{layer}.neurons"] for layer in range(4)] == [0.0, 0.0, 0.0, 1.0]
    assert ratios == tilted(SPACE, scores, size=0.25, tilt=1.0)


def keeps_one(scores: Scores, size: float) -> bool:
    """Whether one threshold over all heads keeps one of the last layer."""
    best = torch.sort(scores.heads.flatten(), descending=True, stable=True).indices[: round(size * 16)]
    return bool((best >= 12).any())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.floats(0, 1), tilt=st.floats(0, 1), scale=st.sampled_from([1e-9, 1.0, 1e9]))
def test_ratios_lie_on_the_grid_and_full_tilt_keeps_the_share(
    seed: int, size: float, tilt: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = Scores(
        heads=torch.rand((4, 4), generator=generator, dtype=torch.float64) * scale,
        neurons=torch.rand((4, 64), generator=generator, dtype=torch.float64),
    )
    ratios = tilted(SPACE, scores, size=size, tilt=tilt)
    assert all(ratios[d.name] == d.snap(ratios[d.name]) for d in SPACE.dimensions)
    assert ratios["layer.3.heads"] > 0
    full = SPACE.plan(tilted(SPACE, scores, size=size, tilt=1.0))
    assert sum(full.heads) - round(size * 16) == (1 if full.heads[3] == 1 and not keeps_one(scores, size) else 0)
    assert sum(full.neurons) == 16 * round(size * 16)


def test_the_ladder_climbs_each_tilt_in_turn_and_names_no_plan_twice() -> None:
    plans = ladder(SPACE, EARLY, sizes=(1.0, 0.5, 0.25), tilts=(0.0, 1.0))
    assert plans[:3] == [SPACE.uniform(size) for size in (1.0, 0.5, 0.25)]
    assert len(plans) == 5  # size 1 is the same at every tilt
    assert ladder(SPACE, EARLY, sizes=(), tilts=(0.0,)) == []


BLOCKS = Scores(
    EARLY.heads,
    EARLY.neurons,
    torch.tensor([[0.9, 0.8], [0.1, 0.7], [0.3, -0.2], [0.6, 0.5]], dtype=torch.float64),
)
"""The feed-forward block of layer 2 matters least, then the attention blocks of the layers 1 and 2."""


def test_the_least_important_blocks_go_and_the_others_make_up_for_them() -> None:
    one = SPACE.plan(dropped(SPACE, BLOCKS, size=0.75, blocks=1))
    assert one.heads == (3, 3, 3, 3)
    assert one.neurons == (64, 64, 0, 64)
    three = SPACE.plan(dropped(SPACE, BLOCKS, size=0.5, blocks=3))
    assert three.heads == (4, 0, 0, 4)
    assert three.neurons == (48, 48, 0, 48)  # 0.5 · 4/3 of 4 blocks is 2.7
    assert SPACE.plan(dropped(SPACE, BLOCKS, size=0.875, blocks=3)).neurons == (64, 64, 0, 64)  # all that is left
    assert dropped(SPACE, BLOCKS, size=0.5, blocks=7) == {**SPACE.uniform(0.0), "layer.3.heads": 1.0}


def test_the_last_layers_heads_never_go() -> None:
    unimportant = Scores(EARLY.heads, EARLY.neurons, torch.arange(8, 0, -1, dtype=torch.float64).reshape(4, 2))
    plan = SPACE.plan(dropped(SPACE, unimportant, size=0.1, blocks=1))
    assert plan.heads == (0, 0, 0, 1)
    assert plan.neurons[3] == 0


def test_blocks_that_must_stay_are_passed_over_and_too_many_are_refused() -> None:
    layers = {2: LayerRanges(neurons=Range(low=0.25)), 1: LayerRanges(heads=Range(low=0.5))}
    space = Space.of(SpaceSettings(neuron_block=16, layers=layers), SHAPE)
    plan = space.plan(dropped(space, BLOCKS, size=0.5, blocks=1))
    assert plan.heads == (3, 3, 0, 3)
    assert plan.neurons == (32, 32, 32, 32)
    with pytest.raises(UserError, match=r"engine\.drop_blocks is 6; 5 blocks may vanish in this space"):
        dropped(space, BLOCKS, size=0.5, blocks=6)
    with pytest.raises(ValueError, match="these scores hold none of blocks"):
        dropped(SPACE, EARLY, size=0.5, blocks=1)


def test_the_ladder_ends_with_the_plans_without_blocks_and_has_none_by_default() -> None:
    sizes, tilts = (0.75, 0.5), (0.0, 1.0)
    plain = ladder(SPACE, BLOCKS, sizes=sizes, tilts=tilts)
    plans = ladder(SPACE, BLOCKS, sizes=sizes, tilts=tilts, drop_blocks=(1, 2))
    assert plans[: len(plain)] == plain
    assert plans[len(plain) :] == [
        dropped(SPACE, BLOCKS, size=size, blocks=blocks) for blocks in (1, 2) for size in sizes
    ]
    assert EngineSettings().drop_blocks == ()


def test_ranges_are_kept() -> None:
    space = Space.of(SpaceSettings(neuron_block=16, heads=Range(low=0.25, high=0.75)), SHAPE)
    ratios = tilted(space, EARLY, size=0.5, tilt=1.0)
    assert [ratios[f"layer.{layer}.heads"] for layer in range(4)] == [0.75, 0.75, 0.25, 0.25]


@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.0])
def test_scores_are_not_changed(tilt: float) -> None:
    before = (EARLY.heads.clone(), EARLY.neurons.clone())
    tilted(SPACE, EARLY, size=0.5, tilt=tilt)
    assert torch.equal(before[0], EARLY.heads)
    assert torch.equal(before[1], EARLY.neurons)


def test_the_rank_of_the_word_embeddings_goes_with_the_size_and_is_never_tilted() -> None:
    ranked = SpaceSettings(neuron_block=16, embedding=Range(low=0.0), embedding_block=4)
    space = Space.of(ranked, SHAPE)
    for tilt in (0.0, 0.5, 1.0):
        ratios = tilted(space, EARLY, size=0.5, tilt=tilt)
        assert ratios == {**tilted(SPACE, EARLY, size=0.5, tilt=tilt), "embedding.rank": 0.5}
        assert space.plan(ratios).rank == 16


def test_kept_mass_rises_to_the_share_of_a_layer() -> None:
    mass = kept_mass(SPACE, EARLY)
    assert mass.keys() == {d.name for d in SPACE.dimensions}
    for kind, weights in (("heads", [8, 4, 3, 1]), ("neurons", [1, 1, 1, 1])):
        for layer, weight in enumerate(weights):
            kept = mass[f"layer.{layer}.{kind}"]
            assert len(kept) == 5
            assert kept[0] == 0
            assert kept[-1] == pytest.approx(weight / sum(weights), abs=1e-5)
            steps = [after - before for before, after in pairwise(kept)]
            assert steps == sorted(steps, reverse=True)
            assert min(steps) > 0
    assert mass["layer.0.heads"][1] == pytest.approx(8 / (16 * 3), abs=1e-5)  # heads count 1, 5/6, 2/3 and 1/2


def test_kept_mass_of_scores_below_zero_is_zero_and_a_kind_without_scores_is_left_out() -> None:
    scores = Scores(heads=torch.tensor([[1.0, -1.0, -2.0, 1.0]] * 4).double(), neurons=torch.zeros(4, 64).double())
    assert kept_mass(SPACE, scores) == {f"layer.{layer}.heads": [0.0, 0.125, 0.25, 0.25, 0.25] for layer in range(4)}
