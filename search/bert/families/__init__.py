"""Which families of models can be pruned, by the `model_type` of their config, and what the others ask of them."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from search.bert.families.bert import BERT
from search.bert.families.distilbert import DISTILBERT
from search.bert.families.electra import ELECTRA
from search.bert.families.family import Family
from search.bert.families.roberta import ROBERTA

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "roberta": ROBERTA,
}
"""The families by `model_type`."""


def family_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> Family:
    """The family that a model belongs to.

    Args:
        model_or_config: A classifier, or its config.

    Raises:
        ValueError: If it is of none.
    """
    config = model_or_config if isinstance(model_or_config, PreTrainedConfig) else model_or_config.config
    if config.model_type not in FAMILIES:
        raise ValueError(f"a model of type {config.model_type!r} is of none of the families {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]


def layers_of(model: PreTrainedModel) -> list[Any]:
    """The layers of a model, from the embeddings upwards."""
    return list(model.get_submodule(family_of(model).layout.layers).children())


def embedded(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """What goes into the first layer.

    Args:
        model: A classifier.
        batch: `input_ids` and perhaps `token_type_ids`, each (batch, tokens).

    Returns:
        Hidden states (batch, tokens, H).
    """
    family = family_of(model)
    given = {"input_ids": batch["input_ids"]}
    if "token_type_ids" in batch and family.shape(model.config).token_types > 1:
        given["token_type_ids"] = batch["token_type_ids"]
    hidden: Tensor = model.get_submodule(family.layout.embeddings)(**given)
    projection = family.layout.projection
    if projection is not None and family.shape(model.config).embedding is not None:
        hidden = model.get_submodule(projection)(hidden)
    return hidden


def entering(layer: nn.Module, block: str, projection: str, hidden: Tensor) -> Tensor:
    """What enters the output projection of a block.

    Args:
        layer: A layer of an encoder.
        block: Path of the block in it.
        projection: Path of the block's output projection: within the block, or behind it.
        hidden: Hidden states (sentences, tokens, H) or (tokens, H); there is no padding among them.

    Returns:
        Channels of heads or neurons at each token, shaped likewise.
    """
    seen: list[Tensor] = []
    module = layer.get_submodule(block)
    if not projection.startswith(f"{block}."):
        output = module(hidden)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def look(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0])

    handle = layer.get_submodule(projection).register_forward_pre_hook(look)
    try:
        module(hidden)
    finally:
        handle.remove()
    return seen[0]
