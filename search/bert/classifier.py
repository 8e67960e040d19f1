"""Loading any classifier to be measured: our own checkpoints, plain BERT, and what transformers knows otherwise.

    folder or hub name ──► BERT, dense or cut by us? ──yes──► `search.bert.checkpoint`
                                  no ──► AutoModelForSequenceClassification, safetensors only

Code that a checkpoint brings along is never run.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search.bert.checkpoint import folder_of, is_fine_tuned, load, load_dense, quiet
from search.errors import UserError

UNNAMED = "LABEL_"
"""How transformers names the labels of a checkpoint that names none begins."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model that was loaded to be measured.

    Attributes:
        model: In evaluation mode, on the CPU, in the type that was stored.
        folder: Where its files are.
        labels: Its labels in the order of the class numbers; empty where it names none.
        count: How many labels it tells apart.
        is_ours: Whether it was loaded as a BERT encoder, dense or cut, whose parts are known.
        is_fine_tuned: Whether its weights hold a classifier; else it got a new one, which says nothing of a task.
    """

    model: nn.Module
    folder: Path
    labels: tuple[str, ...]
    count: int
    is_ours: bool
    is_fine_tuned: bool = True

    @property
    def config(self) -> Any:
        """Its configuration, of transformers."""
        return self.model.config

    @property
    def stored_as(self) -> torch.dtype:
        """The number type of its weights."""
        return next(self.model.parameters()).dtype


def load_classifier(path_or_name: str, *, labels: int) -> Classifier:
    """Load a classifier, or an encoder that gets a new classification layer.

    Args:
        path_or_name: Folder of a checkpoint, or a name on the hub.
        labels: Classes of the new layer, where the checkpoint has none.

    Raises:
        UserError: If it cannot be had, lacks weights, or is of a kind that neither we nor transformers know.
    """
    folder = folder_of(path_or_name)
    try:
        has_head = is_fine_tuned(folder)
        model: Any = load(folder) if has_head else load_dense(folder, labels=labels)
        is_ours = True
    except UserError as error:
        if _kind(folder) == "bert":
            raise
        model, is_ours, has_head = _plain(path_or_name, folder, error), False, True
    named = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    known = has_head and not all(name.startswith(UNNAMED) for name in named)
    return Classifier(model, folder, tuple(named) if known else (), int(model.config.num_labels), is_ours, has_head)


def scorable(model: nn.Module) -> nn.Module:
    """The model as `search.bert.training.score` calls it: token types are left out where it does not take them."""
    takes = inspect.signature(model.forward).parameters
    return model if "token_type_ids" in takes else _WithoutTypes(model)


class _WithoutTypes(nn.Module):
    """A model that tells no texts apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, **_types: Tensor) -> Any:
        """Pass on what it takes."""
        return self._model(input_ids=input_ids, attention_mask=attention_mask)


def _kind(folder: Path) -> str | None:
    """The `model_type` of a config; None where there is none to be read."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return None if kind is None else str(kind)


def _plain(path_or_name: str, folder: Path, ours: UserError) -> Any:
    """A classifier of another kind, as transformers loads it."""
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        with quiet():
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                str(folder), dtype="auto", output_loading_info=True, **options
            )
    except Exception as error:  # what is wrong with a folder raises whatever it breaks
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint '{path_or_name}' cannot be loaded: {ours}; as a plain transformers classifier neither "
            f"({type(error).__name__}: {reason})"
        ) from None
    model, report = loaded
    wrong = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if wrong:
        raise UserError(
            f"the checkpoint '{path_or_name}' lacks {len(wrong)} weights of a {type(model).__name__}, the first is "
            f"{wrong[0]!r}; name a whole, fine-tuned classifier"
        )
    return model.eval()
