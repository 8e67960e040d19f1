"""What is the same for all trials of a study: made once, found again in the artifact folder.

rows ──► tokens ──► dense teacher ─┬─► its logits on the training rows ────┬─► super-network, if asked for
           │                       ├─► importance of every head and neuron ┘
           │                       ├─► directions of its word embeddings, where their rank is a dimension
           │                       └─► table of what its blocks cost on this device, where the study asks for it
           └ with space.vocabulary = train of a smaller vocabulary; the teacher then has its rows only

A worker that joins a study needs neither the checkpoint nor the data: the study says by which hashes each of these is
found among the artifacts.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from objectives import Conditions, MeasurementUnavailable, Objective, Subject, built_in, parts, resolve
from objectives.backends import open_backend
from objectives.latency import Latency
from objectives.precision import check_available, in_precision
from search import supernets, tables
from search.artifacts import Artifacts, digest, digest_of_files
from search.bert.block_importance import block_importance
from search.bert.checkpoint import (
    fingerprint,
    is_fine_tuned,
    load,
    load_dense,
    save,
)
from search.bert.encoding import Encoded, collate, drawn_batches, encode, load_tokenizer, rules_of, training_batches
from search.bert.factorise import directions, frequencies
from search.bert.families import family_of
from search.bert.importance import Scores, importance
from search.bert.ladder import check_droppable
from search.bert.pruned import words_of
from search.bert.reading import looks_like_path
from search.bert.recovery import of_labels
from search.bert.splitting import load_splits
from search.bert.surgery import shape_of
from search.bert.training import Schedule, score, train
from search.bert.vocabulary import FILE as VOCABULARY
from search.bert.vocabulary import Reduction, keep_tokens, reduction, write_tokenizer
from search.costs import noted
from search.definition import Definition, LatencySettings
from search.devices import processor
from search.errors import TrialError, UserError
from search.keys import LOGITS, SUPERNET, TABLE, importance_key, logits_key, wanted
from search.plan import Plan, Shape, encoder_parameters
from search.space import Space
from search.tables import Answer
from search.turns import Alone, Turns, turns

OnStage = Callable[[str, int, int], None]
"""Told what is being done: name of the stage, steps done, steps in all."""

DIRECTIONS = "directions.safetensors"
"""File of the directions in their artifact."""

SEARCHED = ("train", "selection")
"""The splits that a search reads."""

SCORING_BATCH = 64
"""Rows per batch when a split is scored; it has no influence on the logits."""

IMPORTANCE_BATCH = 32
"""Rows per batch when importance is scored."""

UNIFORM = "2"
"""How importance is made now, as the study's `content` names it: rows drawn uniformly, blocks scored too. A study whose
content names nothing was prepared before: it took whole batches of rows of like length, and keeps to that."""


@dataclass(frozen=True)
class Prepared:
    """What is the same for all trials of a study.

    Attributes:
        definition: The study's definition.
        device: Where models are trained and measured.
        space: The study's dimensions.
        teacher: The dense model, in eval mode, on the device. It is never modified.
        pad_id: Number of the padding token.
        train: Training split.
        selection: Selection split.
        teacher_logits: The teacher's logits on the training split (rows, labels).
        scores: Importance of heads and neurons.
        objectives: Everything that can be measured, by name.
        energy_source: `nvml`, `rapl` or `model`.
        content: Hashes of the rows and of the dense model's making, how importance is made, and fp32 logits.
        machine: Device and threads that latencies are measured with.
        seconds: What the preparation took now, by stage; near 0 where it was found in the artifact folder.
        directions: Directions of the word embeddings (H, H), those first that stay longest; None where their rank is no
            dimension.
        vocabulary: What is kept of the checkpoint's vocabulary; None where all of it is.
        supernet: The super-network, where trials are cut from it; else None.
        cost: Seconds that each artifact took when it was really made, by kind; those that noted none are missing.
        cost_j: Joules that each took, and the counter that says so, by kind; those that noted none are missing.
        reference_ms: Latencies of the dense model when the study was created, by quantity; empty where there are none.
        tables: What the study's table says, by quantity; empty where all are measured.
        turns: When this worker may use the device, and when it has it alone.
        artifacts: Where all of it is kept, and recovered models too where plans are cut from these; None keeps none.
    """

    definition: Definition
    device: torch.device
    space: Space
    teacher: PreTrainedModel
    pad_id: int
    train: Encoded
    selection: Encoded
    teacher_logits: Tensor
    scores: Scores
    objectives: Mapping[str, Objective]
    energy_source: str
    content: dict[str, str]
    machine: str
    seconds: dict[str, float]
    directions: Tensor | None = None
    vocabulary: Reduction | None = None
    supernet: PreTrainedModel | None = None
    cost: dict[str, float] = field(default_factory=dict)
    cost_j: dict[str, tuple[float, str]] = field(default_factory=dict)
    reference_ms: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Answer] = field(default_factory=dict)
    turns: Turns = field(default_factory=Alone)
    artifacts: Artifacts | None = None

    @property
    def shape(self) -> Shape:
        """Sizes of the dense model."""
        return self.space.shape

    @property
    def rows(self) -> dict[str, tuple[int, float]]:
        """Rows and mean tokens of the splits that a search reads, by split."""
        splits = {"train": self.train, "selection": self.selection}
        return {name: (len(rows), rows.lengths.float().mean().item()) for name, rows in splits.items()}

    @cached_property
    def deployed(self) -> Mapping[str, Mapping[str, Objective]]:
        """The objectives by name, for each precision that models are deployed in and for fp32."""
        precisions = dict.fromkeys(("fp32", *self.definition.space.precision))
        return {p: {name: in_precision(o, p) for name, o in self.objectives.items()} for p in precisions}

    def start_of(self, plan: Plan) -> PreTrainedModel:
        """The model that a plan is cut from: the dense plan from the teacher, which is what the others compare with."""
        return self.teacher if self.supernet is None or plan == Plan.dense(self.shape) else self.supernet


def prepare(
    definition: Definition,
    artifacts: Artifacts,
    *,
    device: torch.device,
    own_objectives: Mapping[str, Objective],
    energy_source: str | None = None,
    content: Mapping[str, str] | None = None,
    machine: str | None = None,
    reference_ms: Mapping[str, float] | None = None,
    from_artifacts: bool = False,
    on_stage: OnStage,
) -> Prepared:
    """Make, or find among the artifacts, what is the same for all trials.

    Args:
        definition: The study's definition.
        artifacts: Where it is kept.
        device: Where to train and measure.
        own_objectives: Objectives of the study script, by name.
        energy_source: Source that the study already uses; None resolves the definition's.
        content: Hashes that the study was created with; None for a new one.
        machine: Device and threads that the study was created with; None for a new one.
        reference_ms: Latencies of the dense model when the study was created, by quantity, empty for a study that has
            none; None for a new one: they are measured.
        from_artifacts: Whether to take everything from the artifacts by `content`, where they hold it, without a look
            at the checkpoint and the data.
        on_stage: Told what is being done.

    Returns:
        Everything that a trial needs.

    Raises:
        UserError: If the checkpoint, the data, the space or the energy source cannot be used, or are not what the study
            was created with.
    """
    own_turns = turns(_board(device), definition.measuring.exclusive)

    def told(name: str, done: int, total: int) -> None:
        own_turns.give_way()
        artifacts.say(name, done, total)
        on_stage(name, done, total)

    here = machine_of(definition, device, machine)
    if machine is not None:
        check_machine(definition.name, machine, here)
    seconds: dict[str, float] = {}
    try:
        source = resolve(energy_source or definition.energy.source, device)
    except MeasurementUnavailable as error:
        raise UserError(f"energy.source: {error}") from None
    for path, settings in _latencies(definition).items():
        try:
            open_backend(settings.backend, device)
        except MeasurementUnavailable as error:
            raise UserError(f"{path}.backend: {error}") from None
    for precision in definition.space.precision:
        try:
            check_available(precision, device)
        except MeasurementUnavailable as error:
            raise UserError(f"space.precision: {error}") from None
    with own_turns.working():
        if from_artifacts and content:
            made = _fetched(definition, artifacts, content, device, seconds, told)
        else:
            made = _made(definition, artifacts, device, content, seconds, told)
    space = Space.of(definition.space, shape_of(made.teacher), definition.recovery)
    known = instruments(
        definition,
        dense_encoder_parameters=encoder_parameters(Plan.dense(space.shape), space.shape),
        lengths=made.rows["selection"].lengths,
        device=device,
        energy_source=source,
    )
    prepared = Prepared(
        definition=definition,
        device=device,
        space=space,
        teacher=made.teacher,
        pad_id=made.pad_id,
        train=made.rows["train"],
        selection=made.rows["selection"],
        teacher_logits=made.logits,
        scores=made.scores,
        objectives={**known, **own_objectives},
        energy_source=source,
        content=made.content,
        machine=here,
        seconds=seconds,
        directions=made.directions,
        vocabulary=made.vocabulary,
        supernet=made.supernet,
        turns=own_turns,
        artifacts=artifacts,
    )
    if reference_ms is None and definition.measuring.reference:
        try:
            with own_turns.measuring(lambda: told("wait to measure", 0, 1)), timed(seconds, "reference"):
                reference_ms = _measured(known, made.teacher)
        except MeasurementUnavailable as error:
            raise UserError(f"the dense model's latency cannot be measured: {error}") from None
    prepared = referred(prepared, reference_ms or {})
    if tables.asked_for(definition, source):
        with own_turns.measuring(lambda: told("wait to measure", 0, 1)), timed(seconds, TABLE):
            prepared = referred(_with_table(prepared, artifacts, content, told), reference_ms or {})
    return _priced(prepared, artifacts)


def _with_table(
    prepared: Prepared, artifacts: Artifacts, content: Mapping[str, str] | None, on_stage: OnStage
) -> Prepared:
    """The same with the study's table: the one that it has been measured by, or for a new study one made now."""
    if content is not None and TABLE in content:
        return replace(prepared, tables=tables.found(artifacts, content[TABLE]))
    definition, source = prepared.definition, prepared.energy_source
    key = tables.key(definition, prepared.shape, energy_source=source, machine=prepared.machine)
    try:
        made = tables.made(
            definition,
            artifacts,
            prepared.teacher,
            prepared.scores,
            prepared.space,
            prepared.objectives,
            key,
            on_step=on_stage,
            on_wait=_waiting(on_stage),
        )
    except MeasurementUnavailable as error:
        raise UserError(f"the table of what blocks cost cannot be measured: {error}") from None
    return replace(prepared, tables=made, content={**prepared.content, TABLE: digest(key)})


