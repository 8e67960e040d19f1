"""How much faster is a cut model than the dense one, at which batch and on which device?

    dense ████ cut ▒▒ │ cut ▒▒ dense ████ │ ...  ──►  median of the pairs dense / cut, with its 95 % interval

The two take turns (`objectives.pairs`), so what slows the machine cancels. The weights do not matter, only the shape.
"""

import copy
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from objectives import Conditions, Subject
from objectives.clocks import work_clock
from objectives.latency import Latency
from search.pipeline import cut_to
from search.plan import Plan
from search.reopening import Reopened

TOKENS = 32
"""Tokens per sequence, special tokens included."""

BATCHES = {"cpu": (1, 32), "cuda": (1, 32, 128)}
"""Sequences per batch that the headline table has, by kind of device."""


def devices() -> list[torch.device]:
    """The CPU, and a GPU where one is at hand."""
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def label(device: torch.device, batch: int) -> str:
    """Name of a speed-up in tables and in JSON."""
    return f"{'GPU' if device.type == 'cuda' else device.type.upper()} batch {batch}"


def speed_up(model: nn.Module, dense: nn.Module, batch: int, *, quick: bool) -> dict[str, Any]:
    """Measure a model beside the dense one; both are on the device already.

    Args:
        model: The cut model.
        dense: The dense model.
        batch: Sequences per batch.
        quick: Whether few pairs are enough.

    Returns:
        `speed_up` with `low` and `high` (95 % interval of the median; missing where the pairs are too few), `ms` and
        `dense_ms` per batch, `pairs` and the `conditions` of the measurement.
    """
    device = next(model.parameters()).device
    conditions = Conditions(
        batch=batch,
        tokens=TOKENS,
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        warmup=1 if quick else 3,
        repeats=12 if quick else 20,
        interval=None if quick else 0.05,
        limit_s=0.0 if quick else 5.0,
    )
    # The reference is said to take 1 ms: then the corrected figure is the model's share of it, with its interval.
    latency = Latency(conditions, reference=dense, reference_ms=1.0, corrected=True, work_clock=work_clock(device))
    measured = latency.measure(Subject(model))
    ends = {} if measured.interval is None else {"low": 1 / measured.interval[1], "high": 1 / measured.interval[0]}
    return {
        "speed_up": 1 / measured.value,
        **ends,
        "ms": measured.details["absolute"],
        "dense_ms": measured.details["reference"],
        "pairs": round(measured.details["pairs"]),
        "conditions": dict(measured.conditions),
    }


def speed_ups(again: Reopened, trials: Sequence[int], *, quick: bool) -> dict[int, dict[str, dict[str, Any]]]:
    """Measure trials of a study on every device at hand; what is measured is kept among its artifacts.

    Args:
        again: The study.
        trials: Numbers of the trials.
        quick: Whether few pairs are enough.

    Returns:
        What `speed_up` gave, by trial and `label`.
    """
    return {
        trial: {
            label(device, batch): _kept(again, trial, device, batch, quick=quick)
            for device in devices()
            for batch in BATCHES[device.type]
        }
        for trial in trials
    }


def _kept(again: Reopened, trial: int, device: torch.device, batch: int, *, quick: bool) -> dict[str, Any]:
    """One of them, measured now or found."""
    prepared, plan = again.prepared, again.study.records[trial].plan
    assert isinstance(plan, Plan)

    def make(folder: Path) -> None:
        dense = torch.nn.Module.to(copy.deepcopy(prepared.teacher), device)
        model = torch.nn.Module.to(cut_to(prepared, plan), device)
        measured = speed_up(model, dense, batch, quick=quick)
        (folder / "speed.json").write_text(json.dumps(measured), encoding="utf-8")

    on = f"{torch.get_num_threads()} threads of {platform.node()}"
    if device.type == "cuda":
        on = torch.cuda.get_device_name(device)
    what = {"plan": [list(plan.heads), list(plan.neurons), plan.rank], "shape": str(prepared.shape)}
    folder = again.artifacts.made("speed", {**what, "on": on, "batch": batch, "quick": quick}, make)
    return dict(json.loads((folder / "speed.json").read_text(encoding="utf-8")))
