"""What holds for every family of models: cutting, scoring, fitting and training, with one family as with another."""

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import HEAD_SIZE, HEADS, LAYERS, LONGEST, NEURONS, TOKENS, sentences, tiny
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from objectives import Conditions, Subject, parts
from objectives.energy.operations import count_operations
from objectives.inference import random_batches
from objectives.macs import Macs
from objectives.memory import StoredBytes
from search.bert.block_importance import block_importance
from search.bert.checkpoint import is_fine_tuned, load, load_dense, read_shape, save
from search.bert.choose import choose, ranking
from search.bert.encoding import Encoded
from search.bert.factorise import directions
from search.bert.families import FAMILIES, embedded, entering, family_of, layers_of
from search.bert.families.blocks import BiasOnly
from search.bert.hidden import WithTeacher
from search.bert.importance import importance
from search.bert.pruned import plan_of, shape_of, word_table, words_of
from search.bert.recovery import recover
from search.bert.refit import refit
from search.bert.supernet import reorder, slice_logits, train_supernet
from search.bert.surgery import Kept, cut
from search.bert.vocabulary import keep_tokens
from search.definition import RecoverySettings, SpaceSettings, SupernetSettings
from search.errors import UserError
from search.plan import Plan, encoder_macs, encoder_parameters, total_parameters
from search.space import Space

EVERYTHING = Kept((tuple(range(HEADS)),) * LAYERS, (tuple(range(NEURONS)),) * LAYERS)
NOTHING = Kept(((),) * LAYERS, ((),) * LAYERS)
UNEVEN = Kept(heads=((0, 2), (), (3,)), neurons=((1, 2, 5), (0,), ()))
KINDS = pytest.mark.parametrize("kind", FAMILIES)
MODELS = {(kind, attention): tiny(kind, attention=attention) for kind in FAMILIES for attention in ("sdpa", "eager")}


def some_of(total):
    """Ascending indices below `total`; a quarter of them none at all, so that empty blocks are common."""
    subset = st.sets(st.integers(0, total - 1)).map(lambda chosen: tuple(sorted(chosen)))
    return st.one_of(st.just(()), subset, subset, subset)


kepts = st.builds(Kept, heads=st.tuples(*[some_of(HEADS)] * LAYERS), neurons=st.tuples(*[some_of(NEURONS)] * LAYERS))
dense_models = st.sampled_from(list(MODELS.values()))


def inputs(batch):
    return {name: values for name, values in batch.items() if name != "labels"}


@torch.no_grad()
def logits(model, batch):
    return model(**inputs(batch)).logits


def outputs(model):
    """Output projection and LayerNorm of each block, from the embeddings upwards."""
    layout = family_of(model).layout
    pairs = ((layout.attention_output, layout.attention_norm), (layout.down, layout.norm))
    return [(layer.get_submodule(a), layer.get_submodule(b)) for layer in layers_of(model) for a, b in pairs]


def masked_logits(model, kept, batch):
    """Logits of the full model with what is not kept zeroed before the output projections."""
    units = [part for pair in zip(kept.heads, kept.neurons, strict=True) for part in pair]
    handles = []
    for number, ((projection, _), some) in enumerate(zip(outputs(model), units, strict=True)):
        mask = torch.zeros(projection.in_features, dtype=model.dtype)
        size = HEAD_SIZE if number % 2 == 0 else 1
        mask[[unit * size + offset for unit in some for offset in range(size)]] = 1
        handles.append(projection.register_forward_pre_hook(lambda _module, given, mask=mask: (given[0] * mask,)))
    try:
        return logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()


# --- the cut


@settings(max_examples=24, deadline=None)
@given(model=dense_models, kept=kepts)
def test_the_cut_model_equals_the_masked_model(model, kept):
    (batch,) = sentences(model, 4)
    small = cut(model, kept)
    assert torch.allclose(logits(small, batch), masked_logits(model, kept, batch), rtol=0, atol=1e-9)


@KINDS
def test_every_head_and_every_neuron_is_told_apart(kind):
    model = MODELS[kind, "sdpa"]
    (batch,) = sentences(model, 4)
    found = []
    for layer in range(LAYERS):
        for block, units in (("heads", EVERYTHING.heads), ("neurons", EVERYTHING.neurons)):
            for unit in units[layer]:
                changed = [tuple(u for u in row if (at, u) != (layer, unit)) for at, row in enumerate(units)]
                found.append(masked_logits(model, replace(EVERYTHING, **{block: tuple(changed)}), batch).flatten())
    assert torch.pdist(torch.stack([*found, logits(model, batch).flatten()])).min() > 1e-6