def instruments(
    definition: Definition,
    *,
    dense_encoder_parameters: int,
    lengths: Tensor,
    device: torch.device,
    energy_source: str,
) -> dict[str, Objective]:
    """Everything that can be measured under a definition's conditions, without a dense model beside it.

    Args:
        definition: Conditions of latencies and energy.
        dense_encoder_parameters: Parameters of the dense model's encoder, which shares are taken of.
        lengths: Lengths of the rows of the selection split (rows,), which a mix is made of.
        device: The device that the models are measured on.
        energy_source: `nvml`, `rapl` or `model`.

    Raises:
        MeasurementUnavailable: If the energy source cannot be read, or a backend cannot be used.
    """
    energy = definition.energy
    return built_in(
        dense_encoder_parameters=dense_encoder_parameters,
        conditions=latency_conditions(definition.latency, lengths),
        device=device,
        energy_source=energy_source,
        energy_window_s=energy.window_s,
        energy_windows=energy.windows,
        energy_idle_s=energy.idle_s,
        picojoules_per_mac=energy.picojoules_per_mac,
        picojoules_per_byte=energy.picojoules_per_byte,
        latencies={
            name: latency_conditions(settings, lengths) for name, settings in definition.named_latencies.items()
        },
    )


def referred(prepared: Prepared, reference_ms: Mapping[str, float]) -> Prepared:
    """Relate all latencies to those of the dense model.

    Args:
        prepared: What is the same for all trials.
        reference_ms: Latencies of the dense model when the study was created, by quantity; empty leaves
            all as they are.

    Returns:
        The same, with latencies that measure the dense model beside each cut one, or take it from the study's table.
    """
    corrected = prepared.definition.measuring.figure != "absolute"
    related = {
        name: replace(objective, reference=prepared.teacher, reference_ms=reference_ms[name], corrected=corrected)
        for name, objective in prepared.objectives.items()
        if isinstance(objective, Latency) and name in reference_ms
    }
    tabled = {name: answer.objective(name, reference_ms) for name, answer in prepared.tables.items()}
    objectives = {**prepared.objectives, **related, **tabled}
    return replace(prepared, objectives=objectives, reference_ms=dict(reference_ms))


