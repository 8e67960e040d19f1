"""From a command to a front: one worker in this process, or one process per device, then the closing lines.

study script ─► command line ─┬─► devices ─┬─ one ──────► this process works (search.process)
paretobert work ──────────────┘            └─ several ──► a process each runs the same command (search.launch)
"""

import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from search import process
from search.arguments import STORAGE_VARIABLE, UNTIL_VARIABLE, Options, default_storage, parse
from search.definition import Definition
from search.devices import Device, take_cores
from search.errors import UserError, unknown_name
from search.events import Reporter, stop_with_parent, worker_name
from search.limits import Limits
from search.listener import Listener
from search.progress import Display
from search.sentences import minutes
from search.space import Space

if TYPE_CHECKING:
    from objectives import Objective
    from search.records import StudyRecord

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

PER_LAUNCH = ("--storage", "--devices", "--hours")
"""Arguments that a launcher's workers do not get as they are: URLs travel in the environment, which other users of the
machine cannot read."""


def run(definition: Definition, *, objectives: Sequence["Objective"] = ()) -> None:
    """Run a study script: read the command line, then start, or continue, the study.

    Args:
        definition: The study. Every field can be overridden on the command line.
        objectives: Objectives of your own, beside the built-in ones. Name them in `definition.objectives`.

    Raises:
        SystemExit: With 2 after an error of the input or of the database's, with 130 after an interruption.
    """
    script = sys.argv[0]
    guarded(
        lambda: start(
            definition,
            sys.argv[1:],
            program=f"python {shlex.quote(script)}",
            command=(sys.executable, script),
            objectives=objectives,
        )
    )


