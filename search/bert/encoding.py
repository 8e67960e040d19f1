"""How texts become batches of tokens: tokenised once per study, padded only as far as each batch needs.

    rows      [CLS] it 's fun . [SEP] │ [CLS] no laughs . [SEP] │ ...
    ids       101 2009 1005 1055 4569 1012 102  101 2053 11680 1012 102 ...      one flat tensor
    offsets   0                                 7                       12 ...   where each row begins
    batch     rows of about the same length, each padded to the longest of them

Training and scoring go by row numbers; `collate` turns those of one batch into the tensors that a model takes.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from search.bert.reading import looks_like_path
from search.bert.splitting import Rows
from search.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
"""A folder with a tokenizer holds at least one of these."""

ROWS_AT_ONCE = 1000
"""Rows that the tokenizer gets at once: enough to keep it busy, few enough to keep its lists small."""

CHUNK_BATCHES = 50
"""Training batches whose rows are sorted by length together."""

_DTYPES = {
    "ids": (torch.int32,),
    "types": (torch.uint8,),
    "offsets": (torch.int64,),
    "labels": (torch.int64, torch.float32),
}


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised rows, one after the other without padding.

    Attributes:
        ids: Token ids of all rows, int32, shape (tokens,).
        types: Token types, 1 for the second text of a pair, uint8, shape (tokens,).
        offsets: Where each row begins in `ids`, and the end of the last, int64, shape (rows + 1,).
        labels: Numbers of the labels, int64, or the labels of a regression, float32; shape (rows,).

    Raises:
        ValueError: If types or shapes do not fit together.
    """

    ids: Tensor
    types: Tensor
    offsets: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, dtypes in _DTYPES.items():
            tensor = getattr(self, name)
            if tensor.dtype not in dtypes or tensor.dim() != 1:
                known = " or ".join(map(str, dtypes))
                raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}: it is flat and {known}")
        if len(self.types) != len(self.ids):
            raise ValueError(f"types has {len(self.types)} tokens and ids has {len(self.ids)}: one type for each token")
        if len(self.offsets) != len(self.labels) + 1:
            raise ValueError(f"offsets has {len(self.offsets)} places for {len(self.labels)} rows: one more than rows")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.ids) or bool((self.lengths < 1).any()):
            raise ValueError(f"offsets do not rise from 0 to the {len(self.ids)} tokens: each row has at least one")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row with its special tokens, int64, shape (rows,)."""
        return self.offsets[1:] - self.offsets[:-1]

    def taken(self, numbers: Sequence[int]) -> "Encoded":
        """Some of the rows, in the order of their numbers as given."""
        starts, ends = self.offsets[:-1].tolist(), self.offsets[1:].tolist()
        places = torch.cat([torch.arange(starts[row], ends[row]) for row in numbers])
        chosen = torch.tensor(list(numbers), dtype=torch.int64)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths[chosen].cumsum(0)])
        return Encoded(self.ids[places], self.types[places], offsets, self.labels[chosen])

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as safetensors stores them; `from_tensors` gives the same rows back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Encoded":
        """Rebuild from the tensors of `to_tensors`.

        Raises:
            ValueError: If a tensor is missing, unknown, or does not fit the others.
        """
        if set(tensors) != set(_DTYPES):
            raise ValueError(f"tensors are {sorted(tensors)}: encoded rows are {sorted(_DTYPES)}")
        return cls(**tensors)


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a checkpoint. Code that comes with a checkpoint is never run.

    Args:
        model: A folder, or a name on the hub.

    Returns:
        The tokenizer.

    Raises:
        UserError: If there is no such folder, it holds no tokenizer, or the hub does not give one.
    """
    from transformers import AutoTokenizer

    folder = Path(model).expanduser()
    if folder.is_dir():
        there = sorted(entry.name for entry in folder.iterdir())
        if not set(TOKENIZER_FILES) & set(there):
            raise UserError(
                f"model folder '{model}' holds no tokenizer: none of {', '.join(TOKENIZER_FILES)} lies there, only "
                f"{', '.join(there) or 'nothing'}; copy the files of the checkpoint's tokenizer into it"
            )
    elif folder.exists() or looks_like_path(model):
        raise UserError(
            f"model is '{model}': no such folder; give --model PATH of a checkpoint folder, or a name on the hub"
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else model, trust_remote_code=False)
    except Exception as error:  # the hub's failures have no common class, and broken files raise whatever they break
        raise UserError(
            f"the tokenizer of model '{model}' cannot be loaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); check the name and the connection, or give --model PATH of a folder"
        ) from error


def rules_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Everything that decides which tokens a text becomes: casing, accents, splitting, merges, special tokens.

    Args:
        tokenizer: The tokenizer.

    Returns:
        What tokenizer.json says of it, without what each call decides; of a tokenizer in Python its class and settings.
        No path of this machine is in it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        taken = [name for name in inspect.signature(type(tokenizer).__init__).parameters if not name.endswith("_file")]
        settings = {name: str(tokenizer.init_kwargs[name]) for name in taken if name in tokenizer.init_kwargs}
        return {"class": type(tokenizer).__name__, "settings": settings, "truncation_side": tokenizer.truncation_side}
    rules: dict[str, Any] = json.loads(backend.to_str())
    for name in ("version", "padding", "truncation", "decoder"):
        rules.pop(name, None)
    return {**rules, "truncation_side": tokenizer.truncation_side}


