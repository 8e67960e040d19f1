"""Labels for lines of text, from an exported folder, as the lines come in.

    lines ──► whatever is there, at most a batch ──► tokens ──► logits ──► one prediction per line, in their order

A line that comes alone is answered at once; lines that come fast go through the model together. No code of the folder
is run.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from search.bert.checkpoint import load
from search.bert.encoding import encode, load_tokenizer
from search.bert.reading import is_broken
from search.bert.splitting import Rows
from search.bert.training import score
from search.deploy.shipped import read_about
from search.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """What the model says of one line.

    Attributes:
        label: The most likely label; of a regression the name of its number.
        scores: Probability of each label, by label, which add up to 1; of a regression the number itself.
    """

    label: str
    scores: dict[str, float]

    @property
    def score(self) -> float:
        """Probability of the most likely label, or the number of a regression."""
        return self.scores[self.label]


class Predictor:
    """A model from an exported folder.

    Args:
        folder: What `paretobert export` wrote.
        device: What computes.

    Raises:
        UserError: If it is not such a folder, or it is broken.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        task = read_about(folder)["task"]
        self.texts = int(task["texts"])
        self._max_tokens = int(task["max_tokens"])
        self._labels = [str(label) for label in task["labels"]]
        self._regression = bool(task["regression"])
        self._tokenizer = load_tokenizer(str(folder))
        self._model = load(folder)
        torch.nn.Module.to(self._model, device)

    def predict(self, rows: Sequence[Sequence[str]]) -> list[Prediction]:
        """Classify rows together.

        Args:
            rows: Rows of as many texts as the model takes.
        """
        unlabelled = Rows(tuple(tuple(row) for row in rows), (0,) * len(rows))
        encoded = encode(unlabelled, self._tokenizer, max_tokens=self._max_tokens)
        pad_id = int(self._tokenizer.pad_token_id)
        logits = score(self._model, encoded, pad_id=pad_id, batch_size=len(rows), precision="fp32")
        scores = logits if self._regression else torch.softmax(logits, dim=-1)
        return [self._prediction(row) for row in scores.tolist()]

    def _prediction(self, row: Sequence[float]) -> Prediction:
        scores = dict(zip(self._labels, row, strict=True))
        return Prediction(max(scores, key=scores.__getitem__), scores)


def predictions(predictor: Predictor, lines: Iterable[str], *, batch_size: int) -> Iterator[Prediction]:
    """Classify lines as they come.

    Args:
        predictor: The model.
        lines: Lines of text; for pairs the two texts with a tab between.
        batch_size: Most lines that go through the model together, at least 1.

    Returns:
        One prediction per line, in their order.

    Raises:
        UserError: If a line is not UTF-8, or does not hold as many texts as the model takes; those before it have been
            answered.
    """
    for batch in _batches(_rows(lines, predictor.texts), batch_size):
        yield from predictor.predict(batch)


def _rows(lines: Iterable[str], texts: int) -> Iterator[Sequence[str]]:
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if is_broken(text):  # bytes that are none were read as halves of characters
            raise UserError(f"line {number} is not UTF-8; save the text as UTF-8")
        row = text.split("\t") if texts == 2 else [text]
        if len(row) != texts:
            raise UserError(
                f"line {number} holds {len(row)} texts and the model takes pairs; write the two texts with one tab "
                "between them"
            )
        yield row


def _batches(rows: Iterator[Sequence[str]], size: int) -> Iterator[list[Sequence[str]]]:
    """Rows in batches: as many as are there, at least one, without waiting for more.

    Raises:
        Exception: What the rows raise, after the rows before it.
    """
    waiting: queue.Queue[Sequence[str] | BaseException | None] = queue.Queue(maxsize=4 * size)

    def read() -> None:
        end: BaseException | None = None
        try:
            for row in rows:
                waiting.put(row)
        except BaseException as error:  # raised where the rows are used
            end = error
        waiting.put(end)

    threading.Thread(target=read, daemon=True).start()
    while True:
        batch: list[Sequence[str]] = []
        entry = waiting.get()
        while not (entry is None or isinstance(entry, BaseException)):
            batch.append(entry)
            if len(batch) == size:
                break
            try:
                entry = waiting.get_nowait()
            except queue.Empty:
                break
        if batch:
            yield batch
        if isinstance(entry, BaseException):
            raise entry
        if entry is None:
            return