def make_console() -> Console:
    """The console of a command: as wide as the terminal, or 100 columns where the output goes elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def guarded(main: Callable[[], None]) -> None:
    """Run a command; say an error of the input, or a database that is away, in one sentence, without a traceback.

    Raises:
        SystemExit: With 2 after an error of the input or of the database's, with 130 after an interruption.
    """
    try:
        main()
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command continues")
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        from search.engine.patience import is_passing, reason

        if worker_name() is not None or not is_passing(error):  # a launcher starts its worker again
            raise
        text = f"error: the study database does not answer ({reason(error)}); give the command again when it does"
        Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)
        raise SystemExit(EXIT_USER_ERROR) from None


def start(
    definition: Definition,
    arguments: Sequence[str],
    *,
    program: str,
    command: Sequence[str],
    objectives: Sequence["Objective"] = (),
) -> None:
    """Override a definition from the command line, and start, or continue, its study.

    Args:
        definition: The study.
        arguments: The command line, without the program's name.
        program: The command that was given, for the help text and the closing lines.
        command: The same command as the processes of further workers are started with.
        objectives: Objectives of your own.

    Raises:
        UserError: If something that was given cannot be used; nothing has been written then.
        SystemExit: With 130 after an interruption.
    """
    usual = definition.engine.trials
    definition, options = parse(definition, arguments, program=program)
    asks = options.trials is not None or definition.engine.trials != usual
    check_objectives(definition, [objective.name for objective in objectives])
    if options.dry_run:
        _dry_run(definition)
        return
    begin = process.Start(definition, tuple(objectives), may_lower=asks, only_prepare=options.prepare)
    _search(
        definition.name,
        options,
        lambda place, limits, listener: process.begin(begin, place, limits, listener),
        definition=definition,
        may_lower=asks,
        command=[*command, *_without(arguments, PER_LAUNCH)],
        again=_again(program, arguments),
    )


def work(name: str, options: Options) -> "StudyRecord":
    """Work at a study that exists, on this machine's devices, and print its front.

    Args:
        name: Name of the study.
        options: Where it is kept and what works at it.

    Returns:
        The study with all its trials.

    Raises:
        UserError: If something that was given cannot be used.
        SystemExit: With 130 after an interruption, with 1 if all workers were given up.
    """
    kept = ["--artifacts", options.artifacts] if options.artifacts else []
    return _search(
        name,
        options,
        lambda place, limits, listener: process.join(name, place, limits, listener),
        definition=None,
        may_lower=True,
        command=[sys.executable, "-m", "search", "work", name, *kept, *_budget(options)],
        again=_work_again(name, options, "--devices", options.devices),
    )


def _work_again(name: str, options: Options, *more: str) -> str:
    """The `paretobert work` that goes on, with no password in it."""
    from search.engine.storage import shown

    storage = ["--storage", shown(options.storage)] if options.storage else []
    artifacts = ["--artifacts", options.artifacts] if options.artifacts else []
    return " ".join(["paretobert work", *map(shlex.quote, [name, *storage, *artifacts, *more]), "--trials N"])


def _budget(options: Options) -> list[str]:
    return [] if options.energy_kwh is None else ["--energy-kwh", str(options.energy_kwh)]


def _without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The command line without these arguments and their values."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _value = argument.partition("=")
        if name not in names:
            kept.append(argument)
        elif not equals:
            next(rest, None)
    return kept


def _again(program: str, arguments: Sequence[str]) -> str:
    """The command that goes on: as given, with another total of trials, and no password in it."""
    from search.engine.storage import shown

    kept = _without(arguments, ("--engine.trials", "--trials"))
    for number, argument in enumerate(kept):
        name, equals, value = argument.partition("=")
        if name == "--storage" and equals:
            kept[number] = f"--storage={shown(value)}"
        elif name == "--storage" and number + 1 < len(kept):
            kept[number + 1] = shown(kept[number + 1])
    return " ".join([program, *map(shlex.quote, kept), "--trials N"])


def check_objectives(definition: Definition, own: Sequence[str]) -> None:
    """Check the names of objectives and constraints.

    Raises:
        UserError: If one is neither built in nor the study script's own, or an own one has a built-in name.
    """
    known = [*definition.quantity_names, *own]
    for name in own:
        if name in definition.quantity_names:
            raise UserError(
                f"the study script's objective {name!r} has the name of a built-in one; choose another name"
            )
    for name in definition.objective_names:
        if name not in known:
            raise UserError(unknown_name("objective", name, ["metric", *known]))
    for name in definition.bounds:
        if name not in known:
            raise UserError(unknown_name("quantity in constraints", name, known))


def _search(
    name: str,
    options: Options,
    body: Callable[[process.Place, Limits, Listener], bool],
    *,
    definition: Definition | None,
    may_lower: bool,
    command: Sequence[str],
    again: str,
) -> "StudyRecord":
    """Run a search on the devices that were asked for, and print its front.

    Args:
        name: Name of the study.
        options: Where it runs and is kept.
        body: What one worker does in this process.
        definition: The study, where it may not exist yet.
        may_lower: Whether its total replaces a higher one that another command asked for.
        command: What a worker process runs, `--devices` excepted.
        again: The command that continues it, for the closing lines.
    """
    url = options.storage or default_storage(name)
    limits = Limits(_until(options), options.energy_kwh)
    quieten()
    if worker_name() is not None:
        _be_launched(url, options, limits, body)
    from search.devices import resolve

    start = time.perf_counter()
    console = make_console()
    devices = resolve(options.devices)
    from search.engine import storage as storages
    from search.engine import study as studies

    on = ", ".join(device.name for device in devices)
    console.print(f"study {name!r} in {storages.shown(url)}, on {on}", markup=False, highlight=False, soft_wrap=True)
    place = process.Place(url, options.artifacts, devices[0].name, wait_s=60 * options.wait)
    if definition is None:
        definition = _join(name, place, options, console)
    if len(devices) == 1:
        with Display(console) as display:
            ended = body(place, limits, display)
        status = 0 if ended else EXIT_INTERRUPTED
    else:
        definition = _take_over_total(definition, place, console, may_lower=may_lower)
        status = _launch(definition, url, limits, devices, command, console)
        if status == EXIT_USER_ERROR or (status and not _Reader(url, name).is_there()):  # nothing to be shown
            raise KeyboardInterrupt if status == EXIT_INTERRUPTED else SystemExit(status)
    found = studies.get(storages.open_storage(url, create=False, **place.patience), name)
    result = studies.read(found)
    _publish(found, url, options, console)
    _close(console, result, url=url, given=options.storage, again=again, seconds=time.perf_counter() - start)
    if status:
        raise SystemExit(status)
    return result


def _take_over_total(definition: Definition, place: process.Place, console: Console, *, may_lower: bool) -> Definition:
    """Compare a study that exists, and store its total, before its workers start: they leave the total alone.

    Raises:
        UserError: If the database cannot be reached, or holds another study of that name.
    """
    from search.engine import storage as storages
    from search.engine import study as studies

    note = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    found = storages.existing(place.storage, definition.name, **place.patience, note=note)
    if found is not None and studies.is_whole(found):
        studies.check_same(found, definition)
        definition = process.take_total(found, definition, note, may_lower=may_lower)
    if found is not None:
        storages.close(found._storage)
    return definition


def _until(options: Options) -> float | None:
    """The moment at which the search ends; a launched worker, started again even, has its launcher's."""
    if UNTIL_VARIABLE in os.environ and worker_name() is not None:
        return float(os.environ[UNTIL_VARIABLE])
    return None if options.hours is None else time.time() + 3600 * options.hours


