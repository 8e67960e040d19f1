"""One model outside a search has the figures that its trial has, and what cannot be measured is said in a sentence."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_study import Searched, definition_in, searched
from test_commands import command
from tiny_families import tiny
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from objectives.energy.choose import COUNTERS
from search import preparation
from search.analysis.card import Card, as_values, render_card
from search.bert.checkpoint import load, save
from search.bert.encoding import Encoded
from search.bert.training import score
from search.cli import measure
from search.definition import METRICS
from search.deploy.rebuild import rebuild
from search.errors import UserError
from search.measure import measure_alone, measure_in_study

EXACT = (
    *("accuracy", "f1", "matthews", "parameters", "encoder_parameters", "encoder_share", "macs", "energy_mj"),
    *("stored_bytes", "peak_memory_bytes"),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, minilm: Path, movie_reviews: Path) -> Searched:
    folder = tmp_path_factory.mktemp("measured")
    names = ["metric", "parameters", "latency_ms", "energy_mj", "stored_bytes", "peak_memory_bytes"]
    latencies = {"single": {"batch": 1, "tokens": 8, "repeats": 3, "seconds": 0}}
    # Enough repeats for an interval of the median.
    usual = {"repeats": 16}
    more: dict[str, Any] = {"objectives": names, "latency": usual, "latencies": latencies, "engine": {"trials": 3}}
    return searched(definition_in(folder, minilm, movie_reviews, **more), folder)


@pytest.fixture(scope="module")
def cut(small: Searched, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder of a trial's model, with its tokenizer, and the trial's record."""
    record = next(each for each in small.again.study.complete if each.role == "ladder")
    rebuilt = rebuild(small.again.prepared, small.again.study, record.trial, on_stage=lambda *_: None)
    assert rebuilt.difference is None
    folder = tmp_path_factory.mktemp("cut") / "model"
    save(rebuilt.model, folder)
    with_tokenizer(folder, small)
    return SimpleNamespace(folder=folder, record=record)


def artifact(small: Searched, kind: str) -> Path:
    return next(path for path in Path(str(small.place.artifacts)).glob(f"{kind}-*") if path.is_dir())


def with_tokenizer(folder: Path, small: Searched) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(artifact(small, "teacher") / name, folder / name)


def copied(source: Path, target: Path, **config: Any) -> Path:
    """A copy of a checkpoint, with other fields in its config."""
    shutil.copytree(source, target)
    values = {**json.loads((target / "config.json").read_text()), **config}
    (target / "config.json").write_text(json.dumps(values))
    return target


def shown(card: Card) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(render_card(card))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_model_has_exactly_what_its_trial_recorded(small: Searched, cut: SimpleNamespace) -> None:
    card = measure_in_study(str(cut.folder), small.name, small.place)
    for name in EXACT:
        assert card.quantities[name]["value"] == cut.record.value(name), name
        assert card.quantities[name]["source"] == cut.record.quantities[name]["source"]
    for name in ("latency_ms", "latency_ms.single"):
        mine, its = card.quantities[name], cut.record.quantities[name]
        assert (mine["unit"], mine["source"]) == (its["unit"], its["source"])
        assert {**mine["conditions"], "clock_mhz": 0} == {**its["conditions"], "clock_mhz": 0}
        assert set(mine["details"]) == set(its["details"])
        assert {"ratio", "p95", "throughput_per_s", "absolute", "corrected"} <= set(mine["details"])
        assert card.ratio(name) == mine["details"]["ratio"]
    assert set(card.quantities) == set(EXACT) | {"latency_ms", "latency_ms.single"}
    assert card.unmeasured == {}
    assert card.held_out == {}  # nobody asked for it
    dense = small.again.study.dense
    assert dense is not None
    assert card.ratio("parameters") == cut.record.value("parameters") / dense.value("parameters")
    text = " ".join(shown(card).split())
    assert "BERT, heads 2 2 2, neurons 64 64 64" in text
    assert f"{cut.record.value('parameters'):,.0f} parameters {card.ratio('parameters'):.3f}" in text
    assert f"{cut.record.value('energy_mj'):.6g} mJ" in text
    for part in ("95 % interval", "quartiles", "95th percentile", "sequences/s", "of the dense model beside it"):
        assert part in text


