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

In bfloat16 every number takes 2 bytes, and a MAC what one of 16 bits costs. In dynamic int8 weights, embedding rows and
the activations that meet weights take 1 byte, and a MAC with weights what one of 8 bits costs; the results of products,
and attention's scores and context, stay float32.

No on-chip memory is assumed: an activation that one product writes and the next reads counts twice. Biases are read
but their additions are not counted, nor are softmax, GELU, LayerNorm and residuals. A block that was cut away costs
nothing but the biases that stay in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from objectives.inference import Conditions
from objectives.measurement import Measurement
from objectives.objective import Direction, Subject
from objectives.parts import embeddings, encoder, head
from objectives.products import Product, embedding_products, encoder_products, head_products
from objectives.size import count_parameters

_PICOJOULES_PER_MILLIJOULE = 1_000_000_000


@dataclass(frozen=True)
class Numbers:
    """What numbers cost that a model computes with.

    Attributes:
        weight: Bytes of a weight, and of a number in an embedding row.
        meeting: Bytes of an activation that meets weights.
        other: Bytes of every other activation.
        mac_with_weights: Energy of a multiply-accumulate with a weight, as a share of an fp32 one.
        mac: Likewise of one between activations.
    """

    weight: int
    meeting: int
    other: int
    mac_with_weights: float
    mac: float


NUMBERS: Mapping[str, Numbers] = {
    "fp32": Numbers(4, 4, 4, 1.0, 1.0),
    "bf16": Numbers(2, 2, 2, 1.5 / 4.6, 1.5 / 4.6),  # 16 bits: 1.1 multiply + 0.4 add, against 3.7 + 0.9
    "int8": Numbers(1, 1, 4, 0.3 / 4.6, 1.0),  # 0.2 multiply + 0.1 for the 32-bit integer add
}
"""By precision; energies of Horowitz 2014, 45 nm, as shares of the fp32 multiply-accumulate there."""


@dataclass(frozen=True)
class Operations:
    """What one sequence costs.

    Attributes:
        macs: Multiply-accumulates, each counted as the share of an fp32 one that it costs.
        moved_bytes: Bytes read and written; a fraction where a batch shares the weights.
    """

    macs: float
    moved_bytes: float


def count_operations(model: nn.Module, *, batch: int, tokens: int, precision: str = "fp32") -> Operations:
    """Count the operations of one sequence in a batch, from the sizes of the real modules.

    Args:
        model: A classifier, cut or dense.
        batch: Sequences that share one reading of the weights, at least 1.
        tokens: Length of each sequence with its special tokens, at least 1.
        precision: What it computes in, one of `NUMBERS`.

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
    numbers = NUMBERS[precision]
    activations = sum(_activation_bytes(product, numbers) for product in products)
    return Operations(
        macs=sum(product.macs * (numbers.mac_with_weights if product.weights else numbers.mac) for product in products),
        moved_bytes=numbers.weight * (weights / batch + rows) + activations,
    )


def _activation_bytes(product: Product, numbers: Numbers) -> int:
    """Bytes of the activations that a product reads and writes."""
    if not product.weights:
        return numbers.other * product.activations
    left = product.count * product.rows * product.inner
    return numbers.meeting * left + numbers.other * (product.activations - left)


@dataclass(frozen=True)
class ModelledEnergy:
    """Energy of one inference (one sequence of a batch), in millijoules, computed from its operations.

    The same model gives the same figure on every machine. It ranks models; it says nothing about a device.

    Attributes:
        conditions: Batch and tokens; the number type in them says nothing here.
        picojoules_per_mac: Energy of one fp32 multiply-accumulate in pJ, above 0.
        picojoules_per_byte: Energy of one byte moved in pJ, above 0.
        precision: What the model computes in, one of `NUMBERS`.

    Raises:
        ValueError: If an energy is not above 0.

    Reference:
        Horowitz 2014, "Computing's Energy Problem (and what we can do about it)", ISSCC, figure 1.1.9, 45 nm: fp32
        multiply 3.7 pJ, fp32 add 0.9 pJ, DRAM 1.3 to 2.6 nJ per 64 bits.
    """

    conditions: Conditions
    picojoules_per_mac: float
    picojoules_per_byte: float
    precision: str = "fp32"
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
            Millijoules per sequence, with the source `model`; `conditions` hold the precision, and where that is not
            fp32 `details` say what the same model costs in fp32, in which it is trained.

        Raises:
            TypeError: If a part is not where the model's layout says.
        """
        details = {} if self.precision == "fp32" else {"fp32": self._millijoules(subject.model, "fp32")}
        return Measurement(
            self._millijoules(subject.model, self.precision),
            self.unit,
            "model",
            details=details,
            conditions={"precision": self.precision},
        )

    def _millijoules(self, model: nn.Module, precision: str) -> float:
        counted = count_operations(
            model, batch=self.conditions.batch, tokens=self.conditions.tokens, precision=precision
        )
        energy_pj = counted.macs * self.picojoules_per_mac + counted.moved_bytes * self.picojoules_per_byte
        return energy_pj / _PICOJOULES_PER_MILLIJOULE
