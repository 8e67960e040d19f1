"""What a trial answered, sentence by sentence: packed for the study database, and unpacked again.

    true and predicted classes ──► a code per sentence ──► the fewest bits that hold it ──► base64
                                    right or wrong (accuracy alone), or true and predicted class (other metrics)

872 sentences take 148 letters, or 292 where the classes are kept. Of a split that would need more than `MOST_BYTES`,
evenly taken sentences are kept, the same ones for all trials of a study.
"""

import base64
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 2048
"""Packed size of what is kept of one trial, at most: 16,384 sentences right or wrong."""

RIGHT = 1
"""Code of a sentence that was classified correctly, where only right and wrong are kept; 0 is wrong."""


@dataclass(frozen=True)
class Answers:
    """What one trial answered.

    Attributes:
        codes: Shape (sentences kept,): true class · `labels` + predicted class; where `labels` is 0, 1 for right and
            0 for wrong.
        labels: Number of classes; 0 where only right and wrong are kept.
        rows: Sentences of the split, kept or not.
    """

    codes: NDArray[np.int64]
    labels: int
    rows: int

    @property
    def kind(self) -> tuple[int, int]:
        """Trials of one kind answered the same sentences and can be compared one by one."""
        return self.rows, self.labels


def packed(true: NDArray[np.int64], predicted: NDArray[np.int64], *, labels: int) -> dict[str, Any]:
    """Pack what a trial answered.

    Args:
        true: Shape (rows,): the true classes.
        predicted: Shape (rows,): the classes that the trial predicts, in the same order.
        labels: Number of classes; 0 keeps only which answers are right.

    Returns:
        Plain values for JSON: `rows`, `labels` and `bits`.

    Raises:
        ValueError: If there are no rows, not as many predictions as true classes, or a class is out of range.

    Example:
        >>> packed(np.array([1, 0, 1, 1]), np.array([1, 1, 1, 0]), labels=0)
        {'rows': 4, 'labels': 0, 'bits': 'oA=='}
    """
    if true.shape != predicted.shape or true.ndim != 1 or not len(true):
        raise ValueError(f"{true.shape} true and {predicted.shape} predicted classes: give one of each for every row")
    if labels and not (min(true.min(), predicted.min()) >= 0 and max(true.max(), predicted.max()) < labels):
        raise ValueError(f"a class is not one of the {labels} from 0 to {labels - 1}")
    codes = true * labels + predicted if labels else (true == predicted).astype(np.int64)
    width = _width(labels)
    places = np.arange(width - 1, -1, -1)
    bits = (codes[_kept(len(true), labels)][:, None] >> places) & 1
    text = base64.b64encode(np.packbits(bits.astype(np.uint8).ravel()).tobytes()).decode("ascii")
    return {"rows": len(true), "labels": labels, "bits": text}


def unpacked(values: dict[str, Any]) -> Answers:
    """Unpack what `packed` gave.

    Args:
        values: Its plain values.

    Raises:
        ValueError: If the bits are not those of so many rows.

    Example:
        >>> unpacked({"rows": 4, "labels": 0, "bits": "oA=="}).codes.tolist()
        [1, 0, 1, 0]
    """
    rows, labels, width = int(values["rows"]), int(values["labels"]), _width(int(values["labels"]))
    data = base64.b64decode(values["bits"], validate=True)
    count = len(_kept(rows, labels))
    if len(data) != -(-count * width // 8):
        raise ValueError(f"{len(data)} bytes of answers: {count} sentences take {-(-count * width // 8)}")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count * width).reshape(count, width)
    return Answers(bits @ (1 << np.arange(width - 1, -1, -1)), labels, rows)


def _width(labels: int) -> int:
    """Bits of one code."""
    return max(1, (labels**2 - 1).bit_length())


@lru_cache(maxsize=8)
def _kept(rows: int, labels: int) -> NDArray[np.int64]:
    """Which rows of a split are kept."""
    most = MOST_BYTES * 8 // _width(labels)
    return np.arange(rows) if rows <= most else np.linspace(0, rows - 1, most).round().astype(np.int64)
