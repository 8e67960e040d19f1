"""Train a cut model back: on the labels, and by distillation from the dense teacher.

The teacher's logits on the training rows are computed once per study, so that a step costs one forward and one backward
pass of the cut model, and none of the teacher. Only the hidden states, where they are asked for, need one.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from search.bert.encoding import Encoded
from search.bert.hidden import WithTeacher
from search.bert.pruned import word_table
from search.bert.training import Loss, OnStep, Schedule, train
from search.definition import RecoverySettings


def of_labels() -> Loss:
    """The loss of plain fine-tuning, mean over the batch: cross-entropy of classes, squared error of numbers."""
    return lambda logits, labels, _rows: _of_labels(logits, labels)


def _of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return functional.mse_loss(logits[:, 0], labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels)


def distillation(teacher_logits: Tensor, *, weight: float, temperature: float) -> Loss:
    """The loss of recovery: `weight` · T² · KL(teacher ‖ student) at temperature T, the rest that of the labels.

    In a regression, which has one output, the first part is the squared difference to the teacher's.

    Args:
        teacher_logits: The teacher's logits (training rows, labels), on the device of the student.
        weight: Share of the distillation loss, 0 to 1.
        temperature: Softmax temperature T of both; not used in a regression.

    Returns:
        The loss, mean over the batch. T² keeps the gradients' size independent of T.

    Reference:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    teacher = teacher_logits.float()
    one_output = teacher.shape[1] == 1
    known = teacher if one_output else functional.log_softmax(teacher / temperature, dim=-1)

    def loss(logits: Tensor, labels: Tensor, rows: list[int]) -> Tensor:
        target = known[torch.as_tensor(rows, device=known.device)]
        if one_output:
            soft = functional.mse_loss(logits, target)
        else:
            student = functional.log_softmax(logits / temperature, dim=-1)
            soft = functional.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2
        if weight == 1.0:
            return soft
        return weight * soft + (1.0 - weight) * _of_labels(logits, labels)

    return loss


def recover(
    model: PreTrainedModel,
    rows: Encoded,
    teacher_logits: Tensor,
    settings: RecoverySettings,
    *,
    pad_id: int,
    seed: int,
    on_step: OnStep,
    teacher: nn.Module | None = None,
    rungs: Sequence[float] = (),
    on_rung: Callable[[float], bool] | None = None,
) -> None:
    """Recover a cut model in place.

    The table of the word embeddings is trained only where the settings say so: a step touches few of its rows, and the
    optimizer all of them. The projection of factorised ones is small and always trained.

    Args:
        model: The cut model, on the device to train on.
        rows: The training split.
        teacher_logits: The teacher's logits on it (rows, labels).
        settings: Steps, rates and the weight of distillation.
        pad_id: Number of the padding token.
        seed: Seed of the batches' order and of dropout.
        on_step: Told after each step.
        teacher: The dense model in evaluation mode, on the same device. It runs only where hidden states are compared,
            and is never changed.
        rungs: Shares of the steps after which `on_rung` is asked.
        on_rung: Asked, with the model in evaluation mode, whether the recovery ends there. It changes nothing else: one
            that never ends it leaves every weight as it would be.

    Raises:
        TrialError: If the loss stops being a finite number.
        ValueError: If hidden states are to be compared without a teacher.
    """
    device = next(model.parameters()).device
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = settings.dropout
    embeddings = word_table(model)
    embeddings.requires_grad_(settings.train_embeddings)
    loss = of_labels()
    if settings.distillation > 0:
        loss = distillation(teacher_logits.to(device), weight=settings.distillation, temperature=settings.temperature)
    trained: nn.Module = model
    if settings.hidden_weight > 0:
        if teacher is None:
            raise ValueError(f"hidden_weight is {settings.hidden_weight}: comparing hidden states needs the teacher")
        trained = pair = WithTeacher(model, teacher)
        loss = pair.loss(loss, weight=settings.hidden_weight)
    schedule = Schedule(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        precision=settings.precision,
    )

    def is_enough(step: int) -> bool:
        if on_rung is None or step not in places:
            return False
        trained.eval()
        ends = on_rung(places[step])
        trained.train()
        return ends

    places = {round(share * settings.steps): share for share in sorted(rungs, reverse=True)}
    train(trained, rows, loss, schedule, pad_id=pad_id, seed=seed, on_step=on_step, is_enough=is_enough)
    embeddings.requires_grad_(True)