def test_the_held_out_split_is_scored_only_if_asked_for(small: Searched, cut: SimpleNamespace) -> None:
    card = measure_in_study(str(cut.folder), small.name, small.place, held_out=True)
    rows = Encoded.from_tensors(load_file(artifact(small, "tokens") / "held_out.safetensors"))
    logits = score(load(cut.folder), rows, pad_id=small.again.prepared.pad_id, batch_size=7, precision="fp32")
    right = (logits.argmax(dim=1) == rows.labels).double().mean().item()
    assert card.held_out["accuracy"]["value"] == pytest.approx(right)
    assert card.held_out["accuracy"]["samples"] == len(rows) == small.again.prepared.definition.task.held_out_rows
    assert {each["source"] for each in card.held_out.values()} == {"held-out split"}
    assert card.quantities["accuracy"]["source"] == "selection split"
    assert shown(card).count("held-out split") == 3


def test_a_model_with_a_tokenizer_of_its_own_gets_the_texts_in_its_own_tokens(
    small: Searched, cut: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two words have changed places in the vocabulary and in the embeddings: the same model, if its texts are."""
    other = copied(cut.folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = vocabulary["the"], vocabulary["movie"]
    vocabulary["the"], vocabulary["movie"] = second, first
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    weights = load_file(other / "model.safetensors")
    table = weights["bert.embeddings.word_embeddings.weight"]
    table[[first, second]] = table[[second, first]]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    card = measure_in_study(str(other), small.name, small.place)
    assert [card.quantities[name]["value"] for name in EXACT] == [cut.record.value(name) for name in EXACT]
    monkeypatch.setattr("search.scoring.digest_of_files", lambda _data: "changed")
    with pytest.raises(UserError, match=r"another tokenizer than the study, so its texts are needed, and '.*data.csv'"):
        measure_in_study(str(other), small.name, small.place)
    measure_in_study(str(cut.folder), small.name, small.place)  # which needs none of it


def test_the_dense_model_is_its_own_measure(small: Searched) -> None:
    card = measure_in_study(str(artifact(small, "teacher")), small.name, small.place)
    dense = small.again.study.dense
    assert dense is not None
    assert [card.quantities[name]["value"] for name in EXACT] == [dense.value(name) for name in EXACT]
    assert {card.ratio(name) for name in EXACT if dense.value(name) > 0} == {1.0}
    assert "BERT (dense)" in card.what


def test_half_precision_is_stored_so_and_measured_like_a_trial(
    small: Searched, cut: SimpleNamespace, tmp_path: Path
) -> None:
    save(load(cut.folder).half(), tmp_path / "half")
    card = measure_in_study(str(tmp_path / "half"), small.name, small.place)
    assert card.quantities["stored_bytes"]["value"] == (tmp_path / "half" / "model.safetensors").stat().st_size
    assert card.quantities["parameters"]["value"] == cut.record.value("parameters")
    assert card.quantities["latency_ms"]["conditions"]["dtype"] == "float32"
    assert card.quantities["accuracy"]["value"] == pytest.approx(cut.record.value("accuracy"), abs=0.03)
    assert "the checkpoint has no tokenizer: the study's was taken" in card.notes
    assert "stored as float16, measured from float32 weights" in card.notes


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, minilm: Path, movie_reviews: Path) -> Searched:
    """A study of models that are deployed in bf16, or in int8."""
    folder = tmp_path_factory.mktemp("deployed")
    engine = {"trials": 1, "ladder": [], "drop_blocks": []}
    objectives = ["metric", "parameters", "latency_ms", "energy_mj", "stored_bytes"]
    more: dict[str, Any] = {"space": {"precision": ["bf16", "int8"]}, "objectives": objectives, "engine": engine}
    return searched(definition_in(folder, minilm, movie_reviews, **more), folder)


def test_a_model_is_measured_in_the_precision_that_its_trial_was(deployed: Searched, tmp_path: Path) -> None:
    dense = deployed.again.study.dense
    assert dense is not None
    assert dense.precision == "bf16"
    card = measure_in_study(str(artifact(deployed, "teacher")), deployed.name, deployed.place)
    for name in ("accuracy", "energy_mj", "stored_bytes", "parameters"):
        assert card.quantities[name]["value"] == dense.value(name), name
        assert card.quantities[name]["source"] == dense.quantities[name]["source"]
    latency = card.quantities["latency_ms"]
    assert latency["conditions"]["dtype"] == "bfloat16"
    assert card.ratio("latency_ms") == latency["value"] / dense.value("latency_ms") != latency["details"]["ratio"]
    assert "measured as deployed in bf16" in card.notes
    shutil.copytree(artifact(deployed, "teacher"), tmp_path / "exported")
    (tmp_path / "exported" / "paretobert.json").write_text(json.dumps({"precision": "int8"}))
    int8 = measure_in_study(str(tmp_path / "exported"), deployed.name, deployed.place)
    assert int8.quantities["stored_bytes"]["source"] == "ONNX file, dynamic int8"
    assert int8.quantities["latency_ms"]["source"].startswith("ONNX Runtime, dynamic int8")
    assert int8.quantities["energy_mj"]["value"] < dense.value("energy_mj")
    assert int8.unmeasured == {"peak_memory_bytes": "it is not known in int8"}
    (tmp_path / "exported" / "paretobert.json").write_text(json.dumps({"precision": "fp32"}))  # not of this study
    again = measure_in_study(str(tmp_path / "exported"), deployed.name, deployed.place)
    assert again.quantities["stored_bytes"]["value"] == dense.value("stored_bytes")


def test_a_model_of_another_kind_has_no_ratio_to_a_dense_one_in_another_precision(
    deployed: Searched, tmp_path: Path
) -> None:
    albert(tmp_path / "albert", deployed)
    card = measure_in_study(str(tmp_path / "albert"), deployed.name, deployed.place)
    assert card.quantities["latency_ms"]["conditions"]["dtype"] == "float32"
    related = {name for name in card.quantities if card.ratio(name) is not None}
    assert related == {"parameters", "latency_ms"}  # the latter to the dense model beside it, which is run in float32
    assert "measured in fp32, and the study's dense model in bf16: what that changes has no ratio" in card.notes


@pytest.mark.parametrize(("kind", "title"), [("distilbert", "DistilBERT"), ("roberta", "RoBERTa")])
def test_a_model_is_called_by_its_family(kind: str, title: str, tmp_path: Path) -> None:
    save(tiny(kind), tmp_path / "model")
    card = measure_alone(str(tmp_path / "model"), batch=1, tokens=4, seconds=0, repeats=3, energy="model")
    assert card.what == f"{title} (dense), heads 4 4 4, neurons 6 6 6"
    assert card.unmeasured == {}


# --- what cannot be measured


def refused(small: Searched, folder: Path, *parts: str, **place: Any) -> None:
    with pytest.raises(UserError) as error:
        measure_in_study(str(folder), small.name, SimpleNamespace(**{**vars(small.place), **place}))  # type: ignore[arg-type]
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_that_do_not_fit_are_refused(small: Searched, cut: SimpleNamespace, tmp_path: Path) -> None:
    names = {"id2label": {"0": "1", "1": "0"}, "label2id": {"1": 0, "0": 1}}
    swapped = copied(cut.folder, tmp_path / "swapped", **names)
    refused(small, swapped, "has the labels ['1', '0'] and the task ['0', '1']", "id2label")
    BertForSequenceClassification(BertConfig(num_labels=3, **TINY)).save_pretrained(tmp_path / "three")
    refused(small, tmp_path / "three", "tells 3 labels apart and the task has 2 (0, 1)")


def test_another_device_or_study_is_refused(
    small: Searched, cut: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(small, cut.folder, "unknown study", storage=empty_storage(tmp_path))
    refused(small, cut.folder, "is not in", "--artifacts", artifacts=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()  # nothing is made, let alone trained
    monkeypatch.setattr(preparation, "machine_of", lambda *_: "NVIDIA H100")
    refused(small, cut.folder, "was measured on cpu with 1 threads, ", " and this is NVIDIA H100", "without --study")


def empty_storage(folder: Path) -> str:
    from search.engine import storage

    url = f"sqlite:///{folder}/empty.db"
    storage.close(storage.open_storage(url, create=True))
    return url


def test_a_model_whose_tokens_nobody_knows_is_refused(small: Searched, tmp_path: Path) -> None:
    BertForSequenceClassification(BertConfig(**TINY)).save_pretrained(tmp_path / "own")
    refused(small, tmp_path / "own", "has no tokenizer, and 50 tokens where the study's has 30522")


def test_too_few_positions_are_refused(small: Searched, tmp_path: Path) -> None:
    short = {**TINY, "vocab_size": 30522, "max_position_embeddings": 16}
    BertForSequenceClassification(BertConfig(**short)).save_pretrained(tmp_path / "short")
    refused(small, tmp_path / "short", "selection split has sequences of 32 tokens", "16 positions")


def test_an_encoder_without_a_classifier_has_its_costs_and_no_metrics(small: Searched, minilm: Path) -> None:
    card = measure_in_study(str(minilm), small.name, small.place)
    assert set(card.unmeasured) == set(METRICS)
    assert card.quantities["parameters"]["value"] > 22e6
    assert "accuracy: not measured: the checkpoint holds no classifier" in shown(card)


# --- alone


TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def albert(folder: Path, study: Searched) -> AlbertForSequenceClassification:
    """A classifier that is of none of our families, and the study's tokenizer."""
    model = AlbertForSequenceClassification(AlbertConfig(**{**TINY, "vocab_size": 30522}, embedding_size=8)).eval()
    model.save_pretrained(folder)
    with_tokenizer(folder, study)
    return model


def test_a_plain_transformers_folder_of_another_kind_has_what_can_be_known(
    small: Searched, cut: SimpleNamespace, tmp_path: Path
) -> None:
    model = albert(tmp_path / "albert", small)
    card = measure_in_study(str(tmp_path / "albert"), small.name, small.place)
    assert card.quantities["parameters"]["value"] == sum(p.numel() for p in model.parameters())
    rows = small.again.prepared.selection
    tokens = [rows.ids[a:b].long()[None] for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
    with torch.inference_mode():
        right = [int(model(ids).logits.argmax()) == label for ids, label in zip(tokens, rows.labels, strict=True)]
    assert card.quantities["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert {"latency_ms", "latency_ms.single", "stored_bytes", "peak_memory_bytes"} <= set(card.quantities)
    assert set(card.unmeasured) == {"macs", "energy_mj", "encoder_parameters", "encoder_share"}
    for reason in card.unmeasured.values():
        assert "give a model built like BertForSequenceClassification" in reason
    assert cut.record.trial  # the study is the same


def test_rows_are_cut_to_the_positions_that_tokens_have(small: Searched, tmp_path: Path) -> None:
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**{**TINY, "vocab_size": 30522}))
    model.save_pretrained(tmp_path / "xlmr")  # 40 positions, of which the first two are of no token
    with_tokenizer(tmp_path / "xlmr", small)
    (tmp_path / "rows.csv").write_text(f"text,label\n{'a fine film ' * 20},1\na dull film,0\n")
    given: dict[str, Any] = {"batch": 1, "tokens": "selection", "energy": "model"}
    card = measure_alone(str(tmp_path / "xlmr"), data=str(tmp_path / "rows.csv"), labels="0,1", **given)
    assert card.quantities["accuracy"]["samples"] == 2
    assert card.quantities["latency_ms"]["conditions"]["mean_tokens"] == (38 + 5) / 2
    short = XLMRobertaConfig(**{**TINY, "vocab_size": 30522, "max_position_embeddings": 32})
    XLMRobertaForSequenceClassification(short).save_pretrained(tmp_path / "short")
    with_tokenizer(tmp_path / "short", small)
    refused(small, tmp_path / "short", "selection split has sequences of 32 tokens", "30 positions")


def test_code_that_a_checkpoint_brings_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    auto = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"cannot be loaded: .*model_type 'evil'.* as a plain transformers classifier"):
        measure_alone(str(folder), batch=1, tokens=4)
    assert not (tmp_path / "ran").exists()


