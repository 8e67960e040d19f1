"""What do the objectives say about one model outside a search?

    checkpoint ──► loaded ──┬─ of a study: its conditions, the dense model beside, its splits
                            └─ alone: conditions by name, rows of a file where one is given
                            │
              size, latency, energy, memory ──► scores ──► card

Under a study the instruments are those of its trials, so that a model has the figures that its trial has.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from objectives import MeasurementUnavailable, Objective, Subject, all_metrics, resolve
from objectives.precision import FP32, UNKNOWN
from search import keys, preparation
from search.analysis.card import HELD_OUT, Card
from search.artifacts import Artifacts
from search.bert.classifier import Classifier, load_classifier, scorable
from search.bert.families import family_of
from search.bert.precision import score_in
from search.bert.pruned import plan_of, shape_of
from search.definition import METRICS, Definition, Task, build
from search.deploy.shipped import ABOUT
from search.errors import UserError
from search.plan import Plan, Shape, encoder_parameters
from search.process import Place, artifacts_of, device_of, prepared_again, take_threads
from search.scoring import ScoringRows, check_labels, rows_of_data, rows_of_study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from search.engine.study import Stored
    from search.records import Record, StudyRecord

NO_CLASSIFIER = "the checkpoint holds no classifier"
"""Why a model has no metrics whose classification layer is new."""


OTHER_SHAPE = "it comes from the study's table, which knows models cut from the study's own only"
"""Why a model of other sizes has no cost from a table."""


class _Notes:
    """Listens to a preparation, and keeps what it notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        """Fetching artifacts takes no time worth a word."""

    def finished(self, record: "Record", completed: int, total: int) -> None:
        """No trial is run."""

    def known(self, study: "StudyRecord") -> None:
        """It is read here."""

    def note(self, text: str) -> None:
        """Keep it for the card."""
        self.notes.append(text)


def measure_in_study(checkpoint: str, study: str, place: Place, *, held_out: bool = False) -> Card:
    """Measure a model as a study measures its trials.

    Args:
        checkpoint: Folder of a checkpoint, or a name on the hub.
        study: Name of the study.
        place: Where the study is kept, and the device to measure on.
        held_out: Whether to score it on the held-out split as well.

    Returns:
        The card.

    Raises:
        UserError: If the study, its artifacts or the checkpoint cannot be had, the device is not the study's, or
            labels, data or tokenizer do not fit.
    """
    from search.engine import storage as storages
    from search.engine import study as studies

    listener = _Notes()
    found = studies.get(
        storages.open_storage(place.storage, create=False, patience_s=place.wait_s, note=listener.note), study
    )
    about, result = studies.stored(found), studies.read(found)
    definition = about.definition
    model = load_classifier(checkpoint, labels=definition.task.outputs)
    check_labels(checkpoint, model, definition.task)
    device = device_of(place.device)
    take_threads(about, device, listener)
    here = preparation.machine_of(definition, device, about.machine)
    if here != about.machine:
        raise UserError(
            f"the study {study!r} was measured on {about.machine}, and this is {here}; latencies of the two do not "
            "compare: measure there (--device, OMP_NUM_THREADS), or without --study"
        )
    artifacts = artifacts_of(place, study)
    folders = _prepared_folders(study, about, artifacts)
    prepared = prepared_again(about, artifacts, device, listener, machine=about.machine)
    splits = ("selection", "held_out") if held_out else ("selection",)
    rows = {}
    if model.is_fine_tuned:
        rows = {split: rows_of_study(split, checkpoint, model, definition, folders, listener.note) for split in splits}
    dense, precision = result.dense, _precision(prepared, model)
    tabled = {} if _is_of(prepared.shape, model) else dict.fromkeys(prepared.tables, OTHER_SHAPE)
    card = _card(
        checkpoint,
        model,
        {name: each for name, each in prepared.deployed[precision].items() if name not in tabled},
        rows,
        device,
        prepared.turns.measuring(lambda: None),
        about.energy_source,
        precision,
    )
    own = [name for name in definition.objective_names if name not in definition.quantity_names]
    unmeasured = {**dict.fromkeys(own, "an objective of the study's own script"), **tabled, **card.unmeasured}
    values = {} if dense is None else {**_values(dense), **dense.values}
    if dense is not None and dense.precision != precision and not model.is_ours:
        as_dense = prepared.deployed[dense.precision]
        changed = [n for n, each in prepared.objectives.items() if each.needs_scores or as_dense[n] is not each]
        values = {name: value for name, value in values.items() if name not in changed}
        listener.note(
            f"measured in {precision}, and the study's dense model in {dense.precision}: what that changes has no ratio"
        )
    return replace(
        card,
        study=study,
        dense=values,
        unmeasured=unmeasured,
        notes=(*listener.notes, *card.notes),
        beside_is_dense=dense is None or dense.precision == FP32 or not model.is_ours,
    )


