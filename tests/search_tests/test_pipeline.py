"""From a plan to measurements, on the real packaged checkpoint and real sentences."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef

import search.bert.training as training
import search.pipeline as pipeline
from objectives import Measurement, MeasurementUnavailable, Subject
from search import keys
from search.answers import unpacked
from search.artifacts import Artifacts, digest, digest_of_files
from search.bert.block_importance import block_importance
from search.bert.checkpoint import fingerprint
from search.bert.encoding import collate, drawn_batches, load_tokenizer, training_batches
from search.bert.importance import importance
from search.definition import (
    Bound,
    Definition,
    EnergySettings,
    ImportanceSettings,
    LatencySettings,
    RecoverySettings,
    Task,
    TeacherSettings,
)
from search.errors import TrialError, UserError
from search.pipeline import evaluate
from search.plan import Plan, encoder_macs, encoder_parameters, total_parameters
from search.preparation import Prepared, prepare

HALF = Plan((6,) * 6, (768,) * 6)
CPU = torch.device("cpu")


def ignore(_name: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture(scope="module")
def definition(minilm: Path, movie_reviews: Path) -> Definition:
    return Definition(
        name="pipeline",
        model=str(minilm),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=96, selection_rows=64, held_out_rows=64, max_tokens=32
        ),
        teacher=TeacherSettings(epochs=1, batch_size=16, learning_rate=1e-4),
        importance=ImportanceSettings(rows=32),
        recovery=RecoverySettings(refit_rows=32, steps=3, batch_size=8, precision="fp32"),
        latency=LatencySettings(batch=2, tokens=16, warmup=1, repeats=3, seconds=0),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def make(definition: Definition, folder: Path, **given: Any) -> Prepared:
    options: dict[str, Any] = {"own_objectives": {}, "energy_source": None, "on_stage": ignore, **given}
    return prepare(definition, Artifacts(folder), device=CPU, **options)


@pytest.fixture(scope="module")
def prepared(definition: Definition, folder: Path) -> Prepared:
    return make(definition, folder)


def changed(prepared: Prepared, **fields: Any) -> Prepared:
    return dataclasses.replace(prepared, definition=prepared.definition.model_copy(update=fields))


def test_preparation_is_done_once(definition: Definition, folder: Path, prepared: Prepared) -> None:
    stages: list[str] = []
    again = make(definition, folder, reference_ms={}, on_stage=lambda name, _done, _total: stages.append(name))
    assert stages == []
    assert torch.equal(again.teacher_logits, prepared.teacher_logits)
    assert torch.equal(again.scores.heads, prepared.scores.heads)
    for name, tensor in again.teacher.state_dict().items():
        assert torch.equal(tensor, prepared.teacher.state_dict()[name])


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"recovery": RecoverySettings(steps=9, batch_size=8, precision="fp32")}, set()),
        ({"recovery": RecoverySettings(refit_rows=0, steps=3, batch_size=8, precision="fp32")}, set()),
        ({"importance": ImportanceSettings(method="magnitude")}, {"importance"}),
    ],
)
def test_only_what_depends_on_a_change_is_made_again(
    fields: dict[str, Any], made: set[str], definition: Definition, folder: Path, prepared: Prepared
) -> None:
    assert prepared
    before = {path.name for path in folder.iterdir() if path.is_dir()}
    make(definition.model_copy(update=fields), folder)
    after = {path.name for path in folder.iterdir() if path.is_dir()}
    assert {name.split("-")[0] for name in after - before} == made


def test_importance_is_made_again_where_its_rows_are_others_even_if_the_teacher_is_the_same() -> None:
    content = {"teacher": "t", "rows": "r", "importance": "2"}
    settings = ImportanceSettings()
    definition = Definition(name="x", data="x", importance=settings)
    hashes = {
        keys.wanted(changed_definition, {**content, **other})["importance"]
        for changed_definition in (
            definition,
            definition.model_copy(update={"importance": ImportanceSettings(loss="distillation")}),
            definition.model_copy(update={"importance": ImportanceSettings(rows=8)}),
        )
        for other in ({}, {"rows": "s"}, {"teacher": "u"})
    }
    assert len(hashes) == 9


def test_importance_is_scored_on_rows_of_all_lengths_blocks_included(
    definition: Definition, folder: Path, prepared: Prepared
) -> None:
    assert prepared.content["importance"] == "2"
    made = next(folder.glob("importance-*/key.json"))
    assert json.loads(made.read_text())["importance"] == "2"
    drawn = drawn_batches(prepared.train, 32, batch_size=32, seed=definition.engine.seed)
    batches = [collate(prepared.train, rows, pad_id=prepared.pad_id, device=CPU) for rows in drawn]
    assert torch.equal(prepared.scores.heads, importance("fisher", prepared.teacher, batches).heads)
    assert prepared.scores.blocks is not None
    assert torch.equal(prepared.scores.blocks, block_importance(prepared.teacher, batches))


def test_a_study_that_was_prepared_before_keeps_its_scores(
    definition: Definition, folder: Path, prepared: Prepared
) -> None:
    """Its content names no way to make importance: same key as then, same rows, no scores of blocks."""
    content = {name: prepared.content[name] for name in ("teacher", "rows")}
    key = {**content, "seed": 0, "method": "fisher", "rows": 32}  # as it was written then
    assert keys.wanted(definition, content)["importance"] == digest(key)
    assert keys.wanted(definition, content)["logits"] == digest(content)
    for name in ("tokens", "teacher"):
        assert keys.wanted(definition, content)[name] == keys.wanted(definition, prepared.content)[name]
    made = make(definition, folder, content=content)
    assert made.content == content
    first = next(training_batches(prepared.train, batch_size=32, seed=0))
    batch = collate(prepared.train, first, pad_id=prepared.pad_id, device=CPU)
    assert torch.equal(made.scores.heads, importance("fisher", prepared.teacher, [batch]).heads)
    assert made.scores.blocks is None
    stages: list[str] = []
    fetched = make(
        definition, folder, content=content, from_artifacts=True, on_stage=lambda n, _d, _t: stages.append(n)
    )
    assert all(stage.startswith("fetch ") for stage in stages)
    assert torch.equal(fetched.scores.heads, made.scores.heads)
    assert not torch.equal(fetched.scores.heads, prepared.scores.heads)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_teachers_logits_are_computed_as_the_recovery_says(
    precision: str, definition: Definition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "has_bf16", lambda _device: True)
    recovery = definition.recovery.model_copy(update={"precision": precision})
    made = make(definition.model_copy(update={"recovery": recovery}), tmp_path)
    assert made.content.get("logits") == (None if precision == "auto" else "fp32")
    exact = training.score(made.teacher, made.train, pad_id=made.pad_id, batch_size=64, precision="fp32")
    apart = (made.teacher_logits - exact).abs().max()
    assert apart == 0 if precision == "fp32" else 1e-5 < apart < 0.1
    fetched = make(made.definition, tmp_path, content=made.content, from_artifacts=True)
    assert torch.equal(fetched.teacher_logits, made.teacher_logits)


def test_too_many_blocks_to_drop_are_refused_before_anything_is_made(definition: Definition, tmp_path: Path) -> None:
    engine = definition.engine.model_copy(update={"drop_blocks": (1, 13)})
    with pytest.raises(UserError, match=r"engine\.drop_blocks is 13; 11 blocks may vanish"):
        make(definition.model_copy(update={"engine": engine}), tmp_path / "artifacts")
    assert not (tmp_path / "artifacts").exists()


def test_the_held_out_split_is_stored_and_not_loaded(folder: Path, prepared: Prepared) -> None:
    assert (len(prepared.train), len(prepared.selection)) == (96, 64)
    assert list(folder.glob("tokens-*/held_out.safetensors"))
    assert not hasattr(prepared, "held_out")


def test_the_dense_plan_is_the_teacher_itself(prepared: Prepared) -> None:
    dense = Plan.dense(prepared.shape)
    evaluation = evaluate(prepared, dense, seed=1, on_stage=ignore)
    assert set(evaluation.seconds) == {"cut", "measure", "score"}
    assert evaluation.quantities["parameters"]["value"] == total_parameters(dense, prepared.shape)
    assert evaluation.quantities["encoder_share"]["value"] == 1.0


def test_a_cut_plan_is_measured_recovered_and_scored(prepared: Prepared) -> None:
    stages: list[str] = []
    evaluation = evaluate(prepared, HALF, seed=1, on_stage=lambda name, _d, _t: stages.append(name))
    assert list(dict.fromkeys(stages)) == ["cut", "measure", "refit", "recover", "score"]
    assert stages.count("recover") == 3
    values = {name: quantity["value"] for name, quantity in evaluation.quantities.items()}
    assert values["parameters"] == total_parameters(HALF, prepared.shape)
    assert values["encoder_parameters"] == encoder_parameters(HALF, prepared.shape)
    assert values["macs"] == encoder_macs(HALF, prepared.shape, tokens=16)
    assert {"accuracy", "f1", "matthews", "latency_ms", "energy_mj"} <= set(values)
    assert evaluation.quantities["energy_mj"]["source"] == "model"
    assert evaluation.conditions["energy_source"] == prepared.energy_source == "model"
    assert set(evaluation.seconds) == {"cut", "measure", "refit", "recover", "score"}


def test_same_plan_and_seed_same_result_and_the_teacher_is_not_touched(prepared: Prepared) -> None:
    before = {name: tensor.clone() for name, tensor in prepared.teacher.state_dict().items()}
    metrics = [
        {n: evaluate(prepared, HALF, seed=s, on_stage=ignore).quantities[n]["value"] for n in ("accuracy", "matthews")}
        for s in (1, 1)
    ]
    assert metrics[0] == metrics[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.teacher.state_dict().items())


def test_a_plan_that_breaks_a_constraint_is_not_trained(prepared: Prepared) -> None:
    bounded = changed(prepared, constraints={"parameters": Bound(at_most=17e6), "accuracy": Bound(at_least=0.0)})
    evaluation = evaluate(bounded, HALF, seed=1, on_stage=ignore)
    excess = total_parameters(HALF, prepared.shape) - 17e6
    assert set(evaluation.seconds) == {"cut", "measure", "score"}
    assert evaluation.violations["parameters"] == excess > 0
    assert evaluation.violations["accuracy"] <= 0
    assert "accuracy" in evaluation.quantities
    allowed = changed(prepared, constraints={"parameters": Bound(at_most=18e6)})
    assert {"refit", "recover"} <= set(evaluate(allowed, HALF, seed=1, on_stage=ignore).seconds)


def with_recovery(prepared: Prepared, **fields: Any) -> Prepared:
    return changed(prepared, recovery=prepared.definition.recovery.model_copy(update=fields))


@pytest.mark.parametrize(
    ("refit_rows", "steps", "stages"),
    [(32, 0, {"refit"}), (0, 3, {"recover"}), (0, 0, set()), (10_000, 0, {"refit"})],
)
def test_re_fit_and_fine_tune_each_can_be_left_out(
    refit_rows: int, steps: int, stages: set[str], prepared: Prepared
) -> None:
    given = with_recovery(prepared, refit_rows=refit_rows, steps=steps)
    assert set(evaluate(given, HALF, seed=1, on_stage=ignore).seconds) == {"cut", "measure", *stages, "score"}


def test_every_trial_is_re_fitted_on_the_same_rows_of_the_study(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[list[int]] = []

    def remember(_model: Any, teacher: Any, batches: Any) -> None:
        assert teacher is prepared.teacher
        rows.append(sorted(number for batch in batches for number in batch["input_ids"].sum(dim=1).tolist()))

    monkeypatch.setattr(pipeline, "refit", remember)
    given = with_recovery(prepared, refit_rows=40, steps=0)
    other = changed(given, engine=given.definition.engine.model_copy(update={"seed": 9}))
    for study, seed in ((given, 1), (given, 2), (other, 1)):
        evaluate(study, HALF, seed=seed, on_stage=ignore)
    assert len(rows[0]) == 40
    assert rows[0] == rows[1] != rows[2]


def test_a_re_fit_brings_the_logits_nearer_to_the_teachers(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[torch.Tensor] = []
    logits = pipeline.selection_logits

    def noted(*given: Any, **named: Any) -> torch.Tensor:
        scored.append(logits(*given, **named))
        return scored[-1]

    monkeypatch.setattr(pipeline, "selection_logits", noted)
    evaluate(prepared, Plan.dense(prepared.shape), seed=1, on_stage=ignore)
    for refit_rows in (0, 96):
        evaluate(with_recovery(prepared, refit_rows=refit_rows, steps=0), HALF, seed=1, on_stage=ignore)
    dense, raw, mended = scored
    assert (mended - dense).norm() < (raw - dense).norm()


def test_an_objective_of_ones_own_is_measured(definition: Definition, folder: Path) -> None:
    class Int8Size:
        name, unit, direction, needs_scores = "int8_mb", "MB", "minimize", False

        def measure(self, subject: Subject) -> Measurement:
            return Measurement(sum(p.numel() for p in subject.model.parameters()) / 1e6, self.unit, "counted")

    wanted = definition.model_copy(update={"objectives": ("metric", "int8_mb")})
    mine = make(wanted, folder, own_objectives={"int8_mb": Int8Size()})
    evaluation = evaluate(mine, HALF, seed=1, on_stage=ignore)
    assert evaluation.quantities["int8_mb"]["value"] == pytest.approx(total_parameters(HALF, mine.shape) / 1e6)
    assert "energy_mj" not in evaluation.quantities


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory on cpu .* lower recovery.batch_size"),
        (MemoryError(), "out of memory on cpu"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory on cpu"),
        (MeasurementUnavailable("the counter stood still"), "the counter stood still"),
    ],
)
def test_what_goes_wrong_in_a_trial_is_its_reason(
    error: Exception, part: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_args: Any, **_given: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "recover", breaks)
    with pytest.raises(TrialError, match=part):
        evaluate(prepared, HALF, seed=1, on_stage=ignore)


def test_a_diverging_recovery_is_a_failed_trial(prepared: Prepared) -> None:
    wild = changed(
        prepared,
        recovery=RecoverySettings(steps=40, batch_size=8, learning_rate=0.99, warmup=0.0, precision="fp32"),
    )
    broken = {name: float("nan") * tensor for name, tensor in prepared.teacher.state_dict().items()}
    teacher = pipeline.cut(prepared.teacher, pipeline.choose(Plan.dense(prepared.shape), prepared.scores))
    teacher.load_state_dict(broken)
    with pytest.raises(TrialError, match="the loss became nan at step 1 of 40"):
        evaluate(dataclasses.replace(wild, teacher=teacher), HALF, seed=1, on_stage=ignore)


def test_a_programming_error_is_not_hidden(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "recover", lambda *_a, **_k: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        evaluate(prepared, HALF, seed=1, on_stage=ignore)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"energy": EnergySettings(source="nvml")}, "energy.source"),
        ({"latency": LatencySettings(tokens=512), "model": "tiny"}, "latency.tokens is 512"),
        ({"teacher": TeacherSettings(fine_tuned=True)}, "teacher.fine_tuned"),
        ({"data": "/no/such/file.csv"}, "/no/such/file.csv"),
        ({"model": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_what_cannot_be_prepared_is_said_and_leaves_nothing(
    fields: dict[str, Any], part: str, definition: Definition, minilm: Path, tmp_path: Path
) -> None:
    if fields.get("model") == "tiny":
        fields = {**fields, "model": str(_with_few_positions(minilm, tmp_path / "tiny"))}
    with pytest.raises(UserError) as caught:
        make(definition.model_copy(update=fields), tmp_path / "runs" / "artifacts")
    assert part in str(caught.value)
    assert not (tmp_path / "runs").exists()


def _with_few_positions(source: Path, target: Path) -> Path:
    """The packaged checkpoint, cut to 128 positions."""
    from search.bert.checkpoint import load_dense, save
    from search.bert.encoding import load_tokenizer

    model = load_dense(source, labels=2)
    embeddings = model.bert.embeddings
    embeddings.position_embeddings = torch.nn.Embedding.from_pretrained(
        embeddings.position_embeddings.weight[:128].detach().clone()
    )
    model.config.max_position_embeddings = 128
    save(model, target)
    load_tokenizer(str(source)).save_pretrained(target)
    return target


def test_a_fine_tuned_checkpoint_is_used_as_it_is(
    definition: Definition, folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    teacher = next(path for path in folder.glob("teacher-*") if path.is_dir())
    given = definition.model_copy(update={"model": str(teacher), "teacher": TeacherSettings(fine_tuned=True)})
    stages: list[str] = []
    mine = make(given, tmp_path, on_stage=lambda name, _d, _t: stages.append(name))
    assert "teacher" not in stages
    for name, tensor in mine.teacher.state_dict().items():
        assert torch.equal(tensor, prepared.teacher.state_dict()[name])


@pytest.fixture
def in_capitals(definition: Definition, folder: Path, prepared: Prepared, tmp_path: Path) -> Definition:
    """A fine-tuned teacher, and rows in which casing shows."""
    assert prepared
    shutil.copytree(next(path for path in folder.glob("teacher-*") if path.is_dir()), tmp_path / "uncased")
    lines = [f"Film {number} is {('Dull', 'Fine')[number % 2]},{number % 2}" for number in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    fields = {
        "model": str(tmp_path / "uncased"),
        "data": str(tmp_path / "rows.csv"),
        "task": Task(selection_rows=8, held_out_rows=8, max_tokens=16),
        "teacher": TeacherSettings(fine_tuned=True),
    }
    return definition.model_copy(update=fields)


def _cased(folder: Path) -> None:
    """Correct a tokenizer: it lower-cased, and must not; the vocabulary stays."""
    for name, change in (
        ("tokenizer.json", lambda values: values["normalizer"].update(lowercase=False, strip_accents=False)),
        ("tokenizer_config.json", lambda values: values.update(do_lower_case=False)),
    ):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))


def test_a_tokenizer_that_was_corrected_writes_new_tokens(in_capitals: Definition, tmp_path: Path) -> None:
    old = make(in_capitals, tmp_path / "artifacts", reference_ms={})
    _cased(Path(in_capitals.model))
    new = make(in_capitals, tmp_path / "artifacts", reference_ms={})
    assert old.train.ids.tolist() != new.train.ids.tolist()
    assert {old.content[kind] == new.content[kind] for kind in ("rows", "teacher")} == {False}
    folders = [tmp_path / "artifacts" / f"teacher-{each.content['teacher'][:20]}" for each in (old, new)]
    assert [load_tokenizer(str(path)).do_lower_case for path in folders] == [True, False]  # what export ships
    with pytest.raises(UserError, match=r"the tokenizer of '.*uncased', as .*, or the data '.*' is not what the study"):
        make(in_capitals, tmp_path / "artifacts", content=old.content)


def test_a_study_whose_keys_hold_no_rules_goes_on_with_its_tokens(in_capitals: Definition, tmp_path: Path) -> None:
    rows = {  # as these were written then
        "data": digest_of_files(Path(in_capitals.data)),
        "task": in_capitals.task.model_dump(mode="json", exclude={"metric"}),
        "tokenizer": digest(load_tokenizer(in_capitals.model).get_vocab()),
        "seed": 0,
    }
    teacher = {"model": fingerprint(in_capitals.model), "labels": ["0", "1"]}
    content = {"rows": digest(rows), "teacher": digest(teacher), "importance": "2"}
    made = make(in_capitals, tmp_path / "artifacts", reference_ms={}, content=content)
    assert made.content == content
    stages: list[str] = []
    again = make(
        in_capitals,
        tmp_path / "artifacts",
        reference_ms={},
        content=content,
        on_stage=lambda n, _d, _t: stages.append(n),
    )
    assert stages == []
    assert torch.equal(again.train.ids, made.train.ids)


@pytest.fixture
def tickets(minilm: Path, tmp_path: Path) -> Definition:
    """Three classes and two text columns, in a file of one's own."""
    lines = ["subject,body,queue"]
    for number in range(120):
        queue = ("billing", "technical", "other")[number % 3]
        lines.append(f"ticket {number},please help me with my {queue} question number {number},{queue}")
    (tmp_path / "tickets.csv").write_text("\n".join(lines))
    return Definition(
        name="tickets",
        model=str(minilm),
        data=str(tmp_path / "tickets.csv"),
        task=Task(
            text=("subject", "body"), label="queue", labels=("billing", "technical", "other"),
            selection_rows=24, held_out_rows=24, max_tokens=32,
        ),
        teacher=TeacherSettings(epochs=1, batch_size=16),
        importance=ImportanceSettings(rows=16),
        recovery=RecoverySettings(steps=2, batch_size=8),
        latency=LatencySettings(batch=2, tokens=16, warmup=1, repeats=3, seconds=0),
    )  # fmt: skip


