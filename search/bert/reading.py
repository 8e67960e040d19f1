"""Where a split's rows come from, and what is checked before anything is done with them.

    data is a file    ──► its rows, split 'train' only ─┐
            a folder  ──► rows of <split>.<ending> ─────┼─► where ──► text and label columns as strings
            otherwise ──► rows of a hub data set ───────┘

Whatever is wrong with the rows is said here, with the file and the line; later steps take them as they are.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from search.definition import Task
from search.errors import UserError, unknown_name

ENDINGS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
"""Endings of the files that can be read; `.json` is read as JSON lines too."""

FILE_ENDINGS = (*ENDINGS, ".txt", ".xlsx", ".gz", ".zip", ".arrow", ".safetensors")
"""Endings that tell a file from a name on the hub, where names may hold dots as well."""


def read_split(data: str, task: Task, split: str) -> pd.DataFrame:
    """Read one split, keep the rows that `task.where` asks for, and check them.

    Args:
        data: A file, a folder with one file per split, or the name of a data set on the hub.
        task: Names of the columns, the declared labels, and how a file is to be read. `config` is used on the hub
            only, `columns` and `quoting` with CSV and TSV files only.
        split: Name of the split. A single file holds only `train`; in a folder, `validation` also finds `dev`.

    Returns:
        One row per row of the split, in its order, indexed from 0. The columns are `task.text` and `task.label`, all
        of them strings. Labels are stripped and declared: numbers read 0, 1, ..., truth values False and True. Without
        declared labels, in a regression, each of them is a finite number.

    Raises:
        UserError: If there is no such file, folder, data set or split; if the file cannot be read or a line of it is
            malformed; if a column is missing; if no row is left; if a text or label is missing, a label is not declared
            or, in a regression, not a number; if the training split holds one label only.
    """
    path = Path(data).expanduser()
    if path.is_file():
        _require_train(data, split)
        source, table = f"'{data}'", _read_file(path, task)
    elif path.is_dir():
        file = _file_of_split(path, split)
        source, table = f"'{file}'", _read_file(file, task)
    elif looks_like_path(data):
        raise UserError(f"data is '{data}': no such file or folder; give --data PATH, or a data set's name on the hub")
    else:
        source, table = f"split '{split}' of '{data}'", _read_hub(data, task, split)
    _require_columns(table.columns, task, source)
    table = _only_where(table, task.where or {}, source)
    columns = {name: _texts(table[name], source) for name in task.text}
    read = _numbers if task.is_regression else _labels
    columns[task.label] = read(table[task.label], task.labels, source)
    if split == task.train and len(set(columns[task.label])) == 1:
        wanted = "two numbers" if task.is_regression else f"two of the declared labels {_listed(task.labels)}"
        raise UserError(
            f"{source} holds label {columns[task.label][0]!r} only; training needs rows of at least {wanted}"
        )
    return pd.DataFrame(columns)


def looks_like_path(name: str) -> bool:
    """Whether a name can only mean a file or folder, not something on the hub.

    Args:
        name: What the user gave; nothing is looked up.

    Returns:
        True for absolute names, for those that start with `.` or `~`, hold a backslash or more than one slash, or
        end in `FILE_ENDINGS`.

    Example:
        >>> [looks_like_path(name) for name in ("nyu-mll/glue", "owner/data-v1.1", "reviews.csv", "./glue")]
        [False, False, True, True]
    """
    return (
        name.startswith((".", "~", "/"))
        or "\\" in name
        or name.count("/") > 1
        or name.lower().endswith(FILE_ENDINGS)
        or Path(name).is_absolute()
    )


def is_broken(text: str) -> bool:
    """Whether a text holds half of a character (a lone surrogate), which no tokenizer takes.

    Example:
        >>> [is_broken(text) for text in ("film", "film" + chr(0xD83D))]
        [False, True]
    """
    return not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _require_train(data: str, split: str) -> None:
    if split != "train":
        raise UserError(
            f"'{data}' is a single file and holds only the split 'train', so split '{split}' cannot be read from it; "
            "set task.held_out and task.selection to null to carve them out of train, or give a folder with one file "
            "per split"
        )


def _file_of_split(folder: Path, split: str) -> Path:
    """The one readable file of a folder that is named like the split."""
    stems = (split, "dev") if split == "validation" else (split,)
    there = sorted(entry.name for entry in folder.iterdir())
    found = [name for name in there if Path(name).suffix.lower() in ENDINGS and Path(name).stem in stems]
    if len(found) == 1:
        return folder / found[0]
    wanted = " or ".join(f"{stem}.<ending>" for stem in stems)
    rule = f"a split is one file {wanted} with ending {', '.join(ENDINGS)}"
    if found:
        raise UserError(f"split '{split}' is ambiguous in '{folder}' ({_listed(found)}): {rule}; keep one of them")
    raise UserError(
        f"split '{split}' is not in '{folder}': {rule}, and there lie {_listed(there) or 'no files'}; name another "
        "split, or set it to null to carve it out of train"
    )


def _read_file(path: Path, task: Task) -> pd.DataFrame:
    """All cells of one file as they stand there; the index, named line or row, counts from 1."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"'{path}' has the ending '{path.suffix}'; data files end in {', '.join(ENDINGS)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); name a file that can") from None
    if not content:
        raise UserError(f"'{path}' is empty; name a file with rows")
    if ending == ".parquet":
        return _parse_parquet(content, path)
    text = _decode(content, path)
    return _parse_json_lines(text, path) if ending in (".jsonl", ".json") else _parse_csv(text, path, task)


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"'{path}' is not UTF-8: byte {error.start}, on line {line}, cannot be decoded; save the file as UTF-8"
        ) from None


