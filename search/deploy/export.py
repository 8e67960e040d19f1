"""From a rebuilt model to a folder that can be shipped.

    weights, config, modelling file, tokenizer ──► read back by this package: the same logits?
    ONNX, where asked for                      ──► ONNX Runtime on the selection split: the same logits to 1e-4?
    int8, bf16, where asked for                ──► accuracy on the selection split, latency on this machine
    paretobert.json, README.md

All of it is written beside the folder, which gets its name at the end: it is never there half.
"""

from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives import MeasurementUnavailable, Subject, all_metrics
from objectives.backends import open_backend
from objectives.latency import Latency
from objectives.onnx_graph import inputs_of, missing_package, quantised, runner, to_onnx
from search.artifacts import digest
from search.bert.checkpoint import WEIGHTS, load
from search.bert.precision import graph_logits, in_bf16
from search.bert.reading import looks_like_path
from search.bert.training import score
from search.deploy import card, shipped
from search.deploy.rebuild import Rebuilt
from search.errors import UserError
from search.folders import appearing
from search.preparation import SCORING_BATCH, OnStage, Prepared, latency_conditions
from search.records import Confirmation

SAME = 1e-5
"""Largest difference of a logit between the model that was rebuilt and the one that is read back from the folder."""

CLOSE = 1e-4
"""Largest difference of a logit between PyTorch and ONNX Runtime."""


@dataclass(frozen=True)
class Wanted:
    """What a folder shall hold beside the model itself.

    Attributes:
        onnx: An ONNX file.
        int8: A dynamically quantised ONNX file.
        bf16: The weights in bfloat16.
    """

    onnx: bool = False
    int8: bool = False
    bf16: bool = False

    def with_precision(self, precision: str) -> "Wanted":
        """The same and the file of the precision that a trial was scored and measured in."""
        return replace(self, int8=self.int8 or precision == "int8", bf16=self.bf16 or precision == "bf16")


@dataclass
class _Folder:
    """The folder that is being written. Mutable: it gathers what is known of each file."""

    path: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, name: str, **facts: Any) -> None:
        """Note what is known of a file, and its size in bytes."""
        self.files[name] = {"bytes": (self.path / name).stat().st_size, **facts}


