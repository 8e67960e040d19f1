"""What is an objective: a named quantity that can be measured on a model, and the direction in which it is better."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

from objectives.measurement import Measurement

Direction = Literal["maximize", "minimize"]
"""Which way is better."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured. Objectives leave it as they find it: weights, modes and scores.

    Attributes:
        model: The real model in eval mode, on the device that it is measured on.
        logits: Shape (rows, labels), float: its scores on the selection split; None before it has been scored.
        labels: Shape (rows,), integer: the true classes of the same rows; float: the true numbers of a regression; None
            before it has been scored.
    """

    model: nn.Module
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None


@runtime_checkable
class Objective(Protocol):
    """A quantity of a model. Any object with these four attributes and this method is one; nothing to inherit."""

    @property
    def name(self) -> str:
        """Its name in studies and reports, for example `latency_ms`."""

    @property
    def unit(self) -> str:
        """Unit of its values, for example `ms`; empty for a share."""

    @property
    def direction(self) -> Direction:
        """Which way is better."""

    @property
    def needs_scores(self) -> bool:
        """Whether it reads logits and labels. False: it depends on the shape only and is measured before training."""

    def measure(self, subject: Subject) -> Measurement:
        """Measure the quantity.

        Args:
            subject: The model, and its scores where `needs_scores` is true.

        Returns:
            The value, in the objective's unit.

        Raises:
            MeasurementUnavailable: If the source of the figure cannot be read.
            ValueError: If `subject` lacks what the objective needs.
        """