def _parse_csv(text: str, path: Path, task: Task) -> pd.DataFrame:
    """Parse comma- or tab-separated fields; every row must have as many as the header (or `task.columns`)."""
    tabs = path.suffix.lower() == ".tsv"
    quoted = (not tabs) if task.quoting is None else task.quoting
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a whole document may be one field
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    names = list(task.columns) if task.columns is not None else None
    lines, rows, line = [], [], 1
    remedy = f"correct the line, or set task.quoting (now {json.dumps(quoted)}) or task.columns"
    try:
        for fields in reader:
            start, line = line, reader.line_num + 1
            if not fields:
                continue
            if names is None:
                names = fields
                continue
            if len(fields) != len(names):
                raise UserError(
                    f"'{path}' has {len(fields)} fields on line {start} where its columns are the {len(names)} "
                    f"{_listed(names)}; {remedy}"
                )
            lines.append(start)
            rows.append(fields)
    except csv.Error as error:
        raise UserError(f"'{path}' cannot be parsed from line {line} on ({error}); {remedy}") from None
    if len(set(names or ())) < len(names or ()):
        raise UserError(f"'{path}' has two columns of one name ({_listed(names or ())}); rename one of them")
    return pd.DataFrame(rows, index=pd.Index(lines, name="line", dtype="int64"), columns=names, dtype="object")


def _parse_json_lines(text: str, path: Path) -> pd.DataFrame:
    """Parse one JSON object per line; blank lines are passed over."""
    lines, rows = [], []
    for line, content in enumerate(io.StringIO(text, newline=None), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"'{path}' has no JSON object on line {line}; write one object per line (JSON lines)")
        lines.append(line)
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(lines, name="line", dtype="int64"), dtype="object")


def _parse_parquet(content: bytes, path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(io.BytesIO(content))
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"'{path}' cannot be read as Parquet ({error}); name a Parquet file") from None
    return _number_rows(table)


