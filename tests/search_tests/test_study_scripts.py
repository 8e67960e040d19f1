"""The real studies: their splits never meet, and what they find ends in a folder whose tables are made of its JSON."""

import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from small_study import Searched, definition_in, searched

from search.arguments import parse
from search.bert.splitting import Rows, load_splits
from search.definition import Definition
from search.plan import Shape, encoder_parameters, total_parameters
from search.space import Space

ROOT = Path(__file__).parents[2]
BERT_BASE = Shape(12, 12, 64, 768, 3072, 30522, 512, 2, 2)
FILES = ("definition.json", "front.csv", "trials.csv", "confirmed.csv", "headline.csv", "evidence.json", "README.md")


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Imports a study script or one of its helpers, as Python does that runs it."""
    known = set(sys.modules)
    sys.path.insert(0, str(ROOT / "studies"))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(ROOT / "studies"))
        for name in set(sys.modules) - known:
            if str(ROOT / "studies") in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def of(script: ModuleType, *arguments: str) -> Definition:
    """The definition of a script with a command line."""
    definition: Definition = parse(script.study, arguments, program="test")[0]
    return definition


def normalised(rows: Rows) -> set[str]:
    """Sentences without letter case, white space squeezed."""
    return {" ".join(text.lower().split()) for texts in rows.texts for text in texts}


def letters(rows: Rows) -> set[str]:
    """Letters and digits only: no comma or blank makes two sentences different."""
    return {re.sub(r"[\W_]+", "", text.lower()) for texts in rows.texts for text in texts} - {""}


@pytest.mark.parametrize(
    ("name", "folder", "rows", "alike"),
    [("sst2_minilm", "SST-2", 872, (0, 0, 1)), ("cola_minilm", "CoLA", 1043, (1, 6, 2))],
)
def test_selection_and_held_out_sentences_are_disjoint_and_never_trained_on(
    name: str, folder: str, rows: int, alike: tuple[int, int, int], scripts: Any, glue: Path
) -> None:
    """Nor are they alike but for commas and blanks, except for a few; in CoLA a comma decides what is acceptable."""
    definition = of(scripts(name), "--data", str(glue / folder))
    splits = load_splits(definition.data, definition.task, seed=definition.engine.seed)
    assert (len(splits.selection), len(splits.held_out)) == (1000, rows)
    assert len(splits.train) > (55_000 if definition.task.phrases else 7_000)
    pairs = (
        (splits.selection, splits.held_out),
        (splits.train, splits.selection),
        (splits.train, splits.held_out),
    )
    assert not [both for one, other in pairs if (both := normalised(one) & normalised(other))]
    assert tuple(len(letters(one) & letters(other)) for one, other in pairs) == alike


@pytest.mark.parametrize("name", ["sst2_minilm", "cola_minilm", "smarts2025"])
def test_definitions_load_and_say_what_they_should(name: str, scripts: Any, minilm: Path) -> None:
    script = scripts(name)
    for definition in (
        script.study,
        of(script, *scripts("parts.sources").spelt_out(["--subset"], "--subset", script.SUBSET)),
    ):
        assert Definition.model_validate_json(definition.to_json()) == definition
        assert set(definition.objective_names) == {definition.task.metric, "parameters", "latency_ms", "energy_mj"}
        assert (definition.task.held_out, definition.task.selection) == ("validation", None)
        assert definition.task.phrases == (definition.task.config == "sst2")
    assert script.study.engine.trials >= 200
    assert script.study.task.train_rows is None
    assert (script.study.model == str(minilm)) == (name != "smarts2025")


def test_cola_is_the_other_task_of_the_claim(scripts: Any, glue: Path) -> None:
    script = scripts("smarts2025")
    arguments = scripts("parts.sources").spelt_out(["--cola", "--data", str(glue / "CoLA")], "--cola", script.COLA)
    mine, theirs = of(script, *arguments), scripts("cola_minilm").study
    assert mine.task == theirs.task
    assert (mine.name, mine.space, mine.constraints) == (
        "smarts2025-cola",
        script.study.space,
        script.study.constraints,
    )


def test_the_ladder_of_the_claim_reaches_its_bound_from_below(scripts: Any) -> None:
    definition = scripts("smarts2025").study
    space = Space.of(definition.space, BERT_BASE, definition.recovery)
    sizes = [total_parameters(space.plan(space.uniform(size)), BERT_BASE) for size in definition.engine.ladder]
    assert 24_500_000 < max(sizes) <= definition.constraints["parameters"].at_most
    assert min(sizes) < 15_000_000


def test_an_option_stands_for_fields_and_what_is_given_besides_wins(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = scripts("parts.sources")
    fields = {"name": "small", "no-task.phrases": None, "engine.trials": "30"}
    assert sources.spelt_out(["--name=mine"], "--subset", fields) == ["--name=mine"]
    assert sources.spelt_out(["--subset", "--name=mine"], "--subset", fields) == [
        *("--no-task.phrases", "--engine.trials", "30", "--name=mine")
    ]
    monkeypatch.setenv("PARETOBERT_GLUE", str(tmp_path))
    assert sources.glue("CoLA") == str(tmp_path / "CoLA")
    with pytest.raises(SystemExit, match="the package no-such-thing is missing; install the extra"):
        sources.packaged("no-such-thing")


@pytest.fixture(scope="module")
def study(
    scripts: Any, glue: Path, minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> Searched:
    """SST-2's study with a tiny checkpoint and few rows, searched to its end."""
    folder = tmp_path_factory.mktemp("sst2")
    tiny = definition_in(folder, minilm, movie_reviews)
    script = scripts("sst2_minilm")
    arguments = [
        *("--subset", "--model", tiny.model, "--data", str(glue / "SST-2"), "--task.train_rows", "200"),
        *("--task.selection_rows", "60", "--task.max_tokens", "24", "--space.neuron_block", "16"),
        *("--importance.rows", "32", "--recovery.steps", "3", "--teacher.epochs", "1", "--engine.trials", "4"),
        *("--latency.batch", "2", "--latency.repeats", "3", "--latency.seconds", "0", "--latency.interval", "null"),
        *("--engine.ladder", "[0.75, 0.5, 0.15]", "--engine.tilts", "[0]"),
    ]
    return searched(of(script, *scripts("parts.sources").spelt_out(arguments, "--subset", script.SUBSET)), folder)


