"""The commands as a person runs them: real processes, real files, and what they say when something is wrong.

What is refused is refused in a process of its own once, and then, case by case, in this one (`here`), which has
imported what a process needs some seconds for.
"""

import json
import logging
import os
import re
import runpy
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from engine_cases import DEFINITION, SilentListener, begin, evaluation_of

from search import load
from search.analysis.front import front
from search.analysis.pick import pick
from search.analysis.table import frame
from search.cli import _intensity
from search.engine import study
from search.engine.worker import work
from search.errors import UserError

ROOT = Path(__file__).parents[2]


def command(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `paretobert …` in a folder."""
    clean = {name: value for name, value in os.environ.items() if name != "PARETOBERT_STORAGE"}
    return subprocess.run(
        [str(Path(sys.executable).with_name("paretobert")), *arguments],
        cwd=folder,
        env={**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def script(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a study script of the repository in a folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "studies" / name), *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Script:
    """Runs a study script of the repository to its exit in this process, in the folder of the test."""

    monkeypatch.delenv("PARETOBERT_STORAGE", raising=False)
    # What a script sets stays in this test.
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("TOKENIZERS_PARALLELISM", "false")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.ERROR)

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(ROOT / "studies" / name), *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(sys.argv[0], run_name="__main__")
        output, errors = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(sys.argv, left.value.code, output, errors)

    return run


def refused(done: subprocess.CompletedProcess[str], folder: Path, *parts: str) -> None:
    """One sentence on standard error, exit code 2, no traceback, nothing written."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    for part in parts:
        assert part in done.stderr
    assert [path.name for path in folder.rglob("*") if path.suffix not in (".csv", ".tsv", ".json")] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a finished study where its script would have put it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "runs" / "case").mkdir(parents=True)
    opened, _url = begin(folder / "runs" / "case", DEFINITION)
    assert work(opened, evaluation_of, SilentListener())
    return folder


def test_front_as_table_csv_and_json(finished: Path, tmp_path: Path) -> None:
    table = command("front", "case", folder=finished)
    assert table.returncode == 0
    assert "Front of study case" in table.stdout
    assert "dense" in table.stdout
    as_json = json.loads(command("front", "case", "--json", folder=finished).stdout)
    assert 0 < as_json["hypervolume"] < 1
    assert as_json["hypervolume_interval"] is None  # a formula has no noise
    for point in as_json["points"]:
        assert point["nondominated_probability"] == 1.0
        assert point["like_cheaper"] is None
        assert {"trial", "accuracy", "encoder_share", "parameters", "latency_ms", "energy_mj"} <= set(point)
    assert command("front", "case", "--csv", str(tmp_path / "front.csv"), folder=finished).returncode == 0
    lines = (tmp_path / "front.csv").read_text().splitlines()
    assert len(lines) == 1 + len(as_json["points"])
    assert lines[0].startswith("trial,role,accuracy,parameters,latency_ms,energy_mj")