def _be_launched(
    url: str,
    options: Options,
    limits: Limits,
    body: Callable[[process.Place, Limits, Listener], bool],
) -> None:
    """Be the worker that a launcher started: no output but events, and no life without the launcher."""
    take_cores()
    stop_with_parent()
    reporter = Reporter()
    place = process.Place(url, options.artifacts, options.devices, wait_s=process.PATIENCE_S)
    ended = body(place, limits, reporter)
    reporter.ended(ended)
    raise SystemExit(0 if ended else EXIT_INTERRUPTED)


def _launch(
    definition: Definition,
    url: str,
    limits: Limits,
    devices: Sequence[Device],
    command: Sequence[str],
    console: Console,
) -> int:
    """One process per device, the first of which prepares what all need; its exit status."""
    from search.launch import launch
    from search.view import View

    study = _Reader(url, definition.name)
    name = definition.name
    environment = {STORAGE_VARIABLE: url, process.WORKERS_VARIABLE: str(len(devices))}
    if limits.until is not None:
        environment[UNTIL_VARIABLE] = repr(limits.until)
    metric, total = definition.task.metric, definition.engine.trials
    with View(console, devices, metric=metric, total=total, study=study) as view:
        return launch(
            command,
            devices,
            environment=environment,
            view=view,
            logs=Path(f"runs/{name}/logs"),
            ready=study.is_there,
        )


