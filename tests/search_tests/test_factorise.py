"""Word embeddings of low rank: the optimum, the same logits as its product, counted sizes, and what recovery trains."""

import copy
import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from objectives.energy.operations import count_operations
from objectives.macs import encoder_macs
from search.bert.checkpoint import load, load_dense, save
from search.bert.encoding import Encoded
from search.bert.factorise import directions, frequencies
from search.bert.importance import importance
from search.bert.pruned import FactorisedEmbedding, PrunedBertForSequenceClassification
from search.bert.recovery import recover
from search.bert.refit import fitting_batches, refit
from search.bert.surgery import Kept, cut, shape_of
from search.bert.training import score
from search.definition import RecoverySettings
from search.errors import UserError
from search.plan import Plan, Shape, encoder_parameters, total_parameters

BERT_BASE = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
LAYERS, HEADS, NEURONS, HIDDEN, TOKENS = 2, 4, 6, 16, 40


def tiny(*, dtype: torch.dtype = torch.float64) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=NEURONS,
        max_position_embeddings=12,
        num_labels=2,
        initializer_range=0.5,  # large, so that everything matters
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    return torch.nn.Module.to(model, dtype).eval()


def rows(count: int = 24) -> Encoded:
    """Random sentences of seven tokens; low ids come far more often."""
    generator = torch.Generator().manual_seed(1)
    ids = (torch.rand(count * 7, generator=generator) ** 3 * (TOKENS - 1)).int() + 1
    return Encoded(
        ids=ids,
        types=torch.zeros(count * 7, dtype=torch.uint8),
        offsets=torch.arange(0, count * 7 + 1, 7),
        labels=torch.arange(count) % 2,
    )


def kept(rank: int | None, *, heads: tuple[int, ...] = (0, 1, 2, 3)) -> Kept:
    return Kept((heads,) * LAYERS, (tuple(range(NEURONS)),) * LAYERS, rank)


def words(model: BertForSequenceClassification) -> torch.Tensor:
    return model.bert.embeddings.word_embeddings.weight.detach()


def found(model: BertForSequenceClassification) -> torch.Tensor:
    return directions(words(model), frequencies(rows(), TOKENS))


def logits(model: BertForSequenceClassification) -> torch.Tensor:
    return score(model, rows(), pad_id=0, batch_size=8, precision="fp32")


def test_frequencies_count_the_rows_and_one_more() -> None:
    counts = frequencies(rows(), TOKENS)
    assert counts.dtype == torch.float64
    assert counts.shape == (TOKENS,)
    assert counts.sum() == 24 * 7 + TOKENS
    assert all(counts[token] == 1 + rows().ids.tolist().count(token) for token in (0, 1, 2, TOKENS - 1))


@pytest.mark.parametrize("rank", [1, 5, 15])
def test_no_table_of_that_rank_is_nearer_where_tokens_are_frequent(rank: int) -> None:
    """The slow way: the truncated SVD of the scaled table, scaled back."""
    table, weights = words(tiny()), frequencies(rows(), TOKENS)
    kept_ones = found(tiny())[:, :rank]
    near = table @ kept_ones @ kept_ones.T
    root = weights.sqrt()[:, None]
    left, sizes, right = torch.linalg.svd(root * table, full_matrices=False)
    best = (left[:, :rank] * sizes[:rank]) @ right[:rank] / root
    assert torch.allclose(near, best, atol=1e-10)
    plain = directions(table, torch.ones(TOKENS))[:, :rank]

    def error(of: torch.Tensor) -> float:
        return float((weights[:, None] * (of - table) ** 2).sum())

    assert error(near) < error(table @ plain @ plain.T)
    assert torch.allclose(kept_ones.T @ kept_ones, torch.eye(rank, dtype=torch.float64), atol=1e-12)


def test_the_full_rank_reproduces_the_logits() -> None:
    model = tiny(dtype=torch.float32)
    whole = cut(model, kept(HIDDEN), directions=found(model))
    assert isinstance(whole.bert.embeddings.word_embeddings, FactorisedEmbedding)
    assert torch.allclose(logits(whole), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_cut_model_equals_the_one_with_the_product_as_its_table(rank: int) -> None:
    model = tiny(dtype=torch.float32)
    small = cut(model, kept(rank, heads=(0, 2)), directions=found(model))
    factors = small.bert.embeddings.word_embeddings
    dense = cut(model, kept(None, heads=(0, 2)))
    words(dense).copy_(factors.table.weight.detach() @ factors.projection.weight.detach().T)
    assert torch.allclose(logits(small), logits(dense), rtol=0, atol=1e-5)
    assert (logits(small) - logits(cut(model, kept(None, heads=(0, 2))))).abs().max() > 1e-3


def test_nothing_is_changed_or_shared() -> None:
    model = tiny()
    basis = found(model)
    before, basis_before = copy.deepcopy(model.state_dict()), basis.clone()
    small = cut(model, kept(5), directions=basis)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7.0)
    assert torch.equal(basis, basis_before)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in small.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_comes_back_bit_by_bit(tmp_path, dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype)
    small = cut(model, kept(5, heads=()), directions=found(model))
    save(small, tmp_path)
    again = load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["embedding_rank"] == 5
    assert again.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(weight, small.state_dict()[name]) for name, weight in again.state_dict().items())
    assert torch.equal(logits(again), logits(small))
    with pytest.raises(UserError, match="is pruned already"):
        load_dense(tmp_path, labels=2)


