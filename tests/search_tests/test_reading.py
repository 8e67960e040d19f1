import gzip
import re
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import pytest

from search.bert.reading import looks_like_path, read_split
from search.definition import Task
from search.errors import UserError

COLA = Task(text=("sentence",), columns=("source", "label", "mark", "sentence"))
SST2 = Task(text=("sentence",))


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def labels_of(frame: pd.DataFrame) -> dict[str, int]:
    return dict(Counter(frame["label"]))


@pytest.mark.parametrize(
    ("folder", "task", "split", "counts"),
    [
        ("SST-2", SST2, "train", {"0": 29780, "1": 37569}),
        ("SST-2", SST2, "validation", {"0": 428, "1": 444}),
        ("SST-2", SST2, "test-labeled", {"0": 917, "1": 904}),
        ("CoLA", COLA, "train", {"0": 2528, "1": 6023}),
        ("CoLA", COLA, "dev", {"0": 322, "1": 721}),
    ],
)
def test_glue_files_have_their_published_counts(
    glue: Path, folder: str, task: Task, split: str, counts: dict[str, int]
) -> None:
    frame = read_split(str(glue / folder), task, split)
    assert labels_of(frame) == counts
    assert list(frame.columns) == ["sentence", "label"]
    assert list(frame.index) == list(range(sum(counts.values())))
    assert not frame["sentence"].str.contains(r"[\r\n\t]").any()


def test_cola_keeps_its_quotation_marks(glue: Path) -> None:
    assert read_split(str(glue / "CoLA"), COLA, "train")["sentence"].str.contains('"').sum() == 2


def test_packaged_reviews_are_filtered_by_source(movie_reviews: Path) -> None:
    frame = read_split(str(movie_reviews), Task(where={"source": "rotten_tomatoes"}), "train")
    assert labels_of(frame) == {"0": 4265, "1": 4265}
    assert list(frame.columns) == ["text", "label"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", 'text,label\n"a, ""b""\nc",0\nNA,1\n'),
        ("train.tsv", 'label\ttext\r\n0\t"a, ""b""\nc"\r\n\r\n1\tNA'),
        ("train.CSV", '\ufefftext,label\r\n"a, ""b""\nc", 0\r\nNA,1 '),
        ("train.jsonl", '{"text": "a, \\"b\\"\\nc", "label": 0}\n\n{"text": "NA", "label": 1.0, "more": [1]}'),
        ("train.json", '{"text": "a, \\"b\\"\\nc", "label": "0 "}\r\n{"text": "NA", "label": "1"}\r\n'),
    ],
)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    frame = read_split(write(tmp_path / name, content), Task(quoting=True), "train")
    assert frame.to_dict("list") == {"text": ['a, "b"\nc', "NA"], "label": ["0", "1"]}


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1], ["0", "1"]),
        ([0.0, 1.0], ["0", "1"]),
        ([False, True], ["False", "True"]),
        (["0 ", " 1"], ["0", "1"]),
        ([0.5, 1.5], ["0.5", "1.5"]),
    ],
)
def test_parquet_labels_become_strings(tmp_path: Path, values: list[object], labels: list[str]) -> None:
    path = tmp_path / "train.parquet"
    pd.DataFrame({"text": ["a", "b"], "label": values}).to_parquet(path)
    frame = read_split(str(path), Task(labels=tuple(labels)), "train")
    assert frame.to_dict("list") == {"text": ["a", "b"], "label": labels}


def test_quotation_marks_enclose_fields_in_csv_and_not_in_tsv(tmp_path: Path) -> None:
    comma = write(tmp_path / "a.csv", 'text,label\n"a",0\nb,1\n')
    tab = write(tmp_path / "a.tsv", 'text\tlabel\n"a"\t0\nb\t1\n')
    assert read_split(comma, Task(), "train")["text"][0] == "a"
    assert read_split(tab, Task(), "train")["text"][0] == '"a"'
    assert read_split(comma, Task(quoting=False), "train")["text"][0] == '"a"'
    assert read_split(tab, Task(quoting=True), "train")["text"][0] == "a"


def test_pairs_and_empty_texts_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", "label,one,two\nno,a,b\nyes,c,\n")
    frame = read_split(path, Task(text=("two", "one"), labels=("yes", "no")), "train")
    assert frame.to_dict("list") == {"two": ["b", ""], "one": ["a", "c"], "label": ["no", "yes"]}


