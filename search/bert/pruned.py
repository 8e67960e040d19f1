"""What a pruned BERT classifier is made of: transformers' own layers, narrower, without the blocks that vanished.

One layer, hidden size H, that keeps h heads of size d and w neurons; right, what stands there when none is kept:

    attention.self          query, key, value: H -> h*d    NoHeads   (nothing is computed)
    attention.output.dense  h*d -> H                       BiasOnly  (the bias of the dense projection stays)
    intermediate            H -> w, activation             Identity  (nothing is computed)
    output.dense            w -> H                         BiasOnly

The residual paths, both LayerNorms, and outside the encoder everything but the word embeddings keep the shape of the
dense model, so the names of the weights are a subset of the dense model's names. Word embeddings of rank r:

    embeddings.word_embeddings             table V x r, projection r -> H without bias    FactorisedEmbedding
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from search.plan import Plan, Shape


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
    """Word embeddings of low rank: each token's row of a table (V, r), projected to the hidden size H.

    Args:
        vocabulary: Rows V of the table.
        rank: Columns r of the table.
        hidden: Width H of the hidden states.
        padding: Number of the padding token, whose row is not trained; None where there is none.

    Reference:
        Lan et al. 2020, "ALBERT", section 3.1, factorized embedding parameterization.
    """

    def __init__(self, vocabulary: int, rank: int, hidden: int, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, rank, padding_idx=padding)
        self.projection = nn.Linear(rank, hidden, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (batch, tokens, H) of token ids (batch, tokens)."""
        embedded: Tensor = self.projection(self.table(ids))
        return embedded


class PrunedBertForSequenceClassification(BertForSequenceClassification):  # type: ignore[no-untyped-call]
    """A BERT classifier whose layers may differ in width.

    The config holds `heads_per_layer` and `neurons_per_layer`, two lists of whole numbers, and `embedding_rank`, a
    whole number; all its other fields are those of the dense model, so that `shape_of` can tell the dense shape.
    Without the two lists the encoder is dense, without the rank the word embeddings are one table.
    `output_attentions` reports the layers that have heads, and no others.

    Args:
        config: Config of the dense model, with or without the three fields.

    Raises:
        ValueError: If the three do not fit the dense shape.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        shape, plan = shape_of(config), plan_of(config)
        for layer, heads, neurons in zip(self.bert.encoder.layer, plan.heads, plan.neurons, strict=True):
            if heads < shape.heads:
                _narrow_attention(layer.attention, heads, shape)
            if neurons < shape.neurons:
                _narrow_feed_forward(layer, neurons, shape)
        if plan.rank is not None:
            sizes = (shape.vocabulary, plan.rank, shape.hidden)
            self.bert.embeddings.word_embeddings = FactorisedEmbedding(*sizes, config.pad_token_id)  # type: ignore[assignment]
        self.post_init()  # type: ignore[no-untyped-call]


def shape_of(model_or_config: BertForSequenceClassification | BertConfig) -> Shape:
    """Read the sizes of the dense model, also from a pruned one.

    Args:
        model_or_config: A BERT classifier, or its config.

    Returns:
        The dense shape.
    """
    config = model_or_config if isinstance(model_or_config, BertConfig) else model_or_config.config
    return Shape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        neurons=config.intermediate_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        token_types=config.type_vocab_size,
        labels=cast(int, config.num_labels),
    )


def plan_of(config: BertConfig) -> Plan:
    """Read what each layer holds.

    Args:
        config: Config of a dense or a pruned BERT classifier.

    Returns:
        Heads and neurons, layer by layer, and the rank; the dense plan where the config says nothing.

    Raises:
        ValueError: If the config's lists or rank do not fit its dense shape.
    """
    dense = Plan.dense(shape_of(config))
    heads = getattr(config, "heads_per_layer", None)
    neurons = getattr(config, "neurons_per_layer", None)
    plan = Plan(
        heads=dense.heads if heads is None else tuple(heads),
        neurons=dense.neurons if neurons is None else tuple(neurons),
        rank=getattr(config, "embedding_rank", None),
    )
    check_fits(plan, shape_of(config))
    return plan


def check_fits(plan: Plan, shape: Shape) -> None:
    """Refuse a plan that keeps more than there is.

    Args:
        plan: Heads and neurons kept, layer by layer.
        shape: Sizes of the dense model.

    Raises:
        ValueError: If the number of layers differs, a layer keeps more than the dense layer holds, or the rank exceeds
            the hidden size.
    """
    if len(plan.heads) != shape.layers:
        raise ValueError(f"a plan for {len(plan.heads)} layers on a model of {shape.layers}: both must be equal")
    if max(plan.heads) > shape.heads or max(plan.neurons) > shape.neurons:
        raise ValueError(f"the plan '{plan}' exceeds the {shape.heads} heads or {shape.neurons} neurons of a layer")
    if plan.rank is not None and plan.rank > shape.hidden:
        raise ValueError(f"word embeddings of rank {plan.rank}: the hidden size is {shape.hidden}")


def word_table(model: nn.Module) -> nn.Module:
    """The table that tokens are looked up in: the word embeddings, or the table of factorised ones.

    Args:
        model: A BERT classifier, cut or dense.
    """
    words = model.get_submodule("bert.embeddings.word_embeddings")
    return words.table if isinstance(words, FactorisedEmbedding) else words


def _narrow_attention(attention: Any, heads: int, shape: Shape) -> None:
    """Put smaller, freshly initialised projections in place of the dense ones."""
    width = heads * shape.head_size
    if heads == 0:
        attention.self = NoHeads()
        attention.output.dense = _bias_only(attention.output.dense)
        return
    block = attention.self
    block.num_attention_heads, block.all_head_size = heads, width
    block.query, block.key, block.value = (nn.Linear(shape.hidden, width) for _ in range(3))
    attention.output.dense = nn.Linear(width, shape.hidden)


def _narrow_feed_forward(layer: Any, neurons: int, shape: Shape) -> None:
    """Put smaller, freshly initialised projections in place of the dense ones."""
    if neurons == 0:
        layer.intermediate = nn.Identity()
        layer.output.dense = _bias_only(layer.output.dense)
        return
    layer.intermediate.dense = nn.Linear(shape.hidden, neurons)
    layer.output.dense = nn.Linear(neurons, shape.hidden)


def _bias_only(projection: nn.Linear) -> BiasOnly:
    return BiasOnly(projection.bias.detach())
