"""The `paretobert` command: what needs only the storage and the study's name.

    paretobert COMMAND STUDY [TRIAL] --storage URL

Without `--storage` it is `PARETOBERT_STORAGE`, else the SQLite file that a study script of that name writes.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.arguments import STORAGE_VARIABLE, Options, default_storage
from search.errors import UserError
from search.run import guarded, make_console, start, work_on_cluster

if TYPE_CHECKING:
    from search.records import StudyRecord

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # errors as lines, which a launcher shows and logs keep
    help="Search for Pareto-optimal pruned BERT classifiers. Studies are started by their scripts (see studies/).",
)

Study = Annotated[str, typer.Argument(help="Name of the study.", show_default=False)]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Study database; by default PARETOBERT_STORAGE, else sqlite:///runs/STUDY/study.db.", show_default=False
    ),
]

ArtifactsOf = Annotated[
    str | None,
    typer.Option(help="Artifact folder, or s3://BUCKET/PREFIX; by default runs/STUDY/artifacts.", show_default=False),
]

Grid = Annotated[
    float | None,
    typer.Option(
        metavar="G",
        help="Intensity of your grid in g CO2-eq per kWh: says what the energy emitted.",
        show_default=False,
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"paretobert {version('paretobert')}")
        raise typer.Exit


@app.callback()
def _of_all_commands(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command's name."""


def main() -> None:
    """Run the command; an error of the input is one sentence and exit code 2."""
    guarded(app)


@app.command()
def front(
    study: Study,
    storage: Storage = None,
    csv: Annotated[Path | None, typer.Option(help="Write the front to this CSV file.", show_default=False)] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="Write the front to this Parquet file.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the front as one line of JSON.")] = False,
) -> None:
    """Print the front: the trials that no other trial beats in everything, and how sure that is."""
    from search.analysis.indicators import hypervolume
    from search.analysis.table import front_frame, points, render_front
    from search.analysis.volume_interval import final_interval

    result = _read(study, storage)
    if csv is not None:
        with _writing(csv, "--csv"):
            front_frame(result).to_csv(csv, index=False)
    if parquet is not None:
        with _writing(parquet, "--parquet"):
            front_frame(result).to_parquet(parquet, index=False)
    if as_json:
        summary = {
            "study": study,
            "hypervolume": hypervolume(result),
            "hypervolume_interval": final_interval(result),
            "points": points(result),
        }
        print(json.dumps(summary))
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
def measure(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder of a classifier, or a name on the hub.", show_default=False)
    ],
    study: Annotated[
        str | None, typer.Option(help="Measure under this study's conditions, on its splits.", show_default=False)
    ] = None,
    storage: Storage = None,
    artifacts: ArtifactsOf = None,
    device: Annotated[str, typer.Option(help="cpu, cuda:0 or mps; auto takes the first GPU, else the CPU.")] = "auto",
    held_out: Annotated[
        bool, typer.Option("--held-out", help="With --study: score it on the held-out split as well.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Without --study: sequences per batch, by default 32.", show_default=False)
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Tokens per sequence, by default 32; selection takes the mix of lengths of --data.", show_default=False
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads, by default all.", show_default=False)] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 (by default), bfloat16 or float16.", show_default=False)
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="eager (by default), compile, cuda_graphs or onnxruntime.", show_default=False)
    ] = None,
    energy: Annotated[
        str | None, typer.Option(help="auto (by default), nvml, rapl or model.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Rows to score on: a file, a folder or a hub data set.", show_default=False)
    ] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.", show_default=False)] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of a folder or hub data set; a single file is taken whole.", show_default=False),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Text column; twice for sentence pairs.", show_default=False)
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label column.", show_default=False)] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Labels as in the data, by class; by default the checkpoint's.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as one line of JSON.")] = False,
) -> None:
    """Measure any classifier: what the objectives say about one model outside a search."""
    from search.analysis.card import as_values, render_card
    from search.devices import resolve
    from search.run import quieten

    conditions = {"batch": batch, "tokens": tokens, "threads": threads, "dtype": dtype, "backend": backend}
    columns = {"config": config, "text": text, "label": label, "labels": labels}
    options: dict[str, Any] = {**conditions, "energy": energy, "data": data, "split": split, **columns}
    given = {name: value for name, value in options.items() if value not in (None, [])}
    if study is not None and given:
        raise UserError(
            f"--{next(iter(given))} is given with --study, which says that itself; leave out one of the two"
        )
    if study is None and held_out:
        raise UserError("--held-out is given without --study, which alone has such a split; name one")
    quieten()
    (chosen,) = resolve(device, option="--device")[:1]
    from search.measure import measure_alone, measure_in_study
    from search.process import Place

    if study is not None:
        place = Place(storage or default_storage(study), artifacts, chosen.name)
        card = measure_in_study(checkpoint, study, place, held_out=held_out)
    else:
        card = measure_alone(checkpoint, device=chosen.name, **given)
    if as_json:
        print(json.dumps(as_values(card), allow_nan=False))
    else:
        make_console().print(render_card(card))