def test_the_front_as_parquet(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "front.parquet"
    assert command("front", "case", "--parquet", str(file), folder=finished).returncode == 0
    as_json = json.loads(command("front", "case", "--json", folder=finished).stdout)
    table = pd.read_parquet(file)
    assert table["trial"].tolist() == [point["trial"] for point in as_json["points"]]
    assert table["latency_ms"].tolist() == [point["latency_ms"] for point in as_json["points"]]
    done = command("front", "case", "--parquet", "/proc/none.parquet", folder=finished)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the file '/proc/none.parquet' cannot be written")


def test_pick_names_a_point_and_why(finished: Path) -> None:
    points = json.loads(command("front", "case", "--json", folder=finished).stdout)["points"]
    median = sorted(point["accuracy"] for point in points)[len(points) // 2]
    able = [point for point in points if point["accuracy"] >= median]
    best = min(able, key=lambda point: point["energy_mj"])["trial"]
    question = ["pick", "case", "--at-least", f"accuracy={median}", "--at-most", "latency_ms=1e9", "--prefer", "energy"]
    assert command(*question, "--plain", folder=finished).stdout == f"{best}\n"
    shown = command(*question, folder=finished)
    assert shown.returncode == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    assert f"Trial {best} of study case" in text
    assert f"Trial {best} has the lowest energy_mj of these" in text
    knee = command("pick", "case", "--knee", folder=finished)
    assert "Manhattan distance" in " ".join(knee.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--at-least", "accuracy=2"], "no trial keeps accuracy at least 2: the nearest is trial "),
        (["--at-least", "acuracy=0.5"], "unknown quantity 'acuracy'; did you mean 'accuracy'?"),
        (["--at-least", "accuracy"], "--at-least is 'accuracy'; write NAME=VALUE with a number"),
        (["--at-most", "latency_ms=fast"], "--at-most is 'latency_ms=fast'; write NAME=VALUE with a number"),
        (["--at-most", "latency_ms=1", "--at-most", "latency_ms=2"], "--at-most names 'latency_ms' twice"),
        (["--knee", "--prefer", "accuracy"], "both a knee and a preference (accuracy) are asked for"),
    ],
)
def test_pick_says_what_cannot_be(arguments: list[str], part: str, finished: Path) -> None:
    done = command("pick", "case", *arguments, folder=finished)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert part in done.stderr


def test_report_writes_one_file_and_says_how_large(finished: Path, tmp_path: Path) -> None:
    done = command("report", "case", "--out", str(tmp_path / "case.html"), folder=finished)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/case.html \(\d\.\d MB\)\n", done.stdout)
    assert (tmp_path / "case.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    done = command("report", "case", "--out", "/proc/none.html", folder=finished)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the file '/proc/none.html' cannot be written")


def test_python_reads_the_same_study(finished: Path) -> None:
    study = load("case", f"sqlite:///{finished}/runs/case/study.db")
    assert pick(study).record.trial == int(command("pick", "case", "--plain", folder=finished).stdout)
    assert frame(study)["on_front"].sum() == len(front(study))


def test_ledger_says_what_the_search_used_and_when_it_pays(finished: Path) -> None:
    values = json.loads(command("ledger", "case", "--grid", "400", "--json", folder=finished).stdout)
    assert values["grid_g_per_kwh"] == 400.0
    assert len([entry for entry in values["entries"] if entry["group"] == "complete"]) > 1
    assert values["seconds"] > 0
    trials = {point["trial"] for point in values["points"]}
    assert trials == {record.trial for record in front(load("case", f"sqlite:///{finished}/runs/case/study.db"))} - {0}
    done = command("ledger", "case", "--grid", "nan", folder=finished)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: --grid is nan; give the grams of CO2-equivalent per kWh, 0 or more\n"
    for intensity in (-1.0, float("inf")):
        with pytest.raises(UserError, match="--grid is"):
            _intensity(intensity)


def test_show_prints_one_trial(finished: Path) -> None:
    shown = command("show", "case", "3", folder=finished)
    assert shown.returncode == 0
    assert "Trial 3 of study case" in shown.stdout
    assert "latency_ms" in shown.stdout


def test_the_storage_comes_from_option_or_environment(finished: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{finished}/runs/case/study.db"
    assert command("front", "case", "--storage", url, folder=tmp_path).returncode == 0
    assert command("front", "case", folder=tmp_path, PARETOBERT_STORAGE=url).returncode == 0


def test_the_version_is_that_of_the_installed_package(tmp_path: Path) -> None:
    done = command("--version", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"paretobert {version('paretobert')}\n"), done.stderr


def test_doctor_says_where_the_packages_come_from(tmp_path: Path) -> None:
    done = command("doctor", folder=tmp_path)
    assert done.returncode == 0
    flat = re.sub(r"\s", "", done.stdout)
    for part in (str(ROOT / "search"), str(ROOT / "objectives"), "optuna", "rapl", "nvml", "model", "cpu"):
        assert re.sub(r"\s", "", part) in flat


def test_help_names_the_commands(tmp_path: Path) -> None:
    done = command("--help", folder=tmp_path)
    assert done.returncode == 0
    looking = ("front", "importance", "pick", "report", "show", "measure", "ledger", "studies", "dashboard", "doctor")
    for name in (*looking, "confirm", "work", "resume", "run", "copy", "proxy"):
        assert name in done.stdout


def test_studies_lists_the_others_where_a_database_is_broken(finished: Path, tmp_path: Path) -> None:
    for name in ("a", "c"):
        shutil.copytree(finished / "runs" / "case", tmp_path / "runs" / name)
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "study.db").write_text("no database, but long enough to be looked at as one")
    done = command("studies", folder=tmp_path)
    assert done.returncode == 2
    assert [f"runs/{name}/study.db" in done.stdout for name in ("a", "b", "c")] == [True, False, True]
    assert done.stderr.count("error: ") == 1
    assert "runs/b/study.db" in done.stderr


def test_a_study_that_does_not_exist(finished: Path, tmp_path: Path) -> None:
    for name in ("front", "resume", "dashboard"):
        refused(command(name, "nothing", folder=tmp_path), tmp_path, "runs/nothing/study.db' does not exist")
    done = command("front", "cose", "--storage", f"sqlite:///{finished}/runs/case/study.db", folder=tmp_path)
    refused(done, tmp_path, "unknown study 'cose'; did you mean 'case'?")


def test_a_study_of_others_that_may_not_be_written(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = finished / "runs/case/study.db"
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != file.parent)  # who is root may write all
    with pytest.raises(UserError, match=r"copy study\.db, and study\.db-wal if it is there, to"):
        load("case", storage=f"sqlite:///{file}")


def test_looking_into_somebody_elses_database_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE mine (x INTEGER)")
    connection.close()
    before, url = (tmp_path / "other.db").read_bytes(), f"sqlite:///{tmp_path}/other.db"
    for name in ("front", "work"):
        done = command(name, "case", "--storage", url, folder=tmp_path / "work")
        refused(done, tmp_path / "work", f"the storage '{url}' holds no studies; name the study's database")
    assert (tmp_path / "other.db").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"work", "other.db"}