@KINDS
@pytest.mark.parametrize("kept", [UNEVEN, NOTHING, EVERYTHING])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_comes_back_bit_by_bit(kind, kept, dtype, tmp_path):
    model = tiny(kind, dtype=dtype)
    small = cut(model, kept)
    save(small, tmp_path)
    again = load(tmp_path)
    assert type(again) is FAMILIES[kind].model
    assert plan_of(again.config) == kept.plan
    assert again.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in small.state_dict().items())
    (batch,) = sentences(model, 4)
    assert torch.equal(logits(small, batch), logits(again, batch))


@KINDS
def test_nothing_is_shared_and_the_input_is_not_touched(kind):
    model = MODELS[kind, "sdpa"]
    before = copy.deepcopy(model.state_dict())
    small = cut(model, UNEVEN)
    storages = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not {t.untyped_storage().data_ptr() for t in [*small.parameters(), *small.buffers()]} & storages
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())
    assert small.config._attn_implementation == model.config._attn_implementation


@KINDS
def test_blocks_that_keep_nothing_hold_their_bias_and_nothing_else(kind):
    model = MODELS[kind, "eager"]
    small, layout = cut(model, NOTHING), family_of(model).layout
    for layer, dense in zip(layers_of(small), layers_of(model), strict=True):
        for block, projection in ((layout.attention, layout.attention_output), (layout.feed_forward, layout.down)):
            assert isinstance(layer.get_submodule(projection), BiasOnly)
            held = {f"{block}.{name}" for name, _ in layer.get_submodule(block).named_parameters()}
            assert held <= {f"{projection}.bias"}
            bias = layer.get_parameter(f"{projection}.bias")
            assert torch.equal(bias, dense.get_parameter(f"{projection}.bias"))
    assert small.state_dict().keys() < model.state_dict().keys()


