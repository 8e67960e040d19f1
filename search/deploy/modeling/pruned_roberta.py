"""A RoBERTa classifier whose layers differ in width: what transformers needs to load the weights beside this file.

    AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)

The model was cut from a dense RoBERTa: some heads and neurons of some layers are gone, their matrices are really
smaller, and a block that lost all of them is gone as well. config.json says what is left: `heads_per_layer`,
`neurons_per_layer` and, where the word embeddings are of low rank, `embedding_rank`. Its other fields are those of the
dense model. One layer, hidden size H, that keeps h heads of size d and w neurons; right, what is there when none is
kept:

    attention.self          query, key, value: H -> h*d    NoHeads   (nothing is computed)
    attention.output.dense  h*d -> H                       BiasOnly  (the bias of the dense projection stays)
    intermediate            H -> w, activation             Identity  (nothing is computed)
    output.dense            w -> H                         BiasOnly

Written by paretobert under the MIT licence. It needs torch and transformers 5, and reads nothing but this folder.
"""

import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification


class PrunedRobertaConfig(RobertaConfig):
    """Config of a dense RoBERTa, with what is left of each layer in `heads_per_layer` and `neurons_per_layer`."""

    model_type = "pruned_roberta"


class NoHeads(nn.Module):
    """Self-attention without heads: hands the hidden states on, from which `BiasOnly` reads batch and length."""

    def forward(self, hidden_states: torch.Tensor, *_args: object, **_kwargs: object) -> tuple[torch.Tensor, None]:
        """Return the hidden states (batch, tokens, H) as they are, and no attention weights."""
        return hidden_states, None


class BiasOnly(nn.Module):
    """Output projection of an empty block: of W·x + b only b is left."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the bias as a view (batch, tokens, H); of the inputs only batch and tokens are read."""
        return self.bias.expand(*inputs.shape[:-1], -1)


class FactorisedEmbedding(nn.Module):
    """Word embeddings of low rank: each token's row of a table (V, r), projected to the hidden size H."""

    def __init__(self, vocabulary: int, rank: int, hidden: int, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, rank, padding_idx=padding)
        self.projection = nn.Linear(rank, hidden, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (batch, tokens, H) of token ids (batch, tokens)."""
        return self.projection(self.table(ids))


class PrunedRobertaForSequenceClassification(RobertaForSequenceClassification):
    """A RoBERTa classifier with the layers that `config` describes."""

    config_class = PrunedRobertaConfig

    def __init__(self, config: PrunedRobertaConfig) -> None:
        super().__init__(config)
        for layer, heads in zip(self.roberta.encoder.layer, config.heads_per_layer, strict=True):
            narrow_attention(layer.attention, heads, config)
        for layer, neurons in zip(self.roberta.encoder.layer, config.neurons_per_layer, strict=True):
            narrow_feed_forward(layer, neurons, config)
        rank = getattr(config, "embedding_rank", None)
        if rank is not None:
            words = FactorisedEmbedding(config.vocab_size, rank, config.hidden_size, config.pad_token_id)
            self.roberta.embeddings.word_embeddings = words
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **others: object,
    ) -> object:
        """What the dense model computes. Token types are passed over where there is but one, as in most checkpoints."""
        types = token_type_ids if self.config.type_vocab_size > 1 else None
        return super().forward(input_ids, attention_mask, types, **others)


def narrow_attention(attention: nn.Module, heads: int, config: PrunedRobertaConfig) -> None:
    """Put smaller projections in place of the dense ones; their weights are loaded afterwards."""
    hidden, width = config.hidden_size, heads * (config.hidden_size // config.num_attention_heads)
    if heads == 0:
        attention.self = NoHeads()
        attention.output.dense = BiasOnly(hidden)
    elif heads < config.num_attention_heads:
        block = attention.self
        block.num_attention_heads, block.all_head_size = heads, width
        block.query, block.key, block.value = (nn.Linear(hidden, width) for _ in range(3))
        attention.output.dense = nn.Linear(width, hidden)


def narrow_feed_forward(layer: nn.Module, neurons: int, config: PrunedRobertaConfig) -> None:
    """Put smaller projections in place of the dense ones; their weights are loaded afterwards."""
    hidden = config.hidden_size
    if neurons == 0:
        layer.intermediate = nn.Identity()
        layer.output.dense = BiasOnly(hidden)
    elif neurons < config.intermediate_size:
        layer.intermediate.dense = nn.Linear(hidden, neurons)
        layer.output.dense = nn.Linear(neurons, hidden)