def test_a_whole_document_may_be_one_field(tmp_path: Path) -> None:
    text = "word " * 40_000
    (tmp_path / "long.csv").write_text(f"text,label\n{text},1\nshort,0\n")
    assert read_split(str(tmp_path / "long.csv"), Task(), "train")["text"].tolist() == [text, "short"]


def test_half_of_a_character_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text('{"text": "fine", "label": 0}\n{"text": "half \\ud83d", "label": 1}\n')
    with pytest.raises(UserError, match=re.escape("half of a character (a lone surrogate) in column 'text' on line 2")):
        read_split(str(tmp_path / "half.jsonl"), Task(), "train")


def test_where_compares_numbers_as_they_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        "".join(f'{{"text": "{text}", "label": {label}, "fold": {fold}}}\n' for text, label, fold in
                [("a", 0, 1), ("b", 1, 1.0), ("c", 7, 2), ("d", 0, "null")]),
    )  # fmt: skip
    assert read_split(path, Task(where={"fold": "1"}), "train")["text"].tolist() == ["a", "b"]


def test_only_the_training_split_needs_two_labels(tmp_path: Path) -> None:
    write(tmp_path / "dev.csv", "text,label\na,1\n")
    assert len(read_split(str(tmp_path), Task(), "validation")) == 1


GOOD = "text,label\na,0\nb,1\n"

