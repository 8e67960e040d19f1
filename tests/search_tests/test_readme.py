"""Every block of commands and of Python in the README is run, in one folder and in their order, as a reader would.

What is changed on the way is listed here and nowhere else: studies are small, placeholders get real things (a
PostgreSQL server, an S3-compatible one, a small checkpoint, GLUE's first rows), bounds are those that a small study can
keep, trainings of a confirmation are few, and what needs a container engine or a cluster is not run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from small_study import checkpoint_in

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALL = (
    "--task.train_rows 96 --task.selection_rows 80 --task.max_tokens 32 --teacher.epochs 1 --teacher.batch_size 16 "
    "--importance.rows 16 --recovery.steps 4 --recovery.batch_size 8 --latency.repeats 3 --latency.seconds 0.2 "
    "--latency.batch 4 --engine.ladder '[0.5, 0.25]' --engine.tilts 0 --engine.trials 4"
)
"""What makes a study of the README small."""

NOT_RUN = ("docker compose", "sbatch", "kubectl")
"""What needs a container engine or a cluster; `test_docker.py` and `test_cluster_files.py` check their files."""

SERVES = ("paretobert dashboard", "paretobert proxy")
"""What goes on until it is stopped."""


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


@pytest.fixture(scope="module")
def reader(server: str, address: str, minilm: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> "Reader":
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    boto3 = pytest.importorskip("boto3", reason="needs the extra s3")
    folder = tmp_path_factory.mktemp("reader")
    for name in ("studies", "docker", "constraints.txt", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "tickets.csv").write_text(
        "subject,body,queue\n"
        + "".join(
            f"Number {n},{text} {n},{queue}\n"
            for n in range(40)
            for text, queue in (
                ("please correct my invoice", "billing"),
                ("the program stops with an error", "technical"),
                ("when do you open", "other"),
            )
        ),
        encoding="utf-8",
    )
    checkpoint = checkpoint_in(folder / "checkpoint", minilm, max_position_embeddings=512)
    (folder / "study.json").write_text(
        blocks("json")[0].replace("bert-base-uncased", str(checkpoint)), encoding="utf-8"
    )
    (folder / "sentences.txt").write_text("A warm and funny film.\nTwo hours that I want back.\n", encoding="utf-8")
    (folder / "SST-2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        with (glue / "SST-2" / name).open(encoding="utf-8") as rows:
            (folder / "SST-2" / name).write_text("".join(islice(rows, 3000)), encoding="utf-8")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PARETOBERT_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": address,
        "AWS_EC2_METADATA_DISABLED": "true",
        "BROWSER": "true %s",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
        "OMP_NUM_THREADS": "1",
    }
    boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    ).create_bucket(Bucket="bucket")
    return Reader(
        folder,
        environment,
        {
            "PATH/TO/CHECKPOINT": str(checkpoint),
            "PATH/TO/SST-2": str(folder / "SST-2"),
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE": server,
            "s3://BUCKET/PREFIX": "s3://bucket/prefix",
            "bert-base-uncased": str(checkpoint),
        },
    )


class Reader:
    """Somebody who does what the README says, in a folder of their own.

    Args:
        folder: It.
        environment: Variables of their shell.
        means: What the README's placeholders stand for.
    """

    def __init__(self, folder: Path, environment: dict[str, str], means: dict[str, str]) -> None:
        self.folder = folder
        self._environment = environment
        self._means = means

    def does(self, block: str) -> str:
        """Run a block of commands; what they said."""
        script = "\n".join(self._as_run(line) for line in block.replace("\\\n", " ").splitlines())
        return self._done(["bash", "-euo", "pipefail", "-c", script])

    def runs(self, code: str, *arguments: str) -> str:
        """Run Python as a script; what it said."""
        (self.folder / "tickets.py").write_text(self._meant(code), encoding="utf-8")
        return self._done([sys.executable, "tickets.py", *arguments])

    def _done(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command[-1]}\n\n{done.stdout}"
        return done.stdout

    def _as_run(self, line: str) -> str:
        command = re.sub(r"--(seeds|points|epochs) \d+", r"--\1 1", self._meant(line.split("  #")[0].strip()))
        command = re.sub(r"--trials \d+", "--trials 6", command)  # more than the 4 of SMALL
        if command.startswith(NOT_RUN):
            return ""
        if command.startswith("pytest"):
            return f"(cd {shlex.quote(str(ROOT))} && pytest --collect-only -q tests/search_tests/test_readme.py)"
        if command.startswith("pip install"):
            options = "install --quiet --dry-run --no-deps --no-build-isolation"
            return f"(cd {shlex.quote(str(ROOT))} && python -m pip {command.replace('pip install', options)})"
        if command.startswith("python studies/") and "--dry-run" not in command:
            local = f"--model {self._means['PATH/TO/CHECKPOINT']} --data {self._means['PATH/TO/SST-2']}"
            return f"{command} {SMALL} {'--task.held_out_rows 80' if 'quickstart' in command else local}"
        if command.startswith("paretobert confirm") and "--seeds" not in command:
            return f"{command} --seeds 1"
        if command.startswith(SERVES):
            return f'timeout --preserve-status --signal=INT 15 {command} || [ "$?" -le 130 ]'
        return command

    def _meant(self, text: str) -> str:
        for placeholder, meaning in self._means.items():
            text = text.replace(placeholder, meaning)
        text = re.sub(r"accuracy=0\.\d+", "accuracy=0.3", text).replace('"accuracy": 0.77', '"accuracy": 0.3')
        return re.sub(r"latency_ms=\d+", "latency_ms=100000", text)


@pytest.mark.parametrize("number", range(len(blocks("sh"))))
def test_a_block_of_commands_runs(reader: Reader, number: int) -> None:
    said = reader.does(blocks("sh")[number])
    assert "Traceback" not in said
    assert "does not provide the extra" not in said


def test_the_python_runs(reader: Reader) -> None:
    alone = [block for block in blocks("python") if "load(" in block or "pipeline(" in block]
    study = [block for block in blocks("python") if block not in alone]
    assert len(alone) > 1
    for block in alone:
        assert reader.runs(block)
    fewer = "--engine.trials 3 --task.train_rows 60 --task.selection_rows 20 --task.held_out_rows 20"
    # One study: the last block runs what the first defines and the others change.
    once = "\n".join(study).replace("    run(study)\n", "    pass\n", 1)
    said = reader.runs(once, *shlex.split(SMALL), *shlex.split(fewer))
    assert "int8_mb" in said


def test_no_command_is_missing_from_the_readme() -> None:
    from typer.main import get_command

    from search.cli import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = set(re.findall(r"\bparetobert ([a-z]+)", "\n".join(blocks("sh"))))
    named = set(re.findall(r"`(?:paretobert )?([a-z]+)", README))
    assert commands - named == set()
    assert shown - commands == set()


def test_all_files_that_the_readme_names_are_there() -> None:
    named = set(re.findall(r"`((?:studies|docker|search|objectives|tests)/[\w./-]+\.\w+)`", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_placeholders_that_stand_for_nothing_are_not_left(reader: Reader) -> None:
    text = "\n".join(blocks("sh"))
    left = set(re.findall(r"\b[A-Z]{4,}\b", reader._meant(text)))
    assert left <= {"PARETOBERT_STORAGE", "POSTGRES_PASSWORD", "STORAGE", "POSTGRES", "PASSWORD"}, left
