"""Plan in, measurements out.

plan ──► choose ──► cut ──► size, latency, energy ──► refit ──► recover ──► score ──► measurements
                             │   └─ breaks a constraint: neither re-fitted nor trained, scored as it is
                             └─ alone on the device: other workers on it wait (search.turns)
"""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from objectives import MeasurementUnavailable, Subject, all_metrics
from search import candidates
from search.answers import packed
from search.bert.choose import choose
from search.bert.encoding import Encoded
from search.bert.precision import score_in
from search.bert.recovery import recover
from search.bert.refit import fitting_batches, refit
from search.bert.surgery import cut
from search.bert.training import score
from search.definition import METRICS, Bound, RecoverySettings
from search.errors import TrialError
from search.plan import Plan
from search.preparation import SCORING_BATCH, OnStage, Prepared, timed
from search.records import Ancestor, Evaluation

OnRung = Callable[[float, float, Mapping[str, float]], bool]
"""Asked at a rung of a recovery, with its share of the steps, the metric, and what was measured before: does it end?"""


def evaluate(
    prepared: Prepared,
    plan: Plan,
    *,
    seed: int,
    on_stage: OnStage,
    schedule: Mapping[str, float] | None = None,
    on_rung: OnRung | None = None,
    ancestor: Ancestor | None = None,
    precision: str = "fp32",
) -> Evaluation:
    """Cut, measure, re-fit, recover and score one plan.

    Args:
        prepared: What is the same for all trials.
        plan: What to keep.
        seed: Seed of the recovery: the same plan and seed give the same result on the same CPU. On a GPU they nearly
            do: attention's gradients are added up in no fixed order there.
        on_stage: Told what is being done.
        schedule: Fields of the recovery that take another value than the definition's, `steps` for example.
        on_rung: Asked at each rung of `ending.rungs`, with its share of the steps, the task's metric on `ending.rows`
            rows and all that was measured before the recovery, whether the recovery ends there.
        ancestor: A finished trial whose model is cut in place of the study's; where its weights are not among the
            artifacts, the study's is.
        precision: Number type that the recovered model is scored and measured in: `fp32`, `bf16` or `int8`.

    Returns:
        Measurements, violated constraints and seconds by stage. A plan that breaks a constraint on its size, latency or
        energy is neither re-fitted nor recovered: its metrics are those of the raw cut. Nor is the dense plan, because
        nothing was cut: it is the teacher.

    Raises:
        TrialError: If the loss stops being finite, memory runs out, or a measurement fails.
    """

    def told(name: str, done: int, total: int) -> None:
        prepared.turns.give_way()
        on_stage(name, done, total)

    with failures_told(prepared), prepared.turns.working():
        recovery = prepared.definition.recovery.model_copy(update=dict(schedule or {}))
        return _evaluate(prepared, plan, recovery, seed, told, on_rung, ancestor, precision)