def test_a_trial_that_does_not_exist(finished: Path) -> None:
    done = command("show", "case", "99", folder=finished)
    assert done.returncode == 2
    assert "trial is 99; the study 'case' has the trials 0 to 11" in done.stderr


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (
            "postgresql+psycopg://me:secret@127.0.0.1:1/none",
            "postgresql+psycopg://me:***@127.0.0.1:1/none' cannot be reached",
        ),
        ("nonsense", "is not a database URL"),
        ("postgresql+psycopg://me:secret/db", "is not a database URL"),
        ("postgresql+psycopg://127.0.0.1:1/none?user=me&password=secret", "password=hidden&user=me' cannot be reached"),
        ("oracle://x/y", "needs a database driver"),
        ("sqlite:////proc/none/study.db", "/proc"),
    ],
)
def test_a_storage_that_cannot_be_reached(url: str, part: str, tmp_path: Path) -> None:
    for done in (
        command("front", "case", "--storage", url, folder=tmp_path),
        command("front", "case", folder=tmp_path, PARETOBERT_STORAGE=url),
        script("quickstart.py", "--storage", url, folder=tmp_path),
    ):
        refused(done, tmp_path, part)
        assert "secret" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--recovery.stepz", "3"], ["--recovery.stepz", "--recovery.steps"]),
        (["--objectives", "accurracy"], ["unknown objective 'accurracy'", "did you mean 'accuracy'?"]),
        (["--constraints", '{"latency": {"at_most": 3}}'], ["unknown quantity in constraints 'latency'", "latency_ms"]),
        (["--space.heads.low", "1.5"], ["space.heads.low is '1.5'"]),
        (["--space.layers", '{"9": {"heads": {"low": 0.5}}}'], ["layer 9; the model has the layers 0 to 5"]),
        (["--data", "missing.csv"], ["missing.csv"]),
        (["--task.label", "lable"], ["lable", "label"]),
        (["--task.labels", "yes", "--task.labels", "no"], ["declared"]),
        (["--name", "a b"], ["name is 'a b'"]),
        (["--devices", "cuda:7"], ["--devices is 'cuda:7'"]),
        (["--energy.source", "nvml"], ["energy.source"]),
        (["--artifacts", "/proc/none"], ["/proc", "--artifacts"]),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], parts: list[str], here: Script, tmp_path: Path) -> None:
    refused(here("quickstart.py", *arguments), tmp_path, *parts)