@KINDS
def test_training_reaches_every_parameter_and_hidden_states_are_there(kind):
    small = cut(tiny(kind, dtype=torch.float32), UNEVEN)
    (batch,) = sentences(small, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.train()
        output = small(**inputs(batch), output_hidden_states=True)
        functional.cross_entropy(output.logits, batch["labels"]).backward()
    assert len(output.hidden_states) == LAYERS + 1
    unused = {name for name, parameter in small.named_parameters() if parameter.grad is None}
    assert unused == set()


@KINDS
@settings(max_examples=4, deadline=None)
@given(kept=kepts)
def test_sizes_are_the_closed_forms(kind, kept):
    model = MODELS[kind, "eager"]
    small, shape = cut(model, kept), shape_of(model)
    assert shape_of(small) == shape
    assert sum(p.numel() for p in small.parameters()) == total_parameters(kept.plan, shape)
    assert sum(p.numel() for p in parts.encoder(small).parameters()) == encoder_parameters(kept.plan, shape)
    (batch,) = sentences(model, 1)
    with torch.no_grad():
        hidden = embedded(small, {"input_ids": batch["input_ids"][:, :5]})
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        parts.encoder(small)(hidden, attention_mask=None)
    assert counter.get_total_flops() == 2 * encoder_macs(kept.plan, shape, tokens=5)
    assert Macs(5).measure(Subject(small)).value == encoder_macs(kept.plan, shape, tokens=5)


@KINDS
def test_the_modelled_operations_are_all_that_the_model_computes(kind):
    for kept in (UNEVEN, EVERYTHING):
        small = cut(tiny(kind, attention="eager"), kept)
        ids = {"input_ids": torch.randint(2, TOKENS, (1, 6)), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            small(**ids)
        counted = count_operations(small, batch=1, tokens=6)
        assert counter.get_total_flops() == 2 * counted.macs
        assert StoredBytes().measure(Subject(small)).value > 8 * sum(p.numel() for p in small.parameters())


# --- what the families differ in


@KINDS
def test_the_longest_sequence_that_a_model_says_is_the_longest_that_it_takes(kind):
    model = MODELS[kind, "sdpa"]
    assert parts.longest(model) == LONGEST
    conditions = Conditions(batch=2, tokens=LONGEST, threads=None, warmup=1, repeats=3)
    (batch,) = random_batches(model, conditions)
    assert logits(model, batch).isfinite().all()
    full = torch.full((1, LONGEST + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        logits(model, {"input_ids": full, "attention_mask": torch.ones_like(full)})
    with pytest.raises(ValueError, match=f"tokens is {LONGEST + 1}, and the model has {LONGEST} positions"):
        random_batches(model, replace(conditions, tokens=LONGEST + 1))


@KINDS
def test_token_types_are_read_where_there_are_some_and_passed_over_elsewhere(kind):
    model = MODELS[kind, "sdpa"]
    (batch,) = sentences(model, 4)
    without = {name: values for name, values in batch.items() if name != "token_type_ids"}
    reads = shape_of(model).token_types > 1
    assert torch.equal(logits(model, batch), logits(model, without)) != reads
    assert torch.equal(embedded(model, batch), embedded(model, without)) != reads
    assert reads == (FAMILIES[kind].pairs == "types")


@KINDS
@pytest.mark.parametrize("kept", [EVERYTHING, UNEVEN])
def test_the_parts_put_together_are_the_model(kind, kept):
    """Embeddings, layers and what reads them, called one after the other on a sentence without padding."""
    model = cut(MODELS[kind, "sdpa"], kept)
    batch = {name: values[:1] for name, values in sentences(model, 2)[0].items()}
    layout, family = family_of(model).layout, family_of(model)
    with torch.no_grad():
        hidden = embedded(model, batch)
        for layer in layers_of(model):
            for block, projection, norm in (
                (layout.attention, layout.attention_output, layout.attention_norm),
                (layout.feed_forward, layout.down, layout.norm),
            ):
                sent = layer.get_submodule(projection)(entering(layer, block, projection, hidden))
                hidden = layer.get_submodule(norm)(sent + hidden)
        assert torch.allclose(family.logits(model, hidden), logits(model, batch), rtol=0, atol=1e-12)


def test_embeddings_as_wide_as_the_hidden_states_have_no_projection():
    model = tiny("electra", embedding_size=HEADS * HEAD_SIZE)
    assert shape_of(model).embedding is None
    assert sum(p.numel() for p in model.parameters()) == total_parameters(Plan.dense(shape_of(model)), shape_of(model))
    (batch,) = sentences(model, 4)
    small = cut(model, UNEVEN)
    assert torch.allclose(logits(small, batch), masked_logits(model, UNEVEN, batch), rtol=0, atol=1e-9)
    assert len(parts.embeddings(model)) == 1


# --- checkpoints


@KINDS
def test_an_encoder_gets_a_head_by_the_seed_and_a_classifier_keeps_its_own(kind, tmp_path):
    model = tiny(kind, dtype=torch.float32)
    save(getattr(model, model.base_model_prefix), tmp_path / "encoder")
    save(model, tmp_path / "classifier")
    family = FAMILIES[kind]
    assert (is_fine_tuned(tmp_path / "encoder"), is_fine_tuned(tmp_path / "classifier")) == (False, True)
    first, second, other = (load_dense(tmp_path / "encoder", labels=2, seed=seed) for seed in (7, 7, 8))
    whole = load_dense(tmp_path / "classifier", labels=3)
    new = {name for name in model.state_dict() if not torch.equal(first.state_dict()[name], other.state_dict()[name])}
    assert new <= {*family.classifier, *family.between}
    assert family.classifier[0] in new
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.state_dict().items())
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in model.state_dict().items())
    assert read_shape(tmp_path / "encoder", labels=2) == shape_of(first)
    with pytest.raises(UserError, match="is fine-tuned for 3 labels and the task has 2"):
        load_dense(tmp_path / "classifier", labels=2)
    assert read_shape(tmp_path / "classifier", labels=3, fine_tuned=True) == shape_of(whole)
    with pytest.raises(UserError, match="is fine-tuned for 3 labels and the task has 2"):
        read_shape(tmp_path / "classifier", labels=2, fine_tuned=True)
    save(cut(model, UNEVEN), tmp_path / "pruned")
    with pytest.raises(UserError, match="is pruned already"):
        load_dense(tmp_path / "pruned", labels=3)


def test_a_family_that_is_not_known_is_refused_with_those_that_are(tmp_path):
    save(tiny("bert", dtype=torch.float32), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "albert"}))
    known = "bert, distilbert, electra, roberta"
    with pytest.raises(UserError, match=rf"has model_type 'albert'; what can be pruned is of type {known}: name"):
        load(tmp_path)
    config = tiny("bert").config
    config.model_type = "albert"
    with pytest.raises(ValueError, match=f"'albert' is of none of the families {known}"):
        family_of(config)


