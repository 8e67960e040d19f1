"""The precision that a model is deployed in, as a dimension: from the ratio to the record, the front and the export."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import DEFINITION, SHAPE, SilentListener, begin, evaluation_of
from rich.console import Console
from small_study import Searched

from objectives import all_metrics
from objectives.precision import in_precision
from search import shipping
from search.analysis.table import front_frame, points, render_front
from search.analysis.trial import render_trial
from search.artifacts import digest
from search.bert.importance import Scores
from search.bert.ladder import ladder
from search.bert.precision import in_bf16, score_in
from search.bert.training import score
from search.definition import Definition, SpaceSettings, build, differences, from_json
from search.deploy.export import Wanted
from search.deploy.rebuild import rebuild
from search.engine import attributes, study
from search.engine.claims import made_by_others
from search.engine.worker import work
from search.errors import UserError
from search.keys import supernet_key
from search.pipeline import evaluate
from search.plan import Plan
from search.preparation import Prepared
from search.records import Evaluation, Record
from search.space import Space

ALL = ("fp32", "bf16", "int8")
CHOSEN = DEFINITION.model_copy(update={"space": SpaceSettings(neuron_block=16, precision=ALL)})
HALF = Plan((2, 2, 0), (64, 0, 32))


def ignore(_name: str, _done: int, _total: int) -> None:
    pass


def text_of(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_a_ratio_says_which_precision() -> None:
    for precisions in (ALL, ("int8", "fp32")):
        space = Space.of(SpaceSettings(neuron_block=16, precision=precisions), SHAPE)
        last = len(precisions) - 1
        assert [space.precision({"precision": place / last}) for place in range(last + 1)] == list(precisions)
        assert space.dimensions[-1].name == "precision"
        assert space.dimensions[-1].choices == len(precisions)
        sizes = (SHAPE.heads, SHAPE.neurons)
        scores = Scores(*(torch.rand(SHAPE.layers, units, dtype=torch.float64) for units in sizes))
        for ratios in (space.uniform(0.25), *ladder(space, scores, sizes=(0.5, 0.25), tilts=(0.0, 1.0))):
            assert space.precision(ratios) == precisions[0]
    one = Space.of(SpaceSettings(neuron_block=16, precision=("int8",)), SHAPE)
    assert len(one.dimensions) == 2 * SHAPE.layers
    assert one.precision(one.uniform(0.5)) == "int8"


def test_a_definition_from_before_loads_and_finds_its_super_network() -> None:
    values = json.loads(DEFINITION.to_json())
    del values["space"]["precision"]
    old = from_json(json.dumps(values), source="old")
    assert old == DEFINITION
    assert differences(old, DEFINITION) == []
    assert from_json(CHOSEN.to_json(), source="x") == CHOSEN
    assert differences(DEFINITION, CHOSEN)
    assert "precision" not in supernet_key(DEFINITION, {})["space"]
    assert digest(supernet_key(DEFINITION, {})) == digest(supernet_key(CHOSEN, {}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"space": {"precision": ["fp32", "fp32"]}}, "space: precision is ['fp32', 'fp32']: each may stand there once"),
        ({"space": {"precision": []}}, "space.precision"),
        ({"space": {"precision": ["int4"]}}, "space.precision.0 is 'int4'"),
        ({"latency": {"source": "table"}}, "latency.source is 'table': a table knows one precision"),
        ({"latencies": {"a": {"dtype": "bfloat16"}}}, "latencies.a.dtype is 'bfloat16': the precision says it"),
        ({"latency": {"backend": "compile"}}, "latency.backend is 'compile': int8 runs in ONNX Runtime on a CPU"),
        ({"latency": {"backend": "onnxruntime"}}, "latency.backend is 'onnxruntime': bf16 is run by PyTorch"),
        ({"constraints": {"peak_memory_bytes": {"at_most": 1}}}, "peak_memory_bytes is asked for: it is not known"),
    ],
)
def test_what_no_precision_can_be_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        build({"name": "x", "data": "x.csv", "space": {"precision": list(ALL)}, **given}, source="here")
    assert said in str(caught.value)


def formula(plan: Plan, precision: str) -> Evaluation:
    """Lower precision is faster and a little worse."""
    evaluation = evaluation_of(plan)
    place = ALL.index(precision)
    quantities = {name: dict(quantity) for name, quantity in evaluation.quantities.items()}
    quantities["latency_ms"]["value"] *= 1 - 0.3 * place
    quantities["accuracy"]["value"] -= 0.01 * place
    return replace(evaluation, quantities=quantities)


def test_a_search_chooses_precisions_and_its_front_names_them(tmp_path: Path) -> None:
    given: list[tuple[Plan, str]] = []

    def evaluated(plan: Plan, *, precision: str = "fp32", **_rest: Any) -> Evaluation:
        given.append((plan, precision))
        return formula(plan, precision)

    engine = CHOSEN.engine.model_copy(update={"trials": 30})
    opened, _ = begin(tmp_path, CHOSEN.model_copy(update={"engine": engine}))
    assert work(opened, evaluated, SilentListener())
    read = study.read(opened)
    assert [(r.plan, r.precision) for r in read.complete if r.answered_from is None] == given
    assert {r.precision for r in read.complete if r.role != "search"} == {"fp32"}
    assert {r.precision for r in read.complete} == set(ALL)
    for record in read.complete:
        ratio = record.ratios["precision"]
        assert record.precision == ("fp32" if record.role == "dense" else ALL[round(2 * ratio)])
    assert (attributes.PRECISION in opened.trials[0].user_attrs) is False
    frame = front_frame(read)
    by_trial = {record.trial: record.precision for record in read.records}
    assert frame["precision"].tolist() == [by_trial[trial] for trial in frame["trial"]]
    assert len(set(frame["precision"])) > 1
    assert {point["precision"] for point in points(read)} == set(frame["precision"])
    assert "precision" in text_of(render_front(read))
    chosen = next(record for record in read.complete if record.precision == "int8")
    assert "scored and measured in int8" in text_of(render_trial(read, chosen))
    assert "precision" not in front_frame(study.read(begin(tmp_path / "other", DEFINITION)[0]))


def test_equal_plans_in_other_precisions_are_two_and_in_equal_ones_are_one(tmp_path: Path) -> None:
    calls: list[str] = []

    def evaluated(plan: Plan, *, precision: str = "fp32", **_rest: Any) -> Evaluation:
        calls.append(precision)
        return formula(plan, precision)

    definition = CHOSEN.model_copy(update={"engine": CHOSEN.engine.model_copy(update={"trials": 5, "ladder": ()})})
    opened, _ = begin(tmp_path, definition)
    ratios = Space.of(definition.space, SHAPE).uniform(0.5)
    for place in (0.0, 1.0, 0.0, 1.0):
        opened.enqueue_trial({**ratios, "precision": place})
    assert work(opened, evaluated, SilentListener())
    assert calls == ["fp32", "fp32", "int8"]  # the dense model first
    records = study.read(opened).records
    assert [record.answered_from for record in records[1:]] == [None, None, 1, 2]
    assert [record.precision for record in records[1:]] == ["fp32", "int8", "fp32", "int8"]
    assert records[1].plan is not None
    assert made_by_others(opened, records[1].plan, 10**6, {}, "bf16") is None


@pytest.fixture(scope="module")
def prepared(small: Searched) -> Prepared:
    """The small study, as if it had asked for all precisions and for the size of the file."""
    of = small.again.prepared
    fields = {"objectives": ("metric", "latency_ms", "energy_mj", "stored_bytes"), "constraints": {}}
    space = of.definition.space.model_copy(update={"precision": ALL})
    return replace(of, definition=of.definition.model_copy(update={**fields, "space": space}))


def test_a_plan_is_scored_and_measured_in_its_precision(prepared: Prepared, small: Searched) -> None:
    found = {p: evaluate(prepared, HALF, seed=1, on_stage=ignore, precision=p).quantities for p in ALL}
    for name in ("parameters", "macs"):
        assert len({quantities[name]["value"] for quantities in found.values()}) == 1
    sizes = {precision: quantities["stored_bytes"] for precision, quantities in found.items()}
    assert 0.49 < sizes["bf16"]["value"] / sizes["fp32"]["value"] < 0.52
    assert 0.2 < sizes["int8"]["value"] / sizes["fp32"]["value"] < 0.4
    assert sizes["int8"]["source"] == "ONNX file, dynamic int8"
    sources = {precision: quantities["latency_ms"]["source"] for precision, quantities in found.items()}
    assert sources["fp32"].startswith("eager torch, float32")
    assert sources["bf16"].startswith("eager torch, bfloat16")
    assert sources["int8"].startswith("ONNX Runtime, dynamic int8, float32")
    energies = [found[precision]["energy_mj"]["value"] for precision in ALL]
    assert energies == sorted(energies, reverse=True)
    assert len(set(energies)) == 3
    rebuilt = rebuild_half(prepared, small, "fp32")
    for precision in ALL:
        logits = score_in(precision, rebuilt.model, prepared.selection, pad_id=prepared.pad_id, batch_size=64)
        metrics = all_metrics(logits, prepared.selection.labels)
        assert found[precision]["accuracy"]["value"] == metrics["accuracy"].value
        assert (precision == "fp32") == torch.equal(logits, rebuilt.logits)


def rebuild_half(prepared: Prepared, small: Searched, precision: str) -> Any:
    record = Record(1, "complete", plan=HALF, seed=1, precision=precision, quantities={"accuracy": {"value": 0.0}})
    records = (small.again.study.records[0], record)
    return rebuild(prepared, replace(small.again.study, records=records), 1, on_stage=ignore)


def test_each_precision_computes_what_it_says(prepared: Prepared, small: Searched) -> None:
    rebuilt = rebuild_half(prepared, small, "int8")
    rows, options = prepared.selection, {"pad_id": prepared.pad_id, "batch_size": 64}
    exact = score_in("fp32", rebuilt.model, rows, **options)
    assert torch.equal(exact, rebuilt.logits)
    half = score_in("bf16", rebuilt.model, rows, **options)
    assert torch.equal(half, score(in_bf16(rebuilt.model), rows, precision="fp32", **options))
    assert next(rebuilt.model.parameters()).dtype == torch.float32
    quantised = score_in("int8", rebuilt.model, rows, **options)
    for other in (half, quantised):
        assert 0 < (other - exact).abs().mean() < 0.4 * exact.abs().mean()
    assert rebuilt.metrics["accuracy"]["value"] == all_metrics(quantised, rows.labels)["accuracy"].value
    with pytest.raises(KeyError):
        score_in("int4", rebuilt.model, rows, **options)


def test_the_reference_beside_a_model_stays_as_it_is(prepared: Prepared) -> None:
    latency = prepared.objectives["latency_ms"]
    related = replace(latency, reference=prepared.teacher, reference_ms=2.0, corrected=True)
    for precision in ALL:
        changed: Any = in_precision(related, precision)
        assert (changed.reference_conditions or changed.conditions) == related.conditions
        assert (changed.conditions == related.conditions) == (precision == "fp32")
    measured: Any = in_precision(related, "bf16")
    found = measured.measure(type("Subject", (), {"model": prepared.teacher})())
    assert found.conditions["dtype"] == "bfloat16"
    assert {run.__qualname__ for run in measured._reference_runs} == {"_run_of.<locals>.run"}
    assert found.details["reference_at_start"] == 2.0


def test_an_int8_trial_is_shipped_with_its_file(
    prepared: Prepared, small: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Wanted().with_precision("int8") == Wanted(int8=True)
    assert Wanted(onnx=True).with_precision("bf16") == Wanted(onnx=True, bf16=True)
    assert Wanted(onnx=True).with_precision("fp32") == Wanted(onnx=True)
    of = small.again.study
    record = replace(of.records[1], precision="bf16")
    changed = replace(of, records=(of.records[0], record, *of.records[2:]))
    monkeypatch.setattr("search.loading.load", lambda *_: changed)
    monkeypatch.setattr(shipping, "reopen", lambda *_, **__: replace(small.again, study=changed, prepared=prepared))
    about = shipping.export(small.name, 1, tmp_path / "model", small.place, Wanted(), Console(file=io.StringIO()))
    assert list(about["files"]) == ["model.safetensors", "model.bf16.safetensors"]
    assert about["precision"] == "bf16"
    assert "was recorded, in bf16." in (tmp_path / "model" / "README.md").read_text()


def test_int8_is_refused_where_a_package_is_missing(
    small: Searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from search import preparation
    from search.artifacts import Artifacts

    monkeypatch.setattr("objectives.onnx_graph.find_spec", lambda name: None if name == "onnxscript" else name)
    definition: Definition = small.again.study.definition
    space = definition.space.model_copy(update={"precision": ("fp32", "int8")})
    with pytest.raises(UserError, match=r"space\.precision: the precision 'int8': .* needs the package onnxscript"):
        preparation.prepare(
            definition.model_copy(update={"space": space}),
            Artifacts(tmp_path),
            device=torch.device("cpu"),
            own_objectives={},
            on_stage=ignore,
        )
    assert list(tmp_path.iterdir()) == []
