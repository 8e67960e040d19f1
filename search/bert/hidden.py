"""Distillation of hidden states: after each layer the cut model shall hold what the teacher holds.

teacher   embeddings ─► layer 1 ─► h₁ ─► layer 2 ─► h₂ ...      one more forward pass per step, no gradient
                                   ↕                ↕
student   embeddings ─► layer 1 ─► h₁ ─► layer 2 ─► h₂ ...      as wide: a cut never touches the hidden size
"""

from typing import Any

import torch
from torch import Tensor, nn

from search.bert.training import Loss


class WithTeacher(nn.Module):
    """A student that runs its teacher beside itself, and knows how far apart their hidden states were.

    What can be trained is the student alone.

    Args:
        student: The cut model.
        teacher: The dense model that it was cut from, in evaluation mode and on the same device; only read.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # in a tuple: nn.Module would take its parameters for ours, and train it
        self._distance = torch.zeros(())

    def forward(self, **batch: Tensor) -> Any:
        """The student's output for a batch."""
        (teacher,) = self._teacher
        output = self.student(**batch, output_hidden_states=True)
        with torch.no_grad():
            wanted = teacher(**batch, output_hidden_states=True).hidden_states
        self._distance = distance(output.hidden_states[1:], wanted[1:], batch["attention_mask"])
        return output

    def loss(self, other: Loss, *, weight: float) -> Loss:
        """Another loss, and `weight` times the distance of the batch that was last seen."""
        return lambda logits, labels, rows: other(logits, labels, rows) + weight * self._distance


def distance(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states, in shares of the teacher's variance; mean over the layers.

    Hidden states of later layers, and of other checkpoints, have other sizes: the share makes them comparable. 0 is
    equal; 1 is as far as a student that holds the teacher's mean everywhere.

    Args:
        student: Hidden states (batch, tokens, H) after each layer.
        teacher: Likewise.
        mask: 1 on tokens, 0 on padding (batch, tokens); padding does not count.

    Returns:
        A scalar, float32.

    Reference:
        Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding", equation 8, with the identity
        for W_h because the widths are equal; Xia et al. 2022, "Structured Pruning Learns Compact and Accurate Models"
        (CoFi), section 3.2, layer by layer. The division by the variance is ours.
    """
    tokens = mask > 0
    shares = []
    for mine, wanted in zip(student, teacher, strict=True):
        target = wanted[tokens].float()
        spread = (target - target.mean(dim=0)).square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        shares.append((mine[tokens].float() - target).square().mean() / spread)
    return torch.stack(shares).mean()