def encode(rows: Rows, tokenizer: "PreTrainedTokenizerBase", *, max_tokens: int) -> Encoded:
    """Tokenise rows. Of a pair that is too long, the longer text is cut first.

    Args:
        rows: Rows of one or two texts each.
        tokenizer: The checkpoint's tokenizer.
        max_tokens: Longest row in tokens, special tokens included.

    Returns:
        The rows in their order.

    Raises:
        UserError: If nothing is left of a row.
    """
    ids: list[int] = []
    types: list[int] = []
    lengths: list[int] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        columns = [list(column) for column in zip(*rows.texts[start : start + ROWS_AT_ONCE], strict=True)]
        batch = tokenizer(
            *columns,
            truncation="longest_first",
            max_length=max_tokens,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        for row_ids, row_types in zip(batch["input_ids"], batch["token_type_ids"], strict=True):
            ids += row_ids
            types += row_types
            lengths.append(len(row_ids))
    if 0 in lengths:
        raise UserError(
            f"the tokenizer makes no token of the texts {rows.texts[lengths.index(0)]!r}: it adds no special tokens, "
            "and they hold nothing that it knows; remove the row, or take a tokenizer that adds a classifier's tokens"
        )
    return Encoded(
        ids=torch.tensor(ids, dtype=torch.int32),
        types=torch.tensor(types, dtype=torch.uint8),
        offsets=torch.tensor([0, *np.cumsum(lengths, dtype=np.int64)], dtype=torch.int64),
        labels=torch.tensor(rows.labels, dtype=torch.float32 if _are_numbers(rows) else torch.int64),
    )


def _are_numbers(rows: Rows) -> bool:
    """Whether the labels are those of a regression."""
    return any(isinstance(label, float) for label in rows.labels)


def collate(encoded: Encoded, rows: Sequence[int], *, pad_id: int, device: torch.device | str) -> dict[str, Tensor]:
    """Lay rows side by side, padded on the right to the longest of them.

    Args:
        encoded: Tokenised rows.
        rows: Numbers of the batch's rows, at least one.
        pad_id: Token id that fills up.
        device: Where the batch goes.

    Returns:
        `input_ids`, `attention_mask` (1 on tokens, 0 on padding) and `token_type_ids`, each int64 of shape
        (rows, longest), and `labels` as they are, of shape (rows,).
    """
    places = torch.as_tensor(rows, dtype=torch.int64)
    starts, lengths = encoded.offsets[places], encoded.lengths[places]
    steps = torch.arange(int(lengths.max()))
    mask = steps < lengths[:, None]
    tokens = (starts[:, None] + steps).masked_fill(~mask, 0)
    batch = {
        "input_ids": encoded.ids[tokens].long().masked_fill(~mask, pad_id),
        "attention_mask": mask.long(),
        "token_type_ids": encoded.types[tokens].long().masked_fill(~mask, 0),
        "labels": encoded.labels[places],
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def training_batches(encoded: Encoded, *, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches for training, epoch after epoch without end.

        shuffle all rows ──► chunks of 50 batches ──► sort each by length ──► cut into batches ──► shuffle the batches

    Args:
        encoded: Tokenised rows, at least one.
        batch_size: Rows per batch, at least 1. The last batch of an epoch is smaller where it does not divide the rows.
        seed: Seed of all shuffling; equal seeds give equal batches.

    Returns:
        Row numbers, batch by batch. In each epoch every row comes exactly once.

    Raises:
        ValueError: If there are no rows, or `batch_size` is less than 1.
    """
    _require_batches(encoded, batch_size)
    return _endless(encoded.lengths.numpy(), batch_size, np.random.default_rng(seed))


def scoring_batches(encoded: Encoded, *, batch_size: int) -> list[list[int]]:
    """Batches for scoring: every row once, the longest first, so that a lack of memory shows at once.

    Args:
        encoded: Tokenised rows, at least one.
        batch_size: Rows per batch, at least 1; the last batch may be smaller.

    Returns:
        Row numbers, batch by batch; equally long rows keep their order.

    Raises:
        ValueError: If there are no rows, or `batch_size` is less than 1.
    """
    _require_batches(encoded, batch_size)
    return _cut(np.argsort(-encoded.lengths.numpy(), kind="stable"), batch_size)


def drawn_batches(encoded: Encoded, count: int, *, batch_size: int, seed: int) -> list[list[int]]:
    """Some rows, each at most once and each as likely as any other, in batches of about the same length.

    Args:
        encoded: Tokenised rows, at least one.
        count: Rows to draw; all of them where there are fewer.
        batch_size: Rows per batch, at least 1; the last batch may be smaller.
        seed: Seed of the drawing.

    Returns:
        Row numbers, batch by batch, the longest rows first, so that a lack of memory shows at once.

    Raises:
        ValueError: If there are no rows, or `batch_size` is less than 1.
    """
    _require_batches(encoded, batch_size)
    drawn = np.random.default_rng(seed).permutation(len(encoded))[:count]
    return _cut(drawn[np.argsort(-encoded.lengths.numpy()[drawn], kind="stable")], batch_size)


def _require_batches(encoded: Encoded, batch_size: int) -> None:
    if batch_size < 1 or len(encoded) < 1:
        raise ValueError(f"batch_size is {batch_size} with {len(encoded)} rows: both must be at least 1")


def _endless(lengths: "np.typing.NDArray[np.int64]", batch_size: int, dice: np.random.Generator) -> Iterator[list[int]]:
    while True:
        shuffled = dice.permutation(len(lengths))
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), CHUNK_BATCHES * batch_size):
            chunk = shuffled[start : start + CHUNK_BATCHES * batch_size]
            batches += _cut(chunk[np.argsort(lengths[chunk], kind="stable")], batch_size)
        for place in dice.permutation(len(batches)):
            yield batches[place]


def _cut(order: "np.typing.NDArray[np.int64]", batch_size: int) -> list[list[int]]:
    return [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
