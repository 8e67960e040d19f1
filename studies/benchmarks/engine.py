"""What one trial costs, stage by stage; the engine's own share; and what cutting gains, side by side.

    python studies/benchmarks/engine.py --quick

- A real study runs in an SQLite file. The engine's share is the time of the whole loop that is not spent in evaluating
  a plan: sampling, storage and bookkeeping. The stages are those that every trial records.
- Dense, half and quarter models take turns, so that the machine's drift hits all three: the speed-ups are medians of
  ratios of neighbours, for inference (fp32) and for a training step (the recovery's own precision).
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import arguments, finish, packaged_study, say

from search.artifacts import Artifacts
from search.bert.choose import choose
from search.bert.ladder import ladder
from search.bert.recovery import recover
from search.bert.surgery import cut
from search.engine import storage, study
from search.engine.worker import work
from search.pipeline import evaluate
from search.plan import Plan, encoder_macs
from search.preparation import Prepared, prepare
from search.records import Evaluation, ObjectiveInfo, Record, StudyRecord

RATIOS = {"50": 0.5, "25": 0.25}


class Progress:
    """One line per finished trial."""

    def stage(self, trial: int, name: str, done: int, total: int) -> None:
        pass

    def finished(self, record: Record, completed: int, total: int) -> None:
        say(f"trial {completed} of {total}: {sum(record.seconds.values()):.1f} s {record.seconds}")

    def known(self, study: StudyRecord) -> None:
        pass

    def note(self, text: str) -> None:
        say(text)


def engine_share(prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Run a study, and divide its time."""
    definition = prepared.definition
    infos = [prepared.objectives[name] for name in definition.objective_names]
    opened = study.create(
        storage.open_storage(f"sqlite:///{folder}/study.db", create=True),
        definition,
        shape=prepared.shape,
        objectives=tuple(ObjectiveInfo(info.name, info.unit, info.direction) for info in infos),
        energy_source=prepared.energy_source,
        content=prepared.content,
        machine=prepared.machine,
        ladder=ladder(prepared.space, prepared.scores, sizes=definition.engine.ladder, tilts=definition.engine.tilts),
    )
    inside = 0.0

    def timed(plan: Plan, *, seed: int, on_stage: Callable[[str, int, int], None]) -> Evaluation:
        nonlocal inside
        start = time.perf_counter()
        result = evaluate(prepared, plan, seed=seed, on_stage=on_stage)
        inside += time.perf_counter() - start
        return result

    start = time.perf_counter()
    work(opened, timed, Progress())
    whole = time.perf_counter() - start
    stages = defaultdict(list)
    for record in study.read(opened).complete:
        for stage, seconds in record.seconds.items():
            stages[stage].append(seconds)
    trials = definition.engine.trials
    return {
        "trials": trials,
        "seconds_per_trial": round(whole / trials, 3),
        "stages": {stage: round(sum(seconds) / trials, 3) for stage, seconds in stages.items()},
        "engine_seconds_per_trial": round((whole - inside) / trials, 4),
        "engine_share": round((whole - inside) / whole, 5),
    }


def speedups(prepared: Prepared, *, rounds: int) -> dict[str, Any]:
    """Dense, half and quarter by turns: inference and training at batch 32."""
    plans = {"dense": Plan.dense(prepared.shape)}
    plans |= {name: prepared.space.plan(prepared.space.uniform(ratio)) for name, ratio in RATIOS.items()}
    models = {name: cut(prepared.teacher, choose(plan, prepared.scores)) for name, plan in plans.items()}
    latency = prepared.objectives["latency_ms"]
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    one_step = prepared.definition.recovery.model_copy(update={"steps": 2})
    from objectives import Subject

    for round_ in range(rounds):
        for name, model in models.items():
            seconds["run", name].append(latency.measure(Subject(model)).value)
            start = time.perf_counter()
            recover(
                model,
                prepared.train,
                prepared.teacher_logits,
                one_step,
                pad_id=prepared.pad_id,
                seed=round_,
                on_step=lambda _done, _total: None,
            )
            seconds["train", name].append(time.perf_counter() - start)
        say(f"round {round_ + 1} of {rounds}")
    result: dict[str, Any] = {}
    tokens = prepared.definition.latency.tokens
    assert isinstance(tokens, int)
    dense = encoder_macs(plans["dense"], prepared.shape, tokens=tokens)
    for name in RATIOS:
        for what, key in (("run", "speedup"), ("train", "train_speedup")):
            pairs = zip(seconds[what, "dense"], seconds[what, name], strict=True)
            result[f"{key}_{name}"] = round(statistics.median(a / b for a, b in pairs), 3)
        result[f"macs_ratio_{name}"] = round(dense / encoder_macs(plans[name], prepared.shape, tokens=tokens), 3)
    return result


def main() -> None:
    given = arguments(__doc__.splitlines()[0])
    base = packaged_study("engine-benchmark", rows=600 if given.quick else 4000)
    trials = 10 if given.quick else 30
    engine = base.engine.model_copy(update={"trials": trials})
    measuring = base.measuring.model_copy(update={"reference": False})  # the dense model takes turns here
    definition = base.model_copy(update={"engine": engine, "measuring": measuring})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("preparing: tokens, teacher, logits, importance")
        prepared = prepare(
            definition,
            Artifacts(folder / "artifacts"),
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            own_objectives={},
            energy_source=None,
            on_stage=lambda _name, _done, _total: None,
        )
        result = {"benchmark": "engine", "quick": given.quick, "preparation": prepared.seconds}
        result |= engine_share(prepared, folder)
        result |= speedups(prepared, rounds=5 if given.quick else 15)
    for key, value in result.items():
        say(f"{key:26} {value}")
    finish(result, given.json)


if __name__ == "__main__":
    main()
