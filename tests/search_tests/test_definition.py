"""A definition is frozen, survives JSON, and says everything that is wrong with it at once."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from search.definition import (
    METRICS,
    OBJECTIVES,
    Bound,
    Definition,
    EngineSettings,
    LayerRanges,
    Range,
    RecoverySettings,
    SpaceSettings,
    Task,
    build,
    differences,
    from_file,
    from_json,
)
from search.errors import UserError

RICH = Definition(
    name="rich-1",
    data="reviews.csv",
    task=Task(text=("a", "b"), labels=("no", "yes", "maybe"), where={"source": "x"}, columns=("a", "b", "label")),
    space=SpaceSettings(layers={0: LayerRanges(heads=Range(low=0.5)), 3: LayerRanges(neurons=Range(high=0.25))}),
    constraints={"parameters": Bound(at_most=5e7), "accuracy": Bound(at_least=0.8)},
    engine=EngineSettings(ladder=(0.5, 0.25), seed=7),
)


def test_json_round_trip_is_exact() -> None:
    again = from_json(RICH.to_json(), source="test")
    assert again == RICH
    assert again.space.layers[3].neurons == Range(high=0.25)


def test_the_same_text_works_from_a_file(tmp_path) -> None:
    file = tmp_path / "definition.json"
    file.write_text(json.dumps({"name": "x", "data": "d.csv", "recovery": {"steps": 3}}))
    assert from_file(file) == Definition(name="x", data="d.csv", recovery=RecoverySettings(steps=3))


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError):
        RICH.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        RICH.recovery.steps = 3  # type: ignore[misc]


def test_all_errors_are_told_at_once_with_value_rule_and_nearest_name() -> None:
    values = {
        "name": "a b",
        "data": "d",
        "recovery": {"stepz": 3, "warmup": 2},
        "space": {"heads": {"low": 0.9, "high": 0.1}, "neurons": {"high": 1.5}},
        "objektives": [],
    }
    with pytest.raises(UserError) as caught:
        build(values, source="here")
    message = str(caught.value)
    for part in (
        "here:",
        "name is 'a b'",
        "unknown field 'recovery.stepz'; did you mean 'recovery.steps'?",
        "recovery.warmup is 2",
        "low is 0.9 and high is 0.1: low must not exceed high",
        "space.neurons.high is 1.5",
        "did you mean 'objectives'?",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"task": {"labels": ["a", "a"]}}, "each label may stand there once"),
        ({"task": {"labels": ["a"]}}, "task.labels"),
        ({"task": {"text": ["a", "b", "c"]}}, "name one text column"),
        ({"task": {"metric": "f1", "labels": ["a", "b", "c"]}}, "f1 is for two labels"),
        ({"objectives": ["accuracy", "metric"]}, "each may stand there once"),
        ({"constraints": {"parameters": {}}}, "needs at_least, at_most or both"),
        ({"constraints": {"parameters": {"at_least": 5, "at_most": 3}}}, "no value keeps both"),
        ({"objectives": ["f1"], "task": {"labels": ["a", "b", "c"]}}, "f1 is for two"),
        ({"constraints": {"f1": {"at_least": 0.5}}, "task": {"labels": ["a", "b", "c"]}}, "f1 is for two"),
        ({"recovery": {"learning_rate": float("nan")}}, "recovery.learning_rate"),
        ({"recovery": {"refit_rows": -1}}, "recovery.refit_rows is -1"),
        ({"engine": {"trials": 0}}, "engine.trials is 0"),
        (
            {"constraints": {"metric": {"at_least": 0.9}, "accuracy": {"at_least": 0.5}}},
            "constraints name 'metric' and 'accuracy', which is the metric: write one of the two",
        ),
        ({"space": {"layers": {"0": {}, "00": {}}}}, "layers are ['0', '00']: each may stand there once"),
        ({"space": {"layers": {"0": {"headz": {}}}}}, "unknown field 'space.layers.0.headz'"),
        (
            {"latency": {"tokens": 600}},
            "latency.tokens is 600: Input should be less than or equal to 512",
        ),
    ],
)
def test_values_out_of_range_are_refused(values: dict, part: str) -> None:
    with pytest.raises(UserError, match=r"^here: ") as caught:
        build({"name": "x", "data": "d", **values}, source="here")
    assert part in str(caught.value)


def test_a_study_that_was_created_with_two_bounds_on_its_metric_can_be_read() -> None:
    bounds = {"metric": {"at_least": 0.9}, "accuracy": {"at_least": 0.5}}
    text = json.dumps({"name": "x", "data": "d", "constraints": bounds})
    assert from_json(text, source="the study", stored=True).bounds == {"accuracy": Bound(at_least=0.5)}


def test_a_key_that_stands_twice_is_refused() -> None:
    text = '{"name": "x", "data": "d", "engine": {"trials": 3, "trials": 4}}'
    with pytest.raises(UserError, match=r"^here: the key 'trials' stands twice in one object; leave one of them$"):
        from_json(text, source="here")


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_text_that_is_no_definition(text: str) -> None:
    with pytest.raises(UserError, match="here"):
        from_json(text, source="here")


def test_metric_stands_for_the_tasks_metric() -> None:
    cola = Definition(name="x", data="d", task=Task(metric="matthews"))
    assert cola.objective_names == ("matthews", "parameters", "latency_ms", "energy_mj")
    assert set(METRICS) < set(OBJECTIVES)
    bounded = cola.model_copy(update={"constraints": {"metric": Bound(at_least=0.1)}})
    assert bounded.bounds == {"matthews": Bound(at_least=0.1)}


def test_differences_name_field_and_both_values() -> None:
    other = RICH.model_copy(update={"recovery": RecoverySettings(steps=7), "objectives": ("metric",)})
    assert differences(RICH, other) == [
        'objectives: ["metric", "parameters", "latency_ms", "energy_mj"] -> ["metric"]',
        "recovery.steps: 300 -> 7",
    ]


def test_more_trials_are_no_difference() -> None:
    more = RICH.model_copy(update={"engine": RICH.engine.model_copy(update={"trials": 999})})
    assert differences(RICH, more) == []
    other_seed = RICH.model_copy(update={"engine": RICH.engine.model_copy(update={"seed": 8})})
    assert differences(RICH, other_seed) == ["engine.seed: 7 -> 8"]


def test_a_layers_range_that_is_removed_is_a_difference() -> None:
    without = RICH.model_copy(update={"space": SpaceSettings()})
    assert any(line.startswith("space.layers") for line in differences(RICH, without))


def test_importing_search_imports_neither_torch_nor_optuna() -> None:
    code = "import sys, search; print(sorted({'torch', 'optuna', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("EngineSettings(trails=3)", "unknown field 'trails'; did you mean 'trials'?"),
        ("Definition(name='x', data='d', model=3)", "model is 3"),
    ],
)
def test_a_mistake_in_a_study_script_is_one_sentence(line: str, part: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from search import *; {line}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the study script, ")
    assert part in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_other_errors_keep_their_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", "import search; 1 / 0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
