"""Which rows are trained on, which are scored on, and which the search never sees.

    given split ──────────────────► unchanged
                                        │ no text on two sides
    train ──► minus given texts ──► carve ──► the rest ──► task.train_rows of them

Rows with equal texts (letter case and white space aside) are carved together or not at all. With `task.phrases` the
training rows are phrases of their own sentences, so whole sentences are carved and take their phrases along: a random
hold-out of such rows would be scored on what was trained on.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from search.bert.reading import read_split
from search.definition import Task
from search.errors import UserError

SENTENCE_END = re.compile(r"[.!?…](\s*(''?|[\"\u201d\u2019)\]}]|-rrb-|-rsb-))*$")
"""End of a sentence in folded text: full stop, exclamation or question mark, then any closing quotes and brackets."""

FIFTHS = 5
"""Parts that the labels of a regression are divided into, in their order, when rows are drawn."""


@dataclass(frozen=True)
class Rows:
    """Rows of one split.

    Attributes:
        texts: For each row its text, or its two texts.
        labels: For each row the number of its label, counted from 0 in the order of `task.labels`; in a regression its
            label itself.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int, ...] | tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"there are {len(self.texts)} texts and {len(self.labels)} labels: a row has both")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int]) -> "Rows":
        """The rows with these numbers (from 0), in this order."""
        return Rows(tuple(self.texts[row] for row in rows), tuple(self.labels[row] for row in rows))


@dataclass(frozen=True)
class Splits:
    """The three splits of a task; no text of `train` stands in one of the others.

    Attributes:
        train: Rows to train on.
        selection: Rows that trials are scored on.
        held_out: Rows that the search never sees.
    """

    train: Rows
    selection: Rows
    held_out: Rows


@dataclass(frozen=True)
class _Draw:
    """What is to be drawn: `size` rows, because the definition's `field` says so, from a pool of `unit`."""

    field: str
    size: int
    unit: str = "rows"


def load_splits(data: str, task: Task, *, seed: int) -> Splits:
    """Read the splits that are given and carve the others out of train.

    A given split is never changed: training rows with its texts are dropped, and with `task.phrases` also those that
    lie within one of its sentences. Two given splits are not compared with each other.

    Args:
        data: A file, a folder with one file per split, or the name of a data set on the hub.
        task: Columns, labels, names of the splits and sizes of the carved ones.
        seed: Seed of the drawing. A carved held-out split does not depend on the sizes of the other two.

    Returns:
        The splits. A carved one has exactly the size asked for and, as near as equal texts allow, each label in the
        same share as the rows that it was drawn from (in a regression, labels in each fifth of their order). Rows keep
        the order of the file.

    Raises:
        UserError: If the data cannot be read, one split has two roles, there are too few rows for the sizes asked
            for, or a split ends up with one label only.
    """
    _check(task)
    named = {"held_out": task.held_out, "selection": task.selection}
    sizes = {"held_out": task.held_out_rows, "selection": task.selection_rows}
    unit = "whole sentences" if task.phrases else "rows"
    dice = dict(zip((*named, "train"), np.random.default_rng(seed).spawn(3), strict=True))

    train = load_rows(data, task, task.train)
    keys, strata = _keys(train), _strata(train, task)
    may_be_carved = _whole_sentences(keys) if task.phrases else set(keys)
    splits = {role: load_rows(data, task, name) for role, name in named.items() if name is not None}
    rest = _without(range(len(train)), keys, [key for split in splits.values() for key in _keys(split)], task.phrases)
    for role in [role for role, name in named.items() if name is None]:
        pool = [row for row in rest if keys[row] in may_be_carved]
        carved = _draw(_Draw(f"task.{role}_rows", sizes[role], unit), pool, keys, strata, dice[role])
        splits[role] = train.take(carved)
        rest = _without(rest, keys, [keys[row] for row in carved], task.phrases)
    if task.train_rows is not None:
        rest = _draw(_Draw("task.train_rows", task.train_rows), rest, range(len(train)), strata, dice["train"])
    splits["train"] = train.take(rest)
    _require_two_labels(splits, task)
    return Splits(**splits)


def _check(task: Task) -> None:
    """One split has one role; phrases are single texts."""
    names = {"train": task.train, "held_out": task.held_out, "selection": task.selection}
    roles: dict[str, str] = {}
    for role, name in names.items():
        if name is None:
            continue
        other = roles.setdefault("validation" if name == "dev" else name, role)
        if other != role:
            raise UserError(
                f"task.{other} is {names[other]!r} and task.{role} is {name!r}, the same split; what is trained on, "
                f"scored on and held out must differ: name another, or set task.{role} to null to carve it out of train"
            )
    if task.phrases and len(task.text) != 1:
        raise UserError(
            f"task.phrases is true with the text columns {list(task.text)}; phrases are known of single texts only: "
            "name one column, or set task.phrases to false"
        )