def gathered(
    scripts: Any, study: Searched, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Run the evidence of a study; the JSON of its last line."""
    evidence = scripts("evidence")
    monkeypatch.setattr(sys.modules["search.run"], "quieten", lambda: None)  # it would quieten the other tests as well
    monkeypatch.setattr(scripts("parts.speeds"), "BATCHES", {"cpu": (1, 2), "cuda": (1, 2)})
    file = out.with_suffix(".json")
    arguments = [*study.arguments, "--out", str(out), "--device", "cpu", "--quick", "--dense-seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments, "--json", str(file)])
    capsys.readouterr()
    evidence.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads(file.read_text()) == result
    return result


def test_a_study_ends_in_a_folder_and_goes_on_where_it_was_killed(
    scripts: Any,
    study: Searched,
    glue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = gathered(scripts, study, tmp_path / "out", monkeypatch, capsys)
    out = tmp_path / "out"
    assert {*FILES, "report.html"} == {file.name for file in out.iterdir()}
    assert json.loads((out / "evidence.json").read_text()) == result
    dense, *points = result["rows"]
    assert (dense["size"], dense["seeds"], len(dense["accuracy"]["each"])) == (1.0, 2, 2)
    assert [point["size"] for point in points] == [0.75, 0.5, 0.25, 0.125]
    measured = [point for point in points if "why_not" not in point]
    assert len(measured) == 3
    assert points[-1]["why_not"] == "no trial so small"
    for point in measured:
        assert point["encoder_share"] <= 1.02 * point["size"]
        assert point["seeds"] == len(point["accuracy"]["each"]) == 2
        assert set(point["speed_up"]) == {"CPU batch 1", "CPU batch 2"}
        for speed in point["speed_up"].values():
            assert speed["low"] <= speed["speed_up"] <= speed["high"]
        assert point["kept"] == pytest.approx(point["accuracy"]["mean"] / dense["accuracy"]["mean"])
        assert point["energy_source"] == "model"
        assert point["energy_ratio"] == pytest.approx(dense["energy_mj"] / point["energy_mj"])
    assert {"commit", "date", "machine", "processor", "search_energy", "search_seconds"} <= set(result)
    definition = json.loads((out / "definition.json").read_text())
    assert definition["data"] == "glue/SST-2"
    for place in (tmp_path, ROOT, glue.resolve()):
        assert not [file for file in FILES if str(place) in (out / file).read_text()]
    confirmed = pd.read_csv(out / "confirmed.csv")
    assert set(confirmed["trial"]) == {0, *(point["trial"] for point in measured)}
    mean = confirmed[(confirmed["trial"] == points[0]["trial"]) & (confirmed["quantity"] == "accuracy")]
    assert mean["confirmed"].item() == pytest.approx(points[0]["accuracy"]["mean"])
    page = (out / "README.md").read_text()
    assert "\n".join(scripts("parts.headline").table(result)) in page
    assert "A quick run: few seeds and steps, no evidence." in page

    def no_more(*_given: Any, **_named: Any) -> Any:
        raise AssertionError("done again")

    for name in ("search.deploy.confirm.rebuild", "search.preparation.fine_tune"):
        monkeypatch.setattr(name, no_more)
    monkeypatch.setattr(scripts("parts.speeds"), "speed_up", no_more)
    again = gathered(scripts, study, tmp_path / "again", monkeypatch, capsys)
    assert again["rows"] == result["rows"]


def test_the_folder_holds_what_its_command_confirmed_and_nothing_else(
    scripts: Any, study: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gathered(scripts, study, tmp_path / "whole", monkeypatch, capsys)
    trial = whole["rows"][1]["trial"]
    monkeypatch.setattr(scripts("evidence"), "chosen", lambda _: {0.75: trial})
    one = gathered(scripts, study, tmp_path / "one", monkeypatch, capsys)
    assert len(whole["steps"]) > 1
    assert set(one["steps"]) == {str(trial)}
    assert one["confirmation_seconds"] < whole["confirmation_seconds"]
    assert "In the search, this point had accuracy" in " ".join(one["said"])
    assert set(pd.read_csv(tmp_path / "one" / "confirmed.csv")["trial"]) == {0, trial}


def test_no_point_of_any_size_is_said_before_anything_is_trained(
    scripts: Any, study: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = scripts("evidence")
    monkeypatch.setattr(evidence, "chosen", lambda _: dict.fromkeys((0.75, 0.5)))
    monkeypatch.setattr(evidence, "confirm", None)
    with pytest.raises(SystemExit):
        gathered(scripts, study, tmp_path / "out", monkeypatch, capsys)
    said = capsys.readouterr().err
    assert "has no complete, feasible trial that keeps at most 75 % of the encoder" in said


def test_the_readme_has_no_headline_that_a_result_file_does_not_have(scripts: Any) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    section = page.split("## What a study finds\n", 1)[1].split("\n## ", 1)[0]
    tables = re.findall(r"((?:^\|.*\n)+)", section, re.MULTILINE)
    folders = re.findall(r"`(studies/results/[\w-]+)/evidence\.json`", section)
    made = [
        "\n".join(scripts("parts.headline").table(json.loads((ROOT / f / "evidence.json").read_text())))
        for f in folders
    ]
    assert tables
    assert [text.strip() for text in tables] == made
    for folder in folders:
        assert {*FILES} <= {file.name for file in (ROOT / folder).iterdir()}
        assert made[folders.index(folder)] in (ROOT / folder / "README.md").read_text(encoding="utf-8")


def test_the_readme_says_of_the_claim_what_the_shape_part_printed(scripts: Any) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    section = " ".join(page.split("### The claim that this work started from\n", 1)[1].split("\n## ", 1)[0].split())
    file = "studies/results/smarts2025-shape-quick.json"
    result = json.loads((ROOT / file).read_text(encoding="utf-8"))
    plan = next(each for each in result["plans"] if each["rank"] == result["measured_rank"])
    one = result["measured"]["cpu"]
    said = [
        file,
        *("between {} and {} %".format(*result["claim"]["sst2_f1_at_accuracy_96.3"]),),
        *("{} to {} % of the rows right".format(*result["claim"]["cola_accuracy_if_82.3_is_f1"]),),
        *("{} to {} %".format(*result["claim"]["cola_f1_if_82.3_is_accuracy"]),),
        f"rank {plan['rank']} a uniform plan of {plan['heads']} heads and {plan['neurons']} neurons per layer",
        f"{plan['parameters'] / 1e6:.2f} M in all and keeps {100 * plan['encoder_share']:.1f} % of the encoder",
        *(f"{each['speed_up']:.2f}" for each in one["speed_up"].values()),
        f"{one['dense_energy_mj'] / one['energy_mj']:.2f} times less energy",
    ]
    assert [text for text in said if text not in section] == []
    assert result["claim"]["sst2_outcomes_with_accuracy_96.3_and_f1_95.2"] == dict.fromkeys(
        scripts("parts.claim").F1S, 0
    )
    assert (result["claim"], one["counted_parameters"]) == (scripts("parts.fitting").claims(), plan["parameters"])


def test_no_classifier_has_the_accuracy_and_the_f1_that_were_published_for_sst2(scripts: Any, glue: Path) -> None:
    labels = Counter(pd.read_csv(glue / "SST-2" / "dev.tsv", sep="\t", quoting=3)["label"])
    claim, fitting = scripts("parts.claim"), scripts("parts.fitting")
    assert (labels[1], labels[0]) == fitting.SST2_DEV == (444, 428)
    found = claim.with_accuracy_and_f1(labels[1], labels[0], accuracy=96.3, f1=95.2)
    assert found == {"positive class": [], "negative class": [], "macro": [], "weighted": []}
    possible = claim.with_accuracy_and_f1(labels[1], labels[0], accuracy=96.3, f1=96.4)
    assert claim.Outcome(428, 16, 16, 412) in possible["positive class"]
    assert all(sum(outcome) == 872 and outcome.tp + outcome.fn == 444 for outcome in possible["positive class"])
    assert fitting.claims()["sst2_f1_at_accuracy_96.3"] == [96.12, 96.52]


def test_the_figures_of_an_outcome_are_those_of_scikit_learn(scripts: Any) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    outcome = scripts("parts.claim").Outcome(tp=7, fp=2, fn=3, tn=5)
    truth, said = [1] * 7 + [0] * 2 + [1] * 3 + [0] * 5, [1] * 9 + [0] * 8
    assert outcome.accuracy == pytest.approx(accuracy_score(truth, said))
    assert outcome.matthews == pytest.approx(matthews_corrcoef(truth, said))
    for name, average in (("positive class", "binary"), ("macro", "macro"), ("weighted", "weighted")):
        assert scripts("parts.claim").F1S[name](outcome) == pytest.approx(f1_score(truth, said, average=average))
    assert scripts("parts.claim").F1S["negative class"](outcome) == pytest.approx(f1_score(truth, said, pos_label=0))


def test_what_fits_into_25_million_parameters(scripts: Any) -> None:
    fitting = scripts("parts.fitting")
    found = {each["rank"]: each for each in fitting.plans(BERT_BASE, fitting.RANKS, fitting.BUDGET)}
    assert found[None]["encoder_share"] < 0.01  # embeddings and pooler are 24.5 M
    assert found[128]["encoder_share"] > 0.2
    for each in found.values():
        assert each["parameters"] <= 25_000_000
        wider = fitting.Plan((each["heads"] + 1,) * 12, (each["neurons"] + 64,) * 12, each["rank"])
        assert total_parameters(wider, BERT_BASE) > 25_000_000
    assert fitting.widest(BERT_BASE, None, 24_000_000) is None


def test_the_shape_part_counts_and_measures_a_real_model(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig

    fitting = scripts("parts.fitting")
    monkeypatch.setattr(fitting, "BATCHES", {"cpu": (1,), "cuda": (1,)})
    monkeypatch.setattr(fitting, "claims", dict)
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
    fitting.shape_part(quick=True, file=tmp_path / "shape.json", config=config, budget=330_000, rank=8)
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads((tmp_path / "shape.json").read_text()) == result
    one = result["measured"]["cpu"]
    shape = Shape(2, 4, 16, 64, 256, 30522, 512, 2, 2)
    plan = fitting.widest(shape, 8, 330_000)
    assert one["counted_parameters"] == total_parameters(plan, shape) <= 330_000
    assert encoder_parameters(plan, shape) > 0
    assert one["energy_mj"] < one["dense_energy_mj"]
    assert one["speed_up"]["CPU batch 1"]["speed_up"] > 0
    assert result["plans"][0]["why_not"]