def measure_alone(
    checkpoint: str,
    *,
    device: str = "cpu",
    data: str | None = None,
    split: str | None = None,
    labels: str | None = None,
    energy: str = "auto",
    **given: Any,
) -> Card:
    """Measure a model under conditions of one's own.

    Args:
        checkpoint: Folder of a checkpoint, or a name on the hub.
        device: Torch's name of the device.
        data: Rows to score on, as in a definition; None scores nothing.
        split: Split of the data; a single file has none, and elsewhere it is `validation` where none is named.
        labels: Labels as they stand in the data, by class, with commas between them; None takes the checkpoint's own.
        energy: Source of the energy figure.
        given: Further fields of `LatencySettings` (batch, tokens, threads, dtype, backend) and `Task` (text, label,
            config), where they are not to have their defaults.

    Returns:
        The card.

    Raises:
        UserError: If the checkpoint, the data, the device or a condition cannot be used.
    """
    model, at = load_classifier(checkpoint, labels=2), device_of(device)
    own = model.labels or tuple(str(number) for number in range(model.count))
    task = {name: given.pop(name) for name in tuple(given) if name in Task.model_fields}
    task["labels"] = own if labels is None else labels.split(",")
    if model.count == 1 and labels is None:  # one output is a number
        task |= {"labels": (), "metric": "pearson"}
    values = {"name": "alone", "data": data or "none", "task": task, "latency": given, "energy": {"source": energy}}
    definition = build(values, source="the command line")
    rows = {}
    if data is not None and model.is_fine_tuned:
        if labels is None or len(definition.task.labels) != model.count:
            check_labels(checkpoint, model, definition.task)
        where = "train" if Path(data).expanduser().is_file() else split or "validation"
        rows = {"selection": rows_of_data(model, data, definition.task, where)}
    lengths = rows["selection"].rows.lengths if rows else None
    whole = 1
    if model.is_ours:
        shape = shape_of(model.model)  # type: ignore[arg-type]
        whole = encoder_parameters(Plan.dense(shape), shape)
    try:
        source = resolve(definition.energy.source, at)
        objectives = preparation.instruments(
            definition,
            dense_encoder_parameters=whole,
            lengths=_lengths(definition, lengths),
            device=at,
            energy_source=source,
        )
    except MeasurementUnavailable as error:
        raise UserError(str(error)) from None
    if not model.is_ours:
        del objectives["encoder_share"]
    card = _card(checkpoint, model, objectives, rows, at, nullcontext(), source)
    named = {name: {**each, "source": str(data)} for name, each in card.quantities.items() if name in METRICS}
    return replace(card, quantities={**card.quantities, **named})


def _card(
    checkpoint: str,
    model: Classifier,
    objectives: Mapping[str, Objective],
    rows: Mapping[str, ScoringRows],
    device: torch.device,
    alone: AbstractContextManager[None],
    energy_source: str,
    precision: str = FP32,
) -> Card:
    """Measure everything, as a trial does: what depends on the shape, with the device alone, then the scores."""
    unmeasured = dict.fromkeys(UNKNOWN.get(precision, ()), f"it is not known in {precision}")
    notes = [f"{NO_CLASSIFIER}: it has a new one, and no task metrics"] if not model.is_fine_tuned else []
    with _memory_told(device):
        moved = model.model.to(device)
        own_file = ["stored_bytes"] if precision == FP32 else []  # else what it would become
        stored = _measured({name: objectives[name] for name in own_file}, moved, unmeasured)
        if precision != FP32:
            notes.append(f"measured as deployed in {precision}")
        if model.stored_as != torch.float32:
            notes.append(f"stored as {str(model.stored_as).removeprefix('torch.')}, measured from float32 weights")
            moved.float()
        done = (*own_file, *unmeasured)
        rest = {name: each for name, each in objectives.items() if not each.needs_scores and name not in done}
        with alone:
            quantities = _measured(rest, moved, unmeasured) | stored
        scores = {split: _scored(moved, each, precision) for split, each in rows.items()}
    metrics = scores.get("selection", {})
    held_out = {name: {**each, "source": HELD_OUT} for name, each in scores.get("held_out", {}).items()}
    if not model.is_fine_tuned:
        unmeasured |= dict.fromkeys(METRICS, NO_CLASSIFIER)
    return Card(
        model=checkpoint,
        what=_described(model),
        quantities={**metrics, **quantities},
        held_out=held_out,
        unmeasured=unmeasured,
        conditions={
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            **{package: version(package) for package in ("torch", "transformers", "paretobert")},
            "energy_source": energy_source,
        },
        notes=tuple(notes),
    )


