"""The `paretobert` command: what needs only the storage and the study's name.

    paretobert COMMAND STUDY [TRIAL] --storage URL

Without `--storage` it is `PARETOBERT_STORAGE`, else the SQLite file that a study script of that name writes.
"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.arguments import Options, default_storage
from search.definition import OBJECTIVES
from search.errors import UserError
from search.run import guarded, make_console, search, start

if TYPE_CHECKING:
    from search.records import StudyRecord

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Search for Pareto-optimal pruned BERT classifiers. Studies are started by their scripts (see studies/).",
)

Study = Annotated[str, typer.Argument(help="Name of the study.", show_default=False)]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Study database; by default PARETOBERT_STORAGE, else sqlite:///runs/STUDY/study.db.", show_default=False
    ),
]


def main() -> None:
    """Run the command; an error of the input is one sentence and exit code 2."""
    guarded(app)


@app.command()
def front(
    study: Study,
    storage: Storage = None,
    csv: Annotated[Path | None, typer.Option(help="Write the front to this CSV file.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the front as one line of JSON.")] = False,
) -> None:
    """Print the front: the trials that no other trial beats in everything."""
    from search.analysis.indicators import hypervolume
    from search.analysis.table import front_frame, points, render_front

    result = _read(study, storage)
    if csv is not None:
        try:
            front_frame(result).to_csv(csv, index=False)
        except OSError as error:
            raise UserError(
                f"the file '{csv}' cannot be written ({error.strerror or error}); name another with --csv"
            ) from None
    if as_json:
        print(json.dumps({"study": study, "hypervolume": hypervolume(result), "points": points(result)}))
    else:
        make_console().print(render_front(result))


@app.command()
def show(
    study: Study,
    trial: Annotated[int, typer.Argument(help="Number of the trial.", show_default=False)],
    storage: Storage = None,
) -> None:
    """Print everything that is known about one trial."""
    from search.analysis.trial import render_trial

    result = _read(study, storage)
    if not 0 <= trial < len(result.records):
        raise UserError(
            f"trial is {trial}; the study {study!r} has the trials 0 to {len(result.records) - 1}; name one of these"
        )
    make_console().print(render_trial(result, result.records[trial]))


@app.command()
def resume(
    study: Study,
    storage: Storage = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Artifact folder; by default runs/STUDY/artifacts.", show_default=False)
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Total of trials; by default what the study says.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
) -> None:
    """Continue a study from its database, without its script."""
    from search.engine.storage import shown

    definition = _read(study, storage).definition
    if trials is not None:
        engine = definition.engine.model_copy(update={"trials": trials})
        definition = definition.model_copy(update={"engine": engine})
    own = [name for name in (*definition.objective_names, *definition.bounds) if name not in OBJECTIVES]
    if own:
        raise UserError(
            f"the study {study!r} has the objective or constraint {own[0]!r} of its own study script; "
            "run that script again to continue"
        )
    options = Options.model_construct(storage=storage, artifacts=artifacts, device=device, dry_run=False)
    where = f" --storage {shlex.quote(shown(storage))}" if storage else ""
    search(definition, options, again=f"paretobert resume {study}{where} --trials N")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def run(
    context: typer.Context,
    definition: Annotated[Path, typer.Argument(help="JSON file of a definition.", show_default=False)],
) -> None:
    """Start, or continue, the study of a JSON file; further arguments override it, as with a study script."""
    from search.definition import from_file

    start(from_file(definition), context.args, program=f"paretobert run {definition}")


@app.command()
def dashboard(
    study: Study,
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on; optuna-dashboard has no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Open optuna-dashboard on the study's storage. It has no login: who reaches the port can change the studies."""
    from search.engine.dashboard import serve

    _read(study, storage)
    serve(storage or default_storage(study), study, host=host, port=port)


@app.command()
def doctor() -> None:
    """Print versions, devices, energy sources, and where the packages were imported from."""
    from search.doctor import report

    make_console().print(report())


def _read(study: str, storage: str | None) -> "StudyRecord":
    from search.engine import storage as storages
    from search.engine import study as studies

    return studies.read(studies.get(storages.open_storage(storage or default_storage(study), create=False), study))