def _read_hub(data: str, task: Task, split: str) -> pd.DataFrame:
    """The needed columns of a data set on the hub; class labels are their numbers."""
    import datasets  # takes a second, and local files need none of it

    try:
        loaded = datasets.load_dataset(data, task.config, split=split)
    except Exception as error:  # the hub's failures have no common class: HTTP, connection, offline mode, bad names
        raise UserError(
            f"split '{split}' of data set '{data}' (config {task.config or 'not set'}) cannot be loaded from the hub "
            f"({type(error).__name__}: {' '.join(str(error).split())}); check the names and the connection, or give "
            "--data PATH with a file or folder of your own"
        ) from error
    _require_columns(loaded.column_names, task, f"split '{split}' of '{data}'")
    return _number_rows(loaded.select_columns(_needed(task)).to_pandas())


def _number_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis(pd.RangeIndex(1, len(table) + 1, name="row"), axis="index")


def _needed(task: Task) -> list[str]:
    return list(dict.fromkeys([*task.text, task.label, *(task.where or ())]))


def _require_columns(known: Iterable[str], task: Task, source: str) -> None:
    columns = [str(name) for name in known]
    for name in _needed(task):
        if columns and name not in columns:
            field = "task.where" if name in (task.where or ()) else "task.label" if name == task.label else "task.text"
            raise UserError(f"{source}: {unknown_name('column', name, columns)}; name one of these in {field}")


def _only_where(table: pd.DataFrame, where: dict[str, str], source: str) -> pd.DataFrame:
    if table.empty:
        raise UserError(f"{source} has no rows; name a file or split with rows")
    for name, value in where.items():
        cells = [None if missing else _plain(cell) for cell, missing in _cells(table[name])]
        kept = table[[cell == value.strip() for cell in cells]]
        if kept.empty:
            seen = list(dict.fromkeys(cell for cell in cells if cell is not None))
            raise UserError(f"{source} has no row with {name} {value!r} (task.where); its values are {_listed(seen)}")
        table = kept
    return table


def _texts(column: "pd.Series[Any]", source: str) -> list[str]:
    texts = []
    for place, (cell, missing) in zip(column.index, _cells(column), strict=True):
        if missing or not isinstance(cell, str | int | float):
            kind = "no text" if missing else f"a {type(cell).__name__}"
            raise UserError(
                f"{source} has {kind} in column {column.name!r} on {column.index.name} {place}; every row needs a "
                "text there: correct or remove it"
            )
        texts.append(text := str(cell))
        if is_broken(text):
            raise UserError(
                f"{source} has half of a character (a lone surrogate) in column {column.name!r} on {column.index.name} "
                f"{place}; correct or remove the row"
            )
    return texts


def _labels(column: "pd.Series[Any]", declared: Sequence[str], source: str) -> list[str]:
    known = {label.strip() for label in declared}
    labels = ["" if missing else _plain(cell) for cell, missing in _cells(column)]
    for place, label in zip(column.index, labels, strict=True):
        if label not in known:
            raise UserError(
                f"{source} has label {label!r} on {column.index.name} {place}, and the declared labels are "
                f"{_listed(declared)}; correct the row, or set task.labels (the column holds "
                f"{_listed(sorted(set(labels)))})"
            )
    return labels


def _numbers(column: "pd.Series[Any]", _declared: Sequence[str], source: str) -> list[str]:
    """The labels of a regression, as they stand there."""
    labels = ["" if missing else str(cell).strip() for cell, missing in _cells(column)]
    for place, label in zip(column.index, labels, strict=True):
        try:
            finite = math.isfinite(float(label))
        except ValueError:
            finite = False
        if not finite:
            raise UserError(
                f"{source} has label {label!r} on {column.index.name} {place}, and task.labels is empty: then every "
                "label is a finite number; correct the row, or declare the labels of a classification"
            )
    return labels


def _cells(column: "pd.Series[Any]") -> Iterable[tuple[Any, bool]]:
    """Each cell, and whether it is missing (None, NaN)."""
    return zip(column.tolist(), column.isna().tolist(), strict=True)


def _plain(cell: Any) -> str:
    """A cell as labels are compared: whole numbers without decimals, no blanks around."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _listed(names: Iterable[str]) -> str:
    """Names for a message: quoted, the first ten of them."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:10]) + (f" and {len(quoted) - 10} more" if len(quoted) > 10 else "")
