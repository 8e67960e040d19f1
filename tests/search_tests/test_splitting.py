import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from search.bert.splitting import SENTENCE_END, Rows, Splits, load_splits
from search.definition import Task
from search.errors import UserError

CARVE = Task(held_out=None, held_out_rows=10, selection_rows=10)
SST2 = Task(text=("sentence",), phrases=True, selection_rows=500, held_out="validation")


def write(path: Path, rows: list[tuple[str, object]]) -> str:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return str(path)


def fold(text: str) -> str:
    return " ".join(text.casefold().split())


def texts_of(rows: Rows) -> list[str]:
    return ["\n".join(fold(text) for text in texts) for texts in rows.texts]


def sides(splits: Splits) -> list[set[str]]:
    return [set(texts_of(rows)) for rows in (splits.train, splits.selection, splits.held_out)]


def unrelated(rows: int, *, name: str = "row") -> list[tuple[str, object]]:
    return [(f"{name} {number}", int(number % 4 == 0)) for number in range(rows)]


def test_carved_splits_have_the_sizes_and_the_shares_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "all.tsv", unrelated(200))
    splits = load_splits(path, Task(held_out=None, held_out_rows=40, selection_rows=20, train_rows=60), seed=0)
    assert Counter(splits.held_out.labels) == {0: 30, 1: 10}
    assert Counter(splits.selection.labels) == {0: 15, 1: 5}
    assert Counter(splits.train.labels) == {0: 45, 1: 15}
    assert len(set.union(*sides(splits))) == 120
    numbers = [int(texts[0].split()[1]) for texts in splits.train.texts]
    assert numbers == sorted(numbers)
    assert splits.train.labels == tuple(int(number % 4 == 0) for number in numbers)


def test_a_rare_label_gets_a_place_in_every_split(tmp_path: Path) -> None:
    path = write(tmp_path / "all.tsv", [(f"row {number}", int(number < 6)) for number in range(400)])
    splits = load_splits(path, Task(held_out=None, held_out_rows=10, selection_rows=2, train_rows=20), seed=0)
    assert [Counter(rows.labels)[1] for rows in (splits.held_out, splits.selection, splits.train)] == [1, 1, 1]


def test_the_seed_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "all.tsv", unrelated(200))
    first, same, other = (load_splits(path, CARVE, seed=seed) for seed in (1, 1, 2))
    assert first == same
    assert first.selection != other.selection
    assert first.held_out != other.held_out


def test_the_held_out_split_does_not_depend_on_the_other_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "all.tsv", unrelated(200))
    more = CARVE.model_copy(update={"selection_rows": 50, "train_rows": 30})
    assert load_splits(path, CARVE, seed=1).held_out == load_splits(path, more, seed=1).held_out


