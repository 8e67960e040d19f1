"""What is exported: the same logits in environments that know nothing of this package, and never half a folder."""

import ast
import inspect
import io
import json
import os
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from small_study import Searched

from search import cli, shipping
from search.bert.checkpoint import load
from search.bert.encoding import load_tokenizer
from search.bert.pruned import plan_of
from search.deploy import card, export, shipped
from search.deploy.export import Wanted
from search.deploy.rebuild import rebuild
from search.errors import UserError
from search.plan import Plan

TEXTS = [
    ["a film of rare beauty .", "it is not worth the ticket , nor the popcorn"],
    ["dull", "the zyzzyva of 1997 : café scenes , 3 of them ☕"],
    ["so bad that it hurts , and long enough that one stops to care " * 3, "short"],
    ["", "-"],
]
"""First and second texts: common and rare words, a character that is unknown, one too long, one empty."""

WITH_TORCH = ("search", "objectives", "__editable__", "paretobert")
"""What of this environment the fresh one with transformers does not get."""

GRAPH_ONLY = ("numpy", "onnxruntime", "tokenizers", "google", "protobuf", "flatbuffers", "packaging", "sympy", "mpmath")
"""What the fresh one with ONNX Runtime gets: numpy, onnxruntime and tokenizers, with what these need."""

PLAIN = """
import json, sys, warnings
for name in ("search", "objectives"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is here")
import torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

answers = {}
for folder, texts in json.load(sys.stdin).items():
    try:
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
        raise SystemExit(f"{folder} is loaded as something else")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batch = tokenizer(*texts, truncation=True, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == tokenizer.model_max_length
    classify = pipeline("text-classification", model=folder, trust_remote_code=True)
    given = [dict(zip(("text", "text_pair"), row)) for row in zip(*texts)]
    half = AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True, variant="bf16", dtype=torch.bfloat16
    )
    with torch.inference_mode():
        answers[folder] = {
            "logits": model(**batch).logits.tolist(),
            "bf16": half(**batch).logits.tolist(),
            "ids": batch["input_ids"].tolist(),
            "said": [classify(row, truncation=True) for row in given],
            "kind": type(model).__module__,
        }
print(json.dumps(answers))
"""