def test_a_config_whose_rank_cannot_be_is_refused(tmp_path) -> None:
    save(tiny(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for rank, part in (
        (HIDDEN + 1, "the embeddings are 16 wide"),
        (0, "at least 1 is needed"),
        ("x", "cannot be used"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "embedding_rank": rank}))
        with pytest.raises(UserError, match=part):
            load(tmp_path)


def test_a_factorised_model_can_be_cut_again_and_keeps_its_rank() -> None:
    model = tiny()
    small = cut(model, kept(5), directions=found(model))
    smaller = cut(small, kept(None, heads=(1,)))
    assert torch.equal(smaller.bert.embeddings.word_embeddings.table.weight, words_table(small))
    with pytest.raises(ValueError, match="rank 5 to rank 3: cut the model that has them whole"):
        cut(small, kept(3), directions=found(model))


def words_table(model: PrunedBertForSequenceClassification) -> torch.Tensor:
    return model.bert.embeddings.word_embeddings.table.weight


def test_ranks_that_cannot_be_cut() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="without directions"):
        cut(model, kept(3))
    with pytest.raises(ValueError, match="the embeddings are 16 wide"):
        cut(model, kept(17), directions=found(model))
    with pytest.raises(ValueError, match="at least 1"):
        _ = kept(0)
    with pytest.raises(ValueError, match="importance is scored on the dense model"):
        importance("magnitude", cut(model, kept(3), directions=found(model)), [])


def test_sizes_are_the_counted_ones() -> None:
    model = tiny(dtype=torch.float32)
    small = cut(model, kept(5, heads=(0, 2)), directions=found(model))
    plan, shape = kept(5, heads=(0, 2)).plan, shape_of(small)
    assert total_parameters(plan, shape) == sum(parameter.numel() for parameter in small.parameters())
    assert encoder_parameters(plan, shape) == sum(p.numel() for p in small.bert.encoder.parameters())
    saved = total_parameters(kept(None).plan, shape) - total_parameters(kept(5).plan, shape)
    assert saved == TOKENS * HIDDEN - 5 * (TOKENS + HIDDEN)


def test_the_modelled_energy_counts_the_projection_and_the_macs_of_the_encoder_do_not() -> None:
    model = tiny(dtype=torch.float32)
    whole, small = cut(model, kept(None)), cut(model, kept(5), directions=found(model))
    assert encoder_macs(small, tokens=7) == encoder_macs(whole, tokens=7)
    before, after = (count_operations(one, batch=2, tokens=7) for one in (whole, small))
    assert after.macs - before.macs == 7 * 5 * HIDDEN
    rows_read, weights, activations = 7 * (5 - HIDDEN), 5 * HIDDEN / 2, 7 * (5 + HIDDEN)
    assert after.moved_bytes - before.moved_bytes == 4 * (rows_read + weights + activations)


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_recovery_trains_the_projection_and_the_table_only_where_asked(train_embeddings: bool) -> None:
    model = tiny(dtype=torch.float32)
    small = cut(model, kept(5), directions=found(model))
    before = copy.deepcopy(small.state_dict())
    settings = RecoverySettings(
        steps=3, batch_size=8, learning_rate=0.01, train_embeddings=train_embeddings, precision="fp32"
    )
    recover(small, rows(), logits(model), settings, pad_id=0, seed=0, on_step=lambda _done, _total: None)
    changed = {name for name, weight in small.state_dict().items() if not torch.equal(weight, before[name])}
    place = "bert.embeddings.word_embeddings"
    assert f"{place}.projection.weight" in changed
    assert (f"{place}.table.weight" in changed) == train_embeddings
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_a_re_fit_makes_up_for_a_low_rank() -> None:
    model = tiny()
    raw, mended = (cut(model, kept(9), directions=found(model)) for _ in range(2))
    refit(mended, model, fitting_batches(rows(), 24, pad_id=0, seed=0, device="cpu"))
    assert (logits(mended) - logits(model)).norm() < (logits(raw) - logits(model)).norm()


def test_bert_base_with_factorised_embeddings_below_25_million() -> None:
    """Heads and neurons alone end at 24.48 M with nothing left of the encoder; here almost a quarter of it stays."""
    with torch.device("meta"):
        dense = BertForSequenceClassification(BertConfig()).eval()  # BERT-base
    torch.nn.Module.to_empty(dense, device="cpu")
    with torch.no_grad():
        for tensor in (*dense.parameters(), *dense.buffers()):
            tensor.fill_(0.01) if tensor.is_floating_point() else tensor.zero_()
    plan = Plan((4,) * 12, (512,) * 12, 128)
    small = cut(
        dense,
        Kept(tuple(tuple(range(n)) for n in plan.heads), tuple(tuple(range(n)) for n in plan.neurons), plan.rank),
        directions=torch.eye(BERT_BASE.hidden),
    )
    assert shape_of(small) == BERT_BASE
    counted = sum(parameter.numel() for parameter in small.parameters())
    assert counted == total_parameters(plan, BERT_BASE) < 25e6
    assert encoder_parameters(plan, BERT_BASE) > 0.22 * encoder_parameters(Plan.dense(BERT_BASE), BERT_BASE)
    assert logits_of_one(small).isfinite().all()


def logits_of_one(model: BertForSequenceClassification) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=torch.tensor([[101, 2009, 102]])).logits
    return result
