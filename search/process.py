"""One worker process: from a definition, or a study's name, to the worker's loop on one device.

by its script      definition ─► stored one compared ─► prepared from checkpoint and data ─► study created ─► loop
by its name        stored definition ─► prepared from the artifacts ─► loop
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.costs import Counter
from search.definition import Definition
from search.errors import UserError
from search.events import worker_name
from search.limits import Limits
from search.listener import Listener
from search.records import PREPARATION

if TYPE_CHECKING:
    import torch

    from objectives import Objective
    from objectives.energy import Meter
    from search.artifacts import Artifacts
    from search.engine.study import Stored
    from search.preparation import Prepared

PATIENCE_S = 3600.0
"""Seconds that a search waits for a study database that stopped answering."""

WORKERS_VARIABLE = "PARETOBERT_WORKERS"
"""Environment variable that tells a launched worker how many there are on this machine."""


@dataclass(frozen=True)
class Place:
    """Where a worker works.

    Attributes:
        storage: URL of the study database.
        artifacts: Folder, or s3://BUCKET/PREFIX; None is `runs/STUDY/artifacts`.
        device: Torch's name of the device.
        wait_s: Seconds that the database, and a study that is to be joined, are waited for.
    """

    storage: str
    artifacts: str | None = None
    device: str = "cpu"
    wait_s: float = 0.0

    @property
    def patience(self) -> dict[str, Any]:
        """How long a search waits for its database (`search.engine.storage.open_storage`)."""
        return {"patience_s": self.wait_s, "answered_s": PATIENCE_S}


@dataclass(frozen=True)
class Start:
    """What a study script brings.

    Attributes:
        definition: The study.
        objectives: Objectives of its own.
        may_lower: Whether its total replaces a higher one that another command asked for.
        only_prepare: Whether to stop once the study is created.
    """

    definition: Definition
    objectives: Sequence["Objective"] = field(default_factory=tuple)
    may_lower: bool = True
    only_prepare: bool = False


def begin(start: Start, place: Place, limits: Limits, listener: Listener) -> bool:
    """Start, or continue, the study of a script in this process.

    Returns:
        Whether the search ended by itself; False if it was interrupted.

    Raises:
        UserError: If something that was given cannot be used; nothing has been written then.
    """
    from search.engine import storage as storages
    from search.engine import study as studies

    definition = start.definition
    existing = storages.existing(place.storage, definition.name, **place.patience, note=listener.note)
    about = studies.stored(existing) if existing is not None and studies.is_whole(existing) else None
    if existing is not None and about is not None:
        studies.check_same(existing, definition)
    if existing is not None:
        storages.close(existing._storage)  # no connection idles while what all trials need is prepared
    from search import preparation
    from search.bert.checkpoint import is_fine_tuned
    from search.bert.ladder import in_order, kept_mass, ladder
    from search.records import ObjectiveInfo

    device = device_of(place.device)
    artifacts = artifacts_of(place, definition.name)
    artifacts.check_writable()
    counter = artifacts.counter = _counter(device, limits)
    if about is None and not definition.teacher.fine_tuned and is_fine_tuned(definition.model):
        listener.note(
            f"'{definition.model}' holds a classifier already, and will be fine-tuned again; with teacher.fine_tuned "
            "it is the dense model as it is"
        )
    prepared = preparation.prepare(
        definition,
        artifacts,
        device=device,
        own_objectives={objective.name: objective for objective in start.objectives},
        energy_source=about.energy_source if about else None,
        content=about.content if about else None,
        machine=about.machine if about else None,
        reference_ms=about.reference_ms if about else None,
        on_stage=lambda name, done, total: listener.stage(PREPARATION, name, done, total),
    )
    infos = [prepared.objectives[name] for name in definition.objective_names]
    study = studies.create(
        storages.open_storage(place.storage, create=True, **place.patience, note=listener.note),
        definition,
        shape=prepared.shape,
        objectives=tuple(ObjectiveInfo(info.name, info.unit, info.direction) for info in infos),
        energy_source=prepared.energy_source,
        content=prepared.content,
        machine=prepared.machine,
        preparation=prepared.cost,
        preparation_j=prepared.cost_j,
        rows=prepared.rows,
        reference_ms=prepared.reference_ms,
        ladder=ladder(
            prepared.space,
            prepared.scores,
            sizes=in_order(definition.engine.ladder, from_largest=definition.recovery.inherits),
            tilts=definition.engine.tilts,
            drop_blocks=definition.engine.drop_blocks,
        ),
        mass=kept_mass(prepared.space, prepared.scores),
    )
    # Another worker may have created it meanwhile: what it was created with then counts for all.
    created = studies.stored(study)
    if about is None:
        _check_alike(prepared, created)
    prepared = preparation.referred(prepared, created.reference_ms)
    if worker_name() is None:  # a launched worker that starts again must not take back what was raised meanwhile
        take_total(study, definition, listener.note, may_lower=start.may_lower)
    return start.only_prepare or _loop(study, prepared, limits, counter, listener)


def take_total(study: Any, definition: Definition, note: Callable[[str], None], *, may_lower: bool) -> Definition:
    """Store a script's total, and say where a higher one stays.

    Args:
        study: The study.
        definition: What the script says.
        note: Told where it does not count.
        may_lower: Whether the total replaces a higher one.

    Returns:
        What counts.
    """
    from search.engine import study as studies

    counts = studies.set_trials(study, definition, may_lower=may_lower)
    if counts.engine.trials != definition.engine.trials:
        asked = definition.engine.trials
        note(f"the study has been asked for {counts.engine.trials:,} trials, which stays; --trials {asked} lowers it")
    return counts


def _check_alike(prepared: "Prepared", created: "Stored") -> None:
    """Refuse to go on with what was prepared here for a study that another worker created meanwhile with other things.

    Raises:
        UserError: If machine, energy source or content differ.
    """
    from search import preparation

    name = created.definition.name
    preparation.check_machine(name, created.machine, prepared.machine)
    if prepared.energy_source != created.energy_source:
        raise UserError(
            f"the study {name!r} takes its energy from {created.energy_source!r}, and this worker from "
            f"{prepared.energy_source!r}: another worker created it meanwhile; set energy.source, or choose another "
            "name (--name)"
        )
    kinds = sorted(prepared.content.keys() | created.content.keys())
    other = [kind for kind in kinds if prepared.content.get(kind) != created.content.get(kind)]
    if other:
        raise UserError(
            f"the study {name!r} was created meanwhile by another worker with other content ({', '.join(other)}); give "
            "both the same checkpoint and data, or choose another name (--name)"
        )


def join(name: str, place: Place, limits: Limits, listener: Listener) -> bool:
    """Work at a study that exists, with nothing but its database and its artifacts.

    Args:
        name: Name of the study.
        place: Where.
        limits: When to end early.
        listener: Is told how it goes on.

    Returns:
        Whether the search ended by itself; False if it was interrupted.

    Raises:
        UserError: If the study is not there, has objectives of its own script, or cannot be worked at on this machine.
    """
    from search.engine import study as studies

    study = wait_for(name, place, listener.note)
    about = studies.stored(study)
    check_built_in(about.definition)
    device = device_of(place.device)
    take_threads(about, device, listener)
    artifacts = artifacts_of(place, name)
    counter = artifacts.counter = _counter(device, limits)
    prepared = prepared_again(about, artifacts, device, listener, machine=about.machine)
    return _loop(study, prepared, limits, counter, listener)


def prepared_again(
    about: "Stored", artifacts: "Artifacts", device: "torch.device", listener: Listener, *, machine: str | None
) -> "Prepared":
    """What all trials of a stored study have in common, by the hashes that it names: from its artifacts.

    Args:
        about: What the study says of itself.
        artifacts: Where that is kept.
        device: Where to train and measure.
        listener: Is told what is being done.
        machine: Device and threads that latencies have to be measured with; None takes any.

    Raises:
        UserError: If the artifacts lack something that cannot be made again here, or this is another machine.
    """
    from search import preparation

    return preparation.prepare(
        about.definition,
        artifacts,
        device=device,
        own_objectives={},
        energy_source=about.energy_source,
        content=about.content,
        machine=machine,
        reference_ms=about.reference_ms,
        from_artifacts=True,
        on_stage=lambda stage, done, total: listener.stage(PREPARATION, stage, done, total),
    )


def check_built_in(definition: Definition) -> None:
    """Refuse to go on without the script where the study has objectives of its own.

    Raises:
        UserError: If it has.
    """
    own = [name for name in (*definition.objective_names, *definition.bounds) if name not in definition.quantity_names]
    if own:
        raise UserError(
            f"the study {definition.name!r} has the objective or constraint {own[0]!r} of its own study script; "
            "run that script again to continue"
        )


def _loop(study: Any, prepared: "Prepared", limits: Limits, counter: Counter | None, listener: Listener) -> bool:
    from search import pipeline
    from search.engine import study as studies
    from search.engine.worker import work

    if prepared.vocabulary is not None:
        listener.note(f"vocabulary: {prepared.vocabulary}")
    for name, answer in prepared.tables.items():
        listener.note(f"{name} by the table: {answer.agreement or 'not compared with direct measurements'}")
    listener.known(studies.read(study))
    return work(
        study,
        partial(pipeline.evaluate, prepared),
        listener,
        limits=limits,
        counter=counter,
    )


def wait_for(name: str, place: Place, note: Callable[[str], None]) -> Any:
    """The study, as soon as it is there and whole.

    Args:
        name: Its name.
        place: Where, and how long to wait.
        note: Told that it is waited for.

    Returns:
        The study, as Optuna has it.

    Raises:
        UserError: If it is not there by then.
    """
    from search.engine import storage as storages
    from search.engine import study as studies

    end, told = time.monotonic() + place.wait_s, False
    while True:
        try:
            left = max(0.0, end - time.monotonic())
            patience = {**place.patience, "patience_s": left}
            opened = storages.open_storage(place.storage, create=False, **patience, note=note)
            try:
                study = studies.get(opened, name)
                studies.stored(study)
                return study
            except UserError:
                storages.close(opened)
                raise
        except UserError as error:
            if time.monotonic() >= end:
                raise
            if not told:
                note(f"waiting for the study: {error}")
                told = True
            time.sleep(2.0)


def artifacts_of(place: Place, name: str) -> "Artifacts":
    """The artifacts of a study.

    Raises:
        UserError: If the location is none, or needs a package that is missing.
    """
    from search.engine.artifact_store import open_artifacts

    folder = f"runs/{name}/artifacts"
    return open_artifacts(place.artifacts or folder, cache=Path(folder))


def device_of(name: str) -> "torch.device":
    """The device of that name.

    Raises:
        UserError: If it cannot be used here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # streams, graphs and what the device can do are asked of the current one
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"the device is {name!r}, which cannot be used here ({str(error).splitlines()[0]}); name another, cpu for "
            "example"
        ) from None
    return device