def _measured(
    objectives: Mapping[str, Objective], model: nn.Module, unmeasured: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Measure what depends on the shape alone; why something could not be measured is put into `unmeasured`."""
    found = {}
    for name, objective in objectives.items():
        try:
            found[name] = objective.measure(Subject(model)).to_dict()
        except (TypeError, ValueError, MeasurementUnavailable) as error:
            unmeasured[name] = " ".join(str(error).split())
    return found


def _scored(model: nn.Module, given: ScoringRows, precision: str) -> dict[str, dict[str, Any]]:
    """The task's metrics on some rows, as a trial has them."""
    taken: Any = scorable(model)
    logits = score_in(precision, taken, given.rows, pad_id=given.pad_id, batch_size=preparation.SCORING_BATCH)
    if not torch.isfinite(logits).all():
        raise UserError("the model's logits are not finite, so nothing is classified; look at how it was trained")
    return {name: metric.to_dict() for name, metric in all_metrics(logits, given.rows.labels).items()}


@contextmanager
def _memory_told(device: torch.device) -> "Iterator[None]":
    """Say a lack of memory in one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise UserError(f"out of memory on {device}; measure with smaller batches, or on another device") from None


def _prepared_folders(study: str, about: "Stored", artifacts: Artifacts) -> dict[str, Path]:
    """Where everything is that the study's trials have in common; nothing is made here."""
    folders = {}
    for kind, hash_ in keys.wanted(about.definition, about.content).items():
        folder = artifacts.found(kind, hash_)
        if folder is None:
            raise UserError(
                f"the artifact {kind}-{hash_[:20]} of the study {study!r} is not in '{artifacts.folder}'; name with "
                "--artifacts where the study was prepared"
            )
        folders[kind] = folder
    return folders


def _lengths(definition: Definition, lengths: Tensor | None) -> Tensor:
    """Lengths that a mix is made of; where there are no rows, no condition may ask for a mix."""
    mixed = any(each.tokens == "selection" for each in (definition.latency, *definition.latencies.values()))
    if lengths is None and mixed:
        raise UserError("--tokens is selection, which takes the lengths of rows; name them with --data, or a number")
    return torch.tensor([1]) if lengths is None else lengths


def _precision(prepared: preparation.Prepared, model: Classifier) -> str:
    """What a trial with this model would be measured in: what an export says of it, else the study's usual one."""
    if not model.is_ours:
        return FP32
    named = prepared.definition.space.precision
    try:
        said = json.loads((model.folder / ABOUT).read_text(encoding="utf-8"))["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        said = None
    return said if said in named else named[0]


def _is_of(shape: Shape, model: Classifier) -> bool:
    """Whether a model's encoder could have been cut from a dense one of that shape."""
    if not model.is_ours:
        return False
    own = shape_of(model.model)  # type: ignore[arg-type]
    return all(getattr(own, name) == getattr(shape, name) for name in ("layers", "heads", "head_size", "neurons"))


def _described(model: Classifier) -> str:
    """What a model is, in words."""
    name = type(model.model).__name__
    if not model.is_ours:
        return f"{name}, as transformers loads it"
    family, plan, shape = family_of(model.config), plan_of(model.config), shape_of(model.model)  # type: ignore[arg-type]
    dense = " (dense)" if plan == Plan.dense(shape) else ""
    rank = "" if plan.rank is None else f", word embeddings of rank {plan.rank}"
    return f"{family.title}{dense}, heads {_listed(plan.heads)}, neurons {_listed(plan.neurons)}{rank}"


def _listed(counts: Sequence[int]) -> str:
    return " ".join(map(str, counts))


def _values(record: "Record") -> dict[str, float]:
    return {name: float(each["value"]) for name, each in record.quantities.items()}