def load_rows(data: str, task: Task, split: str) -> Rows:
    """Read the rows of one split as they stand in the data.

    Args:
        data: A file, a folder with one file per split, or the name of a data set on the hub.
        task: Columns and labels.
        split: Its name; a single file holds only `train`.

    Raises:
        UserError: If they cannot be read (`search.bert.reading.read_split`).
    """
    frame = read_split(data, task, split)
    numbers = {label.strip(): number for number, label in enumerate(task.labels)}
    texts = tuple(zip(*(frame[name].tolist() for name in task.text), strict=True))
    if task.is_regression:
        return Rows(texts, tuple(float(label) for label in frame[task.label].tolist()))
    return Rows(texts, tuple(numbers[label] for label in frame[task.label].tolist()))


def _strata(rows: Rows, task: Task) -> list[int]:
    """What a drawing keeps the shares of: the labels, or in a regression in which fifth of their order each lies."""
    if not task.is_regression:
        return [int(label) for label in rows.labels]
    edges = np.quantile(rows.labels, np.linspace(0, 1, FIFTHS + 1)[1:-1])
    return [int(place) for place in np.searchsorted(edges, rows.labels, side="right")]


def _keys(rows: Rows) -> list[str]:
    """What makes rows equal: their texts without letter case, with single spaces."""
    return ["\n".join(" ".join(text.casefold().split()) for text in texts) for texts in rows.texts]


def _without(rows: Sequence[int], keys: Sequence[str], taken: Collection[str], phrases: bool) -> list[int]:
    """The rows whose text is not taken, nor (with phrases) lies within a taken one."""
    gone = set(taken)
    if phrases:
        gone |= _within({keys[row] for row in rows}, gone)
    return [row for row in rows if keys[row] not in gone]


def _whole_sentences(keys: Collection[str]) -> set[str]:
    """The texts that end like a sentence and lie within no other text."""
    ended = {key for key in keys if SENTENCE_END.search(key)}
    return ended - _within(ended, set(keys))


def _within(texts: set[str], others: set[str]) -> set[str]:
    """The texts that lie, as a run of whole words, within another text.

    Time grows with the number of runs in `others`, the square of the words of each: 1.5 s for all of SST-2.
    """
    return {run for other in others for run in _runs(other) if run in texts and run != other}


def _runs(text: str) -> Iterator[str]:
    spaces = [place for place, letter in enumerate(text) if letter == " "]
    ends = [*spaces, len(text)]
    for first, start in enumerate([0, *(place + 1 for place in spaces)]):
        for end in ends[first:]:
            yield text[start:end]


def _draw(
    draw: _Draw, pool: Sequence[int], keys: Sequence[Hashable], labels: Sequence[int], dice: np.random.Generator
) -> list[int]:
    """Draw rows of a pool, in the pool's shares of labels; rows with equal keys are drawn together or not at all.

    Returns:
        Row numbers, ascending, exactly `draw.size` of them.

    Raises:
        UserError: If the pool is too small, or groups of equal rows do not add up to the size.
    """
    if draw.size > len(pool):
        raise UserError(
            f"{draw.field} is {draw.size}, and only {len(pool)} {draw.unit} of the training split are left to draw "
            f"from; set {draw.field} to at most {len(pool)}, or give more data"
        )
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row in pool:
        groups[keys[row]].append(row)
    grouped = list(groups.values())
    shuffled = [grouped[place] for place in dice.permutation(len(grouped))]
    open_places = _shares(Counter(labels[row] for row in pool), draw.size)
    drawn, passed_over = [], []
    for group in shuffled:
        if len(group) <= open_places[labels[group[0]]]:
            open_places[labels[group[0]]] -= len(group)
            drawn += group
        else:
            passed_over.append(group)
    for group in passed_over:  # where groups did not fit the shares exactly, any label fills up
        if len(group) <= draw.size - len(drawn):
            drawn += group
    if len(drawn) < draw.size:
        raise UserError(
            f"{draw.field} is {draw.size}, and rows with equal texts, which stay together, add up to {len(drawn)} "
            f"only; set {draw.field} to {len(drawn)}"
        )
    return sorted(drawn)


def _shares(counts: Counter[int], size: int) -> dict[int, int]:
    """Divide a size among labels in proportion to their counts, by largest remainder.

    Each label gets at least one place where there are places enough for all.
    """
    total = sum(counts.values())
    least = 1 if size >= len(counts) else 0
    shares = {label: max(least, size * count // total) for label, count in counts.items()}
    while (missing := size - sum(shares.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [label for label in shares if step > 0 or shares[label] > least]
        shares[max(movable, key=lambda label: step * (size * counts[label] - total * shares[label]))] += step
    return shares


def _require_two_labels(splits: dict[str, Rows], task: Task) -> None:
    for role, rows in splits.items():
        found = [f"{label:g}" if task.is_regression else task.labels[int(label)] for label in sorted(set(rows.labels))]
        if len(found) < 2:
            raise UserError(
                f"the {role.replace('_', '-')} split has {len(rows)} rows with "
                f"{'no label' if not found else f'the one label {found[0]!r}'}; each split needs at least two labels: "
                f"carve fewer rows, or give other data (rows whose text stands in another split leave train)"
            )
