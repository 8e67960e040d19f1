"""A published claim, tested: BERT-base with at most 25 M parameters in all, on SST-2 and CoLA.

    python studies/smarts2025.py                     SST-2
    python studies/smarts2025.py --cola              CoLA
    python studies/smarts2025.py --shape --quick     what 25 M parameters can hold and what that costs; no weights

Smarts, Selvaraj, Kuthadi, "A Conceptual Framework for Efficient and Sustainable Pruning Techniques in Deep Learning
Models", Journal of Computer Science 21(5), 2025, state for 25 M parameters an accuracy of 96.3 % and an F1 of 95.2 % on
SST-2, and on CoLA an F1 of 82.3 and a Matthews correlation of 56 %. Only its abstract could be read.

Heads and neurons alone get there with next to nothing of the encoder (embeddings and pooler are 24.4 M), so the rank
of the word embeddings is a dimension, and so is the schedule of the recovery. Where the weights of bert-base-uncased
cannot be reached, the shape part (`fitting.py`) runs in place of the search, and says so. --subset is for one CPU core.
`claim.py` counts.
"""

import sys

import sst2
from benchmarks.harness import parser
from parts.fitting import shape_part
from parts.sources import glue, spelt_out

from search import (
    Bound,
    Definition,
    EngineSettings,
    Range,
    RateRange,
    RecoverySettings,
    ScheduleRanges,
    SpaceSettings,
    TeacherSettings,
    run,
)
from search.arguments import parse
from search.bert.checkpoint import folder_of
from search.errors import UserError
from search.run import guarded

study = Definition(
    name="smarts2025-sst2",
    model="bert-base-uncased",
    data=glue("SST-2"),
    task=sst2.study.task,
    # 25 M in all leave at most 27 % of the encoder, at rank 32; single layers may keep more than the others.
    space=SpaceSettings(
        heads=Range(high=0.5),
        neurons=Range(high=0.5),
        embedding=Range(low=0.04, high=0.34),
        schedule=ScheduleRanges(
            learning_rate=RateRange(low=3e-5, high=3e-4), warmup=Range(low=0.0, high=0.3), distillation=Range(low=0.5)
        ),
    ),
    constraints={"parameters": Bound(at_most=25_000_000)},
    teacher=TeacherSettings(epochs=3, learning_rate=2e-5),
    recovery=RecoverySettings(steps=600, learning_rate=1e-4),
    engine=EngineSettings(trials=200, ladder=(0.21, 0.2, 0.17, 0.14, 0.11, 0.08)),
)

COLA: dict[str, str | None] = {
    "name": "smarts2025-cola",
    "data": glue("CoLA"),
    "task.config": "cola",
    "no-task.phrases": None,
    "task.columns": '["source", "label", "mark", "sentence"]',
    "no-task.quoting": None,
    "task.metric": "matthews",
    "teacher.epochs": "4",
}
"""What `--cola` stands for."""

SUBSET = {
    "task.train_rows": "2000",
    "task.selection_rows": "300",
    "teacher.epochs": "1",
    "importance.rows": "128",
    "recovery.steps": "20",
    "latency.repeats": "6",
    "latency.seconds": "0",
    "engine.trials": "20",
}
"""What `--subset` stands for: the same code path for a CPU, and no evidence."""


def is_reached(model: str) -> bool:
    """Whether a checkpoint can be had; why not is printed."""
    try:
        folder_of(model)
    except UserError as error:
        print(f"{error}; so only the shape part runs:", flush=True)
        return False
    return True


def main() -> None:
    given = list(sys.argv[1:])
    if "--shape" in given:
        made = parser(__doc__.splitlines()[0])
        made.add_argument("--shape", action="store_true", help="look at the shape only; no weights are needed")
        named = made.parse_args(given)
        shape_part(quick=named.quick, file=named.json)
        return
    sys.argv[1:] = spelt_out(spelt_out(given, "--cola", COLA), "--subset", SUBSET)
    definition, options = parse(study, sys.argv[1:], program=f"python {sys.argv[0]}")
    if options.dry_run or is_reached(definition.model):
        run(study)
    else:
        shape_part(quick=True, file=None)


if __name__ == "__main__":
    guarded(main)
