"""What is kept of a model, layer by layer, and what that costs in parameters: closed forms, no weights.

Reference for the counts: the classes for sequence classification of transformers 5, that of BERT with its pooler.
"""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense classifier.

    Attributes:
        layers: Number of encoder layers.
        heads: Attention heads per layer.
        head_size: Width of one head.
        hidden: Width of the hidden states.
        neurons: Feed-forward neurons per layer.
        vocabulary: Rows of the word embedding; with a reduced vocabulary those that are left.
        positions: Rows of the position embedding.
        token_types: Rows of the token-type embedding; 0 where there is none.
        labels: Number of classes; 1 for a regression.
        embedding: Width of the embeddings where a projection widens them to the hidden states (ELECTRA); None where
            both are one.
    """

    layers: int
    heads: int
    head_size: int
    hidden: int
    neurons: int
    vocabulary: int
    positions: int
    token_types: int
    labels: int
    embedding: int | None = None

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings."""
        return self.hidden if self.embedding is None else self.embedding


@dataclass(frozen=True)
class Plan:
    """How many heads and neurons each layer keeps. Equal plans are one network.

    Attributes:
        heads: Heads kept, one number per layer.
        neurons: Neurons kept, one number per layer.
        rank: Rank r of the word embeddings, which are then a table (vocabulary, r) times a projection (r, E) to the
            width E of the embeddings; None leaves them one table (vocabulary, E).

    Raises:
        ValueError: If the two differ in length, are empty or hold a negative number, or the rank is less than 1.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    rank: int | None = None

    def __post_init__(self) -> None:
        if not self.heads or len(self.heads) != len(self.neurons):
            raise ValueError(
                f"a plan for {len(self.heads)} and {len(self.neurons)} layers: both must be equal, above 0"
            )
        if min(self.heads + self.neurons) < 0:
            raise ValueError(f"a plan with a negative number: heads {self.heads}, neurons {self.neurons}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"a plan whose word embeddings have rank {self.rank}: at least 1 is needed")

    @classmethod
    def dense(cls, shape: Shape) -> Self:
        """The plan that keeps everything."""
        return cls(heads=(shape.heads,) * shape.layers, neurons=(shape.neurons,) * shape.layers)

    def contains(self, other: Self) -> bool:
        """Whether this plan keeps all that the other one keeps: the units of a layer stay in the order of importance.

        Word embeddings that this plan has factorised already are only contained in the same rank.

        Example:
            >>> Plan((4, 2), (64, 32)).contains(Plan((4, 1), (32, 32)))
            True
            >>> Plan((4, 2), (64, 32)).contains(Plan((4, 3), (32, 32)))
            False
        """
        if len(self.heads) != len(other.heads) or self.rank not in (None, other.rank):
            return False
        own, others = self.heads + self.neurons, other.heads + other.neurons
        return all(kept >= wanted for kept, wanted in zip(own, others, strict=True))

    def __str__(self) -> str:
        rank = "" if self.rank is None else f" | rank {self.rank}"
        return f"heads {' '.join(map(str, self.heads))} | neurons {' '.join(map(str, self.neurons))}{rank}"


def encoder_parameters(plan: Plan, shape: Shape) -> int:
    """Count the parameters of the encoder.

    A head holds 3·(H + 1)·d + d·H (query, key, value with biases, and its columns of the output projection), a neuron
    2·H + 1. What every layer keeps, however little is left of it: the two output biases and the two LayerNorms, 6·H.

    Args:
        plan: Heads and neurons kept, layer by layer.
        shape: Sizes of the dense model.

    Returns:
        Parameters of the encoder alone.

    Example:
        >>> bert_base = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
        >>> encoder_parameters(Plan.dense(bert_base), bert_base)
        85054464
    """
    head = 3 * (shape.hidden + 1) * shape.head_size + shape.head_size * shape.hidden
    neuron = 2 * shape.hidden + 1
    return len(plan.heads) * 6 * shape.hidden + sum(plan.heads) * head + sum(plan.neurons) * neuron


def total_parameters(plan: Plan, shape: Shape) -> int:
    """Count all parameters: embeddings, encoder, pooler (or what stands in its place) and classifier.

    Word embeddings of rank r hold r·(V + E) numbers instead of V·E; E is the width of the embeddings.

    Args:
        plan: Heads and neurons kept, layer by layer, and the rank of the word embeddings.
        shape: Sizes of the dense model.

    Returns:
        Parameters of the whole classifier.

    Example:
        >>> bert_base = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
        >>> total_parameters(Plan.dense(bert_base), bert_base)
        109483778
    """
    width = shape.embedding_width
    embeddings = word_parameters(plan.rank, shape) + (shape.positions + shape.token_types + 2) * width
    if shape.embedding is not None:
        embeddings += (width + 1) * shape.hidden
    pooler = (shape.hidden + 1) * shape.hidden
    classifier = (shape.hidden + 1) * shape.labels
    return embeddings + encoder_parameters(plan, shape) + pooler + classifier


def word_parameters(rank: int | None, shape: Shape) -> int:
    """Count the parameters of the word embeddings.

    Args:
        rank: Their rank; None where they are one table.
        shape: Sizes of the dense model.

    Returns:
        V·E, or r·(V + E), with E the width of the embeddings: a rank of V·E / (V + E) or more saves nothing.

    Example:
        >>> bert_base = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
        >>> [word_parameters(rank, bert_base) for rank in (None, 128, 768)]
        [23440896, 4005120, 24030720]
    """
    width = shape.embedding_width
    return shape.vocabulary * width if rank is None else rank * (shape.vocabulary + width)


def encoder_macs(plan: Plan, shape: Shape, *, tokens: int) -> int:
    """Count the multiply-accumulates of the encoder for one sequence.

    A layer that keeps h heads of size d and w neurons, at hidden size H, costs
    4·tokens·H·h·d (query, key, value, output) + 2·tokens²·h·d (scores, context) + 2·tokens·H·w (feed-forward).

    Args:
        plan: Heads and neurons kept, layer by layer.
        shape: Sizes of the dense model.
        tokens: Length of the sequence with its special tokens, at least 1.

    Returns:
        MACs. Biases, softmax, LayerNorm and embeddings are not counted; nor are the r·H per token of factorised word
        embeddings, which the modelled energy counts (`objectives.energy.operations`).

    Raises:
        ValueError: If `tokens` is less than 1.

    Reference:
        Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", cost model.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}: a sequence has at least 1 token")
    width = sum(plan.heads) * shape.head_size
    attention = 4 * tokens * shape.hidden * width + 2 * tokens**2 * width
    return attention + 2 * tokens * shape.hidden * sum(plan.neurons)
