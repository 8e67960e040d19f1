"""DistilBERT: no token types, output projections within their blocks, a layer before the classification layer."""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

from objectives.layout import Layout
from search.bert.families.family import Family
from search.bert.families.narrow import narrow

LAYOUT = Layout(
    embeddings="distilbert.embeddings",
    encoder="distilbert.transformer",
    layers="distilbert.transformer.layer",
    head=("pre_classifier", "classifier"),
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    feed_forward="ffn",
    up="ffn.lin1",
    down="ffn.lin2",
    norm="output_layer_norm",
)


class NoAttention(nn.Module):
    """Attention without heads: the bias of its output projection, which `narrow` puts at `out_lin`."""

    def __init__(self) -> None:
        super().__init__()
        self.out_lin: nn.Module = nn.Identity()

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, None]:
        """Return the bias for each of the hidden states (batch, tokens, H), and no attention weights."""
        return self.out_lin(hidden_states), None


class NoFeedForward(nn.Module):
    """Feed-forward block without neurons: the bias of its output projection, which `narrow` puts at `lin2`.

    Args:
        dropout: Dropout of the dense block's output.
    """

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.lin2: nn.Module = nn.Identity()
        self.dropout = dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the bias for each of the hidden states (batch, tokens, H)."""
        output: Tensor = self.dropout(self.lin2(hidden_states))
        return output


class PrunedDistilBertForSequenceClassification(DistilBertForSequenceClassification):  # type: ignore[no-untyped-call]
    """A DistilBERT classifier whose layers may differ in width, as `PrunedBertForSequenceClassification` does.

    Args:
        config: Config of the dense model, with or without the fields of a pruned one.

    Raises:
        ValueError: If these do not fit the dense shape.
    """

    layout: ClassVar[Layout] = LAYOUT

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        narrow(self, DISTILBERT)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,  # noqa: ARG002 # tokenizers give them, the model has none
        **others: Any,
    ) -> Any:
        """What the dense model computes. Token types are passed over: two texts are told apart by the separator."""
        return super().forward(input_ids, attention_mask, **others)


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    whole: Any = model
    logits: Tensor = whole.classifier(whole.dropout(whole.pre_classifier(hidden[:, 0]).relu()))
    return logits


DISTILBERT = Family(
    title="DistilBERT",
    model=PrunedDistilBertForSequenceClassification,
    config=DistilBertConfig,
    layout=LAYOUT,
    classifier=("classifier.weight", "classifier.bias"),
    between=("pre_classifier.weight", "pre_classifier.bias"),
    logits=_logits,
    pairs="tokens",
    neurons="hidden_dim",
    token_types=None,
    without_heads=lambda _block: NoAttention(),
    without_neurons=lambda block: NoFeedForward(block.get_submodule("dropout")),
)