class _Reader:
    """Reads a study again and again, through one connection; from the launcher's loop and from its view's thread."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._study: Any = None

    def __call__(self) -> "StudyRecord | None":
        """The study as it is now; None where it is not there yet.

        Raises:
            Exception: If its database does not answer.
        """
        from search.engine import storage as storages
        from search.engine import study as studies

        if self._study is None:
            found = storages.existing(self._url, self._name)
            if found is None:
                return None
            if not studies.is_whole(found):
                storages.close(found._storage)
                return None
            self._study = found
        return studies.read(self._study)

    def is_there(self) -> bool:
        """Whether the study is there and whole, as far as its database says."""
        try:
            return self() is not None
        except Exception:  # it does not answer now: asked again in a moment
            return False


def _join(name: str, place: process.Place, options: Options, console: Console) -> Definition:
    """The definition of a study that is there; another total of trials is stored, and running workers will read it."""
    from search.engine import study as studies

    found = process.wait_for(name, place, lambda text: console.print(text, markup=False, soft_wrap=True))
    definition = studies.stored(found).definition
    process.check_built_in(definition)
    if options.trials is not None:
        engine = definition.engine.model_copy(update={"trials": options.trials})
        definition = definition.model_copy(update={"engine": engine})
        studies.set_trials(found, definition)
    return definition


def work_on_cluster(
    name: str, options: Options, *, address: str, workers: int, gpus_per_worker: float, cpus_per_worker: float
) -> "StudyRecord":
    """Work at a study that exists with workers on a Ray cluster, and print its front.

    Args:
        name: Name of the study.
        options: Where it is kept, as every node of the cluster reaches it.
        address: Of the cluster (`search.cluster.place`).
        workers: How many.
        gpus_per_worker: Share of a GPU for each.
        cpus_per_worker: Cores for each.

    Returns:
        The study with all its trials.

    Raises:
        UserError: If something that was given cannot be used.
        SystemExit: With 130 after an interruption.
    """
    from search.cluster import place as place_on
    from search.engine import storage as storages
    from search.engine import study as studies
    from search.engine.artifact_store import is_url

    start = time.perf_counter()
    console = make_console()
    quieten()
    url = storages.absolute(options.storage or default_storage(name))
    folder = options.artifacts or f"runs/{name}/artifacts"
    artifacts = folder if is_url(folder) else str(Path(folder).absolute())
    place = process.Place(url, wait_s=60 * options.wait)
    _join(name, place, options, console)
    console.print(
        f"study {name!r} in {storages.shown(url)}, on {address}", markup=False, highlight=False, soft_wrap=True
    )
    complete = place_on(
        join_from_cluster,
        {
            "study": name,
            "storage": url,
            "artifacts": artifacts,
            "until": _until(options),
            "energy_kwh": options.energy_kwh,
        },
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=cpus_per_worker,
        note=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
        hours=options.hours,
    )
    found = studies.get(storages.open_storage(url, create=False, **place.patience), name)
    result = studies.read(found)
    _publish(found, url, options, console)
    each = ("--gpus-per-worker", f"{gpus_per_worker:g}", "--cpus-per-worker", f"{cpus_per_worker:g}")
    again = _work_again(name, options, "--cluster", address, "--workers", str(workers), *each)
    _close(console, result, url=url, given=options.storage, again=again, seconds=time.perf_counter() - start)
    if not complete:
        raise SystemExit(EXIT_INTERRUPTED)
    return result


def join_from_cluster(
    *, study: str, storage: str, artifacts: str, until: float | None, energy_kwh: float | None, device: str
) -> bool:
    """One worker on a node of a cluster: its output goes to the cluster's logs.

    Args:
        study: Name of the study.
        storage: URL of its database.
        artifacts: Folder that the nodes share, or s3://BUCKET/PREFIX.
        until: Moment in seconds since 1970 at which the search ends; None has no end.
        energy_kwh: Energy that the study may use; None has no end.
        device: Torch's name of the device.

    Returns:
        Whether the search ended by itself; False if it was interrupted.
    """
    quieten()
    place = process.Place(storage, artifacts, device, wait_s=process.PATIENCE_S)
    with Display(make_console()) as display:
        return process.join(study, place, Limits(until, energy_kwh), display)


def confirm(
    name: str,
    *,
    storage: str | None,
    artifacts: str | None,
    device: str,
    trials: Sequence[int],
    points: int | None,
    seeds: int,
    epochs: float | None,
    steps: int | None,
) -> "StudyRecord":
    """Confirm points of a study and print what came of it, searched beside confirmed.

    Args:
        name: Name of the study.
        storage: URL of its database; None takes the default.
        artifacts: Where its artifacts are; None takes the default.
        device: Torch's name of the device; auto takes the kind that the study was measured on.
        trials: Numbers of the trials; empty takes the front.
        points: How many points of the front; None takes all.
        seeds: Trainings of each.
        epochs: Passes over the training rows; None takes those of the dense model.
        steps: Optimizer steps instead.

    Returns:
        The study, with what came of it.

    Raises:
        UserError: If something that was given cannot be used.
    """
    from search.analysis.confirmed import render_confirmations
    from search.confirming import Wanted
    from search.confirming import confirm as confirm_points
    from search.engine import storage as storages
    from search.engine import study as studies

    quieten()
    console, url = make_console(), storage or default_storage(name)
    wanted = Wanted(tuple(trials), points, seeds, epochs, steps)
    on = measured_on(name, url) if device == "auto" else device
    place = process.Place(url, artifacts, on)
    with Display(console) as display:
        result = confirm_points(name, place, wanted, display)
    console.print(render_confirmations(result, result.confirmations))
    options = Options.model_construct(artifacts=artifacts)
    found = studies.get(storages.open_storage(url, create=False, **place.patience), name)
    _publish(found, url, options, console)
    return result


def measured_on(name: str, url: str) -> str:
    """Torch's name of a device of the kind that a study was measured on.

    Args:
        name: Name of the study.
        url: URL of its database.
    """
    from search.engine import storage as storages
    from search.engine import study as studies

    machine = studies.stored(studies.get(storages.open_storage(url, create=False), name)).machine
    said = re.match(r"(\w+) with \d+ threads", machine)  # else a GPU's name, which may hold " with " too
    return said[1] if said else "cuda:0"


def quieten() -> None:
    """Keep libraries from printing between our lines; their warnings still reach a log that asks for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _dry_run(definition: Definition) -> None:
    """Print the resolved definition and the size of the space."""
    quieten()
    from search.bert.checkpoint import read_shape

    shape = read_shape(definition.model, labels=definition.task.outputs, fine_tuned=definition.teacher.fine_tuned)
    space = Space.of(definition.space, shape, definition.recovery)
    print(definition.model_dump_json(indent=2))
    print(
        f"space: {len(space.dimensions)} dimensions, about 10^{space.log10_size():.1f} plans "
        f"({space.shape.layers} layers of {space.shape.heads} heads and {space.shape.neurons} neurons in blocks of "
        f"{space.neuron_block}); nothing was trained"
    )


