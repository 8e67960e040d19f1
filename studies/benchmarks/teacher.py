"""Which schedule makes the better dense model of SST-2? Each is trained, and scored on the selection split and on dev.

    python studies/benchmarks/teacher.py --quick
    python studies/benchmarks/teacher.py --schedules 5e-5:16:3 1e-4:32:3

- A schedule is peak learning rate, sentences per step, epochs. The selection split chooses; the figure on GLUE's dev
  set stands beside it and chooses nothing. One seed each.
- All else is as `sst2_minilm.py` has it, the seed too, and what is made is kept in runs/benchmarks/teacher as a study
  keeps it: copied to a study's artifacts, its teacher is not trained again, and the other way round.
- Interrupted, it goes on with the first schedule that is not finished. --quick: 2,000 rows, one epoch each.
"""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # sst2_minilm.py, a folder above

from harness import finish, parser, say
from sst2_minilm import study

from objectives import all_metrics
from search import Definition, TeacherSettings, preparation
from search.artifacts import Artifacts
from search.bert.encoding import Encoded

FOLDER = Path(__file__).resolve().parents[2] / "runs" / "benchmarks" / "teacher"
SCHEDULES = ("5e-5:16:3", "1e-4:32:3", "5e-5:16:5")
QUICK_ROWS = 2000


def schedule(text: str) -> TeacherSettings:
    """A schedule from the command line.

    Raises:
        ValueError: If it is not three numbers.

    Example:
        >>> schedule("1e-4:32:3").batch_size
        32
    """
    rate, batch, epochs = text.split(":")
    return TeacherSettings(learning_rate=float(rate), batch_size=int(batch), epochs=float(epochs))


def defined(settings: TeacherSettings, *, quick: bool) -> Definition:
    """The study with this schedule; nothing is measured, and importance reads few rows."""
    update: dict[str, Any] = {
        "teacher": settings.model_copy(update={"epochs": 1.0}) if quick else settings,
        "importance": study.importance.model_copy(update={"rows": 256}),
        "measuring": study.measuring.model_copy(update={"reference": False}),
    }
    if quick:
        update["task"] = study.task.model_copy(update={"train_rows": QUICK_ROWS})
    return study.model_copy(update=update)


def figures(definition: Definition) -> dict[str, Any]:
    """Train the dense model, or find it, and score it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    artifacts = Artifacts(FOLDER)
    prepared = preparation.prepare(definition, artifacts, device=device, own_objectives={}, on_stage=_said)
    splits = {"selection": prepared.selection, "dev": preparation.held_out_rows(prepared, artifacts)}
    settings = definition.teacher
    made: dict[str, Any] = {
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "train_rows": len(prepared.train),
        "seconds": round(prepared.cost.get("teacher", 0.0), 1),
    }
    for name, rows in splits.items():
        made |= _scored(prepared, rows, name)
    return made


def _scored(prepared: preparation.Prepared, rows: Encoded, name: str) -> dict[str, float]:
    logits = preparation.score(
        prepared.teacher, rows, pad_id=prepared.pad_id, batch_size=preparation.SCORING_BATCH, precision="fp32"
    )
    return {name: round(all_metrics(logits, rows.labels)["accuracy"].value, 4)}


def _said(name: str, done: int, total: int) -> None:
    if done and done % 200 == 0:
        say(f"{name} {done} of {total}")


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--schedules", nargs="+", type=schedule, default=[schedule(each) for each in SCHEDULES])
    given = command.parse_args()
    found = []
    for settings in given.schedules:
        found.append(figures(defined(settings, quick=given.quick)))
        told = "{learning_rate:g}, batch {batch_size}, {epochs:g} epochs: selection {selection}, dev {dev}"
        say(told.format(**found[-1]))
    best = max(found, key=lambda one: one["selection"])
    finish({"benchmark": "teacher", "quick": given.quick, "schedules": found, "chosen": best}, given.json)


if __name__ == "__main__":
    main()
