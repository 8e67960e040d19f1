"""What is exported of each family: the same logits by transformers' own classes, by this package's, and as a graph."""

import dataclasses
from pathlib import Path

import pytest
import torch
from test_families import KINDS, UNEVEN, logits
from tiny_families import sentences, tiny, write_checkpoint
from transformers import AutoModelForSequenceClassification

from objectives.onnx_graph import inputs_of, runner, to_onnx
from search.bert.checkpoint import load, load_dense
from search.bert.encoding import load_tokenizer
from search.bert.factorise import directions
from search.bert.families import FAMILIES
from search.bert.pruned import words_of
from search.bert.surgery import cut
from search.definition import Task
from search.deploy.predict import Predictor
from search.deploy.shipped import ABOUT, MODELLING, write_json, write_model


def shipped(kind: str, folder: Path, *, rank: int | None = None, labels: tuple[str, ...] = ("no", "perhaps", "yes")):
    model = tiny(kind, dtype=torch.float32, labels=len(labels))
    kept = dataclasses.replace(UNEVEN, rank=rank)
    small = cut(model, kept, directions=directions(words_of(model).weight, torch.ones(60)) if rank else None)
    task = Task(labels=labels) if len(labels) > 1 else Task(labels=(), label=labels[0], metric="pearson")
    write_model(small, folder, task)
    return small, sentences(model, 5)[0]


def test_every_family_has_its_file() -> None:
    assert set(MODELLING) == set(FAMILIES)


@KINDS
@pytest.mark.parametrize("rank", [None, 4])
def test_transformers_with_the_file_in_the_folder_computes_the_same_logits(
    kind: str, rank: int | None, tmp_path: Path
) -> None:
    small, batch = shipped(kind, tmp_path / kind, rank=rank)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / kind, trust_remote_code=True).eval()
    assert type(again).__module__.startswith("transformers_modules.")
    assert again.state_dict().keys() == small.state_dict().keys()
    assert torch.allclose(logits(again, batch), logits(small, batch), rtol=0, atol=1e-5)
    assert again.config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    own = load(tmp_path / kind)
    assert type(own) is FAMILIES[kind].model
    assert torch.equal(logits(own, batch), logits(small, batch))


@KINDS
def test_the_graph_of_every_family_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    """A batch as it was traced, one row, and one without padding: RoBERTa counts positions by where padding lies."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    small, batch = shipped(kind, tmp_path / kind)
    run = runner(to_onnx(small, inputs=inputs_of(small), tokens=6), device=torch.device("cpu"), threads=1)
    one = {name: tensor[:1] for name, tensor in batch.items()}
    words = batch["input_ids"].clamp(min=5)
    full = {**batch, "input_ids": words, "attention_mask": torch.ones_like(words)}
    assert not batch["attention_mask"].all()
    for given in (batch, one, full):
        assert torch.allclose(run(given), logits(small, given), rtol=0, atol=1e-5)


@KINDS
def test_a_regression_says_that_it_is_one(kind: str, tmp_path: Path) -> None:
    small, batch = shipped(kind, tmp_path / kind, labels=("score",))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / kind, trust_remote_code=True).eval()
    assert (again.config.problem_type, again.config.num_labels) == ("regression", 1)
    assert torch.allclose(logits(again, batch), logits(small, batch), rtol=0, atol=1e-5)


def test_a_shipped_regression_predicts_numbers(tmp_path: Path) -> None:
    write_checkpoint("roberta", tmp_path, ("good", "bad"))
    model = load_dense(tmp_path, labels=1)
    write_model(model, tmp_path, Task(labels=(), label="score", metric="pearson"))
    task = {"texts": 2, "max_tokens": 16, "labels": ["score"], "regression": True}
    write_json(tmp_path / ABOUT, {"task": task})
    rows = [("good", "bad bad"), ("bad", "good")]
    found = Predictor(tmp_path, torch.device("cpu")).predict(rows)
    batch = load_tokenizer(str(tmp_path))(*map(list, zip(*rows, strict=True)), padding=True, return_tensors="pt")
    assert [one.label for one in found] == ["score", "score"]
    assert [one.score for one in found] == pytest.approx(logits(model, dict(batch))[:, 0].tolist(), abs=1e-5)