# --- importance


@KINDS
@pytest.mark.parametrize(("method", "score"), [("fisher", torch.square), ("taylor", torch.abs)])
def test_scores_equal_the_slow_oracle(kind, method, score):
    """Each unit's factor sits in the columns of the output projection instead, one sentence at a time."""
    model = MODELS[kind, "eager"]
    (batch,) = sentences(model, 5)
    found = importance(method, model, [batch])
    layout, expected = family_of(model).layout, {"heads": 0.0, "neurons": 0.0}
    for row in range(5):
        one = {name: values[row : row + 1] for name, values in batch.items()}
        factors = {
            "heads": torch.ones(LAYERS, HEADS, dtype=torch.float64, requires_grad=True),
            "neurons": torch.ones(LAYERS, NEURONS, dtype=torch.float64, requires_grad=True),
        }
        weights = dict(model.named_parameters())
        for layer in range(LAYERS):
            for kind_of, path, size in (("heads", layout.attention_output, HEAD_SIZE), ("neurons", layout.down, 1)):
                name = f"{layout.layers}.{layer}.{path}.weight"
                weights[name] = weights[name].detach() * factors[kind_of][layer].repeat_interleave(size)
        said = torch.func.functional_call(model, weights, kwargs=inputs(one)).logits
        gradients = torch.autograd.grad(functional.cross_entropy(said, one["labels"]), list(factors.values()))
        for kind_of, gradient in zip(factors, gradients, strict=True):
            expected[kind_of] = expected[kind_of] + score(gradient) / 5
    assert torch.allclose(found.heads, expected["heads"], rtol=1e-8, atol=1e-12)
    assert torch.allclose(found.neurons, expected["neurons"], rtol=1e-8, atol=1e-12)


@KINDS
def test_magnitude_is_the_norm_of_what_a_cut_removes(kind):
    model = MODELS[kind, "sdpa"]
    found = importance("magnitude", model, [])

    def mass(one):
        return sum(p.square().sum() for p in one.parameters())

    for layer, unit in ((0, 1), (2, 3)):
        for name, scores in (("heads", found.heads), ("neurons", found.neurons)):
            units = list(getattr(EVERYTHING, name))
            units[layer] = tuple(u for u in units[layer] if u != unit)
            removed = mass(model) - mass(cut(model, replace(EVERYTHING, **{name: tuple(units)})))
            assert torch.isclose(scores[layer, unit] ** 2, removed.detach(), rtol=1e-8)


@KINDS
@pytest.mark.parametrize("loss", ["task", "distillation"])
def test_a_block_is_worth_what_the_loss_gains_when_it_is_really_cut_out(kind, loss):
    model = MODELS[kind, "sdpa"]
    (batch,) = sentences(model, 6)
    found = block_importance(model, [batch], loss=loss)
    dense = logits(model, batch).log_softmax(-1)
    for layer in range(LAYERS):
        for place, name in enumerate(("heads", "neurons")):
            units = list(getattr(EVERYTHING, name))
            units[layer] = ()
            said = logits(cut(model, replace(EVERYTHING, **{name: tuple(units)})), batch).log_softmax(-1)
            gain = functional.nll_loss(said, batch["labels"]) - functional.nll_loss(dense, batch["labels"])
            if loss == "distillation":
                gain = functional.kl_div(said, dense, log_target=True, reduction="batchmean")
            assert torch.isclose(found[layer, place], gain, rtol=0, atol=1e-9)


# --- least squares