def _measured(objectives: Mapping[str, Objective], teacher: PreTrainedModel) -> dict[str, float]:
    """Every latency of the dense model by itself, in milliseconds."""
    latencies = {name: objective for name, objective in objectives.items() if isinstance(objective, Latency)}
    return {name: latency.measure(Subject(teacher)).value for name, latency in latencies.items()}


def _board(device: torch.device) -> str:
    """A name of the device that is the same in all processes, whatever numbers they give to CUDA's devices."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type


@dataclass(frozen=True)
class _Made:
    """What was made once, or fetched."""

    content: dict[str, str]
    rows: dict[str, Encoded]
    teacher: PreTrainedModel
    pad_id: int
    logits: Tensor
    scores: Scores
    directions: Tensor | None
    vocabulary: Reduction | None
    supernet: PreTrainedModel | None


def _made(
    definition: Definition,
    artifacts: Artifacts,
    device: torch.device,
    content: Mapping[str, str] | None,
    seconds: dict[str, float],
    on_stage: OnStage,
) -> _Made:
    """Everything, from the checkpoint and the data; what the artifacts hold is not made again."""
    dense = load_dense(definition.model, labels=definition.task.outputs, seed=definition.engine.seed)
    tokenizer = load_tokenizer(definition.model)
    space = Space.of(definition.space, shape_of(dense), definition.recovery)
    _check_fits(definition, dense, space.shape, tokenizer)
    with timed(seconds, "tokens"):
        rows_key, folder = _tokens(definition, artifacts, tokenizer, content, on_stage)
    rows, reduced = _load_rows(folder), _load_reduction(folder)
    if reduced is not None:
        tokenizer = load_tokenizer(str(folder))
        keep_tokens(dense, reduced.kept)
    with timed(seconds, "teacher"):
        teacher_key, teacher = _teacher(
            definition, artifacts, dense, tokenizer, rows_key, rows["train"], device, content, on_stage
        )
    key = {"teacher": teacher_key, "rows": rows_key}
    pad_id = int(tokenizer.pad_token_id)
    exact = {LOGITS: "fp32"} if definition.recovery.precision == "fp32" else {}
    named = {**key, **exact, "importance": UNIFORM} if content is None else dict(content)
    with timed(seconds, "teacher logits"):
        logits = _teacher_logits(artifacts, teacher, logits_key(named), rows["train"], pad_id, on_stage)
    with timed(seconds, "importance"):
        scores = _importance(definition, artifacts, teacher, named, rows["train"], pad_id, on_stage)
    found = _directions(artifacts, teacher, key, rows["train"], on_stage) if definition.space.factorises else None
    supernet = None
    if definition.recovery.cuts_supernet:
        with timed(seconds, supernets.STAGE):
            supernet = supernets.made(
                definition,
                artifacts,
                teacher,
                importance_key(definition, named),
                scores,
                space,
                rows["train"],
                logits,
                pad_id=pad_id,
                on_step=on_stage,
                on_wait=_waiting(on_stage),
            )
    return _Made(named, rows, teacher, pad_id, logits, scores, found, reduced, supernet)


def _priced(prepared: Prepared, artifacts: Artifacts) -> Prepared:
    """The same with what each artifact took when it was really made."""
    hashes = wanted(prepared.definition, prepared.content)
    found = {kind: artifacts.cost(kind, hash_) for kind, hash_ in hashes.items()}
    costs = {kind: cost for kind, cost in found.items() if cost is not None}
    return replace(
        prepared,
        cost={kind: cost.seconds for kind, cost in costs.items()},
        cost_j={kind: (cost.joules, cost.source) for kind, cost in costs.items() if cost.joules is not None},
    )


def _waiting(on_stage: OnStage) -> Callable[[str], None]:
    """Shows what another process is making that this one waits for."""
    return lambda text: on_stage(f"waiting for {text}", 0, 1)


def _fetched(
    definition: Definition,
    artifacts: Artifacts,
    content: Mapping[str, str],
    device: torch.device,
    seconds: dict[str, float],
    on_stage: OnStage,
) -> _Made:
    """Everything, by the hashes that the study names; where the artifacts lack something, it is made."""
    hashes = wanted(definition, content)
    folders = {}
    hashes.pop(TABLE, None)  # never made anew: see search.tables.found
    for number, (kind, hash_) in enumerate(hashes.items()):
        on_stage(f"fetch {kind}", number, len(hashes))
        folder = artifacts.found(kind, hash_)
        if folder is None:
            try:
                return _made(definition, artifacts, device, content, seconds, on_stage)
            except UserError as error:
                raise UserError(
                    f"{error}. It would be needed because '{artifacts.folder}' lacks the study's {kind}: name with "
                    "--artifacts where the study was prepared"
                ) from None
        folders[kind] = folder
    return _Made(
        content=dict(content),
        rows=_load_rows(folders["tokens"]),
        teacher=_moved(load(folders["teacher"]), device),
        pad_id=int(load_tokenizer(str(folders["teacher"])).pad_token_id),
        logits=load_file(folders["logits"] / "logits.safetensors")["logits"],
        scores=Scores.from_tensors(load_file(folders["importance"] / "scores.safetensors")),
        directions=load_file(folders["directions"] / DIRECTIONS)["directions"] if "directions" in folders else None,
        vocabulary=_load_reduction(folders["tokens"]),
        supernet=supernets.loaded(folders[SUPERNET], device) if SUPERNET in folders else None,
    )


def machine_of(definition: Definition, device: torch.device, stored: str | None = None) -> str:
    """Device and threads that latencies are measured with: trials of one study compare only under the same.

    Args:
        definition: The study's definition.
        device: The device.
        stored: What the study was created with; None for a new one. Older studies say of a CPU only how many threads
            `latency_ms` has: of this one then no more is said.

    Returns:
        A GPU's name. Of a CPU `cpu with 2 threads, AMD EPYC 7B13`: the threads of `latency_ms`, and the model; with
        `, 4 to compute` between them where other latencies have torch's own number of threads, and that one has not.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    given, own = definition.latency.threads, torch.get_num_threads()
    said = f"{device.type} with {given or own} threads"
    if device.type != "cpu" or (stored is not None and re.fullmatch(r"cpu with \d+ threads", stored)):
        return said
    if given is not None and any(each.threads is None for each in definition.latencies.values()):
        said += f", {own} to compute"
    return f"{said}, {processor()}"