def test_every_process_splits_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "all.tsv", [(f"number {number} .", number % 2) for number in range(100)])
    script = (
        "from search.bert.splitting import load_splits; from search.definition import Task; "
        f"task = Task(held_out=None, held_out_rows=10, selection_rows=10, train_rows=20, phrases=True); "
        f"print(load_splits({path!r}, task, seed=0))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


words = st.sampled_from(["a", "A", " b", "b ", "c  d", "C d", "e", "f", "g", "h", "i", "j", "k", "l"])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.tuples(words, words, st.integers(0, 2)), min_size=30, max_size=60),
    held_out_rows=st.integers(3, 8),
    selection_rows=st.integers(3, 8),
    seed=st.integers(0, 3),
)
def test_carving_never_separates_equal_texts(
    rows: list[tuple[str, str, int]], held_out_rows: int, selection_rows: int, seed: int
) -> None:
    task = Task(
        text=("one", "two"),
        labels=("0", "1", "2"),
        held_out=None,
        held_out_rows=held_out_rows,
        selection_rows=selection_rows,
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "all.csv"
        path.write_text("one,two,label\n" + "".join(f"{one},{two},{label}\n" for one, two, label in rows))
        try:
            splits = load_splits(str(path), task, seed=seed)
        except UserError:
            reject()  # one label only, or equal rows that do not add up to the sizes
    train, selection, held_out = sides(splits)
    assert not train & selection
    assert not train & held_out
    assert not selection & held_out
    assert (len(splits.selection), len(splits.held_out)) == (selection_rows, held_out_rows)
    everything = [row for split in (splits.train, splits.selection, splits.held_out) for row in texts_of(split)]
    assert sorted(everything) == sorted(f"{fold(one)}\n{fold(two)}" for one, two, _ in rows)


@pytest.mark.parametrize("given_role", ["held_out", "selection"])
def test_a_given_split_stays_and_its_texts_leave_the_others(tmp_path: Path, given_role: str) -> None:
    write(tmp_path / "train.tsv", unrelated(60))
    write(tmp_path / "mine.tsv", [(f"ROW  {number} ", number % 2) for number in range(40)] * 2)
    other_role = "selection" if given_role == "held_out" else "held_out"
    task = Task.model_validate({"held_out": None, f"{other_role}_rows": 8} | {given_role: "mine"})
    splits = load_splits(str(tmp_path), task, seed=0)
    mine, carved = getattr(splits, given_role), getattr(splits, other_role)
    assert mine.texts == tuple((f"ROW  {number} ",) for number in range(40)) * 2
    assert set(texts_of(splits.train)) | set(texts_of(carved)) == {f"row {number}" for number in range(40, 60)}
    assert len(carved) == 8
    assert len(splits.train) == 12


def test_two_given_splits_are_left_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", unrelated(20))
    write(tmp_path / "dev.tsv", unrelated(5))
    write(tmp_path / "test.tsv", unrelated(8))
    splits = load_splits(str(tmp_path), Task(held_out="test", selection="dev"), seed=0)
    assert (len(splits.selection), len(splits.held_out)) == (5, 8)
    assert texts_of(splits.train) == [f"row {number}" for number in range(8, 20)]


def test_equal_texts_with_two_labels_stay_together(tmp_path: Path) -> None:
    path = write(tmp_path / "all.tsv", [row for n in range(40) for row in ((f"row {n}", 0), (f"Row {n}", 1))])
    splits = load_splits(path, CARVE, seed=0)
    assert Counter(splits.selection.labels) == {0: 5, 1: 5}
    assert not set.intersection(*sides(splits))
    with pytest.raises(UserError, match=r"selection_rows is 7, and rows with equal texts.*; set .* to 6"):
        load_splits(path, CARVE.model_copy(update={"selection_rows": 7}), seed=0)


TREES = [
    row
    for number in range(30)
    for row in (
        (f"film {number} is fun .", number % 2),
        (f"film {number} is fun", 1),
        (f"{number} is fun .", 1),
        (f"film {number}", 0),
        ("is fun", 1),
        (f"cut off {number} ,", number % 2),
    )
]


def test_only_whole_sentences_are_carved_and_take_their_phrases_along(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", TREES)
    splits = load_splits(path, CARVE.model_copy(update={"phrases": True}), seed=0)
    carved = [*texts_of(splits.selection), *texts_of(splits.held_out)]
    assert len(carved) == len(set(carved)) == 20
    assert all(text.startswith("film ") and text.endswith(" is fun .") for text in carved)
    numbers = {text.split()[1] for text in carved}
    parts = ("film {}", "film {} is fun", "film {} is fun .", "{} is fun .")
    left = {part.format(n) for n in range(30) if str(n) not in numbers for part in parts}
    assert set(texts_of(splits.train)) == left | {f"cut off {n} ," for n in range(30)}


def test_phrases_of_given_sentences_leave_train(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", [*TREES, ("a film 2 is fun", 0)])
    write(tmp_path / "dev.tsv", [("Film 2 is fun , film 12", 0), ("good", 1)])
    splits = load_splits(str(tmp_path), Task(phrases=True, selection_rows=4, held_out="validation"), seed=0)
    train = set(texts_of(splits.train))
    assert not train & {"film 2", "film 12", "film 2 is fun", "is fun"}
    assert {"film 2 is fun .", "film 12 is fun", "a film 2 is fun"} <= train | set(texts_of(splits.selection))


@pytest.mark.parametrize(
    "text", ["fun .", "fun !", "why ?", "so ...", "`` fun . ''", "fun . '", "( fun . )", "fun. -rrb-"]
)
def test_ends_of_sentences(text: str) -> None:
    assert SENTENCE_END.search(text)


@pytest.mark.parametrize("text", ["fun", "fun ,", "fun --", "( fun )", "dr. strangelove", "`` fun ''", ""])
def test_ends_of_phrases(text: str) -> None:
    assert not SENTENCE_END.search(text)


def test_sst2_phrases_never_straddle(glue: Path) -> None:
    splits = load_splits(str(glue / "SST-2"), SST2, seed=0)
    assert (len(splits.train), len(splits.selection), len(splits.held_out)) == (60458, 500, 872)
    carved = texts_of(splits.selection)
    assert all(SENTENCE_END.search(text) for text in carved)
    train = set(texts_of(splits.train))
    # The slow way round: look for every training text, as whole words, in the sentences in one piece.
    sentences = "\n".join(f" {text} " for text in [*carved, *texts_of(splits.held_out)])
    assert not [text for text in train if f" {text} " in sentences]
    training = "\n".join(f" {text} " for text in train)
    assert not [text for text in carved if f" {text} " in training]


def test_sst2_carves_both_splits_and_draws_training_rows(glue: Path) -> None:
    task = SST2.model_copy(update={"held_out": None, "train_rows": 16000})
    splits = load_splits(str(glue / "SST-2" / "train.tsv"), task, seed=0)
    assert (len(splits.train), len(splits.selection), len(splits.held_out)) == (16000, 500, 1000)
    train, selection, held_out = sides(splits)
    assert not selection & held_out
    sentences = "\n".join(f" {text} " for text in selection | held_out)
    assert not [text for text in train if f" {text} " in sentences]


def test_cola_leaves_no_dev_sentence_in_train(glue: Path) -> None:
    task = Task(
        text=("sentence",), columns=("source", "label", "mark", "sentence"), selection_rows=500, held_out="validation"
    )
    splits = load_splits(str(glue / "CoLA"), task, seed=0)
    assert (len(splits.train), len(splits.selection), len(splits.held_out)) == (8035, 500, 1043)
    train, selection, held_out = sides(splits)
    assert not train & selection
    assert not (train | selection) & held_out
    assert Counter(splits.selection.labels) == {0: 148, 1: 352}


REFUSED = {
    "too few rows": (
        unrelated(20),
        {"selection_rows": 500},
        "task.selection_rows is 500, and only 10 rows of the training split are left.*at most 10, or give more data",
    ),
    "too few sentences": (TREES, {"held_out_rows": 31, "phrases": True}, "held_out_rows is 31, and only 30 whole sent"),
    "too few training rows": (unrelated(50), {"train_rows": 31}, "task.train_rows is 31, and only 30 rows"),
    "nothing left to train on": (unrelated(20), {}, "the train split has 0 rows with no label; each split needs"),
    "one label in a carved split": (
        [(f"film {n} .", 1) for n in range(30)] + [(f"phrase {n}", 0) for n in range(30)],
        {"phrases": True},
        "the held-out split has 10 rows with the one label '1'",
    ),
    "phrases of pairs": (unrelated(20), {"phrases": True, "text": ("text", "label")}, "phrases are known of single"),
    "one split for two": (
        unrelated(20),
        {"held_out": "dev", "selection": "validation"},
        "task.held_out is 'dev' and task.selection is 'validation', the same split",
    ),
    "training on the held-out split": (unrelated(20), {"held_out": "train"}, "task.train is 'train' and task.held_out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_sizes_and_roles_are_refused(tmp_path: Path, case: str) -> None:
    rows, changes, message = REFUSED[case]
    path = write(tmp_path / "all.tsv", rows)
    with pytest.raises(UserError, match=message):
        load_splits(path, CARVE.model_copy(update=changes), seed=0)


def test_rows_have_a_label_each() -> None:
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        Rows((("a",), ("b",)), (0,))