def seen(model, batches):
    """What enters each output projection and each LayerNorm, block by block, at all tokens but the padding."""
    found = [([], []) for _ in outputs(model)]
    handles = []
    for pair, kept in zip(outputs(model), found, strict=True):
        for part, those in zip(pair, kept, strict=True):
            handles.append(part.register_forward_pre_hook(lambda _module, given, those=those: those.append(given[0])))
    for batch in batches:
        logits(model, batch)
        for kept in found:
            for those in kept:
                those[-1] = those[-1][batch["attention_mask"].bool()]
    for handle in handles:
        handle.remove()
    return [(torch.cat(inputs), torch.cat(sums)) for inputs, sums in found]


@settings(max_examples=12, deadline=None)
@given(model=dense_models, kept=kepts, sizes=st.sampled_from([(3, 2), (12, 9, 8)]))
def test_no_block_is_further_from_the_dense_one_than_before_its_re_fit(model, kept, sizes):
    batches, small, raw = sentences(model, *sizes), cut(model, kept), cut(model, kept)
    refit(small, model, batches)
    blocks = zip(seen(model, batches), seen(small, batches), outputs(small), outputs(raw), strict=True)
    for (_, target), (entered, found), (now, _), (before, _) in blocks:
        with torch.no_grad():
            old = found - now(entered) + before(entered)
        assert (target - found).norm() <= (target - old).norm() * (1 + 1e-9) + 1e-9


@KINDS
def test_the_change_is_the_ridge_regression_of_what_is_lacking(kind):
    model, ridge = MODELS[kind, "sdpa"], 1e-3
    kept = Kept(heads=((0, 2), (1,), EVERYTHING.heads[0]), neurons=((1, 2, 5), (0,), EVERYTHING.neurons[0]))
    batches, small, raw = sentences(model, 12, 9, 8), cut(model, kept), cut(model, kept)
    refit(small, model, batches, ridge=ridge)
    blocks = zip(seen(model, batches), seen(small, batches), outputs(small), outputs(raw), strict=True)
    for (_, target), (entered, found), (now, _), (before, _) in blocks:
        with torch.no_grad():
            missing = target - (found - now(entered) + before(entered))
        centred = entered - entered.mean(dim=0)
        weight = ridge * len(entered) * centred.var(dim=0, correction=0).mean()
        rows = torch.cat([centred, weight.sqrt() * torch.eye(entered.shape[1]).double()])
        goal = torch.cat([missing - missing.mean(dim=0), torch.zeros(entered.shape[1], missing.shape[1]).double()])
        change = torch.linalg.lstsq(rows, goal).solution.T
        assert change.abs().max() > 1e-3
        assert torch.allclose(now.weight - before.weight, change, rtol=0, atol=1e-7)


@KINDS
def test_where_nothing_was_cut_nothing_is_re_fitted(kind):
    model = tiny(kind, dtype=torch.float32)
    small = cut(model, EVERYTHING)
    refit(small, model, sentences(model, 3, 2))
    assert all(torch.equal(small.state_dict()[name], weight) for name, weight in model.state_dict().items())


# --- super-network, recovery, hidden states


def rows_of(model, count=24):
    dice = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 10, (count,), generator=dice)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(2, TOKENS, (int(lengths.sum()),), generator=dice, dtype=torch.int32)
    types = torch.randint(0, 2, (len(ids),), generator=dice, dtype=torch.uint8)
    return Encoded(ids, types, offsets, torch.arange(count) % model.config.num_labels)


@settings(max_examples=20, deadline=None)
@given(
    model=dense_models,
    heads=st.tuples(*[st.integers(0, HEADS)] * LAYERS),
    neurons=st.tuples(*[st.integers(0, NEURONS)] * LAYERS),
)
def test_a_slice_of_the_super_network_equals_the_cut_model(model, heads, neurons):
    (batch,) = sentences(model, 4)
    plan, scores = Plan(heads, neurons), importance("magnitude", model, [])
    ordered = copy.deepcopy(model)
    reorder(ordered, {"heads": ranking(scores.heads), "neurons": ranking(scores.neurons)})
    assert torch.allclose(logits(ordered, batch), logits(model, batch), rtol=0, atol=1e-9)
    with torch.no_grad():
        found = slice_logits(ordered, plan, inputs(batch))
    assert torch.allclose(found, logits(cut(model, choose(plan, scores)), batch), rtol=0, atol=1e-9)


