"""A DistilBERT classifier whose layers differ in width: what transformers needs to load the weights beside this file.

    AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)

The model was cut from a dense DistilBERT: some heads and neurons of some layers are gone, their matrices are really
smaller, and a block that lost all of them is gone as well. config.json says what is left: `heads_per_layer`,
`neurons_per_layer` and, where the word embeddings are of low rank, `embedding_rank`. Its other fields are those of the
dense model. One layer, hidden size H, that keeps h heads of size d and w neurons; right, what is there when none is
kept:

    attention.q_lin, k_lin, v_lin   H -> h*d              nothing
    attention.out_lin               h*d -> H              BiasOnly  (the bias of the dense projection stays)
    ffn.lin1                        H -> w, activation    nothing
    ffn.lin2                        w -> H                BiasOnly

Written by paretobert under the MIT licence. It needs torch and transformers 5, and reads nothing but this folder.
"""

import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification


class PrunedDistilBertConfig(DistilBertConfig):
    """Config of a dense DistilBERT, with what is left of each layer in `heads_per_layer` and `neurons_per_layer`."""

    model_type = "pruned_distilbert"


class BiasOnly(nn.Module):
    """Output projection of an empty block: of W·x + b only b is left."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the bias as a view (batch, tokens, H); of the inputs only batch and tokens are read."""
        return self.bias.expand(*inputs.shape[:-1], -1)


class NoHeads(nn.Module):
    """Attention without heads: the bias of its output projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_lin = BiasOnly(width)

    def forward(self, hidden_states: torch.Tensor, *_args: object, **_kwargs: object) -> tuple[torch.Tensor, None]:
        """Return the bias for each of the hidden states (batch, tokens, H), and no attention weights."""
        return self.out_lin(hidden_states), None


class NoNeurons(nn.Module):
    """Feed-forward block without neurons: the bias of its output projection, and the dropout behind it."""

    def __init__(self, width: int, dropout: nn.Module) -> None:
        super().__init__()
        self.lin2 = BiasOnly(width)
        self.dropout = dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the bias for each of the hidden states (batch, tokens, H)."""
        return self.dropout(self.lin2(hidden_states))


class FactorisedEmbedding(nn.Module):
    """Word embeddings of low rank: each token's row of a table (V, r), projected to the hidden size H."""

    def __init__(self, vocabulary: int, rank: int, hidden: int, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, rank, padding_idx=padding)
        self.projection = nn.Linear(rank, hidden, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (batch, tokens, H) of token ids (batch, tokens)."""
        return self.projection(self.table(ids))


class PrunedDistilBertForSequenceClassification(DistilBertForSequenceClassification):
    """A DistilBERT classifier with the layers that `config` describes."""

    config_class = PrunedDistilBertConfig

    def __init__(self, config: PrunedDistilBertConfig) -> None:
        super().__init__(config)
        for layer, heads in zip(self.distilbert.transformer.layer, config.heads_per_layer, strict=True):
            narrow_attention(layer, heads, config)
        for layer, neurons in zip(self.distilbert.transformer.layer, config.neurons_per_layer, strict=True):
            narrow_feed_forward(layer, neurons, config)
        rank = getattr(config, "embedding_rank", None)
        if rank is not None:
            words = FactorisedEmbedding(config.vocab_size, rank, config.dim, config.pad_token_id)
            self.distilbert.embeddings.word_embeddings = words
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,  # noqa: ARG002
        **others: object,
    ) -> object:
        """What the dense model computes. Token types are passed over: two texts are told apart by the separator."""
        return super().forward(input_ids, attention_mask, **others)


def narrow_attention(layer: nn.Module, heads: int, config: PrunedDistilBertConfig) -> None:
    """Put smaller projections in place of the dense ones; their weights are loaded afterwards."""
    width = heads * (config.dim // config.n_heads)
    if heads == 0:
        layer.attention = NoHeads(config.dim)
    elif heads < config.n_heads:
        block = layer.attention
        block.n_heads = heads
        block.q_lin, block.k_lin, block.v_lin = (nn.Linear(config.dim, width) for _ in range(3))
        block.out_lin = nn.Linear(width, config.dim)


def narrow_feed_forward(layer: nn.Module, neurons: int, config: PrunedDistilBertConfig) -> None:
    """Put smaller projections in place of the dense ones; their weights are loaded afterwards."""
    if neurons == 0:
        layer.ffn = NoNeurons(config.dim, layer.ffn.dropout)
    elif neurons < config.hidden_dim:
        layer.ffn.lin1 = nn.Linear(config.dim, neurons)
        layer.ffn.lin2 = nn.Linear(neurons, config.dim)