def test_three_classes_and_sentence_pairs(tickets: Definition, tmp_path: Path) -> None:
    prepared = make(tickets, tmp_path / "artifacts")
    evaluation = evaluate(prepared, HALF, seed=1, on_stage=ignore)
    assert prepared.teacher_logits.shape == (72, 3)
    assert set(prepared.train.types.tolist()) == {0, 1}
    assert "accuracy" in evaluation.quantities
    assert "f1" not in evaluation.quantities
    assert evaluation.quantities["parameters"]["value"] == total_parameters(HALF, prepared.shape)


def test_a_study_goes_on_with_the_same_content_and_machine_only(tickets: Definition, tmp_path: Path) -> None:
    first = make(tickets, tmp_path / "artifacts")
    moved = tmp_path / "moved.csv"
    moved.write_bytes(Path(tickets.data).read_bytes())
    again = {"content": first.content, "machine": first.machine}
    elsewhere = tickets.model_copy(update={"data": str(moved)})
    assert make(elsewhere, tmp_path / "artifacts", **again).content == first.content
    older = {**again, "machine": f"cpu with {torch.get_num_threads()} threads"}  # as it was written before
    assert make(elsewhere, tmp_path / "artifacts", **older).machine == older["machine"] != first.machine
    moved.write_text(moved.read_text().replace("ticket 7,", "ticket seven,"))
    with pytest.raises(UserError, match=r"the data '.*' is not what the study was created with"):
        make(elsewhere, tmp_path / "artifacts", **again)
    with pytest.raises(UserError, match="was measured on H200 with 8 threads, and this is cpu"):
        make(tickets, tmp_path / "artifacts", content=first.content, machine="H200 with 8 threads")


