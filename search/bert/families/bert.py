"""BERT: a pooler over the first token, then the classification layer."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from objectives.layout import BERT as LAYOUT
from objectives.layout import Layout
from search.bert.families.family import Family
from search.bert.families.narrow import narrow


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

    layout: ClassVar[Layout] = LAYOUT

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        narrow(self, BERT)
        self.post_init()  # type: ignore[no-untyped-call]


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    whole: Any = model
    logits: Tensor = whole.classifier(whole.dropout(whole.bert.pooler(hidden)))
    return logits


BERT = Family(
    title="BERT",
    model=PrunedBertForSequenceClassification,
    config=BertConfig,
    layout=LAYOUT,
    classifier=("classifier.weight", "classifier.bias"),
    between=("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
    logits=_logits,
)
