"""Which modules of a classifier are its parts. A model whose class has an attribute `layout` says where they are."""

from typing import Any, cast

from torch import nn

from objectives.layout import BERT, Layout


def layout_of(model: nn.Module) -> Layout:
    """Where the parts of a model are: what its `layout` says, or where BERT has them."""
    found = getattr(model, "layout", BERT)
    return found if isinstance(found, Layout) else BERT


def encoder(model: nn.Module) -> nn.Module:
    """The encoder of a classifier.

    Raises:
        TypeError: If the model has none where its layout says.
    """
    return _part(model, layout_of(model).encoder)


def layers(model: nn.Module) -> list[nn.Module]:
    """The encoder's layers, from the embeddings upwards.

    Raises:
        TypeError: If the model has none where its layout says.
    """
    return list(_part(model, layout_of(model).layers).children())


def embeddings(model: nn.Module) -> list[nn.Module]:
    """The embeddings of a classifier: words, positions and token types, and what widens them to the hidden states.

    Raises:
        TypeError: If the model has none where its layout says.
    """
    layout = layout_of(model)
    projection = None if layout.projection is None else _found(model, layout.projection)
    return [_part(model, layout.embeddings), *([] if projection is None else [projection])]


def head(model: nn.Module) -> list[nn.Module]:
    """What reads the encoder for the classification; it sees one token of each sequence.

    Raises:
        TypeError: If the model has none where its layout says.
    """
    return [_part(model, path) for path in layout_of(model).head]


def longest(model: nn.Module) -> int:
    """Tokens of the longest sequence that a model has positions for, special tokens included.

    Where positions are numbered from that of the padding on (RoBERTa), the first ones are of no token. Of a model whose
    class says nothing of its parts, and which has them elsewhere than BERT, the configuration tells it.

    Raises:
        TypeError: If the model has no position embeddings where its layout says, or none that the configuration tells.
    """
    path = layout_of(model).positions
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if _found(model, path) is None and not hasattr(model, "layout") and isinstance(most, int):
        tables = [each for name, each in model.named_modules() if name.endswith("position_embeddings")]
        return most - max((_of_no_token(table) for table in tables if isinstance(table, nn.Embedding)), default=0)
    table = _part(model, path)
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"the positions are a {type(table).__name__}, which has no length: only torch.nn.Embedding has")
    return table.num_embeddings - _of_no_token(table)


def config(model: nn.Module) -> Any:
    """The configuration of a transformers model: `vocab_size` and so on.

    Raises:
        TypeError: If the model has none.
    """
    if not hasattr(model, "config"):
        raise TypeError(f"{type(model).__name__} has no 'config': give a classifier of transformers")
    return cast(Any, model).config


def _of_no_token(positions: nn.Embedding) -> int:
    """How many of the first positions stand for no token of a sequence."""
    return 0 if positions.padding_idx is None else positions.padding_idx + 1


def _found(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _part(model: nn.Module, path: str) -> nn.Module:
    part = _found(model, path)
    if part is None:
        raise TypeError(
            f"{type(model).__name__} has no {path!r}: give a model built like BertForSequenceClassification, or one "
            "whose class says with `layout` where its parts are"
        )
    return part
