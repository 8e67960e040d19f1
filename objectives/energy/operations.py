"""What energy does one inference take, by a published model of what operations cost. Computed, not measured.

    energy = MACs · pJ per MAC + bytes moved · pJ per byte

For one sequence of T tokens in a batch of B, everything in 4-byte floats:

    MACs                 every matrix product of encoder, pooler, classification layer and embeddings
    bytes moved
      weights            all parameters of encoder, pooler and classification layer, and the projections of embeddings
                         that are narrower than the hidden states or factorised, read once per batch: · 4 / B
      embedding rows     for each token one row of each embedding table (word, position, token type)
      activations        of every matrix product its activation operands (both of them in attention scores and
                         context) and its result

No on-chip memory is assumed: an activation that one product writes and the next reads counts twice. Biases are read
but their additions are not counted, nor are softmax, GELU, LayerNorm and residuals. A block that was cut away costs
nothing but the biases that stay in its place.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from objectives.inference import Conditions
from objectives.measurement import Measurement
from objectives.objective import Direction, Subject
from objectives.parts import embeddings, encoder, head
from objectives.products import embedding_products, encoder_products, head_products
from objectives.size import count_parameters

_BYTES_PER_NUMBER = 4
_PICOJOULES_PER_MILLIJOULE = 1_000_000_000


@dataclass(frozen=True)
class Operations:
    """What one sequence costs.

    Attributes:
        macs: Multiply-accumulates.
        moved_bytes: Bytes read and written; a fraction where a batch shares the weights.
    """

    macs: int
    moved_bytes: float


def count_operations(model: nn.Module, *, batch: int, tokens: int) -> Operations:
    """Count the operations of one sequence in a batch, from the sizes of the real modules.

    Args:
        model: A classifier, cut or dense.
        batch: Sequences that share one reading of the weights, at least 1.
        tokens: Length of each sequence with its special tokens, at least 1.

    Returns:
        MACs and bytes of one sequence, by the rules at the top of this file.

    Raises:
        TypeError: If a part is not where the model's layout says.
        ValueError: If `tokens` is less than 1.
    """
    projected = embedding_products(model, tokens=tokens)
    products = projected + encoder_products(model, tokens=tokens) + head_products(model)
    weights = sum(count_parameters(part) for part in (encoder(model), *head(model)))
    within = [module for part in embeddings(model) for module in part.modules()]
    weights += sum(count_parameters(module) for module in within if isinstance(module, nn.Linear))
    tables = [module for module in within if isinstance(module, nn.Embedding)]
    rows = tokens * sum(table.embedding_dim for table in tables)
    activations = sum(product.activations for product in products)
    return Operations(
        macs=sum(product.macs for product in products),
        moved_bytes=_BYTES_PER_NUMBER * (weights / batch + rows + activations),
    )


@dataclass(frozen=True)
class ModelledEnergy:
    """Energy of one inference (one sequence of a batch), in millijoules, computed from its operations.

    The same model gives the same figure on every machine. It ranks models; it says nothing about a device.

    Attributes:
        conditions: Batch and tokens.
        picojoules_per_mac: Energy of one fp32 multiply-accumulate in pJ, above 0.
        picojoules_per_byte: Energy of one byte moved in pJ, above 0.

    Raises:
        ValueError: If an energy is not above 0.

    Reference:
        Horowitz 2014, "Computing's Energy Problem (and what we can do about it)", ISSCC, figure 1.1.9, 45 nm: fp32
        multiply 3.7 pJ, fp32 add 0.9 pJ, DRAM 1.3 to 2.6 nJ per 64 bits.
    """

    conditions: Conditions
    picojoules_per_mac: float
    picojoules_per_byte: float
    name: ClassVar[str] = "energy_mj"
    unit: ClassVar[str] = "mJ"
    direction: ClassVar[Direction] = "minimize"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.picojoules_per_mac > 0 and self.picojoules_per_byte > 0):
            raise ValueError(
                f"{self.picojoules_per_mac} pJ per MAC and {self.picojoules_per_byte} pJ per byte: both must be above 0"
            )

    def measure(self, subject: Subject) -> Measurement:
        """Count the operations and add up what they cost.

        Returns:
            Millijoules per sequence, with the source `model`.

        Raises:
            TypeError: If a part is not where the model's layout says.
        """
        counted = count_operations(subject.model, batch=self.conditions.batch, tokens=self.conditions.tokens)
        energy_pj = counted.macs * self.picojoules_per_mac + counted.moved_bytes * self.picojoules_per_byte
        return Measurement(energy_pj / _PICOJOULES_PER_MILLIJOULE, self.unit, "model")