def check_machine(name: str, machine: str, here: str) -> None:
    """Refuse to measure on another machine than the study was created with.

    Args:
        name: Name of the study.
        machine: Device and threads that it was created with.
        here: Device and threads of this process.

    Raises:
        UserError: If they differ.
    """
    if machine != here:
        raise UserError(
            f"the study {name!r} was measured on {machine}, and this is {here}; latencies of the two do not "
            "compare: go on with it on such a device, with OMP_NUM_THREADS likewise, or begin a study of another name"
        )


def _latencies(definition: Definition) -> dict[str, LatencySettings]:
    """The conditions of every latency, by the field that holds them."""
    return {"latency": definition.latency} | {
        f"latencies.{name}": settings for name, settings in definition.latencies.items()
    }


def latency_conditions(settings: LatencySettings, lengths: Tensor) -> Conditions:
    """How a model is run for a latency; `lengths` (rows,) are those of the selection split."""
    mix = settings.tokens == "selection"
    return Conditions(
        batch=settings.batch,
        tokens=round(lengths.float().mean().item()) if settings.tokens == "selection" else settings.tokens,
        threads=settings.threads,
        warmup=settings.warmup,
        repeats=settings.repeats,
        lengths=tuple(lengths.tolist()) if mix else (),
        dtype=settings.dtype,
        backend=settings.backend,
        interval=settings.interval,
        limit_s=settings.seconds,
    )