@app.command()
def pick(
    study: Study,
    storage: Storage = None,
    at_least: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Smallest allowed value, accuracy=0.91, say.", show_default=False),
    ] = None,
    at_most: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Largest allowed value, latency_ms=5, say.", show_default=False),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What shall be best; by default the first objective.", show_default=False),
    ] = None,
    knee: Annotated[
        bool, typer.Option("--knee", help="Take the best compromise: the smallest Manhattan distance to the ideal.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Print only the number of the trial, for scripts.")] = False,
) -> None:
    """Choose one point of the front, or say which bound rules everything out."""
    from search.analysis.pick import pick as pick_from
    from search.analysis.table import render_records

    result = _read(study, storage)
    least, most = _bounds("--at-least", at_least), _bounds("--at-most", at_most)
    choice = pick_from(result, at_least=least, at_most=most, prefer=prefer, knee=knee)
    if plain:
        print(choice.record.trial)
        return
    console = make_console()
    title = f"Trial {choice.record.trial} of study {result.name}"
    console.print(render_records(result, [choice.record], title=title))
    for sentence in choice.why:
        console.print(sentence, markup=False, highlight=False)


@app.command()
def report(
    study: Study,
    out: Annotated[Path, typer.Option(help="HTML file to write.", show_default=False)],
    storage: Storage = None,
    grid: Grid = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write everything about a study into one HTML file that opens without a network."""
    import webbrowser

    from search.analysis.report import render_report

    page = render_report(_read(study, storage), grid=_intensity(grid))
    with _writing(out, "--out"):
        out.write_text(page, encoding="utf-8")
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    if show:
        webbrowser.open(out.absolute().as_uri())


@app.command()
def ledger(
    study: Study,
    storage: Storage = None,
    grid: Grid = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as one line of JSON.")] = False,
) -> None:
    """Print what the search itself used, and after how many inferences each point of the front has paid for it."""
    from search.analysis.ledger_view import as_values, render_ledger

    result, intensity = _read(study, storage), _intensity(grid)
    if as_json:
        print(json.dumps(as_values(result, intensity), allow_nan=False))
    else:
        make_console().print(render_ledger(result, intensity))


@app.command()
def importance(
    study: Study,
    storage: Storage = None,
    artifacts: ArtifactsOf = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the picture to this HTML file, which needs no network.", show_default=False),
    ] = None,
) -> None:
    """Show how much each head, the neurons and each block of the dense model matter, layer by layer."""
    from search.analysis.importance import importance_page, render_importance
    from search.scores import stored_importance

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is '{out}'; the picture is an HTML page: name a file that ends in .html")
    scores = stored_importance(study, storage=storage or default_storage(study), artifacts=artifacts)
    make_console().print(render_importance(scores))
    if out is not None:
        with _writing(out, "--out"):
            out.write_text(importance_page(scores), encoding="utf-8")
        print(f"written to {out}")


@app.command()
def confirm(
    study: Study,
    trials: Annotated[
        list[int] | None, typer.Argument(help="Numbers of the trials; by default the whole front.", show_default=False)
    ] = None,
    storage: Storage = None,
    artifacts: ArtifactsOf = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda:0 or mps; auto takes the kind that the study was measured on.")
    ] = "auto",
    points: Annotated[
        int | None,
        typer.Option(min=1, help="This many points of the front, spread over its sizes.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each point.")] = 3,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Passes over the training rows; by default as many as the dense model had.", show_default=False
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps instead of epochs.", show_default=False)] = None,
) -> None:
    """Train points of the front again, in full, and score them on rows that the search never saw."""
    from search.run import confirm as confirm_at

    if trials and points is not None:
        raise UserError(
            f"both trials ({', '.join(map(str, trials))}) and --points {points} are given; give one of them"
        )
    if epochs is not None and steps is not None:
        raise UserError(f"both --epochs {epochs:g} and --steps {steps} are given; give one of them")
    if epochs is not None and not epochs > 0:
        raise UserError(f"--epochs is {epochs:g}; give a number above 0")
    confirm_at(
        study,
        storage=storage,
        artifacts=artifacts,
        device=device,
        trials=trials or (),
        points=points,
        seeds=seeds,
        epochs=epochs,
        steps=steps,
    )


@app.command()
def work(
    study: Study,
    storage: Storage = None,
    artifacts: ArtifactsOf = None,
    devices: Annotated[
        str,
        typer.Option(help="cuda:0,cuda:1 or cpu or mps; cpu:2 is two CPU workers; auto takes every GPU, else the CPU."),
    ] = "auto",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Total of trials; by default what the study says.", show_default=False)
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(help="End after this time; no trial is begun that cannot finish.", show_default=False),
    ] = None,
    energy_kwh: Annotated[
        float | None,
        typer.Option(help="End before the study has used this energy.", show_default=False),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Minutes that the database, and the study in it, are waited for.")
    ] = 0.0,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Place workers on this Ray cluster: ray://HOST:10001, HOST:6379, auto or local.", show_default=False
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="With --cluster: number of workers.")] = 1,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, max=1, help="With --cluster: share of a GPU for each worker.")
    ] = 1.0,
    cpus_per_worker: Annotated[float, typer.Option(help="With --cluster: cores for each worker.")] = 1.0,
) -> None:
    """Join, or continue, a study from its database and its artifacts. Any number may work at it at once."""
    from search.run import work as work_at

    above = {"--hours": hours, "--energy-kwh": energy_kwh, "--cpus-per-worker": cpus_per_worker}
    for name, value in above.items():
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value:g}; give a number above 0")
    options = Options.model_construct(
        storage=storage,
        artifacts=artifacts,
        devices=devices,
        trials=trials,
        hours=hours,
        energy_kwh=energy_kwh,
        prepare=False,
        wait=wait,
        dry_run=False,
    )
    if cluster is None:
        work_at(study, options)
    else:
        work_on_cluster(
            study,
            options,
            address=cluster,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            cpus_per_worker=cpus_per_worker,
        )


app.command("resume", help="The same as work.")(work)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def run(
    context: typer.Context,
    definition: Annotated[Path, typer.Argument(help="JSON file of a definition.", show_default=False)],
) -> None:
    """Start, or continue, the study of a JSON file; further arguments override it, as with a study script."""
    from search.definition import from_file

    if str(definition) in ("--help", "-h"):  # after the file it lists the fields of the definition
        print(context.get_help())
        return
    start(
        from_file(definition),
        context.args,
        program=f"paretobert run {shlex.quote(str(definition))}",
        command=(sys.executable, "-m", "search", "run", str(definition)),
    )


@app.command()
def dashboard(
    study: Study,
    storage: Storage = None,
    artifacts: ArtifactsOf = None,
    host: Annotated[str, typer.Option(help="Address to listen on; optuna-dashboard has no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Open optuna-dashboard on the study's storage. It has no login: who reaches the port can change the studies."""
    from search.engine.dashboard import serve

    _read(study, storage)
    serve(storage or default_storage(study), study, host=host, port=port, artifacts=artifacts)


@app.command()
def studies(
    storage: Annotated[
        str | None,
        typer.Option(
            help="Study database; by default PARETOBERT_STORAGE, else each runs/STUDY/study.db.", show_default=False
        ),
    ] = None,
) -> None:
    """List the studies of a storage: how far each is, and when something last happened."""
    from search.analysis.table import render_studies
    from search.engine import storage as storages
    from search.engine import study as engine

    given = storage or os.environ.get(STORAGE_VARIABLE)
    urls = [given] if given else [f"sqlite:///{file}" for file in sorted(Path("runs").glob("*/study.db"))]
    if not urls:
        raise UserError("there is no runs/*/study.db here; name a study database with --storage")
    console = make_console()
    broken = ""
    for url in urls:
        try:
            listed = engine.overview(storages.open_storage(url, create=False))
        except UserError as error:  # the others are listed all the same
            broken = f"{broken}\n{error}" if broken else str(error)
            continue
        console.print(storages.shown(url), markup=False, highlight=False, soft_wrap=True)
        console.print(render_studies(listed))
    if broken:
        raise UserError(broken)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Storage that holds the study.", show_default=False)],
    target: Annotated[str, typer.Argument(help="Storage to copy it to.", show_default=False)],
    study: Annotated[
        str | None, typer.Option(help="Name of the study; needed where the storage holds several.", show_default=False)
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(help="Where its artifacts are; by default runs/STUDY/artifacts.", show_default=False),
    ] = None,
    to_artifacts: Annotated[
        str | None,
        typer.Option(help="Copy its artifacts to this folder or s3://BUCKET/PREFIX as well.", show_default=False),
    ] = None,
) -> None:
    """Copy a study to another storage, whole: SQLite, PostgreSQL and journal files in any direction."""
    from search.moving import move

    move(source, target, study=study, artifacts=artifacts, to_artifacts=to_artifacts, console=make_console())


