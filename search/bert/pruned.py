"""What a pruned classifier holds, read from its config: the dense sizes, and what each layer keeps of them."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from search.bert.families import family_of
from search.bert.families.bert import PrunedBertForSequenceClassification
from search.bert.families.blocks import BiasOnly, FactorisedEmbedding, NoHeads
from search.bert.families.narrow import check_fits, planned
from search.plan import Plan, Shape

__all__ = [
    "BiasOnly",
    "FactorisedEmbedding",
    "NoHeads",
    "PrunedBertForSequenceClassification",
    "check_fits",
    "plan_of",
    "shape_of",
    "word_table",
    "words_of",
]


def shape_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> Shape:
    """Read the sizes of the dense model, also from a pruned one.

    Args:
        model_or_config: A classifier, or its config.

    Returns:
        The dense shape.

    Raises:
        ValueError: If it is of no family.
    """
    config = model_or_config if isinstance(model_or_config, PreTrainedConfig) else model_or_config.config
    return family_of(config).shape(config)


def plan_of(config: PreTrainedConfig) -> Plan:
    """Read what each layer holds.

    Args:
        config: Config of a dense or a pruned classifier.

    Returns:
        Heads and neurons, layer by layer, and the rank; the dense plan where the config says nothing.

    Raises:
        ValueError: If the config's lists or rank do not fit its dense shape.
    """
    return planned(config, shape_of(config))


def words_of(model: PreTrainedModel) -> nn.Module:
    """The word embeddings of a classifier: one table, or a factorised one."""
    return model.get_submodule(family_of(model).layout.words)


def word_table(model: PreTrainedModel) -> nn.Module:
    """The table that tokens are looked up in: the word embeddings, or the table of factorised ones.

    Args:
        model: A classifier, cut or dense.
    """
    words = words_of(model)
    return words.table if isinstance(words, FactorisedEmbedding) else words
