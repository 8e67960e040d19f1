"""From a study's name to an exported folder, and from a folder to predictions: what the commands do.

study, trial ──► reopened (search.reopening) ──► rebuilt ──► exported, with everything checked (search.deploy)
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from search import keys
from search.definition import RecoverySettings
from search.errors import TrialError, UserError
from search.process import Place, device_of
from search.progress import Display
from search.reopening import reopen

if TYPE_CHECKING:
    from search.deploy.export import Wanted
    from search.records import Confirmation, StudyRecord


def export(
    study: str,
    trial: int,
    target: Path,
    place: Place,
    wanted: "Wanted",
    console: Console,
    *,
    confirmed: bool = False,
) -> dict[str, Any]:
    """Make a trial's model again, and write it into a folder that transformers loads.

    Args:
        study: Name of the study.
        trial: Number of the trial.
        target: The folder; it does not exist, or is empty.
        place: Where the study is kept, and the device to work on; auto takes the kind that the study was measured on,
            where it is here and int8 is not wanted, else the CPU.
        wanted: What the folder shall hold beside the model.
        console: Is shown how it goes on, and what came of it.
        confirmed: Whether to take what the trial's confirmation trained in full instead, of its trainings the one with
            the best metric on the selection split.

    Returns:
        What the folder says about itself.

    Raises:
        UserError: If something that was given cannot be used, or what was written does not compute what the model does;
            the folder is not there then.
    """
    from search.deploy import export as exporting
    from search.deploy.rebuild import origin, rebuild
    from search.deploy.shipped import modelling_of
    from search.loading import load
    from search.run import measured_on

    known = load(study, place.storage)
    wanted = wanted.with_precision(origin(known, trial).precision)
    confirmation = confirmation_of(known, trial) if confirmed else None
    measured = measured_on(study, place.storage)
    if place.device == "auto":
        place = replace(place, device="cpu" if wanted.int8 or not _is_here(measured) else measured)
    exporting.check_target(target, wanted, device_of(place.device))
    with Display(console) as display:
        if place.device.partition(":")[0] != measured.partition(":")[0]:
            display.note(f"the study was measured on {measured}; the model is made and measured on {place.device}")
        again = reopen(study, place, display, measures=False)
        modelling_of(again.prepared.teacher)
        hashes = keys.wanted(again.study.definition, again.prepared.content)
        tokenizer = again.artifacts.found("teacher", hashes["teacher"])
        if tokenizer is None:
            raise UserError(
                f"the fine-tuned dense model of the study {study!r} is gone from '{again.artifacts.folder}'"
            )

        def on_stage(name: str, done: int, total: int) -> None:
            display.stage(trial, name, done, total)

        try:
            rebuilt = rebuild(again.prepared, again.study, trial, on_stage=on_stage, **_trained_as(confirmation))
            if rebuilt.difference is not None:
                display.note(rebuilt.difference)
            about = exporting.export(
                rebuilt, again.prepared, tokenizer, target, wanted, confirmation=confirmation, on_stage=on_stage
            )
        except TrialError as error:
            raise UserError(f"trial {trial} of the study {study!r} cannot be exported: {error}") from None
    for line in _summary(about, target):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return about


def _is_here(device: str) -> bool:
    try:
        device_of(device)
    except UserError:
        return False
    return True


def confirmation_of(study: "StudyRecord", trial: int) -> "Confirmation":
    """What became of a trial that was confirmed.

    Raises:
        UserError: If it was not, or only by a version that did not note which of its trainings is the best.
    """
    from search.deploy.rebuild import origin

    found = study.confirmation_of(origin(study, trial))
    again = f"run `paretobert confirm {study.name} {trial}` first"
    if found is None:
        raise UserError(
            f"--confirmed is given, and trial {trial} of the study {study.name!r} is not confirmed; {again}"
        )
    if found.recovery and found.best is None:
        raise UserError(
            f"--confirmed is given, and the confirmation of trial {trial} of the study {study.name!r} was written by a "
            f"version that did not note which of its trainings is the best; {again}"
        )
    return found


def _trained_as(confirmation: "Confirmation | None") -> dict[str, Any]:
    """How `rebuild` makes the best training of a confirmation; as the trial was made where there is none."""
    if confirmation is None or not confirmation.recovery:
        return {}
    recovery = RecoverySettings.model_validate(confirmation.recovery)
    return {"recovery": recovery, "seed": confirmation.best, "weights": confirmation.weights}


def _summary(about: dict[str, Any], target: Path) -> Iterable[str]:
    """What was written, and what was found about it."""
    metric, recorded, confirmed = about["task"]["metric"], about["recorded"], about["confirmed"]
    yield (
        f"trial {about['trial']} of study {about['study']}: {metric} {about['rebuilt']['value']:.4f} on the selection "
        "split, "
        + (
            f"recorded {recorded[metric]['value']:.4f}"
            if confirmed is None
            else f"confirmed {recorded[metric]['value']:.4f} on {confirmed['rows']:,} held-out rows"
        )
    )
    for name, facts in about["files"].items():
        latency = facts["latency_ms"]
        took = f"{latency['value']:.4g} ms" if "value" in latency else f"no latency ({latency['unavailable']})"
        line = f"{name}: {facts['bytes'] / 1e6:.1f} MB, {metric} {facts[metric]['value']:.4f}, {took}"
        if "largest_difference" in facts:
            line += (
                f", largest difference of a logit {facts['largest_difference']:.1e} over {facts['sentences']} sentences"
            )
        yield line
    yield f"written to {target}; what it is and how to use it stands in {target / 'README.md'}"


def predict(folder: Path, lines: TextIO, out: TextIO, *, device: str, batch_size: int, as_json: bool) -> None:
    """Classify lines, and write one line for each.

    Args:
        folder: What `export` wrote.
        lines: Lines of text; for pairs the two texts with a tab between.
        out: Where to: label and score with a tab between, or JSON.
        device: Torch's name of the device.
        batch_size: Most lines that go through the model together.
        as_json: Whether to write one JSON object per line, with the scores of all labels.

    Raises:
        UserError: If the folder or a line cannot be used.
    """
    from search.deploy.predict import Predictor, predictions

    predictor = Predictor(folder, device_of(device))
    try:
        for found in predictions(predictor, lines, batch_size=batch_size):
            if as_json:
                text = json.dumps(
                    {"label": found.label, "score": found.score, "scores": found.scores}, ensure_ascii=False
                )
            else:
                text = f"{found.label}\t{found.score:.4f}"
            print(text, file=out, flush=True)
    except BrokenPipeError:  # whoever reads has seen enough, head for example
        sys.stderr.close()