BROKEN = {
    "a missing file": ("", None, Task(), "no such file or folder.*--data PATH"),
    "an empty file": ("a.csv", "", Task(), "'PATH' is empty"),
    "a file of blank lines": ("a.csv", "\n\n", Task(), "'PATH' has no rows"),
    "a file with a header only": ("a.csv", "text,label\n", Task(), "'PATH' has no rows"),
    "an unknown ending": ("a.txt", GOOD, Task(), r"'PATH' has the ending '.txt'; data files end in .tsv, .csv"),
    "a missing text column": (
        "a.csv",
        "texts,label\na,0\n",
        Task(),
        "'PATH': unknown column 'text'; did you mean 'texts'. Known: texts, label; name one of these in task.text",
    ),
    "a missing label column": ("a.csv", "text,y\na,0\n", Task(), "unknown column 'label'.*in task.label"),
    "a missing where column": ("a.csv", GOOD, Task(where={"source": "x"}), "unknown column 'source'.*in task.where"),
    "nothing left by where": (
        "a.csv",
        "text,label,source\na,0,x\nb,1,y\n",
        Task(where={"source": "z"}),
        "'PATH' has no row with source 'z'.*its values are 'x', 'y'",
    ),
    "bytes that are not UTF-8": (
        "a.csv",
        b"text,label\na,0\ncaf\xe9,1\n",
        Task(),
        "'PATH' is not UTF-8: byte 18, on line 3,.*save the file as UTF-8",
    ),
    "an undeclared label": (
        "a.csv",
        'text,label\n"a\nb",0\nc,2\n',
        Task(),
        "'PATH' has label '2' on line 4, and the declared labels are '0', '1'; .*task.labels.*'0', '2'",
    ),
    "a label with decimals": ("a.jsonl", '{"text": "a", "label": 0.5}', Task(), "label '0.5' on line 1"),
    "a missing label": (
        "a.jsonl",
        '{"text": "a", "label": 0}\n\n{"text": "b"}\n',
        Task(),
        "'PATH' has label '' on line 3",
    ),
    "a null text": (
        "a.jsonl",
        '{"text": "a", "label": 0}\n{"text": null, "label": 1}\n',
        Task(),
        "'PATH' has no text in column 'text' on line 2",
    ),
    "a text that is a list": ("a.jsonl", '{"text": ["a"], "label": 0}\n', Task(), "'PATH' has a list in column 'text'"),
    "one label only": ("a.csv", "text,label\na,1\nb,1\n", Task(), "'PATH' holds label '1' only.*'0', '1'"),
    "too few fields": (
        "a.tsv",
        "text\tlabel\na\t0\nb\n",
        Task(),
        r"'PATH' has 1 fields on line 3 where its columns are the 2 'text', 'label'; .*task.quoting \(now false\)",
    ),
    "too many fields": ("a.tsv", "text\tlabel\na\t0\t1\nb\t1\n", Task(), "has 3 fields on line 2"),
    "too many fields in every row": ("a.tsv", "text\tlabel\na\t0\t1\nb\t1\t1\n", Task(), "has 3 fields on line 2"),
    "fewer columns than named": ("a.tsv", "gj\t1\ta\n", COLA, "has 3 fields on line 1 where its columns are the 4"),
    "a quotation mark that never closes": (
        "a.csv",
        'text,label\na,0\n"b,1\nc,1\n',
        Task(),
        r"'PATH' cannot be parsed from line 3 on .*task.quoting \(now true\)",
    ),
    "two columns of one name": ("a.csv", "text,label,text\na,0,b\n", Task(), "'PATH' has two columns of one name"),
    "lines that are not JSON": ("a.jsonl", '{"text": "a", "label": 0}\noh\n', Task(), "no JSON object on line 2"),
    "a JSON list": ("a.json", "[1, 2]", Task(), "no JSON object on line 1; .*JSON lines"),
    "a file that is not Parquet": ("a.parquet", b"PAR2", Task(), "'PATH' cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_files_are_named_with_the_way_out(tmp_path: Path, case: str) -> None:
    name, content, task, message = BROKEN[case]
    path = str(tmp_path / "nothing.csv") if content is None else write(tmp_path / name, content)
    with pytest.raises(UserError, match=message.replace("PATH'", re.escape(path) + "'")) as error:
        read_split(path, task, "train")
    assert path in str(error.value)


def test_parquet_rows_are_numbered_from_one(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pd.DataFrame({"text": ["a", None], "label": [0, 1]}).to_parquet(path)
    with pytest.raises(UserError, match="has no text in column 'text' on row 2"):
        read_split(str(path), Task(), "train")


def test_a_single_file_holds_only_train(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD)
    with pytest.raises(UserError, match=r"'validation' cannot be read from it; set .* to null to carve"):
        read_split(path, Task(), "validation")


def test_a_folder_names_what_lies_there(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", GOOD)
    write(tmp_path / "notes.txt", "")
    with pytest.raises(UserError, match=r"'validation' is not in .*validation\.<ending> or dev.*'notes.txt', 'tr"):
        read_split(str(tmp_path), Task(), "validation")
    write(tmp_path / "train.tsv", GOOD.replace(",", "\t"))
    with pytest.raises(UserError, match=r"'train' is ambiguous in .*'train.csv', 'train.tsv'"):
        read_split(str(tmp_path), Task(), "train")
    write(tmp_path / "dev.csv", GOOD)
    assert len(read_split(str(tmp_path), Task(), "validation")) == 2
    write(tmp_path / "validation.csv", GOOD)
    with pytest.raises(UserError, match=r"'validation' is ambiguous .*'dev.csv', 'validation.csv'"):
        read_split(str(tmp_path), Task(), "validation")


def test_a_compressed_file_is_refused_by_its_ending(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv.gz", gzip.compress(GOOD.encode()))
    with pytest.raises(UserError, match=r"has the ending '\.gz'"):
        read_split(path, Task(), "train")


@pytest.mark.parametrize("name", ["imdb", "nyu-mll/glue", "owner/data-v1.1", "owner/my.data"])
def test_names_on_the_hub_are_no_paths(name: str) -> None:
    assert not looks_like_path(name)


@pytest.mark.parametrize("name", ["/data", "./glue", "../glue", "~/glue", "a/b/c", "C:\\data", "a.csv", "my/x.TSV"])
def test_names_that_can_only_be_paths(name: str) -> None:
    assert looks_like_path(name)


def hub_rows() -> datasets.Dataset:
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
            "idx": datasets.Value("int32"),
        }
    )
    return datasets.Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [1, 0, 1], "idx": [0, 1, 2]}, features)


def test_hub_class_labels_are_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(*names: object, **options: object) -> datasets.Dataset:
        calls.append((names, options))
        return hub_rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    frame = read_split("nyu-mll/glue", Task(config="sst2", text=("sentence",), where={"idx": "1"}), "validation")
    assert frame.to_dict("list") == {"sentence": ["b"], "label": ["0"]}
    assert calls == [(("nyu-mll/glue", "sst2"), {"split": "validation"})]
    with pytest.raises(UserError, match=r"'train' of 'nyu-mll/glue': unknown column 'text'.*sentence, label, idx"):
        read_split("nyu-mll/glue", Task(), "train")


def test_a_hub_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_names: object, **_options: object) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = (
        r"split 'train' of data set 'nyu-mll/glue' \(config sst2\) cannot be loaded from the hub "
        r"\(ConnectionError: Couldn't reach 'nyu-mll/glue' on the Hub\); .*--data PATH"
    )
    with pytest.raises(UserError, match=message):
        read_split("nyu-mll/glue", Task(config="sst2"), "train")
