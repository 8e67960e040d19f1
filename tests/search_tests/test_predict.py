"""Labels for lines of text: in order, at once where lines come one by one, with a plain word for a wrong line."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_study import Searched
from transformers import BertConfig

from search import shipping
from search.bert.checkpoint import load
from search.bert.encoding import load_tokenizer
from search.bert.pruned import PrunedBertForSequenceClassification
from search.definition import Task
from search.deploy import shipped
from search.deploy.export import Wanted
from search.deploy.predict import Predictor, predictions
from search.errors import UserError

CPU = torch.device("cpu")
LINES = ["a film of rare beauty", "dull , dull , dull", "", "caf\u00e9 " * 60, "3 of them"]


@pytest.fixture(scope="module")
def folder(small: Searched, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("predict") / "model"
    shipping.export(small.name, 1, target, small.place, Wanted(), Console(file=io.StringIO()))
    return target


@pytest.fixture(scope="module")
def couples(pairs: Searched, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("couples") / "model"
    shipping.export(pairs.name, 1, target, pairs.place, Wanted(), Console(file=io.StringIO()))
    return target


def expected(folder: Path, *texts: list[str]) -> list[list[float]]:
    """Probabilities of each row by itself."""
    model, tokenizer = load(folder), load_tokenizer(str(folder))
    rows = [
        tokenizer(*row, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt")
        for row in zip(*texts, strict=True)
    ]
    with torch.inference_mode():
        return [torch.softmax(model(**row).logits[0], dim=0).tolist() for row in rows]


def test_each_line_gets_its_answer_whatever_the_batch(folder: Path) -> None:
    predictor, rows = Predictor(folder, CPU), expected(folder, LINES)
    assert len({round(row[0], 3) for row in rows}) > 2
    for size in (1, 2, 64):
        found = list(predictions(predictor, [line + "\n" for line in LINES], batch_size=size))
        assert [list(one.scores.values()) for one in found] == [pytest.approx(row, abs=1e-5) for row in rows]
        assert [one.label for one in found] == [str(row.index(max(row))) for row in rows]
        assert [one.score for one in found] == [pytest.approx(max(row), abs=1e-5) for row in rows]


def test_pairs_are_told_apart_whatever_the_tokenizer_gives_by_itself(couples: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(couples, tmp_path / "plain")
    file = plain / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    assert settings["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
    bare = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps({**settings, **bare, "padding_side": "left"}))
    assert "token_type_ids" not in load_tokenizer(str(plain))("one", "two")
    lines = [f"{first}\tit is" for first in LINES]
    found, wanted = (list(predictions(Predictor(one, CPU), lines, batch_size=8)) for one in (plain, couples))
    assert [one.scores for one in found] == [pytest.approx(one.scores, abs=1e-6) for one in wanted]
    (tmp_path / "again").mkdir()
    shipped.write_tokenizer(plain, tmp_path / "again", max_tokens=16)
    again = load_tokenizer(str(tmp_path / "again"))
    assert again(["one", "one two"], ["two", "three"], padding=True)["token_type_ids"] == [
        *([0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]),
    ]


def test_a_line_that_is_no_utf8_is_named(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "search", "predict", str(folder), "--device", "cpu"],
        input="fine\ncaf\u00e9\n".encode("latin-1"),
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.count(b"\n")) == (2, 1)
    assert b"error: line 2 is not UTF-8; save the text as UTF-8" in done.stderr


def test_pairs_are_divided_by_a_tab(couples: Path) -> None:
    firsts, seconds = LINES[:3], ["yes", "no", "it is"]
    lines = [f"{first}\t{second}\r\n" for first, second in zip(firsts, seconds, strict=True)]
    predictor = Predictor(couples, CPU)
    found = list(predictions(predictor, lines, batch_size=2))
    rows = expected(couples, firsts, seconds)
    assert [list(one.scores.values()) for one in found] == [pytest.approx(row, abs=1e-5) for row in rows]
    answers = predictions(predictor, [*lines[:2], "no tab", lines[2]], batch_size=8)
    answered = [next(answers), next(answers)]
    with pytest.raises(UserError, match="line 3 holds 1 texts and the model takes pairs; write the two texts with one"):
        next(answers)
    assert len(answered) == 2


def test_a_line_that_comes_alone_is_answered_before_the_next_one_comes(folder: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as there, os.fdopen(reading) as here:
        answers = predictions(Predictor(folder, CPU), here, batch_size=64)
        for line in LINES[:2]:
            print(line, file=there, flush=True)
            assert next(answers).scores
        there.close()
        assert list(answers) == []


def test_the_command_reads_standard_input(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "search", "predict", str(folder)]
    given = "".join(f"{line}\n" for line in LINES)
    done = subprocess.run([*command, "--json"], input=given, capture_output=True, text=True, timeout=300, check=True)
    rows, found = expected(folder, LINES), [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["scores"] for one in found] == [
        {"0": pytest.approx(row[0], abs=1e-5), "1": pytest.approx(row[1], abs=1e-5)} for row in rows
    ]
    assert [one["label"] for one in found] == [str(row.index(max(row))) for row in rows]
    out = io.StringIO()
    shipping.predict(folder, io.StringIO(given), out, device="cpu", batch_size=8, as_json=False)
    assert out.getvalue().splitlines() == [f"{one['label']}\t{one['score']:.4f}" for one in found]
    failed = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: the folder '{tmp_path}' has no readable paretobert.json")


def test_a_regression_says_its_number(folder: Path, tmp_path: Path) -> None:
    task = Task(labels=(), label="stars", metric="pearson")
    config = BertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
        initializer_range=0.9,
    )
    torch.manual_seed(0)
    model = PrunedBertForSequenceClassification(config).eval()
    shipped.write_model(model, tmp_path, task)
    shipped.write_tokenizer(folder, tmp_path, max_tokens=32)
    about = {"texts": 1, "labels": list(shipped.names_of(task)), "regression": True, "max_tokens": 32}
    shipped.write_json(tmp_path / shipped.ABOUT, {"task": about})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["problem_type"] == "regression"
    assert written["id2label"] == {"0": "stars"}
    tokens = load_tokenizer(str(folder))(LINES[:2], padding=True, return_tensors="pt")
    with torch.inference_mode():
        numbers = model(**tokens).logits[:, 0].tolist()
    found = list(predictions(Predictor(tmp_path, CPU), LINES[:2], batch_size=2))
    assert [(one.label, one.score) for one in found] == [
        ("stars", pytest.approx(number, abs=1e-5)) for number in numbers
    ]
    assert max(abs(number) for number in numbers) > 1  # no probability
