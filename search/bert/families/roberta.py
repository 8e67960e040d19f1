"""RoBERTa: positions numbered from that of the padding on, no pooler but a classification head of two layers."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel, RobertaConfig, RobertaForSequenceClassification

from objectives.layout import Layout
from search.bert.families.family import Family
from search.bert.families.narrow import narrow

LAYOUT = Layout(
    embeddings="roberta.embeddings",
    encoder="roberta.encoder",
    layers="roberta.encoder.layer",
    head=("classifier",),
)


class PrunedRobertaForSequenceClassification(RobertaForSequenceClassification):  # type: ignore[no-untyped-call]
    """A RoBERTa classifier whose layers may differ in width, as `PrunedBertForSequenceClassification` does.

    Args:
        config: Config of the dense model, with or without the fields of a pruned one.

    Raises:
        ValueError: If these do not fit the dense shape.
    """

    layout: ClassVar[Layout] = LAYOUT

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        narrow(self, ROBERTA)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """What the dense model computes. Token types are passed over where there is but one, as in most checkpoints."""
        types = token_type_ids if self.config.type_vocab_size > 1 else None
        return super().forward(input_ids, attention_mask, types, **others)


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    logits: Tensor = model.get_submodule("classifier")(hidden)
    return logits


ROBERTA = Family(
    title="RoBERTa",
    model=PrunedRobertaForSequenceClassification,
    config=RobertaConfig,
    layout=LAYOUT,
    classifier=("classifier.out_proj.weight", "classifier.out_proj.bias"),
    between=("classifier.dense.weight", "classifier.dense.bias"),
    logits=_logits,
    pairs="tokens",
)
