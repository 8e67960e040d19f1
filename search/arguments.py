"""The command line of a study script: every field of its definition, from its types, plus where the study lives.

python studies/sst2.py --recovery.steps 300 --space.heads.low 0.25 --dry-run
"""

import json
import os
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import reduce
from typing import Any, NoReturn

from pydantic import Field, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from search.definition import Definition, build, explain, once
from search.errors import UserError, unknown_name

STORAGE_VARIABLE = "PARETOBERT_STORAGE"
"""Environment variable that names the study database."""

UNTIL_VARIABLE = "PARETOBERT_UNTIL"
"""Environment variable that tells a launched worker when to end, in seconds since 1970."""


MAPPINGS = {
    "task.where": '{"source": "rotten_tomatoes"}',
    "space.layers": '{"0": {"heads": {"low": 0.5}}}',
    "constraints": '{"latency_ms": {"at_most": 5}}',
    "latencies": '{"single": {"batch": 1, "tokens": "selection"}}',
}
"""Fields whose value is a JSON object, with an example of each."""


class Options(BaseSettings):
    """Where a study runs and is kept; none of it changes what a trial returns."""

    model_config = SettingsConfigDict(extra="forbid", use_attribute_docstrings=True, cli_implicit_flags=True)

    storage: str | None = None
    """Study database (an SQLAlchemy URL); by default PARETOBERT_STORAGE, else sqlite:///runs/NAME/study.db."""
    artifacts: str | None = None
    """Folder of the teacher, the tokens and the importance scores, or s3://BUCKET/PREFIX; by default
    runs/NAME/artifacts."""
    devices: str = "auto"
    """What works, one process for each: cuda:0,cuda:1 or mps or cpu; cpu:2 is two CPU workers with half of the cores
    each; auto takes every GPU, else one CPU worker with all cores."""
    trials: int | None = Field(default=None, ge=1)
    """Completed trials in the whole study: the same as --engine.trials."""
    hours: float | None = Field(default=None, gt=0)
    """End after this time: a trial that would not finish in it is not begun."""
    energy_kwh: float | None = Field(default=None, gt=0, alias="energy-kwh")
    """End before the study has used this energy, as the counters of its devices say."""
    prepare: bool = False
    """Prepare what all trials need, create the study, and run no trial: others join with paretobert work."""
    wait: float = Field(default=0.0, ge=0)
    """Minutes that the study database is waited for."""
    dry_run: bool = Field(default=False, alias="dry-run")
    """Print the resolved definition and the size of the space, and train nothing."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 # by protocol, as the other sources
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the command line only: an environment variable that happens to be called NAME or DATA means nothing."""
        return (init_settings,)


def default_storage(name: str) -> str:
    """The study database of a study: `PARETOBERT_STORAGE`, else the SQLite file in `runs/NAME`."""
    return os.environ.get(STORAGE_VARIABLE) or f"sqlite:///runs/{name}/study.db"


class _Parser(ArgumentParser):
    """An argument parser whose errors are `UserError`s, with the nearest name where one is unknown."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown is None:
            raise UserError(f"{message}; --help lists the arguments")
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        raise UserError(unknown_name("argument", unknown[1], known).split(" Known:")[0] + " --help lists them all")


def _take_mappings(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take out the arguments whose value is a JSON object: it replaces the script's, where the library would merge."""
    rest: list[str] = []
    mappings: dict[str, Any] = {}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in MAPPINGS:
            rest.append(argument)
            continue
        value = value if equals else next(waiting, "")
        try:
            mappings[name] = json.loads(value, object_pairs_hook=once)
        except json.JSONDecodeError:
            raise UserError(
                f"--{name} is {value!r}, which is not JSON; write an object in quotation marks, for example "
                f"--{name} '{MAPPINGS[name]}'"
            ) from None
        except ValueError as error:
            raise UserError(f"--{name} is {value!r}: {error}") from None
    return rest, mappings


def parse(definition: Definition, arguments: Sequence[str], *, program: str) -> tuple[Definition, Options]:
    """Override a definition from the command line.

    Args:
        definition: What the study script says.
        arguments: The command line, without the program's name.
        program: Name shown in the help text.

    Returns:
        The overridden definition, and where it runs.

    Raises:
        UserError: If an argument is unknown, or a value is out of its range.
        SystemExit: After `--help`.
    """
    fields: dict[str, Any] = {
        name: (field.annotation, Field(default=getattr(definition, name), description=field.description))
        for name, field in Definition.model_fields.items()
    }
    model = create_model("Arguments", __base__=Options, **fields)
    model.model_config["nested_model_default_partial_update"] = True
    parser = _Parser(
        prog=program, allow_abbrev=False, description=f"Search pruned variants: the study {definition.name!r}."
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        model,
        root_parser=parser,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_parse_none_str="null",
    )
    rest, mappings = _take_mappings(arguments)
    try:
        given = CliApp.run(model, cli_args=rest, cli_settings_source=source)
    except ValidationError as error:
        raise UserError(explain(error, source="the command line")) from None
    except SettingsError as error:
        raise UserError(f"the command line: {error}; --help lists the arguments and their types") from None
    values = given.model_dump(mode="json")
    options = {name: values.pop(name) for name in Options.model_fields}
    if options["trials"] is not None:
        values["engine"]["trials"] = options["trials"]
    for path, mapping in mappings.items():
        *parts, last = path.split(".")
        reduce(lambda inner, part: inner[part], parts, values)[last] = mapping
    return build(values, source="the command line"), Options.model_construct(**options)
