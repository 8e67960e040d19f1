"""How many multiply-accumulates does the encoder need for one sequence."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from objectives.measurement import Measurement
from objectives.objective import Direction, Subject
from objectives.products import encoder_products


def encoder_macs(model: nn.Module, *, tokens: int) -> int:
    """Count the multiply-accumulates of the real encoder for one sequence.

    A layer that keeps h heads of size d and w neurons, at hidden size H, costs
    4·tokens·H·h·d (query, key, value, output) + 2·tokens²·h·d (scores, context) + 2·tokens·H·w (feed-forward).

    Args:
        model: A classifier, cut or dense.
        tokens: Length of the sequence with its special tokens, at least 1.

    Returns:
        MACs. Biases, softmax, LayerNorm, embeddings (factorised ones too), pooler and classification layer are not
        counted.

    Raises:
        TypeError: If a part is not where the model's layout says.
        ValueError: If `tokens` is less than 1.

    Reference:
        Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", cost model.
    """
    return sum(product.macs for product in encoder_products(model, tokens=tokens))


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the encoder for one sequence.

    Attributes:
        tokens: Length of the sequence with its special tokens, at least 1.

    Raises:
        ValueError: If `tokens` is less than 1.
    """

    tokens: int
    name: ClassVar[str] = "macs"
    unit: ClassVar[str] = "MACs"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}: a sequence has at least 1 token")

    def measure(self, subject: Subject) -> Measurement:
        """Count them.

        Raises:
            TypeError: If a part is not where the model's layout says.
        """
        return Measurement(float(encoder_macs(subject.model, tokens=self.tokens)), self.unit, "closed form")