def test_a_constraint_that_nothing_measures_fails_the_trial(prepared: Prepared) -> None:
    bounded = changed(prepared, constraints={"my_own": Bound(at_most=1)})
    with pytest.raises(TrialError, match="the constraint on 'my_own' cannot be checked"):
        evaluate(bounded, HALF, seed=1, on_stage=ignore)


def test_a_fine_tuned_checkpoints_labels_must_be_the_declared_ones(
    definition: Definition, folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    teacher = next(path for path in folder.glob("teacher-*") if path.is_dir())
    turned = definition.model_copy(
        update={
            "model": str(teacher),
            "teacher": TeacherSettings(fine_tuned=True),
            "task": definition.task.model_copy(update={"labels": ("1", "0")}),
        }
    )
    assert prepared
    with pytest.raises(UserError, match="declare them as the checkpoint does"):
        make(turned, tmp_path / "artifacts")


@pytest.mark.parametrize("metric", ["accuracy", "matthews"])
def test_the_answers_are_those_that_were_scored(metric: str, prepared: Prepared) -> None:
    """Right or wrong where only accuracy is compared; the classes where another metric is."""
    mine = changed(prepared, task=prepared.definition.task.model_copy(update={"metric": metric}))
    evaluation = evaluate(mine, HALF, seed=1, on_stage=ignore)
    assert evaluation.answers is not None
    answers = unpacked(evaluation.answers)
    assert answers.rows == len(answers.codes) == 64
    if metric == "accuracy":
        assert answers.codes.mean() == pytest.approx(evaluation.quantities["accuracy"]["value"])
    else:
        true, predicted = answers.codes // 2, answers.codes % 2
        assert np.array_equal(true, prepared.selection.labels.numpy())
        assert matthews_corrcoef(true, predicted) == pytest.approx(evaluation.quantities["matthews"]["value"])