def check_target(target: Path, wanted: Wanted, device: torch.device) -> None:
    """Refuse, before long work, what cannot be written.

    Raises:
        UserError: If the folder exists and is not empty, or a package or a device for a file is missing.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"'{target}' exists already; name a folder that does not, or remove it first")
    if (wanted.onnx or wanted.int8) and (package := missing_package()) is not None:
        name = "--onnx" if wanted.onnx else "--int8"
        raise UserError(f'{name} needs the package {package}: install the extra, pip install "paretobert[onnx]"')
    if wanted.int8 and device.type != "cpu":
        raise UserError(f"--int8 is measured on the CPU and --device is {device}; use --device cpu")


def export(
    rebuilt: Rebuilt,
    prepared: Prepared,
    tokenizer: Path,
    target: Path,
    wanted: Wanted,
    *,
    confirmation: Confirmation | None = None,
    on_stage: OnStage,
) -> dict[str, Any]:
    """Write the folder.

    Args:
        rebuilt: The model and where it comes from.
        prepared: What its study's trials have in common.
        tokenizer: Folder of the study's tokenizer.
        target: The folder; it does not exist, or is empty.
        wanted: What it shall hold beside the model.
        confirmation: The one that the model was trained for; None where it is the search's.
        on_stage: Told what is being done.

    Returns:
        What `paretobert.json` in it says.

    Raises:
        UserError: If the target exists, cannot be written, or what was written does not compute what the model does.
        TrialError: If a latency cannot be measured.
    """
    check_target(target, wanted, prepared.device)
    task = rebuilt.study.definition.task
    try:
        with appearing(target) as path:
            folder = _Folder(path)
            on_stage("write", 0, 1)
            modelling = shipped.write_model(rebuilt.model, path, task)
            shipped.write_tokenizer(tokenizer, path, max_tokens=task.max_tokens)
            _check_weights(folder, rebuilt, prepared, on_stage)
            _write_variants(folder, rebuilt, prepared, wanted, on_stage)
            about = {**_about(rebuilt, prepared, confirmation), "modelling": modelling, "files": folder.files}
            shipped.write_json(path / shipped.ABOUT, about)
            (path / shipped.CARD).write_text(card.text(about), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the folder '{target}' cannot be written ({error.strerror or error}); name another one"
        ) from None
    return about


def _check_weights(folder: _Folder, rebuilt: Rebuilt, prepared: Prepared, on_stage: OnStage) -> None:
    """Read the weights back, as a user would, and compare what they compute."""
    model = load(folder.path)
    torch.nn.Module.to(model, prepared.device)
    found = _scored(model, prepared, on_stage, "check")
    difference = _largest(found, rebuilt.logits)
    if difference > SAME:
        raise UserError(
            f"the model that was written differs from the rebuilt one by {difference:.2g} in a logit, and may by "
            f"{SAME:g}; this is a fault of paretobert: nothing was kept"
        )
    folder.note(WEIGHTS, largest_difference=difference, sentences=len(prepared.selection))


def _write_variants(folder: _Folder, rebuilt: Rebuilt, prepared: Prepared, wanted: Wanted, on_stage: OnStage) -> None:
    graph = b""
    if wanted.onnx or wanted.int8:
        on_stage("onnx", 0, 1)
        graph = to_onnx(rebuilt.model, inputs=inputs_of(rebuilt.model))
    if wanted.onnx:
        (folder.path / shipped.ONNX).write_bytes(graph)
        found = _graph_logits(folder.path / shipped.ONNX, prepared, on_stage, "check onnx")
        difference = _largest(found, rebuilt.logits)
        if not difference <= CLOSE:
            raise UserError(
                f"{shipped.ONNX} differs from PyTorch by {difference:.2g} in a logit on the selection split, and may "
                f"by {CLOSE:g}; export without --onnx, or with other versions of torch and onnxruntime"
            )
        folder.note(
            shipped.ONNX,
            largest_difference=difference,
            sentences=len(prepared.selection),
            **_measured(rebuilt, prepared, found, on_stage, backend="onnxruntime", file=folder.path / shipped.ONNX),
        )
    if wanted.int8:
        on_stage("int8", 0, 1)
        (folder.path / shipped.INT8).write_bytes(quantised(graph))
        found = _graph_logits(folder.path / shipped.INT8, prepared, on_stage, "score int8")
        int8 = folder.path / shipped.INT8
        measured = _measured(rebuilt, prepared, found, on_stage, backend="onnxruntime_int8", file=int8)
        folder.note(shipped.INT8, **measured)
    if wanted.bf16:
        on_stage("bf16", 0, 1)
        model = in_bf16(rebuilt.model)
        shipped.write_bf16(model, folder.path)
        found = _scored(model, prepared, on_stage, "score bf16")
        folder.note(shipped.BF16, **_measured(rebuilt, prepared, found, on_stage, backend="eager", dtype="bfloat16"))
    folder.files[WEIGHTS] |= _measured(rebuilt, prepared, rebuilt.logits, on_stage, backend="eager")


def _measured(
    rebuilt: Rebuilt,
    prepared: Prepared,
    logits: Tensor,
    on_stage: OnStage,
    *,
    backend: str,
    dtype: str = "float32",
    file: Path | None = None,
) -> dict[str, Any]:
    """The task's metric by these logits, and the latency of the model, or of its graph in `file`, on this machine."""
    metric = rebuilt.study.definition.task.metric
    usual = latency_conditions(prepared.definition.latency, prepared.selection.lengths)
    conditions = replace(usual, backend=backend, dtype=dtype)
    threads = conditions.threads or torch.get_num_threads()
    on_stage("measure", 0, 1)
    with prepared.turns.measuring(lambda: on_stage("wait to measure", 0, 1)):
        try:
            open_backend(backend, prepared.device)
            forward = None if file is None else runner(file, device=prepared.device, threads=threads)
            latency = Latency(conditions, forward=forward).measure(Subject(rebuilt.model)).to_dict()
        except MeasurementUnavailable as error:
            latency = {"unavailable": str(error)}
    return {metric: all_metrics(logits, prepared.selection.labels)[metric].to_dict(), "latency_ms": latency}


