"""The command line of a study script."""

import pytest

from search.arguments import default_storage, parse
from search.definition import Bound, Definition, LayerRanges, Range, RecoverySettings, SpaceSettings
from search.errors import UserError

SCRIPT = Definition(
    name="script",
    data="data.csv",
    recovery=RecoverySettings(steps=7),
    space=SpaceSettings(layers={1: LayerRanges(heads=Range(low=0.5))}),
    constraints={"parameters": Bound(at_most=5.0)},
)


def parsed(*arguments: str) -> Definition:
    return parse(SCRIPT, arguments, program="script.py")[0]


def test_without_arguments_the_scripts_definition_stands() -> None:
    definition, options = parse(SCRIPT, [], program="script.py")
    assert definition == SCRIPT
    assert (options.storage, options.artifacts, options.devices, options.dry_run) == (None, None, "auto", False)


def test_fields_are_overridden_by_their_paths() -> None:
    given = parsed(
        "--recovery.steps", "300", "--model", "a/folder", "--data", "other", "--space.heads.low", "0.25",
        "--engine.ladder", "0.5", "--engine.ladder", "0.25", "--task.held_out", "null",
        "--constraints", '{"latency_ms": {"at_most": 3}}', "--task.where", '{"source": "x"}',
    )  # fmt: skip
    assert given.recovery.steps == 300
    assert (given.model, given.data) == ("a/folder", "other")
    assert given.space.heads == Range(low=0.25)
    assert given.space.layers == SCRIPT.space.layers
    assert given.engine.ladder == (0.5, 0.25)
    assert given.task.held_out is None
    assert given.constraints == {"latency_ms": Bound(at_most=3)}
    assert given.task.where == {"source": "x"}


def test_true_and_false_are_labels_as_well() -> None:
    assert parsed("--task.labels", "true,false").task.labels == ("true", "false")
    assert parsed("--task.labels", "0,1,maybe").task.labels == ("0", "1", "maybe")


def test_a_mapping_replaces_the_scripts() -> None:
    assert parsed("--space.layers", "{}").space.layers == {}
    assert parsed('--space.layers={"2": {"heads": {"low": 0.5}}}').space.layers == {
        2: LayerRanges(heads=Range(low=0.5))
    }
    assert parsed("--constraints", "{}").constraints == {}
    assert parsed("--task.where", "null").task.where is None


def test_a_key_of_a_mapping_stands_there_once() -> None:
    with pytest.raises(UserError, match=r"^--constraints is .*: the key 'macs' stands twice in one object"):
        parsed("--constraints", '{"macs": {"at_most": 3}, "macs": {"at_most": 4}}')


def test_options_are_not_part_of_the_definition() -> None:
    definition, options = parse(SCRIPT, ["--storage", "sqlite:///x.db", "--dry-run"], program="script.py")
    assert definition == SCRIPT
    assert options.storage == "sqlite:///x.db"
    assert options.dry_run


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--recovery.stepz", "3"], "unknown argument '--recovery.stepz'; did you mean '--recovery.steps'?"),
        (["--recovery.steps", "many"], "recovery.steps is 'many'"),
        (["--recovery.warmup", "3", "--engine.sampler", "nsga"], "engine.sampler is 'nsga'"),
        (["--space.heads.low", "2"], "space.heads.low is '2'"),
        (["--recovery.steps"], "expected"),
        (["--task.where", "foo"], "--task.where is 'foo', which is not JSON"),
    ],
)
def test_what_cannot_be_understood_is_said(arguments: list[str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(*arguments)
    assert part in str(caught.value)


def test_help_lists_every_field_with_the_scripts_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for name in (
        "--recovery.steps",
        "--teacher.learning_rate",
        "--space.neurons.high",
        "--engine.sampler",
        "--dry-run",
    ):
        assert name in text
    assert (
        "Optimizer steps of the fine-tune; 0 scores the model as it is after the cut and the re-fit. (default: 7)"
        in " ".join(text.split())
    )


def test_environment_variables_of_other_programs_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAME", "MODEL", "DATA", "STORAGE", "DEVICE"):
        monkeypatch.setenv(name, "surprise")
    definition, options = parse(SCRIPT, [], program="script.py")
    assert definition == SCRIPT
    assert options.storage is None


def test_the_storage_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARETOBERT_STORAGE", raising=False)
    assert default_storage("mine") == "sqlite:///runs/mine/study.db"
    monkeypatch.setenv("PARETOBERT_STORAGE", "postgresql+psycopg://host/db")
    assert default_storage("mine") == "postgresql+psycopg://host/db"


def test_the_command_that_goes_on_shows_no_password() -> None:
    from search.run import _again

    given = ["--storage", "postgresql+psycopg://me:secret@host/db", "--engine.trials", "5", "--name=a b"]
    assert _again("python x.py", given) == (
        "python x.py --storage 'postgresql+psycopg://me:***@host/db' '--name=a b' --trials N"
    )