def test_rows_of_a_file_give_the_metrics(small: Searched, cut: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("sentence,mood\na fine film,1\na dull film,0\nthe movie,1\n")
    given: dict[str, Any] = {
        "text": ["sentence"],
        "label": "mood",
        "batch": 1,
        "tokens": "selection",
        "energy": "model",
    }
    card = measure_alone(str(cut.folder), data=str(tmp_path / "rows.csv"), **given)
    assert card.quantities["accuracy"]["samples"] == 3
    assert card.quantities["accuracy"]["source"] == str(tmp_path / "rows.csv")
    assert card.quantities["latency_ms"]["conditions"]["mean_tokens"] == pytest.approx((5 + 5 + 4) / 3)
    assert card.quantities["encoder_share"]["value"] == cut.record.value("encoder_share")
    assert card.study is None
    assert card.dense == {}
    assert "of dense" not in shown(card)
    worded = measure_alone(
        str(cut.folder), data=str(tmp_path / "rows.csv"), labels="1,0", **{**given, "tokens": 4}
    )  # the other way round: right is wrong
    both = [each.quantities["accuracy"]["value"] for each in (card, worded)]
    assert sum(both) == pytest.approx(1.0)
    with pytest.raises(UserError, match="tells 2 labels apart and the task has 3"):
        measure_alone(str(cut.folder), data=str(tmp_path / "rows.csv"), labels="a,b,c", **{**given, "tokens": 4})
    with pytest.raises(UserError, match="name them with --data, or a number"):
        measure_alone(str(cut.folder), tokens="selection")
    with pytest.raises(UserError, match=r"latency.batch is 0: .*; latency.backend is 'fast'"):
        measure_alone(str(cut.folder), batch=0, backend="fast")
    assert small.name


def test_1000_mj_over_10_inferences_are_100_mj_on_the_card(
    cut: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter goes up by 1,000 mJ with every batch of ten."""
    batches = 0

    def count(module: torch.nn.Module, *_: Any) -> None:
        nonlocal batches
        batches += isinstance(module, BertForSequenceClassification)

    class Counter:
        source = "rapl"

        def read_mj(self) -> float:
            return 1000.0 * batches

    monkeypatch.setitem(COUNTERS, "rapl", lambda _device: Counter())  # type: ignore[arg-type]
    hook = torch.nn.modules.module.register_module_forward_hook(count)  # type: ignore[arg-type]
    try:
        card = measure_alone(str(cut.folder), batch=10, tokens=4, energy="rapl")
    finally:
        hook.remove()
    energy = card.quantities["energy_mj"]
    assert (energy["value"], energy["unit"], energy["source"]) == (100.0, "mJ", "rapl")
    assert as_values(card)["quantities"]["energy_mj"]["details"]["gross"] == 100.0
    (row,) = [line.split() for line in shown(card).splitlines() if line.startswith("energy_mj")]
    assert row[1:4] == ["100", "mJ", "rapl"]
    assert "100 above idle (0 W)" in shown(card)


# --- as a command


def test_the_command_prints_the_card_and_one_line_of_json(
    small: Searched, cut: SimpleNamespace, tmp_path: Path
) -> None:
    where = ("--study", *small.arguments)
    done = command("measure", str(cut.folder), *where, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    values = json.loads(line)
    assert [values["quantities"][name]["value"] for name in EXACT] == [cut.record.value(name) for name in EXACT]
    assert values["study"] == small.name
    assert 0 < values["ratio_to_dense"]["parameters"] < 1
    assert values["conditions"]["energy_source"] == "model"
    wrong = command("measure", str(cut.folder), *where, "--batch", "3", folder=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr == "error: --batch is given with --study, which says that itself; leave out one of the two\n"
    with pytest.raises(UserError, match="--held-out is given without --study"):
        measure(str(cut.folder), held_out=True)


def test_a_regression_is_measured_as_its_trials_are(
    minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("regression")
    task = {"labels": [], "metric": "pearson"}
    fields: dict[str, Any] = {"name": "numbers", "task": task, "engine": {"trials": 1}}
    numbers = searched(definition_in(folder, minilm, movie_reviews, **fields), folder)
    dense = numbers.again.study.dense
    assert dense is not None
    save(numbers.again.prepared.teacher, folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder / "model" / name)
    card = measure_in_study(str(folder / "model"), numbers.name, numbers.place, held_out=True)
    for name in ("pearson", "spearman", "parameters", "macs"):
        assert card.quantities[name]["value"] == dense.value(name)
    assert set(card.held_out) == {"pearson", "spearman"}
    encoder = measure_in_study(str(folder / "checkpoint"), numbers.name, numbers.place)
    assert encoder.quantities["parameters"]["value"] == dense.value("parameters")  # with one output, like the study's
    alone = measure_alone(str(folder / "model"), device="cpu", data=str(folder / "data.csv"), batch=1, tokens=8)
    assert {"pearson", "spearman"} <= set(alone.quantities)
    BertForSequenceClassification(BertConfig(**TINY)).save_pretrained(folder / "other")
    with pytest.raises(UserError, match="tells 2 labels apart and the task is a regression, with one output"):
        measure_in_study(str(folder / "other"), numbers.name, numbers.place)
