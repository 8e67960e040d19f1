"""What a pruned classifier is made of: transformers' own layers, narrower, without the blocks that vanished.

One layer of BERT, hidden size H, that keeps h heads of size d and w neurons; right, what is there when none is kept:

    attention.self          query, key, value: H -> h*d    NoHeads   (nothing is computed)
    attention.output.dense  h*d -> H                       BiasOnly  (the bias of the dense projection stays)
    intermediate            H -> w, activation             Identity  (nothing is computed)
    output.dense            w -> H                         BiasOnly

The residual paths, both LayerNorms, and outside the encoder everything but the word embeddings keep the shape of the
dense model, so the names of the weights are a subset of the dense model's names. Word embeddings of rank r:

    embeddings.word_embeddings             table V x r, projection r -> H without bias    FactorisedEmbedding

Other families have these parts in other places: `objectives.layout` says where.
"""

from typing import Any

import torch
from torch import Tensor, nn


class NoHeads(nn.Module):
    """Self-attention without heads: hands the hidden states on, from which `BiasOnly` reads batch and length."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, None]:
        """Return the hidden states (batch, tokens, H) as they are, and no attention weights."""
        return hidden_states, None


class BiasOnly(nn.Module):
    """Output projection of an empty block: of W·x + b only b is left.

    Attributes:
        bias: The bias (H,) of the dense projection.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the bias as a view (batch, tokens, H); of the inputs only batch and tokens are read."""
        # Without autograd a view of a parameter still claims to need a gradient, at which torch's FLOP counter breaks.
        bias = self.bias if torch.is_grad_enabled() else self.bias.detach()
        return bias.expand(*inputs.shape[:-1], -1)


class FactorisedEmbedding(nn.Module):
    """Word embeddings of low rank: each token's row of a table (V, r), projected to the width of the embeddings.

    Args:
        vocabulary: Rows V of the table.
        rank: Columns r of the table.
        width: Width of the embeddings.
        padding: Number of the padding token, whose row is not trained; None where there is none.

    Reference:
        Lan et al. 2020, "ALBERT", section 3.1, factorized embedding parameterization.
    """

    def __init__(self, vocabulary: int, rank: int, width: int, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, rank, padding_idx=padding)
        self.projection = nn.Linear(rank, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (batch, tokens, width) of token ids (batch, tokens)."""
        embedded: Tensor = self.projection(self.table(ids))
        return embedded
