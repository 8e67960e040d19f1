"""The training loop and the losses of recovery."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from search.bert.checkpoint import PrunedBertForSequenceClassification
from search.bert.encoding import Encoded
from search.bert.recovery import distillation, of_labels, recover
from search.bert.training import Schedule, autocast, parameter_groups, rate, score, train
from search.definition import RecoverySettings
from search.errors import TrialError

SCHEDULE = Schedule(steps=12, batch_size=4, learning_rate=5e-3, warmup=0.25, weight_decay=0.01, precision="fp32")


def rows(count: int = 24) -> Encoded:
    """Rows whose label is whether the token 7 occurs: something that can be learnt."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 9, (count,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(8, 30, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    labels = torch.arange(count) % 2
    for row in range(count):
        if labels[row]:
            ids[offsets[row] : offsets[row + 1]] = 7
    return Encoded(ids=ids, types=torch.zeros_like(ids, dtype=torch.uint8), offsets=offsets, labels=labels)


def model(seed: int = 0) -> PrunedBertForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, num_labels=2, initializer_range=0.5,
        )  # fmt: skip
        return PrunedBertForSequenceClassification(config).eval()


def ignore(_done: int, _total: int) -> None:
    pass


def trained(seed: int) -> dict[str, torch.Tensor]:
    candidate = model()
    train(candidate, rows(), of_labels(), SCHEDULE, pad_id=0, seed=seed, on_step=ignore)
    return candidate.state_dict()


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first = trained(3)
    torch.rand(7)  # the global random state has moved on
    again, other = trained(3), trained(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_learns_and_ends_in_eval_mode() -> None:
    candidate, data = model(), rows()
    schedule = Schedule(steps=60, batch_size=8, learning_rate=5e-3, warmup=0.1, weight_decay=0.0, precision="fp32")
    told: list[tuple[int, int]] = []
    train(candidate, data, of_labels(), schedule, pad_id=0, seed=0, on_step=lambda d, t: told.append((d, t)))
    assert not candidate.training
    assert told == [(step, 60) for step in range(1, 61)]
    logits = score(candidate, data, pad_id=0, batch_size=5, precision="fp32")
    assert (logits.argmax(-1) == data.labels).float().mean() > 0.9


def test_scores_are_in_the_order_of_the_rows_whatever_the_batch() -> None:
    candidate, data = model(), rows()
    one = score(candidate, data, pad_id=0, batch_size=1, precision="fp32")
    many = score(candidate, data, pad_id=0, batch_size=7, precision="fp32")
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)
    ids = data.ids[data.offsets[3] : data.offsets[4]].long()[None]
    torch.testing.assert_close(one[3], candidate(input_ids=ids).logits[0].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 400])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_learning_rate_rises_then_falls(steps: int, warmup: float) -> None:
    rates = [rate(step, steps=steps, warmup=warmup) for step in range(steps)]
    assert all(0 < value <= 1 for value in rates)
    assert max(rates) == 1
    peak = rates.index(1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_biases_and_layer_norms_do_not_decay() -> None:
    candidate = model()
    decaying, free = parameter_groups(candidate, 0.1)
    names = {id(p): n for n, p in candidate.named_parameters()}
    assert decaying["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    assert all("bias" not in names[id(p)] and "LayerNorm" not in names[id(p)] for p in decaying["params"])
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in free["params"])
    assert len(decaying["params"]) + len(free["params"]) == len(names)


def test_distillation_against_the_formula_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(9, 3, generator=generator), torch.randn(2, 3, generator=generator)
    labels, numbers, temperature, weight = torch.tensor([2, 0]), [7, 1], 2.0, 0.7
    total = 0.0
    for row, number in enumerate(numbers):
        p = [math.exp(v / temperature) for v in teacher[number].tolist()]
        q = [math.exp(v / temperature) for v in student[row].tolist()]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(numbers)
    expected = weight * total + (1 - weight) * functional.cross_entropy(student, labels).item()
    loss = distillation(teacher, weight=weight, temperature=temperature)
    assert loss(student, labels, numbers).item() == pytest.approx(expected, rel=1e-5)


def test_a_student_equal_to_its_teacher_has_no_distillation_loss() -> None:
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    loss = distillation(logits, weight=1.0, temperature=3.0)
    assert loss(logits, torch.zeros(5, dtype=torch.long), list(range(5))).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("weight", "moves"), [(1.0, True), (0.0, False)])
def test_recovery_follows_its_teacher_only_as_far_as_asked(weight: float, moves: bool) -> None:
    """A teacher that contradicts the labels pulls the student over, or does not."""
    data, candidate = rows(), model()
    contrary = functional.one_hot(1 - data.labels, 2).float() * 8
    settings = RecoverySettings(
        steps=60, batch_size=8, learning_rate=5e-3, distillation=weight, precision="fp32", weight_decay=0
    )
    recover(candidate, data, contrary, settings, pad_id=0, seed=0, on_step=ignore)
    right = (score(candidate, data, pad_id=0, batch_size=8, precision="fp32").argmax(-1) == data.labels).float().mean()
    assert (right < 0.2) if moves else (right > 0.8)


class Explodes(nn.Module):
    """A model whose logits are not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float("nan")))

    def forward(self, input_ids: torch.Tensor, **_rest: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.weight * torch.ones(len(input_ids), 2))


def test_a_loss_that_is_not_a_number_ends_the_trial_with_the_reason() -> None:
    with pytest.raises(TrialError, match=r"the loss became nan at step 1 of 12; lower the learning rate \(now 0.005\)"):
        train(Explodes(), rows(), of_labels(), SCHEDULE, pad_id=0, seed=0, on_step=ignore)


def test_autocast_is_used_where_asked_for() -> None:
    cpu = torch.device("cpu")
    with autocast(cpu, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(cpu, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("trained", [False, True])
def test_word_embeddings_are_trained_only_where_asked_for(trained: bool) -> None:
    candidate, data = model(), rows()
    before = {name: tensor.clone() for name, tensor in candidate.state_dict().items()}
    settings = RecoverySettings(steps=3, batch_size=8, precision="fp32", train_embeddings=trained)
    recover(candidate, data, torch.zeros(len(data), 2), settings, pad_id=0, seed=0, on_step=ignore)
    changed = {name for name, tensor in candidate.state_dict().items() if not torch.equal(tensor, before[name])}
    assert ("bert.embeddings.word_embeddings.weight" in changed) == trained
    assert "bert.encoder.layer.0.attention.self.query.weight" in changed
    assert all(parameter.requires_grad for parameter in candidate.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_the_recoverys_own(dropout: float) -> None:
    candidate, data = model(), rows()
    settings = RecoverySettings(steps=1, batch_size=8, precision="fp32", dropout=dropout)
    recover(candidate, data, torch.zeros(len(data), 2), settings, pad_id=0, seed=0, on_step=ignore)
    assert {module.p for module in candidate.modules() if isinstance(module, nn.Dropout)} == {dropout}
