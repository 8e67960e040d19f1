"""What do the trainings of a point come to: its mean, how sure that is, and which other points it clearly beats?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t
from torch import Tensor

from objectives import all_metrics
from search.analysis.evidence import Evidence, difference, gather, interval
from search.analysis.resampling import weighted
from search.definition import RecoverySettings
from search.deploy.confirm import Training
from search.records import Confirmation, StudyRecord


def evidence_of(study: StudyRecord, trainings: Sequence[Training], labels: Tensor) -> Evidence:
    """What trainings say about the task's metric on the held-out rows."""
    metric, seed = study.definition.task.metric, study.definition.engine.seed

    def scored(logits: Tensor) -> Any:
        if not labels.is_floating_point():
            # Hundreds of draws: the library's metrics, which check everything each time, would take seconds.
            classes = logits.shape[1]
            codes = (labels * classes + logits.argmax(dim=1)).numpy()
            return lambda some: float(weighted(metric, codes[None, some], classes, np.ones((len(some), 1)))[0, 0])

        def of_numbers(some: NDArray[np.int64]) -> float:
            rows = torch.from_numpy(some)
            return float(all_metrics(logits[rows], labels[rows])[metric].value)

        return of_numbers

    return gather([scored(training.logits) for training in trainings], len(labels), seed=seed)


def summarise(
    study: StudyRecord,
    trial: int,
    trainings: Sequence[Training],
    evidence: Evidence,
    labels: Tensor,
    *,
    recovery: RecoverySettings | None,
    asked: int,
) -> Confirmation:
    """What the trainings of one trial come to.

    Args:
        study: The study.
        trial: Number of the trial.
        trainings: Those that are done, at least one.
        evidence: What `evidence_of` gave for them.
        labels: Labels of the held-out rows (rows,).
        recovery: How they were trained; None for the dense model.
        asked: How many were asked for.
    """
    metric = study.definition.task.metric
    scores = [all_metrics(training.logits, labels) for training in trainings]
    quantities: dict[str, dict[str, Any]] = {}
    for name in scores[0]:
        each = [float(values[name].value) for values in scores]
        quantities[name] = {"value": float(np.mean(each)), "each": each, "unit": "", "source": "held-out split"}
    low, high = interval(evidence, is_share=metric == "accuracy")
    quantities[metric] |= {"low": low, "high": high}
    for name in trainings[0].measured:
        quantities[name] = _again([training.measured[name] for training in trainings if name in training.measured])
    selection = {
        name: float(np.mean([training.selection[name] for training in trainings])) for name in trainings[0].selection
    }
    trained = [training for training in trainings if training.seed is not None]
    # Not the best on the held-out rows, whose mean would flatter it then.
    best = max(trained, key=lambda training: training.selection[metric], default=None)
    return Confirmation(
        trial=trial,
        quantities=quantities,
        selection=selection,
        seeds=tuple(training.seed for training in trainings if training.seed is not None),
        asked=asked,
        recovery={} if recovery is None else recovery.model_dump(mode="json"),
        best=None if best is None else best.seed,
        weights=None if best is None else best.weights,
        rows=len(labels),
        conditions=dict(trainings[-1].conditions),
        seconds=round(sum(training.seconds for training in trainings), 3),
    )


def ranked(confirmations: Sequence[Confirmation], known: Mapping[int, Evidence]) -> list[Confirmation]:
    """Say of each which others it clearly beats on the held-out rows, of those that took as many steps.

    Args:
        confirmations: Of different trials.
        known: What is known of each, by number of the trial.
    """
    return [
        replace(
            one,
            beats=tuple(
                other.trial
                for other in confirmations
                if other is not one and one.is_like(other) and difference(known[one.trial], known[other.trial])[1] > 0
            ),
        )
        for one in confirmations
    ]


def _again(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several measurements of one quantity: their median, and its 95 % interval.

    Where measurements have intervals of their own, it reaches over all of them; else it is Student's t of the values,
    wide for few of them.
    """
    values = [float(each["value"]) for each in measured]
    known: dict[str, Any] = {
        "value": float(np.median(values)),
        "each": values,
        **{name: measured[0][name] for name in ("unit", "source") if name in measured[0]},
    }
    if "conditions" in measured[0]:
        known["conditions"] = {name: at for name, at in measured[0]["conditions"].items() if name != "clock_mhz"}
    ends = [each["interval"] for each in measured if each.get("interval") is not None]
    if ends:
        known["low"] = min([*values, *(float(low) for low, _ in ends)])
        known["high"] = max([*values, *(float(high) for _, high in ends)])
    elif len(set(values)) > 1:
        half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
        known["low"], known["high"] = known["value"] - half, known["value"] + half
    return known
