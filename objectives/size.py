"""How big is a model: its parameters, counted one by one on the real modules."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from objectives.measurement import Measurement
from objectives.objective import Direction, Subject
from objectives.parts import encoder

_SOURCE = "counted"


def count_parameters(module: nn.Module) -> int:
    """Count the numbers in all parameters of a module; one that is shared counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Parameters:
    """Parameters of the whole classifier: embeddings, encoder, pooler and classification layer."""

    name: ClassVar[str] = "parameters"
    unit: ClassVar[str] = "parameters"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measurement:
        """Count them."""
        return Measurement(float(count_parameters(subject.model)), self.unit, _SOURCE)


@dataclass(frozen=True)
class EncoderParameters:
    """Parameters of the encoder alone: what cutting heads and neurons can reach."""

    name: ClassVar[str] = "encoder_parameters"
    unit: ClassVar[str] = "parameters"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measurement:
        """Count them.

        Raises:
            TypeError: If a part is not where the model's layout says.
        """
        return Measurement(float(count_parameters(encoder(subject.model))), self.unit, _SOURCE)


@dataclass(frozen=True)
class EncoderShare:
    """Parameters of the encoder as a share of those before the cut.

    Attributes:
        dense_encoder_parameters: Parameters of the dense model's encoder, at least 1.

    Raises:
        ValueError: If `dense_encoder_parameters` is less than 1.
    """

    dense_encoder_parameters: int
    name: ClassVar[str] = "encoder_share"
    unit: ClassVar[str] = ""
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.dense_encoder_parameters < 1:
            raise ValueError(f"dense_encoder_parameters is {self.dense_encoder_parameters}: it must be at least 1")

    def measure(self, subject: Subject) -> Measurement:
        """Count the encoder's parameters and divide.

        Raises:
            TypeError: If a part is not where the model's layout says.
        """
        count = count_parameters(encoder(subject.model))
        return Measurement(count / self.dense_encoder_parameters, self.unit, _SOURCE)
