"""One whole study for each further family, each on another kind of task: tiny checkpoints, files in GLUE's layout."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_families import write_checkpoint

from search import load
from search.artifacts import Artifacts
from search.bert.checkpoint import load as load_model
from search.bert.encoding import load_tokenizer
from search.bert.families import FAMILIES
from search.bert.pruned import plan_of
from search.definition import (
    Definition,
    EngineSettings,
    ImportanceSettings,
    LatencySettings,
    Range,
    RecoverySettings,
    SpaceSettings,
    SupernetSettings,
    Task,
    TeacherSettings,
)
from search.errors import UserError
from search.plan import Plan, total_parameters
from search.preparation import Prepared, prepare
from search.records import StudyRecord
from search.run import start

GOOD, BAD, OTHERS = ("good", "fine", "great"), ("bad", "poor", "awful"), ("the", "film", "plot", "was", "and", "scene")
ENDS = {"entailment": "surely", "neutral": "maybe", "contradiction": "never"}
WORDS = (*GOOD, *BAD, *OTHERS, *ENDS.values())


def sentence(dice: random.Random, *words: str) -> str:
    told = [*dice.choices(OTHERS, k=4), *words]
    dice.shuffle(told)
    return " ".join(told)


def sst2(dice: random.Random, number: int) -> list[str]:
    label = number % 2
    return [sentence(dice, *dice.choices((BAD, GOOD)[label], k=2)), str(label)]


def mnli(dice: random.Random, number: int) -> list[str]:
    label = list(ENDS)[number % 3]
    parse = ["( x )"] * 4
    return [str(number), "p1", "p1c", "fiction", *parse, sentence(dice), sentence(dice, ENDS[label]), label, label]


def stsb(dice: random.Random, number: int) -> list[str]:
    good = number % 6
    words = [*dice.choices(GOOD, k=good), *dice.choices(BAD, k=5 - good)]
    return [
        str(number),
        "genre",
        "file",
        "2012",
        "0",
        "none",
        "none",
        sentence(dice),
        sentence(dice, *words),
        f"{good:.3f}",
    ]


HEADERS = {
    sst2: "sentence label",
    mnli: "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label",
    stsb: "index genre filename year old_index source1 source2 sentence1 sentence2 score",
}


def write(folder: Path, line: Callable[[random.Random, int], list[str]], **rows: int) -> str:
    """Files of so many rows, one per split."""
    dice = random.Random(0)
    folder.mkdir()
    for split, count in rows.items():
        lines = [HEADERS[line].replace(" ", "\t"), *("\t".join(line(dice, number)) for number in range(count))]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


def definition(kind: str, folder: Path, data: str, task: Task, **fields: object) -> Definition:
    given: dict[str, object] = {
        "space": SpaceSettings(neuron_block=8),
        "importance": ImportanceSettings(rows=16),
        "recovery": RecoverySettings(steps=4, batch_size=8, refit_rows=16, precision="fp32"),
        **fields,
    }
    return Definition.model_validate(
        {
            "name": kind,
            "model": str(write_checkpoint(kind, folder / "checkpoint", WORDS)),
            "data": data,
            "task": task.model_copy(update={"held_out_rows": 24, "max_tokens": 30}),
            "teacher": TeacherSettings(epochs=10, batch_size=16, learning_rate=3e-3),
            "latency": LatencySettings(batch=2, tokens=8, warmup=1, repeats=3, interval=None),
            "engine": EngineSettings(trials=4, ladder=(0.5,), tilts=(0.0,), population=4),
            **given,
        }
    )


def run(study: Definition, capsys: pytest.CaptureFixture[str]) -> tuple[StudyRecord, dict]:
    """The study and its closing line."""
    start(study, ["--devices", "cpu"], program="study", command=["study"])
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    read = load(study.name)
    assert (len(read.complete), summary["trials"]) == (4, 4)
    assert not [record.failure for record in read.records if record.failure]
    assert read.dense is not None
    assert read.dense.plan == Plan.dense(read.shape)
    for record in read.complete:
        assert record.plan is not None
        assert record.value("parameters") == total_parameters(record.plan, read.shape)
    assert 0 <= summary["hypervolume"] < 1
    return read, summary


def teacher_of(name: str) -> Path:
    return next(path for path in Path(f"runs/{name}/artifacts").glob("teacher-*") if path.is_dir())


def test_distilbert_on_pairs_of_three_classes_with_a_small_vocabulary_and_hidden_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = Task(
        text=("sentence1", "sentence2"), label="gold_label", labels=tuple(ENDS), selection="dev_matched",
        metric="matthews",
    )  # fmt: skip
    study = definition(
        "distilbert", tmp_path, write(tmp_path / "MNLI", mnli, train=144, dev_matched=48), task,
        space=SpaceSettings(neuron_block=8, vocabulary="train"),
        recovery=RecoverySettings(steps=4, batch_size=8, hidden_weight=1.0, precision="fp32"),
    )  # fmt: skip
    read, summary = run(study, capsys)
    assert read.dense is not None
    assert summary["dense_matthews"] == read.dense.value("matthews") > 0.5
    assert {"accuracy", "matthews"} <= set(read.dense.quantities)
    assert not {"f1", "pearson", "spearman"} & set(read.dense.quantities)
    assert (read.shape.token_types, read.shape.labels) == (0, 3)
    assert read.shape.vocabulary < len(WORDS) + 57
    teacher = load_model(teacher_of("distilbert"))
    assert type(teacher) is FAMILIES["distilbert"].model
    assert teacher.config.id2label == dict(enumerate(ENDS))


def test_electra_on_single_sentences_from_a_super_network_with_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = definition(
        "electra", tmp_path, write(tmp_path / "SST-2", sst2, train=144, dev=48),
        Task(text=("sentence",), selection="validation"),
        space=SpaceSettings(neuron_block=8, embedding=Range(low=0.25), embedding_block=2),
        recovery=RecoverySettings(start="supernet", steps=0),
        supernet=SupernetSettings(steps=3, batch_size=8),
    )  # fmt: skip
    read, summary = run(study, capsys)
    assert read.dense is not None
    assert summary["dense_accuracy"] == read.dense.value("accuracy") > 0.75
    assert read.shape.embedding == 10
    ladder = next(record for record in read.complete if record.role == "ladder")
    assert ladder.plan is not None
    assert ladder.plan.rank == 4  # of 10 / 2 blocks the even number nearest to a half
    assert plan_of(load_model(teacher_of("electra")).config) == Plan.dense(read.shape)


def test_roberta_on_a_regression_of_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = Task(
        text=("sentence1", "sentence2"), label="score", labels=(), selection="dev", train_rows=144, metric="pearson"
    )
    study = definition(
        "roberta", tmp_path, write(tmp_path / "STS-B", stsb, train=180, dev=48), task,
        importance=ImportanceSettings(rows=16, loss="distillation"),
    )  # fmt: skip
    read, summary = run(study, capsys)
    assert read.dense is not None
    assert summary["dense_pearson"] == read.dense.value("pearson") > 0.5
    assert "spearman" in read.dense.quantities
    assert not {"accuracy", "f1", "matthews"} & set(read.dense.quantities)
    assert (read.shape.labels, read.shape.token_types) == (1, 1)
    teacher = load_model(teacher_of("roberta"))
    assert (teacher.config.problem_type, teacher.config.id2label) == ("regression", {0: "score"})
    assert all(record.answers is None for record in read.complete)
    again = prepared(
        study.model_copy(update={"model": str(teacher_of("roberta")), "teacher": TeacherSettings(fine_tuned=True)})
    )
    error = (again.teacher_logits[:, 0] - again.train.labels).square().mean()
    assert error < again.train.labels.var()
    assert torch.equal(again.teacher.classifier.out_proj.weight, teacher.classifier.out_proj.weight)


# --- what does not fit together


def prepared(study: Definition) -> Prepared:
    return prepare(
        study, Artifacts(Path("artifacts")), device=torch.device("cpu"), own_objectives={}, on_stage=lambda *_: None
    )


def test_a_longer_sequence_than_roberta_has_positions_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = definition("roberta", tmp_path, write(tmp_path / "SST-2", sst2, train=90), Task(text=("sentence",)))
    with pytest.raises(UserError, match=r"task.max_tokens is 33; the checkpoint '.*' has 32 positions; use no more"):
        prepared(study.model_copy(update={"task": study.task.model_copy(update={"max_tokens": 33})}))


def test_a_tokenizer_that_pads_otherwise_than_its_roberta_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = definition("roberta", tmp_path, write(tmp_path / "SST-2", sst2, train=90), Task(text=("sentence",)))
    tokenizer = load_tokenizer(study.model)
    tokenizer.pad_token = "[MASK]"
    tokenizer.save_pretrained(study.model)
    with pytest.raises(UserError, match="pads with token 4, and its model numbers positions from that of token 1 on"):
        prepared(study)


def test_pairs_need_two_token_types_only_where_types_tell_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = Task(text=("sentence1", "sentence2"), label="gold_label", labels=tuple(ENDS), selection_rows=24)
    study = definition("bert", tmp_path, write(tmp_path / "MNLI", mnli, train=90), task)
    write_checkpoint("bert", tmp_path / "checkpoint", WORDS, type_vocab_size=1)
    with pytest.raises(UserError, match="tells 1 text apart; name one column"):
        prepared(study)
