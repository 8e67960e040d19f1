"""Where are the parts of a BERT classifier.

model ─┬─ base_model ─┬─ embeddings
       │              ├─ encoder ── layer ── 0, 1, ...
       │              └─ pooler ─── dense
       └─ classifier
"""

from typing import Any, cast

from torch import nn


def encoder(model: nn.Module) -> nn.Module:
    """The encoder of a classifier.

    Raises:
        TypeError: If the model has none where BERT has it.
    """
    return _part(_base(model), "encoder")


def layers(model: nn.Module) -> list[nn.Module]:
    """The encoder's layers, from the embeddings upwards.

    Raises:
        TypeError: If the model has none where BERT has them.
    """
    return list(_part(encoder(model), "layer").children())


def embeddings(model: nn.Module) -> nn.Module:
    """The embeddings of a classifier: words, positions and token types.

    Raises:
        TypeError: If the model has none where BERT has them.
    """
    return _part(_base(model), "embeddings")


def head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The pooler and the classification layer, which see one token of each sequence.

    Raises:
        TypeError: If the model has none where BERT has them.
    """
    return _part(_base(model), "pooler"), _part(model, "classifier")


def config(model: nn.Module) -> Any:
    """The configuration of a transformers model: `vocab_size`, `max_position_embeddings` and so on.

    Raises:
        TypeError: If the model has none.
    """
    if not hasattr(model, "config"):
        raise TypeError(_unlike(model, "config"))
    return cast(Any, model).config


def _base(model: nn.Module) -> nn.Module:
    base = getattr(model, "base_model", None)  # a property in transformers, so get_submodule does not find it
    if not isinstance(base, nn.Module):
        raise TypeError(_unlike(model, "base_model"))
    return base


def _part(module: nn.Module, name: str) -> nn.Module:
    part = getattr(module, name, None)
    if not isinstance(part, nn.Module):
        raise TypeError(_unlike(module, name))
    return part


def _unlike(module: nn.Module, name: str) -> str:
    return f"{type(module).__name__} has no {name!r}: give a model built like BertForSequenceClassification"