GRAPH = """
import json, sys
for name in ("torch", "transformers", "search", "objectives", "onnx"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is here")
import numpy, onnxruntime, tokenizers

answers = {}
for folder, texts in json.load(sys.stdin).items():
    about = json.load(open(f"{folder}/paretobert.json"))
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(about["task"]["max_tokens"])
    for file in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(f"{folder}/{file}")
        logits = []
        for row in zip(*texts):
            encoded = tokenizer.encode(*row)
            columns = (encoded.ids, encoded.attention_mask, encoded.type_ids)
            names = ("input_ids", "attention_mask", "token_type_ids")
            inputs = {name: numpy.array([column], dtype=numpy.int64) for name, column in zip(names, columns)}
            logits += session.run(None, inputs)[0].tolist()
        answers[f"{folder}/{file}"] = logits
print(json.dumps(answers))
"""


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def shipped_from(study: Searched, trial: int, target: Path, **wanted: bool) -> dict[str, Any]:
    """Export a trial; what was printed is in the result."""
    console = quiet()
    about = shipping.export(study.name, trial, target, study.place, Wanted(**wanted), console)
    assert isinstance(console.file, io.StringIO)
    return {**about, "printed": console.file.getvalue()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def singles(small: Searched, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A model of single texts with vanished blocks of both kinds, with everything that can be asked for."""
    about = shipped_from(small, 4, folder / "singles", onnx=True, int8=True, bf16=True)
    return folder / "singles", about


@pytest.fixture(scope="module")
def couples(pairs: Searched, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A model of pairs with factorised word embeddings and a reduced vocabulary."""
    about = shipped_from(pairs, 4, folder / "couples", onnx=True, int8=True, bf16=True)
    return folder / "couples", about


def environment(folder: Path, *, without: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> Path:
    """A fresh virtual environment; of the packages of this one it gets links to those that are asked for."""
    venv.create(folder, symlinks=True, with_pip=False)
    library = next(folder.glob("lib*/python*/site-packages"))
    for source in dict.fromkeys(Path(path) for path in sys.path if Path(path).name == "site-packages"):
        for entry in source.iterdir():
            name = entry.name.lower()
            wanted = name.startswith(only) if only else not name.startswith(without)
            if wanted and entry.suffix != ".pth" and not (library / entry.name).exists():
                (library / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def ask(python: Path, script: str, folders: dict[Path, list[list[str]]], home: Path) -> dict[str, Any]:
    kept = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    given = json.dumps({str(path): texts for path, texts in folders.items()})
    done = subprocess.run(
        [python, "-I", "-c", script], input=given, env=kept, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def own_logits(folder: Path, texts: list[list[str]]) -> torch.Tensor:
    """What this package's class computes, without code from the folder."""
    model = load(folder)
    length = json.loads((folder / shipped.ABOUT).read_text())["task"]["max_tokens"]
    batch = load_tokenizer(str(folder))(*texts, truncation=True, max_length=length, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**batch).logits


def test_transformers_alone_computes_the_same_logits(
    small: Searched, singles: tuple[Path, Any], couples: tuple[Path, Any], folder: Path
) -> None:
    shipped_from(small, 0, folder / "dense", bf16=True)
    texts = {singles[0]: TEXTS[:1], couples[0]: TEXTS[:2], folder / "dense": TEXTS[:1]}
    texts = {path: [list(column) for column in zip(*TEXTS, strict=True)][: len(given)] for path, given in texts.items()}
    answers = ask(environment(folder / "plain", without=WITH_TORCH), PLAIN, texts, folder / "home")
    for path, given in texts.items():
        answer, own = answers[str(path)], own_logits(path, given)
        assert answer["kind"].startswith("transformers_modules.")
        assert (torch.tensor(answer["logits"]) - own).abs().max() < 1e-5
        assert 0 < (torch.tensor(answer["bf16"]) - own).abs().max() < 0.2
        assert own.std(dim=0).min() > 0.05  # the texts are told apart: equal logits are no accident
        labels = json.loads((path / "config.json").read_text())["id2label"]
        assert [said[0]["label"] if isinstance(said, list) else said["label"] for said in answer["said"]] == [
            labels[str(number)] for number in own.argmax(dim=1).tolist()
        ]


def test_onnx_runtime_alone_computes_the_same_logits(
    singles: tuple[Path, Any], couples: tuple[Path, Any], folder: Path
) -> None:
    columns = [list(column) for column in zip(*TEXTS, strict=True)]
    texts = {singles[0]: columns[:1], couples[0]: columns}
    answers = ask(environment(folder / "graph", only=GRAPH_ONLY), GRAPH, texts, folder / "home")
    for path, given in texts.items():
        own = own_logits(path, given)
        assert (torch.tensor(answers[f"{path}/model.onnx"]) - own).abs().max() < 1e-4
        assert 0 < (torch.tensor(answers[f"{path}/model.int8.onnx"]) - own).abs().mean() < 0.25


@pytest.mark.parametrize("which", ["singles", "couples"])
def test_the_folder_holds_the_trial_and_says_what_was_found(
    which: str, small: Searched, pairs: Searched, request: pytest.FixtureRequest
) -> None:
    path, about = request.getfixturevalue(which)
    study = small if which == "singles" else pairs
    record = study.again.study.records[4]
    model = load(path)
    assert plan_of(model.config) == record.plan
    assert record.plan is not None
    assert 0 in record.plan.heads or 0 in record.plan.neurons
    assert (record.plan.rank is None) == (which == "singles")
    rebuilt = rebuild(study.again.prepared, study.again.study, 4, on_stage=lambda *_: None)
    weights = load_file(path / "model.safetensors")
    assert weights.keys() == rebuilt.model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in rebuilt.model.state_dict().items())
    assert torch.equal(rebuilt.logits, study.logits[4])
    files = about["files"]
    assert list(files) == ["model.safetensors", "model.onnx", "model.int8.onnx", "model.bf16.safetensors"]
    assert files["model.safetensors"]["largest_difference"] == 0
    assert 0 < files["model.onnx"]["largest_difference"] <= export.CLOSE
    assert files["model.onnx"]["sentences"] == len(study.again.prepared.selection)
    assert files["model.int8.onnx"]["bytes"] < (0.3 if which == "singles" else 0.6) * files["model.onnx"]["bytes"]
    assert files["model.bf16.safetensors"]["bytes"] < 0.52 * files["model.safetensors"]["bytes"]
    for name, facts in files.items():
        assert facts["bytes"] == (path / name).stat().st_size
        assert facts["accuracy"]["samples"] == 100
        assert facts["latency_ms"]["value"] > 0
        assert (path / name).stat().st_mode == (path / "config.json").stat().st_mode
    assert files["model.safetensors"]["accuracy"]["value"] == record.value("accuracy")
    assert files["model.int8.onnx"]["latency_ms"]["source"].startswith("ONNX Runtime, dynamic int8, float32, cpu")
    assert files["model.bf16.safetensors"]["latency_ms"]["conditions"]["dtype"] == "bfloat16"
    said = f"{files['model.onnx']['largest_difference']:.1e} over 100 sentences"
    assert said in about["printed"]
    assert json.loads((path / shipped.ABOUT).read_text()) == {k: v for k, v in about.items() if k != "printed"}


def test_the_card_names_numbers_lineage_and_limits_and_no_place_on_this_machine(
    small: Searched,
    pairs: Searched,
    singles: tuple[Path, dict[str, Any]],
    couples: tuple[Path, dict[str, Any]],
    folder: Path,
) -> None:
    path, about = singles
    text = (path / "README.md").read_text()
    record = small.again.study.records[4]
    for expected in (
        f"| parameters | {record.value('parameters'):,.0f} |",
        f"accuracy {record.value('accuracy'):.4g}",
        about["definition"],
        "study: small, trial 4 of 5",
        "`data.csv`; 200 training rows",
        "- recovery: cut from the dense model, ",
        "at a learning rate of",
        "`model.int8.onnx` | ONNX Runtime, dynamic int8 |",
        " ms (batch 2, tokens 16, dtype bfloat16, threads 1, backend eager, device cpu",
        "sequences of at most 32 tokens",
        "they are optimistic",
    ):
        assert expected in text, expected
    other = (couples[0] / "README.md").read_text()
    plan = pairs.again.study.records[4].plan
    assert plan is not None
    assert plan.rank is not None
    assert f"The word embeddings have rank {plan.rank} of 64." in other
    assert "The vocabulary is reduced:" in other
    assert '"text_pair": "second text"' in other
    place = str(folder.parent)
    for written in (*path.glob("*.json"), *path.glob("*.md"), *couples[0].glob("*.json"), *couples[0].glob("*.md")):
        assert place not in written.read_text(), written
    told = card.text({**about, "rebuilt": {**about["rebuilt"], "difference": "it differs by 0.01"}})
    assert "it differs by 0.01" in told


def test_the_modelling_file_is_short_and_needs_torch_and_transformers_alone(singles: tuple[Path, Any]) -> None:
    text = (singles[0] / "modeling_pruned_bert.py").read_text()
    assert len(text.splitlines()) <= 150
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported == {"torch", "transformers"}


def test_a_folder_that_is_there_is_left_alone(small: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    monkeypatch.setattr(shipping, "reopen", None)  # refused before anything is done
    for target in (tmp_path / "there", tmp_path / "there" / "mine.txt"):
        with pytest.raises(UserError, match="exists already; name a folder that does not"):
            shipped_from(small, 1, target)
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine.txt"]
    for trial, reason in ((99, "has the trials 0 to 4"), (-1, "has the trials 0 to 4")):
        with pytest.raises(UserError, match=reason):
            shipped_from(small, trial, tmp_path / "new")
    monkeypatch.setattr(export, "missing_package", lambda: "onnxscript")
    with pytest.raises(UserError, match=r'--int8 needs the package onnxscript: .*"paretobert\[onnx\]"'):
        shipped_from(small, 1, tmp_path / "new", int8=True)


def test_what_computes_is_what_the_study_was_measured_on_where_that_is_here(
    small: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OpenedError(Exception):
        pass

    def opened(_study: str, place: Any, *_given: Any, **_named: Any) -> None:
        raise OpenedError(place.device)

    def on(device: str, **wanted: bool) -> str:
        with pytest.raises(OpenedError) as seen:
            shipping.export(
                small.name, 1, tmp_path / "new", replace(small.place, device=device), Wanted(**wanted), console
            )
        return str(seen.value)

    console = quiet()
    monkeypatch.setattr(shipping, "reopen", opened)
    assert on("auto") == "cpu"
    assert "measured on" not in console.file.getvalue()
    monkeypatch.setattr(sys.modules["search.run"], "measured_on", lambda *_: "cuda:7")
    assert on("auto") == "cpu"
    assert "the study was measured on cuda:7; the model is made and measured on cpu" in console.file.getvalue()
    monkeypatch.setattr(shipping, "device_of", torch.device)
    assert on("auto") == "cuda:7"
    assert on("auto", int8=True) == on("cpu") == "cpu"
    with pytest.raises(UserError, match="--int8 is measured on the CPU and --device is cuda:7; use --device cpu"):
        on("cuda:7", int8=True)
    assert inspect.signature(cli.export).parameters["device"].default == "auto"


def test_nothing_is_left_of_an_export_that_fails(
    small: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = small.again
    rebuilt = rebuild(again.prepared, again.study, 4, on_stage=lambda *_: None)
    tokenizer = next((again.artifacts.folder).glob("teacher-*"))

    def attempt(**wanted: bool) -> None:
        made = {path.parent for path in tmp_path.rglob("config.json")}
        assert not made
        target = tmp_path / "new" / "model"
        export.export(rebuilt, again.prepared, tokenizer, target, Wanted(**wanted), on_stage=lambda *_: None)

    def shifted(make: Any) -> Any:
        """The same, of a model whose logits are a little higher."""

        def made(model: Any, *given: Any, **named: Any) -> Any:
            with torch.no_grad():
                model.classifier.bias += 2e-4
                try:
                    return make(model, *given, **named)
                finally:
                    model.classifier.bias -= 2e-4

        return made

    higher = r"differs from the rebuilt one by 0\.0002 in a logit"
    graph = r"model\.onnx differs from PyTorch by 0\.0002"
    cases: list[tuple[Any, str, Any, dict[str, bool], type[BaseException], str | None]] = [
        (export, "to_onnx", shifted(export.to_onnx), {"onnx": True}, UserError, graph),
        (shipped, "save", shifted(shipped.save), {}, UserError, higher),
        (card, "text", full_disk, {}, UserError, r"cannot be written \(No space left"),
        (card, "text", interrupted, {}, KeyboardInterrupt, None),
    ]
    for where, name, instead, wanted, error, reason in cases:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, instead)
            with pytest.raises(error, match=reason):
                attempt(**wanted)
    assert list(tmp_path.iterdir()) == []
    attempt()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model"]


def full_disk(_about: Any) -> str:
    raise OSError(28, "No space left on device")


def interrupted(_about: Any) -> str:
    raise KeyboardInterrupt


def test_the_dense_plan_is_shipped_as_every_other(small: Searched, tmp_path: Path) -> None:
    about = shipped_from(small, 0, tmp_path / "dense")
    assert plan_of(load(tmp_path / "dense").config) == Plan.dense(small.again.study.shape)
    assert about["recovery"] is None
    assert "it is the fine-tuned dense model itself" in (tmp_path / "dense" / "README.md").read_text()
