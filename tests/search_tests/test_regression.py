"""A regression from its numbers in a file to losses, importance and the last layer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import SHAPE
from study_cases import synthetic
from tiny_families import HEAD_SIZE, HEADS, LAYERS, NEURONS, sentences, tiny
from torch.nn import functional

from search.analysis.importance import Importance
from search.analysis.indicators import hypervolume
from search.analysis.stories import about
from search.bert.block_importance import block_importance
from search.bert.checkpoint import load_dense, save
from search.bert.encoding import Encoded, collate, encode
from search.bert.families import family_of
from search.bert.importance import importance
from search.bert.reading import read_split
from search.bert.recovery import distillation, of_labels
from search.bert.splitting import load_splits
from search.bert.surgery import Kept, cut
from search.definition import Bound, Definition, Task, build, from_json
from search.errors import UserError
from search.records import ObjectiveInfo

STSB = Task(text=("sentence1", "sentence2"), label="score", labels=(), metric="pearson")


# --- the definition


def test_without_labels_a_task_is_a_regression() -> None:
    assert (STSB.is_regression, STSB.outputs) == (True, 1)
    assert (Task().is_regression, Task(labels=("a", "b", "c")).outputs) == (False, 3)
    definition = Definition(name="stsb", data="unused", task=STSB)
    assert from_json(definition.to_json(), source="test") == definition
    assert definition.objective_names[0] == "pearson"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"task": {"labels": []}},
            "metric is 'accuracy' with 0 labels: a regression, which has no labels, takes pearson",
        ),
        ({"task": {"metric": "spearman"}}, "metric is 'spearman' with 2 labels: a regression"),
        ({"task": {"labels": ["yes"]}}, "task.labels .*two labels or more, and a regression none"),
        ({"task": {"labels": [], "metric": "pearson", "phrases": True}}, "phrases is true without labels"),
        ({"objectives": ["metric", "pearson"]}, "pearson is asked for, and the task is a classification"),
        (
            {"task": {"labels": [], "metric": "pearson"}, "constraints": {"accuracy": {"at_least": 0.5}}},
            "accuracy is asked for, and the task is a regression, which accuracy is not for",
        ),
    ],
)
def test_metrics_and_labels_must_fit(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build({"name": "x", "data": "unused", **values}, source="test")


def test_both_correlations_may_be_asked_for() -> None:
    definition = Definition(
        name="x",
        data="unused",
        task=STSB,
        objectives=("metric", "latency_ms"),
        constraints={"spearman": Bound(at_least=0)},
    )
    assert set(definition.bounds) == {"spearman"}


# --- rows


def write(folder: Path, scores: list, *, split: str = "train") -> Path:
    lines = ["index\tsentence1\tsentence2\tscore"]
    lines += [f"{n}\ta {n}\tb {n}\t{score}" for n, score in enumerate(scores)]
    (folder / f"{split}.tsv").write_text("\n".join(lines))
    return folder


def test_numbers_are_read_as_they_stand_there(tmp_path: Path) -> None:
    frame = read_split(str(write(tmp_path, ["5.000", " 0.25", "-1e-3", 3])), STSB, "train")
    assert frame["score"].tolist() == ["5.000", "0.25", "-1e-3", "3"]


@pytest.mark.parametrize("score", ["", "high", "nan", "inf", "1,5"])
def test_what_is_no_number_is_refused_with_its_line(tmp_path: Path, score: str) -> None:
    with pytest.raises(UserError, match=rf"train.tsv' has label '{score}' on line 3, and task.labels is empty"):
        read_split(str(write(tmp_path, [1.0, score, 2.0])), STSB, "train")


def test_one_number_alone_cannot_be_learnt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds label '2\.0' only; training needs rows of at least two numbers"):
        read_split(str(write(tmp_path, [2.0, 2.0])), STSB, "train")
    write(tmp_path, [1.0, 2.0, 3.0, 4.0])
    write(tmp_path, [2.5] * 3, split="dev")
    (tmp_path / "dev.tsv").write_text((tmp_path / "dev.tsv").read_text().replace("\ta ", "\tc "))
    task = STSB.model_copy(update={"selection": "dev", "held_out_rows": 2})
    with pytest.raises(UserError, match=r"the selection split has 3 rows with the one label '2\.5'"):
        load_splits(str(tmp_path), task, seed=0)


def test_rows_are_drawn_from_all_over_the_scale(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    scores = [round(float(score), 3) for score in dice.uniform(0, 5, 400) ** 2]
    task = STSB.model_copy(update={"selection_rows": 50, "held_out_rows": 50, "train_rows": 100})
    splits = load_splits(str(write(tmp_path, scores)), task, seed=0)
    edges = np.quantile(scores, [0, 0.2, 0.4, 0.6, 0.8, 1])
    for rows, size in ((splits.selection, 50), (splits.held_out, 50), (splits.train, 100)):
        assert len(rows) == size
        counts, _ = np.histogram(rows.labels, edges)
        assert abs(counts - size / 5).max() <= 1
    assert all(isinstance(label, float) for label in splits.train.labels)


def test_numbers_stay_numbers_in_tokens_and_batches(minilm: Path, tmp_path: Path) -> None:
    from search.bert.encoding import load_tokenizer

    task = STSB.model_copy(update={"selection_rows": 2, "held_out_rows": 2})
    splits = load_splits(str(write(tmp_path, [0, 1, 2, 3, 4, 5, 2.5, 1.5])), task, seed=0)
    encoded = encode(splits.train, load_tokenizer(str(minilm)), max_tokens=16)
    assert encoded.labels.dtype == torch.float32
    assert encoded.labels.tolist() == list(splits.train.labels)
    again = Encoded.from_tensors(encoded.to_tensors())
    batch = collate(again.taken([1, 0]), [1, 0], pad_id=0, device="cpu")
    assert batch["labels"].tolist() == list(splits.train.labels[:2])
    with pytest.raises(ValueError, match=r"labels is torch.float64 .*: it is flat and torch.int64 or torch.float32"):
        Encoded(encoded.ids, encoded.types, encoded.offsets, encoded.labels.double())


# --- losses


def test_losses_are_squared_errors() -> None:
    logits, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0])
    teacher = torch.tensor([[9.0], [2.0], [1.5]])
    assert of_labels()(logits, labels, [0, 1]).item() == pytest.approx((1 + 4) / 2)
    for weight, expected in ((1.0, (1 + 2.25) / 2), (0.25, 0.25 * (1 + 2.25) / 2 + 0.75 * (1 + 4) / 2)):
        loss = distillation(teacher, weight=weight, temperature=7.0)
        assert loss(logits, labels, [1, 2]).item() == pytest.approx(expected)
    classes = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    assert of_labels()(classes, torch.tensor([0, 1]), [0, 1]) == functional.cross_entropy(classes, torch.tensor([0, 1]))


def test_a_checkpoint_gets_one_output(tmp_path: Path) -> None:
    save(tiny("bert", dtype=torch.float32).bert, tmp_path)
    model = load_dense(tmp_path, labels=1)
    assert model.classifier.out_features == 1
    assert model.config.problem_type == "regression"
    save(model, tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["problem_type"] == "regression"
    assert load_dense(tmp_path / "tuned", labels=1).num_labels == 1
    with pytest.raises(UserError, match="is fine-tuned for 1 labels and the task has 2"):
        load_dense(tmp_path / "tuned", labels=2)


# --- importance


@pytest.fixture(scope="module")
def model():
    return tiny("bert", labels=1)


@pytest.fixture(scope="module")
def batch(model):
    (rows,) = sentences(model, 6)
    return {**rows, "labels": torch.randn(6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)}


def predictions(model, batch, layer=None, path=None, columns=None, factor=1.0):
    """What the model predicts (rows,) with some columns of an output projection scaled."""
    weights = dict(model.named_parameters())
    if layer is not None:
        name = f"{family_of(model).layout.layers}.{layer}.{path}.weight"
        scale = torch.ones(weights[name].shape[1], dtype=torch.float64)
        scale[columns] = factor
        weights[name] = weights[name] * scale
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    with torch.no_grad():
        return torch.func.functional_call(model, weights, kwargs=inputs).logits[:, 0]


@pytest.mark.parametrize(("loss", "method"), [("task", "fisher"), ("task", "taylor"), ("distillation", "fisher")])
def test_scores_are_those_of_finite_differences(model, batch, loss: str, method: str) -> None:
    found, layout, step = importance(method, model, [batch], loss=loss), family_of(model).layout, 1e-5

    def measured(*where):
        up, down = (predictions(model, batch, *where, factor=1 + sign * step) for sign in (1, -1))
        if loss == "task":
            up, down = (up - batch["labels"]).square(), (down - batch["labels"]).square()
        slope = (up - down) / (2 * step)
        return (slope.square() if method == "fisher" else slope.abs()).mean()

    for layer in range(LAYERS):
        for head in range(HEADS):
            columns = list(range(head * HEAD_SIZE, (head + 1) * HEAD_SIZE))
            expected = measured(layer, layout.attention_output, columns)
            assert torch.isclose(found.heads[layer, head], expected, rtol=1e-5, atol=1e-9)
        for neuron in range(NEURONS):
            expected = measured(layer, layout.down, [neuron])
            assert torch.isclose(found.neurons[layer, neuron], expected, rtol=1e-5, atol=1e-9)


def test_distillation_scores_are_the_curvature_of_the_squared_difference(model, batch) -> None:
    """(f(m) - f)² of a factor 1 + e is e² times the score, to second order."""
    found, layout, step = importance("fisher", model, [batch], loss="distillation"), family_of(model).layout, 1e-4
    dense = predictions(model, batch)
    for layer, neuron in ((0, 1), (1, 4), (2, 0)):
        moved = predictions(model, batch, layer, layout.down, [neuron], 1 + step)
        assert torch.isclose((moved - dense).square().mean() / step**2, found.neurons[layer, neuron], rtol=1e-2)


@pytest.mark.parametrize("loss", ["task", "distillation"])
def test_a_block_is_worth_the_squared_error_that_cutting_it_out_costs(model, batch, loss: str) -> None:
    found = block_importance(model, [batch], loss=loss)
    heads, neurons = (tuple(range(HEADS)),) * LAYERS, (tuple(range(NEURONS)),) * LAYERS
    dense = predictions(model, batch)
    for layer in range(LAYERS):
        without = tuple(() if number == layer else units for number, units in enumerate(heads))
        said = predictions(cut(model, Kept(without, neurons)), batch)
        gain = (said - batch["labels"]).square() - (dense - batch["labels"]).square()
        expected = (gain if loss == "task" else (said - dense).square()).mean()
        assert torch.isclose(found[layer, 0], expected, rtol=0, atol=1e-9)


# --- what people read


def test_a_correlation_is_a_share_of_the_way_from_none_to_perfect() -> None:
    objectives = (ObjectiveInfo("pearson", "", "maximize"), ObjectiveInfo("parameters", "", "minimize"))
    regression = {"task": STSB.model_dump(mode="json"), "constraints": {}}
    study = synthetic(3, objectives=objectives, shape=SHAPE, **regression)
    values = [(0.8, 1000.0), (0.6, 500.0), (-0.5, 100.0)]
    records = tuple(
        replace(record, feasible=True, violations={}, values={"pearson": pearson, "parameters": parameters})
        for record, (pearson, parameters) in zip(study.records, values, strict=True)
    )
    study = replace(study, records=records)
    assert hypervolume(study) == pytest.approx(0.6 * 0.5)
    assert any(text.endswith("sentence1, sentence2 → score, a number") for _, text in about(study))


def test_the_unit_of_importance_is_that_of_squared_errors() -> None:
    scores = np.ones((2, 2))
    units = {
        (method, loss): Importance("stsb", method, loss, 8, scores, scores, None, regression=True).unit
        for method in ("fisher", "taylor")
        for loss in ("task", "distillation")
    }
    assert list(units.values()) == ["label⁴", "label²", "label²", "label"]
    assert Importance("sst2", "fisher", "task", 8, scores, scores, None).unit == "nats²"