@app.command()
def proxy(
    storage: Annotated[
        str | None, typer.Option(help="Database behind the proxy; by default PARETOBERT_STORAGE.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no encryption and no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 13000,
) -> None:
    """Stand between a database and so many workers that it could not hold their connections (grpc://HOST:PORT)."""
    import signal
    import threading

    from search.engine import proxy as proxies
    from search.engine.storage import shown

    url = storage or os.environ.get(STORAGE_VARIABLE)
    if not url:
        raise UserError("no database is named; name one with --storage, or in PARETOBERT_STORAGE")
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: over.set())
    proxies.serve(
        url,
        host=host,
        port=port,
        listening=lambda bound: print(
            f"grpc://{host}:{bound} in front of {shown(url)} (Ctrl-C ends it; no encryption, no login)", flush=True
        ),
        note=lambda text: print(text, flush=True),
        over=over,
    )


@app.command()
def export(
    study: Study,
    trial: Annotated[int, typer.Argument(help="Number of the trial.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.", show_default=False)],
    storage: Storage = None,
    artifacts: ArtifactsOf = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add an ONNX file, checked against PyTorch.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Add a dynamically quantised ONNX file, measured.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Add the weights in bfloat16, measured.")] = False,
    confirmed: Annotated[
        bool,
        typer.Option(
            "--confirmed", help="Take what confirm trained in full: the training that is best on the selection split."
        ),
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            help="cpu, cuda:0 or mps; auto takes the kind that the study was measured on, where it is here and int8 is "
            "not wanted, else the CPU."
        ),
    ] = "auto",
) -> None:
    """Make a trial's model again, and write it as a folder that transformers loads."""
    from search.deploy.export import Wanted
    from search.process import Place
    from search.run import quieten
    from search.shipping import export as export_to

    quieten()
    place = Place(storage or default_storage(study), artifacts, device)
    wanted = Wanted(onnx=onnx, int8=int8, bf16=bf16)
    export_to(study, trial, folder, place, wanted, make_console(), confirmed=confirmed)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="Folder that export wrote.", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, with the scores of all labels.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Most lines that go through the model together.")] = 32,
    device: Annotated[str, typer.Option(help="What computes: cpu, cuda:0, mps.")] = "cpu",
) -> None:
    """Read lines from standard input, for pairs two texts with a tab between, and print label and score of each."""
    from search.run import quieten
    from search.shipping import predict as predict_lines

    quieten()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what cannot be decoded is said with the number of its line
    predict_lines(folder, sys.stdin, sys.stdout, device=device, batch_size=batch_size, as_json=as_json)


@app.command()
def doctor() -> None:
    """Print versions, devices, energy sources, and where the packages were imported from."""
    from search.doctor import report

    make_console().print(report())


def _read(study: str, storage: str | None) -> "StudyRecord":
    from search.loading import load

    return load(study, storage)


def _intensity(grid: float | None) -> float | None:
    """The intensity of the grid that was given."""
    if grid is not None and not 0 <= grid < float("inf"):
        raise UserError(f"--grid is {grid:g}; give the grams of CO2-equivalent per kWh, 0 or more")
    return grid


@contextmanager
def _writing(file: Path, option: str) -> Iterator[None]:
    """Say in one sentence that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the file '{file}' cannot be written ({error.strerror or error}); name another with {option}"
        ) from None


def _bounds(option: str, given: list[str] | None) -> dict[str, float]:
    """The bounds of a repeated option `NAME=VALUE`."""
    bounds = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
            number = 0.0
        if not (name and equals):
            raise UserError(f"{option} is {text!r}; write NAME=VALUE with a number, for example accuracy=0.91")
        if name in bounds:
            raise UserError(f"{option} names {name!r} twice; give one bound")
        bounds[name] = number
    return bounds