@contextmanager
def failures_told(prepared: Prepared) -> Iterator[None]:
    """Say a lack of memory, or a measurement that fails, as a trial's failure; give the memory back at the end.

    Raises:
        TrialError: If memory runs out in the block, or a measurement fails.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrialError(_out_of_memory(prepared, error)) from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise TrialError(_out_of_memory(prepared, error)) from None
        raise
    except MeasurementUnavailable as error:
        raise TrialError(str(error)) from None
    finally:
        _give_memory_back()


def _evaluate(
    prepared: Prepared,
    plan: Plan,
    recovery: RecoverySettings,
    seed: int,
    on_stage: OnStage,
    on_rung: OnRung | None,
    ancestor: Ancestor | None,
    precision: str,
) -> Evaluation:
    definition, seconds = prepared.definition, dict[str, float]()
    with timed(seconds, "cut"):
        on_stage("cut", 0, 1)
        model = None if ancestor is None else cut_further(prepared, plan, ancestor)
        cut_from = None if model is None or ancestor is None else ancestor.trial
        model = cut_to(prepared, plan) if model is None else model
    quantities = {}
    on_stage("measure", 0, 1)
    alone = prepared.turns.measuring(lambda: on_stage("wait to measure", 0, 1))
    objectives = prepared.deployed[precision]
    with alone, timed(seconds, "measure"):
        for name, objective in objectives.items():
            if not objective.needs_scores and is_wanted(name, prepared):
                quantities[name] = objective.measure(Subject(model)).to_dict()
    violations = _violations(definition.bounds, quantities)
    goes_on = all(excess <= 0 for excess in violations.values()) and plan != Plan.dense(prepared.shape)
    known = {name: float(quantity["value"]) for name, quantity in quantities.items()}
    if goes_on:
        bring_back(
            prepared,
            model,
            recovery,
            seed=seed,
            seconds=seconds,
            on_stage=on_stage,
            refits=cut_from is None,
            rungs=definition.ending.rungs,
            on_rung=None if on_rung is None else lambda share: on_rung(share, _glimpse(prepared, model), known),
        )
    with timed(seconds, "score"):
        logits = selection_logits(prepared, model, on_stage=on_stage, precision=precision)
    scored = Subject(model, logits=logits, labels=prepared.selection.labels)
    quantities |= {name: metric.to_dict() for name, metric in all_metrics(logits, prepared.selection.labels).items()}
    for name, objective in objectives.items():
        if objective.needs_scores and name not in quantities and is_wanted(name, prepared):
            quantities[name] = objective.measure(scored).to_dict()
    unmeasured = [name for name in definition.bounds if name not in quantities]
    if unmeasured:
        raise TrialError(f"the constraint on {unmeasured[0]!r} cannot be checked: nothing measured it")
    return Evaluation(
        quantities=quantities,
        violations=_violations(definition.bounds, quantities),
        seconds=seconds,
        conditions=conditions_of(prepared),
        cut_from=cut_from,
        weights=_kept(prepared, model, plan) if goes_on and recovery.inherits else None,
        answers=_answers(prepared, logits),
    )


def _answers(prepared: Prepared, logits: torch.Tensor) -> dict[str, Any] | None:
    """What a candidate answered; the classes only where another metric than accuracy is compared, no numbers at all."""
    if prepared.definition.task.is_regression:
        return None
    compared = {prepared.definition.task.metric, *prepared.definition.objective_names} & set(METRICS)
    return packed(
        prepared.selection.labels.cpu().numpy(),
        logits.argmax(dim=1).cpu().numpy(),
        labels=0 if compared == {"accuracy"} else len(prepared.definition.task.labels),
    )


def _kept(prepared: Prepared, model: PreTrainedModel, plan: Plan) -> str | None:
    """Keep a recovered model for those that are cut from it; None where there is no place for it."""
    if prepared.artifacts is None:
        return None
    return candidates.keep(prepared.artifacts, model, plan, partial(cut_to, prepared))


def cut_further(prepared: Prepared, plan: Plan, ancestor: Ancestor) -> PreTrainedModel | None:
    """Cut a finished trial's model to a plan that it contains; None where its weights are not there."""
    if prepared.artifacts is None:
        return None
    model = candidates.found(prepared.artifacts, ancestor.weights, ancestor.plan, partial(cut_to, prepared))
    if model is None:
        return None
    return cut(model, candidates.within(ancestor.plan, plan, prepared.scores), directions=prepared.directions)


def cut_to(prepared: Prepared, plan: Plan) -> PreTrainedModel:
    """Cut the study's model to a plan: importance says which heads and neurons stay. The model given is left alone."""
    return cut(prepared.start_of(plan), choose(plan, prepared.scores), directions=prepared.directions)


def bring_back(
    prepared: Prepared,
    model: PreTrainedModel,
    recovery: RecoverySettings,
    *,
    seed: int,
    seconds: dict[str, float],
    on_stage: OnStage,
    refits: bool = True,
    rungs: Sequence[float] = (),
    on_rung: Callable[[float], bool] | None = None,
) -> None:
    """Re-fit and recover a cut model in place, as far as the settings ask for it.

    Args:
        prepared: What is the same for all trials.
        model: The cut model.
        recovery: How; the plan's own schedule is in it.
        seed: Seed of the recovery.
        seconds: Told what the stages took.
        on_stage: Told what is being done.
        refits: Whether it was cut from the dense model, which it may be re-fitted to; a trained one is left as it is.
        rungs: Shares of the steps after which `on_rung` is asked.
        on_rung: Asked, with the share, whether the recovery ends there.

    Raises:
        TrialError: If the loss stops being finite.
    """
    if recovery.refit_rows and refits:
        with timed(seconds, "refit"):
            on_stage("refit", 0, 1)
            refit(
                model,
                prepared.teacher,
                fitting_batches(
                    prepared.train,
                    recovery.refit_rows,
                    pad_id=prepared.pad_id,
                    seed=prepared.definition.engine.seed,  # the study's: all trials are fitted on the same rows
                    device=prepared.device,
                ),
            )
    if recovery.steps:
        with timed(seconds, "recover"):
            recover(
                model,
                prepared.train,
                prepared.teacher_logits,
                recovery,
                pad_id=prepared.pad_id,
                seed=seed,
                on_step=lambda done, total: on_stage("recover", done, total),
                teacher=prepared.teacher,
                rungs=rungs,
                on_rung=on_rung,
            )