def test_bad_input_is_one_sentence_of_a_process(tmp_path: Path) -> None:
    for arguments, part in (
        (["--model", "no/such/folder/here"], "no/such/folder/here"),
        (["--recovery.stepz", "3"], "--recovery.stepz"),
    ):
        refused(script("quickstart.py", *arguments, folder=tmp_path), tmp_path, part)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"text,label\n", "no rows"),
        (b"text,label\ngood,1\nfine,1\n", "'1' only"),
        (b"text,label\ngood,1\nbad\xff,0\n", "UTF-8"),
        (b"text,label\ngood,1\nbad,7\n", "'7'"),
        (b"sentence,label\ngood,1\nbad,0\n", "'text'"),
    ],
)
def test_bad_data_files(content: bytes, part: str, here: Script, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    done = here("quickstart.py", "--data", "own.csv", "--task.where", "null")
    refused(done, tmp_path, "own.csv", part)


def test_a_checkpoint_that_is_not_bert(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    done = script("quickstart.py", "--model", "model", folder=tmp_path)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr


def test_another_definition_under_the_same_name(finished: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{finished}/runs/case/study.db"
    done = script("quickstart.py", "--name", "case", "--storage", url, folder=tmp_path)
    refused(
        done, tmp_path, "the study 'case' exists with another definition", "Stored -> given:", "recovery.steps: 300 -> "
    )


@pytest.mark.parametrize("name", ["quickstart.py", "sst2.py", "cola.py"])
def test_dry_run_prints_definition_and_space_and_trains_nothing(name: str, minilm: Path, tmp_path: Path) -> None:
    done = script(name, "--dry-run", "--model", str(minilm), "--recovery.steps", "7", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    text, rest = done.stdout.split("\n}\n")
    assert json.loads(text + "}")["recovery"]["steps"] == 7
    assert "12 dimensions, about 10^15.1 plans (6 layers of 12 heads and 1536 neurons in blocks of 64)" in rest
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_that_a_fine_tuned_checkpoint_has_other_labels(minilm: Path, tmp_path: Path) -> None:
    config = json.loads((minilm / "config.json").read_text())
    for folder in ("classifier", "work"):
        (tmp_path / folder).mkdir()
    names = {str(number): f"label {number}" for number in range(3)}
    (tmp_path / "classifier" / "config.json").write_text(json.dumps({**config, "id2label": names}))
    (tmp_path / "classifier" / "model.safetensors").symlink_to(minilm / "model.safetensors")
    given = ("--dry-run", "--model", str(tmp_path / "classifier"), "--teacher.fine_tuned")
    done = script("quickstart.py", *given, folder=tmp_path / "work")
    refused(done, tmp_path / "work", "is fine-tuned for 3 labels and the task has 2; name a checkpoint for 2 labels")


def test_the_help_of_run_is_not_taken_for_a_file(tmp_path: Path) -> None:
    done = command("run", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "JSON file of a definition" in done.stdout


@pytest.mark.parametrize("hours", ["nan", "0"])
def test_hours_that_would_never_end_are_refused(hours: str, tmp_path: Path) -> None:
    refused(
        command("work", "x", "--hours", hours, folder=tmp_path), tmp_path, f"--hours is {hours}; give a number above 0"
    )


def test_the_same_text_works_from_a_json_file(tmp_path: Path, minilm: Path, movie_reviews: Path) -> None:
    definition = DEFINITION.model_copy(update={"model": str(minilm), "data": str(movie_reviews)})
    (tmp_path / "study.json").write_text(definition.to_json())
    done = command("run", "study.json", "--dry-run", "--engine.seed", "5", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.split("\n}\n")[0] + "}")
    assert printed == {**json.loads(definition.to_json()), "engine": {**printed["engine"], "seed": 5}}
    bad = command("run", "none.json", folder=tmp_path)
    refused(bad, tmp_path, "none.json")


def test_resume_of_a_study_whose_objective_is_the_scripts_own(tmp_path: Path) -> None:
    (tmp_path / "runs" / "case").mkdir(parents=True)
    own = DEFINITION.model_copy(update={"objectives": ("metric", "parameters", "latency_ms", "my_own")})
    opened, url = begin(tmp_path / "runs" / "case", own)
    assert study.stored(opened).definition == own
    done = command("resume", "case", folder=tmp_path)
    assert done.returncode == 2
    assert "the objective or constraint 'my_own' of its own study script; run that script again" in done.stderr
    assert url
