"""On which rows is a model scored that did not come out of the search itself?

tokenizer like the study's? ──yes──► the study's own rows, from its artifacts
no ──► the same texts, from its data, in the model's tokens
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from objectives import parts
from search.artifacts import digest_of_files
from search.bert.classifier import Classifier
from search.bert.encoding import TOKENIZER_FILES, Encoded, encode, load_tokenizer
from search.bert.splitting import load_rows, load_splits
from search.definition import Definition, Task
from search.errors import UserError

PROBE = "Héllo, World's 3rd?"
"""Text by which tokenizers of one vocabulary are told apart."""


@dataclass(frozen=True, eq=False)
class ScoringRows:
    """Rows to score a model on.

    Attributes:
        rows: As the model's tokenizer wrote them.
        pad_id: Number of its padding token.
    """

    rows: Encoded
    pad_id: int


def rows_of_study(
    split: str,
    checkpoint: str,
    model: Classifier,
    definition: Definition,
    folders: Mapping[str, Path],
    note: Callable[[str], None],
) -> ScoringRows:
    """A split of a study in a model's own tokens: those of the study where the tokenizers are equal.

    Args:
        split: `selection` or `held_out`.
        checkpoint: The checkpoint, as it was named.
        model: What was loaded from it.
        definition: The study's definition.
        folders: Where the study's artifacts are, by kind.
        note: Told what was taken for granted.

    Raises:
        UserError: If the tokenizer is missing or the sequences are too long; or if the texts are needed, and the data
            are not here or not what they were.
    """
    studys, tokens = load_tokenizer(str(folders["teacher"])), int(model.config.vocab_size)
    own = any((model.folder / name).exists() for name in TOKENIZER_FILES)
    if not own and tokens != len(studys):
        raise UserError(
            f"the checkpoint '{checkpoint}' has no tokenizer, and {tokens} tokens where the study's has {len(studys)}; "
            "copy the files of its tokenizer into the folder"
        )
    tokenizer = load_tokenizer(str(model.folder)) if own else studys
    if not own:
        note("the checkpoint has no tokenizer: the study's was taken")
    if _alike(tokenizer, studys):
        rows = Encoded.from_tensors(load_file(folders["tokens"] / f"{split}.safetensors"))
    else:
        _check_data(definition, folders["tokens"])
        texts = getattr(load_splits(definition.data, definition.task, seed=definition.engine.seed), split)
        rows = encode(texts, tokenizer, max_tokens=definition.task.max_tokens)
    longest, most = int(rows.lengths.max()), parts.longest(model.model)
    if longest > most:
        raise UserError(
            f"the {split.replace('_', '-')} split has sequences of {longest} tokens, and the checkpoint '{checkpoint}' "
            f"{most} positions; name a model with as many"
        )
    return ScoringRows(rows, int(tokenizer.pad_token_id))


def rows_of_data(model: Classifier, data: str, task: Task, split: str) -> ScoringRows:
    """A split of some data in a model's own tokens.

    Args:
        model: The model, with a tokenizer in its folder.
        data: A file, a folder with one file per split, or the name of a data set on the hub.
        task: Columns, labels and the longest sequence.
        split: Its name; a single file holds only `train`.

    Raises:
        UserError: If the data or the tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(str(model.folder))
    longest = min(task.max_tokens, parts.longest(model.model))
    encoded = encode(load_rows(data, task, split), tokenizer, max_tokens=longest)
    return ScoringRows(encoded, int(tokenizer.pad_token_id))


def check_labels(checkpoint: str, model: Classifier, task: Task) -> None:
    """Refuse a classifier of other labels, or of another order.

    Args:
        checkpoint: The checkpoint, as it was named.
        model: What was loaded from it; one without a classifier of its own fits every task.
        task: The task.

    Raises:
        UserError: If they differ.
    """
    if not model.is_fine_tuned:
        return
    if model.count != task.outputs:
        named = f"has {len(task.labels)} ({', '.join(task.labels)})"
        asked = "is a regression, with one output" if task.is_regression else named
        raise UserError(
            f"the checkpoint '{checkpoint}' tells {model.count} labels apart and the task {asked}; "
            "name a classifier of that task"
        )
    if task.is_regression:
        return
    if model.labels and model.labels != task.labels:
        raise UserError(
            f"the checkpoint '{checkpoint}' has the labels {list(model.labels)} and the task {list(task.labels)}; "
            "their order gives the class numbers: rename them in the checkpoint's config.json (id2label)"
        )


def _alike(mine: Any, other: Any) -> bool:
    """Whether two tokenizers write the same tokens, as far as their vocabularies and a text with everything tell."""
    return bool(mine.get_vocab() == other.get_vocab() and mine(PROBE)["input_ids"] == other(PROBE)["input_ids"])


def _check_data(definition: Definition, tokens: Path) -> None:
    """Refuse other data than the study's: the model has another tokenizer, so that the texts are needed again."""
    made = json.loads((tokens / "key.json").read_text(encoding="utf-8"))["data"]
    data = Path(definition.data).expanduser()
    if made != (digest_of_files(data) if data.exists() else definition.data):
        raise UserError(
            f"the model has another tokenizer than the study, so its texts are needed, and '{definition.data}' is not "
            "what the study was created with, or is not here; measure where the data are"
        )
