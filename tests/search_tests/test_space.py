"""Ratios and plans: the grid, the bounds, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.definition import LayerRanges, Range, SpaceSettings
from search.errors import UserError
from search.plan import Plan, Shape, encoder_macs, encoder_parameters, total_parameters
from search.space import Space

BERT_BASE = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)


@given(data=st.data(), block=st.integers(1, 3072))
def test_any_ratios_give_a_plan_and_snapped_ones_the_same(data: st.DataObject, block: int) -> None:
    space = Space.of(SpaceSettings(neuron_block=block), BERT_BASE)
    drawn = {d.name: data.draw(st.floats(0, 1)) for d in space.dimensions}
    plan = space.plan(drawn)
    assert all(0 <= heads <= 12 for heads in plan.heads)
    assert all(neurons == 3072 or neurons % block == 0 for neurons in plan.neurons)
    snapped = {d.name: d.snap(drawn[d.name]) for d in space.dimensions}
    assert space.plan(snapped) == plan
    assert snapped == {d.name: d.snap(ratio) for d, ratio in zip(space.dimensions, snapped.values(), strict=True)}


def test_ratios_mean_what_papers_mean() -> None:
    space = Space.of(SpaceSettings(), BERT_BASE)
    half = space.plan(space.uniform(0.5))
    assert half == Plan((6,) * 12, (1536,) * 12)
    assert space.plan(space.uniform(0.0)) == Plan((0,) * 12, (0,) * 12)
    assert space.plan(space.uniform(1.0)) == Plan.dense(BERT_BASE)
    assert [d.name for d in space.dimensions[:3]] == ["layer.0.heads", "layer.0.neurons", "layer.1.heads"]


def test_bounds_per_layer() -> None:
    settings = SpaceSettings(
        heads=Range(low=0.25),
        layers={2: LayerRanges(heads=Range(low=0.5, high=0.75)), 3: LayerRanges(neurons=Range(high=0.0))},
    )
    space = Space.of(settings, BERT_BASE)
    lowest, highest = space.plan(space.uniform(0.0)), space.plan(space.uniform(1.0))
    assert lowest.heads[:4] == (3, 3, 6, 3)
    assert highest.heads[:4] == (12, 12, 9, 12)
    assert highest.neurons[2:5] == (3072, 0, 3072)


def test_the_last_block_is_smaller_where_blocks_do_not_fit() -> None:
    space = Space.of(SpaceSettings(neuron_block=1000), BERT_BASE)
    assert space.plan(space.uniform(1.0)).neurons[0] == 3072
    assert space.plan(space.uniform(0.75)).neurons[0] == 3000


def test_size_of_the_space() -> None:
    space = Space.of(SpaceSettings(heads=Range(low=0.5, high=0.5), neuron_block=3072), BERT_BASE)
    assert 10 ** space.log10_size() == pytest.approx(2**12)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (SpaceSettings(layers={12: LayerRanges()}), "layer 12; the model has the layers 0 to 11"),
        (SpaceSettings(neuron_block=4000), "neuron_block is 4000; a layer has 3072"),
        (SpaceSettings(heads=Range(low=0.26, high=0.3)), "no multiple of 1/12"),
    ],
)
def test_spaces_that_cannot_be(settings: SpaceSettings, part: str) -> None:
    with pytest.raises(UserError) as caught:
        Space.of(settings, BERT_BASE)
    assert part in str(caught.value)


def test_closed_forms_of_facts() -> None:
    """FACTS: one head 196,800 parameters, one neuron 1,537; heads and neurons alone reach down to 24.48 M in total."""
    dense, nothing = Plan.dense(BERT_BASE), Plan((0,) * 12, (0,) * 12)
    less_a_head = Plan((11, *dense.heads[1:]), dense.neurons)
    less_a_neuron = Plan(dense.heads, (3071, *dense.neurons[1:]))
    assert encoder_parameters(dense, BERT_BASE) - encoder_parameters(less_a_head, BERT_BASE) == 196_800
    assert encoder_parameters(dense, BERT_BASE) - encoder_parameters(less_a_neuron, BERT_BASE) == 1_537
    assert total_parameters(nothing, BERT_BASE) == pytest.approx(24.48e6, rel=1e-3)
    assert encoder_macs(nothing, BERT_BASE, tokens=128) == 0
    with pytest.raises(ValueError, match="at least 1 token"):
        encoder_macs(dense, BERT_BASE, tokens=0)


@pytest.mark.parametrize(("heads", "neurons"), [((), ()), ((1,), (1, 2)), ((-1,), (2,))])
def test_plans_that_cannot_be(heads: tuple[int, ...], neurons: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="plan"):
        Plan(heads, neurons)


# --- the rank of the word embeddings


RANKED = SpaceSettings(embedding=Range(low=0.0), embedding_block=64)


def test_the_rank_is_no_dimension_unless_a_study_asks_for_it() -> None:
    space = Space.of(SpaceSettings(), BERT_BASE)
    assert len(space.dimensions) == 24
    assert space.plan(space.uniform(0.5)).rank is None


@given(ratio=st.floats(0, 1), block=st.integers(1, 700))
def test_any_ratio_gives_a_rank_on_the_grid_that_saves_parameters(ratio: float, block: int) -> None:
    space = Space.of(RANKED.model_copy(update={"embedding_block": block}), BERT_BASE)
    ratios = {**space.uniform(1.0), "embedding.rank": ratio}
    plan, dense = space.plan(ratios), Plan.dense(BERT_BASE)
    if plan.rank is None:
        assert ratio > 0.5
    else:
        assert plan.rank >= 1
        assert plan.rank % block == 0
        assert total_parameters(plan, BERT_BASE) < total_parameters(dense, BERT_BASE)
    dimension = space.dimensions[-1]
    assert space.plan({**ratios, "embedding.rank": dimension.snap(ratio)}) == plan


def test_a_block_of_which_no_multiple_saves_parameters_is_refused() -> None:
    with pytest.raises(UserError, match=r"space.embedding_block is 750; embeddings of that rank or more save no param"):
        Space.of(RANKED.model_copy(update={"embedding_block": 750}), BERT_BASE)


def test_ratios_of_the_rank() -> None:
    space = Space.of(RANKED, BERT_BASE)
    assert [space.plan(space.uniform(ratio)).rank for ratio in (0.0, 0.25, 0.5, 11 / 12, 1.0)] == [
        *(64, 192, 384, 704),
        None,
    ]
    assert space.plan(space.uniform(1.0)) == Plan.dense(BERT_BASE)
    assert space.dimensions[-1].choices == 12
    bounded = Space.of(RANKED.model_copy(update={"embedding": Range(low=0.2, high=0.5)}), BERT_BASE)
    assert [bounded.plan(bounded.uniform(ratio)).rank for ratio in (0.0, 1.0)] == [192, 384]


def test_a_rank_that_saves_nothing_is_not_a_plan_of_its_own() -> None:
    """With 100 tokens and a hidden size of 768, two matrices of rank 89 hold more than the table."""
    few = Shape(12, 12, 64, 768, 3072, 100, 512, 2, 2)
    space = Space.of(RANKED.model_copy(update={"embedding_block": 1}), few)
    ranks = [space.plan({**space.uniform(1.0), "embedding.rank": rank / 768}).rank for rank in (88, 89, 700)]
    assert ranks == [88, None, None]


def test_a_block_larger_than_the_hidden_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"space\.embedding_block is 800; the embeddings are 768 wide"):
        Space.of(RANKED.model_copy(update={"embedding_block": 800}), BERT_BASE)