def selection_logits(
    prepared: Prepared, model: PreTrainedModel, *, on_stage: OnStage, precision: str = "fp32"
) -> torch.Tensor:
    """Logits of a model on the selection split (rows, labels), float32.

    Args:
        prepared: What is the same for all trials.
        model: The model, in float32.
        on_stage: Told what is being done.
        precision: What it computes in: that of the model whose latency was measured.

    Raises:
        TrialError: If they are not finite.
    """
    return logits_on(prepared, model, prepared.selection, stage="score", on_stage=on_stage, precision=precision)


def logits_on(
    prepared: Prepared, model: PreTrainedModel, rows: Encoded, *, stage: str, on_stage: OnStage, precision: str
) -> torch.Tensor:
    """Logits of a model on some rows (rows, labels), float32.

    Args:
        prepared: What is the same for all trials.
        model: The model, in float32.
        rows: The rows.
        stage: Name of the stage, as people see it.
        on_stage: Told what is being done.
        precision: What it computes in.

    Raises:
        TrialError: If they are not finite.
    """
    logits = score_in(
        precision,
        model,
        rows,
        pad_id=prepared.pad_id,
        batch_size=SCORING_BATCH,
        on_step=lambda done, total: on_stage(stage, done, total),
    )
    if not torch.isfinite(logits).all():
        raise TrialError("the recovered model's logits are not finite; lower recovery.learning_rate")
    return logits


def _glimpse(prepared: Prepared, model: torch.nn.Module) -> float:
    """The task's metric of a candidate on some rows of the selection split, the same for all trials of the study."""
    rows = prepared.selection
    dice = torch.Generator().manual_seed(prepared.definition.engine.seed)
    some = rows.taken(torch.randperm(len(rows), generator=dice)[: prepared.definition.ending.rows].tolist())
    logits = score(model, some, pad_id=prepared.pad_id, batch_size=SCORING_BATCH, precision="fp32")
    return all_metrics(logits, some.labels)[prepared.definition.task.metric].value


ALWAYS = ("parameters", "encoder_parameters", "encoder_share", "macs", "latency_ms")
"""Measured in every trial, objective or not: they are exact or cheap."""


def is_wanted(name: str, prepared: Prepared) -> bool:
    """Whether a study measures a quantity in every trial."""
    asked = (*prepared.definition.objective_names, *prepared.definition.bounds)
    return name in asked or name in ALWAYS or name in prepared.definition.named_latencies


def _violations(constraints: Mapping[str, Bound], quantities: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How far each measured quantity is beyond its bound, in its own unit; at most 0 keeps it."""
    excess = {}
    for name, bound in constraints.items():
        if name in quantities:
            value = float(quantities[name]["value"])
            over = [value - bound.at_most] if bound.at_most is not None else []
            under = [bound.at_least - value] if bound.at_least is not None else []
            excess[name] = max(over + under)
    return excess


def conditions_of(prepared: Prepared) -> dict[str, Any]:
    """What a measurement rests on: device, threads, versions, source of the energy figure."""
    device = prepared.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "paretobert": version("paretobert"),
        "energy_source": prepared.energy_source,
        **({"vocabulary": str(prepared.vocabulary)} if prepared.vocabulary else {}),
    }


def _give_memory_back() -> None:
    """Return what a trial's models held: glibc keeps freed memory in pieces, and a long study would grow by it."""
    gc.collect()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def _out_of_memory(prepared: Prepared, error: Exception) -> str:
    return (
        f"out of memory on {prepared.device} ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
        f"lower recovery.batch_size (now {prepared.definition.recovery.batch_size})"
    )