def take_threads(about: "Stored", device: "torch.device", listener: Listener) -> None:
    """Compute with as many threads as the study's other workers, where this machine has as many cores."""
    import torch

    from search.devices import available_cores

    stored = re.match(r"cpu with (\d+) threads(?:, (\d+) to compute)?", about.machine)
    if device.type != "cpu" or stored is None or (stored[2] is None and about.definition.latency.threads is not None):
        return  # nothing is measured with torch's own threads, or an older study does not say how many these were
    threads = int(stored[2] or stored[1])
    if threads != torch.get_num_threads() and threads <= len(available_cores()):
        torch.set_num_threads(threads)
        listener.note(f"computing with {threads} threads, as the study's other trials")


def _counter(device: "torch.device", limits: Limits) -> Counter | None:
    """Energy that the device uses from now on; None where no counter can be read."""
    from objectives.energy.choose import COUNTERS, open_meter
    from objectives.measurement import MeasurementUnavailable

    reasons = []
    for name in COUNTERS:
        # A CPU's counter counts the whole socket, which the CPU workers of this machine share.
        share = 1 / int(os.environ.get(WORKERS_VARIABLE, "1")) if name == "rapl" else 1.0
        try:
            meter = open_meter(name, device)
            return Counter(meter.source, _used_since_now(meter, share))
        except MeasurementUnavailable as error:
            reasons.append(f"{name}: {error}")
    if limits.energy_kwh is not None:
        raise UserError(
            f"--energy-kwh is {limits.energy_kwh:g}, and no energy counter can be read on {device} "
            f"({'; '.join(reasons)}); limit the search by --hours or --trials"
        )
    return None


def _used_since_now(meter: "Meter", share: float) -> Callable[[], float | None]:
    from objectives.measurement import MeasurementUnavailable

    first_mj = meter.read_mj()

    def used_j() -> float | None:
        try:
            return (meter.read_mj() - first_mj) / 1000 * share
        except MeasurementUnavailable:  # the bookkeeping of a trial is no reason to lose it
            return None

    return used_j
