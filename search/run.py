"""From a study script to a front: the steps in their order.

definition ─► storage opened, stored definition compared ─► prepared ─► study created ─► worker's loop ─► front
"""

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from search.arguments import Options, default_storage, parse
from search.definition import OBJECTIVES, Definition
from search.errors import UserError, unknown_name
from search.progress import PREPARATION, Display
from search.space import Space

if TYPE_CHECKING:
    import torch

    from objectives import Objective
    from search.records import StudyRecord

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run(definition: Definition, *, objectives: Sequence["Objective"] = ()) -> None:
    """Run a study script: read the command line, then start, or continue, the study.

    Args:
        definition: The study. Every field can be overridden on the command line.
        objectives: Objectives of your own, beside the built-in ones. Name them in `definition.objectives`.

    Raises:
        SystemExit: With 2 after an error of the input, with 130 after an interruption.
    """
    guarded(lambda: start(definition, sys.argv[1:], program=f"python {sys.argv[0]}", objectives=objectives))


def make_console() -> Console:
    """The console of a command: as wide as the terminal, or 100 columns where the output goes elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def guarded(main: Callable[[], None]) -> None:
    """Run a command; say an error of the input in one sentence, without a traceback.

    Raises:
        SystemExit: With 2 after an error of the input, with 130 after an interruption.
    """
    try:
        main()
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command continues")
        raise SystemExit(EXIT_INTERRUPTED) from None


def start(
    definition: Definition, arguments: Sequence[str], *, program: str, objectives: Sequence["Objective"] = ()
) -> None:
    """Override a definition from the command line, and start, or continue, its study.

    Args:
        definition: The study.
        arguments: The command line, without the program's name.
        program: The command that was given, for the help text and the closing lines.
        objectives: Objectives of your own.

    Raises:
        UserError: If something that was given cannot be used; nothing has been written then.
        SystemExit: With 130 after an interruption.
    """
    definition, options = parse(definition, arguments, program=program)
    check_objectives(definition, [objective.name for objective in objectives])
    if options.dry_run:
        _dry_run(definition)
    else:
        search(definition, options, objectives=objectives, again=_again(program, arguments))


def _again(program: str, arguments: Sequence[str]) -> str:
    """The command that goes on: as given, with another total of trials, and no password in it."""
    from search.engine.storage import shown

    kept: list[str] = []
    pairs = iter(arguments)
    for argument in pairs:
        name, equals, value = argument.partition("=")
        if name not in ("--storage", "--engine.trials"):
            kept.append(argument)
            continue
        value = value if equals else next(pairs, "")
        if name == "--storage":
            kept += [name, shown(value)]
    return " ".join([program, *map(shlex.quote, kept), "--engine.trials N"])


def check_objectives(definition: Definition, own: Sequence[str]) -> None:
    """Check the names of objectives and constraints.

    Raises:
        UserError: If one is neither built in nor the study script's own, or an own one has a built-in name.
    """
    known = [*OBJECTIVES, *own]
    for name in own:
        if name in OBJECTIVES:
            raise UserError(
                f"the study script's objective {name!r} has the name of a built-in one; choose another name"
            )
    for name in definition.objective_names:
        if name not in known:
            raise UserError(unknown_name("objective", name, ["metric", *known]))
    for name in definition.bounds:
        if name not in known:
            raise UserError(unknown_name("quantity in constraints", name, known))


def search(
    definition: Definition, options: Options, *, objectives: Sequence["Objective"] = (), again: str
) -> "StudyRecord":
    """Start, or continue, a study in this process, and print its front.

    Args:
        definition: The study.
        options: Where it runs and is kept.
        objectives: Objectives of your own.
        again: The command that continues it, for the closing lines.

    Returns:
        The study with all its trials.

    Raises:
        UserError: If something that was given cannot be used; nothing has been written then.
        SystemExit: With 130 after an interruption.
    """
    start = time.perf_counter()
    console = make_console()
    url = options.storage or default_storage(definition.name)
    _quiet()
    # Heavy imports come late, so that --help, --dry-run and errors of the input answer at once.
    from search.artifacts import Artifacts
    from search.engine import storage as storages
    from search.engine import study as studies
    from search.engine.worker import work

    existing = storages.existing(url, definition.name)
    about = studies.stored(existing) if existing is not None and studies.is_whole(existing) else None
    if existing is not None and about is not None:
        studies.check_same(existing, definition)
    from search import pipeline, preparation
    from search.records import ObjectiveInfo

    device = _device(options.device)
    artifacts = Artifacts(Path(options.artifacts or f"runs/{definition.name}/artifacts"))
    console.print(
        f"study {definition.name!r} in {storages.shown(url)}, on {device}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    with Display(console, metric=definition.task.metric, total=definition.engine.trials) as display:
        prepared = preparation.prepare(
            definition,
            artifacts,
            device=device,
            own_objectives={objective.name: objective for objective in objectives},
            energy_source=about.energy_source if about else None,
            content=about.content if about else None,
            machine=about.machine if about else None,
            on_stage=lambda name, done, total: display.stage(PREPARATION, name, done, total),
        )
        infos = [prepared.objectives[name] for name in definition.objective_names]
        study = studies.create(
            storages.open_storage(url, create=True),
            definition,
            shape=prepared.shape,
            objectives=tuple(ObjectiveInfo(info.name, info.unit, info.direction) for info in infos),
            energy_source=prepared.energy_source,
            content=prepared.content,
            machine=prepared.machine,
        )
        studies.set_trials(study, definition)
        display.known(studies.read(study).complete, definition.engine.trials)
        complete = work(
            study,
            lambda plan, *, seed, on_stage: pipeline.evaluate(prepared, plan, seed=seed, on_stage=on_stage),
            display,
        )
    result = studies.read(study)
    _close(console, result, url=url, given=options.storage, again=again, seconds=time.perf_counter() - start)
    if not complete:
        raise SystemExit(EXIT_INTERRUPTED)
    return result


def _quiet() -> None:
    """Keep libraries from printing between our lines; their warnings still reach a log that asks for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _device(name: str) -> "torch.device":
    """The device of a name; `auto` takes a GPU where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device is {name!r}, which cannot be used here ({str(error).splitlines()[0]}); use cpu, or auto"
        ) from None
    return device


def _dry_run(definition: Definition) -> None:
    """Print the resolved definition and the size of the space."""
    _quiet()
    from search.bert.checkpoint import read_shape

    space = Space.of(definition.space, read_shape(definition.model, labels=len(definition.task.labels)))
    print(definition.model_dump_json(indent=2))
    print(
        f"space: {len(space.dimensions)} dimensions, about 10^{space.log10_size():.1f} plans "
        f"({space.shape.layers} layers of {space.shape.heads} heads and {space.shape.neurons} neurons in blocks of "
        f"{space.neuron_block}); nothing was trained"
    )


def _close(console: Console, result: "StudyRecord", *, url: str, given: str | None, again: str, seconds: float) -> None:
    """Print the front, what to do next, and one line of JSON."""
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
    dense = result.dense
    volume = hypervolume(result)
    summary = {
        "study": result.name,
        "storage": shown(url),
        "trials": len(result.complete),
        "front": len(members),
        "hypervolume": None if volume is None else round(volume, 5),
        "seconds": round(seconds, 1),
        f"dense_{result.definition.task.metric}": None if dense is None else dense.value(result.definition.task.metric),
        "points": points(result),
    }
    print(json.dumps(summary))