def _publish(study: Any, url: str, options: Options, console: Console) -> None:
    """Bring what the dashboard shows of the study up to date; a search is no worse for it where that fails."""
    from search.engine.publishing import publish

    try:
        publish(study, url=url, artifacts=options.artifacts)
    except Exception as error:
        console.print(
            f"note and pictures of the dashboard were not written ({type(error).__name__}: {error}); "
            "paretobert dashboard will",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _close(console: Console, result: "StudyRecord", *, url: str, given: str | None, again: str, seconds: float) -> None:
    """Print the front, what to do next, and one line of JSON."""
    from search.analysis.ending import sentence as ends_of
    from search.analysis.front import front
    from search.analysis.indicators import hypervolume
    from search.analysis.table import points, render_front
    from search.engine.storage import shown

    console.print(render_front(result))
    where = f" --storage {shlex.quote(shown(given))}" if given else ""
    members = front(result)
    example = members[0].trial if members else 0
    for line in (
        f"look at it:    paretobert dashboard {result.name}{where}",
        f"go on:         {again}   (N is the study's total)",
        f"see one trial: paretobert show {result.name} {example}{where}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if (said := ends_of(result)) is not None:
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    if result.preparation:
        parts = ", ".join(f"{kind} {minutes(spent)}" for kind, spent in result.preparation.items() if spent >= 1)
        line = f"preparation:   {minutes(sum(result.preparation.values()))}, once" + (f" ({parts})" if parts else "")
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    dense = result.dense
    volume = hypervolume(result)
    summary = {
        "study": result.name,
        "storage": shown(url),
        "trials": len(result.complete),
        "front": len(members),
        "hypervolume": None if volume is None else round(volume, 5),
        "seconds": round(seconds, 1),
        "preparation_seconds": round(sum(result.preparation.values()), 1) if result.preparation else None,
        f"dense_{result.definition.task.metric}": None if dense is None else dense.value(result.definition.task.metric),
        "points": points(result),
    }
    print(json.dumps(summary))