@KINDS
def test_a_super_network_is_trained_and_is_a_dense_checkpoint(kind, tmp_path):
    teacher, model = tiny(kind, dtype=torch.float32), tiny(kind, dtype=torch.float32)
    scores, rows = importance("magnitude", teacher, []), rows_of(teacher)
    space = Space.of(SpaceSettings(neuron_block=2), shape_of(teacher))
    given = SupernetSettings(steps=4, batch_size=8, learning_rate=1e-3)
    wanted = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(2))
    options = {"precision": "fp32", "pad_id": teacher.config.pad_token_id, "seed": 0}
    train_supernet(model, rows, wanted, scores, space, given, on_step=lambda _d, _t: None, **options)
    save(model, tmp_path)
    again, layout = load(tmp_path), family_of(model).layout
    assert again.state_dict().keys() == teacher.state_dict().keys()
    assert torch.equal(again.get_parameter(f"{layout.words}.weight"), teacher.get_parameter(f"{layout.words}.weight"))
    for path in (layout.query, layout.attention_output, layout.up, layout.down):
        name = f"{layout.layers}.1.{path}.weight"
        assert not torch.equal(again.get_parameter(name), teacher.get_parameter(name)), name


@KINDS
def test_recovery_leaves_the_table_and_hidden_states_draw_the_student_nearer(kind):
    teacher = tiny(kind, dtype=torch.float32)
    rows, kept = rows_of(teacher), Kept(((0, 1, 2),) * LAYERS, ((0, 1, 2, 3),) * LAYERS)
    (batch,) = sentences(teacher, 6)

    def apart(student):
        pair = WithTeacher(student, teacher)
        with torch.no_grad():
            pair(**inputs(batch))
        return pair._distance.item()

    small = cut(teacher, kept)
    assert apart(cut(teacher, EVERYTHING)) < 1e-9
    before, table = apart(small), word_table(small).weight.clone()
    settings_ = RecoverySettings(steps=30, batch_size=8, learning_rate=3e-3, hidden_weight=1.0, precision="fp32")
    recover(
        small,
        rows,
        torch.zeros(len(rows), 3),
        settings_,
        pad_id=teacher.config.pad_token_id,
        seed=0,
        on_step=lambda _done, _total: None,
        teacher=teacher,
    )
    assert apart(small) < 0.9 * before
    assert torch.equal(word_table(small).weight, table)


# --- word embeddings


@KINDS
@pytest.mark.parametrize("rank", [1, 4])
def test_a_table_of_low_rank_is_the_model_with_the_product_as_its_table(kind, rank, tmp_path):
    model = MODELS[kind, "sdpa"]
    table = words_of(model).weight
    found = directions(table, torch.arange(1.0, TOKENS + 1))
    small = cut(model, replace(UNEVEN, rank=rank), directions=found)
    product = copy.deepcopy(model)
    with torch.no_grad():
        words_of(product).weight.copy_(table @ found[:, :rank] @ found[:, :rank].T)
    (batch,) = sentences(model, 4)
    assert torch.allclose(logits(small, batch), logits(cut(product, UNEVEN), batch), rtol=0, atol=1e-9)
    assert sum(p.numel() for p in small.parameters()) == total_parameters(plan_of(small.config), shape_of(model))
    save(small, tmp_path)
    assert torch.equal(logits(load(tmp_path), batch), logits(small, batch))


@KINDS
def test_a_smaller_vocabulary_says_the_same_of_what_it_has(kind, tmp_path):
    model = tiny(kind)
    (batch,) = sentences(model, 6)
    kept = tuple(sorted({0, 1, *batch["input_ids"].flatten().tolist(), 7, 30}))
    assert len(kept) < TOKENS
    small = copy.deepcopy(model)
    keep_tokens(small, kept)
    numbers = torch.full((TOKENS,), -1).scatter(0, torch.tensor(kept), torch.arange(len(kept)))
    renumbered = {**batch, "input_ids": numbers[batch["input_ids"]]}
    assert torch.equal(logits(small, renumbered), logits(model, batch))
    save(small, tmp_path)
    assert torch.allclose(logits(load(tmp_path), renumbered), logits(model, batch), rtol=0, atol=1e-12)


def test_a_vocabulary_that_would_move_the_positions_is_refused():
    with pytest.raises(UserError, match="positions are numbered from that of the padding token, which would move"):
        keep_tokens(tiny("roberta"), (1, 5, 6))
    keep_tokens(tiny("bert", pad_token_id=3), (3, 5, 6))