def _scored(model: Any, prepared: Prepared, on_stage: OnStage, stage: str) -> Tensor:
    return score(
        model,
        prepared.selection,
        pad_id=prepared.pad_id,
        batch_size=SCORING_BATCH,
        precision="fp32",
        on_step=lambda done, total: on_stage(stage, done, total),
    )


def _graph_logits(file: Path, prepared: Prepared, on_stage: OnStage, stage: str) -> Tensor:
    return graph_logits(
        file,
        prepared.selection,
        pad_id=prepared.pad_id,
        batch_size=SCORING_BATCH,
        on_step=lambda done, total: on_stage(stage, done, total),
    )


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def _about(rebuilt: Rebuilt, prepared: Prepared, confirmation: Confirmation | None) -> dict[str, Any]:
    """Everything that is known of the model, as plain values. No path of this machine is in it."""
    study, record, definition = rebuilt.study, rebuilt.record, rebuilt.study.definition
    dense = study.dense
    plan = rebuilt.plan
    recorded, conditions = record.quantities, record.conditions
    dense_recorded = {} if dense is None else dense.quantities
    if confirmation is not None:
        recorded, conditions = _with_intervals(confirmation), confirmation.conditions
        own = study.confirmation_of(dense)
        dense_recorded = {} if own is None else own.quantities
    return {
        "made_by": f"paretobert {version('paretobert')}",
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
        "study": study.name,
        "trial": rebuilt.trial,
        "definition": digest(definition.model_dump(mode="json")),
        "checkpoint": _name(definition.model),
        "data": _name(definition.data),
        "content": dict(prepared.content),
        "task": {
            "texts": len(definition.task.text),
            "labels": list(shipped.names_of(definition.task)),
            "regression": definition.task.is_regression,
            "metric": definition.task.metric,
            "max_tokens": definition.task.max_tokens,
        },
        "plan": {
            "heads": list(plan.heads),
            "neurons": list(plan.neurons),
            "rank": plan.rank,
            "of": {"heads": study.shape.heads, "neurons": study.shape.neurons, "hidden": study.shape.hidden},
        },
        "precision": record.precision,
        "vocabulary": None if prepared.vocabulary is None else str(prepared.vocabulary),
        "rows": {"train": len(prepared.train), "selection": len(prepared.selection)},
        "recovery": None if rebuilt.recovery is None else rebuilt.recovery.model_dump(mode="json"),
        "seed": rebuilt.seed,
        "trials": len(study.complete),
        "recorded": recorded,
        "conditions": conditions,
        "dense": dense_recorded,
        "confirmed": None
        if confirmation is None
        else {"rows": confirmation.rows, "trainings": max(1, len(confirmation.seeds))},
        "rebuilt": {**rebuilt.metrics[definition.task.metric], "difference": rebuilt.difference},
    }


def _with_intervals(confirmation: Confirmation) -> dict[str, dict[str, Any]]:
    """What was confirmed, its ends noted as those of a measurement are."""
    return {
        name: {**found, "interval": [found["low"], found["high"]]} if "low" in found else found
        for name, found in confirmation.quantities.items()
    }


def _name(where: str) -> str:
    """What a checkpoint or data set is called: its name on the hub, or the last part of its path."""
    path = Path(where).expanduser()
    return path.name if path.exists() or looks_like_path(where) else where
