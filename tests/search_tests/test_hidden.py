"""Distillation of hidden states: what it measures, that it draws them together, and that it costs nothing when off."""

import copy
from typing import Any

import pytest
import torch
from test_supernet import SCORES, ignore, rows, tiny

from search.bert.choose import choose
from search.bert.encoding import collate
from search.bert.hidden import WithTeacher, distance
from search.bert.recovery import of_labels, recover
from search.bert.surgery import cut
from search.definition import RecoverySettings
from search.plan import Plan

SMALL = Plan((1, 0, 2), (4, 4, 0))
SETTINGS = RecoverySettings(steps=20, batch_size=8, learning_rate=3e-3, precision="fp32")


def small() -> Any:
    return cut(tiny(), choose(SMALL, SCORES))


def batch() -> dict[str, torch.Tensor]:
    found = collate(rows(), range(40), pad_id=0, device="cpu")
    found.pop("labels")
    return found


def apart(student: torch.nn.Module) -> float:
    """Distance of a model's hidden states from the dense model's, on all rows."""
    given = batch()
    with torch.no_grad():
        mine, wanted = (model(**given, output_hidden_states=True).hidden_states for model in (student, tiny()))
    return float(distance(mine[1:], wanted[1:], given["attention_mask"]))


def recovered(weight: float, **given: Any) -> Any:
    model, data = small(), rows()
    settings = SETTINGS.model_copy(update={"hidden_weight": weight})
    options = {"pad_id": 0, "seed": 0, "on_step": ignore, "teacher": tiny(), **given}
    recover(model, data, torch.zeros(len(data), 3), settings, **options)
    return model


def test_the_distance_is_a_share_of_the_teachers_variance_over_real_tokens() -> None:
    dice = torch.Generator().manual_seed(0)
    teacher = 100 * torch.randn(2, 3, 5, generator=dice)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    real = teacher[mask > 0]
    assert distance((teacher,), (teacher,), mask) == 0
    assert distance((real.mean(dim=0).expand(2, 3, 5),), (teacher,), mask) == pytest.approx(1.0)
    off = teacher + 3.0
    expected = 9.0 / (real - real.mean(dim=0)).square().mean()
    assert distance((off,), (teacher,), mask) == pytest.approx(float(expected))
    assert distance((off, teacher), (teacher, teacher), mask) == pytest.approx(float(expected) / 2)
    padded = teacher.clone()
    padded[1, 1:] = 1e6
    assert distance((padded,), (teacher,), mask) == 0


def test_a_teacher_that_says_the_same_everywhere_gives_no_infinite_loss() -> None:
    flat = (torch.ones(2, 3, 5),)
    assert distance(flat, flat, torch.ones(2, 3)) == 0


def test_it_draws_the_hidden_states_together() -> None:
    with_hidden, without = apart(recovered(1.0)), apart(recovered(0.0))
    assert with_hidden < 0.7 * without
    assert with_hidden < apart(small())


def test_only_the_student_is_trained() -> None:
    student, teacher = small(), tiny()
    before = copy.deepcopy(teacher.state_dict())
    pair = WithTeacher(student, teacher)
    assert {id(p) for p in pair.parameters()} == {id(p) for p in student.parameters()}
    assert not pair.train()._teacher[0].training
    recovered(1.0, teacher=teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_is_the_others_and_the_weighted_distance() -> None:
    student, given = small(), batch()
    pair, labels = WithTeacher(student, tiny()), rows().labels
    logits = pair(**given).logits
    assert torch.equal(logits, student(**given).logits)
    alone = of_labels()(logits, labels, [])
    whole = pair.loss(of_labels(), weight=2.0)(logits, labels, [])
    assert (whole - alone).item() == pytest.approx(2.0 * apart(student), rel=1e-4)


@pytest.mark.parametrize(("weight", "passes"), [(0.0, 0), (0.5, SETTINGS.steps)])
def test_the_teacher_runs_only_where_hidden_states_are_asked_for(weight: float, passes: int) -> None:
    teacher, calls = tiny(), []
    teacher.register_forward_hook(lambda *_given: calls.append(1))
    recovered(weight, teacher=teacher)
    assert len(calls) == passes


def test_without_it_the_recovery_is_what_it_was() -> None:
    one, other = recovered(0.0), recovered(0.0, teacher=None)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_hidden_states_without_a_teacher_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden_weight is 1\.0: comparing hidden states needs the teacher"):
        recovered(1.0, teacher=None)


def test_same_seed_same_result() -> None:
    one, other = recovered(1.0), recovered(1.0)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