def _key_of_then(key: dict[str, Any], later: str, content: Mapping[str, str] | None, kind: str) -> dict[str, Any]:
    """The key without the field that came to it later, where the study was created with that one."""
    before = {name: value for name, value in key.items() if name != later}
    return before if content is not None and content[kind] == digest(before) else key


def _check_content(what: str, where: str, content: Mapping[str, str] | None, kind: str, digest_: str) -> None:
    """Refuse to go on with other content than the study was created with."""
    if content is not None and content[kind] != digest_:
        raise UserError(
            f"the {what} '{where}' is not what the study was created with: its content has changed; "
            "choose another name (--name) for a study of the new one"
        )


def _check_fits(
    definition: Definition,
    dense: PreTrainedModel,
    shape: Shape,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse what does not fit together: sequences and positions, tokenizer and embeddings, labels and classifier."""
    if tokenizer.pad_token_id is None or len(tokenizer) > shape.vocabulary:
        raise UserError(
            f"the tokenizer of the checkpoint '{definition.model}' has {len(tokenizer)} tokens and the padding token "
            f"{tokenizer.pad_token!r}, its model {shape.vocabulary} tokens; name a checkpoint with its own tokenizer"
        )
    if family_of(dense).pairs == "types" and len(definition.task.text) > shape.token_types:
        raise UserError(
            f"task.text names {len(definition.task.text)} columns; the checkpoint '{definition.model}' tells "
            f"{shape.token_types} text apart; name one column, or another checkpoint"
        )
    counted = dense.get_submodule(family_of(dense).layout.positions)
    padding = getattr(counted, "padding_idx", None)
    if padding is not None and padding != tokenizer.pad_token_id:
        raise UserError(
            f"the tokenizer of the checkpoint '{definition.model}' pads with token {tokenizer.pad_token_id}, and its "
            f"model numbers positions from that of token {padding} on; name a checkpoint with its own tokenizer"
        )
    named = [str(name) for _, name in sorted((dense.config.id2label or {}).items())]
    declared = list(definition.task.labels) or named
    if definition.teacher.fine_tuned and named != declared and not all(name.startswith("LABEL_") for name in named):
        raise UserError(
            f"task.labels are {declared} and the fine-tuned checkpoint '{definition.model}' has the labels {named}; "
            "their order gives the class numbers: declare them as the checkpoint does; where the data has other names, "
            "write those into the checkpoint's config.json (id2label)"
        )
    longest = {"task.max_tokens": definition.task.max_tokens} | {
        f"{path}.tokens": settings.tokens
        for path, settings in _latencies(definition).items()
        if settings.tokens != "selection"
    }
    for name, tokens in longest.items():
        if tokens > (most := parts.longest(dense)):
            raise UserError(
                f"{name} is {tokens}; the checkpoint '{definition.model}' has {most} positions; use no more"
            )
    for blocks in definition.engine.drop_blocks:
        check_droppable(Space.of(definition.space, shape), blocks)
    if definition.teacher.fine_tuned and not is_fine_tuned(definition.model):
        raise UserError(
            f"teacher.fine_tuned is true and the checkpoint '{definition.model}' holds no classifier; "
            "name a fine-tuned one, or set teacher.fine_tuned to false"
        )


def _tokens(
    definition: Definition,
    artifacts: Artifacts,
    tokenizer: PreTrainedTokenizerBase,
    content: Mapping[str, str] | None,
    on_stage: OnStage,
) -> tuple[str, Path]:
    """The folder of the splits as token ids; with a reduced vocabulary also of its tokenizer."""
    data = Path(definition.data).expanduser()
    if content is not None and not data.exists() and looks_like_path(definition.data):
        raise UserError(
            f"data is '{definition.data}': no such file or folder; put it back, or go on without it: "
            f"paretobert work {definition.name}"
        )
    key = {
        "data": digest_of_files(data) if data.exists() else definition.data,
        "task": definition.task.model_dump(mode="json", exclude={"metric"}),
        "tokenizer": digest(tokenizer.get_vocab()),
        "rules": digest(rules_of(tokenizer)),
        "seed": definition.engine.seed,
    }
    if definition.space.vocabulary != "all":
        key["vocabulary"] = definition.space.vocabulary

    def make(folder: Path) -> None:
        on_stage("read", 0, 1)
        splits = load_splits(definition.data, definition.task, seed=definition.engine.seed)
        named = {"train": splits.train, "selection": splits.selection, "held_out": splits.held_out}
        used = tokenizer
        if definition.space.vocabulary == "train":
            on_stage("vocabulary", 0, 1)
            seen = [encode(named[name], tokenizer, max_tokens=definition.task.max_tokens) for name in SEARCHED]
            reduced = reduction(tokenizer, *seen)
            reduced.write(folder)
            used = write_tokenizer(tokenizer, reduced.kept, folder)
        for number, (name, rows) in enumerate(named.items()):
            on_stage("tokens", number, len(named))
            encoded = encode(rows, used, max_tokens=definition.task.max_tokens)
            save_file(encoded.to_tensors(), folder / f"{name}.safetensors")

    key = _key_of_then(key, "rules", content, "rows")
    what = f"tokenizer of '{definition.model}', as transformers reads it here, or the data"
    _check_content(what, definition.data, content, "rows", digest(key))
    folder = artifacts.made("tokens", key, noted(make, artifacts.counter), on_wait=_waiting(on_stage))
    return digest(key), folder


def _load_rows(folder: Path) -> dict[str, Encoded]:
    """The splits that a search reads."""
    return {name: Encoded.from_tensors(load_file(folder / f"{name}.safetensors")) for name in SEARCHED}


def held_out_rows(prepared: Prepared, artifacts: Artifacts) -> Encoded:
    """The split that a search never sees. Only who asks for it on purpose reads it: a confirmation, a measurement.

    Args:
        prepared: What is the same for all trials.
        artifacts: Where it is kept.

    Raises:
        UserError: If the artifacts do not hold it.
    """
    hash_ = wanted(prepared.definition, prepared.content)["tokens"]
    folder = artifacts.found("tokens", hash_)
    if folder is None:
        raise UserError(
            f"the artifact tokens-{hash_[:20]} is not in '{artifacts.folder}'; name with --artifacts where the study "
            "was prepared"
        )
    return Encoded.from_tensors(load_file(folder / "held_out.safetensors"))


def _load_reduction(folder: Path) -> Reduction | None:
    """What is kept of the vocabulary; None where all of it is."""
    return Reduction.read(folder) if (folder / VOCABULARY).exists() else None


def _teacher(
    definition: Definition,
    artifacts: Artifacts,
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows_key: str,
    rows: Encoded,
    device: torch.device,
    content: Mapping[str, str] | None,
    on_stage: OnStage,
) -> tuple[str, PreTrainedModel]:
    """The dense classifier: the checkpoint as it is where it is fine-tuned already, else fine-tuned now."""
    settings = definition.teacher
    key: dict[str, Any] = {"model": fingerprint(definition.model), "labels": list(definition.task.labels)}
    if not settings.fine_tuned:
        key |= {
            "rows": rows_key,
            "teacher": settings.model_dump(mode="json"),
            "precision": definition.recovery.precision,
            "seed": definition.engine.seed,
        }
    elif definition.space.vocabulary != "all":
        key["vocabulary"] = rows_key
    else:
        key["tokenizer"] = digest(rules_of(tokenizer))

    def make(folder: Path) -> None:
        if not settings.fine_tuned:
            _moved(dense, device)
            fine_tune(
                dense,
                definition,
                rows,
                pad_id=int(tokenizer.pad_token_id),
                seed=definition.engine.seed,
                on_step=lambda done, total: on_stage("teacher", done, total),
            )
        names = definition.task.labels or (definition.task.label,)
        dense.config.id2label = dict(enumerate(names))
        dense.config.label2id = {name: number for number, name in enumerate(names)}
        save(dense, folder)
        tokenizer.save_pretrained(folder)

    key = _key_of_then(key, "tokenizer", content, "teacher")
    _check_content("checkpoint", definition.model, content, "teacher", digest(key))
    folder = artifacts.made("teacher", key, noted(make, artifacts.counter), on_wait=_waiting(on_stage))
    return digest(key), _moved(load(folder), device)


def fine_tune(
    dense: PreTrainedModel,
    definition: Definition,
    rows: Encoded,
    *,
    pad_id: int,
    seed: int,
    on_step: Callable[[int, int], None],
) -> None:
    """Fine-tune a dense classifier in place, as the study's teacher is.

    Args:
        dense: The classifier, on the device of the training.
        definition: The study's definition.
        rows: The training split.
        pad_id: Number of the padding token.
        seed: Seed of the batches' order and of dropout; the teacher's is that of the study.
        on_step: Told after each step: steps done, steps in all.

    Raises:
        UserError: If the loss stops being finite.
    """
    settings = definition.teacher
    schedule = Schedule(
        steps=max(1, round(len(rows) / settings.batch_size * settings.epochs)),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        precision=definition.recovery.precision,
    )
    try:
        train(dense, rows, of_labels(), schedule, pad_id=pad_id, seed=seed, on_step=on_step)
    except TrialError as failure:
        raise UserError(f"the dense teacher cannot be fine-tuned: {failure} (field teacher.learning_rate)") from None


def _teacher_logits(
    artifacts: Artifacts,
    teacher: PreTrainedModel,
    key: dict[str, str],
    rows: Encoded,
    pad_id: int,
    on_stage: OnStage,
) -> Tensor:
    """The teacher's logits on the training split (rows, labels), float32; computed in what its key says."""

    def make(folder: Path) -> None:
        logits = score(
            teacher,
            rows,
            pad_id=pad_id,
            batch_size=SCORING_BATCH,
            precision=key.get(LOGITS, "auto"),
            on_step=lambda done, total: on_stage("teacher logits", done, total),
        )
        save_file({"logits": logits}, folder / "logits.safetensors")

    folder = artifacts.made("logits", key, noted(make, artifacts.counter), on_wait=_waiting(on_stage))
    return load_file(folder / "logits.safetensors")["logits"]


def _importance(
    definition: Definition,
    artifacts: Artifacts,
    teacher: PreTrainedModel,
    content: Mapping[str, str],
    rows: Encoded,
    pad_id: int,
    on_stage: OnStage,
) -> Scores:
    """Importance of the teacher's heads, neurons and blocks, on training rows drawn with the study's seed."""
    settings, seed = definition.importance, definition.engine.seed
    uniform = content.get("importance") == UNIFORM

    def batches(stage: str) -> Iterator[dict[str, Tensor]]:
        device = next(teacher.parameters()).device
        drawn = (drawn_batches if uniform else _bucketed)(rows, settings.rows, batch_size=IMPORTANCE_BATCH, seed=seed)
        for number, batch in enumerate(drawn):
            on_stage(stage, number, len(drawn))
            yield collate(rows, batch, pad_id=pad_id, device=device)

    def make(folder: Path) -> None:
        scores = importance(settings.method, teacher, batches("importance"), seed=seed, loss=settings.loss)
        if uniform:
            blocks = block_importance(teacher, batches("importance of blocks"), loss=settings.loss)
            scores = replace(scores, blocks=blocks)
        save_file(scores.to_tensors(), folder / "scores.safetensors")

    folder = artifacts.made(
        "importance", importance_key(definition, content), noted(make, artifacts.counter), on_wait=_waiting(on_stage)
    )
    return Scores.from_tensors(load_file(folder / "scores.safetensors"))


def _directions(
    artifacts: Artifacts,
    teacher: PreTrainedModel,
    key: dict[str, str],
    rows: Encoded,
    on_stage: OnStage,
) -> Tensor:
    """Directions of the teacher's word embeddings, weighted by how often the training rows use each token."""

    def make(folder: Path) -> None:
        on_stage("directions", 0, 1)
        table = words_of(teacher).get_parameter("weight")
        save_file({"directions": directions(table, frequencies(rows, len(table)))}, folder / DIRECTIONS)

    folder = artifacts.made("directions", key, noted(make, artifacts.counter), on_wait=_waiting(on_stage))
    return load_file(folder / DIRECTIONS)["directions"]


def _bucketed(rows: Encoded, count: int, *, batch_size: int, seed: int) -> list[list[int]]:
    """The rows of studies that were prepared before: the first training batches, each of rows of like length."""
    total = math.ceil(min(count, len(rows)) / batch_size)
    return list(islice(training_batches(rows, batch_size=batch_size, seed=seed), total))


def _moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on a device (nn.Module.to, which transformers hides from type checkers)."""
    torch.nn.Module.to(model, device)
    return model


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note the seconds of a stage under its name."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)
