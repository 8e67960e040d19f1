"""Trials per hour of the plain way and of our default, on the same plans and steps, and where the time goes.

    python studies/benchmarks/throughput.py --quick

- Plain: `plain.py`. Ours: `search.pipeline.evaluate` with what is made once per study at hand, as in every trial
  but the first. Both train the same number of steps of 32 sentences; ours measures the latency besides.
- The two take turns on each plan, so that the machine's drift hits both; `speedup` is the median of the ratios. On a
  CPU the ratio is one of CPU seconds, which other processes hardly disturb; `speedup_wall` stands beside it.
- The reasons, on the same batches by turns: seconds of a training step with each of the Trainer's habits put back into
  our loop. On a CUDA device: the share of time that the GPU is busy, as its driver says.
- Model: the packaged checkpoint. Data: GLUE's SST-2, 12,000 of the 67,349 training rows; 1,500 and 40 steps with
  --quick.
"""

import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import plain
import torch
from harness import Clock, arguments, finish, say
from search_efficiency import definition

from search.artifacts import Artifacts
from search.bert.choose import choose
from search.bert.recovery import recover
from search.bert.splitting import load_splits
from search.bert.surgery import cut
from search.keys import wanted
from search.pipeline import evaluate
from search.preparation import Prepared, prepare

HABITS: dict[str, dict[str, Any]] = {
    "ours": {},
    "word embeddings trained": {"train_embeddings": True},
    "dropout 0.1": {"dropout": 0.1},
    "fp32": {"precision": "fp32"},
    "all three": {"train_embeddings": True, "dropout": 0.1, "precision": "fp32"},
}


class Busy:
    """Share of the time that the GPU is busy, asked of its driver while a block runs; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen: list[float] = []
        self._over = threading.Event()

    def __enter__(self) -> "Busy":
        if self._device.type == "cuda":
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._seen.append(torch.cuda.utilization(self._device) / 100)

    @property
    def share(self) -> float | None:
        return round(statistics.mean(self._seen), 3) if self._seen else None


def training_steps(prepared: Prepared, *, steps: int, rounds: int) -> dict[str, float]:
    """CPU (or wall) milliseconds of one training step at half size, with each of the Trainer's habits; by turns."""
    scores, plan = prepared.scores, prepared.space.plan(prepared.space.uniform(0.5))
    seconds: dict[str, list[float]] = defaultdict(list)
    for round_ in range(rounds):
        for name, habit in HABITS.items():
            model = cut(prepared.teacher, choose(plan, scores))
            settings = prepared.definition.recovery.model_copy(update={"steps": steps, **habit})
            clock = Clock(prepared.device)
            recover(
                model,
                prepared.train,
                prepared.teacher_logits,
                settings,
                pad_id=prepared.pad_id,
                seed=round_,
                on_step=lambda _done, _total: None,
            )
            seconds[name].append(1000 * clock.seconds() / steps)
    return {name: round(statistics.median(found), 1) for name, found in seconds.items()}


def main() -> None:
    given = arguments(__doc__.splitlines()[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    study = definition(seed=0, quick=given.quick)
    steps = 40 if given.quick else study.recovery.steps  # with fewer, little but the scoring would be compared
    study = study.model_copy(update={"recovery": study.recovery.model_copy(update={"steps": steps})})
    ratios = (0.5, 0.25) if given.quick else (0.75, 0.5, 0.375, 0.25, 0.125)
    with tempfile.TemporaryDirectory() as name:
        artifacts = Artifacts(Path(name))
        say("preparing: tokens, teacher, logits, importance")
        prepared = prepare(
            study, artifacts, device=device, own_objectives={}, on_stage=lambda _name, _done, _total: None
        )
        teacher = artifacts.found("teacher", wanted(study, prepared.content)["teacher"])
        assert teacher is not None
        splits = load_splits(study.data, study.task, seed=study.engine.seed)
        compute: dict[str, list[float]] = defaultdict(list)
        wall: dict[str, list[float]] = defaultdict(list)
        stages: dict[str, dict[str, list[float]]] = {"plain": defaultdict(list), "ours": defaultdict(list)}
        busy: dict[str, list[float | None]] = defaultdict(list)
        for number, ratio in enumerate(ratios * (1 if given.quick else 3)):
            plan = prepared.space.plan(prepared.space.uniform(ratio))
            for way in ("plain", "ours"):
                start, clock = time.perf_counter(), Clock(device)
                with Busy(device) as watch:
                    if way == "plain":
                        result = plain.trial(
                            teacher,
                            splits,
                            plan,
                            study.recovery,
                            max_tokens=study.task.max_tokens,
                            seed=number,
                            device=device,
                            hold_out=False,
                        )
                        found = result.stages
                    else:
                        found = evaluate(prepared, plan, seed=number, on_stage=lambda _n, _d, _t: None).seconds
                compute[way].append(clock.seconds())
                wall[way].append(time.perf_counter() - start)
                busy[way].append(watch.share)
                for stage, seconds in found.items():
                    stages[way][stage].append(seconds)
            say(f"ratio {ratio}: plain {compute['plain'][-1]:.1f} s, ours {compute['ours'][-1]:.1f} s of compute")
        step_ms = training_steps(prepared, steps=5 if given.quick else 20, rounds=3)
    result_ = {
        "benchmark": "throughput",
        "quick": given.quick,
        "train_rows": len(prepared.train),
        "steps": study.recovery.steps,
        "ratios": list(ratios),
        "speedup": _median_ratio(compute),
        "speedup_wall": _median_ratio(wall),
        "trials_per_hour": {way: round(3600 / statistics.mean(seconds), 1) for way, seconds in wall.items()},
        "stages": {
            way: {stage: round(statistics.mean(seconds), 3) for stage, seconds in own.items()}
            for way, own in stages.items()
        },
        "milliseconds_per_step": step_ms,
        "gpu_busy": dict(busy) if device.type == "cuda" else None,
    }
    for key, value in result_.items():
        say(f"{key:22} {value}")
    finish(result_, given.json)


def _median_ratio(seconds: dict[str, list[float]]) -> float:
    pairs = zip(seconds["plain"], seconds["ours"], strict=True)
    return round(statistics.median(plain_s / ours_s for plain_s, ours_s in pairs), 2)


if __name__ == "__main__":
    main()
