"""ELECTRA, the discriminator: embeddings that may be narrower than the hidden states, a head of two layers."""

from typing import ClassVar

from torch import Tensor
from transformers import ElectraConfig, ElectraForSequenceClassification, PreTrainedModel

from objectives.layout import Layout
from search.bert.families.family import Family
from search.bert.families.narrow import narrow

LAYOUT = Layout(
    embeddings="electra.embeddings",
    projection="electra.embeddings_project",
    encoder="electra.encoder",
    layers="electra.encoder.layer",
    head=("classifier",),
)


class PrunedElectraForSequenceClassification(ElectraForSequenceClassification):  # type: ignore[no-untyped-call]
    """An ELECTRA classifier whose layers may differ in width, as `PrunedBertForSequenceClassification` does.

    Args:
        config: Config of the dense model, with or without the fields of a pruned one.

    Raises:
        ValueError: If these do not fit the dense shape.
    """

    layout: ClassVar[Layout] = LAYOUT

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        narrow(self, ELECTRA)
        self.post_init()  # type: ignore[no-untyped-call]


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    logits: Tensor = model.get_submodule("classifier")(hidden)
    return logits


ELECTRA = Family(
    title="ELECTRA",
    model=PrunedElectraForSequenceClassification,
    config=ElectraConfig,
    layout=LAYOUT,
    classifier=("classifier.out_proj.weight", "classifier.out_proj.bias"),
    between=("classifier.dense.weight", "classifier.dense.bias"),
    logits=_logits,
    embedding="embedding_size",
)
